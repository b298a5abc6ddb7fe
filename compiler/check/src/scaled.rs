//! Tensors of 4 and 8 bits with scales, for the interpreter: written from the definitions of the formats, and not with the runtime's code.

use safetensors::Dtype;
use xfc_lang::graph::blocks::Blocks;
use xfc_runtime::weights::{Stored, Tensor};

use crate::packed;
use crate::weights::{floats, held_in};

type Found = Result<(Vec<u64>, Vec<f32>), String>;

/// Shape and numbers of the parameter called `name`; `None` where it is not stored with scales.
pub(crate) fn parameter(stored: &Stored, name: &str, held: Option<Blocks>) -> Option<Found> {
    let companion = |suffix: &str| stored.tensor(&format!("{name}{suffix}"));
    if let Some(tensor) = stored.tensor(name) {
        let decode = match tensor.dtype()? {
            Dtype::F8_E4M3 => |byte: u8| small_float(byte, 4, 3, 7),
            Dtype::F8_E5M2 => |byte: u8| small_float(byte, 5, 2, 15),
            Dtype::I8 => |byte: u8| f64::from(byte.cast_signed()),
            _ => return None,
        };
        if let Some(zeros) = companion("_zero_point").filter(|_| tensor.dtype() == Some(Dtype::I8)) {
            return Some(packed::bytes(stored, name, (tensor, zeros), held));
        }
        let scales = companion("_scale_inv").or_else(|| companion("_scale"));
        let scales = scales.ok_or_else(|| format!("{name} has no scales"));
        return Some(scales.and_then(|scales| grid(stored, tensor, (scales, held), decode)));
    }
    let Some(blocks) = companion("_blocks") else { return packed::parameter(stored, name, held) };
    let scales = companion("_scales").ok_or_else(|| format!("{name} has no scales"));
    Some(scales.and_then(|scales| pairs(stored, blocks, scales)))
}

/// A number of a sign, an exponent and a fraction.
fn small_float(byte: u8, exponent_bits: u32, fraction_bits: u32, bias: i32) -> f64 {
    let sign = if byte >= 128 { -1.0 } else { 1.0 };
    let largest = (1 << exponent_bits) - 1;
    let exponent = i32::from(byte >> fraction_bits) & largest;
    let fraction = i32::from(byte) & ((1 << fraction_bits) - 1);
    let part = f64::from(fraction) / f64::from(1 << fraction_bits);
    match (exponent, fraction) {
        // The wider range keeps the conventions of IEEE 754; the other has one NaN and no infinity.
        (e, 0) if e == largest && exponent_bits == 5 => sign * f64::INFINITY,
        (e, _) if e == largest && exponent_bits == 5 => f64::NAN,
        (e, f) if e == largest && f == (1 << fraction_bits) - 1 => f64::NAN,
        (0, _) => sign * part * 2f64.powi(1 - bias),
        (e, _) => sign * (1.0 + part) * 2f64.powi(e - bias),
    }
}

fn scale_values(stored: &Stored, scales: &Tensor) -> Result<Vec<f64>, String> {
    let bytes = stored.bytes(scales);
    match scales.dtype().ok_or("scales in blocks")? {
        Dtype::U8 | Dtype::F8_E8M0 => {
            Ok(bytes.iter().map(|&b| if b == 255 { f64::NAN } else { 2f64.powi(i32::from(b) - 127) }).collect())
        }
        dtype => floats(dtype, bytes).ok_or_else(|| format!("scales stored as {dtype:?}")),
    }
}

/// Elements of 8 bits under one scale, one a row, or a grid of them.
fn grid(stored: &Stored, tensor: &Tensor, (scales, held): (&Tensor, Option<Blocks>), decode: fn(u8) -> f64) -> Found {
    let values = scale_values(stored, scales)?;
    let shape = &tensor.shape;
    let counts: Vec<u64> = match &scales.shape[..] {
        _ if values.len() == 1 => vec![1; shape.len()],
        [n] => [&[*n], &vec![1; shape.len().saturating_sub(1)][..]].concat(),
        grid => grid.to_vec(),
    };
    if counts.len() != shape.len() {
        return Err(format!("scales {:?} of {shape:?}", scales.shape));
    }
    let said = stored.weight_block().unwrap_or(&[128, 128]);
    let mut sizes = Vec::new();
    for (d, (&n, &count)) in shape.iter().zip(&counts).enumerate() {
        let usual = (d + said.len()).checked_sub(shape.len()).and_then(|at| said.get(at)).copied().unwrap_or(1);
        let fits = |size: u64| size > 0 && n.div_ceil(size) == count;
        let size = [n, 1, usual, 128, n / count.max(1)].into_iter().find(|size| fits(*size));
        sizes.push(size.ok_or_else(|| format!("{count} scales for {n} elements"))?);
    }
    let mut out = Vec::new();
    for (flat, byte) in stored.bytes(tensor).iter().enumerate() {
        let (mut rest, mut at, mut step) = (flat as u64, 0, 1);
        for d in (0..shape.len()).rev() {
            at += rest % shape[d] / sizes[d] * step;
            rest /= shape[d];
            step *= counts[d];
        }
        out.push((decode(*byte) * held_in(held, values[at as usize])) as f32);
    }
    Ok((shape.clone(), out))
}

/// Numbers of 4 bits, two a byte, in groups: stored with the last two dimensions of the parameter exchanged.
fn pairs(stored: &Stored, blocks: &Tensor, scales: &Tensor) -> Found {
    let values = scale_values(stored, scales)?;
    let [lead @ .., rows, groups, bytes] = &blocks.shape[..] else { return Err(format!("{:?}", blocks.shape)) };
    let columns = 2 * groups * bytes;
    if blocks.dtype() != Some(Dtype::U8) || scales.shape != [lead, &[*rows, *groups]].concat() {
        return Err(format!("scales {:?} of {:?}", scales.shape, blocks.shape));
    }
    let count: u64 = lead.iter().product();
    let data = stored.bytes(blocks);
    let mut out = Vec::new();
    for matrix in 0..count {
        for column in 0..columns {
            for row in 0..*rows {
                let flat = (matrix * rows + row) * columns + column;
                let byte = data[(flat / 2) as usize];
                let four = if flat % 2 == 0 { byte & 15 } else { byte >> 4 };
                // As a number of 2 bits of exponent and 1 of fraction, moved to the places of a number of 8 bits.
                let sign = if four >= 8 { -1.0 } else { 1.0 };
                let magnitude = match (four >> 1 & 3, f64::from(four & 1)) {
                    (0, fraction) => fraction / 2.0,
                    (exponent, fraction) => (1.0 + fraction / 2.0) * 2f64.powi(i32::from(exponent) - 1),
                };
                out.push((sign * magnitude * values[(flat / (2 * bytes)) as usize]) as f32);
            }
        }
    }
    Ok(([lead, &[columns, *rows]].concat(), out))
}
