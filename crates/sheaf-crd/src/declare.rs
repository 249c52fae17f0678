//! From OpenAPI schemas to declarations for CEL: types, names of fields, and the bounds from which costs are estimated.
//!
//! Where a schema sets no bound, the largest request does: so many items of the smallest size fit into it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_cel::{Decl, Field, ListKind, Object, Shape, escape};

use crate::json::{count, flag, list, object, properties, property, schema, text, texts};

/// Largest request, in bytes.
pub(crate) const MAX_REQUEST: u64 = 3 * 1024 * 1024;
const MAX_DEPTH: usize = 128;

/// Smallest and largest sizes in JSON of what has a format.
const DURATION: (u64, u64) = (4, 32);
const DATE: (u64, u64) = (12, 12);
const DATE_TIME: (u64, u64) = (21, 27);

/// The declaration of a schema, or `None` where values cannot be reached by expressions. `resource` where apiVersion,
/// kind and metadata are there without being said: at the root and in embedded resources.
pub(crate) fn declare(value: &Value, resource: bool) -> Option<Arc<Decl>> {
    declare_at(value, resource, 0)
}

/// The declaration of a kind's whole schema, in which its metadata is said too.
pub fn declare_kind(value: &Value) -> Option<Arc<Decl>> {
    declare_at(value, false, 0)
}

fn declare_at(value: &Value, resource: bool, depth: usize) -> Option<Arc<Decl>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let map = object(value);
    let nullable = flag(map, "nullable");
    let make = |shape: Shape, max_elements: u64, min_size: u64| {
        Some(Arc::new(Decl { max_elements, min_size, nullable, ..Decl::new(shape) }))
    };
    if flag(map, "x-kubernetes-int-or-string") {
        return make(Shape::IntOrString, MAX_REQUEST - 2, 1);
    }
    let kind = if resource { "object" } else { text(map, "type") };
    match kind {
        "array" => {
            let items = schema(map, "items")?;
            let item = declare_at(items, flag(object(items), "x-kubernetes-embedded-resource"), depth + 1)?;
            let most = (MAX_REQUEST - 2) / (item.min_size + 1);
            let kind = match text(map, "x-kubernetes-list-type") {
                "set" => ListKind::Set,
                "map" => ListKind::Map(
                    texts(map, "x-kubernetes-list-map-keys").into_iter().map(str::to_owned).collect(),
                ),
                _ => ListKind::Atomic,
            };
            make(Shape::List(item, kind), count(map, "maxItems").unwrap_or(most), 2)
        }
        "object" => {
            if let Some(values) = schema(map, "additionalProperties").filter(|_| !resource) {
                let embedded = flag(object(values), "x-kubernetes-embedded-resource");
                let values = declare_at(values, embedded, depth + 1)?;
                let most = (MAX_REQUEST - 2) / (values.min_size + 6);
                return make(Shape::Map(values), count(map, "maxProperties").unwrap_or(most), 2);
            }
            let required = texts(map, "required");
            let mut fields = BTreeMap::new();
            let mut min_size = 2;
            let mut add = |name: &str, schema: &Value| {
                let embedded = flag(object(schema), "x-kubernetes-embedded-resource");
                let Some(decl) = declare_at(schema, embedded, depth + 1) else { return };
                // Defaults are filled in by the server, so a request may leave them out.
                if required.contains(&name) && object(schema).get("default").is_none_or(Value::is_null) {
                    min_size += name.len() as u64 + decl.min_size + 4;
                }
                if let Some(escaped) = escape(name) {
                    fields.insert(escaped, Field { json: name.to_owned(), decl });
                }
            };
            if resource {
                for (name, schema) in resource_fields(map) {
                    add(name, &schema);
                }
            }
            let implied = |name: &str| resource && matches!(name, "apiVersion" | "kind" | "metadata");
            for (name, schema) in properties(map).filter(|(n, _)| !implied(n)) {
                add(name, schema);
            }
            let shape = Shape::Object(Arc::new(Object { name: "object".to_owned(), fields }));
            make(shape, 0, min_size)
        }
        "string" => {
            let longest = MAX_REQUEST - 2;
            match text(map, "format") {
                "byte" => make(Shape::Bytes, count(map, "maxLength").unwrap_or(longest), 2),
                "duration" => make(Shape::Duration, DURATION.1, DURATION.0),
                "date" => make(Shape::Date, DATE.1, DATE.0),
                "date-time" => make(Shape::DateTime, DATE_TIME.1, DATE_TIME.0),
                _ => {
                    let longest_value =
                        list(map, "enum").iter().filter_map(Value::as_str).map(str::len).max();
                    let most = match (count(map, "maxLength"), longest_value) {
                        // Lengths count characters, and one may take four bytes.
                        (Some(length), _) => length.saturating_mul(4),
                        (None, Some(longest)) => longest as u64,
                        (None, None) => longest,
                    };
                    make(Shape::String, most, 2)
                }
            }
        }
        "boolean" => make(Shape::Bool, 0, 4),
        "number" => make(Shape::Double, 0, 1),
        "integer" => make(Shape::Int, 0, 1),
        _ => None,
    }
}

/// What every resource has, with the rules that the schema adds for names.
fn resource_fields(map: &crate::json::Object) -> [(&'static str, Value); 3] {
    let given = |name: &str| {
        let metadata = property(map, "metadata").map(object);
        let found = metadata.and_then(|m| property(m, name).cloned());
        found.unwrap_or_else(|| json!({"type": "string"}))
    };
    let metadata = json!({
        "type": "object", "properties": {"name": given("name"), "generateName": given("generateName")},
    });
    [("apiVersion", json!({"type": "string"})), ("kind", json!({"type": "string"})), ("metadata", metadata)]
}
