//! What the user wrote, with positions: cards, their equations, and the module library.
//!
//! ```text
//! card.yaml ──tree──▶ Node ──yaml_to_spec──▶ Spec        lib/*.xf ──xf_to_spec──▶ Vec<Item>
//!                          └─ wiring ──xf_to_spec──▶ Vec<Item>
//! ```
//!
//! Everything is read before anything is said: a card's mistakes in data and in grammar are reported together.

pub mod ast;
mod extends;
mod gguf;
mod library;
mod names;
mod nesting;
mod paths;
mod published;
mod rewire;
mod syntax_error;
mod tree;
mod xf_exprs;
mod xf_to_spec;
mod yaml_to_spec;

use std::sync::Arc;

pub use self::gguf::{Facts, GgufPlace, gguf_config, pick_gguf_card};
pub use self::library::{Library, load_card, pick_card};
pub use self::names::{NameRule, Names, StoredDim, Target};
pub use self::published::{ActiveCounts, Count, Published};
pub use self::rewire::apply_sets;
pub use self::tree::{Datum, Key, Node, NodeKind, parse_yaml};
pub use self::xf_to_spec::{Origin, parse_items};
pub use self::yaml_to_spec::parse_card;

use crate::diagnostic::{Diagnostic, SourceMap, Span};

/// A card.
#[derive(Clone, Debug)]
pub struct Spec {
    /// All texts: the library's and the card's.
    pub sources: SourceMap,
    /// The card's number among them.
    pub source: u32,
    /// The number of the first that is not of the library: the card, what it extends, and what `--set` says come from there on.
    pub first_card: u32,
    /// For people.
    pub name: Arc<str>,
    /// Where the architecture is described: a paper.
    pub reference: Option<Arc<str>>,
    /// Which config.json files it serves.
    pub matches: Matches,
    /// The released model that the plain sizes describe.
    pub published: Option<Published>,
    /// The sizes in order.
    pub sizes: Vec<Size>,
    /// Config keys whose other values would change the result: key, value, place.
    pub assumes: Vec<(Key, Datum)>,
    /// Config keys, and where GGUF files have their values, first found wins.
    pub gguf: Vec<(Key, Vec<GgufPlace>)>,
    /// Sizes of its tiny model, where they are not left to be derived: key, value.
    pub tiny: Vec<(Key, Datum)>,
    /// The equations.
    pub wiring: Vec<ast::Item>,
    /// Where the equations stand.
    pub wiring_span: Span,
    /// Checkpoint names, one a format: `hf`, `gguf`.
    pub names: Vec<(Arc<str>, Names)>,
    /// The items of the library.
    pub library: Arc<Vec<ast::Item>>,
    /// What is wrong with it and left it readable (keys that do not exist, names of nothing): refused when it is expanded, with what is wrong in the wiring.
    pub mistakes: Vec<Diagnostic>,
}

impl Spec {
    /// What was written, whole: the card, and behind it as further documents what it extends and what was set.
    pub fn text(&self) -> String {
        let mut sources = (self.first_card..).map_while(|i| self.sources.get(i));
        let mut text = sources.next().map(|s| s.text.to_string()).unwrap_or_default();
        for source in sources {
            let end = if text.ends_with('\n') { "" } else { "\n" };
            text = format!("{text}{end}---\n# {}\n{}", source.name, source.text);
        }
        text
    }
}

/// Which config.json files a card serves.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// Values of `model_type`.
    pub model_type: Vec<Arc<str>>,
    /// Keys by which a config without a `model_type` is known: it has all of them.
    pub keys: Vec<Arc<str>>,
    /// Values of `general.architecture` in GGUF files.
    pub gguf: Vec<Arc<str>>,
    /// Keys that such a file has besides, where another card serves those without them.
    pub gguf_keys: Vec<Arc<str>>,
    /// Key of the config under which the sizes lie.
    pub under: Option<Arc<str>>,
    /// Whether they may lie at the top too.
    pub optional: bool,
}

/// A size: what it is in the published model and where a config has it.
#[derive(Clone, Debug)]
pub struct Size {
    /// Its name, config.json's own.
    pub name: Arc<str>,
    /// The place of the name.
    pub span: Span,
    /// The published model's value, used without a config.
    pub example: Option<Datum>,
    /// What it is where a config lacks it.
    pub default: Option<Datum>,
    /// Whether a config may lack it, which makes it `none`.
    pub optional: bool,
    /// Whether there may be a list of such values instead: one a layer.
    pub list: bool,
    /// Where a config may have it, first found wins. Empty: under its own name.
    pub from: Vec<Place>,
}

/// Where a config may have a size.
#[derive(Clone, Debug)]
pub enum Place {
    /// Under a key; dots lead into mappings.
    Key(Arc<str>),
    /// A mapping made of several keys; `...` merges one.
    Mapping(Vec<(Arc<str>, Arc<str>)>),
}
