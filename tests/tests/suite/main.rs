//! Every suite, in one binary: one module a stage of the pipeline, and one for each part of the harness.

mod ablation;
mod architectures;
mod artifact;
mod bench;
mod cards;
mod case;
mod cases;
mod commands;
mod compare;
mod compiled;
mod completions;
mod costs;
mod differential;
mod embeddings;
mod eval;
mod fill;
mod fuzz;
mod interpreter;
mod interrupted;
mod programs;
mod readme;
mod taps;
mod targets;
mod tidy;
mod tiny;
mod verify;
