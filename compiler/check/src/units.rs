//! The matrices of a model in units that are held in one way, and the plan that holds each unit as it is said.
//!
//! A unit's name is the path of its parameters, without `weight` at the end: `layers.3.mlp.down_proj`. A number behind the first one is any
//! number, so that experts that are listed one by one are one unit.

use std::collections::{BTreeMap, BTreeSet};

use xfc_lang::graph::blocks::Blocks;
use xfc_lang::graph::path::components;
use xfc_lang::passes::quantise::{Matrices, Plan};

/// How fine units are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// A kind of matrix over all layers.
    Kind,
    /// A kind of matrix over a quarter of the layers.
    #[default]
    Block,
    /// A matrix of one layer.
    Module,
}

/// Blocks of layers.
const BLOCKS: usize = 4;

/// Matrices that are held in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// For people: `layers.{0..8}.mlp.down_proj`.
    pub name: String,
    /// Its matrices.
    pub matrices: Vec<Matrices>,
}

impl Unit {
    /// Elements of its matrices.
    pub fn weights(&self) -> u64 {
        self.matrices.iter().map(|m| m.rows * m.columns).sum()
    }

    /// Bits of its matrices in blocks, scales and minima counted; where they are not, `plain` for each weight.
    pub fn bits(&self, blocks: Option<Blocks>, plain: u64) -> u64 {
        let of = |m: &Matrices| blocks.map_or(m.rows * m.columns * plain, |b| m.rows * b.row_bytes(m.columns) * 8);
        self.matrices.iter().map(of).sum()
    }
}

/// A path with `*` for its numbers, and the first of those.
fn kind(path: &str) -> (Vec<String>, Option<u64>) {
    let mut first = None;
    let of = |component: &str| {
        let number = component.parse::<u64>().ok();
        first = first.or(number);
        if number.is_some() || component.starts_with('{') { "*".to_owned() } else { component.to_owned() }
    };
    let kind: Vec<String> = components(path).map(of).collect();
    (kind, first)
}

/// Without `weight` at the end.
fn short(mut pattern: Vec<String>) -> Vec<String> {
    if pattern.len() > 1 && pattern.last().is_some_and(|last| last == "weight") {
        pattern.pop();
    }
    pattern
}

/// The units of matrices, in their order. Matrices of one product are in one unit.
pub fn units(matrices: &[Matrices], grain: Grain) -> Vec<Unit> {
    let mut layers: BTreeMap<Vec<String>, BTreeSet<u64>> = BTreeMap::new();
    for path in matrices.iter().flat_map(|m| &m.paths) {
        let (kind, layer) = kind(path);
        layers.entry(kind).or_default().extend(layer);
    }
    let name = |path: &str| {
        let (mut pattern, layer) = kind(path);
        let Some(layer) = layer else { return short(pattern).join(".") };
        let all: Vec<u64> = layers[&pattern].iter().copied().collect();
        let block = |i: usize| i * BLOCKS / all.len();
        let own = all.iter().position(|l| *l == layer).map_or(0, block);
        let of_block: Vec<u64> = all.iter().enumerate().filter(|(i, _)| block(*i) == own).map(|(_, l)| *l).collect();
        let number = match (grain, of_block.as_slice()) {
            (Grain::Kind, _) => return short(pattern).join("."),
            (Grain::Block, [first, .., last]) => format!("{{{first}..{}}}", last + 1),
            _ => layer.to_string(),
        };
        // The layer's number is the first number.
        let at = components(path).position(|component| component.parse::<u64>().is_ok());
        if let Some(place) = at.and_then(|at| pattern.get_mut(at)) {
            *place = number;
        }
        short(pattern).join(".")
    };
    let mut named: Vec<(BTreeSet<String>, Vec<Matrices>)> = Vec::new();
    for m in matrices {
        let mut names: BTreeSet<String> = m.paths.iter().map(|path| name(path)).collect();
        let mut own = vec![m.clone()];
        // All that share a name with it are one.
        let mut place = named.len();
        for i in (0..named.len()).rev() {
            if !named[i].0.is_disjoint(&names) {
                let (more, before) = named.remove(i);
                names.extend(more);
                own.splice(0..0, before);
                place = i;
            }
        }
        named.insert(place, (names, own));
    }
    let unit = |(names, matrices): (BTreeSet<String>, _)| Unit {
        name: names.into_iter().collect::<Vec<_>>().join(" + "),
        matrices,
    };
    named.into_iter().map(unit).collect()
}

/// The plan that holds each unit as it is said. It begins with what most weights are held in, goes on with kinds of which most are held in
/// another way, and ends with single matrices.
pub fn plan(units: &[Unit], held: &[Option<Blocks>]) -> Plan {
    // Each path with what it is held in, and its weights.
    let mut wanted: Vec<(&str, Option<Blocks>, u64)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (unit, blocks) in units.iter().zip(held) {
        for m in &unit.matrices {
            let new = m.paths.iter().filter(|path| seen.insert(path.as_str()));
            wanted.extend(new.map(|path| (path.as_str(), *blocks, m.rows * m.columns / m.paths.len() as u64)));
        }
    }
    let mut plan = Plan::all(most(&wanted));
    let mut kinds: Vec<Vec<String>> = Vec::new();
    for (path, ..) in &wanted {
        let kind = kind(path).0;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.sort_by_key(Vec::len);
    for of in kinds {
        let own: Vec<_> = wanted.iter().filter(|(path, ..)| kind(path).0 == of).copied().collect();
        let usual = most(&own);
        if own.iter().any(|(path, ..)| plan.of(path) != usual) {
            plan.add(short(of), usual);
        }
    }
    // Short paths first: a pattern fits what is longer than itself, never what is shorter.
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|i| components(wanted[*i].0).count());
    let mut said = BTreeSet::new();
    for _ in 0..2 * wanted.len() {
        let Some(&i) = order.iter().find(|i| plan.of(wanted[**i].0) != wanted[**i].1) else { break };
        let (path, blocks, _) = wanted[i];
        let any = |component: &str| if component.starts_with('{') { "*" } else { component }.to_owned();
        let pattern: Vec<String> = components(path).map(any).collect();
        // The whole path where what is short for it has met another one.
        plan.add(if said.insert(i) { short(pattern) } else { pattern }, blocks);
    }
    plan
}

/// What most weights are held in.
fn most(held: &[(&str, Option<Blocks>, u64)]) -> Option<Blocks> {
    let mut sums: BTreeMap<Option<Blocks>, u64> = BTreeMap::new();
    for (_, blocks, weights) in held {
        *sums.entry(*blocks).or_default() += weights;
    }
    sums.into_iter().max_by_key(|(_, weights)| *weights).and_then(|(blocks, _)| blocks)
}
