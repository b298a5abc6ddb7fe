//! What lies in a frame and in which layer: everything about a drawing but coordinates.
//!
//! Each frame is planned by itself. A child frame is one item whose ports are the values that enter and leave it; a value that crosses
//! layers passes a bend in each, shared by all that read it further down. Plans do not depend on which frames are open.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::path::split_last;
use crate::view::scene::Scene;

/// Something with a place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::view) enum Item {
    /// A node of the scene.
    Node(usize),
    /// A frame of the scene.
    Frame(usize),
    /// Where a value passes a layer.
    Bend,
    /// Where a value comes into the frame.
    Entry,
    /// Where a value leaves the frame.
    Exit,
}

/// A piece of a wire from a layer to the next.
#[derive(Clone, Copy, Debug)]
pub(in crate::view) struct Link {
    /// Item and its port at the bottom.
    pub(in crate::view) from: (usize, usize),
    /// Item and its port at the top.
    pub(in crate::view) to: (usize, usize),
    /// The value on it.
    pub(in crate::view) value: usize,
}

/// A value: a result of a node that something reads.
#[derive(Clone, Debug)]
pub(in crate::view) struct Value {
    pub(in crate::view) node: usize,
    pub(in crate::view) readers: Vec<usize>,
    /// The first wire of it.
    pub(in crate::view) wire: usize,
}

/// The plan of a frame.
#[derive(Clone, Debug, Default)]
pub(in crate::view) struct Plan {
    pub(in crate::view) items: Vec<Item>,
    /// Items from left to right, layers from top to bottom.
    pub(in crate::view) layers: Vec<Vec<usize>>,
    pub(in crate::view) links: Vec<Link>,
    /// Values at the ports of each item: at the top and at the bottom, from left to right.
    pub(in crate::view) tops: Vec<Vec<usize>>,
    /// See `tops`.
    pub(in crate::view) bottoms: Vec<Vec<usize>>,
    /// For each item, 0, or the lane outside of the frame in which its value passes by what does not read it: -1, -2, .. at the left, 1, 2, ..
    /// at the right, counted from the frame.
    pub(in crate::view) aside: Vec<i32>,
    /// Frames of one list that lie one below the other.
    pub(in crate::view) columns: Vec<Vec<usize>>,
}

impl Plan {
    /// Whether an item lies outside of the frame.
    pub(in crate::view) fn is_aside(&self, item: usize) -> bool {
        self.aside.get(item).is_some_and(|lane| *lane != 0)
    }
}

/// The values of a scene, in the order of their nodes.
pub(in crate::view) fn values(scene: &Scene) -> Vec<Value> {
    let mut by: BTreeMap<(usize, usize), Value> = BTreeMap::new();
    for (wire, w) in scene.wires.iter().enumerate() {
        let value = by.entry(w.from).or_insert_with(|| Value { node: w.from.0, readers: Vec::new(), wire });
        if !value.readers.contains(&w.to.0) {
            value.readers.push(w.to.0);
        }
    }
    by.into_values().collect()
}

/// The item of a frame that a node is, or lies in; `None` outside.
fn item_of(scene: &Scene, frame: usize, node: usize) -> Option<Item> {
    let at = scene.nodes[node].frame;
    if at == frame {
        return Some(Item::Node(node));
    }
    let mut below = at;
    while let Some(parent) = scene.frames[below].parent {
        if parent == frame {
            return Some(Item::Frame(below));
        }
        below = parent;
    }
    None
}

/// Plans a frame: items, layers in the order in which things were written, and links.
pub(super) fn plan(scene: &Scene, values: &[Value], frame: usize) -> Plan {
    let mut plan = Plan::default();
    let mut index: BTreeMap<(u8, usize), usize> = BTreeMap::new();
    let key = |item: Item, value: usize| match item {
        Item::Node(n) => (0, n),
        Item::Frame(f) => (1, f),
        Item::Entry => (2, value),
        Item::Exit => (3, value),
        Item::Bend => (4, value),
    };
    let mut add = |plan: &mut Plan, item: Item, value: usize| {
        *index.entry(key(item, value)).or_insert_with(|| {
            plan.items.push(item);
            plan.tops.push(Vec::new());
            plan.bottoms.push(Vec::new());
            plan.items.len() - 1
        })
    };
    for node in 0..scene.nodes.len() {
        if let Some(item) = item_of(scene, frame, node) {
            add(&mut plan, item, 0);
        }
    }
    // Which item each value comes from, and which read it here.
    let mut flows: Vec<(usize, usize, Vec<usize>)> = Vec::new();
    for (v, value) in values.iter().enumerate() {
        let readers: Vec<Option<Item>> = value.readers.iter().map(|r| item_of(scene, frame, *r)).collect();
        let from = item_of(scene, frame, value.node);
        let mut targets = Vec::new();
        for reader in readers.iter().flatten().filter(|r| Some(**r) != from) {
            let target = add(&mut plan, *reader, v);
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if from.is_some() && readers.contains(&None) {
            targets.push(add(&mut plan, Item::Exit, v));
        }
        if targets.is_empty() {
            continue;
        }
        let source = add(&mut plan, from.unwrap_or(Item::Entry), v);
        plan.bottoms[source].push(v);
        for target in &targets {
            plan.tops[*target].push(v);
        }
        flows.push((v, source, targets));
    }
    let ranks = ranks(&plan, &flows);
    let n_layers = ranks.iter().max().map_or(0, |m| m + 1);
    plan.layers = vec![Vec::new(); n_layers];
    for (item, rank) in ranks.iter().enumerate() {
        plan.layers[*rank].push(item);
    }
    plan.columns = columns(scene, &plan, &ranks);
    for (v, source, targets) in flows {
        let mut at = source;
        let last = targets.iter().map(|t| ranks[*t]).max().unwrap_or(0);
        // What nothing in the first layer reads does not cross the header: it comes in beside its readers.
        let is_aside = plan.items[source] == Item::Entry && targets.iter().all(|t| ranks[*t] > ranks[source] + 1);
        plan.aside.resize(plan.items.len(), 0);
        plan.aside[source] = i32::from(is_aside);
        for rank in ranks[source] + 1..=last {
            let port = |list: &[usize]| list.iter().position(|x| *x == v).unwrap_or(0);
            for target in targets.iter().filter(|t| ranks[**t] == rank) {
                let to = (*target, port(&plan.tops[*target]));
                plan.links.push(Link { from: (at, port(&plan.bottoms[at])), to, value: v });
            }
            if rank < last {
                let bend = plan.items.len();
                plan.items.push(Item::Bend);
                plan.aside.push(i32::from(is_aside));
                plan.tops.push(vec![v]);
                plan.bottoms.push(vec![v]);
                plan.layers[rank].push(bend);
                plan.links.push(Link { from: (at, port(&plan.bottoms[at])), to: (bend, 0), value: v });
                at = bend;
            }
        }
    }
    plan
}

/// Frames of one list, such as groups of layers, of which each has a layer for itself.
fn columns(scene: &Scene, plan: &Plan, ranks: &[usize]) -> Vec<Vec<usize>> {
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    let element =
        |path: &str| Some(split_last(path)).filter(|(_, name)| is_number(name)).map(|(list, _)| list.to_owned());
    let lists: BTreeSet<String> = scene.frames.iter().filter_map(|f| element(&f.path)).collect();
    let mut columns: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, item) in plan.items.iter().enumerate() {
        let Item::Frame(frame) = item else { continue };
        let path = &scene.frames[*frame].path;
        if let Some(list) = element(path).or_else(|| lists.get(path).cloned()) {
            columns.entry(list).or_default().push(i);
        }
    }
    let apart = |items: &Vec<usize>| items.iter().map(|i| ranks[*i]).collect::<BTreeSet<_>>().len() == items.len();
    columns.into_values().filter(|items| items.len() > 1 && apart(items)).collect()
}

/// The layer of each item: as far down as what it reads asks for; what reads little is drawn near its reader.
fn ranks(plan: &Plan, flows: &[(usize, usize, Vec<usize>)]) -> Vec<usize> {
    let n = plan.items.len();
    let edges: BTreeSet<(usize, usize)> =
        flows.iter().flat_map(|(_, s, targets)| targets.iter().map(|t| (*s, *t))).collect();
    let (mut next, mut before) = (vec![Vec::new(); n], vec![Vec::new(); n]);
    let mut waits = vec![0; n];
    for (a, b) in &edges {
        next[*a].push(*b);
        before[*b].push(*a);
        waits[*b] += 1;
    }
    let base = usize::from(plan.items.contains(&Item::Entry));
    let first = |i: usize| if plan.items[i] == Item::Entry { 0 } else { base };
    let mut rank: Vec<usize> = (0..n).map(first).collect();
    let mut ready: Vec<usize> = (0..n).filter(|i| waits[*i] == 0).collect();
    let mut order = Vec::new();
    while let Some(i) = ready.pop() {
        order.push(i);
        for t in &next[i] {
            rank[*t] = rank[*t].max(rank[i] + 1);
            waits[*t] -= 1;
            if waits[*t] == 0 {
                ready.push(*t);
            }
        }
    }
    let last = (0..n).filter(|i| plan.items[*i] != Item::Exit).map(|i| rank[i] + 1).max().unwrap_or(0);
    for (rank, item) in rank.iter_mut().zip(&plan.items) {
        if *item == Item::Exit {
            *rank = last;
        }
    }
    // What has more readers' than operands' wires moves down to its readers: wires become shorter.
    for i in order.iter().rev() {
        if plan.items[*i] == Item::Entry || plan.items[*i] == Item::Exit || next[*i].is_empty() {
            continue;
        }
        let lowest = next[*i].iter().map(|t| rank[*t]).min().unwrap_or(0).saturating_sub(1);
        if plan.bottoms[*i].len() > before[*i].len() && lowest > rank[*i] {
            rank[*i] = lowest;
        }
    }
    rank
}
