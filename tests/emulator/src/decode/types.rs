//! Types of operands (PTX ISA, section 5.2) and how a value lies in a register's slot of 64 bits.

use half::{bf16, f16};

/// A fundamental or packed type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    Pred,
}

impl Ty {
    pub(crate) fn parse(name: &str) -> Option<Ty> {
        Some(match name {
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "tf32" => Ty::Tf32,
            "e4m3" => Ty::E4m3,
            "e5m2" => Ty::E5m2,
            "e4m3x2" => Ty::E4m3x2,
            "e5m2x2" => Ty::E5m2x2,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4m3 | Ty::E5m2 | Ty::Pred => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F16x2 | Ty::Bf16x2 | Ty::F32 | Ty::Tf32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        self.bytes() * 8
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// A scalar float that arithmetic is defined for.
    pub(crate) fn float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
    }

    pub(crate) fn integer(self) -> bool {
        matches!(
            self,
            Ty::B8
                | Ty::B16
                | Ty::B32
                | Ty::B64
                | Ty::U8
                | Ty::U16
                | Ty::U32
                | Ty::U64
                | Ty::S8
                | Ty::S16
                | Ty::S32
                | Ty::S64
        )
    }
}

/// The bits of a value of `bits` bits, sign-extended.
pub(crate) fn sign_extend(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { (((value << (64 - bits)) as i64) >> (64 - bits)) as u64 }
}

/// The low `bits` bits.
pub(crate) fn truncate(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

/// How a type lies in a slot: in the low bits, the rest zero.
pub(crate) trait Slot: Copy + Send + Sync + 'static {
    fn get(slot: u64) -> Self;
    fn put(self) -> u64;
}

macro_rules! integer_slots {
    ($($signed:ty, $unsigned:ty);*) => {$(
        impl Slot for $unsigned {
            #[inline(always)]
            fn get(slot: u64) -> Self { slot as $unsigned }
            #[inline(always)]
            fn put(self) -> u64 { u64::from(self) }
        }
        impl Slot for $signed {
            #[inline(always)]
            fn get(slot: u64) -> Self { slot as $signed }
            #[inline(always)]
            fn put(self) -> u64 { u64::from(self as $unsigned) }
        }
    )*};
}
integer_slots!(i8, u8; i16, u16; i32, u32; i64, u64);

macro_rules! float_slots {
    ($($float:ty, $bits:ty);*) => {$(
        impl Slot for $float {
            #[inline(always)]
            fn get(slot: u64) -> Self { <$float>::from_bits(slot as $bits) }
            #[inline(always)]
            fn put(self) -> u64 { u64::from(self.to_bits()) }
        }
    )*};
}
float_slots!(f16, u16; bf16, u16; f32, u32; f64, u64);

impl Slot for bool {
    #[inline(always)]
    fn get(slot: u64) -> Self {
        slot & 1 != 0
    }
    #[inline(always)]
    fn put(self) -> u64 {
        u64::from(self)
    }
}
