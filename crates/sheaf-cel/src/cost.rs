//! What a call costs while it runs, in upstream's units.

use crate::functions::Cost;
use crate::value::{List, Map, Value};

/// Of a variable or a field.
pub(crate) const SELECT: u64 = 1;
pub(crate) const CALL: u64 = 1;
pub(crate) const LIST: u64 = 10;
pub(crate) const MAP: u64 = 30;
pub(crate) const CHECK: u64 = 350_000;
/// Per character that is looked at.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// Per character of a pattern.
pub(crate) const PATTERN: f64 = 0.25;

pub(crate) fn scale(size: u64, factor: f64) -> u64 {
    let product = (size as f64 * factor).ceil();
    if product >= u64::MAX as f64 { u64::MAX } else { product as u64 }
}

/// The cost of a call, its arguments not counted.
pub(crate) fn of(rule: Cost, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, Value::size);
    let text = |i: usize| matches!(args.get(i), Some(Value::String(_) | Value::Bytes(_)));
    match rule {
        Cost::One => CALL,
        Cost::Free => 0,
        Cost::Traverse(arg, times) => scale(size(arg), times * TRAVERSAL),
        Cost::Parse(times) if text(0) => scale(size(0), times * TRAVERSAL),
        Cost::Parse(_) => CALL,
        Cost::Convert => match (args.first(), result) {
            (Some(Value::Bytes(_)), Value::String(_)) | (Some(Value::String(_)), Value::Bytes(_)) => {
                scale(size(0), TRAVERSAL)
            }
            _ => CALL,
        },
        Cost::Compare => scale(size(0).min(size(1)), TRAVERSAL),
        Cost::Order if text(0) => scale(size(0).min(size(1)), TRAVERSAL),
        Cost::Order => CALL,
        Cost::Concat if text(0) => scale(size(0).saturating_add(size(1)), TRAVERSAL),
        Cost::Concat => CALL,
        Cost::In => match args.get(1) {
            Some(Value::List(list)) => list.len() as u64,
            _ => CALL,
        },
        Cost::Regex => {
            let text = scale(size(0).saturating_add(1), TRAVERSAL);
            text.saturating_mul(scale(size(1), PATTERN))
        }
        Cost::Contains => scale(size(0), TRAVERSAL).saturating_mul(scale(size(1), TRAVERSAL)),
        Cost::Walk => args.first().map_or(0, walk),
        Cost::Join => scale(result.size(), 2.0 * TRAVERSAL),
        Cost::Replace | Cost::Split => scale(size(0), 2.0 * TRAVERSAL),
        Cost::Sets(times) => size(0).saturating_mul(size(1)).saturating_mul(times).saturating_add(CALL),
        Cost::ContainsIp => {
            let parsed = if text(1) { scale(size(1), TRAVERSAL) } else { 0 };
            scale(2 * size(0), TRAVERSAL) + parsed
        }
        Cost::ContainsCidr => {
            let parsed = if text(1) { scale(size(1), TRAVERSAL) } else { 0 };
            scale(2 * size(0), TRAVERSAL) + scale(size(0), TRAVERSAL) + 1 + parsed
        }
        Cost::Check => CHECK,
    }
}

/// The cost of looking at everything in a value.
fn walk(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => walk_list(list),
        Value::Map(map) => walk_map(map),
        _ => 1,
    }
}

fn walk_list(list: &List<'_>) -> u64 {
    list.iter().map(|item| item.map_or(1, |i| walk(&i))).fold(0, u64::saturating_add)
}

fn walk_map(map: &Map<'_>) -> u64 {
    let entry = |key: &Value<'_>| {
        let value = map.get(key).and_then(Result::ok).map_or(1, |v| walk(&v));
        walk(key).saturating_add(value)
    };
    map.keys().iter().map(entry).fold(0, u64::saturating_add)
}
