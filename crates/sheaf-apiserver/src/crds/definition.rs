//! A CustomResourceDefinition as the server uses it, and the rows that it makes. Pure.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sheaf_meta::{
    gvk,
    kind::{Column, KindInfo, NoRules, SchemaSource, Scope},
    object,
};
use sheaf_store::Revision;

use super::CLEANUP;
use crate::{
    registry::{Custom, Row},
    scale::ScalePaths,
};

/// `spec.names` and `status.acceptedNames`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Names {
    pub(super) plural: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) singular: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) short_names: Vec<String>,
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) list_kind: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) categories: Vec<String>,
}

/// One entry of `spec.versions`.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) name: String,
    served: bool,
    storage: bool,
    /// The schema as compressed JSON: it is compiled once and published seldom, and large ones would weigh ten times
    /// as much as text, and a hundred times as much as a tree.
    schema: Option<Arc<[u8]>>,
    status: bool,
    scale: Option<ScalePaths>,
    columns: Vec<Column>,
    selectable: Vec<String>,
    deprecated: Option<String>,
}

/// What the server keeps of a definition.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) created: String,
    pub(super) resource_version: String,
    pub(super) wanted: Names,
    pub(super) accepted: Names,
    pub(super) versions: Vec<Version>,
    /// Conditions as they are stored.
    pub(super) conditions: Vec<Value>,
    pub(super) deleting: bool,
    /// Finalizers as they are stored.
    pub(super) finalizers: Vec<String>,
    /// `api-approved.kubernetes.io`, where it is set.
    pub(super) approval: Option<String>,
    scope: Scope,
    /// Of the whole specification.
    digest: [u8; 32],
}

/// What rows depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    digest: [u8; 32],
    accepted: Names,
}

/// Annotation by which definitions in Kubernetes' own groups say who approved them.
pub(super) const APPROVAL: &str = "api-approved.kubernetes.io";

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn names(value: Option<&Value>) -> Names {
    value.and_then(|v| Names::deserialize(v).ok()).unwrap_or_default()
}

impl Definition {
    /// Reads a stored definition, which has passed validation.
    pub(super) fn read(crd: &Value, revision: Revision) -> Self {
        let spec = crd.get("spec").cloned().unwrap_or_default();
        let wanted = names(spec.get("names"));
        let group = text(&spec, "group");
        let versions = list(&spec, "versions").map(|v| version(v, &group, &wanted.kind, &spec)).collect();
        Self {
            name: object::name(crd).into(),
            created: object::creation_timestamp(crd).into(),
            resource_version: revision.0.to_string(),
            accepted: names(crd.pointer("/status/acceptedNames")),
            conditions: crd
                .pointer("/status/conditions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            deleting: object::is_deleting(crd),
            finalizers: object::finalizers(crd).into_iter().map(String::from).collect(),
            approval: object::annotation(crd, APPROVAL).map(String::from),
            scope: if text(&spec, "scope") == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
            digest: Sha256::digest(spec.to_string()).into(),
            group,
            wanted,
            versions,
        }
    }

    /// Whether the cleaning up of objects is still owed.
    pub(super) fn owes_cleanup(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|f| f == CLEANUP)
    }

    /// Whether a condition is `True`.
    pub(super) fn is(&self, condition: &str) -> bool {
        self.conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
    }

    /// What makes rows: equal forms have equal rows.
    pub(super) fn form(&self, accepted: &Names) -> Form {
        Form { digest: self.digest, accepted: accepted.clone() }
    }

    /// The rows of all versions, each with whether it is served. `settled` is the revision from which on objects were
    /// written through these schemas.
    pub(super) fn rows(
        &self,
        accepted: &Names,
        settled: &Arc<AtomicU64>,
        terminating: &Arc<AtomicBool>,
    ) -> Vec<(bool, Arc<Row>)> {
        let Some(storage) = self.versions.iter().find(|v| v.storage) else { return Vec::new() };
        // What one version's schema let through need not fit another's.
        let alike = self.versions.iter().all(|v| v.schema == storage.schema);
        let settled = alike.then_some(settled);
        let row = |version: &Version| {
            let info = self.kind_info(version, accepted);
            let custom = Custom {
                definition: self.name.clone(),
                list_kind: accepted.list_kind.clone(),
                deprecated: version.deprecated.clone(),
                terminating: terminating.clone(),
                settled: settled.cloned(),
            };
            let stored_as = format!("{}/{}", self.group, storage.name);
            let row = Row::of_definition(info, stored_as, version.scale.clone(), custom);
            (version.served, Arc::new(row))
        };
        self.versions.iter().map(row).collect()
    }

    fn kind_info(&self, version: &Version, names: &Names) -> KindInfo {
        let schema = match version.schema.clone() {
            Some(packed) => SchemaSource::made(move || unpack(&packed)),
            None => SchemaSource::kept(Value::Null),
        };
        KindInfo {
            group: self.group.clone(),
            version: version.name.clone(),
            kind: names.kind.clone(),
            plural: names.plural.clone(),
            singular: names.singular.clone(),
            short_names: names.short_names.clone(),
            categories: names.categories.clone(),
            scope: self.scope,
            status_subresource: version.status,
            generation: true,
            columns: version.columns.clone(),
            selectable_fields: version.selectable.clone(),
            schema,
            is_crd: true,
            rules: Arc::new(NoRules),
        }
    }
}

fn version(value: &Value, group: &str, kind: &str, spec: &Value) -> Version {
    let subresources = value.get("subresources").unwrap_or(&Value::Null);
    let selectable = list(value, "selectableFields").map(|f| text(f, "jsonPath"));
    Version {
        name: text(value, "name"),
        served: flag(value, "served"),
        storage: flag(value, "storage"),
        schema: value.pointer("/schema/openAPIV3Schema").map(pack),
        status: subresources.get("status").is_some_and(Value::is_object),
        scale: subresources.get("scale").and_then(ScalePaths::of_definition),
        columns: list(value, "additionalPrinterColumns").map(column).collect(),
        selectable: selectable.map(|path| path.trim_start_matches('.').to_string()).collect(),
        deprecated: flag(value, "deprecated").then(|| deprecation(value, group, kind, spec)),
    }
}

fn column(value: &Value) -> Column {
    Column {
        name: text(value, "name"),
        ty: text(value, "type"),
        format: text(value, "format"),
        priority: value.get("priority").and_then(Value::as_i64).and_then(|n| n.try_into().ok()).unwrap_or(0),
        path: text(value, "jsonPath"),
        description: text(value, "description"),
    }
}

/// The sentence for who uses a deprecated version: the definition's own, or one that names a newer version.
fn deprecation(value: &Value, group: &str, kind: &str, spec: &Value) -> String {
    let own = text(value, "deprecationWarning");
    if !own.is_empty() {
        return own;
    }
    let version = text(value, "name");
    let mut newer: Vec<String> = list(spec, "versions")
        .filter(|v| flag(v, "served") && !flag(v, "deprecated"))
        .map(|v| text(v, "name"))
        .filter(|name| gvk::compare_versions(name, &version).is_lt())
        .collect();
    newer.sort_by(|a, b| gvk::compare_versions(a, b));
    let instead = newer.first().map(|v| format!("; use {group}/{v} {kind}")).unwrap_or_default();
    format!("{group}/{version} {kind} is deprecated{instead}")
}

fn pack(schema: &Value) -> Arc<[u8]> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory does not fail.
    let _ = encoder.write_all(schema.to_string().as_bytes());
    encoder.finish().unwrap_or_default().into()
}

fn unpack(packed: &[u8]) -> Value {
    let mut raw = Vec::new();
    let read = DeflateDecoder::new(packed).read_to_end(&mut raw);
    read.ok().and_then(|_| serde_json::from_slice(&raw).ok()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A definition as it would be stored.
    pub(in crate::crds) fn crontabs() -> Value {
        json!({
            "metadata": {"name": "crontabs.example.com", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList",
                    "shortNames": ["ct"], "categories": ["all"]},
                "versions": [
                    {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                        "schema": {"openAPIV3Schema": {"type": "object"}}},
                    {"name": "v1", "served": true, "storage": true,
                        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}},
                        "subresources": {"status": {}, "scale": {
                            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                        "selectableFields": [{"jsonPath": ".spec.color"}],
                        "additionalPrinterColumns": [
                            {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec", "priority": 1}]},
                    {"name": "v0", "served": false, "storage": false},
                ],
            },
        })
    }

    #[test]
    fn rows_of_a_definition() {
        let definition = Definition::read(&crontabs(), Revision(7));
        let rows = definition.rows(&definition.wanted, &Arc::new(AtomicU64::new(7)), &Arc::default());
        let seen: Vec<(bool, &str, &str)> =
            rows.iter().map(|(served, r)| (*served, r.api_version.as_str(), r.stored_as.as_str())).collect();
        assert_eq!(
            seen,
            [
                (true, "example.com/v1beta1", "example.com/v1"),
                (true, "example.com/v1", "example.com/v1"),
                (false, "example.com/v0", "example.com/v1"),
            ]
        );
        let v1 = &rows[1].1;
        assert_eq!(v1.prefix, "/registry/example.com/crontabs/");
        assert_eq!(v1.subresources(), ["status", "scale"]);
        assert_eq!(v1.info.selectable_fields, ["spec.color"]);
        assert_eq!(v1.info.schema.get()["properties"]["spec"]["type"], "object");
        assert_eq!((v1.info.columns[0].name.as_str(), v1.info.columns[0].priority), ("Spec", 1));
        assert!(!v1.is_settled(Revision(9)), "another version's schema let other things through");
        let old = rows[0].1.custom.as_ref().and_then(|c| c.deprecated.clone());
        assert_eq!(
            old.as_deref(),
            Some("example.com/v1beta1 CronTab is deprecated; use example.com/v1 CronTab")
        );
    }

    #[test]
    fn with_one_version_only_what_is_older_than_the_schema_is_read_anew() {
        let mut crd = crontabs();
        crd["spec"]["versions"] = json!([crd["spec"]["versions"][1]]);
        let definition = Definition::read(&crd, Revision(7));
        let rows = definition.rows(&definition.wanted, &Arc::new(AtomicU64::new(7)), &Arc::default());
        assert!(rows[0].1.is_settled(Revision(7)));
        assert!(!rows[0].1.is_settled(Revision(6)));
    }

    #[test]
    fn the_form_is_what_rows_depend_on() {
        let crd = crontabs();
        let form = |crd: &Value| {
            let d = Definition::read(crd, Revision(1));
            d.form(&d.wanted)
        };
        let mut status = crd.clone();
        status["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        status["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(form(&crd), form(&status));
        assert!(Definition::read(&status, Revision(1)).is("Established"));
        let mut column = crd.clone();
        column["spec"]["versions"][1]["additionalPrinterColumns"] = json!([]);
        assert_ne!(form(&crd), form(&column));
        let mut going = crd.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(form(&crd), form(&going), "watches go on until the objects are gone");
    }
}
