//! Garbage collection: objects go when their owners have gone.
//!
//! Watches the metadata of every kind, keeps the graph of owners (`sheaf_plan::gc` has the rules), and acts on one
//! object at a time, after asking the API whether an owner is really gone. Owns the graph, the finalizers
//! `foregroundDeletion` and `orphan`, and nothing else of anybody's objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use sheaf_plan::gc::{FOREGROUND, GcStep, Graph, ORPHAN, Object, OwnerRef, Uid};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup, Waker};
use tracing::{info, warn};

use crate::kinds::{Served, served};

const MANAGER: &str = "sheaf-gc";
/// How often new kinds are looked for.
const DISCOVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Shared {
    graph: Graph,
    resources: Vec<Served>,
}

struct Collector {
    client: Client,
    shared: Arc<Mutex<Shared>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn spawn(client: &Client, group: &TaskGroup) {
    let shared: Arc<Mutex<Shared>> = Arc::default();
    let driver = Driver::new(Collector { client: client.clone(), shared: shared.clone() });
    let waker = driver.waker();
    driver.spawn(group);
    let (client, tasks) = (client.clone(), group.clone());
    group.spawn(async move {
        let mut watched: BTreeMap<String, ()> = BTreeMap::new();
        loop {
            match served(&client).await {
                Ok(kinds) => {
                    for kind in kinds {
                        let name = format!("{}/{}", kind.resource.api_version, kind.resource.plural);
                        if watched.insert(name, ()).is_none() {
                            let index = {
                                let mut shared = lock(&shared);
                                shared.resources.push(kind.clone());
                                shared.resources.len() - 1
                            };
                            tasks.spawn(follow(client.clone(), kind, index, shared.clone(), waker.clone()));
                        }
                    }
                }
                Err(error) => warn!(%error, "kinds cannot be listed; garbage waits"),
            }
            tokio::time::sleep(DISCOVERY).await;
        }
    });
}

/// Feeds the graph with one kind's metadata; never returns.
async fn follow(client: Client, kind: Served, index: usize, shared: Arc<Mutex<Shared>>, waker: Waker) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &kind.resource);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut fresh: Vec<Uid> = Vec::new();
    let wake = |uids: Vec<Uid>| uids.into_iter().for_each(|uid| waker.wake(ObjectKey::new("", uid)));
    while let Some(event) = events.next().await {
        // A watch that breaks is taken up again by the stream itself.
        let Ok(event) = event else { continue };
        match event {
            watcher::Event::Init => fresh.clear(),
            watcher::Event::InitApply(object) => {
                let Some((uid, object)) = known(&object, index) else { continue };
                fresh.push(uid.clone());
                let touched = lock(&shared).graph.upsert(&uid, object);
                wake(touched);
            }
            watcher::Event::InitDone => {
                let vanished: Vec<Uid> = {
                    let mut shared = lock(&shared);
                    let gone: Vec<Uid> =
                        shared.graph.of_resource(index).into_iter().filter(|u| !fresh.contains(u)).collect();
                    gone.iter().flat_map(|uid| shared.graph.remove(uid)).collect()
                };
                wake(vanished);
            }
            watcher::Event::Apply(object) => {
                let Some((uid, object)) = known(&object, index) else { continue };
                let touched = lock(&shared).graph.upsert(&uid, object);
                wake(touched);
            }
            watcher::Event::Delete(object) => {
                let Some(uid) = object.metadata.uid else { continue };
                let touched = lock(&shared).graph.remove(&uid);
                wake(touched);
            }
        }
    }
}

fn known(object: &PartialObjectMeta<DynamicObject>, resource: usize) -> Option<(Uid, Object)> {
    let meta: &ObjectMeta = &object.metadata;
    let owners = meta.owner_references.iter().flatten().map(|o| OwnerRef {
        api_version: o.api_version.clone(),
        kind: o.kind.clone(),
        name: o.name.clone(),
        uid: o.uid.clone(),
        blocks: o.block_owner_deletion == Some(true),
    });
    let object = Object {
        resource,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        owners: owners.collect(),
        deleting: meta.deletion_timestamp.is_some(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
    };
    Some((meta.uid.clone()?, object))
}

impl Controller for Collector {
    const NAME: &'static str = "gc";

    /// The key's name is a UID.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let uid = &key.name;
        let (step, object) = {
            let shared = lock(&self.shared);
            (shared.graph.plan(uid), shared.graph.get(uid).cloned())
        };
        let Some(object) = object else { return Ok(Next::Done) };
        match step {
            GcStep::Nothing => {}
            GcStep::DeleteForOwner => self.delete(uid, &object, PropagationPolicy::Foreground).await?,
            GcStep::FinishForeground => self.drop_finalizer(&object, FOREGROUND).await?,
            GcStep::OrphanDependents(dependents) => {
                for dependent in dependents {
                    let found = lock(&self.shared).graph.get(&dependent).cloned();
                    if let Some(found) = found {
                        self.drop_owners(&found, std::slice::from_ref(uid)).await?;
                    }
                }
                self.drop_finalizer(&object, ORPHAN).await?;
            }
            GcStep::CheckOwners { missing, owned } => {
                let mut gone = Vec::new();
                for owner in &missing {
                    if !self.exists(&object, owner).await? {
                        gone.push(owner.uid.clone());
                    }
                }
                if !owned && gone.len() == missing.len() {
                    self.delete(uid, &object, PropagationPolicy::Background).await?;
                } else if !gone.is_empty() {
                    self.drop_owners(&object, &gone).await?;
                }
            }
        }
        Ok(Next::Done)
    }
}

impl Collector {
    fn api(&self, object: &Object) -> Option<Api<DynamicObject>> {
        let kind = lock(&self.shared).resources.get(object.resource).cloned()?;
        Some(self.scoped(&kind.resource, kind.namespaced, &object.namespace))
    }

    fn scoped(&self, resource: &ApiResource, namespaced: bool, namespace: &str) -> Api<DynamicObject> {
        if namespaced {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        }
    }

    /// Whether an owner still exists, by the API's own word. An owner of a kind that nobody serves counts as there:
    /// its kind may come back, and what cannot be judged is not deleted.
    async fn exists(&self, dependent: &Object, owner: &OwnerRef) -> Result<bool, StepError> {
        let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
        let gvk = GroupVersionKind::gvk(group, version, &owner.kind);
        let found = {
            let shared = lock(&self.shared);
            let same = |r: &ApiResource| r.group == gvk.group && r.kind == gvk.kind;
            shared.resources.iter().find(|s| same(&s.resource)).cloned()
        };
        let Some(kind) = found else { return Ok(true) };
        let api = self.scoped(&kind.resource, kind.namespaced, &dependent.namespace);
        let live = api.get_metadata_opt(&owner.name).await.map_err(StepError::api("looking for an owner"))?;
        Ok(live.is_some_and(|o| o.metadata.uid.as_deref() == Some(&owner.uid)))
    }

    async fn delete(&self, uid: &Uid, object: &Object, policy: PropagationPolicy) -> Result<(), StepError> {
        let Some(api) = self.api(object) else { return Ok(()) };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        info!(namespace = object.namespace, name = object.name, "deleted with its owner");
        ignore_missing(api.delete(&object.name, &params).await.map(|_| ()), "deleting a dependent")
    }

    async fn drop_finalizer(&self, object: &Object, finalizer: &str) -> Result<(), StepError> {
        let Some(api) = self.api(object) else { return Ok(()) };
        let Some(live) =
            api.get_metadata_opt(&object.name).await.map_err(StepError::api("reading an owner"))?
        else {
            return Ok(());
        };
        let mut left = live.metadata.finalizers.clone().unwrap_or_default();
        left.retain(|f| f != finalizer);
        let patch = json!({"metadata": {
            "finalizers": left, "resourceVersion": live.metadata.resource_version, "uid": live.metadata.uid,
        }});
        let written = api.patch_metadata(&object.name, &params(), &Patch::Merge(patch)).await;
        ignore_missing(written.map(|_| ()), "finishing a deletion")
    }

    async fn drop_owners(&self, object: &Object, gone: &[Uid]) -> Result<(), StepError> {
        let Some(api) = self.api(object) else { return Ok(()) };
        let read = api.get_metadata_opt(&object.name).await.map_err(StepError::api("reading a dependent"))?;
        let Some(live) = read else { return Ok(()) };
        let mut left = live.metadata.owner_references.clone().unwrap_or_default();
        let before = left.len();
        left.retain(|o| !gone.contains(&o.uid));
        if left.len() == before {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "ownerReferences": left, "resourceVersion": live.metadata.resource_version, "uid": live.metadata.uid,
        }});
        let written = api.patch_metadata(&object.name, &params(), &Patch::Merge(patch)).await;
        ignore_missing(written.map(|_| ()), "removing an owner reference")
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn ignore_missing(result: Result<(), kube::Error>, context: &'static str) -> Result<(), StepError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        // Another object of the name has taken its place.
        Err(kube::Error::Api(status)) if status.code == 409 && context == "deleting a dependent" => Ok(()),
        other => other.map_err(StepError::api(context)),
    }
}
