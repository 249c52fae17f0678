//! What those who listen to every kind need of an object: its name, its UID, its owners, and whether it goes.
//!
//! Every write of any kind passes here, so labels, annotations and the record of who owns which field, most of what
//! metadata has, are passed over and not read into trees. Owns nothing.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::api::ApiResource;
use kube::core::DynamicResourceScope;
use serde::Deserialize;

/// An object as `PartialObjectMetadata` shows it, with a few members of its metadata.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Partial")]
pub(super) struct Identity {
    /// Has what [`Few`] has.
    pub(super) metadata: ObjectMeta,
}

#[derive(Default, Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: Few,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Few {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Partial> for Identity {
    fn from(Partial { metadata: few }: Partial) -> Self {
        Self {
            metadata: ObjectMeta {
                name: few.name,
                namespace: few.namespace,
                uid: few.uid,
                resource_version: few.resource_version,
                deletion_timestamp: few.deletion_timestamp,
                finalizers: few.finalizers,
                owner_references: few.owner_references,
                ..ObjectMeta::default()
            },
        }
    }
}

impl Resource for Identity {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    /// Lists and watches ask for metadata only.
    fn metadata_api() -> bool {
        true
    }
    fn kind(kind: &ApiResource) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }
    fn group(kind: &ApiResource) -> Cow<'_, str> {
        kind.group.as_str().into()
    }
    fn version(kind: &ApiResource) -> Cow<'_, str> {
        kind.version.as_str().into()
    }
    fn plural(kind: &ApiResource) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kube::api::PartialObjectMeta;
    use serde_json::json;

    use super::*;

    /// What is read is what the whole metadata would say.
    #[test]
    fn reads_what_the_whole_reads() {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": "u", "controller": true});
        for metadata in [
            json!({"name": "a", "uid": "1", "resourceVersion": "7"}),
            json!({
                "name": "a", "namespace": "n", "uid": "1", "resourceVersion": "7", "labels": {"a": "b"},
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
                "finalizers": ["x", "y"], "ownerReferences": [owner],
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}}],
            }),
        ] {
            let text = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
            let whole: PartialObjectMeta = serde_json::from_value(text.clone()).unwrap();
            let few: Identity = serde_json::from_value(text).unwrap();
            let expected =
                ObjectMeta { labels: None, creation_timestamp: None, managed_fields: None, ..whole.metadata };
            assert_eq!(few.metadata, expected);
        }
    }
}
