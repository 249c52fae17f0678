//! What to do next with one instance of this node. Pure.
//!
//! The machine that runs is what counts: nothing is started beside one that has not ended, whoever it belongs to.

use k8s_openapi::jiff::Timestamp;
use sheaf_api::kubevirt as kv;

use super::monitor::{Pause, Run, Seen};
use super::requests::Ask;

/// The annotation by which the API asks for a pause.
pub const PAUSE: &str = "sheaf.io/pause";
/// The annotation by which the API asks for a restart of the guest: a time stamp.
pub const SOFT_REBOOT: &str = "sheaf.io/softreboot";
/// The last such time stamp that was acted on.
pub const SOFT_REBOOT_DONE: &str = "sheaf.io/softreboot-done";
/// The annotation of a machine's places on its buses, kept from run to run: [`sheaf_qemu::pci::Ports`] as JSON.
pub const PORTS: &str = "sheaf.io/pci-ports";
/// What holds the object until its machine has ended.
pub const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Seconds that a guest gets to power off if its instance does not say.
pub const DEFAULT_GRACE: u64 = 30;

/// What there is of the machine on this node.
#[derive(Debug, Clone, PartialEq)]
pub enum Local {
    /// Nothing.
    Nothing,
    /// The machine of this instance.
    Own(Seen),
    /// The machine of an earlier instance of this name.
    Other(Seen),
}

/// All that the decision depends on.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// The instance, if there is one and it is bound to this node.
    pub vmi: Option<&'a kv::VirtualMachineInstance>,
    /// The machine.
    pub local: Local,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until something changes.
    Leave,
    /// Gather the parts and start QEMU.
    Start,
    /// Ask the running machine.
    Ask(Ask),
    /// Ask the guest to restart, and remember that this was asked for.
    SoftReboot(String),
    /// Ask the guest to power off, and end it by force after so many seconds.
    PowerDown(u64),
    /// Give up the parts of a machine that has ended.
    CleanUp,
    /// Give up what may have been attached, and let the object go.
    Release,
}

/// Whether a phase is the last.
pub fn is_final(phase: &str) -> bool {
    phase == "Succeeded" || phase == "Failed"
}

/// Seconds that a guest gets to power off.
pub fn grace(vmi: &kv::VirtualMachineInstance) -> u64 {
    vmi.spec.termination_grace_period_seconds.map_or(DEFAULT_GRACE, |s| s.max(0).unsigned_abs())
}

/// Whether the instance shall be paused.
pub fn wants_pause(vmi: &kv::VirtualMachineInstance) -> bool {
    annotation(vmi, PAUSE) == Some("true")
}

pub(super) fn annotation<'a>(vmi: &'a kv::VirtualMachineInstance, key: &str) -> Option<&'a str> {
    vmi.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Decides. `now` is not looked at yet: deadlines begin when the machine is told, and live in its task.
pub fn plan_machine(_now: Timestamp, s: &Snapshot<'_>) -> Step {
    match (&s.local, s.vmi) {
        (Local::Nothing, None) => Step::Leave,
        (Local::Nothing, Some(vmi)) => without_machine(vmi),
        (Local::Own(seen) | Local::Other(seen), _) if matches!(seen.run, Run::Ended(_)) => Step::CleanUp,
        // The object is gone, or is another: nobody wants this machine any more.
        (Local::Own(seen), None) | (Local::Other(seen), _) => power_down(seen, DEFAULT_GRACE),
        (Local::Own(seen), Some(vmi)) => with_machine(vmi, seen),
    }
}

fn power_down(seen: &Seen, grace: u64) -> Step {
    match seen.stopping {
        Some(given) if given <= grace => Step::Leave,
        _ => Step::PowerDown(grace),
    }
}

fn without_machine(vmi: &kv::VirtualMachineInstance) -> Step {
    let phase = vmi.status.as_ref().map_or("", |s| s.phase.as_str());
    if vmi.metadata.deletion_timestamp.is_some() {
        let held = vmi.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        return if held { Step::Release } else { Step::Leave };
    }
    // What was not started when its Pod was deleted is not started any more.
    if annotation(vmi, sheaf_plan::vm::pod::POD_DELETED).is_some() && !is_final(phase) {
        return Step::Leave;
    }
    // `Running` without a machine is one that was lost; the status says so.
    if is_final(phase) || phase == "Running" { Step::Leave } else { Step::Start }
}

fn with_machine(vmi: &kv::VirtualMachineInstance, seen: &Seen) -> Step {
    if vmi.metadata.deletion_timestamp.is_some() {
        return power_down(seen, grace(vmi));
    }
    // Its Pod was deleted: the guest is to end, and the instance with it.
    if let Some(given) = annotation(vmi, sheaf_plan::vm::pod::POD_DELETED).and_then(|g| g.parse().ok()) {
        return power_down(seen, given);
    }
    if is_final(vmi.status.as_ref().map_or("", |s| s.phase.as_str())) {
        // Somebody has declared it over, and may start it elsewhere.
        return power_down(seen, 0);
    }
    if let Some(at) = annotation(vmi, SOFT_REBOOT)
        && annotation(vmi, SOFT_REBOOT_DONE) != Some(at)
        && seen.run == Run::Running
    {
        return Step::SoftReboot(at.into());
    }
    match (&seen.run, wants_pause(vmi)) {
        (Run::Running, true) => Step::Ask(Ask::Pause),
        (Run::Paused(Pause::ByUser), false) => Step::Ask(Ask::Resume),
        (Run::Paused(Pause::IoError(_) | Pause::Other(_)), true) => Step::Ask(Ask::Pause),
        _ => Step::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::Guest;
    use super::super::monitor::End;
    use super::*;
    use serde_json::json;

    fn vmi(phase: &str, extra: serde_json::Value) -> kv::VirtualMachineInstance {
        let mut v = json!({
            "metadata": {"name": "a", "namespace": "x", "finalizers": [FINALIZER], "annotations": {}},
            "spec": {"domain": {"devices": {}}}, "status": {"phase": phase},
        });
        for (path, value) in extra.as_object().expect("object") {
            let (parent, key) = path.rsplit_once('/').expect("path");
            v.pointer_mut(parent).expect("there")[key] = value.clone();
        }
        serde_json::from_value(v).expect("vmi")
    }

    fn seen(run: Run, stopping: Option<u64>) -> Seen {
        Seen { run, stopping, guest: Guest::default(), machine_type: String::new(), memory_plugged: 0 }
    }

    fn check(vmi: Option<&kv::VirtualMachineInstance>, local: Local, want: &Step) {
        let got = plan_machine(Timestamp::UNIX_EPOCH, &Snapshot { vmi, local: local.clone() });
        assert_eq!(&got, want, "{local:?} with {vmi:?}");
    }

    #[test]
    fn table() {
        let deleted = json!({"/metadata/deletionTimestamp": "2026-11-21T10:00:00Z"});
        let hasty = json!({"/metadata/deletionTimestamp": "2026-11-21T10:00:00Z", "/spec/terminationGracePeriodSeconds": 0});
        let free = json!({"/metadata/deletionTimestamp": "2026-11-21T10:00:00Z", "/metadata/finalizers": []});
        let pause = json!({"/metadata/annotations": {"sheaf.io/pause": "true"}});
        let reboot = json!({"/metadata/annotations": {"sheaf.io/softreboot": "t1"}});
        let rebooted =
            json!({"/metadata/annotations": {"sheaf.io/softreboot": "t1", "sheaf.io/softreboot-done": "t1"}});
        let none = || json!({});
        let running = || Local::Own(seen(Run::Running, None));
        let ended = || Run::Ended(End::Shutdown);
        type Row<'a> = (Option<(&'a str, serde_json::Value)>, Local, Step);
        let rows: Vec<Row<'_>> = vec![
            (None, Local::Nothing, Step::Leave),
            (Some(("Scheduled", none())), Local::Nothing, Step::Start),
            (Some(("Running", none())), Local::Nothing, Step::Leave),
            (Some(("Failed", none())), Local::Nothing, Step::Leave),
            (Some(("Failed", deleted.clone())), Local::Nothing, Step::Release),
            (Some(("Scheduled", deleted.clone())), Local::Nothing, Step::Release),
            (Some(("Scheduled", free)), Local::Nothing, Step::Leave),
            (Some(("Running", none())), running(), Step::Leave),
            (Some(("Running", deleted.clone())), running(), Step::PowerDown(30)),
            (Some(("Running", deleted.clone())), Local::Own(seen(Run::Running, Some(30))), Step::Leave),
            (Some(("Running", hasty)), Local::Own(seen(Run::Running, Some(30))), Step::PowerDown(0)),
            (Some(("Running", deleted)), Local::Own(seen(ended(), Some(30))), Step::CleanUp),
            (Some(("Succeeded", none())), Local::Own(seen(ended(), None)), Step::CleanUp),
            (Some(("Failed", none())), running(), Step::PowerDown(0)),
            (None, running(), Step::PowerDown(30)),
            (None, Local::Own(seen(ended(), None)), Step::CleanUp),
            (Some(("Scheduled", none())), Local::Other(seen(Run::Running, None)), Step::PowerDown(30)),
            (Some(("Scheduled", none())), Local::Other(seen(Run::Running, Some(30))), Step::Leave),
            (Some(("Scheduled", none())), Local::Other(seen(ended(), None)), Step::CleanUp),
            (Some(("Running", pause.clone())), running(), Step::Ask(Ask::Pause)),
            (
                Some(("Running", pause.clone())),
                Local::Own(seen(Run::Paused(Pause::ByUser), None)),
                Step::Leave,
            ),
            (
                Some(("Running", pause)),
                Local::Own(seen(Run::Paused(Pause::IoError(vec![])), None)),
                Step::Ask(Ask::Pause),
            ),
            (
                Some(("Running", none())),
                Local::Own(seen(Run::Paused(Pause::ByUser), None)),
                Step::Ask(Ask::Resume),
            ),
            // Its task tries again.
            (
                Some(("Running", none())),
                Local::Own(seen(Run::Paused(Pause::IoError(vec![])), None)),
                Step::Leave,
            ),
            (Some(("Running", reboot)), running(), Step::SoftReboot("t1".into())),
            (Some(("Running", rebooted)), running(), Step::Leave),
            (Some(("Scheduled", none())), Local::Own(seen(Run::Starting, None)), Step::Leave),
        ];
        for (object, local, want) in rows {
            let object = object.map(|(phase, extra)| vmi(phase, extra));
            check(object.as_ref(), local, &want);
        }
    }
}
