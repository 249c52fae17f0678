//! The run strategies as tables, and a walk through random worlds: a VM always comes to rest, and never asks for a
//! second instance beside a first.

use super::*;
use sheaf_api::kubevirt::VirtualMachineInstanceStatus;

const NOW: i64 = 1_700_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn vm(strategy: &str) -> VirtualMachine {
    let mut vm = VirtualMachine::default();
    vm.metadata.name = Some("a".into());
    vm.metadata.namespace = Some("default".into());
    vm.metadata.finalizers = Some(vec![VM_FINALIZER.into()]);
    vm.metadata.generation = Some(1);
    vm.spec.run_strategy = strategy.into();
    vm
}

fn vmi(phase: &str, uid: &str) -> VirtualMachineInstance {
    let mut vmi = VirtualMachineInstance::default();
    vmi.metadata.uid = Some(uid.into());
    vmi.status = Some(VirtualMachineInstanceStatus { phase: phase.into(), ..Default::default() });
    vmi
}

fn request(action: &str, uid: Option<&str>) -> StateChangeRequest {
    StateChangeRequest { action: action.into(), uid: uid.map(Into::into), ..Default::default() }
}

fn plan(vm: &VirtualMachine, vmi: Option<&VirtualMachineInstance>) -> VmPlan {
    plan_vm(&VmWorld {
        vm,
        problem: None,
        waits: None,
        refused: None,
        restart: None,
        vmi,
        foreign_vmi: false,
        missing_claims: &[],
        unbound_claims: &[],
        now: at(NOW),
        jitter: 0.0,
    })
}

fn create() -> VmStep {
    VmStep::CreateVmi { paused: false }
}
fn delete(uid: &str) -> VmStep {
    VmStep::DeleteVmi { uid: uid.into() }
}

#[test]
fn run_strategies() {
    // strategy, recorded strategy, phase of the instance ("" = none), first request, expected step
    let start = || Some(request("Start", None));
    let stop = || Some(request("Stop", Some("u1")));
    let old_stop = || Some(request("Stop", Some("u0")));
    let paused = || {
        let data = [("paused".to_owned(), "true".into())].into();
        Some(StateChangeRequest { data, ..request("Start", None) })
    };
    let cases = [
        ("Always", "", "", None, create()),
        ("Always", "Always", "Running", None, VmStep::Wait),
        ("Always", "Always", "Succeeded", None, delete("u1")),
        ("Always", "Always", "Failed", None, delete("u1")),
        ("Always", "Always", "Running", stop(), delete("u1")),
        ("Always", "Always", "Running", old_stop(), VmStep::Wait),
        ("Halted", "Always", "Running", None, delete("u1")),
        ("Halted", "Halted", "", None, VmStep::Wait),
        ("Halted", "Halted", "Failed", None, delete("u1")),
        ("Halted", "Halted", "", paused(), VmStep::Run),
        ("Halted", "Halted", "", start(), VmStep::Wait),
        ("Always", "Halted", "", paused(), VmStep::CreateVmi { paused: true }),
        ("Manual", "", "", None, VmStep::Wait),
        ("Manual", "Manual", "", start(), create()),
        ("Manual", "Manual", "Running", stop(), delete("u1")),
        ("Manual", "Manual", "Succeeded", None, VmStep::Wait),
        ("Manual", "Manual", "Failed", None, VmStep::Wait),
        ("Manual", "Manual", "Succeeded", stop(), delete("u1")),
        ("RerunOnFailure", "", "", None, create()),
        ("RerunOnFailure", "Halted", "", None, create()),
        ("RerunOnFailure", "RerunOnFailure", "", None, VmStep::Wait),
        ("RerunOnFailure", "RerunOnFailure", "", start(), create()),
        ("RerunOnFailure", "RerunOnFailure", "Running", None, VmStep::Wait),
        ("RerunOnFailure", "RerunOnFailure", "Succeeded", None, delete("u1")),
        ("RerunOnFailure", "RerunOnFailure", "Failed", None, delete("u1")),
        ("Once", "", "", None, create()),
        ("Once", "Once", "", None, VmStep::Wait),
        ("Once", "Once", "Succeeded", None, VmStep::Wait),
        ("Once", "Once", "Failed", None, VmStep::Wait),
    ];
    for (strategy, recorded, phase, first, want) in cases {
        let mut vm = vm(strategy);
        let what = format!("{strategy} after {recorded:?}, instance {phase:?}, request {first:?}");
        vm.status = Some(VirtualMachineStatus {
            run_strategy: recorded.into(),
            state_change_requests: first.into_iter().collect(),
            ..Default::default()
        });
        let vmi = (!phase.is_empty()).then(|| vmi(phase, "u1"));
        assert_eq!(plan(&vm, vmi.as_ref()).step, want, "{what}");
    }
}

#[test]
fn the_old_running_field_means_always_or_halted() {
    for (running, want) in [(true, create()), (false, VmStep::Wait)] {
        let mut vm = vm("");
        vm.spec.running = Some(running);
        assert_eq!(plan(&vm, None).step, want);
    }
}

#[test]
fn a_crash_under_rerun_on_failure_is_remembered_before_the_evidence_is_deleted() {
    let mut vm = vm("RerunOnFailure");
    vm.status = Some(VirtualMachineStatus { run_strategy: "RerunOnFailure".into(), ..Default::default() });
    let mut crashed = vmi("Failed", "u1");
    if let Some(s) = crashed.status.as_mut() {
        s.phase_transition_timestamps.push(sheaf_api::kubevirt::PhaseTransition {
            phase: "Running".into(),
            phase_transition_timestamp: None,
        });
    }
    let first = plan(&vm, Some(&crashed));
    assert_eq!(first.step, delete("u1"));
    assert_eq!(first.status.state_change_requests, [request("Start", None)]);
    vm.status = Some(first.status);
    let second = plan(&vm, None);
    assert_eq!(second.step, create());
    vm.status = Some(second.status);
    assert!(plan(&vm, Some(&vmi("Scheduling", "u2"))).status.state_change_requests.is_empty());
}

#[test]
fn failed_starts_wait_longer_each_time_and_are_forgotten_after_a_run() {
    let mut vm = vm("Always");
    let first = plan(&vm, Some(&vmi("Failed", "u1")));
    let failure = first.status.start_failure.clone().expect("counted");
    assert_eq!(failure.consecutive_fail_count, Some(1));
    vm.status = Some(first.status);
    let again = plan(&vm, Some(&vmi("Failed", "u1")));
    assert_eq!(again.status.start_failure, Some(failure), "one instance is counted once");
    vm.status = Some(again.status);
    let waiting = plan(&vm, None);
    assert_eq!(waiting.step, VmStep::WaitUntil(at(NOW + 10)));
    assert_eq!(waiting.status.printable_status, "CrashLoopBackOff");
    vm.status = Some(waiting.status);
    assert_eq!(plan(&vm, Some(&vmi("Running", "u2"))).status.start_failure, None);
    let waits: Vec<i64> = (1..=7).map(|n| start_backoff(n, 0.0).as_secs()).collect();
    assert_eq!(waits, [10, 40, 90, 160, 250, 300, 300]);
    assert_eq!(start_backoff(2, 1.0).as_secs(), 60);
}

#[test]
fn deletion_ends_from_every_state() {
    for phase in ["", "Pending", "Scheduling", "Scheduled", "Running", "Succeeded", "Failed", "Unknown"] {
        for strategy in ["Always", "Halted", "Manual", "RerunOnFailure", "Once"] {
            let mut vm = vm(strategy);
            vm.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
            let live = vmi(phase, "u1");
            assert_eq!(plan(&vm, Some(&live)).step, delete("u1"), "{strategy} {phase}");
            let mut leaving = live;
            leaving.metadata.deletion_timestamp = vm.metadata.deletion_timestamp.clone();
            assert_eq!(plan(&vm, Some(&leaving)).step, VmStep::Wait, "{strategy} {phase}");
            let last = plan(&vm, None);
            assert_eq!(last.step, VmStep::RemoveFinalizer, "{strategy} {phase}");
            assert_eq!(last.status.printable_status, "Terminating");
        }
    }
}

#[test]
fn a_missing_claim_is_named_and_holds_the_start() {
    let vm = vm("Always");
    let over = "exceeded quota: few";
    let plan = plan_vm(&VmWorld {
        problem: None,
        waits: None,
        refused: Some(over),
        restart: None,
        vm: &vm,
        vmi: None,
        foreign_vmi: false,
        missing_claims: &[],
        unbound_claims: &[],
        now: at(NOW),
        jitter: 0.0,
    });
    assert_eq!(plan.step, VmStep::CreateVmi { paused: false }, "tried again");
    let failure = plan.status.conditions.iter().find(|c| c.r#type == "Failure").expect("a condition");
    assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("FailedCreate", over));
    assert_eq!(plan.status.printable_status, "ErrorUnschedulable");
    let missing = ["root".to_owned()];
    let plan = plan_vm(&VmWorld {
        problem: None,
        waits: None,
        refused: None,
        restart: None,
        vm: &vm,
        vmi: None,
        foreign_vmi: false,
        missing_claims: &missing,
        unbound_claims: &[],
        now: at(NOW),
        jitter: 0.0,
    });
    assert_eq!(plan.step, VmStep::Wait);
    assert_eq!(plan.status.printable_status, "ErrorPvcNotFound");
    let failure = conditions(&plan, "Failure");
    assert!(failure.contains("default/root"), "{failure}");
}

fn conditions(plan: &VmPlan, kind: &str) -> String {
    crate::conditions::find(&plan.status.conditions, kind).map(|c| c.message.clone()).unwrap_or_default()
}

#[test]
fn printable_status_of_an_instance() {
    let cases = [
        ("Pending", "Starting"),
        ("Scheduling", "Starting"),
        ("Scheduled", "Starting"),
        ("Running", "Running"),
        ("Failed", "Stopped"),
        ("Succeeded", "Stopped"),
    ];
    for (phase, want) in cases {
        let vm = vm("Manual");
        assert_eq!(plan(&vm, Some(&vmi(phase, "u1"))).status.printable_status, want, "{phase}");
    }
    let vm = vm("Halted");
    assert_eq!(plan(&vm, Some(&vmi("Running", "u1"))).status.printable_status, "Stopping");
    let mut paused = vmi("Running", "u1");
    if let Some(s) = paused.status.as_mut() {
        crate::conditions::set(&mut s.conditions, at(NOW), "Paused", "True", "PausedByUser", "");
    }
    let manual = super::tests::vm("Manual");
    assert_eq!(plan(&manual, Some(&paused)).status.printable_status, "Paused");
}

/// Applies steps to a small model of the world until nothing is left to do.
#[test]
fn every_vm_comes_to_rest() {
    let strategies = ["Always", "Halted", "Manual", "RerunOnFailure", "Once"];
    let ends = ["Running", "Succeeded", "Failed"];
    for strategy in strategies {
        for end in ends {
            let mut machine = vm(strategy);
            machine.metadata.finalizers = None;
            let mut world: Option<VirtualMachineInstance> = None;
            let mut now = NOW;
            let mut created = 0;
            for round in 0..40 {
                let plan = plan_vm(&VmWorld {
                    problem: None,
                    waits: None,
                    refused: None,
                    restart: None,
                    vm: &machine,
                    vmi: world.as_ref(),
                    foreign_vmi: false,
                    missing_claims: &[],
                    unbound_claims: &[],
                    now: at(now),
                    jitter: 0.5,
                });
                machine.status = Some(plan.status);
                match plan.step {
                    VmStep::AddFinalizer => machine.metadata.finalizers = Some(vec![VM_FINALIZER.into()]),
                    VmStep::CreateVmi { .. } => {
                        assert!(world.is_none(), "a second instance under {strategy}");
                        created += 1;
                        // The first run ends as the case says; later ones keep running.
                        let phase = if created == 1 { end } else { "Running" };
                        let mut fresh = vmi(phase, &format!("u{created}"));
                        if let Some(s) = fresh.status.as_mut() {
                            s.phase_transition_timestamps.push(sheaf_api::kubevirt::PhaseTransition {
                                phase: "Running".into(),
                                phase_transition_timestamp: None,
                            });
                        }
                        world = Some(fresh);
                    }
                    VmStep::DeleteVmi { .. } => world = None,
                    VmStep::WaitUntil(t) => now = t.as_second(),
                    VmStep::Wait => break,
                    VmStep::Run => unreachable!("nobody asked for a start"),
                    VmStep::RemoveFinalizer => unreachable!("nobody deleted it"),
                }
                assert!(round < 39, "{strategy} with a run that ends {end} does not come to rest");
            }
            let runs = world.as_ref().and_then(|v| v.status.as_ref()).is_some_and(|s| s.phase == "Running");
            let expected = matches!(
                (strategy, end),
                ("Always", _) | ("RerunOnFailure", "Running" | "Failed") | ("Once", "Running")
            );
            assert_eq!(runs, expected, "{strategy}, first run ends {end}");
        }
    }
}
