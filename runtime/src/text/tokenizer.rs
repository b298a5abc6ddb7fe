//! Text to token ids and back, as the checkpoint's `tokenizer.json` or a GGUF file says.

use super::gguf::TextFile;
use crate::error::{Result, RuntimeError};
use crate::gguf::is_gguf_file;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use tokenizers::TruncationParams;

/// Tokens of a [`TextStream`] that may wait for the rest of a character: one has at most four bytes, each perhaps a token.
const MOST_PENDING: usize = 4;

/// What happens to the tokens that a tokenizer puts around a text (begin of text, separators).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are put there.
    Add,
    /// The text is taken as it is: it brings its own, as a chat template's does.
    AsWritten,
}

/// A tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: String,
}

/// A text as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which part of the text each belongs to.
    pub type_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`: the file, or the one in a folder; or what a GGUF file holds.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        if is_gguf_file(path) {
            let inner = TextFile::open(path)?.tokenizer()?;
            return Ok(Self { inner, path: path.display().to_string() });
        }
        let file: PathBuf = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let bytes = std::fs::read(&file).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => RuntimeError::input(
                file.display().to_string(),
                "does not exist, so that text cannot be turned into tokens",
                "give a checkpoint folder with tokenizer.json (`save_pretrained` of a fast tokenizer writes it), or token ids",
            ),
            _ => RuntimeError::io(&file, "read", source),
        })?;
        Self::from_bytes(&bytes, file.display().to_string())
    }

    /// A tokenizer from the contents of `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    /// They do not describe a tokenizer.
    pub fn from_bytes(bytes: &[u8], path: String) -> Result<Self> {
        let refuse = |problem: String| {
            let help = "download the checkpoint's tokenizer.json again";
            RuntimeError::input(path.clone(), format!("is not a tokenizer: {problem}"), help)
        };
        let json: Json = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        check_templates(json.get("post_processor").unwrap_or(&Json::Null)).map_err(refuse)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| refuse(error.to_string()))?;
        // Files may ask for padding and truncation that suited somebody's batches.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| RuntimeError::input(path.clone(), error.to_string(), ""))?;
        Ok(Self { inner, path })
    }

    /// Tokens of `text`.
    ///
    /// # Errors
    /// The tokenizer cannot express it.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Encoded> {
        let encoding = self
            .inner
            .encode(text, special == SpecialTokens::Add)
            .map_err(|error| self.failed("encode the text", &*error))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec() })
    }

    /// From now on, texts are cut so that they have at most `tokens` tokens, special ones included.
    ///
    /// # Errors
    /// There is no room for the special tokens alone.
    pub fn truncate_to(&mut self, tokens: usize) -> Result<()> {
        use tokenizers::PostProcessor;
        let added = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if tokens <= added {
            return Err(RuntimeError::request(
                format!("texts of at most {tokens} tokens have no room for words"),
                "allow longer texts",
            ));
        }
        let params = TruncationParams { max_length: tokens, ..TruncationParams::default() };
        let result = self.inner.with_truncation(Some(params)).map(|_| ());
        result.map_err(|error| RuntimeError::input(self.path.clone(), error.to_string(), ""))
    }

    /// Text of `ids`, without special tokens.
    ///
    /// # Errors
    /// The tokenizer cannot express it.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| self.failed("decode the tokens", &*error))
    }

    /// The id of a token, as it is written.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of tokens that arrive one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0 }
    }

    fn failed(&self, doing: &str, error: &(dyn std::error::Error + Send + Sync)) -> RuntimeError {
        RuntimeError::input(
            self.path.clone(),
            format!("cannot {doing}: {error}"),
            "check that tokenizer and model belong together",
        )
    }
}

/// Refuses templates around texts that use a special token which they do not define: the library panics on them.
fn check_templates(processor: &Json) -> Result<(), String> {
    for inner in processor.get("processors").and_then(Json::as_array).into_iter().flatten() {
        check_templates(inner)?;
    }
    let pieces = ["single", "pair"].into_iter().filter_map(|form| processor.get(form)?.as_array()).flatten();
    for token in pieces.filter_map(|piece| piece.get("SpecialToken")?.get("id")?.as_str()) {
        if processor.get("special_tokens").and_then(|defined| defined.get(token)).is_none() {
            return Err(format!("its template uses `{token}`, which it does not define"));
        }
    }
    Ok(())
}

/// Decodes tokens as they come and never returns half of a character.
///
/// A token's text may depend on the one before it (a space is put between words), so a few decoded tokens are kept as context.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Context, then tokens whose text was not returned yet.
    ids: Vec<u32>,
    /// Number of tokens of context.
    shown: usize,
}

impl TextStream<'_> {
    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// The tokenizer cannot express it.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let waiting = self.ids.len() - self.shown;
        self.take(waiting > MOST_PENDING)
    }

    /// What is left at the end, incomplete characters replaced.
    ///
    /// # Errors
    /// The tokenizer cannot express it.
    pub fn finish(mut self) -> Result<String> {
        self.take(true)
    }

    fn take(&mut self, incomplete_too: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown])?;
        let all = self.tokenizer.decode(&self.ids)?;
        if all.ends_with('\u{FFFD}') && !incomplete_too {
            return Ok(String::new());
        }
        // Where the context reads differently with what follows, the common part was shown.
        let common = before.bytes().zip(all.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=common).rev().find(|&at| all.is_char_boundary(at)).unwrap_or(0);
        let text = all[start..].to_owned();
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer: a token for each byte, `!` the first of them, and a special token that ends a text.
    pub(crate) fn bytes_json() -> String {
        let alphabet: std::collections::BTreeSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        let vocab: serde_json::Map<String, serde_json::Value> =
            alphabet.iter().enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
            "added_tokens": [{"id": 256, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}}],
                "pair": [], "special_tokens": {"<end>": {"id": "<end>", "ids": [256], "tokens": ["<end>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
        });
        json.to_string()
    }

    fn bytes() -> Tokenizer {
        Tokenizer::from_bytes(bytes_json().as_bytes(), "tokenizer.json".into()).unwrap()
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_ignored() {
        let mut tokenizer = bytes();
        let ids = tokenizer.encode("hello!", SpecialTokens::Add).unwrap().ids;
        assert_eq!((ids.len(), ids[6]), (7, 256));
        assert_eq!(tokenizer.encode("hello!", SpecialTokens::AsWritten).unwrap().ids.len(), 6);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "hello!");
        tokenizer.truncate_to(4).unwrap();
        let cut = tokenizer.encode("hello!", SpecialTokens::Add).unwrap().ids;
        assert_eq!((cut.len(), cut[3]), (4, 256));
        assert!(tokenizer.truncate_to(1).is_err());
        assert_eq!(tokenizer.id_of("<end>"), Some(256));
    }

    #[test]
    fn streams_whole_characters_only() {
        let tokenizer = bytes();
        let text = "aé漢🦀 b";
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text, SpecialTokens::AsWritten).unwrap().ids {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains('\u{FFFD}'));
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
        assert_eq!(pieces, ["a", "é", "漢", "🦀", " ", "b"]);
        let half = tokenizer.encode("🦀", SpecialTokens::AsWritten).unwrap().ids;
        stream.push(half[0]).unwrap();
        assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    }

    #[test]
    fn what_is_not_a_tokenizer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json: does not exist"), "{error}");
        std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(Tokenizer::open(folder.path()).unwrap_err().to_string().contains("is not a tokenizer"));
        std::fs::write(
            folder.path().join("tokenizer.json"),
            bytes_json().replace(r#""special_tokens":{"<end>""#, r#""special_tokens":{"<start>""#),
        )
        .unwrap();
        assert!(Tokenizer::open(folder.path()).unwrap_err().to_string().contains("uses `<end>`"));
    }
}
