//! What the interpreter must do for compiled code to be held to it: in each step, the arithmetic that the plan says.
//!
//! A plan may multiply weights in groups of integers as bf16 in some phases (`Variant::multiplies`), which rounds otherwise than the program: what tokens bring is
//! rounded to bf16, not to integers of 8 bits. Steps in such phases are interpreted so, product by product, and what they leave in caches is read by the steps behind them.

use std::collections::{BTreeMap, BTreeSet};

use xfc_lang::graph::Program;
use xfc_lang::passes::quantise::{QuantiseError, multiply_halves};
use xfc_runtime::artifact::manifest::{BufferRef, Launch, Manifest, Products};

use crate::inputs::{self, Inputs};
use crate::subject::Cuts;

/// Parameters, by absolute path, whose products multiply bf16 where the program says integers of 8 bits.
pub type Halves = BTreeSet<String>;

/// The program with these products in bf16.
///
/// # Errors
/// As [`multiply_halves`].
pub fn with_halves(program: &Program, halves: &Halves) -> Result<Program, QuantiseError> {
    let mut program = program.clone();
    multiply_halves(&mut program, &|path| halves.contains(path))?;
    Ok(program)
}

/// Whether a plan multiplies bf16 in some phase where the program says otherwise.
pub fn departs(manifest: &Manifest) -> bool {
    manifest.launches.iter().flat_map(|launch| &launch.variants).any(|variant| variant.multiplies.is_some())
}

/// The products of a step that multiply bf16, where it adds so many elements to each axis and all outputs are wanted.
pub fn halves_of(manifest: &Manifest, added: &[u64]) -> Halves {
    let phase = |launch: &Launch| {
        let rows = added.get(launch.axis).copied().unwrap_or(0) * launch.times;
        (rows > 0).then(|| manifest.phases.iter().position(|phase| phase.max_rows.is_none_or(|most| rows <= most)))?
    };
    let is_half = |launch: &&Launch| {
        let variant = phase(launch).and_then(|phase| launch.variants.get(phase));
        variant.is_some_and(|variant| variant.multiplies == Some(Products::Half))
    };
    let weights = |launch: &Launch| {
        let weight =
            |operand: &BufferRef| if let BufferRef::Weight(id) = operand { manifest.weights.get(*id) } else { None };
        launch.operands.iter().filter_map(weight).flat_map(|w| &w.sources).map(|s| s.path.clone()).collect::<Vec<_>>()
    };
    manifest.launches.iter().filter(is_half).flat_map(weights).collect()
}

/// The same of each step of sequences that are cut so.
pub fn of_steps(manifest: &Manifest, sequences: &[&Inputs], cuts: &Cuts) -> Vec<Halves> {
    let n_steps = cuts.iter().map(Vec::len).max().unwrap_or(0);
    let mut starts = vec![0; sequences.len()];
    let mut known: BTreeMap<Vec<u64>, Halves> = BTreeMap::new();
    let step = |step: usize| {
        let mut added = vec![0; manifest.axes.len()];
        for (s, inputs) in sequences.iter().enumerate() {
            let n = cuts[s].get(step).copied().unwrap_or(0);
            for (axis, added) in added.iter_mut().enumerate() {
                // Other axes come with the first part.
                *added += match (axis, n > 0 && starts[s] == 0) {
                    (0, _) => n,
                    (_, true) => inputs::length(manifest, inputs, axis),
                    (_, false) => 0,
                };
            }
            starts[s] += n;
        }
        known.entry(added).or_insert_with_key(|added| halves_of(manifest, added)).clone()
    };
    (0..n_steps).map(step).collect()
}
