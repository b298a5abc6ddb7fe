//! `xfc eval`: perplexity over a text, and how far that run is from another one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use xfc_check::eval::{Against, CLEAR_MARGIN, Evaluation, Mean, Window, evaluate, vocabulary, windows};
use xfc_check::records::{Record, Recorder};
use xfc_lang::passes::quantise::Plan;
use xfc_runtime::commands::LoadArgs;
use xfc_runtime::files::check_writable;
use xfc_runtime::model::Model;
use xfc_runtime::session::SessionOptions;
use xfc_runtime::text::tokenizer::SpecialTokens;

use crate::args::{DTypeArg, ModelArgs, Quant, parse_plan};
use crate::error::{CliError, Result};
use crate::output::{print, remark};
use crate::run::open;

/// Tokens of a window where neither the caller nor the model says.
const CONTEXT: u64 = 512;

/// `xfc eval`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("given").args(["text", "token_file"]).required(true)))]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// The text, read with the checkpoint's tokenizer
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Token ids instead of a text: a JSON list, or numbers with spaces, commas or lines between
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Tokens of a window [default: 512, or what the model allows]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u64>,
    /// Tokens from one window to the next; only tokens that no window before scored are scored [default: half a window]
    #[arg(long, value_name = "N")]
    stride: Option<u64>,
    /// Only the first N windows
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// Write the logits of every scored token here, for `--against` of another run
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with what `--save` wrote, or with another model run on the same windows
    #[arg(long, value_name = "FILE|MODEL")]
    against: Option<String>,
    /// Type of the other model's weights
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = DTypeArg::F32)]
    against_dtype: DTypeArg,
    /// How the other model's matrices are held, as `--quant`
    #[arg(long, value_name = "FORMAT", value_parser = parse_plan)]
    against_quant: Option<Plan>,
    /// Weights of the other model [default: its own folder, else those of this one]
    #[arg(long, value_name = "PATH|random")]
    against_checkpoint: Option<String>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// The model cannot be compiled or loaded, it does not predict tokens, the text cannot be read, or the other run is of another text.
pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let started = Instant::now();
    // Before anything is compiled for it.
    for path in args.text.iter().chain(&args.token_file) {
        File::open(path).map_err(|e| CliError::file(path, format!("cannot read: {e}")))?;
    }
    args.save.as_deref().map(check_writable).transpose()?;
    let mut load = args.load.clone();
    let artifact = open(&args.model, &mut load, &[])?;
    let tokens = tokens(args.text.as_deref(), args.token_file.as_deref(), &load)?;
    let model = load.load(&artifact, &SessionOptions::least())?;
    let width = vocabulary(&model)?;
    let (context, windows) = cut(args, &model, tokens.len())?;
    let longest = windows.iter().map(|w| (w.end - w.start) as u64).max().unwrap_or(0);
    if let Some(warning) = load.beyond_training(longest)? {
        remark(warning);
    }
    let against = args.against.as_deref().map(|other| against(args, other, &load, &tokens, &windows)).transpose()?;
    let recorder = args.save.as_deref().map(|path| Recorder::create(path, &tokens, &windows, width)).transpose()?;
    let mut recorder = recorder;

    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} windows, {msg}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(windows.len() as u64).with_style(style);
    let mut progress = |done: usize, loss: &Mean| {
        bar.set_message(format!("perplexity {:.4}", loss.perplexity()));
        bar.set_position(done as u64);
    };
    let found = evaluate(&model, &tokens, &windows, against.as_ref(), recorder.as_mut(), &mut progress);
    bar.finish_and_clear();
    let found = found?;
    if let Some(recorder) = recorder {
        recorder.finish()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print(format!("{:#}", as_json(args, &found, context, tokens.len(), seconds)));
    } else {
        print(as_text(args, &found, context, seconds));
    }
    Ok(())
}

/// The tokens of a text, or of a file of token ids; none of neither.
pub(crate) fn tokens(text: Option<&Path>, token_file: Option<&Path>, load: &LoadArgs) -> Result<Vec<i64>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|e| CliError::file(path, format!("cannot read as text: {e}")))
    };
    if let Some(path) = token_file {
        let text = read(path)?;
        let separators = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
        let id = |word: &str| {
            word.parse::<u32>().map(i64::from).map_err(|_| CliError::file(path, format!("`{word}` is no token id")))
        };
        return text.split(separators).filter(|word| !word.is_empty()).map(id).collect();
    }
    let Some(path) = text else { return Ok(Vec::new()) };
    let text = read(path)?;
    let encoded = load.open_tokenizer()?.encode(&text, SpecialTokens::Add)?;
    Ok(encoded.ids.into_iter().map(i64::from).collect())
}

/// The window size and the windows.
fn cut(args: &EvalArgs, model: &Model, tokens: usize) -> Result<(u64, Vec<Window>)> {
    let most = model.manifest().most_elements(0).unwrap_or(u64::MAX);
    let context = args.ctx_size.unwrap_or(CONTEXT.min(most));
    if context < 2 || context > most {
        let range = if most == u64::MAX { "at least 2".to_owned() } else { format!("from 2 to {most}") };
        return Err(CliError::usage(
            format!("windows of {context} tokens were asked for"),
            format!("give `-c` {range}"),
        ));
    }
    let stride = args.stride.unwrap_or(context / 2);
    if stride == 0 || stride > context {
        return Err(CliError::usage(
            format!("a stride of {stride} was asked for"),
            format!("give `--stride` from 1 to the {context} tokens of a window"),
        ));
    }
    let mut windows = windows(tokens, context as usize, stride as usize);
    windows.truncate(args.chunks.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX));
    if windows.is_empty() {
        return Err(CliError::usage(
            format!("the text has {tokens} tokens, and nothing to score"),
            "give a text of at least two tokens",
        ));
    }
    Ok((context, windows))
}

/// What the run is compared with.
fn against(args: &EvalArgs, other: &str, load: &LoadArgs, tokens: &[i64], windows: &[Window]) -> Result<Against> {
    let path = Path::new(other);
    if path.is_file() && path.extension().is_none_or(|e| e != "xfm" && e != "yaml") {
        return Ok(Against::Record(Record::open(path, tokens, windows)?));
    }
    let model = ModelArgs {
        model: other.to_owned(),
        dtype: args.against_dtype,
        kv_cache_dtype: None,
        quant: args.against_quant.clone().map(Quant::Plan),
        calibration: None,
        ..args.model.clone()
    };
    let own = args.against_checkpoint.clone();
    let own = own.or_else(|| if path.is_dir() { None } else { load.checkpoint.clone() });
    let mut load = LoadArgs { checkpoint: own, target: None, ..load.clone() };
    let artifact = open(&model, &mut load, &[])?;
    let model: Arc<Model> = load.load(&artifact, &SessionOptions::least())?;
    vocabulary(&model)?;
    Ok(Against::Model(model))
}

fn as_text(args: &EvalArgs, found: &Evaluation, context: u64, seconds: f64) -> String {
    let loss = &found.loss;
    let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    // Of one token nothing is known of how far another would be.
    let perplexity = |loss: &Mean| match found.scored {
        1 => format!("perplexity {:.4}", loss.perplexity()),
        _ => format!("perplexity {:.4} ± {:.4}", loss.perplexity(), loss.perplexity_error()),
    };
    let mut out = format!(
        "{} over {} in {} of {context} ({:.4} nats a token, {seconds:.1} s)",
        perplexity(loss),
        counted(found.scored, "token"),
        counted(found.windows, "window"),
        loss.mean(),
    );
    let (Some(d), Some(other)) = (&found.divergence, &args.against) else { return out };
    let share = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
    out.push_str(&format!("\nagainst {other}: {}", perplexity(&d.other)));
    out.push_str(&format!(
        "\nKL divergence from it: mean {:.3e}, median {:.3e}, 99 % {:.3e}, largest {:.3e} nats",
        d.mean(),
        d.quantile(0.5),
        d.quantile(0.99),
        d.quantile(1.0)
    ));
    out.push_str(&format!(
        "\nsame best token: {:.3} % of {}; {:.3} % of the {} whose best is ahead by more than {CLEAR_MARGIN} standard deviations",
        share(d.agree, found.scored),
        found.scored,
        share(d.clear_agree, d.clear),
        d.clear
    ));
    out
}

fn as_json(args: &EvalArgs, found: &Evaluation, context: u64, tokens: usize, seconds: f64) -> serde_json::Value {
    let loss = &found.loss;
    let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
    let against = found.divergence.as_ref().map(|d| {
        json!({
            "run": args.against, "perplexity": d.other.perplexity(),
            "kl": {"mean": d.mean(), "median": d.quantile(0.5), "p99": d.quantile(0.99), "largest": d.quantile(1.0)},
            "top1": share(d.agree, found.scored), "top1_clear": share(d.clear_agree, d.clear), "clear_tokens": d.clear,
        })
    });
    json!({
        "perplexity": loss.perplexity(), "perplexity_error": (found.scored > 1).then(|| loss.perplexity_error()), "nats": loss.mean(),
        "tokens": tokens, "scored": found.scored, "windows": found.windows, "ctx_size": context,
        "stride": args.stride.unwrap_or(context / 2), "against": against, "seconds": seconds,
    })
}
