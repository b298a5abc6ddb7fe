//! `xfc quant`: what each matrix loses when it is held in fewer bits, and the plan that loses least with so many bits a weight.

use std::fs::File;
use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};
use serde_json::json;
use xfc_check::mixed::Sensitivity;
use xfc_check::units::Grain;
use xfc_lang::graph::blocks::Blocks;
use xfc_lang::view::digits;
use xfc_runtime::commands::LoadArgs;
use xfc_runtime::files::{check_writable, write_atomic};

use crate::args::ModelArgs;
use crate::auto::{self, Chosen, Found, MIXED_FORMATS, Search, TOKENS, format_name, short};
use crate::error::{CliError, Result};
use crate::eval::tokens;
use crate::model::{self, Named};
use crate::output::{print, remark};

/// Formats that are told where no plan is wanted.
const TOLD_FORMATS: [&str; 2] = ["int4:g32", "int8:g32"];

/// `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// Each kind of matrix over all layers.
    Kind,
    /// Each kind of matrix over a quarter of the layers.
    Block,
    /// Each matrix of each layer.
    Module,
}

/// `xfc quant`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("wanted").args(["sensitivity", "bits"]).required(true).multiple(true)))]
pub(crate) struct QuantArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// The text that runs are compared on, read with the checkpoint's tokenizer; without one, how far rounding moves the weights decides
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    text: Option<PathBuf>,
    /// Token ids instead of a text: a JSON list, or numbers with spaces, commas or lines between
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Only so many tokens of the text
    #[arg(long, value_name = "N", default_value_t = TOKENS as u64, value_parser = value_parser!(u64).range(2..))]
    first: u64,
    /// Tokens of a window [default: 512, or what the model allows]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u64>,
    /// Rank modules by what the model loses when each alone is held in each format
    #[arg(long)]
    sensitivity: bool,
    /// Find the plan that loses least with at most so many bits a weight
    #[arg(long, value_name = "BITS")]
    bits: Option<f64>,
    /// Formats that are tried, `none` among them [default: int4:g32,int8:g32; for a plan int4:g128,int4:g64,int4:g32,uint4:g32,int8:g128]
    #[arg(long, value_name = "FORMAT,..", value_delimiter = ',')]
    formats: Vec<String>,
    /// What is held in one way
    #[arg(long, value_enum, default_value_t = By::Block)]
    by: By,
    /// Write the plan here, for `--quant @FILE`, instead of to the terminal
    #[arg(short, long, value_name = "FILE", requires = "bits")]
    output: Option<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// There is no checkpoint, the bits cannot be reached, the text is too short, and all that compiling and running can fail with.
pub(crate) fn run(args: &QuantArgs) -> Result<()> {
    let formats = formats(args)?;
    if args.bits.is_some_and(|bits| !bits.is_finite() || bits <= 0.0) {
        return Err(CliError::usage("`--bits` is no number of bits a weight", "give a number as 4.5"));
    }
    if args.model.quant.is_some() || args.model.calibration.is_some() {
        return Err(CliError::usage(
            "`--quant` is what this command finds",
            "name formats with `--formats`, and the text with `--text`",
        ));
    }
    if args.sensitivity && args.text.is_none() && args.token_file.is_none() {
        return Err(CliError::usage(
            "the sensitivity of modules is measured on a text, and none was given",
            "give `--text FILE`; `--bits` alone needs none",
        ));
    }
    for path in args.text.iter().chain(&args.token_file) {
        File::open(path).map_err(|e| CliError::file(path, format!("cannot read: {e}")))?;
    }
    args.output.as_deref().map(check_writable).transpose()?;
    let named = model::name(&args.model.model)?;
    if let Named::Artifact(path) = &named {
        return Err(CliError::usage(
            format!("{} is compiled: how its matrices are held is decided", path.display()),
            "give the card or the checkpoint folder",
        ));
    }
    let mut load = args.load.clone();
    load.check()?;
    match &named {
        _ if load.checkpoint.is_some() => {}
        Named::Checkpoint(path) | Named::Gguf(path) => load.checkpoint = Some(path.display().to_string()),
        _ if args.model.tiny => load.checkpoint = Some("random".to_owned()),
        _ => {
            return Err(CliError::usage(
                "there are no weights to measure",
                "give a checkpoint folder, or a card with `--checkpoint PATH`",
            ));
        }
    }
    let model = model::with_config_of(load.checkpoint.as_deref(), &named, &args.model);
    let loaded = model::load(&named, &model)?;
    let mut text = tokens(args.text.as_deref(), args.token_file.as_deref(), &load)?;
    text.truncate(usize::try_from(args.first).unwrap_or(usize::MAX));
    if text.len() < 2 && (args.text.is_some() || args.token_file.is_some()) {
        return Err(CliError::usage(
            format!("the text has {} tokens, and nothing to score", text.len()),
            "give a text of some hundred tokens",
        ));
    }
    let grain = match args.by {
        By::Kind => Grain::Kind,
        By::Block => Grain::Block,
        By::Module => Grain::Module,
    };
    let search = Search {
        loaded: &loaded,
        args: &model,
        load: &load,
        tokens: &text,
        context: args.ctx_size,
        grain,
        formats: &formats,
        bits: args.bits,
    };
    let found = search.run()?;
    if args.json {
        print(format!("{:#}", as_json(&found)));
    } else if args.sensitivity {
        print(table(&found.sensitivity));
    }
    if let Some(chosen) = &found.chosen {
        match &args.output {
            Some(path) => write_atomic(path, chosen.text().as_bytes())?,
            None if args.json => {}
            None => print(chosen.text().trim_end()),
        }
        summary(&found, chosen);
    }
    Ok(())
}

fn formats(args: &QuantArgs) -> Result<Vec<Option<Blocks>>> {
    let names: Vec<&str> = match (args.formats.is_empty(), args.bits) {
        (false, _) => args.formats.iter().map(|name| name.trim()).collect(),
        (true, Some(_)) => MIXED_FORMATS.to_vec(),
        (true, None) => TOLD_FORMATS.to_vec(),
    };
    let mut formats: Vec<Option<Blocks>> = Vec::new();
    for name in names {
        let format = auto::format(name)?;
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    Ok(formats)
}

/// What a unit loses in a format.
struct Line<'a> {
    unit: &'a str,
    weights: u64,
    format: String,
    /// Bits a weight.
    bits: f64,
    cost: f64,
    /// What is lost for each million bits that are saved; `None`: none are.
    per_saved: Option<f64>,
}

/// All that was measured, what loses most first.
fn lines(found: &Sensitivity) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for (u, unit) in found.units.iter().enumerate() {
        for (f, format) in found.formats.iter().enumerate() {
            let (bits, weights, cost) = (found.bits(u, f), unit.weights(), found.costs[u][f]);
            let saved = (weights * found.plain_bits) as f64 - bits as f64;
            lines.push(Line {
                unit: &unit.name,
                weights,
                format: format_name(*format),
                bits: bits as f64 / weights.max(1) as f64,
                cost,
                per_saved: (saved > 0.0).then(|| cost / saved * 1e6),
            });
        }
    }
    lines.sort_by(|a, b| b.cost.total_cmp(&a.cost));
    lines
}

fn table(found: &Sensitivity) -> String {
    let lines = lines(found);
    let width = lines.iter().map(|line| line.unit.len()).max().unwrap_or(0).max("module".len());
    let mut text = format!(
        "{:width$}  {:>13}  {:9}  {:>6}  {:>10}  {:>16}\n",
        "module", "weights", "format", "bits", "KL, nats", "per Mbit saved"
    );
    for line in lines {
        let per_saved = line.per_saved.map_or("-".to_owned(), |x| format!("{x:.3e}"));
        text.push_str(&format!(
            "{:width$}  {:>13}  {:9}  {:>6}  {:>10.3e}  {per_saved:>16}\n",
            line.unit,
            digits(line.weights),
            line.format,
            short(line.bits),
            line.cost,
        ));
    }
    text.trim_end().to_owned()
}

/// What the plan is worth, beside what it was expected to be worth and beside one format for all.
fn summary(found: &Found, chosen: &Chosen) {
    let bits = format!(
        "{} bits a weight, of {} weights in {} modules",
        short(chosen.mixture.bits),
        digits(found.sensitivity.weights()),
        found.sensitivity.units.len()
    );
    let (Some(divergence), Some(scored)) = (chosen.divergence, found.scored) else {
        let why = "chosen by the rounding of the weights alone, as there is no text: `--text FILE` measures what it does to predictions";
        return remark(format!("{bits}; {why}"));
    };
    remark(format!(
        "{bits}: divergence {divergence:.3e} nats over {scored} tokens; of each module alone, added up, {:.3e}",
        chosen.mixture.cost
    ));
    match &chosen.uniform {
        Some((plan, Some(single))) => remark(format!("{plan} for all: divergence {single:.3e} nats")),
        Some((_, None)) => {}
        None => remark("no mixture is measured to be better than this one format for all"),
    }
}

fn as_json(found: &Found) -> serde_json::Value {
    let line = |line: Line<'_>| {
        json!({
            "module": line.unit, "weights": line.weights, "format": line.format, "bits": line.bits, "cost": line.cost,
            "cost_per_saved_mbit": line.per_saved,
        })
    };
    let plan = found.chosen.as_ref().map(|chosen| {
        let uniform = chosen.uniform.as_ref().map(|(plan, kl)| json!({"quant": plan.to_string(), "kl": kl}));
        json!({
            "quant": chosen.plan.to_string(), "bits": chosen.mixture.bits, "kl": chosen.divergence, "sum": chosen.mixture.cost,
            "uniform": uniform,
        })
    });
    let lines: Vec<serde_json::Value> = lines(&found.sensitivity).into_iter().map(line).collect();
    let measure = if found.scored.is_some() { "kl" } else { "rounding" };
    json!({"measure": measure, "scored": found.scored, "modules": lines, "plan": plan})
}
