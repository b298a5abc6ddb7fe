//! What an artifact holds: the model, and a variant for each target, with what its code needs and whether this machine has it.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::artifact::{Artifact, HostFeatures};

use xfc_lang::view::digits;

/// For people.
pub(crate) fn text(artifact: &Artifact, host: &HostFeatures) -> String {
    let (card, sizes) = artifact.sizes();
    let mut out = String::new();
    let chosen = chosen(artifact, host);
    for (i, (manifest, (plan, code))) in artifact.manifests().zip(sizes).enumerate() {
        if i == 0 {
            let _ = writeln!(
                out,
                "{}: {}, {} parameters, by {}, with {card} bytes of description",
                artifact.path(),
                manifest.model,
                digits(manifest.parameters),
                manifest.compiler
            );
        }
        let target = &manifest.target;
        let _ = writeln!(out, "  {}", target.name);
        let _ = writeln!(
            out,
            "    {}, {} kernels in {code} bytes of code, {} launches in {plan} bytes of plan",
            target.arch,
            manifest.kernels.len(),
            manifest.launches.len()
        );
        let _ = writeln!(out, "    needs {}", list(&target.features));
        let here = match host.missing(target) {
            None => format!("does not run on this machine, which is {}", host.arch),
            Some(missing) if !missing.is_empty() => {
                format!("does not run on this machine, which lacks {}", list(&missing))
            }
            _ if chosen == Some(i) => "runs on this machine, and is what it takes".to_owned(),
            _ => "runs on this machine".to_owned(),
        };
        let _ = writeln!(out, "    {here}");
    }
    out
}

/// For programs.
pub(crate) fn json(artifact: &Artifact, host: &HostFeatures) -> Value {
    let (card_bytes, sizes) = artifact.sizes();
    let chosen = chosen(artifact, host);
    let variant = |(i, (manifest, (plan_bytes, code_bytes))): (usize, (&Manifest, (usize, usize)))| {
        json!({
            "target": manifest.target.name,
            "arch": manifest.target.arch,
            "features": manifest.target.features,
            "missing_here": host.missing(&manifest.target),
            "chosen_here": chosen == Some(i),
            "kernels": manifest.kernels.len(),
            "launches": manifest.launches.len(),
            "code_bytes": code_bytes,
            "plan_bytes": plan_bytes,
        })
    };
    let first = artifact.manifests().next();
    json!({
        "artifact": artifact.path(),
        "model": first.map(|m| &m.model),
        "parameters": first.map(|m| m.parameters),
        "compiler": first.map(|m| &m.compiler),
        "card_bytes": card_bytes,
        "variants": artifact.manifests().zip(sizes).enumerate().map(variant).collect::<Vec<_>>(),
    })
}

/// Which variant the runtime takes.
fn chosen(artifact: &Artifact, host: &HostFeatures) -> Option<usize> {
    artifact.manifests().position(|m| host.missing(&m.target).is_some_and(|missing| missing.is_empty()))
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
