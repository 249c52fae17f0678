//! Validation of an object by its schema, in the words of Kubernetes' schema validator.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Map, Number, Value};

use super::check::Checks;
use super::format;
use super::{Additional, ListType, Node, Schema, Type};
use crate::status::FieldError;

/// Most errors that are collected; a body that breaks more rules than this is wrong as a whole.
pub const MAX_ERRORS: usize = 100;

impl Schema {
    /// The rules of the schema that the object breaks; empty if none. Unknown fields are no error here
    /// ([`Schema::unknown_fields`]). `metadata` is checked for types only; see [`crate::objectmeta::validate`].
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut run = Run { path: String::new(), errors: Vec::new() };
        run.value(&self.root, object, true);
        run.errors
    }
}

struct Run {
    path: String,
    errors: Vec<FieldError>,
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
    fn value(&mut self, node: &Node, value: &Value, typed: bool) {
        if self.full() {
            return;
        }
        if value.is_null() && node.nullable {
            return;
        }
        if typed && value.is_null() && node.ty != Type::Any {
            self.wrong_type(type_word(node.ty), value);
            return;
        }
        if !type_fits(node.ty, value) {
            self.wrong_type(type_word(node.ty), value);
            return;
        }
        match value {
            Value::Object(map) => self.object(node, map, typed),
            Value::Array(list) => self.array(node, list, typed),
            _ => {}
        }
        if let Some(checks) = &node.checks {
            self.checks(node, checks, value);
        }
    }

    fn object(&mut self, node: &Node, map: &Map<String, Value>, typed: bool) {
        if let Some(checks) = &node.checks {
            for key in checks.required.iter().filter(|k| !map.contains_key(&***k)) {
                self.within(key, |r| r.push("FieldValueRequired", "Required value".into()));
            }
        }
        if node.embedded {
            for key in ["apiVersion", "kind"] {
                if map.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                    self.within(key, |r| {
                        r.push("FieldValueRequired", "Required value: must not be empty".into())
                    });
                }
            }
        }
        for (key, value) in map {
            let child = match node.property(key) {
                Some(child) => child,
                None => match &node.additional {
                    Additional::Schema(child) => child,
                    _ => continue,
                },
            };
            // A null in a map of built-in kinds, or of an optional field, is dropped by decoders; but the schema
            // validator of custom resources refuses it.
            self.within(key, |r| r.value(child, value, typed));
        }
    }

    fn array(&mut self, node: &Node, list: &[Value], typed: bool) {
        if let Some(items) = &node.items {
            for (i, value) in list.iter().enumerate() {
                self.within_index(i, |r| r.value(items, value, typed));
            }
        }
        match &node.list_type {
            ListType::Set => self.unique(list, |v| Some(v.clone())),
            ListType::Map(keys) => self.unique(list, |v| {
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
            _ => {}
        }
    }

    fn unique(&mut self, list: &[Value], identity: impl Fn(&Value) -> Option<Value>) {
        let mut seen = HashSet::with_capacity(list.len());
        for (i, value) in list.iter().enumerate() {
            let Some(id) = identity(value) else { continue };
            if !seen.insert(id.to_string()) {
                self.within_index(i, |r| {
                    if !r.full() {
                        r.errors.push(FieldError::duplicate(r.at(), &id));
                    }
                });
            }
        }
    }

    fn checks(&mut self, node: &Node, c: &Checks, value: &Value) {
        if let Some(allowed) = &c.allowed
            && !allowed.contains(value)
        {
            let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
            let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
            self.push("FieldValueNotSupported", message);
        }
        match value {
            Value::String(s) => self.string(node, c, s, value),
            Value::Number(n) => self.number(c, n, value),
            Value::Array(list) => {
                let len = list.len() as u64;
                if let Some(max) = c.items.1.filter(|m| len > *m) {
                    self.push("FieldValueTooMany", format!("Too many: {len}: must have at most {max} items"));
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
                    self.push("FieldValueTooMany", format!("Too many: {len}: must have at most {max} items"));
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
            self.push("FieldValueTooLong", format!("Too long: may not be more than {max} bytes"));
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

    fn junctors(&mut self, c: &Checks, value: &Value) {
        for node in &c.all_of {
            // The errors inside say more than that all must hold.
            self.value(node, value, false);
        }
        let fits = |node: &Node, path: &str| {
            let mut run = Run { path: path.to_owned(), errors: Vec::new() };
            run.value(node, value, false);
            run.errors.is_empty()
        };
        let shown = Value::String(String::new());
        if !c.any_of.is_empty() && !c.any_of.iter().any(|n| fits(n, &self.path)) {
            let why = format!("\"{}\" must validate at least one schema (anyOf)", self.path);
            self.invalid(&shown, &why);
        }
        if !c.one_of.is_empty() {
            let count = c.one_of.iter().filter(|n| fits(n, &self.path)).count();
            if count != 1 {
                let found = if count == 0 {
                    "Found none valid".into()
                } else {
                    format!("Found {count} valid alternatives")
                };
                let why = format!("\"{}\" must validate one and only one schema (oneOf). {found}", self.path);
                self.invalid(&shown, &why);
            }
        }
        if c.not.as_ref().is_some_and(|n| fits(n, &self.path)) {
            let why = format!("\"{}\" must not validate the schema (not)", self.path);
            self.invalid(&shown, &why);
        }
    }
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
