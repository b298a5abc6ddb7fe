//! Scalar expressions over positions: what masks, scores and values made of positions are until they meet a tensor.

use std::rc::Rc;

use super::value::{AxisName, Tensor};
use crate::diagnostic::Span;
use crate::graph::DType;
use crate::ops::{BinaryOp, UnaryOp};

/// A scalar expression over positions.
pub(super) enum Sym {
    QPos,
    /// With the place of the name, as the next two.
    KPos(Span),
    Head(Span),
    Score(Span),
    Int(i64),
    Float(f64),
    Bool(bool),
    Tensor(Tensor),
    Unary(UnaryOp, Rc<Sym>),
    Binary(BinaryOp, Rc<Sym>, Rc<Sym>),
    Select(Rc<Sym>, Rc<Sym>, Rc<Sym>),
    Cast(DType, Rc<Sym>),
    /// An element of a table, by one index for each of its axes.
    Gather(Tensor, Vec<Rc<Sym>>),
    /// An element of the last axis of what each query brings or what is kept of each key.
    Take(Tensor, Rc<Sym>),
}

impl Sym {
    /// The number of its parts, shared ones counted each time; `None` when it is above the limit.
    pub(super) fn size_within(&self, limit: usize) -> Option<usize> {
        let parts: Vec<&Rc<Sym>> = match self {
            Sym::Unary(_, a) | Sym::Cast(_, a) => vec![a],
            Sym::Binary(_, a, b) => vec![a, b],
            Sym::Select(a, b, c) => vec![a, b, c],
            Sym::Gather(_, indices) => indices.iter().collect(),
            Sym::Take(_, index) => vec![index],
            _ => Vec::new(),
        };
        parts
            .into_iter()
            .try_fold(1, |n, part| Some(n + part.size_within(limit.checked_sub(n)?)?))
            .filter(|n| *n <= limit)
    }

    /// Whether it means something outside attention.
    pub(super) fn only_q_pos(&self) -> bool {
        match self {
            Sym::KPos(_) | Sym::Head(_) | Sym::Score(_) | Sym::Take(..) => false,
            // What is kept of keys is read at their positions.
            Sym::Tensor(t) => !t.axes.iter().any(|a| matches!(a.name, AxisName::Visible(_))),
            Sym::QPos | Sym::Int(_) | Sym::Float(_) | Sym::Bool(_) => true,
            Sym::Unary(_, a) | Sym::Cast(_, a) => a.only_q_pos(),
            Sym::Binary(_, a, b) => a.only_q_pos() && b.only_q_pos(),
            Sym::Select(a, b, c) => a.only_q_pos() && b.only_q_pos() && c.only_q_pos(),
            Sym::Gather(_, indices) => indices.iter().all(|index| index.only_q_pos()),
        }
    }

    /// Whether it reads what is kept of keys.
    pub(super) fn reads_kept(&self) -> bool {
        let kept = |t: &Tensor| t.axes.iter().any(|a| matches!(a.name, AxisName::Visible(_)));
        match self {
            Sym::KPos(_) | Sym::Head(_) | Sym::Score(_) => false,
            Sym::QPos | Sym::Int(_) | Sym::Float(_) | Sym::Bool(_) => false,
            Sym::Tensor(t) => kept(t),
            Sym::Unary(_, a) | Sym::Cast(_, a) => a.reads_kept(),
            Sym::Binary(_, a, b) => a.reads_kept() || b.reads_kept(),
            Sym::Select(a, b, c) => a.reads_kept() || b.reads_kept() || c.reads_kept(),
            Sym::Gather(_, indices) => indices.iter().any(|index| index.reads_kept()),
            Sym::Take(t, index) => kept(t) || index.reads_kept(),
        }
    }

    /// As an error shows it.
    pub(super) fn show(&self) -> String {
        match self {
            Sym::QPos => "q_pos".into(),
            Sym::KPos(_) => "k_pos".into(),
            Sym::Head(_) => "head".into(),
            Sym::Score(_) => "score".into(),
            Sym::Int(v) => v.to_string(),
            Sym::Float(v) => format!("{v:?}"),
            Sym::Bool(b) => b.to_string(),
            Sym::Tensor(_) => "tensor".into(),
            Sym::Unary(op, a) => format!("{}({})", format!("{op:?}").to_lowercase(), a.show()),
            Sym::Binary(op, a, b) => {
                let symbol = match op {
                    BinaryOp::Add => "+",
                    BinaryOp::Sub => "-",
                    BinaryOp::Mul => "*",
                    BinaryOp::Div => "/",
                    BinaryOp::FloorDiv => "//",
                    BinaryOp::Mod => "%",
                    BinaryOp::Pow => "^",
                    BinaryOp::Eq => "==",
                    BinaryOp::Ne => "!=",
                    BinaryOp::Lt => "<",
                    BinaryOp::Le => "<=",
                    BinaryOp::Gt => ">",
                    BinaryOp::Ge => ">=",
                    BinaryOp::And => "and",
                    BinaryOp::Or => "or",
                    BinaryOp::Min => return format!("min({}, {})", a.show(), b.show()),
                    BinaryOp::Max => return format!("max({}, {})", a.show(), b.show()),
                };
                format!("({} {symbol} {})", a.show(), b.show())
            }
            Sym::Select(a, b, c) => format!("where({}, {}, {})", a.show(), b.show(), c.show()),
            Sym::Cast(DType::I64, a) => format!("int({})", a.show()),
            Sym::Cast(_, a) => format!("float({})", a.show()),
            Sym::Take(_, index) => format!("take(tensor, {})", index.show()),
            Sym::Gather(_, indices) => {
                format!("gather(tensor, {})", indices.iter().map(|i| i.show()).collect::<Vec<_>>().join(", "))
            }
        }
    }
}
