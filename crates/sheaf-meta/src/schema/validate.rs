//! Validation of an object by its schema, in the words of Kubernetes' schema validator.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Map, Number, Value};

use super::check::Checks;
use super::format;
use super::{Correlated, ListType, Node, Schema, Type};
use crate::changes::{Change, Changes};
use crate::status::FieldError;

/// Most errors that are collected; a body that breaks more rules than this is wrong as a whole.
pub const MAX_ERRORS: usize = 100;

impl Schema {
    /// The rules of the schema that the object breaks; empty if none. Unknown fields are no error here
    /// ([`Schema::unknown_fields`]). `metadata` is checked for types only; see [`crate::objectmeta::validate`].
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut run = Run { path: String::new(), errors: Vec::new(), embedded: true };
        run.value(&self.root, object, None, true);
        run.errors
    }

    /// As [`Schema::validate`], of an object that differs by `changes` from one that breaks no rule: what is as it was is not
    /// judged again.
    pub fn validate_changed(&self, object: &Value, changes: &Changes) -> Vec<FieldError> {
        let mut run = Run { path: String::new(), errors: Vec::new(), embedded: true };
        run.changed(&self.root, object, changes.root());
        run.errors
    }

    /// The rules that a custom object breaks as a replacement of `old`, if there is one: what is as it was before is
    /// tolerated, even if the schema has become stricter. Items of lists are told apart by their keys; those of lists
    /// without keys are tolerated only if the list as a whole is as it was. What makes an embedded resource valid is left
    /// to the caller.
    pub fn validate_change(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut run = Run { path: String::new(), errors: Vec::new(), embedded: false };
        run.value(&self.root, new, old, true);
        run.errors
    }

    /// The rules of the schema that a value at a path breaks: for parts of objects, as defaults are.
    pub fn validate_at(&self, path: &str, value: &Value) -> Vec<FieldError> {
        let mut run = Run { path: path.to_owned(), errors: Vec::new(), embedded: false };
        run.value(&self.root, value, None, true);
        run.errors
    }
}

struct Run {
    path: String,
    errors: Vec<FieldError>,
    /// Whether embedded resources are asked for apiVersion and kind.
    embedded: bool,
}

impl Run {
    fn full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }
    /// The path as messages name it.
    fn at(&self) -> &str {
        if self.path.is_empty() { "<nil>" } else { &self.path }
    }
    fn push(&mut self, reason: &str, message: String) {
        if !self.full() {
            self.errors.push(FieldError { field: self.at().to_owned(), reason: reason.to_owned(), message });
        }
    }
    fn invalid(&mut self, value: &Value, why: &str) {
        if !self.full() {
            self.errors.push(FieldError::invalid(self.at(), value, why));
        }
    }
    fn in_body(&mut self, value: &Value, rule: &str) {
        let why = format!("{} in body {rule}", self.path);
        self.invalid(value, &why);
    }
    fn wrong_type(&mut self, wanted: &str, value: &Value) {
        let found = type_name(value);
        let message = format!(
            "Invalid value: \"{found}\": {} in body must be of type {wanted}: \"{found}\"",
            self.path
        );
        self.push("FieldValueTypeInvalid", message);
    }
    fn within(&mut self, key: &str, f: impl FnOnce(&mut Self)) {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        f(self);
        self.path.truncate(len);
    }
    fn within_index(&mut self, index: usize, f: impl FnOnce(&mut Self)) {
        let len = self.path.len();
        let _ = write!(self.path, "[{index}]");
        f(self);
        self.path.truncate(len);
    }

    /// `typed` is false inside junctors, where a node only adds value rules.
    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, typed: bool) {
        if self.full() || old == Some(value) {
            return;
        }
        if value.is_null() && node.nullable {
            return;
        }
        let null = typed && value.is_null() && node.ty != Type::Any;
        if null || !type_fits(node.ty, value) {
            self.wrong_type(type_word(node.ty), value);
            return;
        }
        if let Some(checks) = &node.checks {
            self.checks(node, checks, value);
        }
        match value {
            Value::Object(map) => self.object(node, map, old.and_then(Value::as_object), typed),
            Value::Array(list) => self.array(node, list, old.and_then(Value::as_array), typed),
            _ => {}
        }
    }

    /// As [`Run::value`] without an old one, where a value is known to be good but for its changes.
    fn changed(&mut self, node: &Node, value: &Value, change: &Change) {
        let (Change::Below(keys), Value::Object(map)) = (change, value) else {
            if *change != Change::Same {
                self.value(node, value, None, true);
            }
            return;
        };
        if self.full() {
            return;
        }
        // It was a map before, and its type was right.
        if let Some(checks) = &node.checks {
            self.checks(node, checks, value);
        }
        self.present(node, map);
        for (key, change) in keys {
            let (Some(value), Some(child)) = (map.get(&**key), node.field(key)) else { continue };
            if !is_plain(child, value) {
                self.within(key, |r| r.changed(child, value, change));
            }
        }
    }

    fn object(
        &mut self,
        node: &Node,
        map: &Map<String, Value>,
        old: Option<&Map<String, Value>>,
        typed: bool,
    ) {
        self.present(node, map);
        let old = old.filter(|_| !node.map_atomic);
        for (key, value) in map {
            let Some(child) = node.field(key) else { continue };
            if is_plain(child, value) {
                continue;
            }
            // A null in a map of built-in kinds, or of an optional field, is dropped by decoders; but the schema
            // validator of custom resources refuses it.
            self.within(key, |r| r.value(child, value, old.and_then(|o| o.get(key)), typed));
        }
    }

    /// What a map must have.
    fn present(&mut self, node: &Node, map: &Map<String, Value>) {
        if let Some(checks) = &node.checks {
            for key in checks.required.iter().filter(|k| !map.contains_key(&***k)) {
                self.within(key, |r| r.push("FieldValueRequired", "Required value".into()));
            }
        }
        if node.embedded && self.embedded {
            for key in ["apiVersion", "kind"] {
                if map.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                    self.within(key, |r| {
                        r.push("FieldValueRequired", "Required value: must not be empty".into())
                    });
                }
            }
        }
    }

    fn array(&mut self, node: &Node, list: &[Value], old: Option<&Vec<Value>>, typed: bool) {
        if let Some(items) = &node.items {
            let keys = match &node.list_type {
                ListType::Map(keys) => keys.as_slice(),
                _ => &[],
            };
            let before = old.map(|o| Correlated::new(keys.iter().map(|k| &**k), o));
            for (i, value) in list.iter().enumerate() {
                if is_plain(items, value) {
                    continue;
                }
                let before = before.as_ref().and_then(|b| b.get(value));
                self.within_index(i, |r| r.value(items, value, before, typed));
            }
        }
        // Repeated items that were there before are tolerated too.
        let before = old.is_some_and(|o| !self.repeated(node, o).is_empty());
        if before {
            return;
        }
        for (i, id) in self.repeated(node, list) {
            self.within_index(i, |r| {
                if !r.full() {
                    r.errors.push(FieldError::duplicate(r.at(), &id));
                }
            });
        }
    }

    /// Items of a set or of a list with keys that were there before, with what is the same of them.
    fn repeated(&self, node: &Node, list: &[Value]) -> Vec<(usize, Value)> {
        match &node.list_type {
            ListType::Set => repeated(list, |v| Some(v.clone())),
            ListType::Map(keys) => repeated(list, |v| {
                let defaults = node.items.as_deref();
                let mut out = Map::new();
                for key in keys {
                    let default = || defaults?.property(key)?.default.as_ref();
                    if let Some(v) = v.get(&**key).or_else(default) {
                        out.insert(key.to_string(), v.clone());
                    }
                }
                (!out.is_empty()).then_some(Value::Object(out))
            }),
            _ => Vec::new(),
        }
    }

    fn checks(&mut self, node: &Node, c: &Checks, value: &Value) {
        if let Some(allowed) = &c.allowed
            && !allowed.contains(value)
        {
            // All are shown as texts, whatever they are.
            let quoted = |v: &Value| match v {
                Value::String(_) => v.to_string(),
                other => Value::from(other.to_string()).to_string(),
            };
            let list: Vec<String> = allowed.iter().map(quoted).collect();
            let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
            self.push("FieldValueNotSupported", message);
        }
        match value {
            Value::String(s) => self.string(node, c, s, value),
            Value::Number(n) => self.number(c, n, value),
            Value::Array(list) => {
                let len = list.len() as u64;
                if let Some(max) = c.items.1.filter(|m| len > *m) {
                    self.push("FieldValueTooMany", too_many(len, max));
                }
                if let Some(min) = c.items.0.filter(|m| len < *m) {
                    self.in_body(&len.into(), &format!("should have at least {min} items"));
                }
                if c.unique_items {
                    let mut seen = HashSet::new();
                    if !list.iter().all(|v| seen.insert(v.to_string())) {
                        self.in_body(value, "shouldn't contain duplicates");
                    }
                }
            }
            Value::Object(map) => {
                let len = map.len() as u64;
                if let Some(max) = c.properties.1.filter(|m| len > *m) {
                    self.push("FieldValueTooMany", too_many(len, max));
                }
                if let Some(min) = c.properties.0.filter(|m| len < *m) {
                    self.in_body(&len.into(), &format!("should have at least {min} properties"));
                }
            }
            _ => {}
        }
        self.junctors(c, value);
    }

    fn string(&mut self, node: &Node, c: &Checks, s: &str, value: &Value) {
        let len = || s.chars().count() as u64;
        if let Some(max) = c.length.1.filter(|m| s.len() as u64 > *m && len() > *m) {
            let bytes = if max == 1 { "byte" } else { "bytes" };
            self.push("FieldValueTooLong", format!("Too long: may not be more than {max} {bytes}"));
        }
        if let Some(min) = c.length.0.filter(|m| len() < *m) {
            self.in_body(value, &format!("should be at least {min} chars long"));
        }
        if let Some(pattern) = c.pattern.as_ref().filter(|p| !p.matches(s)) {
            self.in_body(value, &format!("should match '{}'", pattern.source));
        }
        if node.ty != Type::IntOrString
            && let Some(name) = &c.format
            && !format::fits(name, s)
        {
            self.in_body(value, &format!("must be of type {name}: {value}"));
        }
    }

    fn number(&mut self, c: &Checks, n: &Number, value: &Value) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        if let Some((max, exclusive)) = &c.maximum {
            let order = compare(n, max);
            if order == Some(Greater) || (*exclusive && order == Some(Equal)) {
                let rule = if *exclusive { "less than" } else { "less than or equal to" };
                self.in_body(value, &format!("should be {rule} {max}"));
            }
        }
        if let Some((min, exclusive)) = &c.minimum {
            let order = compare(n, min);
            if order == Some(Less) || (*exclusive && order == Some(Equal)) {
                let rule = if *exclusive { "greater than" } else { "greater than or equal to" };
                self.in_body(value, &format!("should be {rule} {min}"));
            }
        }
        if let (Some(step), Some(n)) = (c.multiple_of, n.as_f64()) {
            let steps = n / step;
            if (steps - steps.round()).abs() > 1e-9 {
                self.in_body(value, &format!("should be a multiple of {step}"));
            }
        }
        let fits = match c.format.as_deref() {
            Some("int32") => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Some("int64") => n.is_i64() || n.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9.3e18),
            _ => true,
        };
        if !fits {
            let name = c.format.as_deref().unwrap_or("");
            self.in_body(value, &format!("must be of type {name}: \"number\""));
        }
    }

    /// allOf, anyOf, oneOf, not. As upstream, what they say is said of the object as a whole, and followed by what the
    /// closest alternative lacks.
    fn junctors(&mut self, c: &Checks, value: &Value) {
        let trial = |node: &Node, path: &str| {
            let mut run = Run { path: path.to_owned(), errors: Vec::new(), embedded: false };
            run.value(node, value, None, false);
            run.errors
        };
        if !c.any_of.is_empty() {
            let mut tries: Vec<_> = c.any_of.iter().map(|n| trial(n, &self.path)).collect();
            if tries.iter().all(|t| !t.is_empty()) {
                self.whole("must validate at least one schema (anyOf)");
                self.closest(&mut tries);
            }
        }
        if !c.one_of.is_empty() {
            let mut tries: Vec<_> = c.one_of.iter().map(|n| trial(n, &self.path)).collect();
            match tries.iter().filter(|t| t.is_empty()).count() {
                1 => {}
                0 => {
                    self.whole("must validate one and only one schema (oneOf). Found none valid");
                    self.closest(&mut tries);
                }
                found => {
                    let rule = "must validate one and only one schema (oneOf)";
                    self.whole(&format!("{rule}. Found {found} valid alternatives"));
                }
            }
        }
        let mut broken: Vec<_> = c.all_of.iter().map(|n| trial(n, &self.path)).collect();
        if broken.iter().any(|t| !t.is_empty()) {
            let none = if broken.iter().all(|t| !t.is_empty()) { ". None validated" } else { "" };
            self.whole(&format!("must validate all the schemas (allOf){none}"));
            for errors in &mut broken {
                self.take(errors);
            }
        }
        if c.not.as_ref().is_some_and(|n| trial(n, &self.path).is_empty()) {
            self.whole("must not validate the schema (not)");
        }
    }

    /// An error about the object as a whole that names this place.
    fn whole(&mut self, rule: &str) {
        if !self.full() {
            let why = format!("\"{}\" {rule}", self.path);
            self.errors.push(FieldError::invalid("<nil>", &Value::String(String::new()), &why));
        }
    }

    fn closest(&mut self, tries: &mut [Vec<FieldError>]) {
        if let Some(errors) = tries.iter_mut().min_by_key(|t| t.len()) {
            self.take(errors);
        }
    }

    fn take(&mut self, errors: &mut Vec<FieldError>) {
        errors.truncate(MAX_ERRORS.saturating_sub(self.errors.len()));
        self.errors.append(errors);
    }
}

/// Whether a value is a scalar of the right type and there is nothing more to check: most are, and need no path.
fn is_plain(node: &Node, value: &Value) -> bool {
    let scalar = matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_));
    scalar && node.checks.is_none() && type_fits(node.ty, value)
}

fn too_many(len: u64, max: u64) -> String {
    format!("Too many: {len}: must have at most {max} {}", if max == 1 { "item" } else { "items" })
}

fn repeated(list: &[Value], identity: impl Fn(&Value) -> Option<Value>) -> Vec<(usize, Value)> {
    let mut seen = HashSet::with_capacity(list.len());
    let mut out = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let Some(id) = identity(value) else { continue };
        if !seen.insert(id.to_string()) {
            out.push((i, id));
        }
    }
    out
}

fn type_fits(ty: Type, value: &Value) -> bool {
    let whole = |n: &Number| n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0);
    match (ty, value) {
        (Type::Any, _)
        | (Type::Object, Value::Object(_))
        | (Type::Array, Value::Array(_))
        | (Type::String | Type::IntOrString, Value::String(_))
        | (Type::Number, Value::Number(_))
        | (Type::Boolean, Value::Bool(_)) => true,
        (Type::Integer | Type::IntOrString, Value::Number(n)) => whole(n),
        _ => false,
    }
}

fn type_word(ty: Type) -> &'static str {
    match ty {
        Type::Any => "any",
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::IntOrString => "integer,string",
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn compare(a: &Number, b: &Number) -> Option<std::cmp::Ordering> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}
