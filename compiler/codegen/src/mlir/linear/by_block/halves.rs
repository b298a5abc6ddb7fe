//! Weights of integers in groups as pairs of bf16, widened once for a tile, so that registers which hold tiles sum over groups: each number is its integer
//! times its scale, plus its minimum, rounded once to bf16. What tokens bring lies in bf16 already.
//!
//! An integer becomes a float by its bits: it is the upper fraction of a power of two, which one fused operation takes away again while it scales.

use super::{HALF, Linear, Places};
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Ty, Val, Writer};

/// Bits of the fraction of f32, and what is added to its exponents.
const FRACTION: (u64, u64) = (23, 127);

impl Linear<'_> {
    /// Widens the weights of a part of the current columns: `[pair of inputs][column]` in scratch.
    pub(super) fn widen_to_halves(
        &self,
        w: &mut Writer,
        part: usize,
        places: &Places,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let blocks = self.blocks().ok_or_else(|| CodegenError::bug("linear", "no groups of integers"))?;
        let (panel, lanes) = (self.packed(blocks), self.schedule.lanes);
        let word = Ty::of(Elem::I32, lanes);
        let in_word = 32 / panel.bits;
        // Of a float that is 2^bits and the integer, 2^bits and half their range are too much; or 2^bits where there is a minimum.
        let power = (1u64 << panel.bits) as f64;
        let too_much = if panel.minimum { power } else { power * 1.5 };
        let size = w.i64(panel.group as i64);
        let first = w.div_unsigned(first, size);
        let start = w.element(self.starts[part], first, panel.group_bytes());
        let (zero, end) = (w.i64(0), w.i64((inputs / panel.group) as i64));
        w.for_loop(zero, end, 1, &[], |w, group, _| {
            let from = w.element(start, group, panel.group_bytes());
            let to = w.element(places.weights, group, panel.group * panel.columns * HALF);
            for vector in 0..panel.columns / u64::from(lanes) {
                let half = |w: &mut Writer, behind: u64| {
                    let at = w.offset_const(from, behind + vector * u64::from(lanes) * 2);
                    let half = w.load(Ty::of(Elem::I16, lanes), at);
                    let x = w.from_half(half);
                    // Rounding leaves the bits of this one a NaN.
                    w.plain_nan(x)
                };
                let scale = half(w, 0);
                let much = w.f32(-too_much, lanes);
                let offset = if panel.minimum {
                    let minimum = half(w, panel.scales_bytes());
                    w.fma(scale, much, minimum)
                } else {
                    w.mul(scale, much)
                };
                for run in 0..panel.group / in_word {
                    let lane = vector * u64::from(lanes) * 4;
                    let at = w.offset_const(from, panel.integers_at() + run * panel.columns * 4 + lane);
                    let stored = w.load(word, at);
                    for pair in 0..in_word / 2 {
                        let numbers = [0, 1].map(|i| {
                            let x = float_of(w, stored, panel.bits, place_of(2 * pair + i, panel.bits));
                            w.fma(x, scale, offset)
                        });
                        let both = rounded_pair(w, numbers);
                        let number = run * in_word / 2 + pair;
                        let to = w.offset_const(to, number * panel.columns * 4 + lane);
                        w.store(both, to);
                    }
                }
            }
            Ok(vec![])
        })?;
        Ok(())
    }
}

/// First bit of input number `input` of a word: of bytes in order, of halves of bytes first the lower ones.
fn place_of(input: u64, bits: u64) -> u64 {
    if bits == 8 { 8 * input } else { 8 * (input % 4) + 4 * (input / 4) }
}

/// The integers without a sign in `bits` bits of words from bit `place` on, plus 2^bits, as floats.
fn float_of(w: &mut Writer, words: Val, bits: u64, place: u64) -> Val {
    let up = FRACTION.0 - bits;
    let moved = match up.cmp(&place) {
        std::cmp::Ordering::Greater => w.shl(words, (up - place) as u32),
        std::cmp::Ordering::Equal => words,
        std::cmp::Ordering::Less => w.shr(words, (place - up) as u32),
    };
    let mask = w.int((((1u64 << bits) - 1) << up) as i64, words.ty);
    let fraction = w.and(moved, mask);
    let power = w.int(((FRACTION.1 + bits) << FRACTION.0) as i64, words.ty);
    let float = w.or(fraction, power);
    w.bitcast(float, words.ty.with(Elem::F32))
}

/// Two numbers rounded to bf16 in a word, the first in its lower half.
fn rounded_pair(w: &mut Writer, [low, high]: [Val; 2]) -> Val {
    let low = w.nearest_bf16(low);
    let low = w.shr(low, 16);
    let high = w.nearest_bf16(high);
    let mask = w.int(i64::from(0xFFFF_0000_u32.cast_signed()), high.ty);
    let high = w.and(high, mask);
    w.or(low, high)
}
