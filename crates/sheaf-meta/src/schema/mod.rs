//! OpenAPI v3 schemas, compiled once into a compact tree that pruning, defaulting, validation, strategic merge and
//! server-side apply all walk.
//!
//! In: a schema as a JSON value without `$ref`, structural as CustomResourceDefinitions require it, or as Kubernetes
//! publishes it for built-in kinds. `metadata` at the root and in embedded resources is always typed as ObjectMeta
//! ([`crate::objectmeta::schema`]), whatever the schema says of it. Documentation is left out, and equal subtrees are
//! shared through a [`SchemaPool`], since published schemas repeat a PodSpec dozens of times.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::objectmeta;

pub(crate) mod check;
mod correlate;
mod format;
mod validate;
mod walk;

pub use correlate::Correlated;
pub use validate::MAX_ERRORS;
pub use walk::MAX_REPORTED;

/// Depth to which schemas and objects are followed. Below it schemas are opaque, and objects are refused.
pub const MAX_DEPTH: usize = 128;

/// Whether a pattern of a schema can be used: CRDs with others are refused.
pub fn is_valid_pattern(pattern: &str) -> bool {
    check::compile_pattern(pattern).is_some()
}

/// A compiled schema of a kind in one version. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schema {
    pub(crate) root: Arc<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// Not said: atomic for apply, replaced by strategic merge unless its strategy says otherwise.
    #[default]
    Unset,
    Atomic,
    Set,
    /// Elements are told apart by these fields.
    Map(Vec<Box<str>>),
}

/// What strategic merge does with a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PatchStrategy {
    pub(crate) merge: bool,
    pub(crate) replace: bool,
    pub(crate) merge_key: Option<Box<str>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) enum Additional {
    /// Not said, or `false`: unknown fields are pruned.
    #[default]
    No,
    /// Any value under any key.
    Any,
    Schema(Arc<Node>),
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) ty: Type,
    /// Sorted by key.
    pub(crate) properties: Vec<(Box<str>, Arc<Node>)>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Arc<Node>>,
    pub(crate) list_type: ListType,
    pub(crate) map_atomic: bool,
    pub(crate) preserve_unknown: bool,
    pub(crate) embedded: bool,
    /// Whether apiVersion, kind and metadata are those of every resource: at the root, and where `embedded`.
    pub(crate) resource: bool,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Value>,
    /// Whether this node or one below it has a default: subtrees without are skipped.
    pub(crate) has_defaults: bool,
    pub(crate) patch: PatchStrategy,
    pub(crate) checks: Option<Box<check::Checks>>,
}

impl Node {
    /// The schema of a named field, if it has one of its own.
    pub(crate) fn property(&self, key: &str) -> Option<&Arc<Node>> {
        let i = self.properties.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.properties[i].1)
    }
    /// The schema of a field: its own, or that of additional properties.
    pub(crate) fn field(&self, key: &str) -> Option<&Arc<Node>> {
        self.property(key).or(match &self.additional {
            Additional::Schema(node) => Some(node),
            _ => None,
        })
    }
    /// Whether a field without a schema may stay.
    pub(crate) fn keeps_unknown(&self) -> bool {
        self.preserve_unknown
            || matches!(self.additional, Additional::Any)
            || (self.ty == Type::Any && self.properties.is_empty())
    }
}

/// Equal subtrees compiled through one pool are stored once.
#[derive(Debug, Default)]
pub struct SchemaPool {
    nodes: HashMap<String, Arc<Node>>,
}

impl SchemaPool {
    /// An empty pool. It may be dropped after the last compilation.
    pub fn new() -> Self {
        Self::default()
    }
    /// How many different nodes the pool holds.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether nothing was compiled yet.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Compiles the schema of a kind.
    pub fn compile(&mut self, schema: &Value) -> Schema {
        Schema { root: self.node(schema, Place::Resource, 0) }
    }
    /// Compiles the schema of a part of an object, which has no `metadata` of its own.
    pub fn compile_fragment(&mut self, schema: &Value) -> Schema {
        Schema { root: self.node(schema, Place::Inner, 0) }
    }

    fn node(&mut self, schema: &Value, place: Place, depth: usize) -> Arc<Node> {
        let empty = Map::new();
        let map = schema.as_object().unwrap_or(&empty);
        if depth > MAX_DEPTH {
            return Arc::new(Node { preserve_unknown: true, ..Node::default() });
        }
        // `{allOf: [X], default: ...}` is how published schemas attach a default to a reference.
        if let Some([only]) = map.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
            && !map.contains_key("type")
            && !map.contains_key("properties")
            && let Some(inner) = only.as_object()
        {
            let mut merged = inner.clone();
            for (k, v) in map.iter().filter(|(k, _)| *k != "allOf") {
                merged.insert(k.clone(), v.clone());
            }
            return self.node(&Value::Object(merged), place, depth + 1);
        }

        let mut key = format!("{place:?}");
        for (k, v) in map {
            if !is_documentation(k) && !is_child(k) {
                key.push_str(k);
                key.push_str(&v.to_string());
            }
        }
        let embedded = flag(map, "x-kubernetes-embedded-resource");
        let inner = if embedded { Place::Resource } else { place };
        let mut properties: Vec<(Box<str>, Arc<Node>)> = Vec::new();
        for (name, value) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if inner == Place::Resource && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
                continue;
            }
            let place = if place == Place::Junctor { Place::Junctor } else { Place::Inner };
            properties.push((name.as_str().into(), self.node(value, place, depth + 1)));
        }
        if inner == Place::Resource {
            let string = Value::Object(Map::from_iter([("type".to_owned(), Value::from("string"))]));
            for name in ["apiVersion", "kind"] {
                properties.push((name.into(), self.node(&string, Place::Inner, depth + 1)));
            }
            let given =
                map.get("properties").and_then(|p| p.get("metadata")).and_then(|m| m.get("properties"));
            let metadata = metadata_schema(given);
            properties.push(("metadata".into(), self.node(&metadata, Place::Inner, depth + 1)));
        }
        properties.sort_by(|a, b| a.0.cmp(&b.0));
        let additional = match map.get("additionalProperties") {
            None | Some(Value::Bool(false)) => Additional::No,
            Some(Value::Object(m)) if !m.is_empty() => {
                Additional::Schema(self.node(&map["additionalProperties"], Place::Inner, depth + 1))
            }
            Some(_) => Additional::Any,
        };
        let items = map.get("items").map(|v| self.node(v, Place::Inner, depth + 1));
        let checks = check::Checks::compile(map, |v| self.node(v, Place::Junctor, depth + 1));

        for (name, node) in &properties {
            key.push_str(&format!("|{name}={:p}", Arc::as_ptr(node)));
        }
        if let Additional::Schema(node) = &additional {
            key.push_str(&format!("|+{:p}", Arc::as_ptr(node)));
        }
        if let Some(node) = &items {
            key.push_str(&format!("|[]{:p}", Arc::as_ptr(node)));
        }
        for node in checks.iter().flat_map(|c| c.junctors()) {
            key.push_str(&format!("|?{:p}", Arc::as_ptr(node)));
        }
        if let Some(found) = self.nodes.get(&key) {
            return found.clone();
        }
        let default = map.get("default").cloned();
        let has_defaults = default.is_some()
            || properties.iter().any(|(_, n)| n.has_defaults)
            || items.as_ref().is_some_and(|n| n.has_defaults)
            || matches!(&additional, Additional::Schema(n) if n.has_defaults);
        let ty = node_type(map);
        let node = Arc::new(Node {
            ty: if inner == Place::Resource && ty == Type::Any { Type::Object } else { ty },
            properties,
            additional,
            items,
            list_type: list_type(map),
            map_atomic: text(map, "x-kubernetes-map-type") == "atomic",
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded,
            resource: inner == Place::Resource,
            nullable: flag(map, "nullable")
                || map.get("type").and_then(Value::as_array).is_some_and(|w| w.contains(&"null".into())),
            default,
            has_defaults,
            patch: patch_strategy(map),
            checks,
        });
        self.nodes.insert(key, node.clone());
        node
    }
}

impl Schema {
    /// Compiles the schema of one kind by itself.
    pub fn compile(schema: &Value) -> Self {
        SchemaPool::new().compile(schema)
    }
    /// A schema that knows nothing but `metadata`: everything else is kept as it is.
    pub fn unknown() -> Self {
        Self::compile(&serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// An object with apiVersion, kind and metadata.
    Resource,
    /// Any part of one.
    Inner,
    /// Inside allOf, anyOf, oneOf or not: only validates.
    Junctor,
}

fn is_documentation(key: &str) -> bool {
    matches!(key, "description" | "title" | "example" | "externalDocs" | "$schema" | "id")
}

fn is_child(key: &str) -> bool {
    matches!(key, "properties" | "additionalProperties" | "items" | "allOf" | "anyOf" | "oneOf" | "not")
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or("")
}

fn node_type(map: &Map<String, Value>) -> Type {
    if flag(map, "x-kubernetes-int-or-string") || text(map, "format") == "int-or-string" {
        return Type::IntOrString;
    }
    let word = match map.get("type") {
        // JSON schema's `["string", "null"]`.
        Some(Value::Array(words)) => {
            words.iter().filter_map(Value::as_str).find(|w| *w != "null").unwrap_or("")
        }
        _ => text(map, "type"),
    };
    match word {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        // Published schemas sometimes leave the type to the keywords.
        _ if map.contains_key("properties") || map.contains_key("additionalProperties") => Type::Object,
        _ if map.contains_key("items") => Type::Array,
        _ => Type::Any,
    }
}

fn list_type(map: &Map<String, Value>) -> ListType {
    match text(map, "x-kubernetes-list-type") {
        "atomic" => ListType::Atomic,
        "set" => ListType::Set,
        "map" => {
            let keys = map.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            ListType::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect())
        }
        _ => ListType::Unset,
    }
}

fn patch_strategy(map: &Map<String, Value>) -> PatchStrategy {
    let words = || text(map, "x-kubernetes-patch-strategy").split(',');
    let key = text(map, "x-kubernetes-patch-merge-key");
    PatchStrategy {
        merge: words().any(|w| w == "merge"),
        replace: words().any(|w| w == "replace"),
        merge_key: (!key.is_empty()).then(|| key.into()),
    }
}

/// ObjectMeta, with the rules that a schema may add for the names.
fn metadata_schema(given: Option<&Value>) -> Value {
    let mut schema = objectmeta::schema().clone();
    for name in ["name", "generateName"] {
        if let Some(Value::Object(rules)) = given.and_then(|g| g.get(name)) {
            let target = &mut schema["properties"][name];
            for (k, v) in rules {
                target[k.as_str()] = v.clone();
            }
        }
    }
    schema
}
