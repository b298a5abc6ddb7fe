//! One query after another over all pages, one page at a time, of keys that lie token by token.

use super::super::expr::{cast, elem_of};
use super::super::writer::{Elem, Ty, Val, Writer};
use super::{Attention, LOWEST, Page, Query, Tile};
use crate::error::CodegenError;
use crate::plan::kernel::PageLayout;

/// Tokens of a page whose scores are summed at the same time: a loaded query serves all.
const TOKENS_TOGETHER: u64 = 4;

/// Where the query's elements lie, and the page of keys and of values of its head.
#[derive(Clone, Copy)]
struct Operands {
    q: (Val, Elem),
    kv_head: Val,
}

impl Attention<'_> {
    /// The rows of a tile.
    pub(super) fn rows(&self, w: &mut Writer, tile: Tile) -> Result<(), CodegenError> {
        self.each_row(w, tile, |w, row| self.one_row(w, row, tile))
    }

    /// The heads of a tile, of one row.
    fn one_row(&self, w: &mut Writer, row: Val, tile: Tile) -> Result<(), CodegenError> {
        let query = self.enter_row(w, row);
        let heads = w.i64(tile.heads as i64);
        let end = w.add(tile.first_head, heads);
        let end = w.min(end, tile.end_head);
        w.for_loop(tile.first_head, end, 1, &[], |w, head, _| {
            self.one_head(w, &query, tile.kv_head, head)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    fn one_head(&self, w: &mut Writer, query: &Query, kv_head: Val, head: Val) -> Result<(), CodegenError> {
        let spec = self.spec;
        let query_elem = elem_of(spec.query, Elem::I64)?;
        let q_row = w.row(self.q, query.row, query_elem.bytes());
        let q = w.element(q_row, head, spec.key_dim * query_elem.bytes());
        let operands = Operands { q: (q, query_elem), kv_head };
        let page_size = w.i64(spec.page_tokens as i64);
        let first_page = w.div_unsigned(query.low, page_size);
        let end_page = w.ceil_div(query.high, spec.page_tokens);
        let n_out = spec.value_dim.div_ceil(u64::from(self.lanes)) as usize;
        let mut state = match &spec.sink {
            None => vec![w.f32(LOWEST, 0), w.f32(if spec.softmax { 0.0 } else { 1.0 }, 0)],
            Some(sink) => vec![self.sink(w, query, sink, head)?, w.f32(1.0, 0)],
        };
        let zero = w.f32(0.0, self.lanes);
        state.extend(std::iter::repeat_n(zero, n_out));
        let state = w.for_loop(first_page, end_page, 1, &state, |w, page, state| {
            let first_key = w.mul(page, page_size);
            self.one_page(w, Page { query, page, first_key, head }, operands, state)
        })?;
        self.results.store(w, (query.row, head), state[1], &state[2..])
    }

    /// One page: `state` is the running maximum, the running sum and the unnormalised result, which stay where no key of the page is seen.
    fn one_page(
        &self,
        w: &mut Writer,
        page: Page<'_>,
        operands: Operands,
        state: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        if !self.span.has_gaps {
            return self.seen_page(w, page, operands, None, state);
        }
        let mut visible = Vec::new();
        for v in 0..self.page_vectors() {
            let keys = self.keys_of(w, page, v)?;
            visible.push(self.visible(w, page.query, &keys)?);
        }
        let mut any = visible[0];
        for more in &visible[1..] {
            any = w.or(any, *more);
        }
        let any = w.reduce_or(any);
        w.if_else(any, state, |w| self.seen_page(w, page, operands, Some(&visible), state))
    }

    /// A page of which keys are seen: `visible`, where that is known before their scores.
    fn seen_page(
        &self,
        w: &mut Writer,
        page: Page<'_>,
        operands: Operands,
        visible: Option<&[Val]>,
        state: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let lanes = self.lanes;
        let Page { query, first_key, .. } = page;
        let Operands { q, kv_head } = operands;
        let id = w.page_id(self.cache, query.sequence, page.page);
        let head = spec.keys();
        let k_page = w.element(self.k.data, id, head.page_bytes(spec.kv_heads));
        let keys = w.element(k_page, kv_head, head.bytes());
        let values = match spec.value_in_key {
            Some(_) => keys,
            None => {
                let head = spec.values();
                let v_page = w.element(self.v.data, id, head.page_bytes(spec.kv_heads));
                w.element(v_page, kv_head, head.bytes())
            }
        };
        let dots = self.dots_by_token(w, q, keys)?;
        let lowest = w.f32(LOWEST, lanes);
        let (mut scores, mut masks) = (Vec::new(), Vec::new());
        for (v, dot) in dots.iter().enumerate() {
            let keys = self.keys_of(w, page, v)?;
            let mask = match visible {
                Some(visible) => visible[v],
                None => self.visible(w, query, &keys)?,
            };
            let score = self.score(w, &keys, *dot)?;
            scores.push(w.select(mask, score, lowest));
            masks.push(mask);
        }
        if !spec.softmax {
            // Behind a sum of 1 nothing is divided.
            let zero = w.f32(0.0, lanes);
            for (v, score) in scores.iter().enumerate() {
                let p = w.select(masks[v], *score, zero);
                let at = w.offset_const(self.scratch, v as u64 * u64::from(lanes) * 4);
                w.store(p, at);
            }
            w.sync();
            let out = self.weighted_values(w, query, first_key, values, &state[2..])?;
            w.sync();
            return Ok([&state[..2], &out[..]].concat());
        }
        let mut highest = scores[0];
        for score in &scores[1..] {
            highest = w.max(highest, *score);
        }
        let highest = w.reduce_max(highest);
        let maximum = w.max(state[0], highest);
        let shift = w.sub(state[0], maximum);
        let decay = w.exp(shift);
        let mut sum = w.mul(state[1], decay);
        let maximum_lanes = w.splat(maximum, lanes);
        let zero = w.f32(0.0, lanes);
        for (v, score) in scores.iter().enumerate() {
            let x = w.sub(*score, maximum_lanes);
            let p = w.exp(x);
            let p = w.select(masks[v], p, zero);
            let at = w.offset_const(self.scratch, v as u64 * u64::from(lanes) * 4);
            w.store(p, at);
            let s = w.reduce_add(p);
            sum = w.add(sum, s);
        }
        let decay = w.splat(decay, lanes);
        let out: Vec<Val> = state[2..].iter().map(|o| w.mul(*o, decay)).collect();
        w.sync();
        let out = self.weighted_values(w, query, first_key, values, &out)?;
        w.sync();
        let mut next = vec![maximum, sum];
        next.extend(out);
        Ok(next)
    }

    /// `out += p[j] * value[j]` for the tokens of the page that exist, of the head that lies at `values`.
    fn weighted_values(
        &self,
        w: &mut Writer,
        query: &Query,
        first_key: Val,
        values: Val,
        out: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let zero = w.i64(0);
        let page_size = w.i64(spec.page_tokens as i64);
        let begin = w.sub(query.low, first_key);
        let begin = w.max(begin, zero);
        let end = w.sub(query.high, first_key);
        let end = w.min(end, page_size);
        let masks = self.results.masks(w);
        let head = self.values();
        let first_element = spec.value_in_key.unwrap_or(0);
        // All values are of one group, perhaps among those of the keys.
        let group = head.groups().iter().position(|(first, n)| (*first..first + n).contains(&first_element));
        let scales = group.map(|group| w.offset_const(values, group as u64 * head.group_bytes()));
        let values = w.offset_const(values, head.scale_bytes() + first_element * head.element_bytes());
        let paired = spec.value_in_key.is_none() && spec.value_layout == PageLayout::TokenPairs;
        w.for_loop(begin, end, 1, out, |w, j, out| {
            let at = w.element(self.scratch, j, 4);
            let mut p = w.load(Ty::scalar(Elem::F32), at);
            if let Some(scales) = scales {
                let at = w.element(scales, j, 2);
                let scale = self.load_scales(w, at, 0);
                p = w.mul(p, scale);
            }
            let p = w.splat(p, self.lanes);
            let two = w.i64(2);
            let half = w.rem_unsigned(j, two);
            let row = if paired { w.sub(j, half) } else { j };
            let row = w.element(values, row, head.dim * head.element_bytes());
            let mut next = Vec::new();
            for (v, o) in out.iter().enumerate() {
                let first = v as u64 * u64::from(self.lanes);
                let value = if paired {
                    let at = w.offset_const(row, first * 2 * head.element_bytes());
                    let (low, high) = self.load_pair(w, head.dtype, at, masks[v]);
                    let one = w.i64(1);
                    let odd = w.cmp(super::Cmp::Eq, half, one);
                    w.select(odd, high, low)
                } else {
                    let at = w.offset_const(row, first * head.element_bytes());
                    self.load_kept(w, head.dtype, at, self.lanes, masks[v])?
                };
                next.push(w.fma(p, value, *o));
            }
            Ok(next)
        })
    }

    /// `scale`-free products of the query with the keys of a page, of the head that lies at `keys`: each is a sum over lanes, and all pass through scratch.
    fn dots_by_token(&self, w: &mut Writer, (q, q_elem): (Val, Elem), keys: Val) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let lanes = u64::from(self.lanes);
        let together = TOKENS_TOGETHER.min(spec.page_tokens);
        let head = spec.keys();
        let element_bytes = head.element_bytes();
        let key_bytes = spec.key_dim * element_bytes;
        let elements = w.offset_const(keys, head.scale_bytes());
        let step = |w: &mut Writer, q: Val, keys: Val, mask: Option<Val>, sums: &mut [Val]| {
            let ty = Ty::of(q_elem, self.lanes);
            let x = match mask {
                None => w.load(ty, q),
                Some(mask) => w.load_masked(ty, q, mask),
            };
            let x = cast(w, x, Elem::F32)?;
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = w.offset_const(keys, t as u64 * key_bytes);
                let k = self.load_kept(w, head.dtype, at, self.lanes, mask)?;
                *sum = w.fma(x, k, *sum);
            }
            Ok::<(), CodegenError>(())
        };
        let groups = head.groups();
        let all = [(0, spec.key_dim)];
        let (begin, end) = (w.i64(0), w.i64(spec.page_tokens as i64));
        w.for_loop(begin, end, together as i64, &[], |w, token, _| {
            let elements = w.element(elements, token, key_bytes);
            let zero = w.f32(0.0, self.lanes);
            let mut total: Option<Vec<Val>> = None;
            for (g, (first, n)) in if groups.is_empty() { &all[..] } else { &groups[..] }.iter().enumerate() {
                let end_of_group = first + n;
                let looped = first + n / lanes * lanes;
                let mut sums = vec![zero; together as usize];
                if looped > *first {
                    let (begin, end) = (w.i64(*first as i64), w.i64(looped as i64));
                    sums = w.for_loop(begin, end, lanes as i64, &sums, |w, d, sums| {
                        let mut sums = sums.to_vec();
                        let q = w.element(q, d, q_elem.bytes());
                        let keys = w.element(elements, d, element_bytes);
                        step(w, q, keys, None, &mut sums)?;
                        Ok(sums)
                    })?;
                }
                if looped < end_of_group {
                    let inside: Vec<i64> = (0..lanes).map(|l| i64::from(looped + l < end_of_group)).collect();
                    let mask = w.lanes(&inside, Elem::I1);
                    let q = w.offset_const(q, looped * q_elem.bytes());
                    let keys = w.offset_const(elements, looped * element_bytes);
                    step(w, q, keys, Some(mask), &mut sums)?;
                }
                if !groups.is_empty() {
                    let scales = w.offset_const(keys, g as u64 * head.group_bytes());
                    let scales = w.element(scales, token, 2);
                    for (t, sum) in sums.iter_mut().enumerate() {
                        let at = w.offset_const(scales, t as u64 * 2);
                        let scale = self.load_scales(w, at, 0);
                        let scale = w.splat(scale, self.lanes);
                        *sum = w.mul(*sum, scale);
                    }
                }
                total = Some(match total {
                    None => sums,
                    Some(total) => total.into_iter().zip(sums).map(|(a, b)| w.add(a, b)).collect(),
                });
            }
            let sums = total.unwrap_or_else(|| vec![zero; together as usize]);
            let scratch = w.element(self.scratch, token, 4);
            for (t, sum) in sums.iter().enumerate() {
                let dot = w.reduce_add(*sum);
                let at = w.offset_const(scratch, t as u64 * 4);
                w.store(dot, at);
            }
            Ok(vec![])
        })?;
        w.sync();
        let load = |v: usize| {
            let at = w.offset_const(self.scratch, v as u64 * lanes * 4);
            w.load(Ty::of(Elem::F32, self.lanes), at)
        };
        Ok((0..self.page_vectors()).map(load).collect())
    }
}
