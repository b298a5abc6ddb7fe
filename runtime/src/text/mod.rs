//! Between people and tokens: tokenizer, chat template, sampler.

pub mod sampler;
