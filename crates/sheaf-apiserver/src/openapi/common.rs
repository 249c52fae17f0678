//! Shapes that every document needs and that belong to no stored kind: statuses, options, lists' metadata. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheaf_meta::{object, objectmeta};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Name of the shape of `metadata`.
pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Name of the shape of a list's `metadata`.
pub(super) const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
/// Name of a failure's shape.
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
/// Name of the shape of a deletion's body.
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
/// Name of the shape of a patch.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
/// Name of the shape of a Scale.
pub(super) const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// What the fields that every object has are for. Clients show them; how they begin is what people search for.
const OF_OBJECTS: &[(&str, &str)] = &[
    ("apiVersion", "APIVersion defines the versioned schema in which this object is written."),
    ("kind", "Kind is a string value that says which kind of object this is."),
    ("metadata", "Standard object's metadata."),
];
const OF_METADATA: &[(&str, &str)] = &[
    (
        "annotations",
        "Annotations is an unstructured map of what tools keep with an object. It is not queried.",
    ),
    (
        "creationTimestamp",
        "CreationTimestamp is a timestamp representing the server time when the object was created.",
    ),
    ("deletionGracePeriodSeconds", "Number of seconds that an object may take to end before it is removed."),
    (
        "deletionTimestamp",
        "DeletionTimestamp is the time at which the object is to go, set when its deletion is asked for.",
    ),
    ("finalizers", "Must be empty before the object is removed. Each entry names who removes it."),
    (
        "generateName",
        "GenerateName is a prefix from which the server makes a unique name, if name is not given.",
    ),
    ("generation", "A sequence number of the desired state. Set by the server."),
    ("labels", "Map of keys and values by which objects are organised and selected."),
    ("managedFields", "ManagedFields says who manages which fields. It is kept by the server."),
    ("name", "Name must be unique within a namespace. It cannot be changed."),
    ("namespace", "Namespace is the space within which the name must be unique. It cannot be changed."),
    ("ownerReferences", "List of objects this object depends on. When all of them are gone, it goes too."),
    (
        "resourceVersion",
        "An opaque value that says which state of the object this is; for optimistic concurrency and watches.",
    ),
    ("selfLink", "Deprecated: selfLink is no longer set."),
    ("uid", "UID is the unique in time and space value for this object. Set by the server."),
];

fn describe(shape: &mut Value, texts: &[(&str, &str)]) {
    let Some(properties) = shape.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, text) in texts {
        if let Some(property) = properties.get_mut(*field).and_then(Value::as_object_mut) {
            property.entry("description").or_insert_with(|| json!(text));
        }
    }
}

/// Says of a kind's shape what the fields are for that all kinds have.
pub(super) fn describe_kind(shape: &mut Value) {
    describe(shape, OF_OBJECTS);
}

/// Adds to embedded resources what they have as resources.
pub(super) fn embed(shape: &mut Value) {
    match shape {
        Value::Object(map) => {
            map.values_mut().for_each(embed);
            if map.get("x-kubernetes-embedded-resource") != Some(&Value::Bool(true)) {
                return;
            }
            let properties = object::entry_map(map, "properties");
            for field in ["apiVersion", "kind"] {
                properties.insert(field.into(), json!({"type": "string"}));
            }
            properties.insert("metadata".into(), json!({"$ref": OBJECT_META}));
            let required = map.entry("required").or_insert_with(|| json!([]));
            for field in ["kind", "apiVersion"] {
                if let Some(required) = required.as_array_mut()
                    && !required.contains(&json!(field))
                {
                    required.push(json!(field));
                }
            }
            describe(shape, OF_OBJECTS);
        }
        Value::Array(list) => list.iter_mut().for_each(embed),
        _ => {}
    }
}

/// Adds them to the definitions of a document. What is there already is better, and stays.
pub(super) fn add_to(all: &mut BTreeMap<String, Value>) {
    let string = || json!({"type": "string"});
    let integer = |format: &str| json!({"type": "integer", "format": format});
    let strings =
        || json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let mut put = |name: String, shape: Value| {
        all.entry(name).or_insert(shape);
    };
    put(OBJECT_META.into(), objectmeta::schema().clone());
    put(
        LIST_META.into(),
        object(json!({
            "continue": string(), "remainingItemCount": integer("int64"), "resourceVersion": string(),
            "selfLink": string(),
        })),
    );
    put(
        STATUS.into(),
        object(json!({
            "apiVersion": string(), "code": integer("int32"),
            "details": {"$ref": format!("{META}.StatusDetails"), "x-kubernetes-list-type": "atomic"},
            "kind": string(), "message": string(), "metadata": {"$ref": LIST_META}, "reason": string(),
            "status": string(),
        })),
    );
    put(
        format!("{META}.StatusDetails"),
        object(json!({
            "causes": {"type": "array", "items": {"$ref": format!("{META}.StatusCause")},
                "x-kubernetes-list-type": "atomic"},
            "group": string(), "kind": string(), "name": string(), "retryAfterSeconds": integer("int32"),
            "uid": string(),
        })),
    );
    put(
        format!("{META}.StatusCause"),
        object(json!({"field": string(), "message": string(), "reason": string()})),
    );
    put(
        DELETE_OPTIONS.into(),
        object(json!({
            "apiVersion": string(), "dryRun": strings(), "gracePeriodSeconds": integer("int64"),
            "ignoreStoreReadErrorWithClusterBreakingPotential": {"type": "boolean"},
            "kind": string(), "orphanDependents": {"type": "boolean"},
            "preconditions": {"$ref": format!("{META}.Preconditions")}, "propagationPolicy": string(),
        })),
    );
    put(format!("{META}.Preconditions"), object(json!({"resourceVersion": string(), "uid": string()})));
    put(PATCH.into(), json!({"type": "object"}));
    if let Some(metadata) = all.get_mut(OBJECT_META) {
        describe(metadata, OF_METADATA);
    }
}

/// Adds the shapes of a Scale.
pub(super) fn add_scale(all: &mut BTreeMap<String, Value>) {
    let of_scale = crate::scale::schema();
    let part = |name: &str| of_scale["properties"][name].clone();
    let name = |name: &str| format!("io.k8s.api.autoscaling.v1.{name}");
    let mut scale = json!({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"$ref": OBJECT_META},
        "spec": {"$ref": name("ScaleSpec")}, "status": {"$ref": name("ScaleStatus")},
    }});
    scale["x-kubernetes-group-version-kind"] =
        json!([{"group": "autoscaling", "version": "v1", "kind": "Scale"}]);
    all.entry(SCALE.into()).or_insert(scale);
    all.entry(name("ScaleSpec")).or_insert_with(|| part("spec"));
    all.entry(name("ScaleStatus")).or_insert_with(|| part("status"));
}
