//! Places for everything in a scene: a layered drawing, made from the inside out.
//!
//! Given a [`Scene`], [`layout`] returns a [`Layout`]: a [`Plan`] for each frame, which does not depend on what is open, the size of each node,
//! and coordinates for the frames that are open at first. A page makes the coordinates again when frames are opened and closed.

pub(super) mod measure;
pub(super) mod place;
pub(super) mod plan;
mod order;

use self::measure::Block;
use self::place::{Placed, Room, place};
use self::plan::{Item, Plan, Value, plan, values};
use super::scene::{Scene, Shape};

/// A drawn scene.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// All values, in the order of their nodes.
    pub(super) values: Vec<Value>,
    /// A plan for each frame.
    pub(super) plans: Vec<Plan>,
    /// Lines and size of each node.
    pub(super) nodes: Vec<Block>,
    /// Lines and size of each frame when it is closed.
    pub(super) closed: Vec<Block>,
    /// Least width and height of the header of each frame.
    pub(super) headers: Vec<(f64, f64)>,
    /// Coordinates of each frame, as if open.
    pub(super) placed: Vec<Placed>,
}

/// Lays a scene out.
pub(super) fn layout(scene: &Scene) -> Layout {
    let values = values(scene);
    let n = scene.frames.len();
    let mut plans: Vec<Plan> = (0..n).map(|f| plan(scene, &values, f)).collect();
    // Frames come after those around them: inside out, then outside in with the entries where the outside has them, then inside out again.
    for frame in (0..n).rev() {
        take_ports(scene, &mut plans, frame);
        order::order(&mut plans[frame], false);
        order::choose_lanes(&mut plans[frame]);
        order::order(&mut plans[frame], false);
    }
    for frame in 0..n {
        if frame > 0 {
            arrange_entries(scene, &mut plans, frame);
        }
        order::order(&mut plans[frame], frame > 0);
    }
    for frame in (0..n).rev() {
        take_ports(scene, &mut plans, frame);
    }
    let nodes: Vec<Block> = scene.nodes.iter().map(measure::node).collect();
    let inside = |f: usize| scene.nodes.iter().filter(|n| scene.is_in(n.frame, f)).count();
    let closed: Vec<Block> = (0..n).map(|f| measure::closed(&scene.frames[f], inside(f))).collect();
    let headers: Vec<(f64, f64)> = (0..n)
        .map(|f| if f == 0 { (0.0, 0.0) } else { (measure::header(&scene.frames[f]), measure::HEADER) })
        .collect();
    let mut layout = Layout { values, plans, nodes, closed, headers, placed: vec![Placed::default(); n] };
    for frame in (0..n).rev() {
        let rooms: Vec<Room> = (0..layout.plans[frame].items.len()).map(|i| layout.room(scene, frame, i)).collect();
        let (least, header) = layout.headers[frame];
        layout.placed[frame] = place(&layout.plans[frame], &rooms, header, least);
    }
    layout
}

impl Layout {
    /// The room that an item of a frame takes, child frames as they are at first.
    fn room(&self, scene: &Scene, frame: usize, item: usize) -> Room {
        let plan = &self.plans[frame];
        let (n_tops, n_bottoms) = (plan.tops[item].len(), plan.bottoms[item].len());
        let mut room = match plan.items[item] {
            Item::Bend | Item::Entry | Item::Exit => {
                Room { tops: vec![0.0; n_tops], bottoms: vec![0.0; n_bottoms], ..Room::default() }
            }
            Item::Node(node) => {
                let block = &self.nodes[node];
                let sign = scene.nodes[node].shape == Shape::Sign;
                let ports = |n: usize| if sign { vec![0.0; n] } else { spread(n, block.width) };
                Room {
                    width: block.width,
                    height: block.height,
                    tops: ports(n_tops),
                    bottoms: ports(n_bottoms),
                    ..Room::default()
                }
            }
            Item::Frame(child) if scene.frames[child].closed => {
                let block = &self.closed[child];
                Room {
                    width: block.width,
                    height: block.height,
                    tops: spread(n_tops, block.width),
                    bottoms: spread(n_bottoms, block.width),
                    ..Room::default()
                }
            }
            Item::Frame(child) => {
                let (inner, placed) = (&self.plans[child], &self.placed[child]);
                let at = |kind: Item| {
                    let layers = inner.layers.iter().flatten();
                    layers.filter(|i| inner.items[**i] == kind).map(|i| placed.x[*i] - placed.width / 2.0).collect()
                };
                Room {
                    width: placed.width,
                    height: placed.height,
                    tops: at(Item::Entry),
                    bottoms: at(Item::Exit),
                    ..Room::default()
                }
            }
        };
        room.labels = self.reach(scene, frame, item, &room);
        if let Item::Frame(_) = plan.items[item] {
            // Wires that come in beside their readers pass outside.
            for port in &room.tops {
                room.labels = (room.labels.0.max(place::LANE - port), room.labels.1.max(place::LANE + port));
            }
        }
        room.labelled = !self.labels(frame, item).is_empty();
        room
    }

    /// How far the labels below an item reach to the left and to the right of its middle.
    fn reach(&self, scene: &Scene, frame: usize, item: usize, room: &Room) -> (f64, f64) {
        let mut reach = (0.0f64, 0.0f64);
        for (port, value, side) in self.labels(frame, item) {
            let width = measure::mono(&scene.wires[self.values[value].wire].label, LABEL) + 8.0;
            match side {
                Side::Left => reach.0 = reach.0.max(width - room.bottoms[port]),
                Side::Right => reach.1 = reach.1.max(width + room.bottoms[port]),
            }
        }
        reach
    }

    /// The values whose types stand below an item, with their ports: below what makes them, in each frame in which something reads
    /// them, and on entering the frame that does. Of several, the first at its left and the last at its right.
    pub(super) fn labels(&self, frame: usize, item: usize) -> Vec<(usize, usize, Side)> {
        let plan = &self.plans[frame];
        if !matches!(plan.items[item], Item::Node(_) | Item::Frame(_)) {
            return Vec::new();
        }
        let is_read = |value: usize| {
            let mut links = plan.links.iter().filter(|l| l.value == value);
            links.any(|l| matches!(plan.items[l.to.0], Item::Node(_) | Item::Frame(_)))
        };
        let ports = plan.bottoms[item].iter().copied().enumerate();
        let read: Vec<(usize, usize)> = ports.filter(|(_, v)| is_read(*v)).collect();
        match read[..] {
            [] => Vec::new(),
            [(port, value)] => vec![(port, value, Side::Right)],
            [(a, v), .., (b, w)] => vec![(a, v, Side::Left), (b, w, Side::Right)],
        }
    }
}

/// On which side of its wire a label stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Size of the labels of wires.
pub(super) const LABEL: f64 = 9.5;

/// Ports side by side around the middle.
fn spread(n: usize, width: f64) -> Vec<f64> {
    let gap = 26f64.min((width - 16.0) / (n.max(2) - 1) as f64);
    (0..n).map(|i| (i as f64 - (n as f64 - 1.0) / 2.0) * gap).collect()
}

/// Gives the child frames of a frame the ports that were decided inside them.
fn take_ports(scene: &Scene, plans: &mut [Plan], frame: usize) {
    for item in 0..plans[frame].items.len() {
        let Item::Frame(child) = plans[frame].items[item] else { continue };
        debug_assert_eq!(scene.frames[child].parent, Some(frame));
        let inner = &plans[child];
        let of = |kind: Item, ports: &[Vec<usize>]| -> Vec<usize> {
            let items = inner.layers.iter().flatten().filter(|i| inner.items[**i] == kind);
            items.filter_map(|i| ports[*i].first().copied()).collect()
        };
        let (tops, bottoms) = (of(Item::Entry, &inner.bottoms), of(Item::Exit, &inner.tops));
        plans[frame].tops[item] = tops;
        plans[frame].bottoms[item] = bottoms;
    }
    order::relink(&mut plans[frame]);
}

/// Puts the entries of a frame in the order in which the frame around it brings their values.
fn arrange_entries(scene: &Scene, plans: &mut [Plan], frame: usize) {
    let Some(parent) = scene.frames[frame].parent else { return };
    let outer = &plans[parent];
    let Some(item) = outer.items.iter().position(|i| *i == Item::Frame(frame)) else { return };
    let place = |value: usize| {
        let link = outer.links.iter().find(|l| l.to.0 == item && l.value == value)?;
        let layer = outer.layers.iter().find(|l| l.contains(&link.from.0))?;
        Some((layer.iter().position(|i| *i == link.from.0)?, link.from.1))
    };
    let inner = &plans[frame];
    let Some(mut first) = inner.layers.first().cloned() else { return };
    if !first.iter().all(|i| inner.items[*i] == Item::Entry) {
        return;
    }
    first.sort_by_key(|i| inner.bottoms[*i].first().and_then(|v| place(*v)));
    plans[frame].layers[0] = first;
    order::put_aside(&mut plans[frame]);
}
