//! Attention by tensor cores: what a warp holds of 16 queries, and a step of their softmaxes.
//!
//! A thread holds the scores of two queries, whose numbers are eight apart, for two keys in a row of every eight; and of their results two columns of every
//! eight. Weights are rounded to bf16 for the product with the values, as these are; their sum is of what was not rounded.
//!
//! Weights are powers of two relative to a maximum, which is raised only when a score exceeds it by `MARGIN`, so that results are seldom scaled.

use xfc_lang::graph::DType;

use super::{Attention, FAR, Keys, Query};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::{AttentionSpec, PageLayout, Table};

/// Keys of a tile of scores.
pub(super) const KEYS: u64 = 8;

/// Queries of a tile.
pub(super) const QUERIES: u64 = 16;

/// How far a score may lie above the maximum, in powers of two: weights stay far from overflow.
const MARGIN: f64 = 8.0;

/// The maximum before any key: so far above what is not seen that this weighs nothing.
const START: f64 = -1.0e30;

/// In place of a score that is not seen.
const HIDDEN: f64 = -3.0e38;

const I32: Ty = Ty::scalar(Elem::I32);

/// Elements of a key that have the same scale, but for its last ones: a multiple of this.
const WITH_SCALE: u64 = 32;

/// Whether queries, keys and values lie as tensor cores multiply them.
pub fn is_as_kept(spec: &AttentionSpec) -> bool {
    let values = if spec.value_in_key.is_some() { spec.kept } else { spec.value_kept };
    [spec.query, spec.kept, values].iter().all(|dtype| *dtype == DType::BF16)
}

/// Whether an attention can be multiplied by tensor cores.
pub fn fits(spec: &AttentionSpec) -> bool {
    let values = if spec.value_in_key.is_some() { spec.kept } else { spec.value_kept };
    let of_bytes = |dtype: &DType| dtype.blocks().is_some_and(|blocks| blocks.is_kept());
    let kept = [spec.kept, values];
    let is_kept = kept.iter().any(of_bytes) && kept.iter().all(|dtype| *dtype == DType::BF16 || of_bytes(dtype));
    // Queries of what is kept in 8 bits come in f32: where results are bf16, they may be too.
    let is_narrow =
        is_as_kept(spec) || (is_kept && spec.result == DType::BF16 && matches!(spec.query, DType::BF16 | DType::F32));
    // Products of elements with one scale are added up before it multiplies them.
    let of_scales = spec.keys().groups();
    let is_whole = of_scales.len() < 2 || of_scales[1].0.is_multiple_of(WITH_SCALE);
    // Such values are scaled alike.
    let values_end = spec.value_in_key.unwrap_or(0) + spec.value_dim;
    let one_scale = spec.value_in_key.is_none_or(|first| {
        let holds = |(begin, n): &(u64, u64)| *begin <= first && values_end <= begin + n;
        of_scales.is_empty() || of_scales.iter().any(holds)
    });
    let by_token = spec.key_layout == PageLayout::TokensMiddle
        && (spec.value_in_key.is_some() || spec.value_layout == PageLayout::TokensMiddle);
    let whole = [spec.key_dim, spec.value_dim, spec.value_in_key.unwrap_or(0)].iter().all(|n| n.is_multiple_of(8));
    // What is kept of each key is read page by page.
    let of_keys = spec.tables.iter().any(|table| matches!(table, Table::Key { .. }));
    is_narrow && is_whole && one_scale && by_token && whole && spec.softmax && !of_keys && spec.page_tokens == 32
}

/// A query that a thread has scores of, and the keys that it sees where the mask is no more than bounds.
pub(super) struct Asked {
    pub(super) query: Query,
    pub(super) head: Val,
    pub(super) from: Val,
    pub(super) to: Val,
}

/// What a thread holds: the maximum and its own part of the sum of weights of each query, and its part of the results.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) maxima: Vec<Val>,
    pub(super) totals: Vec<Val>,
    pub(super) out: Vec<Four>,
}

impl Held {
    /// One value after another, for a loop to carry.
    pub(super) fn list(&self) -> Vec<Val> {
        let out = self.out.iter().flatten();
        self.maxima.iter().chain(&self.totals).chain(out).copied().collect()
    }

    /// From such a list, of so many queries.
    pub(super) fn of(list: &[Val], queries: usize) -> Held {
        let (maxima, rest) = list.split_at(queries);
        Held { maxima: maxima.to_vec(), ..Held::without_maxima(rest, queries) }
    }

    fn without_maxima(list: &[Val], queries: usize) -> Held {
        let (totals, out) = list.split_at(queries);
        Held { maxima: Vec::new(), totals: totals.to_vec(), out: fours(out) }
    }
}

/// Scores or booleans of a tile of keys, as a thread holds them.
pub(super) type Four = [Val; 4];

/// From one value after another.
pub(super) fn fours(list: &[Val]) -> Vec<Four> {
    list.chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]).collect()
}

/// Weights of two tiles of keys, as the rows of a product of tiles.
pub(super) type Weights = [Val; 4];

impl Attention<'_> {
    /// What is to know of a query for all keys.
    pub(super) fn asked(&self, w: &mut Writer, query: Query, head: Val) -> Asked {
        let age = |bound: Option<i128>| bound.and_then(|age| i64::try_from(age).ok()).filter(|age| age.abs() < FAR);
        let from = match age(self.span.largest) {
            None => query.low,
            Some(largest) => {
                let largest = w.i64(largest);
                let from = w.sub(query.position, largest);
                w.max(from, query.low)
            }
        };
        let to = match age(self.span.least) {
            None => query.high,
            Some(least) => {
                let ahead = w.i64(1 - least);
                let to = w.add(query.position, ahead);
                w.min(to, query.high)
            }
        };
        let [from, to] = [from, to].map(|bound| {
            let most = w.i64(i64::from(i32::MAX));
            let bound = w.min(bound, most);
            w.resize(bound, Elem::I32)
        });
        Asked { query, head, from, to }
    }

    /// Before any key. `first`: what there is before any key takes part, in the thread that holds a query's first columns.
    pub(super) fn held(&self, w: &mut Writer, asked: &[Asked], first: Val, tiles: u64) -> Result<Held, CodegenError> {
        let (start, zero) = (w.f32(START, 0), w.f32(0.0, 0));
        let (mut maxima, mut totals) = (Vec::new(), Vec::new());
        for asked in asked {
            let Some(sink) = &self.spec.sink else {
                maxima.push(start);
                totals.push(zero);
                continue;
            };
            let (log2e, one) = (w.f32(std::f64::consts::LOG2_E, 0), w.f32(1.0, 0));
            let sink = self.sink(w, &asked.query, sink, asked.head)?;
            maxima.push(w.mul(sink, log2e));
            totals.push(w.select(first, one, zero));
        }
        Ok(Held { maxima, totals, out: vec![[zero; 4]; tiles as usize] })
    }

    /// Of tiles of keys that begin at `first_key`, the scores that are seen: of the two keys of a thread, `first_key` is the first.
    pub(super) fn seen(
        &self,
        w: &mut Writer,
        asked: &[Asked],
        first_key: Val,
        tiles: u64,
    ) -> Result<Vec<Four>, CodegenError> {
        let mut seen = Vec::new();
        for tile in 0..tiles {
            let mut four = Vec::new();
            for e in 0..4 {
                let Some(asked) = asked.get(e / 2) else {
                    four.push(w.int(0, Ty::scalar(Elem::I1)));
                    continue;
                };
                let key = self.key(w, first_key, tile, e);
                four.push(if self.span.has_gaps {
                    let keys = self.keys_at(w, asked, key)?;
                    self.visible(w, &asked.query, &keys)?
                } else {
                    let key = w.resize(key, Elem::I32);
                    let after = w.cmp(Cmp::Ge, key, asked.from);
                    let before = w.cmp(Cmp::Lt, key, asked.to);
                    w.and(after, before)
                });
            }
            seen.push([four[0], four[1], four[2], four[3]]);
        }
        Ok(seen)
    }

    fn key(&self, w: &mut Writer, first_key: Val, tile: u64, element: usize) -> Val {
        let behind = w.i64((tile * KEYS) as i64 + element as i64 % 2);
        w.add(first_key, behind)
    }

    /// What masks and scores are functions of, for one query and one key.
    fn keys_at(&self, w: &mut Writer, asked: &Asked, key: Val) -> Result<Keys, CodegenError> {
        let tables = self.tables.iter().map(|table| self.of_all_keys(w, table, &asked.query, asked.head));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        let [q_pos, k_pos, head] = [asked.query.position, key, asked.head].map(|x| w.resize(x, self.ints));
        let spread = vec![None; tables.len()];
        Ok(Keys { q_pos, k_pos, head, tables, spread })
    }

    /// What scores are, apart from a factor that makes them powers of two: products as they are, where nothing else is done to them.
    pub(super) fn factor(&self) -> Option<f64> {
        let score = &self.spec.score;
        let identity = score.outputs().first().map(|o| o.value) == score.params().first().map(|p| p.value);
        let scale = self.spec.scale;
        (identity && self.spec.softmax && scale > 0.0).then_some(scale * std::f64::consts::LOG2_E)
    }

    /// Products with tiles of keys to scores, where these are more than a factor.
    pub(super) fn scored(
        &self,
        w: &mut Writer,
        asked: &[Asked],
        (first_key, products): (Val, Vec<Four>),
    ) -> Result<Vec<Four>, CodegenError> {
        let mut scores = products;
        if self.factor().is_some() {
            return Ok(scores);
        }
        for (tile, four) in scores.iter_mut().enumerate() {
            for (e, x) in four.iter_mut().enumerate().take(2 * asked.len()) {
                let key = self.key(w, first_key, tile as u64, e);
                let keys = self.keys_at(w, &asked[e / 2], key)?;
                *x = self.score(w, &keys, *x)?;
            }
        }
        Ok(scores)
    }

    /// Scores without those that are not seen, of the first queries of a thread.
    pub(super) fn hide(&self, w: &mut Writer, scores: &[Four], seen: &[Four], queries: usize) -> Vec<Four> {
        let hidden = w.f32(HIDDEN, 0);
        let mut scores = scores.to_vec();
        for (four, seen) in scores.iter_mut().zip(seen) {
            for (x, seen) in four.iter_mut().zip(seen).take(2 * queries) {
                *x = w.select(*seen, *x, hidden);
            }
        }
        scores
    }

    /// One step of the softmaxes: scores to the weights of values, and what is held of the queries to go with them.
    /// Values that have scales, for each tile those of a thread's two keys, are multiplied by them here.
    pub(super) fn weights(
        &self,
        w: &mut Writer,
        scores: &[Four],
        held: Held,
        scales: Option<&[[Val; 2]]>,
    ) -> (Vec<Weights>, Held) {
        let (maxima, any) = self.raised(w, scores, &held.maxima);
        let kept = Held { maxima: Vec::new(), ..held.clone() }.list();
        let scaled = w.if_else(any, &kept, |w| {
            let decay = decay(w, &held.maxima, &maxima);
            let totals = held.totals.iter().zip(&decay).map(|(total, decay)| w.mul(*total, *decay)).collect();
            let out = scaled(w, &held.out, &decay);
            Ok(Held { maxima: Vec::new(), totals, out }.list())
        });
        // The body cannot fail.
        let scaled = scaled.unwrap_or(kept);
        let held = Held::without_maxima(&scaled, maxima.len());
        let (mut weights, totals) = self.exponentials(w, scores, &maxima, &held.totals);
        if let Some(scales) = scales {
            times_scales(w, &mut weights, scales);
        }
        (narrowed(w, &weights, maxima.len()), Held { maxima, totals, ..held })
    }

    /// The same for who scales what is relative to maxima later: by `decay`, where there is `any`.
    pub(super) fn step(&self, w: &mut Writer, scores: &[Four], maxima: &[Val]) -> Step {
        let (raised, any) = self.raised(w, scores, maxima);
        let decay = decay(w, maxima, &raised);
        let zero = w.f32(0.0, 0);
        let (weights, sums) = self.exponentials(w, scores, &raised, &vec![zero; maxima.len()]);
        Step { weights, maxima: raised, sums, any, decay }
    }

    /// Weights relative to maxima, in place of scores, and sums to which they are added.
    fn exponentials(&self, w: &mut Writer, scores: &[Four], maxima: &[Val], totals: &[Val]) -> (Vec<Four>, Vec<Val>) {
        let factor = self.factor().unwrap_or(std::f64::consts::LOG2_E);
        let zero = w.f32(0.0, 0);
        let factor = w.f32(factor, 0);
        let minus: Vec<Val> = maxima.iter().map(|maximum| w.sub(zero, *maximum)).collect();
        let mut totals = totals.to_vec();
        let mut weights = scores.to_vec();
        for four in &mut weights {
            for (query, minus) in minus.iter().enumerate() {
                let [low, high] = [0, 1].map(|i| {
                    let x = w.fma(four[2 * query + i], factor, *minus);
                    w.quick_exp2(x)
                });
                let both = w.add(low, high);
                totals[query] = w.add(totals[query], both);
                (four[2 * query], four[2 * query + 1]) = (low, high);
            }
        }
        (weights, totals)
    }

    /// Maxima, those that scores exceed by too much raised; and whether any is.
    fn raised(&self, w: &mut Writer, scores: &[Four], maxima: &[Val]) -> (Vec<Val>, Val) {
        let factor = self.factor().unwrap_or(std::f64::consts::LOG2_E);
        let (factor, margin) = (w.f32(factor, 0), w.f32(MARGIN, 0));
        let mut raised = Vec::new();
        let mut any: Option<Val> = None;
        for (query, maximum) in maxima.iter().enumerate() {
            let mut of_query = scores.iter().flat_map(|four| [four[2 * query], four[2 * query + 1]]);
            let first = of_query.next().unwrap_or(factor);
            let highest = of_query.fold(first, |a, b| w.max(a, b));
            let highest = w.over_four(highest, Writer::max);
            let highest = w.mul(highest, factor);
            let most = w.add(*maximum, margin);
            let above = w.cmp(Cmp::Gt, highest, most);
            raised.push(w.select(above, highest, *maximum));
            any = Some(any.map_or(above, |any| w.or(any, above)));
        }
        let any = any.unwrap_or_else(|| w.int(0, Ty::scalar(Elem::I1)));
        (raised, any)
    }
}

/// Tiles of scores or weights times what belongs to the two keys of a thread.
pub(super) fn times_scales(w: &mut Writer, tiles: &mut [Four], scales: &[[Val; 2]]) {
    for (four, scales) in tiles.iter_mut().zip(scales) {
        for (e, x) in four.iter_mut().enumerate() {
            *x = w.mul(*x, scales[e % 2]);
        }
    }
}

/// What a step of the softmaxes gives.
pub(super) struct Step {
    pub(super) weights: Vec<Four>,
    pub(super) maxima: Vec<Val>,
    /// Of these weights.
    pub(super) sums: Vec<Val>,
    pub(super) any: Val,
    pub(super) decay: Vec<Val>,
}

/// What is relative to maxima is scaled by this when they are raised.
fn decay(w: &mut Writer, maxima: &[Val], raised: &[Val]) -> Vec<Val> {
    let mut decay = Vec::new();
    for (maximum, raised) in maxima.iter().zip(raised) {
        let by = w.sub(*maximum, *raised);
        decay.push(w.quick_exp2(by));
    }
    decay
}

/// Results of as many queries as there are factors, times these.
pub(super) fn scaled(w: &mut Writer, out: &[Four], factors: &[Val]) -> Vec<Four> {
    let mut out = out.to_vec();
    for four in &mut out {
        for (e, x) in four.iter_mut().enumerate().take(2 * factors.len()) {
            *x = w.mul(*x, factors[e / 2]);
        }
    }
    out
}

/// Weights of so many queries rounded to bf16, for a product with values.
pub(super) fn narrowed(w: &mut Writer, weights: &[Four], queries: usize) -> Vec<Weights> {
    let none = w.int(0, I32);
    let mut pairs = Vec::new();
    for four in weights {
        let mut of_tile = [none; 2];
        for (query, pair) in of_tile.iter_mut().enumerate().take(queries) {
            *pair = w.narrow_pair(four[2 * query], four[2 * query + 1]);
        }
        pairs.push(of_tile);
    }
    pairs.chunks_exact(2).map(|two| [two[0][0], two[0][1], two[1][0], two[1][1]]).collect()
}
