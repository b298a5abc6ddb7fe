//! Products with integers of 8 bits that caches keep: by pairs, with queries and weights that are rounded to integers of 16 bits, so that bytes are widened
//! to 16 bits and no further, and sums become floats once for a page.
//!
//! A query is rounded relative to its largest element; the weights of a block or of a page, times the scales of their values, relative to the largest of them.
//! So what is rounded is off by 2^-16 of the largest beside it (by more where groups or blocks are so large that integers have fewer bits). Where results stay
//! f32, what that left of each is rounded and multiplied likewise, which leaves 2^-31. A query or a weight that is infinite or no number makes the scale none.

use xfc_lang::graph::DType;

use super::super::expr::cast;
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::Attention;
use super::blocks::{Blocks, Micro};
use super::layout::Form;
use crate::error::CodegenError;

/// The largest integer of 8 bits that is kept.
const MOST_KEPT: u64 = 127;

/// What is smaller counts as 0: divided by it, the largest integer of 16 bits is still a float.
const LEAST: f64 = 1e-33;

/// The largest integer whose products with so many that are kept add up to one of 32 bits.
fn largest(terms: u64) -> u64 {
    (i32::MAX as u64 / (MOST_KEPT * terms.max(1))).min(i16::MAX as u64)
}

impl Attention<'_> {
    /// Loads pairs of bytes, one for each lane.
    pub(super) fn load_bytes(&self, w: &mut Writer, at: Val, mask: Option<Val>) -> Val {
        let bytes = Ty::of(Elem::I8, self.lanes * 2);
        match mask {
            None => w.load(bytes, at),
            Some(mask) => {
                let pairs = w.load_masked(Ty::of(Elem::I16, self.lanes), at, mask);
                w.bitcast(pairs, bytes)
            }
        }
    }
}

impl Writer {
    /// Integers as f32; what is f32 as it is.
    pub(super) fn as_float(&mut self, x: Val) -> Val {
        if x.ty.elem.is_float() { x } else { self.to_float(x) }
    }

    /// The bits of a float without its sign, which are ordered as magnitudes are, and above all of them what is no number.
    fn magnitude_bits(&mut self, x: Val) -> Val {
        let bits = self.bitcast(x, x.ty.with(Elem::I32));
        let without_sign = self.int(i64::from(i32::MAX), bits.ty);
        self.and(bits, without_sign)
    }

    /// For numbers whose largest magnitude has these bits: what they are multiplied by to be integers up to `most`, and what brings those back.
    fn rounded_words(&mut self, bits: Val, most: u64) -> (Val, Val) {
        let magnitude = self.bitcast(bits, bits.ty.with(Elem::F32));
        let (zero, least) = (self.f32(0.0, 0), self.f32(LEAST, 0));
        let most_of_all = self.f32(most as f64, 0);
        let factor = self.div(most_of_all, magnitude);
        let is_tiny = self.cmp(Cmp::Lt, magnitude, least);
        let factor = self.select(is_tiny, zero, factor);
        let step = self.f32(1.0 / most as f64, 0);
        (factor, self.mul(magnitude, step))
    }
}

impl Blocks<'_> {
    /// A vector of no sum yet.
    pub(super) fn nothing(&self, w: &mut Writer, form: Form) -> Val {
        match form {
            Form::Words(_) => w.int(0, Ty::of(Elem::I32, self.at.lanes)),
            _ => w.f32(0.0, self.at.lanes),
        }
    }

    /// Brings the elements of a query into scratch, as integers, and what these are to be multiplied by.
    pub(super) fn enter_words(
        &self,
        w: &mut Writer,
        (from, stored): (Val, Elem),
        index: Val,
    ) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let lanes = self.at.lanes;
        let whole = spec.key_dim / u64::from(lanes) * u64::from(lanes);
        let vectors = (0..whole).step_by(lanes as usize).map(|first| (first, lanes));
        let pieces: Vec<(u64, u32)> = vectors.chain((whole..spec.key_dim).map(|first| (first, 0))).collect();
        let mut elements = Vec::with_capacity(pieces.len());
        let mut highest = [lanes, 0].map(|lanes| w.int(0, Ty::of(Elem::I32, lanes)));
        for (first, n) in &pieces {
            let at = w.offset_const(from, first * stored.bytes());
            let x = w.load(Ty::of(stored, *n), at);
            let x = cast(w, x, Elem::F32)?;
            let bits = w.magnitude_bits(x);
            let of = &mut highest[usize::from(*n == 0)];
            *of = w.max(*of, bits);
            elements.push(x);
        }
        let of_vectors = w.reduce_max(highest[0]);
        let highest = w.max(of_vectors, highest[1]);
        let most = self.most_of_query();
        let (factor, scale) = w.rounded_words(highest, most);
        let at = self.cell(w, self.layout.query_scales, index, 4);
        w.store(scale, at);
        let to = self.cell(w, self.layout.queries, index, self.layout.query_bytes);
        for ((first, n), x) in pieces.iter().zip(elements) {
            let factor = w.splat(factor, *n);
            let x = w.mul(x, factor);
            let at = w.offset_const(to, first * 2);
            self.store_word(w, x, most, (at, self.layout.query_rests));
        }
        Ok(())
    }

    /// Stores the nearest integers, up to `most`, and behind them what that left of each.
    fn store_word(&self, w: &mut Writer, x: Val, most: u64, (at, behind): (Val, u64)) {
        let integer = w.nearest(x);
        let narrow = w.resize(integer, Elem::I16);
        w.store(narrow, at);
        if self.keeps_rests() {
            let rounded = w.to_float(integer);
            let rest = w.sub(x, rounded);
            let parts = w.f32(2.0 * most as f64, x.ty.lanes);
            let rest = w.mul(rest, parts);
            let rest = w.nearest(rest);
            let rest = w.resize(rest, Elem::I16);
            let at = w.offset_const(at, behind);
            w.store(rest, at);
        }
    }

    /// The largest integer that an element of a query becomes.
    pub(super) fn most_of_query(&self) -> u64 {
        let spec = self.at.spec;
        largest(spec.keys().groups().into_iter().map(|(_, n)| n).max().unwrap_or(spec.key_dim))
    }

    /// The largest integer that the weight of a value becomes, of a page or of a block.
    pub(super) fn most_of_weight(&self, page: Option<Val>) -> u64 {
        largest(if page.is_some() { self.at.spec.page_tokens } else { self.block_keys() })
    }

    /// What the integers of a query of a register tile are to be multiplied by, in all lanes.
    pub(super) fn query_scale(&self, w: &mut Writer, micro: Micro, query: u64) -> Val {
        let at = self.cell(w, self.layout.query_scales + query * 4, micro.first, 4);
        let scale = w.load(Ty::scalar(Elem::F32), at);
        w.splat(scale, self.at.lanes)
    }

    /// Whether what rounding leaves of queries and of weights is kept too, and multiplied by itself: where results are not rounded to fewer bits than they are.
    pub(super) fn keeps_rests(&self) -> bool {
        self.at.spec.result == DType::F32
    }

    /// Sums of integers up to `most`, as floats, with those of what rounding left of them.
    pub(super) fn with_rests(&self, w: &mut Writer, sums: Vec<Val>, rests: Vec<Val>, most: u64) -> Vec<Val> {
        let part = w.f32(0.5 / most as f64, self.at.lanes);
        let both = sums.into_iter().zip(rests);
        both.map(|(sum, rest)| {
            let (sum, rest) = (w.as_float(sum), w.as_float(rest));
            w.fma(rest, part, sum)
        })
        .collect()
    }

    /// Rounds the weights of a block's values, or of one page's, times the scales of these; all lanes of the pages are weights. Integers take the first half of what the weights of a page
    /// did, and what rounding left of each, as integers again, the second. Gives what their sums are to be multiplied by, of each query, in all lanes.
    pub(super) fn round_weights(
        &self,
        w: &mut Writer,
        micro: Micro,
        n_keys: Val,
        page: Option<Val>,
    ) -> Result<Vec<Val>, CodegenError> {
        let at = self.at;
        let tokens = at.spec.page_tokens;
        let vector = Ty::of(Elem::F32, at.lanes);
        let weights = self.cell(w, self.layout.scores, micro.place, self.block_keys() * 4);
        let page_vectors = at.page_vectors() as u64;
        let cell = |w: &mut Writer, of_page: Val, query: u64, vector: u64, bytes: u64| {
            w.offset_const(of_page, query * self.block_keys() * 4 + vector * u64::from(at.lanes) * bytes)
        };
        // Weights times scales, of a page: the largest so far.
        let scaled = |w: &mut Writer, page: Val, highest: &[Val]| {
            let scales = self.page_of(w, micro, page, true);
            let of_page = w.element(weights, page, tokens * 4);
            let mut highest = highest.to_vec();
            for v in 0..page_vectors {
                let scales = w.offset_const(scales, v * u64::from(at.lanes) * 2);
                let scales = at.load_scales(w, scales, at.lanes);
                for (query, highest) in highest.iter_mut().enumerate() {
                    let cell = cell(w, of_page, query as u64, v, 4);
                    let weight = w.load(vector, cell);
                    let x = w.mul(weight, scales);
                    // What is not seen has no scale that counts.
                    let zero = w.f32(0.0, at.lanes);
                    let is_none = w.cmp(Cmp::Eq, weight, zero);
                    let x = w.select(is_none, zero, x);
                    let bits = w.magnitude_bits(x);
                    *highest = w.max(*highest, bits);
                    w.store(x, cell);
                }
            }
            highest
        };
        let most = self.most_of_weight(page);
        let rounded = |w: &mut Writer, page: Val, factors: &[Val]| {
            let of_page = w.element(weights, page, tokens * 4);
            for (query, factor) in factors.iter().enumerate() {
                // All are read before the first is written over them.
                let scaled = |w: &mut Writer, v: u64| {
                    let from = cell(w, of_page, query as u64, v, 4);
                    let x = w.load(vector, from);
                    w.mul(x, *factor)
                };
                let all: Vec<Val> = (0..page_vectors).map(|v| scaled(w, v)).collect();
                for (v, x) in (0..).zip(all) {
                    let to = cell(w, of_page, query as u64, v, 2);
                    self.store_word(w, x, most, (to, tokens * 2));
                }
            }
        };
        let none = w.int(0, vector.with(Elem::I32));
        let highest = vec![none; self.schedule.queries as usize];
        let (zero, n_pages) = (w.i64(0), w.ceil_div(n_keys, tokens));
        let highest = match page {
            Some(page) => scaled(w, page, &highest),
            None => w.for_loop(zero, n_pages, 1, &highest, |w, page, highest| Ok(scaled(w, page, highest)))?,
        };
        let (mut factors, mut scales) = (Vec::new(), Vec::new());
        for highest in highest {
            let highest = w.reduce_max(highest);
            let (factor, scale) = w.rounded_words(highest, most);
            factors.push(w.splat(factor, at.lanes));
            scales.push(w.splat(scale, at.lanes));
        }
        match page {
            Some(page) => rounded(w, page, &factors),
            None => {
                w.for_loop(zero, n_pages, 1, &[], |w, page, _| {
                    rounded(w, page, &factors);
                    Ok(vec![])
                })?;
            }
        }
        Ok(scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_products_are_integers_of_32_bits() {
        assert_eq!([1, 128, 516].map(largest), [32767; 3]);
        for terms in [517, 576, 1024, 1 << 20] {
            let most = largest(terms) * MOST_KEPT * terms;
            assert!(most <= i32::MAX as u64 && largest(terms) < 32767 && most + MOST_KEPT * terms > i32::MAX as u64);
        }
    }
}
