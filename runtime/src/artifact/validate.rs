//! Checks every field of a manifest, so that the rest of the runtime can rely on it whoever wrote the file.
//!
//! After [`check`]: indices are in range, names are unique, shapes and sizes do not overflow, views lie inside their arenas, weights
//! have the shape that their sources make, tilings have tiles.

use super::VERSION;
use super::manifest::{Arena, BufferRef, CacheGroup, Cost, DType, Keep, Launch, Manifest, Pack, Step, Weight};
use std::collections::BTreeSet;

type Check<T = ()> = Result<T, String>;

/// Most elements of a tensor, bytes of a row, positions...: products of a few of these still fit into 64 bits.
const MAX_COUNT: u64 = 1 << 40;
/// Most scratch of a worker, in bytes.
const MAX_SCRATCH_BYTES: u64 = 1 << 30;
/// Most shared memory that a launch brings for a block of threads: what GPUs let a block have at most.
const MAX_SHARED_BYTES: u64 = 227 << 10;
/// Most tokens of a page, columns or depth of a panel, tiles of a block, rows of a tile.
const MAX_TILE: u64 = 1 << 24;
/// Most bytes of an element.
const MAX_ELEMENT_BYTES: u64 = 8;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;
/// Most entries of any list of the manifest.
const MAX_LIST: usize = 1 << 20;

/// Checks `manifest`; the error names the field and what is wrong with it.
///
/// # Errors
/// The first violation found.
pub fn check(manifest: &Manifest) -> Check {
    let m = manifest;
    ensure(m.version == VERSION, || format!("version is {}, this runtime reads {VERSION}", m.version))?;
    ensure(!m.target.arch.is_empty() && !m.target.name.is_empty(), || "the target has no name".to_owned())?;
    ensure(!m.axes.is_empty(), || "there is no ragged axis".to_owned())?;
    unique("axis", m.axes.iter())?;
    ensure(m.extents.len() == m.axes.len(), || format!("{} extents for {} axes", m.extents.len(), m.axes.len()))?;
    ensure(m.extents.iter().flatten().all(|n| (1..=MAX_COUNT).contains(n)), || "an extent is out of range".to_owned())?;
    let lists = [
        m.axes.len(),
        m.inputs.len(),
        m.outputs.len(),
        m.weights.len(),
        m.caches.len(),
        m.arenas.len(),
        m.kernels.len(),
        m.launches.len(),
    ];
    ensure(lists.iter().all(|&len| len <= MAX_LIST), || "a list is too long".to_owned())?;
    ensure(m.max_positions.len() == m.axes.len(), || {
        format!("{} limits of positions for {} axes", m.max_positions.len(), m.axes.len())
    })?;
    ensure(m.max_positions.iter().flatten().all(|n| (1..=MAX_COUNT).contains(n)), || {
        "max_positions is out of range".to_owned()
    })?;

    for (i, arena) in m.arenas.iter().enumerate() {
        within(&format!("arena {i}"), || {
            axis(m, arena.axis).and_then(|()| count("bytes_per_row", arena.bytes_per_row, MAX_COUNT))
        })?;
    }
    for weight in &m.weights {
        within(&format!("weight `{}`", weight.name), || check_weight(weight))?;
    }
    for group in &m.caches {
        within(&format!("cache group `{}`", group.name), || check_cache(m, group))?;
    }
    check_inputs_and_outputs(m)?;
    for kernel in &m.kernels {
        ensure(kernel.scratch_bytes <= MAX_SCRATCH_BYTES, || {
            format!("kernel `{}` wants {} bytes of scratch", kernel.name, kernel.scratch_bytes)
        })?;
        ensure(kernel.shared_bytes <= MAX_SHARED_BYTES, || {
            format!("kernel `{}` wants {} bytes of shared memory", kernel.name, kernel.shared_bytes)
        })?;
    }
    check_phases(m)?;
    for launch in &m.launches {
        within(&format!("launch `{}`", launch.name), || check_launch(m, launch))?;
    }
    Ok(())
}

/// The shape that `step` makes of `shape`.
///
/// # Errors
/// The step does not apply to the shape.
pub fn stepped_shape(shape: &[u64], step: &Step) -> Check<Vec<u64>> {
    let in_range = |dim: usize| ensure(dim < shape.len(), || format!("dimension {dim} of {shape:?} does not exist"));
    match step {
        Step::Transpose { perm } => {
            let distinct: BTreeSet<usize> = perm.iter().copied().collect();
            ensure(
                distinct.len() == shape.len() && perm.len() == shape.len() && distinct.iter().all(|&d| d < shape.len()),
                || format!("{perm:?} is not a permutation of the dimensions of {shape:?}"),
            )?;
            Ok(perm.iter().map(|&d| shape[d]).collect())
        }
        Step::Slice { dim, start, len } => {
            in_range(*dim)?;
            let end = start.checked_add(*len).filter(|&end| end <= shape[*dim]);
            ensure(*len > 0 && end.is_some(), || {
                format!("slice {start}, {len} long, is outside of dimension {dim} of {shape:?}")
            })?;
            let mut result = shape.to_vec();
            result[*dim] = *len;
            Ok(result)
        }
        Step::Lead { dim, len } => stepped_shape(shape, &Step::Slice { dim: *dim, start: 0, len: *len }),
        Step::Index { dim, index } => {
            in_range(*dim)?;
            ensure(*index < shape[*dim], || format!("index {index} is outside of dimension {dim} of {shape:?}"))?;
            let mut result = shape.to_vec();
            result.remove(*dim);
            Ok(result)
        }
        Step::Reshape { shape: result } => {
            ensure(elements(result)? == elements(shape)?, || format!("{shape:?} cannot be reshaped to {result:?}"))?;
            Ok(result.clone())
        }
    }
}

/// Elements of a tensor of this shape; 1 without dimensions.
///
/// # Errors
/// A dimension is 0, there are too many, or their product is too large.
pub fn elements(shape: &[u64]) -> Check<u64> {
    ensure(shape.len() <= MAX_DIMS, || format!("shape {shape:?} has more than {MAX_DIMS} dimensions"))?;
    shape
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim).filter(|&product| (1..=MAX_COUNT).contains(&product)))
        .ok_or_else(|| format!("shape {shape:?} is empty or too large"))
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Prefixes what `body` reports with `what`.
fn within(what: &str, body: impl FnOnce() -> Check) -> Check {
    body().map_err(|problem| format!("{what}: {problem}"))
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Check {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure(!name.is_empty() && seen.insert(name), || format!("{what} `{name}` is named twice or not at all"))?;
    }
    Ok(())
}

fn count(what: &str, value: u64, most: u64) -> Check {
    ensure((1..=most).contains(&value), || format!("{what} is {value}, expected 1 to {most}"))
}

fn axis(m: &Manifest, axis: usize) -> Check {
    ensure(axis < m.axes.len(), || format!("axis {axis} of {} does not exist", m.axes.len()))
}

fn check_weight(weight: &Weight) -> Check {
    ensure(weight.split.is_none_or(|d| d < weight.shape.len()), || "is split along a dimension it has not".to_owned())?;
    elements(&weight.shape)?;
    ensure(!weight.sources.is_empty() && weight.sources.len() <= MAX_LIST, || "has no sources".to_owned())?;
    let mut joined: Option<Vec<u64>> = None;
    for source in &weight.sources {
        let place = |problem: String| format!("source `{}`: {problem}", source.path);
        ensure(!source.names.is_empty(), || place("has no name in the checkpoint".to_owned()))?;
        elements(&source.shape).map_err(place)?;
        ensure(source.offset.is_finite(), || place(format!("adds {}", source.offset)))?;
        let mut shape = source.shape.clone();
        for step in &source.steps {
            shape = stepped_shape(&shape, step).map_err(place)?;
            elements(&shape).map_err(place)?;
        }
        joined = Some(match joined {
            None => shape,
            Some(before) => {
                let fits = !before.is_empty() && before.len() == shape.len() && before[1..] == shape[1..];
                ensure(fits, || place(format!("{shape:?} cannot be joined to {before:?}")))?;
                let mut after = before;
                after[0] = after[0]
                    .checked_add(shape[0])
                    .filter(|&n| n <= MAX_COUNT)
                    .ok_or_else(|| place("is too large".to_owned()))?;
                after
            }
        });
    }
    ensure(joined.as_ref() == Some(&weight.shape), || {
        format!("its sources make {:?}, expected {:?}", joined.unwrap_or_default(), weight.shape)
    })?;
    ensure(!matches!(weight.dtype, DType::Bool), || "weights of booleans are not supported".to_owned())?;
    packed_bytes(weight).map(|_| ())
}

/// Bytes of the packed form of a weight, padding included.
///
/// # Errors
/// The layout does not suit the shape, or is too large.
pub fn packed_bytes(weight: &Weight) -> Check<u64> {
    let shape = &weight.shape[..];
    let whole = match weight.pack {
        Pack::Plain => elements(shape),
        Pack::Blocks(blocks) => {
            count("columns", blocks.columns, MAX_TILE)?;
            count("group", blocks.group, MAX_TILE)?;
            ensure(matches!(blocks.bits, 4 | 8) && blocks.group.is_multiple_of(8), || {
                format!(
                    "groups of {} integers of {} bits, expected a multiple of 8, of 4 or 8",
                    blocks.group, blocks.bits
                )
            })?;
            if let Some(depth) = blocks.floats {
                count("depth", depth, MAX_TILE)?;
                ensure(blocks.bits == 8 && !blocks.minimum && blocks.group.is_multiple_of(depth), || {
                    format!("groups of {} floats of 8 bits, {depth} of them side by side", blocks.group)
                })?;
            }
            ensure(weight.dtype == DType::F32 || weight.dtype == DType::BF16, || {
                format!("integers made of {:?}, expected of f32 or bf16", weight.dtype)
            })?;
            let [lead @ .., outputs, inputs] = shape else {
                return Err(format!("panels need a matrix, the shape is {shape:?}"));
            };
            elements(shape)?;
            let panels = elements(&[lead, &[outputs.div_ceil(blocks.columns)]].concat())?;
            return elements(&[panels, inputs.div_ceil(blocks.group), blocks.group_bytes()]);
        }
        Pack::Panels { columns, depth } => {
            count("columns", columns, MAX_TILE)?;
            count("depth", depth, MAX_TILE)?;
            let [lead @ .., outputs, inputs] = shape else {
                return Err(format!("panels need a matrix, the shape is {shape:?}"));
            };
            let whole = [outputs.next_multiple_of(columns), inputs.next_multiple_of(depth)];
            elements(&[lead, &whole[..]].concat())
        }
    };
    whole?.checked_mul(weight.dtype.size_bytes() as u64).ok_or_else(|| "is too large".to_owned())
}

fn check_cache(m: &Manifest, group: &CacheGroup) -> Check {
    axis(m, group.axis)?;
    count("page_tokens", group.page_tokens, MAX_TILE)?;
    if let Keep::Window(tokens) = group.keep {
        count("the window", tokens, MAX_COUNT)?;
    }
    ensure(group.keep != Keep::Once || group.axis != 0, || {
        "is complete, but the first axis grows with every step".to_owned()
    })?;
    ensure(group.keep != Keep::State || group.page_tokens == 1, || "is a state of several tokens".to_owned())?;
    ensure(group.slots.len() <= MAX_LIST, || "has too many slots".to_owned())?;
    for slot in &group.slots {
        let place = |problem: String| format!("slot `{}`: {problem}", slot.path);
        count("page_bytes", slot.page_bytes, MAX_COUNT).map_err(place)?;
        ensure(slot.page_bytes % 64 == 0, || {
            place(format!("page_bytes is {}, expected a multiple of 64", slot.page_bytes))
        })?;
        let needed = slot.token_bytes.checked_mul(group.page_tokens);
        ensure(needed.is_some_and(|bytes| bytes <= slot.page_bytes), || {
            place(format!(
                "{} tokens of {} bytes do not fit into a page of {}",
                group.page_tokens, slot.token_bytes, slot.page_bytes
            ))
        })?;
        ensure(slot.alias.is_none() || group.keep == Keep::Step, || {
            place("shares memory but is kept beyond a step".to_owned())
        })?;
    }
    Ok(())
}

fn check_inputs_and_outputs(m: &Manifest) -> Check {
    unique("input", m.inputs.iter().map(|input| &input.name))?;
    unique("output", m.outputs.iter().map(|output| &output.name))?;
    for input in &m.inputs {
        within(&format!("input `{}`", input.name), || {
            ensure(input.default.is_none_or(f64::is_finite), || "its default is not a number".to_owned())?;
            ensure(input.limit.is_none_or(|limit| (1..=i64::MAX as u64).contains(&limit)), || {
                "its limit is out of range".to_owned()
            })?;
            whole_rows(m, input.buffer, input.axis, Rows::All, input.dtype, &input.dims)
        })?;
    }
    for output in &m.outputs {
        let rows = if output.rows { Rows::Selected } else { Rows::All };
        within(&format!("output `{}`", output.name), || {
            whole_rows(m, output.buffer, output.axis, rows, output.dtype, &output.dims)
        })?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    All,
    Selected,
}

/// `buffer` is a view of an arena of that axis and kind of rows, whose rows hold `dims` elements of `dtype`, aligned.
fn whole_rows(m: &Manifest, buffer: BufferRef, of_axis: usize, rows: Rows, dtype: DType, dims: &[u64]) -> Check {
    axis(m, of_axis)?;
    let size = dtype.size_bytes() as u64;
    let row_bytes = elements(dims)?.checked_mul(size).ok_or("a row is too large")?;
    let BufferRef::Arena { arena, offset, column, row_stride, element_bytes } = buffer else {
        return Err("does not lie in an arena".to_owned());
    };
    ensure(element_bytes == size, || format!("elements of {element_bytes} bytes, expected {size}"))?;
    let home = view(m, arena, offset, column, row_stride)?;
    ensure(home.axis == of_axis && home.rows == (rows == Rows::Selected), || {
        format!("arena {arena} has rows of another kind")
    })?;
    let stride_bytes = row_stride.checked_mul(size).ok_or("row_stride is too large")?;
    ensure(column.checked_add(row_bytes).is_some_and(|end| end <= stride_bytes), || {
        format!("{row_bytes} bytes at column {column} do not fit into rows of {stride_bytes}")
    })?;
    ensure(offset.checked_add(stride_bytes).is_some_and(|end| end <= home.bytes_per_row), || {
        format!("rows of {stride_bytes} bytes at {offset} do not fit into {} bytes a row", home.bytes_per_row)
    })?;
    ensure(column % size == 0, || format!("column {column} is not a multiple of the element's {size} bytes"))
}

/// A view of an arena begins inside it, whatever its element type.
fn view(m: &Manifest, arena: usize, offset: u64, column: u64, row_stride: u64) -> Check<&Arena> {
    let home = m.arenas.get(arena).ok_or_else(|| format!("arena {arena} of {} does not exist", m.arenas.len()))?;
    count("row_stride", row_stride, MAX_COUNT)?;
    let inside = |end: Option<u64>| end.is_some_and(|end| end <= home.bytes_per_row);
    // An element has at least one byte; where the type is known, the caller checks exactly.
    ensure(inside(offset.checked_add(row_stride)) && inside(offset.checked_add(column)), || {
        format!(
            "rows of {row_stride} elements at {offset}, column {column}, do not fit into {} bytes a row",
            home.bytes_per_row
        )
    })?;
    Ok(home)
}

/// Whether the rows of a launch lie inside those of the arena: `times` for each element, and of another axis only where the numbers of both
/// are known, or there is one a sequence.
fn fits_within(m: &Manifest, launch: &Launch, home: &Arena, offset: u64, row_bytes: Option<u64>) -> bool {
    let (rows, homes) = match (m.extents[launch.axis], m.extents[home.axis]) {
        _ if launch.axis == home.axis => (1, 1),
        (Some(rows), Some(homes)) => (rows, homes),
        // A sequence of a step may have none of the others; the one row is then read from where the arena has room.
        (Some(1), None) => (1, 1),
        _ => return false,
    };
    let used = row_bytes.and_then(|n| n.checked_mul(launch.times)).and_then(|n| n.checked_mul(rows));
    let room = home.bytes_per_row.checked_sub(offset).and_then(|n| n.checked_mul(homes));
    used.zip(room).is_some_and(|(used, room)| used <= room)
}

fn check_phases(m: &Manifest) -> Check {
    let Some((last, before)) = m.phases.split_last() else { return Err("there is no phase".to_owned()) };
    ensure(last.max_rows.is_none(), || "the last phase has a limit on its rows".to_owned())?;
    let mut least = 0;
    for phase in before {
        let rows = phase.max_rows.filter(|&rows| rows > least);
        least = rows.ok_or_else(|| format!("phase `{}` is not in ascending order of rows", phase.name))?;
    }
    Ok(())
}

fn check_launch(m: &Manifest, launch: &Launch) -> Check {
    axis(m, launch.axis)?;
    count("times", launch.times, MAX_COUNT)?;
    ensure(launch.variants.len() == m.phases.len(), || {
        format!("has {} variants for {} phases", launch.variants.len(), m.phases.len())
    })?;
    for variant in &launch.variants {
        ensure(variant.kernel < m.kernels.len(), || {
            format!("kernel {} of {} does not exist", variant.kernel, m.kernels.len())
        })?;
        count("rows_per_tile", variant.rows_per_tile, MAX_COUNT)?;
        count("tiles_per_block", variant.tiles_per_block, MAX_TILE)?;
    }
    ensure(launch.collective.is_none(), || {
        "is followed by a step of several devices; this runtime has one".to_owned()
    })?;
    ensure(launch.operands.len() <= MAX_LIST, || "has too many operands".to_owned())?;
    for operand in &launch.operands {
        match *operand {
            BufferRef::Arena { arena, offset, column, row_stride, element_bytes } => {
                let home = view(m, arena, offset, column, row_stride)?;
                count("element_bytes", element_bytes, MAX_ELEMENT_BYTES)?;
                let row_bytes = row_stride.checked_mul(element_bytes);
                ensure(fits_within(m, launch, home, offset, row_bytes), || {
                    format!("its rows at {offset} do not fit into those of arena {arena}")
                })?;
            }
            BufferRef::Weight(weight) => {
                ensure(weight < m.weights.len(), || format!("weight {weight} of {} does not exist", m.weights.len()))?;
            }
            BufferRef::Cache { group, slot } => {
                let exists = m.caches.get(group).is_some_and(|group| slot < group.slots.len());
                ensure(exists, || format!("slot {slot} of cache group {group} does not exist"))?;
            }
        }
    }
    launch.cost.as_ref().map_or(Ok(()), |cost| check_cost(m, launch, cost))
}

/// A cost counts no more than the launch's operands hold, and nothing overflows when it is multiplied by rows.
fn check_cost(m: &Manifest, launch: &Launch, cost: &Cost) -> Check {
    let sum = |bytes: &dyn Fn(BufferRef) -> u64| launch.operands.iter().fold(0u64, |n, o| n.saturating_add(bytes(*o)));
    let weights = sum(&|operand| match operand {
        BufferRef::Weight(w) => m.weights[w].stored_bytes(),
        BufferRef::Arena { .. } | BufferRef::Cache { .. } => 0,
    });
    let kept = sum(&|operand| match operand {
        BufferRef::Cache { group, slot } => m.caches[group].slots[slot].token_bytes,
        BufferRef::Arena { .. } | BufferRef::Weight(_) => 0,
    });
    let counts = [cost.weight_bytes, cost.row_weight_bytes, cost.row_bytes, cost.row_flops];
    ensure(counts.iter().all(|&n| n <= MAX_COUNT), || "its cost is out of range".to_owned())?;
    ensure(cost.weight_bytes <= weights, || {
        format!("its cost counts {} bytes of weights, its operands hold {weights}", cost.weight_bytes)
    })?;
    if let Some(chosen) = &cost.chosen {
        ensure(chosen.bytes.checked_mul(chosen.of).is_some_and(|n| n <= weights) && chosen.each <= MAX_COUNT, || {
            format!("its cost chooses among {} times {} bytes, its operands hold {weights}", chosen.of, chosen.bytes)
        })?;
    }
    ensure(cost.row_weight_bytes == 0 || weights > 0, || "its cost counts rows of a table it has not".to_owned())?;
    let Some(attention) = &cost.attention else { return Ok(()) };
    axis(m, attention.axis)?;
    ensure(attention.window.is_none_or(|n| n <= MAX_COUNT) && attention.pair_flops <= MAX_COUNT, || {
        "the cost of its attention is out of range".to_owned()
    })?;
    ensure(attention.key_bytes <= kept, || {
        format!("its cost counts {} bytes a key, its caches hold {kept}", attention.key_bytes)
    })
}
