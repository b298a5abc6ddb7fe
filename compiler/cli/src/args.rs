//! The command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, value_parser};
use xfc_lang::passes::quantise::{Plan, PlanError};
use xfc_runtime::commands::{BenchArgs, CacheArgs, DevicesArgs, EXIT_CODES, EmbedArgs, LogitsArgs, RunArgs};

use crate::eval::EvalArgs;
use crate::quant::QuantArgs;
use crate::tune::TuneArgs;
use crate::verify::VerifyArgs;

/// Most positions of a context: what a session can number.
const MOST_CONTEXT: u64 = u32::MAX as u64;

/// Compiles transformers that are described in text files, runs them, and shows what they are and what they cost
#[derive(Debug, Parser)]
#[command(name = "xfc", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line. A comparison of two models needs no third, and some commands take nothing that is compiled.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command().mut_subcommand("inspect", |inspect| {
        inspect.mut_arg("model", |model| model.required(false).default_value("").hide_default_value(true))
    });
    ["compile", "verify", "quant"].into_iter().fold(command, |command, name| {
        let help = "A checkpoint folder, a .gguf file, or a card (file or name)";
        command.mut_subcommand(name, |of| of.mut_arg("model", |model| model.help(help)))
    })
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile a model into an artifact (.xfm)
    Compile(CompileArgs),
    /// Print a summary of a model, or a stage of it: its graph, its fused graph, its kernels, its plan
    Inspect(InspectArgs),
    /// Compare models as a survey does: a table of what they are and what they cost, and their block diagrams side by side
    Compare(CompareArgs),
    /// Check cards, and report everything that is wrong with them
    Check(CheckArgs),
    /// Generate text or tokens
    Run(RunCommand),
    /// Compute a model's outputs at every position
    Logits(LogitsCommand),
    /// Compute sentence embeddings and their similarities
    Embed(EmbedCommand),
    /// Measure speed, and how far it is from what this machine can do
    Bench(BenchCommand),
    /// Check compiled code against the interpreter, or against values computed elsewhere
    Verify(VerifyArgs),
    /// Measure perplexity over a text, and how far two runs are apart
    Eval(EvalArgs),
    /// Measure which schedules are fastest here, and write the profile that compiling reads
    Tune(TuneArgs),
    /// Find which matrices bear few bits, and a plan that holds each in a format of its own
    Quant(QuantArgs),
    /// List the GPUs that code runs on here
    Devices(DevicesArgs),
    /// Show or empty the folder in which compiled models and packed weights are kept
    #[command(subcommand)]
    Cache(CacheArgs),
    /// Explain an error code: what it means, an example, the remedy
    Explain(ExplainArgs),
    /// Tell about an operation, or a module or function of the library
    Doc(DocArgs),
}

/// A model, and how it is compiled.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// A checkpoint folder, a .gguf file, a card (file or name), or an artifact
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Sizes from this config.json instead of the card's published ones
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set a size, over the config, or a line of the wiring: `layer.h = x + norm(attn(x))`; may repeat
    #[arg(long = "set", value_name = "SIZE=VALUE|LINE")]
    pub(crate) set: Vec<String>,
    /// A small model of the same pattern: every kind of layer, the same ratios, random weights
    #[arg(long)]
    pub(crate) tiny: bool,
    /// Generate code for: cpu (this machine), cpu:LEVEL or cpu:PROCESSOR with any +FEATURE; may repeat
    #[arg(long, value_name = "TARGET", long_help = target_help())]
    pub(crate) target: Vec<String>,
    /// Type of weights and of the inputs of products
    #[arg(long, value_enum, default_value_t = DTypeArg::F32)]
    pub(crate) dtype: DTypeArg,
    /// Type of what caches keep of each token [default: that of `--dtype`]
    #[arg(long, value_enum)]
    pub(crate) kv_cache_dtype: Option<CacheArg>,
    /// Hold the matrices of products in few bits, in groups with a scale: `int4:g64`, for some modules otherwise:
    /// `int4:g64,down_proj=int8:g32,lm_head=none`. Formats are int8, int4, uint8 and uint4 (with a minimum), fp8 (E4M3), groups 32, 64 and 128.
    /// `@FILE` reads it from a file; `auto:4.5bpw` finds what loses least with so many bits a weight;
    /// `stored` holds what a checkpoint stores in few bits so, which is done where nothing is said
    #[arg(long, value_name = "FORMAT[,PATTERN=FORMAT]|@FILE|auto:BITS", value_parser = parse_quant)]
    pub(crate) quant: Option<Quant>,
    /// With `--quant auto:`: the text on which formats are measured [default: none, the rounding of the weights decides]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Cards of this folder before those built in; where it has a `lib`, that instead of the library
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
    /// The GGUF file whose names and sizes a card is compiled for; set by a command that has an option for it
    #[arg(skip)]
    pub(crate) gguf: Option<PathBuf>,
    /// Leave out an optional pass; may repeat
    #[arg(long = "skip-pass", value_name = "PASS")]
    pub(crate) skip_pass: Vec<String>,
    /// Schedules from this profile, or `none` [default: what `xfc tune` measured here for the target]
    #[arg(long, value_name = "FILE|none")]
    pub(crate) tuned: Option<String>,
}

/// `--quant`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Quant {
    /// As it is said.
    Plan(Plan),
    /// With so many bits a weight.
    Auto(f64),
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Quant::Plan(plan) => plan.fmt(f),
            Quant::Auto(bits) => write!(f, "auto:{bits}bpw"),
        }
    }
}

fn parse_quant(text: &str) -> Result<Quant, String> {
    let Some(bits) = text.strip_prefix("auto:") else { return parse_plan(text).map(Quant::Plan) };
    let number = bits.strip_suffix("bpw").unwrap_or(bits).parse::<f64>().ok();
    let number = number.filter(|bits| bits.is_finite() && *bits > 0.0);
    number.map(Quant::Auto).ok_or_else(|| format!("'{bits}' is no number of bits a weight: write it as auto:4.5bpw"))
}

pub(crate) fn parse_plan(text: &str) -> Result<Plan, String> {
    let Some(path) = text.strip_prefix('@') else {
        return text.parse().map_err(|wrong: PlanError| wrong.to_string());
    };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: cannot read: {error}"))?;
    text.parse().map_err(|wrong: PlanError| format!("{path}: {wrong}"))
}

/// What is changed of a model that is only looked at.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ChangeArgs {
    /// Set a size, over the config, or a line of the wiring: `layer.h = x + norm(attn(x))`; may repeat
    #[arg(long = "set", value_name = "SIZE=VALUE|LINE")]
    pub(crate) set: Vec<String>,
    /// A small model of the same pattern: every kind of layer, the same ratios
    #[arg(long)]
    pub(crate) tiny: bool,
}

fn target_help() -> String {
    format!(
        "Generate code for this machine (cpu), for every processor of a level (cpu:x86-64-v3) or for a processor (cpu:znver5), with any further \
         features (cpu:x86-64-v4+avx512bf16+avx512vnni). Repeated, one artifact carries all, and the runtime picks the best that the machine \
         can run. The {}",
        xfc_codegen::target::known()
    )
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DTypeArg {
    /// 32-bit floats.
    F32,
    /// bfloat16 weights and inputs of products; sums, norms and residuals in f32.
    Bf16,
}

/// `--kv-cache-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// Integers of 8 bits, with a scale for each token and head.
    Int8,
    /// Floats of 8 bits (E4M3), with a scale for each token and head.
    Fp8,
}

/// `xfc compile`.
#[derive(Args, Debug)]
pub(crate) struct CompileArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Write the artifact here [default: the model's name with .xfm, in this folder]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Print time per stage and the number of distinct kernels
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Compiling threads [default: all]
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print what was compiled as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For Graphviz.
    Dot,
    /// A drawing.
    Svg,
    /// A page to look around in: one file, for any browser.
    Html,
}

/// `xfc inspect`.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// spec, arch, graph, fused, mlir, llvm, asm or plan [default: a summary as text, arch as a drawing, else fused]
    #[arg(long, value_name = "STAGE")]
    pub(crate) emit: Option<xfc_codegen::driver::Stage>,
    /// Only this layer
    #[arg(long, value_name = "N")]
    pub(crate) layer: Option<usize>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = FormatArg::Text)]
    pub(crate) format: FormatArg,
    /// List the values that `--tap` takes, in the order they are computed, instead of a stage
    #[arg(long)]
    pub(crate) values: bool,
    /// List where each parameter lies in a checkpoint: the stored tensor, its shape, our path, instead of a stage
    #[arg(long, conflicts_with = "values")]
    pub(crate) names: bool,
    /// Run only the first N passes, of the graph that is shown
    #[arg(long = "pass-limit", value_name = "N", conflicts_with_all = ["values", "names", "cache", "cost"])]
    pub(crate) pass_limit: Option<usize>,
    /// What differs: from MODEL to another model, between two models, or between two stages of MODEL (arch, graph, fused)
    #[arg(long, value_name = "A [B]", num_args = 1..=2, conflicts_with = "cache")]
    pub(crate) diff: Vec<String>,
    /// What is kept of each token and for how long, with the derivation
    #[arg(long, conflicts_with_all = ["emit", "layer", "values", "names"])]
    pub(crate) cache: bool,
    /// What each kernel of a step reads, writes and multiplies, how long a machine needs at least, and what fits into its memory
    #[arg(long, conflicts_with_all = ["cache", "diff", "values", "names", "emit"])]
    pub(crate) cost: bool,
    /// With --cost: a file of a machine's limits (examples/machines/h200.yaml), or `this`, which measures them [default: this]
    #[arg(long, value_name = "this|FILE", requires = "cost")]
    pub(crate) machine: Option<String>,
    /// With --cache and --cost: sequences at a time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// With --cost: the step of a prompt of so many tokens, instead of the one token that ends the context
    #[arg(short, long, value_name = "TOKENS", requires = "cost")]
    pub(crate) prompt: Option<u64>,
    /// With --cache and --cost: the context in tokens [default: 4096, or what the model has]
    #[arg(short, long = "ctx-size", value_name = "TOKENS", value_parser = value_parser!(u64).range(1..=MOST_CONTEXT))]
    pub(crate) ctx_size: Option<u64>,
    /// Write here instead of to the terminal
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `--format` of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareFormat {
    /// A table.
    Text,
    /// For programs, with every layer.
    Json,
    /// Block diagrams and the table in one drawing.
    Svg,
    /// The same as a page: one file, for any browser.
    Html,
}

/// `xfc compare`.
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// Cards (files or names), folders with a config.json, or artifacts; what differs is told against the first
    #[arg(value_name = "MODEL", required = true)]
    pub(crate) names: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = CompareFormat::Text)]
    pub(crate) format: CompareFormat,
    /// Contexts for which memory and arithmetic are told
    #[arg(short, long = "ctx-size", value_name = "TOKENS,..", value_delimiter = ',', default_value = "4096,32768,131072",
          value_parser = value_parser!(u64).range(1..=MOST_CONTEXT))]
    pub(crate) ctx_size: Vec<u64>,
    /// What is changed of each.
    #[command(flatten)]
    pub(crate) changes: ChangeArgs,
    /// Cards and library from this folder instead of those built in
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
    /// Write here instead of to the terminal
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `xfc explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The code in a message's brackets: E0201; without one, all are listed
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
}

/// `xfc doc`.
#[derive(Args, Debug)]
pub(crate) struct DocArgs {
    /// An operation (`attend`), a module or function of the library (`gqa`); without one, all are listed
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The library in this folder instead of the one built in
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
}

/// `xfc check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Cards: files or names; those of `--models`, or all built-in ones, when none is given
    #[arg(value_name = "CARD")]
    pub(crate) cards: Vec<String>,
    /// Sizes from this config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What is changed.
    #[command(flatten)]
    pub(crate) changes: ChangeArgs,
    /// Cards of this folder before those built in; where it has a `lib`, that instead of the library
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
    /// Print the messages as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `xfc run`.
#[derive(Args, Debug)]
pub(crate) struct RunCommand {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) args: RunArgs,
    /// Write this value, for every token that is run, to `--tap-output`; a path, or a pattern with * and **; may repeat
    #[arg(long, value_name = "PATH", requires = "tap_output")]
    pub(crate) tap: Vec<String>,
    /// Write tapped values here: safetensors, f32
    #[arg(short = 'o', long, value_name = "FILE", requires = "tap")]
    pub(crate) tap_output: Option<PathBuf>,
}

/// `xfc logits`.
#[derive(Args, Debug)]
pub(crate) struct LogitsCommand {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) args: LogitsArgs,
    /// Write this value too, beside the outputs; a path, or a pattern with * and **; may repeat
    #[arg(long, value_name = "PATH")]
    pub(crate) tap: Vec<String>,
}

/// `xfc embed`.
#[derive(Args, Debug)]
pub(crate) struct EmbedCommand {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) args: EmbedArgs,
}

/// `xfc bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchCommand {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) args: BenchArgs,
}
