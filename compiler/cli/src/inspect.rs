//! `xfc inspect`: a summary of a model, or any stage of it as text, JSON or a drawing.

use std::path::Path;

use serde::Deserialize as _;
use serde_json::json;
use xfc_codegen::driver::{self, Stage};
use xfc_codegen::kernels::Built;
use xfc_codegen::target::Keep;
use xfc_lang::graph::Program;
use xfc_lang::view;
use xfc_runtime::artifact::{Artifact, HostFeatures};

use crate::args::{FormatArg, InspectArgs};
use crate::cost;
use crate::error::{CliError, Result};
use crate::layer;
use crate::model::{self, Loaded, Named};
use crate::names;
use crate::output::print;
use crate::see;
use crate::stored;
use crate::summary;
use crate::values;
use crate::variants;

/// Runs the subcommand.
///
/// # Errors
/// The model cannot be read or compiled, the stage has no such form, or the output cannot be written.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let text = wanted(args)?;
    match &args.output {
        Some(path) => xfc_runtime::files::write_atomic(path, text.as_bytes())?,
        None => print(text.trim_end().to_owned()),
    }
    Ok(())
}

fn wanted(args: &InspectArgs) -> Result<String> {
    if !args.diff.is_empty() {
        return see::diff(args);
    }
    if args.model.model.is_empty() {
        return Err(CliError::usage("no MODEL is given", "write `xfc inspect MODEL`, or `xfc inspect --diff A B`"));
    }
    if args.cache {
        return see::caches(args);
    }
    if args.cost {
        let mut loaded = see::load(&args.model.model, &args.model)?;
        let args = as_stored(&mut loaded, &model::name(&args.model.model)?, args)?;
        return cost::run(&loaded, &args);
    }
    if args.ctx_size.is_some() || args.batch != 1 {
        let problem = "`--ctx-size` and `--batch` are of `--cache` and `--cost`";
        return Err(CliError::usage(problem, "add one of them"));
    }
    if (args.values || args.names) && args.format != FormatArg::Text {
        return Err(CliError::usage("lists of names and values are text", "leave `--format` out"));
    }
    if (args.values || args.names) && (args.emit.is_some() || args.layer.is_some()) {
        return Err(CliError::usage(
            "`--values` and `--names` list the whole model",
            "leave `--emit` and `--layer` out",
        ));
    }
    if args.pass_limit.is_some() && matches!(args.emit, Some(Stage::Spec | Stage::Arch)) {
        let problem = format!("stage `{}` is before all passes", emit(args));
        return Err(CliError::usage(problem, "use `--pass-limit` with `--emit fused`"));
    }
    if matches!(args.format, FormatArg::Svg | FormatArg::Html) {
        return see::draw(args);
    }
    let named = model::name(&args.model.model)?;
    match &named {
        Named::Artifact(path) if args.values || args.names => Err(CliError::usage(
            format!("{} is compiled: names follow from its description", path.display()),
            "give its card or checkpoint folder",
        )),
        Named::Artifact(path) => {
            model::takes_no_options(path, &args.model, &[])?;
            artifact(path, args)
        }
        named if args.values => Ok(values::list(&model::load(named, &args.model)?)),
        named if args.names => Ok(names::list(&model::load(named, &args.model)?)),
        named => {
            let mut loaded = model::load(named, &args.model)?;
            let args = as_stored(&mut loaded, named, args)?;
            stage(&loaded, &args)
        }
    }
}

/// The arguments with what their plan says of the model's own checkpoint.
fn as_stored(loaded: &mut Loaded, named: &Named, args: &InspectArgs) -> Result<InspectArgs> {
    let checkpoint = stored::own_checkpoint(named);
    Ok(InspectArgs { model: stored::resolve(loaded, checkpoint.as_deref(), &args.model)?, ..args.clone() })
}

/// The stage asked for; of a model without one, its fused graph.
fn emit(args: &InspectArgs) -> Stage {
    args.emit.unwrap_or(Stage::Fused)
}

fn no_form(args: &InspectArgs) -> CliError {
    CliError::usage(
        format!("stage `{}` has no {:?} form", emit(args), args.format).to_lowercase(),
        "spec is text or json, arch also svg or html, graph and fused also dot, svg or html, plan and kernels are text or json",
    )
}

/// An artifact holds its description and a plan for each target; without a stage, what it holds.
fn artifact(path: &Path, args: &InspectArgs) -> Result<String> {
    let artifact = Artifact::open(path)?;
    let Some(stage) = args.emit else {
        let host = HostFeatures::for_targets(artifact.manifests().map(|manifest| &manifest.target), None)?;
        return match args.format {
            FormatArg::Text => Ok(variants::text(&artifact, &host)),
            FormatArg::Json => pretty(&variants::json(&artifact, &host)),
            _ => Err(CliError::usage(
                format!("what {} holds is shown as text or json", path.display()),
                "leave `--format` out, or give the card",
            )),
        };
    };
    match (stage, args.format) {
        (Stage::Spec, FormatArg::Text) => Ok(artifact.card().to_owned()),
        (Stage::Plan, FormatArg::Json) => pretty(&json!(artifact.manifests().map(|m| json!(m)).collect::<Vec<_>>())),
        (Stage::Plan, FormatArg::Text) => {
            Ok(artifact.manifests().map(|m| plan_text(m, args.layer)).collect::<Vec<_>>().join("\n"))
        }
        _ => Err(CliError::usage(
            format!("{} is an artifact: it holds its plan and its description, not stage `{}`", path.display(), stage),
            "use `--emit plan` or `--emit spec`, or give the card",
        )),
    }
}

/// The lines of a summary that need a plan: what the model takes in the types that were asked for, on the first target.
fn in_types(loaded: &Loaded, args: &InspectArgs, options: &driver::Options) -> Result<String> {
    let fused = driver::fuse(&loaded.model, options)?;
    let targets = args.model.targets()?;
    let outline = driver::outline(&loaded.model, &fused.program, &*targets[0], options)?;
    summary::planned(&loaded.model, &outline.manifest)
}

fn stage(loaded: &Loaded, args: &InspectArgs) -> Result<String> {
    let mut options = args.model.options()?;
    options.pass_limit = args.pass_limit;
    if args.emit.is_none() && args.format == FormatArg::Text && args.layer.is_none() && args.pass_limit.is_none() {
        let summary = summary::text(&loaded.model, loaded.is_published);
        return Ok(if args.model.names_types() { summary + &in_types(loaded, args, &options)? } else { summary });
    }
    let emit = emit(args);
    match emit {
        Stage::Spec => match args.format {
            FormatArg::Text => Ok(loaded.card.clone()),
            FormatArg::Json => yaml_as_json(&loaded.card),
            FormatArg::Dot | FormatArg::Svg | FormatArg::Html => Err(no_form(args)),
        },
        Stage::Arch => match args.format {
            FormatArg::Text => Ok(loaded.model.arch.to_string()),
            FormatArg::Json => yaml_as_json(&loaded.model.arch.to_string()),
            FormatArg::Dot | FormatArg::Svg | FormatArg::Html => Err(no_form(args)),
        },
        Stage::Graph => program(&driver::fuse(&loaded.model, &options)?.graph, args),
        Stage::Fused => program(&driver::fuse(&loaded.model, &options)?.program, args),
        Stage::Plan | Stage::Mlir | Stage::Llvm | Stage::Asm => {
            if args.format == FormatArg::Dot {
                return Err(no_form(args));
            }
            if args.pass_limit.is_some() {
                return Err(CliError::usage(
                    "kernels are made of a wholly fused graph",
                    "use `--pass-limit` with `--emit fused`",
                ));
            }
            options.keep = Keep { llvm: emit == Stage::Llvm, assembly: emit == Stage::Asm };
            let fused = driver::fuse(&loaded.model, &options)?;
            let mut parts = Vec::new();
            for target in args.model.targets()? {
                let built = driver::build_kernels(&loaded.model, &fused.program, &*target, &options)?;
                parts.push(kernels(&built, args)?);
            }
            match args.format {
                FormatArg::Json => pretty(&serde_json::Value::Array(
                    parts.iter().filter_map(|p| serde_json::from_str(p).ok()).collect(),
                )),
                _ => Ok(parts.join("\n")),
            }
        }
    }
}

/// A card that extends others is a list: itself, then what it extends.
fn yaml_as_json(text: &str) -> Result<String> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document)
            .map_err(|e| CliError::usage(format!("the YAML has no JSON form: {e}"), "use `--format text`"))?;
        documents.push(value);
    }
    match documents.len() {
        1 => pretty(&documents[0]),
        _ => pretty(&serde_json::Value::Array(documents)),
    }
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(format!("{value:#}"))
}

fn program(program: &Program, args: &InspectArgs) -> Result<String> {
    let graphs = match args.layer {
        None => (0..program.graphs.len()).collect(),
        Some(n) => {
            let graphs = layer::graphs(program, n);
            if graphs.is_empty() {
                return Err(CliError::usage(format!("the model has no layer {n}"), "layers count from 0"));
            }
            graphs
        }
    };
    match args.format {
        FormatArg::Text if args.layer.is_none() => Ok(program.to_string()),
        FormatArg::Text => {
            Ok(graphs.iter().map(|g| program.graphs[*g].text(&program.axes)).collect::<Vec<_>>().join("\n\n"))
        }
        FormatArg::Json => pretty(&view::json(program, &graphs)),
        FormatArg::Dot => Ok(view::dot(program, &graphs)),
        FormatArg::Svg | FormatArg::Html => Err(no_form(args)),
    }
}

fn kernels(built: &Built, args: &InspectArgs) -> Result<String> {
    let emit = emit(args);
    let chosen: Vec<usize> = match args.layer {
        None => (0..built.kernels.len()).collect(),
        Some(n) => {
            let mut list: Vec<usize> = built
                .manifest
                .launches
                .iter()
                .filter(|l| layer::is_in(&l.name, n))
                .flat_map(|l| l.variants.iter().map(|v| v.kernel))
                .collect();
            list.sort_unstable();
            list.dedup();
            list
        }
    };
    let code = |k: usize| {
        let kernel = &built.kernels[k];
        match emit {
            Stage::Llvm => kernel.code.llvm.clone().unwrap_or_default(),
            Stage::Asm => kernel.code.assembly.clone().unwrap_or_default(),
            _ => kernel.mlir.clone(),
        }
    };
    Ok(match (emit, args.format) {
        (Stage::Plan, FormatArg::Json) => json!(built.manifest).to_string(),
        (Stage::Plan, _) => plan_text(&built.manifest, args.layer),
        (_, FormatArg::Json) => json!(
            chosen.iter().map(|k| json!({"kernel": built.kernels[*k].name, "text": code(*k)})).collect::<Vec<_>>()
        )
        .to_string(),
        _ => {
            let comment = if emit == Stage::Asm {
                "#"
            } else if emit == Stage::Llvm {
                ";"
            } else {
                "//"
            };
            chosen
                .iter()
                .map(|k| format!("{comment} {}\n{}", built.kernels[*k].name, code(*k)))
                .collect::<Vec<_>>()
                .join("\n")
        }
    })
}

/// A manifest as a table for people.
fn plan_text(m: &xfc_runtime::artifact::manifest::Manifest, only: Option<usize>) -> String {
    use std::fmt::Write as _;
    use xfc_runtime::artifact::manifest::BufferRef;
    let mut out = String::new();
    let _ = writeln!(out, "{} for {}, {} parameters", m.model, m.target.name, m.parameters);
    for group in &m.caches {
        let bytes: u64 = group.slots.iter().map(|s| s.token_bytes).sum();
        let _ = writeln!(
            out,
            "cache   {:<12} {} slots, {bytes} bytes a token, pages of {} tokens",
            group.name,
            group.slots.len(),
            group.page_tokens
        );
    }
    for arena in &m.arenas {
        let rows = if arena.rows { "selected " } else { "" };
        let _ = writeln!(out, "arena   {} bytes for each of the {rows}{}", arena.bytes_per_row, m.axes[arena.axis]);
    }
    let _ = writeln!(out, "weights {} packed tensors", m.weights.len());
    let mut weight_bytes = 0;
    for weight in &m.weights {
        weight_bytes += weight.stored_bytes();
    }
    let _ = writeln!(out, "        {weight_bytes} bytes without padding");
    for (i, launch) in m.launches.iter().enumerate().filter(|(_, l)| only.is_none_or(|n| layer::is_in(&l.name, n))) {
        let kernels: Vec<&str> = launch.variants.iter().map(|v| m.kernels[v.kernel].name.as_str()).collect();
        let mut kernels = kernels;
        kernels.dedup();
        let _ = writeln!(out, "{i:>5}  {}", launch.name);
        let _ = writeln!(out, "       {}", kernels.join(" | "));
        for (phase, variant) in m.phases.iter().zip(&launch.variants) {
            if let Some(multiplies) = variant.multiplies {
                let _ = writeln!(out, "       multiplies {} where rows are {}", multiplies.name(), phase.name);
            }
        }
        let operands: Vec<String> = launch
            .operands
            .iter()
            .map(|o| match o {
                BufferRef::Arena { arena, offset, column, .. } => format!(
                    "arena {arena} +{offset}{}",
                    if *column > 0 { format!(" column {column}") } else { String::new() }
                ),
                BufferRef::Weight(w) => m.weights[*w].name.clone(),
                BufferRef::Cache { group, slot } => m.caches[*group].slots[*slot].path.clone(),
            })
            .collect();
        let _ = writeln!(out, "       {}", operands.join(", "));
    }
    out
}
