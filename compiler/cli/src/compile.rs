//! `xfc compile`: a card or checkpoint folder to an artifact.

use std::path::{Path, PathBuf};
use std::time::Instant;

use xfc_codegen::driver;
use xfc_runtime::commands::LoadArgs;

use crate::args::CompileArgs;
use crate::auto;
use crate::error::Result;
use crate::model::{self, Named};
use crate::output::print;
use crate::stored;
use crate::tuned;
use xfc_lang::view::digits;

/// Runs the subcommand.
///
/// # Errors
/// The model cannot be read or compiled, or the artifact cannot be written.
pub(crate) fn run(args: &CompileArgs) -> Result<()> {
    let start = Instant::now();
    let named = model::name(&args.model.model)?;
    let targets = args.model.targets()?;
    // Before the model is read for it.
    let checkpoint = stored::own_checkpoint(&named);
    let model =
        auto::resolve(&named, &args.model, &LoadArgs { checkpoint: checkpoint.clone(), ..LoadArgs::default() })?;
    model.options()?;
    let mut loaded = model::load(&named, &model)?;
    let mut options = stored::resolve(&mut loaded, checkpoint.as_deref(), &model)?.options()?;
    if let Some(threads) = args.threads {
        options.threads = threads.max(1);
    }
    if let Some(dir) = &options.dump {
        driver::dump_text(dir, "00-spec.yaml", &loaded.card)?;
        driver::dump_text(dir, "10-arch.yaml", &loaded.model.arch.to_string())?;
    }
    let read = start.elapsed();
    let compiled = driver::compile(&loaded.model, &loaded.card, &targets, &options)?;
    let output = args.output.clone().unwrap_or_else(|| default_output(&named));
    xfc_runtime::files::write_atomic(&output, &compiled.bytes)?;
    let total = start.elapsed();

    let n_kernels: Vec<usize> = compiled.built.iter().map(|b| b.kernels.len()).collect();
    if args.json {
        let stages: serde_json::Map<String, serde_json::Value> = std::iter::once(("read", read))
            .chain(compiled.elapsed.iter().copied())
            .map(|(name, t)| (name.to_owned(), serde_json::json!(t.as_secs_f64() * 1e3)))
            .collect();
        let json = serde_json::json!({
            "artifact": output,
            "model": loaded.model.arch.name,
            "bytes": compiled.bytes.len(),
            "parameters": loaded.model.arch.parameter_count(),
            "targets": targets.iter().map(|t| t.name()).collect::<Vec<_>>(),
            "profiles": targets.iter().map(|t| t.profile().map(|p| &p.date)).collect::<Vec<_>>(),
            "kernels": n_kernels,
            "launches": compiled.built.iter().map(|b| b.plan.launches.len()).collect::<Vec<_>>(),
            "elapsed_ms": total.as_secs_f64() * 1e3,
            "stages_ms": stages,
        });
        print(format!("{json:#}"));
        return Ok(());
    }
    let names: Vec<&str> = targets.iter().map(|t| t.name()).collect();
    print(format!(
        "{}: {} for {}, {} parameters, {} KB, {:.2} s",
        output.display(),
        loaded.model.arch.name,
        names.join(" and "),
        digits(loaded.model.arch.parameter_count()),
        compiled.bytes.len().div_ceil(1000),
        total.as_secs_f64()
    ));
    if let Some(portable) = args.model.portable_gpu() {
        print(format!(
            "  `{portable}` is PTX for sm_80, which later GPUs run too; `{portable}:sm_90a` and others are for newer ones alone"
        ));
    }
    if args.verbose {
        print(format!(
            "  {:<10} {:8.1} ms   {} graphs",
            "read",
            read.as_secs_f64() * 1e3,
            loaded.model.program.graphs.len()
        ));
        for (name, t) in &compiled.elapsed {
            print(format!("  {name:<10} {:8.1} ms", t.as_secs_f64() * 1e3));
        }
        for (built, target) in compiled.built.iter().zip(&targets) {
            print(format!(
                "  {}: {} distinct kernels, {} compiled with their variants, {} launches; {}",
                target.name(),
                built.plan.kernels.len(),
                built.kernels.len(),
                built.plan.launches.len(),
                tuned::text(&**target)
            ));
        }
    }
    Ok(())
}

fn default_output(named: &Named) -> PathBuf {
    let stem = |p: &Path| p.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    let name = match named {
        Named::Checkpoint(dir) => {
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
            dir.file_name().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned())
        }
        Named::Card(card) => stem(Path::new(card)),
        Named::Artifact(path) | Named::Gguf(path) => stem(path),
    };
    PathBuf::from(format!("{name}.xfm"))
}
