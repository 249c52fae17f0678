//! From named shapes that refer to one another to the schema of a kind, without references.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::shape::{self, Definitions};

/// Shapes of core Kubernetes' types, one a line; see `schemas/README.md` for where they come from.
const CORE: &str = include_str!("../../schemas/core.json");

/// Deepest nesting of references. Nothing published comes near it, apart from types that hold themselves.
const DEPTH_MAX: usize = 32;

/// The table by name, each shape still as text: parsed, the whole would take some megabytes for as long as the server
/// runs.
static TABLE: LazyLock<BTreeMap<&'static str, &'static str>> = LazyLock::new(|| {
    let lines = CORE.lines().filter_map(|line| line.strip_prefix('"')?.split_once("\":"));
    lines.map(|(name, shape)| (name, shape.trim_end_matches(','))).collect()
});

/// The published shape of a core type, with its references.
pub(crate) fn shape_of(definition: &str) -> Option<Value> {
    serde_json::from_str(TABLE.get(definition)?).ok()
}

/// The schema of a core kind, by the name of its definition. What a status has to have is no rule upstream, where a
/// status is read into types that know no absence.
pub(super) fn core(definition: &str) -> Value {
    let mut schema = object(&json!({"$ref": definition}), &Definitions::default());
    if let Some(status) = schema.pointer_mut("/properties/status") {
        nothing_required(status);
    }
    schema
}

fn nothing_required(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("required");
    for (key, inner) in map {
        match (key.as_str(), inner) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(nothing_required),
            ("items" | "additionalProperties", inner) => nothing_required(inner),
            _ => {}
        }
    }
}

/// The schema of a kind that has a typed view.
pub(super) fn own(api_version: &str, kind: &str) -> Value {
    let (kinds, definitions) = shape::all();
    object(kinds.get(&format!("{api_version} {kind}")).unwrap_or(&Value::Null), &definitions)
}

/// The shapes of a core kind by their names, as they are published.
pub(super) fn core_definitions(definition: &str) -> sheaf_meta::kind::Definitions {
    reachable(definition.into(), &Definitions::default())
}

/// The same of a kind that has a typed view, published as this version of it.
pub(super) fn own_definitions(api_version: &str, kind: &str, version: &str) -> sheaf_meta::kind::Definitions {
    let (kinds, definitions) = shape::all();
    let root = kinds.get(&format!("{api_version} {kind}")).and_then(|shape| shape["$ref"].as_str());
    let mut out = reachable(root.unwrap_or_default().into(), &definitions);
    let metadata = json!({"$ref": OBJECT_META});
    out.by_name.extend(reachable(OBJECT_META.into(), &definitions).by_name);
    if let Some(properties) = out.by_name.get_mut(&out.root).and_then(|s| s["properties"].as_object_mut()) {
        properties.insert("metadata".into(), metadata);
    }
    let own = api_version.rsplit('/').next().unwrap_or_default();
    if version != own
        && let Some(shape) = out.by_name.remove(&out.root)
    {
        out.root = out.root.replace(&format!(".{own}."), &format!(".{version}."));
        out.by_name.insert(out.root.clone(), shape);
    }
    out
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn reachable(root: String, own: &Definitions) -> sheaf_meta::kind::Definitions {
    let (mut by_name, mut todo) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(name) = todo.pop() {
        if !by_name.contains_key(&name)
            && let Some(shape) = named(&name, own)
        {
            references(&shape, &mut todo);
            by_name.insert(name, shape);
        }
    }
    sheaf_meta::kind::Definitions { root, by_name }
}

fn references(shape: &Value, into: &mut Vec<String>) {
    match shape {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str).map(String::from));
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}

/// Resolves, and closes what the server itself knows: `metadata` is its own schema's business.
fn object(shape: &Value, own: &Definitions) -> Value {
    let mut schema = resolve(shape, own, 0);
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.insert("metadata".into(), json!({"type": "object"}));
    }
    schema
}

/// What a name stands for.
fn named(name: &str, own: &Definitions) -> Option<Value> {
    let core = TABLE.get(name).and_then(|text| serde_json::from_str(text).ok());
    core.or_else(|| own.by_name.get(name).cloned())
}

fn resolve(shape: &Value, own: &Definitions, depth: usize) -> Value {
    let Some(map) = shape.as_object() else { return shape.clone() };
    if let Some(name) = map.get("$ref").and_then(Value::as_str) {
        let Some(target) = named(name, own).filter(|_| depth < DEPTH_MAX) else {
            return json!({"x-kubernetes-preserve-unknown-fields": true});
        };
        let mut out = resolve(&target, own, depth + 1);
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
                properties.iter().map(|(name, p)| (name.clone(), resolve(p, own, depth))).collect()
            }
            ("items" | "additionalProperties", _) => resolve(value, own, depth),
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    Value::Object(out)
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
        let whole: BTreeMap<String, Value> = serde_json::from_str(CORE).unwrap_or_default();
        assert!(whole.len() > 300, "{} shapes", whole.len());
        assert_eq!(whole.len(), TABLE.len(), "each definition has a line of its own");
        for (name, shape) in &whole {
            assert_eq!(named(name, &Definitions::default()).as_ref(), Some(shape), "{name}");
        }
        for name in super::super::core_definitions() {
            assert!(whole.contains_key(&name), "{name}: run `cargo xtask schemas`");
        }
        for (name, shape) in &shape::all().1.by_name {
            assert!(!whole.contains_key(name), "{name} would hide a core shape");
            assert_eq!(shape["type"], "object", "{name}");
        }
    }

    #[test]
    fn definitions_have_all_that_they_refer_to() {
        for definitions in [
            core_definitions("io.k8s.api.apps.v1.Deployment"),
            own_definitions("kubevirt.io/v1", "VirtualMachine", "v1"),
        ] {
            assert!(definitions.by_name.contains_key(&definitions.root), "{}", definitions.root);
            assert!(definitions.by_name.contains_key(OBJECT_META), "{}", definitions.root);
            let mut names = Vec::new();
            definitions.by_name.values().for_each(|shape| references(shape, &mut names));
            let dangling: Vec<_> = names.iter().filter(|n| !definitions.by_name.contains_key(*n)).collect();
            assert_eq!(dangling, [""; 0], "{}", definitions.root);
        }
    }

    #[test]
    fn a_sentence_beside_a_reference_wins() {
        let schema = own("kubevirt.io/v1", "VirtualMachine");
        let spec =
            &schema["properties"]["spec"]["properties"]["template"]["properties"]["spec"]["properties"];
        assert_eq!(spec["domain"]["description"], "The virtual hardware.");
        assert_eq!(spec["topologySpreadConstraints"]["x-kubernetes-list-type"], "map");
        let memory = &spec["domain"]["properties"]["memory"]["properties"];
        assert_eq!(memory["guest"]["x-kubernetes-int-or-string"], true);
        assert_eq!(schema["properties"]["metadata"], json!({"type": "object"}));
        assert_eq!(schema["required"], json!(["spec"]));
    }
}
