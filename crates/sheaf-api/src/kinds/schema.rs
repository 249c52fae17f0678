//! From named shapes that refer to one another to the schema of a kind, without references.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::shape::{self, Definitions};

/// Shapes of core Kubernetes' types, one a line; see `schemas/README.md` for where they come from.
const CORE: &str = include_str!("../../schemas/core.json");

/// Deepest nesting of references. Nothing published comes near it, apart from types that hold themselves.
const DEPTH_MAX: usize = 32;

/// All shapes, while the rows are made.
pub(super) struct Schemas {
    core: BTreeMap<String, Value>,
    own: Definitions,
    kinds: BTreeMap<String, Value>,
}

impl Schemas {
    pub(super) fn load() -> Self {
        // The table is part of the program; a test reads it.
        let core = serde_json::from_str(CORE).unwrap_or_default();
        let (kinds, own) = shape::all();
        Self { core, own, kinds }
    }

    /// The schema of a core kind, by the name of its definition.
    pub(super) fn core(&self, definition: &str) -> Value {
        self.object(&json!({"$ref": definition}))
    }

    /// The schema of a kind that has a typed view.
    pub(super) fn own(&self, api_version: &str, kind: &str) -> Value {
        let key = format!("{api_version} {kind}");
        self.object(self.kinds.get(&key).unwrap_or(&Value::Null))
    }

    /// Resolves, and closes what the server itself knows: `metadata` is its own schema's business.
    fn object(&self, shape: &Value) -> Value {
        let mut schema = self.resolve(shape, 0);
        if let Some(properties) = schema["properties"].as_object_mut() {
            properties.insert("metadata".into(), json!({"type": "object"}));
        }
        schema
    }

    fn resolve(&self, shape: &Value, depth: usize) -> Value {
        let Some(map) = shape.as_object() else { return shape.clone() };
        if let Some(name) = map.get("$ref").and_then(Value::as_str) {
            let target = self.core.get(name).or_else(|| self.own.by_name.get(name));
            let Some(target) = target.filter(|_| depth < DEPTH_MAX) else {
                return json!({"x-kubernetes-preserve-unknown-fields": true});
            };
            let mut out = self.resolve(target, depth + 1);
            // What stands beside a reference (a sentence, a list type, nullable) is about this use of it.
            let beside = map.iter().filter(|(key, _)| *key != "$ref");
            if let Some(out) = out.as_object_mut() {
                out.extend(beside.map(|(key, value)| (key.clone(), value.clone())));
            }
            return out;
        }
        let mut out = Map::new();
        for (key, value) in map {
            let value = match (key.as_str(), value) {
                ("properties", Value::Object(properties)) => {
                    properties.iter().map(|(name, p)| (name.clone(), self.resolve(p, depth))).collect()
                }
                ("items" | "additionalProperties", _) => self.resolve(value, depth),
                _ => value.clone(),
            };
            out.insert(key.clone(), value);
        }
        Value::Object(out)
    }
}

/// Names in the table of core shapes that typed views refer to.
pub(super) fn references_to_core() -> BTreeSet<String> {
    fn collect(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                let name = map.get("$ref").and_then(Value::as_str);
                into.extend(name.filter(|n| n.starts_with("io.k8s.")).map(String::from));
                map.values().for_each(|v| collect(v, into));
            }
            Value::Array(list) => list.iter().for_each(|v| collect(v, into)),
            _ => {}
        }
    }
    let mut names = BTreeSet::new();
    shape::all().1.by_name.values().for_each(|shape| collect(shape, &mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_read_and_names_every_shape_it_refers_to() {
        let schemas = Schemas::load();
        assert!(schemas.core.len() > 300, "{} shapes", schemas.core.len());
        for name in super::super::core_definitions() {
            assert!(schemas.core.contains_key(&name), "{name}: run `cargo xtask schemas`");
        }
        for (name, shape) in &schemas.own.by_name {
            assert!(!schemas.core.contains_key(name), "{name} would hide a core shape");
            assert_eq!(shape["type"], "object", "{name}");
        }
    }

    #[test]
    fn a_sentence_beside_a_reference_wins() {
        let schema = Schemas::load().own("kubevirt.io/v1", "VirtualMachine");
        let domain =
            &schema["properties"]["spec"]["properties"]["template"]["properties"]["spec"]["properties"];
        assert_eq!(domain["domain"]["description"], "The virtual hardware.");
        assert_eq!(domain["topologySpreadConstraints"]["x-kubernetes-list-type"], "map");
        assert_eq!(
            domain["domain"]["properties"]["memory"]["properties"]["guest"]["x-kubernetes-int-or-string"],
            true
        );
        assert_eq!(schema["properties"]["metadata"], json!({"type": "object"}));
        assert_eq!(schema["required"], json!(["spec"]));
    }
}
