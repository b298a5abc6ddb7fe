//! `xfc verify`: compiled code against the interpreter, or a model against values computed elsewhere; the first value that departs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use xfc_check::compare::{Element, Measure, position};
use xfc_check::dump::{self, Dump};
use xfc_check::inputs::Inputs;
use xfc_check::locate::{Located, locate};
use xfc_check::reference::{Compared, Comparison, Pair, compare_with};
use xfc_check::subject::{Subject, run as run_compiled};
use xfc_check::taps::{choose, equation};
use xfc_check::verify::{Extent, Verification, verify};
use xfc_codegen::target::{self, Target};
use xfc_lang::graph::named::{Named, named_values};
use xfc_lang::passes::precision::CacheType;
use xfc_runtime::artifact::HostFeatures;
use xfc_runtime::files::check_writable;
use xfc_runtime::weights::Checkpoint;

use crate::args::ModelArgs;
use crate::error::{CliError, Result};
use crate::model::{self, Loaded, Named as NamedModel};
use crate::output::{print, remark};
use crate::stored;
use crate::tuned;
use xfc_lang::view::digits;

/// Sizes above which a card without a checkpoint is shrunk.
const MOST_PARAMETERS: u64 = 50_000_000;
/// Sizes above which weights do not fit the interpreter, which holds all of them in f32.
const MOST_INTERPRETED: u64 = 3_000_000_000;
/// Multiplications that the interpreter is given, unless `--tokens` says otherwise.
const EFFORT: u64 = 2_000_000_000;
/// Tokens of the longest sequence, where nothing limits them: more than two cache pages.
const TOKENS: u64 = 40;

/// Most tokens that `--tokens` takes: the interpreter's time grows with their square.
const MOST_TOKENS: u64 = 1 << 16;

/// `xfc verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Weights: a checkpoint folder, a safetensors or GGUF file, or `random` [default: the folder that MODEL is, else random]
    #[arg(long, value_name = "PATH|random")]
    checkpoint: Option<String>,
    /// Values computed elsewhere, with their inputs: safetensors, as tools/dump_reference.py writes
    #[arg(long, value_name = "DUMP")]
    reference: Option<PathBuf>,
    /// Write this value of the compiled model, as it computes it; a path, or a pattern with * and **; may repeat
    #[arg(long, value_name = "PATH", requires = "tap_output")]
    tap: Vec<String>,
    /// Write tapped values and the inputs here: safetensors, f32
    #[arg(short = 'o', long, value_name = "FILE", requires = "tap")]
    tap_output: Option<PathBuf>,
    /// Tokens of the longest sequence [default: 40, fewer for large models]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=MOST_TOKENS))]
    tokens: Option<u64>,
    /// Seed of random weights and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads of the compiled code [default: one for each processor]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// The model cannot be read, compiled or run, or values depart.
pub(crate) fn run(args: &VerifyArgs) -> Result<()> {
    args.tap_output.as_deref().map(check_writable).transpose()?;
    let prepared = Prepared::new(args)?;
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let mut progress = |what: &str| {
        bar.set_message(what.to_owned());
        bar.tick();
    };
    let named = named_values(&prepared.loaded.model.program);
    let taps = choose(&named, &args.tap)?;
    let result = match &args.reference {
        Some(path) => prepared.reference(path, args, &mut progress),
        None => prepared.interpreter(args, &mut progress),
    };
    bar.finish_and_clear();
    let (departed, inputs) = result?;
    if let (Some(output), Some(target)) = (&args.tap_output, prepared.targets.first()) {
        prepared.write_taps(output, &taps, &**target, &inputs)?;
    }
    departed.map_or(Ok(()), |problem| Err(CliError::Departed(problem)))
}

/// A model and its weights, and what they are checked on.
struct Prepared {
    loaded: Loaded,
    checkpoint: Checkpoint,
    targets: Vec<Box<dyn Target>>,
    options: xfc_codegen::driver::Options,
    threads: Option<usize>,
    about: String,
}

/// What departed, in a line, and the inputs of the first check.
type Outcome = Result<(Option<String>, Inputs)>;

impl Prepared {
    fn new(args: &VerifyArgs) -> Result<Self> {
        let named = model::name(&args.model.model)?;
        if let NamedModel::Artifact(path) = &named {
            return Err(CliError::usage(
                format!("{} is compiled: what it is compared with follows from its description", path.display()),
                "give its card or checkpoint folder",
            ));
        }
        let checkpoint = match (&args.checkpoint, &named) {
            (Some(given), _) => given.clone(),
            (None, NamedModel::Checkpoint(path) | NamedModel::Gguf(path)) if !args.model.tiny => {
                path.display().to_string()
            }
            (None, _) => "random".to_owned(),
        };
        let random = checkpoint == "random";
        if args.checkpoint.is_some() {
            // Before anything is said of the model.
            Checkpoint::from_argument(&checkpoint)?;
        }
        let mut model_args = model::with_config_of(Some(&checkpoint), &named, &args.model);
        let mut loaded = model::load(&named, &model_args)?;
        let full = loaded.model.arch.parameter_count();
        if random && !model_args.tiny && full > MOST_PARAMETERS && args.reference.is_none() {
            model_args.tiny = true;
            loaded = model::load(&named, &model_args)?;
            remark(format!(
                "{} has {} parameters: a small model of its pattern is checked (--tiny); give `--checkpoint` to check the model itself",
                args.model.model,
                digits(full)
            ));
        }
        let parameters = loaded.model.arch.parameter_count();
        if parameters > MOST_INTERPRETED && args.reference.is_none() {
            return Err(CliError::usage(
                format!("the interpreter would hold {} parameters in f32", digits(parameters)),
                "give `--tiny`, or `--reference DUMP` to compare with values computed elsewhere",
            ));
        }
        let model_args = stored::resolve(&mut loaded, Some(&checkpoint), &model_args)?;
        // Looking for what departs compiles the model again and again.
        let mut options = model_args.options()?;
        options.known.get_or_insert_default();
        let targets = if args.model.target.is_empty() {
            tuned::apply(default_targets(), args.model.tuned.as_deref())?
        } else {
            args.model.targets()?
        };
        if targets.is_empty() {
            // Says why this host has none.
            target::parse("cpu")?;
        }
        let checkpoint = if random { Checkpoint::random(args.seed) } else { Checkpoint::from_argument(&checkpoint)? };
        let mut about = format!(
            "{}{}, {} parameters, {}, {}",
            loaded.model.arch.name,
            if model_args.tiny { " (tiny)" } else { "" },
            digits(parameters),
            if random { format!("random weights (seed {})", args.seed) } else { checkpoint.path() },
            options.dtype,
        );
        if !options.quant.is_empty() {
            about.push_str(&format!(", matrices in {}", options.quant));
        }
        if options.cache_type() != CacheType::from(options.dtype) {
            about.push_str(&format!(", caches in {}", options.cache_type()));
        }
        Ok(Prepared { loaded, checkpoint, targets, options, threads: args.threads, about })
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            model: &self.loaded.model,
            checkpoint: &self.checkpoint,
            truth: None,
            options: &self.options,
            threads: self.threads,
        }
    }

    fn interpreter(&self, args: &VerifyArgs, progress: &mut dyn FnMut(&str)) -> Outcome {
        let parameters = self.loaded.model.arch.parameter_count().max(1);
        let tokens = args.tokens.unwrap_or_else(|| (EFFORT / parameters).clamp(4, TOKENS));
        let subject = self.subject();
        let found = verify(&subject, &self.targets, Extent { tokens, seed: args.seed }, progress)?;
        let first = match found.failure() {
            Some(failure) => {
                let target = self.targets.iter().find(|t| t.name() == failure.target);
                let target = target.map_or_else(|| &*self.targets[0], |t| &**t);
                // The failure is reported even where looking further fails.
                match locate(&subject, target, &failure.check, &found.sequences, progress) {
                    Ok(first) => first,
                    Err(error) => {
                        remark(format!("the first value that departs was not found: {error}"));
                        None
                    }
                }
            }
            None => None,
        };
        if args.json {
            print(format!("{:#}", self.found_json(&found, first.as_ref())));
        } else {
            print(self.found_text(&found));
            if let Some(first) = &first {
                print(self.first_text(first));
            }
        }
        let departed = found.failure().map(|failure| {
            let n = found.findings.iter().filter(|f| !f.passed()).count();
            let whole = format!(
                "{n} of {} checks failed, the first on {}: {}",
                found.findings.len(),
                failure.target,
                failure.check.name
            );
            match first {
                Some(first) => format!("{whole}; `{}` departs first", first.value.path),
                None => whole,
            }
        });
        Ok((departed, found.sequences.into_iter().next().unwrap_or_default()))
    }

    fn found_text(&self, found: &Verification) -> String {
        let mut table = vec![["target", "check", "output", "furthest", "allowed", ""].map(str::to_owned)];
        for f in &found.findings {
            let [furthest, allowed] = numbers(f.measure.furthest);
            let passed = if f.passed() { "pass" } else { "FAIL" };
            let steps = f.check.cuts.iter().map(Vec::len).max().unwrap_or(0);
            let halved = match f.halved_steps {
                0 => String::new(),
                n if steps == 1 && n == 1 => " (groups as bf16)".to_owned(),
                n => format!(" (groups as bf16 in {n} of {steps} steps)"),
            };
            table.push([
                f.target.clone(),
                format!("{}{halved}", f.check.name),
                f.output.clone(),
                furthest,
                allowed,
                passed.to_owned(),
            ]);
        }
        format!("{}: compiled against interpreter\n{}", self.about, columns(&table))
    }

    fn found_json(&self, found: &Verification, first: Option<&Located>) -> Json {
        let check = |f: &xfc_check::verify::Finding| {
            json!({
                "target": f.target, "check": f.check.name, "output": f.output, "pass": f.passed(),
                "difference": f.measure.furthest.map(|e| e.difference), "allowed": f.measure.furthest.map(|e| e.allowed),
                "departing": f.measure.departing, "bf16_steps": f.halved_steps,
            })
        };
        let first = first.map(|f| self.value_json(&f.value, &f.dims, &f.measure));
        json!({
            "model": self.about, "pass": found.failure().is_none(),
            "checks": found.findings.iter().map(check).collect::<Vec<_>>(), "first": first,
        })
    }

    fn first_text(&self, first: &Located) -> String {
        let alone = if first.alone {
            "\n  only while no other value is stored: a fused kernel around it is at fault"
        } else {
            ""
        };
        format!(
            "first value that departs: {}{}{alone}",
            self.value_text(&first.value),
            element_text(&first.measure, &first.dims, ["compiled", "interpreter"])
        )
    }

    /// Path, type, and the equation.
    fn value_text(&self, value: &Named) -> String {
        let ty = value.ty.text(&self.loaded.model.program.axes);
        match equation(&self.loaded.spec.sources, value.span) {
            Some(e) => format!("{}   {ty}\n  {}   {}", value.path, e.place, e.text),
            None => format!("{}   {ty}", value.path),
        }
    }

    fn value_json(&self, value: &Named, dims: &[usize], measure: &Measure) -> Json {
        let equation = equation(&self.loaded.spec.sources, value.span);
        json!({
            "path": value.path, "module": value.module, "parameters": self.suspects(Some(value)), "type": value.ty.text(&self.loaded.model.program.axes),
            "equation": equation.as_ref().map(|e| json!({"place": e.place, "text": e.text})),
            "element": measure.first.map(|e| json!({
                "index": position(e.index, dims), "ours": e.got, "theirs": e.want, "difference": e.difference, "allowed": e.allowed,
            })),
            "departing": measure.departing,
        })
    }

    fn reference(&self, path: &std::path::Path, args: &VerifyArgs, progress: &mut dyn FnMut(&str)) -> Outcome {
        let dump = Dump::open(path)?;
        let found = compare_with(&self.subject(), &self.targets, &dump, path, progress)?;
        let first = found.sides.iter().find_map(|side| Some((side, side.first()?)));
        if args.json {
            print(format!("{:#}", self.reference_json(&found)));
        } else {
            print(self.reference_text(&found, path));
        }
        let departed = first.map(|(side, first)| {
            let n = side.values.iter().filter(|v| v.departs() && !v.elsewhere).count();
            format!("{n} of {} values depart on {}; `{}` is the first", side.values.len(), side.by, first.pair.path)
        });
        Ok((departed, found.inputs))
    }

    fn reference_text(&self, found: &Comparison, path: &std::path::Path) -> String {
        let compared = found.sides.first().map_or(0, |side| side.values.len());
        let misfits: Vec<&str> = found.sides.first().map_or(Vec::new(), |side| {
            side.values.iter().filter(|v| v.measure.is_none()).map(|v| v.pair.dumped.as_str()).collect()
        });
        let mut out = format!("{}: {compared} values against {}\n", self.about, path.display());
        let mut table = vec![["by", "furthest value", "in the dump", "furthest", "allowed", ""].map(str::to_owned)];
        for side in &found.sides {
            let worst = side.worst();
            let [furthest, allowed] = numbers(worst.and_then(|v| v.measure).and_then(|m| m.furthest));
            let name = |f: fn(&Compared) -> &String| worst.map_or(String::new(), |v| f(v).clone());
            let passed = if side.first().is_none() { "pass" } else { "FAIL" };
            table.push([
                side.by.clone(),
                name(|v| &v.pair.path),
                name(|v| &v.pair.dumped),
                furthest,
                allowed,
                passed.to_owned(),
            ]);
        }
        out.push_str(&columns(&table));
        if found.too_large {
            out.push_str("\nthe interpreter was left out: the model is too large for it");
        }
        let elsewhere: Vec<&str> = found.sides.first().map_or(Vec::new(), |side| {
            side.values.iter().filter(|v| v.elsewhere).map(|v| v.pair.dumped.as_str()).collect()
        });
        for (what, names) in [
            ("something else in the dump, such as with a residual or a bias added, for the outputs agree", elsewhere),
            ("not compared, for nothing of ours has the name", found.unmatched.iter().map(String::as_str).collect()),
            ("not compared, for ours has another shape", misfits),
        ] {
            if !names.is_empty() {
                let shown = names.iter().take(6).copied().collect::<Vec<_>>().join(", ");
                let more = if names.len() > 6 { format!(" and {} more", names.len() - 6) } else { String::new() };
                out.push_str(&format!("\n{what}: {shown}{more}"));
            }
        }
        if let Some((side, first)) = found.sides.iter().find_map(|side| Some((side, side.first()?))) {
            let measure = first.measure.unwrap_or_default();
            out.push_str(&format!("\n\nfirst value that departs, by {}: ", side.by));
            match &first.pair.value {
                Some(value) => out.push_str(&self.value_text(value)),
                None => out.push_str(&format!("output {}", first.pair.path)),
            }
            if first.pair.dumped != first.pair.path {
                out.push_str(&format!("\n  in the dump: {}", first.pair.dumped));
            }
            out.push_str(&element_text(&measure, &first.dims, ["ours", "theirs"]));
            out.push_str(&self.suspects_text(&first.pair));
            let before = side.values.iter().take_while(|v| v.pair.path != first.pair.path).last();
            if let Some(before) = before {
                out.push_str(&format!("\n  the value before it agrees: {}", before.pair.path));
            }
        }
        out
    }

    /// The parameters of the module that a value belongs to, by the names that checkpoints have for them.
    fn suspects(&self, value: Option<&Named>) -> Vec<&str> {
        let Some(module) = value.map(|value| value.module.as_str()) else { return Vec::new() };
        let model = &self.loaded.model;
        let own = |p: &str| p.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        let pairs = model.arch.parameters.iter().zip(&model.bindings).filter(|(p, _)| own(&p.path));
        let mut names: Vec<&str> = pairs.filter_map(|(_, b)| b.names.first().map(String::as_str)).collect();
        // Parameters that are parts of one stored tensor follow one another.
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        names
    }

    fn suspects_text(&self, pair: &Pair) -> String {
        let names = self.suspects(pair.value.as_ref());
        match names.len() {
            0 => String::new(),
            1..=4 => format!("\n  parameters of its module: {}", names.join(", ")),
            n => format!("\n  parameters of its module: {}, ... ({n} tensors)", names[..3].join(", ")),
        }
    }

    fn reference_json(&self, found: &Comparison) -> Json {
        let value = |v: &Compared| {
            json!({
                "path": v.pair.path, "dumped": v.pair.dumped,
                "pass": v.measure.map(|m| m.first.is_none()), "elsewhere": v.elsewhere,
                "difference": v.measure.map(|m| m.largest()), "allowed": v.measure.and_then(|m| m.furthest).map(|e| e.allowed),
            })
        };
        let side = |side: &xfc_check::reference::Side| {
            let first = side.first().map(|first| match &first.pair.value {
                Some(value) => self.value_json(value, &first.dims, &first.measure.unwrap_or_default()),
                None => json!({"path": first.pair.path}),
            });
            json!({
                "by": side.by, "pass": side.first().is_none(), "first": first,
                "values": side.values.iter().map(value).collect::<Vec<_>>(),
            })
        };
        json!({
            "model": self.about, "pass": found.sides.iter().all(|s| s.first().is_none()),
            "sides": found.sides.iter().map(side).collect::<Vec<_>>(), "not_compared": found.unmatched,
        })
    }

    /// Writes what the compiled model computes for the inputs of the first check, whole.
    fn write_taps(&self, path: &std::path::Path, taps: &[&Named], target: &dyn Target, inputs: &Inputs) -> Result<()> {
        let subject = self.subject();
        let compiled = subject.compile(&subject.program(taps), target)?;
        let tokens = xfc_check::inputs::length(compiled.manifest(), inputs, 0);
        let mut values = run_compiled(&compiled, &[inputs], &vec![vec![tokens]])?.remove(0);
        values.retain(|name, _| taps.iter().any(|tap| tap.path == *name));
        dump::write(path, inputs, &values)?;
        Ok(())
    }
}

/// This host's best instruction set, and the lower levels that it runs too.
fn default_targets() -> Vec<Box<dyn Target>> {
    let host = HostFeatures::detect();
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for name in ["cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64", "cpu:aarch64"] {
        let Ok(target) = target::parse(name) else { continue };
        let runs = host.missing(&target.describe()).is_some_and(|missing| missing.is_empty());
        if runs && !targets.iter().any(|t| t.name() == target.name()) {
            targets.push(target);
        }
    }
    targets
}

/// A difference and what is allowed, for people.
fn numbers(element: Option<Element>) -> [String; 2] {
    match element {
        Some(e) => [format!("{:.1e}", e.difference), format!("{:.1e}", e.allowed)],
        None => ["0".to_owned(), String::new()],
    }
}

/// Where a value departs, and the two numbers.
fn element_text(measure: &Measure, dims: &[usize], [ours, theirs]: [&str; 2]) -> String {
    let Some(first) = measure.first else { return String::new() };
    let count: usize = dims.iter().product();
    let furthest = measure.furthest.unwrap_or(first);
    format!(
        "\n  at {:?}: {ours} {:.9e}, {theirs} {:.9e}, {:.1e} apart where {:.1e} is allowed\
         \n  {} of {count} elements depart, the furthest by {:.1e} at {:?}",
        position(first.index, dims),
        first.got,
        first.want,
        first.difference,
        first.allowed,
        measure.departing,
        furthest.difference,
        position(furthest.index, dims),
    )
}

/// Rows with their columns aligned.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("  {}", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
