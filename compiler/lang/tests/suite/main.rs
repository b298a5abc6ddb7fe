//! Tests of graphs, the interpreter and the passes on hand-written programs and generated ones.

#![expect(clippy::unwrap_used, reason = "what fails to unwrap here is a failed test")]

mod cards;
mod errors;
mod generated;
mod graph;
mod language;
mod mask;
mod messages;
mod passes;
mod reject;
mod scan;
mod support;
mod survey;
mod view;
