//! Coordinates of a planned frame: items in their layers, and the wires between them.
//!
//! Across: each layer in turn moves its items to where their wires are straight, as far as its order and the room between items allow (least
//! squares under an order is isotonic regression). Down: layers one after another, with a gap for the wires between them. Wires run straight
//! down, turn into a track of their own between two layers, and turn down again.
//!
//! `page.js` does the same sums in the same order, so that opening and closing a frame in a page and drawing it here agree: a test compares them.

use super::plan::{Item, Plan};

/// Room around what lies in a frame.
const PAD: f64 = 14.0;
/// Between two items of a layer.
const BESIDE: f64 = 26.0;
/// Beside a bend.
const BESIDE_BEND: f64 = 12.0;
/// Between a layer and the next, without tracks.
const BELOW: f64 = 24.0;
/// For labels of wires, where there are some.
const LABELS: f64 = 15.0;
/// What is less across is drawn straight down.
const STRAIGHT: f64 = 2.0;
/// From a track to the next.
const TRACK: f64 = 7.0;
/// From a lane outside of a frame to the next.
pub(super) const LANE: f64 = 8.0;
/// From a frame to the first lane at its left, and at its right, where sheets may lie behind it.
const ASIDE: (f64, f64) = (10.0, 18.0);

/// What placing needs to know of an item.
#[derive(Clone, Debug, Default)]
pub(in crate::view) struct Room {
    pub(in crate::view) width: f64,
    pub(in crate::view) height: f64,
    /// Where its ports are, from its middle.
    pub(in crate::view) tops: Vec<f64>,
    pub(in crate::view) bottoms: Vec<f64>,
    /// How far labels of its wires reach to the left and to the right of its middle.
    pub(in crate::view) labels: (f64, f64),
    /// Whether there are labels.
    pub(in crate::view) labelled: bool,
}

impl Room {
    fn left(&self) -> f64 {
        (self.width / 2.0).max(self.labels.0)
    }

    fn right(&self) -> f64 {
        (self.width / 2.0).max(self.labels.1)
    }
}

/// A placed frame. Coordinates count from its upper left corner.
#[derive(Clone, Debug, Default)]
pub(in crate::view) struct Placed {
    pub(in crate::view) width: f64,
    pub(in crate::view) height: f64,
    /// Middle of each item, across.
    pub(in crate::view) x: Vec<f64>,
    /// Top of each item.
    pub(in crate::view) y: Vec<f64>,
    /// For each link, where it begins, its track, and where it ends.
    pub(in crate::view) routes: Vec<Route>,
}

/// The way of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::view) struct Route {
    pub(in crate::view) from: (f64, f64),
    pub(in crate::view) track: f64,
    pub(in crate::view) to: (f64, f64),
}

/// Places the items of a frame with a header of the given height and at least the given width.
pub(in crate::view) fn place(plan: &Plan, rooms: &[Room], header: f64, least: f64) -> Placed {
    let mut x = across(plan, rooms);
    let inside: Vec<usize> = (0..x.len()).filter(|i| !plan.is_aside(*i)).collect();
    let left = inside.iter().map(|i| x[*i] - rooms[*i].left()).fold(f64::INFINITY, f64::min);
    let right = inside.iter().map(|i| x[*i] + rooms[*i].right()).fold(f64::NEG_INFINITY, f64::max);
    let (left, right) = if left <= right { (left, right) } else { (0.0, 0.0) };
    let width = (right - left + 2.0 * PAD).max(least).ceil();
    let shift = (width - (right - left)) / 2.0 - left;
    for (i, x) in x.iter_mut().enumerate() {
        let lane = plan.aside.get(i).copied().unwrap_or(0);
        *x = match lane.signum() {
            -1 => -ASIDE.0 + f64::from(lane + 1) * LANE,
            1 => width + ASIDE.1 + f64::from(lane - 1) * LANE,
            _ => *x + shift,
        };
    }
    let (y, height, routes) = down(plan, rooms, &x, header);
    Placed { width, height, x, y, routes }
}

/// The middle of each item that lies in the frame.
fn across(plan: &Plan, rooms: &[Room]) -> Vec<f64> {
    let n = plan.items.len();
    let mut x = vec![0.0; n];
    let inside = |layer: &Vec<usize>| layer.iter().copied().filter(|i| !plan.is_aside(*i)).collect();
    let layers: Vec<Vec<usize>> = plan.layers.iter().map(inside).collect();
    for layer in &layers {
        let mut at = 0.0;
        for (i, item) in layer.iter().enumerate() {
            if i > 0 {
                at += apart(plan, rooms, layer[i - 1], *item);
            }
            x[*item] = at;
        }
        for item in layer {
            x[*item] -= at / 2.0;
        }
    }
    let weight = |a: usize, b: usize| match (plan.items[a], plan.items[b]) {
        (Item::Bend, Item::Bend) => 8.0,
        (Item::Bend, _) | (_, Item::Bend) => 1.0,
        _ => 2.0,
    };
    let (mut above, mut below) = (vec![Vec::new(); n], vec![Vec::new(); n]);
    for link in plan.links.iter().filter(|l| !plan.is_aside(l.from.0) && !plan.is_aside(l.to.0)) {
        let offset = rooms[link.from.0].bottoms[link.from.1] - rooms[link.to.0].tops[link.to.1];
        let w = weight(link.from.0, link.to.0);
        above[link.to.0].push((link.from.0, offset, w));
        below[link.from.0].push((link.to.0, -offset, w));
    }
    let mut frame = Across { plan, rooms, layers, pins: vec![None; n] };
    let n_layers = frame.layers.len();
    for round in 0..20 {
        for step in 0..n_layers {
            frame.settle(&mut x, step, &above, round >= 12);
        }
        for step in (0..n_layers).rev() {
            frame.settle(&mut x, step, &below, round >= 12);
        }
    }
    // Where a chain of nodes and what passes beside it disagree, the chain is straight.
    for _ in 0..2 {
        for step in 0..n_layers {
            frame.settle(&mut x, step, &above, true);
        }
    }
    // Frames of one list have one middle, and everything else goes with them.
    for column in &plan.columns {
        let middle = column.iter().map(|i| x[*i]).sum::<f64>() / column.len() as f64;
        for item in column {
            frame.pins[*item] = Some(middle);
        }
    }
    for _ in 0..if plan.columns.is_empty() { 0 } else { 2 } {
        for step in (0..n_layers).rev() {
            frame.settle(&mut x, step, &below, true);
        }
        for step in 0..n_layers {
            frame.settle(&mut x, step, &above, true);
        }
    }
    for _ in 0..2 {
        frame.straighten(&mut x);
    }
    x
}

/// What moving items across needs to know.
struct Across<'p> {
    plan: &'p Plan,
    rooms: &'p [Room],
    /// Those of the plan, without what lies outside of the frame.
    layers: Vec<Vec<usize>>,
    /// Where items must be.
    pins: Vec<Option<f64>>,
}

/// What an item is linked to: the other item, where the wire is straight, and how much that matters.
type Neighbours = Vec<Vec<(usize, f64, f64)>>;

impl Across<'_> {
    /// Puts the bends of each value one below the other, where all of them have room.
    fn straighten(&self, x: &mut [f64]) {
        let (plan, rooms) = (self.plan, self.rooms);
        let mut beside = vec![(None, None); plan.items.len()];
        for layer in &self.layers {
            for pair in layer.windows(2) {
                beside[pair[0]].1 = Some(pair[1]);
                beside[pair[1]].0 = Some(pair[0]);
            }
        }
        let is_bend = |i: usize| plan.items[i] == Item::Bend && !plan.is_aside(i);
        for first in plan.links.iter().filter(|l| is_bend(l.to.0) && !is_bend(l.from.0)) {
            let mut chain = vec![first.to.0];
            while let Some(link) = plan.links.iter().find(|l| chain.last() == Some(&l.from.0) && is_bend(l.to.0)) {
                chain.push(link.to.0);
            }
            let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
            for bend in &chain {
                let (left, right): (Option<usize>, Option<usize>) = beside[*bend];
                low = left.map_or(low, |l| low.max(x[l] + apart(plan, rooms, l, *bend)));
                high = right.map_or(high, |r| high.min(x[r] - apart(plan, rooms, *bend, r)));
            }
            if low > high {
                continue;
            }
            // Straight below where it begins, or above where it ends, or as near as it was.
            let begins = x[first.from.0] + rooms[first.from.0].bottoms[first.from.1];
            let last = chain[chain.len() - 1];
            let end = plan.links.iter().find(|l| l.from.0 == last);
            let ends = end.map_or(begins, |l| x[l.to.0] + rooms[l.to.0].tops[l.to.1]);
            let mean = chain.iter().map(|b| x[*b]).sum::<f64>() / chain.len() as f64;
            let fits = |at: f64| low <= at && at <= high;
            let at = if fits(begins) {
                begins
            } else if fits(ends) {
                ends
            } else {
                mean.max(low).min(high)
            };
            for bend in chain {
                x[bend] = at;
            }
        }
    }

    /// Moves the items of a layer to where they want to be, in their order and with room between them.
    fn settle(&self, x: &mut [f64], layer: usize, side: &Neighbours, median: bool) {
        let items = &self.layers[layer];
        // Blocks of items that touch: wanted place of the first, weight, how many.
        let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
        let mut offsets = Vec::with_capacity(items.len());
        let mut offset = 0.0;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                offset += apart(self.plan, self.rooms, items[i - 1], *item);
            }
            offsets.push(offset);
            let wanted = wants(x, *item, side, median);
            // At the end what passes by makes way for nodes, and is straightened after that.
            let passes = median && self.plan.items[*item] == Item::Bend;
            let wanted = match self.pins[*item] {
                Some(pin) => (pin, 1.0e6),
                None if passes => (wanted.0, 0.0001),
                None => wanted,
            };
            let mut block = (wanted.0 - offset, wanted.1, 1);
            while let Some(last) = blocks.last().copied().filter(|last| last.0 > block.0) {
                blocks.pop();
                let weight = last.1 + block.1;
                block = ((last.0 * last.1 + block.0 * block.1) / weight, weight, last.2 + block.2);
            }
            blocks.push(block);
        }
        let mut i = 0;
        for (at, _, count) in blocks {
            for _ in 0..count {
                x[items[i]] = at + offsets[i];
                i += 1;
            }
        }
    }
}

/// Least distance of the middles of two neighbours in a layer.
fn apart(plan: &Plan, rooms: &[Room], a: usize, b: usize) -> f64 {
    let bend = plan.items[a] == Item::Bend || plan.items[b] == Item::Bend;
    let gap = if bend { BESIDE_BEND } else { BESIDE };
    rooms[a].right() + gap + rooms[b].left()
}

/// Where an item's wires would be straight, and how much that matters.
fn wants(x: &[f64], item: usize, side: &Neighbours, median: bool) -> (f64, f64) {
    let mut targets: Vec<(f64, f64)> = side[item].iter().map(|(other, offset, w)| (x[*other] + offset, *w)).collect();
    let total: f64 = targets.iter().map(|t| t.1).sum();
    if targets.is_empty() {
        return (x[item], 0.1);
    }
    if !median {
        return (targets.iter().map(|t| t.0 * t.1).sum::<f64>() / total, total);
    }
    targets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut sum = 0.0;
    for (i, (at, weight)) in targets.iter().enumerate() {
        sum += weight;
        if sum * 2.0 >= total {
            let tie = sum * 2.0 == total && i + 1 < targets.len();
            return (if tie { (at + targets[i + 1].0) / 2.0 } else { *at }, total);
        }
    }
    (x[item], total)
}

/// Tops of items, the height of the frame, and the ways of links.
fn down(plan: &Plan, rooms: &[Room], x: &[f64], header: f64) -> (Vec<f64>, f64, Vec<Route>) {
    let mut y = vec![0.0; plan.items.len()];
    let mut tracks = vec![0.0; plan.links.len()];
    let mut bottoms = vec![0.0; plan.layers.len()];
    let mut at = 0.0;
    for (l, layer) in plan.layers.iter().enumerate() {
        let is_border = |kind: Item| layer.iter().any(|i| plan.items[*i] == kind);
        if l == 0 && !is_border(Item::Entry) {
            at = header + if header > 0.0 { 4.0 } else { PAD };
        }
        let height = layer.iter().map(|i| rooms[*i].height).fold(0.0, f64::max);
        for item in layer {
            y[*item] = at + (height - rooms[*item].height) / 2.0;
        }
        bottoms[l] = at + height;
        at += height;
        let below: Vec<usize> = (0..plan.links.len()).filter(|k| layer.contains(&plan.links[*k].from.0)).collect();
        let levels = levels(plan, rooms, x, &below);
        let n_levels = levels.iter().max().map_or(0, |m| m + 1);
        let labels = below.iter().any(|k| rooms[plan.links[*k].from.0].labelled);
        let mut start = at + BELOW / 2.0 + if labels { LABELS } else { 0.0 };
        if is_border(Item::Entry) {
            start = at + header + 2.0;
        }
        for (k, level) in below.iter().zip(&levels) {
            tracks[*k] = start + *level as f64 * TRACK;
        }
        if l + 1 < plan.layers.len() {
            at = start + n_levels.max(1) as f64 * TRACK - TRACK + BELOW / 2.0;
        }
    }
    let ends_in_exit = plan.layers.last().is_some_and(|l| l.iter().any(|i| plan.items[*i] == Item::Exit));
    let height = if ends_in_exit { at } else { at + PAD };
    let routes = plan.links.iter().enumerate().map(|(k, link)| {
        let (a, b) = (link.from.0, link.to.0);
        Route {
            from: (x[a] + rooms[a].bottoms[link.from.1], y[a] + rooms[a].height),
            track: tracks[k],
            to: (x[b] + rooms[b].tops[link.to.1], y[b]),
        }
    });
    let routes = routes.collect();
    (y, height.ceil(), routes)
}

/// A track for each of the links below a layer: those of one port share it, others do not overlap on it.
fn levels(plan: &Plan, rooms: &[Room], x: &[f64], links: &[usize]) -> Vec<usize> {
    // For each port: the links, where they begin, and how far they reach.
    let mut buses: Vec<(usize, usize, f64, f64, f64)> = Vec::new();
    let mut of = Vec::new();
    for k in links {
        let link = &plan.links[*k];
        let from = x[link.from.0] + rooms[link.from.0].bottoms[link.from.1];
        let to = x[link.to.0] + rooms[link.to.0].tops[link.to.1];
        let found = buses.iter().position(|b| b.0 == link.from.0 && b.1 == link.from.1);
        let bus = found.unwrap_or_else(|| {
            buses.push((link.from.0, link.from.1, from, from, from));
            buses.len() - 1
        });
        buses[bus].3 = buses[bus].3.min(to);
        buses[bus].4 = buses[bus].4.max(to);
        of.push(bus);
    }
    let turns = |b: usize| buses[b].4 - buses[b].3 > STRAIGHT;
    let mut level = vec![0usize; buses.len()];
    for _ in 0..40 {
        let mut changed = false;
        for a in 0..buses.len() {
            for b in 0..buses.len() {
                if a == b || !turns(a) || !turns(b) {
                    continue;
                }
                // A wire that begins where another ends must turn first.
                let ends_there = links.iter().zip(&of).any(|(k, bus)| {
                    let link = &plan.links[*k];
                    *bus == b && (x[link.to.0] + rooms[link.to.0].tops[link.to.1] - buses[a].2).abs() < 3.0
                });
                let overlap = buses[a].3 < buses[b].4 + 4.0 && buses[b].3 < buses[a].4 + 4.0;
                if ends_there && level[b] <= level[a] && level[a] < 12 {
                    level[b] = level[a] + 1;
                    changed = true;
                } else if overlap && a < b && level[a] == level[b] {
                    level[b] += 1;
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    of.into_iter().map(|bus| level[bus]).collect()
}

/// A tenth of a pixel.
pub(in crate::view) fn tenth(v: f64) -> f64 {
    (v * 10.0 + 0.5).floor() / 10.0
}

/// A link as path data.
pub(in crate::view) fn path(route: &Route) -> String {
    let (x1, y1, x2, y2) = (tenth(route.from.0), tenth(route.from.1), tenth(route.to.0), tenth(route.to.1));
    let dx = x2 - x1;
    if dx.abs() < STRAIGHT {
        return format!("M{x2} {y1}V{y2}");
    }
    let t = tenth(route.track);
    let r = 6f64.min(dx.abs() / 2.0).min((t - y1).max(0.0)).min((y2 - t).max(0.0));
    let s = if dx > 0.0 { r } else { -r };
    let (a, b) = (tenth(x1 + s), tenth(x2 - s));
    let (up, low) = (tenth(t - r), tenth(t + r));
    format!("M{x1} {y1}V{up}Q{x1} {t} {a} {t}H{b}Q{x2} {t} {x2} {low}V{y2}")
}

#[cfg(test)]
mod tests {
    use super::super::plan::Link;
    use super::*;

    fn room(width: f64, tops: usize, bottoms: usize) -> Room {
        Room { width, height: 20.0, tops: vec![0.0; tops], bottoms: vec![0.0; bottoms], ..Room::default() }
    }

    #[test]
    fn a_chain_is_straight_and_items_do_not_overlap() {
        let link = |a, b| Link { from: (a, 0), to: (b, 0), value: a };
        let plan = Plan {
            items: (0..5).map(Item::Node).collect(),
            layers: vec![vec![0], vec![1, 2, 3], vec![4]],
            links: vec![link(0, 1), link(0, 2), link(0, 3), link(2, 4)],
            tops: vec![vec![], vec![0], vec![0], vec![0], vec![2]],
            bottoms: vec![vec![0], vec![], vec![2], vec![], vec![]],
            ..Plan::default()
        };
        let rooms = [room(40.0, 0, 1), room(90.0, 1, 0), room(30.0, 1, 1), room(60.0, 1, 0), room(40.0, 1, 0)];
        let placed = place(&plan, &rooms, 0.0, 0.0);
        assert!((placed.x[2] - placed.x[4]).abs() < 0.5, "{placed:?}");
        for pair in plan.layers[1].windows(2) {
            let (a, b) = (pair[0], pair[1]);
            assert!(placed.x[b] - placed.x[a] >= rooms[a].width / 2.0 + rooms[b].width / 2.0 + BESIDE - 0.01);
        }
        assert!(placed.y.windows(2).all(|w| w[0] <= w[1] + 0.01));
        assert!(placed.width > 90.0 + 30.0 + 60.0);
    }

    #[test]
    fn frames_of_a_list_have_one_middle_and_what_passes_by_is_outside() {
        // Two frames whose wires come in at the left and leave at the right; a value that only the third item reads.
        let link = |a, b, value| Link { from: (a, 0), to: (b, 0), value };
        let mut plan = Plan {
            items: vec![
                Item::Entry,
                Item::Frame(1),
                Item::Frame(2),
                Item::Node(0),
                Item::Entry,
                Item::Bend,
                Item::Bend,
            ],
            layers: vec![vec![4, 0], vec![5, 1], vec![6, 2], vec![3]],
            links: vec![link(0, 1, 0), link(1, 2, 1), link(2, 3, 2), link(4, 5, 3), link(5, 6, 3)],
            tops: vec![vec![], vec![0], vec![1], vec![2, 3], vec![], vec![3], vec![3]],
            bottoms: vec![vec![0], vec![1], vec![2], vec![], vec![3], vec![3], vec![3]],
            aside: vec![0, 0, 0, 0, -1, -1, -1],
            columns: vec![vec![1, 2]],
        };
        plan.links.push(Link { from: (6, 0), to: (3, 1), value: 3 });
        let frame = Room { tops: vec![-40.0], bottoms: vec![40.0], ..room(100.0, 1, 1) };
        let rooms = [
            room(0.0, 0, 1),
            frame.clone(),
            frame,
            room(40.0, 2, 0),
            room(0.0, 0, 1),
            room(0.0, 1, 1),
            room(0.0, 1, 1),
        ];
        let placed = place(&plan, &rooms, 26.0, 0.0);
        assert!((placed.x[1] - placed.x[2]).abs() < 0.01, "{placed:?}");
        assert!([4, 5, 6].iter().all(|i| placed.x[*i] == -ASIDE.0), "{placed:?}");
        assert!(placed.x[1] - 50.0 >= PAD - 0.01 && placed.width >= 100.0 + 2.0 * PAD, "{placed:?}");
        // It turns in right above what reads it.
        let turn = placed.routes[5];
        assert!(turn.from.0 < 0.0 && turn.to.0 > 0.0 && turn.track > placed.y[2] + 20.0, "{turn:?}");
    }
}
