//! What a checkpoint folder or a GGUF file says about generating and embedding: first and end tokens, pooling, length.

use super::chat::read_json;
use super::gguf::TextFile;
use crate::embed::{EmbedSettings, Pooling};
use crate::error::{Result, RuntimeError};
use crate::gguf::is_gguf_file;
use serde_json::Value as Json;
use std::path::Path;

/// Tokens that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`; none where neither says. Of a GGUF file its end
/// tokens of texts, turns and messages.
///
/// # Errors
/// A file is there but cannot be read.
pub fn stop_ids(folder: &Path) -> Result<Vec<u32>> {
    if is_gguf_file(folder) {
        return Ok(TextFile::open(folder)?.stop_ids());
    }
    for name in ["generation_config.json", "config.json"] {
        let Some(config) = read_json(&folder.join(name))? else { continue };
        let here = config.get("eos_token_id").filter(|value| !value.is_null());
        if let Some(ids) = here.or_else(|| config.get("text_config")?.get("eos_token_id")) {
            let list = ids.as_array().cloned().unwrap_or_else(|| vec![ids.clone()]);
            return Ok(list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect());
        }
    }
    Ok(Vec::new())
}

/// Tokens with which the text begins that is written from a source: `decoder_start_token_id`, then `forced_bos_token_id`, each of
/// `generation_config.json`, else of `config.json`; none where neither says.
///
/// # Errors
/// A file is there but cannot be read.
pub fn start_ids(folder: &Path) -> Result<Vec<u32>> {
    if is_gguf_file(folder) {
        return Ok(Vec::new());
    }
    let mut configs = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        configs.extend(read_json(&folder.join(name))?);
    }
    let id = |key: &str| configs.iter().find_map(|config| u32::try_from(config.get(key)?.as_u64()?).ok());
    Ok(["decoder_start_token_id", "forced_bos_token_id"].into_iter().filter_map(id).collect())
}

/// Tokens that are never made: `suppress_tokens`, and those of `bad_words_ids` that are one token, of `generation_config.json`, else of
/// `config.json`.
///
/// # Errors
/// A file is there but cannot be read.
pub fn suppressed_ids(folder: &Path) -> Result<Vec<u32>> {
    if is_gguf_file(folder) {
        return Ok(Vec::new());
    }
    for name in ["generation_config.json", "config.json"] {
        let Some(config) = read_json(&folder.join(name))? else { continue };
        let list = |key: &str| config.get(key).and_then(Json::as_array).cloned().unwrap_or_default();
        let words = list("bad_words_ids").into_iter().filter_map(|word| match word.as_array()?.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        });
        let ids = list("suppress_tokens").into_iter().chain(words);
        let ids: Vec<u32> = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect();
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}

/// The positions that the model was trained for, as `config.json` says: `max_position_embeddings`, times the factor where that is for a longer
/// context; `None` where it says nothing.
///
/// # Errors
/// The file is there but cannot be read.
pub fn trained_tokens(folder: &Path) -> Result<Option<u64>> {
    let Some(config) = read_json(&folder.join("config.json"))? else { return Ok(None) };
    let parts = [config.get("text_config"), Some(&config)];
    let trained = |part: &Json| {
        let most = part.get("max_position_embeddings")?.as_u64()?;
        let scaling = part.get("rope_scaling").or_else(|| part.get("rope_parameters"));
        let longer = scaling.and_then(|scaling| {
            let trained = scaling.get("original_max_position_embeddings").and_then(Json::as_u64).unwrap_or(most);
            Some((trained as f64 * scaling.get("factor")?.as_f64()?) as u64)
        });
        Some(most.max(longer.unwrap_or(0)))
    };
    Ok(parts.into_iter().flatten().find_map(trained))
}

/// How the checkpoint's own `modules.json` makes a sentence's vector of its tokens' vectors; `None` where it has none.
///
/// # Errors
/// A file cannot be read, or asks for a module or pooling that is not supported.
pub fn embed_settings(folder: &Path) -> Result<Option<EmbedSettings>> {
    if is_gguf_file(folder) {
        return Ok(None);
    }
    let path = folder.join("modules.json");
    let Some(modules) = read_json(&path)? else { return Ok(None) };
    let refuse = |problem: String| {
        Err(RuntimeError::input(path.display().to_string(), problem, "give `--pool` to choose by hand"))
    };
    let Some(modules) = modules.as_array() else { return refuse("is not a list of modules".to_owned()) };
    let mut settings = EmbedSettings { pooling: Pooling::Mean, normalize: false, max_tokens: max_tokens(folder)? };
    for module in modules {
        let kind = module.get("type").and_then(Json::as_str).unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Pooling" => settings.pooling = pooling(folder, module)?,
            "Normalize" => settings.normalize = true,
            other => return refuse(format!("has a module `{other}`, expected Transformer, Pooling and Normalize")),
        }
    }
    Ok(Some(settings))
}

/// `max_seq_length` of the first `sentence_*_config.json` (the middle names a family, and does not matter).
fn max_tokens(folder: &Path) -> Result<Option<usize>> {
    let entries = std::fs::read_dir(folder).map_err(|source| RuntimeError::io(folder, "read", source))?;
    let ours = |name: &String| name.starts_with("sentence_") && name.ends_with("_config.json");
    let first = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(ours).min();
    let config = first.map(|name| read_json(&folder.join(name))).transpose()?.flatten();
    let length = config.as_ref().and_then(|config| config.get("max_seq_length")?.as_u64());
    Ok(length.and_then(|length| usize::try_from(length).ok()))
}

/// The one pooling mode that a Pooling module's `config.json` switches on.
fn pooling(folder: &Path, module: &Json) -> Result<Pooling> {
    let name = module.get("path").and_then(Json::as_str).unwrap_or_default();
    let path = folder.join(name).join("config.json");
    let refuse = |problem: String| {
        Err(RuntimeError::input(path.display().to_string(), problem, "give `--pool` to choose by hand"))
    };
    if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return refuse("lies outside of the checkpoint".to_owned());
    }
    let Some(config) = read_json(&path)? else { return refuse("does not exist".to_owned()) };
    let on = |(key, value): (&String, &Json)| {
        (key.starts_with("pooling_mode_") && value.as_bool() == Some(true)).then(|| key.clone())
    };
    let modes: Vec<String> = config.as_object().into_iter().flatten().filter_map(on).collect();
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        modes => refuse(format!(
            "asks for {}, expected mean, cls or last token",
            if modes.is_empty() { "no pooling".to_owned() } else { modes.join(" and ") }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(stop_ids(folder.path()).unwrap().is_empty());
        write("config.json", r#"{"eos_token_id": 2}"#);
        assert_eq!(stop_ids(folder.path()).unwrap(), [2]);
        write("generation_config.json", r#"{"eos_token_id": [3, 4]}"#);
        assert_eq!(stop_ids(folder.path()).unwrap(), [3, 4]);
        write("generation_config.json", "{");
        assert!(stop_ids(folder.path()).unwrap_err().to_string().contains("generation_config.json: is not JSON"));
    }

    #[test]
    fn first_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(start_ids(folder.path()).unwrap().is_empty());
        write("config.json", r#"{"decoder_start_token_id": 2, "forced_bos_token_id": null}"#);
        assert_eq!(start_ids(folder.path()).unwrap(), [2]);
        write("generation_config.json", r#"{"decoder_start_token_id": 3, "forced_bos_token_id": 0}"#);
        assert_eq!(start_ids(folder.path()).unwrap(), [3, 0]);
        assert!(suppressed_ids(folder.path()).unwrap().is_empty());
        write("config.json", r#"{"bad_words_ids": [[7], [1, 2]], "suppress_tokens": [4]}"#);
        assert_eq!(suppressed_ids(folder.path()).unwrap(), [4, 7]);
    }

    #[test]
    fn sentence_modules() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(embed_settings(folder.path()).unwrap(), None);
        let module = |kind: &str, path: &str| {
            format!(r#"{{"idx": 0, "name": "0", "path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#)
        };
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        write(
            "1_Pooling/config.json",
            r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}"#,
        );
        write("sentence_any_config.json", r#"{"max_seq_length": 256, "do_lower_case": false}"#);
        write(
            "modules.json",
            &format!(
                "[{}, {}, {}]",
                module("Transformer", ""),
                module("Pooling", "1_Pooling"),
                module("Normalize", "2_Normalize")
            ),
        );
        let expected = EmbedSettings { pooling: Pooling::Mean, normalize: true, max_tokens: Some(256) };
        assert_eq!(embed_settings(folder.path()).unwrap(), Some(expected));
        write("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#);
        assert!(embed_settings(folder.path()).unwrap_err().to_string().contains("pooling_mode_max_tokens"));
        write("modules.json", &format!("[{}]", module("Pooling", "../x")));
        assert!(embed_settings(folder.path()).unwrap_err().to_string().contains("outside"));
        write("modules.json", &format!("[{}]", module("Dense", "")));
        assert!(embed_settings(folder.path()).unwrap_err().to_string().contains("`Dense`"));
    }
}
