//! Matrices of integers in words with scales and zeros, for the interpreter: written from the definitions of the formats, each integer unpacked by
//! itself, and not with the runtime's code.

use safetensors::Dtype;
use xfc_lang::graph::blocks::Blocks;
use xfc_runtime::weights::{Stored, Tensor};

use crate::weights::{floats, held_in};

type Found = Result<(Vec<u64>, Vec<f32>), String>;

/// A table of integers or numbers, row after row.
struct Table<T> {
    columns: usize,
    values: Vec<T>,
}

impl<T: Copy> Table<T> {
    fn at(&self, row: usize, column: usize) -> Result<T, String> {
        let value = self.values.get(row * self.columns + column).filter(|_| column < self.columns);
        value.copied().ok_or_else(|| format!("nothing in row {row}, column {column}"))
    }
}

/// Shape and numbers of the parameter called `name`; `None` where it is not stored as integers with scales of groups.
pub(crate) fn parameter(stored: &Stored, name: &str, held: Option<Blocks>) -> Option<Found> {
    if let Some(words) = stored.tensor(&format!("{name}_packed")) {
        return Some(rows(stored, name, words, held));
    }
    let path = name.strip_suffix("weight")?;
    Some(columns(stored, path, stored.tensor(&format!("{path}qweight"))?, held))
}

fn table(stored: &Stored, tensor: &Tensor) -> Result<Table<u32>, String> {
    let &[_, columns] = &tensor.shape[..] else { return Err(format!("words of shape {:?}", tensor.shape)) };
    let words = stored.bytes(tensor).as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    Ok(Table { columns: columns as usize, values: words.collect() })
}

fn numbers(stored: &Stored, tensor: &Tensor) -> Result<Table<f64>, String> {
    let values = tensor.dtype().and_then(|dtype| floats(dtype, stored.bytes(tensor)));
    let columns = if tensor.shape.len() == 2 { tensor.shape[1] as usize } else { 1 };
    Ok(Table { columns, values: values.ok_or_else(|| format!("scales stored as {:?}", tensor.encoding))? })
}

/// Integers of so many bits from words of which each holds neighbours of a row, the `order`-th one at each place.
fn along_rows(words: &Table<u32>, bits: usize, order: &[usize]) -> Table<i64> {
    let per = 32 / bits;
    let mut values = Vec::with_capacity(words.values.len() * per);
    for word in &words.values {
        let mut group = vec![0; per];
        for (place, of) in order.iter().take(per).enumerate() {
            group[*of] = i64::from(*word) >> (place * bits) & ((1 << bits) - 1);
        }
        values.extend(group);
    }
    Table { columns: words.columns * per, values }
}

/// The same from words of which each holds neighbours of a column.
fn along_columns(words: &Table<u32>, bits: usize) -> Table<i64> {
    let per = 32 / bits;
    let rows = words.values.len() / words.columns.max(1);
    let one = |at: usize| {
        let (row, column) = (at / words.columns, at % words.columns);
        i64::from(words.values[row / per * words.columns + column]) >> (row % per * bits) & ((1 << bits) - 1)
    };
    Table { columns: words.columns, values: (0..rows * per * words.columns).map(one).collect() }
}

/// An integer with its zero and scale; as it is held, where that has a minimum.
fn number(integer: i64, zero: i64, scale: f64, held: Option<Blocks>) -> f32 {
    let narrow = held_in(held, scale);
    if held.is_some_and(|held| held.form.has_minimum()) {
        return (integer as f64 * narrow + held_in(held, -zero as f64 * scale)) as f32;
    }
    ((integer - zero) as f64 * narrow) as f32
}

/// The group of each input.
fn group_of(stored: &Stored, index: &str, inputs: usize, n_groups: usize) -> Vec<usize> {
    let said = stored.tensor(index).map(|tensor| {
        stored.bytes(tensor).as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect::<Vec<_>>()
    });
    if let Some(said) = said.filter(|said| said.iter().all(|group| *group >= 0)) {
        return said.into_iter().map(|group| group as usize).collect();
    }
    let sizes = stored.group_sizes().map(|size| size as usize).find(|size| inputs.div_ceil(*size) == n_groups);
    let size = if n_groups == 1 { inputs } else { sizes.unwrap_or(inputs / n_groups) };
    (0..inputs).map(|input| input / size.max(1)).collect()
}

/// Words `[inputs / 8, outputs]`, or `[inputs, outputs / 8]`.
fn columns(stored: &Stored, path: &str, words: &Tensor, held: Option<Blocks>) -> Found {
    let tensor = |of: &str| stored.tensor(&format!("{path}{of}")).ok_or_else(|| format!("{path}{of} is missing"));
    let (scales, zeros) = (numbers(stored, tensor("scales")?)?, table(stored, tensor("qzeros")?)?);
    let words = table(stored, words)?;
    let outputs = scales.columns;
    let straight: Vec<usize> = (0..32).collect();
    let (integers, zeros) = if words.columns == outputs {
        let bits = 32 * zeros.columns / outputs.max(1);
        if ![2, 4, 8].contains(&bits) {
            return Err(format!("{path}qweight has integers of {bits} bits"));
        }
        let mut zeros = along_rows(&zeros, bits, &straight);
        if !stored.stores_whole_zeros() {
            zeros.values.iter_mut().for_each(|zero| *zero += 1);
        }
        (along_columns(&words, bits), zeros)
    } else {
        let turned = [0, 2, 4, 6, 1, 3, 5, 7];
        (along_rows(&words, 4, &turned), along_rows(&zeros, 4, &turned))
    };
    let inputs = integers.values.len() / outputs.max(1);
    let groups = group_of(stored, &format!("{path}g_idx"), inputs, scales.values.len() / outputs.max(1));
    let mut out = Vec::with_capacity(integers.values.len());
    for output in 0..outputs {
        for (input, group) in groups.iter().enumerate() {
            let (integer, zero) = (integers.at(input, output)?, zeros.at(*group, output)?);
            out.push(number(integer, zero, scales.at(*group, output)?, held));
        }
    }
    Ok((vec![outputs as u64, inputs as u64], out))
}

/// Words `[outputs, inputs / 8]`.
fn rows(stored: &Stored, name: &str, words: &Tensor, held: Option<Blocks>) -> Found {
    let beside = |of: &str| stored.tensor(&format!("{name}{of}"));
    let shape = beside("_shape").and_then(|tensor| floats(tensor.dtype()?, stored.bytes(tensor)));
    let Some(&[outputs, inputs]) = shape.as_deref() else { return Err(format!("{name}_shape is missing")) };
    let (outputs, inputs) = (outputs as usize, inputs as usize);
    let words = table(stored, words)?;
    let bits = [4, 8, 2].into_iter().find(|bits| inputs.div_ceil(32 / bits) == words.columns);
    let bits = bits.ok_or_else(|| format!("{name}_packed has {} words for {inputs} inputs", words.columns))?;
    let scales = numbers(stored, beside("_scale").ok_or_else(|| format!("{name}_scale is missing"))?)?;
    let integers = along_rows(&words, bits, &(0..32).collect::<Vec<_>>());
    let half = 1 << (bits - 1);
    let zeros = match beside("_zero_point") {
        None => None,
        Some(zeros) if zeros.dtype() == Some(Dtype::I8) => {
            let columns = zeros.shape.get(1).map_or(1, |n| *n as usize);
            let values = stored.bytes(zeros).iter().map(|zero| i64::from(zero.cast_signed()) + half).collect();
            Some(Table { columns, values })
        }
        Some(zeros) => Some(along_columns(&table(stored, zeros)?, bits)),
    };
    let one = scales.values.len() == 1;
    let groups = group_of(stored, &format!("{name}_g_idx"), inputs, scales.columns);
    let mut out = Vec::with_capacity(outputs * inputs);
    for output in 0..outputs {
        let of = if one { 0 } else { output };
        for (input, group) in groups.iter().enumerate() {
            let zero = zeros.as_ref().map_or(Ok(half), |zeros| zeros.at(of, *group))?;
            out.push(number(integers.at(output, input)?, zero, scales.at(of, *group)?, held));
        }
    }
    Ok((vec![outputs as u64, inputs as u64], out))
}

/// Bytes with a sign `[outputs, inputs]`, with zeros.
pub(crate) fn bytes(stored: &Stored, name: &str, (tensor, zeros): (&Tensor, &Tensor), held: Option<Blocks>) -> Found {
    let &[outputs, inputs] = &tensor.shape[..] else { return Err(format!("{name} has zeros and {:?}", tensor.shape)) };
    let scales = stored.tensor(&format!("{name}_scale")).ok_or_else(|| format!("{name}_scale is missing"))?;
    let scales = numbers(stored, scales)?;
    let one = scales.values.len() == 1;
    let zeros = Table { columns: scales.columns, values: stored.bytes(zeros).to_vec() };
    let groups = group_of(stored, &format!("{name}_g_idx"), inputs as usize, scales.columns);
    let mut out = Vec::with_capacity((outputs * inputs) as usize);
    for (at, byte) in stored.bytes(tensor).iter().enumerate() {
        let (output, group) = (if one { 0 } else { at / inputs as usize }, groups[at % inputs as usize]);
        // Without a sign, as they are held.
        let [integer, zero] = [*byte, zeros.at(output, group)?].map(|x| i64::from(x.cast_signed()) + 128);
        out.push(number(integer, zero, scales.at(output, group)?, held));
    }
    Ok((vec![outputs, inputs], out))
}
