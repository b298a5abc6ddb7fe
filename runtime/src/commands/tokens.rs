//! `--tokens [NAME=]IDS`: token ids on the command line, for an input by name or for the one that a prompt goes to.

use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use std::str::FromStr;

/// Ids for one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The input; `None`: the one that a prompt goes to.
    pub input: Option<String>,
    /// At least one.
    pub ids: Vec<u32>,
}

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (input, list) = match text.split_once('=') {
            Some((input, list)) => (Some(input.to_owned()), list),
            None => (None, text),
        };
        let id = |id: &str| id.trim().parse().map_err(|error| format!("`{id}` is no token id: {error}"));
        Ok(Tokens { input, ids: list.split(',').map(id).collect::<Result<_, _>>()? })
    }
}

/// The ids by the names of the model's inputs, each input once.
///
/// # Errors
/// An input that the model does not have, or one that is given twice.
pub(super) fn by_input(manifest: &Manifest, given: &[Tokens]) -> Result<Vec<(String, Vec<u32>)>> {
    let prompt = prompt_input(manifest);
    let mut named: Vec<(String, Vec<u32>)> = Vec::with_capacity(given.len());
    for tokens in given {
        let name = tokens.input.as_ref().or(prompt.as_ref()).cloned();
        let name = name.ok_or_else(|| {
            RuntimeError::request(
                "the model has no input for tokens",
                "give its inputs by name with `logits --inputs FILE`",
            )
        })?;
        let inputs = &manifest.inputs;
        if !inputs.iter().any(|input| input.name == name) {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(RuntimeError::request(
                format!("the model has no input `{name}`"),
                format!("its inputs are {}", names.join(", ")),
            ));
        }
        if named.iter().any(|(other, _)| *other == name) {
            return Err(RuntimeError::request(format!("input `{name}` is given twice"), "give each input once"));
        }
        named.push((name, tokens.ids.clone()));
    }
    Ok(named)
}

/// The input that a prompt goes to: the source where the model reads one, else its tokens.
pub(super) fn prompt_input(manifest: &Manifest) -> Option<String> {
    manifest.source_input().or_else(|| manifest.token_input()).map(|input| input.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_and_without_a_name() {
        let tokens = |input: Option<&str>, ids: &[u32]| Tokens { input: input.map(str::to_owned), ids: ids.to_vec() };
        assert_eq!("3,1,4".parse(), Ok(tokens(None, &[3, 1, 4])));
        assert_eq!("input_ids=7".parse(), Ok(tokens(Some("input_ids"), &[7])));
        for wrong in ["", "a", "1,,2", "-1", "x=", "1.5"] {
            assert!(wrong.parse::<Tokens>().is_err(), "{wrong}");
        }
    }
}
