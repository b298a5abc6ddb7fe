//! Between people and tokens: tokenizer, chat template, end tokens, sampler.

mod gguf;
pub mod tokenizer;
pub mod chat;
pub mod settings;
pub mod sampler;
mod time;

pub(crate) use time::format_utc;
