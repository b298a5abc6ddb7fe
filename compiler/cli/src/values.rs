//! `xfc inspect --values`: the values that have names, as `--tap` and `verify` take them.

use xfc_check::taps::equation;
use xfc_lang::graph::named::{Named, named_values};

use crate::model::Loaded;

/// The named values in the order they are computed: path, type, equation.
pub(crate) fn list(loaded: &Loaded) -> String {
    let axes = &loaded.model.program.axes;
    let named = named_values(&loaded.model.program);
    let tapped: Vec<_> = named.iter().filter(|n| n.is_per_element()).collect();
    let types: Vec<String> = tapped.iter().map(|n| n.ty.text(axes)).collect();
    let widest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let path = widest(&mut tapped.iter().map(|n| n.path.len()));
    let ty = widest(&mut types.iter().map(String::len));
    let line = |(n, t): (&&Named, &String)| match equation(&loaded.spec.sources, n.span) {
        Some(e) => format!("{:<path$}  {t:<ty$}  {}  {}", n.path, e.place, e.text),
        None => format!("{:<path$}  {t}", n.path),
    };
    tapped.iter().zip(&types).map(line).collect::<Vec<_>>().join("\n")
}
