//! `xfc check`: reads and expands cards, and reports everything that is wrong with each.

use xfc_lang::diagnostic::Report;
use xfc_lang::{ElaborateOptions, elaborate, load_card, tiny};

use crate::args::CheckArgs;
use crate::error::{CliError, Result};
use crate::model::{library, read_json};
use crate::output::print;
use xfc_lang::view::digits;

/// Runs the subcommand.
///
/// # Errors
/// At least one card is wrong.
#[expect(clippy::print_stderr, reason = "a command's messages")]
pub(crate) fn run(args: &CheckArgs) -> Result<()> {
    let library = library(args.models.as_deref())?;
    let config = args.config.as_deref().map(read_json).transpose()?;
    let config_name = args.config.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let cards: Vec<String> = if args.cards.is_empty() {
        library.own_cards().into_iter().map(str::to_owned).collect()
    } else {
        args.cards.clone()
    };
    let mut wrong: Vec<(String, Report)> = Vec::new();
    let mut results = Vec::new();
    for card in &cards {
        let checked = load_card(card, &library).and_then(|spec| {
            let options = ElaborateOptions {
                config: config.clone(),
                config_name: config_name.clone(),
                ..ElaborateOptions::default()
            };
            elaborate(&spec, &if args.tiny { tiny(&spec, &options)? } else { options })
        });
        match checked {
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
        eprint!("{report}");
    }
    Err(last.into())
}
