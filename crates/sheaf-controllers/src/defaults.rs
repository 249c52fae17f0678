//! What is always there: the storage class `local`, and in each namespace the service account `default` and the config
//! map `kube-root-ca.crt`, by which clients inside verify the API server.
//!
//! The class is made once if absent, then the users'. The other two come back when they are deleted, and the config map's
//! content is put right; owns nothing else of them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, Selection, StepError, TaskGroup};
use tracing::warn;

use crate::images::LOCAL_PROVISIONER;

const MANAGER: &str = "sheaf-defaults";
const ACCOUNT: &str = "default";
const ROOT: &str = "kube-root-ca.crt";
const CERTIFICATE: &str = "ca.crt";
const NOTE: &str = "kubernetes.io/description";
const NOTE_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
    such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
    Kubernetes clusters.";

/// Makes the storage class.
pub(crate) fn spawn_class(client: &Client, group: &TaskGroup) {
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
        "metadata": {"name": "local"},
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

/// Keyed by namespace.
struct InNamespaces {
    client: Client,
    certificate: String,
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
    roots: Arc<Informer<ConfigMap>>,
}

/// Keeps what each namespace has. `certificate` is the authority's, in PEM.
pub(crate) fn spawn_in_namespaces(
    client: &Client,
    namespaces: &Arc<Informer<Namespace>>,
    certificate: &str,
    group: &TaskGroup,
) {
    let named = |name: &str| Selection::fields(format!("metadata.name={name}"));
    let accounts: Arc<Informer<ServiceAccount>> = Informer::spawn(client, group, &named(ACCOUNT));
    let roots: Arc<Informer<ConfigMap>> = Informer::spawn(client, group, &named(ROOT));
    let controller = InNamespaces {
        client: client.clone(),
        certificate: certificate.to_owned(),
        namespaces: namespaces.clone(),
        accounts: accounts.clone(),
        roots: roots.clone(),
    };
    let of = |namespace: Option<&String>| {
        namespace.map(|name| ObjectKey::new("", name.clone())).into_iter().collect::<Vec<_>>()
    };
    Driver::new(controller)
        .for_each(namespaces)
        .on(&accounts, move |account| of(account.metadata.namespace.as_ref()))
        .on(&roots, move |map| of(map.metadata.namespace.as_ref()))
        .spawn(group);
}

impl Controller for InNamespaces {
    const NAME: &'static str = "namespace-defaults";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        if namespace.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        if self.accounts.get(&ObjectKey::new(key.name.clone(), ACCOUNT)).is_none() {
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.name);
            let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": ACCOUNT}}))
                .map_err(StepError::other("encoding a service account"))?;
            made(api.create(&PostParams::default(), &account).await.map(drop), "making a service account")?;
        }
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.name);
        let wanted =
            json!({"metadata": {"annotations": {NOTE: NOTE_TEXT}}, "data": {CERTIFICATE: self.certificate}});
        match self.roots.get(&ObjectKey::new(key.name.clone(), ROOT)) {
            None => {
                let mut body = wanted;
                body["metadata"]["name"] = json!(ROOT);
                let map: ConfigMap =
                    serde_json::from_value(body).map_err(StepError::other("encoding a config map"))?;
                made(
                    api.create(&PostParams::default(), &map).await.map(drop),
                    "making the map of the authority",
                )?;
            }
            Some(map) if !is_right(&map, &self.certificate) => {
                let strange =
                    map.data.iter().flatten().map(|(name, _)| name).filter(|name| *name != CERTIFICATE);
                let mut patch = wanted;
                for name in strange {
                    patch["data"][name.as_str()] = Value::Null;
                }
                let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                made(
                    api.patch(ROOT, &params, &Patch::Merge(patch)).await.map(drop),
                    "putting right the map of the authority",
                )?;
            }
            Some(_) => {}
        }
        Ok(Next::Done)
    }
}

fn is_right(map: &ConfigMap, certificate: &str) -> bool {
    let data = map.data.as_ref();
    data.is_some_and(|d| d.len() == 1 && d.get(CERTIFICATE).is_some_and(|c| c == certificate))
        && map.annotations().get(NOTE).is_some_and(|note| note == NOTE_TEXT)
}

/// What is there already was made by somebody faster; a namespace that is going takes nothing new.
fn made(result: Result<(), kube::Error>, context: &'static str) -> Result<(), StepError> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(()),
        other => other.map_err(StepError::api(context)),
    }
}
