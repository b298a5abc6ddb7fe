//! What a step is given and what it returns: named inputs of several sequences, checked and flattened; named outputs, row by row.

use crate::artifact::manifest::{DType, Input, Manifest, Output};
use crate::cache::SequenceId;
use crate::error::{Result, RuntimeError};
use crate::weights::store;
use std::ops::Range;

/// Values of one input for one sequence, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum InputData {
    /// For integer and boolean inputs.
    Ints(Vec<i64>),
    /// For floating-point inputs.
    Floats(Vec<f32>),
}

impl InputData {
    /// Values for `n` elements of `input`, from random 64-bit numbers by index: integers below the input's limit, floats in [-1, 1).
    pub fn made_up(input: &Input, n: u64, draw: impl Fn(u64) -> u64) -> Self {
        let values = 0..n.saturating_mul(input.width());
        match input.dtype {
            DType::F32 | DType::F16 | DType::BF16 => {
                // 24 bits, which f32 holds exactly.
                Self::Floats(values.map(|i| (draw(i) >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect())
            }
            DType::I64 | DType::I32 | DType::Bool => {
                let limit = input.limit.unwrap_or(2).max(1);
                Self::Ints(values.map(|i| (draw(i) % limit) as i64).collect())
            }
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in `range`.
    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Ints(values) => Self::Ints(values[range].to_vec()),
            Self::Floats(values) => Self::Floats(values[range].to_vec()),
        }
    }
}

/// Which of a sequence's new elements the outputs of selected rows (logits) are wanted for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None of them.
    None,
    /// The last.
    #[default]
    Last,
    /// All.
    All,
    /// These, counted from the first new element, ascending.
    List(Vec<u32>),
}

/// What a step adds to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct StepInput {
    /// Which.
    pub sequence: SequenceId,
    /// Inputs by name; those with a default may be left out.
    pub inputs: Vec<(String, InputData)>,
    /// Rows of the outputs.
    pub wanted: Wanted,
}

/// One output of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// As in the card.
    pub name: String,
    /// Dimensions of a row.
    pub dims: Vec<u64>,
    /// All rows, in f32.
    pub data: Vec<f32>,
    /// Which rows belong to each [`StepInput`], in their order.
    pub rows: Vec<Range<usize>>,
}

impl StepOutput {
    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }

    /// Row `row`, over all sequences.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        let n = self.row_len();
        self.data.get(row.checked_mul(n)?..(row + 1).checked_mul(n)?)
    }

    /// The last of all rows, to be changed.
    pub fn last_row_mut(&mut self) -> Option<&mut [f32]> {
        let n = self.row_len();
        let start = self.data.len().checked_sub(n).filter(|_| n > 0)?;
        self.data.get_mut(start..)
    }

    /// All rows of the step's input `index`.
    pub fn rows_of(&self, index: usize) -> Option<&[f32]> {
        let rows = self.rows.get(index)?;
        self.data.get(rows.start * self.row_len()..rows.end * self.row_len())
    }
}

/// The outputs of a step, in the manifest's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutputs {
    /// All of them.
    pub outputs: Vec<StepOutput>,
}

impl StepOutputs {
    /// The output called `name`.
    pub fn get(&self, name: &str) -> Option<&StepOutput> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The output called `name`, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut StepOutput> {
        self.outputs.iter_mut().find(|output| output.name == name)
    }

    /// Makes them those of `manifest`, without rows; memory stays where they are already.
    pub(crate) fn reset(&mut self, manifest: &Manifest) {
        let same = |(own, output): (&StepOutput, &Output)| own.name == output.name && own.dims == output.dims;
        if self.outputs.len() != manifest.outputs.len() || !self.outputs.iter().zip(&manifest.outputs).all(same) {
            let empty = |output: &Output| StepOutput {
                name: output.name.clone(),
                dims: output.dims.clone(),
                data: Vec::new(),
                rows: Vec::new(),
            };
            self.outputs = manifest.outputs.iter().map(empty).collect();
        }
        for output in &mut self.outputs {
            // Values stay until others take their place: a step of the same rows clears nothing.
            output.rows.clear();
        }
    }

    /// Adds the rows of a later piece of the same (single) sequence.
    pub(crate) fn extend(&mut self, later: Self) {
        if self.outputs.is_empty() {
            *self = later;
            return;
        }
        for (output, later) in self.outputs.iter_mut().zip(later.outputs) {
            output.data.extend(later.data);
            output.rows.clear();
            output.rows.push(0..output.data.len() / output.row_len().max(1));
        }
    }
}

fn bad(problem: String, help: &str) -> RuntimeError {
    RuntimeError::request(problem, help)
}

impl StepInput {
    /// Sets `lengths` to the new elements on each axis of `manifest`, after checking names, types, lengths and values. `before` are the elements
    /// that the sequence has on each axis.
    pub(crate) fn check(&self, manifest: &Manifest, before: &[u64], lengths: &mut [u64]) -> Result<()> {
        lengths.fill(0);
        for (position, (name, data)) in self.inputs.iter().enumerate() {
            if self.inputs[..position].iter().any(|(other, _)| other == name) {
                return Err(bad(format!("input `{name}` is given twice"), "give each input once"));
            }
            let Some(input) = manifest.inputs.iter().find(|input| input.name == *name) else {
                let names: Vec<&str> = manifest.inputs.iter().map(|input| input.name.as_str()).collect();
                return Err(bad(
                    format!("the model has no input `{name}`"),
                    &format!("its inputs are {}", names.join(", ")),
                ));
            };
            let n = check_data(input, data)?;
            let earlier = of_axis(manifest, &self.inputs[..position], input.axis);
            if let Some(other) = earlier.filter(|_| lengths[input.axis] != n) {
                return Err(bad(
                    format!(
                        "input `{name}` has {n} {axis}, input `{other}` has {before}",
                        axis = manifest.axes[input.axis],
                        before = lengths[input.axis]
                    ),
                    "inputs of the same axis have the same length",
                ));
            }
            lengths[input.axis] = n;
        }
        let once = |axis: usize| manifest.given_once(axis);
        // A sequence gets these once; then it has them.
        let has = |axis: usize| before[axis] > 0 && (once(axis) || manifest.extents[axis].is_some());
        for (axis, extent) in manifest.extents.iter().enumerate() {
            let Some(extent) = extent.filter(|_| !has(axis)) else { continue };
            let n = lengths[axis];
            if let Some(name) = of_axis(manifest, &self.inputs, axis).filter(|_| n != extent) {
                return Err(bad(
                    format!("input `{name}` has {n} {}, a sequence has {extent}", manifest.axes[axis]),
                    "give those of one sequence",
                ));
            }
            lengths[axis] = extent;
        }
        let tokens = lengths.first().is_some_and(|&n| n > 0);
        // A step may give what is given once and no tokens yet.
        let prepares = lengths.iter().enumerate().any(|(axis, &n)| n > 0 && once(axis));
        for input in &manifest.inputs {
            let (axis, name) = (&manifest.axes[input.axis], &input.name);
            let given = self.inputs.iter().any(|(given, _)| given == name);
            if has(input.axis) {
                if given {
                    return Err(bad(
                        format!("input `{name}` is given again: the sequence has its {axis} already"),
                        "give it once; another one is for a new sequence",
                    ));
                }
            } else if once(input.axis) && lengths[input.axis] == 0 && input.default.is_none() {
                return Err(bad(
                    format!("input `{name}` is missing: the sequence has no {axis} yet"),
                    "give it before the sequence's first tokens, or with them",
                ));
            } else if !given && input.default.is_none() && (input.axis != 0 || tokens || !prepares) {
                return Err(bad(format!("input `{name}` is missing"), "give it: it has no default"));
            }
        }
        if tokens || prepares {
            Ok(())
        } else {
            Err(bad("a step without tokens was asked for".to_owned(), "give at least one token"))
        }
    }

    /// Adds the selected rows among this sequence's `n` new elements, of which `start` is the number of the first.
    pub(crate) fn select(&self, n: u64, start: u64, rows: &mut Vec<u32>) -> Result<()> {
        let start = start as u32;
        match &self.wanted {
            Wanted::None => {}
            Wanted::Last => rows.extend(n.checked_sub(1).map(|last| start + last as u32)),
            Wanted::All => rows.extend(start..start + n as u32),
            Wanted::List(list) => {
                if list.windows(2).any(|pair| pair[0] >= pair[1])
                    || list.last().is_some_and(|&last| u64::from(last) >= n)
                {
                    return Err(bad(
                        format!("the wanted rows {list:?} are not ascending and below {n}"),
                        "ask for rows of the new tokens",
                    ));
                }
                rows.extend(list.iter().map(|row| start + row));
            }
        }
        Ok(())
    }

    /// The part with the elements `range` of axis 0.
    pub(crate) fn piece(&self, manifest: &Manifest, range: Range<usize>, wanted: Wanted) -> Self {
        let inputs = piece(manifest, self.inputs.iter().map(|(name, data)| (name.as_str(), data)), &range);
        Self { sequence: self.sequence, inputs, wanted }
    }
}

/// The first of `inputs` that has elements of `axis`.
fn of_axis<'a>(manifest: &Manifest, inputs: &'a [(String, InputData)], axis: usize) -> Option<&'a str> {
    let of = |(name, _): &&(String, InputData)| manifest.inputs.iter().any(|i| i.axis == axis && i.name == *name);
    inputs.iter().find(of).map(|(name, _)| name.as_str())
}

/// The part of a sequence's inputs with the elements `range` of axis 0, which they have. Inputs of other axes go with the first part.
pub fn piece<'a>(
    manifest: &Manifest,
    inputs: impl IntoIterator<Item = (&'a str, &'a InputData)>,
    range: &Range<usize>,
) -> Vec<(String, InputData)> {
    let part = |(name, data): (&str, &InputData)| {
        let input = manifest.inputs.iter().find(|input| input.name == name)?;
        let width = input.width() as usize;
        match input.axis {
            0 => Some((name.to_owned(), data.slice(range.start * width..range.end * width))),
            _ if range.start == 0 => Some((name.to_owned(), data.clone())),
            _ => None,
        }
    };
    inputs.into_iter().filter_map(part).collect()
}

/// Elements of the axis that `data` holds for `input`.
fn check_data(input: &Input, data: &InputData) -> Result<u64> {
    let name = &input.name;
    let width = input.dims.iter().product::<u64>();
    if !(data.len() as u64).is_multiple_of(width) {
        return Err(bad(
            format!("input `{name}` has {} values, expected a multiple of {width}", data.len()),
            &format!("each element has the dimensions {:?}", input.dims),
        ));
    }
    let float = matches!(input.dtype, DType::F32 | DType::F16 | DType::BF16);
    match data {
        InputData::Ints(values) if !float => {
            let limit = input.limit.map_or(i64::MAX, |limit| limit as i64);
            let outside = |&value: &i64| input.limit.is_some() && !(0..limit).contains(&value);
            if let Some(at) = values.iter().position(outside) {
                return Err(bad(
                    format!("{name}[{at}] is {}, expected 0 to {}", values[at], limit - 1),
                    "the model has no such entry: check that tokenizer and model belong together",
                ));
            }
            if input.dtype == DType::I32
                && let Some(at) = values.iter().position(|&value| i32::try_from(value).is_err())
            {
                return Err(bad(
                    format!("{name}[{at}] is {}, which does not fit into 32 bits", values[at]),
                    "give smaller values",
                ));
            }
        }
        InputData::Floats(_) if float => {}
        _ => {
            return Err(bad(
                format!("input `{name}` is {:?}, other values were given", input.dtype),
                "give integers for integers",
            ));
        }
    }
    Ok(data.len() as u64 / width)
}

/// Sets `bytes` to those of input `input` for all sequences of a step, row after row; sequences that leave it out get the default. `lengths` are
/// the new elements of each sequence on each of `n_axes` axes.
pub(crate) fn flatten(input: &Input, step: &[StepInput], lengths: &[u64], n_axes: usize, bytes: &mut Vec<u8>) {
    let size = input.dtype.size_bytes();
    let width = input.dims.iter().product::<u64>() as usize;
    bytes.clear();
    for (part, lengths) in step.iter().zip(lengths.chunks_exact(n_axes)) {
        let start = bytes.len();
        bytes.resize(start + lengths[input.axis] as usize * width * size, 0);
        let elements = bytes[start..].chunks_exact_mut(size);
        match part.inputs.iter().find(|(name, _)| *name == input.name) {
            Some((_, InputData::Ints(values))) => {
                for (element, value) in elements.zip(values) {
                    // Through integers: f64 would lose large ones.
                    match input.dtype {
                        DType::Bool => element.copy_from_slice(&[u8::from(*value != 0)]),
                        _ => element.copy_from_slice(&value.to_le_bytes()[..size]),
                    }
                }
            }
            Some((_, InputData::Floats(values))) => {
                elements.zip(values).for_each(|(element, value)| store(f64::from(*value), input.dtype, element));
            }
            None => elements.for_each(|element| store(input.default.unwrap_or(0.0), input.dtype, element)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::manifest::Keep;
    use crate::artifact::sample;
    use crate::cache::{CacheOptions, CacheStore};

    /// The sample with a second axis, which is given once.
    fn manifest() -> Manifest {
        let mut manifest = sample::manifest();
        manifest.axes.push("source".to_owned());
        manifest.extents.push(None);
        manifest.max_positions.push(None);
        let ids = Input { name: "source_ids".to_owned(), axis: 1, ..manifest.inputs[0].clone() };
        let kinds = Input { name: "source_kinds".to_owned(), axis: 1, ..manifest.inputs[1].clone() };
        manifest.inputs.extend([ids, kinds]);
        let mut group = manifest.caches[0].clone();
        (group.axis, group.keep) = (1, Keep::Once);
        manifest.caches.push(group);
        manifest
    }

    /// The sample with an image of 6 patches, of which something is kept, and one `style` a sequence, of which nothing is.
    fn with_known_axes() -> Manifest {
        let mut manifest = manifest();
        manifest.axes.push("sequence".to_owned());
        manifest.extents = vec![None, Some(6), Some(1)];
        manifest.max_positions.push(None);
        manifest.inputs.truncate(3);
        let style = Input { name: "style".to_owned(), axis: 2, ..manifest.inputs[0].clone() };
        manifest.inputs.push(style);
        manifest
    }

    #[test]
    fn what_every_sequence_has_is_given_once() {
        let manifest = with_known_axes();
        let options =
            CacheOptions { max_sequences: 1, context_tokens: 40, once_tokens: 40, step_tokens: 40, pool_tokens: None };
        let sequence = CacheStore::new(&manifest, options).unwrap().add().unwrap();
        let check = |names: &[(&str, usize)], before: [u64; 3]| {
            let inputs = names.iter().map(|(name, n)| ((*name).to_owned(), InputData::Ints(vec![1; *n]))).collect();
            let mut lengths = vec![0; before.len()];
            let checked = StepInput { sequence, inputs, wanted: Wanted::Last }.check(&manifest, &before, &mut lengths);
            checked.map(|()| lengths).map_err(|e| e.to_string())
        };
        let image = [("source_ids", 6), ("style", 1)];
        assert_eq!(check(&image, [0, 0, 0]), Ok(vec![0, 6, 1]));
        assert_eq!(check(&[image[0], image[1], ("input_ids", 2)], [0, 0, 0]), Ok(vec![2, 6, 1]));
        assert_eq!(check(&[("input_ids", 2)], [0, 6, 1]), Ok(vec![2, 0, 0]));
        assert_eq!(check(&[("input_ids", 1)], [2, 6, 1]), Ok(vec![1, 0, 0]));
        for (names, before, problem) in [
            (&[("input_ids", 1), ("style", 1)][..], [0, 0, 0], "`source_ids` is missing"),
            (&[("input_ids", 1), ("source_ids", 6)], [0, 0, 0], "`style` is missing"),
            (&[("input_ids", 1), ("source_ids", 5), ("style", 1)], [0, 0, 0], "has 5 source, a sequence has 6"),
            (&[("input_ids", 1), ("source_ids", 6)], [2, 6, 1], "`source_ids` is given again"),
            (&[("input_ids", 1), ("style", 1)], [2, 6, 1], "`style` is given again"),
            (&[("input_ids", 1), ("style", 2)], [2, 6, 1], "`style` is given again"),
            (&[], [2, 6, 1], "`input_ids` is missing"),
        ] {
            let error = check(names, before).unwrap_err();
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
    }

    #[test]
    fn what_is_given_once() {
        let manifest = manifest();
        let options =
            CacheOptions { max_sequences: 1, context_tokens: 40, once_tokens: 40, step_tokens: 40, pool_tokens: None };
        let sequence = CacheStore::new(&manifest, options).unwrap().add().unwrap();
        let check = |names: &[(&str, usize)], before: [u64; 2]| {
            let inputs = names.iter().map(|(name, n)| ((*name).to_owned(), InputData::Ints(vec![1; *n]))).collect();
            let mut lengths = vec![0; before.len()];
            let checked = StepInput { sequence, inputs, wanted: Wanted::Last }.check(&manifest, &before, &mut lengths);
            checked.map(|()| lengths).map_err(|e| e.to_string())
        };
        assert_eq!(check(&[("source_ids", 3)], [0, 0]), Ok(vec![0, 3]));
        assert_eq!(check(&[("source_ids", 3), ("source_kinds", 3), ("input_ids", 2)], [0, 0]), Ok(vec![2, 3]));
        assert_eq!(check(&[("input_ids", 2)], [0, 3]), Ok(vec![2, 0]));
        assert_eq!(check(&[("input_ids", 1)], [2, 3]), Ok(vec![1, 0]));
        for (names, before, problem) in [
            (&[("input_ids", 1)][..], [0, 0], "`source_ids` is missing: the sequence has no source yet"),
            (&[("source_ids", 0), ("input_ids", 1)], [0, 0], "the sequence has no source yet"),
            (&[("source_kinds", 2), ("input_ids", 1)], [0, 0], "`source_ids` is missing"),
            (&[("source_ids", 1), ("input_ids", 1)], [0, 3], "`source_ids` is given again"),
            (&[("source_kinds", 3), ("input_ids", 1)], [2, 3], "`source_kinds` is given again"),
            (&[("source_ids", 3), ("source_kinds", 2)], [0, 0], "input `source_ids` has 3"),
            (&[("source_ids", 3), ("kinds", 2)], [0, 0], "`input_ids` is missing"),
            (&[], [0, 3], "`input_ids` is missing"),
            (&[("input_ids", 0)], [0, 3], "without tokens"),
        ] {
            let error = check(names, before).unwrap_err();
            assert!(error.contains(problem), "{problem} is not in: {error}");
        }
    }
}
