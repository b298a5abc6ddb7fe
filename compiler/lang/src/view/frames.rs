//! Atoms into boxes: the frames of a scene follow instance paths, and no two frames depend on each other.
//!
//! A module that is applied twice, or whose parts were fused into its neighbours, may not be one box: what would make boxes wait for each
//! other, and what does not hang together, becomes a box of its own with the same name. A box around a single node is that node.

use std::collections::{BTreeMap, BTreeSet};

use super::Subject;
use super::flatten::{Atom, Module};
use super::scene::{Cost, Frame, Kind, Mark, Scene, Wire};
use crate::arch;

/// Boxes of a scene while they are made.
struct Boxes {
    frames: Vec<Frame>,
    /// By atom: its frame.
    of: Vec<usize>,
    /// By frame: the atoms in it and in the frames in it.
    members: Vec<Vec<usize>>,
    readers: Vec<Vec<usize>>,
    operands: Vec<Vec<usize>>,
}

/// Puts atoms into frames.
pub(super) fn scene(subject: &Subject<'_>, atoms: Vec<Atom>) -> Scene {
    let mut readers = vec![Vec::new(); atoms.len()];
    for (i, atom) in atoms.iter().enumerate() {
        for (from, ..) in &atom.reads {
            readers[*from].push(i);
        }
    }
    let operands = atoms.iter().map(|a| a.reads.iter().map(|r| r.0).collect()).collect();
    let root = Frame { name: subject.program.name.clone(), ..Frame::default() };
    let mut boxes = Boxes { frames: vec![root], of: Vec::new(), members: vec![Vec::new()], readers, operands };
    for (atom, Atom { modules, .. }) in atoms.iter().enumerate() {
        boxes.of.push(0);
        for module in modules {
            let parent = boxes.of[atom];
            let frame = boxes.enter(atom, parent, module);
            boxes.of[atom] = frame;
            boxes.members[frame].push(atom);
        }
    }
    for frame in (1..boxes.frames.len()).rev() {
        boxes.split(frame);
    }
    let mut scene = Scene { title: subject.program.name.clone(), stage: subject.stage.to_owned(), ..Scene::default() };
    let mut wires = Vec::new();
    for (i, atom) in atoms.iter().enumerate() {
        for (operand, (from, port, label)) in atom.reads.iter().enumerate() {
            wires.push(Wire { from: (*from, *port), to: (i, operand), label: label.clone(), mark: Mark::Same });
        }
    }
    scene.nodes = atoms.into_iter().zip(&boxes.of).map(|(a, f)| super::scene::Node { frame: *f, ..a.node }).collect();
    scene.frames = boxes.frames;
    scene.wires = wires;
    name_modules(&mut scene, subject);
    simplify(&mut scene);
    name_products(&mut scene);
    sum(&mut scene);
    close(&mut scene);
    scene
}

impl Boxes {
    fn around(&self, frame: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(frame), |f| self.frames[*f].parent)
    }

    /// The frame of a module under `parent` that an atom can join, else a new one.
    fn enter(&mut self, atom: usize, parent: usize, module: &Module) -> usize {
        let same = |f: &Frame| {
            f.parent == Some(parent) && f.name == module.name && f.repeat == module.repeat && f.slices == module.slices
        };
        let candidates: Vec<usize> = (1..self.frames.len()).rev().filter(|f| same(&self.frames[*f])).collect();
        let found = candidates.into_iter().find(|f| !self.waits_for(atom, *f, parent));
        found.unwrap_or_else(|| {
            self.members.push(Vec::new());
            self.frames.push(Frame {
                parent: Some(parent),
                name: module.name.clone(),
                path: module.path.clone(),
                repeat: module.repeat.clone(),
                slices: module.slices.clone(),
                ..Frame::default()
            });
            self.frames.len() - 1
        })
    }

    /// What `atom` is in the eyes of `parent`: the frame right below it that the atom lies in, or the atom itself.
    fn below(&self, atom: usize, parent: usize) -> Result<usize, usize> {
        self.around(self.of[atom]).take_while(|f| *f != parent).last().ok_or(atom)
    }

    /// Whether an atom reads, through something outside of `frame`, what lies in `frame`: siblings count as wholes.
    fn waits_for(&self, atom: usize, frame: usize, parent: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut stack: Vec<usize> =
            self.operands[atom].iter().copied().filter(|o| self.below(*o, parent) != Ok(frame)).collect();
        while let Some(at) = stack.pop() {
            if !seen.insert(at) {
                continue;
            }
            let whole: Vec<usize> = match self.below(at, parent) {
                Ok(sibling) if sibling == frame => return true,
                Ok(sibling) if self.around(self.of[at]).any(|f| f == parent) => self.members[sibling].clone(),
                _ => vec![at],
            };
            for member in whole {
                seen.insert(member);
                stack.extend(self.operands[member].iter().copied());
            }
        }
        false
    }

    /// Makes each part of a frame that hangs together a frame of its own.
    fn split(&mut self, frame: usize) {
        let members: BTreeSet<usize> = self.members[frame].iter().copied().collect();
        let mut parts: Vec<BTreeSet<usize>> = Vec::new();
        let mut seen = BTreeSet::new();
        for atom in &members {
            let (mut part, mut stack) = (BTreeSet::new(), vec![*atom]);
            while let Some(at) = stack.pop() {
                if !members.contains(&at) || !seen.insert(at) {
                    continue;
                }
                part.insert(at);
                stack.extend(self.readers[at].iter().chain(&self.operands[at]).copied());
            }
            if !part.is_empty() {
                parts.push(part);
            }
        }
        for part in parts.into_iter().skip(1) {
            // Frames below were split already: each lies in one part.
            let copy = self.frames.len();
            self.frames.push(self.frames[frame].clone());
            self.members[frame].retain(|a| !part.contains(a));
            self.members.push(part.iter().copied().collect());
            let inner: BTreeSet<usize> = part.iter().filter_map(|a| self.below(*a, frame).ok()).collect();
            for child in inner {
                self.frames[child].parent = Some(copy);
            }
            for atom in part {
                if self.of[atom] == frame {
                    self.of[atom] = copy;
                }
            }
        }
    }
}

/// What each frame is an instance of, from the expanded card.
fn name_modules(scene: &mut Scene, subject: &Subject<'_>) {
    let Some(arch) = subject.arch else { return };
    let mut known: BTreeMap<&str, &arch::Node> = BTreeMap::new();
    let mut stack = vec![&arch.root];
    while let Some(node) = stack.pop() {
        known.insert(&node.path, node);
        stack.extend(&node.children);
    }
    for frame in &mut scene.frames {
        frame.module = match known.get(frame.path.as_str()) {
            Some(node) if !frame.path.is_empty() => {
                let options: Vec<String> = node.options.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                format!("{}({})", node.module, options.join(", "))
            }
            _ => String::new(),
        };
    }
}

/// A product with the matrices of several modules is called after all of them.
fn name_products(scene: &mut Scene) {
    if scene.stage != "fused" {
        return;
    }
    for node in scene.nodes.iter_mut().filter(|n| n.kind == Kind::Product) {
        let mut owners: Vec<&str> = Vec::new();
        for weight in node.weights.iter().filter(|w| w.ty.contains(',')) {
            let owner = weight.path.rsplit('.').nth(1).unwrap_or_default();
            if !owner.is_empty() && !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        if owners.len() > 1 {
            node.title = owners.join(" + ");
        }
    }
}

/// Removes frames around nothing but one node, and around nothing but one frame.
fn simplify(scene: &mut Scene) {
    let n = scene.frames.len();
    let mut gone = vec![false; n];
    // Inner frames first: a frame's number is larger than its parent's, but for the parts of split ones.
    let mut order: Vec<usize> = (1..n).collect();
    order.sort_by_key(|f| std::cmp::Reverse(scene.around(*f).count()));
    for frame in order {
        let nodes: Vec<usize> = (0..scene.nodes.len()).filter(|i| scene.nodes[*i].frame == frame).collect();
        let frames: Vec<usize> = (0..n).filter(|f| scene.frames[*f].parent == Some(frame)).collect();
        let parent = scene.frames[frame].parent.unwrap_or(0);
        let repeats = scene.frames[frame].repeat.is_some();
        match (&nodes[..], &frames[..]) {
            ([node], []) if !repeats => {
                let (name, module) = (scene.frames[frame].name.clone(), scene.frames[frame].module.clone());
                let is_arch = scene.stage == "arch";
                let node = &mut scene.nodes[*node];
                node.frame = parent;
                if node.kind != Kind::Cache && node.kind != Kind::Input {
                    let mut title = std::mem::replace(&mut node.title, name);
                    let definition = module.split('(').next().unwrap_or_default();
                    if is_arch && !definition.is_empty() {
                        title = definition.to_owned();
                    }
                    if node.title != title {
                        node.lines.insert(0, title);
                    }
                    node.shape = super::scene::Shape::Card;
                    if !module.is_empty() {
                        node.facts.insert(0, ("module".into(), module));
                    }
                }
                gone[frame] = true;
            }
            ([], [inner]) if !repeats || scene.frames[*inner].repeat.is_none() => {
                let outer = scene.frames[frame].clone();
                let inner = &mut scene.frames[*inner];
                inner.parent = Some(parent);
                if inner.repeat.is_none() || outer.repeat.is_none() {
                    inner.name = format!("{}.{}", outer.name, inner.name);
                }
                inner.repeat = inner.repeat.take().or(outer.repeat);
                if inner.slices.is_empty() {
                    inner.slices = outer.slices;
                }
                gone[frame] = true;
            }
            ([], []) => gone[frame] = true,
            _ => {}
        }
    }
    // Outer before inner, in the order of their first nodes.
    let first = |frame: usize| (0..scene.nodes.len()).find(|i| scene.is_in(scene.nodes[*i].frame, frame));
    let mut kept: Vec<usize> = (0..n).filter(|f| !gone[*f]).collect();
    kept.sort_by_key(|f| (scene.around(*f).count(), first(*f), *f));
    let place: BTreeMap<usize, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    let frames = kept.iter().map(|f| {
        let frame = scene.frames[*f].clone();
        Frame { parent: frame.parent.and_then(|p| place.get(&p).copied()), ..frame }
    });
    scene.frames = frames.collect();
    for node in &mut scene.nodes {
        node.frame = place.get(&node.frame).copied().unwrap_or(0);
    }
}

/// Parameters and arithmetic of each frame: of all the layers that it stands for.
fn sum(scene: &mut Scene) {
    for frame in 0..scene.frames.len() {
        let mut weights: BTreeMap<String, u64> = BTreeMap::new();
        let mut cost = Cost::default();
        for node in scene.nodes.iter().filter(|n| scene.is_in(n.frame, frame)) {
            // Repeats around the frame itself do not count: it is drawn once for each of them.
            let inside = scene.around(node.frame).take_while(|f| Some(*f) != scene.frames[frame].parent);
            let repeats: Vec<_> = inside.filter_map(|f| scene.frames[f].repeat.as_ref()).collect();
            let times = repeats.iter().map(|r| r.times).fold(1, u64::saturating_mul);
            let instances = repeats.iter().map(|r| r.instances).fold(1, u64::saturating_mul);
            cost = cost.plus(node.cost, times as f64);
            for weight in &node.weights {
                let n = if weight.shared { weight.elements } else { weight.elements.saturating_mul(instances) };
                let known = weights.entry(weight.path.clone()).or_default();
                *known = (*known).max(n);
            }
        }
        scene.frames[frame].parameters = weights.values().fold(0, |a, b| a.saturating_add(*b));
        scene.frames[frame].cost = cost;
    }
}

/// In the drawing of an architecture, modules without modules in them begin closed.
fn close(scene: &mut Scene) {
    if scene.stage != "arch" {
        return;
    }
    for frame in 1..scene.frames.len() {
        let is_leaf = scene.frames.iter().all(|f| f.parent != Some(frame));
        let path = scene.frames[frame].path.clone();
        let plain = scene
            .nodes
            .iter()
            .filter(|n| n.frame == frame)
            .all(|n| n.path == path && !matches!(n.kind, Kind::Cache | Kind::Attention));
        scene.frames[frame].closed = is_leaf && plain && scene.frames[frame].repeat.is_none();
    }
}
