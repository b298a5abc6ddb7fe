//! Small graphs as formulas: masks, scores, epilogues, and what an equation does elementwise.
//!
//! Given a graph and names for the values it starts from, it returns one line of text in the notation of the wiring, with as few brackets as
//! precedence allows. A formula past [`LIMIT`] characters is not a formula any more: then there is none.

use std::collections::HashMap;

use crate::graph::{Graph, ValueId};
use crate::ops::attributes::number;
use crate::ops::{BinaryOp, Core, UnaryOp};

/// Longest formula, in bytes.
pub(super) const LIMIT: usize = 240;

/// A piece of text and how tightly it binds.
#[derive(Clone, Debug)]
struct Piece {
    text: String,
    level: u8,
}

const OR: u8 = 1;
const AND: u8 = 2;
const NOT: u8 = 3;
const COMPARE: u8 = 4;
const ADD: u8 = 5;
const MUL: u8 = 6;
const NEG: u8 = 7;
const POW: u8 = 8;
const ATOM: u8 = 9;

/// The formula of a value over the values that have names.
pub(super) fn of(graph: &Graph, value: ValueId, names: &HashMap<ValueId, String>) -> Option<String> {
    let mut writer = Writer { graph, names, memo: HashMap::new() };
    writer.piece(value).map(|p| p.text)
}

struct Writer<'g> {
    graph: &'g Graph,
    names: &'g HashMap<ValueId, String>,
    memo: HashMap<ValueId, Option<Piece>>,
}

impl Writer<'_> {
    fn piece(&mut self, value: ValueId) -> Option<Piece> {
        if let Some(name) = self.names.get(&value) {
            return Some(Piece { text: name.clone(), level: ATOM });
        }
        if let Some(known) = self.memo.get(&value) {
            return known.clone();
        }
        let piece = self.read(value).filter(|p| p.text.len() <= LIMIT);
        self.memo.insert(value, piece.clone());
        piece
    }

    fn read(&mut self, value: ValueId) -> Option<Piece> {
        let operands = self.graph.operands(value.node);
        let call = |name: &str, args: Vec<String>| Piece { text: format!("{name}({})", args.join(", ")), level: ATOM };
        let op = self.graph.op(value.node);
        let Some(core) = op.as_core() else {
            let args = operands.iter().map(|v| self.piece(*v).map(|p| p.text)).collect::<Option<Vec<_>>>()?;
            return Some(call(op.name(), args));
        };
        Some(match (core, &operands[..]) {
            (Core::Const { values }, _) => constant(values, self.graph.ty(value).dtype == crate::graph::DType::Bool),
            (Core::Cast | Core::Reshape, [x]) => self.piece(*x)?,
            (Core::Slice { dim, start }, [x]) => {
                let size = self.graph.ty(value).dims.get(*dim)?.fixed()?;
                Piece { text: format!("{}[{start}..{}]", self.bracketed(*x, ATOM)?, start + size), level: ATOM }
            }
            (Core::Unary(UnaryOp::Neg), [x]) => Piece { text: format!("-{}", self.bracketed(*x, NEG)?), level: NEG },
            (Core::Unary(UnaryOp::Not), [x]) => Piece { text: format!("not {}", self.bracketed(*x, NOT)?), level: NOT },
            (Core::Binary(f), [a, b]) => self.binary(*f, *a, *b)?,
            (Core::Select, [c, a, b]) => {
                call("where", [*c, *a, *b].map(|v| self.piece(v).map(|p| p.text)).into_iter().collect::<Option<_>>()?)
            }
            (Core::Reduce(_), [x]) => call(core.name().trim_start_matches("reduce_"), vec![self.piece(*x)?.text]),
            (Core::Position, _) => Piece { text: "q_pos".into(), level: ATOM },
            (Core::Index, _) => Piece { text: "index".into(), level: ATOM },
            (Core::Weight { path }, _) => Piece { text: last(path).to_owned(), level: ATOM },
            (Core::Arg { index }, _) => {
                Piece { text: self.graph.params().get(*index).map(|p| p.name.clone())?, level: ATOM }
            }
            (core, operands) => {
                let args = operands.iter().map(|v| self.piece(*v).map(|p| p.text)).collect::<Option<Vec<_>>>()?;
                call(core.name(), args)
            }
        })
    }

    fn binary(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> Option<Piece> {
        let (sign, level, right) = match f {
            BinaryOp::Or => ("or", OR, OR),
            BinaryOp::And => ("and", AND, AND),
            BinaryOp::Eq => ("==", COMPARE, ADD),
            BinaryOp::Ne => ("!=", COMPARE, ADD),
            BinaryOp::Lt => ("<", COMPARE, ADD),
            BinaryOp::Le => ("<=", COMPARE, ADD),
            BinaryOp::Gt => (">", COMPARE, ADD),
            BinaryOp::Ge => (">=", COMPARE, ADD),
            BinaryOp::Add => ("+", ADD, ADD),
            BinaryOp::Sub => ("-", ADD, MUL),
            BinaryOp::Mul => ("*", MUL, MUL),
            BinaryOp::Div => ("/", MUL, NEG),
            BinaryOp::FloorDiv => ("//", MUL, NEG),
            BinaryOp::Mod => ("%", MUL, NEG),
            BinaryOp::Pow => ("^", POW, NEG),
            BinaryOp::Min | BinaryOp::Max => {
                let name = if f == BinaryOp::Min { "min" } else { "max" };
                let text = format!("{name}({}, {})", self.piece(a)?.text, self.piece(b)?.text);
                return Some(Piece { text, level: ATOM });
            }
        };
        let left = if level == COMPARE || level == POW { level + 1 } else { level };
        let text = format!("{} {sign} {}", self.bracketed(a, left)?, self.bracketed(b, right)?);
        Some(Piece { text, level })
    }

    /// The piece, in brackets where it binds less tightly than `level`.
    fn bracketed(&mut self, value: ValueId, level: u8) -> Option<String> {
        let piece = self.piece(value)?;
        Some(if piece.level < level { format!("({})", piece.text) } else { piece.text })
    }
}

fn constant(values: &[f64], is_bool: bool) -> Piece {
    let same = values.first().is_some_and(|first| values.iter().all(|v| v == first));
    let text = match values.first() {
        Some(v) if same && is_bool => if *v == 0.0 { "false" } else { "true" }.to_owned(),
        Some(v) if same => short(*v),
        _ => format!("[{} constants]", values.len()),
    };
    let level = if text.starts_with('-') { NEG } else { ATOM };
    Piece { text, level }
}

/// A number without digits that say nothing to a reader: whole numbers as such, others to six significant digits.
pub(super) fn short(v: f64) -> String {
    if v == v.trunc() && v.abs() < 1e15 {
        return format!("{v:.0}");
    }
    let exact = number(v);
    if exact.len() <= 9 {
        return exact;
    }
    let digits = (5 - v.abs().log10().floor() as i64).clamp(0, 12) as usize;
    if v.abs() < 1e-4 {
        return format!("{v:.4e}");
    }
    let text = format!("{v:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The last two components of a path: `q_proj.weight`.
pub(super) fn last(path: &str) -> &str {
    // The dots of a range are no separators.
    let outside = |i: &usize| path[..*i].matches('{').count() == path[..*i].matches('}').count();
    let mut dots = path.rmatch_indices('.').map(|(i, _)| i).filter(outside);
    dots.next();
    dots.next().map_or(path, |i| &path[i + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::build::Builder;
    use crate::graph::{DType, Type};

    #[test]
    fn brackets_are_where_precedence_needs_them() {
        let mut g = Graph::new("mask");
        let q = g.add_param("q_pos", Type::scalar(DType::I64));
        let k = g.add_param("k_pos", Type::scalar(DType::I64));
        let mut b = Builder::new(&mut g);
        let age = b.sub(q, k).expect("integers");
        let n = b.scalar_of(4096.0, DType::I64);
        let near = b.binary(BinaryOp::Lt, age, n).expect("integers");
        let causal = b.binary(BinaryOp::Le, k, q).expect("integers");
        let both = b.binary(BinaryOp::And, causal, near).expect("masks");
        let negated = b.unary(UnaryOp::Not, both).expect("a mask");
        let twice = b.mul(age, age).expect("integers");
        let nested = b.sub(q, age).expect("integers");
        g.add_output("y", negated);
        let names = g.params().iter().map(|p| (p.value, p.name.clone())).collect();
        let formula = of(&g, g.outputs()[0].value, &names);
        assert_eq!(formula.as_deref(), Some("not (k_pos <= q_pos and q_pos - k_pos < 4096)"));
        let names = [(q, "q".to_owned()), (k, "k".to_owned())].into_iter().collect();
        assert_eq!(of(&g, twice, &names).as_deref(), Some("(q - k) * (q - k)"));
        assert_eq!(of(&g, nested, &names).as_deref(), Some("q - (q - k)"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(4096.0), "4096");
        assert_eq!(short(0.088_388_347_648_318_44), "0.0883883");
        assert_eq!(short(0.5), "0.5");
        assert_eq!(short(1e-5), "1e-5");
    }
}
