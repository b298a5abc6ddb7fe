//! What a kernel has to read and multiply, from its specification alone: the limit that measuring holds it to.
//!
//! Given a specification, promises counts that no implementation can be below: each weight once a launch, each key and value once a step,
//! two operations for each weight and row. Padding, scratch and recomputation are the kernel's own affair and not counted.

use std::collections::BTreeMap;

use xfc_lang::graph::{DType, Dim, Graph, Type, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::shape::ContractSpec;
use xfc_runtime::artifact::manifest::{AttentionCost, CacheGroup, ChosenCost, Cost, Pack, Products};

use super::kernel::{
    AttentionSpec, Experts, KernelSpec, LinearSpec, RowParam, RowsSpec, ScanOperand, ScanSpec, Sink, Table, dtype_bytes,
};

/// The cost of one launch of a kernel of a plan with these cache groups.
pub fn cost(spec: &KernelSpec, caches: &[CacheGroup]) -> Cost {
    match spec {
        KernelSpec::Linear(spec) => linear(spec),
        // Keys may be of another axis than queries: of a source.
        KernelSpec::Attention(spec) => attention(spec, caches.get(spec.group).map_or(spec.axis, |group| group.axis)),
        // Results are counted where they are made.
        KernelSpec::Combine(_) => Cost::default(),
        KernelSpec::Rows(spec) => rows(spec),
        KernelSpec::Scan(spec) => scan(spec),
    }
}

/// Bytes of values that a launch writes for each of its rows: of the `row_bytes` of its cost, those that are not read.
pub fn written_row_bytes(spec: &KernelSpec) -> u64 {
    match spec {
        KernelSpec::Linear(spec) => spec.heads * spec.outputs * dtype_bytes(spec.result) * spec.times,
        KernelSpec::Attention(spec) => spec.heads * spec.value_dim * dtype_bytes(spec.result),
        KernelSpec::Combine(_) => 0,
        KernelSpec::Rows(spec) => {
            let outputs = spec.body.outputs();
            let bytes = |(output, sink): &(usize, Sink)| {
                outputs.get(*output).map_or(0, |o| stored_bytes(spec.body.ty(o.value), *sink))
            };
            spec.sinks.iter().map(bytes).sum()
        }
        KernelSpec::Scan(spec) => {
            let results = spec.step.outputs().iter().zip(&spec.outputs).skip(spec.states);
            let parts = |divided: &Option<usize>| if divided.is_some() { spec.parts } else { 1 };
            results.map(|(output, divided)| fixed_bytes(spec.step.ty(output.value)) * parts(divided)).sum()
        }
    }
}

fn linear(spec: &LinearSpec) -> Cost {
    if let Some(experts) = spec.experts {
        return expert_linear(spec, experts);
    }
    let weights = spec.heads * spec.inputs * spec.outputs * spec.parts as u64;
    let (mut weight_bytes, mut row_bytes) = (matrix_bytes(spec) * spec.heads, 0);
    for extra in &spec.extras {
        let bytes = dtype_bytes(extra.dtype) * if extra.per_column { spec.outputs } else { 1 };
        *(if extra.per_row { &mut row_bytes } else { &mut weight_bytes }) += bytes;
    }
    row_bytes += spec.heads * (input_bytes(spec) + spec.outputs * dtype_bytes(spec.result));
    Cost {
        weight_bytes,
        row_bytes: row_bytes * spec.times,
        row_flops: 2 * weights * spec.times,
        products: Some(products_of(spec.operand)),
        ..Cost::default()
    }
}

/// The width of products of such operands.
fn products_of(dtype: DType) -> Products {
    match dtype {
        DType::F16 | DType::BF16 => Products::Half,
        // Widened to bf16.
        DType::Blocks(blocks) if blocks.is_weights() && blocks.form.is_float() => Products::Half,
        DType::Blocks(blocks) if !blocks.is_kept() => Products::Byte,
        // What is kept in 8 bits is widened to f32.
        DType::Blocks(_) | DType::F32 | DType::I64 | DType::I32 | DType::Bool => Products::Single,
    }
}

/// Bytes of the matrices of all parts of a product, of one head or expert.
fn matrix_bytes(spec: &LinearSpec) -> u64 {
    let of_row = match spec.operand {
        DType::Blocks(blocks) => blocks.row_bytes(spec.inputs),
        operand => spec.inputs * dtype_bytes(operand),
    };
    spec.outputs * spec.parts as u64 * of_row
}

/// Bytes of a row of inputs.
fn input_bytes(spec: &LinearSpec) -> u64 {
    let brought = match spec.operand {
        DType::Blocks(blocks) => blocks.of_tokens(),
        operand => operand,
    };
    match brought {
        DType::Blocks(tokens) => tokens.row_bytes(spec.inputs),
        brought => spec.inputs * dtype_bytes(brought),
    }
}

/// Rows are choices: as many for each row of the launch as experts are chosen.
fn expert_linear(spec: &LinearSpec, experts: Experts) -> Cost {
    let one = Cost {
        weight_bytes: 0,
        row_bytes: 0,
        ..linear(&LinearSpec { experts: None, extras: Vec::new(), times: 1, ..spec.clone() })
    };
    let mut cost = Cost { row_flops: one.row_flops * experts.chosen, ..one };
    let mut of_expert = matrix_bytes(spec);
    for extra in &spec.extras {
        let bytes = dtype_bytes(extra.dtype) * if extra.per_column { spec.outputs } else { 1 };
        match (extra.per_expert, extra.per_row) {
            (true, _) => of_expert += bytes,
            (false, true) => cost.row_bytes += bytes * experts.chosen,
            (false, false) => cost.weight_bytes += bytes,
        }
    }
    let rows_of_x = if experts.by_choice { experts.chosen } else { 1 };
    cost.row_bytes += rows_of_x * input_bytes(spec)
        + experts.chosen * (spec.outputs * dtype_bytes(spec.result) + dtype_bytes(DType::I64));
    Cost { chosen: Some(ChosenCost { of: experts.count, each: experts.chosen, bytes: of_expert }), ..cost }
}

fn attention(spec: &AttentionSpec, key_axis: usize) -> Cost {
    let queries = spec.heads * spec.key_dim * dtype_bytes(spec.query);
    let results = spec.heads * spec.value_dim * dtype_bytes(spec.result);
    // Rows that scores gather from: those of queries are read for each, those of keys with the keys.
    let (mut query_rows, mut key_rows) = (0, 0);
    for table in &spec.tables {
        match table {
            Table::Query { dtype, by_head, row: Some(n) } => {
                query_rows += n * dtype_bytes(*dtype) * if *by_head { spec.heads } else { 1 };
            }
            Table::Key { dtype, row: Some(row), .. } => {
                key_rows += row.size * dtype_bytes(*dtype) * if row.by_head { spec.heads } else { 1 };
            }
            _ => {}
        }
    }
    Cost {
        row_bytes: queries + results + query_rows,
        products: Some(products_of(spec.kept)),
        attention: Some(AttentionCost {
            axis: key_axis,
            window: spec.reach.window,
            future: spec.reach.future,
            // Values that lie in the keys are read once.
            key_bytes: spec.kv_heads
                * (spec.keys().token_bytes()
                    + if spec.value_in_key.is_some() { 0 } else { spec.values().token_bytes() })
                + key_rows,
            pair_flops: 2 * spec.heads * (spec.key_dim + spec.value_dim),
        }),
        ..Cost::default()
    }
}

fn rows(spec: &RowsSpec) -> Cost {
    let mut cost = Cost::default();
    for (read, param) in spec.params.iter().zip(spec.body.params()) {
        let ty = spec.body.ty(param.value);
        match (read, gathered(&spec.body, param.value)) {
            (RowParam::Packed(Pack::Blocks(blocks)), Some(row_bytes)) => {
                let inputs = ty.dims.last().and_then(|dim| dim.fixed()).unwrap_or(1);
                let rows = row_bytes / (inputs * dtype_bytes(ty.dtype)).max(1);
                cost.row_weight_bytes += rows * blocks.row_bytes(inputs);
            }
            (RowParam::Shared | RowParam::Packed(_), Some(row_bytes)) => cost.row_weight_bytes += row_bytes,
            (RowParam::Shared | RowParam::Packed(_), None) => cost.weight_bytes += fixed_bytes(ty),
            (RowParam::PerRow | RowParam::Selected | RowParam::End { .. }, _) => cost.row_bytes += fixed_bytes(ty),
        }
    }
    for node in spec.body.nodes() {
        let operands: Vec<&Type> = spec.body.operands(node).into_iter().map(|v| spec.body.ty(v)).collect();
        let (Some(Core::Contract { spec }), [a, _]) = (spec.body.op(node).as_core(), &operands[..]) else { continue };
        cost.row_flops += product_flops(spec, &operands);
        cost.products = Some(products_of(a.dtype));
    }
    let outputs = spec.body.outputs();
    for (output, sink) in &spec.sinks {
        // One write each.
        cost.row_bytes += outputs.get(*output).map_or(0, |o| stored_bytes(spec.body.ty(o.value), *sink));
    }
    cost
}

/// Operations of a sum of products of a row.
fn product_flops(spec: &str, operands: &[&Type]) -> u64 {
    let Ok(spec) = ContractSpec::parse(spec) else { return 0 };
    let labels = [&spec.a, &spec.b].into_iter().zip(operands).flat_map(|(labels, ty)| labels.iter().zip(&ty.dims));
    let sizes: BTreeMap<char, u64> = labels.map(|(label, dim)| (*label, dim.fixed().unwrap_or(1))).collect();
    if spec.summed().is_empty() { 0 } else { 2 * sizes.values().product::<u64>() }
}

/// States are not counted: they are read and written once a sequence and step, which is nothing that follows from rows.
fn scan(spec: &ScanSpec) -> Cost {
    let whole = |ty: &Type, divided: Option<usize>| fixed_bytes(ty) * if divided.is_some() { spec.parts } else { 1 };
    let mut cost = Cost::default();
    for ((operand, divided), param) in spec.params.iter().zip(spec.step.params()) {
        let bytes = whole(spec.step.ty(param.value), *divided);
        match operand {
            ScanOperand::Token => cost.row_bytes += bytes,
            ScanOperand::Shared => cost.weight_bytes += bytes,
            ScanOperand::Constant(_) => {}
        }
    }
    for (output, divided) in spec.step.outputs().iter().zip(&spec.outputs).skip(spec.states) {
        cost.row_bytes += whole(spec.step.ty(output.value), *divided);
    }
    cost
}

/// Bytes a row that gathers read of a table, when nothing else reads it.
pub(super) fn gathered(body: &Graph, table: ValueId) -> Option<u64> {
    if body.is_output(table) {
        return None;
    }
    let mut bytes = None;
    for (user, operand) in body.uses(table) {
        if !matches!(body.op(user).as_core(), Some(Core::Gather)) || operand != 0 {
            return None;
        }
        *bytes.get_or_insert(0) += fixed_bytes(body.ty(ValueId { node: user, port: 0 }));
    }
    bytes
}

/// Bytes of one row of a type where it is stored: in pages with the scales of its groups.
fn stored_bytes(ty: &Type, sink: Sink) -> u64 {
    match (sink, ty.dtype.blocks(), ty.dims.split_last()) {
        (Sink::Cache { .. }, Some(blocks), Some((Dim::Fixed(last), lead))) if blocks.is_kept() => {
            let rows: u64 = lead.iter().filter_map(|d| d.fixed()).product();
            rows * blocks.row_bytes(*last)
        }
        (Sink::Buffer | Sink::Given | Sink::Cache { .. }, ..) => fixed_bytes(ty),
    }
}

/// Bytes of one row of a type, or of all of it where it has no rows.
fn fixed_bytes(ty: &Type) -> u64 {
    let elements: u64 = ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product();
    elements * dtype_bytes(ty.dtype)
}
