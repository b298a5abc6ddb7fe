//! Holds the matrices of products in blocks of narrow integers, and what tokens bring to them too, as casts; or in blocks of floats of 8 bits, to which
//! tokens bring bf16.
//!
//! before   y = linear x, w
//! after    wq = cast w : int4g64[O, I] ; xq = cast x : token8g64[tokens, I] ; y = linear xq, wq
//!
//! A table whose rows are looked up is one with the matrix where a product reads the same parameter: rows are then of the numbers in blocks.
//!
//! before   e = gather w, ids ; y = linear x, w
//! after    wq = cast w : int4g64[O, I] ; we = cast wq : f32[O, I] ; e = gather we, ids ; y = linear xq, wq
//!
//! It changes results, so it is no pass: it runs on a program whose products are formed (the pipeline up to [`FORMED`]), and what it makes
//! is what later passes and compiled code are held to. Products that choose experts stay as they are: an error there is another expert.

mod halves;
mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;

pub use self::halves::multiply_halves;
use self::plan::ROUNDED;
pub use self::plan::{Plan, PlanError, StoredForm, StoredForms};
use super::matching::is_weight_expression;
use super::precision::CacheType;
use super::stored::{along, unrounded};
use crate::graph::blocks::Blocks;
use crate::graph::build::Builder;
use crate::graph::path::join;
use crate::graph::{DType, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::{ExpertLinear, Linear};
use crate::ops::{Core, Op, ShapeError};

/// The pass that forms products, the last one before matrices are put into blocks.
pub const FORMED: &str = "linear";

/// Why a program cannot be quantised.
#[derive(Clone, Debug, Error)]
pub enum QuantiseError {
    /// A plan that does not fit the program.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A defect of the program.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A defect of a pass.
    #[error(transparent)]
    Pass(#[from] super::PassError),
}

/// Makes the precision of a program explicit: the casts of [`precision`](super::precision) for `dtype` and caches in `cache`, and of a plan those to blocks, once the products
/// are formed. What it makes is what passes and compiled code are held to.
///
/// # Errors
/// A pattern of the plan that no matrix fits; what a verified program has not.
pub fn prepare(
    program: &mut Program,
    dtype: DType,
    cache: impl Into<CacheType>,
    plan: &Plan,
) -> Result<(), QuantiseError> {
    super::precision::apply(program, dtype, cache)?;
    if plan.is_empty() {
        return Ok(());
    }
    form(program)?;
    apply(program, plan)
}

/// Forms products.
fn form(program: &mut Program) -> Result<(), QuantiseError> {
    let formed = super::pipeline().iter().position(|pass| pass.name() == FORMED).map_or(0, |at| at + 1);
    super::run(program, &mut super::Options { limit: Some(formed), ..super::Options::default() })?;
    Ok(())
}

/// The matrices of one product, which are held in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// Absolute paths of the parameters that they are made of.
    pub paths: Vec<String>,
    /// Rows of all of them.
    pub rows: u64,
    /// Elements of a row, which groups are made of.
    pub columns: u64,
}

/// All matrices that a plan can put into blocks, of a program as [`prepare`] takes it, in the order of the products. Those that several
/// products read stand there once.
///
/// # Errors
/// What a verified program has not.
pub fn matrices_of(
    program: &Program,
    dtype: DType,
    cache: impl Into<CacheType>,
) -> Result<Vec<Matrices>, QuantiseError> {
    let mut program = program.clone();
    super::precision::apply(&mut program, dtype, cache)?;
    form(&mut program)?;
    let plan = Plan::default();
    let mut split = Split::new(&program, &plan);
    split.body(0, "");
    let mut seen = BTreeSet::new();
    split.found.retain(|found| seen.insert(found.paths.clone()));
    Ok(split.found)
}

/// Puts the matrices of a program into blocks. Bodies of which instances are held differently become several.
///
/// # Errors
/// A pattern of the plan that no matrix fits.
pub fn apply(program: &mut Program, plan: &Plan) -> Result<(), QuantiseError> {
    let mut split = Split::new(program, plan);
    split.body(0, "");
    // A table is mostly met before the product that has it as its matrix.
    let tables = std::mem::take(&mut split.whole);
    if tables.values().any(Option::is_some) {
        split = Split { tables, ..Split::new(program, plan) };
        split.body(0, "");
    }
    let Split { bodies, found, .. } = split;
    let paths: BTreeSet<&str> = found.iter().flat_map(|found| &found.paths).map(String::as_str).collect();
    for rule in &plan.rules {
        if !rule.pattern.is_empty() && !paths.iter().any(|path| rule.fits(path)) {
            return Err(rule.unused(paths.into_iter()).into());
        }
    }
    // Bodies were listed after those that they call.
    let last = bodies.len() - 1;
    let mut graphs = Vec::with_capacity(bodies.len());
    for body in bodies.into_iter().rev() {
        let mut graph = program.graphs[body.of].clone();
        for (node, callee) in body.calls {
            if let Some(Core::Call { at, .. }) = graph.op(node).as_core().cloned() {
                graph.set_op(node, Core::Call { graph: last - callee, at });
            }
        }
        let mut tokens = HashMap::new();
        for (node, blocks) in body.products {
            rewrite(&mut graph, node, blocks, &mut tokens)?;
        }
        for (node, blocks) in body.tables {
            look_up(&mut graph, node, blocks)?;
        }
        super::matching::remove_dead(&mut graph);
        graphs.push(graph);
    }
    program.graphs = graphs;
    Ok(())
}

/// A body as some of its instances have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Body {
    /// Number of the graph it is made of.
    of: usize,
    /// Its products that are put into blocks.
    products: Vec<(NodeId, Blocks)>,
    /// Its gathers from tables that are put into blocks.
    tables: Vec<(NodeId, Blocks)>,
    /// Its calls, and the number of the body that each calls.
    calls: Vec<(NodeId, usize)>,
}

struct Split<'p> {
    program: &'p Program,
    plan: &'p Plan,
    /// Each behind those it calls.
    bodies: Vec<Body>,
    known: HashMap<Body, usize>,
    /// All that could be put into blocks, of each instance.
    found: Vec<Matrices>,
    /// What the parameters are held in that products read whole, by absolute path; `None` where they differ, or one reads it as it is.
    whole: BTreeMap<String, Option<Blocks>>,
    /// The same, of an earlier walk: what tables are held in.
    tables: BTreeMap<String, Option<Blocks>>,
}

impl<'p> Split<'p> {
    fn new(program: &'p Program, plan: &'p Plan) -> Self {
        Split {
            program,
            plan,
            bodies: Vec::new(),
            known: HashMap::new(),
            found: Vec::new(),
            whole: BTreeMap::new(),
            tables: BTreeMap::new(),
        }
    }

    /// The number of the body of graph `of` at the absolute path `at`.
    fn body(&mut self, of: usize, at: &str) -> usize {
        let program = self.program;
        let graph = &program.graphs[of];
        let (mut products, mut tables, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for node in graph.topological() {
            if let Some(Core::Call { graph: callee, at: relative }) = graph.op(node).as_core() {
                calls.push((node, self.body(*callee, &join(at, relative))));
                continue;
            }
            if let Some(Core::Gather) = graph.op(node).as_core() {
                let table = graph.operands(node).first().copied().filter(|table| graph.ty(*table).dims.len() == 2);
                let path = table.and_then(|table| whole(graph, table));
                let blocks = path.and_then(|path| *self.tables.get(&join(at, path))?);
                tables.extend(blocks.map(|blocks| (node, blocks)));
                continue;
            }
            let mut held = None;
            if let Some(Matrices { paths, rows, columns }) = matrices(graph, node) {
                let paths: Vec<String> = paths.iter().map(|path| join(at, path)).collect();
                held = self.held(graph, node, &paths, at);
                products.extend(held.map(|blocks| (node, blocks)));
                self.found.push(Matrices { paths, rows, columns });
            }
            for matrix in graph.operands(node).iter().skip(1).take(parts_of(graph, node)) {
                let Some(path) = whole(graph, *matrix) else { continue };
                let known = self.whole.entry(join(at, path)).or_insert(held);
                *known = known.filter(|known| held == Some(*known));
            }
        }
        let body = Body { of, products, tables, calls };
        if let Some(known) = self.known.get(&body) {
            return *known;
        }
        self.bodies.push(body.clone());
        self.known.insert(body, self.bodies.len() - 1);
        self.bodies.len() - 1
    }
}

impl Split<'_> {
    /// What the matrices of a product are held in, which are made of the parameters at `paths`.
    fn held(&self, graph: &Graph, node: NodeId, paths: &[String], at: &str) -> Option<Blocks> {
        let all: Vec<Blocks> = paths.iter().map(|path| self.plan.of(path)).collect::<Option<_>>()?;
        let (first, rest) = all.split_first()?;
        if rest.iter().any(|other| other != first) {
            // Stored ones that lie in one matrix are rounded alike.
            return paths.iter().all(|path| self.plan.is_stored(path)).then_some(ROUNDED);
        }
        let of_parameter = |path: &str| self.plan.along(&join(at, path));
        let along_inputs = |value: &ValueId| {
            let last = graph.ty(*value).dims.len().checked_sub(1);
            last.is_some() && along(graph, *value, &of_parameter) == last
        };
        let matrices = || graph.operands(node).into_iter().skip(1).take(parts_of(graph, node));
        let whole = !first.stored || matrices().all(|matrix| along_inputs(&matrix));
        Some(if whole { *first } else { ROUNDED })
    }
}

/// The matrices of a product, with paths of the body, where they can be put into blocks.
fn matrices(graph: &Graph, node: NodeId) -> Option<Matrices> {
    let op = graph.op(node);
    let parts = match (op.as_fused::<Linear>(), op.as_fused::<ExpertLinear>()) {
        (Some(linear), _) => linear.parts,
        (_, Some(experts)) => experts.parts,
        _ => return None,
    };
    let operands = graph.operands(node);
    let matrices = operands.get(1..=parts)?;
    let plain = |v: &ValueId| graph.ty(*v).dtype.is_float() && is_weight_expression(graph, *v);
    if !matrices.iter().all(plain) || chooses(graph, node) {
        return None;
    }
    let size = |dim: &Dim| if let Dim::Fixed(n) = dim { *n } else { 1 };
    let dims = |v: &ValueId| graph.ty(*v).dims.iter().map(size).collect::<Vec<u64>>();
    Some(Matrices {
        paths: matrices.iter().flat_map(|v| leaves(graph, *v)).collect(),
        rows: matrices.iter().map(|v| dims(v).split_last().map_or(1, |(_, rows)| rows.iter().product())).sum(),
        columns: dims(&matrices[0]).last().copied().unwrap_or(1),
    })
}

/// The paths of the parameters of a weight expression.
fn leaves(graph: &Graph, value: ValueId) -> Vec<String> {
    match graph.op(value.node).as_core() {
        Some(Core::Weight { path }) => vec![path.clone()],
        _ => graph.operands(value.node).into_iter().flat_map(|v| leaves(graph, v)).collect(),
    }
}

/// The path of the parameter that a value is all of, cast or not.
fn whole(graph: &Graph, value: ValueId) -> Option<&str> {
    match graph.op(value.node).as_core()? {
        Core::Weight { path } => Some(path),
        Core::Cast => whole(graph, *graph.operands(value.node).first()?),
        _ => None,
    }
}

/// Whether a result goes, by core operations alone, to a choice of the largest.
fn chooses(graph: &Graph, node: NodeId) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        for (user, _) in (0..graph.types(node).len()).flat_map(|port| graph.uses(ValueId { node, port })) {
            match graph.op(user) {
                Op::Core(Core::TopK { .. }) => return true,
                Op::Core(Core::Call { .. } | Core::Cache { .. } | Core::Scan { .. }) | Op::Fused(_) => {}
                Op::Core(_) => {
                    if seen.insert(user) {
                        stack.push(user);
                    }
                }
            }
        }
    }
    false
}

/// Casts the operands of a product; `tokens` are the casts of what tokens bring that there are.
fn rewrite(
    graph: &mut Graph,
    node: NodeId,
    blocks: Blocks,
    tokens: &mut HashMap<(ValueId, DType), ValueId>,
) -> Result<(), ShapeError> {
    let brings = blocks.of_tokens();
    let parts = parts_of(graph, node);
    let operands = graph.operands(node);
    // What was narrowed for the product is not rounded twice.
    let x = match graph.op(operands[0].node).as_core() {
        Some(Core::Cast) => graph.operands(operands[0].node)[0],
        _ => operands[0],
    };
    let x = if graph.ty(x).dtype == DType::F32 { x } else { operands[0] };
    if !matches!(graph.ty(x).dims.last(), Some(Dim::Fixed(_))) {
        return Ok(());
    }
    let brought = match tokens.get(&(x, brings)) {
        _ if graph.ty(operands[0]).dtype == brings => operands[0],
        Some(known) => *known,
        None => {
            let made = Builder::like(graph, node).cast(x, brings)?;
            tokens.insert((x, brings), made);
            made
        }
    };
    graph.set_operand(node, 0, brought);
    for (i, matrix) in operands.iter().enumerate().skip(1).take(parts) {
        let held = hold(graph, node, *matrix, blocks)?;
        graph.set_operand(node, i, held);
    }
    Ok(())
}

/// A matrix that `node` reads, in blocks.
fn hold(graph: &mut Graph, node: NodeId, matrix: ValueId, blocks: Blocks) -> Result<ValueId, ShapeError> {
    // What was stored in blocks is not rounded before.
    let matrix = if blocks.stored { unrounded(graph, matrix)? } else { matrix };
    Builder::like(graph, node).cast(matrix, DType::Blocks(blocks))
}

/// Makes a gather read what a product holds in blocks; its rows are f32, as the integers and their scales say.
fn look_up(graph: &mut Graph, node: NodeId, blocks: Blocks) -> Result<(), ShapeError> {
    let value = ValueId { node, port: 0 };
    let (table, ty) = (graph.operands(node)[0], graph.ty(value).clone());
    let held = hold(graph, node, table, blocks)?;
    let wide = Builder::like(graph, node).cast(held, DType::F32)?;
    graph.set_operand(node, 0, wide);
    if ty.dtype == DType::F32 {
        return Ok(());
    }
    let uses = graph.uses(value);
    let outputs: Vec<usize> = (0..graph.outputs().len()).filter(|i| graph.outputs()[*i].value == value).collect();
    graph.set_type(value, Type::new(DType::F32, ty.dims));
    let narrow = Builder::like(graph, node).cast(value, ty.dtype)?;
    for (user, operand) in uses {
        let made = ValueId { node: user, port: 0 };
        match graph.op(user).as_core() {
            // What only widened the rows is the rows now.
            Some(Core::Cast) if graph.ty(made).dtype == DType::F32 => graph.replace(made, value),
            Some(Core::Cast) => {}
            _ => graph.set_operand(user, operand, narrow),
        }
    }
    outputs.into_iter().for_each(|output| graph.set_output(output, narrow));
    Ok(())
}

fn parts_of(graph: &Graph, node: NodeId) -> usize {
    let op = graph.op(node);
    op.as_fused::<Linear>().map_or(0, |l| l.parts) + op.as_fused::<ExpertLinear>().map_or(0, |e| e.parts)
}
