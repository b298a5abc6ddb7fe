//! Elementary functions as polynomials, so that generated code calls no library.
//!
//! Every function takes and gives f32, scalar or vector, and propagates NaN. Coefficients are least-squares fits on Chebyshev nodes,
//! reweighted towards equal ripple; the stated errors are of the f32 result and are held by a test against f64 on every target: one ulp more
//! where the machine has no fused multiply-add.

use super::writer::{Cmp, Elem, Val, Writer};

impl Writer {
    /// `a * b + c` with a constant `c`.
    fn step(&mut self, a: Val, b: Val, c: f64) -> Val {
        let c = self.f32(c, a.ty.lanes);
        self.fma(a, b, c)
    }

    /// `coefficients[0] + x * (coefficients[1] + x * ...)`.
    fn polynomial(&mut self, x: Val, coefficients: &[f64]) -> Val {
        let (last, rest) = coefficients.split_last().expect("a polynomial has coefficients");
        let mut y = self.f32(*last, x.ty.lanes);
        for c in rest.iter().rev() {
            y = self.step(y, x, *c);
        }
        y
    }

    /// `x * 2^n` for the integer-valued float `n` in `-126..=128` that was rounded by adding `1.5 * 2^23`, given before the subtraction.
    fn scale_by_power(&mut self, y: Val, rounded: Val) -> Val {
        let bits = self.bitcast(rounded, rounded.ty.with(Elem::I32));
        let base = self.int(0x4B40_0000 - 127, bits.ty);
        let n = self.sub(bits, base);
        let e = self.shl(n, 23);
        let power = self.bitcast(e, y.ty);
        self.mul(y, power)
    }

    /// `e^x`. Error: 2 ulp; infinity above 88.37, 0 below -87.33.
    pub fn exp(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let low = self.f32(-87.336_54, lanes);
        let high = self.f32(88.722_83, lanes);
        let under = self.cmp(Cmp::Lt, x, low);
        let over = self.cmp(Cmp::Gt, x, high);
        let x1 = self.select(under, low, x);
        let x1 = self.select(over, high, x1);
        let log2e = self.f32(std::f64::consts::LOG2_E, lanes);
        let rounded = self.step(x1, log2e, 12_582_912.0);
        let magic = self.f32(12_582_912.0, lanes);
        let n = self.sub(rounded, magic);
        let ln2_high = self.f32(-0.693_145_751_953_125, lanes);
        let ln2_low = self.f32(-1.428_606_765_330_187e-6, lanes);
        let r = self.fma(n, ln2_high, x1);
        let r = self.fma(n, ln2_low, r);
        let p = self.polynomial(
            r,
            &[
                0.5,
                0.166_666_671_633_720_4,
                0.041_666_254_401_206_97,
                0.008_333_266_712_725_163,
                0.001_394_728_315_062_821,
                0.000_199_171_219_719_573_86,
            ],
        );
        let r2 = self.mul(r, r);
        let y = self.fma(p, r2, r);
        let one = self.f32(1.0, lanes);
        let y = self.add(y, one);
        let y = self.scale_by_power(y, rounded);
        let zero = self.f32(0.0, lanes);
        self.select(under, zero, y)
    }

    /// `2^x` for `x` up to 127. Error: 2 ulp; 2^-126 from -126 down.
    pub fn exp2(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let low = self.f32(-126.0, lanes);
        let under = self.cmp(Cmp::Lt, x, low);
        let x = self.select(under, low, x);
        // Added, the whole part lies in the lowest bits, with the bias of an exponent.
        let magic = self.f32(12_582_912.0 + 127.0, lanes);
        let rounded = self.add(x, magic);
        let whole = self.sub(rounded, magic);
        let r = self.sub(x, whole);
        let bits = self.bitcast(rounded, x.ty.with(Elem::I32));
        let exponent = self.shl(bits, 23);
        let power = self.bitcast(exponent, x.ty);
        let p = self.polynomial(
            r,
            &[
                1.0,
                0.693_147_003_650_665_3,
                0.240_222_424_268_722_53,
                0.055_507_335_811_853_41,
                0.009_671_512_991_189_957,
                0.001_326_472_731_307_149,
            ],
        );
        self.mul(p, power)
    }

    /// Natural logarithm. Error: 2 ulp for normal positive `x`; minus infinity at 0, NaN below.
    pub fn log(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let bits = self.bitcast(x, x.ty.with(Elem::I32));
        // Exponent of x / sqrt(1/2), so that the mantissa lies in [sqrt(1/2), sqrt(2)).
        let offset = self.int(0x3F35_04F3, bits.ty);
        let shifted = self.sub(bits, offset);
        let mask = self.int(i64::from(0xFF80_0000_u32 as i32), bits.ty);
        let e_bits = self.and(shifted, mask);
        let m_bits = self.sub(bits, e_bits);
        let m = self.bitcast(m_bits, x.ty);
        let scaled = self.to_float(e_bits);
        let inverse = self.f32(1.0 / 8_388_608.0, lanes);
        let e = self.mul(scaled, inverse);
        let one = self.f32(1.0, lanes);
        let f = self.sub(m, one);
        let p = self.polynomial(
            f,
            &[
                0.333_333_104_848_861_7,
                -0.249_999_865_889_549_26,
                0.200_022_265_315_055_85,
                -0.166_692_495_346_069_34,
                0.142_186_567_187_309_27,
                -0.123_843_647_539_615_63,
                0.118_730_060_756_206_51,
                -0.117_897_264_659_404_75,
                0.069_152_057_170_867_92,
            ],
        );
        let f2 = self.mul(f, f);
        let f3 = self.mul(f2, f);
        let low = self.f32(1.428_606_765_330_187e-6, lanes);
        let y = self.mul(f3, p);
        let y = self.fma(e, low, y);
        let minus_half = self.f32(-0.5, lanes);
        let y = self.fma(f2, minus_half, y);
        let y = self.add(f, y);
        let high = self.f32(0.693_145_751_953_125, lanes);
        let y = self.fma(e, high, y);
        let zero = self.f32(0.0, lanes);
        let infinity = self.f32(f64::INFINITY, lanes);
        let is_infinite = self.cmp(Cmp::Eq, x, infinity);
        let y = self.select(is_infinite, infinity, y);
        let minus_infinity = self.f32(f64::NEG_INFINITY, lanes);
        let is_zero = self.cmp(Cmp::Eq, x, zero);
        let y = self.select(is_zero, minus_infinity, y);
        let ge = self.cmp(Cmp::Ge, x, zero);
        let nan = self.f32(f64::NAN, lanes);
        self.select(ge, y, nan)
    }

    /// `1 / (1 + e^-x)`. Error: 3 ulp.
    pub fn sigmoid(&mut self, x: Val) -> Val {
        let zero = self.f32(0.0, x.ty.lanes);
        let one = self.f32(1.0, x.ty.lanes);
        let n = self.sub(zero, x);
        let e = self.exp(n);
        let d = self.add(one, e);
        self.div(one, d)
    }

    /// Hyperbolic tangent. Error: 3 ulp.
    pub fn tanh(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let z = self.mul(x, x);
        let p = self.polynomial(
            z,
            &[
                -0.333_332_777_023_315_43,
                0.133_313_283_324_241_64,
                -0.053_729_217_499_494_55,
                0.020_601_974_800_229_073,
                -0.005_660_756_956_785_917,
            ],
        );
        let xz = self.mul(x, z);
        let small = self.fma(xz, p, x);
        let two = self.f32(2.0, lanes);
        let one = self.f32(1.0, lanes);
        let minus_two = self.f32(-2.0, lanes);
        let x2 = self.mul(x, two);
        let e = self.exp(x2);
        let d = self.add(e, one);
        let q = self.div(minus_two, d);
        let large = self.add(one, q);
        let a = self.fabs(x);
        let limit = self.f32(0.625, lanes);
        let is_large = self.cmp(Cmp::Gt, a, limit);
        self.select(is_large, large, small)
    }

    /// Error function. Error: 3 ulp.
    pub fn erf(&mut self, x: Val) -> Val {
        let lanes = x.ty.lanes;
        let z = self.mul(x, x);
        let small = self.polynomial(
            z,
            &[
                1.128_379_106_521_606_4,
                -0.376_126_259_565_353_4,
                0.112_836_003_303_527_83,
                -0.026_854_444_295_167_923,
                0.005_189_535_208_046_436,
                -0.000_802_083_872_258_663_2,
                0.000_078_891_098_382_882_77,
            ],
        );
        let small = self.mul(small, x);
        // 1 - e^(-x²) q(1 / |x|) for |x| in 1..4; beyond, 1.
        let a = self.fabs(x);
        let one = self.f32(1.0, lanes);
        let four = self.f32(4.2, lanes);
        let a = self.max(a, one);
        let a = self.min(a, four);
        let t = self.div(one, a);
        let q = self.polynomial(
            t,
            &[
                0.000_352_614_180_883_392_7,
                0.557_605_564_594_268_8,
                0.052_214_991_301_298_14,
                -0.510_622_620_582_580_6,
                0.585_387_170_314_788_8,
                -0.364_933_729_171_752_93,
                0.126_892_834_901_809_7,
                -0.019_313_303_753_733_635,
            ],
        );
        let zero = self.f32(0.0, lanes);
        let a2 = self.mul(a, a);
        let n = self.sub(zero, a2);
        let e = self.exp(n);
        let eq = self.mul(e, q);
        let large = self.sub(one, eq);
        let minus = self.sub(zero, large);
        let negative = self.cmp(Cmp::Lt, x, zero);
        let large = self.select(negative, minus, large);
        let ax = self.fabs(x);
        let is_large = self.cmp(Cmp::Gt, ax, one);
        self.select(is_large, large, small)
    }

    /// `log(1 + e^x)`. Error: 4 ulp.
    pub fn softplus(&mut self, x: Val) -> Val {
        // max(x, 0) + log(1 + e^-|x|)
        let lanes = x.ty.lanes;
        let zero = self.f32(0.0, lanes);
        let one = self.f32(1.0, lanes);
        let a = self.fabs(x);
        let n = self.sub(zero, a);
        let e = self.exp(n);
        let s = self.add(e, one);
        let l = self.log(s);
        // Where 1 + e^-|x| would lose e^-|x|: e - e²/2.
        let tiny = self.f32(1e-4, lanes);
        let half = self.f32(-0.5, lanes);
        let e2 = self.mul(e, e);
        let series = self.fma(e2, half, e);
        let is_tiny = self.cmp(Cmp::Lt, e, tiny);
        let l = self.select(is_tiny, series, l);
        let below = self.cmp(Cmp::Lt, x, zero);
        let m = self.select(below, zero, x);
        self.add(m, l)
    }

    /// Sine. Absolute error: 2e-7 for `|x|` up to 2^20.
    pub fn sin(&mut self, x: Val) -> Val {
        self.sin_cos(x, 0)
    }

    /// Cosine. Absolute error: 2e-7 for `|x|` up to 2^20.
    pub fn cos(&mut self, x: Val) -> Val {
        self.sin_cos(x, 1)
    }

    fn sin_cos(&mut self, x: Val, quarter: i64) -> Val {
        let lanes = x.ty.lanes;
        let two_over_pi = self.f32(std::f64::consts::FRAC_2_PI, lanes);
        let rounded = self.step(x, two_over_pi, 12_582_912.0);
        let magic = self.f32(12_582_912.0, lanes);
        let n = self.sub(rounded, magic);
        // pi/2 in three parts, whose products have to be exact.
        let mut r = x;
        for part in [-1.570_796_370_506_286_6, 4.371_138_828_673_793e-8, 1.715_124_510_005_881_5e-15] {
            let c = self.f32(part, lanes);
            r = self.fma_exact(n, c, r);
        }
        let z = self.mul(r, r);
        let p = self.polynomial(
            z,
            &[
                -0.166_666_671_633_720_4,
                0.008_333_329_111_337_662,
                -0.000_198_392_561_287_617_2,
                2.717_564_257_181_948e-6,
            ],
        );
        let rz = self.mul(r, z);
        let sine = self.fma(rz, p, r);
        let q = self.polynomial(
            z,
            &[
                0.041_666_667_908_430_1,
                -0.001_388_888_340_443_372_7,
                0.000_024_799_435_777_822_51,
                -2.720_329_916_883_203e-7,
            ],
        );
        let half = self.f32(-0.5, lanes);
        let one = self.f32(1.0, lanes);
        let z2 = self.mul(z, z);
        let c = self.fma(z, half, one);
        let cosine = self.fma(z2, q, c);
        let bits = self.bitcast(rounded, x.ty.with(Elem::I32));
        let add = self.int(quarter, bits.ty);
        let k = self.add(bits, add);
        let one_bit = self.int(1, bits.ty);
        let two_bit = self.int(2, bits.ty);
        let odd = self.and(k, one_bit);
        let upper = self.and(k, two_bit);
        let none = self.int(0, bits.ty);
        let is_odd = self.cmp(Cmp::Ne, odd, none);
        let y = self.select(is_odd, cosine, sine);
        let sign = self.shl(upper, 30);
        let y_bits = self.bitcast(y, bits.ty);
        let y_bits = self.xor(y_bits, sign);
        self.bitcast(y_bits, x.ty)
    }

    /// `x^y`; `constant` is `y` where it is known. Whole constants up to 64 and halves are exact products and roots; otherwise the error grows
    /// with `|y log x|`, to about that many ulp. NaN for a negative `x` and a `y` that is not whole.
    pub fn pow(&mut self, x: Val, y: Val, constant: Option<f64>) -> Val {
        let one = self.f32(1.0, x.ty.lanes);
        match constant {
            Some(0.5) => self.sqrt(x),
            Some(-0.5) => {
                let s = self.sqrt(x);
                self.div(one, s)
            }
            Some(n) if n.fract() == 0.0 && n.abs() <= 64.0 => {
                let power = self.whole_power(x, n.abs() as u32);
                if n < 0.0 { self.div(one, power) } else { power }
            }
            _ => {
                let a = self.fabs(x);
                let l = self.log(a);
                let p = self.mul(l, y);
                let magnitude = self.exp(p);
                // The sign of a negative base: that of the parity of a whole exponent.
                let zero = self.f32(0.0, x.ty.lanes);
                let half = self.f32(0.5, x.ty.lanes);
                let two = self.f32(2.0, x.ty.lanes);
                let nan = self.f32(f64::NAN, x.ty.lanes);
                let floor = self.floor(y);
                let is_whole = self.cmp(Cmp::Eq, floor, y);
                let halved = self.mul(y, half);
                let halved = self.floor(halved);
                let even = self.mul(halved, two);
                let is_even = self.cmp(Cmp::Eq, even, y);
                let minus = self.sub(zero, magnitude);
                let odd_or_nan = self.select(is_whole, minus, nan);
                let of_negative = self.select(is_even, magnitude, odd_or_nan);
                let is_negative = self.cmp(Cmp::Lt, x, zero);
                let power = self.select(is_negative, of_negative, magnitude);
                let is_zero = self.cmp(Cmp::Eq, y, zero);
                self.select(is_zero, one, power)
            }
        }
    }

    /// `x^n` by squaring.
    fn whole_power(&mut self, x: Val, n: u32) -> Val {
        let mut power = None;
        let mut square = x;
        for bit in 0..32 - n.leading_zeros() {
            if n >> bit & 1 == 1 {
                power = Some(power.map_or(square, |p| self.mul(p, square)));
            }
            if n >> (bit + 1) != 0 {
                square = self.mul(square, square);
            }
        }
        power.unwrap_or_else(|| self.f32(1.0, x.ty.lanes))
    }

    /// bf16 bits (i16) to f32, exactly.
    pub fn from_bf16(&mut self, bits: Val) -> Val {
        let wide = self.widen_unsigned(bits, Elem::I32);
        let high = self.shl(wide, 16);
        self.bitcast(high, bits.ty.with(Elem::F32))
    }

    /// Pairs of bf16 in 32 bits as two f32, exactly: the low half, the high half.
    pub fn pair_halves(&mut self, pair: Val) -> (Val, Val) {
        let mask = self.int(i64::from(0xFFFF_0000_u32 as i32), pair.ty);
        let low = self.shl(pair, 16);
        let high = self.and(pair, mask);
        (self.bitcast(low, low.ty.with(Elem::F32)), self.bitcast(high, high.ty.with(Elem::F32)))
    }

    /// f16 bits (i16) to f32, exact.
    pub fn from_half(&mut self, bits: Val) -> Val {
        if self.machine().half {
            let half = self.bitcast(bits, bits.ty.with(Elem::F16));
            return self.convert("arith.extf", half, bits.ty.with(Elem::F32));
        }
        let wide = self.widen_unsigned(bits, Elem::I32);
        let mask = self.int(0x7FFF, wide.ty);
        let magnitude = self.and(wide, mask);
        let shifted = self.shl(magnitude, 13);
        let shifted = self.bitcast(shifted, wide.ty.with(Elem::F32));
        // From the exponent of f16 to that of f32, subnormal numbers too.
        let rebias = self.f32(f64::from(2u32).powi(112), wide.ty.lanes);
        let value = self.mul(shifted, rebias);
        let value = self.bitcast(value, wide.ty);
        // Infinities and NaN keep the highest exponent.
        let finite = self.int(0x7C00, wide.ty);
        let special = self.cmp(Cmp::Ge, magnitude, finite);
        let exponent = self.int(0x7F80_0000, wide.ty);
        let highest = self.or(value, exponent);
        let value = self.select(special, highest, value);
        let sign = self.int(0x8000, wide.ty);
        let sign = self.and(wide, sign);
        let sign = self.shl(sign, 16);
        let value = self.or(value, sign);
        self.bitcast(value, wide.ty.with(Elem::F32))
    }

    /// The bits of f32 such that the upper halves are the nearest bf16, of two the even one. Of what is no number that of [`plain_nan`](Self::plain_nan) stays none.
    pub fn nearest_bf16(&mut self, x: Val) -> Val {
        let bits = self.bitcast(x, x.ty.with(Elem::I32));
        let high = self.shr(bits, 16);
        let one = self.int(1, bits.ty);
        let odd = self.and(high, one);
        let half = self.int(0x7FFF, bits.ty);
        let bias = self.add(odd, half);
        self.add(bits, bias)
    }

    /// Numbers as they are, and the usual NaN for any.
    pub fn plain_nan(&mut self, x: Val) -> Val {
        let bits = self.int(0x7FC0_0000, x.ty.with(Elem::I32));
        let plain = self.bitcast(bits, x.ty);
        let is_nan = self.cmp(Cmp::Ne, x, x);
        self.select(is_nan, plain, x)
    }

    /// f32 to bf16 bits (i16), to nearest even; NaN stays NaN.
    pub fn to_bf16(&mut self, x: Val) -> Val {
        let rounded = self.nearest_bf16(x);
        let rounded = self.shr(rounded, 16);
        let quiet = self.int(0x7FC0, rounded.ty);
        let is_nan = self.cmp(Cmp::Ne, x, x);
        let out = self.select(is_nan, quiet, rounded);
        self.resize(out, Elem::I16)
    }
}
