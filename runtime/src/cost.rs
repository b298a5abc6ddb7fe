//! What a step has to read and multiply: the costs of a manifest's launches, evaluated for the rows and the context of one step.
//!
//! Given a [`Cost`](crate::artifact::manifest::Cost) and a [`StepShape`], promises counts of bytes and operations that no kernel can be below. They are compared with the
//! machine's limits by [`crate::bench`] and [`crate::profile`]; nothing else depends on them.

use std::borrow::Cow;

use crate::artifact::manifest::{AttentionCost, ChosenCost, Launch, Manifest};
use crate::device::AxisStep;
use serde::{Deserialize, Serialize};

/// What is multiplied, by its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// 32-bit numbers.
    Single,
    /// 16-bit numbers, summed in 32 bits.
    Half,
    /// 8-bit integers, summed in 32 bits.
    Byte,
}

impl Products {
    /// What is multiplied, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "f32",
            Self::Half => "bf16",
            Self::Byte => "bytes",
        }
    }
}

/// One ragged axis of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AxisShape {
    /// For each sequence: positions before the step, and elements that the step adds.
    pub sequences: Vec<(u64, u64)>,
    /// Selected elements, over all sequences.
    pub selected: u64,
}

/// The axes of a step, in the manifest's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// All of them.
    pub axes: Vec<AxisShape>,
}

/// Bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights read.
    pub weight_bytes: u64,
    /// Bytes of keys and values that attention reads, each once a sequence.
    pub cache_bytes: u64,
    /// Bytes of other values read and written; they may never leave the processor's caches.
    pub value_bytes: u64,
    /// Floating-point operations on 32-bit numbers.
    pub f32_flops: u64,
    /// Floating-point operations on 16-bit numbers, summed in 32 bits.
    pub half_flops: u64,
    /// Operations on 8-bit integers, summed in 32 bits.
    pub byte_ops: u64,
}

impl Work {
    /// The least time of the products, each width at its own rate: operations a second in f32, in 16 bits and in bytes.
    pub fn seconds_of_products(&self, f32_flops: f64, half_flops: f64, byte_ops: f64) -> f64 {
        self.f32_flops as f64 / f32_flops + self.half_flops as f64 / half_flops + self.byte_ops as f64 / byte_ops
    }

    /// Adds up.
    pub fn add(&mut self, other: &Self) {
        self.weight_bytes = self.weight_bytes.saturating_add(other.weight_bytes);
        self.cache_bytes = self.cache_bytes.saturating_add(other.cache_bytes);
        self.value_bytes = self.value_bytes.saturating_add(other.value_bytes);
        self.f32_flops = self.f32_flops.saturating_add(other.f32_flops);
        self.half_flops = self.half_flops.saturating_add(other.half_flops);
        self.byte_ops = self.byte_ops.saturating_add(other.byte_ops);
    }

    /// Bytes that must come from memory: weights and caches.
    pub fn memory_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes)
    }

    /// Operations of any width.
    pub fn flops(&self) -> u64 {
        self.f32_flops.saturating_add(self.half_flops).saturating_add(self.byte_ops)
    }
}

impl StepShape {
    /// The shape of a step as devices are given it.
    pub fn of(axes: &[AxisStep]) -> Self {
        let shape = |axis: &AxisStep| {
            let sequence = |(pair, &before): (&[u32], &u32)| (before.into(), pair[1].saturating_sub(pair[0]).into());
            let sequences = axis.offsets.windows(2).zip(&axis.before).map(sequence).collect();
            AxisShape { sequences, selected: axis.rows.len() as u64 }
        };
        Self { axes: axes.iter().map(shape).collect() }
    }

    /// Everything that the launches of `manifest` have to do in this step.
    pub fn work(&self, manifest: &Manifest) -> Work {
        let mut total = Work::default();
        for launch in &manifest.launches {
            total.add(&self.work_of(launch));
        }
        total
    }

    /// Rows of the sequences that a launch means: 0 where it is left out of the step.
    pub fn rows_of(&self, launch: &Launch) -> u64 {
        self.meant(launch).map_or(0, |axis| rows(launch, &axis))
    }

    /// What one launch has to do; nothing when it is left out of the step, or the compiler did not say.
    pub fn work_of(&self, launch: &Launch) -> Work {
        self.work_of_copies(launch, 1)
    }

    /// What one launch has to do in a step that has each of these sequences so many times.
    pub fn work_of_copies(&self, launch: &Launch, copies: u64) -> Work {
        let (Some(cost), Some(axis)) = (&launch.cost, self.meant(launch)) else { return Work::default() };
        let rows = rows(launch, &axis).saturating_mul(copies);
        if rows == 0 {
            return Work::default();
        }
        let (pairs_flops, cache_bytes) =
            cost.attention.as_ref().map_or((0, 0), |attention| self.attention(&axis, attention, launch.axis));
        let flops = cost.row_flops.saturating_mul(rows).saturating_add(pairs_flops.saturating_mul(copies));
        let of = |products| if cost.products.unwrap_or(Products::Single) == products { flops } else { 0 };
        Work {
            weight_bytes: cost
                .weight_bytes
                .saturating_add(cost.row_weight_bytes.saturating_mul(rows))
                .saturating_add(cost.chosen.as_ref().map_or(0, |chosen| chosen_bytes(chosen, rows))),
            cache_bytes: cache_bytes.saturating_mul(copies),
            value_bytes: cost.row_bytes.saturating_mul(rows),
            f32_flops: of(Products::Single),
            half_flops: of(Products::Half),
            byte_ops: of(Products::Byte),
        }
    }

    /// The axis of a launch. Of a launch for some of the sequences, nothing that it does for others counts.
    fn meant(&self, launch: &Launch) -> Option<Cow<'_, AxisShape>> {
        let axis = self.axes.get(launch.axis)?;
        let Some(when) = launch.when else { return Some(Cow::Borrowed(axis)) };
        let sequence = |&(before, new): &(u64, u64)| (before, if when.holds(before) { new } else { 0 });
        let sequences: Vec<(u64, u64)> = axis.sequences.iter().map(sequence).collect();
        // Which of the sequences the selected elements are of is not known: all, unless none is meant.
        let selected = if sequences.iter().any(|(_, new)| *new > 0) { axis.selected } else { 0 };
        Some(Cow::Owned(AxisShape { sequences, selected }))
    }

    /// Operations and bytes of attention from the rows of `axis`.
    fn attention(&self, axis: &AxisShape, cost: &AttentionCost, own_axis: usize) -> (u64, u64) {
        let (mut pairs, mut keys) = (0u64, 0u64);
        for (s, &(before, new)) in axis.sequences.iter().enumerate().filter(|(_, (_, new))| *new > 0) {
            let (of_queries, distinct) = if cost.axis == own_axis {
                own_keys(before, new, cost.window, cost.future)
            } else {
                let (before, added) =
                    self.axes.get(cost.axis).and_then(|a| a.sequences.get(s)).copied().unwrap_or((0, 0));
                let all = before.saturating_add(added);
                (all.saturating_mul(new), all)
            };
            pairs = pairs.saturating_add(of_queries);
            keys = keys.saturating_add(distinct);
        }
        (pairs.saturating_mul(cost.pair_flops), keys.saturating_mul(cost.key_bytes))
    }
}

/// Rows that a launch has of an axis.
fn rows(launch: &Launch, axis: &AxisShape) -> u64 {
    if launch.rows {
        axis.selected
    } else {
        axis.sequences.iter().map(|(_, new)| new).fold(0, |sum, new| sum.saturating_add(*new))
    }
}

/// Bytes of chosen weights that rows read when no two choose the same, as far as there are others.
fn chosen_bytes(chosen: &ChosenCost, rows: u64) -> u64 {
    chosen.of.min(chosen.each.saturating_mul(rows)).saturating_mul(chosen.bytes)
}

/// Pairs of a query and a key that it sees, and keys that some query sees, for queries at `before .. before + new` of a sequence.
fn own_keys(before: u64, new: u64, window: Option<u64>, future: bool) -> (u64, u64) {
    let end = before.saturating_add(new);
    let window = window.unwrap_or(u64::MAX).max(1);
    // Query `q` sees `min(q + 1, window)` keys up to itself: first those that see everything, then those that see a window.
    let growing = window.min(end).saturating_sub(before);
    let up_to_itself = triangle(before + growing) - triangle(before) + u128::from(new - growing) * u128::from(window);
    let after = if future { triangle(new.saturating_sub(1)) } else { 0 };
    let oldest = (before + 1).saturating_sub(window);
    (u64::try_from(up_to_itself + after).unwrap_or(u64::MAX), end - oldest)
}

/// `1 + 2 + .. + n`.
fn triangle(n: u64) -> u128 {
    u128::from(n) * (u128::from(n) + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::manifest::{Cost, When};
    use crate::artifact::sample;

    #[test]
    fn keys_are_counted_as_one_by_one() {
        for before in 0..9 {
            for new in 1..9 {
                for window in [None, Some(1), Some(3), Some(8), Some(40)] {
                    for future in [false, true] {
                        let sees = |q: u64, k: u64| (k <= q || future) && (k > q || window.is_none_or(|w| q - k < w));
                        let end = before + new;
                        let pairs =
                            (before..end).flat_map(|q| (0..end).map(move |k| (q, k))).filter(|&(q, k)| sees(q, k));
                        let keys = (0..end).filter(|&k| (before..end).any(|q| sees(q, k))).count() as u64;
                        let expected = (pairs.count() as u64, keys);
                        assert_eq!(
                            own_keys(before, new, window, future),
                            expected,
                            "{before} {new} {window:?} {future}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_step_of_several_sequences_adds_up() {
        let mut manifest = sample::manifest();
        manifest.launches[0].cost = Some(Cost {
            weight_bytes: 48,
            chosen: Some(ChosenCost { of: 5, each: 2, bytes: 100 }),
            row_weight_bytes: 3,
            row_bytes: 8,
            row_flops: 24,
            products: Some(Products::Half),
            attention: Some(AttentionCost { axis: 0, window: None, future: false, key_bytes: 5, pair_flops: 7 }),
        });
        let axis = AxisStep {
            offsets: vec![0, 2, 2, 3],
            positions: vec![0, 1, 9],
            sequences: vec![0, 0, 2],
            rows: vec![1, 2],
            before: vec![0, 4, 9],
        };
        let shape = StepShape::of(&[axis]);
        // The second adds nothing, and has what it had.
        assert_eq!(shape.axes[0], AxisShape { sequences: vec![(0, 2), (4, 0), (9, 1)], selected: 2 });
        let work = shape.work(&manifest);
        // Pairs: 1 + 2, and 10; keys: 2 and 10.
        let expected = Work {
            // Three rows choose at most all five.
            weight_bytes: 48 + 3 * 3 + 500,
            cache_bytes: 12 * 5,
            value_bytes: 24,
            f32_flops: 0,
            half_flops: 3 * 24 + 13 * 7,
            byte_ops: 0,
        };
        assert_eq!(work, expected);
        assert_eq!((work.memory_bytes(), work.flops()), (48 + 9 + 500 + 60, 163));
        manifest.launches[0].rows = true;
        assert_eq!(shape.work(&manifest).value_bytes, 16);
        manifest.launches[0].cost = None;
        assert_eq!(shape.work(&manifest), Work::default());
    }

    #[test]
    fn launches_for_some_sequences_have_their_rows_alone() {
        let manifest = sample::manifest();
        let cost = Cost { weight_bytes: 40, row_bytes: 8, row_flops: 6, ..Cost::default() };
        let launch = |when| Launch { cost: Some(cost), rows: false, when, ..manifest.launches[0].clone() };
        let [all, begins, goes_on] = [None, Some(When::FromStart), Some(When::Continued)].map(launch);
        let step = |sequences: &[(u64, u64)]| StepShape {
            axes: vec![AxisShape { sequences: sequences.to_vec(), selected: sequences.len() as u64 }],
        };
        let rows = |shape: &StepShape| [&all, &begins, &goes_on].map(|launch| shape.rows_of(launch));
        let mixed = step(&[(0, 5), (9, 1), (4, 2)]);
        assert_eq!(rows(&mixed), [8, 5, 3]);
        assert_eq!(rows(&step(&[(0, 7)])), [7, 7, 0]);
        assert_eq!(rows(&step(&[(7, 1)])), [1, 0, 1]);
        assert_eq!(mixed.work_of(&goes_on).value_bytes, 3 * 8);
        assert_eq!(step(&[(0, 7)]).work_of(&goes_on), Work::default());
        // Selected elements are of no sequence that is meant.
        assert_eq!(step(&[(0, 7)]).rows_of(&Launch { rows: true, ..goes_on.clone() }), 0);
        // So many times the same sequence is as many of them.
        let three = step(&[(9, 4), (9, 4), (9, 4)]);
        assert_eq!(step(&[(9, 4)]).work_of_copies(&all, 3), three.work_of(&all));
        assert_eq!(step(&[(9, 4)]).work_of_copies(&all, u64::MAX).value_bytes, u64::MAX);
    }

    #[test]
    fn a_token_after_the_source_reads_all_of_it() {
        let token =
            AxisStep { offsets: vec![0, 1], positions: vec![7], sequences: vec![0], rows: vec![0], before: vec![7] };
        let source = AxisStep { offsets: vec![0, 0], before: vec![30], ..AxisStep::default() };
        let shape = StepShape::of(&[token, source]);
        let attention = AttentionCost { axis: 1, window: None, future: true, key_bytes: 4, pair_flops: 2 };
        assert_eq!(shape.attention(&shape.axes[0], &attention, 0), (30 * 2, 30 * 4));
    }

    #[test]
    fn other_axes_are_seen_whole_and_nothing_overflows() {
        let attention = AttentionCost { axis: 1, window: None, future: true, key_bytes: 4, pair_flops: 2 };
        let shape = StepShape {
            axes: vec![
                AxisShape { sequences: vec![(3, 2), (0, 1)], selected: 3 },
                AxisShape { sequences: vec![(10, 0), (0, 6)], selected: 6 },
            ],
        };
        assert_eq!(shape.attention(&shape.axes[0], &attention, 0), ((2 * 10 + 6) * 2, 16 * 4));
        assert_eq!(own_keys(0, u64::MAX, None, true).0, u64::MAX);
    }
}
