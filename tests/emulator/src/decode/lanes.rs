//! Instructions that compute each lane by itself, as closures over rows of registers: decoded once, then one indirect call for 32 lanes,
//! with an inner loop that the compiler can vectorise.

use super::types::Slot;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One register of all lanes of a warp.
pub(crate) type Row = [u64; LANES];
/// The index of a row.
pub(crate) type Reg = u32;
/// Computes the lanes of a mask. The registers are the results first, then the sources.
pub(crate) type LaneFn = Box<dyn Fn(&mut [Row], &[Reg], u32) + Send + Sync>;

/// The lanes of a mask, in order.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            lane
        })
    })
}

#[inline(always)]
fn each(rows: &mut [Row], to: Reg, mask: u32, value: impl Fn(usize) -> u64) {
    let to = &mut rows[to as usize];
    if mask == u32::MAX {
        for (lane, slot) in to.iter_mut().enumerate() {
            *slot = value(lane);
        }
    } else {
        for (lane, slot) in to.iter_mut().enumerate() {
            if mask >> lane & 1 != 0 {
                *slot = value(lane);
            }
        }
    }
}

/// One source.
pub(crate) fn unary<A: Slot, D: Slot>(f: impl Fn(A) -> D + Send + Sync + 'static) -> LaneFn {
    Box::new(move |rows, regs, mask| {
        let a = rows[regs[1] as usize];
        each(rows, regs[0], mask, |lane| f(A::get(a[lane])).put());
    })
}

/// Two sources.
pub(crate) fn binary<A: Slot, B: Slot, D: Slot>(f: impl Fn(A, B) -> D + Send + Sync + 'static) -> LaneFn {
    Box::new(move |rows, regs, mask| {
        let a = rows[regs[1] as usize];
        let b = rows[regs[2] as usize];
        each(rows, regs[0], mask, |lane| f(A::get(a[lane]), B::get(b[lane])).put());
    })
}

/// Three sources.
pub(crate) fn ternary<A: Slot, B: Slot, C: Slot, D: Slot>(f: impl Fn(A, B, C) -> D + Send + Sync + 'static) -> LaneFn {
    Box::new(move |rows, regs, mask| {
        let a = rows[regs[1] as usize];
        let b = rows[regs[2] as usize];
        let c = rows[regs[3] as usize];
        each(rows, regs[0], mask, |lane| f(A::get(a[lane]), B::get(b[lane]), C::get(c[lane])).put());
    })
}

/// Any number of results and sources: gets all sources of a lane, gives all its results.
pub(crate) fn general<const D: usize, const S: usize>(
    f: impl Fn([u64; S]) -> [u64; D] + Send + Sync + 'static,
) -> LaneFn {
    Box::new(move |rows, regs, mask| {
        for lane in lanes(mask) {
            let sources = std::array::from_fn(|i| rows[regs[D + i] as usize][lane]);
            for (value, &to) in f(sources).into_iter().zip(regs) {
                rows[to as usize][lane] = value;
            }
        }
    })
}
