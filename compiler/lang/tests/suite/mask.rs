//! What is derived from a mask holds for every pair of positions.

use proptest::prelude::*;
use xfc_lang::graph::build::Builder;
use xfc_lang::graph::{DType, Graph, Type, ValueId};
use xfc_lang::ops::{BinaryOp, Core, UnaryOp};
use xfc_lang::passes::analysis::mask::{reach, span};

/// An expression over positions, an unknown extra and small constants.
#[derive(Clone, Debug)]
enum Int {
    Query,
    Key,
    Extra,
    Const(i8),
    Two(BinaryOp, Box<Int>, Box<Int>),
    Abs(Box<Int>),
}

#[derive(Clone, Debug)]
enum Bool {
    Const(bool),
    Compare(BinaryOp, Int, Int),
    Two(BinaryOp, Box<Bool>, Box<Bool>),
    Not(Box<Bool>),
    Select(Box<Bool>, Box<Bool>, Box<Bool>),
}

fn floor_div(a: i64, b: i64) -> i64 {
    (a as f64 / b as f64).floor() as i64
}

impl Int {
    /// `None` where a division by zero would be an error.
    fn eval(&self, q: i64, k: i64, extra: i64) -> Option<i64> {
        Some(match self {
            Int::Query => q,
            Int::Key => k,
            Int::Extra => extra,
            Int::Const(c) => i64::from(*c),
            Int::Abs(x) => x.eval(q, k, extra)?.abs(),
            Int::Two(f, a, b) => {
                let (a, b) = (a.eval(q, k, extra)?, b.eval(q, k, extra)?);
                match f {
                    BinaryOp::Add => a + b,
                    BinaryOp::Sub => a - b,
                    BinaryOp::Mul => a * b,
                    BinaryOp::FloorDiv if b != 0 => floor_div(a, b),
                    BinaryOp::Mod if b != 0 => a - b * floor_div(a, b),
                    _ => return None,
                }
            }
        })
    }

    fn add(&self, b: &mut Builder<'_>, params: &[ValueId]) -> ValueId {
        match self {
            Int::Query => params[0],
            Int::Key => params[1],
            Int::Extra => params[3],
            Int::Const(c) => b.scalar_of(f64::from(*c), DType::I64),
            Int::Abs(x) => {
                let x = x.add(b, params);
                b.unary(UnaryOp::Abs, x).unwrap()
            }
            Int::Two(f, x, y) => {
                let (x, y) = (x.add(b, params), y.add(b, params));
                b.binary(*f, x, y).unwrap()
            }
        }
    }
}

impl Bool {
    fn eval(&self, q: i64, k: i64, extra: i64) -> Option<bool> {
        Some(match self {
            Bool::Const(c) => *c,
            Bool::Not(x) => !x.eval(q, k, extra)?,
            Bool::Select(c, x, y) => {
                let (c, x, y) = (c.eval(q, k, extra)?, x.eval(q, k, extra)?, y.eval(q, k, extra)?);
                if c { x } else { y }
            }
            Bool::Two(f, x, y) => {
                let (x, y) = (x.eval(q, k, extra)?, y.eval(q, k, extra)?);
                if *f == BinaryOp::And { x && y } else { x || y }
            }
            Bool::Compare(f, x, y) => {
                let (x, y) = (x.eval(q, k, extra)?, y.eval(q, k, extra)?);
                match f {
                    BinaryOp::Le => x <= y,
                    BinaryOp::Lt => x < y,
                    BinaryOp::Ge => x >= y,
                    BinaryOp::Gt => x > y,
                    BinaryOp::Eq => x == y,
                    _ => x != y,
                }
            }
        })
    }

    fn add(&self, b: &mut Builder<'_>, params: &[ValueId]) -> ValueId {
        match self {
            Bool::Const(c) => b.scalar_of(f64::from(u8::from(*c)), DType::Bool),
            Bool::Not(x) => {
                let x = x.add(b, params);
                b.unary(UnaryOp::Not, x).unwrap()
            }
            Bool::Select(c, x, y) => {
                let (c, x, y) = (c.add(b, params), x.add(b, params), y.add(b, params));
                b.core(Core::Select, &[c, x, y], Type::scalar(DType::Bool)).unwrap()
            }
            Bool::Two(f, x, y) => {
                let (x, y) = (x.add(b, params), y.add(b, params));
                b.binary(*f, x, y).unwrap()
            }
            Bool::Compare(f, x, y) => {
                let (x, y) = (x.add(b, params), y.add(b, params));
                b.binary(*f, x, y).unwrap()
            }
        }
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new("mask");
        let params: Vec<_> =
            ["q_pos", "k_pos", "head", "extra0"].map(|n| graph.add_param(n, Type::scalar(DType::I64))).to_vec();
        let y = self.add(&mut Builder::new(&mut graph), &params);
        graph.add_output("visible", y);
        graph
    }
}

fn int() -> impl Strategy<Value = Int> {
    let leaf = prop_oneof![
        3 => Just(Int::Query),
        3 => Just(Int::Key),
        1 => Just(Int::Extra),
        2 => (-4i8..5).prop_map(Int::Const),
    ];
    let f = prop_oneof![
        3 => Just(BinaryOp::Sub),
        1 => Just(BinaryOp::Add),
        1 => Just(BinaryOp::Mul),
        1 => Just(BinaryOp::FloorDiv),
        1 => Just(BinaryOp::Mod),
    ];
    leaf.prop_recursive(3, 8, 2, move |x| {
        prop_oneof![
            4 => (f.clone(), x.clone(), x.clone()).prop_map(|(f, a, b)| Int::Two(f, a.into(), b.into())),
            1 => x.prop_map(|x| Int::Abs(x.into())),
        ]
    })
}

fn boolean() -> impl Strategy<Value = Bool> {
    let compare = proptest::sample::select(vec![
        BinaryOp::Le,
        BinaryOp::Lt,
        BinaryOp::Ge,
        BinaryOp::Gt,
        BinaryOp::Eq,
        BinaryOp::Ne,
    ]);
    let leaf = prop_oneof![
        8 => (compare, int(), int()).prop_map(|(f, a, b)| Bool::Compare(f, a, b)),
        1 => any::<bool>().prop_map(Bool::Const),
    ];
    let both = proptest::sample::select(vec![BinaryOp::And, BinaryOp::And, BinaryOp::Or]);
    leaf.prop_recursive(3, 8, 3, move |x| {
        prop_oneof![
            4 => (both.clone(), x.clone(), x.clone()).prop_map(|(f, a, b)| Bool::Two(f, a.into(), b.into())),
            1 => x.clone().prop_map(|x| Bool::Not(x.into())),
            1 => (x.clone(), x.clone(), x).prop_map(|(c, a, b)| Bool::Select(c.into(), a.into(), b.into())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_visible_lies_out_of_reach(mask in boolean()) {
        let reach = reach(&mask.graph());
        for q in 0..12i64 {
            for k in 0..12i64 {
                for extra in [-3, 0, 2] {
                    if mask.eval(q, k, extra) == Some(true) {
                        prop_assert!(reach.future || k <= q, "{reach:?} but {k} is visible from {q}: {mask:?}");
                        prop_assert!(reach.window.is_none_or(|n| q - k < n as i64), "{reach:?} but {k} is visible from {q}: {mask:?}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_and_without_gaps_they_are_the_mask(mask in boolean()) {
        let span = span(&mask.graph());
        for q in 0..12i64 {
            for k in 0..12i64 {
                for extra in [-3, 0, 2] {
                    let age = i128::from(q - k);
                    let within = span.least.is_none_or(|n| age >= n) && span.largest.is_none_or(|n| age <= n);
                    match mask.eval(q, k, extra) {
                        Some(true) => prop_assert!(within, "{span:?} but {k} is visible from {q}: {mask:?}"),
                        Some(false) => prop_assert!(span.has_gaps || !within, "{span:?} but {k} is not visible from {q}: {mask:?}"),
                        None => {}
                    }
                }
            }
        }
    }
}

/// The reach of the mask in one line of the text form.
fn of(lines: &str) -> String {
    let text = format!(
        "program \"m\" axes []\ngraph 0 \"m\" (%0 q_pos: i64, %1 k_pos: i64, %2 head: i64, %3 pad: i64) {{\n{lines}\n  return y = %9\n}}"
    );
    let program = xfc_lang::graph::parse::parse(&text).unwrap();
    xfc_lang::graph::verify::verify(&xfc_lang::graph::Program {
        inputs: program.graphs[0]
            .params()
            .iter()
            .map(|p| xfc_lang::graph::InputDecl { name: p.name.clone(), ty: Type::scalar(DType::I64), default: None })
            .collect(),
        ..program.clone()
    })
    .unwrap();
    let reach = reach(&program.graphs[0]);
    format!("window {:?}, future {}", reach.window, reach.future)
}

#[test]
fn the_masks_of_the_library_are_understood() {
    let causal = "  %4 = le %1, %0 : bool";
    assert_eq!(of(&causal.replace("%4", "%9")), "window None, future false");
    let age = "  %5 = sub %0, %1 : i64\n  %6 = const {values = [4]} : i64";
    assert_eq!(
        of(&format!("{causal}\n{age}\n  %7 = lt %5, %6 : bool\n  %9 = and %4, %7 : bool")),
        "window Some(4), future false"
    );
    assert_eq!(of(&format!("{age}\n  %7 = abs %5 : i64\n  %9 = le %7, %6 : bool")), "window Some(5), future true");
    let chunk = format!("{age}\n  %7 = floor_div %1, %6 : i64\n  %8 = floor_div %0, %6 : i64\n  %9 = eq %7, %8 : bool");
    assert_eq!(of(&chunk), "window Some(4), future true");
    assert_eq!(of("  %9 = const {values = [1]} : bool"), "window None, future true");
    assert_eq!(of("  %4 = const {values = [0]} : i64\n  %9 = ne %3, %4 : bool"), "window None, future true");
}
