//! Defaults and rules of Kubernetes' own types, by type: what holds of a Container holds wherever a Container stands.
//!
//! `table.txt` has the facts (its head says how it is written), `defaults.rs` and the modules beside it what a line
//! cannot say. A kind's tree is made from the table and the published shapes when the kind is first written; it holds
//! only the fields that some rule concerns, and equal types are shared. Owns those trees and nothing else.

mod access;
mod cluster;
mod defaults;
mod networks;
mod pods;
mod policies;
mod table;
#[cfg(test)]
mod tests;
mod workloads;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};
use sheaf_meta::kind::Rules;
use sheaf_meta::quantity::Quantity;
use sheaf_meta::status::FieldError;

use super::Problems;
use table::{Check, FieldRule, TypeRule};

/// Completes a value of a type; runs before its fields' defaults.
type DefaultFn = fn(&mut Map<String, Value>);
/// Judges a value of a type.
type CheckFn = fn(&At<'_>, &mut Problems);

/// A value under judgement: itself, what is stored in its place, and where it is.
struct At<'a> {
    map: &'a Map<String, Value>,
    old: Option<&'a Map<String, Value>>,
    path: &'a str,
}

impl<'a> At<'a> {
    /// The path of a field of it.
    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
    /// What is at a pointer such as `/spec/selector`.
    fn get(&self, pointer: &str) -> Option<&'a Value> {
        find(self.map, pointer)
    }
    fn text(&self, pointer: &str) -> &'a str {
        self.get(pointer).and_then(Value::as_str).unwrap_or("")
    }
    fn list(&self, pointer: &str) -> &'a [Value] {
        self.get(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    fn int(&self, pointer: &str) -> Option<i64> {
        self.get(pointer).and_then(Value::as_i64)
    }
    /// Whether something is stored and differs there. What is missing equals null.
    fn changed(&self, pointer: &str) -> bool {
        let null = Value::Null;
        self.old.is_some_and(|old| find(old, pointer).unwrap_or(&null) != self.get(pointer).unwrap_or(&null))
    }
    /// Refuses a change of fields that never change.
    fn fixed(&self, fields: &[&str], problems: &mut Problems) {
        for field in fields {
            let pointer = format!("/{}", field.replace('.', "/"));
            if self.changed(&pointer) {
                let value = self.get(&pointer).cloned().unwrap_or_default();
                problems.invalid(self.field(field), value, IMMUTABLE);
            }
        }
    }
}

const IMMUTABLE: &str = "field is immutable";

fn find<'a>(map: &'a Map<String, Value>, pointer: &str) -> Option<&'a Value> {
    let mut parts = pointer.split('/').skip(1);
    let mut value = map.get(parts.next()?)?;
    for part in parts {
        value = value.get(part)?;
    }
    (!value.is_null()).then_some(value)
}

/// How the values of a field are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    One,
    List,
    Map,
}

#[derive(Clone)]
enum Inner {
    Plain,
    Quantity,
    Type(Arc<Node>),
}

struct Field {
    name: Box<str>,
    rule: FieldRule,
    form: Form,
    inner: Inner,
}

/// A type of which something is known.
#[derive(Default)]
struct Node {
    fields: Vec<Field>,
    defaults: Vec<DefaultFn>,
    checks: Vec<CheckFn>,
}

/// Types that were looked at, by definition; `None`: nothing is known of them.
type Known = BTreeMap<String, Option<Arc<Node>>>;
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// The tree of a definition.
fn tree(definition: &str) -> Option<Arc<Node>> {
    build(definition, &mut KNOWN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn build(definition: &str, known: &mut Known) -> Option<Arc<Node>> {
    if let Some(node) = known.get(definition) {
        return node.clone();
    }
    let shape = crate::kinds::shape_of(definition)?;
    let rule = table::TABLE.get(table::short(definition)).cloned().unwrap_or_default();
    let node = compile(&shape, rule, known);
    known.insert(definition.to_owned(), node.clone());
    node
}

fn compile(shape: &Value, rule: TypeRule, known: &mut Known) -> Option<Arc<Node>> {
    let TypeRule { mut fields, defaults, checks } = rule;
    let mut node = Node { fields: Vec::new(), defaults, checks };
    for (name, shape) in shape["properties"].as_object().into_iter().flatten() {
        let (form, shape) = match (&shape["items"], &shape["additionalProperties"]) {
            (items @ Value::Object(_), _) => (Form::List, items),
            (_, values @ Value::Object(_)) => (Form::Map, values),
            _ => (Form::One, shape),
        };
        let inner = match shape["$ref"].as_str() {
            Some(name) if name.ends_with(".Quantity") => Inner::Quantity,
            // The server's own business.
            Some(name) if name.ends_with(".ObjectMeta") => Inner::Plain,
            Some(name) => build(name, known).map_or(Inner::Plain, Inner::Type),
            None => Inner::Plain,
        };
        let rule = fields.remove(name.as_str()).unwrap_or_default();
        if !rule.is_empty() || !matches!(inner, Inner::Plain) {
            node.fields.push(Field { name: name.as_str().into(), rule, form, inner });
        }
    }
    debug_assert!(fields.is_empty(), "the table knows fields that there are not: {:?}", fields.keys());
    let empty = node.fields.is_empty() && node.defaults.is_empty() && node.checks.is_empty();
    (!empty).then(|| Arc::new(node))
}

impl Node {
    fn default(&self, value: &mut Value) {
        let Some(map) = value.as_object_mut() else { return };
        for default in &self.defaults {
            default(map);
        }
        for field in &self.fields {
            if let Some(default) = &field.rule.default {
                let there = map.get(&*field.name);
                let missing = match there {
                    None | Some(Value::Null) => true,
                    Some(Value::String(s)) => s.is_empty() && default.is_string(),
                    Some(n @ Value::Number(_)) => field.rule.zero_is_unset && n.as_i64() == Some(0),
                    Some(_) => false,
                };
                if missing {
                    map.insert((*field.name).to_owned(), default.clone());
                }
            }
            let Some(value) = map.get_mut(&*field.name) else { continue };
            let one = |value: &mut Value| match &field.inner {
                Inner::Plain => {}
                Inner::Quantity => canonical(value),
                Inner::Type(node) => node.default(value),
            };
            match (field.form, value) {
                (Form::One, value) => one(value),
                (Form::List, Value::Array(list)) => list.iter_mut().for_each(one),
                (Form::Map, Value::Object(map)) => map.values_mut().for_each(one),
                _ => {}
            }
        }
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &mut String, problems: &mut Problems) {
        let Some(map) = value.as_object() else { return };
        let old = old.and_then(Value::as_object);
        for field in &self.fields {
            let len = path.len();
            if len > 0 {
                path.push('.');
            }
            path.push_str(&field.name);
            let there = map.get(&*field.name).filter(|v| !v.is_null());
            let before = old.and_then(|old| old.get(&*field.name)).filter(|v| !v.is_null());
            for check in &field.rule.checks {
                check.apply(there, before, old.is_some(), path, problems);
            }
            if let Some(value) = there {
                field.descend(value, before, path, problems);
            }
            path.truncate(len);
        }
        let at = At { map, old, path };
        for check in &self.checks {
            check(&at, problems);
        }
    }
}

impl Field {
    fn descend(&self, value: &Value, before: Option<&Value>, path: &mut String, problems: &mut Problems) {
        let one = |value: &Value, old: Option<&Value>, path: &mut String, problems: &mut Problems| match &self
            .inner
        {
            Inner::Plain => {}
            Inner::Quantity => drop(problems.quantity(path, value)),
            Inner::Type(node) => node.check(value, old, path, problems),
        };
        let len = path.len();
        match (self.form, value) {
            (Form::One, value) => one(value, before, path, problems),
            (Form::List, Value::Array(list)) => {
                for (i, value) in list.iter().enumerate() {
                    let _ = write!(path, "[{i}]");
                    one(value, None, path, problems);
                    path.truncate(len);
                }
            }
            (Form::Map, Value::Object(map)) => {
                for (key, value) in map {
                    let _ = write!(path, "[{key}]");
                    one(value, None, path, problems);
                    path.truncate(len);
                }
            }
            _ => {}
        }
    }
}

/// Quantities are kept in their canonical form, as every reader of Kubernetes' API finds them.
fn canonical(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = Quantity::parse(&text) {
        *value = Value::from(quantity.to_string());
    }
}

/// Rules of a kind: those of its type, then its own.
pub(crate) struct Typed {
    definition: String,
    tree: OnceLock<Option<Arc<Node>>>,
    own: Arc<dyn Rules>,
}

impl Typed {
    /// The rules of a definition, with what the kind has beyond.
    pub(crate) fn new(definition: String, own: Arc<dyn Rules>) -> Self {
        Self { definition, tree: OnceLock::new(), own }
    }
    fn tree(&self) -> Option<&Node> {
        self.tree.get_or_init(|| tree(&self.definition)).as_deref()
    }
}

impl Rules for Typed {
    fn default(&self, object: &mut Value, old: Option<&Value>) {
        self.own.default(object, old);
        if let Some(tree) = self.tree() {
            tree.default(object);
        }
    }
    fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut problems = Problems::default();
        if let Some(tree) = self.tree() {
            tree.check(object, old, &mut String::new(), &mut problems);
        }
        problems.list.extend(self.own.validate(object, old));
        problems.list
    }
    fn warnings(&self, object: &Value) -> Vec<String> {
        self.own.warnings(object)
    }
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Option<Vec<Value>> {
        self.own.cells(object, now)
    }
}

/// The check of a single field, beyond its type.
impl Check {
    fn apply(
        &self,
        value: Option<&Value>,
        before: Option<&Value>,
        update: bool,
        path: &str,
        problems: &mut Problems,
    ) {
        let empty = match value {
            None => true,
            Some(Value::String(s)) => s.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        match self {
            Self::Required if empty => return problems.required(path, ""),
            Self::Fixed if update && value != before => {
                return problems.invalid(path, value.cloned().unwrap_or_default(), IMMUTABLE);
            }
            _ => {}
        }
        let Some(value) = value else { return };
        match (self, value) {
            (Self::Least(least), Value::Number(n)) if n.as_i64().is_some_and(|n| n < *least) => {
                problems.invalid(path, value.clone(), at_least(*least));
            }
            (Self::Most(most), Value::Number(n)) if n.as_i64().is_some_and(|n| n > *most) => {
                problems.invalid(path, value.clone(), format!("must be less than or equal to {most}"));
            }
            (Self::Port, Value::Number(n)) if !n.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {
                problems.invalid(path, value.clone(), "must be between 1 and 65535, inclusive");
            }
            (Self::Port, Value::String(name)) => {
                port_name(name).into_iter().for_each(|why| problems.invalid(path, name.as_str(), why));
            }
            (Self::OneOf(allowed), Value::String(text)) => {
                let allowed: Vec<&str> = allowed.iter().map(|a| &**a).collect();
                problems.one_of(path, text, &allowed);
            }
            (Self::OneOf(allowed), Value::Array(list)) => {
                let allowed: Vec<&str> = allowed.iter().map(|a| &**a).collect();
                for (i, text) in list.iter().enumerate() {
                    problems.one_of(format!("{path}[{i}]"), text.as_str().unwrap_or(""), &allowed);
                }
            }
            (Self::Name(rule), Value::String(text)) if !text.is_empty() => problems.name(path, text, *rule),
            (Self::Labels, Value::Object(map)) => labels(map, path, problems),
            (Self::Unique(key), Value::Array(list)) => unique(list, key, path, problems),
            (Self::NotNegative, value) => not_negative(value, path, problems),
            _ => {}
        }
    }
}

/// Kubernetes' sentence for a lower bound.
fn at_least(least: i64) -> String {
    match least {
        1 => "must be greater than 0".into(),
        least => format!("must be greater than or equal to {least}"),
    }
}

/// Why a text is no name of a port; empty if it is one.
fn port_name(name: &str) -> Vec<String> {
    let mut why = Vec::new();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > 15 {
        why.push("must be no more than 15 characters".to_owned());
    }
    if !name.chars().all(fits) {
        why.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.chars().any(|c| c.is_ascii_lowercase()) {
        why.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        why.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        why.push("must not begin or end with a hyphen".to_owned());
    }
    why
}

fn labels(map: &Map<String, Value>, path: &str, problems: &mut Problems) {
    for (key, value) in map {
        problems.name(path, key, sheaf_meta::names::label_key);
        problems.name(path, value.as_str().unwrap_or(""), sheaf_meta::names::label_value);
    }
}

fn unique(list: &[Value], key: &str, path: &str, problems: &mut Problems) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, element) in list.iter().enumerate() {
        let (value, path) = if key.is_empty() {
            (element, format!("{path}[{i}]"))
        } else {
            (&element[key], format!("{path}[{i}].{key}"))
        };
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        if !value.is_null() && !text.is_empty() && !seen.insert(text) {
            problems.duplicate(path, value.clone());
        }
    }
}

/// A quantity, or a map of them, none of which may be below nothing.
fn not_negative(value: &Value, path: &str, problems: &mut Problems) {
    let one = |value: &Value, path: String, problems: &mut Problems| {
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        if Quantity::parse(&text).is_ok_and(|q| q.signum() < 0) {
            problems.invalid(path, text, "must be greater than or equal to 0");
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                one(value, format!("{path}[{key}]"), problems);
            }
        }
        value => one(value, path.to_owned(), problems),
    }
}
