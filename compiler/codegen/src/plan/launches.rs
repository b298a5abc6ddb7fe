//! One launch for each fused node: its kernel, and the buffers of its operands and results.

use std::collections::hash_map::Entry;

use xfc_lang::graph::path::join;
use xfc_lang::graph::{AxisId, DType, Dim, Graph, NodeId, Type, ValueId};
use xfc_lang::ops::fused::{Attention, Linear, Rows};
use xfc_lang::ops::{Core, Op, UnaryOp};
use xfc_runtime::artifact::manifest::{Blocks, Pack, When};

use super::build::Planner;
use super::caches;
use super::cost::gathered;
use super::flatten::flatten;
use super::kernel::{
    AttentionSpec, CombineSpec, Division, Extra, KernelSpec, KeyRow, LinearSpec, PageLayout, RowParam, RowsSpec, Sink,
    Table,
};
use super::place::{Operand, Place, row_type, stride_of_rows};
use super::weights::WeightExpr;
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;

impl Planner<'_> {
    pub(super) fn linear(
        &mut self,
        (graph_idx, graph, node): (usize, &Graph, NodeId),
        name: &str,
        linear: &Linear,
        operands: Vec<Place>,
    ) -> Result<Place, CodegenError> {
        let values = graph.operands(node);
        let result_ty = graph.ty(ValueId { node, port: 0 });
        let (space, out_dims) = row_type(result_ty)?;
        let x_ty = graph.ty(values[0]);
        let (_, x_dims) = row_type(x_ty)?;
        // Of heads and of windows too: so many rows for each element.
        let (Some((&inputs, lead)), Some((&outputs, out_lead))) = (x_dims.split_last(), out_dims.split_last()) else {
            return Err(CodegenError::unsupported(format!("a product of {x_ty}"), name));
        };
        if lead != out_lead {
            return Err(CodegenError::bug("plan", format!("a product of {x_ty} that gives {result_ty} (at `{name}`)")));
        }
        let times: u64 = lead.iter().product();
        let kernel = self.kernel((graph_idx, node), Vec::new(), |this| {
            let extras = values[1 + linear.parts..]
                .iter()
                .map(|v| extra(graph.ty(*v), outputs, times, name))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(KernelSpec::Linear(LinearSpec {
                space,
                times,
                heads: 1,
                experts: None,
                inputs,
                outputs,
                parts: linear.parts,
                operand: graph.ty(values[1]).dtype.multiplied(),
                epilogue: linear.epilogue.clone(),
                extras,
                result: result_ty.dtype,
                widened: this.is_widened(graph.ty(values[1]).dtype),
            }))
        })?;
        let pack = self.target.pack(graph.ty(values[1]).dtype);
        let mut list = Vec::new();
        for (i, place) in operands.into_iter().enumerate() {
            let ty = graph.ty(values[i]);
            list.push(match place {
                Place::Weight(expr) => {
                    let layout = if (1..=linear.parts).contains(&i) { pack } else { Pack::Plain };
                    Operand::Weight(self.weights.intern(&expr, ty.dtype, layout)?)
                }
                place => {
                    let place = self.dense(place, ty, name)?;
                    Operand::Place(rows_within(place, ty, times, self.widened, name)?)
                }
            });
        }
        let out = self.new_buffer(result_ty)?;
        list.push(Operand::Place(rows_within(out.clone(), result_ty, times, self.widened, name)?));
        self.launch_times(name, space, times, kernel, list);
        Ok(out)
    }

    /// A product of each head with its own matrix: one launch, whose columns are those of all heads.
    pub(super) fn head_linear(
        &mut self,
        (graph_idx, graph, node): (usize, &Graph, NodeId),
        name: &str,
        operands: Vec<Place>,
    ) -> Result<Place, CodegenError> {
        let values = graph.operands(node);
        let result_ty = graph.ty(ValueId { node, port: 0 });
        let (x_ty, w_ty) = (graph.ty(values[0]), graph.ty(values[1]));
        let (space, out_dims) = row_type(result_ty)?;
        let ([heads, outputs], [_, inputs]) = (&out_dims[..], &row_type(x_ty)?.1[..]) else {
            return Err(CodegenError::unsupported(format!("a product of each head of {x_ty}"), name));
        };
        let kernel = self.kernel((graph_idx, node), Vec::new(), |this| {
            Ok(KernelSpec::Linear(LinearSpec {
                space,
                times: 1,
                experts: None,
                heads: *heads,
                inputs: *inputs,
                outputs: *outputs,
                parts: 1,
                operand: x_ty.dtype,
                epilogue: Linear::identity().epilogue,
                extras: Vec::new(),
                result: result_ty.dtype,
                widened: this.is_widened(graph.ty(values[1]).dtype),
            }))
        })?;
        let mut operands = operands.into_iter();
        let (Some(x), Some(Place::Weight(matrices))) = (operands.next(), operands.next()) else {
            return Err(CodegenError::bug("plan", format!("matrices that are not weights (at `{name}`)")));
        };
        let x = self.dense(x, x_ty, name)?;
        let pack = self.target.pack(w_ty.dtype);
        let matrices = self.weights.intern(&matrices, w_ty.dtype, pack)?;
        let out = self.new_buffer(result_ty)?;
        let list = vec![Operand::Place(x), Operand::Weight(matrices), Operand::Place(out.clone())];
        self.launch(name, space, kernel, list);
        Ok(out)
    }

    pub(super) fn attention(
        &mut self,
        (graph_idx, graph, node): (usize, &Graph, NodeId),
        name: &str,
        attention: &Attention,
        operands: Vec<Place>,
    ) -> Result<Place, CodegenError> {
        let values = graph.operands(node);
        let result_ty = graph.ty(ValueId { node, port: 0 });
        let (q, k, v, value_in_key, extras) = match &operands[..] {
            [q, Place::Cache(k), Place::Cache(v), extras @ ..] => {
                // Values that are all of the keys.
                (q, k, v, (k == v).then_some(0), extras)
            }
            [q, Place::Cache(k), Place::CachePart { path, first }, extras @ ..] if k == path => {
                (q, k, path, Some(*first), extras)
            }
            _ => return Err(CodegenError::unsupported("attention over keys that are not cached", name)),
        };
        let otherwise = extras.last().filter(|_| attention.from_start);
        let extras = &extras[..extras.len() - usize::from(otherwise.is_some())];
        let when = if attention.from_start { Some(When::FromStart) } else { self.when };
        let slot = |this: &Self, path: &String| {
            this.caches
                .slots
                .get(path)
                .copied()
                .ok_or_else(|| CodegenError::bug("plan", format!("no slot for cache `{path}`")))
        };
        let (k, v) = (slot(self, k)?, slot(self, v)?);
        if k.group != v.group {
            return Err(CodegenError::unsupported("keys and values that are kept for different times", name));
        }
        let (space, q_dims) = row_type(graph.ty(values[0]))?;
        if space.selected {
            return Err(CodegenError::unsupported("attention of selected rows", name));
        }
        let groups = operands.iter().filter_map(|place| match place {
            Place::Cache(path) => self.caches.slots.get(path).map(|slot| slot.group),
            _ => None,
        });
        let groups = groups.chain(value_in_key.map(|first| first as usize)).collect();
        let kernel = self.kernel((graph_idx, node), groups, |this| {
            let (&[heads, key_dim], [_, Dim::Fixed(kv_heads), Dim::Fixed(value_dim)]) =
                (&q_dims[..], &graph.ty(values[2]).dims[..])
            else {
                return Err(CodegenError::bug(
                    "plan",
                    format!("attention of {} and {} (at `{name}`)", graph.ty(values[0]), graph.ty(values[2])),
                ));
            };
            let tables = extras.iter().zip(&values[3..]).enumerate().map(|(i, (place, value))| {
                let (ty, gathered) = (graph.ty(*value), attention.gathers(i));
                let dtype = ty.dtype;
                if dtype.blocks().is_some() {
                    let what = "a mask or score that reads what is kept in 8 bits (keep caches in f32 or bf16)";
                    return Err(CodegenError::unsupported(what, name));
                }
                let table = match place {
                    Place::Cache(path) => this.caches.slots.get(path).and_then(|slot| {
                        let row = if gathered { Some(key_row(ty, heads, slot.layout)?) } else { None };
                        Some(Table::Key { dtype, group: slot.group, page_bytes: slot.page_bytes, row })
                    }),
                    Place::Buffer { .. } => query_table(ty, space, heads, gathered),
                    _ if gathered => whole_table(place, dtype),
                    _ => head_table(place, dtype, heads),
                };
                table.ok_or_else(|| CodegenError::unsupported("a mask or score that reads tensors", name))
            });
            let mut spec = AttentionSpec {
                tables: tables.collect::<Result<_, _>>()?,
                axis: space.axis,
                heads,
                kv_heads: *kv_heads,
                key_dim,
                value_dim: *value_dim,
                key_layout: k.layout,
                value_layout: v.layout,
                value_in_key,
                when,
                scale: attention.scale,
                mask: attention.mask.clone(),
                score: attention.score.clone(),
                sink: attention.sink.clone(),
                softmax: attention.softmax,
                reach: attention.reach,
                query: graph.ty(values[0]).dtype,
                kept: graph.ty(values[1]).dtype,
                value_kept: graph.ty(values[2]).dtype,
                result: result_ty.dtype,
                group: k.group,
                page_tokens: this.target.page_tokens(),
                division: Division::NONE,
            };
            if spec.value_in_key.is_none() && spec.values().groups().len() > 1 {
                return Err(CodegenError::bug("plan", format!("values of several groups (at `{name}`)")));
            }
            // Of an axis with a known number of elements there is room for these alone.
            if this.program.extent(AxisId(space.axis)).is_none() {
                spec.division = this.target.division(&spec);
            }
            Ok(KernelSpec::Attention(Box::new(spec)))
        })?;
        let parts = match self.spec(kernel) {
            KernelSpec::Attention(spec) if spec.division.parts > 1 => Some(CombineSpec::of(spec)),
            _ => None,
        };
        let q = self.dense(q.clone(), graph.ty(values[0]), name)?;
        // The rows of other sequences are there already.
        let out = match otherwise {
            None => self.new_buffer(result_ty)?,
            Some(place @ Place::Buffer { .. }) if is_read_once(graph, values.last().copied()) => place.clone(),
            Some(_) => {
                return Err(CodegenError::bug(
                    "plan",
                    format!("a result of attention that is read twice (at `{name}`)"),
                ));
            }
        };
        let cache = |s: caches::Slot| Operand::Cache { group: s.group, slot: s.slot };
        let mut list = vec![Operand::Place(q), cache(k), cache(v), Operand::Place(out.clone())];
        for (place, value) in extras.iter().zip(&values[3..]) {
            match place {
                Place::Weight(expr) => {
                    list.push(Operand::Weight(self.weights.intern(expr, graph.ty(*value).dtype, Pack::Plain)?));
                }
                Place::Cache(path) => list.push(cache(slot(self, path)?)),
                Place::Buffer { .. } => list.push(Operand::Place(place.clone())),
                Place::Selected(_)
                | Place::End { .. }
                | Place::CachePart { .. }
                | Place::Constant { .. }
                | Place::Nowhere => {}
            }
        }
        let outer = std::mem::replace(&mut self.when, when);
        match parts {
            None => self.launch(name, space, kernel, list),
            Some(parts) => self.launch_parts((name, space, kernel), list, parts, &out)?,
        }
        self.when = outer;
        Ok(out)
    }

    pub(super) fn rows(
        &mut self,
        (graph_idx, graph, node): (usize, &Graph, NodeId),
        at: &str,
        name: &str,
        rows: &Rows,
        operands: Vec<Place>,
    ) -> Result<Vec<Place>, CodegenError> {
        let values = graph.operands(node);
        let body = match self.flat.entry((graph_idx, node)) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => new.insert(flatten(&rows.body)?).clone(),
        };
        let space = graph
            .types(node)
            .iter()
            .find_map(|ty| row_type(ty).ok())
            .map(|(space, _)| space)
            .ok_or_else(|| CodegenError::bug("plan", format!("a group without rows (at `{name}`)")))?;
        // Where each result goes: into the pages of the caches right behind, and to a buffer when anything else reads it.
        let mut sinks: Vec<(usize, Sink, Operand)> = Vec::new();
        let mut places = Vec::new();
        for (port, ty) in graph.types(node).iter().enumerate() {
            let value = ValueId { node, port };
            let mut elsewhere = graph.is_output(value);
            for (user, _) in graph.uses(value) {
                let Some(Core::Cache { path }) = graph.op(user).as_core() else {
                    elsewhere = true;
                    continue;
                };
                let path = join(at, path);
                let Some(slot) = self.caches.slots.get(&path).copied() else { continue };
                let sink = Sink::Cache {
                    group: slot.group,
                    layout: slot.layout,
                    page_tokens: self.target.page_tokens(),
                    page_bytes: slot.page_bytes,
                };
                sinks.push((port, sink, Operand::Cache { group: slot.group, slot: slot.slot }));
            }
            if elsewhere {
                let place = self.new_buffer(ty)?;
                sinks.push((port, Sink::Buffer, Operand::Place(place.clone())));
                places.push(place);
            } else {
                places.push(Place::Nowhere);
            }
        }
        let mut packs = Vec::with_capacity(operands.len());
        for (index, place) in operands.iter().enumerate() {
            packs.push(if let Place::Weight(expr) = place { self.pack_of(&body, index, expr)? } else { Pack::Plain });
        }
        let params: Vec<RowParam> = operands
            .iter()
            .zip(&packs)
            .map(|(place, pack)| match (place, pack) {
                (Place::Selected(_), _) => RowParam::Selected,
                (Place::End { axis, last, .. }, _) => RowParam::End { axis: *axis, last: *last },
                (Place::Weight(_), Pack::Plain) => RowParam::Shared,
                // Where integers are from is nothing to the kernel.
                (Place::Weight(_), Pack::Blocks(blocks)) => {
                    RowParam::Packed(Pack::Blocks(Blocks { stored: false, ..*blocks }))
                }
                (Place::Weight(_), pack) => RowParam::Packed(*pack),
                _ => RowParam::PerRow,
            })
            .collect();
        self.note_tables(&body, &operands);
        let groups = sinks.iter().filter_map(|(_, sink, _)| match sink {
            Sink::Cache { group, .. } => Some(*group),
            Sink::Buffer | Sink::Given => None,
        });
        let groups = groups.collect();
        // Another instance may read a table that is held in another way.
        let is_alike = params.iter().all(|param| !matches!(param, RowParam::Packed(_)));
        let widened = self.widened;
        let spec = || {
            let sinks: Vec<(usize, Sink)> = sinks.iter().map(|(port, sink, _)| (*port, *sink)).collect();
            KernelSpec::Rows(RowsSpec { label: label(&rows.body, &sinks), space, body, params, sinks, widened })
        };
        let kernel = match is_alike {
            true => self.kernel((graph_idx, node), groups, |_| Ok(spec()))?,
            false => self.intern_kernel(spec()),
        };
        let mut list = Vec::new();
        for ((place, value), pack) in operands.into_iter().zip(&values).zip(packs) {
            list.push(match place {
                Place::Weight(expr) => Operand::Weight(self.weights.intern(&expr, graph.ty(*value).dtype, pack)?),
                Place::Buffer { .. } | Place::Selected(_) | Place::End { .. } => Operand::Place(place),
                Place::Cache(_) | Place::CachePart { .. } | Place::Constant { .. } | Place::Nowhere => {
                    return Err(CodegenError::unsupported("a cache read token by token", name));
                }
            });
        }
        list.extend(sinks.into_iter().map(|(_, _, operand)| operand));
        self.launch(name, space, kernel, list);
        Ok(places)
    }

    /// How a weight is held that is parameter `index` of a row body: as a product's matrix, where that is the same and only rows of it are read.
    fn pack_of(&mut self, body: &Graph, index: usize, expr: &WeightExpr) -> Result<Pack, CodegenError> {
        let Some(param) = body.params().get(index) else { return Ok(Pack::Plain) };
        let ty = body.ty(param.value);
        let is_table = ty.dims.len() == 2 && gathered(body, param.value).is_some();
        match expr.blocks() {
            _ if !is_table => Ok(Pack::Plain),
            Some(blocks) => Ok(self.target.pack(DType::Blocks(blocks))),
            None => self.weights.layout_of_table(expr, ty.dtype),
        }
    }
}

fn is_read_once(graph: &Graph, value: Option<ValueId>) -> bool {
    value.is_some_and(|value| graph.uses(value).len() == 1 && !graph.is_output(value))
}

pub(super) fn extra(ty: &Type, outputs: u64, times: u64, name: &str) -> Result<Extra, CodegenError> {
    let per_row = matches!(ty.dims.first(), Some(Dim::Axis(_) | Dim::Rows(_)));
    let fixed: u64 = ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product();
    let rows = if per_row { times } else { 1 };
    if fixed != rows && fixed != rows * outputs || !matches!(ty.dtype, DType::F32 | DType::BF16) {
        return Err(CodegenError::unsupported(format!("an epilogue operand of type {ty}"), name));
    }
    Ok(Extra { dtype: ty.dtype, per_row, per_column: fixed == rows * outputs, per_expert: false })
}

/// A place whose rows are each `times` rows, one after another.
fn rows_within(place: Place, ty: &Type, times: u64, widened: u64, name: &str) -> Result<Place, CodegenError> {
    let has_rows = matches!(ty.dims.first(), Some(Dim::Axis(_) | Dim::Rows(_)));
    match place {
        Place::Buffer { id, column_bytes, row_stride } if times > 1 && has_rows => {
            let elements = stride_of_rows(ty, &row_type(ty)?.1, widened);
            if row_stride != elements || !elements.is_multiple_of(times) {
                return Err(CodegenError::bug("plan", format!("rows with gaps in a product of heads (at `{name}`)")));
            }
            Ok(Place::Buffer { id, column_bytes, row_stride: elements / times })
        }
        place => Ok(place),
    }
}

/// A constant operand of an attention, which broadcasts to `[tokens, heads, visible]`.
fn head_table(place: &Place, dtype: DType, heads: u64) -> Option<Table> {
    let Place::Constant { values, dims } = place else { return None };
    let one_a_head = dims.len() >= 2 && dims[dims.len() - 2] == heads && dims.iter().product::<u64>() == heads;
    let values = match values.len() as u64 {
        1 => values.to_vec(),
        n if n == heads && one_a_head => values.to_vec(),
        _ => return None,
    };
    matches!(dtype, DType::F32 | DType::I64 | DType::Bool).then_some(Table::Heads { dtype, values })
}

/// An operand of an attention that each query brings: `[tokens, 1 | heads, 1]`, or rows that its mask or score gathers from, `[tokens, 1 | heads, n]`.
fn query_table(ty: &Type, space: RowSpace, heads: u64, gathered: bool) -> Option<Table> {
    let (rows, dims) = row_type(ty).ok()?;
    let (by_head, row) = match dims[..] {
        [of, n] if gathered && (of == 1 || of == heads) => (of > 1, Some(n)),
        [1, 1] => (false, None),
        [n, 1] if n == heads => (true, None),
        _ => return None,
    };
    let dtype = ty.dtype;
    let held = rows == space && matches!(dtype, DType::F32 | DType::I64 | DType::Bool);
    held.then_some(Table::Query { dtype, by_head, row })
}

/// Rows of each key that a mask or score gathers from: `[visible, 1 | heads, n]`.
fn key_row(ty: &Type, heads: u64, layout: PageLayout) -> Option<KeyRow> {
    let [_, Dim::Fixed(of), Dim::Fixed(size)] = ty.dims[..] else { return None };
    (of == 1 || of == heads).then_some(KeyRow { size, by_head: of > 1, layout })
}

/// An operand of an attention that its mask or score gathers from.
fn whole_table(place: &Place, dtype: DType) -> Option<Table> {
    match place {
        Place::Constant { values, dims } if matches!(dtype, DType::F32 | DType::I64) => {
            let n = usize::try_from(*dims.first()?).ok()?;
            let values = if values.len() == 1 { vec![values[0]; n] } else { values.to_vec() };
            Some(Table::Constant { dtype, values })
        }
        Place::Weight(_) if matches!(dtype, DType::F32 | DType::BF16) => Some(Table::Weight { dtype }),
        _ => None,
    }
}

/// What a group of rows does, in a few words.
fn label(body: &Graph, sinks: &[(usize, Sink)]) -> String {
    let mut words: Vec<&'static str> = Vec::new();
    for node in body.topological() {
        let word = match body.op(node) {
            Op::Fused(op) => op.name(),
            Op::Core(Core::Gather) => "gather",
            Op::Core(Core::Unary(UnaryOp::Cos | UnaryOp::Sin)) => "angles",
            Op::Core(_) => continue,
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if sinks.iter().any(|(_, sink)| matches!(sink, Sink::Cache { .. })) {
        words.push("cache");
    }
    if words.is_empty() { "map".to_owned() } else { words.join("_") }
}
