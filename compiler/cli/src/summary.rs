//! What a person wants to know of a model first: its sizes in a dozen lines.

use std::fmt::Write as _;

use xfc_lang::Model;
use xfc_lang::arch::Numbers;
use xfc_lang::spec::ActiveCounts;
use xfc_lang::view::digits;
use xfc_runtime::artifact::manifest::{Keep, Manifest};
use xfc_runtime::need;

use crate::error::Result;

/// The summary. `is_published` says that the sizes are those of the released model.
pub(crate) fn text(model: &Model, is_published: bool) -> String {
    let (arch, numbers) = (&model.arch, Numbers::of(&model.arch, &model.program));
    let mut out = String::new();
    let released = arch.published.as_ref().filter(|_| is_published);
    let name = released.map_or_else(String::new, |p| match &p.part {
        Some(part) => format!(" {}, {part}", p.model),
        None => format!(" {}", p.model),
    });
    let _ = writeln!(out, "{}{}", arch.name, if name.is_empty() { name } else { format!(":{name}") });
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "  {what:<12}{value}");
    };
    line("parameters", digits(numbers.parameters));
    let (active, met) = (numbers.active(ActiveCounts::All), numbers.active(ActiveCounts::WithoutLookups));
    line("active", format!("{} for a token; {} without tables that are only looked up", digits(active), digits(met)));
    let stacks: Vec<String> = numbers.stacks.iter().map(|(path, n)| format!("{n} in {path}")).collect();
    if !stacks.is_empty() {
        line("layers", stacks.join(", "));
    }
    for (axis, values) in &numbers.kept {
        let both = format!("{} bytes in bf16, {} in f32", digits(2 * values), digits(4 * values));
        line("cache", format!("{both} for each of the {axis}, while it is kept"));
    }
    if numbers.state > 0 {
        line("state", format!("{} bytes a sequence, in f32", digits(4 * numbers.state)));
    }
    if numbers.kept.is_empty() && numbers.state == 0 {
        line("cache", "nothing is kept between steps".to_owned());
    }
    line(
        "weights",
        format!("{} bytes in bf16, {} in f32", digits(2 * numbers.parameters), digits(4 * numbers.parameters)),
    );
    for (what, values) in [("takes", &arch.inputs), ("gives", &arch.outputs)] {
        let values: Vec<String> = values.iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
        line(what, values.join(", "));
    }
    if let Some(published) = released {
        let differs = numbers.disagreements(published);
        let note = published.note.as_deref().map(|n| format!("; {n}")).unwrap_or_default();
        line(
            "published",
            if differs.is_empty() {
                format!("the same numbers{note}")
            } else {
                format!("{}{note}", differs.join("; "))
            },
        );
    }
    out
}

/// What a plan holds: bytes of weights as they are packed, and of caches for each token.
///
/// # Errors
/// The plan's weights cannot be packed.
pub(crate) fn planned(model: &Model, manifest: &Manifest) -> Result<String> {
    let weights = need::weight_bytes(manifest)?;
    let bits = 8.0 * weights as f64 / Numbers::of(&model.arch, &model.program).parameters as f64;
    let mut out = format!("  {:<12}{} bytes of weights, {bits:.2} bits a parameter", "as asked", digits(weights));
    let grows = |keep: Keep| !matches!(keep, Keep::State | Keep::Step);
    let slots = manifest.caches.iter().filter(|group| grows(group.keep)).flat_map(|group| &group.slots);
    let kept: u64 = slots.map(|slot| slot.token_bytes).sum();
    if kept > 0 {
        let _ = write!(out, "; {} bytes of caches a token, while it is kept", digits(kept));
    }
    out.push('\n');
    Ok(out)
}
