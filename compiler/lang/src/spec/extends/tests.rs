//! Cards over cards: what is merged, what is not inherited, and chains that lead nowhere.

use std::path::PathBuf;

use crate::diagnostic::{Code, Report};
use crate::spec::{Library, Spec, load_card, parse_card, pick_card};
use crate::{ElaborateOptions, elaborate};

const BASE: &str = "xfc: 1\nname: Base\nsource: a paper\nmatches: {model_type: base, under: text, optional: true}\npublished: {model: base-1, parameters: 12}\n\
    sizes: {n: 2, m: 3}\nassumes: {act: silu, bias: false}\nwiring: |\n  a, b = scale\n  scale(x) {\n    weight = param[width(x)]\n    return x * weight\n  }\n\
    \x20 layer(x) {\n    one = a\n    return one(x)\n  }\n\
    \x20 model(x: f32[tokens, 4]) {\n    layers = [layer for i in 0..m]\n    return {y: layers(x)}\n  }\n\
    names:\n  hf: {prefix: base., one: uno}\n";

fn library(cards: &[(&str, &str)]) -> Library {
    let files = cards.iter().chain(&[("base.yaml", BASE)]).map(|(n, t)| (PathBuf::from(n), (*t).to_string()));
    Library::build(files.collect::<Vec<_>>().into_iter())
}

fn read(text: &str) -> Result<Spec, Report> {
    parse_card("card.yaml", text, &library(&[]))
}

#[test]
fn mappings_are_merged_and_definitions_replaced() {
    let spec = read(
        "xfc: 1\nname: Card\nextends: base\nsizes: {m: 5, k: 7}\nassumes: {bias: true}\n\
        wiring: |\n  layer(x) {\n    one, two = b\n    return two(one(x))\n  }\nnames:\n  hf: {two: dos}\n",
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let sizes: Vec<String> = model.arch.sizes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(sizes, ["n=2", "m=5", "k=7"]);
    assert_eq!(model.bindings.len(), 10);
    assert_eq!(model.bindings[1].names, ["base.layers.0.dos.weight"]);
    assert_eq!(model.bindings[0].names, ["base.layers.0.uno.weight"]);
    let assumes: Vec<String> = spec.assumes.iter().map(|(k, v)| format!("{}={v}", k.text)).collect();
    assert_eq!(assumes, ["act=silu", "bias=true"]);
    assert_eq!((spec.name.as_ref(), spec.reference.as_deref()), ("Card", Some("a paper")));
    assert!(spec.published.is_none() && spec.matches.model_type.is_empty());
    assert_eq!(spec.matches.under.as_deref(), Some("text"));
    assert!(spec.text().contains("---\n# models/base.yaml\nxfc: 1"));
}

#[test]
fn mistakes_are_shown_in_the_card_where_they_are() {
    let spec = read("xfc: 1\nname: Card\nextends: base\nwiring: |\n  scale(x) {\n    return x * lost\n  }\n")
        .unwrap_or_else(|e| panic!("{e}"));
    let said = elaborate(&spec, &ElaborateOptions::default()).map(|_| ()).expect_err("a name is lost").to_string();
    assert!(said.contains("card.yaml:6:16"), "{said}");
    let spec = read("xfc: 1\nname: Card\nextends: base\nsizes: {m: none}\n").unwrap_or_else(|e| panic!("{e}"));
    let said = elaborate(&spec, &ElaborateOptions::default()).map(|_| ()).expect_err("no range").to_string();
    assert!(said.contains("models/base.yaml:") && !said.contains("expanded from here"), "{said}");
}

#[test]
fn a_family_is_not_inherited() {
    let library = library(&[("also.yaml", "xfc: 1\nname: Also\nextends: base\nmatches: {model_type: also}\n")]);
    for (family, name) in [("base", "Base"), ("also", "Also")] {
        let picked =
            pick_card(&serde_json::json!({ "model_type": family }), &library).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&*picked.name, name);
    }
}

#[test]
fn files_extend_files() {
    let folder = std::env::temp_dir().join(format!("xfc-extends-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("it is written");
    write("sub/c.yaml", "xfc: 1\nname: C\nextends: ../b.yaml\nsizes: {m: 1}\n");
    write("b.yaml", "\u{feff}xfc: 1\nname: B\nextends: base\nsizes: {n: 9}\n");
    write("loop.yaml", "xfc: 1\nname: L\nextends: ./sub/../loop.yaml\n");
    let load = |name: &str| load_card(&folder.join(name).display().to_string(), &library(&[]));
    let spec = load("sub/c.yaml").unwrap_or_else(|e| panic!("{e}"));
    let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(model.arch.sizes.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["n=9", "m=1"]);
    let codes: Vec<Code> =
        load("loop.yaml").map(|_| ()).expect_err("a circle").diagnostics.iter().map(|d| d.code).collect();
    assert_eq!(codes, [Code::Cycle]);
    write("sub/d.yaml", "xfc: 1\nname: D\nextends: no.yaml\n");
    let said = load("sub/d.yaml").map(|_| ()).expect_err("no such file").to_string();
    assert!(said.contains("no.yaml") && said.contains("d.yaml:3:10"), "{said}");
    std::fs::remove_dir_all(&folder).expect("it is removed");
}

#[test]
fn a_card_of_a_library_finds_those_beside_it() {
    let library = library(&[("more.yaml", "xfc: 1\nname: More\nextends: ./base.yaml\n")]);
    let spec = load_card("more", &library).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(&*spec.name, "More");
    assert!(spec.sizes.iter().any(|size| &*size.name == "m"));
}

#[test]
fn what_cannot_be_followed_is_said_once() {
    let codes = |text: &str| -> Vec<Code> {
        read(text).map(|_| ()).expect_err("it is wrong").diagnostics.iter().map(|d| d.code).collect()
    };
    assert_eq!(codes("xfc: 1\nname: Card\nextends: bsae\n"), [Code::UnknownModel]);
    assert_eq!(codes("xfc: 1\nname: Card\nextends: [base]\n"), [Code::WrongKind]);
    assert_eq!(codes("xfc: 1\nname: Card\nextends: ./bsae.yaml\n"), [Code::Unreadable]);
    assert_eq!(codes("xfc: 1\nextends: base\n"), [Code::MissingKey]);
    let chain: Vec<(String, String)> =
        (0..30).map(|i| (format!("c{i}.yaml"), format!("xfc: 1\nname: C\nextends: c{}\n", i + 1))).collect();
    let cards: Vec<(&str, &str)> = chain.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let said = load_card("c0", &library(&cards)).map(|_| ()).expect_err("it is long");
    assert_eq!(said.diagnostics[0].code, Code::TooDeep);
}
