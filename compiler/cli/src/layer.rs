//! `--layer N`: which graphs, launches and kernels belong to one layer.

use xfc_lang::graph::Program;
use xfc_lang::graph::path::instances;

/// Whether an instance path lies in layer `n`: one of its components is that number.
pub(crate) fn is_in(path: &str, n: usize) -> bool {
    let number = n.to_string();
    path.split(['.', ' ']).any(|part| part == number)
}

/// The graphs that layer `n` runs, by index.
pub(crate) fn graphs(program: &Program, n: usize) -> Vec<usize> {
    let mut list: Vec<usize> =
        instances(program).unwrap_or_default().into_iter().filter(|i| is_in(&i.at, n)).map(|i| i.graph).collect();
    list.sort_unstable();
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use super::is_in;

    #[test]
    fn layers_are_components() {
        assert!(is_in("model.layers.3.self_attn", 3));
        assert!(!is_in("model.layers.31", 3));
        assert!(!is_in("model.norm", 0));
    }
}
