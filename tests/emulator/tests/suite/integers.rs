//! Integer arithmetic, logic, shifts, bit fields, comparisons.

use crate::harness::{Random, each};

/// Checks an instruction on random sources of these widths.
fn check(instruction: &str, types: &str, want: impl Fn(u64, u64, u64) -> u64) {
    let bits = |letter: char| match letter {
        'h' => 16,
        'r' => 32,
        'a' => 64,
        'p' => 1,
        other => panic!("{other}"),
    };
    let mut random = Random::new(instruction.len() as u64);
    let letters: Vec<char> = types.chars().collect();
    let sources: Vec<[u64; 3]> =
        (0..512).map(|_| std::array::from_fn(|i| letters.get(i + 1).map_or(0, |&l| random.bits(bits(l))))).collect();
    let width = bits(letters[0]);
    for (&[a, b, c], got) in sources.iter().zip(each(instruction, types, &sources)) {
        let want = want(a, b, c) & (u64::MAX >> (64 - width));
        assert_eq!(got, want, "{instruction} of {a:#x} {b:#x} {c:#x}: {got:#x} for {want:#x}");
    }
}

fn s32(v: u64) -> i64 {
    i64::from(v as i32)
}

fn s64(v: u64) -> i128 {
    i128::from(v as i64)
}

#[test]
fn sums_and_products() {
    check("add.s32 D, A, B", "rrr", |a, b, _| a + b);
    check("sub.u64 D, A, B", "aaa", |a, b, _| a.wrapping_sub(b));
    check("add.u16 D, A, B", "hhh", |a, b, _| a + b);
    check("add.sat.s32 D, A, B", "rrr", |a, b, _| u64::from((a as i32).saturating_add(b as i32) as u32));
    check("mul.lo.s32 D, A, B", "rrr", |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u32 D, A, B", "rrr", |a, b, _| (a * b) >> 32);
    check("mul.hi.s32 D, A, B", "rrr", |a, b, _| ((s32(a) * s32(b)) >> 32) as u64);
    check("mul.hi.u64 D, A, B", "aaa", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("mul.hi.s64 D, A, B", "aaa", |a, b, _| ((s64(a) * s64(b)) >> 64) as u64);
    check("mul.wide.s32 D, A, B", "arr", |a, b, _| (s32(a) * s32(b)) as u64);
    check("mul.wide.u16 D, A, B", "rhh", |a, b, _| a * b);
    check("mad.lo.u32 D, A, B, C", "rrrr", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check("mad.wide.u32 D, A, B, C", "arra", |a, b, c| (a * b).wrapping_add(c));
    check("mad.hi.u32 D, A, B, C", "rrrr", |a, b, c| ((a * b) >> 32).wrapping_add(c));
    check("mul24.lo.u32 D, A, B", "rrr", |a, b, _| (a & 0xff_ffff) * (b & 0xff_ffff));
    check("sad.u32 D, A, B, C", "rrrr", |a, b, c| a.abs_diff(b) + c);
}

#[test]
fn division_and_extremes() {
    check("div.u32 D, A, B", "rrr", |a, b, _| a.checked_div(b).unwrap_or(u64::MAX));
    check("div.s32 D, A, B", "rrr", |a, b, _| if b == 0 { u64::MAX } else { (s32(a) / s32(b)) as u64 });
    check("rem.u64 D, A, B", "aaa", |a, b, _| a.checked_rem(b).unwrap_or(a));
    check("rem.s32 D, A, B", "rrr", |a, b, _| if b == 0 { a } else { (s32(a) % s32(b)) as u64 });
    check("min.s32 D, A, B", "rrr", |a, b, _| s32(a).min(s32(b)) as u64);
    check("max.u64 D, A, B", "aaa", |a, b, _| a.max(b));
    check("min.s64 D, A, B", "aaa", |a, b, _| s64(a).min(s64(b)) as u64);
    check("max.s16x2 D, A, B", "rrr", |a, b, _| {
        let one = |shift: u32| u64::from(((a >> shift) as i16).max((b >> shift) as i16) as u16) << shift;
        one(0) | one(16)
    });
    check("abs.s32 D, A", "rr", |a, _, _| s32(a).unsigned_abs());
    check("neg.s64 D, A", "aa", |a, _, _| a.wrapping_neg());
}

#[test]
fn logic_and_shifts() {
    check("and.b32 D, A, B", "rrr", |a, b, _| a & b);
    check("xor.b64 D, A, B", "aaa", |a, b, _| a ^ b);
    check("not.b16 D, A", "hh", |a, _, _| !a);
    check("cnot.b32 D, A", "rr", |a, _, _| u64::from(a == 0));
    check("xor.pred D, A, B", "ppp", |a, b, _| a ^ b);
    check("not.pred D, A", "pp", |a, _, _| !a);
    check("shl.b32 D, A, B", "rrr", |a, b, _| if b > 31 { 0 } else { a << b });
    check("shr.u32 D, A, B", "rrr", |a, b, _| if b > 31 { 0 } else { a >> b });
    check("shr.s32 D, A, B", "rrr", |a, b, _| (s32(a) >> b.min(31)) as u64);
    check("shr.s64 D, A, B", "aar", |a, b, _| ((a as i64) >> b.min(63)) as u64);
    check("shr.s16 D, A, B", "hhr", |a, b, _| (i64::from(a as i16) >> b.min(15)) as u64);
    check("shf.l.wrap.b32 D, A, B, C", "rrrr", |a, b, c| ((b << 32 | a) << (c & 31)) >> 32);
    check("shf.r.clamp.b32 D, A, B, C", "rrrr", |a, b, c| (b << 32 | a) >> c.min(32));
    check("lop3.b32 D, A, B, C, 0xE2", "rrrr", |a, b, c| {
        (0..32).fold(0, |out, i| {
            let row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
            out | (0xe2 >> row & 1) << i
        })
    });
    check("lop3.b32 D, A, B, C, 0x96", "rrrr", |a, b, c| a ^ b ^ c);
}

#[test]
fn bits_and_bytes() {
    check("popc.b32 D, A", "rr", |a, _, _| a.count_ones().into());
    check("popc.b64 D, A", "ra", |a, _, _| a.count_ones().into());
    check("clz.b32 D, A", "rr", |a, _, _| u64::from((a as u32).leading_zeros()));
    check("clz.b64 D, A", "ra", |a, _, _| a.leading_zeros().into());
    check("brev.b32 D, A", "rr", |a, _, _| u64::from((a as u32).reverse_bits()));
    check("bfind.u32 D, A", "rr", |a, _, _| a.checked_ilog2().map_or(u64::MAX, u64::from));
    check("bfind.shiftamt.s32 D, A", "rr", |a, _, _| {
        let a = if s32(a) < 0 { !a & 0xffff_ffff } else { a };
        a.checked_ilog2().map_or(u64::MAX, |at| 31 - u64::from(at))
    });
    let field = |a: u64, b: u64, c: u64| {
        let (at, n) = (b & 255, c & 255);
        (0..32u64).fold((0u64, 0u64), |(plain, signed), i| {
            let bit = |at: u64| if n == 0 { 0 } else { a >> at.min(31) & 1 };
            let inside = i < n && at + i < 32;
            let value = if inside { a >> (at + i) & 1 } else { 0 };
            let sign = if inside { value } else { bit(at + n.wrapping_sub(1).min(255)) };
            (plain | value << i, signed | sign << i)
        })
    };
    check("bfe.u32 D, A, B, C", "rrrr", move |a, b, c| field(a, b, c).0);
    check("bfe.s32 D, A, B, C", "rrrr", move |a, b, c| field(a, b, c).1);
    check("bfi.b32 D, A, B, 5, C", "rrrr", |a, b, c| {
        let n = (c & 255).min(27);
        let mask = ((1u64 << n) - 1) << 5;
        (b & !mask) | (a << 5 & mask)
    });
    check("prmt.b32 D, A, B, C", "rrrr", |a, b, c| {
        let all = b << 32 | a;
        (0..4).fold(0, |out, i| {
            let pick = c >> (4 * i) & 15;
            let byte = all >> (8 * (pick & 7)) & 255;
            out | (if pick & 8 == 0 { byte } else { (byte >> 7) * 255 }) << (8 * i)
        })
    });
    check("dp4a.s32.u32 D, A, B, C", "rrrr", |a, b, c| {
        (0..4)
            .fold(c, |sum, i| sum.wrapping_add((i64::from((a >> (8 * i)) as i8) * (b >> (8 * i) & 255) as i64) as u64))
    });
    check("dp2a.lo.u32.u32 D, A, B, C", "rrrr", |a, b, c| {
        (0..2).fold(c, |sum, i| sum.wrapping_add((a >> (16 * i) & 0xffff) * (b >> (8 * i) & 255)))
    });
}

#[test]
fn comparisons_and_selections() {
    check("setp.lt.s32 D, A, B", "prr", |a, b, _| u64::from(s32(a) < s32(b)));
    check("setp.hs.u32 D, A, B", "prr", |a, b, _| u64::from(a >= b));
    check("setp.ge.u64 D, A, B", "paa", |a, b, _| u64::from(a >= b));
    check("setp.ne.s16 D, A, B", "phh", |a, b, _| u64::from(a != b));
    check("setp.gt.and.u32 D, A, B, C", "prrp", |a, b, c| u64::from(a > b) & c);
    check("setp.eq.or.b32 D, A, B, !%p3", "prrp", |a, b, c| u64::from(a == b) | (c ^ 1));
    check("selp.b32 D, A, B, C", "rrrp", |a, b, c| if c != 0 { a } else { b });
    check("slct.u32.s32 D, A, B, C", "rrrr", |a, b, c| if s32(c) >= 0 { a } else { b });
    check("set.gt.u32.u32 D, A, B", "rrr", |a, b, _| if a > b { u64::MAX } else { 0 });
}

#[test]
fn carries() {
    let instruction = "mov.b64 {%r5, %r6}, A; mov.b64 {%r7, %r8}, B; add.cc.u32 %r5, %r5, %r7; addc.u32 %r6, %r6, %r8; mov.b64 D, {%r5, %r6}";
    check(instruction, "aaa", |a, b, _| a.wrapping_add(b));
    let instruction = "mov.b64 {%r5, %r6}, A; mov.b64 {%r7, %r8}, B; sub.cc.u32 %r5, %r5, %r7; subc.u32 %r6, %r6, %r8; mov.b64 D, {%r5, %r6}";
    check(instruction, "aaa", |a, b, _| a.wrapping_sub(b));
}
