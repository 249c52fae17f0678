//! `cargo xtask schemas --definitions FILE`: from the published OpenAPI definitions of Kubernetes to the compact
//! table that `sheaf-api` carries. Keeps structure and `x-kubernetes-*` extensions, leaves out all prose.
//!
//! Own kinds need no table: their shapes come from the Rust types (`sheaf_api::shape`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Where the table lies, from the root of the repository.
const TABLE: &str = "crates/sheaf-api/schemas/core.json";

/// What is kept of a schema besides its parts.
const KEPT: &[&str] = &[
    "format",
    "required",
    "enum",
    "default",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-patch-strategy",
];

/// Keys of lists that the server fills in before it tells their items apart. Documents of version 3 say so, those of
/// version 2, which the definitions come from, do not.
const KEY_DEFAULTS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.core.v1.ContainerPort", "protocol", "TCP"),
    ("io.k8s.api.core.v1.ServicePort", "protocol", "TCP"),
];

/// Reads the published definitions and writes the table.
pub(crate) fn run(definitions: &Path) -> Result<ExitCode> {
    let text =
        std::fs::read_to_string(definitions).with_context(|| format!("reading {}", definitions.display()))?;
    let published: Value = serde_json::from_str(&text).context("reading the definitions as JSON")?;
    let roots = sheaf_api::kinds::core_definitions();
    let (table, missing) = compact(&published, &roots)?;
    for name in &missing {
        eprintln!("schemas: {name} is not among the definitions");
    }
    let path = root()?.join(TABLE);
    let lines: Vec<String> =
        table.iter().map(|(name, shape)| format!("{}:{shape}", Value::from(name.as_str()))).collect();
    std::fs::write(&path, format!("{{\n{}\n}}\n", lines.join(",\n")))
        .with_context(|| format!("writing {}", path.display()))?;
    println!("schemas: {} definitions in {}", table.len(), path.display());
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("xtask lies in the root of the repository")
}

/// The definitions that the roots need, without prose; and the names that are not there.
fn compact(published: &Value, roots: &[String]) -> Result<(BTreeMap<String, Value>, BTreeSet<String>)> {
    let all = ["$defs", "definitions"].iter().find_map(|k| published[*k].as_object());
    let Some(all) = all.or_else(|| published["components"]["schemas"].as_object()) else {
        bail!("the file has neither $defs nor definitions nor components.schemas");
    };
    let (mut table, mut missing) = (BTreeMap::new(), BTreeSet::new());
    let mut todo: Vec<String> = roots.to_vec();
    while let Some(name) = todo.pop() {
        if table.contains_key(&name) || missing.contains(&name) {
            continue;
        }
        let shape = match (special(&name), all.get(&name)) {
            (Some(shape), _) => shape,
            (None, Some(shape)) => strip(shape, &mut todo),
            (None, None) => {
                missing.insert(name);
                continue;
            }
        };
        table.insert(name, shape);
    }
    for (name, field, default) in KEY_DEFAULTS {
        if let Some(field) = table.get_mut(*name).and_then(|shape| shape["properties"].get_mut(field)) {
            field["default"] = json!(default);
        }
    }
    Ok((table, missing))
}

/// Definitions whose published form is looser than what the server accepts, or refers to itself.
fn special(name: &str) -> Option<Value> {
    let last = name.rsplit('.').next().unwrap_or(name);
    Some(match last {
        "Quantity" | "IntOrString" => json!({
            "anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}),
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "FieldsV1" | "RawExtension" | "JSONSchemaProps" => {
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
        }
        "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
            json!({"x-kubernetes-preserve-unknown-fields": true})
        }
        _ => return None,
    })
}

fn strip(shape: &Value, refs: &mut Vec<String>) -> Value {
    let mut out = Map::new();
    if let Some(target) = shape["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap_or(target).to_string();
        refs.push(name.clone());
        out.insert("$ref".into(), json!(name));
    }
    // Published types allow null beside each type, since Go reads null as "not set"; the server drops nulls.
    match &shape["type"] {
        Value::String(ty) => drop(out.insert("type".into(), json!(ty))),
        Value::Array(types) => {
            drop(types.iter().find(|t| *t != "null").map(|t| out.insert("type".into(), t.clone())))
        }
        _ => {}
    }
    for key in KEPT {
        if let Some(value) = shape.get(*key) {
            out.insert((*key).into(), value.clone());
        }
    }
    if let Some(properties) = shape["properties"].as_object() {
        let stripped = properties.iter().map(|(name, p)| {
            let mut p = strip(p, refs);
            if name == "apiVersion" || name == "kind" {
                p.as_object_mut().map(|p| p.remove("enum"));
            }
            (name.clone(), p)
        });
        let stripped: Map<String, Value> = stripped.collect();
        out.insert("properties".into(), Value::Object(stripped));
    }
    for key in ["items", "additionalProperties"] {
        if shape[key].is_object() {
            out.insert(key.into(), strip(&shape[key], refs));
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_goes_and_structure_stays() {
        let published = json!({"$defs": {
            "a.Thing": {"description": "Long.", "type": ["object", "null"], "required": ["list"], "properties": {
                "kind": {"type": ["string", "null"], "enum": ["Thing"]},
                "list": {"description": "x", "type": "array", "items": {"$ref": "#/$defs/a.Part"},
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
                "at": {"$ref": "#/$defs/a.Time", "description": "When."}}},
            "a.Part": {"type": "object", "properties": {"name": {"type": "string"},
                "port": {"$ref": "#/$defs/io.k8s.api.core.v1.ServicePort"}}},
            "io.k8s.api.core.v1.ServicePort": {"type": "object", "properties": {"protocol": {"type": "string"}}},
            "a.Unused": {"type": "object"}}});
        let (table, missing) = compact(&published, &["a.Thing".into(), "a.Gone".into()]).unwrap_or_default();
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["a.Gone"]);
        let port = "io.k8s.api.core.v1.ServicePort";
        assert_eq!(table.keys().collect::<Vec<_>>(), ["a.Part", "a.Thing", "a.Time", port]);
        assert_eq!(table[port]["properties"]["protocol"]["default"], "TCP");
        assert_eq!(
            table["a.Thing"],
            json!({"type": "object", "required": ["list"], "properties": {
                "kind": {"type": "string"}, "at": {"$ref": "a.Time"},
                "list": {"type": "array", "items": {"$ref": "a.Part"}, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"]}}})
        );
    }
}
