//! The CustomResourceDefinitions of kinds that are rows of the program: one truthful object for each, so that clients
//! that look for a CRD find it.
//!
//! Written through the ordinary path, after the server has begun to answer; an object that says already what the row
//! says is left alone. Not here: kinds that users define.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sheaf_meta::{
    kind::{Column, Scope},
    object,
    status::Status,
};
use sheaf_store::Revision;

use super::{COLLECTION, GROUP, PLURAL, definition::APPROVAL};
use crate::{core::Core, internal, pki::hex, registry::Row};

/// Fingerprint of what the row said when the object was written.
const FINGERPRINT: &str = "sheaf.io/row-fingerprint";
/// Where the kinds in Kubernetes' own groups were approved: those of volume snapshots, the only ones that are
/// definitions elsewhere.
const SNAPSHOTS: &str = "https://github.com/kubernetes-csi/external-snapshotter/pull/814";

/// Writes what is missing or has changed. Goes on after a failure, and says it.
pub(crate) async fn ensure(core: Arc<Core>) {
    let rows = core.registry.snapshot();
    let Some(crds) = rows.find(GROUP, "v1", PLURAL) else { return };
    let mut kinds: BTreeMap<(String, String), Vec<Arc<Row>>> = BTreeMap::new();
    for row in core.registry.built_in().iter().filter(|r| r.info.is_crd) {
        kinds.entry((row.info.group.clone(), row.info.plural.clone())).or_default().push(row.clone());
    }
    for ((group, plural), versions) in kinds {
        let name = format!("{plural}.{group}");
        if let Err(status) = ensure_one(&core, crds, &name, &versions).await {
            tracing::error!(name, reason = status.reason, message = %status.message, "a CRD cannot be written");
        }
    }
}

async fn ensure_one(core: &Arc<Core>, crds: &Row, name: &str, versions: &[Arc<Row>]) -> Result<(), Status> {
    let wanted = definition(name, versions);
    // From the store: these are large, and the cache should hold them only once somebody asks for them.
    let entry = core.store.get(&crds.key("", name), Revision(0)).await.map_err(Status::internal)?;
    let there: Option<Value> =
        entry.map(|e| serde_json::from_slice(&e.value)).transpose().map_err(Status::internal)?;
    let fingerprint = object::annotation(&wanted, FINGERPRINT);
    let (path, write) = match &there {
        Some(there) if object::annotation(there, FINGERPRINT) == fingerprint => (String::new(), None),
        Some(_) => (format!("{COLLECTION}/{name}"), Some(Method::PUT)),
        None => (COLLECTION.to_string(), Some(Method::POST)),
    };
    if let Some(method) = write {
        internal::call(core, method, &path, "application/json", Some(&wanted)).await?;
    }
    let established = there.as_ref().and_then(|t| t.pointer("/status/conditions/0")).is_some();
    if !established {
        let status = json!({"status": status(&wanted, versions)});
        internal::merge(core, &format!("{COLLECTION}/{name}/status"), &status).await?;
    }
    Ok(())
}

fn names(row: &Row) -> Value {
    let info = &row.info;
    let mut names = json!({
        "kind": info.kind, "listKind": format!("{}List", info.kind), "plural": info.plural,
        "singular": info.singular,
    });
    if !info.short_names.is_empty() {
        names["shortNames"] = json!(info.short_names);
    }
    if !info.categories.is_empty() {
        names["categories"] = json!(info.categories);
    }
    names
}

fn status(wanted: &Value, versions: &[Arc<Row>]) -> Value {
    let now = object::time(jiff::Timestamp::now());
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now,
        })
    };
    json!({
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "acceptedNames": wanted["spec"]["names"],
        "storedVersions": versions.first().map(|r| vec![&r.info.version]),
    })
}

/// The object that says what the rows say.
fn definition(name: &str, versions: &[Arc<Row>]) -> Value {
    let Some(first) = versions.first() else { return Value::Null };
    let version = |(i, row): (usize, &Arc<Row>)| {
        let mut out = json!({
            "name": row.info.version, "served": true, "storage": i == 0,
            "schema": {"openAPIV3Schema": *row.info.schema.get()},
        });
        if row.info.status_subresource {
            out["subresources"] = json!({"status": {}});
        }
        let columns: Vec<Value> =
            row.info.columns.iter().filter(|c| !c.path.is_empty()).map(column).collect();
        if !columns.is_empty() {
            out["additionalPrinterColumns"] = json!(columns);
        }
        out
    };
    let spec = json!({
        "group": first.info.group,
        "names": names(first),
        "scope": if first.info.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" },
        "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        "conversion": {"strategy": "None"},
    });
    let fingerprint = hex(&Sha256::digest(spec.to_string()))[..16].to_string();
    let mut annotations = json!({FINGERPRINT: fingerprint});
    if first.info.group.ends_with(".k8s.io") {
        annotations[APPROVAL] = json!(SNAPSHOTS);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    })
}

fn column(column: &Column) -> Value {
    let mut out = json!({"name": column.name, "type": column.ty, "jsonPath": column.path});
    for (field, value) in [("description", &column.description), ("format", &column.format)] {
        if !value.is_empty() {
            out[field] = json!(value);
        }
    }
    if column.priority != 0 {
        out["priority"] = json!(column.priority);
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::registry::Registry;

    use super::*;

    #[test]
    fn what_the_program_brings_along_keeps_the_rules_for_definitions() {
        let registry = Registry::new(sheaf_api::kinds());
        for row in registry.built_in().iter().filter(|r| r.info.is_crd) {
            let name = format!("{}.{}", row.info.plural, row.info.group);
            let mut crd = definition(&name, std::slice::from_ref(row));
            sheaf_crd::default_crd(&mut crd);
            assert_eq!(sheaf_crd::validate_crd(&crd, None), [], "{name}");
        }
    }
}
