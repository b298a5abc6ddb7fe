//! Holds the matrices of products in blocks of narrow integers, and what tokens bring to them too, as casts.
//!
//! before   y = linear x, w
//! after    wq = cast w : int4g64[O, I] ; xq = cast x : token8g64[tokens, I] ; y = linear xq, wq
//!
//! It changes results, so it is no pass: it runs on a program whose products are formed (the pipeline up to [`FORMED`]), and what it makes
//! is what later passes and compiled code are held to. Products that choose experts stay as they are: an error there is another expert.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::matching::is_weight_expression;
use super::precision::CacheType;
use crate::graph::blocks::{BlockForm, Blocks};
use crate::graph::build::Builder;
use crate::graph::path::{components, join};
use crate::graph::{DType, Dim, Graph, NodeId, Program, ValueId};
use crate::ops::fused::{ExpertLinear, Linear};
use crate::ops::{Core, Op, ShapeError};

/// The pass that forms products, the last one before matrices are put into blocks.
pub const FORMED: &str = "linear";

/// Elements of a group where none is asked for.
const GROUP: u16 = 32;

/// Which matrices are held how: of the rules that fit a parameter's path, the last one decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Components that stand one after another in the path, `*` for any one; empty fits all.
    pattern: Vec<String>,
    /// `None`: as they are without a plan.
    blocks: Option<Blocks>,
}

/// Why a plan cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A format that does not exist.
    #[error(
        "'{0}' is no format of weights: they are int8, int4, uint8, uint4 (with a minimum), each with a group of 32, 64 or 128 as in int4:g64, and none"
    )]
    Format(String),
    /// A pattern without a name.
    #[error(
        "'{0}' is no pattern: it is names of modules with dots between them, `*` for any one, as in layers.*.down_proj"
    )]
    Pattern(String),
    /// A pattern that no matrix fits.
    #[error("no matrix of a product is at '{0}'")]
    Unused(String),
}

impl Plan {
    /// Whether nothing is put into blocks.
    pub fn is_empty(&self) -> bool {
        self.rules.iter().all(|rule| rule.blocks.is_none())
    }

    /// A plan that holds all matrices in one way.
    pub fn all(blocks: Option<Blocks>) -> Self {
        Plan { rules: vec![Rule { pattern: Vec::new(), blocks }] }
    }

    /// Adds a rule, which decides over those before it. `pattern` is components of paths, `*` for any one.
    pub fn add(&mut self, pattern: Vec<String>, blocks: Option<Blocks>) {
        self.rules.push(Rule { pattern, blocks });
    }

    /// What the matrix at `path` is held in.
    pub fn of(&self, path: &str) -> Option<Blocks> {
        self.rules.iter().rfind(|rule| rule.fits(path)).and_then(|rule| rule.blocks)
    }
}

impl Rule {
    fn fits(&self, path: &str) -> bool {
        let path: Vec<&str> = components(path).collect();
        let same = |(own, of): (&String, &&str)| own == "*" || own == of;
        let n = self.pattern.len();
        n == 0 || path.windows(n).any(|part| self.pattern.iter().zip(part).all(same))
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    /// `int4:g64,down_proj=int8:g32,lm_head=none`: a format without a pattern is for all. Rules may stand on lines of their own, and what
    /// follows a `#` on a line is a comment.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let rule = |item: &str| -> Result<Rule, PlanError> {
            let (pattern, format) = item.rsplit_once('=').map_or((None, item), |(p, f)| (Some(p.trim()), f.trim()));
            let pattern: Vec<String> = match pattern {
                None => Vec::new(),
                Some(names) => names.split('.').map(str::to_owned).collect(),
            };
            if pattern.iter().any(String::is_empty) {
                return Err(PlanError::Pattern(item.to_owned()));
            }
            let blocks = match format {
                "none" => None,
                _ => Some(parse_format(format).ok_or_else(|| PlanError::Format(format.to_owned()))?),
            };
            Ok(Rule { pattern, blocks })
        };
        let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(rules, _)| rules));
        let items = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty());
        let rules = items.map(rule).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err(PlanError::Format(String::new()));
        }
        Ok(Plan { rules })
    }
}

/// `int4`, `int4:g64`.
fn parse_format(text: &str) -> Option<Blocks> {
    let (form, group) = text.split_once(':').map_or((text, None), |(form, group)| (form, Some(group)));
    let group = group.map_or(Some(GROUP), |g| g.strip_prefix('g')?.parse().ok())?;
    let form = BlockForm::ALL.into_iter().find(|f| f.name() == form && f.is_of_weights())?;
    Blocks::GROUPS.contains(&group).then(|| Blocks::weights(form, group))
}

impl fmt::Display for Plan {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<String> = self
            .rules
            .iter()
            .map(|rule| {
                let format = rule.blocks.map_or("none".to_owned(), |b| format!("{}:g{}", b.form.name(), b.group));
                if rule.pattern.is_empty() { format } else { format!("{}={format}", rule.pattern.join(".")) }
            })
            .collect();
        f.write_str(&rules.join(","))
    }
}

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
    let Split { bodies, found, .. } = split;
    let paths: BTreeSet<&str> = found.iter().flat_map(|found| &found.paths).map(String::as_str).collect();
    for rule in &plan.rules {
        if !rule.pattern.is_empty() && !paths.iter().any(|path| rule.fits(path)) {
            return Err(PlanError::Unused(rule.pattern.join(".")).into());
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
}

impl<'p> Split<'p> {
    fn new(program: &'p Program, plan: &'p Plan) -> Self {
        Split { program, plan, bodies: Vec::new(), known: HashMap::new(), found: Vec::new() }
    }

    /// The number of the body of graph `of` at the absolute path `at`.
    fn body(&mut self, of: usize, at: &str) -> usize {
        let program = self.program;
        let graph = &program.graphs[of];
        let (mut products, mut calls) = (Vec::new(), Vec::new());
        for node in graph.topological() {
            if let Some(Core::Call { graph: callee, at: relative }) = graph.op(node).as_core() {
                calls.push((node, self.body(*callee, &join(at, relative))));
            } else if let Some(Matrices { paths, rows, columns }) = matrices(graph, node) {
                let paths: Vec<String> = paths.iter().map(|path| join(at, path)).collect();
                let mut held = paths.iter().map(|path| self.plan.of(path));
                let first = held.next().flatten();
                if let Some(blocks) = first.filter(|_| held.all(|other| other == first)) {
                    products.push((node, blocks));
                }
                self.found.push(Matrices { paths, rows, columns });
            }
        }
        let body = Body { of, products, calls };
        if let Some(known) = self.known.get(&body) {
            return *known;
        }
        self.bodies.push(body.clone());
        self.known.insert(body, self.bodies.len() - 1);
        self.bodies.len() - 1
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
    tokens: &mut HashMap<(ValueId, Blocks), ValueId>,
) -> Result<(), ShapeError> {
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
    let brought = match tokens.get(&(x, blocks)) {
        Some(known) => *known,
        None => {
            let made = Builder::like(graph, node).cast(x, DType::Blocks(blocks.of_tokens()))?;
            tokens.insert((x, blocks), made);
            made
        }
    };
    graph.set_operand(node, 0, brought);
    for (i, matrix) in operands.iter().enumerate().skip(1).take(parts) {
        let held = Builder::like(graph, node).cast(*matrix, DType::Blocks(blocks))?;
        graph.set_operand(node, i, held);
    }
    Ok(())
}

fn parts_of(graph: &Graph, node: NodeId) -> usize {
    let op = graph.op(node);
    op.as_fused::<Linear>().map_or(0, |l| l.parts) + op.as_fused::<ExpertLinear>().map_or(0, |e| e.parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_and_the_last_rule_decides() {
        let plan: Plan = "int4:g64, down_proj=int8, layers.0.*.q_proj=uint4:g128,lm_head=none".parse().unwrap();
        assert_eq!(plan.to_string(), "int4:g64,down_proj=int8:g32,layers.0.*.q_proj=uint4:g128,lm_head=none");
        assert_eq!(plan, plan.to_string().parse().unwrap());
        let held = |path: &str| plan.of(path).map(|b| b.to_string());
        assert_eq!(held("layers.1.self_attn.q_proj.weight").as_deref(), Some("int4g64"));
        assert_eq!(held("layers.0.self_attn.q_proj.weight").as_deref(), Some("uint4g128"));
        assert_eq!(held("layers.1.mlp.down_proj.weight").as_deref(), Some("int8g32"));
        assert_eq!(held("lm_head.weight"), None);
        assert_eq!(held("layers.10.mlp.up_proj.weight").as_deref(), Some("int4g64"));
        assert!("none".parse::<Plan>().unwrap().is_empty());
    }

    #[test]
    fn plans_are_read_from_lines_with_comments() {
        let lines = "# 4.5 bits a weight\nint4:g64  # all\n\n layers.0.mlp=int8,\nlm_head=none\n";
        assert_eq!(lines.parse::<Plan>(), "int4:g64,layers.0.mlp=int8,lm_head=none".parse());
        assert!("# nothing".parse::<Plan>().is_err());
        let mut made = Plan::all("int4:g64".parse::<Plan>().unwrap().of("any"));
        made.add(vec!["layers".to_owned(), "*".to_owned()], None);
        assert_eq!(made.to_string(), "int4:g64,layers.*=none");
    }

    #[test]
    fn wrong_plans_say_what_exists() {
        let wrong = |text: &str| text.parse::<Plan>().unwrap_err().to_string();
        assert!(wrong("int5").starts_with("'int5' is no format of weights: they are int8, int4"));
        assert!(wrong("int4:g48").starts_with("'int4:g48' is no format"));
        assert!(wrong("int4:64").starts_with("'int4:64' is no format"));
        assert!(wrong("token8").starts_with("'token8' is no format"));
        assert!(wrong("").starts_with("'' is no format"));
        assert!(wrong("a..b=int4").starts_with("'a..b=int4' is no pattern"));
    }
}
