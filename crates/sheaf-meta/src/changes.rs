//! Where two states of an object differ, found once for all who ask: the schema, the rules of metadata, the record of owners.
//!
//! Most updates change a field or two, and what is as it was needs no second look: it was looked at when it was written.
//! Maps are followed; a list, or a value of another type, differs as a whole. Pure.

use serde_json::{Map, Value};

/// What one state has otherwise than another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes(Change);

/// How two values differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not at all.
    Same,
    /// Both are maps, and these keys differ; in order.
    Below(Vec<(Box<str>, Change)>),
    /// As a whole: only one is there, or they are no maps.
    Whole,
}

impl Changes {
    /// Compares all of two objects.
    pub fn between(old: &Value, new: &Value) -> Self {
        Self(compare(old, new))
    }

    /// Compares the two again, after others than the client may have changed `new`. The record of owners, the larger part of many
    /// objects, is for the client and the server alone: if it was the same, it is.
    pub fn again(&self, old: &Value, new: &Value) -> Self {
        let (Value::Object(before), Value::Object(after)) = (old, new) else {
            return Self::between(old, new);
        };
        if self.touch(&["metadata", "managedFields"]) {
            return Self::between(old, new);
        }
        Self(maps(before, after, |key, old, new| match (key, old, new) {
            ("metadata", Value::Object(old), Value::Object(new)) => {
                maps(old, new, |key, old, new| match key {
                    "managedFields" => Change::Same,
                    _ => compare(old, new),
                })
            }
            _ => compare(old, new),
        }))
    }

    /// Whether the two are equal.
    pub fn is_same(&self) -> bool {
        self.0 == Change::Same
    }

    /// Whether a part of the object differs, by its path of keys; `true` for all that is below one that differs as a whole.
    pub fn touch(&self, path: &[&str]) -> bool {
        let mut change = &self.0;
        for key in path {
            match change.at(key) {
                Change::Same => return false,
                Change::Whole => return true,
                below => change = below,
            }
        }
        *change != Change::Same
    }

    /// Whether nothing differs but `metadata` and `status`; see [`crate::object::same_desired_state`].
    pub fn leave_desired_state(&self) -> bool {
        self.within(|change| match change {
            Change::Below(keys) => keys.iter().all(|(key, _)| matches!(&**key, "metadata" | "status")),
            _ => false,
        })
    }

    /// Whether nothing differs but what the server keeps in `metadata`: `resourceVersion`, `generation` and `managedFields`.
    pub fn are_bookkeeping(&self) -> bool {
        let own = |key: &str| matches!(key, "resourceVersion" | "generation" | "managedFields");
        self.within(|change| match change {
            Change::Below(keys) => keys.iter().all(|(key, change)| {
                &**key == "metadata"
                    && matches!(change, Change::Below(keys) if keys.iter().all(|(key, _)| own(key)))
            }),
            _ => false,
        })
    }

    fn within(&self, holds: impl FnOnce(&Change) -> bool) -> bool {
        self.is_same() || holds(&self.0)
    }

    pub(crate) fn root(&self) -> &Change {
        &self.0
    }
}

impl Change {
    /// What there is of it under a key.
    pub(crate) fn at(&self, key: &str) -> &Self {
        match self {
            Self::Same => &Self::Same,
            Self::Whole => &Self::Whole,
            Self::Below(keys) => {
                keys.iter().find(|(k, _)| &**k == key).map_or(&Self::Same, |(_, change)| change)
            }
        }
    }
}

/// Compares two values.
fn compare(old: &Value, new: &Value) -> Change {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => maps(old, new, |_, old, new| compare(old, new)),
        (old, new) if old == new => Change::Same,
        _ => Change::Whole,
    }
}

/// Compares two maps, what is under a key that both have by `compare`.
fn maps(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    compare: impl Fn(&str, &Value, &Value) -> Change,
) -> Change {
    let mut keys = Vec::new();
    // Most maps have the keys that they had: nothing has to be looked up.
    if old.len() != new.len() || !side_by_side(old, new, &compare, &mut keys) {
        keys.clear();
        for (key, new) in new {
            put(&mut keys, key, old.get(key).map_or(Change::Whole, |old| compare(key, old, new)));
        }
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            put(&mut keys, key, Change::Whole);
        }
        keys.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    if keys.is_empty() { Change::Same } else { Change::Below(keys) }
}

/// Compares two maps of as many keys one by one; `false` if the keys are not the same.
fn side_by_side(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    compare: impl Fn(&str, &Value, &Value) -> Change,
    keys: &mut Vec<(Box<str>, Change)>,
) -> bool {
    for ((key, old), (other, new)) in old.iter().zip(new) {
        if key != other {
            return false;
        }
        put(keys, key, compare(key, old, new));
    }
    true
}

fn put(keys: &mut Vec<(Box<str>, Change)>, key: &str, change: Change) {
    if change != Change::Same {
        keys.push((key.into(), change));
    }
}
