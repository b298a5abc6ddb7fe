//! What is said about mistakes that meet the library: which value, where it comes from, what would be right.

use serde_json::{Value, json};
use xfc_lang::arch::ignored;
use xfc_lang::diagnostic::Report;
use xfc_lang::spec::{apply_sets, parse_card};
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, pick_card};

/// What is said of a card with these sizes and this model, for a config and what `--set` says.
fn said(sizes: &str, wiring: &str, config: Option<Value>, sets: &[&str]) -> Option<String> {
    let wiring: String = wiring.lines().map(|l| format!("  {l}\n")).collect();
    let card = format!("xfc: 1\nname: Test\nsizes:\n{sizes}wiring: |\n{wiring}");
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let expand = || -> Result<(), Report> {
        let mut spec = parse_card("test.yaml", &card, &Library::embedded())?;
        let sets = apply_sets(&mut spec, &sets)?;
        let options =
            ElaborateOptions { config, config_name: "dir/config.json".to_owned(), sets, ..ElaborateOptions::default() };
        elaborate(&spec, &options).map(|_| ())
    };
    expand().err().map(|report| report.to_string())
}

/// Fails unless all of these words are in what is said.
fn says(said: Option<String>, words: &[&str]) {
    let said = said.unwrap_or_default();
    for word in words {
        assert!(said.contains(word), "no `{word}` in\n{said}");
    }
}

const ACT: &str = "  hidden_act: {example: silu, from: [hidden_act, activation_function]}\n  d: 8\n";
const MLP: &str = "model(x: f32[tokens, d]) { ff = mlp(16, activation(hidden_act)) return {y: ff(x)} }";
const ROPE: &str =
    "  rope: {example: {rope_theta: 1.0e4}, from: [rope_parameters, {rope_theta: rope_theta, '...': rope_scaling}]}\n";
const ROTARY: &str = "model(x: f32[tokens, 8]) { turn = rotary(rope) return {y: turn(x)} }";

#[test]
fn an_unknown_activation_is_named_with_its_key() {
    let one = |config: Value| said(ACT, MLP, Some(config), &[]);
    let words =
        ["does not have: 'swish2', `hidden_act` of dir/config.json", "test.yaml:", "did you mean `swish`?", "gelu_new"];
    says(one(json!({"hidden_act": "swish2", "d": 8})), &words);
    says(
        one(json!({"activation_function": "banana", "d": 8})),
        &["'banana', `activation_function` of dir/config.json"],
    );
    says(said(ACT, MLP, None, &["hidden_act=banana"]), &["'banana', `hidden_act` of `--set`", "known are gelu,"]);
    says(
        said(&ACT.replace("silu", "slu"), MLP, None, &[]),
        &["'slu', `hidden_act` of the card", "did you mean `silu`?"],
    );
}

/// The list of what is known holds what the function has a case for, and nothing else.
#[test]
fn every_activation_that_is_told_is_known() {
    let (_, text) = Library::embedded().definition("activation").unwrap();
    let mut words: Vec<&str> = text.split('\'').skip(1).step_by(2).filter(|w| !w.contains(' ')).collect();
    words.sort_unstable();
    // Once in a case, once in the list.
    assert!(
        words.len() > 20 && words.chunks(2).all(|pair| pair[0] == pair[pair.len() - 1] && pair.len() == 2),
        "{words:?}"
    );
    words.dedup();
    for word in words {
        assert_eq!(said(ACT, MLP, Some(json!({"hidden_act": word, "d": 8})), &[]), None, "{word}");
    }
}

#[test]
fn positions_say_what_their_mapping_lacks() {
    let one = |mapping: Value| said(ROPE, ROTARY, Some(json!({"rope_theta": 1e4, "rope_scaling": mapping})), &[]);
    let banana = ["'banana', `rope_scaling.type` of dir/config.json", "known are default, linear", "test.yaml:"];
    says(one(json!({"type": "banana", "factor": 2.0})), &banana);
    let told = one(json!({"type": "banana"})).unwrap_or_default();
    let known = told.split("known are ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
    // Lists of factors are another matter, and the plain kind needs nothing.
    let kinds: Vec<&str> = known.split(", ").filter(|kind| !matches!(*kind, "default" | "longrope")).collect();
    assert!(kinds.len() > 3, "{kinds:?}");
    let mut by_frequency = 0;
    for kind in kinds {
        let mut mapping = json!({"rope_type": kind, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let of = format!("'{kind}', `rope_scaling.rope_type` of dir/config.json");
        let told = one(mapping.clone());
        says(told.clone(), &["needs `factor` in its mapping", &of]);
        assert_eq!(told.unwrap_or_default().matches("error[").count(), 1, "said once");
        mapping["factor"] = json!(2.0);
        assert_eq!(one(mapping.clone()), None);
        mapping["low_freq_factor"] = Value::Null;
        by_frequency += usize::from(one(mapping.clone()).is_some_and(|told| told.contains("needs `low_freq_factor`")));
        mapping["low_freq_factor"] = json!(1.0);
        if kind != "linear" {
            mapping["original_max_position_embeddings"] = Value::Null;
            says(one(mapping), &["needs `original_max_position_embeddings`", &of]);
        }
    }
    assert_eq!(by_frequency, 1);
}

#[test]
fn a_word_is_no_module() {
    let wiring = |act: &str| format!("model(x: f32[tokens, 8]) {{ ff = mlp(16, {act}) return {{y: ff(x)}} }}");
    for given in ["act", "'silu'"] {
        says(said("  act: silu\n", &wiring(given), None, &[]), &["must be module, not 'silu'", "`activation(..)`"]);
    }
    assert_eq!(said("  act: silu\n", &wiring("activation(act)"), None, &[]), None);
}

#[test]
fn a_number_in_quotes_is_shown_where_it_is_written() {
    let wiring = "model(x: f32[tokens, 8]) { p = linear(wide // 2) return {y: p(x)} }";
    let told = said("  wide: \"64\"\n", wiring, None, &[]);
    says(told, &["test.yaml:4:3", "`wide` is a number in quotes", "without quotes"]);
}

#[test]
fn instances_in_a_list_are_applied_where_it_is_written() {
    let wiring = "model(x: f32[tokens, 8]) { a, b = linear(8) both = [a, b] return {y: both(x)} }";
    says(said("  n: 1\n", wiring, None, &[]), &["E0209", "applied where it is written, as in `[a, b](x)`"]);
    assert_eq!(said("  n: 1\n", &wiring.replace("both = [a, b]", "").replace("both(x)", "[a, b](x)"), None, &[]), None);
}

#[test]
fn parts_of_a_tensor_are_gone_through() {
    let wiring = "model(x: f32[tokens, 8]) { return {y: sum([tanh(p) for p in parts(x, [4, 4])])} }";
    assert_eq!(said("  n: 1\n", wiring, None, &[]), None);
}

#[test]
fn a_size_that_is_none_is_shown_where_it_is_written() {
    let wiring = "model(x: f32[tokens, 8]) { p = linear(wide) return {y: p(x)} }";
    let words = ["0 is no size", "test.yaml:4:3", "`wide` is 0"];
    says(said("  wide: 0\n", wiring, None, &[]), &words);
    says(said("  wide: 8\n", wiring, None, &["wide=-64"]), &["-64 is no size", "`wide` is -64 by --set"]);
    let config = Some(json!({"wide": 0}));
    says(said("  wide: 8\n  deep: {default: -1}\n", wiring, config, &[]), &["`wide` is 0 by dir/config.json"]);
    let told = said("  wide: 0\n  deep: {default: -1}\n", wiring, None, &[]).unwrap_or_default();
    assert!(!told.contains("`deep`"), "{told}");
}

#[test]
fn heads_that_turn_have_pairs() {
    let odd = ROTARY.replace('8', "7");
    let told = said(ROPE, &odd, None, &[]);
    says(told.clone(), &["their width is even", "7"]);
    assert_eq!(told.unwrap_or_default().matches("error[").count(), 1);
}

#[test]
fn a_size_that_the_card_has_not_is_told_those_that_it_has() {
    says(said("  wide: 8\n  deep: 2\n", MLP, None, &["foo=1"]), &["no size `foo`", "its sizes are wide, deep"]);
}

#[test]
fn of_a_card_of_another_version_nothing_else_is_said() {
    let report = parse_card("test.yaml", "xfc: 2\nnom: Test\n", &Library::embedded()).unwrap_err();
    assert_eq!(report.diagnostics.len(), 1, "{report}");
    says(Some(report.to_string()), &["reads cards of version 1", "test.yaml:1:6"]);
}

#[test]
fn sizes_are_set_as_wholes() {
    let one = |set: &str| said(ROPE, ROTARY, None, &[set]);
    says(one("rope.rope_theta=5"), &["`rope` is a mapping", "--set 'rope={rope_theta: 5}'"]);
    assert_eq!(one("rope={rope_theta: 5}"), None);
    says(one("=3"), &["`--set =3` names nothing", "SIZE=VALUE"]);
    says(said("  wide: 8\n", ROTARY, None, &["wide.x=3"]), &["`wide` is a size without parts", "--set wide=3"]);
}

#[test]
fn a_mistyped_key_of_names_is_recognised() {
    let card = "xfc: 1\nname: Test\nsizes: {}\nnames:\n  hf: {prefx: model.}\nwiring: |\n  model(x: f32[tokens, 1]) { return {y: x} }\n";
    let report = parse_card("test.yaml", card, &Library::embedded()).unwrap_err();
    says(Some(report.to_string()), &["did you mean `prefix`?"]);
}

#[test]
fn what_has_no_compiled_form_as_an_input_or_output_is_refused() {
    let one = |wiring: &str| said("  n: 1\n", wiring, None, &[]);
    let batch = one("model(x: f32[batch, tokens, 8]) { return {y: x} }");
    says(batch, &["test.yaml:6:23", "the input `x` has [tokens] behind another axis", "f32[tokens, 8]"]);
    let weight = one("model(x: f32[tokens, 8]) { w = param[3] return {y: w} }");
    says(weight, &["the output `y` is [3], the same for every sequence", "test.yaml:6"]);
    assert_eq!(one("model(x: f32[3, 8]) { return {y: x} }"), None);
}

/// A key that another card reads and this one does not changes nothing, which is to be said; unless it says nothing.
#[test]
fn keys_that_other_cards_read_are_found() {
    use std::path::PathBuf;
    let card = |name: &str, sizes: &str| {
        let wiring = "wiring: |\n  model(x: f32[tokens, 1]) { return {y: x} }\n";
        let text = format!("xfc: 1\nname: {name}\nsizes: {sizes}\nassumes: {{tanh: false}}\n{wiring}");
        (PathBuf::from(format!("{name}.yaml")), text)
    };
    let cards = [
        card("plain", "{wide: 1}"),
        card("capped", "{wide: 1, cap: {default: 50}, gain: 2.0, far: {from: [range.far], optional: true}}"),
    ];
    let library = Library::build(cards.into_iter());
    let ignored = |config: Value| -> Vec<String> {
        let spec = load_card("plain", &library).unwrap_or_else(|e| panic!("{e}"));
        ignored(&config, &spec, &library).into_iter().map(|i| format!("{}={} of {}", i.key, i.value, i.card)).collect()
    };
    assert_eq!(
        ignored(json!({"wide": 3, "cap": 30, "gain": 0.5, "unheard_of": 7})),
        ["cap=30 of capped", "gain=0.5 of capped"]
    );
    assert_eq!(ignored(json!({"range": {"far": 3}})), ["range={far: 3} of capped"]);
    assert!(ignored(json!({"wide": 3, "cap": 50, "gain": 1.0, "tanh": true})).is_empty());
    assert!(ignored(json!({"cap": null, "gain": false})).is_empty());
}

/// No config of a family that is served has such keys: a warning there would be noise.
#[test]
fn reference_configs_have_no_keys_that_are_ignored() {
    let library = Library::embedded();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/cases");
    let mut found = Vec::new();
    for case in std::fs::read_dir(folder).unwrap() {
        let case = case.unwrap();
        let Ok(text) = std::fs::read_to_string(case.path().join("config.json")) else { continue };
        let config: Value = serde_json::from_str(&text).unwrap();
        let Ok(spec) = pick_card(&config, &library) else { continue };
        let name = case.file_name().to_string_lossy().into_owned();
        found.extend(
            ignored(&config, &spec, &library)
                .into_iter()
                .map(|i| format!("{name}: {}: {} as {}", i.key, i.value, i.card)),
        );
    }
    found.sort();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
