//! One node of a graph in words: what it is, what it does, why it ends where it does, what it costs.
//!
//! Given a graph and a node of it, it returns a [`Node`] whose paths are still relative to the body; frames and layers are the business
//! of [`flatten`](super::flatten).

use std::collections::HashMap;

use super::scene::{Kind, Mark, Node, Shape};
use super::{cost, formula};
use crate::graph::called::{called, distinct};
use crate::graph::path::split_last;
use crate::graph::{DType, Graph, NodeId, Param, Type, ValueId};
use crate::ops::fused::{Attention, ExpertLinear, HeadLinear, Linear, Rows};
use crate::ops::{BinaryOp, Core, Op, UnaryOp};
use crate::passes::is_constant;

/// Describes a node.
pub(super) fn node(graph: &Graph, node: NodeId, axes: &[String]) -> Node {
    let op = graph.op(node);
    let mut out = Node {
        frame: 0,
        kind: Kind::Other,
        shape: Shape::Pill,
        title: op.name().to_owned(),
        path: graph.origin(node).path.clone(),
        lines: Vec::new(),
        reason: String::new(),
        weights: Vec::new(),
        facts: Vec::new(),
        equation: None,
        results: graph.types(node).iter().map(|t| t.text(axes)).collect(),
        result_bytes: graph.types(node).iter().map(cost::token_bytes).fold(0, u64::saturating_add),
        cost: cost::of(graph, node),
        mark: Mark::Same,
        change: String::new(),
    };
    match op {
        Op::Core(core) => self::core(graph, node, core, &mut out),
        op => fused(op, graph, node, &mut out),
    }
    out
}

fn core(graph: &Graph, node: NodeId, core: &Core, out: &mut Node) {
    match core {
        Core::Arg { index } => {
            out.kind = Kind::Input;
            out.title = graph.params().get(*index).map(|p| p.name.clone()).unwrap_or_default();
            out.lines = out.results.clone();
        }
        Core::Position => {
            out.kind = Kind::Input;
            let visible = out.results.iter().any(|t| t.contains("visible("));
            out.title = if visible { "k_pos" } else { "q_pos" }.to_owned();
        }
        Core::Unary(f) => {
            out.kind = Kind::Rows;
            if *f == UnaryOp::Neg {
                (out.title, out.shape) = ("−".into(), Shape::Sign);
            }
        }
        Core::Binary(f) => {
            out.kind = Kind::Rows;
            let sign = sign(*f);
            let operands = graph.operands(node);
            let constant = operands.iter().position(|v| is_constant(graph, v.node));
            match (constant, sign) {
                (Some(at), sign) => {
                    let known = formula::of(graph, operands[at], &std::collections::HashMap::new());
                    let known = known.filter(|text| text.len() < 40).unwrap_or_else(|| "constants".into());
                    let sign = sign.unwrap_or(core.name());
                    out.title = if at == 1 { format!("{sign} {known}") } else { format!("{known} {sign}") };
                }
                (None, Some(sign)) => (out.title, out.shape) = (sign.to_owned(), Shape::Sign),
                (None, None) => {}
            }
        }
        Core::Select | Core::Cast | Core::Reduce(_) => {
            out.kind = Kind::Rows;
            out.title = core.name().trim_start_matches("reduce_").to_owned();
            if *core == Core::Cast {
                out.title = format!("to {}", graph.types(node)[0].dtype);
            }
        }
        Core::Reshape
        | Core::Transpose { .. }
        | Core::Slice { .. }
        | Core::Concat { .. }
        | Core::Repeat { .. }
        | Core::Broadcast
        | Core::Windows { .. }
        | Core::Regroup
        | Core::First
        | Core::Last
        | Core::SelectRows => {
            if let Core::Slice { dim, start } = core {
                let size = graph.types(node)[0].dims.get(*dim).and_then(|d| d.fixed()).unwrap_or(0);
                out.title = format!("slice {start}..{}", start + size);
            }
            if let Core::First | Core::Last = core {
                out.title = format!("{} of each sequence", core.name());
            }
            if *core == Core::SelectRows {
                out.title = "selected tokens".into();
                out.reason = "what follows is computed only for the tokens whose outputs are wanted".into();
            }
        }
        Core::Gather | Core::Take => {
            out.kind = Kind::Lookup;
            out.shape = Shape::Card;
        }
        Core::Contract { spec } => {
            out.kind = Kind::Product;
            out.shape = Shape::Card;
            out.facts.push(("spec".into(), spec.clone()));
            let constant = graph.operands(node).iter().any(|v| is_constant(graph, v.node));
            let line = if constant { sizes(graph, node) } else { None };
            out.lines.push(line.unwrap_or_else(|| spec.replace("->", " → ")));
        }
        Core::Cache { path } => {
            out.kind = Kind::Cache;
            out.shape = Shape::Drum;
            out.title = format!("cache of {}", path.rsplit('.').next().unwrap_or(path));
            out.facts.push(("cache".into(), path.clone()));
            out.lines = out.results.clone();
        }
        Core::Scan { path, states, .. } => {
            out.kind = Kind::Cache;
            out.shape = Shape::Drum;
            out.title = format!("scan of {}", path.rsplit('.').next().unwrap_or(path));
            out.facts.push(("state".into(), path.clone()));
            let kept = graph.operands(node).into_iter().take(*states).map(|v| graph.ty(v).to_string());
            out.lines = kept.collect();
            out.reason = "token after token: each is given the state that the one before it left".into();
        }
        Core::Call { at, .. } => out.title = at.clone(),
        Core::TopK { k } => out.title = format!("top {k}"),
        Core::Softmax => {
            if graph.operands(node).len() > 1 {
                out.title = "softmax where mask".into();
            }
        }
        Core::Weight { .. } | Core::Const { .. } | Core::Index => {}
    }
}

/// The sign of an operation of two operands.
pub(super) fn sign(f: BinaryOp) -> Option<&'static str> {
    Some(match f {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "−",
        BinaryOp::Mul => "×",
        BinaryOp::Div => "÷",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "≤",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => "≥",
        BinaryOp::Eq => "=",
        BinaryOp::Ne => "≠",
        BinaryOp::And => "and",
        BinaryOp::Or => "or",
        BinaryOp::Pow => "^",
        BinaryOp::FloorDiv | BinaryOp::Mod | BinaryOp::Min | BinaryOp::Max => return None,
    })
}

fn fused(op: &Op, graph: &Graph, node: NodeId, out: &mut Node) {
    out.kind = Kind::Rows;
    out.shape = Shape::Card;
    let operands: Vec<&Type> = graph.operands(node).into_iter().map(|v| graph.ty(v)).collect();
    if let Some(linear) = op.as_fused::<Linear>() {
        out.kind = Kind::Product;
        out.lines.extend(sizes(graph, node));
        if linear.parts > 1 {
            out.lines.push(format!("{} matrices, one pass over x", linear.parts));
        }
        if !linear.is_identity() {
            let formula = epilogue(graph, node, linear).filter(|f| f.len() <= 72);
            out.lines.push(formula.unwrap_or_else(|| format!("then {}", operations(&linear.epilogue))));
        }
        let after = "a product is a kernel; what follows it element by element is done while its sums are in registers";
        out.facts.push(("kernel".into(), after.into()));
    } else if op.as_fused::<HeadLinear>().is_some() {
        out.kind = Kind::Product;
        out.lines.extend(sizes(graph, node));
        out.lines.push("a matrix for each head".to_owned());
    } else if let Some(experts) = op.as_fused::<ExpertLinear>() {
        out.kind = Kind::Product;
        out.lines.extend(sizes(graph, node));
        let size = |i: usize, d: usize| operands.get(i).and_then(|ty| ty.dims.get(d)?.fixed());
        if let (Some(all), Some(chosen)) = (size(1, 0), size(1 + experts.parts, 1)) {
            out.lines.push(format!("{chosen} of {all} experts a token"));
        }
        if experts.parts > 1 {
            out.lines.push(format!("{} matrices, one pass over x", experts.parts));
        }
        if experts.epilogue.len() > experts.epilogue.params().len() {
            out.lines.push(format!("then {}", operations(&experts.epilogue)));
        }
        let rows = "the rows of each expert are one product, and only the matrices of chosen experts are read";
        out.facts.push(("kernel".into(), rows.into()));
    } else if let Some(attention) = op.as_fused::<Attention>() {
        out.kind = Kind::Attention;
        if let [q, k, ..] = operands[..] {
            let size = |ty: &Type, i: usize| ty.dims.get(i).and_then(|d| d.fixed()).unwrap_or(0);
            let (heads, kv, width) = (size(q, 1), size(k, 1), size(q, 2));
            let over = if kv == heads { String::new() } else { format!(" over {kv}") };
            out.lines.push(format!("{heads} heads of {width}{over}"));
        }
        out.lines.push(format!("mask {}", mask(graph, node)));
        if !attention.score_is_identity() {
            let formula =
                body_of(graph, node, &attention.score, Attention::SCORE_PARAMS.len()).filter(|f| f.len() <= 72);
            out.lines.push(format!("score {}", formula.unwrap_or_else(|| operations(&attention.score))));
        }
        if let Some(sink) = &attention.sink {
            out.lines.push(format!(
                "sink {}",
                body_of(graph, node, sink, Attention::MASK_PARAMS.len()).unwrap_or_else(|| operations(sink))
            ));
        }
        if attention.from_start {
            let when = "of sequences that begin in the step, whose keys and values are all there; of others the result comes from what is kept";
            out.facts.push(("when".into(), when.into()));
        }
        out.facts.push(("scale".into(), formula::short(attention.scale)));
        out.facts.push(("kernel".into(), "attention mixes tokens, so that it is a kernel of its own".into()));
    } else if let Some(rows) = op.as_fused::<Rows>() {
        out.lines = by_module(&rows.body, &out.path);
        out.reason.clone_from(&rows.reason);
    } else {
        out.facts.extend(op.attributes().into_iter().map(|(k, v)| (k.to_owned(), v)));
    }
}

/// The mask of an attention as a formula.
pub(super) fn mask(graph: &Graph, node: NodeId) -> String {
    let Some(attention) = graph.op(node).as_fused::<Attention>() else { return String::new() };
    match body_of(graph, node, &attention.mask, Attention::MASK_PARAMS.len()) {
        Some(formula) if formula == "true" => "every token".to_owned(),
        Some(formula) => formula,
        None => operations(&attention.mask),
    }
}

/// A body of an attention as a formula; its first `own` parameters stand for no operands.
fn body_of(graph: &Graph, node: NodeId, body: &Graph, own: usize) -> Option<String> {
    formula::of(body, body.outputs().first()?.value, &parameters(graph, node, body, own))
}

/// Names for the parameters of a body of an attention: those that stand for operands are called as these are.
pub(super) fn parameters(graph: &Graph, node: NodeId, body: &Graph, own: usize) -> HashMap<ValueId, String> {
    let operands = graph.operands(node);
    let name = |(i, param): (usize, &Param)| {
        let operand = i.checked_sub(own).and_then(|extra| operands.get(3 + extra));
        operand.and_then(|v| called(graph, *v)).unwrap_or_else(|| param.name.clone())
    };
    let names = distinct(body.params().iter().enumerate().map(name));
    body.params().iter().map(|p| p.value).zip(names).collect()
}

/// What a product does with its sums, over names: of its matrices, and of what else it reads.
fn epilogue(graph: &Graph, node: NodeId, linear: &Linear) -> Option<String> {
    let operands = graph.operands(node);
    let mut names = HashMap::new();
    for (i, param) in linear.epilogue.params().iter().enumerate() {
        // Parameters stand for the sums of each matrix, then for the extras: operands but for x.
        let value = *operands.get(i + 1)?;
        let path = match weights(graph, &[value]).first() {
            Some((path, _)) => path.clone(),
            None => graph.origin(value.node).path.clone(),
        };
        let name = if i < linear.parts {
            let owner = match split_last(&path).0 {
                "" => "y".to_owned(),
                module => split_last(module).1.to_owned(),
            };
            if linear.parts == 1 { "y".to_owned() } else { owner }
        } else {
            match graph.op(value.node).as_core() {
                Some(Core::Arg { index }) => graph.params().get(*index).map_or("x".to_owned(), |p| p.name.clone()),
                _ => path.rsplit('.').next().filter(|p| !p.is_empty()).unwrap_or("x").to_owned(),
            }
        };
        let name = if names.values().any(|n| *n == name) { format!("{name}'") } else { name };
        names.insert(param.value, name);
    }
    formula::of(&linear.epilogue, linear.epilogue.outputs().first()?.value, &names)
}

/// The widths that a product with weights goes between: `4096 → 1024`.
pub(super) fn sizes(graph: &Graph, node: NodeId) -> Option<String> {
    let from = graph.operands(node).first().and_then(|x| graph.ty(*x).dims.last()?.fixed())?;
    let to = graph.types(node).first().and_then(|t| t.dims.last()?.fixed())?;
    Some(format!("{from} → {to}"))
}

/// What a group does, a line for each module that its operations come from.
fn by_module(body: &Graph, common: &str) -> Vec<String> {
    let mut groups: Vec<(String, Vec<NodeId>)> = Vec::new();
    for node in body.topological().into_iter().filter(|n| !is_given(body, *n)) {
        let path = &body.origin(node).path;
        let path = path.strip_prefix(common).unwrap_or(path).trim_start_matches('.').to_owned();
        match groups.iter_mut().find(|(p, _)| *p == path) {
            Some((_, nodes)) => nodes.push(node),
            None => groups.push((path, vec![node])),
        }
    }
    let shown = |(path, nodes): &(String, Vec<NodeId>)| {
        let counts = counts(body, nodes);
        if path.is_empty() { counts } else { format!("{path}: {counts}") }
    };
    groups.iter().map(shown).collect()
}

fn is_given(body: &Graph, node: NodeId) -> bool {
    matches!(body.op(node).as_core(), Some(Core::Arg { .. } | Core::Const { .. }))
}

/// The operations of a body with their numbers: `3 mul, add, rms_norm`.
pub(super) fn operations(body: &Graph) -> String {
    let nodes: Vec<NodeId> = body.topological().into_iter().filter(|n| !is_given(body, *n)).collect();
    if nodes.is_empty() { "nothing".into() } else { counts(body, &nodes) }
}

/// Operations with their numbers: `exp, 2 mul`.
pub(super) fn of_nodes(body: &Graph, nodes: &[NodeId]) -> String {
    counts(body, nodes)
}

fn counts(body: &Graph, nodes: &[NodeId]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for node in nodes {
        let name = body.op(*node).name();
        match counts.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let show = |(name, count): &(&str, usize)| if *count == 1 { (*name).to_owned() } else { format!("{count} {name}") };
    counts.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// Weights that a node reads, itself or through constant expressions, each once: path and type, in blocks where they are held so.
pub(super) fn weights(graph: &Graph, operands: &[ValueId]) -> Vec<(String, Type)> {
    let mut found: Vec<(String, Type)> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut stack: Vec<(ValueId, Option<DType>)> = operands.iter().rev().map(|value| (*value, None)).collect();
    while let Some((value, held)) = stack.pop() {
        if !is_constant(graph, value.node) || !seen.insert(value) {
            continue;
        }
        let ty = graph.ty(value);
        let held = held.or(Some(ty.dtype).filter(|dtype| dtype.blocks().is_some()));
        if let Some(Core::Weight { path }) = graph.op(value.node).as_core()
            && found.iter().all(|(p, _)| p != path)
        {
            found.push((path.clone(), Type::new(held.unwrap_or(ty.dtype), ty.dims.clone())));
        }
        stack.extend(graph.operands(value.node).into_iter().rev().map(|operand| (operand, held)));
    }
    found
}
