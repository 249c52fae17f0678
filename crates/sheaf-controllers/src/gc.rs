//! Garbage collection: objects go when their owners have gone.
//!
//! Hears of the metadata of every kind, keeps the graph of owners (`sheaf_plan::gc` has the rules), and acts on one
//! object at a time, after asking the API whether an owner is really gone, and before a deletion ends, whether there are
//! dependents that the watches have not told of yet. Owns the graph, the finalizers `foregroundDeletion` and `orphan`,
//! and nothing else of anybody's objects.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::json;
use sheaf_plan::gc::{
    Answers, FOREGROUND, Found, GcStep, Graph, GroupKind, ORPHAN, Object, OwnerRef, Policy, Uid,
};
use sheaf_runtime::{
    Controller, Driver, EventRecorder, Next, ObjectKey, Severity, StepError, TaskGroup, Waker,
};
use tracing::info;

use crate::kinds::{Everything, Heard, Served};

const MANAGER: &str = "sheaf-gc";
/// Objects of one page when dependents are looked for.
const PAGE: u32 = 1000;
/// When the API knew of dependents that the watches have not told of, they will have told by then.
const CATCH_UP: Duration = Duration::from_millis(100);
/// References whose owner's kind is not served are looked at again after this long.
const UNKNOWN_KIND: Duration = Duration::from_secs(30);

struct Collector {
    client: Client,
    everything: Arc<Everything>,
    graph: Arc<Mutex<Graph>>,
    events: EventRecorder,
}

fn lock(graph: &Mutex<Graph>) -> MutexGuard<'_, Graph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What listens, and what starts the collector once everything is followed.
pub(crate) struct Prepared {
    graph: Arc<Mutex<Graph>>,
    waker: Arc<Mutex<Option<Waker>>>,
}

/// Lets the graph hear of everything.
pub(crate) fn listen(everything: &mut Everything) -> Prepared {
    let prepared = Prepared { graph: Arc::default(), waker: Arc::default() };
    let (graph, waker) = (prepared.graph.clone(), prepared.waker.clone());
    everything.listen(move |kind, heard| {
        let touched = {
            let mut graph = lock(&graph);
            let mut touched = hear(&mut graph, kind, heard);
            // Most of what happens concerns nobody's owner: only what has something to do is looked at again.
            touched.retain(|uid| graph.plan(uid, &Answers::new()) != GcStep::Nothing);
            touched
        };
        let waker = waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &*waker {
            touched.into_iter().for_each(|uid| waker.wake(ObjectKey::new("", uid)));
        }
    });
    prepared
}

/// Starts the collector.
pub(crate) fn spawn(
    client: &Client,
    everything: &Arc<Everything>,
    prepared: Prepared,
    events: &EventRecorder,
    group: &TaskGroup,
) {
    let driver = Driver::new(Collector {
        client: client.clone(),
        everything: everything.clone(),
        graph: prepared.graph,
        events: events.clone(),
    });
    *prepared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver.waker());
    driver.spawn(group);
}

fn hear(graph: &mut Graph, kind: &Served, heard: &Heard<'_>) -> Vec<Uid> {
    let number =
        graph.kind(GroupKind { group: kind.resource.group.clone(), kind: kind.resource.kind.clone() });
    match heard {
        Heard::Seen(meta) => {
            let Some((uid, object)) = known(meta, number) else { return Vec::new() };
            graph.upsert(&uid, object)
        }
        Heard::Gone(meta) => meta.uid.as_ref().map(|uid| graph.remove(uid)).unwrap_or_default(),
        Heard::All(fresh) => {
            let fresh: BTreeSet<&String> = fresh.iter().collect();
            let gone: Vec<Uid> = graph.of_kind(number).into_iter().filter(|u| !fresh.contains(u)).collect();
            let mut touched: Vec<Uid> = gone.iter().flat_map(|uid| graph.remove(uid)).collect();
            touched.extend(graph.strays());
            touched
        }
        // What depends on such objects cannot be judged any more, and stays.
        Heard::Ended => {
            graph.of_kind(number).iter().for_each(|uid| drop(graph.remove(uid)));
            Vec::new()
        }
    }
}

fn owner(reference: &OwnerReference) -> OwnerRef {
    OwnerRef {
        api_version: reference.api_version.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        uid: reference.uid.clone(),
        blocks: reference.block_owner_deletion == Some(true),
    }
}

fn known(meta: &ObjectMeta, kind: usize) -> Option<(Uid, Object)> {
    let object = Object {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        owners: meta.owner_references.iter().flatten().map(owner).collect(),
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
        let (mut answers, mut unknown) = (Answers::new(), false);
        loop {
            let (step, object) = {
                let graph = lock(&self.graph);
                (graph.plan(uid, &answers), graph.get(uid).cloned())
            };
            let Some(object) = object else { return Ok(Next::Done) };
            match step {
                GcStep::Nothing => {}
                GcStep::Ask(owners) => {
                    for owner in owners {
                        let (found, served) = self.ask(uid, &object, &owner).await?;
                        unknown |= !served;
                        answers.insert(owner.uid.clone(), found);
                    }
                    continue;
                }
                GcStep::DropOwners(gone) => self.drop_owners(&object, uid, &gone).await?,
                GcStep::Delete(policy) => self.delete(uid, &object, policy).await?,
                GcStep::OrphanDependents(_) => {
                    for (kind, dependent) in self.dependents(&object, uid).await? {
                        self.drop_owners_of(&kind, &dependent, std::slice::from_ref(uid)).await?;
                    }
                    self.drop_finalizer(&object, uid, ORPHAN).await?;
                }
                GcStep::FinishForeground(circle) => {
                    let blocks = |meta: &ObjectMeta| {
                        let mut owners = meta.owner_references.iter().flatten();
                        let in_circle = meta.uid.as_ref().is_some_and(|u| circle.contains(u));
                        !in_circle && owners.any(|o| o.uid == *uid && o.block_owner_deletion == Some(true))
                    };
                    let found = self.dependents(&object, uid).await?;
                    if found.iter().any(|(_, meta)| blocks(meta)) {
                        return Ok(Next::After(CATCH_UP));
                    }
                    self.drop_finalizer(&object, uid, FOREGROUND).await?;
                }
            }
            return Ok(if unknown { Next::After(UNKNOWN_KIND) } else { Next::Done });
        }
    }
}

impl Collector {
    fn served(&self, object: &Object) -> Option<Arc<Served>> {
        let kind = lock(&self.graph).kind_of(object.kind).cloned()?;
        self.everything.find(&kind.group, &kind.kind)
    }

    /// What the API says of an owner, and whether its kind is served. What cannot be judged is not deleted.
    async fn ask(&self, uid: &Uid, dependent: &Object, owner: &OwnerRef) -> Result<(Found, bool), StepError> {
        let GroupKind { group, kind } = GroupKind::of(&owner.api_version, &owner.kind);
        let Some(kind) = self.everything.find(&group, &kind) else { return Ok((Found::There, false)) };
        if kind.namespaced && dependent.namespace.is_empty() {
            self.complain(uid, dependent, owner);
            return Ok((Found::There, true));
        }
        let api = kind.api(&self.client, &dependent.namespace);
        let live = api.get_metadata_opt(&owner.name).await.map_err(StepError::api("looking for an owner"))?;
        let Some(meta) = live.map(|l| l.metadata).filter(|m| m.uid.as_ref() == Some(&owner.uid)) else {
            if kind.namespaced && lock(&self.graph).misplaced(dependent, owner) {
                self.complain(uid, dependent, owner);
            }
            return Ok((Found::Gone, true));
        };
        let waits =
            meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok((if waits { Found::Waiting } else { Found::There }, true))
    }

    /// Owners live in the namespace of their dependents or in none.
    fn complain(&self, uid: &Uid, dependent: &Object, owner: &OwnerRef) {
        let Some(kind) = self.served(dependent) else { return };
        let about = ObjectReference {
            api_version: Some(kind.resource.api_version.clone()),
            kind: Some(kind.resource.kind.clone()),
            name: Some(dependent.name.clone()),
            namespace: Some(dependent.namespace.clone()).filter(|n| !n.is_empty()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        let place = &dependent.namespace;
        let owner = format!(
            "[{}/{}, namespace: {place}, name: {}, uid: {}]",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        let text = format!("ownerRef {owner} does not exist in namespace {place:?}");
        self.events.record_about(about, Severity::Warning, "OwnerRefInvalidNamespace", text);
    }

    /// Everything that names an object as owner, by the API's own word: the watches of different kinds are not equally
    /// far.
    async fn dependents(
        &self,
        owner: &Object,
        uid: &Uid,
    ) -> Result<Vec<(Arc<Served>, ObjectMeta)>, StepError> {
        let mut found = Vec::new();
        for kind in self.everything.kinds() {
            // What belongs to a namespace owns nothing outside of it.
            if !kind.namespaced && !owner.namespace.is_empty() {
                continue;
            }
            let api = match owner.namespace.as_str() {
                "" => kube::Api::all_with(self.client.clone(), &kind.resource),
                namespace => kind.api(&self.client, namespace),
            };
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let list = match api.list_metadata(&page).await {
                    Ok(list) => list,
                    // The kind has gone meanwhile.
                    Err(kube::Error::Api(status)) if status.code == 404 => break,
                    Err(error) => return Err(StepError::api("looking for dependents")(error)),
                };
                let names = |m: &ObjectMeta| m.owner_references.iter().flatten().any(|o| o.uid == *uid);
                let metas = list.items.into_iter().map(|item| item.metadata).filter(names);
                found.extend(metas.map(|meta| (kind.clone(), meta)));
                match list.metadata.continue_ {
                    Some(token) if !token.is_empty() => page = page.continue_token(&token),
                    _ => break,
                }
            }
        }
        Ok(found)
    }

    async fn delete(&self, uid: &Uid, object: &Object, policy: Policy) -> Result<(), StepError> {
        let Some(kind) = self.served(object) else { return Ok(()) };
        let policy = match policy {
            Policy::Background => PropagationPolicy::Background,
            Policy::Foreground => PropagationPolicy::Foreground,
            Policy::Orphan => PropagationPolicy::Orphan,
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        info!(
            kind = kind.resource.kind,
            namespace = object.namespace,
            name = object.name,
            "deleted with its owner"
        );
        let deleted = kind.api(&self.client, &object.namespace).delete(&object.name, &params).await;
        match deleted {
            // Another object of the name has taken its place.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => ignore_missing(other.map(|_| ()), "deleting a dependent"),
        }
    }

    async fn drop_finalizer(&self, object: &Object, uid: &Uid, finalizer: &str) -> Result<(), StepError> {
        let Some(kind) = self.served(object) else { return Ok(()) };
        let api = kind.api(&self.client, &object.namespace);
        let read = api.get_metadata_opt(&object.name).await.map_err(StepError::api("reading an owner"))?;
        let Some(live) = read.filter(|live| live.metadata.uid.as_ref() == Some(uid)) else { return Ok(()) };
        let mut left = live.metadata.finalizers.clone().unwrap_or_default();
        left.retain(|f| f != finalizer);
        let patch = json!({"metadata": {
            "finalizers": left, "resourceVersion": live.metadata.resource_version, "uid": live.metadata.uid,
        }});
        let written = api.patch_metadata(&object.name, &params(), &Patch::Merge(patch)).await;
        ignore_missing(written.map(|_| ()), "finishing a deletion")
    }

    async fn drop_owners(&self, object: &Object, uid: &Uid, gone: &[Uid]) -> Result<(), StepError> {
        let Some(kind) = self.served(object) else { return Ok(()) };
        let api = kind.api(&self.client, &object.namespace);
        let read = api.get_metadata_opt(&object.name).await.map_err(StepError::api("reading a dependent"))?;
        let Some(live) = read.filter(|live| live.metadata.uid.as_ref() == Some(uid)) else { return Ok(()) };
        self.drop_owners_of(&kind, &live.metadata, gone).await
    }

    async fn drop_owners_of(&self, kind: &Served, meta: &ObjectMeta, gone: &[Uid]) -> Result<(), StepError> {
        let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref());
        let mut left = meta.owner_references.clone().unwrap_or_default();
        let before = left.len();
        left.retain(|o| !gone.contains(&o.uid));
        if left.len() == before {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "ownerReferences": left, "resourceVersion": meta.resource_version, "uid": meta.uid,
        }});
        let api = kind.api(&self.client, namespace.unwrap_or_default());
        let written = api.patch_metadata(name, &params(), &Patch::Merge(patch)).await;
        ignore_missing(written.map(|_| ()), "removing an owner reference")
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn ignore_missing(result: Result<(), kube::Error>, context: &'static str) -> Result<(), StepError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map_err(StepError::api(context)),
    }
}
