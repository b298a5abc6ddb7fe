//! Stages for people and programs: drawings, tables, JSON.
//!
//! ```text
//! Program ──flatten──▶ atoms ──frames──▶ Scene ──layout──▶ Layout ──svg, html──▶ text
//!         └─survey─▶ facts ──▶ tables and block diagrams
//! ```

mod beside;
mod caches;
mod compare;
mod compare_text;
mod cost;
mod describe;
mod dot;
mod flatten;
mod fold;
mod formula;
mod frames;
mod html;
mod json;
mod layout;
mod magnitude;
mod manual;
mod scene;
mod survey;
mod svg;
mod units;

pub use self::beside::side_by_side;
pub use self::caches::{CacheFact, Keep, MaskFact, cache_json, cache_text, caches, in_short};
pub use self::compare::{DiffLine, compare};
pub use self::compare_text::{diff_json, diff_text};
pub use self::dot::dot;
pub use self::html::html;
pub use self::json::json;
pub use self::magnitude::{bytes, digits, thousands};
pub use self::manual::{codes, contents, explain, page};
pub use self::scene::{Cost, Frame, Kind, Mark, Node, Repeat, Scene, Shape, Weight, Wire};
pub use self::survey::{Fact, Survey, survey, survey_html, survey_json, survey_svg, survey_text};
pub use self::svg::svg;

use crate::arch::Arch;
use crate::diagnostic::SourceMap;
use crate::graph::Program;
use crate::passes;

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// The program at the stage that is drawn; see [`recognised`] for `arch`.
    pub program: &'s Program,
    /// The expanded card, which names what modules are instances of.
    pub arch: Option<&'s Arch>,
    /// The texts that equations stand in.
    pub sources: Option<&'s SourceMap>,
    /// `arch`, `graph` or `fused`: what is left out and what begins closed.
    pub stage: &'s str,
    /// Whether equal layers are drawn once.
    pub folded: bool,
}

/// A program with attentions and norms recognised and nothing else done to it: what the drawing of an architecture is made from.
pub fn recognised(program: &Program) -> Program {
    let mut program = program.clone();
    let wanted = ["fold_constants", "dead_code", "fuse_attention", "fuse_norm"];
    for pass in passes::pipeline().into_iter().filter(|p| wanted.contains(&p.name())) {
        pass.run(&mut program);
    }
    program
}

/// What a program's drawing shows; of the graphs in `only` alone when given.
///
/// # Errors
/// A program that is too large to be drawn, in words.
pub fn scene_of(subject: &Subject<'_>, only: Option<&[usize]>) -> Result<Scene, String> {
    let atoms = flatten::flatten(subject, only).map_err(|_| {
        format!("the drawing would have more than {} boxes; draw one layer, or the architecture", flatten::MAX_ATOMS)
    })?;
    Ok(frames::scene(subject, atoms))
}
