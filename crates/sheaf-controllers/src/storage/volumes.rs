//! Volumes: gathers what there is, lets `sheaf_plan::storage::plan_volume` decide, does that, writes the status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::longhorn::{
    Engine, FINALIZER, KubernetesStatus, NAMESPACE, OF_VOLUME, Replica, Snapshot, Volume, WorkloadStatus,
    condition,
};
use sheaf_plan::storage::{
    BASE, CHECK, CHECKED, CONTENT, Content, FILL, FILLED, IMAGE_SUM, INITIAL, OFFLINE_REBUILDING, Plan,
    REVERT, Seen, Step, engine_name, plan_volume,
};
use sheaf_runtime::patch::{self, Target, gone};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};
use tracing::info;

use super::attach::persistent_of;
use super::{Storage, claim_of, handle, key, made};
use crate::images::IMAGE_NODE;

const MANAGER: &str = "sheaf-volumes";
/// How long a cache may lag behind what was written.
const PATIENCE: Duration = Duration::from_secs(10);
/// News of what steps do.
const DONE: [&str; 3] = ["Faulted", "Delete", "Rebuilding"];
/// Bad news.
const BAD: [&str; 4] = ["Degraded", "Faulted", "ReplicaSchedulingFailure", "OfflineRebuildingFailed"];
/// On a snapshot: the volume that is filled from it.
const FOR_CLONE: &str = "longhorn.io/for-cloning-volume";

struct Volumes {
    storage: Arc<Storage>,
    /// The replica that was made last for a volume, which the cache may not show yet: without it, another one would be made.
    made: Mutex<BTreeMap<String, (String, Instant)>>,
    /// Volumes that are attached for nobody, to be made whole, and where. What a volume's status says of it comes too late to count.
    mended: Mutex<BTreeMap<String, String>>,
}

pub(super) fn spawn(storage: &Arc<Storage>, group: &TaskGroup) {
    let label =
        |labels: &BTreeMap<String, String>| labels.get(OF_VOLUME).map(key).into_iter().collect::<Vec<_>>();
    let all = |s: &Arc<Storage>| {
        let s = s.clone();
        move || s.volumes.list().iter().map(|v| key(v.name_any())).collect::<Vec<_>>()
    };
    let (of_node, of_setting) = (all(storage), all(storage));
    let (s1, s2, s3) = (storage.clone(), storage.clone(), storage.clone());
    Driver::new(Volumes { storage: storage.clone(), made: Mutex::default(), mended: Mutex::default() })
        .for_each(&storage.volumes)
        .on(&storage.engines, move |e| label(e.labels()))
        .on(&storage.replicas, move |r| label(r.labels()))
        .on(&storage.moments, move |m| {
            // A volume that is filled from this one waits for it too.
            let target = m.spec.labels.get(FOR_CLONE).map(key);
            [Some(key(m.spec.volume.clone())), target].into_iter().flatten().collect()
        })
        .on(&storage.attachments, move |va| {
            let pv = persistent_of(va).and_then(|name| s1.world.volumes.get(&ObjectKey::new("", name)));
            pv.as_deref().and_then(handle).map(key).into_iter().collect()
        })
        .on(&storage.world.volumes, |pv| handle(pv).map(key).into_iter().collect())
        .on(&storage.world.images, move |image| {
            let what = image_content(&ObjectKey::of(&**image));
            let waits = |v: &Arc<Volume>| v.annotations().get(CONTENT) == Some(&what) && !filled(v);
            s2.volumes.list().iter().filter(|v| waits(v)).map(|v| key(v.name_any())).collect()
        })
        .on(&storage.world.nodes, move |_| of_node())
        // Free space changes all the time; volumes that have all their replicas, which stay where they are, do not care.
        .on(&storage.nodes, move |node| {
            let mut keys: BTreeSet<ObjectKey> =
                s3.volumes.list().iter().filter(|v| short(v)).map(|v| key(v.name_any())).collect();
            let spec = &node.spec;
            let empties = spec.eviction_requested == Some(true)
                || spec.disks.values().any(|d| d.eviction_requested == Some(true));
            if empties {
                let on = s3.replicas_on.users(&node.name_any());
                let replicas = on.iter().filter_map(|at| s3.replicas.get(at));
                keys.extend(replicas.map(|r| key(r.spec.volume_name.clone())));
            }
            keys.into_iter().collect()
        })
        .on(&storage.settings, move |_| of_setting())
        .after(&storage.world.claims)
        .spawn(group);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a volume of an image holds at first.
pub(super) fn image_content(image: &ObjectKey) -> String {
    format!("image:{image}")
}

/// Whether a place for a replica would be of use to a volume.
fn short(volume: &Volume) -> bool {
    let Some(status) = &volume.status else { return true };
    let waits = condition(&status.conditions, OFFLINE_REBUILDING).is_some_and(|c| !c.reason.is_empty());
    waits || status.robustness == "degraded" || matches!(status.state.as_str(), "creating" | "")
}

fn filled(volume: &Volume) -> bool {
    volume.annotations().contains_key(FILLED)
}

/// Eight hexadecimal digits, several times.
fn fresh() -> Vec<String> {
    use std::hash::{BuildHasher, Hasher, RandomState};
    (0..8)
        .map(|n| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u8(n);
            let number = (hasher.finish() >> 16) as u32;
            format!("{:08x}", number.max(1))
        })
        .collect()
}

impl Controller for Volumes {
    const NAME: &'static str = "replicated-volumes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        Box::pin(self.look(key)).await
    }
}

impl Volumes {
    async fn look(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let storage = &self.storage;
        let Some(volume) = storage.volumes.get(key).filter(|_| key.namespace == NAMESPACE) else {
            lock(&self.mended).remove(&key.name);
            return Ok(Next::Done);
        };
        let name = volume.name_any();
        let engine = storage.engines.get(&super::key(engine_name(&name)));
        let owned = storage.replicas(&name);
        if self.waits_for(&name, &owned) {
            return Ok(Next::After(Duration::from_millis(50)));
        }
        let replicas: Vec<&Replica> = owned.iter().map(|r| &**r).collect();
        let settings = storage.settings();
        let places = storage.places(&settings);
        let (nodes, alive) = storage.alive();
        let silent = storage.silent();
        let user = self.user(&name);
        let work = storage.moments(&name).iter().any(|m| wants_work(m)) || asks(&volume);
        let content = self.content(&volume, &nodes).await?;
        let kubernetes = self.kubernetes(&name);
        let fresh = fresh();
        let own = settings.for_volume(&volume.spec);
        let plan = self.decide(&Seen {
            volume: &volume,
            engine: engine.as_deref(),
            replicas: &replicas,
            places: &places,
            nodes: &nodes,
            alive: &alive,
            silent: &silent,
            mended: &BTreeMap::new(),
            settings: &own,
            user: user.as_deref(),
            work,
            content: &content,
            kubernetes,
            fresh: &fresh,
            now: Timestamp::now(),
        });
        for step in &plan.steps {
            self.take(&volume, engine.as_deref(), &owned, step).await?;
        }
        if filled(&volume) {
            self.end_clone(&volume).await?;
        }
        // What a step has done is told now; what the status says, when it is written.
        for (reason, message) in plan.news.iter().filter(|(reason, _)| DONE.contains(reason)) {
            self.tell(&volume, reason, message);
        }
        if !plan.steps.contains(&Step::Release) {
            let mut after = (*volume).clone();
            after.status = Some(plan.status.clone());
            let api: Api<Volume> = Api::namespaced(storage.client.clone(), NAMESPACE);
            match patch::write(&api, MANAGER, Target::Status, &volume, &after).await {
                // Our own steps changed it; the status follows with the next look.
                Err(StepError::Conflict) if !plan.steps.is_empty() => {
                    return Ok(Next::After(Duration::from_millis(5)));
                }
                other => drop(other?),
            }
        }
        for (reason, message) in plan.news.iter().filter(|(reason, _)| !DONE.contains(reason)) {
            self.tell(&volume, reason, message);
        }
        Ok(plan.again.map_or(Next::Done, |seconds| {
            Next::After(Duration::from_secs(u64::try_from(seconds).unwrap_or(5)))
        }))
    }

    fn tell(&self, volume: &Volume, reason: &'static str, message: &str) {
        let severity = if BAD.contains(&reason) { Severity::Warning } else { Severity::Normal };
        info!(volume = volume.name_any(), reason, "{message}");
        self.storage.events.record(volume, severity, reason, message);
    }

    /// Decides, knowing what was decided of others: two that are looked at together count each other.
    fn decide(&self, seen: &Seen<'_>) -> Plan {
        let name = seen.volume.name_any();
        let mut mended = lock(&self.mended);
        mended.remove(&name);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for node in mended.values() {
            *counts.entry(node.clone()).or_default() += 1;
        }
        let plan = plan_volume(&Seen { mended: &counts, ..seen.clone() });
        if let Some(node) = &plan.mends {
            mended.insert(name, node.clone());
        }
        plan
    }

    /// Whether the cache does not show yet what was made last.
    fn waits_for(&self, volume: &str, replicas: &[Arc<Replica>]) -> bool {
        let mut last = lock(&self.made);
        let Some((name, since)) = last.get(volume) else { return false };
        let shown = replicas.iter().any(|r| r.name_any() == *name);
        // A replica that nobody sees any more was deleted in between.
        if shown || since.elapsed() > PATIENCE {
            last.remove(volume);
            return false;
        }
        true
    }

    /// The node for which the oldest attachment asks.
    fn user(&self, volume: &str) -> Option<String> {
        let storage = &self.storage;
        let pv = storage.persistent(volume)?.name_any();
        let mut all = storage.attachments(&pv);
        all.retain(|va| va.metadata.deletion_timestamp.is_none());
        all.sort_by_key(|va| (va.metadata.creation_timestamp.as_ref().map(|t| t.0), va.name_any()));
        all.first().map(|va| va.spec.node_name.clone())
    }

    /// What the volume holds at first, and who has it.
    async fn content(&self, volume: &Volume, nodes: &BTreeSet<String>) -> Result<Content, StepError> {
        let Some(what) = volume.annotations().get(CONTENT).filter(|_| !filled(volume)) else {
            return Ok(Content::Ready);
        };
        if let Some(name) = what.strip_prefix("image:") {
            return Ok(self.image(volume, what, name));
        }
        if let Some((source, moment)) = what.strip_prefix("snap://").and_then(|rest| rest.split_once('/')) {
            return Ok(self.moment(source, moment, nodes));
        }
        if let Some(source) = what.strip_prefix("vol://") {
            let moment = format!("clone-{}", volume.name_any());
            if volume.metadata.deletion_timestamp.is_none() {
                self.begin_clone(source, &moment, &volume.name_any()).await?;
            }
            return Ok(self.moment(source, &moment, nodes));
        }
        let message = format!("{CONTENT} is {what:?}, which nothing here can fill a volume with");
        Ok(Content::Waits { reason: "NotSupported", message })
    }

    fn image(&self, volume: &Volume, what: &str, name: &str) -> Content {
        let waits = |reason, message| Content::Waits { reason, message };
        let (namespace, image) = name.split_once('/').unwrap_or(("default", name));
        let Some(image) = self.storage.world.images.get(&ObjectKey::new(namespace, image)) else {
            return waits("GetBackingImageFailed", format!("image {name} does not exist"));
        };
        if !imported(&image) {
            let percent = image.status.as_ref().and_then(|s| s.progress).unwrap_or(0);
            return waits("Waiting", format!("image {name} is not imported yet: {percent} %"));
        }
        // Placed before volumes began as images: it is filled.
        if volume.annotations().contains_key(INITIAL) && !volume.annotations().contains_key(BASE) {
            let nodes = image.annotations().get(IMAGE_NODE).cloned().into_iter().collect();
            return Content::From { what: what.to_owned(), nodes, only: false };
        }
        match image.annotations().get(IMAGE_SUM) {
            Some(sum) => Content::Base(sum.clone()),
            None => waits("Waiting", format!("the node of image {name} has not said its checksum yet")),
        }
    }

    fn moment(&self, source: &str, moment: &str, nodes: &BTreeSet<String>) -> Content {
        let waits = |reason, message| Content::Waits { reason, message };
        if self.storage.volumes.get(&key(source)).is_none() {
            return waits("Missing", format!("volume {source}, which it is to be a copy of, does not exist"));
        }
        let found = self.storage.moments.get(&key(moment));
        match found.as_deref().and_then(|m| m.status.as_ref()) {
            Some(status) if status.ready_to_use == Some(true) => {
                let replicas = self.storage.replicas(source);
                let good = |r: &&Arc<Replica>| {
                    r.spec.failed_at.is_empty()
                        && !r.spec.healthy_at.is_empty()
                        && nodes.contains(&r.spec.node_id)
                };
                let holders = replicas.iter().filter(good).map(|r| r.spec.node_id.clone()).collect();
                let what = format!("snap://{source}/{moment}");
                Content::From { what, nodes: holders, only: true }
            }
            Some(status) if !status.error.is_empty() => {
                waits("Failed", format!("snapshot {moment} of volume {source}: {}", status.error))
            }
            _ if found.is_none() => {
                waits("Missing", format!("snapshot {moment} of volume {source} does not exist"))
            }
            _ => waits("Waiting", format!("snapshot {moment} of volume {source} is being made")),
        }
    }

    /// A moment of the source is kept while it is copied.
    async fn begin_clone(&self, source: &str, moment: &str, target: &str) -> Result<(), StepError> {
        if self.storage.moments.get(&key(moment)).is_some()
            || self.storage.volumes.get(&key(source)).is_none()
        {
            return Ok(());
        }
        let mut object = Snapshot::new(NAMESPACE, moment);
        object.metadata.labels = Some([(OF_VOLUME.to_owned(), source.to_owned())].into());
        object.metadata.finalizers = Some(vec![FINALIZER.into()]);
        object.spec.volume = source.into();
        object.spec.create_snapshot = Some(true);
        object.spec.labels = [(FOR_CLONE.to_owned(), target.to_owned())].into();
        let api: Api<Snapshot> = Api::namespaced(self.storage.client.clone(), NAMESPACE);
        made(api.create(&PostParams::default(), &object).await, "keeping a moment to be copied")
    }

    async fn end_clone(&self, volume: &Volume) -> Result<(), StepError> {
        let copied = volume.annotations().get(CONTENT).is_some_and(|what| what.starts_with("vol://"));
        let moment = format!("clone-{}", volume.name_any());
        let there = self.storage.moments.get(&key(moment.clone()));
        if copied && there.is_some_and(|m| m.metadata.deletion_timestamp.is_none()) {
            let api: Api<Snapshot> = Api::namespaced(self.storage.client.clone(), NAMESPACE);
            gone(api.delete(&moment, &DeleteParams::default()).await, "letting a copied moment go")?;
        }
        Ok(())
    }

    fn kubernetes(&self, volume: &str) -> KubernetesStatus {
        let Some(pv) = self.storage.persistent(volume) else { return KubernetesStatus::default() };
        let claim = claim_of(&pv);
        let mut out = KubernetesStatus {
            pv_name: pv.name_any(),
            pv_status: pv.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
            ..KubernetesStatus::default()
        };
        let Some(claim) = claim else { return out };
        (out.namespace, out.pvc_name) = (claim.namespace.clone(), claim.name.clone());
        let users = self.storage.world.instances_of_claim.users(&claim);
        let machines = users.iter().filter_map(|key| self.storage.world.instances.get(key));
        out.workloads_status = machines
            .map(|vmi| WorkloadStatus {
                pod_name: String::new(),
                pod_status: vmi.status.as_ref().map(|s| s.phase.clone()).unwrap_or_default(),
                workload_name: vmi.name_any(),
                workload_type: "VirtualMachineInstance".into(),
            })
            .collect();
        out
    }

    async fn take(
        &self,
        volume: &Volume,
        engine: Option<&Engine>,
        replicas: &[Arc<Replica>],
        step: &Step,
    ) -> Result<(), StepError> {
        let client = &self.storage.client;
        let volumes: Api<Volume> = Api::namespaced(client.clone(), NAMESPACE);
        let engines: Api<Engine> = Api::namespaced(client.clone(), NAMESPACE);
        let all: Api<Replica> = Api::namespaced(client.clone(), NAMESPACE);
        let name = volume.name_any();
        match step {
            Step::Annotate(annotations) => {
                let map: serde_json::Map<String, Value> =
                    annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
                let mut finalizers = volume.finalizers().to_vec();
                if !finalizers.iter().any(|f| f == FINALIZER) {
                    finalizers.push(FINALIZER.into());
                }
                // What is decided once is decided by the newest version only.
                let meta = json!({"annotations": map, "finalizers": finalizers,
                    "resourceVersion": volume.metadata.resource_version});
                let patch = Patch::Merge(json!({"metadata": meta}));
                gone(volumes.patch(&name, &params(), &patch).await, "deciding about a volume")
            }
            Step::Node(node) => {
                let patch = Patch::Merge(json!({"spec": {"nodeID": node}}));
                gone(volumes.patch(&name, &params(), &patch).await, "saying where a volume goes")
            }
            Step::CreateEngine(engine) => {
                made(engines.create(&PostParams::default(), engine).await, "making an engine")
            }
            Step::Engine(spec, fill) => {
                let Some(before) = engine else { return Ok(()) };
                let mut after = before.clone();
                after.spec = (**spec).clone();
                let annotations = after.metadata.annotations.get_or_insert_default();
                match fill {
                    Some(what) => drop(annotations.insert(FILL.into(), what.clone())),
                    None => annotations.retain(|k, _| !k.starts_with(FILL)),
                }
                patch::write(&engines, MANAGER, Target::Main, before, &after).await.map(drop)
            }
            Step::DeleteEngine(engine) => {
                gone(engines.delete(engine, &DeleteParams::default()).await, "deleting an engine")
            }
            Step::CreateReplica(replica) => {
                lock(&self.made).insert(name.clone(), (replica.name_any(), Instant::now()));
                made(all.create(&PostParams::default(), replica).await, "making a replica")
            }
            Step::Replica(name, spec) => {
                let Some(before) = replicas.iter().find(|r| r.name_any() == *name) else { return Ok(()) };
                let mut after = (**before).clone();
                after.spec = (**spec).clone();
                patch::write(&all, MANAGER, Target::Main, &**before, &after).await.map(drop)
            }
            Step::DeleteReplica(replica) => {
                gone(all.delete(replica, &DeleteParams::default()).await, "deleting a replica")
            }
            Step::ReleaseReplica(replica) => {
                let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                gone(
                    all.patch(replica, &params(), &patch).await,
                    "releasing a replica of a node that is gone",
                )
            }
            Step::Release => {
                let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
                let patch = Patch::Merge(json!({"metadata": {"finalizers": left}}));
                gone(volumes.patch(&name, &params(), &patch).await, "letting a volume go")
            }
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

/// Whether a person has asked for something that only an attached volume can do.
fn asks(volume: &Volume) -> bool {
    let annotations = volume.annotations();
    let done = annotations.get(CHECKED).and_then(|text| text.split(' ').next());
    annotations.contains_key(REVERT)
        || annotations.get(CHECK).is_some_and(|asked| Some(asked.as_str()) != done)
}

/// Whether a snapshot is to be made or removed, which only an attached volume can do.
fn wants_work(moment: &Snapshot) -> bool {
    let status = moment.status.clone().unwrap_or_default();
    let asked = moment.spec.create_snapshot == Some(true);
    moment.metadata.deletion_timestamp.is_some()
        || (asked && status.ready_to_use != Some(true) && status.error.is_empty())
}

/// Whether an image is there.
pub(super) fn imported(image: &VirtualMachineImage) -> bool {
    let status = image.status.as_ref();
    status.is_some_and(|s| s.conditions.iter().any(|c| c.r#type == "Imported" && c.status == "True"))
}

/// Bytes that a claim has by its status.
pub(super) fn capacity(claim: &PersistentVolumeClaim) -> Option<u64> {
    let text = &claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0;
    sheaf_meta::quantity::Quantity::parse(text).ok()?.bytes()
}
