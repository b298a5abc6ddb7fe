//! The sizes of a card: from `--set`, from a config, or the published model's.
//!
//! With a config, a size must be in it unless the card says otherwise: a silent 7B value in a 70B run would be wrong logits.

use std::sync::Arc;

use super::ElaborateOptions;
use crate::diagnostic::{Code, Diagnostic, Label, did_you_mean};
use crate::spec::{Datum, Place, Size, Spec, parse_yaml};

/// Sizes, and where their strings come from.
pub(super) struct Resolved {
    /// The value of each in the card's order.
    pub(super) sizes: Vec<(Arc<str>, Datum)>,
    /// The strings in them, known by their address: `hidden_act` of a file, of `--set` or of the card.
    pub(super) origins: Vec<(Arc<str>, String)>,
    /// Those that are no dimensions, for messages: the number, and what made it so at the size's line.
    pub(super) below_one: Vec<(i64, Label)>,
}

/// The sizes of a card.
pub(super) fn resolve(spec: &Spec, options: &ElaborateOptions, diagnostics: &mut Vec<Diagnostic>) -> Resolved {
    let called = if options.config_name.is_empty() { "the config" } else { &options.config_name };
    let whole = options.config.as_ref().map(Datum::from);
    let config = whole.as_ref().map(|c| Config { values: under(spec, c), called });
    let sets = read_sets(spec, &options.sets, diagnostics);
    if let Some(config) = &config {
        check_assumptions(spec, config, diagnostics);
    }
    let mut below_one = Vec::new();
    let sizes: Vec<(Arc<str>, Datum)> = spec
        .sizes
        .iter()
        .map(|size| {
            let set = sets.iter().rfind(|(name, _)| *name == size.name).map(|(_, v)| v.clone());
            let (value, from) = match (set, &config) {
                (Some(value), _) => (value, "--set"),
                (None, Some(config)) => (from_config(size, config, diagnostics), config.called),
                (None, None) => {
                    (size.example.clone().or_else(|| size.default.clone()).unwrap_or(Datum::Null), "the card")
                }
            };
            let value = check_type(size, normalise(value), from, diagnostics);
            if let Datum::Int(number @ ..1) = value {
                let by = if from == "the card" { String::new() } else { format!(" by {from}") };
                below_one.push((number, Label { span: size.span, text: format!("`{}` is {number}{by}", size.name) }));
            }
            (size.name.clone(), value)
        })
        .collect();
    let mut origins = Vec::new();
    let mut of = |values: &Datum, path: &str, from: &str| {
        strings(values, path, &mut |string, key| origins.push((string.clone(), format!("`{key}` {from}"))));
    };
    whole.iter().for_each(|config| of(config, "", &format!("of {called}")));
    sets.iter().for_each(|(name, value)| of(value, name, "of `--set`"));
    sizes.iter().for_each(|(name, value)| of(value, name, "of the card"));
    Resolved { sizes, origins, below_one }
}

/// The strings in a value, each with the keys that lead to it.
fn strings(value: &Datum, path: &str, found: &mut dyn FnMut(&Arc<str>, &str)) {
    match value {
        Datum::Str(s) => found(s, path),
        Datum::List(items) => items.iter().for_each(|item| strings(item, path, found)),
        Datum::Map(entries) => {
            for (key, value) in entries {
                strings(value, &if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }, found);
            }
        }
        _ => {}
    }
}

/// Sizes whose value in the card is a number in quotes: where something does not fit, that is why.
pub(super) fn quoted(spec: &Spec, sizes: &[(Arc<str>, Datum)]) -> Vec<Diagnostic> {
    let wrong = spec.sizes.iter().filter(|size| {
        let value = sizes.iter().find(|(name, _)| *name == size.name).map(|(_, value)| value);
        matches!(value, Some(Datum::Str(s)) if s.parse::<f64>().is_ok_and(f64::is_finite))
    });
    let said = |size: &Size| {
        let message = format!("`{}` is a number in quotes, which makes it a string", size.name);
        Diagnostic::new(Code::WrongSize, message, size.span).label("a number is written without quotes")
    };
    wrong.map(said).collect()
}

/// A config and what messages call it.
struct Config<'a> {
    values: Datum,
    called: &'a str,
}

/// The part of the config that the card reads.
fn under(spec: &Spec, config: &Datum) -> Datum {
    match &spec.matches.under {
        Some(key) => match config.get(key) {
            Some(inner) => inner.clone(),
            None if spec.matches.optional => config.clone(),
            None => Datum::Map(Vec::new()),
        },
        None => config.clone(),
    }
}

fn read_sets(spec: &Spec, sets: &[(String, String)], diagnostics: &mut Vec<Diagnostic>) -> Vec<(Arc<str>, Datum)> {
    let mut read = Vec::new();
    for (name, text) in sets {
        let Some(size) = spec.sizes.iter().find(|s| *s.name == **name) else {
            let names = || spec.sizes.iter().map(|s| &*s.name);
            let all = || format!("its sizes are {}", names().collect::<Vec<_>>().join(", "));
            let help = did_you_mean(name, names()).unwrap_or_else(all);
            diagnostics.push(
                Diagnostic::unplaced(
                    Code::UnknownSize,
                    format!("`--set {name}={text}`: the card has no size `{name}`"),
                )
                .help(help),
            );
            continue;
        };
        let mut wrong = Vec::new();
        match parse_yaml(text, 0, &mut wrong) {
            Some(node) if wrong.is_empty() => read.push((size.name.clone(), node.datum())),
            _ => {
                let problem = wrong.first().map_or("the value is not YAML", |problem| &problem.message);
                diagnostics.push(Diagnostic::unplaced(Code::WrongSize, format!("`--set {name}={text}`: {problem}")));
            }
        }
    }
    read
}

fn check_assumptions(spec: &Spec, config: &Config<'_>, diagnostics: &mut Vec<Diagnostic>) {
    for (key, expected) in &spec.assumes {
        let Some(found) = lookup(&config.values, &key.text) else { continue };
        let same = match expected {
            Datum::List(allowed) if !matches!(found, Datum::List(_)) => allowed.iter().any(|a| equal(a, found)),
            one => equal(one, found),
        };
        if !same {
            diagnostics.push(
                Diagnostic::new(
                    Code::Assumption,
                    format!(
                        "{} has `{}: {found}`, for which this card would compute something else",
                        config.called, key.text
                    ),
                    key.span,
                )
                .label(format!("the card is for {expected}")),
            );
        }
    }
}

fn equal(a: &Datum, b: &Datum) -> bool {
    match (a, b) {
        (Datum::Int(i), Datum::Float(f)) | (Datum::Float(f), Datum::Int(i)) => *i as f64 == *f,
        _ => a == b,
    }
}

/// A value by its key, dots leading into mappings; null is absent.
fn lookup<'a>(config: &'a Datum, key: &str) -> Option<&'a Datum> {
    config.get(key).or_else(|| {
        let (first, rest) = key.split_once('.')?;
        lookup(config.get(first)?, rest)
    })
}

fn from_config(size: &Size, config: &Config<'_>, diagnostics: &mut Vec<Diagnostic>) -> Datum {
    let own = [Place::Key(size.name.clone())];
    let places = if size.from.is_empty() { &own[..] } else { &size.from };
    if let Some(found) = places.iter().find_map(|place| at(place, &config.values)) {
        return found;
    }
    if let Some(default) = &size.default {
        return default.clone();
    }
    if !size.optional {
        let keys: Vec<String> = places
            .iter()
            .map(|place| match place {
                Place::Key(key) => format!("`{key}`"),
                Place::Mapping(entries) => {
                    entries.iter().map(|(_, key)| format!("`{key}`")).collect::<Vec<_>>().join(" with ")
                }
            })
            .collect();
        let mut d = Diagnostic::new(
            Code::MissingSize,
            format!("{} has no {}", config.called, keys.join(" and no ")),
            size.span,
        )
        .label("the card needs it");
        if let (Datum::Map(entries), [Place::Key(key)]) = (&config.values, places) {
            d = d.maybe_help(
                did_you_mean(key, entries.iter().map(|(k, _)| &**k))
                    .map(|h| h.replace("did you mean", "is it the config's")),
            );
        }
        diagnostics.push(d);
        return size.example.clone().unwrap_or(Datum::Null);
    }
    Datum::Null
}

fn at(place: &Place, config: &Datum) -> Option<Datum> {
    match place {
        Place::Key(key) => lookup(config, key).cloned(),
        Place::Mapping(entries) => {
            let mut found: Vec<(Arc<str>, Datum)> = Vec::new();
            let mut add = |key: &Arc<str>, value: &Datum| {
                if *value != Datum::Null && !found.iter().any(|(k, _)| k == key) {
                    found.push((key.clone(), value.clone()));
                }
            };
            for (name, key) in entries.iter().filter(|(name, _)| &**name != "...") {
                if let Some(value) = lookup(config, key) {
                    add(name, value);
                }
            }
            for (_, key) in entries.iter().filter(|(name, _)| &**name == "...") {
                if let Some(Datum::Map(inner)) = lookup(config, key) {
                    inner.iter().for_each(|(k, v)| add(k, v));
                }
            }
            (!found.is_empty()).then_some(Datum::Map(found))
        }
    }
}

/// Keys by which a mapping is known to be of rotary positions.
const ROTARY: [&str; 5] = ["rope_theta", "rope_type", "type", "factor", "max_position_embeddings"];

/// In a mapping, null keys are left out; in one of rotary positions `type` is read as `rope_type`, and an absent one means `default`.
fn normalise(value: Datum) -> Datum {
    let Datum::Map(entries) = value else { return value };
    let mut entries: Vec<(Arc<str>, Datum)> = entries.into_iter().filter(|(_, v)| *v != Datum::Null).collect();
    if !entries.iter().any(|(k, _)| ROTARY.contains(&&**k)) {
        return Datum::Map(entries);
    }
    let has = |entries: &[(Arc<str>, Datum)]| entries.iter().any(|(k, _)| &**k == "rope_type");
    if !has(&entries)
        && let Some(entry) = entries.iter_mut().find(|(k, _)| &**k == "type")
    {
        entry.0 = "rope_type".into();
    }
    entries.retain(|(k, _)| &**k != "type");
    if !has(&entries) {
        entries.push(("rope_type".into(), Datum::Str("default".into())));
    }
    Datum::Map(entries)
}

/// The value, or the card's when it is of another type.
fn check_type(size: &Size, value: Datum, from: &str, diagnostics: &mut Vec<Diagnostic>) -> Datum {
    let Some(expected) = size.example.as_ref().or(size.default.as_ref()).filter(|e| **e != Datum::Null) else {
        return value;
    };
    let fits = |value: &Datum| match (expected, value) {
        (Datum::Float(_), Datum::Int(_) | Datum::Float(_)) => true,
        _ => std::mem::discriminant(expected) == std::mem::discriminant(value),
    };
    let fits = match &value {
        Datum::Null => return value,
        Datum::List(items) if size.list && !fits(&value) => !items.is_empty() && items.iter().all(fits),
        value => fits(value),
    };
    if fits {
        return value;
    }
    let shown = if let Datum::Str(s) = &value { format!("'{s}'") } else { value.to_string() };
    let message = format!("`{}` is {shown} in {from}, which is {}", size.name, value.kind());
    let label = format!("the card has {} here", expected.kind());
    diagnostics.push(Diagnostic::new(Code::WrongSize, message, size.span).label(label));
    normalise(expected.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::arch::ElaborateOptions;
    use crate::arch::testing::{card, expand};
    use crate::diagnostic::Code;

    const WIRING: &str = "model(x: f32[tokens, 4]) { return {y: x} }";
    const ROPE: &str = "sizes:\n  rope: {example: {rope_theta: 1.0}, default: {rope_theta: 2.0}, from: [rope_parameters, {rope_theta: rope_theta, '...': rope_scaling}]}\n";

    fn sizes(keys: &str, config: Option<Value>, sets: &[(&str, &str)]) -> Result<String, Vec<Code>> {
        let sets = sets.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
        let options = ElaborateOptions { config, sets, ..ElaborateOptions::default() };
        match expand(&card(keys, WIRING), &options) {
            Ok(model) => Ok(model.arch.sizes.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")),
            Err(report) => Err(report.diagnostics.iter().map(|d| d.code).collect()),
        }
    }

    #[test]
    fn one_value_or_a_list_of_them() {
        let keys = "sizes: {a: {example: 2, list: true}}\n";
        let wiring = "model(x: f32[tokens, 4]) { return {y: x * each(a, 2)[1]} }";
        let with = |config: Value| {
            let options = ElaborateOptions { config: Some(config), ..Default::default() };
            expand(&card(keys, wiring), &options).map(|_| ()).map_err(|r| r.diagnostics[0].code)
        };
        assert_eq!(with(json!({"a": 3})), Ok(()));
        assert_eq!(with(json!({"a": [3, 4]})), Ok(()));
        for wrong in [json!({"a": [3, "b"]}), json!({"a": []}), json!({"a": "b"})] {
            assert_eq!(with(wrong.clone()), Err(Code::WrongSize), "{wrong}");
        }
    }

    #[test]
    fn where_a_size_comes_from() {
        let keys = "sizes: {a: 1, b: {example: 2, default: 3}, c: {example: 4, optional: true}, d: {example: 5, from: [e, f.g]}}\n";
        assert_eq!(sizes(keys, None, &[]).as_deref(), Ok("a=1 b=2 c=4 d=5"));
        assert_eq!(sizes(keys, Some(json!({"a": 7, "f": {"g": 8}})), &[]).as_deref(), Ok("a=7 b=3 c=null d=8"));
        assert_eq!(
            sizes(keys, Some(json!({"a": 7, "b": null, "c": 1, "e": 9, "f": {"g": 8}})), &[]).as_deref(),
            Ok("a=7 b=3 c=1 d=9")
        );
        assert_eq!(
            sizes(keys, Some(json!({"e": 1})), &[("a", "6"), ("c", "null")]).as_deref(),
            Ok("a=6 b=3 c=null d=1")
        );
        assert_eq!(sizes(keys, Some(json!({})), &[]), Err(vec![Code::MissingSize, Code::MissingSize]));
        assert_eq!(sizes(keys, Some(json!([])), &[]), Err(vec![Code::MissingSize, Code::MissingSize]));
    }

    #[test]
    fn both_forms_of_a_mapping() {
        let newer = json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 3.0, "factor": 2.0}});
        assert_eq!(
            sizes(ROPE, Some(newer), &[]).as_deref(),
            Ok("rope={rope_type: linear, rope_theta: 3.0, factor: 2.0}")
        );
        let older = json!({"rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 2.0, "gone": null}});
        assert_eq!(
            sizes(ROPE, Some(older), &[]).as_deref(),
            Ok("rope={rope_theta: 3.0, rope_type: linear, factor: 2.0}")
        );
        let plain = json!({"rope_theta": 3.0, "rope_scaling": null});
        assert_eq!(sizes(ROPE, Some(plain), &[]).as_deref(), Ok("rope={rope_theta: 3.0, rope_type: default}"));
        assert_eq!(sizes(ROPE, Some(json!({})), &[]).as_deref(), Ok("rope={rope_theta: 2.0, rope_type: default}"));
    }

    #[test]
    fn a_mapping_of_several() {
        let keys = "sizes:\n  rope: {example: {rope_theta: 1.0}, from: [{theta: t, '...': [new, old]}]}\n";
        let config = json!({"t": 1, "old": {"theta": 2, "a": 3, "b": 4}, "new": {"a": 5, "rope_type": "linear"}});
        let found = sizes(keys, Some(config), &[]);
        assert_eq!(found.as_deref(), Ok("rope={theta: 1, a: 5, rope_type: linear, b: 4}"));
    }

    #[test]
    fn other_mappings_stay_as_they_are() {
        let keys = "sizes: {names: {optional: true}}\n";
        let config = json!({"names": {"0": "a", "1": null}});
        assert_eq!(sizes(keys, Some(config), &[]).as_deref(), Ok("names={0: a}"));
    }

    #[test]
    fn a_part_of_the_config() {
        let keys =
            |optional| format!("matches: {{model_type: t, under: text, optional: {optional}}}\nsizes: {{a: 1}}\n");
        assert_eq!(sizes(&keys(true), Some(json!({"text": {"a": 2}})), &[]).as_deref(), Ok("a=2"));
        assert_eq!(sizes(&keys(true), Some(json!({"a": 3})), &[]).as_deref(), Ok("a=3"));
        assert_eq!(sizes(&keys(false), Some(json!({"a": 3})), &[]), Err(vec![Code::MissingSize]));
    }

    #[test]
    fn assumptions() {
        let keys = "sizes: {}\nassumes: {act: silu, bias: false, kind: [a, b]}\n";
        assert!(sizes(keys, Some(json!({"act": "silu", "kind": "b", "other": 1})), &[]).is_ok());
        assert!(sizes(keys, Some(json!({"act": null})), &[]).is_ok());
        let wrong = sizes(keys, Some(json!({"act": "gelu", "bias": true, "kind": "c"})), &[]);
        assert_eq!(wrong, Err(vec![Code::Assumption; 3]));
    }

    #[test]
    fn types_are_the_cards() {
        let keys = "sizes: {a: 1, f: 1.5, s: x, l: [1]}\n";
        assert!(sizes(keys, Some(json!({"a": 2, "f": 2, "s": "y", "l": []})), &[]).is_ok());
        assert_eq!(sizes(keys, Some(json!({"a": 2.5, "f": true, "s": 1, "l": 3})), &[]), Err(vec![Code::WrongSize; 4]));
        assert_eq!(sizes(keys, None, &[("a", "[")]), Err(vec![Code::WrongSize]));
        assert_eq!(sizes(keys, None, &[("b", "1")]), Err(vec![Code::UnknownSize]));
    }
}
