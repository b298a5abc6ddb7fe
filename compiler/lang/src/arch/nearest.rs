//! What is near to a config that no card serves: which cards understand most of it, what none understands, and how a new card begins.
//!
//! Given a config, and the tensors of its checkpoint where there are some, it returns [`Unserved`]. Cards are compared by the keys that they
//! read, and those that read most by the names and shapes that they would give the tensors.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::sizes::resolve;
use super::{ElaborateOptions, elaborate};
use crate::diagnostic::Code;
use crate::spec::{Datum, Library, Place, Size, Spec, load_card};

/// Cards that are told.
const TOLD: usize = 3;
/// Cards whose tensors are compared: expanding one takes a moment.
const EXPANDED: usize = 6;

/// A card and how near it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// Its name in the library.
    pub card: String,
    /// Keys of the config that it reads.
    pub understood: usize,
    /// Why it could not be used as it is, in words: keys that it needs, values that it is not for.
    pub problems: Vec<String>,
    /// Sizes of the card that the config says nothing about.
    pub beyond: usize,
    /// Tensors of the checkpoint that it has by name and shape; none where it cannot be expanded, or there is no checkpoint.
    pub tensors: Option<usize>,
}

/// What is known of a config that no card serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The nearest cards, nearest first.
    pub nearest: Vec<Near>,
    /// Keys that no card reads, with their values. Those of files, training and tokens are not among them.
    pub strange: Vec<(String, String)>,
    /// Keys that decide what is computed.
    pub keys: usize,
    /// Tensors of the checkpoint.
    pub tensors: usize,
}

/// A key of a config that its card does not read and another card does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The key.
    pub key: String,
    /// Its value in short.
    pub value: String,
    /// A card that reads it.
    pub card: String,
}

/// The keys of a config that a card does not read though others do, with values that change something: what the card computes, it computes
/// without them.
pub fn ignored(config: &serde_json::Value, spec: &Spec, library: &Library) -> Vec<Ignored> {
    let whole = Datum::from(config);
    let part = spec.matches.under.as_deref().and_then(|key| whole.get(key)).unwrap_or(&whole);
    let read = keys_read(spec);
    let Datum::Map(entries) = part else { return Vec::new() };
    let counted = |key: &str| !is_bookkeeping(key) && !REPEATED.contains(&key) && !read.contains(key);
    let unread = entries.iter().filter(|(key, value)| counted(key) && !is_neutral(value));
    let mut found = Vec::new();
    for (key, value) in unread {
        // Only cards that name it are read.
        let names = |card: &&str| library.card_text(card).is_some_and(|text| text.contains(&**key));
        let readers = library.cards().filter(names).filter_map(|card| Some((card, load_card(card, library).ok()?)));
        let reader =
            readers.into_iter().find(|(_, spec)| keys_read(spec).contains(&**key) && !is_usual(spec, key, value));
        if let Some((card, _)) = reader {
            found.push(Ignored { key: key.to_string(), value: shorten(&value.to_string()), card: card.to_owned() });
        }
    }
    found
}

/// Keys that configs carry whether their model reads them or not: lengths, and what other keys say again.
const REPEATED: [&str; 9] = [
    "head_dim",
    "hidden_act",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "n_positions",
    "num_key_value_heads",
    "time_step_rank",
    "vocab_size",
];

/// Whether a value says that there is nothing of what its key is about.
fn is_neutral(value: &Datum) -> bool {
    match value {
        Datum::Null | Datum::Bool(false) => true,
        Datum::Int(n) => matches!(n, 0 | 1),
        Datum::Float(x) => *x == 0.0 || *x == 1.0,
        Datum::Str(s) => s.is_empty() || &**s == "default",
        Datum::List(items) => items.is_empty(),
        Datum::Map(entries) => entries.is_empty(),
        Datum::Bool(true) => false,
    }
}

/// Whether a value is the one that a card that reads the key takes where there is none, or the only one it is for.
fn is_usual(spec: &Spec, key: &str, value: &Datum) -> bool {
    let places = |size: &Size| size.from.iter().any(|place| matches!(place, Place::Key(k) if **k == *key));
    let size = spec.sizes.iter().find(|size| places(size) || (size.from.is_empty() && *size.name == *key));
    let default = size.and_then(|size| size.default.as_ref());
    let assumed = spec.assumes.iter().find(|(k, _)| *k.text == *key).map(|(_, v)| v);
    default.into_iter().chain(assumed).any(|usual| match usual {
        Datum::List(several) if !matches!(value, Datum::List(_)) => several.contains(value),
        one => one == value,
    })
}

/// What is near to a config; `tensors` are names and shapes, none where there is no checkpoint.
pub fn nearest(config: &serde_json::Value, tensors: &[(String, Vec<u64>)], library: &Library) -> Unserved {
    let whole = Datum::from(config);
    let specs: Vec<(String, Spec)> =
        library.cards().filter_map(|name| Some((name.to_owned(), load_card(name, library).ok()?))).collect();
    // The part that most cards would read: a config of several parts has the language model's under a key of its own.
    let part = |key: &str| whole.get(key).filter(|inner| matches!(inner, Datum::Map(_))).cloned();
    let inner = specs.iter().find_map(|(_, spec)| part(spec.matches.under.as_deref()?));
    let universe = keys(inner.as_ref().unwrap_or(&whole));
    let mut read_by_any = BTreeSet::new();
    let mut near: Vec<Near> = Vec::new();
    for (card, spec) in &specs {
        let read = keys_read(spec);
        let understood = universe.iter().filter(|(key, _)| read.contains(key)).count();
        read_by_any.extend(read);
        let options = options(config, &inner, spec);
        let mut diagnostics = Vec::new();
        resolve(spec, &options, &mut diagnostics);
        let told = |code: Code| matches!(code, Code::MissingSize | Code::Assumption | Code::WrongSize);
        let problems = diagnostics.into_iter().filter(|d| told(d.code)).map(|d| d.message).collect();
        let beyond = sizes_beyond(spec, &universe);
        near.push(Near { card: card.clone(), understood, problems, beyond, tensors: None });
    }
    // What a card needs and the config lacks weighs more than what it reads; of equal ones, that with the fewest things of its own is nearest,
    // and a card before those that lie over it.
    let texts = |n: &Near| specs.iter().find(|(card, _)| *card == n.card).map_or(0, |(_, spec)| spec.sources.len());
    near.sort_by_key(|n| (3 * n.problems.len() as i64 - 2 * n.understood as i64, n.beyond, texts(n), n.card.clone()));
    if !tensors.is_empty() {
        for one in near.iter_mut().take(EXPANDED) {
            let spec = specs.iter().find(|(card, _)| *card == one.card).map(|(_, spec)| spec);
            one.tensors = spec.and_then(|spec| known_tensors(spec, config, &inner, tensors));
        }
        near.sort_by_key(|n| std::cmp::Reverse(n.tensors.unwrap_or(0)));
    }
    near.truncate(TOLD);
    near.retain(|n| n.understood > 0);
    let strange = universe.iter().filter(|(key, _)| !read_by_any.contains(key)).cloned().collect();
    Unserved { nearest: near, strange, keys: universe.len(), tensors: tensors.len() }
}

/// Options under which a card reads the config; the part that others read is offered where it asks for no part.
fn options(config: &serde_json::Value, inner: &Option<Datum>, spec: &Spec) -> ElaborateOptions {
    let own = inner.is_none() || spec.matches.under.is_some();
    let part = ["text_config", "language_config", "llm_config"].into_iter().find_map(|key| config.get(key));
    let config = if own { config } else { part.unwrap_or(config) };
    ElaborateOptions { config: Some(config.clone()), ..ElaborateOptions::default() }
}

/// How many of the tensors a card has, under the same name and with the same shape.
fn known_tensors(
    spec: &Spec,
    config: &serde_json::Value,
    inner: &Option<Datum>,
    tensors: &[(String, Vec<u64>)],
) -> Option<usize> {
    let model = elaborate(spec, &options(config, inner, spec)).ok()?;
    let mut named: BTreeSet<(&str, &[u64])> = BTreeSet::new();
    for binding in &model.bindings {
        named.extend(binding.names.iter().map(|name| (name.as_str(), &binding.shape[..])));
    }
    Some(tensors.iter().filter(|(name, shape)| named.contains(&(name.as_str(), &shape[..]))).count())
}

/// The keys of a config that decide what is computed, with their values in short.
fn keys(config: &Datum) -> Vec<(String, String)> {
    let Datum::Map(entries) = config else { return Vec::new() };
    let counted = entries.iter().filter(|(key, value)| !is_bookkeeping(key) && *value != Datum::Null);
    counted.map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Whether a key is about files, training or tokens, and not about what is computed.
fn is_bookkeeping(key: &str) -> bool {
    let known = [
        "model_type",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "initializer_range",
        "initializer_factor",
        "pretraining_tp",
        "tokenizer_class",
        "id2label",
        "label2id",
        "return_dict",
        "problem_type",
        "gradient_checkpointing",
        "is_encoder_decoder",
        "output_attentions",
        "output_hidden_states",
        "finetuning_task",
        "task_specific_params",
        "router_aux_loss_coef",
        "output_router_logits",
        "use_flash_attn",
        "num_labels",
    ];
    let ends = ["_token_id", "_token_ids", "dropout", "_pdrop", "_drop", "_init", "_init_std", "_loss_coef"];
    known.contains(&key)
        || key.starts_with('_')
        || key.starts_with("summary_")
        || ends.iter().any(|end| key.ends_with(end))
}

/// How many sizes of a card are at no place of the config.
fn sizes_beyond(spec: &Spec, config: &[(String, String)]) -> usize {
    let has = |key: &str| config.iter().any(|(k, _)| k == key.split('.').next().unwrap_or(key));
    let given = |place: &Place| match place {
        Place::Key(key) => has(key),
        Place::Mapping(entries) => entries.iter().any(|(_, key)| has(key)),
    };
    let said = |size: &&Size| if size.from.is_empty() { has(&size.name) } else { size.from.iter().any(given) };
    spec.sizes.len() - spec.sizes.iter().filter(said).count()
}

/// The keys that a card reads of a config.
fn keys_read(spec: &Spec) -> BTreeSet<String> {
    let mut read = BTreeSet::new();
    let mut add = |key: &str| {
        read.insert(key.split('.').next().unwrap_or(key).to_owned());
    };
    for size in &spec.sizes {
        if size.from.is_empty() {
            add(&size.name);
        }
        for place in &size.from {
            match place {
                Place::Key(key) => add(key),
                Place::Mapping(entries) => entries.iter().for_each(|(_, key)| add(key)),
            }
        }
    }
    spec.assumes.iter().for_each(|(key, _)| add(&key.text));
    spec.matches.keys.iter().for_each(|key| add(key));
    read
}

impl Unserved {
    /// What to do, in words: `model_type` and the config's path as the user knows them.
    pub fn help(&self, model_type: &str, config: &str) -> String {
        let mut out = String::new();
        let Some(first) = self.nearest.first() else {
            return "no card reads any key of it; write a card (docs/language.md) and name it instead of the folder"
                .to_owned();
        };
        out.push_str("the nearest families are\n");
        for near in &self.nearest {
            let _ = write!(out, "      {:<12} reads {} of {} keys", near.card, near.understood, self.keys);
            if let Some(n) = near.tensors {
                let _ = write!(out, ", has {n} of {} tensors by name and shape", self.tensors);
            }
            let problems: Vec<String> =
                near.problems.iter().map(|p| p.strip_prefix("the config has ").unwrap_or(p).to_owned()).collect();
            if !problems.is_empty() {
                let more =
                    if problems.len() > 3 { format!("; and {} more", problems.len() - 3) } else { String::new() };
                let _ = write!(
                    out,
                    "; but the config has {}{more}",
                    problems.iter().take(3).cloned().collect::<Vec<_>>().join("; ")
                );
            }
            out.push('\n');
        }
        if self.strange.is_empty() {
            out.push_str("    every key of the config is read by some family\n");
        } else {
            let told: Vec<String> =
                self.strange.iter().map(|(key, value)| format!("{key}: {}", shorten(value))).collect();
            let _ = writeln!(out, "    no family reads\n      {}", told.join("\n      "));
        }
        let name = file_name(model_type);
        let _ = writeln!(out, "    to start, write {name}.yaml:");
        let quoted = if is_plain("k", model_type) {
            model_type.to_owned()
        } else {
            format!("'{}'", shorten(model_type).replace('\'', ""))
        };
        let mut card = format!("xfc: 1\nname: {quoted}\nextends: {}\nmatches: {{model_type: {quoted}}}\n", first.card);
        let sizes: Vec<&(String, String)> = self.strange.iter().filter(|(k, v)| is_plain(k, v)).collect();
        if !sizes.is_empty() {
            card.push_str("sizes:                             # keep those that change what is computed\n");
            for (key, value) in sizes {
                let _ = writeln!(card, "  {key}: {value}");
            }
        }
        card.push_str(
            "# wiring: |                        # the definitions that differ; all others stay as they are\n",
        );
        for line in card.lines() {
            let _ = writeln!(out, "      {line}");
        }
        let _ = writeln!(
            out,
            "    `xfc inspect {} --emit spec` prints what it changes, docs/language.md what can be said;",
            first.card
        );
        let _ = write!(
            out,
            "    then `xfc check {name}.yaml --config {config}` and `xfc run {name}.yaml --config {config} --checkpoint ..`"
        );
        out
    }
}

/// A value that a card can hold on one line.
fn is_plain(key: &str, value: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "_.-+".contains(c);
    !value.is_empty()
        && value.len() < 40
        && value.chars().all(word)
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn shorten(value: &str) -> String {
    let one_line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if one_line.chars().count() <= 60 { one_line } else { one_line.chars().take(57).chain("...".chars()).collect() }
}

/// A model type as the name of a file.
fn file_name(model_type: &str) -> String {
    let name: String =
        model_type.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).take(40).collect();
    if name.is_empty() { "new".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::PathBuf;

    fn library() -> Library {
        of_cards(&[
            ("one", "{rows: 4, wide: 8, depth: 2}"),
            ("two", "{rows: 4, wide: {example: 8, from: [width]}, other: 1}"),
        ])
    }

    fn same_keys() -> Library {
        of_cards(&[("capped", "{rows: 4, wide: 8, cap: {example: 3, default: 3}}"), ("plain", "{rows: 4, wide: 8}")])
    }

    fn of_cards(cards: &[(&str, &str)]) -> Library {
        Library::build(of_texts(cards).into_iter())
    }

    fn of_texts(cards: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
        let wiring = "wiring: |\n  model(ids: i64[tokens]) {\n    table = embedding(rows, wide)\n    return {y: table(ids)}\n  }\n";
        let card = |name: &str, sizes: &str| {
            format!("xfc: 1\nname: {name}\nmatches: {{model_type: {name}}}\nsizes: {sizes}\n{wiring}")
        };
        let lib =
            "embedding(rows: int, size: int)(ids) {\n  weight = param[rows, size]\n  return gather(weight, ids)\n}\n";
        let files = cards.iter().map(|(name, sizes)| (PathBuf::from(format!("{name}.yaml")), card(name, sizes)));
        files.chain([(PathBuf::from("lib/a.xf"), lib.to_owned())]).collect()
    }

    #[test]
    fn cards_are_ranked_by_what_they_read_and_by_tensors() {
        let config = json!({"model_type": "new", "rows": 5, "wide": 8, "depth": 3, "gate": true, "pad_token_id": 0, "gone": null});
        let found = nearest(&config, &[], &library());
        assert_eq!(found.nearest.first().map(|n| (n.card.as_str(), n.understood)), Some(("one", 3)));
        assert_eq!(found.strange, [("gate".to_owned(), "true".to_owned())]);
        assert_eq!(found.keys, 4);
        let help = found.help("new-model", "dir/config.json");
        for expected in ["one          reads 3 of 4 keys", "extends: one", "gate: true", "new_model.yaml", "two"] {
            assert!(help.contains(expected), "no `{expected}` in\n{help}");
        }
        let config = json!({"model_type": "new", "rows": 5, "width": 8, "wide": 9, "other": 2});
        let tensors = [("table.weight".to_owned(), vec![5, 8]), ("x".to_owned(), vec![1])];
        let found = nearest(&config, &tensors, &library());
        assert_eq!(found.nearest.first().map(|n| (n.card.as_str(), n.tensors)), Some(("two", Some(1))));
    }

    #[test]
    fn of_cards_that_read_as_much_the_plainest_is_first() {
        let config = json!({"model_type": "new", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "attention_bias": false,
            "tie_word_embeddings": false, "max_position_embeddings": 64});
        let found = nearest(&config, &[], &Library::embedded());
        assert!(found.nearest.iter().all(|n| n.understood > 6), "{found:?}");
        let mut pairs = found.nearest.windows(2);
        assert!(pairs.all(|p| (p[0].understood, p[0].problems.len()) != (p[1].understood, p[1].problems.len())
            || p[0].beyond <= p[1].beyond));
        // Both cards read two keys; that whose name comes first has a size of its own.
        let config = json!({"model_type": "new", "rows": 5, "wide": 8});
        let found = nearest(&config, &[], &same_keys());
        let told: Vec<(&str, usize, usize)> =
            found.nearest.iter().map(|n| (n.card.as_str(), n.understood, n.beyond)).collect();
        assert_eq!(told, [("plain", 2, 0), ("capped", 2, 1)]);
        // One that lies over it reads the same and comes after it.
        let over = "xfc: 1\nname: Over\nextends: plain\nmatches: {model_type: over}\n";
        let files = of_texts(&[("plain", "{rows: 4, wide: 8}")]);
        let library = Library::build(files.into_iter().chain([(PathBuf::from("above.yaml"), over.to_owned())]));
        let found = nearest(&config, &[], &library);
        let told: Vec<(&str, usize)> = found.nearest.iter().map(|n| (n.card.as_str(), n.beyond)).collect();
        assert_eq!(told, [("plain", 0), ("above", 0)]);
    }

    #[test]
    fn anything_may_stand_in_a_config() {
        for config in [json!([]), json!({}), json!({"model_type": 3}), json!({"a b": {"c": [1, "\n"]}})] {
            let found = nearest(&config, &[], &library());
            assert!(!found.help("x: y\n", "f").is_empty());
        }
    }
}
