//! Walks the fused program, once per instance of a body, and appends what must run.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use xfc_lang::graph::path::join;
use xfc_lang::graph::{AxisId, DType, Graph, NodeId, Program, Type, ValueId};
use xfc_lang::ops::fused::{Attention, ExpertLinear, HeadLinear, Linear, Rows};
use xfc_lang::ops::{Core, Op};
use xfc_lang::passes::analysis::phase;
use xfc_runtime::artifact::manifest::{Arena, BufferRef, CacheGroup, Input, Output, Weight, When};

use super::caches::{self, Caches};
use super::kernel::{KernelSpec, RowParam, RowsSpec, Sink, dtype_bytes};
use super::memory::{self, Buffer};
use super::place::{Operand, Place, fixed_dims, row_type, stride_of_rows};
use super::step_caches;
use super::weights::{Stored, Tables, WeightExpr, Weights, manifest_dtype};
use super::whole;
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;
use crate::target::Target;

/// Everything but code.
#[derive(Debug)]
pub struct Plan {
    /// Distinct kernels.
    pub kernels: Vec<KernelSpec>,
    /// What to run, in order.
    pub launches: Vec<PlannedLaunch>,
    /// Packed weights.
    pub weights: Vec<Weight>,
    /// Cache groups.
    pub caches: Vec<CacheGroup>,
    /// Working memory.
    pub arenas: Vec<Arena>,
    /// Inputs of the program.
    pub inputs: Vec<Input>,
    /// Outputs of the program.
    pub outputs: Vec<Output>,
    /// A sequence must be given whole.
    pub whole_sequences: bool,
    /// For each axis, positions that a table of learned positions has.
    pub max_positions: Vec<Option<u64>>,
}

/// A kernel on its buffers.
#[derive(Clone, Debug)]
pub struct PlannedLaunch {
    /// For people.
    pub name: String,
    /// Rows it goes over.
    pub space: RowSpace,
    /// Rows of the kernel for each of them.
    pub times: u64,
    /// Index into [`Plan::kernels`].
    pub kernel: usize,
    /// In the kernel's order.
    pub operands: Vec<BufferRef>,
    /// The sequences whose results need it; `None`: all.
    pub when: Option<When>,
}

struct Draft {
    name: String,
    space: RowSpace,
    times: u64,
    kernel: usize,
    operands: Vec<Operand>,
    when: Option<When>,
}

pub(super) struct Planner<'a> {
    pub(super) program: &'a Program,
    stored: &'a dyn Fn(&str) -> Option<Stored>,
    pub(super) target: &'a dyn Target,
    /// Most elements of a group of rows in blocks that have room for bf16.
    pub(super) widened: u64,
    pub(super) caches: Caches,
    pub(super) weights: Weights,
    kernels: Vec<KernelSpec>,
    kernel_index: HashMap<String, usize>,
    /// The kernel of a node, which is the same in every instance of its graph that reads and writes the same groups of caches.
    known: HashMap<(usize, NodeId, Vec<usize>), usize>,
    pub(super) flat: HashMap<(usize, NodeId), Graph>,
    pub(super) buffers: Vec<Buffer>,
    /// Of an axis, what [`parts`](super::parts) counts in.
    pub(super) counters: Vec<(usize, Place)>,
    drafts: Vec<Draft>,
    /// Of the node that is being planned.
    pub(super) when: Option<When>,
    /// Which program input a buffer holds.
    pub(super) input_of: BTreeMap<usize, usize>,
    pub(super) limits: BTreeMap<usize, u64>,
    pub(super) max_positions: Vec<Option<u64>>,
}

/// Plans a fused program. `stored` gives the binding of each parameter by absolute path; operands of products that are in no blocks are of `dtype`.
///
/// # Errors
/// A construct without a lowering, or a program that breaks a promise of the passes.
pub fn build(
    program: &Program,
    stored: &dyn Fn(&str) -> Option<Stored>,
    dtype: DType,
    target: &dyn Target,
) -> Result<Plan, CodegenError> {
    let program = &step_caches::add(program);
    // A product of bf16 is as exact as what surrounds it where operands are bf16 anyway.
    let widened = if dtype == DType::BF16 { target.widened_groups() } else { 0 };
    let plan = |tables: Tables| {
        let mut planner = Planner::new(program, stored, (target, widened), tables)?;
        let args = planner.args()?;
        let results = planner.walk(0, "", &args)?;
        Ok::<_, CodegenError>((planner, args, results))
    };
    let (mut planner, mut args, mut results) = plan(Tables::new())?;
    // A table is mostly met before the product that has it as its matrix.
    let tables = planner.weights.held_twice();
    if !tables.is_empty() {
        (planner, args, results) = plan(tables)?;
    }
    planner.finish(args, results)
}

impl<'a> Planner<'a> {
    fn new(
        program: &'a Program,
        stored: &'a dyn Fn(&str) -> Option<Stored>,
        (target, widened): (&'a dyn Target, u64),
        tables: Tables,
    ) -> Result<Self, CodegenError> {
        Ok(Planner {
            program,
            stored,
            target,
            widened,
            caches: caches::derive(program, target)?,
            weights: Weights::new(tables),
            kernels: Vec::new(),
            kernel_index: HashMap::new(),
            known: HashMap::new(),
            flat: HashMap::new(),
            buffers: Vec::new(),
            counters: Vec::new(),
            drafts: Vec::new(),
            when: None,
            input_of: BTreeMap::new(),
            limits: BTreeMap::new(),
            max_positions: vec![None; program.axes.len()],
        })
    }
}

impl Planner<'_> {
    /// Buffers for the inputs of the program.
    fn args(&mut self) -> Result<Vec<Place>, CodegenError> {
        let mut args = Vec::new();
        for (index, input) in self.program.inputs.iter().enumerate() {
            let place = self.new_buffer(&input.ty)?;
            if let Place::Buffer { id, .. } = place {
                self.input_of.insert(id, index);
            }
            args.push(place);
        }
        Ok(args)
    }

    fn finish(mut self, args: Vec<Place>, results: Vec<Place>) -> Result<Plan, CodegenError> {
        let main = &self.program.graphs[0];
        let mut outputs = Vec::new();
        for (output, place) in main.outputs().iter().zip(results) {
            let ty = main.ty(output.value);
            let place = self.dense(place, ty, &output.name)?;
            outputs.push((output.name.clone(), ty.clone(), place));
        }
        let end = self.drafts.len();
        for (_, _, place) in &outputs {
            if let Place::Buffer { id, .. } = place {
                self.buffers[*id].last = end;
            }
        }
        self.keep_counters(end);
        let known = |axis: usize| self.program.extent(AxisId(axis)).is_some();
        let (arenas, placed) = memory::place(&self.buffers, &known);
        let locate = |place: &Place| match place {
            Place::Buffer { id, column_bytes, row_stride } => Ok(BufferRef::Arena {
                arena: placed[*id].arena,
                offset: placed[*id].offset,
                column: *column_bytes,
                row_stride: *row_stride,
                element_bytes: self.buffers[*id].element_bytes,
            }),
            Place::Selected(_)
            | Place::End { .. }
            | Place::Weight(_)
            | Place::Cache(_)
            | Place::CachePart { .. }
            | Place::Constant { .. }
            | Place::Nowhere => Err(CodegenError::bug("plan", format!("{place:?} is not a buffer"))),
        };
        let mut launches = Vec::new();
        for draft in &self.drafts {
            let mut operands = Vec::new();
            for operand in &draft.operands {
                operands.push(match operand {
                    Operand::Place(place) => locate(place.source())?,
                    Operand::Weight(id) => BufferRef::Weight(*id),
                    Operand::Cache { group, slot } => BufferRef::Cache { group: *group, slot: *slot },
                });
            }
            launches.push(PlannedLaunch {
                name: draft.name.clone(),
                space: draft.space,
                times: draft.times,
                kernel: draft.kernel,
                operands,
                when: draft.when,
            });
        }
        let mut inputs = Vec::new();
        for (index, (input, place)) in self.program.inputs.iter().zip(&args).enumerate() {
            let (space, dims) = row_type(&input.ty)?;
            inputs.push(Input {
                name: input.name.clone(),
                dtype: manifest_dtype(input.ty.dtype)?,
                axis: space.axis,
                dims,
                default: input.default,
                limit: self.limits.get(&index).copied(),
                buffer: locate(place)?,
            });
        }
        let outputs = outputs
            .iter()
            .map(|(name, ty, place)| {
                let (space, dims) = row_type(ty)?;
                Ok(Output {
                    name: name.clone(),
                    dtype: manifest_dtype(ty.dtype)?,
                    axis: space.axis,
                    rows: space.selected,
                    dims,
                    buffer: locate(place)?,
                })
            })
            .collect::<Result<Vec<_>, CodegenError>>()?;
        let whole_sequences = whole::is_needed(self.program, &self.caches);
        Ok(Plan {
            kernels: self.kernels,
            launches,
            weights: self.weights.list,
            caches: self.caches.groups,
            arenas,
            inputs,
            outputs,
            whole_sequences,
            max_positions: self.max_positions,
        })
    }

    pub(super) fn new_buffer(&mut self, ty: &Type) -> Result<Place, CodegenError> {
        let (space, dims) = row_type(ty)?;
        let elements = stride_of_rows(ty, &dims, self.widened);
        let now = self.drafts.len();
        let element_bytes = dtype_bytes(ty.dtype);
        let bytes_per_row = elements * element_bytes;
        self.buffers.push(Buffer { space, bytes_per_row, element_bytes, first: now, last: now });
        Ok(Place::Buffer { id: self.buffers.len() - 1, column_bytes: 0, row_stride: elements })
    }

    fn walk(&mut self, graph_idx: usize, at: &str, args: &[Place]) -> Result<Vec<Place>, CodegenError> {
        let graph = &self.program.graphs[graph_idx];
        let mut places: HashMap<ValueId, Place> = HashMap::new();
        let needed = phase::needed(graph);
        // What a body that is called needs is needed at least when the call is.
        let outer = self.when;
        for node in graph.topological() {
            self.when = outer.or(needed.get(&node).and_then(|need| when(*need)));
            let operands: Vec<Place> = graph.operands(node).iter().map(|v| places[v].clone()).collect();
            let first = ValueId { node, port: 0 };
            match graph.op(node) {
                Op::Core(Core::Arg { index }) => {
                    places.insert(first, args[*index].clone());
                }
                Op::Core(Core::Call { graph: callee, at: relative }) => {
                    // A body's kernels are made once, for arguments that lie densely.
                    let path = join(at, relative);
                    let mut dense = Vec::with_capacity(operands.len());
                    for (place, value) in operands.into_iter().zip(graph.operands(node)) {
                        dense.push(match place {
                            Place::Selected(_) | Place::End { .. } => self.dense(place, graph.ty(value), &path)?,
                            place => place,
                        });
                    }
                    let results = self.walk(*callee, &path, &dense)?;
                    for (port, place) in results.into_iter().enumerate() {
                        places.insert(ValueId { node, port }, place);
                    }
                }
                Op::Core(Core::Scan { .. }) => {
                    let results = self.scan((graph, node), at, operands)?.into_iter().enumerate();
                    places.extend(results.map(|(port, place)| (ValueId { node, port }, place)));
                }
                Op::Core(op) => {
                    let place = self.core(graph, node, at, op, &operands)?;
                    places.insert(first, place);
                }
                Op::Fused(op) => {
                    let name = join(at, &graph.origin(node).path);
                    let any = op.as_any();
                    if any.is::<HeadLinear>() {
                        let place = self.head_linear((graph_idx, graph, node), &name, operands)?;
                        places.insert(first, place);
                    } else if let Some(linear) = any.downcast_ref::<Linear>() {
                        let place = self.linear((graph_idx, graph, node), &name, linear, operands)?;
                        places.insert(first, place);
                    } else if let Some(experts) = any.downcast_ref::<ExpertLinear>() {
                        let place = self.experts((graph_idx, graph, node), &name, experts, operands)?;
                        places.insert(first, place);
                    } else if let Some(attention) = any.downcast_ref::<Attention>() {
                        let place = self.attention((graph_idx, graph, node), &name, attention, operands)?;
                        places.insert(first, place);
                    } else if let Some(rows) = any.downcast_ref::<Rows>() {
                        let results = self.rows((graph_idx, graph, node), at, &name, rows, operands)?;
                        for (port, place) in results.into_iter().enumerate() {
                            places.insert(ValueId { node, port }, place);
                        }
                    } else {
                        return Err(CodegenError::bug(
                            "plan",
                            format!("`{}` outside of a group of rows (at `{name}`)", op.name()),
                        ));
                    }
                }
            }
        }
        self.when = outer;
        Ok(graph.outputs().iter().map(|o| places[&o.value].clone()).collect())
    }

    /// Operations that run nothing: constants, views, caches.
    fn core(
        &mut self,
        graph: &Graph,
        node: NodeId,
        at: &str,
        op: &Core,
        operands: &[Place],
    ) -> Result<Place, CodegenError> {
        let ty = graph.ty(ValueId { node, port: 0 });
        let path = || join(at, &graph.origin(node).path);
        match (op, operands) {
            (Core::Weight { path }, _) => {
                let path = join(at, path);
                Ok(Place::Weight(WeightExpr::leaf(&path, ty, self.stored)?))
            }
            (Core::Cache { path }, _) => Ok(Place::Cache(join(at, path))),
            (Core::Slice { dim: 2, start }, [Place::Cache(path)]) => {
                Ok(Place::CachePart { path: path.clone(), first: *start })
            }
            (Core::SelectRows, [place]) => Ok(Place::Selected(Box::new(place.clone()))),
            (Core::First | Core::Last, [place @ (Place::Buffer { .. } | Place::Nowhere)]) => {
                let (space, _) = row_type(graph.ty(graph.operands(node)[0]))?;
                Ok(Place::End { of: Box::new(place.clone()), axis: space.axis, last: *op == Core::Last })
            }
            (Core::Regroup, [Place::Buffer { id, column_bytes: 0, row_stride }]) => {
                let [from, to] = [graph.ty(graph.operands(node)[0]), ty].map(|ty| row_type(ty).map(|(_, dims)| dims));
                let [from, to] = [from?, to?].map(|dims| dims.iter().product::<u64>());
                if *row_stride != from {
                    return Err(CodegenError::bug(
                        "plan",
                        format!("rows with gaps under another axis (at `{}`)", path()),
                    ));
                }
                Ok(Place::Buffer { id: *id, column_bytes: 0, row_stride: to })
            }
            (Core::Reshape, [Place::Buffer { .. } | Place::Selected(_) | Place::End { .. }]) => Ok(operands[0].clone()),
            // A constant is written into the kernels that read it.
            (Core::Const { values }, _) => {
                Ok(Place::Constant { values: values.as_slice().into(), dims: fixed_dims(ty) })
            }
            (Core::Reshape, [Place::Constant { values, .. }]) => {
                Ok(Place::Constant { values: Rc::clone(values), dims: fixed_dims(ty) })
            }
            _ if !operands.is_empty() && operands.iter().all(|o| matches!(o, Place::Weight(_))) => {
                let exprs: Vec<&WeightExpr> =
                    operands.iter().filter_map(|o| if let Place::Weight(e) = o { Some(e) } else { None }).collect();
                Ok(Place::Weight(WeightExpr::apply(op, &exprs, ty)?))
            }
            _ => Err(CodegenError::bug(
                "plan",
                format!("`{}` outside of a group of rows (at `{}`)", Op::Core(op.clone()).name(), path()),
            )),
        }
    }

    /// The kernel of a node, made on first sight.
    pub(super) fn kernel(
        &mut self,
        (graph, node): (usize, NodeId),
        groups: Vec<usize>,
        make: impl FnOnce(&mut Self) -> Result<KernelSpec, CodegenError>,
    ) -> Result<usize, CodegenError> {
        let key = (graph, node, groups);
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        let spec = make(self)?;
        let id = self.intern_kernel(spec);
        self.known.insert(key, id);
        Ok(id)
    }

    pub(super) fn spec(&self, kernel: usize) -> &KernelSpec {
        &self.kernels[kernel]
    }

    pub(super) fn intern_kernel(&mut self, spec: KernelSpec) -> usize {
        let text = spec.text();
        if let Some(id) = self.kernel_index.get(&text) {
            return *id;
        }
        self.kernels.push(spec);
        self.kernel_index.insert(text, self.kernels.len() - 1);
        self.kernels.len() - 1
    }

    pub(super) fn launch(&mut self, name: &str, space: RowSpace, kernel: usize, operands: Vec<Operand>) {
        self.launch_times(name, space, 1, kernel, operands);
    }

    /// A launch over `times` rows for each element of the space.
    pub(super) fn launch_times(
        &mut self,
        name: &str,
        space: RowSpace,
        times: u64,
        kernel: usize,
        operands: Vec<Operand>,
    ) {
        let now = self.drafts.len();
        for operand in &operands {
            if let Operand::Place(place) = operand
                && let Place::Buffer { id, .. } = place.source()
            {
                self.buffers[*id].last = now;
            }
        }
        self.drafts.push(Draft { name: name.to_owned(), space, times, kernel, operands, when: self.when });
    }

    /// A place as a buffer over its own rows: selected rows are copied.
    pub(super) fn dense(&mut self, place: Place, ty: &Type, name: &str) -> Result<Place, CodegenError> {
        match place {
            Place::Buffer { .. } => Ok(place),
            Place::Selected(_) | Place::End { .. } => {
                let (space, _) = row_type(ty)?;
                let (label, read, what) = match &place {
                    Place::End { axis, last, .. } => {
                        ("end", RowParam::End { axis: *axis, last: *last }, "one row a sequence")
                    }
                    _ => ("select", RowParam::Selected, "selected rows"),
                };
                let mut body = Graph::new(label);
                let x = body.add_param("x", ty.clone());
                body.add_output("y", x);
                let kernel = self.intern_kernel(KernelSpec::Rows(RowsSpec {
                    label: label.to_owned(),
                    space,
                    body,
                    params: vec![read],
                    sinks: vec![(0, Sink::Buffer)],
                    widened: 0,
                }));
                let out = self.new_buffer(ty)?;
                self.launch(
                    &format!("{name} ({what})"),
                    space,
                    kernel,
                    vec![Operand::Place(place), Operand::Place(out.clone())],
                );
                Ok(out)
            }
            Place::Weight(_) | Place::Cache(_) | Place::CachePart { .. } | Place::Constant { .. } | Place::Nowhere => {
                Err(CodegenError::unsupported(format!("`{name}` of a value that is not computed per token"), ""))
            }
        }
    }
}

/// The sequences that a launch is for, where it is not for all.
fn when(need: phase::Need) -> Option<When> {
    match need {
        phase::Need { from_start: true, continued: false } => Some(When::FromStart),
        phase::Need { from_start: false, continued: true } => Some(When::Continued),
        _ => None,
    }
}
