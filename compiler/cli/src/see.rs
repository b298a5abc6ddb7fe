//! `xfc inspect --format svg|html`, `--diff` and `--cache`: the views of `xfc_lang::view`, with models read and options checked.

use std::path::Path;

use xfc_codegen::driver::{self, Stage};
use xfc_codegen::error::CodegenError;
use xfc_codegen::kernels::Outline;
use xfc_lang::arch::Arch;
use xfc_lang::diagnostic::SourceMap;
use xfc_lang::graph::Program;
use xfc_lang::spec::parse_card;
use xfc_lang::view::{self, Scene, Subject};
use xfc_lang::{ElaborateOptions, elaborate};
use xfc_runtime::artifact::container::Artifact;

use crate::allocated::Allocated;
use crate::args::{FormatArg, InspectArgs, ModelArgs};
use crate::cost;
use crate::error::{CliError, Result};
use crate::layer;
use crate::model::{self, Loaded, Named};

/// Context for which `--cache` tells bounds when `--ctx-size` is not given.
const CONTEXT_TOKENS: u64 = 4096;

/// A model that is to be looked at: also an artifact, by the description in it.
///
/// # Errors
/// What is wrong with it; an artifact whose sizes are not in its description.
pub(crate) fn load(name: &str, args: &ModelArgs) -> Result<Loaded> {
    let named = model::name(name)?;
    let Named::Artifact(path) = &named else { return model::load(&named, args) };
    model::takes_no_options(path, args, &["--config", "--models"])?;
    let artifact = Artifact::open(path)?;
    let library = model::library(args.models.as_deref())?;
    let spec = parse_card(&format!("{} (the description in it)", path.display()), artifact.card(), &library)?;
    let config = args.config.as_deref().map(model::read_json).transpose()?;
    let model = elaborate(&spec, &ElaborateOptions { config, ..ElaborateOptions::default() })?;
    let compiled = artifact.manifests().next().map(|m| m.parameters);
    if compiled.is_some_and(|n| n != model.arch.parameter_count()) {
        return Err(CliError::usage(
            format!("{} was compiled for other sizes than those in its description", path.display()),
            "give `--config config.json` with its sizes, or the checkpoint folder",
        ));
    }
    let card = artifact.card().to_owned();
    Ok(Loaded { spec, model, card, key: String::new(), is_published: false })
}

/// The program of a stage as it is drawn.
fn program(loaded: &Loaded, stage: Stage, args: &InspectArgs) -> Result<Program> {
    let mut options = args.model.options()?;
    options.pass_limit = args.pass_limit;
    match stage {
        Stage::Arch => {
            options.pass_limit = Some(0);
            Ok(view::recognised(&driver::fuse(&loaded.model, &options)?.graph))
        }
        Stage::Graph => {
            options.pass_limit = Some(0);
            Ok(driver::fuse(&loaded.model, &options)?.graph)
        }
        Stage::Fused => Ok(driver::fuse(&loaded.model, &options)?.program),
        Stage::Spec | Stage::Plan | Stage::Mlir | Stage::Llvm | Stage::Asm => Err(CliError::usage(
            format!("stage `{stage}` is not drawn and not compared"),
            "the stages that are: arch, graph, fused",
        )),
    }
}

fn scene(loaded: &Loaded, stage: Stage, args: &InspectArgs, folded: bool) -> Result<Scene> {
    let program = program(loaded, stage, args)?;
    let graphs = match args.layer {
        None => None,
        Some(n) => match layer::graphs(&program, n) {
            graphs if graphs.is_empty() => {
                return Err(CliError::usage(format!("the model has no layer {n}"), "layers count from 0"));
            }
            graphs => Some(graphs),
        },
    };
    let (arch, sources): (&Arch, &SourceMap) = (&loaded.model.arch, &loaded.spec.sources);
    // Paths of one layer's graph are relative to it, so that the expanded card does not name them.
    let arch = graphs.is_none().then_some(arch);
    let subject = Subject { program: &program, arch, sources: Some(sources), stage: stage.name(), folded };
    view::scene_of(&subject, graphs.as_deref())
        .map_err(|problem| CliError::usage(problem, "use `--layer N`, or `--emit arch`"))
}

/// `--format svg|html`.
///
/// # Errors
/// The model cannot be read, or the stage is not drawn.
pub(crate) fn draw(args: &InspectArgs) -> Result<String> {
    let loaded = load(&args.model.model, &args.model)?;
    let scene = scene(&loaded, args.emit.unwrap_or(Stage::Arch), args, true)?;
    Ok(drawn(&scene, args.format))
}

fn drawn(scene: &Scene, format: FormatArg) -> String {
    if format == FormatArg::Html { view::html(scene) } else { view::svg(scene) }
}

/// One side of a comparison.
struct Side {
    name: String,
    loaded: Loaded,
    stage: Stage,
}

/// `--diff`.
///
/// # Errors
/// Names that are neither stages nor models, models that cannot be read, and a form that a comparison does not have.
pub(crate) fn diff(args: &InspectArgs) -> Result<String> {
    let [a, b] = sides(args)?;
    let names = [a.name.as_str(), b.name.as_str()];
    match args.format {
        FormatArg::Text | FormatArg::Json => {
            let (mut x, mut y) = (scene(&a.loaded, a.stage, args, false)?, scene(&b.loaded, b.stage, args, false)?);
            let lines = view::compare(&mut x, &mut y);
            let sizes = sizes(&a.loaded.model.arch, &b.loaded.model.arch);
            Ok(match args.format {
                FormatArg::Json => format!("{:#}", view::diff_json(names, &sizes, &lines)),
                _ => view::diff_text(names, &sizes, &lines),
            })
        }
        FormatArg::Svg | FormatArg::Html => {
            let (mut x, mut y) = (scene(&a.loaded, a.stage, args, true)?, scene(&b.loaded, b.stage, args, true)?);
            view::compare(&mut x, &mut y);
            Ok(drawn(&view::side_by_side(x, y, names), args.format))
        }
        FormatArg::Dot => Err(CliError::usage("a comparison has no dot form", "it has text, json, svg and html")),
    }
}

fn sides(args: &InspectArgs) -> Result<[Side; 2]> {
    let stage = |name: &str| name.parse::<Stage>().ok();
    let emit = args.emit.unwrap_or(Stage::Arch);
    let model = args.model.model.as_str();
    // `--config`, `--set` and `--tiny` are of MODEL.
    let plain = ModelArgs { config: None, set: Vec::new(), tiny: false, ..args.model.clone() };
    let is_plain = args.model.config.is_none() && args.model.set.is_empty() && !args.model.tiny;
    let side = |name: &str, args: &ModelArgs| -> Result<Side> {
        Ok(Side { name: name.to_owned(), loaded: load(name, args)?, stage: emit })
    };
    match (model, &args.diff[..]) {
        ("", [a, b]) if is_plain => Ok([side(a, &plain)?, side(b, &plain)?]),
        ("", [_, _]) => Err(CliError::usage(
            "`--set`, `--config` and `--tiny` are of MODEL, and there is none",
            "write `xfc inspect MODEL --set SIZE=VALUE --diff OTHER`",
        )),
        (model, [a, b]) => match (stage(a), stage(b)) {
            (Some(before), Some(after)) => {
                let of = |stage: Stage| -> Result<Side> {
                    let loaded = load(model, &args.model)?;
                    Ok(Side { name: format!("{model} {stage}"), loaded, stage })
                };
                Ok([of(before)?, of(after)?])
            }
            _ => Err(CliError::usage(
                format!("`--diff {a} {b}` names no two stages of {model}"),
                "write two stages (arch, graph, fused), one other model, or two models and no MODEL",
            )),
        },
        ("", _) => {
            Err(CliError::usage("`--diff` with one model needs another", "write `xfc inspect MODEL --diff OTHER`"))
        }
        (model, [other]) => {
            let (mut first, second) = (side(model, &args.model)?, side(other, &plain)?);
            if !args.model.set.is_empty() {
                first.name = format!("{model} {}", args.model.set.join(" "));
            }
            Ok([first, second])
        }
        _ => Err(CliError::usage("`--diff` takes one or two names", "write `xfc inspect A --diff B`")),
    }
}

/// Sizes that differ: name, before, after; empty where a side has none.
fn sizes(a: &Arch, b: &Arch) -> Vec<(String, String, String)> {
    let value = |arch: &Arch, name: &str| {
        arch.sizes.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_string()).unwrap_or_default()
    };
    let mut names: Vec<&String> = a.sizes.iter().map(|(n, _)| n).collect();
    names.extend(b.sizes.iter().map(|(n, _)| n).filter(|n| a.sizes.iter().all(|(m, _)| m != *n)));
    let rows = names.into_iter().map(|n| (n.clone(), value(a, n), value(b, n)));
    rows.filter(|(_, before, after)| before != after).collect()
}

/// The plan of a model: what it keeps as it is allocated; or why there is none.
fn outline(loaded: &Loaded, args: &InspectArgs) -> Result<std::result::Result<Outline, CodegenError>> {
    let (options, targets) = (args.model.options()?, args.model.targets()?);
    let [target] = &targets[..] else {
        return Err(CliError::usage("caches are told for one target", "give `--target` once"));
    };
    let fused = driver::fuse(&loaded.model, &options);
    Ok(fused.and_then(|fused| driver::outline(&loaded.model, &fused.program, &**target, &options)))
}

/// `--cache`.
///
/// # Errors
/// The model cannot be read, or a form that the derivation does not have.
pub(crate) fn caches(args: &InspectArgs) -> Result<String> {
    let loaded = load(&args.model.model, &args.model)?;
    let program = program(&loaded, Stage::Arch, args)?;
    let facts = view::caches(&program)
        .ok_or_else(|| CliError::usage("the model has too many layers to list", "set fewer with `--set`"))?;
    let outline = outline(&loaded, args)?;
    let planned = outline.as_ref().map_err(ToString::to_string).and_then(|outline| {
        let asked = cost::asked(args, outline).map_err(|e| e.to_string())?;
        Ok((asked.context, Allocated::of(outline, asked.session(outline))))
    });
    let tokens = match &planned {
        Ok((tokens, _)) => *tokens,
        Err(_) => args.ctx_size.unwrap_or(CONTEXT_TOKENS),
    };
    match args.format {
        FormatArg::Text => {
            let allocated = match &planned {
                Ok((_, allocated)) => allocated.text(),
                Err(why) => format!("allocated: not known, {why}\n"),
            };
            Ok(format!("{}\n{allocated}", view::cache_text(&facts, tokens)))
        }
        FormatArg::Json => {
            let mut json = view::cache_json(&facts, tokens);
            json["allocated"] = planned.map_or(serde_json::Value::Null, |(_, allocated)| allocated.json());
            Ok(format!("{json:#}"))
        }
        FormatArg::Dot | FormatArg::Svg | FormatArg::Html => {
            Err(CliError::usage("caches are told as text or json", "use `--format text` or `--format json`"))
        }
    }
}

/// `xfc explain CODE`.
///
/// # Errors
/// What is no code.
pub(crate) fn explain(code: Option<&str>) -> Result<String> {
    let Some(code) = code else { return Ok(view::codes()) };
    view::explain(code)
        .ok_or_else(|| CliError::usage(format!("no error has the code `{code}`"), "`xfc explain` alone lists all"))
}

/// `xfc doc NAME`.
///
/// # Errors
/// What is neither an operation nor a definition of the library.
pub(crate) fn doc(name: Option<&str>, models: Option<&Path>) -> Result<String> {
    let library = model::library(models)?;
    let Some(name) = name else { return Ok(view::contents(&library)) };
    view::page(name, &library).map_err(|close| {
        let help = match close {
            Some(close) => format!("did you mean `{close}`?"),
            None => "`xfc doc` alone lists all".to_owned(),
        };
        CliError::usage(format!("nothing is called `{name}`"), help)
    })
}
