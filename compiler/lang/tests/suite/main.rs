//! Tests of graphs, the interpreter and the passes on hand-written programs and generated ones.

mod graph;
mod passes;
mod support;
