//! Names and attributes of core operations in the text form.

use std::sync::Arc;

use super::{BinaryOp, Core, ReduceOp, UnaryOp};
use crate::ops::attributes::{Attributes, numbers, quote};

const UNARY: [(UnaryOp, &str); 14] = [
    (UnaryOp::Neg, "neg"),
    (UnaryOp::Abs, "abs"),
    (UnaryOp::Exp, "exp"),
    (UnaryOp::Log, "log"),
    (UnaryOp::Sqrt, "sqrt"),
    (UnaryOp::Rsqrt, "rsqrt"),
    (UnaryOp::Tanh, "tanh"),
    (UnaryOp::Erf, "erf"),
    (UnaryOp::Sigmoid, "sigmoid"),
    (UnaryOp::Softplus, "softplus"),
    (UnaryOp::Sin, "sin"),
    (UnaryOp::Cos, "cos"),
    (UnaryOp::Floor, "floor"),
    (UnaryOp::Not, "not"),
];

const BINARY: [(BinaryOp, &str); 17] = [
    (BinaryOp::Add, "add"),
    (BinaryOp::Sub, "sub"),
    (BinaryOp::Mul, "mul"),
    (BinaryOp::Div, "div"),
    (BinaryOp::FloorDiv, "floor_div"),
    (BinaryOp::Mod, "mod"),
    (BinaryOp::Pow, "pow"),
    (BinaryOp::Min, "min"),
    (BinaryOp::Max, "max"),
    (BinaryOp::Eq, "eq"),
    (BinaryOp::Ne, "ne"),
    (BinaryOp::Lt, "lt"),
    (BinaryOp::Le, "le"),
    (BinaryOp::Gt, "gt"),
    (BinaryOp::Ge, "ge"),
    (BinaryOp::And, "and"),
    (BinaryOp::Or, "or"),
];

const REDUCE: [(ReduceOp, &str); 5] = [
    (ReduceOp::Sum, "reduce_sum"),
    (ReduceOp::Mean, "reduce_mean"),
    (ReduceOp::Max, "reduce_max"),
    (ReduceOp::Min, "reduce_min"),
    (ReduceOp::ArgMax, "arg_max"),
];

fn name_in<T: PartialEq>(table: &[(T, &'static str)], op: &T) -> &'static str {
    table.iter().find(|(o, _)| o == op).map_or("?", |(_, name)| name)
}

impl UnaryOp {
    /// As in the text form.
    pub fn name(self) -> &'static str {
        name_in(&UNARY, &self)
    }
}

impl BinaryOp {
    /// As in the text form.
    pub fn name(self) -> &'static str {
        name_in(&BINARY, &self)
    }
}

impl ReduceOp {
    /// As in the text form.
    pub fn name(self) -> &'static str {
        name_in(&REDUCE, &self)
    }
}

impl Core {
    /// As in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Core::Arg { .. } => "arg",
            Core::Weight { .. } => "weight",
            Core::Const { .. } => "const",
            Core::Position => "position",
            Core::Index => "index",
            Core::Unary(f) => f.name(),
            Core::Binary(f) => f.name(),
            Core::Select => "select",
            Core::Cast => "cast",
            Core::Reshape => "reshape",
            Core::Transpose { .. } => "transpose",
            Core::Slice { .. } => "slice",
            Core::Concat { .. } => "concat",
            Core::Repeat { .. } => "repeat",
            Core::Broadcast => "broadcast",
            Core::Windows { .. } => "windows",
            Core::Gather => "gather",
            Core::Take => "take",
            Core::Reduce(f) => f.name(),
            Core::TopK { .. } => "top_k",
            Core::Softmax => "softmax",
            Core::Contract { .. } => "contract",
            Core::Cache { .. } => "cache",
            Core::SelectRows => "select_rows",
            Core::Regroup => "regroup",
            Core::First => "first",
            Core::Last => "last",
            Core::Scan { .. } => "scan",
            Core::Call { .. } => "call",
        }
    }

    /// Attributes in the order of the text form, rendered.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        match self {
            Core::Arg { index } => vec![("index", index.to_string())],
            Core::Weight { path } | Core::Cache { path } => vec![("path", quote(path))],
            Core::Const { values } => vec![("values", numbers(values))],
            Core::Transpose { perm } => vec![("perm", format!("{perm:?}"))],
            Core::Slice { dim, start } => vec![("dim", dim.to_string()), ("start", start.to_string())],
            Core::Concat { dim } => vec![("dim", dim.to_string())],
            Core::Repeat { dim, times } => vec![("dim", dim.to_string()), ("times", times.to_string())],
            Core::Windows { dim, size, stride } => {
                vec![("dim", dim.to_string()), ("size", size.to_string()), ("stride", stride.to_string())]
            }
            Core::TopK { k } => vec![("k", k.to_string())],
            Core::Contract { spec } => vec![("spec", quote(spec))],
            Core::Scan { path, states, .. } => vec![("path", quote(path)), ("states", states.to_string())],
            Core::Call { graph, at } => vec![("graph", graph.to_string()), ("at", quote(at))],
            Core::Position
            | Core::Index
            | Core::Unary(_)
            | Core::Binary(_)
            | Core::Select
            | Core::Cast
            | Core::Reshape
            | Core::Broadcast
            | Core::Gather
            | Core::Take
            | Core::Reduce(_)
            | Core::Softmax
            | Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last => Vec::new(),
        }
    }

    /// The operation of that name, or `None` when no core operation has it. `arg` is not among them: parameters are written in the head of a graph.
    pub fn parse(name: &str, a: &mut Attributes) -> Result<Option<Core>, String> {
        if let Some((op, _)) = UNARY.iter().find(|(_, n)| *n == name) {
            return Ok(Some(Core::Unary(*op)));
        }
        if let Some((op, _)) = BINARY.iter().find(|(_, n)| *n == name) {
            return Ok(Some(Core::Binary(*op)));
        }
        if let Some((op, _)) = REDUCE.iter().find(|(_, n)| *n == name) {
            return Ok(Some(Core::Reduce(*op)));
        }
        Ok(Some(match name {
            "weight" => Core::Weight { path: a.string("path")? },
            "const" => Core::Const { values: a.numbers("values")? },
            "position" => Core::Position,
            "index" => Core::Index,
            "select" => Core::Select,
            "cast" => Core::Cast,
            "reshape" => Core::Reshape,
            "transpose" => Core::Transpose { perm: a.usizes("perm")? },
            "slice" => Core::Slice { dim: a.usize("dim")?, start: a.u64("start")? },
            "concat" => Core::Concat { dim: a.usize("dim")? },
            "repeat" => Core::Repeat { dim: a.usize("dim")?, times: a.u64("times")? },
            "broadcast" => Core::Broadcast,
            "windows" => Core::Windows { dim: a.usize("dim")?, size: a.u64("size")?, stride: a.u64("stride")? },
            "gather" => Core::Gather,
            "take" => Core::Take,
            "top_k" => Core::TopK { k: a.u64("k")? },
            "softmax" => Core::Softmax,
            "contract" => Core::Contract { spec: a.string("spec")? },
            "cache" => Core::Cache { path: a.string("path")? },
            "select_rows" => Core::SelectRows,
            "regroup" => Core::Regroup,
            "first" => Core::First,
            "last" => Core::Last,
            "scan" => {
                Core::Scan { path: a.string("path")?, states: a.usize("states")?, step: Arc::new(a.body("step")?) }
            }
            "call" => Core::Call { graph: a.usize("graph")?, at: a.string("at")? },
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_its_table() {
        for (op, name) in UNARY {
            assert_eq!(op.name(), name);
        }
        for (op, name) in BINARY {
            assert_eq!(op.name(), name);
        }
        for (op, name) in REDUCE {
            assert_eq!(op.name(), name);
        }
    }
}
