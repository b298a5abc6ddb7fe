//! JSON as checkpoints hold it: what Python writes, which is JSON but for three numbers.
//!
//! Python writes `Infinity`, `-Infinity` and `NaN` where a number is none that JSON has. [`parse`] reads them as `null`: no number.

use serde_json::Value;

/// Reads JSON; a number that is not finite is `null`.
///
/// # Errors
/// The text is no JSON otherwise either; the error is that of the text as it stands.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    // A byte order mark is no text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).or_else(|error| serde_json::from_str(&finite(text)).map_err(|_| error))
}

/// The text with `null` for each number that is not finite; strings stay as they are.
fn finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some(c) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"].into_iter().find(|n| !quoted && rest.starts_with(n));
        let taken = match (c, number) {
            (_, Some(number)) => {
                out.push_str("null");
                rest = &rest[number.len()..];
                continue;
            }
            ('\\', None) if quoted => rest.chars().take(2).map(char::len_utf8).sum(),
            _ => c.len_utf8(),
        };
        quoted ^= c == '"';
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_python_writes() {
        let read = |text: &str| parse(text).ok();
        assert_eq!(
            read(r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN}"#),
            Some(json!({"a": [0.0, null], "b": null, "c": null}))
        );
        assert_eq!(
            read(r#"{"Infinity": "NaN \" Infinity \\", "é": [Infinity]}"#),
            Some(json!({"Infinity": "NaN \" Infinity \\", "é": [null]}))
        );
        assert_eq!(read("\u{feff}[1]"), Some(json!([1])));
    }

    #[test]
    fn what_is_no_json_is_an_error_of_the_text() {
        let error = parse("{\"a\": Infinity,\n \"b\": }").expect_err("it is no JSON");
        assert_eq!((error.line(), error.column()), (1, 7), "{error}");
        for text in ["", "Infinitys", "\"", "\"\\", "[Infinity", "NaN NaN"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
