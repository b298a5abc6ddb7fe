//! Which module of a checkpoint an instance is: the one that holds exactly its parameters.
//!
//! Given a model's bindings, [`of_checkpoint`] promises pairs of an instance path and the dotted name that a checkpoint's parameters
//! share, such as `layers.3.mlp` and `model.layers.3.mlp`, and none where the two do not hold the same tensors.

use std::collections::{BTreeMap, BTreeSet};

use xfc_lang::arch::Model;

/// Instance paths, each with the names that its module may have in a checkpoint.
pub fn of_checkpoint(model: &Model) -> Vec<(String, Vec<String>)> {
    let most = model.bindings.iter().map(|b| b.names.len()).max().unwrap_or(0);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // One choice of the names at a time: they come in the same order for every parameter.
    for choice in 0..most {
        for (path, module) in of_choice(model, choice) {
            let modules = found.entry(path).or_default();
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    found.into_iter().collect()
}

fn of_choice(model: &Model, choice: usize) -> Vec<(String, String)> {
    let pairs: Vec<(&str, &str)> = model
        .arch
        .parameters
        .iter()
        .zip(&model.bindings)
        .filter_map(|(p, b)| Some((p.path.as_str(), b.names.get(choice).or(b.names.last())?.as_str())))
        .collect();
    // The stored names below each dotted prefix, on both sides.
    let mut ours: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut theirs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, name) in &pairs {
        prefixes(path).for_each(|prefix| _ = ours.entry(prefix).or_default().insert(name));
        prefixes(name).for_each(|prefix| _ = theirs.entry(prefix).or_default().insert(name));
    }
    let mut claims: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, names) in &ours {
        if let Some(module) = longest_prefix(names).filter(|module| theirs.get(module) == Some(names)) {
            claims.entry(module).or_default().push(path);
        }
    }
    let mut matched = Vec::new();
    for (module, mut paths) in claims {
        // Several may claim a module only if each holds the next; then the innermost is it.
        paths.sort_by_key(|path| path.len());
        let nested =
            paths.windows(2).all(|pair| pair[1].strip_prefix(pair[0]).is_some_and(|rest| rest.starts_with('.')));
        if let Some(innermost) = paths.last().filter(|_| nested) {
            matched.push(((*innermost).to_owned(), module.to_owned()));
        }
    }
    matched
}

/// `a`, `a.b` of `a.b.c`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(i, _)| &path[..i])
}

/// The longest dotted name that all names lie below.
fn longest_prefix<'n>(names: &BTreeSet<&'n str>) -> Option<&'n str> {
    let first = *names.first()?;
    prefixes(first).filter(|p| names.iter().all(|n| n.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')))).last()
}
