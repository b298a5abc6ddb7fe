//! What small elementwise computations are, told by their values: activations, caps of scores, masks.
//!
//! Given a graph and numbers for the values that it starts from, [`value`] computes one number of it. What a computation *is* follows from
//! its numbers at many places, so that it does not matter how it was written.

use std::collections::HashMap;

use crate::graph::{Graph, ValueId};
use crate::ops::{BinaryOp, Core, UnaryOp};

/// Longest chain of operations that is followed.
const DEEPEST: usize = 256;

/// The number that a value is where `given` are known; none where it depends on anything else than these and uniform constants.
pub(super) fn value(graph: &Graph, of: ValueId, given: &[(ValueId, f64)]) -> Option<f64> {
    Evaluation { graph, memo: given.iter().map(|(v, x)| (*v, Some(*x))).collect() }.value(of, 0)
}

struct Evaluation<'g> {
    graph: &'g Graph,
    memo: HashMap<ValueId, Option<f64>>,
}

impl Evaluation<'_> {
    fn value(&mut self, of: ValueId, depth: usize) -> Option<f64> {
        if let Some(known) = self.memo.get(&of) {
            return *known;
        }
        if depth > DEEPEST {
            return None;
        }
        let operands = self.graph.operands(of.node);
        let graph = self.graph;
        let mut at = |i: usize| self.value(*operands.get(i)?, depth + 1);
        let result = match graph.op(of.node).as_core() {
            Some(Core::Const { values }) => {
                values.first().copied().filter(|first| values.iter().all(|v| v.to_bits() == first.to_bits()))
            }
            Some(Core::Cast | Core::Reshape | Core::Broadcast) => at(0),
            Some(Core::Unary(f)) => at(0).map(|x| unary(*f, x)),
            Some(Core::Binary(f)) => at(0).zip(at(1)).map(|(a, b)| binary(*f, a, b)),
            Some(Core::Select) => {
                let which = if at(0)? != 0.0 { 1 } else { 2 };
                at(which)
            }
            _ => None,
        };
        self.memo.insert(of, result);
        result
    }
}

fn unary(f: UnaryOp, x: f64) -> f64 {
    match f {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => libm::erf(x),
        UnaryOp::Sigmoid => sigmoid(x),
        UnaryOp::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Not => f64::from(x == 0.0),
    }
}

fn binary(f: BinaryOp, a: f64, b: f64) -> f64 {
    let test = |is: bool| f64::from(is);
    match f {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => (a / b).floor(),
        BinaryOp::Mod => a - b * (a / b).floor(),
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Eq => test(a == b),
        BinaryOp::Ne => test(a != b),
        BinaryOp::Lt => test(a < b),
        BinaryOp::Le => test(a <= b),
        BinaryOp::Gt => test(a > b),
        BinaryOp::Ge => test(a >= b),
        BinaryOp::And => test(a != 0.0 && b != 0.0),
        BinaryOp::Or => test(a != 0.0 || b != 0.0),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// An activation: its name, the name that it has as the gate of another product, and what it is.
type Known = (&'static str, &'static str, fn(f64) -> f64);

const KNOWN: [Known; 11] = [
    ("SiLU", "SwiGLU", |x| x * sigmoid(x)),
    ("GELU", "GeGLU", |x| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))),
    ("GELU (tanh)", "GeGLU (tanh)", |x| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
    }),
    ("GELU (x σ(1.702 x))", "SwiGLU (σ(1.702 x))", |x| x * sigmoid(1.702 * x)),
    ("ReLU", "ReGLU", |x| x.max(0.0)),
    ("ReLU²", "ReLU² gate", |x| x.max(0.0) * x.max(0.0)),
    ("tanh", "tanh gate", f64::tanh),
    ("sigmoid", "GLU", sigmoid),
    ("softplus", "softplus gate", |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
    ("mish", "mish gate", |x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh()),
    ("no activation", "bilinear", |x| x),
];

/// The name of a function of one number, `as_gate` where another product is multiplied by it; none where it is none of those known. A function
/// that is a known one until it is held at a bound is that, `clamped`.
pub(super) fn activation(f: impl Fn(f64) -> Option<f64>, as_gate: bool) -> Option<String> {
    activation_above(f, as_gate, f64::NEG_INFINITY)
}

/// The same, of a function that is looked at above a bound alone.
pub(super) fn activation_above(f: impl Fn(f64) -> Option<f64>, as_gate: bool, bound: f64) -> Option<String> {
    let near: Vec<f64> = (-20..=20).map(|i| f64::from(i) * 0.13 + 0.011).filter(|x| *x > bound).collect();
    let far = [-300.0, -60.0, -20.0, -9.0, 9.0, 20.0, 60.0, 300.0];
    let far: Vec<f64> = far.into_iter().filter(|x| *x > bound).collect();
    let alike = |g: fn(f64) -> f64, at: &[f64]| {
        at.iter().all(|x| f(*x).is_some_and(|y| (y - g(*x)).abs() <= 2e-5 * g(*x).abs().max(1.0)))
    };
    let (name, gate, g) = KNOWN.into_iter().find(|(.., g)| alike(*g, &near))?;
    let name = if as_gate { gate } else { name };
    Some(if alike(g, &far) { name.to_owned() } else { format!("{name}, clamped") })
}

/// What becomes of scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scores {
    /// The bound that they are held under by `c · tanh(s / c)`.
    pub(super) cap: Option<f64>,
    /// What small ones are multiplied by.
    pub(super) slope: f64,
    /// What is added to them by distance.
    pub(super) bias: Option<&'static str>,
    /// They are changed in another way.
    pub(super) other: bool,
}

impl Default for Scores {
    fn default() -> Self {
        Scores { cap: None, slope: 1.0, bias: None, other: false }
    }
}

/// What a graph of `(score, q_pos, k_pos, head, extras..)` does to scores; `learned` says that an extra is a weight.
pub(super) fn scores(score: &Graph, learned: bool) -> Scores {
    let params: Vec<ValueId> = score.params().iter().map(|p| p.value).collect();
    let (Some(output), [s, q, k, head, ..]) = (score.outputs().first(), &params[..]) else { return Scores::default() };
    if output.value == *s {
        return Scores::default();
    }
    let at =
        |x: f64, q_pos: f64, k_pos: f64| value(score, output.value, &[(*s, x), (*q, q_pos), (*k, k_pos), (*head, 0.0)]);
    let (Some(zero), Some(large)) = (at(0.0, 9.0, 9.0), at(1e9, 9.0, 9.0)) else {
        // It reads tensors.
        let bias = Some(if learned { "learned, by distance" } else { "computed" });
        return Scores { bias, ..Scores::default() };
    };
    let places = [(30.0, 7.0), (40.0, 17.0), (17.0, 7.0), (100.0, 100.0)];
    let by_place: Option<Vec<f64>> = places.iter().map(|(q, k)| at(0.0, *q, *k)).collect();
    let Some(by_place) = by_place else { return Scores { other: true, ..Scores::default() } };
    if by_place.iter().any(|b| (b - zero).abs() > 1e-9) {
        let slope = by_place[2] / 10.0;
        let linear =
            (by_place[0] - 23.0 * slope).abs() < 1e-6 * slope.abs() && (by_place[0] - by_place[1]).abs() < 1e-9;
        let bias = Some(if linear { "linear in distance (ALiBi)" } else { "by position" });
        return Scores { bias, ..Scores::default() };
    }
    let slope = at(1e-6, 9.0, 9.0).map_or(f64::NAN, |y| y * 1e6);
    if [-3.0, 0.5, 7.0].iter().all(|x| at(*x, 9.0, 9.0).is_some_and(|y| (y - slope * x).abs() < 1e-6 * slope.abs())) {
        return Scores { slope, ..Scores::default() };
    }
    let capped =
        |x: &f64| at(*x, 9.0, 9.0).is_some_and(|y| (y - large * (slope * x / large).tanh()).abs() < 1e-4 * large);
    let is_capped = zero.abs() < 1e-9 && large > 0.0 && large < 1e6 && [-2.0, 1e-3, 0.4, 3.0, 60.0].iter().all(capped);
    Scores {
        cap: is_capped.then_some(large),
        slope: if is_capped { slope } else { 1.0 },
        other: !is_capped,
        bias: None,
    }
}

/// Which keys a query sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Everything up to itself.
    Before,
    /// Everything.
    All,
    /// The last so many.
    Window(u64),
    /// Those of the same so many, up to itself.
    Chunk(u64),
    /// Up to so many on either side.
    Around(u64),
    /// As a formula says.
    Other(String),
}

/// What a graph of `(q_pos, k_pos, head, extras..)` shows; `formula` is what stands for it otherwise.
pub(super) fn sight(mask: &Graph, formula: String) -> Sight {
    let params: Vec<ValueId> = mask.params().iter().map(|p| p.value).collect();
    let (Some(output), [q, k, head, ..]) = (mask.outputs().first(), &params[..]) else { return Sight::Other(formula) };
    let mut sizes: Vec<u64> = Vec::new();
    for node in mask.nodes() {
        if let Some(Core::Const { values }) = mask.op(node).as_core()
            && let [n] = values[..]
            && (1.0..1e12).contains(&n)
        {
            sizes.extend([n as u64, n as u64 + 1]);
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes.truncate(16);
    let mut places: Vec<u64> = (0..4).chain([1000]).collect();
    for n in &sizes {
        places.extend([n - 1, *n, n + 1, 2 * n - 1, 2 * n, 2 * n + 1, 3 * n + 5]);
    }
    places.sort_unstable();
    places.dedup();
    let seen = |q_pos: u64, k_pos: u64| {
        let given = [(*q, q_pos as f64), (*k, k_pos as f64), (*head, 0.0)];
        value(mask, output.value, &given).map(|v| v != 0.0)
    };
    let is = |rule: &dyn Fn(u64, u64) -> bool| {
        places.iter().all(|a| places.iter().all(|b| seen(*a, *b) == Some(rule(*a, *b))))
    };
    if is(&|q, k| k <= q) {
        return Sight::Before;
    }
    if is(&|_, _| true) {
        return Sight::All;
    }
    for n in sizes {
        if is(&|q, k| k <= q && q - k < n) {
            return Sight::Window(n);
        }
        if is(&|q, k| k <= q && q / n == k / n) {
            return Sight::Chunk(n);
        }
        if is(&|q, k| q.abs_diff(k) <= n) {
            return Sight::Around(n);
        }
    }
    Sight::Other(formula)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::build::Builder;
    use crate::graph::{DType, Type};

    #[test]
    fn activations_are_known_by_their_values() {
        assert_eq!(activation(|x| Some(x / (1.0 + (-x).exp())), false).as_deref(), Some("SiLU"));
        assert_eq!(activation(|x| Some(x / (1.0 + (-x).exp())), true).as_deref(), Some("SwiGLU"));
        assert_eq!(activation(|x| Some(x.max(0.0).powi(2)), false).as_deref(), Some("ReLU²"));
        let clamped = |x: f64| Some(x.min(7.0) * sigmoid(1.702 * x.min(7.0)));
        assert_eq!(activation(clamped, true).as_deref(), Some("SwiGLU (σ(1.702 x)), clamped"));
        assert_eq!(activation(|x| Some(x.sin()), false), None);
        assert_eq!(activation(|_| None, false), None);
        // The two forms of one function are told apart.
        assert_eq!(activation(|x| Some(KNOWN[1].2(x)), false).as_deref(), Some("GELU"));
        assert_eq!(activation(|x| Some(KNOWN[2].2(x)), false).as_deref(), Some("GELU (tanh)"));
    }

    /// A mask over positions.
    fn mask(of: impl Fn(&mut Builder<'_>, ValueId, ValueId) -> ValueId) -> Graph {
        let mut g = Graph::new("mask");
        let [q, k, _] = ["q_pos", "k_pos", "head"].map(|n| g.add_param(n, Type::scalar(DType::I64)));
        let y = of(&mut Builder::new(&mut g), q, k);
        g.add_output("y", y);
        g
    }

    #[test]
    fn masks_are_known_by_what_they_show() {
        let told = |g: &Graph| sight(g, "a formula".into());
        let causal = mask(|b, q, k| b.binary(BinaryOp::Le, k, q).expect("integers"));
        assert_eq!(told(&causal), Sight::Before);
        // The same, written otherwise.
        let causal = mask(|b, q, k| {
            let later = b.binary(BinaryOp::Lt, q, k).expect("integers");
            b.unary(UnaryOp::Not, later).expect("a mask")
        });
        assert_eq!(told(&causal), Sight::Before);
        for (chunk, expected) in [(true, Sight::Chunk(64)), (false, Sight::Window(64))] {
            let g = mask(|b, q, k| {
                let n = b.scalar_of(64.0, DType::I64);
                let near = if chunk {
                    let [i, j] = [q, k].map(|v| b.binary(BinaryOp::FloorDiv, v, n).expect("integers"));
                    b.binary(BinaryOp::Eq, i, j).expect("integers")
                } else {
                    let age = b.sub(q, k).expect("integers");
                    b.binary(BinaryOp::Lt, age, n).expect("integers")
                };
                let causal = b.binary(BinaryOp::Le, k, q).expect("integers");
                b.binary(BinaryOp::And, causal, near).expect("masks")
            });
            assert_eq!(told(&g), expected);
        }
        let odd = mask(|b, q, k| {
            let two = b.scalar_of(2.0, DType::I64);
            let age = b.sub(q, k).expect("integers");
            let odd = b.binary(BinaryOp::Mod, age, two).expect("integers");
            b.binary(BinaryOp::Eq, odd, two).expect("integers")
        });
        assert_eq!(told(&odd), Sight::Other("a formula".into()));
    }
}
