//! Structural schemas: the shape of an object can be read from the schema without looking into junctors, so that pruning
//! and defaulting know what to do.

use serde_json::{Value, json};
use sheaf_meta::schema::is_valid_pattern;
use sheaf_meta::status::FieldError;

use super::Errors;
use crate::json::{Object, flag, list, object, properties, property, schema, some, text};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What makes a schema not structural, in the order of the texts.
pub(super) fn validate(root: &Value, place: &str) -> Errors {
    let mut errors = Vec::new();
    invariants(object(root), Level::Root, place, &mut errors);
    complete(object(root), Some(object(root)), place, place, &mut errors);
    errors.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    errors
}

fn invariants(s: &Object, level: Level, place: &str, errors: &mut Errors) {
    let kind = text(s, "type");
    if kind == "array" && schema(s, "items").is_none() {
        errors.push(FieldError::required(format!("{place}.items"), "must be specified"));
    }
    if let Some(items) = schema(s, "items") {
        invariants(object(items), Level::Item, &format!("{place}.items"), errors);
    }
    for (name, child) in properties(s) {
        invariants(object(child), Level::Field, &format!("{place}.properties[{name}]"), errors);
    }
    let additional = some(s, "additionalProperties");
    if let Some(additional) = additional {
        let place = format!("{place}.additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(place.clone(), "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(object(additional), Level::Field, &place, errors);
        }
    }
    extensions(s, place, errors);
    let (any_of, all_of) = (is_int_or_string(list(s, "anyOf")), first_all_of_is_int_or_string(s));
    value_rules(s, any_of, all_of, level, place, errors);

    let embedded = flag(s, "x-kubernetes-embedded-resource");
    let preserve = flag(s, "x-kubernetes-preserve-unknown-fields");
    let type_place = format!("{place}.type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(type_place, why),
            kind => FieldError::invalid(type_place, &json!(kind), why),
        });
    } else if kind.is_empty() && !flag(s, "x-kubernetes-int-or-string") && !preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(type_place, why));
    } else if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(type_place, &json!(kind), "must be object at the root"));
    }
    if embedded && additional.is_some() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{place}.additionalProperties"), why));
    }
    if embedded && !preserve && properties(s).next().is_none() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                   x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{place}.properties"), why));
    }
    metadata(s, level, embedded, place, errors);
}

fn metadata(s: &Object, level: Level, embedded: bool, place: &str, errors: &mut Errors) {
    if level != Level::Root && !embedded {
        return;
    }
    for (name, child) in properties(s) {
        let kind = text(object(child), "type");
        let wanted = match name.as_str() {
            "kind" | "apiVersion" => "string",
            "metadata" => "object",
            _ => continue,
        };
        let place = format!("{place}.properties[{name}]");
        if kind != wanted {
            let why = format!("must be {wanted}");
            errors.push(FieldError::invalid(format!("{place}.type"), &json!(kind), &why));
        }
        if name == "metadata" && level == Level::Root && !only_names(object(child)) {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly \
                       specified";
            errors.push(FieldError::forbidden(place, why));
        }
    }
}

/// Whether a schema of metadata restricts names only. Documentation counts as nothing but a description does, upstream.
fn only_names(s: &Object) -> bool {
    let names = properties(s).all(|(n, _)| matches!(n.as_str(), "name" | "generateName"));
    let nothing_else = s
        .iter()
        .all(|(key, value)| matches!(key.as_str(), "type" | "properties" | "default") || is_zero(value));
    names && nothing_else
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(l) => l.is_empty(),
        Value::Object(m) => m.is_empty(),
        _ => false,
    }
}

fn extensions(s: &Object, place: &str, errors: &mut Errors) {
    if !flag(s, "x-kubernetes-int-or-string") {
        return;
    }
    for key in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if flag(s, key) {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{place}.{key}"), &json!(true), why));
        }
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, the one place where a junctor may say a type.
fn is_int_or_string(alternatives: &[Value]) -> bool {
    alternatives == [json!({"type": "integer"}), json!({"type": "string"})]
}

fn first_all_of_is_int_or_string(s: &Object) -> bool {
    list(s, "allOf").first().is_some_and(|first| is_int_or_string(list(object(first), "anyOf")))
}

/// Junctors and patterns of a schema, which may be inside a junctor itself.
fn value_rules(s: &Object, skip_any: bool, skip_all: bool, level: Level, place: &str, errors: &mut Errors) {
    if !skip_any {
        for (i, inner) in list(s, "anyOf").iter().enumerate() {
            nested(object(inner), false, level, &format!("{place}.anyOf[{i}]"), errors);
        }
    }
    for (i, inner) in list(s, "allOf").iter().enumerate() {
        nested(object(inner), skip_all && i == 0, level, &format!("{place}.allOf[{i}]"), errors);
    }
    for (i, inner) in list(s, "oneOf").iter().enumerate() {
        nested(object(inner), false, level, &format!("{place}.oneOf[{i}]"), errors);
    }
    if let Some(inner) = schema(s, "not") {
        nested(object(inner), false, level, &format!("{place}.not"), errors);
    }
    let pattern = text(s, "pattern");
    if !pattern.is_empty() && !is_valid_pattern(pattern) {
        let why = "must be a valid regular expression, but isn't: error parsing regexp";
        errors.push(FieldError::invalid(format!("{place}.pattern"), &json!(pattern), why));
    }
}

/// A schema inside a junctor: it may say what values are allowed, and nothing of their shape.
fn nested(s: &Object, skip_any: bool, level: Level, place: &str, errors: &mut Errors) {
    value_rules(s, skip_any, false, level, place, errors);
    if let Some(items) = schema(s, "items") {
        nested(object(items), false, level, &format!("{place}.items"), errors);
    }
    for (name, child) in properties(s) {
        nested(object(child), false, Level::Field, &format!("{place}.properties[{name}]"), errors);
    }
    const FORBIDDEN: [(&str, &str); 14] = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("externalDocs", "must be undefined to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (key, why) in FORBIDDEN {
        let present = match s.get(key) {
            None | Some(Value::Null) => false,
            Some(value) if why.contains("undefined") => !matches!(value, Value::Bool(false)),
            Some(value) => !is_zero(value),
        };
        if present {
            errors.push(FieldError::forbidden(format!("{place}.{key}"), why));
        }
    }
    if properties(s).any(|(n, _)| n == "metadata") {
        let why = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(format!("{place}.properties[metadata]"), why));
    }
}

/// What a junctor speaks of must be there outside of it too. As upstream, only junctors at the root are held to it.
/// `there` is the structure at `place`; `inner` the rules at `from`.
fn complete(inner: &Object, there: Option<&Object>, place: &str, from: &str, errors: &mut Errors) {
    let Some(structure) = there else {
        errors.push(FieldError::required(place, &format!("because it is defined in {from}")));
        return;
    };
    let junctors = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|key| {
        list(inner, key).iter().enumerate().map(move |(i, s)| (format!("{from}.{key}[{i}]"), s))
    });
    for (from, rules) in junctors.chain(schema(inner, "not").map(|s| (format!("{from}.not"), s))) {
        nested_complete(object(rules), structure, place, &from, errors);
    }
}

fn nested_complete(inner: &Object, structure: &Object, place: &str, from: &str, errors: &mut Errors) {
    complete(inner, Some(structure), place, from, errors);
    let mut below = |what: String, rules: &Value, there: Option<&Value>| {
        let (place, from) = (format!("{place}.{what}"), format!("{from}.{what}"));
        match there.map(object) {
            Some(there) => nested_complete(object(rules), there, &place, &from, errors),
            None => complete(object(rules), None, &place, &from, errors),
        }
    };
    if let Some(items) = schema(inner, "items") {
        below("items".into(), items, schema(structure, "items"));
    }
    for (name, rules) in properties(inner) {
        let there = property(structure, name);
        below(format!("properties[{name}]"), rules, there);
    }
}
