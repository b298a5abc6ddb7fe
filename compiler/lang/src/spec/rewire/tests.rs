//! What `--set` changes, and what is said of texts that are wrong.

use std::path::PathBuf;

use super::*;
use crate::spec::{Library, parse_card};
use crate::{ElaborateOptions, elaborate};

const CARD: &str = "xfc: 1\nname: Test\nsizes: {n: 4}\nwiring: |\n  norm(x) {\n    weight = param[width(x)]\n    return x * weight\n  }\n\
    \x20 twice(x) = x * 2\n\
    \x20 outer(x) {\n    layer(x) {\n      a, b = norm\n      h = x + twice(a(x))\n      return h + b(h)\n    }\n    layers = [layer for i in 0..n]\n    return layers(x)\n  }\n\
    \x20 model(x: f32[tokens, 4]) {\n    stack = outer\n    return {y: stack(x)}\n  }\n";

fn spec() -> Spec {
    let library = [(PathBuf::from("lib/l.xf"), "half(x) {\n  y = x * 0.5\n  return y\n}\n".to_string())];
    parse_card("test.yaml", CARD, &Library::build(library.into_iter())).unwrap_or_else(|e| panic!("{e}"))
}

fn set(sets: &[&str]) -> Result<String, Report> {
    let mut spec = spec();
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
    let sizes = apply_sets(&mut spec, &sets)?;
    elaborate(&spec, &ElaborateOptions { sets: sizes, ..ElaborateOptions::default() }).map(|m| m.program.to_string())
}

fn refused(sets: &[&str]) -> String {
    match set(sets) {
        Ok(_) => panic!("{sets:?} is accepted"),
        Err(report) => report.to_string(),
    }
}

#[test]
fn lines_results_functions_and_sizes() {
    let plain = set(&[]).unwrap_or_else(|e| panic!("{e}"));
    let same = |sets: &[&str], other: &str| {
        let card = CARD.replace("h = x + twice(a(x))", other);
        let spec =
            parse_card("test.yaml", &card, &Library::build(std::iter::empty())).unwrap_or_else(|e| panic!("{e}"));
        let want = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(set(sets).unwrap_or_else(|e| panic!("{e}")), want.program.to_string());
    };
    same(&["outer.layer.h = a(x + twice(x))"], "h = a(x + twice(x))");
    same(&["outer.layer.c = twice(twice(x))", "outer.layer.h=x + a(c)"], "h = x + a(x * 2 * 2)");
    assert_ne!(set(&["outer.layer.return = h + b(b(h))"]).unwrap_or_else(|e| panic!("{e}")), plain);
    assert_ne!(set(&["twice(x) = x * 3"]).unwrap_or_else(|e| panic!("{e}")), plain);
    assert_ne!(set(&["outer.layer(x) {\n  a = norm\n  return a(x)\n}"]).unwrap_or_else(|e| panic!("{e}")), plain);
    assert_eq!(set(&["n = 2"]).unwrap_or_else(|e| panic!("{e}")).matches("call").count(), 2);
    assert_ne!(set(&["half.y = x * 3", "outer.layer.h = half(x) + a(x)"]).unwrap_or_else(|e| panic!("{e}")), plain);
}

#[test]
fn what_is_wrong_points_into_the_text() {
    let said = refused(&["outer.layer.h = x + twce(a(x))"]);
    assert!(said.contains("--set:1:21") && said.contains("did you mean `twice`"), "{said}");
    let said = refused(&["outer.layer.h = x + ", "outer.layr.h = x"]);
    assert!(
        said.contains("--set:1:") && said.contains("no module `layr`") && said.contains("did you mean `layer`"),
        "{said}"
    );
    let said = refused(&["outer.layer.g = x + a(x)"]);
    assert!(said.contains("binds no `g`") && said.contains("--set:1:13"), "{said}");
    let said = refused(&["outer.layer.h"]);
    assert!(said.contains("error[E0110]"), "{said}");
    let said = refused(&["nothing"]);
    assert!(said.contains("`--set nothing` has no value"), "{said}");
    let said = refused(&["m = 2"]);
    assert!(said.contains("no size `m`"), "{said}");
}
