//! Numbers for people: the one place that says how many digits a view shows, and in which units.
//!
//! Units are powers of 1000, as those of data sheets, file sizes and bandwidths are.

/// The largest of `units` that `n` has one of, when rounded to three digits; `n` in it.
fn scaled(n: f64, units: &[(f64, &'static str)]) -> Option<(f64, &'static str)> {
    let (unit, name) = units.iter().rev().find(|(unit, _)| n >= unit * 0.9995)?;
    Some((n / unit, name))
}

/// Three digits.
fn three(value: f64) -> String {
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Things that are counted, `8,030,261,248` as `8.03 B`; small numbers as they are.
pub(super) fn count(n: f64) -> String {
    match scaled(n, &[(1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")]) {
        Some((value, unit)) if n >= 1e4 => format!("{} {unit}", three(value)),
        _ => format!("{n:.0}"),
    }
}

/// Operations and the like, `17.2G`.
pub fn thousands(n: f64) -> String {
    match scaled(n, &[(1e3, "K"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P")]) {
        Some((value, unit)) => format!("{}{unit}", three(value)),
        None => format!("{n:.0}"),
    }
}

/// Bytes, `16.06 GB`: as the runtime tells them.
pub fn bytes(n: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")];
    match units.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", n as f64 / unit),
        None => format!("{n} bytes"),
    }
}

/// `8030261248` as `8,030,261,248`.
pub fn digits(n: u64) -> String {
    let plain = n.to_string();
    let mut out = String::new();
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_short() {
        for (n, text) in [
            (8_030_261_248.0, "8.03 B"),
            (218_112_000.0, "218 M"),
            (999_885_952.0, "1.00 B"),
            (4096.0, "4096"),
            (12_000.0, "12.0 k"),
        ] {
            assert_eq!(count(n), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (8_030_261_248, "8,030,261,248")] {
            assert_eq!(digits(n), text);
        }
        for (n, text) in
            [(17.0, "17"), (999.0, "999"), (999.7, "1.00K"), (17.23e9, "17.2G"), (99.96e12, "100T"), (2e18, "2000P")]
        {
            assert_eq!(thousands(n), text);
        }
        for (n, text) in
            [(999, "999 bytes"), (131_072, "131.07 KB"), (16_060_522_496, "16.06 GB"), (1_344_100_000_000, "1.34 TB")]
        {
            assert_eq!(bytes(n), text);
        }
    }
}
