//! The schema of a version: keywords that are not served, list and map types, rules in CEL and what they may cost.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_cel::{Decl, Shape};
use sheaf_meta::status::FieldError;

use super::{DEFINITION_LIMIT, Errors, RULE_LIMIT, defaults, structural};
use crate::declare::{MAX_REQUEST, declare};
use crate::field_path;
use crate::json::{Object, count, flag, list, object, properties, property, schema, some, text, texts};
use crate::rules::Rule;

/// How deep schemas may nest.
const MAX_DEPTH: usize = 128;
/// How many of the dearest rules are named where all together cost too much.
const NAMED: usize = 4;

/// Validates the schema of a version; `place` is that of the object with the field `openAPIV3Schema`.
pub(super) fn validate(root: &Value, place: &str, status: bool, unchanged: bool, errors: &mut Errors) {
    let map = object(root);
    let here = format!("{place}.openAPIV3Schema");
    if depth(root) > MAX_DEPTH {
        let why = format!("must not nest deeper than {MAX_DEPTH} levels");
        errors.push(FieldError::invalid(here, &json!(""), &why));
        return;
    }
    if status {
        root_fields(map, &here, errors);
    }
    if flag(map, "nullable") {
        errors.push(FieldError::forbidden(format!("{here}.nullable"), "nullable cannot be true at the root"));
    }
    let mut found = structural::validate(root, &here);
    if found.is_empty() {
        defaults::validate(root, &here, &mut found);
    }
    let usable = found.is_empty();
    errors.append(&mut found);

    let mut walk = Walk { schema: Vec::new(), rules: Vec::new(), costs: Vec::new(), unchanged };
    let decl = if usable { declare(root, true) } else { None };
    let cx = Cx { root: true, decl, active: usable, cardinality: Some(1), ..Cx::default() };
    walk.at(root, &here, &cx);
    errors.append(&mut walk.schema);
    errors.append(&mut walk.rules);
    total(&here, &mut walk.costs, errors);
}

fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// With a status subresource, `properties.status` must be all that is said of status.
fn root_fields(map: &Object, place: &str, errors: &mut Errors) {
    const ALLOWED: [(&str, &str); 22] = [
        ("description", "Description"),
        ("type", "Type"),
        ("format", "Format"),
        ("title", "Title"),
        ("maximum", "Maximum"),
        ("exclusiveMaximum", "ExclusiveMaximum"),
        ("minimum", "Minimum"),
        ("exclusiveMinimum", "ExclusiveMinimum"),
        ("maxLength", "MaxLength"),
        ("minLength", "MinLength"),
        ("pattern", "Pattern"),
        ("maxItems", "MaxItems"),
        ("minItems", "MinItems"),
        ("uniqueItems", "UniqueItems"),
        ("multipleOf", "MultipleOf"),
        ("required", "Required"),
        ("items", "Items"),
        ("properties", "Properties"),
        ("externalDocs", "ExternalDocs"),
        ("example", "Example"),
        ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
        ("x-kubernetes-validations", "XValidations"),
    ];
    let kind = text(map, "type");
    if !kind.is_empty() && kind != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(format!("{place}.type"), &json!(kind), why));
    }
    let set = |v: &Value| !matches!(v, Value::Null | Value::Bool(false));
    if let Some((key, _)) = map.iter().find(|(k, v)| set(v) && !ALLOWED.iter().any(|(name, _)| name == k)) {
        let fields: Vec<&str> = ALLOWED.iter().map(|(_, f)| *f).collect();
        let why = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            fields.join(" ")
        );
        errors.push(FieldError::invalid(place, &json!({key.as_str(): map[key]}), &why));
    }
}

/// Where in the schema the walk is.
#[derive(Clone, Default)]
struct Cx {
    root: bool,
    /// Inside of apiVersion, kind or metadata of a resource.
    inside_meta: bool,
    /// Why defaults are not allowed here.
    no_defaults: Option<String>,
    /// The place below which old and new values cannot be told apart.
    uncorrelated: Option<String>,
    /// The declaration, where expressions reach.
    decl: Option<Arc<Decl>>,
    /// Whether rules are compiled: not in junctors, nor where the schema is wrong.
    active: bool,
    /// How often the value may be there; `None` if nothing bounds it.
    cardinality: Option<u64>,
}

struct Walk {
    schema: Errors,
    rules: Errors,
    costs: Vec<(u64, String)>,
    /// The schema is the one that was accepted before.
    unchanged: bool,
}

impl Walk {
    /// Gives the number of errors found at or below this place.
    fn at(&mut self, value: &Value, place: &str, cx: &Cx) -> usize {
        let before = self.schema.len();
        let s = object(value);
        self.keywords(s, place, cx);
        if flag(s, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.schema.push(FieldError::forbidden(format!("{place}.uniqueItems"), why));
        }
        let embedded = flag(s, "x-kubernetes-embedded-resource");
        if let Some(additional) = some(s, "additionalProperties") {
            let here = format!("{place}.additionalProperties");
            if properties(s).next().is_some() && *additional != json!(true) {
                let why = "additionalProperties and properties are mutual exclusive";
                self.schema.push(FieldError::forbidden(here.clone(), why));
            }
            if additional.is_object() {
                let mut inner = cx.child(values_of(cx), cx.cardinality.zip(count(s, "maxProperties")));
                if cx.inside_meta {
                    inner.no_defaults =
                        Some("inside additionalProperties applying to object metadata".to_owned());
                }
                self.at(additional, &here, &inner);
            }
        }
        for (name, child) in properties(s) {
            let mut inner = cx.child(field_of(cx, name), cx.cardinality.map(|n| (n, 1)));
            if text(s, "x-kubernetes-map-type") == "atomic" && inner.uncorrelated.is_none() {
                inner.uncorrelated = Some(place.to_owned());
            }
            if (cx.root || embedded) && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                inner.inside_meta = true;
                if cx.root {
                    inner.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            self.at(child, &format!("{place}.properties[{name}]"), &inner);
        }
        let junctor = Cx { active: false, decl: None, root: false, ..cx.clone() };
        if let Some(not) = schema(s, "not") {
            self.at(not, &format!("{place}.not"), &junctor);
        }
        for key in ["allOf", "oneOf", "anyOf"] {
            for (i, inner) in list(s, key).iter().enumerate() {
                self.at(inner, &format!("{place}.{key}[{i}]"), &junctor);
            }
        }
        if let Some(items) = schema(s, "items") {
            let mut inner = cx.child(values_of(cx), cx.cardinality.zip(count(s, "maxItems")));
            if text(s, "x-kubernetes-list-type") != "map" && inner.uncorrelated.is_none() {
                inner.uncorrelated = Some(place.to_owned());
            }
            self.at(items, &format!("{place}.items"), &inner);
        }
        if s.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
            let here = format!("{place}.x-kubernetes-preserve-unknown-fields");
            self.schema.push(FieldError::invalid(here, &json!(false), "must be true or undefined"));
        }
        self.map_type(s, place);
        self.list_type(s, place);
        self.rule_fields(value, place);
        if self.schema.len() == before && cx.active {
            self.compile(s, place, cx);
        }
        self.schema.len() - before
    }

    fn keywords(&mut self, s: &Object, place: &str, cx: &Cx) {
        const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
        let kind = text(s, "type");
        if !kind.is_empty() && kind != "null" && !TYPES.contains(&kind) {
            self.schema.push(FieldError::not_supported(format!("{place}.type"), &json!(kind), &TYPES));
        }
        if let Some(why) = cx.no_defaults.as_ref().filter(|_| some(s, "default").is_some()) {
            self.schema
                .push(FieldError::forbidden(format!("{place}.default"), &format!("must not be set {why}")));
        }
        for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            if some(s, key).is_some_and(|v| *v != json!("")) {
                self.schema.push(FieldError::forbidden(
                    format!("{place}.{key}"),
                    &format!("{key} is not supported"),
                ));
            }
        }
        if kind == "null" {
            let why = "type cannot be set to null, use nullable as an alternative";
            self.schema.push(FieldError::forbidden(format!("{place}.type"), why));
        }
        if s.get("items").is_some_and(Value::is_array) {
            let why = "items must be a schema object and not an array";
            self.schema.push(FieldError::forbidden(format!("{place}.items"), why));
        }
        if cx.inside_meta && flag(s, "x-kubernetes-embedded-resource") {
            let here = format!("{place}.x-kubernetes-embedded-resource");
            self.schema.push(FieldError::forbidden(here, "must not be used inside of resource meta"));
        }
    }

    fn map_type(&mut self, s: &Object, place: &str) {
        let word = text(s, "x-kubernetes-map-type");
        if word.is_empty() {
            return;
        }
        self.wanted_type(s, place, "object", "must be object if x-kubernetes-map-type is specified");
        if !matches!(word, "atomic" | "granular") {
            let here = format!("{place}.x-kubernetes-map-type");
            self.schema.push(FieldError::not_supported(here, &json!(word), &["atomic", "granular"]));
        }
    }

    fn wanted_type(&mut self, s: &Object, place: &str, wanted: &str, why: &str) {
        match text(s, "type") {
            kind if kind == wanted => {}
            "" => self.schema.push(FieldError::required(format!("{place}.type"), why)),
            kind => self.schema.push(FieldError::invalid(format!("{place}.type"), &json!(kind), why)),
        }
    }

    fn list_type(&mut self, s: &Object, place: &str) {
        let word = text(s, "x-kubernetes-list-type");
        let keys = texts(s, "x-kubernetes-list-map-keys");
        let here = format!("{place}.x-kubernetes-list-type");
        if !keys.is_empty() && word != "map" {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            self.schema.push(match word {
                "" => FieldError::required(here.clone(), why),
                word => FieldError::invalid(here.clone(), &json!(word), why),
            });
        }
        if word.is_empty() {
            return;
        }
        self.wanted_type(s, place, "array", "must be array if x-kubernetes-list-type is specified");
        if !matches!(word, "atomic" | "set" | "map") {
            self.schema.push(FieldError::not_supported(here, &json!(word), &["atomic", "set", "map"]));
        }
        let items = schema(s, "items").map(object);
        let nullable = items.is_some_and(|i| flag(i, "nullable"));
        if nullable && matches!(word, "set" | "map") {
            let why = format!("cannot be nullable when x-kubernetes-list-type is {word}");
            self.schema.push(FieldError::forbidden(format!("{place}.items.nullable"), &why));
        }
        match (word, items) {
            ("set", Some(items)) => self.set_items(items, place),
            ("map", items) => self.map_items(&keys, items, place),
            _ => {}
        }
    }

    /// Items of a set are compared as a whole.
    fn set_items(&mut self, items: &Object, place: &str) {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (key, wrong) = match text(items, "type") {
            "array" => {
                ("x-kubernetes-list-type", !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic"))
            }
            "object" => ("x-kubernetes-map-type", text(items, "x-kubernetes-map-type") != "atomic"),
            _ => return,
        };
        if wrong {
            let given = items.get(key).cloned().unwrap_or(Value::Null);
            self.schema.push(FieldError::invalid(format!("{place}.items.{key}"), &given, why));
        }
    }

    /// Items of a list with keys are told apart by fields that are always there.
    fn map_items(&mut self, keys: &[&str], items: Option<&Object>, place: &str) {
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            self.schema.push(FieldError::required(format!("{place}.x-kubernetes-list-map-keys"), why));
        }
        let Some(items) = items else {
            let why = "must have a schema if x-kubernetes-list-type is map";
            self.schema.push(FieldError::required(format!("{place}.items"), why));
            return;
        };
        if text(items, "type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            let kind = json!(text(items, "type"));
            self.schema.push(FieldError::invalid(format!("{place}.items.type"), &kind, why));
            return;
        }
        let required = texts(items, "required");
        let here = format!("{place}.x-kubernetes-list-map-keys");
        for (i, key) in keys.iter().enumerate() {
            if keys[..i].contains(key) {
                self.schema.push(FieldError::invalid(
                    here.clone(),
                    &json!(keys),
                    "must not contain duplicate entries",
                ));
            }
            let Some(field) = property(items, key).map(object) else {
                let why = "entries must all be names of item properties";
                self.schema.push(FieldError::invalid(here.clone(), &json!(keys), why));
                continue;
            };
            let field_place = format!("{place}.items.properties[{key}]");
            if matches!(text(field, "type"), "array" | "object") {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                let kind = json!(text(items, "type"));
                self.schema.push(FieldError::invalid(format!("{field_place}.type"), &kind, why));
            }
            if !required.contains(key) && some(field, "default").is_none() {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                           property";
                self.schema.push(FieldError::required(format!("{field_place}.default"), why));
            }
            if flag(field, "nullable") {
                let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.schema.push(FieldError::forbidden(format!("{field_place}.nullable"), why));
            }
        }
    }

    /// The fields of rules, but for what the expressions mean.
    fn rule_fields(&mut self, value: &Value, place: &str) {
        const REASONS: [&str; 4] =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        let lines = |s: &str| s.contains(['\n', '\r']);
        for (i, rule) in list(object(value), "x-kubernetes-validations").iter().map(object).enumerate() {
            let here = |key: &str| format!("{place}.x-kubernetes-validations[{i}].{key}");
            let (text_of, mut push) = (|key: &str| text(rule, key), |e: FieldError| self.schema.push(e));
            let message = text_of("message");
            if text_of("rule").trim().is_empty() {
                push(FieldError::required(here("rule"), "rule is not specified"));
            } else if !message.is_empty() && message.trim().is_empty() {
                push(FieldError::invalid(here("message"), &json!(message), "must be non-empty if specified"));
            } else if lines(message.trim()) {
                push(FieldError::invalid(here("message"), &json!(message), "must not contain line breaks"));
            } else if lines(text_of("rule").trim()) && message.trim().is_empty() {
                push(FieldError::required(
                    here("message"),
                    "message must be specified if rule contains line breaks",
                ));
            }
            let expression = text_of("messageExpression");
            if !expression.is_empty() && expression.trim().is_empty() {
                push(FieldError::required(
                    here("messageExpression"),
                    "messageExpression must be non-empty if specified",
                ));
            }
            if let Some(reason) = some(rule, "reason").filter(|r| !REASONS.iter().any(|w| *r == w)) {
                push(FieldError::not_supported(here("reason"), reason, &REASONS));
            }
            let path = text_of("fieldPath");
            if path.is_empty() {
                continue;
            }
            if path.trim().is_empty() {
                push(FieldError::invalid(here("fieldPath"), &json!(path), "must be non-empty if specified"));
            }
            if lines(path) {
                push(FieldError::invalid(here("fieldPath"), &json!(path), "must not contain line breaks"));
            }
            if field_path::resolve(path, value).is_err() {
                push(FieldError::invalid(here("fieldPath"), &json!(path), "must be a valid path"));
            }
        }
    }

    /// Compiles the rules of a place and weighs them.
    fn compile(&mut self, s: &Object, place: &str, cx: &Cx) {
        for (i, given) in list(s, "x-kubernetes-validations").iter().enumerate() {
            let here = |key: &str| format!("{place}.x-kubernetes-validations[{i}].{key}");
            let Some(decl) = &cx.decl else {
                let why = format!(
                    "rule declared on schema that does not support validation rules type: '{}' \
                     x-kubernetes-preserve-unknown-fields: '{}'",
                    text(s, "type"),
                    flag(s, "x-kubernetes-preserve-unknown-fields")
                );
                self.rules.push(FieldError::invalid(here("rule"), given, &why));
                continue;
            };
            let rule = Rule::compile(given, decl);
            // Where no bound is set, as many as fit into a request.
            let times = cx.cardinality.unwrap_or_else(|| MAX_REQUEST / (decl.min_size + 1));
            match &rule.program {
                Err(why) => {
                    self.rules.push(FieldError::invalid(here("rule"), given, why));
                }
                Ok(program) => {
                    let cost = program.worst_cost().saturating_mul(times);
                    self.weigh(here("rule"), "estimated rule cost", cost);
                }
            }
            match &rule.message_program {
                Some(Err(why)) => {
                    self.rules.push(FieldError::invalid(here("messageExpression"), given, why));
                }
                Some(Ok(program)) => {
                    let cost = program.worst_cost();
                    self.weigh(here("messageExpression"), "estimated messageExpression cost", cost);
                }
                None => {}
            }
            if rule.uses_old_self() {
                if let Some(above) = &cx.uncorrelated {
                    let why = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                    );
                    self.rules.push(FieldError::invalid(
                        here("rule"),
                        &json!(text(object(given), "rule")),
                        &why,
                    ));
                }
            } else if let Some(optional) = rule.optional_old_self {
                let why = "may not be set if oldSelf is not used in rule";
                self.rules.push(FieldError::invalid(here("optionalOldSelf"), &json!(optional), why));
            }
        }
    }

    fn weigh(&mut self, place: String, what: &str, cost: u64) {
        if cost > RULE_LIMIT && !self.unchanged {
            self.rules.push(FieldError::forbidden(place.clone(), &too_dear(what, cost, RULE_LIMIT)));
        }
        self.costs.push((cost, place));
    }
}

impl Cx {
    fn child(&self, decl: Option<Arc<Decl>>, cardinality: Option<(u64, u64)>) -> Self {
        Self {
            root: false,
            decl,
            cardinality: cardinality.map(|(n, times)| n.saturating_mul(times)),
            ..self.clone()
        }
    }
}

fn values_of(cx: &Cx) -> Option<Arc<Decl>> {
    match &cx.decl.as_ref()?.shape {
        Shape::List(items, _) => Some(items.clone()),
        Shape::Map(values) => Some(values.clone()),
        _ => None,
    }
}

fn field_of(cx: &Cx, name: &str) -> Option<Arc<Decl>> {
    match &cx.decl.as_ref()?.shape {
        Shape::Object(object) => object.fields.values().find(|f| f.json == name).map(|f| f.decl.clone()),
        _ => None,
    }
}

/// The sentence about a cost beyond its limit.
fn too_dear(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

fn total(place: &str, costs: &mut [(u64, String)], errors: &mut Errors) {
    let sum = costs.iter().map(|(c, _)| *c).fold(0, u64::saturating_add);
    if sum <= DEFINITION_LIMIT {
        return;
    }
    costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    for (_, place) in costs.iter().take(NAMED) {
        let why = "contributed to estimated rule & messageExpression cost total exceeding cost limit for entire \
                   OpenAPIv3 schema";
        errors.push(FieldError::forbidden(place.clone(), why));
    }
    let what =
        "x-kubernetes-validations estimated rule & messageExpression cost total for entire OpenAPIv3 schema";
    errors.push(FieldError::forbidden(place, &too_dear(what, sum, DEFINITION_LIMIT)));
}
