//! What MODEL means: a checkpoint folder, a GGUF file, a card or an artifact; and how all but the last are read and expanded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xfc_check::gguf::facts;
use xfc_codegen::driver;
use xfc_codegen::kernels::{Known, build_of};
use xfc_codegen::target::{self, Target};
use xfc_lang::arch::{ignored, nearest};
use xfc_lang::diagnostic::{Code, Report, all_closest, did_you_mean};
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::Plan;
use xfc_lang::spec::apply_sets;
use xfc_lang::{
    ElaborateOptions, Library, Model, Spec, elaborate, gguf_config, load_card, pick_card, pick_gguf_card, tiny,
};
use xfc_runtime::artifact::container::Artifact;
use xfc_runtime::gguf::{is_gguf, is_gguf_file};
use xfc_runtime::weights::Checkpoint;

use crate::args::{CacheArg, DTypeArg, ModelArgs, Quant};
use crate::error::{CliError, Result};
use crate::output::remark;
use crate::tuned;

/// What MODEL names.
#[derive(Debug)]
pub(crate) enum Named {
    /// A folder with a config.json.
    Checkpoint(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A card: a file, or a name of the library.
    Card(String),
    /// A compiled artifact.
    Artifact(PathBuf),
}

/// Decides what MODEL names.
///
/// # Errors
/// A path that is none of them.
pub(crate) fn name(model: &str) -> Result<Named> {
    let path = Path::new(model);
    if path.is_dir() {
        return if path.join("config.json").is_file() {
            Ok(Named::Checkpoint(path.to_owned()))
        } else {
            Err(CliError::file(path, "is a folder without config.json, so it is not a checkpoint"))
        };
    }
    if path.is_file() {
        let mut head = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head));
        read.map_err(|e| CliError::file(path, format!("cannot read: {e}")))?;
        if Artifact::is_artifact(&head) || path.extension().is_some_and(|e| e == "xfm") {
            return Ok(Named::Artifact(path.to_owned()));
        }
        if is_gguf(&head) || path.extension().is_some_and(|e| e == "gguf") {
            return Ok(Named::Gguf(path.to_owned()));
        }
        if path.extension().is_some_and(|e| e == "safetensors") {
            return Err(CliError::usage(
                format!("{model} is a file of weights, not a model"),
                "give the checkpoint's folder, or a card with `--checkpoint`",
            ));
        }
        if path.extension().is_some_and(|e| e == "json") {
            let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let help = match path.file_name().is_some_and(|name| name == "config.json") {
                true => format!("give its folder, `{}`, or a card with `--config {model}`", folder.display()),
                false => format!("give a card, with `--config {model}` where that has the sizes"),
            };
            return Err(CliError::usage(format!("{model} is a JSON file, not a model"), help));
        }
        return Ok(Named::Card(model.to_owned()));
    }
    if path.exists() {
        return Err(CliError::file(path, "is neither a file nor a folder"));
    }
    if path.extension().is_some_and(|e| e == "xfm") {
        return Err(CliError::file(path, "no such artifact"));
    }
    if path.extension().is_some_and(|e| e == "gguf") {
        return Err(CliError::file(path, "no such file"));
    }
    if model.contains('/') && path.extension().is_none() {
        return Err(CliError::file(path, "no such folder"));
    }
    Ok(Named::Card(model.to_owned()))
}

/// A model that was read and expanded, ready to be compiled.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What was written.
    pub(crate) spec: Spec,
    /// What it means.
    pub(crate) model: Model,
    /// The description's text, for the artifact.
    pub(crate) card: String,
    /// Everything that decides the model, as text: part of the cache's key.
    pub(crate) key: String,
    /// Its sizes are those of the released model.
    pub(crate) is_published: bool,
}

/// The arguments with the config.json of the checkpoint that a card is given, unless another is named: its tensors have these sizes. A GGUF file
/// is its own.
pub(crate) fn with_config_of(checkpoint: Option<&str>, named: &Named, args: &ModelArgs) -> ModelArgs {
    let mut args = args.clone();
    let config = checkpoint.map(|path| Path::new(path).join("config.json")).filter(|path| path.is_file());
    if matches!(named, Named::Card(_)) && !args.tiny && args.config.is_none() {
        args.config = config;
    }
    args.gguf = checkpoint.map(PathBuf::from).filter(|path| is_gguf_file(path));
    args
}

/// Refuses options that would change what is compiled already, but for those that are `allowed`.
///
/// # Errors
/// One of them is given.
pub(crate) fn takes_no_options(path: &Path, args: &ModelArgs, allowed: &[&str]) -> Result<()> {
    let given = [
        ("--tiny", args.tiny),
        ("--config", args.config.is_some()),
        ("--set", !args.set.is_empty()),
        ("--dtype", args.dtype != DTypeArg::F32),
        ("--kv-cache-dtype", args.kv_cache_dtype.is_some()),
        ("--quant", args.quant.is_some()),
        ("--calibration", args.calibration.is_some()),
        ("--models", args.models.is_some()),
        ("--skip-pass", !args.skip_pass.is_empty()),
        ("--tuned", args.tuned.is_some()),
    ];
    match given.into_iter().find(|(option, given)| *given && !allowed.contains(option)) {
        Some((option, _)) => Err(CliError::usage(
            format!("{} is compiled: `{option}` changes nothing any more", path.display()),
            format!("give `{option}` with the card or the checkpoint folder"),
        )),
        None => Ok(()),
    }
}

/// Refuses texts of `--set` that have no value, or of which one would take the place of another.
///
/// # Errors
/// Such a text.
pub(crate) fn check_sets(sets: &[String]) -> Result<()> {
    if let Some(set) = sets.iter().find(|set| !set.contains(['=', '{'])) {
        let help = "write `--set SIZE=VALUE`, or a line of the wiring as in `--set 'layer.h = x + attn(x)'`";
        return Err(CliError::usage(format!("`--set {set}` has no value"), help));
    }
    // What a text changes stands before its first `=`.
    let changed = |set: &str| set.split_once('=').map_or(set, |(name, _)| name).trim().to_owned();
    let mut seen = std::collections::BTreeSet::new();
    match sets.iter().map(|set| changed(set)).find(|name| !seen.insert(name.clone())) {
        Some(twice) => {
            let help = "give it once: the second would take the place of the first";
            Err(CliError::usage(format!("`--set {twice}` is given twice"), help))
        }
        None => Ok(()),
    }
}

/// Says which keys of a config this card does not read though others do: what they mean is not computed.
pub(crate) fn warn_ignored(config: &serde_json::Value, path: &str, spec: &Spec, library: &Library) {
    let ignored = ignored(config, spec, library);
    if ignored.is_empty() {
        return;
    }
    let told: Vec<String> =
        ignored.iter().map(|i| format!("`{}: {}` (the card `{}` reads it)", i.key, i.value, i.card)).collect();
    remark(format!(
        "warning: {path} has keys that this card does not read: {}; they change nothing here",
        told.join(", ")
    ));
}

/// The library that `--models` names, else the one built in.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn library(models: Option<&Path>) -> Result<Library> {
    Ok(match models {
        Some(dir) => Library::from_dir(dir)?,
        None => Library::embedded(),
    })
}

/// Reads a JSON file.
///
/// # Errors
/// A file that cannot be read, or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::file(path, format!("cannot read: {e}")))?;
    xfc_runtime::json::parse(&text).map_err(|e| CliError::file(path, format!("not JSON: {e}")))
}

/// Reads and expands a card or a checkpoint's family.
///
/// # Errors
/// Everything that is wrong with the card, the config and the sizes.
pub(crate) fn load(named: &Named, args: &ModelArgs) -> Result<Loaded> {
    let library = library(args.models.as_deref())?;
    let config_path = match (named, &args.config) {
        (_, Some(path)) => Some(path.clone()),
        (Named::Checkpoint(dir), None) => Some(dir.join("config.json")),
        _ => None,
    };
    let mut config = config_path.as_deref().map(read_json).transpose()?;
    let gguf = match named {
        Named::Gguf(path) => Some(path.clone()),
        _ => args.gguf.clone(),
    };
    let opened = gguf.as_deref().map(Checkpoint::open).transpose()?;
    let facts = opened.as_ref().and_then(facts);
    let mut spec = match (named, &config) {
        (Named::Gguf(path), _) => match &facts {
            Some(facts) => pick_gguf_card(facts, &library)?,
            None => return Err(CliError::file(path, "is not a GGUF file")),
        },
        (Named::Checkpoint(dir), Some(config)) => pick_card(config, &library).map_err(|mut report| {
            tell_nearest(&mut report, config, config_path.as_deref(), dir, &library);
            // What is said of the config names its file.
            let path = config_path.as_deref().map(|p| p.display().to_string()).unwrap_or_default();
            for d in report.diagnostics.iter_mut().filter(|d| d.primary.is_none()) {
                d.message = format!("{path}: {}", d.message);
            }
            report
        })?,
        (Named::Card(card), _) => load_card(card, &library)?,
        _ => {
            return Err(CliError::usage(
                format!("{} is already compiled", args.model),
                "give its card or checkpoint folder instead",
            ));
        }
    };
    check_sets(&args.set)?;
    if let (Some(config), Some(path)) = (&config, &config_path) {
        warn_ignored(config, &path.display().to_string(), &spec, &library);
    }
    // What the file itself says, unless a config.json is named.
    let mut config_name = config_path.map(|p| p.display().to_string()).unwrap_or_default();
    if let Some(facts) = facts.as_ref().filter(|_| config.is_none()) {
        config = Some(gguf_config(&spec, facts)?);
        config_name.clone_from(&facts.name);
    }
    let sets = apply_sets(&mut spec, &args.set)?;
    let texts: Vec<&str> = (0..).map_while(|i| spec.sources.get(i)).map(|s| &*s.text).collect();
    let format = if gguf.is_some() { "gguf" } else { "" }.to_owned();
    let key = format!("{}\n{config:?}\n{sets:?}\n{format}\n{}", texts.join("\n"), args.choices());
    let is_published = config.is_none() && args.set.is_empty() && !args.tiny;
    let card = spec.text();
    let options = ElaborateOptions { config, config_name, sets, format };
    let options = if args.tiny { tiny(&spec, &options)? } else { options };
    let model = elaborate(&spec, &options)?;
    Ok(Loaded { spec, model, card, key, is_published })
}

/// Of a family that no card serves: which are near, what of the config none reads, how a card begins.
fn tell_nearest(report: &mut Report, config: &serde_json::Value, path: Option<&Path>, dir: &Path, library: &Library) {
    let Some(diagnostic) = report.diagnostics.iter_mut().find(|d| d.code == Code::UnknownModel) else { return };
    let tensors: Vec<(String, Vec<u64>)> = match Checkpoint::open(dir) {
        Ok(Checkpoint::Stored(stored)) => stored.tensors().map(|(n, t)| (n.to_owned(), t.shape.clone())).collect(),
        _ => Vec::new(),
    };
    let model_type = config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("new");
    let path = path.map(|p| p.display().to_string()).unwrap_or_default();
    let near = nearest(config, &tensors, library);
    let help = near.help(model_type, &path);
    // Of a name that is close, that it is; of several as close, the family that reads most.
    let served = library.served();
    let close = all_closest(model_type, served.iter().map(|(name, _)| name.as_str()));
    let serves = |card: &str| served.iter().find(|(name, of)| *of == card && close.contains(&name.as_str()));
    let nearest = near.nearest.iter().find_map(|near| serves(&near.card)).map(|(name, _)| name.as_str());
    let meant = nearest.or(close.first().copied());
    diagnostic.help = Some(meant.map_or(help.clone(), |meant| format!("did you mean `{meant}`? {help}")));
}

impl ModelArgs {
    /// What of the arguments decides the artifact, besides the texts.
    fn choices(&self) -> String {
        let quant = self.quant.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{:?} {:?} {:?} {} {quant}", self.dtype, self.kv_cache_dtype, self.skip_pass, self.tiny)
    }

    /// Whether types of weights or caches were asked for.
    pub(crate) fn names_types(&self) -> bool {
        self.dtype != DTypeArg::F32 || self.kv_cache_dtype.is_some() || self.quant.is_some()
    }

    /// The targets named, or this host, with the schedules that were measured for them.
    ///
    /// # Errors
    /// A name that is no target; a profile that is wrong.
    pub(crate) fn targets(&self) -> Result<Vec<Box<dyn Target>>> {
        tuned::apply(self.plain_targets()?, self.tuned.as_deref())
    }

    /// The targets named, or this host.
    ///
    /// # Errors
    /// A name that is no target.
    pub(crate) fn plain_targets(&self) -> Result<Vec<Box<dyn Target>>> {
        let names: Vec<&str> =
            if self.target.is_empty() { vec!["cpu"] } else { self.target.iter().map(String::as_str).collect() };
        let mut targets: Vec<Box<dyn Target>> = Vec::new();
        for name in names {
            let target = target::parse(name)?;
            if !targets.iter().any(|t| t.name() == target.name()) {
                targets.push(target);
            }
        }
        Ok(targets)
    }

    /// The target that stands for GPUs of any kind, if it is named.
    pub(crate) fn portable_gpu(&self) -> Option<&str> {
        self.target.iter().map(String::as_str).find(|name| *name == "cuda")
    }

    /// Options of the compiler.
    ///
    /// # Errors
    /// A pass that does not exist.
    pub(crate) fn options(&self) -> Result<driver::Options> {
        for pass in &self.skip_pass {
            let names: Vec<&str> = xfc_lang::passes::pipeline().iter().map(|p| p.name()).collect();
            if !names.contains(&pass.as_str()) {
                // A pass may run more than once.
                let mut seen = std::collections::BTreeSet::new();
                let names: Vec<&str> = names.into_iter().filter(|name| seen.insert(*name)).collect();
                let help = did_you_mean(pass, names.iter().copied())
                    .unwrap_or_else(|| format!("the passes are {}", names.join(", ")));
                return Err(CliError::usage(format!("no pass is named `{pass}`"), help));
            }
        }
        let cache = |given| match given {
            CacheArg::F32 => CacheType::Float(DType::F32),
            CacheArg::Bf16 => CacheType::Float(DType::BF16),
            CacheArg::Int8 => CacheType::Int8,
            CacheArg::Fp8 => CacheType::Fp8,
        };
        let quant = match &self.quant {
            None => Plan::default(),
            Some(Quant::Plan(plan)) => plan.clone(),
            Some(auto @ Quant::Auto(bits)) => {
                return Err(CliError::usage(
                    format!("this command does not look for the plan of `--quant {auto}`"),
                    format!(
                        "`xfc quant CHECKPOINT --bits {bits} -o plan.txt` writes the plan, `--quant @plan.txt` reads it"
                    ),
                ));
            }
        };
        // Of what is known there is no text to dump.
        let dump = std::env::var_os("XFC_DUMP").map(PathBuf::from);
        Ok(driver::Options {
            dtype: match self.dtype {
                DTypeArg::F32 => DType::F32,
                DTypeArg::Bf16 => DType::BF16,
            },
            cache: self.kv_cache_dtype.map(cache),
            quant,
            skip_passes: self.skip_pass.clone(),
            known: if dump.is_none() { known() } else { None },
            dump,
            ..driver::Options::default()
        })
    }
}

/// Kernels that other commands of a run of the tests compiled: in a folder that was made for this build.
fn known() -> Option<Arc<Known>> {
    let folder = std::env::var_os("XFC_KERNELS_DIR").filter(|folder| !folder.is_empty())?;
    let build = build_of(&std::env::current_exe().ok()?);
    Known::in_folder(folder.into(), &build).map(Arc::new)
}
