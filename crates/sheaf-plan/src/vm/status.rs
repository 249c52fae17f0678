//! The status of a VM, computed from the world: what people and clients read. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sheaf_api::kubevirt::{
    StartFailure, StateChangeRequest, VirtualMachineInstance, VirtualMachineStatus, VolumeSnapshotStatus,
};

use super::{GENERATION_ANNOTATION, Instance, RunStrategy, VmWorld, instance, start_backoff};
use crate::conditions;

/// Failed starts in a row. Counts only instances that failed before they ran; forgotten once one has run.
pub(super) fn start_failure(
    world: &VmWorld<'_>,
    old: &VirtualMachineStatus,
    strategy: RunStrategy,
    state: Instance,
) -> Option<StartFailure> {
    if !matches!(strategy, RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once) {
        return None;
    }
    let known = old.start_failure.clone();
    let Some(vmi) = world.vmi else { return known };
    let ran = reached_running(vmi);
    match state {
        _ if ran => None,
        Instance::Failed => {
            let uid = vmi.metadata.uid.clone().unwrap_or_default();
            if known.as_ref().is_some_and(|f| f.last_failed_vmi_uid == uid) {
                return known;
            }
            let count = known.and_then(|f| f.consecutive_fail_count).unwrap_or(0).saturating_add(1);
            let retry = world.now.checked_add(start_backoff(count, world.jitter)).unwrap_or(world.now);
            Some(StartFailure {
                consecutive_fail_count: Some(count),
                last_failed_vmi_uid: uid,
                retry_after_timestamp: Some(Time(conditions::whole_seconds(retry))),
            })
        }
        _ => known,
    }
}

fn reached_running(vmi: &VirtualMachineInstance) -> bool {
    vmi.status.as_ref().is_some_and(|s| {
        s.phase == "Running" || s.phase_transition_timestamps.iter().any(|t| t.phase == "Running")
    })
}

pub(super) fn build(
    world: &VmWorld<'_>,
    old: &VirtualMachineStatus,
    starting: bool,
    stopping: bool,
    requests: Vec<StateChangeRequest>,
    start_failure: Option<StartFailure>,
    run_strategy: String,
) -> VirtualMachineStatus {
    let mut status = old.clone();
    let vmi_status = world.vmi.and_then(|v| v.status.as_ref());
    status.created = Some(world.vmi.is_some());
    status.ready = Some(vmi_status.is_some_and(|s| conditions::is_true(&s.conditions, "Ready")));
    status.desired_generation = world.vm.metadata.generation;
    status.observed_generation = world
        .vmi
        .and_then(|v| v.metadata.annotations.as_ref())
        .and_then(|a| a.get(GENERATION_ANNOTATION))
        .and_then(|g| g.parse().ok())
        .or(if world.vmi.is_none() { world.vm.metadata.generation } else { old.observed_generation });
    status.state_change_requests = requests;
    status.start_failure = start_failure;
    status.run_strategy = run_strategy;
    status.volume_snapshot_statuses = snapshot_statuses(world);
    set_conditions(&mut status, world, starting);
    status.printable_status = printable_status(world, &status, starting, stopping).into();
    status
}

fn set_conditions(status: &mut VirtualMachineStatus, world: &VmWorld<'_>, starting: bool) {
    let now = conditions::whole_seconds(world.now);
    let mirrored = world.vmi.and_then(|v| v.status.as_ref()).map_or(&[][..], |s| &s.conditions);
    // Every condition of the instance is the VM's, too; those that the instance has no more vanish here as well.
    status.conditions.retain(|c| {
        matches!(c.r#type.as_str(), "Ready" | "RestartRequired" | "Waiting")
            || conditions::find(mirrored, &c.r#type).is_some()
    });
    for c in mirrored {
        conditions::set(&mut status.conditions, now, &c.r#type, &c.status, &c.reason, &c.message);
        if let (Some(mine), Some(since)) =
            (status.conditions.iter_mut().find(|m| m.r#type == c.r#type), &c.last_transition_time)
        {
            mine.last_transition_time = Some(since.clone());
        }
    }
    if world.vmi.is_none() {
        conditions::set(&mut status.conditions, now, "Ready", "False", "VMINotExists", "VMI does not exist");
        conditions::remove(&mut status.conditions, "RestartRequired");
    }
    match world.restart {
        Some(Some(why)) => {
            conditions::set(&mut status.conditions, now, "RestartRequired", "True", "", why);
        }
        Some(None) => conditions::remove(&mut status.conditions, "RestartRequired"),
        None => {}
    }
    if world.vmi.is_some() && conditions::find(mirrored, "Ready").is_none() {
        let message = "VMI is missing the Ready condition";
        conditions::set(&mut status.conditions, now, "Ready", "False", "VMIConditionMissing", message);
    }
    match world.waits.filter(|_| starting) {
        Some(why) => conditions::set(&mut status.conditions, now, "Waiting", "True", "StartOrder", why),
        None => conditions::remove(&mut status.conditions, "Waiting"),
    }
    let failure = failure(world, starting);
    match failure {
        Some((reason, message)) => {
            conditions::set(&mut status.conditions, now, "Failure", "True", reason, &message);
        }
        None => conditions::remove(&mut status.conditions, "Failure"),
    }
}

/// What keeps a VM from starting, in words that name it.
fn failure(world: &VmWorld<'_>, starting: bool) -> Option<(&'static str, String)> {
    if let Some((reason, message)) = world.problem {
        return Some((reason, message.to_owned()));
    }
    if !starting {
        return None;
    }
    let namespace = world.vm.metadata.namespace.as_deref().unwrap_or_default();
    if world.foreign_vmi {
        let name = world.vm.metadata.name.as_deref().unwrap_or_default();
        return Some((
            "FailedCreate",
            format!(
                "a VirtualMachineInstance {namespace}/{name} exists that does not belong to this VirtualMachine; delete it, and the VM starts"
            ),
        ));
    }
    if let Some(claim) = world.missing_claims.first() {
        return Some((
            "FailedPvcNotFound",
            format!("PVC {namespace}/{claim} does not exist, waiting for it to appear"),
        ));
    }
    world.refused.map(|why| ("FailedCreate", why.to_owned()))
}

fn snapshot_statuses(world: &VmWorld<'_>) -> Vec<VolumeSnapshotStatus> {
    world
        .vm
        .spec
        .template
        .spec
        .volumes
        .iter()
        .map(|v| VolumeSnapshotStatus {
            name: v.name.clone(),
            enabled: false,
            reason: if v.persistent_volume_claim.is_some() || v.data_volume.is_some() {
                "No VolumeSnapshotClass for the volume's StorageClass".into()
            } else {
                format!("Snapshot is not supported for this volumeSource type [{}]", v.name)
            },
        })
        .collect()
}

/// One word for people; the first rule that matches wins.
pub fn printable_status(
    world: &VmWorld<'_>,
    status: &VirtualMachineStatus,
    starting: bool,
    stopping: bool,
) -> &'static str {
    let state = instance(world.vmi);
    let vmi = world.vmi.and_then(|v| v.status.as_ref());
    let phase = vmi.map_or("", |s| s.phase.as_str());
    let is_final = matches!(phase, "Succeeded" | "Failed");
    let exists = state != Instance::None;
    let reason = |kind: &str| {
        vmi.and_then(|s| conditions::find(&s.conditions, kind))
            .filter(|c| c.status == "False")
            .map_or("", |c| c.reason.as_str())
    };
    let strategy = RunStrategy::of(world.vm);
    if world.vm.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if exists && !is_final && (state == Instance::Leaving || stopping) {
        "Stopping"
    } else if vmi.is_some_and(|s| conditions::is_true(&s.conditions, "Paused")) {
        "Paused"
    } else if phase == "Running" {
        "Running"
    } else if reason("Synchronized") == "FailedPvcNotFound" || (starting && !world.missing_claims.is_empty())
    {
        "ErrorPvcNotFound"
    } else if reason("PodScheduled") == "Unschedulable" || (starting && world.refused.is_some()) {
        "ErrorUnschedulable"
    } else if (starting || (exists && !is_final)) && !world.unbound_claims.is_empty() {
        "WaitingForVolumeBinding"
    } else if !exists && waiting_after_failure(status, world.now) {
        "CrashLoopBackOff"
    } else if starting || (exists && !is_final) {
        "Starting"
    } else if !exists
        && status.start_failure.as_ref().and_then(|f| f.consecutive_fail_count).unwrap_or(0) > 0
        && matches!(strategy, RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once)
    {
        "CrashLoopBackOff"
    } else {
        "Stopped"
    }
}

fn waiting_after_failure(status: &VirtualMachineStatus, now: Timestamp) -> bool {
    status.start_failure.as_ref().and_then(|f| f.retry_after_timestamp.as_ref()).is_some_and(|t| t.0 > now)
}
