//! What is always there for replicated volumes: their namespace, their classes, the driver's object, the settings.
//!
//! Each is made once if absent, then the users'. The classes bear the names that Longhorn and Harvester give them. One of them is made the
//! default one where no class is: a cluster keeps what it has.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sheaf_api::longhorn::{DRIVER, NAMESPACE, Setting};
use sheaf_api::volumesnapshot::VolumeSnapshotClass;
use sheaf_plan::storage::settings::DEFAULTS;
use sheaf_runtime::TaskGroup;
use tracing::warn;

use crate::claims::{DEFAULT_MARK, plan_default};

/// The class that Harvester's users know, and the default one.
pub(crate) const HARVESTER_CLASS: &str = "harvester-longhorn";

pub(super) fn spawn(client: &Client, group: &TaskGroup) {
    let client = client.clone();
    group.spawn(async move {
        loop {
            match ensure(&client).await {
                Ok(()) => return,
                Err(error) => {
                    warn!(%error, "the classes of replicated volumes are not there yet; tried again")
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    });
}

async fn make<K>(api: &Api<K>, object: Value) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// The class of replicated volumes under one of its names. Marked: it is the default one.
pub(crate) fn class(name: &str, migratable: bool, marked: bool) -> Value {
    let mut parameters = json!({
        "numberOfReplicas": "3", "staleReplicaTimeout": "30", "fromBackup": "", "dataLocality": "disabled",
        "dataEngine": "v1",
    });
    if migratable {
        parameters["migratable"] = json!("true");
    } else {
        parameters["fsType"] = json!("ext4");
    }
    let mut metadata = json!({"name": name});
    if marked {
        metadata["annotations"] = json!({DEFAULT_MARK: "true"});
    }
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata,
        "provisioner": DRIVER, "parameters": parameters, "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate", "allowVolumeExpansion": true,
    })
}

async fn ensure(client: &Client) -> Result<(), kube::Error> {
    make(&Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await?;
    let settings: Api<Setting> = Api::namespaced(client.clone(), NAMESPACE);
    for (name, value) in DEFAULTS {
        let object = json!({
            "apiVersion": "longhorn.io/v1beta2", "kind": "Setting",
            "metadata": {"name": name, "namespace": NAMESPACE}, "value": value,
        });
        make(&settings, object).await?;
    }
    let classes: Api<StorageClass> = Api::all(client.clone());
    let there = classes.list(&ListParams::default()).await?;
    let marked = plan_default(there.items.iter()).is_none();
    make(&classes, class("longhorn", false, false)).await?;
    make(&classes, class(HARVESTER_CLASS, true, marked)).await?;
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
        "spec": {"attachRequired": true, "podInfoOnMount": true, "fsGroupPolicy": "ReadWriteOnceWithFSType",
            "volumeLifecycleModes": ["Persistent"]},
    });
    make(&Api::<CSIDriver>::all(client.clone()), driver).await?;
    let moments = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": "longhorn-snapshot"}, "driver": DRIVER, "deletionPolicy": "Delete",
        "parameters": {"type": "snap"},
    });
    make(&Api::<VolumeSnapshotClass>::all(client.clone()), moments).await
}
