//! What differs from layer to layer, in few words: `window 1,024 (5 of 6 layers), all before (1 of 6)`.

use super::model::Stack;
use crate::view::caches::in_short;

/// A value of each layer, told once for all layers that have it, in the order in which they come. `None` is left out where any layer has one.
pub(super) fn over(values: &[Option<String>]) -> Vec<String> {
    let mut kinds: Vec<&Option<String>> = Vec::new();
    for value in values {
        if !kinds.contains(&value) {
            kinds.push(value);
        }
    }
    match kinds[..] {
        [] => return Vec::new(),
        [one] => return one.iter().cloned().collect(),
        _ => {}
    }
    let period = (2..=12.min(values.len() / 2)).find(|p| (0..values.len()).all(|i| values[i] == values[i % p]));
    let told = kinds.into_iter().filter_map(|kind| {
        let text = kind.as_deref()?;
        let which = match period {
            Some(p) => {
                let n = values[..p].iter().filter(|v| *v == kind).count();
                format!("{n} of {p} layers")
            }
            None => {
                let paths: Vec<String> =
                    (0..values.len()).filter(|i| values[*i] == *kind).map(|i| format!("x.{i}")).collect();
                let short = in_short(&paths.iter().map(String::as_str).collect::<Vec<_>>());
                let word = if paths.len() == 1 { "layer" } else { "layers" };
                format!("{word} {}", short.trim_start_matches("x."))
            }
        };
        Some(format!("{text} ({which})"))
    });
    told.collect()
}

/// The same of the layers of a stack.
pub(super) fn of(stack: &Stack, value: impl Fn(&super::layer::Layer) -> Option<String>) -> Vec<String> {
    over(&stack.layers.iter().map(|l| value(l)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::over;

    #[test]
    fn layers_that_are_alike_are_told_once() {
        let told = |pattern: &str| {
            let values: Vec<Option<String>> = pattern.chars().map(|c| (c != '.').then(|| c.to_string())).collect();
            over(&values).join(", ")
        };
        assert_eq!(told("aaaa"), "a");
        assert_eq!(told("...."), "");
        assert_eq!(told("abababab"), "a (1 of 2 layers), b (1 of 2 layers)");
        assert_eq!(told("wwwwwgwwwwwgwww"), "w (5 of 6 layers), g (1 of 6 layers)");
        assert_eq!(told("...x...x...x"), "x (1 of 4 layers)");
        assert_eq!(told("daaaaaaa"), "d (layer 0), a (layers 1-7)");
    }
}
