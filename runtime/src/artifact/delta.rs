//! What differs between two JSON values of like form, as JSON: the plans of an artifact's variants are mostly the same.
//!
//! ```text
//! {"is": x}                 the value is x
//! {"of": {"key": delta}}    of an object with the same keys, or of a list with as many elements (by number): what differs
//! {}                        nothing differs
//! ```

use serde_json::{Map, Value};

const IS: &str = "is";
const OF: &str = "of";

/// What makes `new` of `base`.
pub(super) fn between(base: &Value, new: &Value) -> Value {
    Value::Object(find(base, new))
}

fn find(base: &Value, new: &Value) -> Map<String, Value> {
    let mut parts = Map::new();
    let mut part = |key: String, base: &Value, new: &Value| {
        if base != new {
            parts.insert(key, between(base, new));
        }
    };
    match (base, new) {
        _ if base == new => return Map::new(),
        (Value::Object(base), Value::Object(new)) if base.keys().eq(new.keys()) => {
            base.iter().zip(new.values()).for_each(|((key, base), new)| part(key.clone(), base, new));
        }
        (Value::Array(base), Value::Array(new)) if base.len() == new.len() => {
            base.iter().zip(new).enumerate().for_each(|(i, (base, new))| part(i.to_string(), base, new));
        }
        _ => return Map::from_iter([(IS.to_owned(), new.clone())]),
    }
    Map::from_iter([(OF.to_owned(), Value::Object(parts))])
}

/// `base` with `delta`.
///
/// # Errors
/// Something that [`between`] does not write, or that does not fit `base`.
pub(super) fn apply(base: &Value, delta: &Value) -> Result<Value, String> {
    let delta = delta.as_object().ok_or("a difference is not an object")?;
    let mut pairs = delta.iter();
    match (pairs.next(), pairs.next()) {
        (None, _) => Ok(base.clone()),
        (Some((key, value)), None) if key == IS => Ok(value.clone()),
        (Some((key, Value::Object(parts))), None) if key == OF => {
            let mut value = base.clone();
            for (key, part) in parts {
                let place = match &mut value {
                    Value::Object(map) => map.get_mut(key),
                    Value::Array(list) => key.parse().ok().and_then(|i: usize| list.get_mut(i)),
                    _ => None,
                };
                let place = place.ok_or_else(|| format!("a difference of `{key}`, which is not there"))?;
                *place = apply(place, part)?;
            }
            Ok(value)
        }
        _ => Err("a difference is neither a value nor of parts".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3i64).prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 3, |inner| {
            let keys = prop_oneof![Just("is".to_owned()), Just("of".to_owned()), Just("0".to_owned())];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(keys, inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_difference_makes_the_other(base in any_json(), new in any_json()) {
            prop_assert_eq!(apply(&base, &between(&base, &new)).unwrap(), new);
        }

        #[test]
        fn any_json_is_applied_or_refused(base in any_json(), delta in any_json()) {
            let _ = apply(&base, &delta);
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let base = json!({"a": [1, {"b": 2, "c": 3}], "d": "e"});
        let new = json!({"a": [1, {"b": 2, "c": 4}], "d": "e"});
        assert_eq!(between(&base, &new), json!({"of": {"a": {"of": {"1": {"of": {"c": {"is": 4}}}}}}}));
        assert_eq!(between(&base, &base), json!({}));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let base = json!({"a": [1]});
        for delta in [
            json!(1),
            json!({"of": {"b": {}}}),
            json!({"of": {"a": {"of": {"1": {}}}}}),
            json!({"is": 1, "of": {}}),
            json!({"x": 1}),
        ] {
            apply(&base, &delta).unwrap_err();
        }
    }
}
