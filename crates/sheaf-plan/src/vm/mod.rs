//! What a VirtualMachine needs next: the rules of run strategies, requests, restarts and deletion.
//!
//! [`plan_vm`] gives one step and the new status. It takes no input but the world ([`VmWorld`]): what was asked for once
//! (start, stop) stands in `status.stateChangeRequests` until it is done, so nothing is forgotten by a crash between
//! two writes. Contract: the run-strategy semantics of kubevirt.io/v1.
//!
//! Not here: what happens to an instance on its node, and where it is placed.

pub mod dump;
pub mod instancetype;
pub mod live;
pub mod order;
pub mod pod;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sheaf_api::kubevirt::{StateChangeRequest, VirtualMachine, VirtualMachineInstance, VirtualMachineStatus};

pub use status::printable_status;

/// Keeps a VM until its instance is gone.
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// Keeps an instance until its machine is gone from its node.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// On an instance: the generation of the VM that it was made from.
pub const GENERATION_ANNOTATION: &str = "kubevirt.io/vm-generation";

/// On a VM and its instance: where the machine's devices sit, kept from run to run.
pub const PORTS_ANNOTATION: &str = "sheaf.io/pci-ports";

/// On a VM: the hardware address of each interface, as a JSON map. What a spec leaves open is filled in from here.
pub const MAC_ANNOTATION: &str = "harvesterhci.io/mac-address";

/// Gives interfaces of a template that have no hardware address the one from `known`.
pub fn fill_addresses(template: &mut Value, known: &BTreeMap<String, String>) {
    let interfaces = template.pointer_mut("/spec/domain/devices/interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        let has = interface.get("macAddress").and_then(Value::as_str).is_some_and(|m| !m.is_empty());
        let mac = interface["name"].as_str().and_then(|name| known.get(name));
        if let (false, Some(mac), true) = (has, mac, interface.is_object()) {
            interface["macAddress"] = json!(mac);
        }
    }
}

/// The hardware addresses that were settled for a VM, by interface.
pub fn settled_addresses(vm: &VirtualMachine) -> BTreeMap<String, String> {
    let text = vm.metadata.annotations.as_ref().and_then(|a| a.get(MAC_ANNOTATION));
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// When an instance should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStrategy {
    /// Always; a guest that powers off is started again.
    Always,
    /// Never.
    Halted,
    /// As start and stop say.
    Manual,
    /// Once asked for, until the guest ends in good order; a crash is followed by a new start.
    RerunOnFailure,
    /// One time.
    Once,
}

impl RunStrategy {
    /// The strategy that `runStrategy`, or the old `running`, asks for. A VM without either is halted.
    pub fn of(vm: &VirtualMachine) -> Self {
        match (vm.spec.run_strategy.as_str(), vm.spec.running) {
            ("Always", _) | ("", Some(true)) => Self::Always,
            ("Manual", _) => Self::Manual,
            ("RerunOnFailure", _) => Self::RerunOnFailure,
            ("Once", _) => Self::Once,
            _ => Self::Halted,
        }
    }
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::Halted => "Halted",
            Self::Manual => "Manual",
            Self::RerunOnFailure => "RerunOnFailure",
            Self::Once => "Once",
        }
    }
}

/// What a decision rests on.
pub struct VmWorld<'a> {
    /// The VM.
    pub vm: &'a VirtualMachine,
    /// What keeps the VM from starting, found by whoever gathered: reason and message of the condition `Failure`.
    pub problem: Option<(&'static str, &'a str)>,
    /// What others it waits for before it starts.
    pub waits: Option<&'a str>,
    /// Why an instance was refused when it was to be made: a quota, a policy. It is tried again.
    pub refused: Option<&'a str>,
    /// Why the running instance needs a restart; `None` if there is no instance that could, or nobody knows.
    pub restart: Option<Option<&'a str>>,
    /// The instance of its name, if it is the VM's own.
    pub vmi: Option<&'a VirtualMachineInstance>,
    /// An instance of its name that belongs to nobody or somebody else.
    pub foreign_vmi: bool,
    /// Claims that the template names and that do not exist, in order.
    pub missing_claims: &'a [String],
    /// Claims that the template names, that exist and are not bound.
    pub unbound_claims: &'a [String],
    /// Now.
    pub now: Timestamp,
    /// Chance, from 0 to 1, for the waits between failed starts.
    pub jitter: f64,
}

/// The one thing to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum VmStep {
    /// Put the finalizer on the VM.
    AddFinalizer,
    /// Take the finalizer off: nothing of the VM is left.
    RemoveFinalizer,
    /// Make the instance.
    CreateVmi {
        /// Start with the CPUs stopped.
        paused: bool,
    },
    /// Change the strategy from Halted to Always, as whoever asked for a start wants it (upstream does so for starts with `paused`).
    Run,
    /// Delete the instance of this UID.
    DeleteVmi {
        /// UID of the instance that is meant: a later one is not touched.
        uid: String,
    },
    /// Nothing before this time, unless something changes.
    WaitUntil(Timestamp),
    /// Nothing, unless something changes.
    Wait,
}

/// A decision.
#[derive(Debug, Clone, PartialEq)]
pub struct VmPlan {
    /// What to do, after the status was written.
    pub step: VmStep,
    /// The whole new status.
    pub status: VirtualMachineStatus,
}

/// Where an instance stands, as far as its VM cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instance {
    None,
    /// Exists and is not final.
    Live,
    Succeeded,
    Failed,
    /// Is being deleted.
    Leaving,
}

fn instance(vmi: Option<&VirtualMachineInstance>) -> Instance {
    let Some(vmi) = vmi else { return Instance::None };
    if vmi.metadata.deletion_timestamp.is_some() {
        return Instance::Leaving;
    }
    match vmi.status.as_ref().map_or("", |s| s.phase.as_str()) {
        "Succeeded" => Instance::Succeeded,
        "Failed" => Instance::Failed,
        _ => Instance::Live,
    }
}

/// What the strategy wants, before waits and the VM's own deletion are considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    Start,
    Stop,
    /// A start was asked for of a halted machine: its strategy is changed first.
    Run,
}

/// Decides the next step of a VM.
pub fn plan_vm(world: &VmWorld<'_>) -> VmPlan {
    let vm = world.vm;
    let old = vm.status.clone().unwrap_or_default();
    let strategy = RunStrategy::of(vm);
    let state = instance(world.vmi);
    let uid = world.vmi.and_then(|v| v.metadata.uid.clone()).unwrap_or_default();
    let deleting = vm.metadata.deletion_timestamp.is_some();

    let mut requests = old.state_change_requests.clone();
    drop_done_requests(&mut requests, strategy, state, &uid);
    remember_restart(&mut requests, strategy, state, deleting);
    let start_failure = status::start_failure(world, &old, strategy, state);

    let want = if deleting { deletion(state) } else { wanted(strategy, state, &requests, &old, &uid) };
    let blocked_until = start_failure
        .as_ref()
        .and_then(|f| f.retry_after_timestamp.as_ref())
        .map(|t| t.0)
        .filter(|t| *t > world.now);
    let has_finalizer = vm.metadata.finalizers.iter().flatten().any(|f| f == VM_FINALIZER);
    let step = match want {
        _ if !deleting && !has_finalizer => VmStep::AddFinalizer,
        Want::Stop => VmStep::DeleteVmi { uid },
        Want::Run => VmStep::Run,
        Want::Start => match blocked_until {
            Some(at) => VmStep::WaitUntil(at),
            None if world.foreign_vmi || world.problem.is_some() || !world.missing_claims.is_empty() => {
                VmStep::Wait
            }
            None if world.waits.is_some() => VmStep::Wait,
            None => VmStep::CreateVmi { paused: starts_paused(&requests) },
        },
        Want::Nothing if deleting && state == Instance::None && has_finalizer => VmStep::RemoveFinalizer,
        Want::Nothing => VmStep::Wait,
    };
    // The strategy counts as taken up once nothing of it is outstanding: a crash between making the instance and
    // writing this must not start a VM a second time, or never.
    let outstanding = want == Want::Start || step == VmStep::AddFinalizer;
    let run_strategy = if outstanding { old.run_strategy.clone() } else { strategy.as_str().to_owned() };
    let status = status::build(
        world,
        &old,
        want == Want::Start,
        want == Want::Stop,
        requests,
        start_failure,
        run_strategy,
    );
    VmPlan { step, status }
}

fn deletion(state: Instance) -> Want {
    match state {
        Instance::None | Instance::Leaving => Want::Nothing,
        Instance::Live | Instance::Succeeded | Instance::Failed => Want::Stop,
    }
}

fn wanted(
    strategy: RunStrategy,
    state: Instance,
    requests: &[StateChangeRequest],
    old: &VirtualMachineStatus,
    uid: &str,
) -> Want {
    let first = requests.first();
    let stop_asked = first.is_some_and(|r| r.action == "Stop" && r.uid.as_deref() == Some(uid));
    let start_asked = first.is_some_and(|r| r.action == "Start");
    match (state, strategy) {
        (Instance::Leaving, _) => Want::Nothing,
        (Instance::Live, RunStrategy::Halted) => Want::Stop,
        (Instance::Live, _) if stop_asked => Want::Stop,
        (Instance::Live, _) => Want::Nothing,
        (Instance::Succeeded | Instance::Failed, RunStrategy::Manual | RunStrategy::Once) => {
            if stop_asked {
                Want::Stop
            } else {
                Want::Nothing
            }
        }
        (Instance::Succeeded | Instance::Failed, _) => Want::Stop,
        (Instance::None, RunStrategy::Always) => Want::Start,
        (Instance::None, RunStrategy::Halted) if start_asked => Want::Run,
        (Instance::None, RunStrategy::Halted) => Want::Nothing,
        (Instance::None, RunStrategy::Manual) if start_asked => Want::Start,
        (Instance::None, RunStrategy::Manual) => Want::Nothing,
        (Instance::None, RunStrategy::RerunOnFailure | RunStrategy::Once) => {
            if start_asked && strategy == RunStrategy::RerunOnFailure || old.run_strategy != strategy.as_str()
            {
                Want::Start
            } else {
                Want::Nothing
            }
        }
    }
}

/// A request is done when what it asks for is so: Stop when its instance is gone, Start when an instance is there, be it over already:
/// it may have ended before anybody looked. A Start is void
/// where the strategy has become one that takes none: what was asked for before must not come true when the strategy changes
/// again, nor keep others waiting.
fn drop_done_requests(
    requests: &mut Vec<StateChangeRequest>,
    strategy: RunStrategy,
    state: Instance,
    uid: &str,
) {
    while let Some(first) = requests.first() {
        let done = match first.action.as_str() {
            "Stop" => state == Instance::None || first.uid.as_deref() != Some(uid),
            "Start" => {
                let void = match strategy {
                    RunStrategy::Halted => !is_paused(first),
                    RunStrategy::Once => true,
                    RunStrategy::Always | RunStrategy::Manual | RunStrategy::RerunOnFailure => false,
                };
                void || matches!(state, Instance::Live | Instance::Succeeded | Instance::Failed)
            }
            _ => true,
        };
        if !done {
            return;
        }
        requests.remove(0);
    }
}

/// A crash under RerunOnFailure asks for a new start before the instance, and with it the evidence, is deleted.
fn remember_restart(
    requests: &mut Vec<StateChangeRequest>,
    strategy: RunStrategy,
    state: Instance,
    deleting: bool,
) {
    let crashed = strategy == RunStrategy::RerunOnFailure && state == Instance::Failed;
    if crashed && !deleting && !requests.iter().any(|r| r.action == "Start" || r.action == "Stop") {
        requests.push(StateChangeRequest { action: "Start".into(), ..StateChangeRequest::default() });
    }
}

fn starts_paused(requests: &[StateChangeRequest]) -> bool {
    requests.first().is_some_and(|r| r.action == "Start" && is_paused(r))
}

fn is_paused(request: &StateChangeRequest) -> bool {
    request.data.get("paused").is_some_and(|v| v == "true")
}

/// The wait after the `failures`th failed start in a row: 10 s times its square, at most 300 s, and up to half as
/// much again by chance (`jitter` from 0 to 1) so that many VMs do not start at once.
pub fn start_backoff(failures: i32, jitter: f64) -> SignedDuration {
    let n = i64::from(failures.clamp(1, 100));
    let base = (10 * n * n).min(300);
    let spread = (base as f64 * 0.5 * jitter.clamp(0.0, 1.0)) as i64;
    SignedDuration::from_secs((base + spread).min(300))
}
