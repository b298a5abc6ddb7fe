//! `--quant stored`, and what is done without `--quant`: the weights of a checkpoint that are of few bits are held so.

use std::path::Path;

use xfc_check::stored::{StoredWeights, stored};
use xfc_lang::passes::quantise::Plan;
use xfc_runtime::weights::Checkpoint;

use crate::args::{ModelArgs, Quant};
use crate::error::{CliError, Result};
use crate::model::{Loaded, Named};
use crate::output::remark;

/// The path of a model that is its own checkpoint.
pub(crate) fn own_checkpoint(named: &Named) -> Option<String> {
    match named {
        Named::Checkpoint(path) | Named::Gguf(path) => Some(path.display().to_string()),
        Named::Card(_) | Named::Artifact(_) => None,
    }
}

/// The arguments with what the plan says of `checkpoint`, and a note of it: a plan that says `stored`, or, where there is none and the checkpoint
/// has weights of few bits, one that holds all of these as they are stored.
///
/// # Errors
/// `stored` is asked for, and nothing is stored so.
pub(crate) fn resolve(loaded: &mut Loaded, checkpoint: Option<&str>, args: &ModelArgs) -> Result<ModelArgs> {
    let mut args = args.clone();
    let asked = matches!(&args.quant, Some(Quant::Plan(plan)) if plan.asks_for_stored());
    if !asked && args.quant.is_some() {
        return Ok(args);
    }
    let path = checkpoint.filter(|path| *path != "random" && !args.tiny);
    let found = match path.map(|path| Checkpoint::open(Path::new(path))).transpose() {
        Ok(checkpoint) => checkpoint.map(|checkpoint| stored(&loaded.model, &checkpoint)).unwrap_or_default(),
        Err(error) if asked => return Err(error.into()),
        // What reads the weights says what is wrong with them.
        Err(_) => StoredWeights::default(),
    };
    if found.forms.is_empty() {
        return match asked {
            true => Err(CliError::usage(
                match path {
                    Some(path) => format!(
                        "{path} stores no weights in few bits, and `--quant stored` holds them as they are stored"
                    ),
                    None => "`--quant stored` holds weights as a checkpoint stores them, and none is given".to_owned(),
                },
                "give a checkpoint that is quantised, or a format: `--quant int4:g64`",
            )),
            false => Ok(args),
        };
    }
    let told: Vec<String> = found
        .encodings
        .keys()
        .map(|(encoding, blocks)| {
            let again = if blocks.stored { "" } else { " (rounded again)" };
            format!("{encoding} in {}:g{}{again}", blocks.form.name(), blocks.group)
        })
        .collect();
    let instead = if asked { "" } else { "; `--quant none` multiplies them out" };
    remark(format!("{}: matrices are held as they are stored: {}{instead}", path.unwrap_or_default(), told.join(", ")));
    loaded.key.push_str(&format!("\nstored {:?}", found.forms));
    args.quant = Some(Quant::Plan(match args.quant.take() {
        Some(Quant::Plan(plan)) => plan.with_stored(found.forms),
        _ => Plan::stored(found.forms),
    }));
    Ok(args)
}
