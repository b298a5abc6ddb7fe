//! Arithmetic, comparisons and conversions of the [`Writer`]: one method an operation, on scalars and vectors alike.

use super::writer::{Cmp, Elem, Ty, Val, Writer};

impl Writer {
    /// A scalar in all of `lanes` lanes; itself when 0.
    pub fn splat(&mut self, a: Val, lanes: u32) -> Val {
        if lanes == 0 || a.ty.lanes == lanes {
            return a;
        }
        let ty = Ty::of(a.ty.elem, lanes);
        if !self.is_vector(ty) {
            return a.with(ty);
        }
        self.op(ty, &format!("vector.broadcast {} : {} to {}", a, self.text(a.ty), self.text(ty)))
    }

    /// The same bits as another type of the same size.
    pub fn bitcast(&mut self, a: Val, to: Ty) -> Val {
        if a.ty == to {
            return a;
        }
        let name = match (self.is_vector(a.ty), self.is_vector(to)) {
            (from, to) if from != to => "llvm.bitcast",
            (true, true) if a.ty.lanes != to.lanes => "vector.bitcast",
            _ => "arith.bitcast",
        };
        self.convert(name, a, to)
    }

    /// All lanes added, in pairs; itself when scalar.
    pub fn reduce_add(&mut self, a: Val) -> Val {
        self.reduce(a, "add")
    }

    /// The largest lane.
    pub fn reduce_max(&mut self, a: Val) -> Val {
        self.reduce(a, if a.ty.elem.is_float() { "maximumf" } else { "maxsi" })
    }

    /// Whether any lane of booleans holds.
    pub fn reduce_or(&mut self, a: Val) -> Val {
        self.reduce(a, "or")
    }

    /// The smallest lane.
    pub fn reduce_min(&mut self, a: Val) -> Val {
        self.reduce(a, if a.ty.elem.is_float() { "minimumf" } else { "minsi" })
    }

    fn reduce(&mut self, a: Val, kind: &str) -> Val {
        if a.ty.lanes == 0 {
            return a;
        }
        if self.is_block() {
            return self.reduce_block(a, kind);
        }
        let fast = if kind == "add" && a.ty.elem.is_float() { " fastmath<reassoc>" } else { "" };
        self.op(
            Ty::scalar(a.ty.elem),
            &format!("vector.reduction <{kind}>, {}{fast} : {} into {}", a, self.text(a.ty), a.ty.elem.text()),
        )
    }

    /// `a + b`.
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.binary(if a.ty.elem.is_float() { "arith.addf" } else { "arith.addi" }, a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.binary(if a.ty.elem.is_float() { "arith.subf" } else { "arith.subi" }, a, b)
    }

    /// `a * b`.
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.binary(if a.ty.elem.is_float() { "arith.mulf" } else { "arith.muli" }, a, b)
    }

    /// `a / b`, of floats.
    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.divf", a, b)
    }

    /// `a / b` rounded down, of non-negative integers.
    pub fn div_unsigned(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.divui", a, b)
    }

    /// Remainder of non-negative integers.
    pub fn rem_unsigned(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.remui", a, b)
    }

    /// `a / b` rounded down, of signed integers; by 0, whose result nobody may use, as by 1. `divisor` is `b` where it is known.
    pub fn floor_div(&mut self, a: Val, b: Val, divisor: Option<i64>) -> Val {
        let zero = self.int(0, a.ty);
        let one = self.int(1, a.ty);
        // The machine's division traps on 0, and on the least number by -1.
        let (safe, negated) = match divisor {
            Some(n) if n != 0 && n != -1 => (b, None),
            _ => {
                let minus_one = self.int(-1, a.ty);
                let is_zero = self.cmp(Cmp::Eq, b, zero);
                let is_minus_one = self.cmp(Cmp::Eq, b, minus_one);
                let traps = self.or(is_zero, is_minus_one);
                (self.select(traps, one, b), Some(is_minus_one))
            }
        };
        // q = a / b toward zero; one less when the remainder is not zero and the signs differ.
        let q = self.binary("arith.divsi", a, safe);
        let r = self.binary("arith.remsi", a, safe);
        let inexact = self.cmp(Cmp::Ne, r, zero);
        let sign = self.xor(r, safe);
        let differ = self.cmp(Cmp::Lt, sign, zero);
        let both = self.and(inexact, differ);
        let less = self.sub(q, one);
        let q = self.select(both, less, q);
        match negated {
            None => q,
            Some(is_minus_one) => {
                let n = self.sub(zero, a);
                self.select(is_minus_one, n, q)
            }
        }
    }

    /// The larger; of floats, NaN where either is.
    pub fn max(&mut self, a: Val, b: Val) -> Val {
        self.binary(if a.ty.elem.is_float() { "arith.maximumf" } else { "arith.maxsi" }, a, b)
    }

    /// The smaller; of floats, NaN where either is.
    pub fn min(&mut self, a: Val, b: Val) -> Val {
        self.binary(if a.ty.elem.is_float() { "arith.minimumf" } else { "arith.minsi" }, a, b)
    }

    /// Bitwise and.
    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.andi", a, b)
    }

    /// Bitwise or.
    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.ori", a, b)
    }

    /// Bitwise exclusive or.
    pub fn xor(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.xori", a, b)
    }

    /// `a << bits`.
    pub fn shl(&mut self, a: Val, bits: u32) -> Val {
        let n = self.int(i64::from(bits), a.ty);
        self.binary("arith.shli", a, n)
    }

    /// `a << b`, where the number of bits is below the width.
    pub fn shl_by(&mut self, a: Val, b: Val) -> Val {
        self.binary("arith.shli", a, b)
    }

    /// `a >> bits`, filling with zeros.
    pub fn shr(&mut self, a: Val, bits: u32) -> Val {
        let n = self.int(i64::from(bits), a.ty);
        self.binary("arith.shrui", a, n)
    }

    /// `a >> bits`, filling with the sign.
    pub fn shr_signed(&mut self, a: Val, bits: u32) -> Val {
        let n = self.int(i64::from(bits), a.ty);
        self.binary("arith.shrsi", a, n)
    }

    /// A boolean of each lane. Floats compare ordered, except `Ne`, which is true of NaN.
    pub fn cmp(&mut self, pred: Cmp, a: Val, b: Val) -> Val {
        debug_assert_eq!(a.ty, b.ty);
        let float = a.ty.elem.is_float();
        let p = match (pred, float) {
            (Cmp::Eq, true) => "oeq",
            (Cmp::Ne, true) => "une",
            (Cmp::Lt, true) => "olt",
            (Cmp::Le, true) => "ole",
            (Cmp::Gt, true) => "ogt",
            (Cmp::Ge, true) => "oge",
            (Cmp::Eq, false) => "eq",
            (Cmp::Ne, false) => "ne",
            (Cmp::Lt, false) => "slt",
            (Cmp::Le, false) => "sle",
            (Cmp::Gt, false) => "sgt",
            (Cmp::Ge, false) => "sge",
        };
        let name = if float { "arith.cmpf" } else { "arith.cmpi" };
        self.op(a.ty.with(Elem::I1), &format!("{name} {p}, {}, {} : {}", a, b, self.text(a.ty)))
    }

    /// `a` where `condition`, else `b`.
    pub fn select(&mut self, condition: Val, a: Val, b: Val) -> Val {
        debug_assert_eq!(a.ty, b.ty);
        let text = if condition.ty.lanes == a.ty.lanes && self.is_vector(a.ty) {
            format!("arith.select {}, {}, {} : {}, {}", condition, a, b, self.text(condition.ty), self.text(a.ty))
        } else {
            format!("arith.select {}, {}, {} : {}", condition, a, b, self.text(a.ty))
        };
        self.op(a.ty, &text)
    }

    /// `a * b + c`: rounded once where the machine can, else the product is rounded first.
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        debug_assert!(a.ty == b.ty && b.ty == c.ty);
        if !self.machine().fma {
            let product = self.mul(a, b);
            return self.add(product, c);
        }
        let t = self.text(a.ty);
        self.op(a.ty, &format!("llvm.intr.fma({}, {}, {}) : ({t}, {t}, {t}) -> {t}", a, b, c))
    }

    /// `a * b + c` of f32 with the exact product, on every machine.
    pub fn fma_exact(&mut self, a: Val, b: Val, c: Val) -> Val {
        if self.machine().fma {
            return self.fma(a, b, c);
        }
        // A product of two f32 is exact in f64.
        let wide = a.ty.with(Elem::F64);
        let [x, y, z] = [a, b, c].map(|v| self.convert("arith.extf", v, wide));
        let product = self.mul(x, y);
        let sum = self.add(product, z);
        self.convert("arith.truncf", sum, a.ty)
    }

    /// The largest whole number not above.
    pub fn floor(&mut self, a: Val) -> Val {
        if self.machine().round {
            let t = self.text(a.ty);
            return self.op(a.ty, &format!("llvm.intr.floor({}) : ({t}) -> {t}", a));
        }
        // Through i32, one less where that rounded up. From 2^23 on every number is whole; NaN stays, as does the sign of zero.
        let lanes = a.ty.lanes;
        let zero = self.f32(0.0, lanes);
        let one = self.f32(1.0, lanes);
        let limit = self.f32(8_388_608.0, lanes);
        let magnitude = self.fabs(a);
        let has_fraction = self.cmp(Cmp::Lt, magnitude, limit);
        let x = self.select(has_fraction, a, zero);
        let bits = x.ty.with(Elem::I32);
        let whole = self.convert("arith.fptosi", x, bits);
        let whole = self.to_float(whole);
        let is_above = self.cmp(Cmp::Gt, whole, x);
        let less = self.sub(whole, one);
        let whole = self.select(is_above, less, whole);
        let sign_bit = self.int(i64::from(i32::MIN), bits);
        let x_bits = self.bitcast(x, bits);
        let sign = self.and(x_bits, sign_bit);
        let whole = self.bitcast(whole, bits);
        let whole = self.or(whole, sign);
        let whole = self.bitcast(whole, a.ty);
        self.select(has_fraction, whole, a)
    }

    /// Square root.
    pub fn sqrt(&mut self, a: Val) -> Val {
        let t = self.text(a.ty);
        self.op(a.ty, &format!("llvm.intr.sqrt({}) : ({t}) -> {t}", a))
    }

    /// Absolute value of floats.
    pub fn fabs(&mut self, a: Val) -> Val {
        let t = self.text(a.ty);
        self.op(a.ty, &format!("llvm.intr.fabs({}) : ({t}) -> {t}", a))
    }

    /// Signed integer or boolean (0 or 1) to float.
    pub fn to_float(&mut self, a: Val) -> Val {
        let name = if a.ty.elem == Elem::I1 { "arith.uitofp" } else { "arith.sitofp" };
        self.convert(name, a, a.ty.with(Elem::F32))
    }

    /// The nearest integer, halves to the even one, as i32, of numbers whose magnitude is below 2^22; of others, and of NaN, any.
    pub fn nearest(&mut self, x: Val) -> Val {
        // Added to a small float it leaves, in the low bits, the nearest integer.
        const TO_NEAREST: f32 = 12_582_912.0;
        let nearest = self.f32(f64::from(TO_NEAREST), x.ty.lanes);
        let moved = self.add(x, nearest);
        let bits = self.bitcast(moved, x.ty.with(Elem::I32));
        let offset = self.int(i64::from(TO_NEAREST.to_bits()), bits.ty);
        self.sub(bits, offset)
    }

    /// The nearest integer of `-127 ..= 127`, halves to the even one, as i32; of NaN any of them.
    pub fn nearest_byte(&mut self, x: Val) -> Val {
        let integer = self.nearest(x);
        let (least, most) = (self.int(-127, integer.ty), self.int(127, integer.ty));
        let integer = self.max(integer, least);
        self.min(integer, most)
    }

    /// Float to integer, toward zero. What does not fit becomes the nearest float that does, NaN 0: the machine's conversion is undefined there.
    pub fn to_int(&mut self, a: Val, elem: Elem) -> Val {
        let lanes = a.ty.lanes;
        let (least, most) = match elem {
            Elem::I64 => (i64::MIN as f64, 9_223_371_487_098_961_920.0),
            _ => (f64::from(i32::MIN), 2_147_483_520.0),
        };
        let zero = self.f32(0.0, lanes);
        let least = self.f32(least, lanes);
        let most = self.f32(most, lanes);
        let is_number = self.cmp(Cmp::Eq, a, a);
        let a = self.select(is_number, a, zero);
        let is_low = self.cmp(Cmp::Lt, a, least);
        let a = self.select(is_low, least, a);
        let is_high = self.cmp(Cmp::Gt, a, most);
        let a = self.select(is_high, most, a);
        self.convert("arith.fptosi", a, a.ty.with(elem))
    }

    /// Integer or boolean to a wider or narrower integer; signed, booleans as 0 and 1.
    pub fn resize(&mut self, a: Val, elem: Elem) -> Val {
        if a.ty.elem == elem {
            return a;
        }
        let name = if elem.bytes() < a.ty.elem.bytes() || elem == Elem::I1 {
            "arith.trunci"
        } else if matches!(a.ty.elem, Elem::I1) {
            "arith.extui"
        } else {
            "arith.extsi"
        };
        self.convert(name, a, a.ty.with(elem))
    }

    /// Unsigned widening.
    pub fn widen_unsigned(&mut self, a: Val, elem: Elem) -> Val {
        self.convert("arith.extui", a, a.ty.with(elem))
    }

    /// Calls an LLVM intrinsic.
    pub fn intrinsic(&mut self, name: &str, args: &[Val], result: Ty) -> Val {
        let ids: Vec<String> = args.iter().map(ToString::to_string).collect();
        let types: Vec<String> = args.iter().map(|a| self.text(a.ty)).collect();
        self.op(
            result,
            &format!(
                "llvm.call_intrinsic \"{name}\"({}) : ({}) -> {}",
                ids.join(", "),
                types.join(", "),
                self.text(result)
            ),
        )
    }

    /// Calls an LLVM intrinsic that gives nothing.
    pub fn command(&mut self, name: &str, args: &[Val]) {
        let ids: Vec<String> = args.iter().map(ToString::to_string).collect();
        let types: Vec<String> = args.iter().map(|a| self.text(a.ty)).collect();
        self.line(&format!("llvm.call_intrinsic \"{name}\"({}) : ({}) -> ()", ids.join(", "), types.join(", ")));
    }
}
