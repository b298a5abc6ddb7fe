//! Whether two tensors of floats agree, by named tiers of tolerance, and where they first depart.
//!
//! Given what was computed, what was expected, and a [`Tier`], [`compare`] promises that every element was looked at, that a NaN
//! on one side only is a departure, and that an error names the first departing element by its index. The tiers and what they
//! allow are one table, [`allowed`]; no suite writes a tolerance of its own.

use std::fmt;

/// How closely two tensors must agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tier {
    /// The same bits, up to the sign of zero.
    Exact,
    /// At most so many representable values apart.
    Ulp(u32),
    /// A handful of roundings, and our own polynomials for exp, tanh, erf, sin and cos.
    Close,
    /// Sums of so many products, in any order.
    Accumulate(usize),
    /// A whole model against another implementation in f64.
    Model,
    /// A drawn model against the interpreter in f64, where the interpreter in f32 departs from it by this much at most.
    Conditioned(f64),
    /// A drawn model against the interpreter at the same precision, which rounding to that precision moves by this much at most.
    Rounded(f64),
    /// Any value of a model, computed in two ways: relative to the largest of its elements, where that is above 1.
    Value,
    /// Normalised embeddings of a whole model against another implementation in f32.
    Embedding,
}

/// The precision that a tensor was computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the type it is named after")]
pub enum Precision {
    F64,
    F32,
    BF16,
}

impl Precision {
    /// The distance from 1 to the next number.
    pub fn epsilon(self) -> f64 {
        match self {
            Precision::F64 => f64::EPSILON,
            Precision::F32 => f64::from(f32::EPSILON),
            Precision::BF16 => 1.0 / 128.0,
        }
    }
}

/// The table: the largest difference allowed from an element `want` of a tensor whose largest magnitude is `largest`.
pub fn allowed(tier: Tier, precision: Precision, want: f64, largest: f64) -> f64 {
    let epsilon = precision.epsilon();
    match (tier, precision) {
        (Tier::Exact, _) => 0.0,
        (Tier::Ulp(n), _) => f64::from(n) * ulp(want, precision),
        (Tier::Close, _) => 16.0 * epsilon * want.abs().max(1.0),
        // Errors of a sum grow with the square root of its length, relative to its terms; 8 covers the tail.
        (Tier::Accumulate(k), _) => 8.0 * epsilon * (k.max(1) as f64).sqrt() * largest.max(1.0),
        // Another order of sums errs as much, and its tail more.
        (Tier::Conditioned(error), _) => 32.0 * error + 256.0 * epsilon * largest.max(1.0),
        // Both are moved, each by roundings of its own.
        (Tier::Rounded(moved), _) => allowed(Tier::Model, precision, want, largest).max(2.0 * moved),
        (Tier::Model, Precision::F64) => 2e-6,
        (Tier::Model, Precision::F32) => 2e-4,
        (Tier::Model, Precision::BF16) => 1.0 / 8.0,
        (Tier::Value, Precision::F64) => 2e-6 * largest.max(1.0),
        (Tier::Value, Precision::F32) => 5e-5 * largest.max(1.0),
        (Tier::Value, Precision::BF16) => largest.max(1.0) / 32.0,
        (Tier::Embedding, Precision::F64 | Precision::F32) => 1e-4,
        (Tier::Embedding, Precision::BF16) => 2e-2,
    }
}

/// The distance from `value` to the next representable number away from zero.
fn ulp(value: f64, precision: Precision) -> f64 {
    let smallest_exponent = match precision {
        Precision::F64 => f64::MIN_EXP - 1,
        Precision::F32 | Precision::BF16 => f32::MIN_EXP - 1,
    };
    let bits = (value.abs().to_bits() >> 52) as i32 - 1023;
    precision.epsilon() * f64::from(bits.max(smallest_exponent)).exp2()
}

/// Where and how far two tensors depart.
#[derive(Clone, Debug, PartialEq)]
pub struct Departure {
    what: String,
    detail: String,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.what, self.detail)
    }
}

impl std::error::Error for Departure {}

/// An element of two tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// Its number in row-major order.
    pub index: usize,
    /// What was computed.
    pub got: f64,
    /// What was expected.
    pub want: f64,
    /// How far apart they are; infinite where only one is finite.
    pub difference: f64,
    /// How far apart they may be.
    pub allowed: f64,
}

/// How two tensors of equal length differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measure {
    /// The element that is furthest off; `None` where all are equal.
    pub furthest: Option<Element>,
    /// The first element that is further off than allowed.
    pub first: Option<Element>,
    /// Elements that are further off than allowed.
    pub departing: usize,
}

impl Measure {
    /// The largest difference.
    pub fn largest(&self) -> f64 {
        self.furthest.map_or(0.0, |e| e.difference)
    }

    /// That of a tensor of `expected` elements which was not computed.
    pub fn missing(expected: usize) -> Self {
        let missing = Element { index: 0, got: f64::NAN, want: f64::NAN, difference: f64::INFINITY, allowed: 0.0 };
        Measure { furthest: Some(missing), first: Some(missing), departing: expected }
    }
}

/// Looks at every element of two tensors.
pub fn measure<G, W>(got: &[G], want: &[W], tier: Tier, precision: Precision) -> Measure
where
    G: Copy + Into<f64>,
    W: Copy + Into<f64>,
{
    let largest = want.iter().map(|&w| w.into().abs()).filter(|w| w.is_finite()).fold(0.0, f64::max);
    let mut measure = Measure::default();
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (got, want): (f64, f64) = (got.into(), want.into());
        let difference = difference(got, want);
        let allowed = allowed(tier, precision, want, largest);
        let element = Element { index, got, want, difference, allowed };
        if difference > measure.largest() {
            measure.furthest = Some(element);
        }
        if !(difference.is_finite() && difference <= allowed) {
            measure.departing += 1;
            measure.first.get_or_insert(element);
        }
    }
    measure
}

/// As [`measure`]; an element for whose expected value `refused` holds departs, whatever was computed.
pub fn measure_unless<G, W>(
    got: &[G],
    want: &[W],
    tier: Tier,
    precision: Precision,
    refused: fn(f64) -> bool,
) -> Measure
where
    G: Copy + Into<f64>,
    W: Copy + Into<f64>,
{
    let mut measure = measure(got, want, tier, precision);
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (got, want): (f64, f64) = (got.into(), want.into());
        // Where only one is not finite, they depart already.
        if refused(want) && difference(got, want) == 0.0 {
            let element = Element { index, got, want, difference: f64::INFINITY, allowed: 0.0 };
            measure.departing += 1;
            measure.first = Some(measure.first.filter(|first| first.index < index).unwrap_or(element));
            if measure.largest().is_finite() {
                measure.furthest = Some(element);
            }
        }
    }
    measure
}

/// Compares `got` with `want`, both in row-major order of `shape`; `what` names the tensor in the error.
///
/// # Errors
/// When the lengths differ from the shape's, or an element departs by more than [`allowed`].
pub fn compare<G, W>(
    what: &str,
    shape: &[usize],
    got: &[G],
    want: &[W],
    tier: Tier,
    precision: Precision,
) -> Result<(), Departure>
where
    G: Copy + Into<f64>,
    W: Copy + Into<f64>,
{
    let depart = |detail: String| Err(Departure { what: what.to_owned(), detail });
    let count: usize = shape.iter().product();
    if got.len() != count || want.len() != count {
        let (got, want) = (got.len(), want.len());
        return depart(format!("has {got} elements where {want} are expected, shape {shape:?}"));
    }
    let measure = measure(got, want, tier, precision);
    let (Some(first), Some(furthest)) = (measure.first, measure.furthest) else { return Ok(()) };
    depart(format!(
        "departs first at {:?} (element {}): got {:e}, want {:e}, difference {:.3e} where {tier:?} in \
         {precision:?} allows {:.3e}; {} of {count} elements depart, the furthest by {:.3e} at {:?}",
        position(first.index, shape),
        first.index,
        first.got,
        first.want,
        first.difference,
        first.allowed,
        measure.departing,
        furthest.difference,
        position(furthest.index, shape),
    ))
}

/// 0 where both are the same infinity or both are NaN, infinite where only one is finite.
fn difference(got: f64, want: f64) -> f64 {
    if got == want || (got.is_nan() && want.is_nan()) {
        return 0.0;
    }
    let difference = (got - want).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// The index of element number `element` in each dimension.
pub fn position(element: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = element;
    let mut position: Vec<_> = shape
        .iter()
        .rev()
        .map(|&size| {
            let index = rest % size.max(1);
            rest /= size.max(1);
            index
        })
        .collect();
    position.reverse();
    position
}
