//! What a card says of the released model that it describes: a name, and the numbers that its authors print.
//!
//! A number is exact (`8030261248`) or rounded as it was printed (`"8.03B"`): then it is compared to the digits that were printed.

use std::fmt;
use std::sync::Arc;

use crate::diagnostic::Span;

/// What is known of the released model.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its name.
    pub model: Arc<str>,
    /// The part of it that the card describes, where that is not all: `text`.
    pub part: Option<Arc<str>>,
    /// Its number of parameters, each tensor counted once.
    pub parameters: Option<Count>,
    /// How many of them take part in computing one token. Absent: all.
    pub active: Option<Count>,
    /// What `active` counts.
    pub active_counts: ActiveCounts,
    /// What all layers keep of a token in 16 bits, before any window ends.
    pub cache_bytes_per_token: Option<u64>,
    /// Why a number is not the wiring's, or what it leaves out.
    pub note: Option<Arc<str>>,
    /// Where the number of parameters stands.
    pub span: Span,
}

/// Which parameters a published number of active ones counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActiveCounts {
    /// Tables that are only looked up too.
    #[default]
    All,
    /// Those alone that take part in a product or a sum: tables that are only looked up are left out.
    WithoutLookups,
}

impl ActiveCounts {
    /// As a card writes it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => Some(ActiveCounts::All),
            "without_lookups" => Some(ActiveCounts::WithoutLookups),
            _ => None,
        }
    }
}

/// A number as it was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its value.
    pub value: u64,
    /// It stands for all numbers that round to it: multiples of this. 1 when it is exact.
    pub unit: u64,
}

impl Count {
    /// An exact number.
    pub fn exact(value: u64) -> Self {
        Count { value, unit: 1 }
    }

    /// `8.03B`, `671B`, `1T`, `124M`.
    pub fn parse(text: &str) -> Option<Self> {
        let (digits, scale) = match text.trim().split_at_checked(text.trim().len().checked_sub(1)?)? {
            (digits, "K") => (digits, 1_000),
            (digits, "M") => (digits, 1_000_000),
            (digits, "B") => (digits, 1_000_000_000),
            (digits, "T") => (digits, 1_000_000_000_000_u64),
            _ => return None,
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || digits.ends_with('.') {
            return None;
        }
        let unit = scale / 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let value = format!("{whole}{fraction}").parse::<u64>().ok()?.checked_mul(unit)?;
        (unit > 0).then_some(Count { value, unit })
    }

    /// Whether a number is this one, to the digits that were printed.
    pub fn is(self, number: u64) -> bool {
        number.saturating_add(self.unit / 2) / self.unit == self.value / self.unit
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unit == 1 { write!(f, "{}", self.value) } else { write!(f, "about {}", self.value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_numbers() {
        for (text, value, unit) in [
            ("8.03B", 8_030_000_000, 10_000_000),
            ("671B", 671_000_000_000, 1_000_000_000),
            ("1T", 1_000_000_000_000, 1_000_000_000_000),
            ("124M", 124_000_000, 1_000_000),
        ] {
            assert_eq!(Count::parse(text), Some(Count { value, unit }), "{text}");
        }
        for text in ["", "B", "8", "8.B", ".5B", "-1B", "8.1234567890123B", "1e3B", "99999999999T"] {
            assert_eq!(Count::parse(text), None, "{text}");
        }
    }

    #[test]
    fn they_stand_for_what_rounds_to_them() {
        let about = Count::parse("8.03B").expect("it is a number");
        assert!(about.is(8_030_261_248) && about.is(8_025_000_000) && about.is(8_034_999_999));
        assert!(!about.is(8_035_000_000) && !about.is(8_024_999_999));
        assert!(Count::exact(7).is(7) && !Count::exact(7).is(8));
    }
}
