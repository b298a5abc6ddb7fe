//! Fixtures, weights and inputs that depend on names and a seed alone, and comparison of runs.

use std::collections::BTreeMap;

use xfc_lang::graph::parse::parse;
use xfc_lang::graph::path::{Stack, instances, join, parameters};
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{DType, Dim, Graph, Program, Type, ValueId};
use xfc_lang::ops::fused::Rows;
use xfc_lang::ops::{Core, Op};
use xfc_lang::reference::{Interpreter, State, Tensor};

pub(crate) const DENSE: &str = include_str!("../fixtures/dense.xg");
pub(crate) const ENCODER: &str = include_str!("../fixtures/encoder.xg");

/// The program of a fixture, which must verify.
pub(crate) fn program(text: &str) -> Program {
    let program = parse(text).unwrap_or_else(|e| panic!("{e}"));
    verify(&program).unwrap_or_else(|e| panic!("{e}"));
    program
}

/// Numbers in [-0.5, 0.5) that depend on `name` and `seed`.
pub(crate) fn numbers(name: &str, seed: u64, n: usize) -> Vec<f64> {
    let mut z =
        name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (0..n)
        .map(|_| {
            z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = z;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
        .collect()
}

/// Shapes of the program's weights by absolute path.
pub(crate) fn weight_shapes(program: &Program) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for instance in instances(program).unwrap() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            if let Some(Core::Weight { path }) = graph.op(node).as_core() {
                let dims: Vec<_> = graph.types(node)[0].dims.iter().map(|d| d.fixed().unwrap() as usize).collect();
                let path = join(&instance.at, path);
                let own = if Stack::of(&path).unwrap().is_some() { &dims[1..] } else { &dims };
                shapes.extend(parameters(&path).into_iter().map(|path| (path, own.to_vec())));
            }
        }
    }
    shapes
}

/// Whether a value chooses from a table of one row.
fn indexes_one_row(graph: &Graph, value: ValueId) -> bool {
    graph.uses(value).into_iter().any(|(node, operand)| match graph.op(node) {
        Op::Core(Core::Gather) => operand == 1 && graph.ty(graph.operands(node)[0]).dims[0] == Dim::Fixed(1),
        op => op.as_fused::<Rows>().is_some_and(|r| indexes_one_row(&r.body, r.body.params()[operand].value)),
    })
}

/// An input of `n` elements on every axis whose number is not known.
pub(crate) fn input(program: &Program, name: &str, ty: &Type, n: usize, seed: u64) -> Tensor {
    let size = |d: &Dim| match d {
        Dim::Fixed(n) => *n as usize,
        Dim::Axis(a) => program.extent(*a).map_or(n, |n| n as usize),
        Dim::Visible(_) | Dim::Rows(_) => n,
    };
    let dims: Vec<usize> = ty.dims.iter().map(size).collect();
    let len = dims.iter().product();
    let x = numbers(name, seed, len);
    let main = &program.graphs[0];
    let param = main.params().iter().find(|p| p.name == name);
    let most = i64::from(!param.is_some_and(|p| indexes_one_row(main, p.value)));
    match ty.dtype {
        DType::I64 | DType::I32 => Tensor::i64(dims, x.iter().map(|x| most.min(i64::from(*x > 0.0))).collect()),
        DType::Bool => Tensor::i64(dims, x.iter().map(|x| i64::from(*x > 0.0)).collect()),
        DType::F32 | DType::F16 | DType::BF16 | DType::Blocks(_) => Tensor::f64(dims, x),
    }
}

/// Runs steps of the given numbers of tokens, one sequence, in f64; the outputs of each step.
pub(crate) fn run(program: &Program, steps: &[usize], seed: u64) -> Vec<BTreeMap<String, Tensor>> {
    let verified = verify(program).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let shapes = weight_shapes(program);
    let weights = |path: &str| {
        let dims = shapes.get(path).ok_or_else(|| format!("no weight {path}"))?;
        Ok(Tensor::f64(dims.clone(), numbers(path, seed, dims.iter().product())))
    };
    let interpreter = Interpreter::<f64>::new(verified, &weights).unwrap();
    let mut state = State::new();
    let step = |(i, n): (usize, &usize)| {
        let inputs = program
            .inputs
            .iter()
            .map(|d| (d.name.clone(), input(program, &d.name, &d.ty, *n, seed + i as u64)))
            .collect();
        interpreter.step(&mut state, &inputs).unwrap_or_else(|e| panic!("{e}\n{program}"))
    };
    steps.iter().enumerate().map(step).collect()
}

/// The largest difference of two runs, whose outputs must have the same names and shapes.
pub(crate) fn difference(a: &[BTreeMap<String, Tensor>], b: &[BTreeMap<String, Tensor>]) -> f64 {
    let mut largest = 0.0f64;
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (x, y) in a.values().zip(b.values()) {
            assert_eq!(x.dims, y.dims);
            for (x, y) in x.to_f64().into_iter().zip(y.to_f64()) {
                assert_eq!(x.is_nan(), y.is_nan());
                if x != y && !x.is_nan() {
                    largest = largest.max((x - y).abs() / (1.0 + x.abs().max(y.abs())));
                }
            }
        }
    }
    largest
}
