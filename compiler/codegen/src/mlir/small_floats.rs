//! Floats of 8 bits (E4M3: a sign, 4 bits of exponent, 3 of fraction) widened, and others rounded to them, by the bits they are made of; and integers of 8 bits widened to bf16.
//!
//! Moved to the places of a wider type's exponent and fraction, they are themselves times a power of two, those below the least normal number too. NaN,
//! which has all bits but the sign, is then 480: who keeps a group of them with a scale makes the scale NaN.

use super::writer::{Cmp, Elem, Ty, Val, Writer};

/// What a number of f32 with the bits of one is multiplied by: exponents begin at -126 and not at -6.
const OF_SINGLE: f64 = (1u128 << 120) as f64;

impl Writer {
    /// The floats in byte `byte` of words, in f32, exactly.
    pub fn from_e4m3(&mut self, words: Val, byte: u32) -> Val {
        let high = if byte == 3 { words } else { self.shl(words, 8 * (3 - byte)) };
        let moved = self.shr_signed(high, 4);
        self.moved_e4m3(moved)
    }

    /// The floats that bytes are, in f32, exactly: widened with their signs, so that one shift moves them.
    pub fn from_e4m3_bytes(&mut self, bytes: Val) -> Val {
        let words = self.resize(bytes, Elem::I32);
        let moved = self.shl(words, 20);
        self.moved_e4m3(moved)
    }

    /// Words in which a float's exponent and fraction are where those of f32 are, behind copies of its sign.
    fn moved_e4m3(&mut self, moved: Val) -> Val {
        // The sign stays, and its copies go.
        let mask = self.int(i64::from(0x87F0_0000_u32.cast_signed()), moved.ty);
        let bits = self.and(moved, mask);
        let small = self.bitcast(bits, bits.ty.with(Elem::F32));
        let power = self.f32(OF_SINGLE, small.ty.lanes);
        self.mul(small, power)
    }

    /// The nearest of them to numbers of f32, of two the even one, as the low bits of words; what is larger than the largest becomes that, and what is no
    /// number any of them.
    pub fn to_e4m3(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let bits = self.bitcast(x, x.ty.with(Elem::I32));
        let sign = self.shr(bits, 24);
        let sign_bit = self.int(0x80, bits.ty);
        let sign = self.and(sign, sign_bit);
        let most = self.f32(448.0, lanes);
        let magnitude = self.fabs(x);
        let magnitude = self.min(magnitude, most);
        // Three bits of fraction are left, and a carry goes on to the exponent, which begins at -6 and not at -126.
        let bits = self.bitcast(magnitude, bits.ty);
        let one = self.int(1, bits.ty);
        let odd = self.shr(bits, 20);
        let odd = self.and(odd, one);
        let half = self.int(0x7_FFFF, bits.ty);
        let up = self.add(odd, half);
        let normal = self.add(bits, up);
        let normal = self.shr(normal, 20);
        let exponents = self.int(120 << 3, bits.ty);
        let normal = self.sub(normal, exponents);
        // Below the least normal one: what is left in the last bits of a number whose neighbours are as far apart as here.
        let large = self.f32(16384.0, lanes);
        let moved = self.add(magnitude, large);
        let moved = self.bitcast(moved, bits.ty);
        let before = self.int(i64::from(16384f32.to_bits()), bits.ty);
        let small = self.sub(moved, before);
        let least = self.f32(1.0 / 64.0, lanes);
        let is_small = self.cmp(Cmp::Lt, magnitude, least);
        let magnitude = self.select(is_small, small, normal);
        self.or(magnitude, sign)
    }

    /// The four floats of words as f32, divided by [`OF_HALF`](Self::OF_HALF): by way of f16.
    pub fn from_e4m3_by_halves(&mut self, words: Val) -> [Val; 4] {
        let [even, odd] = [8, 0].map(|up| {
            let (moved, signed) =
                if up == 0 { (self.shr(words, 1), words) } else { (self.shl(words, up - 1), self.shl(words, up)) };
            let magnitudes = self.int(0x3F80_3F80, words.ty);
            let magnitude = self.and(moved, magnitudes);
            let signs = self.int(i64::from(0x8000_8000_u32.cast_signed()), words.ty);
            let sign = self.and(signed, signs);
            self.or(magnitude, sign)
        });
        let halves = |w: &mut Writer, pair: Val| {
            [0, 16].map(|down| {
                let half = if down == 0 { pair } else { w.shr(pair, down) };
                let half = w.resize(half, Elem::I16);
                w.from_half(half)
            })
        };
        let [first, third] = halves(self, even);
        let [second, fourth] = halves(self, odd);
        [first, second, third, fourth]
    }

    /// What [`from_e4m3_by_halves`](Self::from_e4m3_by_halves) leaves to multiply by: exponents of f16 begin at -14.
    pub const OF_HALF: f64 = 256.0;

    /// The four floats of a word that each thread holds, as two words of pairs of bf16, exactly.
    pub fn pairs_of_e4m3(&mut self, word: Val) -> [Val; 2] {
        let zero = self.int(0, word.ty);
        [0x1404, 0x3424].map(|which| {
            let which = self.int(which, word.ty);
            // Each byte in the upper half of one of 16 bits.
            let spread = self.intrinsic("llvm.nvvm.prmt", &[word, zero, which], word.ty);
            let moved = self.shr(spread, 4);
            let magnitudes = self.int(0x07F0_07F0, word.ty);
            let magnitude = self.and(moved, magnitudes);
            let signs = self.int(i64::from(0x8000_8000_u32.cast_signed()), word.ty);
            let sign = self.and(spread, signs);
            let small = self.or(magnitude, sign);
            self.scaled_pair(small)
        })
    }

    /// Two bytes, each of a word that each thread holds, as a pair of bf16, exactly: floats, or integers with a sign.
    pub fn pair_of_bytes(&mut self, is_float: bool, words: [Val; 2], bytes: [u32; 2]) -> Val {
        let ty = words[0].ty;
        let [low, high] = [bytes[0], 4 + bytes[1]];
        let which = self.int(i64::from(low | low << 4 | high << 8 | high << 12), ty);
        // Each byte in both halves of one of 16 bits.
        let spread = self.intrinsic("llvm.nvvm.prmt", &[words[0], words[1], which], ty);
        let of = |w: &mut Writer, from: Val, mask: u32, with: u32| {
            let mask = w.int(i64::from(mask.cast_signed()), ty);
            let with = w.int(i64::from(with.cast_signed()), ty);
            let bits = w.and(from, mask);
            w.or(bits, with)
        };
        if is_float {
            let moved = self.shr(spread, 4);
            let magnitude = of(self, moved, 0x07F0_07F0, 0);
            let sign = of(self, spread, 0x8000_8000, 0);
            let small = self.or(magnitude, sign);
            return self.scaled_pair(small);
        }
        // The lower seven bits behind 128; less 128, or 256 where the byte is below 0.
        let more = of(self, spread, 0x007F_007F, 0x4300_4300);
        let less = of(self, spread, 0x0080_0080, 0xC300_C300);
        let one = self.int(0x3F80_3F80, ty);
        self.multiplied_pair(more, one, less)
    }

    /// Two numbers of bf16 times 2^120.
    fn scaled_pair(&mut self, pair: Val) -> Val {
        let power = self.int(0x7B80_7B80, pair.ty);
        let nothing = self.int(i64::from(0x8000_8000_u32.cast_signed()), pair.ty);
        self.multiplied_pair(pair, power, nothing)
    }

    /// `a * b + c` for pairs of bf16.
    fn multiplied_pair(&mut self, a: Val, b: Val, c: Val) -> Val {
        let id = self.fresh(Ty::scalar(Elem::I32));
        let pairs = "vector<2xbf16>";
        for (name, of) in [("p", a), ("q", b), ("r", c)] {
            self.line(&format!("{id}_{name} = llvm.bitcast {of} : i32 to {pairs}"));
        }
        self.line(&format!(
            "{id}_f = llvm.call_intrinsic \"llvm.nvvm.fma.rn.bf16x2\"({id}_p, {id}_q, {id}_r) : ({pairs}, {pairs}, {pairs}) -> {pairs}"
        ));
        self.line(&format!("{id} = llvm.bitcast {id}_f : {pairs} to i32"));
        id
    }
}
