//! Shapes that every document needs and that belong to no stored kind: statuses, options, lists' metadata. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheaf_meta::objectmeta;

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
