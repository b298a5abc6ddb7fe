//! `xfc check`: reads and expands cards, and reports everything that is wrong with each.

use std::path::Path;

use xfc_lang::diagnostic::Report;
use xfc_lang::spec::apply_sets;
use xfc_lang::{ElaborateOptions, Library, Model, elaborate, load_card, tiny};

use crate::args::CheckArgs;
use crate::error::{CliError, Result};
use crate::model::{self, library, read_json};
use crate::output::{print, remark};
use xfc_lang::view::digits;

/// Runs the subcommand.
///
/// # Errors
/// At least one card is wrong.
pub(crate) fn run(args: &CheckArgs) -> Result<()> {
    let library = library(args.models.as_deref())?;
    let config = args.config.as_deref().map(read_json).transpose()?;
    model::check_sets(&args.changes.set)?;
    args.cards.iter().try_for_each(|card| is_card(card))?;
    let cards: Vec<String> = if args.cards.is_empty() {
        library.own_cards().into_iter().map(str::to_owned).collect()
    } else {
        args.cards.clone()
    };
    let mut wrong: Vec<(String, Report)> = Vec::new();
    let mut results = Vec::new();
    for card in &cards {
        match check(card, args, config.as_ref(), &library) {
            Ok(model) => {
                results.push(serde_json::json!({"card": card, "ok": true, "parameters": model.arch.parameter_count()}));
                if !args.json {
                    print(format!(
                        "{card}: ok, {} parameters in {} distinct graphs",
                        digits(model.arch.parameter_count()),
                        model.program.graphs.len()
                    ));
                }
            }
            Err(report) => {
                results.push(serde_json::json!({"card": card, "ok": false, "diagnostics": report.to_json()}));
                wrong.push((card.clone(), report));
            }
        }
    }
    if args.json {
        print(format!("{:#}", serde_json::Value::Array(results)));
    }
    // All reports but the last are printed here; the last goes the way of every error.
    let Some((_, last)) = wrong.pop() else { return Ok(()) };
    if args.json {
        return Err(CliError::usage(
            format!("{} of {} cards are wrong", wrong.len() + 1, cards.len()),
            "see the diagnostics above",
        ));
    }
    for (_, report) in wrong {
        remark(report.to_string().trim_end_matches('\n'));
    }
    Err(last.into())
}

/// The model of a card.
fn check(
    card: &str,
    args: &CheckArgs,
    config: Option<&serde_json::Value>,
    library: &Library,
) -> std::result::Result<Model, Report> {
    let mut spec = load_card(card, library)?;
    let sets = apply_sets(&mut spec, &args.changes.set)?;
    let config_name = args.config.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    if let Some(config) = config {
        model::warn_ignored(config, &config_name, &spec, library);
    }
    let options = ElaborateOptions { config: config.cloned(), config_name, sets, ..ElaborateOptions::default() };
    elaborate(&spec, &if args.changes.tiny { tiny(&spec, &options)? } else { options })
}

/// Refuses what is no card, though it is there.
fn is_card(name: &str) -> Result<()> {
    let path = Path::new(name);
    let usage = |what: &str, help: String| Err(CliError::usage(format!("{name} is {what}, not a card"), help));
    if path.is_dir() && path.join("config.json").is_file() {
        return usage(
            "a checkpoint's folder",
            format!(
                "give the card, with `--config {}`; `xfc inspect {name}` finds the card itself",
                path.join("config.json").display()
            ),
        );
    }
    if path.is_dir() {
        return usage("a folder", format!("name a card in it, or check all of them with `xfc check --models {name}`"));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") if path.is_file() => usage("a JSON file", format!("give the card, with `--config {name}`")),
        Some("safetensors" | "gguf") if path.is_file() => usage("a file of weights", "give a card".to_owned()),
        Some("xfm") if path.is_file() => usage("compiled", "`xfc inspect` shows what it holds".to_owned()),
        _ => Ok(()),
    }
}
