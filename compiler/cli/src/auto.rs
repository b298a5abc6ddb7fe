//! `--quant auto:4.5bpw`: the plan that loses least with so many bits a weight, found on a checkpoint and kept for the next time.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use xfc_check::mixed::{Mixture, Sensitivity};
use xfc_check::sensitivity::{Measure, rounding};
use xfc_check::subject::Subject;
use xfc_check::units::{Grain, units};
use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::Blocks;
use xfc_lang::passes::quantise::{Plan, PlanError, matrices_of};
use xfc_runtime::commands::LoadArgs;
use xfc_runtime::files::write_atomic;
use xfc_runtime::folder::{CacheFolder, Kind};
use xfc_runtime::weights::Checkpoint;

use crate::args::{ModelArgs, Quant};
use crate::cache;
use crate::error::{CliError, Result};
use crate::eval::tokens;
use crate::model::{self, Loaded, Named};
use crate::output::remark;

/// Formats that a plan is made of where nobody says.
pub(crate) const MIXED_FORMATS: [&str; 5] = ["int4:g128", "int4:g64", "int4:g32", "uint4:g32", "int8:g128"];
/// Tokens of a text that are run where nobody says.
pub(crate) const TOKENS: usize = 2048;
/// Predictions from which on a divergence means something.
const FEW_TOKENS: usize = 200;

/// What is looked for.
pub(crate) struct Search<'a> {
    /// The model.
    pub(crate) loaded: &'a Loaded,
    /// How it is compiled, without a plan.
    pub(crate) args: &'a ModelArgs,
    /// Its weights.
    pub(crate) load: &'a LoadArgs,
    /// The text; empty: the rounding of the weights decides.
    pub(crate) tokens: &'a [i64],
    /// Tokens of a window.
    pub(crate) context: Option<u64>,
    /// How fine units are.
    pub(crate) grain: Grain,
    /// What they may be held in; `None`: not in blocks.
    pub(crate) formats: &'a [Option<Blocks>],
    /// Bits a weight; `None`: no plan is wanted.
    pub(crate) bits: Option<f64>,
}

/// What was found.
pub(crate) struct Found {
    /// What each unit loses.
    pub(crate) sensitivity: Sensitivity,
    /// Predictions that were compared; `None`: the rounding of the weights decided.
    pub(crate) scored: Option<usize>,
    /// The plan, if one is wanted.
    pub(crate) chosen: Option<Chosen>,
}

/// A plan.
pub(crate) struct Chosen {
    /// The formats.
    pub(crate) mixture: Mixture,
    /// As `--quant` takes it.
    pub(crate) plan: Plan,
    /// The divergence with it.
    pub(crate) divergence: Option<f64>,
    /// The best single format within as many bits, with its divergence.
    pub(crate) uniform: Option<(Plan, Option<f64>)>,
}

/// A format by its name: `int4:g64`, `none`.
pub(crate) fn format(name: &str) -> Result<Option<Blocks>> {
    if name.contains('=') {
        let help = "give formats alone, with commas between: `--formats int4:g64,int8`";
        return Err(CliError::usage(format!("'{name}' holds some modules otherwise"), help));
    }
    let wrong = |wrong: PlanError| CliError::usage(wrong.to_string(), "separate formats with commas");
    Ok(name.parse::<Plan>().map_err(wrong)?.of(""))
}

/// The name of a format, as it is read.
pub(crate) fn format_name(format: Option<Blocks>) -> String {
    Plan::all(format).to_string()
}

impl Search<'_> {
    /// Measures every unit in every format, and chooses.
    ///
    /// # Errors
    /// No matrices, bits that the formats do not reach, a text that is too short, and all that compiling and running can fail with.
    pub(crate) fn run(&self) -> Result<Found> {
        let mut options = self.args.options()?;
        let program = &self.loaded.model.program;
        let matrices = matrices_of(program, options.dtype, options.cache_type())
            .map_err(|error| CliError::Codegen(error.into()))?;
        let units = units(&matrices, self.grain);
        if units.is_empty() {
            return Err(CliError::usage(
                "the model has no matrices of products that could be held in fewer bits",
                "`xfc inspect MODEL --emit graph` shows its products",
            ));
        }
        let plain_bits = if options.dtype == DType::F32 { 32 } else { 16 };
        let costs = vec![vec![0.0; self.formats.len()]; units.len()];
        let mut sensitivity = Sensitivity { units, formats: self.formats.to_vec(), costs, plain_bits };
        // Before anything takes long.
        let (least, most) = sensitivity.range();
        if let Some(bits) = self.bits.filter(|bits| *bits < least || *bits > most) {
            let names: Vec<String> = self.formats.iter().map(|f| format_name(*f)).collect();
            return Err(CliError::usage(
                format!(
                    "{bits} bits a weight were asked for, and {} give {} to {}",
                    names.join(", "),
                    short(least),
                    short(most)
                ),
                "ask for what lies between, or name other formats with `xfc quant --formats`",
            ));
        }
        let mut checkpoint = Checkpoint::from_argument(self.load.checkpoint.as_deref().unwrap_or_default())?;
        if self.load.allow_missing {
            checkpoint = checkpoint.with_missing_made_up(0);
        }
        options.known.get_or_insert_default();
        let subject = Subject {
            model: &self.loaded.model,
            checkpoint: &checkpoint,
            truth: None,
            options: &options,
            threads: self.load.threads,
        };
        let measure = if self.tokens.is_empty() {
            None
        } else {
            let target = self.args.targets()?.remove(0);
            let measure = Measure::new(subject, target, self.tokens, self.context);
            let measure = measure.map_err(CliError::from).map_err(|error| match error {
                CliError::Runtime(error) => CliError::Runtime(error.or_made_up()),
                other => other,
            })?;
            measure.remarks().iter().for_each(|text| remark(format!("warning: {text}")));
            if measure.scored() < FEW_TOKENS {
                remark(format!(
                    "warning: the text has {} tokens to predict, which is too few to rank anything by",
                    measure.scored()
                ));
            }
            Some(measure)
        };
        self.measure(&mut sensitivity, measure.as_ref(), &checkpoint)?;
        let chosen = self.bits.map(|bits| choose(&sensitivity, measure.as_ref(), bits)).transpose()?;
        Ok(Found { sensitivity, scored: measure.map(|m| m.scored()), chosen })
    }

    /// Fills in what each unit loses in each format.
    fn measure(&self, found: &mut Sensitivity, measure: Option<&Measure<'_>>, checkpoint: &Checkpoint) -> Result<()> {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let runs = found.units.len() * self.formats.len();
        let bar = ProgressBar::new(runs as u64).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        let blocks: Vec<Blocks> = self.formats.iter().copied().flatten().collect();
        for u in 0..found.units.len() {
            bar.set_message(found.units[u].name.clone());
            let roundings = match measure {
                Some(_) => Vec::new(),
                None => rounding(&self.loaded.model, checkpoint, &found.units[u], &blocks)?,
            };
            let mut roundings = roundings.into_iter();
            for f in 0..self.formats.len() {
                found.costs[u][f] = match (self.formats[f], measure) {
                    (None, _) => 0.0,
                    (Some(_), Some(measure)) => measure.divergence(&found.plan_of_one(u, f))?,
                    (Some(_), None) => roundings.next().unwrap_or(0.0),
                };
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// The mixture that is expected to lose least, or one format for all where that is measured to lose less.
fn choose(found: &Sensitivity, measure: Option<&Measure<'_>>, bits: f64) -> Result<Chosen> {
    let none = || CliError::usage(format!("no formats give {bits} bits a weight"), "ask for more bits");
    let mixture = found.best(bits).ok_or_else(none)?;
    let of = |mixture: &Mixture| -> Result<(Plan, Option<f64>)> {
        let plan = found.plan(mixture);
        let divergence = measure.map(|measure| measure.divergence(&plan)).transpose()?;
        Ok((plan, divergence))
    };
    let (plan, divergence) = of(&mixture)?;
    let uniform = found.best_uniform(bits);
    let single = uniform.as_ref().map(&of).transpose()?;
    if let (Some(uniform), Some((plan, Some(single)))) = (uniform, &single)
        && divergence.is_some_and(|mixed| mixed > *single)
    {
        return Ok(Chosen { mixture: uniform, plan: plan.clone(), divergence: Some(*single), uniform: None });
    }
    Ok(Chosen { mixture, plan, divergence, uniform: single })
}

/// Without zeros at the end.
pub(crate) fn short(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Chosen {
    /// The plan as a file has it: what it is worth, and a rule a line.
    pub(crate) fn text(&self) -> String {
        let rules = self.plan.to_string().replace(',', "\n");
        format!("# {} bits a weight{}\n{rules}\n", short(self.mixture.bits), self.told())
    }

    /// Its divergence, where it was measured.
    fn told(&self) -> String {
        self.divergence.map_or(String::new(), |d| format!(", divergence {d:.3e} nats"))
    }
}

/// The arguments with the plan in the place of `--quant auto:`.
///
/// # Errors
/// There is no checkpoint, and as [`Search::run`].
pub(crate) fn resolve(named: &Named, args: &ModelArgs, load: &LoadArgs) -> Result<ModelArgs> {
    let Some(Quant::Auto(bits)) = args.quant else {
        return match args.calibration {
            None => Ok(args.clone()),
            Some(_) => Err(CliError::usage(
                "`--calibration` is the text that `--quant auto:` is measured on",
                "give `--quant auto:4.5bpw` too, or leave it out",
            )),
        };
    };
    let auto = Quant::Auto(bits);
    if load.checkpoint.is_none() {
        return Err(CliError::usage(
            format!("`--quant {auto}` is found for a checkpoint, and none was given"),
            "give a checkpoint folder instead of a card",
        ));
    }
    let plain = ModelArgs { quant: None, calibration: None, ..args.clone() };
    let mut text = tokens(args.calibration.as_deref(), None, load)?;
    if args.calibration.is_some() && text.is_empty() {
        return Err(CliError::usage("the text of `--calibration` is empty", "give a text of some hundred tokens"));
    }
    text.truncate(TOKENS);
    let loaded = model::load(named, &plain)?;
    let formats = MIXED_FORMATS.map(|name| format(name).unwrap_or_default());
    let kept = if load.no_cache { None } else { kept(&loaded, &plain, load, &text, bits)? };
    let known = kept.as_ref().and_then(|(folder, path)| {
        let plan = std::fs::read_to_string(path).ok()?.parse().ok()?;
        folder.touch(path);
        Some(plan)
    });
    if let Some(plan) = known {
        return Ok(ModelArgs { quant: Some(Quant::Plan(plan)), ..plain });
    }
    let search = Search {
        loaded: &loaded,
        args: &plain,
        load,
        tokens: &text,
        context: None,
        grain: Grain::default(),
        formats: &formats,
        bits: Some(bits),
    };
    let Some(chosen) = search.run()?.chosen else { return Ok(plain) };
    let by = match text.is_empty() {
        true => "by the rounding of the weights, as there is no `--calibration`".to_owned(),
        false => format!("on {} tokens", text.len()),
    };
    remark(format!("{auto}: found {by}: {} bits a weight{}", short(chosen.mixture.bits), chosen.told()));
    if let Some((folder, path)) = kept {
        let text = chosen.text();
        // Without it the plan is looked for again.
        if let Err(error) =
            folder.make_room(Kind::Plan, text.len() as u64).and_then(|_| write_atomic(&path, text.as_bytes()))
        {
            remark(format!("warning: the plan is not kept: {error}"));
        }
    }
    Ok(ModelArgs { quant: Some(Quant::Plan(chosen.plan)), ..plain })
}

/// Where the plan is kept that follows from all this; `None` where nothing tells that a checkpoint is the same.
fn kept(
    loaded: &Loaded,
    args: &ModelArgs,
    load: &LoadArgs,
    tokens: &[i64],
    bits: f64,
) -> Result<Option<(CacheFolder, std::path::PathBuf)>> {
    let Some(folder) = CacheFolder::of_user()? else { return Ok(None) };
    let Checkpoint::Stored(stored) = Checkpoint::from_argument(load.checkpoint.as_deref().unwrap_or_default())? else {
        return Ok(None);
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(loaded.key.as_bytes()).update(cache::compiler_build().as_bytes());
    for target in args.targets()? {
        hasher.update(b"\ntarget ").update(target.name().as_bytes());
    }
    hasher.update(format!("\n{bits} {} {tokens:?}", load.allow_missing).as_bytes());
    let known = stored.fingerprint(&mut hasher);
    Ok(known.map(|()| {
        let path = folder.path(Kind::Plan, &hasher.finalize().to_hex().as_str()[..32]);
        (folder, path)
    }))
}
