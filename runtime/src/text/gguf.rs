//! The tokenizer, the chat template and the end tokens of a GGUF file, from its metadata.
//!
//! ```text
//! tokenizer.ggml.model  pairs of bytes with `merges`, where text is cut into words as `tokenizer.ggml.pre` says; or pieces with scores, merged
//!                       best first, whose spaces are `▁` and where what has no piece is bytes
//! tokens, token_type    1 normal, 2 unknown, 3 control, 4 added by a user, 5 unused, 6 a byte
//! ```
//!
//! Given a file's header, promises the tokenizer that its `tokenizer.json` would have described. What tokenizers and their ways to cut words are
//! called is in `models/tokenizers.json`.

use crate::error::{Result, RuntimeError};
use crate::gguf::{Header, Value};
use crate::weights::Checkpoint;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer};

/// What tokenizers are called, how words are cut, and tokens that end an answer.
const TABLE: &str = include_str!("../../../models/tokenizers.json");

#[derive(Deserialize)]
struct Table {
    /// What a tokenizer's name stands for.
    kinds: BTreeMap<String, Kind>,
    words: Vec<Words>,
    ends: Vec<String>,
}

/// How tokens are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Pairs,
    Pieces,
}

/// How a text is cut into words before pairs are merged.
#[derive(Deserialize)]
struct Words {
    names: Vec<String>,
    /// Patterns, each applied to what those before it left.
    split: Vec<String>,
    normalize: Option<String>,
    /// A word that is a token is that token, whatever the merges make of it.
    #[serde(default)]
    whole_words: bool,
    /// Whether texts begin with the first token where the file does not say.
    #[serde(default)]
    begin: bool,
}

/// Types of tokens.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER: u64 = 4;

/// What a file says of text.
#[derive(Debug)]
pub(super) struct TextFile {
    checkpoint: Checkpoint,
    path: String,
}

impl TextFile {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read, or is not in the format.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(path)?, path: path.display().to_string() })
    }

    fn refuse(&self, problem: impl Into<String>) -> RuntimeError {
        let help = "give `--tokenizer PATH`, a tokenizer.json, or token ids with `--tokens`";
        RuntimeError::input(self.path.clone(), problem, help)
    }

    fn said(&self) -> Said<'_> {
        // What is no GGUF file says nothing.
        static NOTHING: Header = Header { metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        let (header, file) = match &self.checkpoint {
            Checkpoint::Stored(stored) => stored.header().unwrap_or((&NOTHING, &[])),
            Checkpoint::Random(_) => (&NOTHING, &[][..]),
        };
        Said { header, file }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The file has none, or one that is not read.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        self.said().tokenizer().map_err(|problem| self.refuse(problem))
    }

    /// The chat template, and the special tokens that it may name.
    pub(super) fn template(&self) -> Option<(String, BTreeMap<String, String>)> {
        let said = self.said();
        let template = said.text("tokenizer.chat_template")?.to_owned();
        let tokens = said.tokens().ok()?;
        let special = ["bos", "eos", "unknown", "padding"].into_iter().filter_map(|kind| {
            let name = match kind {
                "unknown" => "unk_token".to_owned(),
                "padding" => "pad_token".to_owned(),
                kind => format!("{kind}_token"),
            };
            Some((name, (*tokens.get(said.id(kind)? as usize)?).to_owned()))
        });
        Some((template, special.collect()))
    }

    /// Tokens that end a text.
    pub(super) fn stop_ids(&self) -> Vec<u32> {
        let said = self.said();
        let mut ids: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(|kind| said.id(kind)).collect();
        let (Ok(tokens), Ok(types)) = (said.tokens(), said.types()) else { return ids };
        let ends = table().map(|table| table.ends).unwrap_or_default();
        let special = tokens.iter().zip(&types).zip(0u32..).filter(|((_, kind), _)| [CONTROL, USER].contains(kind));
        for ((_, _), id) in special.filter(|((token, _), _)| ends.iter().any(|end| end == *token)) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}

fn table() -> Result<Table, String> {
    serde_json::from_str(TABLE).map_err(|error| format!("the table of words is damaged: {error}"))
}

/// The metadata of a file.
struct Said<'a> {
    header: &'a Header,
    file: &'a [u8],
}

impl<'a> Said<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.header.value(key)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.value(key)?.as_text(self.file)
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.value(&format!("tokenizer.ggml.{key}")).and_then(Value::as_bool).unwrap_or(default)
    }

    /// The id of a special token.
    fn id(&self, kind: &str) -> Option<u32> {
        u32::try_from(self.value(&format!("tokenizer.ggml.{kind}_token_id"))?.as_u64()?).ok()
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, String> {
        let list = self.value(key).ok_or_else(|| format!("the metadata has no `{key}`"))?;
        let texts = list.as_list().and_then(|list| list.texts(self.file));
        texts.ok_or_else(|| format!("`{key}` is {}, a list of texts was expected", list.shown(self.file)))
    }

    fn tokens(&self) -> Result<Vec<&'a str>, String> {
        self.texts("tokenizer.ggml.tokens")
    }

    /// A number for each token; `None` where the file has no such list.
    fn numbers(&self, key: &str, tokens: usize) -> Result<Option<Vec<f64>>, String> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(value) = self.value(&key) else { return Ok(None) };
        let numbers = value.as_list().and_then(|list| list.numbers(self.file));
        let numbers = numbers.filter(|numbers| numbers.len() == tokens);
        numbers.map(Some).ok_or_else(|| {
            format!("`{key}` is {}, a number for each of {tokens} tokens was expected", value.shown(self.file))
        })
    }

    /// The type of each token.
    fn types(&self) -> Result<Vec<u64>, String> {
        let n = self.tokens()?.len();
        let types = self.numbers("token_type", n)?;
        Ok(types.map_or_else(|| vec![NORMAL; n], |types| types.into_iter().map(|kind| kind as u64).collect()))
    }

    fn tokenizer(&self) -> Result<Tokenizer, String> {
        let model =
            self.text("tokenizer.ggml.model").ok_or("it has no tokenizer: there is no `tokenizer.ggml.model`")?;
        let tokens = self.tokens()?;
        let types = self.types()?;
        let mut vocabulary: HashMap<&str, u32> = HashMap::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0u32..) {
            if let Some(first) = vocabulary.insert(token, id) {
                return Err(format!("the tokens {first} and {id} are both `{token}`"));
            }
        }
        let kinds = table()?.kinds;
        let mut tokenizer = match kinds.get(model) {
            Some(Kind::Pairs) => self.pairs(&vocabulary)?,
            Some(Kind::Pieces) => self.pieces(&tokens, &types, &vocabulary)?,
            None => {
                let known: Vec<&str> = kinds.keys().map(String::as_str).collect();
                return Err(format!("its tokenizer is `{model}`; those read are {}", known.join(", ")));
            }
        };
        let added = |special: bool| {
            let of = move |kind: u64| if special { kind == CONTROL || kind == UNKNOWN } else { kind == USER };
            let found = tokens.iter().zip(&types).filter(move |(_, kind)| of(**kind));
            found.map(|(token, _)| AddedToken::from(*token, special).normalized(false)).collect::<Vec<_>>()
        };
        tokenizer.add_special_tokens(&added(true));
        tokenizer.add_tokens(&added(false));
        Ok(tokenizer)
    }

    /// Tokens of bytes, merged by rank.
    fn pairs(&self, vocabulary: &HashMap<&str, u32>) -> Result<Tokenizer, String> {
        let name = self.text("tokenizer.ggml.pre").unwrap_or("default");
        let table = table()?.words;
        let words = table.iter().find(|words| words.names.iter().any(|n| n == name));
        let words = words.ok_or_else(|| {
            let known: Vec<&str> = table.iter().flat_map(|words| &words.names).map(String::as_str).collect();
            format!("its words are cut as `{name}`; known are {}", known.join(", "))
        })?;
        let merges: Merges = self
            .texts("tokenizer.ggml.merges")?
            .into_iter()
            // A space can be neither's own: bytes are written as other characters.
            .filter_map(|merge| merge.split_once(' '))
            // One that leads out of the vocabulary is never made.
            .filter(|(a, b)| [*a, *b, &format!("{a}{b}")].iter().all(|part| vocabulary.contains_key(part)))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let model = BPE::builder().vocab_and_merges(owned(vocabulary), merges).ignore_merges(words.whole_words);
        let mut tokenizer = Tokenizer::new(model.build().map_err(|error| error.to_string())?);
        let split = |pattern: &String| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Json> = words.split.iter().map(split).chain([bytes.clone()]).collect();
        if let Some(form) = &words.normalize {
            tokenizer.with_normalizer(Some(part::<tokenizers::NormalizerWrapper>(json!({"type": form}))?));
        }
        let steps = part::<tokenizers::PreTokenizerWrapper>(json!({"type": "Sequence", "pretokenizers": steps}))?;
        tokenizer.with_pre_tokenizer(Some(steps));
        tokenizer.with_decoder(Some(part::<tokenizers::DecoderWrapper>(bytes)?));
        self.surround(&mut tokenizer, words.begin)?;
        Ok(tokenizer)
    }

    /// Pieces of text with scores: of two neighbours that make a piece, those whose piece has the highest score are merged first.
    fn pieces(&self, tokens: &[&str], types: &[u64], vocabulary: &HashMap<&str, u32>) -> Result<Tokenizer, String> {
        let scores = self.numbers("scores", tokens.len())?.unwrap_or_else(|| vec![0.0; tokens.len()]);
        let merges = merges(tokens, types, &scores, vocabulary);
        let unknown = types.iter().position(|kind| *kind == UNKNOWN).and_then(|id| tokens.get(id));
        let mut model = BPE::builder().vocab_and_merges(owned(vocabulary), merges).byte_fallback(true).fuse_unk(true);
        if let Some(unknown) = unknown {
            model = model.unk_token((*unknown).to_owned());
        }
        let mut tokenizer = Tokenizer::new(model.build().map_err(|error| error.to_string())?);
        let prefix = self.flag("add_space_prefix", true);
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut before = vec![replace(" ", "▁")];
        let mut after = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            before.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            after.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let before = part::<tokenizers::NormalizerWrapper>(json!({"type": "Sequence", "normalizers": before}))?;
        tokenizer.with_normalizer(Some(before));
        let after = part::<tokenizers::DecoderWrapper>(json!({"type": "Sequence", "decoders": after}))?;
        tokenizer.with_decoder(Some(after));
        self.surround(&mut tokenizer, true)?;
        Ok(tokenizer)
    }

    /// The first and the last token of every text.
    fn surround(&self, tokenizer: &mut Tokenizer, begin: bool) -> Result<(), String> {
        let token = |wanted: bool, kind: &str| -> Option<(String, u32)> {
            let id = self.id(kind).filter(|_| wanted)?;
            Some((tokenizer.id_to_token(id)?, id))
        };
        let first = token(self.flag("add_bos_token", begin), "bos");
        let last = token(self.flag("add_eos_token", false), "eos");
        if first.is_none() && last.is_none() {
            return Ok(());
        }
        let piece = |(token, _): &(String, u32)| json!({"SpecialToken": {"id": token, "type_id": 0}});
        let around = |sequences: &[(&str, u32)]| {
            let texts = sequences.iter().map(|(id, kind)| json!({"Sequence": {"id": id, "type_id": kind}}));
            first.iter().map(piece).chain(texts).chain(last.iter().map(piece)).collect::<Vec<Json>>()
        };
        let (single, pair) = (around(&[("A", 0)]), around(&[("A", 0), ("B", 1)]));
        let defined = first.iter().chain(&last);
        let defined = defined.map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})));
        let defined: serde_json::Map<String, Json> = defined.collect();
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": defined});
        tokenizer.with_post_processor(Some(part::<tokenizers::PostProcessorWrapper>(template)?));
        Ok(())
    }
}

fn owned(vocabulary: &HashMap<&str, u32>) -> Vocab {
    // In any order: it is a map again.
    vocabulary.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect()
}

fn part<T: DeserializeOwned>(json: Json) -> Result<T, String> {
    serde_json::from_value(json).map_err(|error| error.to_string())
}

/// Every way to make a piece of two, those of higher scores first; of equal ones that of longer parts.
fn merges(tokens: &[&str], types: &[u64], scores: &[f64], vocabulary: &HashMap<&str, u32>) -> Merges {
    let is_normal = |part: &str| vocabulary.get(part).is_some_and(|id| types.get(*id as usize) == Some(&NORMAL));
    let mut found: Vec<(f64, &str, &str)> = Vec::new();
    for ((token, kind), score) in tokens.iter().zip(types).zip(scores) {
        if *kind != NORMAL {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        found.extend(cuts.filter(|(a, b)| is_normal(a) && is_normal(b)).map(|(a, b)| (*score, a, b)));
    }
    let longer = |a: &str, b: &str| b.chars().count().cmp(&a.chars().count());
    found.sort_by(|x, y| y.0.total_cmp(&x.0).then_with(|| longer(x.1, y.1)).then_with(|| longer(x.2, y.2)));
    found.into_iter().map(|(_, a, b)| (a.to_owned(), b.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::testing::Writer;
    use crate::text::chat::{ChatTemplate, Message};
    use crate::text::settings::{embed_settings, start_ids, stop_ids, suppressed_ids};
    use crate::text::tokenizer::{SpecialTokens, Tokenizer};

    fn i32s(values: &[i32]) -> Vec<Vec<u8>> {
        values.iter().map(|x| x.to_le_bytes().to_vec()).collect()
    }

    fn f32s(values: &[f32]) -> Vec<Vec<u8>> {
        values.iter().map(|x| x.to_le_bytes().to_vec()).collect()
    }

    fn open(writer: &Writer) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, writer.bytes()).unwrap();
        (folder, path)
    }

    /// What tokenizers of a kind are called.
    fn called(kind: Kind) -> String {
        let kinds = table().unwrap().kinds;
        kinds.into_iter().find(|(_, k)| *k == kind).unwrap().0
    }

    /// A file that cuts words before spaces.
    fn words() -> Writer {
        let table = table().unwrap().words;
        let plain = table.iter().find(|words| words.split.len() == 1 && words.split[0].starts_with("'s|'t")).unwrap();
        Writer::new().text("tokenizer.ggml.model", &called(Kind::Pairs)).text("tokenizer.ggml.pre", &plain.names[0])
    }

    fn pairs() -> Writer {
        words()
            .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "Ġ", "Ġab", "<|im_end|>", "<s>", "<u v>"])
            .list("tokenizer.ggml.token_type", 5, &i32s(&[1, 1, 1, 1, 1, 3, 3, 4]))
            .texts("tokenizer.ggml.merges", &["a b", "Ġ ab", "b b"])
            .u32("tokenizer.ggml.bos_token_id", 6)
            .u32("tokenizer.ggml.eos_token_id", 6)
    }

    #[test]
    fn pairs_of_bytes() {
        let (_folder, path) =
            open(&pairs().bool("tokenizer.ggml.add_bos_token", true).bool("tokenizer.ggml.add_eos_token", true));
        let tokenizer = Tokenizer::open(&path).unwrap();
        let ids = |text, special| tokenizer.encode(text, special).unwrap().ids;
        assert_eq!(ids("ab ab<u v>ba<|im_end|>", SpecialTokens::AsWritten), [2, 4, 7, 1, 0, 5]);
        assert_eq!(ids("ab", SpecialTokens::Add), [6, 2, 6]);
        assert_eq!(tokenizer.decode(&[6, 2, 4, 7, 5]).unwrap(), "ab ab<u v>");
        assert_eq!(stop_ids(&path).unwrap(), [6, 5]);
        let none = (start_ids(&path).unwrap(), suppressed_ids(&path).unwrap(), embed_settings(&path).unwrap());
        assert_eq!(none, (vec![], vec![], None));
        assert!(ChatTemplate::open(&path).unwrap().is_none());
    }

    #[test]
    fn pieces_and_their_spaces() {
        let pieces = |prefix: bool| {
            let tokens = ["<unk>", "<s>", "a", "b", "▁", "ab", "▁ab", "▁a", "<0x63>"];
            Writer::new()
                .text("tokenizer.ggml.model", &called(Kind::Pieces))
                .texts("tokenizer.ggml.tokens", &tokens)
                .list("tokenizer.ggml.scores", 6, &f32s(&[0., 0., -1., -2., -3., -4., -9., -5., 0.]))
                .list("tokenizer.ggml.token_type", 5, &i32s(&[2, 3, 1, 1, 1, 1, 1, 1, 6]))
                .u32("tokenizer.ggml.bos_token_id", 1)
                .u32("tokenizer.ggml.unknown_token_id", 0)
                .bool("tokenizer.ggml.add_space_prefix", prefix)
                .text(
                    "tokenizer.chat_template",
                    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ unk_token }}{% endfor %}",
                )
        };
        let (_folder, path) = open(&pieces(true));
        let tokenizer = Tokenizer::open(&path).unwrap();
        // `ab` is worth more than `▁a`, so that it is made first.
        assert_eq!(tokenizer.encode("ab c", SpecialTokens::Add).unwrap().ids, [1, 6, 4, 8]);
        assert_eq!(tokenizer.decode(&[1, 6, 4, 8]).unwrap(), "ab c");
        let template = ChatTemplate::open(&path).unwrap().unwrap();
        assert_eq!(template.render(&[Message::new("user", "hi")]).unwrap(), "<s>hi<unk>");
        let (_folder, path) = open(&pieces(false));
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(tokenizer.encode("ab ab", SpecialTokens::AsWritten).unwrap().ids, [5, 6]);
        assert_eq!(tokenizer.decode(&[6, 5]).unwrap(), " abab");
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        let model = || Writer::new().text("tokenizer.ggml.model", &called(Kind::Pairs));
        let twice = || model().texts("tokenizer.ggml.tokens", &["a", "a"]);
        let one = || model().texts("tokenizer.ggml.tokens", &["a"]);
        for (writer, problem) in [
            (Writer::new(), "it has no tokenizer"),
            (model(), "the metadata has no `tokenizer.ggml.tokens`"),
            (model().u32("tokenizer.ggml.tokens", 1), "`tokenizer.ggml.tokens` is 1, a list of texts was expected"),
            (twice(), "the tokens 0 and 1 are both `a`"),
            (one().list("tokenizer.ggml.token_type", 5, &i32s(&[1, 1])), "a number for each of 1 tokens was expected"),
            (one(), "the metadata has no `tokenizer.ggml.merges`"),
            (one().text("tokenizer.ggml.pre", "none"), "its words are cut as `none`; known are "),
            (
                Writer::new().text("tokenizer.ggml.model", "x").texts("tokenizer.ggml.tokens", &[]),
                "its tokenizer is `x`",
            ),
        ] {
            let (_folder, path) = open(&writer);
            let error = Tokenizer::open(&path).unwrap_err();
            assert!(error.to_string().contains(problem), "{problem} is not in: {error}");
        }
    }

    #[test]
    fn every_way_to_cut_words_is_one() {
        let table = table().unwrap();
        let mut names = std::collections::BTreeSet::new();
        for words in &table.words {
            for name in &words.names {
                assert!(names.insert(name.clone()), "{name} is there twice");
                let writer = Writer::new()
                    .text("tokenizer.ggml.model", &called(Kind::Pairs))
                    .text("tokenizer.ggml.pre", name)
                    .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "1", "Ġ", "!", "Ċ"])
                    .texts("tokenizer.ggml.merges", &["a b"]);
                let (_folder, path) = open(&writer);
                let tokenizer = Tokenizer::open(&path).unwrap();
                let text = "ab 1111 !\n ab";
                let ids = tokenizer.encode(text, SpecialTokens::AsWritten).unwrap().ids;
                assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
            }
        }
    }
}
