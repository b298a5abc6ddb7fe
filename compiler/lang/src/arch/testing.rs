//! Cards around equations, for tests.

use std::path::PathBuf;

use super::{ElaborateOptions, Model, elaborate};
use crate::diagnostic::{Code, Report};
use crate::spec::{Library, parse_card};

/// The card of equations, with more keys above `wiring`.
pub(crate) fn card(keys: &str, wiring: &str) -> String {
    let wiring: String = wiring.lines().map(|l| format!("  {l}\n")).collect();
    format!("xfc: 1\nname: Test\n{keys}wiring: |\n{wiring}")
}

/// Expands a card against a library without modules.
pub(crate) fn expand(card: &str, options: &ElaborateOptions) -> Result<Model, Report> {
    let library = Library::build(std::iter::empty::<(PathBuf, String)>());
    parse_card("test.yaml", card, &library).and_then(|spec| elaborate(&spec, options))
}

/// The model of equations that are right.
pub(crate) fn model(wiring: &str) -> Model {
    expand(&card("sizes: {}\n", wiring), &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The codes of what is wrong with equations, in the order of their places.
pub(crate) fn codes(wiring: &str) -> Vec<Code> {
    match expand(&card("sizes: {}\n", wiring), &ElaborateOptions::default()) {
        Ok(_) => Vec::new(),
        Err(report) => report.diagnostics.iter().map(|d| d.code).collect(),
    }
}
