//! Strategic merge patch: a merge patch that knows, by the schema, which lists are maps.
//!
//! What each field does comes from `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`. Where the schema
//! says nothing, objects merge and lists are replaced. Only built-in kinds are patched so; for others the server
//! answers 415.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Node, Schema};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch.
pub fn strategic_merge_patch(document: &Value, patch: &Value, schema: &Schema) -> Result<Value> {
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else {
        return Err(malformed("a strategic merge patch must be an object"));
    };
    Ok(Value::Object(merge_map(document.clone(), patch.clone(), Some(&schema.root))?))
}

fn malformed(why: impl Into<String>) -> PatchError {
    PatchError::Malformed(why.into())
}

fn merge_map(mut original: Object, mut patch: Object, schema: Option<&Node>) -> Result<Object> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) => match word.as_str() {
            "replace" => return Ok(clean_map(patch)),
            "delete" => return Ok(Object::new()),
            // Merging is what happens anyway.
            "merge" => {}
            other => return Err(bad_directive(other)),
        },
        Some(other) => return Err(bad_directive(&other.to_string())),
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, schema)?;

    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PREFIX) {
            let Value::Array(doomed) = value else {
                return Err(malformed(format!("{key} must be a list of primitive values")));
            };
            if let Some(Value::Array(list)) = original.get_mut(field) {
                let doomed: HashSet<String> = doomed.iter().map(Value::to_string).collect();
                list.retain(|v| !doomed.contains(&v.to_string()));
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let node = schema.and_then(|n| n.field(&key)).map(|n| &**n);
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                if node.is_some_and(|n| n.patch.replace) {
                    Value::Object(clean_map(new))
                } else {
                    Value::Object(merge_map(old, new, node)?)
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => Value::Array(merge_list(old, new, node, &key)?),
            (_, new) => clean(new),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn bad_directive(word: &str) -> PatchError {
    malformed(format!("unknown patch type {word:?}: \"$patch\" must be \"replace\", \"delete\" or \"merge\""))
}

/// Keeps of the original only what `$retainKeys` lists; the patch may set nothing else.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys: Option<Vec<&str>> = list.as_array().and_then(|l| l.iter().map(Value::as_str).collect());
    let keys = keys.ok_or_else(|| malformed("invalid patch format of retainKeys"))?;
    if patch.iter().any(|(k, v)| !k.starts_with('$') && !v.is_null() && !keys.contains(&k.as_str())) {
        return Err(malformed("invalid patch format of retainKeys"));
    }
    original.retain(|k, _| keys.contains(&k.as_str()));
    Ok(())
}

/// Lists that come with `$setElementOrder/NAME`: merged, then put into that order.
fn set_element_orders(original: &mut Object, patch: &mut Object, schema: Option<&Node>) -> Result<()> {
    let orders: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in orders {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed("invalid patch format of setElementOrder list"));
        };
        let field = directive[ORDER_PREFIX.len()..].to_owned();
        let node = schema.and_then(|n| n.field(&field)).map(|n| &**n);
        let key = node.and_then(|n| n.patch.merge_key.as_deref());
        let new = match patch.get(&field) {
            None => None,
            Some(Value::Array(_)) => patch.remove(&field),
            // A null or another type: the ordinary rules decide, the order does not matter.
            Some(_) => continue,
        };
        let old = match original.get(&field) {
            Some(Value::Array(list)) => Some(list.clone()),
            _ => None,
        };
        if let Some(Value::Array(new)) = &new {
            check_order(new, &order, key)?;
        }
        let merged = match (old.clone(), new) {
            (Some(old), Some(Value::Array(new))) => merge_list(old, new, node, &field)?,
            (None, Some(new)) => match clean(new) {
                Value::Array(list) => list,
                _ => continue,
            },
            (Some(old), _) => old,
            (None, _) => continue,
        };
        let ordered = arrange(merged, &order, &old.unwrap_or_default(), key);
        original.insert(field, Value::Array(ordered));
    }
    Ok(())
}

/// Every element of the patch must be in the order list, in that order.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<()> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, element) in order.iter().enumerate() {
        if let Some(id) = identity(element, key) {
            places.entry(id).or_default().push(i);
        }
    }
    let mut at = 0;
    for element in patch.iter().filter(|e| e.get(DIRECTIVE).is_none()) {
        let places = identity(element, key).and_then(|id| places.get(&id));
        match places.and_then(|p| p.get(p.partition_point(|i| *i < at))) {
            Some(i) => at = i + 1,
            None => {
                return Err(malformed(
                    "The order in patch list doesn't match $setElementOrder list: every element of the patch must \
                     be in it, in the same order",
                ));
            }
        }
    }
    Ok(())
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    node: Option<&Node>,
    field: &str,
) -> Result<Vec<Value>> {
    let Some(node) = node.filter(|n| n.patch.merge) else { return Ok(clean_list(patch)) };
    if patch.is_empty() {
        return Ok(original);
    }
    let objects = patch.iter().chain(&original).filter(|v| v.is_object()).count();
    if objects == 0 {
        let mut merged = original.clone();
        let mut known: HashSet<String> = merged.iter().map(Value::to_string).collect();
        merged.extend(patch.iter().filter(|v| known.insert(v.to_string())).cloned());
        return Ok(arrange(merged, &patch, &original, None));
    }
    if objects != patch.len() + original.len() {
        return Err(malformed(format!("the list {field:?} must not mix objects with other values")));
    }
    let Some(key) = node.patch.merge_key.as_deref() else {
        return Err(malformed(format!("cannot merge lists without merge key for {field}")));
    };
    let items = node.items.as_deref();
    let mut doomed: HashSet<String> = HashSet::new();
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for element in patch {
        let Some(directive) = element.get(DIRECTIVE) else {
            plain.push(element);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let id = identity(&element, Some(key)).ok_or_else(|| no_merge_key(&element, key))?;
                doomed.insert(id);
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(malformed("merging lists cannot yet be specified in the patch")),
            _ => return Err(bad_directive(&directive.to_string())),
        }
    }
    if replace {
        return Ok(clean_list(plain));
    }
    let mut merged = original.clone();
    merged.retain(|o| identity(o, Some(key)).is_none_or(|id| !doomed.contains(&id)));
    let mut places = ranks(&merged, Some(key));
    for element in &plain {
        let id = identity(element, Some(key)).ok_or_else(|| no_merge_key(element, key))?;
        let place = places.get(&id).and_then(|i| merged.get_mut(*i));
        match (place, element) {
            (Some(place), Value::Object(new)) => {
                let old = match std::mem::take(place) {
                    Value::Object(old) => old,
                    _ => Object::new(),
                };
                *place = Value::Object(merge_map(old, new.clone(), items)?);
            }
            _ => {
                places.insert(id, merged.len());
                merged.push(clean(element.clone()));
            }
        }
    }
    Ok(arrange(merged, &plain, &original, Some(key)))
}

fn no_merge_key(element: &Value, key: &str) -> PatchError {
    malformed(format!("map: {element} does not contain declared merge key: {key}"))
}

/// What an element is known by: the value of the merge key, or the element itself. `None` if it lacks the key.
fn identity(element: &Value, key: Option<&str>) -> Option<String> {
    match key {
        Some(key) => element.get(key).map(Value::to_string),
        None => Some(element.to_string()),
    }
}

/// Where each element is, the first time.
fn ranks(list: &[Value], key: Option<&str>) -> HashMap<String, usize> {
    let mut out = HashMap::with_capacity(list.len());
    for (i, element) in list.iter().enumerate() {
        if let Some(id) = identity(element, key) {
            out.entry(id).or_insert(i);
        }
    }
    out
}

/// Orders a merged list: what the patch names follows the patch's order; the rest keeps its place relative to them
/// as in the original, as far as both orders allow.
fn arrange(merged: Vec<Value>, order: &[Value], original: &[Value], key: Option<&str>) -> Vec<Value> {
    let (in_order, in_original) = (ranks(order, key), ranks(original, key));
    let rank = |ranks: &HashMap<String, usize>, v: &Value| ranks.get(&identity(v, key)?).copied();
    let mut named: Vec<(usize, Value)> = Vec::new();
    let mut rest: Vec<(usize, Value)> = Vec::new();
    for value in merged {
        match rank(&in_order, &value) {
            Some(i) => named.push((i, value)),
            None => rest.push((rank(&in_original, &value).unwrap_or(usize::MAX), value)),
        }
    }
    named.sort_by_key(|(i, _)| *i);
    rest.sort_by_key(|(i, _)| *i);
    let mut out = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for (_, value) in named {
        if let Some(place) = rank(&in_original, &value) {
            while let Some((_, before)) = rest.next_if(|(i, _)| *i < place) {
                out.push(before);
            }
        }
        out.push(value);
    }
    out.extend(rest.map(|(_, v)| v));
    out
}

/// Takes directives and nulls out of what the patch adds anew.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(clean_map(map)),
        Value::Array(list) => Value::Array(clean_list(list)),
        other => other,
    }
}

fn clean_map(map: Object) -> Object {
    if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
        return Object::new();
    }
    map.into_iter()
        .filter(|(k, v)| {
            !v.is_null()
                && k != DIRECTIVE
                && k != RETAIN_KEYS
                && !k.starts_with(DELETE_PREFIX)
                && !k.starts_with(ORDER_PREFIX)
        })
        .map(|(k, v)| (k, clean(v)))
        .collect()
}

fn clean_list(list: Vec<Value>) -> Vec<Value> {
    list.into_iter().filter(|v| !is_mark(v)).map(clean).collect()
}

/// Whether a list element only tells what to do: `{$patch: delete, name: x}`, or `{$patch: replace}` alone.
fn is_mark(value: &Value) -> bool {
    let Value::Object(map) = value else { return false };
    match map.get(DIRECTIVE).and_then(Value::as_str) {
        Some("delete") => true,
        Some("replace") => map.len() == 1,
        _ => false,
    }
}
