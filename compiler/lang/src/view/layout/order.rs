//! The order of items in their layers: few crossings, by sweeps over the layers (Sugiyama, Tagawa and Toda 1981).
//!
//! Given a plan, it permutes its layers and the ports of its nodes; the ports of child frames are given by what was decided inside them. The
//! best order seen is kept, the first of equals, so that the same plan always gives the same order.

use std::collections::BTreeMap;

use super::plan::{Item, Plan};

/// Sweeps down and up.
const SWEEPS: usize = 12;

/// Orders the layers. The order of the first layer stays when `keep_first`.
pub(super) fn order(plan: &mut Plan, keep_first: bool) {
    let mut best = plan.layers.clone();
    let mut fewest = crossings(plan);
    for sweep in 0..SWEEPS {
        let n = plan.layers.len();
        let down = sweep % 2 == 0;
        let layers: Vec<usize> = if down { (1..n).collect() } else { (0..n.saturating_sub(1)).rev().collect() };
        for layer in layers {
            if !(keep_first && layer == 0) {
                sort(plan, layer, down);
            }
        }
        exchange(plan, keep_first);
        put_aside(plan);
        let now = crossings(plan);
        if now < fewest {
            (fewest, best) = (now, plan.layers.clone());
        }
    }
    plan.layers = best;
    put_aside(plan);
    ports(plan);
}

/// Chooses, for each value that passes by outside of the frame, the side that it is nearer to, and its lane: what goes further down is further out.
pub(super) fn choose_lanes(plan: &mut Plan) {
    // For each value: the layer that it ends in, and the sum and number of its places across, each between 0 and 1.
    let mut ways: BTreeMap<usize, (usize, f64, usize)> = BTreeMap::new();
    for (l, layer) in plan.layers.iter().enumerate() {
        for (i, item) in layer.iter().enumerate().filter(|(_, item)| plan.is_aside(**item)) {
            let (end, sum, n) = ways.entry(plan.bottoms[*item][0]).or_default();
            (*end, *sum, *n) = (l, *sum + (i as f64 + 0.5) / layer.len() as f64, *n + 1);
        }
    }
    let mut ways: Vec<(usize, usize, bool)> =
        ways.into_iter().map(|(value, (end, sum, n))| (end, value, sum / n as f64 > 0.5)).collect();
    ways.sort_unstable();
    let mut lanes: BTreeMap<usize, i32> = BTreeMap::new();
    for (_, value, right) in ways {
        let taken = lanes.values().filter(|lane| (**lane > 0) == right).count() as i32 + 1;
        lanes.insert(value, if right { taken } else { -taken });
    }
    for item in 0..plan.aside.len() {
        if plan.aside[item] != 0 {
            plan.aside[item] = plan.bottoms[item].first().and_then(|v| lanes.get(v)).copied().unwrap_or(0);
        }
    }
}

/// Puts what passes by outside of the frame at the ends of the layers.
pub(super) fn put_aside(plan: &mut Plan) {
    let Plan { layers, aside, .. } = plan;
    for layer in layers {
        layer.sort_by_key(|item| aside.get(*item).copied().unwrap_or(0));
    }
}

/// Place of each item in its layer.
fn places(plan: &Plan) -> Vec<f64> {
    let mut places = vec![0.0; plan.items.len()];
    for layer in &plan.layers {
        for (i, item) in layer.iter().enumerate() {
            places[*item] = i as f64;
        }
    }
    places
}

/// A port's place: items count 1, ports are fractions.
fn port(places: &[f64], list: &[Vec<usize>], (item, port): (usize, usize)) -> f64 {
    places[item] + (port as f64 + 1.0) / (list[item].len() as f64 + 1.0)
}

/// Sorts a layer by the mean place of what its items are linked to above or below.
fn sort(plan: &mut Plan, layer: usize, by_above: bool) {
    let places = places(plan);
    let mut sums = vec![(0.0, 0.0); plan.items.len()];
    for link in &plan.links {
        if by_above {
            let (sum, n) = &mut sums[link.to.0];
            *sum += port(&places, &plan.bottoms, link.from);
            *n += 1.0;
        } else {
            let (sum, n) = &mut sums[link.from.0];
            *sum += port(&places, &plan.tops, link.to);
            *n += 1.0;
        }
    }
    let wanted = |i: usize| if sums[i].1 > 0.0 { sums[i].0 / sums[i].1 } else { places[i] + 0.5 };
    plan.layers[layer].sort_by(|a, b| wanted(*a).total_cmp(&wanted(*b)));
}

/// Exchanges neighbours where that removes crossings.
fn exchange(plan: &mut Plan, keep_first: bool) {
    for layer in usize::from(keep_first)..plan.layers.len() {
        // Wide layers are left to the sweeps.
        for _ in 0..if plan.layers[layer].len() > 40 { 0 } else { 4 } {
            let mut changed = false;
            for i in 1..plan.layers[layer].len() {
                let before = crossings_at(plan, layer);
                plan.layers[layer].swap(i - 1, i);
                if crossings_at(plan, layer) < before {
                    changed = true;
                } else {
                    plan.layers[layer].swap(i - 1, i);
                }
            }
            if !changed {
                break;
            }
        }
    }
}

fn crossings(plan: &Plan) -> usize {
    (1..plan.layers.len()).map(|l| crossings_above(plan, l, &places(plan))).sum()
}

fn crossings_at(plan: &Plan, layer: usize) -> usize {
    let places = places(plan);
    let above = if layer > 0 { crossings_above(plan, layer, &places) } else { 0 };
    let below = if layer + 1 < plan.layers.len() { crossings_above(plan, layer + 1, &places) } else { 0 };
    above + below
}

/// Crossings of the links that end in a layer.
fn crossings_above(plan: &Plan, layer: usize, places: &[f64]) -> usize {
    let here = |item: usize| plan.layers[layer].contains(&item);
    // Ports of a node can still be exchanged, so only those of frames count.
    let frame = |item: usize| matches!(plan.items[item], Item::Frame(_));
    let ends: Vec<(f64, f64)> = plan
        .links
        .iter()
        .filter(|l| here(l.to.0))
        .map(|l| {
            let from = if frame(l.from.0) { port(places, &plan.bottoms, l.from) } else { places[l.from.0] + 0.5 };
            let to = if frame(l.to.0) { port(places, &plan.tops, l.to) } else { places[l.to.0] + 0.5 };
            (from, to)
        })
        .collect();
    let crosses = |a: &(f64, f64), b: &(f64, f64)| (a.0 < b.0 && a.1 > b.1) || (a.0 > b.0 && a.1 < b.1);
    (0..ends.len()).map(|i| ends[..i].iter().filter(|b| crosses(&ends[i], b)).count()).sum()
}

/// Puts the ports of nodes in the order of what they are linked to.
fn ports(plan: &mut Plan) {
    let places = places(plan);
    for item in 0..plan.items.len() {
        if !matches!(plan.items[item], Item::Node(_)) {
            continue;
        }
        let mut tops: Vec<(f64, usize)> = plan
            .links
            .iter()
            .filter(|l| l.to.0 == item)
            .map(|l| (port(&places, &plan.bottoms, l.from), l.value))
            .collect();
        tops.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        plan.tops[item] = tops.into_iter().map(|(_, v)| v).collect();
        let mut bottoms: Vec<(f64, usize)> = plan.bottoms[item]
            .iter()
            .map(|v| {
                let to: Vec<f64> = plan
                    .links
                    .iter()
                    .filter(|l| l.from.0 == item && l.value == *v)
                    .map(|l| port(&places, &plan.tops, l.to))
                    .collect();
                (to.iter().sum::<f64>() / to.len().max(1) as f64, *v)
            })
            .collect();
        bottoms.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        plan.bottoms[item] = bottoms.into_iter().map(|(_, v)| v).collect();
    }
    relink(plan);
}

/// Makes links name the ports where their values now are.
pub(super) fn relink(plan: &mut Plan) {
    let place = |list: &[usize], v: usize| list.iter().position(|x| *x == v).unwrap_or(0);
    for i in 0..plan.links.len() {
        let link = plan.links[i];
        plan.links[i].from.1 = place(&plan.bottoms[link.from.0], link.value);
        plan.links[i].to.1 = place(&plan.tops[link.to.0], link.value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Link;
    use super::*;

    #[test]
    fn crossings_are_removed() {
        // a and b above, c and d below; a reads into d, b into c.
        let links = [(0, 3), (1, 2)].map(|(a, b)| Link { from: (a, 0), to: (b, 0), value: a });
        let mut plan = Plan {
            items: (0..4).map(Item::Node).collect(),
            layers: vec![vec![0, 1], vec![2, 3]],
            links: links.to_vec(),
            tops: vec![vec![], vec![], vec![1], vec![0]],
            bottoms: vec![vec![0], vec![1], vec![], vec![]],
            ..Plan::default()
        };
        assert_eq!(crossings(&plan), 1);
        order(&mut plan, false);
        assert_eq!(crossings(&plan), 0);
    }
}
