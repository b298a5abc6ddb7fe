//! Generated programs: their text reads back, and every pass keeps what they mean.

use proptest::prelude::*;
use xfc_lang::graph::build::Builder;
use xfc_lang::graph::parse::parse;
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{AxisId, DType, Dim, Graph, InputDecl, Program, Type, ValueId};
use xfc_lang::ops::{BinaryOp, ReduceOp, UnaryOp};
use xfc_lang::passes::pipeline;

use crate::support::{difference, run};

const TOKENS: Dim = Dim::Axis(AxisId(0));

/// A few numbers that choose an operation, its operands and its attributes.
type Choice = (u8, u8, u8, u8);

/// A graph with as many nodes as choices that are possible; every value that nothing uses is an output.
fn graph(name: &str, choices: &[Choice], callee: Option<&Graph>) -> Graph {
    let mut graph = Graph::new(name);
    let row = Type::new(DType::F32, [TOKENS, Dim::Fixed(4)]);
    let mut values = vec![graph.add_param("x", row.clone()), graph.add_param("p", row)];
    let mut b = Builder::new(&mut graph);
    values.push(b.weight("vector", Type::new(DType::F32, [Dim::Fixed(4)])));
    values.push(b.weight("matrix", Type::new(DType::F32, [Dim::Fixed(4), Dim::Fixed(4)])));
    let position = b.position(TOKENS).unwrap();
    let position = b.cast(position, DType::F32).unwrap();
    values.push(b.reshape(position, [TOKENS, Dim::Fixed(1)]).unwrap());
    for (i, choice) in choices.iter().enumerate() {
        if let Some(made) = node(&mut b, &values, *choice, i, callee) {
            values.extend(made);
        }
    }
    let unused: Vec<ValueId> = values.iter().copied().filter(|v| graph.uses(*v).is_empty()).collect();
    let row = |v: &ValueId| graph.ty(*v).dtype == DType::F32 && graph.ty(*v).dims.first() == Some(&TOKENS);
    let outputs: Vec<ValueId> = unused.into_iter().filter(row).collect();
    for (i, v) in outputs.into_iter().enumerate() {
        graph.add_output(format!("y{i}"), v);
    }
    if graph.outputs().is_empty() {
        graph.add_output("y", values[0]);
    }
    graph
}

fn node(
    b: &mut Builder<'_>,
    values: &[ValueId],
    choice: Choice,
    i: usize,
    callee: Option<&Graph>,
) -> Option<Vec<ValueId>> {
    let (op, x, y, n) = choice;
    // Later values are likelier, so that expressions become deep.
    let pick = |c: u8| values[values.len() - 1 - usize::from(c) * usize::from(c) * values.len() / 65536];
    let (x, y) = (pick(x), pick(y));
    let last = b.graph.ty(x).dims.len().checked_sub(1)?;
    const UNARY: [UnaryOp; 7] =
        [UnaryOp::Neg, UnaryOp::Sigmoid, UnaryOp::Tanh, UnaryOp::Erf, UnaryOp::Sin, UnaryOp::Cos, UnaryOp::Abs];
    const BINARY: [BinaryOp; 5] = [BinaryOp::Add, BinaryOp::Mul, BinaryOp::Sub, BinaryOp::Max, BinaryOp::Min];
    let made = match op % 14 {
        0 | 1 => b.unary(UNARY[usize::from(n) % 7], x),
        2..=4 => b.binary(BINARY[usize::from(n) % 5], x, y),
        5 => {
            let c = b.scalar([0.0, 1.0, 0.5, -2.0][usize::from(n) % 4]);
            b.binary(BINARY[usize::from(n / 4) % 3], x, c)
        }
        6 => b.contract("ni,oi->no", x, y),
        7 => b.contract("ni,io->no", x, values[3]),
        8 => b.slice(x, last, u64::from(n) % 2, 2),
        9 => b.concat(last, &[x, y]),
        10 => b.reduce([ReduceOp::Mean, ReduceOp::Sum, ReduceOp::Max][usize::from(n) % 3], x),
        11 => norm(b, x, n),
        12 => attention(b, x, y, n, i),
        _ => match callee {
            None => b.softmax(x, None, None),
            Some(body) => {
                let types = |b: &Builder<'_>, v: ValueId| b.graph.ty(v).clone();
                let params: Vec<_> = body.params().iter().map(|p| body.ty(p.value).clone()).collect();
                if params != [types(b, x), types(b, values[1])] {
                    return None;
                }
                let call = b.call(1, body, format!("body.{i}"), &[x, values[1]]);
                return Some((0..body.outputs().len()).map(|port| ValueId { node: call, port }).collect());
            }
        },
    };
    made.ok().map(|v| vec![v])
}

fn norm(b: &mut Builder<'_>, x: ValueId, n: u8) -> Result<ValueId, xfc_lang::ops::ShapeError> {
    let mut x = x;
    if n.is_multiple_of(2) {
        let mean = b.reduce(ReduceOp::Mean, x)?;
        x = b.sub(x, mean)?;
    }
    let square = b.mul(x, x)?;
    let mean = b.reduce(ReduceOp::Mean, square)?;
    let eps = b.scalar(0.1);
    let shifted = b.add(eps, mean)?;
    let root = b.unary(UnaryOp::Rsqrt, shifted)?;
    b.mul(root, x)
}

/// Two heads of two over one head of keys and values, kept or not.
fn attention(
    b: &mut Builder<'_>,
    x: ValueId,
    y: ValueId,
    n: u8,
    i: usize,
) -> Result<ValueId, xfc_lang::ops::ShapeError> {
    let f = Dim::Fixed;
    let q = b.reshape(x, [TOKENS, f(1), f(2), f(2)])?;
    let k = b.slice(y, 1, 0, 2)?;
    let v = b.slice(y, 1, 2, 2)?;
    let (mut k, mut v) = (b.reshape(k, [TOKENS, f(1), f(2)])?, b.reshape(v, [TOKENS, f(1), f(2)])?);
    let mut keys = TOKENS;
    if !n.is_multiple_of(3) {
        (k, v) = (b.cache(format!("k{i}"), k)?, b.cache(format!("v{i}"), v)?);
        keys = Dim::Visible(AxisId(0));
    }
    let mut scores = b.contract("nkgd,vkd->kgnv", q, k)?;
    if n.is_multiple_of(2) {
        let scale = b.scalar(0.5);
        scores = b.mul(scale, scores)?;
    }
    let q_pos = b.position(TOKENS)?;
    let q_pos = b.reshape(q_pos, [TOKENS, f(1)])?;
    let k_pos = b.position(keys)?;
    let age = b.sub(q_pos, k_pos)?;
    let zero = b.scalar_of(0.0, DType::I64);
    let mut mask = b.binary(BinaryOp::Ge, age, zero)?;
    if n.is_multiple_of(5) {
        let window = b.scalar_of(3.0, DType::I64);
        let near = b.binary(BinaryOp::Lt, age, window)?;
        mask = b.binary(BinaryOp::And, mask, near)?;
    }
    // One number a head, as each of a weight's, or as each token brings.
    let sink = match n % 7 {
        0 => Some(b.weight(format!("sink{i}"), Type::new(DType::F32, [f(2)]))),
        1 => Some(b.slice(y, 1, 1, 1)?),
        2 => Some(b.scalar(-0.5)),
        _ => None,
    };
    let sink = match sink {
        Some(s) if b.graph.ty(s).dims.len() == 1 => Some(b.reshape(s, [f(1), f(2), f(1), f(1)])?),
        s => s,
    };
    let probabilities = b.softmax(scores, Some(mask), sink)?;
    let y = b.contract("kgnv,vkd->nkgd", probabilities, v)?;
    b.reshape(y, [TOKENS, f(4)])
}

fn program(main: &[Choice], body: &[Choice]) -> Program {
    let body = graph("body", body, None);
    let main = graph("model", main, Some(&body));
    let input = |name: &str, i: usize| InputDecl {
        name: name.into(),
        ty: main.ty(main.params()[i].value).clone(),
        default: None,
    };
    Program {
        name: "generated".into(),
        axes: vec!["tokens".into()],
        extents: vec![None],
        inputs: vec![input("x", 0), input("p", 1)],
        graphs: vec![main, body],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn passes_keep_the_meaning(
        main in proptest::collection::vec(any::<Choice>(), 1..24),
        body in proptest::collection::vec(any::<Choice>(), 1..16),
    ) {
        let mut program = program(&main, &body);
        let text = program.to_string();
        prop_assert!(verify(&program).is_ok(), "{}\n{text}", verify(&program).unwrap_err());
        prop_assert_eq!(&parse(&text).unwrap().to_string(), &text);

        let steps: [&[usize]; 2] = [&[5], &[2, 1]];
        let meaning: Vec<_> = steps.iter().map(|s| run(&program, s, 11)).collect();
        for pass in pipeline() {
            let before = program.to_string();
            pass.run(&mut program);
            prop_assert!(verify(&program).is_ok(), "{}: {}\n{before}", pass.name(), verify(&program).unwrap_err());
            let text = program.to_string();
            prop_assert_eq!(&parse(&text).unwrap().to_string(), &text);
            for (steps, meaning) in steps.iter().zip(&meaning) {
                let d = difference(meaning, &run(&program, steps, 11));
                prop_assert!(d < 1e-8, "{} changes results by {d}\n{before}\n{program}", pass.name());
            }
        }
    }

    #[test]
    fn programs_are_drawn(
        main in proptest::collection::vec(any::<Choice>(), 1..24),
        body in proptest::collection::vec(any::<Choice>(), 1..16),
    ) {
        crate::view::draws(&program(&main, &body));
    }

    #[test]
    fn any_text_is_read_or_refused(cut in 0usize..6000, put in ".{0,12}", which in 0usize..2) {
        let text = [crate::support::DENSE, crate::support::ENCODER][which];
        let at = (0..=cut.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap();
        let after = (at + put.len() / 2).min(text.len());
        let text = format!("{}{put}{}", &text[..at], text.get(after..).unwrap_or(""));
        if let Ok(program) = parse(&text) {
            let _ = verify(&program);
            prop_assert_eq!(parse(&program.to_string()).unwrap().to_string(), program.to_string());
        }
    }
}
