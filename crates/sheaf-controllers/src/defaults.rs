//! Objects that a cluster starts with beyond namespaces: the storage class `local`. Made once if absent, then the
//! users'.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use sheaf_runtime::TaskGroup;
use tracing::warn;

use crate::images::LOCAL_PROVISIONER;

pub(crate) fn spawn(client: &Client, group: &TaskGroup) {
    let classes: Api<StorageClass> = Api::all(client.clone());
    group.spawn(async move {
        loop {
            match ensure(&classes).await {
                Ok(()) => return,
                Err(error) => warn!(%error, "the storage class `local` is not there yet; tried again"),
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    });
}

async fn ensure(classes: &Api<StorageClass>) -> Result<(), kube::Error> {
    let local = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "local",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": LOCAL_PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    let local = serde_json::from_value(local).map_err(kube::Error::SerdeError)?;
    match classes.create(&PostParams::default(), &local).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}
