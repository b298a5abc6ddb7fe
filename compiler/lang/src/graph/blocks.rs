//! Narrow integers, and floats of 8 bits, in groups: how quantised weights are held, what tokens bring to products with them, and what caches keep.

use std::fmt;

use super::DType;
use super::e4m3;

/// Numbers of a few bits in groups of consecutive elements of the last dimension. Each group has a scale; the last one may be shorter.
///
/// An element is `q * scale`, or `q * scale + minimum`, where `q` is an integer, or a float of 8 bits (E4M3). Rounding to blocks is a cast: what the [interpreter](crate::reference) does and what the
/// runtime does when it packs weights are the same function of f32 numbers.
///
/// # Source
/// Dettmers et al. 2022 (arXiv:2208.07339) for integer products with scales of rows; group-wise scales as GGML's Q8_0, Q4_0 and Q4_1; Micikevicius
/// et al. 2022 (arXiv:2209.05433) for E4M3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blocks {
    /// What an element is made of.
    pub form: BlockForm,
    /// Elements in a group: 32, 64 or 128; of what caches keep, any number.
    pub group: u16,
    /// The numbers are in such groups already, as a checkpoint stores them, and elements are taken over: nothing is rounded but scales and minima
    /// that are wider than those of the form.
    pub stored: bool,
}

/// What the elements of [`Blocks`] are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockForm {
    /// Weights `-127 ..= 127` with a scale of f16: the largest magnitude is 127.
    Int8,
    /// Weights `-8 ..= 7` with a scale of f16: the element of largest magnitude is -8.
    Int4,
    /// Weights `0 ..= 255` with a scale and a minimum of f16.
    Uint8,
    /// Weights `0 ..= 15` with a scale and a minimum of f16.
    Uint4,
    /// Weights of E4M3, `-448 ..= 448`, with a scale of f32: the largest magnitude is 448. Tokens bring bf16 to them, of which both are a part.
    Fp8,
    /// What a token brings, `-127 ..= 127` with a scale of f32.
    Token8,
    /// What a cache keeps of a head, `-127 ..= 127` with a scale of bf16: it has the range of f32, every machine widens it with a shift, and
    /// elements are rounded to multiples of the scale as it is kept.
    Kept8,
    /// The same of E4M3, `-448 ..= 448`.
    KeptFp8,
}

impl BlockForm {
    /// All forms.
    pub const ALL: [BlockForm; 8] = [
        BlockForm::Int8,
        BlockForm::Int4,
        BlockForm::Uint8,
        BlockForm::Uint4,
        BlockForm::Fp8,
        BlockForm::Token8,
        BlockForm::Kept8,
        BlockForm::KeptFp8,
    ];

    /// Name, of the form alone: `int4`.
    pub fn name(self) -> &'static str {
        match self {
            BlockForm::Int8 => "int8",
            BlockForm::Int4 => "int4",
            BlockForm::Uint8 => "uint8",
            BlockForm::Uint4 => "uint4",
            BlockForm::Fp8 => "fp8",
            BlockForm::Token8 => "token8",
            BlockForm::Kept8 => "kept8",
            BlockForm::KeptFp8 => "keptfp8",
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> u64 {
        match self {
            BlockForm::Int4 | BlockForm::Uint4 => 4,
            BlockForm::Int8
            | BlockForm::Uint8
            | BlockForm::Fp8
            | BlockForm::Token8
            | BlockForm::Kept8
            | BlockForm::KeptFp8 => 8,
        }
    }

    /// Whether each group has a minimum beside its scale.
    pub fn has_minimum(self) -> bool {
        matches!(self, BlockForm::Uint8 | BlockForm::Uint4)
    }

    /// Whether elements are floats, and no integers.
    pub fn is_float(self) -> bool {
        matches!(self, BlockForm::Fp8 | BlockForm::KeptFp8)
    }

    /// Elements of a group where none is asked for.
    pub fn usual_group(self) -> u16 {
        // As large as blocks of published checkpoints; floats of a group differ in size without loss.
        if self.is_float() { 128 } else { 32 }
    }

    /// Whether weights are held in it.
    pub fn is_of_weights(self) -> bool {
        self != BlockForm::Token8 && !self.is_kept()
    }

    /// Whether caches keep heads in it.
    pub fn is_kept(self) -> bool {
        matches!(self, BlockForm::Kept8 | BlockForm::KeptFp8)
    }

    /// Bytes of the scale and the minimum of a group.
    pub fn shared_bytes(self) -> u64 {
        match self {
            BlockForm::Int8 | BlockForm::Int4 | BlockForm::Kept8 | BlockForm::KeptFp8 => 2,
            BlockForm::Uint8 | BlockForm::Uint4 | BlockForm::Fp8 | BlockForm::Token8 => 4,
        }
    }
}

/// What the names of [`Blocks::stored`] end with.
const STORED: &str = "stored";

impl Blocks {
    /// Groups of weights that may be asked for.
    pub const GROUPS: [u16; 3] = [32, 64, 128];

    /// Weights in blocks.
    pub fn weights(form: BlockForm, group: u16) -> Self {
        Blocks { form, group, stored: false }
    }

    /// What tokens bring to products with these weights.
    pub fn of_tokens(self) -> DType {
        match self.form.is_float() {
            true => DType::BF16,
            false => DType::Blocks(Blocks { form: BlockForm::Token8, ..self.multiplied() }),
        }
    }

    /// What a product knows of these weights: not where their integers are from.
    pub fn multiplied(self) -> Self {
        Blocks { stored: false, ..self }
    }

    /// What a cache keeps of heads, in groups of so many elements: a whole head, or several that lie in one.
    pub fn kept(group: u16) -> Self {
        Blocks { form: BlockForm::Kept8, group, stored: false }
    }

    /// The same in floats of 8 bits.
    pub fn kept_floats(group: u16) -> Self {
        Blocks { form: BlockForm::KeptFp8, ..Blocks::kept(group) }
    }

    /// Whether these are weights.
    pub fn is_weights(self) -> bool {
        self.form.is_of_weights()
    }

    /// Whether this is what a cache keeps.
    pub fn is_kept(self) -> bool {
        self.form.is_kept()
    }

    /// Reads a name as [`Display`](fmt::Display) writes it.
    pub fn parse(name: &str) -> Option<Self> {
        let (name, stored) = name.strip_suffix(STORED).map_or((name, false), |name| (name, true));
        let (form, group) = BlockForm::ALL.into_iter().find_map(|f| Some((f, name.strip_prefix(f.name())?)))?;
        let group = group.strip_prefix('g')?.parse().ok()?;
        let is_known = if form.is_kept() { group > 0 } else { Self::GROUPS.contains(&group) };
        (is_known && (form.is_of_weights() || !stored)).then_some(Blocks { form, group, stored })
    }

    /// Bits that an element of a full group takes, its share of the scale and the minimum counted.
    pub fn bits_per_element(self) -> f64 {
        self.form.bits() as f64 + (self.form.shared_bytes() * 8) as f64 / f64::from(self.group)
    }

    /// Bytes of a row of so many elements with the scales and minima of its groups, without padding.
    pub fn row_bytes(self, elements: u64) -> u64 {
        elements * self.form.bits() / 8 + elements.div_ceil(u64::from(self.group)) * self.form.shared_bytes()
    }

    /// Rounds the elements of one group to what it holds; those that are stored so stay. A NaN among them makes all of them NaN, but for stored
    /// integers, among which there is none.
    pub fn round(self, group: &mut [f32]) {
        if self.stored {
            if self.form.is_float() && group.iter().any(|x| x.is_nan()) {
                group.fill(f32::NAN);
            }
            return;
        }
        let half = |x: f32| half::f16::from_f32(x).to_f32();
        let (scale, minimum) = match self.form {
            BlockForm::Int8 => (half(magnitude(group) / 127.0), 0.0),
            BlockForm::Int4 => (half(extreme(group) / -8.0), 0.0),
            BlockForm::Uint8 | BlockForm::Uint4 => {
                let (low, high) = range(group);
                (half((high - low) / self.levels()), half(low))
            }
            BlockForm::Fp8 => (with_inverse(magnitude(group) / e4m3::LARGEST), 0.0),
            BlockForm::Token8 => (magnitude(group) / 127.0, 0.0),
            BlockForm::Kept8 => (with_inverse(half::bf16::from_f32(magnitude(group) / 127.0).to_f32()), 0.0),
            BlockForm::KeptFp8 => (with_inverse(half::bf16::from_f32(magnitude(group) / e4m3::LARGEST).to_f32()), 0.0),
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (first, last) = match self.form {
            BlockForm::Fp8 | BlockForm::KeptFp8 => {
                group.iter_mut().for_each(|x| *x = e4m3::round(*x * inverse) * scale);
                return;
            }
            BlockForm::Int8 | BlockForm::Token8 | BlockForm::Kept8 => (-127.0, 127.0),
            BlockForm::Int4 => (-8.0, 7.0),
            BlockForm::Uint8 | BlockForm::Uint4 => (0.0, self.levels()),
        };
        for x in group {
            *x = ((*x - minimum) * inverse).round_ties_even().clamp(first, last) * scale + minimum;
        }
    }

    /// The largest element of a form without a sign.
    fn levels(self) -> f32 {
        if self.form.bits() == 4 { 15.0 } else { 255.0 }
    }
}

/// A scale, or 0 where it is so small that its inverse is no number.
fn with_inverse(scale: f32) -> f32 {
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

/// Largest magnitude, or NaN.
fn magnitude(group: &[f32]) -> f32 {
    group.iter().fold(0.0, |most: f32, x| if x.is_nan() || x.abs() > most { x.abs() } else { most })
}

/// The element of largest magnitude, the first one of several, or NaN.
fn extreme(group: &[f32]) -> f32 {
    group.iter().fold(0.0, |most: f32, x| if x.is_nan() || x.abs() > most.abs() { *x } else { most })
}

/// Least and largest element, or NaN.
fn range(group: &[f32]) -> (f32, f32) {
    let pick = |better: fn(f32, f32) -> bool| {
        group.iter().copied().reduce(|best, x| if x.is_nan() || better(x, best) { x } else { best }).unwrap_or(0.0)
    };
    (pick(|x, best| x < best), pick(|x, best| x > best))
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}g{}{}", self.form.name(), self.group, if self.stored { STORED } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(form: BlockForm, values: &[f32]) -> Vec<f32> {
        let mut group = values.to_vec();
        Blocks::weights(form, 32).round(&mut group);
        group
    }

    #[test]
    fn names_round_trip() {
        for form in BlockForm::ALL {
            for group in Blocks::GROUPS {
                for stored in [false, form.is_of_weights()] {
                    let blocks = Blocks { stored, ..Blocks::weights(form, group) };
                    assert_eq!(Blocks::parse(&blocks.to_string()), Some(blocks));
                }
            }
        }
        assert_eq!(Blocks::parse("kept8g7"), Some(Blocks::kept(7)));
        assert_eq!(Blocks::parse("keptfp8g7"), Some(Blocks::kept_floats(7)));
        for wrong in [
            "token8g32stored",
            "kept8g7stored",
            "keptfp8g7stored",
            "keptfp8g0",
            "int4stored",
            "int4",
            "int4g",
            "int4g33",
            "int2g32",
            "g32",
            "int8g32x",
            "kept8g0",
            "kept8g65536",
        ] {
            assert_eq!(Blocks::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn groups_round_to_their_levels() {
        // Exact: the scale is 1.
        assert_eq!(rounded(BlockForm::Int8, &[127.0, -3.4, 0.5, 1.5]), [127.0, -3.0, 0.0, 2.0]);
        assert_eq!(rounded(BlockForm::Int4, &[-8.0, 8.0, 3.5, -0.2]), [-8.0, 7.0, 4.0, -0.0]);
        assert_eq!(rounded(BlockForm::Int4, &[8.0, -7.9, 1.0]), [8.0, -7.0, 1.0]);
        assert_eq!(rounded(BlockForm::Uint4, &[2.0, 17.0, 9.4]), [2.0, 17.0, 9.0]);
        assert_eq!(rounded(BlockForm::Uint8, &[-55.0, 200.0, 0.25]), [-55.0, 200.0, 0.0]);
        assert_eq!(rounded(BlockForm::Token8, &[254.0, 1.0, 2.9]), [254.0, 0.0, 2.0]);
        assert_eq!(rounded(BlockForm::Kept8, &[-254.0, 1.0, 2.9]), [-254.0, 0.0, 2.0]);
        assert_eq!(rounded(BlockForm::KeptFp8, &[-896.0, 38.0, 3e-3]), [-896.0, 40.0, 1.0 / 256.0]);
        // 448.5 / 448 is 1 in bf16.
        assert_eq!(rounded(BlockForm::KeptFp8, &[448.5, -1.0]), [448.0, -1.0]);
        // 1 / 127 is 129 / 16384 in bf16, and what is rounded once stays.
        let scale = 129.0 / 16384.0;
        assert_eq!(rounded(BlockForm::Kept8, &[1.0, -0.5]), [127.0 * scale, -64.0 * scale]);
        assert_eq!(rounded(BlockForm::Kept8, &[127.0 * scale, -64.0 * scale]), [127.0 * scale, -64.0 * scale]);
        assert_eq!(rounded(BlockForm::Kept8, &[1e-37, -1e-38]), [0.0, 0.0]);
        assert_eq!(
            rounded(BlockForm::Fp8, &[-448.0, 17.0, 19.0, 0.0029, -1e-4]),
            [-448.0, 16.0, 20.0, 1.0 / 512.0, -0.0]
        );
        assert_eq!(rounded(BlockForm::Fp8, &[224.0, -8.5]), [224.0, -8.0]);
        assert_eq!(rounded(BlockForm::Fp8, &[1e-36, -1e-37]), [0.0, 0.0]);
    }

    #[test]
    fn stored_groups_stay() {
        let (numbers, mut group) = ([0.3, -7.1, 5.0], [0.3, -7.1, 5.0]);
        Blocks { stored: true, ..Blocks::weights(BlockForm::Int4, 32) }.round(&mut group);
        assert_eq!(group, numbers);
        let blocks = Blocks { stored: true, ..Blocks::weights(BlockForm::Uint4, 64) };
        assert_eq!(blocks.of_tokens(), Blocks::weights(BlockForm::Uint4, 64).of_tokens());
        assert_eq!(Blocks::weights(BlockForm::Fp8, 64).of_tokens(), DType::BF16);
    }

    #[test]
    fn degenerate_groups() {
        for form in BlockForm::ALL {
            assert_eq!(rounded(form, &[0.0, 0.0]), [0.0, 0.0], "{form:?}");
            assert_eq!(rounded(form, &[]), [0.0; 0], "{form:?}");
            assert!(rounded(form, &[1.0, f32::NAN, 2.0]).iter().all(|x| x.is_nan()), "{form:?}");
        }
        // A constant is its minimum.
        assert_eq!(rounded(BlockForm::Uint4, &[0.5, 0.5]), [0.5, 0.5]);
    }

    #[test]
    fn sizes() {
        assert_eq!(Blocks::weights(BlockForm::Int4, 32).bits_per_element(), 4.5);
        assert_eq!(Blocks::weights(BlockForm::Int8, 32).row_bytes(65), 65 + 3 * 2);
        assert_eq!(Blocks::weights(BlockForm::Uint4, 64).row_bytes(64), 36);
        assert_eq!(Blocks::weights(BlockForm::Fp8, 128).row_bytes(130), 130 + 2 * 4);
        assert_eq!(Blocks::kept(512).row_bytes(576), 576 + 2 * 2);
    }
}
