//! What pages hold, as products of tiles read it: bf16 as it is; bytes, integers or floats, as bf16, and what was scaled together times its scale.

use super::{CHUNK, COLUMNS, Divided, Place};
use crate::error::CodegenError;
use crate::mlir::attention::tensors::{Four, KEYS, fours, times_scales};
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::HeadPage;

/// Elements that a thread loads together.
const TOGETHER: u64 = 8;

/// The group of scales that an element is of, where there are scales.
pub(super) fn group_of(head: HeadPage, element: u64) -> Option<u64> {
    let groups = head.groups();
    groups.iter().position(|(first, n)| (*first..first + n).contains(&element)).map(|group| group as u64)
}

/// Whether elements are floats of 8 bits; `None`: they are bf16.
fn form(head: HeadPage) -> Option<bool> {
    head.dtype.blocks().map(|blocks| blocks.form.is_float())
}

impl Divided<'_> {
    /// Scales of a thread's two keys of each tile, in bf16 from `at` on; of `n` keys, those behind are 0.
    pub(super) fn scales(&self, w: &mut Writer, place: Place, at: Val, n: Option<Val>) -> Vec<[Val; 2]> {
        let two = w.i64(2);
        let first = w.mul(place.quarter, two);
        let at = w.element(at, first, 2);
        let none = w.f32(0.0, 0);
        (0..self.at.spec.page_tokens / KEYS)
            .map(|tile| {
                let at = w.offset_const(at, tile * KEYS * 2);
                let [word] = w.load_words(at);
                let upper = w.int(i64::from(0xFFFF_0000_u32.cast_signed()), word.ty);
                let both = [w.shl(word, 16), w.and(word, upper)];
                let mut scales = both.map(|bits| w.bitcast(bits, Ty::scalar(Elem::F32)));
                if let Some(n) = n {
                    for (i, scale) in scales.iter_mut().enumerate() {
                        let behind = w.i64((tile * KEYS) as i64 + i as i64);
                        let key = w.add(first, behind);
                        let there = w.cmp(Cmp::Lt, key, n);
                        *scale = w.select(there, *scale, none);
                    }
                }
                scales
            })
            .collect()
    }

    /// Products of the queries with the keys of a page.
    pub(super) fn products(
        &self,
        w: &mut Writer,
        place: Place,
        keys: Val,
        queries: &[[Val; 4]],
        n_queries: usize,
    ) -> Result<Vec<Four>, CodegenError> {
        let head = self.at.spec.keys();
        let elements = w.offset_const(keys, head.scale_bytes());
        let groups = head.groups();
        if groups.is_empty() {
            return self.products_of(w, place, elements, (queries, n_queries), (0, self.layout.chunks));
        }
        let mut total: Option<Vec<Four>> = None;
        for (number, (first, n)) in (0..).zip(groups) {
            let chunks = (first / CHUNK, (first + n).div_ceil(CHUNK));
            let mut products = self.products_of(w, place, elements, (queries, n_queries), chunks)?;
            let scales = w.offset_const(keys, number * head.group_bytes());
            let scales = self.scales(w, place, scales, None);
            times_scales(w, &mut products, &scales);
            total = Some(match total {
                None => products,
                Some(total) => {
                    let both = total.iter().flatten().zip(products.iter().flatten());
                    let sums: Vec<Val> = both.map(|(a, b)| w.add(*a, *b)).collect();
                    fours(&sums)
                }
            });
        }
        total.ok_or_else(|| CodegenError::bug("attention", "keys without elements"))
    }

    /// The same with some chunks of the keys, without their scales.
    fn products_of(
        &self,
        w: &mut Writer,
        place: Place,
        keys: Val,
        (queries, n_queries): (&[[Val; 4]], usize),
        (begin, end): (u64, u64),
    ) -> Result<Vec<Four>, CodegenError> {
        let spec = self.at.spec;
        let bytes = spec.keys().element_bytes();
        let zero = w.f32(0.0, 0);
        let mut products = vec![[zero; 4]; (spec.page_tokens / KEYS) as usize];
        let own = w.element(keys, place.eighth, spec.key_dim * bytes);
        let of_quarter = w.shl(place.quarter, (TOGETHER * bytes).ilog2());
        // Behind the last elements these are repeated: queries are zeros there.
        let last = w.i64(((spec.key_dim - TOGETHER) * bytes) as i64);
        if !queries.is_empty() {
            for (chunk, rows) in (0..).zip(queries.chunks(n_queries)).take(end as usize).skip(begin as usize) {
                let first = w.i64((chunk * CHUNK * bytes) as i64);
                let at = w.add(of_quarter, first);
                let at = if (chunk + 1) * CHUNK > spec.key_dim { w.min(at, last) } else { at };
                let own = w.offset(own, at);
                self.chunk(w, own, rows, &mut products);
            }
            return Ok(products);
        }
        let (begin, end) = (w.i64(begin as i64), w.i64(end as i64));
        let sums = w.for_loop(begin, end, 1, &products.concat(), |w, chunk, sums| {
            let first = w.shl(chunk, (CHUNK * bytes).ilog2());
            let at = w.add(of_quarter, first);
            let at = w.min(at, last);
            let own = w.offset(own, at);
            let rows: Vec<[Val; 4]> = (0..n_queries)
                .map(|i| {
                    let first = self.place_of(w, place, 0, i);
                    let at = w.element(first, chunk, self.layout.queries * 32 * 16);
                    w.load_words::<4>(at)
                })
                .collect();
            let mut products = fours(sums);
            self.chunk(w, own, &rows, &mut products);
            Ok(products.concat())
        })?;
        Ok(fours(&sums))
    }

    /// Adds the products of a chunk, of which a thread's first key is at `own`.
    fn chunk(&self, w: &mut Writer, own: Val, rows: &[[Val; 4]], products: &mut [Four]) {
        let none = w.int(0, Ty::scalar(Elem::I32));
        let head = self.at.spec.keys();
        let raw: Vec<Vec<Val>> = (0..products.len() as u64)
            .map(|tile| {
                let at = w.offset_const(own, tile * KEYS * head.dim * head.element_bytes());
                eight(w, at, head)
            })
            .collect();
        let columns: Vec<[Val; 4]> = raw.iter().map(|raw| pairs_of_key(w, raw, head)).collect();
        for half in 0..2 {
            let second = rows.get(1).copied().unwrap_or([none; 4]);
            let (a, b) = (2 * half, 2 * half + 1);
            let of_rows = [rows[0][a], second[a], rows[0][b], second[b]];
            for (columns, sums) in columns.iter().zip(products.iter_mut()) {
                *sums = w.tile_dot(self.dot, of_rows, [columns[a], columns[b]], *sums);
            }
        }
    }

    /// What a thread holds of eight tiles of values: 16 keys by 64 columns, one of each tile a thread's own.
    pub(super) fn columns(
        &self,
        w: &mut Writer,
        place: Place,
        (values, n_keys): (Val, Val),
        (step, chunk): (u64, u64),
    ) -> Vec<[Val; 2]> {
        let head = self.at.values();
        let bytes = head.element_bytes();
        let first = w.shl(place.quarter, 1);
        let within = w.shl(place.eighth, (TOGETHER * bytes).ilog2());
        // Behind the last columns and keys these are repeated: such columns are not stored, and such keys weigh nothing.
        let last = ((self.layout.columns - chunk * COLUMNS).min(COLUMNS) - TOGETHER) * bytes;
        let last = w.i64(last as i64);
        let within = w.min(within, last);
        let one = w.i64(1);
        let last = w.sub(n_keys, one);
        let rows = [0, 1, 8, 9].map(|shift| {
            let shift = w.i64((step * 16 + shift) as i64);
            let key = w.add(first, shift);
            let key = w.min(key, last);
            let at = w.element(values, key, head.dim * bytes);
            let at = w.offset(at, within);
            let at = w.offset_const(at, chunk * COLUMNS * bytes);
            eight(w, at, head)
        });
        (0..TOGETHER as usize)
            .map(|column| {
                [0, 2].map(|pair| {
                    let of = |word: usize| [rows[pair][word], rows[pair + 1][word]];
                    match form(head) {
                        None => w.halves(of(column / 2), column % 2 == 1),
                        Some(is_float) => w.pair_of_bytes(is_float, of(column / 4), [column as u32 % 4; 2]),
                    }
                })
            })
            .collect()
    }
}

/// Eight elements of a key or a value, as they lie.
fn eight(w: &mut Writer, at: Val, head: HeadPage) -> Vec<Val> {
    match form(head) {
        None => w.load_words::<4>(at).to_vec(),
        Some(_) => w.load_words::<2>(at).to_vec(),
    }
}

/// Those of a key in pairs.
fn pairs_of_key(w: &mut Writer, raw: &[Val], head: HeadPage) -> [Val; 4] {
    [0, 1, 2, 3].map(|pair| match form(head) {
        None => raw[pair],
        Some(is_float) => {
            let byte = 2 * (pair as u32 % 2);
            w.pair_of_bytes(is_float, [raw[pair / 2]; 2], [byte, byte + 1])
        }
    })
}
