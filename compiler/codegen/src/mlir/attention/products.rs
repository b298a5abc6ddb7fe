//! The products of a register tile of queries: with the keys of a block, and of their weights with its values.

use super::super::expr::{cast, elem_of};
use super::super::machine::WordDot;
use super::super::writer::{Elem, Ty, Val, Writer};
use super::Attention;
use super::blocks::{Blocks, CACHE_LINE, Micro};
use super::layout::Form;
use crate::error::CodegenError;
use crate::plan::kernel::HeadPage;
use xfc_lang::graph::DType;

/// Steps of the loop over a query's elements that are written out.
const UNROLL: u64 = 4;

impl Attention<'_> {
    /// Loads consecutive kept elements as f32; those of 8 bits without their scale.
    pub(super) fn load_kept(
        &self,
        w: &mut Writer,
        dtype: DType,
        at: Val,
        lanes: u32,
        mask: Option<Val>,
    ) -> Result<Val, CodegenError> {
        let elem = if dtype.blocks().is_some() { Elem::I8 } else { elem_of(dtype, Elem::I64)? };
        let ty = Ty::of(elem, lanes);
        let raw = match mask {
            None => w.load(ty, at),
            Some(mask) => w.load_masked(ty, at, mask),
        };
        if dtype.blocks().is_some_and(|blocks| blocks.form.is_float()) {
            return Ok(w.from_e4m3_bytes(raw));
        }
        cast(w, raw, Elem::F32)
    }

    /// Loads scales as f32: of consecutive tokens, or of one.
    pub(super) fn load_scales(&self, w: &mut Writer, at: Val, lanes: u32) -> Val {
        let raw = w.load(Ty::of(Elem::I16, lanes), at);
        w.from_bf16(raw)
    }

    /// Loads pairs of bf16, or of integers of 8 bits without their scale: the first of each and the second, as f32.
    pub(super) fn load_pair(&self, w: &mut Writer, kept: DType, at: Val, mask: Option<Val>) -> (Val, Val) {
        if kept.blocks().is_some() {
            let bytes = self.load_bytes(w, at, mask);
            let pairs = w.bitcast(bytes, Ty::of(Elem::I16, self.lanes));
            let first = w.shl(pairs, 8);
            let halves = [first, pairs].map(|x| w.shr_signed(x, 8));
            return halves.map(|x| w.to_float(x)).into();
        }
        let words = self.load_words(w, at, mask);
        w.pair_halves(words)
    }

    fn load_words(&self, w: &mut Writer, at: Val, mask: Option<Val>) -> Val {
        let ty = Ty::of(Elem::I32, self.lanes);
        match mask {
            None => w.load(ty, at),
            Some(mask) => w.load_masked(ty, at, mask),
        }
    }
}

/// Vectors of what a page holds, as they are multiplied.
pub(super) enum Loaded {
    Plain(Vec<Val>),
    Widened(Vec<(Val, Val)>),
    Paired(&'static str, Vec<Val>),
    Words(WordDot, Vec<Val>),
}

impl Blocks<'_> {
    /// Adds to `sums`, vector by vector of each query, the products of what was loaded with a query's factors at `factors[i]`.
    fn multiply(&self, w: &mut Writer, loaded: &Loaded, factors: &[Val], sums: &mut [Val]) {
        let lanes = self.at.lanes;
        let n = sums.len() / factors.len();
        for (at, sums) in factors.iter().zip(sums.chunks_exact_mut(n)) {
            match loaded {
                Loaded::Plain(vectors) => {
                    let x = w.load(Ty::scalar(Elem::F32), *at);
                    let x = w.splat(x, lanes);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = w.fma(x, *vector, *sum);
                    }
                }
                Loaded::Widened(vectors) => {
                    let second = w.offset_const(*at, 4);
                    let [low, high] = [*at, second].map(|at| {
                        let x = w.load(Ty::scalar(Elem::F32), at);
                        w.splat(x, lanes)
                    });
                    for (sum, (first, second)) in sums.iter_mut().zip(vectors) {
                        *sum = w.fma(low, *first, *sum);
                        *sum = w.fma(high, *second, *sum);
                    }
                }
                Loaded::Paired(name, vectors) => {
                    let packed = Ty::of(Elem::BF16, lanes * 2);
                    let pair = w.load(Ty::scalar(Elem::I32), *at);
                    let pair = w.splat(pair, lanes);
                    let pair = w.bitcast(pair, packed);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        let vector = w.bitcast(*vector, packed);
                        *sum = w.intrinsic(name, &[*sum, vector, pair], sum.ty);
                    }
                }
                Loaded::Words(dot, vectors) => {
                    let pair = w.load(Ty::scalar(Elem::I32), *at);
                    let pair = w.splat(pair, lanes);
                    let pair = w.bitcast(pair, Ty::of(Elem::I16, lanes * 2));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = match dot {
                            WordDot::Whole(name) => w.intrinsic(name, &[*sum, *vector, pair], sum.ty),
                            WordDot::Pairs(name) => {
                                let products = w.intrinsic(name, &[*vector, pair], sum.ty);
                                w.add(*sum, products)
                            }
                        };
                    }
                }
            }
        }
    }

    /// Loads vectors at the given addresses, each with the lanes of its mask. `half`: of pairs only the first exists.
    fn load_vectors(
        &self,
        w: &mut Writer,
        (form, head): (Form, HeadPage),
        at: &[(Val, Option<Val>)],
        half: bool,
    ) -> Result<Loaded, CodegenError> {
        let words = |w: &mut Writer, at: Val, mask: Option<Val>| {
            let words = self.at.load_words(w, at, mask);
            if !half {
                return words;
            }
            let first = w.int(0xFFFF, words.ty);
            w.and(words, first)
        };
        Ok(match form {
            Form::Plain => {
                let vectors = at.iter().map(|(at, mask)| self.at.load_kept(w, head.dtype, *at, self.at.lanes, *mask));
                Loaded::Plain(vectors.collect::<Result<_, _>>()?)
            }
            Form::Widened => Loaded::Widened(
                at.iter()
                    .map(|(at, mask)| {
                        let words = words(w, *at, *mask);
                        w.pair_halves(words)
                    })
                    .collect(),
            ),
            Form::Words(dot) => {
                let vectors = at.iter().map(|(at, mask)| {
                    let bytes = self.at.load_bytes(w, *at, *mask);
                    w.resize(bytes, Elem::I16)
                });
                Loaded::Words(dot, vectors.collect())
            }
            Form::Paired(name) => Loaded::Paired(name, at.iter().map(|(at, mask)| words(w, *at, *mask)).collect()),
            Form::Tiles => return Err(CodegenError::bug("attention", "vectors of what registers of tiles multiply")),
        })
    }

    /// Asks for what lies behind an address that is read now.
    fn ask_ahead(&self, w: &mut Writer, at: Val) {
        if self.schedule.prefetch > 0 {
            let at = w.offset_const(at, self.schedule.prefetch);
            w.prefetch(at, 1);
        }
    }

    /// Bytes of a vector of what a page holds.
    fn vector_bytes(&self, form: Form, head: HeadPage) -> u64 {
        u64::from(self.at.lanes) * head.element_bytes() * form.depth()
    }

    /// Products of the queries with the keys of a block, into scratch. Register tiles of keys that no query sees are left out.
    pub(super) fn scores(&self, w: &mut Writer, micro: Micro, n_keys: Val) -> Result<(), CodegenError> {
        let (zero, n_pages) = (w.i64(0), w.ceil_div(n_keys, self.at.spec.page_tokens));
        w.for_loop(zero, n_pages, i64::from(self.schedule.pages_per_tile), &[], |w, first, _| {
            self.score_pages(w, micro, first)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Products of the queries with the keys of a register tile, from a page of the block on.
    pub(super) fn score_pages(&self, w: &mut Writer, micro: Micro, first: Val) -> Result<(), CodegenError> {
        let (at, layout) = (self.at, &self.layout);
        let queries = self.schedule.queries as usize;
        let (page_vectors, depth) = (at.page_vectors(), self.keys.depth());
        let head = at.spec.keys();
        let line = at.spec.page_tokens * head.element_bytes() * depth;
        let base = self.cell(w, layout.queries, micro.first, layout.query_bytes);
        let pages: Vec<Val> = (0..self.schedule.pages_per_tile)
            .map(|p| {
                let p = w.i64(i64::from(p));
                let page = w.add(first, p);
                self.page_of(w, micro, page, false)
            })
            .collect();
        let keys: Vec<Val> = pages.iter().map(|page| w.offset_const(*page, head.scale_bytes())).collect();
        let step = |w: &mut Writer, base: Val, keys: &[Val], sums: &mut [Val]| {
            let mut vectors = Vec::new();
            for page in keys {
                for v in 0..page_vectors {
                    vectors.push((w.offset_const(*page, v as u64 * self.vector_bytes(self.keys, head)), None));
                }
            }
            let loaded = self.load_vectors(w, (self.keys, head), &vectors, false)?;
            let factors: Vec<Val> = (0..queries).map(|i| w.offset_const(base, i as u64 * layout.query_bytes)).collect();
            self.multiply(w, &loaded, &factors, sums);
            Ok::<(), CodegenError>(())
        };
        let zero = self.nothing(w, self.keys);
        let per_query = keys.len() * page_vectors;
        let of_chain = queries * per_query;
        let chains = u64::from(self.schedule.chains);
        fn chain(sums: &mut [Val], of_chain: usize, chains: u64, d: u64) -> &mut [Val] {
            let first = (d % chains) as usize * of_chain;
            &mut sums[first..first + of_chain]
        }
        let move_to = |w: &mut Writer, pages: &[Val], d: Val| -> Vec<Val> {
            pages.iter().map(|page| w.element(*page, d, line)).collect()
        };
        let skip = |w: &mut Writer, pages: &[Val], d: u64| -> Vec<Val> {
            pages.iter().map(|page| w.offset_const(*page, d * line)).collect()
        };
        let factor_bytes = self.keys.bytes() * depth;
        // Steps `first .. end`, whose elements share a scale, of queries at `base`.
        let products = |w: &mut Writer, (base, asks): (Val, bool), first: u64, end: u64| {
            let mut sums = vec![zero; of_chain * chains as usize];
            let looped = first + (end - first) / UNROLL * UNROLL;
            if looped > first {
                let (begin, end) = (w.i64(first as i64), w.i64(looped as i64));
                sums = w.for_loop(begin, end, UNROLL as i64, &sums, |w, d, sums| {
                    let mut sums = sums.to_vec();
                    let keys = move_to(w, &keys, d);
                    let base = w.element(base, d, factor_bytes);
                    for u in 0..UNROLL {
                        let keys = skip(w, &keys, u);
                        let base = w.offset_const(base, u * factor_bytes);
                        if asks && (u * line).is_multiple_of(CACHE_LINE) {
                            keys.iter().for_each(|page| self.ask_ahead(w, *page));
                        }
                        step(w, base, &keys, chain(&mut sums, of_chain, chains, u))?;
                    }
                    Ok(sums)
                })?;
            }
            for d in looped..end {
                let keys = skip(w, &keys, d);
                let base = w.offset_const(base, d * factor_bytes);
                step(w, base, &keys, chain(&mut sums, of_chain, chains, d))?;
            }
            let (mut total, others) = (sums[..of_chain].to_vec(), &sums[of_chain..]);
            for (i, more) in others.iter().enumerate() {
                total[i % of_chain] = w.add(total[i % of_chain], *more);
            }
            Ok::<Vec<Val>, CodegenError>(total)
        };
        let groups = head.groups();
        let mut total =
            if groups.is_empty() { products(w, (base, true), 0, at.spec.key_dim / depth)? } else { Vec::new() };
        for (g, (first, n)) in groups.into_iter().enumerate() {
            let mut sums = products(w, (base, true), first / depth, (first + n) / depth)?;
            if matches!(self.keys, Form::Words(_)) && self.keeps_rests() {
                let rests = w.offset_const(base, layout.query_rests);
                let rests = products(w, (rests, false), first / depth, (first + n) / depth)?;
                sums = self.with_rests(w, sums, rests, self.most_of_query());
            }
            let sums: Vec<Val> = sums.into_iter().map(|sum| w.as_float(sum)).collect();
            let scales: Vec<Val> = (0..per_query as u64)
                .map(|i| {
                    let (page, v) = (i / page_vectors as u64, i % page_vectors as u64);
                    let scales = g as u64 * head.group_bytes() + v * u64::from(at.lanes) * 2;
                    let scales = w.offset_const(pages[page as usize], scales);
                    at.load_scales(w, scales, at.lanes)
                })
                .collect();
            let scaled = sums.into_iter().enumerate().map(|(i, sum)| (i, scales[i % per_query], sum));
            if total.is_empty() {
                total = scaled.map(|(_, scale, sum)| w.mul(sum, scale)).collect();
            } else {
                total = scaled.map(|(i, scale, sum)| w.fma(sum, scale, total[i])).collect();
            }
        }
        if matches!(self.keys, Form::Words(_)) {
            for (query, total) in total.chunks_exact_mut(per_query).enumerate() {
                let scale = self.query_scale(w, micro, query as u64);
                total.iter_mut().for_each(|sum| *sum = w.mul(*sum, scale));
            }
        }
        let scores = self.cell(w, layout.scores, micro.place, self.block_keys() * 4);
        let scores = w.element(scores, first, at.spec.page_tokens * 4);
        for (i, sum) in total.iter().enumerate() {
            let (query, vector) = ((i / per_query) as u64, (i % per_query) as u64);
            let to = w.offset_const(scores, (query * self.block_keys() + vector * u64::from(at.lanes)) * 4);
            w.store(*sum, to);
        }
        Ok(())
    }

    /// Adds the values of a block, each with its weight, to the results of the queries, or those of one page.
    pub(super) fn weigh(
        &self,
        w: &mut Writer,
        micro: Micro,
        n_keys: Val,
        page: Option<Val>,
    ) -> Result<(), CodegenError> {
        let n = self.at.spec.value_dim.div_ceil(u64::from(self.at.lanes)) as usize;
        let masks = self.at.results.masks(w);
        let scales = match self.values {
            Form::Words(_) => self.round_weights(w, micro, n_keys, page)?,
            _ => {
                self.scale_weights(w, micro, n_keys, page)?;
                Vec::new()
            }
        };
        // As even as they can be.
        let parts = n.div_ceil(self.schedule.value_vectors as usize);
        let mut first = 0;
        for part in 0..parts {
            let end = (part + 1) * n / parts;
            self.weigh_vectors(w, (micro, &scales), n_keys, page, (first, &masks[first..end]))?;
            first = end;
        }
        Ok(())
    }

    /// Multiplies the weights of a block's values, or of one page's, with the scales of these.
    fn scale_weights(&self, w: &mut Writer, micro: Micro, n_keys: Val, page: Option<Val>) -> Result<(), CodegenError> {
        let at = self.at;
        if at.spec.values().groups().is_empty() {
            return Ok(());
        }
        let weights = self.cell(w, self.layout.scores, micro.place, self.block_keys() * 4);
        let one_page = |w: &mut Writer, page: Val| {
            let scales = self.page_of(w, micro, page, true);
            let weights = w.element(weights, page, at.spec.page_tokens * 4);
            for v in 0..at.page_vectors() as u64 {
                let first = v * u64::from(at.lanes);
                let scales = w.offset_const(scales, first * 2);
                let scales = at.load_scales(w, scales, at.lanes);
                for i in 0..u64::from(self.schedule.queries) {
                    let cell = w.offset_const(weights, (i * self.block_keys() + first) * 4);
                    let x = w.load(Ty::of(Elem::F32, at.lanes), cell);
                    let x = w.mul(x, scales);
                    w.store(x, cell);
                }
            }
        };
        match page {
            Some(page) => one_page(w, page),
            None => {
                let (zero, n_pages) = (w.i64(0), w.ceil_div(n_keys, at.spec.page_tokens));
                w.for_loop(zero, n_pages, 1, &[], |w, page, _| {
                    one_page(w, page);
                    Ok(vec![])
                })?;
            }
        }
        Ok(())
    }

    /// Vectors of the values from `first` on, with the given masks. `scales`: what sums of integers are multiplied by, of each query.
    fn weigh_vectors(
        &self,
        w: &mut Writer,
        (micro, scales): (Micro, &[Val]),
        n_keys: Val,
        page: Option<Val>,
        (first, masks): (usize, &[Option<Val>]),
    ) -> Result<(), CodegenError> {
        let (at, layout) = (self.at, &self.layout);
        let queries = u64::from(self.schedule.queries);
        let (tokens, depth) = (at.spec.page_tokens, self.values.depth());
        let head = at.spec.values();
        let skipped = head.scale_bytes() + first as u64 * self.vector_bytes(self.values, head);
        let row = at.spec.value_dim * depth * head.element_bytes();
        let out = self.cell(w, layout.out, micro.first, layout.out_bytes);
        let vector = u64::from(at.lanes) * 4;
        let cells: Vec<Val> = (0..queries)
            .flat_map(|i| (0..masks.len()).map(move |v| i * layout.out_bytes + (first + v) as u64 * vector))
            .map(|offset| w.offset_const(out, offset))
            .collect();
        let sums: Vec<Val> = match scales {
            [] => cells.iter().map(|cell| w.load(Ty::of(Elem::F32, at.lanes), *cell)).collect(),
            _ => vec![self.nothing(w, self.values); cells.len()],
        };
        // The values of a token, or of two, and their weights, from the addresses of both.
        let step = |w: &mut Writer, (values, asks): (Val, bool), weights: Val, half: bool, sums: &[Val]| {
            let mut sums = sums.to_vec();
            let factors: Vec<Val> = (0..queries).map(|i| w.offset_const(weights, i * self.block_keys() * 4)).collect();
            let together = self.schedule.values_together as usize;
            for from in (0..masks.len()).step_by(together) {
                let end = (from + together).min(masks.len());
                let vectors: Vec<(Val, Option<Val>)> = (from..end)
                    .map(|v| (w.offset_const(values, v as u64 * self.vector_bytes(self.values, head)), masks[v]))
                    .collect();
                let line = |v: &usize| (*v as u64 * self.vector_bytes(self.values, head)).is_multiple_of(CACHE_LINE);
                for v in (from..end).filter(|v| asks && line(v)) {
                    self.ask_ahead(w, vectors[v - from].0);
                }
                let loaded = self.load_vectors(w, (self.values, head), &vectors, half)?;
                let places: Vec<usize> =
                    (0..queries as usize).flat_map(|i| (from..end).map(move |v| i * masks.len() + v)).collect();
                let mut some: Vec<Val> = places.iter().map(|place| sums[*place]).collect();
                self.multiply(w, &loaded, &factors, &mut some);
                for (place, sum) in places.into_iter().zip(some) {
                    sums[place] = sum;
                }
            }
            Ok::<Vec<Val>, CodegenError>(sums)
        };
        let is_whole = matches!(self.values, Form::Words(_));
        let (zero, page_tokens, per_step) = (w.i64(0), w.i64(tokens as i64), w.i64(depth as i64));
        let weights = self.cell(w, layout.scores, micro.place, self.block_keys() * 4);
        let values_of = |w: &mut Writer, page: Val| {
            let values = self.page_of(w, micro, page, true);
            w.offset_const(values, skipped)
        };
        // `rests`: what rounding left of weights, which lies behind them.
        let one_page = |w: &mut Writer, page: Val, rests: bool, sums: &[Val]| {
            let values = values_of(w, page);
            let before = w.mul(page, page_tokens);
            let left = w.sub(n_keys, before);
            let left = w.min(left, page_tokens);
            // Of the last pair of integers the second may have no weight.
            let steps = if is_whole { w.ceil_div(left, depth) } else { w.div_unsigned(left, per_step) };
            let weights = w.element(weights, before, 4);
            let weights = if rests { w.offset_const(weights, tokens * 2) } else { weights };
            w.for_loop(zero, steps, 1, sums, |w, j, sums| {
                let values = w.element(values, j, row);
                let weights = w.element(weights, j, self.values.bytes() * depth);
                step(w, (values, !rests), weights, false, sums)
            })
        };
        let one = w.i64(1);
        let n_pages = w.ceil_div(n_keys, tokens);
        let last = page.unwrap_or_else(|| w.sub(n_pages, one));
        let all = |w: &mut Writer, rests: bool, sums: &[Val]| match page {
            Some(page) => one_page(w, page, rests, sums),
            None => w.for_loop(zero, n_pages, 1, sums, |w, page, sums| one_page(w, page, rests, sums)),
        };
        let nothing = sums.clone();
        let mut sums = all(w, false, &sums)?;
        if is_whole && self.keeps_rests() {
            let rests = all(w, true, &nothing)?;
            sums = self.with_rests(w, sums, rests, self.most_of_weight(page));
        }
        if depth > 1 && !is_whole {
            // Of the last pair only one token may exist.
            let two = w.i64(2);
            let before = w.mul(last, page_tokens);
            let left = w.sub(n_keys, before);
            let in_page = w.cmp(super::Cmp::Lt, left, page_tokens);
            let rest = w.rem_unsigned(left, two);
            let odd = w.cmp(super::Cmp::Ne, rest, zero);
            let odd = w.and(in_page, odd);
            sums = w.if_else(odd, &sums, |w| {
                let values = values_of(w, last);
                let pair = w.div_unsigned(left, two);
                let values = w.element(values, pair, row);
                let token = w.sub(n_keys, one);
                let weights = w.element(weights, token, 4);
                step(w, (values, true), weights, true, &sums)
            })?;
        }
        for (i, (sum, cell)) in sums.into_iter().zip(cells).enumerate() {
            let sum = match scales.get(i / masks.len()) {
                None => sum,
                Some(scale) => {
                    let sum = w.as_float(sum);
                    let before = w.load(Ty::of(Elem::F32, at.lanes), cell);
                    w.fma(sum, *scale, before)
                }
            };
            w.store(sum, cell);
        }
        Ok(())
    }
}
