//! The checkpoint's chat template: messages to the text that the model was trained on.
//!
//! Read from `chat_template.jinja`, else from `tokenizer_config.json`; or from a GGUF file. Templates are written for Python's jinja2 as Hugging Face transformers sets it up: blocks
//! trimmed, loop controls, Python's string and dictionary methods, `raise_exception`, `strftime_now`, `tojson` without HTML escapes.

use super::gguf::TextFile;
use super::time;
use crate::error::{Result, RuntimeError};
use crate::gguf::is_gguf_file;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`... as written.
    tokens: BTreeMap<String, String>,
    path: String,
}

impl ChatTemplate {
    /// The template of a checkpoint folder or a GGUF file, or `None` where it has none.
    ///
    /// # Errors
    /// It cannot be read or is not a template.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        if is_gguf_file(folder) {
            let found = TextFile::open(folder)?.template();
            return found.map(|(source, tokens)| Self::new(&source, tokens, folder.display().to_string())).transpose();
        }
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path)?.unwrap_or(Json::Null);
        let file = folder.join("chat_template.jinja");
        let (source, path) = match std::fs::read_to_string(&file) {
            Ok(text) => (text, file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match template_in(&config) {
                Some(text) => (text.to_owned(), config_path),
                None => return Ok(None),
            },
            Err(error) => return Err(RuntimeError::io(&file, "read", error)),
        };
        Self::new(&source, special_tokens(&config), path.display().to_string()).map(Some)
    }

    /// A template from its text; `tokens` are the special tokens that it may name, `path` is for messages.
    ///
    /// # Errors
    /// It is not a template.
    pub fn new(source: &str, tokens: BTreeMap<String, String>, path: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| time::format_utc(&format, SystemTime::now()));
        let result = environment.add_template_owned(NAME, without_generation_marks(source));
        result.map_err(|error| invalid(&path, &error))?;
        Ok(Self { environment, tokens, path })
    }

    /// The text of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    /// The template refuses it (many want user and assistant to alternate) or fails.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let fixed = minijinja::context! { messages => messages, add_generation_prompt => true };
        let context = minijinja::context! { ..fixed, ..Value::from_serialize(&self.tokens) };
        let template = self.environment.get_template(NAME).map_err(|error| invalid(&self.path, &error))?;
        template.render(context).map_err(|error| invalid(&self.path, &error))
    }

    /// The token that ends an answer, as written.
    pub fn eos_token(&self) -> Option<&str> {
        self.tokens.get("eos_token").map(String::as_str)
    }
}

fn invalid(path: &str, error: &Error) -> RuntimeError {
    let place = error.line().map(|line| format!(", line {line} of the template")).unwrap_or_default();
    RuntimeError::input(
        path,
        format!("the chat template fails: {error}{place}"),
        "give the prompt as it is, without `--chat`",
    )
}

/// The contents of a JSON file; `None` where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Option<Json>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RuntimeError::io(path, "read", error)),
    };
    let invalid = |error: serde_json::Error| {
        RuntimeError::input(path.display().to_string(), format!("is not JSON: {error}"), "download the file again")
    };
    crate::json::parse(&text).map(Some).map_err(invalid)
}

/// `chat_template`: a string, or a list of named ones of which `default` is taken.
fn template_in(config: &Json) -> Option<&str> {
    match config.get("chat_template")? {
        Json::String(text) => Some(text),
        Json::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
            default.or(named.first())?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// `bos_token` and the like: strings, or objects with `content`.
fn special_tokens(config: &Json) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
    let text = |value: &Json| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    entries.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

/// `{% generation %}` marks what a model is trained on and renders as nothing.
fn without_generation_marks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + len + 2];
        let word = tag[2..len].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        if word == "generation" || word == "endgeneration" {
            // A comment trims white space just as the tag does.
            result.push_str(&rest[..start]);
            result.push_str(&tag.replacen("{%", "{#", 1).replace("%}", "#}"));
        } else {
            result.push_str(&rest[..start + len + 2]);
        }
        rest = &rest[start + len + 2..];
    }
    result.push_str(rest);
    result
}

/// `tojson(indent=None)`, as `json.dumps(ensure_ascii=False)` writes it.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted and without effect: the values of a conversation have no other order.
    let _: Option<bool> = kwargs.get("sort_keys")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter)).map_err(failed)?
        }
    }
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// A space after commas and colons.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let messages = [Message::new("system", "Be <brief>."), Message::new("user", "  Hi ")];
        ChatTemplate::new(source, tokens, "chat_template.jinja".into())?.render(&messages)
    }

    #[test]
    fn renders_as_templates_expect() {
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'system' %}\n[{{ message.content }}]\n  {% else %}\n{% generation %}{{ message['content'].strip() + '!' }}{% endgeneration %}\n  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(render(source).unwrap(), "<s>[Be <brief>.]\nHi!>");
        assert_eq!(render("{{ messages[0] | tojson }}").unwrap(), r#"{"role": "system", "content": "Be <brief>."}"#);
        assert_eq!(render("{{ [1, 2] | tojson(indent=1) }}").unwrap(), "[\n 1,\n 2\n]");
        assert_eq!(
            render("{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}")
                .unwrap(),
            "system"
        );
        assert_eq!(render("{{ tools is defined }}{% if nothing %}x{% endif %}").unwrap().to_lowercase(), "false");
        assert_eq!(render("{{ strftime_now('%Y') | length }}").unwrap(), "4");
    }

    #[test]
    fn refusals_are_reported() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(render("{% if %}").is_err());
    }

    #[test]
    fn is_found_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ChatTemplate::open(folder.path()).unwrap().is_none());
        let config = r#"{"eos_token": {"content": "<e>"}, "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d{{ eos_token }}"}]}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
        assert_eq!((template.render(&[]).unwrap().as_str(), template.eos_token()), ("d<e>", Some("<e>")));
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(ChatTemplate::open(folder.path()).unwrap().unwrap().render(&[]).unwrap(), "file");
    }
}
