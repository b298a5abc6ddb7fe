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
}

impl Kind {
    /// The format's number of the type.
    fn number(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::BF16 => 30,
            Kind::Q8_0 => 8,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Kind::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Kind::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Kind::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Kind::Q8_0 => values.chunks(32).flat_map(block).collect(),
        }
    }
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
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.lines.extend(text(name));
        self.lines.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dim| self.lines.extend((*dim as u64).to_le_bytes()));
        self.lines.extend(kind.number().to_le_bytes());
        self.lines.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(kind.bytes(values));
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
