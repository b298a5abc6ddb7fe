//! Finds integers in words and bytes with their scales and zeros, and which inputs share them.
//!
//! Given a checkpoint and where a tensor lies in it, promises a matrix whose parts fit each other, or names the part that does not.

use super::checkpoint::{Stored, Tensor};
use super::convert::Numbers;
use super::encoded::{USUAL_BLOCK, admits, expected, larger, scale_bytes, shown};
use super::lens::Lens;
use super::pack::Found;
use super::packed::{Groups, Layout, Packed, Zeros};
use crate::artifact::manifest::Source;
use safetensors::Dtype;

/// Integers in words along inputs or outputs, `[inputs, outputs]` of the parameter's `[outputs, inputs]`.
pub(super) fn columns<'a>(
    stored: &'a Stored,
    path: &str,
    words: &'a Tensor,
    source: &Source,
) -> Result<Found<'a>, String> {
    let name = format!("{path}qweight");
    let (scales, scales_name) = companion(stored, format!("{path}scales"))?;
    let (zeros, zeros_name) = companion(stored, format!("{path}qzeros"))?;
    check_words(&name, words)?;
    check_words(&zeros_name, zeros)?;
    let (&[rows, wide], &[n_groups, outputs]) = (&words.shape[..], &scales.shape[..]) else {
        return Err(format!("`{scales_name}`: shape {:?} for {:?} words of `{name}`", scales.shape, words.shape));
    };
    let zero_words = zeros.shape.get(1).copied().unwrap_or_default();
    // Words of eight outputs, or of the inputs of one.
    let (layout, bits) = match wide {
        _ if wide > 0 && wide.checked_mul(8) == Some(outputs) => (Layout::Outputs, 4),
        _ if wide > 0 && wide == outputs && zero_words.saturating_mul(32).is_multiple_of(outputs) => {
            (Layout::Inputs, zero_words.saturating_mul(32) / outputs)
        }
        _ => {
            return Err(format!(
                "`{name}`: shape {:?} with scales {:?}, expected [inputs / 8, outputs] or [inputs, outputs / 8] words, with scales [groups, outputs]",
                words.shape, scales.shape
            ));
        }
    };
    if ![2, 4, 8].contains(&bits) {
        return Err(format!("`{name}`: integers of {bits} bits, expected 2, 4 or 8"));
    }
    let per = 32 / bits;
    let inputs = if layout == Layout::Inputs { rows.saturating_mul(per) } else { rows };
    if zeros.shape != [n_groups, outputs / per] {
        return Err(format!("`{zeros_name}`: shape {:?}, expected {:?}", zeros.shape, [n_groups, outputs / per]));
    }
    let plus = i32::from(layout == Layout::Inputs && !stored.stores_whole_zeros());
    let (code, scale_bytes) = scale_bytes(stored, &scales_name, scales)?;
    let packed = Packed {
        layout,
        bits: bits as usize,
        outputs: outputs as usize,
        inputs: inputs as usize,
        n_groups: n_groups as usize,
        integers: stored.bytes(words),
        scales: (code, scale_bytes),
        one_scale: false,
        zeros: Zeros::Words { words: stored.bytes(zeros), plus },
        groups: groups(stored, (&scales_name, &format!("{path}g_idx")), inputs, n_groups)?,
    };
    integers(packed, &name, source)
}

/// Integers in words along inputs, `[outputs, inputs]`.
pub(super) fn rows<'a>(
    stored: &'a Stored,
    name: &str,
    words: &'a Tensor,
    source: &Source,
) -> Result<Found<'a>, String> {
    let own_name = format!("{name}_packed");
    check_words(&own_name, words)?;
    let shape = stored.tensor(&format!("{name}_shape"));
    let shape = shape.and_then(|shape| super::convert::numbers(stored, shape));
    let (&[outputs, wide], inputs) = (
        &words.shape[..],
        match (shape.as_deref(), &source.shape[..]) {
            (Some([_, inputs]), _) => *inputs as u64,
            (_, [.., inputs]) => *inputs,
            _ => 0,
        },
    ) else {
        return Err(format!("`{own_name}`: shape {:?}, expected [outputs, words]", words.shape));
    };
    let bits =
        [4, 8, 2].into_iter().find(|bits| inputs.div_ceil(32 / bits) == wide && inputs > 0).ok_or_else(|| {
            format!("`{own_name}`: {wide} words for {inputs} inputs, expected integers of 2, 4 or 8 bits")
        })?;
    let zeros = stored.tensor(&format!("{name}_zero_point"));
    let scaled = (name, bits, [outputs, inputs], zeros);
    let packed = by_row(stored, Layout::Rows, words, scaled)?;
    integers(packed, &own_name, source)
}

/// Bytes with a sign, with zeros.
pub(super) fn bytes<'a>(
    stored: &'a Stored,
    name: &str,
    (tensor, zeros): (&'a Tensor, &'a Tensor),
    source: &Source,
) -> Result<Found<'a>, String> {
    let &[outputs, inputs] = &tensor.shape[..] else {
        return Err(format!("`{name}`: shape {:?} with zeros, expected [outputs, inputs]", tensor.shape));
    };
    let packed = by_row(stored, Layout::Bytes, tensor, (name, 8, [outputs, inputs], Some(zeros)))?;
    integers(packed, name, source)
}

/// Integers with scales for each output.
fn by_row<'a>(
    stored: &'a Stored,
    layout: Layout,
    elements: &'a Tensor,
    (name, bits, [outputs, inputs], zeros): (&str, u64, [u64; 2], Option<&'a Tensor>),
) -> Result<Packed<'a>, String> {
    let (scales, scales_name) = companion(stored, format!("{name}_scale"))?;
    let one_scale = scales.shape.iter().product::<u64>() == 1;
    let n_groups = match &scales.shape[..] {
        _ if one_scale => 1,
        [n] if *n == outputs => 1,
        [n, groups] if *n == outputs && *groups > 0 => *groups,
        shape => return Err(format!("`{scales_name}`: shape {shape:?}, expected [{outputs}, groups]")),
    };
    let zeros_name = format!("{name}_zero_point");
    // Words hold integers without a sign, to which half their range was added.
    let plus = if layout == Layout::Rows { 1 << (bits - 1) } else { 0 };
    let zeros = match zeros {
        None => Zeros::All(plus),
        Some(zeros) => {
            let bytes = stored.bytes(zeros);
            let of_bytes = if one_scale { 1 } else { outputs.saturating_mul(n_groups) };
            let of_words = outputs.div_ceil(32 / bits).saturating_mul(n_groups).saturating_mul(4);
            match zeros.dtype() {
                Some(Dtype::I8) if bytes.len() as u64 == of_bytes => Zeros::Bytes { bytes, plus },
                Some(Dtype::I32) if layout == Layout::Rows && bytes.len() as u64 == of_words => {
                    Zeros::Words { words: bytes, plus: 0 }
                }
                _ => {
                    let (of, shape) = (shown(zeros.encoding), &zeros.shape);
                    return Err(format!("`{zeros_name}`: {of} of shape {shape:?} for scales {:?}", scales.shape));
                }
            }
        }
    };
    let (code, scale_bytes) = scale_bytes(stored, &scales_name, scales)?;
    Ok(Packed {
        layout,
        bits: bits as usize,
        outputs: outputs as usize,
        inputs: inputs as usize,
        n_groups: n_groups as usize,
        integers: stored.bytes(elements),
        scales: (code, scale_bytes),
        one_scale,
        zeros,
        groups: groups(stored, (&scales_name, &format!("{name}_g_idx")), inputs, n_groups)?,
    })
}

/// Which inputs share scales: neighbours, or those that an index says.
fn groups<'a>(
    stored: &'a Stored,
    (scales, index): (&str, &str),
    inputs: u64,
    n_groups: u64,
) -> Result<Groups<'a>, String> {
    let fits = |size: &u64| *size > 0 && inputs.div_ceil(*size) == n_groups;
    let even = (n_groups > 0 && inputs.is_multiple_of(n_groups)).then(|| inputs / n_groups);
    let said = stored.group_sizes().find(fits);
    let size = if n_groups == 1 { Some(inputs.max(1)) } else { said.or(even).or(Some(USUAL_BLOCK).filter(fits)) };
    if let Some(tensor) = stored.tensor(index) {
        let bytes = stored.bytes(tensor);
        if tensor.dtype() != Some(Dtype::I32) || tensor.shape != [inputs] {
            return Err(format!(
                "`{index}`: {} of shape {:?}, expected I32 [{inputs}]",
                shown(tensor.encoding),
                tensor.shape
            ));
        }
        let said = bytes.as_chunks().0.iter().map(|word| i64::from(i32::from_le_bytes(*word)));
        if said.clone().any(|group| group >= n_groups.cast_signed()) {
            return Err(format!("`{index}`: names a group of which there are {n_groups} in `{scales}`"));
        }
        // A negative index is one that was never set.
        let in_order = |size: u64| said.clone().zip(0..).all(|(group, input)| group == input / size.cast_signed());
        if !said.clone().any(i64::is_negative) && !size.is_some_and(in_order) {
            return Ok(Groups::Index(bytes));
        }
    }
    let size = size.ok_or_else(|| format!("`{scales}`: {n_groups} groups of {inputs} inputs, which are not even"))?;
    Ok(Groups::Of(size as usize))
}

/// What was found of integers, where there are as many as the parameter has elements.
fn integers<'a>(packed: Packed<'a>, name: &str, source: &Source) -> Result<Found<'a>, String> {
    let shape = [packed.outputs as u64, packed.inputs as u64];
    if !admits(source, &shape) {
        return Err(format!("`{name}`: holds {shape:?}, expected {}", expected(source)));
    }
    let lens = Lens::new(&shape, &source.steps)?;
    Ok(Found { numbers: Numbers::Packed(packed), lens, offset: source.offset, larger: larger(source, name, &shape) })
}

fn companion(stored: &Stored, name: String) -> Result<(&Tensor, String), String> {
    stored.tensor(&name).map(|tensor| (tensor, name.clone())).ok_or_else(|| format!("`{name}`: missing"))
}

fn check_words(name: &str, tensor: &Tensor) -> Result<(), String> {
    match tensor.dtype() {
        Some(Dtype::I32 | Dtype::U32) => Ok(()),
        _ => Err(format!("`{name}`: stored as {}, expected words of I32", shown(tensor.encoding))),
    }
}
