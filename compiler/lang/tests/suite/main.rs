//! Tests of graphs, the interpreter and the passes on hand-written programs and generated ones.

mod cards;
mod generated;
mod graph;
mod mask;
mod passes;
mod support;
