//! Reading schemas as JSON: what is absent or misshapen reads as empty. Definitions were checked for types by their own
//! schema before they come here.

use serde_json::{Map, Value};

pub(crate) type Object = Map<String, Value>;

/// The schema as an object; empty if it is none.
pub(crate) fn object(value: &Value) -> &Object {
    static EMPTY: std::sync::OnceLock<Object> = std::sync::OnceLock::new();
    value.as_object().unwrap_or_else(|| EMPTY.get_or_init(Map::new))
}

pub(crate) fn text<'a>(map: &'a Object, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn flag(map: &Object, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn list<'a>(map: &'a Object, key: &str) -> &'a [Value] {
    map.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn texts<'a>(map: &'a Object, key: &str) -> Vec<&'a str> {
    list(map, key).iter().filter_map(Value::as_str).collect()
}

/// A field, unless it is null.
pub(crate) fn some<'a>(map: &'a Object, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|v| !v.is_null())
}

pub(crate) fn count(map: &Object, key: &str) -> Option<u64> {
    // A negative bound is none.
    map.get(key).and_then(|v| v.as_u64().or_else(|| v.as_i64().map(|n| n.max(0) as u64)))
}

/// A subschema (`items`, `not`, `additionalProperties`): only where it is an object.
pub(crate) fn schema<'a>(map: &'a Object, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|v| v.is_object())
}

pub(crate) fn properties(map: &Object) -> impl Iterator<Item = (&String, &Value)> {
    map.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// The schema of one property.
pub(crate) fn property<'a>(map: &'a Object, name: &str) -> Option<&'a Value> {
    map.get("properties")?.get(name)
}
