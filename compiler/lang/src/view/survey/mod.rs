//! Models side by side as surveys of architectures draw them: a table of facts and a block diagram of each, told from the graphs alone.
//!
//! ```text
//! Program ──model (layer, attention, feed, scalar)──▶ Survey ──facts──▶ rows ──table──▶ text, JSON
//!                                                          └──figure──▶ Scene ──page──▶ SVG, HTML
//! ```

mod attention;
mod body;
mod facts;
mod feed;
mod figure;
mod layer;
mod mixer;
mod model;
mod page;
mod scalar;
mod spread;
mod streams;
mod table;
mod words;
mod work;

pub use self::facts::Fact;
pub use self::model::{Survey, survey};
pub use self::page::{survey_html, survey_svg};
pub use self::table::{survey_json, survey_text};
