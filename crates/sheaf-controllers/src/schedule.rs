//! The scheduler: gives each instance a node, or says why it has none.
//!
//! The choice is `sheaf_plan::place`. Owns an instance's `status.nodeName`, its label of the same meaning, the phase up
//! to Scheduled and the condition PodScheduled; and, on claims that are made where they are first used, the annotation
//! that names the node. What is promised on a node is computed from the instances bound to it, never kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::kubevirt::{PhaseTransition, VirtualMachineInstance, VirtualMachineInstanceStatus};
use sheaf_plan::claim::claims_of;
use sheaf_plan::place::{ClaimState, Demand, Neighbour, NodeState, Placement, place};
use sheaf_plan::{conditions, machine};
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, EventRecorder, Next, ObjectKey, Severity, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-scheduler";
/// On a claim: the node on which it is to be made.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On an instance: its node.
const NODE_LABEL: &str = "kubevirt.io/nodeName";

struct Scheduler {
    client: Client,
    world: Arc<World>,
    events: EventRecorder,
    /// Bindings that were written and that the cache may not show yet: without them, two instances that come together
    /// would be promised the same memory. An entry goes when the cache shows the instance bound, or gone.
    written: Mutex<BTreeMap<ObjectKey, Binding>>,
}

#[derive(Clone)]
struct Binding {
    uid: Option<String>,
    node: String,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, events: &EventRecorder, group: &TaskGroup) {
    let scheduler = Scheduler {
        client: client.clone(),
        world: world.clone(),
        events: events.clone(),
        written: Mutex::default(),
    };
    let (w1, w2, w3, w4) = (world.clone(), world.clone(), world.clone(), world.clone());
    Driver::new(scheduler)
        // One at a time: each choice rests on those before it.
        .workers(1)
        .on(&world.instances, move |vmi| {
            // An instance that ends makes room for those that wait.
            let mut keys = if unplaced(vmi) { Vec::new() } else { w1.unplaced.users(&()) };
            // One that runs may have got a claim that is to be made on its node.
            keys.push(ObjectKey::of(&**vmi));
            keys
        })
        .on(&world.nodes, move |_| w2.unplaced.users(&()))
        .on(&world.claims, move |c| {
            let claim = ObjectKey::of(&**c);
            let mut keys = w3.unplaced.users(&());
            keys.retain(|vmi| vmi.namespace == claim.namespace);
            keys.extend(w3.instances_of_claim.users(&claim));
            keys
        })
        .on(&world.volumes, move |_| w4.unplaced.users(&()))
        .spawn(group);
}

/// Whether it has to be given a node yet.
pub(crate) fn unplaced(vmi: &VirtualMachineInstance) -> bool {
    let status = vmi.status.as_ref();
    vmi.metadata.deletion_timestamp.is_none()
        && status
            .is_none_or(|s| s.node_name.is_empty() && !matches!(s.phase.as_str(), "Succeeded" | "Failed"))
}

/// What claims allow, or the first that does not exist.
enum Claims {
    Known(BTreeMap<String, ClaimState>),
    Missing(String),
}

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(vmi) = self.world.instances.get(key) else { return Ok(Next::Done) };
        if !unplaced(&vmi) {
            let status = vmi.status.clone().unwrap_or_default();
            let over = matches!(status.phase.as_str(), "Succeeded" | "Failed");
            if !status.node_name.is_empty() && !over && vmi.metadata.deletion_timestamp.is_none() {
                self.select_node(key, &vmi, &status.node_name).await?;
            }
            return Ok(Next::Done);
        }
        if self.already_written(key, &vmi) {
            return Ok(Next::Done);
        }
        let nodes = self.world.nodes.list();
        let placement = match self.claims(key, &vmi, &nodes) {
            Claims::Missing(claim) => Placement::Unschedulable {
                message: format!(
                    "persistentvolumeclaim \"{claim}\" not found in namespace {}",
                    key.namespace
                ),
            },
            Claims::Known(claims) => {
                let placed = self.placed();
                let promised = promised(&placed);
                let neighbours: Vec<Neighbour<'_>> =
                    placed.iter().map(|(v, node)| neighbour(v, node)).collect();
                let demand = Demand {
                    namespace: &key.namespace,
                    labels: vmi.metadata.labels.as_ref(),
                    neighbours: &neighbours,
                    spec: &vmi.spec,
                    claims: &claims,
                };
                let states: Vec<NodeState<'_>> = nodes.iter().map(|node| state(node, &promised)).collect();
                place(&demand, &states)
            }
        };
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &key.namespace);
        match placement {
            Placement::Node(node) => {
                self.select_node(key, &vmi, &node).await?;
                let after = bind(&vmi, &node);
                patch::write(&api, MANAGER, Target::Main, &vmi, &after).await?;
                info!(%node, "instance bound");
                let binding = Binding { uid: vmi.metadata.uid.clone(), node: node.clone() };
                self.lock().insert(key.clone(), binding);
                let text = format!("Successfully assigned {key} to {node}");
                self.events.record(&*vmi, Severity::Normal, "Scheduled", text);
            }
            Placement::Unschedulable { message } => {
                let after = refuse(&vmi, &message);
                if patch::write(&api, MANAGER, Target::Main, &vmi, &after).await? {
                    info!("instance not placed: {message}");
                    self.events.record(&*vmi, Severity::Warning, "FailedScheduling", message);
                }
            }
        }
        Ok(Next::Done)
    }
}

impl Scheduler {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectKey, Binding>> {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn already_written(&self, key: &ObjectKey, vmi: &VirtualMachineInstance) -> bool {
        self.lock().get(key).is_some_and(|b| b.uid == vmi.metadata.uid)
    }

    /// Instances with their nodes, those that were bound a moment ago among them. What the cache shows needs no note any more.
    fn placed(&self) -> Vec<(Arc<VirtualMachineInstance>, String)> {
        let node_of = |vmi: &VirtualMachineInstance| {
            vmi.status.as_ref().map(|s| s.node_name.clone()).filter(|node| !node.is_empty())
        };
        let mut written = self.lock();
        written.retain(|key, binding| {
            let vmi = self.world.instances.get(key);
            vmi.is_some_and(|v| v.metadata.uid == binding.uid && node_of(&v).is_none())
        });
        let all = self.world.instances.list().into_iter().filter_map(|vmi| {
            if vmi.status.as_ref().is_some_and(|s| matches!(s.phase.as_str(), "Succeeded" | "Failed")) {
                return None;
            }
            let noted = || written.get(&ObjectKey::of(&*vmi)).map(|binding| binding.node.clone());
            let node = node_of(&vmi).or_else(noted)?;
            Some((vmi, node))
        });
        all.collect()
    }

    fn claims(&self, key: &ObjectKey, vmi: &VirtualMachineInstance, nodes: &[Arc<Node>]) -> Claims {
        let mut known = BTreeMap::new();
        for name in claims_of(&vmi.spec) {
            let Some(claim) = self.world.claims.get(&ObjectKey::new(&key.namespace, &name)) else {
                return Claims::Missing(name);
            };
            let volume_name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
            let volume = self.world.volumes.get(&ObjectKey::new("", volume_name));
            known.insert(name, reach(&claim, volume.as_deref(), nodes));
        }
        Claims::Known(known)
    }

    /// Tells the node to the claims that are made where they are first used.
    async fn select_node(
        &self,
        key: &ObjectKey,
        vmi: &VirtualMachineInstance,
        node: &str,
    ) -> Result<(), StepError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        for name in claims_of(&vmi.spec) {
            let Some(claim) = self.world.claims.get(&ObjectKey::new(&key.namespace, &name)) else { continue };
            let has_volume = claim.spec.as_ref().is_some_and(|s| s.volume_name.is_some());
            if has_volume || annotation(&claim, SELECTED_NODE) == Some(node) {
                continue;
            }
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            api.patch(&name, &params, &Patch::Merge(patch))
                .await
                .map_err(StepError::api("naming the node to a claim"))?;
        }
        Ok(())
    }
}

fn annotation<'a>(claim: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str)
}

/// Memory and vCPUs promised on each node.
fn promised(placed: &[(Arc<VirtualMachineInstance>, String)]) -> BTreeMap<&str, (u64, u64)> {
    let mut promised: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (vmi, node) in placed {
        let sum = promised.entry(node).or_default();
        sum.0 = sum.0.saturating_add(machine::memory_demand(&vmi.spec));
        sum.1 = sum.1.saturating_add(machine::vcpus(&vmi.spec));
    }
    promised
}

fn neighbour<'a>(vmi: &'a VirtualMachineInstance, node: &'a str) -> Neighbour<'a> {
    let metadata = &vmi.metadata;
    Neighbour {
        namespace: metadata.namespace.as_deref().unwrap_or_default(),
        labels: metadata.labels.as_ref(),
        spec: &vmi.spec,
        node,
    }
}

fn state<'a>(node: &'a Node, promised: &BTreeMap<&str, (u64, u64)>) -> NodeState<'a> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let (memory_used, vcpus_used) = promised.get(name).copied().unwrap_or_default();
    NodeState { node, memory_used, vcpus_used }
}

/// From where a claim's data can be reached.
fn reach(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    nodes: &[Arc<Node>],
) -> ClaimState {
    if let Some(volume) = volume {
        return volume_nodes(volume).map_or(ClaimState::Anywhere, ClaimState::Only);
    }
    // A node was chosen before and may be at work already; only if it is gone is the choice open again.
    match annotation(claim, SELECTED_NODE) {
        Some(chosen) if nodes.iter().any(|n| n.metadata.name.as_deref() == Some(chosen)) => {
            ClaimState::Only(BTreeSet::from([chosen.to_owned()]))
        }
        _ => ClaimState::Anywhere,
    }
}

/// Host names in a volume's node affinity; `None` where it has none.
fn volume_nodes(volume: &PersistentVolume) -> Option<BTreeSet<String>> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let names = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_expressions.iter().flatten())
        .filter(|r| r.key == "kubernetes.io/hostname" && r.operator == "In")
        .flat_map(|r| r.values.iter().flatten().cloned())
        .collect();
    Some(names)
}

fn bind(vmi: &VirtualMachineInstance, node: &str) -> VirtualMachineInstance {
    let now = conditions::whole_seconds(Timestamp::now());
    let mut after = vmi.clone();
    after.metadata.labels.get_or_insert_default().insert(NODE_LABEL.into(), node.into());
    let status = after.status.get_or_insert_default();
    status.node_name = node.into();
    set_phase(status, "Scheduled", now);
    conditions::set(&mut status.conditions, now, "PodScheduled", "True", "", "");
    after
}

fn refuse(vmi: &VirtualMachineInstance, message: &str) -> VirtualMachineInstance {
    let now = conditions::whole_seconds(Timestamp::now());
    let mut after = vmi.clone();
    let status = after.status.get_or_insert_default();
    set_phase(status, "Scheduling", now);
    conditions::set(&mut status.conditions, now, "PodScheduled", "False", "Unschedulable", message);
    conditions::set(
        &mut status.conditions,
        now,
        "Ready",
        "False",
        "GuestNotRunning",
        "Guest VM is not reported as running",
    );
    after
}

fn set_phase(status: &mut VirtualMachineInstanceStatus, phase: &str, now: Timestamp) {
    if status.phase != phase {
        status.phase = phase.into();
        status
            .phase_transition_timestamps
            .push(PhaseTransition { phase: phase.into(), phase_transition_timestamp: Some(Time(now)) });
    }
}
