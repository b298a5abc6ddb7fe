//! GGUF files made of reference cases, as `tests/reference/gguf/files.json` lists them: tensors renamed, reordered and stacked as converters do.
//!
//! Given a case, [`file()`] is what a user would have been given instead of its safetensors. Names and metadata come from the format's own package.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::Value;

use crate::case::Case;
use crate::{Result, repository};

/// The files that are described, by case.
pub fn files() -> Result<BTreeMap<String, Value>> {
    let path = repository().join("tests/reference/gguf/files.json");
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// How the rows of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the type it is named after")]
pub enum Kind {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4K,
    Q6K,
}

impl Kind {
    /// The format's number of the type.
    fn number(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::BF16 => 30,
            Kind::Q8_0 => 8,
            Kind::Q4_0 => 2,
            Kind::Q4_1 => 3,
            Kind::Q4K => 12,
            Kind::Q6K => 14,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Kind::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Kind::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Kind::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Kind::Q8_0 => values.chunks(32).flat_map(block).collect(),
            Kind::Q4_0 => values.chunks(32).flat_map(four_bits).collect(),
            Kind::Q4_1 => values.chunks(32).flat_map(four_bits_and_minimum).collect(),
            Kind::Q4K => values.chunks(256).flat_map(eight_groups).collect(),
            Kind::Q6K => values.chunks(256).flat_map(sixteen_groups).collect(),
        }
    }
}

/// The nearest integer of a range.
fn nearest(x: f32, scale: f32, most: f32) -> u8 {
    (x / scale.max(f32::MIN_POSITIVE)).round().clamp(0.0, most) as u8
}

/// 32 integers of 4 bits: the first 16 in the lower halves of bytes.
fn pairs(integers: &[u8]) -> Vec<u8> {
    (0..16).map(|i| integers[i] | integers[i + 16] << 4).collect()
}

/// 32 numbers of 4 bits with their scale: the one of largest magnitude is -8 of it.
fn four_bits(values: &[f32]) -> Vec<u8> {
    let extreme = values.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    let scale = f16::from_f32(extreme / -8.0);
    let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
    let integers: Vec<u8> = values.iter().map(|x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8).collect();
    [&scale.to_le_bytes()[..], &pairs(&integers)].concat()
}

fn least_and_most(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)))
}

/// 32 numbers of 4 bits with their scale and least.
fn four_bits_and_minimum(values: &[f32]) -> Vec<u8> {
    let (low, high) = least_and_most(values);
    let (scale, least) = (f16::from_f32((high - low) / 15.0), f16::from_f32(low));
    let integers: Vec<u8> = values.iter().map(|x| nearest(x - least.to_f32(), scale.to_f32(), 15.0)).collect();
    [&scale.to_le_bytes()[..], &least.to_le_bytes(), &pairs(&integers)].concat()
}

/// 256 numbers of 4 bits in eight groups, whose scales and minima are of 6 bits.
fn eight_groups(values: &[f32]) -> Vec<u8> {
    let ranges: Vec<(f32, f32)> =
        values.chunks(32).map(least_and_most).map(|(low, high)| (low.min(0.0), high.max(0.0))).collect();
    let most = |of: &dyn Fn(&(f32, f32)) -> f32| ranges.iter().map(of).fold(0.0f32, f32::max);
    let d = f16::from_f32(most(&|(low, high)| (high - low) / 15.0) / 63.0);
    let m = f16::from_f32(most(&|(low, _)| -low) / 63.0);
    let of: Vec<(u8, u8)> = ranges
        .iter()
        .map(|(low, high)| (nearest((high - low) / 15.0, d.to_f32(), 63.0), nearest(-low, m.to_f32(), 63.0)))
        .collect();
    let mut packed = [0u8; 12];
    for (j, (scale, least)) in of.iter().enumerate() {
        if j < 4 {
            packed[j] |= scale;
            packed[j + 4] |= least;
        } else {
            packed[j + 4] = scale & 15 | least << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= least >> 4 << 6;
        }
    }
    let integers: Vec<u8> = values
        .chunks(32)
        .zip(&of)
        .flat_map(|(group, (scale, least))| {
            let (scale, least) = (d.to_f32() * f32::from(*scale), m.to_f32() * f32::from(*least));
            group.iter().map(move |x| nearest(x + least, scale, 15.0))
        })
        .collect();
    let halves = |pair: &[u8]| (0..32).map(|i| pair[i] | pair[i + 32] << 4).collect::<Vec<u8>>();
    let quants: Vec<u8> = integers.chunks(64).flat_map(halves).collect();
    [&d.to_le_bytes()[..], &m.to_le_bytes(), &packed, &quants].concat()
}

/// 256 numbers of 6 bits in sixteen groups, whose scales are of 8 bits.
fn sixteen_groups(values: &[f32]) -> Vec<u8> {
    let most = |group: &[f32]| group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let d = f16::from_f32(most(values) / 31.0 / 127.0);
    let scales: Vec<u8> = values.chunks(16).map(|group| nearest(most(group) / 31.0, d.to_f32(), 127.0)).collect();
    let integers: Vec<u8> = values
        .chunks(16)
        .zip(&scales)
        .flat_map(|(group, scale)| {
            let scale = d.to_f32() * f32::from(*scale);
            group.iter().map(move |x| nearest(x + 32.0 * scale, scale, 63.0))
        })
        .collect();
    let (mut low, mut high) = (vec![0u8; 128], vec![0u8; 64]);
    for (i, integer) in integers.iter().enumerate() {
        let (half, within) = (i / 128, i % 128);
        low[64 * half + within % 64] |= (integer & 15) << (within / 64 * 4);
        high[32 * half + within % 32] |= (integer >> 4) << (within / 32 * 2);
    }
    [&low[..], &high, &scales, &d.to_le_bytes()].concat()
}

/// 32 numbers of 8 bits and their scale.
fn block(values: &[f32]) -> Vec<u8> {
    let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = f16::from_f32(most / 127.0);
    let quant = |x: &f32| (x / scale.to_f32().max(f32::MIN_POSITIVE)).round().clamp(-127.0, 127.0) as i8;
    scale.to_le_bytes().into_iter().chain(values.iter().map(|x| quant(x).cast_unsigned())).collect()
}

/// A file of the format, written entry by entry.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    entries: Vec<Vec<u8>>,
    lines: Vec<u8>,
    n_tensors: u64,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Writer {
    /// Adds a value of the metadata: whole numbers as u32, others as f32, lists of texts, of numbers or of whole numbers.
    pub fn value(&mut self, key: &str, value: &Value) -> Result<()> {
        let (kind, bytes) = encoded(value)?;
        self.entries.push([&text(key)[..], &u32::to_le_bytes(kind), &bytes].concat());
        Ok(())
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: Kind, values: &[f32]) {
        self.bytes_of(name, shape, kind.number(), &kind.bytes(values));
    }

    /// Adds a tensor of the type with this number.
    pub fn bytes_of(&mut self, name: &str, shape: &[usize], number: u32, bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.lines.extend(text(name));
        self.lines.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dim| self.lines.extend((*dim as u64).to_le_bytes()));
        self.lines.extend(number.to_le_bytes());
        self.lines.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.n_tensors += 1;
    }

    /// Adds a tensor that `files.json` describes, of the numbers of those that it is made of.
    pub fn reordered(&mut self, tensor: &Value, shape: &[usize], kind: Kind, values: Vec<f32>) -> Result<()> {
        let name = tensor["name"].as_str().ok_or("a tensor without a name")?;
        let (mut shape, mut values) = (shape.to_vec(), values);
        if tensor["transposed"] == true {
            let (rows, columns) = (shape[0], shape[1]);
            values = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
            shape.swap(0, 1);
        }
        if let Some(pieces) = tensor["pairs"].as_u64() {
            values = in_turn(&values, shape[0], pieces as usize);
        }
        if let Some(added) = tensor["plus"].as_f64() {
            values.iter_mut().for_each(|x| *x += added as f32);
        }
        self.tensor(name, &shape, kind, &values);
        Ok(())
    }

    /// Adds a list of f32, whatever their values.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let list = [&6u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &bytes].concat();
        self.entries.push([&text(key)[..], &9u32.to_le_bytes(), &list].concat());
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let n_entries = self.entries.len() as u64;
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &self.n_tensors.to_le_bytes(), &n_entries.to_le_bytes()];
        let mut out = [&head.concat()[..], &self.entries.concat(), &self.lines].concat();
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// The type's number and the bytes of a value.
fn encoded(value: &Value) -> Result<(u32, Vec<u8>)> {
    Ok(match value {
        Value::Bool(b) => (7, vec![u8::from(*b)]),
        Value::String(s) => (8, text(s)),
        Value::Number(n) => match n.as_u64() {
            Some(n) => (4, u32::try_from(n)?.to_le_bytes().to_vec()),
            None => (6, (n.as_f64().ok_or("no number")? as f32).to_le_bytes().to_vec()),
        },
        Value::Array(items) => {
            let items: Vec<(u32, Vec<u8>)> = items.iter().map(encoded).collect::<Result<_>>()?;
            let kind = items.first().map_or(4, |(kind, _)| *kind);
            let all: Vec<u8> = items.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            (9, [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &all].concat())
        }
        other => return Err(format!("{other} is no value of metadata").into()),
    })
}

/// The file of a case, with matrices stored as `kind` says of their shapes and all else in f32.
pub fn file(case: &Case, described: &Value, kind: impl Fn(&[usize]) -> Kind) -> Result<Writer> {
    let mut writer = Writer::default();
    for (key, value) in described["metadata"].as_object().ok_or("no metadata")? {
        writer.value(key, value)?;
    }
    for tensor in described["tensors"].as_array().ok_or("no tensors")? {
        let name = tensor["name"].as_str().ok_or("a tensor without a name")?;
        if let Some(numbers) = tensor["numbers"].as_array() {
            let numbers: Vec<f32> = numbers.iter().filter_map(Value::as_f64).map(|x| x as f32).collect();
            writer.tensor(name, &[numbers.len()], Kind::F32, &numbers);
            continue;
        }
        let (mut shape, mut values) = (Vec::new(), Vec::new());
        let from = tensor["from"].as_array().ok_or("a tensor of nothing")?;
        for stored in from.iter().filter_map(Value::as_str) {
            let spec = case.tensors.iter().find(|t| t.name == stored).ok_or_else(|| format!("there is no {stored}"))?;
            shape.clone_from(&spec.shape);
            values.extend(spec.values(case.seed));
        }
        if tensor["stacked"] == true {
            shape.insert(0, from.len());
        }
        let kind = if shape.len() > 1 { kind(&shape) } else { Kind::F32 };
        writer.reordered(tensor, &shape, kind, values)?;
    }
    Ok(writer)
}

/// Rows with the two halves of each of so many pieces in turn.
fn in_turn(values: &[f32], rows: usize, pieces: usize) -> Vec<f32> {
    let (width, piece) = (values.len() / rows, rows / pieces);
    let from = |row: usize| row / piece * piece + row % piece % 2 * (piece / 2) + row % piece / 2;
    (0..rows).flat_map(|row| values[from(row) * width..][..width].to_vec()).collect()
}
