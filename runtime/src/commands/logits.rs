//! `logits`: all outputs of a model for given inputs, at every position.

use super::{LoadArgs, Output, Tokens, inputs, output_error, tokens};
use crate::artifact::Artifact;
use crate::artifact::manifest::{DType, Input, Manifest};
use crate::error::{Result, RuntimeError};
use crate::files::{check_writable, write_atomic};
use crate::images::Preprocessor;
use crate::session::SessionOptions;
use crate::step::{InputData, StepInput, StepOutput, Wanted};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `logits`, besides the model.
#[derive(clap::Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("given").args(["inputs", "tokens", "image"]).required(true).multiple(true)))]
pub struct LogitsArgs {
    /// Weights, tokenizer, threads.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Inputs by name: JSON ({"input_ids": [...]}, perhaps inside "forward") or safetensors; a leading batch of 1 is allowed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokens", "image"])]
    pub inputs: Option<PathBuf>,
    /// Token ids, instead of a file; once for each input. Without a name they are the prompt
    #[arg(long, value_name = "[NAME=]IDS")]
    pub tokens: Vec<Tokens>,
    /// A PNG or JPEG file for the model's image, prepared as the checkpoint's preprocessor_config.json says
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Write the outputs here: safetensors, f32, by the names in the card
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Print the outputs' shapes as JSON
    #[arg(long)]
    pub json: bool,
}

impl LogitsArgs {
    /// Refuses what would fail whatever the model.
    ///
    /// # Errors
    /// The inputs cannot be read, or the outputs not be written.
    pub fn check(&self) -> Result<()> {
        let readable = |path: &PathBuf| File::open(path).map_err(|source| RuntimeError::io(path, "read", source));
        self.inputs.iter().chain(&self.image).try_for_each(|path| readable(path).map(|_| ()))?;
        check_writable(&self.output)
    }
}

/// Runs the command.
///
/// # Errors
/// What loading, stepping and writing can fail with; the inputs do not fit the model.
pub fn run(artifact: &Artifact, args: &LogitsArgs, output: &mut Output<'_>) -> Result<()> {
    args.check()?;
    let manifest = &*args.load.choose(artifact)?;
    let mut inputs = match &args.inputs {
        Some(file) => inputs::read(file, manifest)?,
        None => {
            let ints = |ids: Vec<u32>| InputData::Ints(ids.into_iter().map(i64::from).collect());
            tokens::by_input(manifest, &args.tokens)?.into_iter().map(|(name, ids)| (name, ints(ids))).collect()
        }
    };
    if let Some(path) = &args.image {
        inputs.push(image(manifest, args.load.folder().as_deref(), path)?);
    }
    let tokens = inputs::longest(manifest, &inputs, |axis| axis == 0);
    check_tokens(manifest, tokens)?;
    let once_tokens = Some(inputs::longest(manifest, &inputs, |axis| axis != 0));
    let options = SessionOptions { context_tokens: Some(tokens.max(1)), once_tokens, ..SessionOptions::default() };
    let mut session = args.load.load(artifact, &options)?.session(&options)?;
    let sequence = session.add_sequence()?;
    let started = Instant::now();
    let outputs = session.step_in_pieces(&StepInput { sequence, inputs, wanted: Wanted::All })?.outputs;
    let seconds = started.elapsed().as_secs_f64();
    write_atomic(&args.output, &to_safetensors(&outputs)?)?;
    for tensor in &outputs {
        // A model may rule out tokens with an infinite logit.
        let bad = tensor.data.iter().filter(|x| x.is_nan() || **x == f32::INFINITY).count();
        if bad > 0 {
            let problem = format!("{bad} of the {} numbers of `{}` are not finite", tensor.data.len(), tensor.name);
            let warning = RuntimeError::NotFinite { problem };
            output.note(format_args!("warning: {warning}; {}\n", warning.help().unwrap_or_default()))?;
        }
    }
    if args.json {
        let shapes: serde_json::Map<_, _> =
            outputs.iter().map(|output| (output.name.clone(), json!(shape(output)))).collect();
        let result = json!({ "output": args.output.display().to_string(), "shapes": shapes, "seconds": seconds });
        return output.print(format_args!("{result}\n"));
    }
    for tensor in &outputs {
        output.note(format_args!("{} {:?}\n", tensor.name, shape(tensor)))?;
    }
    output.note(format_args!("written to {} after {seconds:.3} s\n", args.output.display()))
}

/// The input that takes an image, and what it is given.
fn image(manifest: &Manifest, folder: Option<&Path>, path: &Path) -> Result<(String, InputData)> {
    let is_float = |input: &&Input| matches!(input.dtype, DType::F32 | DType::F16 | DType::BF16);
    let once = |input: &&Input| manifest.extents.get(input.axis) == Some(&Some(1));
    let found = manifest.inputs.iter().filter(is_float).filter(once).find_map(|input| match input.dims[..] {
        [channels, height, width] => Some((input, [channels, height, width])),
        _ => None,
    });
    let none =
        || RuntimeError::request("the model has no input for an image", "give its inputs by name with `--inputs FILE`");
    let (input, dims) = found.ok_or_else(none)?;
    let folder = folder.ok_or_else(|| {
        RuntimeError::request(
            "how the image is prepared is not known, because no checkpoint folder was given",
            "give `--checkpoint PATH`, or the image as numbers with `--inputs FILE`",
        )
    })?;
    Ok((input.name.clone(), InputData::Floats(Preprocessor::open(folder)?.read(path, dims)?)))
}

/// Refuses a source alone: there would be no row of what follows from it.
fn check_tokens(manifest: &Manifest, tokens: u64) -> Result<()> {
    if tokens > 0 || manifest.extents.first().is_none_or(Option::is_some) {
        return Ok(());
    }
    let missing = manifest.inputs.iter().filter(|input| input.axis == 0 && input.default.is_none());
    let missing: Vec<String> = missing.map(|input| format!("`{}`", input.name)).collect();
    Err(RuntimeError::request(
        format!(
            "there are no {}: the outputs would have no rows",
            manifest.axes.first().map_or("tokens", String::as_str)
        ),
        format!("give {}", if missing.is_empty() { "at least one".to_owned() } else { missing.join(" and ") }),
    ))
}

/// Rows and the dimensions of each.
fn shape(output: &StepOutput) -> Vec<usize> {
    let rows = output.data.len() / output.row_len().max(1);
    std::iter::once(rows).chain(output.dims.iter().map(|&dim| dim as usize)).collect()
}

/// The outputs as a safetensors file, all in f32.
pub(super) fn to_safetensors(outputs: &[StepOutput]) -> Result<Vec<u8>> {
    let failed = |error: safetensors::SafeTensorError| output_error("outputs", std::io::Error::other(error));
    let data: Vec<Vec<u8>> =
        outputs.iter().map(|output| output.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = outputs.iter().zip(&data).map(|(output, data)| {
        Ok((output.name.as_str(), TensorView::new(Dtype::F32, shape(output), data).map_err(failed)?))
    });
    let views = views.collect::<Result<Vec<_>, RuntimeError>>()?;
    safetensors::serialize(views, None).map_err(failed)
}
