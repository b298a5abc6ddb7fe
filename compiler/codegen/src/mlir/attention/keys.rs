//! Products of a query with the keys of a page, in either layout of the page, one number a token.

use super::super::expr::{cast, elem_of};
use super::super::writer::{Elem, Ty, Val, Writer};
use super::Attention;
use crate::error::CodegenError;
use crate::plan::kernel::dtype_bytes;

/// Tokens of a page whose scores are summed at the same time, where keys lie token by token: a loaded query serves all.
const TOKENS_TOGETHER: u64 = 4;

impl Attention<'_> {
    pub(super) fn kept_bytes(&self) -> u64 {
        dtype_bytes(self.spec.kept)
    }

    /// Loads consecutive kept elements as f32.
    pub(super) fn load_kept(
        &self,
        w: &mut Writer,
        at: Val,
        lanes: u32,
        mask: Option<Val>,
    ) -> Result<Val, CodegenError> {
        let elem = elem_of(self.spec.kept, Elem::I64)?;
        let ty = Ty::of(elem, lanes);
        let raw = match mask {
            None => w.load(ty, at),
            Some(mask) => w.load_masked(ty, at, mask),
        };
        cast(w, raw, Elem::F32)
    }

    /// `scale`-free products of the query with the keys of a page.
    pub(super) fn dots(
        &self,
        w: &mut Writer,
        (q, q_elem): (Val, Elem),
        keys: Val,
        n_vectors: usize,
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let lanes = self.lanes;
        let unroll = 4_u64;
        let looped = spec.key_dim / unroll * unroll;
        let chains = 4 / n_vectors.clamp(1, 4);
        let zero = w.f32(0.0, lanes);
        let key_bytes = spec.page_tokens * self.kept_bytes();
        let mut sums = vec![zero; n_vectors * chains];
        let step = |w: &mut Writer, q: Val, keys: Val, d: u64, sums: &mut [Val]| -> Result<(), CodegenError> {
            let at = w.offset_const(q, d * q_elem.bytes());
            let x = w.load(Ty::scalar(q_elem), at);
            let x = cast(w, x, Elem::F32)?;
            let x = w.splat(x, lanes);
            for (v, sum) in sums.iter_mut().enumerate() {
                let at = w.offset_const(keys, d * key_bytes + v as u64 * u64::from(lanes) * self.kept_bytes());
                let k = self.load_kept(w, at, lanes, None)?;
                *sum = w.fma(x, k, *sum);
            }
            Ok(())
        };
        if looped > 0 {
            let begin = w.i64(0);
            let end = w.i64(looped as i64);
            sums = w.for_loop(begin, end, unroll as i64, &sums, |w, d, sums| {
                let mut sums = sums.to_vec();
                let q = w.element(q, d, q_elem.bytes());
                let keys = w.element(keys, d, key_bytes);
                for u in 0..unroll {
                    let chain = (u as usize % chains) * n_vectors;
                    step(w, q, keys, u, &mut sums[chain..chain + n_vectors])?;
                }
                Ok(sums)
            })?;
        }
        for d in looped..spec.key_dim {
            step(w, q, keys, d, &mut sums[..n_vectors])?;
        }
        for chain in 1..chains {
            for v in 0..n_vectors {
                sums[v] = w.add(sums[v], sums[chain * n_vectors + v]);
            }
        }
        sums.truncate(n_vectors);
        Ok(sums)
    }

    /// The same of keys that lie token by token: each is a sum over lanes, and all pass through scratch.
    pub(super) fn dots_by_token(
        &self,
        w: &mut Writer,
        (q, q_elem): (Val, Elem),
        keys: Val,
        n_vectors: usize,
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let lanes = u64::from(self.lanes);
        let together = TOKENS_TOGETHER.min(spec.page_tokens);
        let key_bytes = spec.key_dim * self.kept_bytes();
        let step = |w: &mut Writer, q: Val, keys: Val, mask: Option<Val>, sums: &mut [Val]| {
            let ty = Ty::of(q_elem, self.lanes);
            let x = match mask {
                None => w.load(ty, q),
                Some(mask) => w.load_masked(ty, q, mask),
            };
            let x = cast(w, x, Elem::F32)?;
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = w.offset_const(keys, t as u64 * key_bytes);
                let k = self.load_kept(w, at, self.lanes, mask)?;
                *sum = w.fma(x, k, *sum);
            }
            Ok::<(), CodegenError>(())
        };
        let looped = spec.key_dim / lanes * lanes;
        let (begin, end) = (w.i64(0), w.i64(spec.page_tokens as i64));
        w.for_loop(begin, end, together as i64, &[], |w, token, _| {
            let keys = w.element(keys, token, key_bytes);
            let mut sums = vec![w.f32(0.0, self.lanes); together as usize];
            if looped > 0 {
                let (begin, end) = (w.i64(0), w.i64(looped as i64));
                sums = w.for_loop(begin, end, lanes as i64, &sums, |w, d, sums| {
                    let mut sums = sums.to_vec();
                    let q = w.element(q, d, q_elem.bytes());
                    let keys = w.element(keys, d, self.kept_bytes());
                    step(w, q, keys, None, &mut sums)?;
                    Ok(sums)
                })?;
            }
            if looped < spec.key_dim {
                let inside: Vec<i64> = (0..lanes).map(|l| i64::from(looped + l < spec.key_dim)).collect();
                let mask = w.lanes(&inside, Elem::I1);
                let q = w.offset_const(q, looped * q_elem.bytes());
                let keys = w.offset_const(keys, looped * self.kept_bytes());
                step(w, q, keys, Some(mask), &mut sums)?;
            }
            let scratch = w.element(self.scratch, token, 4);
            for (t, sum) in sums.iter().enumerate() {
                let dot = w.reduce_add(*sum);
                let at = w.offset_const(scratch, t as u64 * 4);
                w.store(dot, at);
            }
            Ok(vec![])
        })?;
        let load = |v: usize| {
            let at = w.offset_const(self.scratch, v as u64 * lanes * 4);
            w.load(Ty::of(Elem::F32, self.lanes), at)
        };
        Ok((0..n_vectors).map(load).collect())
    }
}
