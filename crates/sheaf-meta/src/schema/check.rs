//! The value rules of a schema node, compiled: bounds, patterns, formats, enumerations, junctors.

use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::{Map, Number, Value};

use super::Node;

/// Largest compiled pattern, in bytes: a hostile schema must not take the memory of the server.
const PATTERN_LIMIT: usize = 1 << 20;

/// Rules of one node beyond its type. Most nodes have none.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) required: Vec<Box<str>>,
    pub(crate) allowed: Option<Vec<Value>>,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) format: Option<Box<str>>,
    pub(crate) minimum: Option<(Number, bool)>,
    pub(crate) maximum: Option<(Number, bool)>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) length: (Option<u64>, Option<u64>),
    pub(crate) items: (Option<u64>, Option<u64>),
    pub(crate) properties: (Option<u64>, Option<u64>),
    pub(crate) unique_items: bool,
    pub(crate) all_of: Vec<Arc<Node>>,
    pub(crate) any_of: Vec<Arc<Node>>,
    pub(crate) one_of: Vec<Arc<Node>>,
    pub(crate) not: Option<Arc<Node>>,
}

/// A pattern, compiled at its first use, since most patterns of most kinds are never used. One that does not compile
/// holds no value to anything: the CRD that brings it is refused by the rules for CRDs, not at every write.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) source: Box<str>,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(crate) fn matches(&self, text: &str) -> bool {
        self.regex.get_or_init(|| compile_pattern(&self.source)).as_ref().is_none_or(|r| r.is_match(text))
    }
}

impl Checks {
    pub(crate) fn compile(
        map: &Map<String, Value>,
        mut node: impl FnMut(&Value) -> Arc<Node>,
    ) -> Option<Box<Self>> {
        const KEYWORDS: [&str; 20] = [
            "required",
            "enum",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "uniqueItems",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            "exclusiveMinimum",
            "exclusiveMaximum",
        ];
        if !KEYWORDS.iter().any(|k| map.contains_key(*k)) {
            return None;
        }
        let number = |key: &str| match map.get(key) {
            Some(Value::Number(n)) => Some(n.clone()),
            _ => None,
        };
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mut list = |key: &str| -> Vec<Arc<Node>> {
            map.get(key).and_then(Value::as_array).into_iter().flatten().map(&mut node).collect()
        };
        let (all_of, any_of, one_of) = (list("allOf"), list("anyOf"), list("oneOf"));
        Some(Box::new(Self {
            required: map
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect(),
            allowed: map.get("enum").and_then(Value::as_array).cloned(),
            pattern: map
                .get("pattern")
                .and_then(Value::as_str)
                .map(|source| Pattern { source: source.into(), regex: OnceLock::new() }),
            format: map.get("format").and_then(Value::as_str).map(Into::into),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf").and_then(|n| n.as_f64()).filter(|n| *n > 0.0),
            length: (count("minLength"), count("maxLength")),
            items: (count("minItems"), count("maxItems")),
            properties: (count("minProperties"), count("maxProperties")),
            unique_items: flag("uniqueItems"),
            all_of,
            any_of,
            one_of,
            not: map.get("not").map(node),
        }))
    }

    /// The schemas inside allOf, anyOf, oneOf and not.
    pub(crate) fn junctors(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.all_of.iter().chain(&self.any_of).chain(&self.one_of).chain(&self.not)
    }
}

/// A pattern of a schema; `None` if it is no valid one.
pub(crate) fn compile_pattern(source: &str) -> Option<Regex> {
    regex::RegexBuilder::new(source).size_limit(PATTERN_LIMIT).build().ok()
}
