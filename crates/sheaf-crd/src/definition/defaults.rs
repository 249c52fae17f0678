//! Defaults of a schema: each must be a value that the schema accepts and prunes nothing of.

use serde_json::Value;
use sheaf_cel::OBJECT_BUDGET;
use sheaf_meta::schema::SchemaPool;
use sheaf_meta::status::FieldError;

use super::Errors;
use crate::json::{flag, object, properties, schema, some};
use crate::{embedded, rules};

/// The defaults below a schema that cannot be used.
pub(super) fn validate(root: &Value, place: &str, errors: &mut Errors) {
    // Defaults of metadata are refused elsewhere.
    at(root, place, errors);
}

fn at(definition: &Value, place: &str, errors: &mut Errors) {
    let map = object(definition);
    if let Some(default) = some(map, "default") {
        one(definition, default, &format!("{place}.default"), errors);
    }
    for (name, child) in properties(map) {
        at(child, &format!("{place}.properties[{name}]"), errors);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = schema(map, key) {
            at(child, &format!("{place}.{key}"), errors);
        }
    }
}

fn one(definition: &Value, default: &Value, place: &str, errors: &mut Errors) {
    let resource = flag(object(definition), "x-kubernetes-embedded-resource");
    let compiled = SchemaPool::new().compile_fragment(definition);
    if !compiled.unknown_fields(default).is_empty() {
        errors.push(FieldError::invalid(place, default, "must not have unknown fields"));
    }
    let mut found = Vec::new();
    embedded::validate(definition, default, place, resource, &mut found);
    if found.is_empty() {
        found = compiled.validate_at(place, default);
    }
    if found.is_empty()
        && let Some(node) = rules::Node::compile(definition, resource)
    {
        let mut run = rules::Run::strict(OBJECT_BUDGET);
        run.evaluate(&node, default, Some(default), place);
        found = run.errors;
    }
    errors.append(&mut found);
}
