//! The record of who owns what after an ordinary update, made without reading all of it.
//!
//! Most updates change a few fields that their writer owns already, of an object whose record fits its schema. Then the
//! few changed paths are looked up in the stored `fieldsV1`, and an entry that they do not touch stays as the JSON that it
//! is. [`update`] gives up (`None`) wherever more than that is needed; the long way leads to the same.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::managers::{MAX_UPDATE_MANAGERS, Manager, Operation, UNOWNED, UNOWNED_METADATA, order, word_of};
use super::set::{FieldSet, encode_element};
use super::typed::Comparison;
use super::{Writer, entry, typed, unowned_fields};
use crate::changes::Change;
use crate::object;
use crate::patch::same;
use crate::schema::{Node, Schema};

/// The entries after a write that made `new` of `old`, whose entries are `before`. `change` says how the two differ,
/// if that is known ([`Change::Whole`] if not).
pub(super) fn update(
    before: Vec<Value>,
    old: &Value,
    new: &Value,
    change: &Change,
    schema: &Schema,
    writer: &Writer<'_>,
) -> Option<Vec<Value>> {
    let updaters = before.iter().filter(|e| word_of(e) == Operation::Update.word()).count();
    if before.is_empty() || updaters >= MAX_UPDATE_MANAGERS {
        return None;
    }
    if let Some(own) = owner_of_all(&before, old, new, change, schema, writer) {
        let mut out = before;
        if let Some(one) = out.get_mut(own) {
            one["time"] = object::time(writer.now).into();
        }
        if out.len() > 1 {
            out.sort_by(order);
        }
        return Some(out);
    }
    let Comparison { added, modified, removed } = typed::compare_changed(&schema.root, old, new, change);
    let mut taken = modified;
    taken.extend(&added);
    if taken.is_empty() && removed.is_empty() {
        return Some(before);
    }
    // Most changes are of fields that somebody owns, and all that are lost are those that are taken.
    let mine = match taken.intersection(unowned_fields()).is_empty() {
        true => Cow::Borrowed(&taken),
        false => Cow::Owned(taken.difference(unowned_fields())),
    };
    let lost = match removed.is_empty() {
        true => Cow::Borrowed(&taken),
        false => Cow::Owned(taken.union(&removed)),
    };
    let mut written = false;
    let mut out = Vec::with_capacity(before.len() + 1);
    for mut one in before {
        let fields = one.get("fieldsV1")?;
        let own = !mine.is_empty() && !written && is_of(&one, writer);
        written |= own;
        if own && contains(fields, &mine)? && !touches(fields, &removed)? {
            one["time"] = object::time(writer.now).into();
            out.push(one);
            continue;
        }
        if !own && !touches(fields, &lost)? {
            out.push(one);
            continue;
        }
        let mut manager = Manager::decode(&one)?;
        manager.set.subtract(&lost);
        if own {
            manager.set.extend(&mine);
            manager.time = Some(object::time(writer.now));
        }
        if !manager.set.is_empty() {
            out.push(manager.encode());
        }
    }
    if !written && !mine.is_empty() {
        if updaters + 1 > MAX_UPDATE_MANAGERS {
            return None;
        }
        out.push(entry(Operation::Update, mine.into_owned(), writer).encode());
    }
    if out.len() > 1 {
        out.sort_by(order);
    }
    Some(out)
}

/// The entry of the writer's updates, where that is all there is to it: plain values have changed that were there before, that entry
/// has all of them, and no other has any. `None` where it is more, or not known.
fn owner_of_all(
    entries: &[Value],
    old: &Value,
    new: &Value,
    change: &Change,
    schema: &Schema,
    writer: &Writer<'_>,
) -> Option<usize> {
    let (Change::Below(keys), Value::Object(old), Value::Object(new)) = (change, old, new) else {
        return None;
    };
    let mut own = None;
    for (i, one) in entries.iter().enumerate() {
        let fields = one.get("fieldsV1")?.as_object()?;
        let mut found = Found { all: true, any: false, paths: 0 };
        found.look(Some(&schema.root), keys, (old, new), Some(fields), Place::Root)?;
        if own.is_none() && is_of(one, writer) {
            (found.all && found.paths > 0).then_some(())?;
            own = Some(i);
        } else if found.any {
            return None;
        }
    }
    own
}

/// Which of the changed paths are in `fieldsV1`.
struct Found {
    all: bool,
    any: bool,
    paths: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Metadata,
    Deeper,
}

impl Found {
    /// `None`: something has changed that is no plain value, or was not there, or that nobody owns.
    fn look(
        &mut self,
        node: Option<&Node>,
        keys: &[(Box<str>, Change)],
        (old, new): (&Map<String, Value>, &Map<String, Value>),
        fields: Option<&Map<String, Value>>,
        place: Place,
    ) -> Option<()> {
        for (key, change) in keys {
            let below = match (place, &**key) {
                (Place::Metadata, "managedFields") => continue,
                (Place::Root, "metadata") => Place::Metadata,
                (Place::Root, key) if UNOWNED.contains(&key) => return None,
                (Place::Metadata, key) if UNOWNED_METADATA.contains(&key) => return None,
                _ => Place::Deeper,
            };
            let (l, r) = (old.get(&**key)?, new.get(&**key)?);
            let node = typed::field(node, key);
            let field = match fields.and_then(|fields| fields.get(&["f:", key].concat())) {
                Some(field) => Some(field.as_object()?),
                None => None,
            };
            match (change, l, r) {
                (Change::Below(keys), Value::Object(lm), Value::Object(rm)) => {
                    if typed::is_leaf(node, l) || typed::is_leaf(node, r) {
                        return None;
                    }
                    self.look(node, keys, (lm, rm), field, below)?;
                }
                (_, l, r) if is_plain(l) && is_plain(r) && !same(l, r) => {
                    // In `fieldsV1` itself: written as `.`, or left without children.
                    let member = field.is_some_and(|field| field.is_empty() || field.contains_key("."));
                    self.all &= member;
                    self.any |= member;
                    self.paths += 1;
                }
                _ => return None,
            }
        }
        Some(())
    }
}

fn is_plain(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_))
}

/// The entries of an object as they are, if there are any.
pub(super) fn entries(object: &Value) -> Option<&Vec<Value>> {
    object::get(object, &["metadata", "managedFields"])?.as_array().filter(|list| !list.is_empty())
}

/// The entries of a new object, all at once.
pub(super) fn create(new: &Value, schema: &Schema, writer: &Writer<'_>) -> Vec<Value> {
    let fields = typed::added_encoded(&schema.root, new);
    if fields.is_empty() {
        return Vec::new();
    }
    vec![entry(Operation::Update, FieldSet::default(), writer).encode_with(fields.into())]
}

/// Whether an entry is that of the writer's updates.
fn is_of(one: &Value, writer: &Writer<'_>) -> bool {
    word_of(one) == Operation::Update.word()
        && object::str_at(one, &["manager"]) == writer.manager
        && object::str_at(one, &["apiVersion"]) == writer.api_version
        && object::str_at(one, &["subresource"]) == writer.subresource
}

/// Whether a path is in `fieldsV1` itself: written as `.`, or left without children.
fn is_member(fields: &Value) -> Option<bool> {
    let map = fields.as_object()?;
    Some(map.is_empty() || map.contains_key("."))
}

/// Whether any of the paths is in `fieldsV1`. `None`: that is not what it should be.
fn touches(fields: &Value, set: &FieldSet) -> Option<bool> {
    let map = fields.as_object()?;
    for (element, entry) in set.iter() {
        let Some(below) = map.get(&encode_element(element)) else { continue };
        if (entry.member && is_member(below)?) || touches(below, &entry.children)? {
            return Some(true);
        }
    }
    Some(false)
}

/// Whether all of the paths are in `fieldsV1`.
fn contains(fields: &Value, set: &FieldSet) -> Option<bool> {
    let map = fields.as_object()?;
    for (element, entry) in set.iter() {
        let Some(below) = map.get(&encode_element(element)) else { return Some(false) };
        if (entry.member && !is_member(below)?) || !contains(below, &entry.children)? {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The short way of a new object is the long one.
    #[test]
    fn what_a_new_object_has_is_what_its_set_says() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
            "atomic": {"type": "object", "x-kubernetes-map-type": "atomic", "x-kubernetes-preserve-unknown-fields": true},
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                    "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
            }},
        }}));
        for object in [
            json!({}),
            json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "a", "uid": "u"}}),
            json!({"metadata": {"name": "a", "labels": {"a": "b"}, "annotations": {}, "finalizers": ["x", "y"],
                "managedFields": [{"manager": "m"}], "ownerReferences": [{"uid": "u", "name": "n"}]}}),
            json!({"metadata": {"name": {"odd": 1}}, "kind": {"odd": 1}, "data": {"a": "1", "b": ""}}),
            json!({"data": {}, "atomic": {"a": {"b": 1}}, "spec": {"set": ["a", "b", "a"], "x": [1], "y": {"z": null},
                "ports": [{"port": 1, "name": "n"}, {"port": 2}, {"port": 1}]}}),
        ] {
            let mut set = typed::added(&schema.root, &object);
            set.subtract(unowned_fields());
            assert_eq!(Value::from(typed::added_encoded(&schema.root, &object)), set.encode(), "{object}");
        }
    }
}
