//! Cards made tiny: what becomes of each kind of size, and what is kept.

use std::collections::BTreeMap;

use super::*;
use crate::arch::testing::card;
use crate::spec::{Library, load_card, parse_card};

/// The sizes of a card once it is tiny.
fn sizes(keys: &str, wiring: &str, sets: &[(&str, &str)]) -> Result<BTreeMap<String, String>, Report> {
    let spec = parse_card("test.yaml", &card(keys, wiring), &Library::embedded())?;
    let sets = sets.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    let options = tiny(&spec, &ElaborateOptions { sets, ..ElaborateOptions::default() })?;
    let model = elaborate(&spec, &options)?;
    assert!(kinds(&model).is_superset(&kinds(&elaborate(&spec, &ElaborateOptions::default())?)));
    Ok(model.arch.sizes.into_iter().map(|(k, v)| (k, v.to_string())).collect())
}

const KEYS: &str =
    "sizes: {words: 30000, width: 4096, inner: 16384, layers: 48, heads: 32, kv: 8, near: 4096, every: 6}\n";
const WIRING: &str = "norm = rms_norm(1.0e-5)\n\
    layer(i)(x) {\n  norm_1, norm_2 = norm\n\
    \x20 attn = gqa(heads, kv, width / heads, mask = if (i + 1) % every == 0 then causal else window(near))\n\
    \x20 ff = gated_mlp(inner, silu)\n  h = x + attn(norm_1(x))\n  return h + ff(norm_2(h))\n}\n\
    model(ids: i64[tokens]) {\n  table = embedding(words, width)\n  layers = [layer(i) for i in 0..layers]\n\
    \x20 out = unembedding(table)\n  return {logits: out(layers(table(ids)))}\n}";

#[test]
fn kinds_of_layer_and_ratios_stay() {
    let sizes = sizes(KEYS, WIRING, &[]).unwrap_or_else(|e| panic!("{e}"));
    let expected = [
        ("words", "131"),
        ("width", "64"),
        ("inner", "256"),
        ("layers", "6"),
        ("heads", "8"),
        ("kv", "2"),
        ("near", "8"),
        ("every", "6"),
    ];
    for (name, value) in expected {
        assert_eq!(sizes[name], value, "{name} of {sizes:?}");
    }
}

/// Rotary positions in turns cut each head into pairs of elements, whose number is no number of heads.
#[test]
fn a_head_cut_into_pairs_is_no_number_of_heads() {
    let keys = "sizes: {words: 30000, width: 4096, heads: 32, kv: 8, wide: 128}\n";
    let wiring = "layer(x) {\n  attn = gqa(heads, kv, wide, rotate = rotary({rope_theta: 1.0e4, rope_type: 'default'}, pairs = 'interleaved'))\n  return x + attn(x)\n}\n\
        model(ids: i64[tokens]) {\n  table = embedding(words, width)\n  layers = [layer for i in 0..2]\n  return {y: layers(table(ids))}\n}";
    let sizes = sizes(keys, wiring, &[]).unwrap_or_else(|e| panic!("{e}"));
    for (name, value) in [("wide", "8"), ("heads", "8"), ("kv", "2"), ("width", "64")] {
        assert_eq!(sizes[name], value, "{name} of {sizes:?}");
    }
}

#[test]
fn what_is_given_stays() {
    let tiny = format!("{KEYS}tiny: {{width: 96, every: 3}}\n");
    let sizes = sizes(&tiny, WIRING, &[("words", "500")]).unwrap_or_else(|e| panic!("{e}"));
    for (name, value) in [("words", "500"), ("width", "96"), ("every", "3"), ("layers", "3"), ("heads", "8")] {
        assert_eq!(sizes[name], value, "{name} of {sizes:?}");
    }
}

#[test]
fn a_size_that_does_not_exist_is_said() {
    let report = sizes(&format!("{KEYS}tiny: {{widht: 96}}\n"), WIRING, &[]).expect_err("there is no such size");
    assert_eq!(report.diagnostics[0].code, Code::UnknownSize);
    assert_eq!(report.diagnostics[0].help.as_deref(), Some("did you mean `width`?"));
}

#[test]
fn values_read_back() {
    let value =
        Datum::List(vec![Datum::Str("null".into()), Datum::Float(1.5), Datum::Map(vec![("a".into(), Datum::Int(1))])]);
    let node = crate::spec::parse_yaml(&yaml(&value), 0, &mut Vec::new()).expect("it reads");
    assert_eq!(node.datum(), value);
}

#[test]
fn every_card_of_the_library() {
    let library = Library::embedded();
    for name in library.cards() {
        let spec = load_card(name, &library).unwrap_or_else(|e| panic!("{e}"));
        let options = ElaborateOptions::default();
        let made = tiny(&spec, &options).and_then(|o| elaborate(&spec, &o)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let whole = elaborate(&spec, &options).unwrap_or_else(|e| panic!("{e}"));
        let n = made.arch.parameter_count();
        assert!(n < 3_000_000, "{name} still has {n} parameters: {:?}", made.arch.sizes);
        assert!(kinds(&made).is_superset(&kinds(&whole)), "{name} lost a kind of layer");
        assert_eq!(made.arch.outputs.len(), whole.arch.outputs.len(), "{name}");
    }
}
