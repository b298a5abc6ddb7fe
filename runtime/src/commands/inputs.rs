//! Reads a file of named inputs, JSON or safetensors, as a model takes them.

use crate::artifact::manifest::{DType, Input, Manifest};
use crate::error::{Result, RuntimeError};
use crate::step::InputData;
use crate::weights::{Checkpoint, Stored, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value as Json};
use std::path::Path;

/// Inputs by name, with the leading batch taken off.
pub(super) type Named = Vec<(String, InputData)>;

/// How files begin that are neither JSON nor safetensors and are often at hand.
const NUMPY: [(&[u8], &str); 2] =
    [(b"\x93NUMPY", "one array of NumPy"), (b"PK\x03\x04", "an archive, as numpy.savez writes")];

/// Numbers with their shape, before it is known what they are for.
struct Array {
    shape: Vec<u64>,
    values: InputData,
}

/// Reads the inputs of `manifest` from `path`.
///
/// # Errors
/// The file cannot be read, names an input that the model does not have, or has another shape or type.
pub(super) fn read(path: &Path, manifest: &Manifest) -> Result<Named> {
    let refuse = |problem: String| {
        RuntimeError::input(
            path.display().to_string(),
            problem,
            "give named inputs, such as {\"input_ids\": [1, 2, 3]}",
        )
    };
    let bytes = std::fs::read(path).map_err(|source| RuntimeError::io(path, "read", source))?;
    let is_json =
        bytes.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|&byte| byte == b'{' || byte == b'[');
    if let Some((_, what)) = NUMPY.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(RuntimeError::input(
            path.display().to_string(),
            format!("is {what}"),
            "store named arrays with safetensors.numpy.save_file({\"input_ids\": array}, path), or as JSON",
        ));
    }
    let arrays: Vec<(String, Array)> = if is_json {
        let json: Json = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        from_json(&json).map_err(refuse)?
    } else {
        let checkpoint = Checkpoint::open(path)?;
        let Checkpoint::Stored(stored) = &checkpoint else { return Ok(Vec::new()) };
        let array = |(name, tensor): (&str, &Tensor)| {
            Ok((name.to_owned(), from_tensor(stored, tensor).map_err(|problem| format!("`{name}`: {problem}"))?))
        };
        stored.tensors().map(array).collect::<Result<_, String>>().map_err(refuse)?
    };
    let mut inputs = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        match manifest.inputs.iter().find(|input| input.name == name) {
            Some(input) => {
                let data = fit(input, manifest.extents[input.axis], array)
                    .map_err(|problem| refuse(format!("`{name}`: {problem}")))?;
                inputs.push((name, data));
            }
            None if name == "attention_mask" && all_ones(&array.values) => {
                // Says that nothing is padding; a batch of one has none.
            }
            None => {
                let names: Vec<&str> = manifest.inputs.iter().map(|input| input.name.as_str()).collect();
                return Err(refuse(format!("the model has no input `{name}`, it has {}", names.join(", "))));
            }
        }
    }
    Ok(inputs)
}

/// Most elements that the inputs put on an axis that `wanted` is true of.
pub(super) fn longest(manifest: &Manifest, inputs: &Named, wanted: impl Fn(usize) -> bool) -> u64 {
    let elements = |(name, data): &(String, InputData)| {
        let input = manifest.inputs.iter().find(|input| input.name == *name).filter(|input| wanted(input.axis))?;
        Some(data.len() as u64 / input.dims.iter().product::<u64>().max(1))
    };
    inputs.iter().filter_map(elements).max().unwrap_or(0)
}

fn all_ones(values: &InputData) -> bool {
    match values {
        InputData::Ints(values) => values.iter().all(|&value| value == 1),
        InputData::Floats(values) => values.iter().all(|&value| value == 1.0),
    }
}

/// Checks the shape, takes off a batch of one, and converts where nothing is lost. `extent` is the number of elements that every sequence has;
/// what there is one of may be given without a dimension for it.
fn fit(input: &Input, extent: Option<u64>, array: Array) -> Result<InputData, String> {
    let rank = input.dims.len() + 1;
    let one = [&[1], array.shape.as_slice()].concat();
    let dims = match array.shape.as_slice() {
        shape if extent == Some(1) && shape == input.dims => &one[..],
        [1, rest @ ..] if rest.len() == rank => rest,
        [batch, rest @ ..] if rest.len() == rank => return Err(format!("a batch of {batch}, expected at most 1")),
        shape => shape,
    };
    if dims.len() != rank || dims[1..] != input.dims {
        return Err(format!(
            "shape {:?}, expected [elements{}]",
            array.shape,
            input.dims.iter().map(|dim| format!(", {dim}")).collect::<String>()
        ));
    }
    let float = matches!(input.dtype, DType::F32 | DType::F16 | DType::BF16);
    match (array.values, float) {
        (InputData::Ints(values), true) => {
            Ok(InputData::Floats(values.into_iter().map(|value| value as f32).collect()))
        }
        (InputData::Floats(_), false) => Err(format!("floating-point numbers, expected {:?}", input.dtype)),
        (values, _) => Ok(values),
    }
}

/// The members of an object, or of its member `forward`.
fn from_json(json: &Json) -> Result<Vec<(String, Array)>, String> {
    let object = json.as_object().ok_or("is not an object")?;
    let object: &Map<String, Json> = object.get("forward").and_then(Json::as_object).unwrap_or(object);
    let member = |(name, value): (&String, &Json)| {
        let array = from_list(value).map_err(|problem| format!("`{name}`: {problem}"))?;
        Ok((name.clone(), array))
    };
    object.iter().map(member).collect()
}

/// Nested lists of numbers, all of one length at each depth.
fn from_list(value: &Json) -> Result<Array, String> {
    let mut shape = Vec::new();
    let mut level = vec![value];
    while let Some(Json::Array(first)) = level.first() {
        let n = first.len();
        let mut next = Vec::with_capacity(level.len() * n);
        for value in &level {
            let list =
                value.as_array().filter(|list| list.len() == n).ok_or("lists of one depth have different lengths")?;
            next.extend(list);
        }
        shape.push(n as u64);
        level = next;
    }
    let number = |value: &&Json| {
        if value.is_number() || value.is_boolean() { Ok(()) } else { Err(format!("{value} is not a number")) }
    };
    level.iter().try_for_each(number)?;
    let int = |value: &&Json| value.as_i64().or_else(|| value.as_bool().map(i64::from));
    let values = match level.iter().map(int).collect::<Option<Vec<i64>>>() {
        Some(ints) => InputData::Ints(ints),
        None => InputData::Floats(level.iter().map(|value| value.as_f64().unwrap_or_default() as f32).collect()),
    };
    Ok(Array { shape, values })
}

fn from_tensor(stored: &Stored, tensor: &Tensor) -> Result<Array, String> {
    let bytes = stored.bytes(tensor);
    let dtype = tensor.dtype().ok_or("stored in blocks, expected plain numbers")?;
    let values = match dtype {
        Dtype::I64 => InputData::Ints(bytes.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).collect()),
        Dtype::I32 => InputData::Ints(bytes.as_chunks().0.iter().map(|x| i32::from_le_bytes(*x).into()).collect()),
        Dtype::BOOL | Dtype::U8 => InputData::Ints(bytes.iter().map(|&x| x.into()).collect()),
        Dtype::F64 => InputData::Floats(bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x) as f32).collect()),
        Dtype::F32 => InputData::Floats(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()),
        Dtype::F16 => InputData::Floats(bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect()),
        Dtype::BF16 => {
            InputData::Floats(bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect())
        }
        other => return Err(format!("stored as {other:?}, expected I64, I32, BOOL, U8, F64, F32, F16 or BF16")),
    };
    Ok(Array { shape: tensor.shape.clone(), values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::sample;

    fn read_text(text: &str) -> Result<Named> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.json");
        std::fs::write(&path, text).unwrap();
        read(&path, &sample::manifest())
    }

    #[test]
    fn lists_with_and_without_a_batch() {
        let expected = vec![("input_ids".to_owned(), InputData::Ints(vec![1, 2, 3]))];
        assert_eq!(read_text(r#"{"input_ids": [1, 2, 3]}"#).unwrap(), expected);
        assert_eq!(
            read_text(r#" {"forward": {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]}, "steps": 4}"#)
                .unwrap(),
            expected
        );
        assert_eq!(longest(&sample::manifest(), &expected, |axis| axis == 0), 3);
        for (text, problem) in [
            (r#"{"input_ids": [[1], [2]]}"#, "a batch of 2"),
            (r#"{"input_ids": [[1, 2], 3]}"#, "different lengths"),
            (r#"{"input_ids": [[1, 2], [3]]}"#, "different lengths"),
            (r#"{"input_ids": 3}"#, "shape []"),
            (r#"{"input_ids": ["a"]}"#, "not a number"),
            (r#"{"input_ids": [0.5]}"#, "floating-point"),
            (r#"{"ids": [1]}"#, "no input `ids`, it has input_ids, kinds"),
            (r#"{"input_ids": [1], "attention_mask": [0]}"#, "no input `attention_mask`"),
            ("[1]", "not an object"),
            ("{", "not JSON"),
            ("", "inputs.json"),
        ] {
            let error = read_text(text).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("inputs.json"), "{error}");
        }
    }

    #[test]
    fn arrays_of_numpy_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        for (bytes, what) in
            [(&b"\x93NUMPY\x01\0v\0{'descr': "[..], "one array of NumPy"), (b"PK\x03\x04..", "an archive")]
        {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path, &sample::manifest()).unwrap_err();
            assert!(error.to_string().contains(what) && error.help().is_some_and(|help| help.contains("safetensors")));
        }
    }

    #[test]
    fn safetensors() {
        use safetensors::tensor::TensorView;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.safetensors");
        let data: Vec<u8> = [4i32, 5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I32, vec![1, 2], &data).unwrap();
        std::fs::write(&path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
        assert_eq!(read(&path, &sample::manifest()).unwrap(), [("input_ids".to_owned(), InputData::Ints(vec![4, 5]))]);
    }
}
