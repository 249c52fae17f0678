//! Which item of an old list an item of the new one replaces: the one with the same keys. By index, since lists can be
//! long.

use std::collections::HashMap;

use serde_json::Value;

/// The items of an old list by their keys.
pub struct Correlated<'v> {
    keys: Vec<&'v str>,
    items: HashMap<String, &'v Value>,
}

impl<'v> Correlated<'v> {
    /// Reads the items of a list whose items are told apart by these fields. Without fields, none are.
    pub fn new<'k: 'v>(keys: impl IntoIterator<Item = &'k str>, old: &'v [Value]) -> Self {
        let keys: Vec<&str> = keys.into_iter().collect();
        let mut items = HashMap::new();
        if !keys.is_empty() {
            for item in old.iter().filter(|o| o.is_object()) {
                // Of items that cannot be told apart the first counts.
                items.entry(identity(&keys, item)).or_insert(item);
            }
        }
        Self { keys, items }
    }
    /// The old item that an item replaces.
    pub fn get(&self, item: &Value) -> Option<&'v Value> {
        if self.items.is_empty() {
            return None;
        }
        self.items.get(&identity(&self.keys, item)).copied()
    }
}

/// What tells an item apart: absent and null are the same.
fn identity(keys: &[&str], item: &Value) -> String {
    let mut out = String::new();
    for key in keys {
        if let Some(value) = item.get(key).filter(|v| !v.is_null()) {
            out.push_str(&value.to_string());
        }
        // JSON has no such character outside of strings, where it is escaped.
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_by_their_keys() {
        let old = [
            json!({"a": "x", "b": 1, "v": 1}),
            json!({"a": "x", "v": 2}),
            json!(null),
            json!({"a": "x", "b": 1}),
        ];
        let by = |keys: &'static [&'static str], item: Value| {
            Correlated::new(keys.iter().copied(), &old).get(&item).map(|v| v["v"].clone())
        };
        assert_eq!(by(&["a", "b"], json!({"a": "x", "b": 1, "v": 9})), Some(json!(1)));
        assert_eq!(by(&["a", "b"], json!({"a": "x", "b": null})), Some(json!(2)));
        assert_eq!(by(&["a", "b"], json!({"a": "x", "b": 2})), None);
        assert_eq!(by(&["a", "b"], json!(null)), None);
        assert_eq!(by(&[], json!({"a": "x", "b": 1})), None);
    }
}
