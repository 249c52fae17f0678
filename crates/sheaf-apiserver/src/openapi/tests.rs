//! Documents of all built-in kinds.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::registry::Registry;

fn rows() -> Arc<Snapshot> {
    Registry::new(sheaf_api::kinds()).snapshot()
}

fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str).map(String::from));
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}

fn no_dangling(document: &Value, definitions: &Value, prefix: &str) {
    let mut all = BTreeSet::new();
    references(document, &mut all);
    assert!(!all.is_empty());
    for reference in all {
        let name = reference.strip_prefix(prefix);
        assert!(name.is_some_and(|n| definitions.get(n).is_some()), "{reference} leads nowhere");
    }
}

#[test]
fn the_whole_document_has_every_kind_once_and_no_dangling_reference() {
    let rows = rows();
    let document = whole_document(&rows);
    let definitions = &document["definitions"];
    no_dangling(&document, definitions, "#/definitions/");
    let mut kinds = BTreeSet::new();
    for shape in definitions.as_object().unwrap().values() {
        for kind in shape["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            assert!(kinds.insert(kind.to_string()), "{kind} twice");
        }
    }
    for row in rows.rows() {
        assert!(kinds.contains(&gvk(row).to_string()), "{} has no definition", row.info.kind);
    }
    let deployment = &definitions["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["template"];
    assert_eq!(deployment["$ref"], "#/definitions/io.k8s.api.core.v1.PodTemplateSpec");
    let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"], json!({"type": "string"}));
    assert!(gnostic::encode(&document).len() > 100_000);
}

#[test]
fn documents_of_group_versions_stand_alone() {
    let rows = rows();
    for (gv, of_version) in by_version(rows.rows()) {
        let document = document(&of_version);
        no_dangling(&document, &document["components"]["schemas"], "#/components/schemas/");
        for row in of_version.into_iter().filter(|row| !row.is_answered()) {
            let place = if row.namespaced() { "namespaces/{namespace}/" } else { "" };
            let patch = &document["paths"][format!("/{gv}/{place}{}/{{name}}", row.info.plural)]["patch"];
            assert_eq!(patch["x-kubernetes-group-version-kind"], gvk(row), "{}", row.info.kind);
            let content = patch["requestBody"]["content"].as_object().unwrap();
            let strategic = content.contains_key("application/strategic-merge-patch+json");
            assert_eq!(strategic, row.built_in(), "{}", row.info.kind);
            let names: Vec<&str> =
                patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
            assert!(names.contains(&"fieldValidation"), "{names:?}");
        }
    }
}

#[test]
fn operations_are_named_as_generated_clients_know_them() {
    let rows = rows();
    let document = whole_document(&rows);
    let mut ids = BTreeSet::new();
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().unwrap().values() {
            if let Some(id) = operation.get("operationId").and_then(Value::as_str) {
                assert!(ids.insert(id.to_string()), "{id} twice");
            }
        }
    }
    for id in [
        "listCoreV1NamespacedPod",
        "listCoreV1PodForAllNamespaces",
        "readCoreV1Namespace",
        "replaceAppsV1NamespacedDeploymentStatus",
        "patchAppsV1NamespacedDeploymentScale",
        "deleteCollectionRbacAuthorizationV1ClusterRole",
        "createCoordinationV1NamespacedLease",
    ] {
        assert!(ids.contains(id), "{id} is missing");
    }
}

#[test]
fn hashes_of_what_did_not_change_are_kept() {
    let rows = rows();
    let hashes = rows.openapi.hashes(&rows);
    let fewer: Vec<Arc<Row>> = rows.rows().iter().filter(|r| r.info.plural != "pods").cloned().collect();
    let kept = rows.openapi.carry_over(rows.rows(), &fewer).derived().hashes.clone();
    assert!(!kept.contains_key("api/v1"));
    assert_eq!(kept.len(), hashes.len() - 1);
}
