//! From the typed views to OpenAPI shapes. Filled in by [`crate::object::objects`] without a derive, so that it costs
//! a build nothing and nothing generated can go stale.
//!
//! Shapes refer to one another with `$ref`; [`crate::kinds`] resolves them when a server starts.

use std::collections::BTreeMap;

use k8s_openapi::Resource;
use k8s_openapi::apimachinery::pkg::{api::resource::Quantity, apis::meta::v1 as meta};
use serde_json::{Map, Value, json};

use crate::object::Empty;

/// A type that has a place in a schema.
pub trait Shape {
    /// The schema, or a reference to it after having defined it.
    fn shape(defs: &mut Definitions) -> Value;
}

/// Named shapes, as they are collected.
#[derive(Default)]
pub struct Definitions {
    /// Name to shape.
    pub by_name: BTreeMap<String, Value>,
}

/// The struct being described.
pub struct Fields<'a> {
    defs: &'a mut Definitions,
    properties: Map<String, Value>,
    required: Vec<String>,
}

impl Definitions {
    /// Defines a struct once and refers to it. `path` is its Rust path, of which module and name are kept.
    pub fn define(&mut self, path: &str, doc: &str, fill: impl FnOnce(&mut Fields<'_>)) -> Value {
        let parts: Vec<&str> = path.split("::").collect();
        let name = format!("{}.{}", parts.get(1).unwrap_or(&""), parts.last().unwrap_or(&""));
        if !self.by_name.contains_key(&name) {
            self.by_name.insert(name.clone(), Value::Null);
            let mut fields = Fields { defs: self, properties: Map::new(), required: Vec::new() };
            fill(&mut fields);
            let Fields { properties, required, .. } = fields;
            let mut shape = json!({"type": "object", "properties": properties});
            if properties_empty(&shape) {
                shape = json!({"type": "object"});
            }
            if !required.is_empty() {
                shape["required"] = json!(required);
            }
            describe(&mut shape, doc);
            self.by_name.insert(name.clone(), shape);
        }
        json!({"$ref": name})
    }
}

fn properties_empty(shape: &Value) -> bool {
    shape["properties"].as_object().is_none_or(Map::is_empty)
}

fn describe(shape: &mut Value, doc: &str) {
    let text: Vec<&str> = doc.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if !text.is_empty() {
        shape["description"] = json!(text.join(" "));
    }
}

fn camel(field: &str) -> String {
    let mut out = String::new();
    for (i, word) in field.trim_start_matches("r#").split('_').enumerate() {
        let mut chars = word.chars();
        if i > 0 {
            out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        }
        out.push_str(chars.as_str());
    }
    out
}

impl Fields<'_> {
    /// Describes one field: its Rust or JSON name, its sentence and its marks.
    pub fn field<T: Shape>(&mut self, name: &str, doc: &str, marks: &[(&str, &[&str])]) {
        let name = if name.contains('_') || name.starts_with("r#") { camel(name) } else { name.to_string() };
        let mut shape = T::shape(self.defs);
        describe(&mut shape, doc);
        for (mark, args) in marks {
            let number = || args[0].parse::<i64>().map_or(Value::Null, Value::from);
            match *mark {
                "required" => self.required.push(name.clone()),
                "map" => {
                    shape["x-kubernetes-list-type"] = json!("map");
                    shape["x-kubernetes-list-map-keys"] = json!(args);
                }
                "set" | "atomic" => shape["x-kubernetes-list-type"] = json!(mark),
                "min" => shape["minimum"] = number(),
                "max" => shape["maximum"] = number(),
                "one_of" if shape["type"] == "array" => shape["items"]["enum"] = json!(args),
                "one_of" => shape["enum"] = json!(args),
                "default" => shape["default"] = serde_json::from_str(args[0]).unwrap_or(Value::Null),
                "nullable" => shape["nullable"] = json!(true),
                other => unreachable!("unknown mark {other}"),
            }
        }
        self.properties.insert(name, shape);
    }
}

macro_rules! plain {
    ($($ty:ty => $json:tt),* $(,)?) => {$(
        impl Shape for $ty { fn shape(_: &mut Definitions) -> Value { json!($json) } }
    )*};
}
plain! {
    String => {"type": "string"},
    bool => {"type": "boolean"},
    i32 => {"type": "integer", "format": "int32"},
    i64 => {"type": "integer", "format": "int64"},
    u32 => {"type": "integer", "format": "int64", "minimum": 0},
    Empty => {"type": "object"},
    Value => {"x-kubernetes-preserve-unknown-fields": true},
    Quantity => {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
    meta::Time => {"type": "string", "format": "date-time"},
    meta::LabelSelector => {"$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"},
    // The server knows metadata; a nested one (of a template) stays open, as in every CRD of its kind.
    meta::ObjectMeta => {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
}

/// Types of core Kubernetes whose shapes are in the published definitions.
macro_rules! core {
    ($($ty:ident),* $(,)?) => {$(
        impl Shape for k8s_openapi::api::core::v1::$ty {
            fn shape(_: &mut Definitions) -> Value {
                json!({"$ref": concat!("io.k8s.api.core.v1.", stringify!($ty))})
            }
        }
    )*};
}
core! {
    Affinity, DownwardAPIVolumeFile, ExecAction, HTTPGetAction, LocalObjectReference, PersistentVolumeClaimSpec,
    PodDNSConfig, TCPSocketAction, Toleration, TopologySpreadConstraint, TypedLocalObjectReference,
    TypedObjectReference, VolumeResourceRequirements,
}

impl<T: Shape> Shape for Option<T> {
    fn shape(defs: &mut Definitions) -> Value {
        T::shape(defs)
    }
}
impl<T: Shape> Shape for Vec<T> {
    fn shape(defs: &mut Definitions) -> Value {
        json!({"type": "array", "items": T::shape(defs)})
    }
}
impl<T: Shape> Shape for BTreeMap<String, T> {
    fn shape(defs: &mut Definitions) -> Value {
        json!({"type": "object", "additionalProperties": T::shape(defs)})
    }
}

fn kind<T: Shape + Resource>(defs: &mut Definitions) -> (String, Value) {
    (format!("{} {}", T::API_VERSION, T::KIND), T::shape(defs))
}

/// All kinds that have typed views, as `apiVersion Kind` to a reference, with the definitions they need.
pub fn all() -> (BTreeMap<String, Value>, Definitions) {
    let mut defs = Definitions::default();
    let kinds = BTreeMap::from([
        kind::<crate::kubevirt::VirtualMachine>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineInstance>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineInstanceMigration>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineInstancetype>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineClusterInstancetype>(&mut defs),
        kind::<crate::kubevirt::VirtualMachinePreference>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineClusterPreference>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineSnapshot>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineSnapshotContent>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineRestore>(&mut defs),
        kind::<crate::kubevirt::VirtualMachineClone>(&mut defs),
        kind::<crate::harvester::VirtualMachineImage>(&mut defs),
        kind::<crate::harvester::KeyPair>(&mut defs),
        kind::<crate::harvester::Setting>(&mut defs),
        kind::<crate::cni::NetworkAttachmentDefinition>(&mut defs),
        kind::<crate::longhorn::Volume>(&mut defs),
        kind::<crate::longhorn::Engine>(&mut defs),
        kind::<crate::longhorn::Replica>(&mut defs),
        kind::<crate::longhorn::Node>(&mut defs),
        kind::<crate::longhorn::Snapshot>(&mut defs),
        kind::<crate::longhorn::Setting>(&mut defs),
        kind::<crate::volumesnapshot::VolumeSnapshot>(&mut defs),
        kind::<crate::volumesnapshot::VolumeSnapshotContent>(&mut defs),
        kind::<crate::volumesnapshot::VolumeSnapshotClass>(&mut defs),
    ]);
    (kinds, defs)
}
