//! Finds the stored tensor of a parameter however a checkpoint encodes it: as plain numbers, as numbers of few bits with scales beside them, or
//! in blocks that hold their scales.
//!
//! ```text
//! NAME                             plain numbers, or blocks
//! NAME (8 bits), NAME_scale_inv    a factor for each block of elements; NAME_scale says the same; one alone, one a row, or a grid of blocks
//! NAME (I8), NAME_scale, NAME_zero_point                               the same for each group of inputs, with a zero
//! NAME_blocks, NAME_scales         pairs of 4 bits in blocks along the last dimension but one of NAME, whose last two are exchanged
//! NAME_packed, NAME_scale, NAME_shape, [NAME_zero_point, NAME_g_idx]   integers in words along inputs
//! PATH.qweight, PATH.scales, PATH.qzeros, [PATH.g_idx]                 PATH.weight as integers in words along inputs, or along outputs
//! ```
//!
//! What the encodings are is told by types, names and shapes; the sizes of blocks and groups, where a grid leaves them open, and whether zeros are
//! stored as they are, by config.json.

use super::blocks::{self, BlockFormat};
use super::checkpoint::{Stored, Tensor};
use super::convert::{Numbers, is_supported};
use super::lens::Lens;
use super::pack::Found;
use super::scaled::{Blocks, Code, MAX_RANK, ScaleCode, Scaled};
use super::words;
use crate::artifact::manifest::{Source, Step};
use crate::gguf::Encoding;
use safetensors::Dtype;

/// Suffixes of the scales of a tensor of 8 bits. All multiply, `inv` names the inverse of what the numbers were multiplied by before.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Elements of a block and a dimension, where a grid of scales fits it and nothing else is said.
pub(super) const USUAL_BLOCK: u64 = 128;

/// The tensor of `source`, if it is there, or what is wrong with it. The manifest was validated, so that the steps apply.
pub(super) fn take<'a>(stored: &'a Stored, source: &Source) -> Option<Result<Found<'a>, String>> {
    source.names.iter().find_map(|name| {
        let beside = |suffix: &str| stored.tensor(&format!("{name}{suffix}"));
        if let Some(tensor) = stored.tensor(name) {
            return Some(match beside("_zero_point") {
                Some(zeros) if tensor.dtype() == Some(Dtype::I8) => words::bytes(stored, name, (tensor, zeros), source),
                _ => whole(stored, name, tensor, source),
            });
        }
        if let Some(blocks) = beside("_blocks") {
            return Some(pairs(stored, name, blocks, source));
        }
        if let Some(packed) = beside("_packed") {
            return Some(words::rows(stored, name, packed, source));
        }
        let path = name.strip_suffix("weight")?;
        Some(words::columns(stored, path, stored.tensor(&format!("{path}qweight"))?, source))
    })
}

/// The names under which `take` reads a tensor called `name`, and those of what belongs to it and changes no number: how finely a runtime
/// that multiplies in 8 bits rounds what it multiplies with.
pub(super) fn names_read(stored: &Stored, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    match stored.tensor(name) {
        Some(tensor) if tensor.dtype().is_some_and(|dtype| Code::of(dtype).is_some()) => {
            names.extend(SCALES.iter().chain(&["_zero_point"]).map(|suffix| format!("{name}{suffix}")));
            names.extend(name.strip_suffix("weight").map(|path| format!("{path}input_scale")));
        }
        Some(_) => {}
        None => {
            names.extend(["_blocks", "_scales"].map(|suffix| format!("{name}{suffix}")));
            let words = ["_packed", "_scale", "_shape", "_zero_point", "_g_idx"];
            names.extend(words.map(|suffix| format!("{name}{suffix}")));
            let path = name.strip_suffix("weight").into_iter();
            names.extend(path.flat_map(|path| {
                ["qweight", "scales", "qzeros", "g_idx", "input_scale"].map(|of| format!("{path}{of}"))
            }));
        }
    }
    names
}

/// Whether the source may be a tensor that has more elements of a dimension, of which the first are read.
fn leads(source: &Source, at: usize) -> bool {
    source.steps.iter().any(|step| matches!(step, Step::Lead { dim, .. } if *dim == at))
}

/// Whether the steps apply to a tensor of this shape.
pub(super) fn admits(source: &Source, shape: &[u64]) -> bool {
    let fits = |(at, (have, want)): (usize, (&u64, &u64))| have == want || have > want && leads(source, at);
    shape.len() == source.shape.len() && shape.iter().zip(&source.shape).enumerate().all(fits)
}

/// The shapes that [`admits`] takes, as text: `[8 or more, 4]`.
pub(super) fn expected(source: &Source) -> String {
    let dims = source.shape.iter().enumerate();
    let dims = dims.map(|(at, n)| if leads(source, at) { format!("{n} or more") } else { n.to_string() });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}

/// The tensor of this name and shape, where more of it is stored than is read.
pub(super) fn larger(source: &Source, name: &str, shape: &[u64]) -> Option<(String, Vec<u64>)> {
    (shape != source.shape).then(|| (name.to_owned(), shape.to_vec()))
}

/// A tensor with the parameter's own name.
fn whole<'a>(stored: &'a Stored, name: &str, tensor: &'a Tensor, source: &Source) -> Result<Found<'a>, String> {
    if !admits(source, &tensor.shape) {
        return Err(format!("`{name}`: shape {:?}, expected {}", tensor.shape, expected(source)));
    }
    let bytes = stored.bytes(tensor);
    let lens = Lens::new(&tensor.shape, &source.steps)?;
    let larger = larger(source, name, &tensor.shape);
    let offset = source.offset;
    let dtype = match tensor.encoding {
        Encoding::Plain(dtype) if is_supported(dtype) => {
            return Ok(Found { numbers: Numbers::Stored(dtype, bytes), lens, offset, larger });
        }
        Encoding::Blocks(format) => {
            return Ok(Found { numbers: Numbers::Blocks(blocks::Blocks::new(format, bytes)), lens, offset, larger });
        }
        Encoding::Plain(dtype) => dtype,
        Encoding::Unread(encoding) => {
            let read: Vec<&str> = BlockFormat::ALL.map(BlockFormat::name).to_vec();
            return Err(format!("`{name}`: stored as {encoding}, expected F32, F16, BF16, {}", read.join(", ")));
        }
    };
    let code = Code::of(dtype).ok_or_else(|| {
        format!("`{name}`: stored as {dtype:?}, expected F64, F32, F16, BF16, I64, I32, F8_E4M3, F8_E5M2 or I8")
    })?;
    let found = SCALES.iter().map(|suffix| format!("{name}{suffix}")).find_map(|n| Some((stored.tensor(&n)?, n)));
    let (scales, scales_name) =
        found.ok_or_else(|| format!("`{name}`: stored as {dtype:?}, and there is no `{name}_scale_inv`"))?;
    let grid = grid(&tensor.shape, &scales.shape, stored.weight_block()).ok_or_else(|| {
        format!("`{scales_name}`: shape {:?}, which is no grid of scales for {:?}", scales.shape, tensor.shape)
    })?;
    let scaled = Scaled::new((code, bytes), scale_bytes(stored, &scales_name, scales)?, &grid);
    let numbers = Numbers::Scaled(scaled.ok_or_else(|| too_many(name, &tensor.shape))?);
    Ok(Found { numbers, lens, offset, larger })
}

/// Pairs of numbers of 4 bits, `[.., rows, groups, bytes]`, with a scale for each group.
fn pairs<'a>(stored: &'a Stored, name: &str, blocks: &'a Tensor, source: &Source) -> Result<Found<'a>, String> {
    let scales_name = format!("{name}_scales");
    let scales = stored.tensor(&scales_name).ok_or_else(|| format!("`{scales_name}`: missing"))?;
    let wrong = || {
        format!(
            "`{name}_blocks`: {} of shape {:?}, expected U8 [.., rows, groups, bytes]",
            shown(blocks.encoding),
            blocks.shape
        )
    };
    let [lead @ .., rows, groups, bytes] = blocks.shape.as_slice() else { return Err(wrong()) };
    if blocks.dtype() != Some(Dtype::U8) || *groups == 0 || *bytes == 0 {
        return Err(wrong());
    }
    let expected_scales = [lead, &[*rows, *groups]].concat();
    if scales.shape != expected_scales {
        return Err(format!("`{scales_name}`: shape {:?}, expected {expected_scales:?}", scales.shape));
    }
    let block = bytes.checked_mul(2).ok_or_else(wrong)?;
    let columns = groups.checked_mul(block).ok_or_else(wrong)?;
    let published = [lead, &[columns, *rows]].concat();
    if !admits(source, &published) {
        return Err(format!("`{name}_blocks`: holds {published:?}, expected {}", expected(source)));
    }
    let stored_shape = [lead, &[*rows, columns]].concat();
    let each = |&size: &u64| Blocks { size, block: 1 };
    let dims: Vec<Blocks> = lead.iter().chain([rows]).map(each).chain([Blocks { size: columns, block }]).collect();
    let scaled = Scaled::new((Code::E2M1, stored.bytes(blocks)), scale_bytes(stored, &scales_name, scales)?, &dims);
    let n = lead.len();
    let exchange = Step::Transpose { perm: (0..n).chain([n + 1, n]).collect() };
    let steps: Vec<Step> = std::iter::once(exchange).chain(source.steps.iter().cloned()).collect();
    let lens = Lens::new(&stored_shape, &steps)?;
    let larger = larger(source, name, &published);
    let numbers = Numbers::Scaled(scaled.ok_or_else(|| too_many(name, &stored_shape))?);
    Ok(Found { numbers, lens, offset: source.offset, larger })
}

pub(super) fn scale_bytes<'a>(
    stored: &'a Stored,
    name: &str,
    scales: &'a Tensor,
) -> Result<(ScaleCode, &'a [u8]), String> {
    let code = scales.dtype().and_then(ScaleCode::of);
    let wrong = || format!("`{name}`: stored as {}, expected scales of floats or U8", shown(scales.encoding));
    let code = code.ok_or_else(wrong)?;
    Ok((code, stored.bytes(scales)))
}

/// The name of an encoding, for messages.
pub(super) fn shown(encoding: Encoding) -> String {
    match encoding {
        Encoding::Plain(dtype) => format!("{dtype:?}"),
        Encoding::Blocks(format) => format.name().to_owned(),
        Encoding::Unread(name) => name.to_owned(),
    }
}

fn too_many(name: &str, shape: &[u64]) -> String {
    format!("`{name}`: {} dimensions, at most {MAX_RANK} may have scales", shape.len())
}

/// The blocks of a tensor of this shape, from the shape of its scales: one for all, one for each index of the first dimension, or a grid.
fn grid(shape: &[u64], scales: &[u64], block: Option<&[u64]>) -> Option<Vec<Blocks>> {
    let counts: Vec<u64> = match scales {
        scales if scales.iter().product::<u64>() == 1 => vec![1; shape.len()],
        &[rows] if shape.first() == Some(&rows) => {
            std::iter::once(rows).chain(std::iter::repeat_n(1, shape.len() - 1)).collect()
        }
        scales => scales.to_vec(),
    };
    if counts.len() != shape.len() || shape.contains(&0) {
        return None;
    }
    // The sizes that config.json says are those of the last dimensions.
    let said = |dim: usize| {
        let block = block?;
        block.get((dim + block.len()).checked_sub(shape.len())?).copied()
    };
    let of = |(dim, (&size, &n)): (usize, (&u64, &u64))| {
        let fits = |block: &u64| *block > 0 && size.div_ceil(*block) == n;
        let whole = n > 0 && size.is_multiple_of(n);
        let even = whole.then(|| size / n);
        let block = match n {
            1 => Some(size),
            n if n == size => Some(1),
            _ => said(dim).filter(fits).or(Some(USUAL_BLOCK).filter(fits)).or(even),
        };
        block.map(|block| Blocks { size, block })
    };
    shape.iter().zip(&counts).enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_of_scales_say_their_blocks() {
        let of = |shape: &[u64], scales: &[u64], said: Option<&[u64]>| {
            grid(shape, scales, said).map(|dims| dims.iter().map(|dim| dim.block).collect::<Vec<_>>())
        };
        assert_eq!(of(&[300, 200], &[], None), Some(vec![300, 200]));
        assert_eq!(of(&[300, 200], &[1], None), Some(vec![300, 200]));
        assert_eq!(of(&[300, 200], &[300], None), Some(vec![1, 200]));
        assert_eq!(of(&[300, 200], &[300, 1], None), Some(vec![1, 200]));
        assert_eq!(of(&[300, 200], &[3, 2], None), Some(vec![128, 128]));
        assert_eq!(of(&[300, 200], &[3, 2], Some(&[100, 128])), Some(vec![100, 128]));
        assert_eq!(of(&[7, 300, 200], &[7, 5, 4], Some(&[64, 64])), Some(vec![1, 64, 64]));
        assert_eq!(of(&[64, 32], &[4, 2], None), Some(vec![16, 16]));
        assert_eq!(of(&[7, 300, 200], &[7, 1, 200], None), Some(vec![1, 300, 1]));
        assert_eq!(of(&[300, 200], &[7, 2], None), None);
        assert_eq!(of(&[300, 200], &[0, 2], None), None);
        assert_eq!(of(&[300, 200], &[3, 2, 1], None), None);
        assert_eq!(of(&[0, 200], &[1], None), None);
    }
}
