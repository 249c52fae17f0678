//! The queue of requests (`status.stateChangeRequests`) against a model. [`super::vm`] fills it, the VM's controller
//! (`sheaf_plan::vm`) works it off; here people and guests do things in any order in between.
//!
//! The model knows no queue. It knows what was last promised to somebody, and that is so when all has come to rest.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use sheaf_api::kubevirt::{VirtualMachine, VirtualMachineInstance};
use sheaf_plan::vm::{VmStep, VmWorld, plan_vm};

use super::vm::decide;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    Start,
    StartPaused,
    Stop,
    Restart,
    /// The controller looks, and takes one step.
    Look,
    /// The guest ends by itself.
    Ends(&'static str),
    /// The instance that is being deleted is gone.
    Gone,
}

/// What was promised last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Promise {
    /// Nothing that the guest has not undone by itself.
    Nothing,
    /// It runs, and not as this instance.
    Runs { not: Option<String>, paused: bool },
    /// This instance does not run, nor another one.
    Stands,
}

#[derive(Debug)]
struct World {
    vm: Value,
    vmi: Option<Value>,
    now: i64,
    made: u32,
    promise: Promise,
}

impl World {
    fn new(strategy: &str) -> Self {
        let vm = json!({
            "metadata": {
                "name": "a", "namespace": "d", "generation": 1,
                "finalizers": [sheaf_plan::vm::VM_FINALIZER],
            },
            "spec": {"runStrategy": strategy, "template": {"spec": {"domain": {"devices": {}}}}},
            // The strategy was taken up: RerunOnFailure and Once start nothing by themselves.
            "status": {"runStrategy": strategy},
        });
        Self { vm, vmi: None, now: 1_700_000_000, made: 0, promise: Promise::Nothing }
    }

    fn uid(&self) -> Option<String> {
        self.vmi.as_ref().and_then(|v| v["metadata"]["uid"].as_str()).map(str::to_owned)
    }

    fn live(&self) -> bool {
        self.vmi.as_ref().is_some_and(|v| v["status"]["phase"] == "Running")
    }

    fn leaving(&self) -> bool {
        self.vmi.as_ref().is_some_and(|v| v["metadata"]["deletionTimestamp"].is_string())
    }

    fn queue(&self) -> Vec<Value> {
        self.vm.pointer("/status/stateChangeRequests").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// Somebody asks. What is refused changes nothing and promises nothing.
    fn ask(&mut self, action: &str, paused: bool) {
        let options = if paused { json!({"paused": true}) } else { json!({}) };
        let Ok(change) = decide(action, &self.vm, self.vmi.as_ref(), &options) else { return };
        if let Some(requests) = change.requests {
            self.vm["status"]["stateChangeRequests"] = requests;
        }
        for (key, value) in change.spec.iter().flat_map(|s| s.as_object().into_iter().flatten()) {
            self.vm["spec"][key] = value.clone();
        }
        self.promise = match action {
            "stop" => Promise::Stands,
            _ => Promise::Runs { not: self.uid(), paused },
        };
    }

    /// The controller takes one step; whether there was one.
    fn look(&mut self) -> bool {
        let vm: VirtualMachine = serde_json::from_value(self.vm.clone()).expect("a VM");
        let vmi: Option<VirtualMachineInstance> =
            self.vmi.clone().map(|v| serde_json::from_value(v).expect("an instance"));
        let plan = plan_vm(&VmWorld {
            vm: &vm,
            problem: None,
            waits: None,
            refused: None,
            restart: None,
            vmi: vmi.as_ref(),
            foreign_vmi: false,
            missing_claims: &[],
            unbound_claims: &[],
            now: Timestamp::from_second(self.now).expect("a time"),
            jitter: 0.0,
        });
        let before = self.vm["status"].clone();
        self.vm["status"] = serde_json::to_value(plan.status).expect("a status");
        let changed = self.vm["status"] != before;
        match plan.step {
            VmStep::CreateVmi { paused } => {
                assert!(self.vmi.is_none(), "a second instance beside a first");
                if let Promise::Runs { paused: wanted, .. } = self.promise {
                    assert_eq!(paused, wanted, "it starts paused only for whoever asked for that");
                }
                self.made += 1;
                let uid = format!("u{}", self.made);
                self.vmi = Some(json!({
                    "metadata": {"name": "a", "namespace": "d", "uid": uid},
                    "spec": {"domain": {"devices": {}}}, "status": {"phase": "Running"},
                }));
            }
            VmStep::DeleteVmi { uid } => {
                assert_eq!(Some(&uid), self.uid().as_ref(), "an instance that nobody meant");
                if let Some(vmi) = &mut self.vmi {
                    vmi["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                }
            }
            VmStep::Run => self.vm["spec"]["runStrategy"] = "Always".into(),
            VmStep::WaitUntil(at) => self.now = at.as_second(),
            VmStep::Wait => return changed,
            other => panic!("{other:?} of a VM that has its finalizer and is not deleted"),
        }
        true
    }

    fn ends(&mut self, phase: &str) {
        if !self.live() || self.leaving() {
            return;
        }
        if let Some(vmi) = &mut self.vmi {
            vmi["status"]["phase"] = phase.into();
        }
        let again = match self.vm["spec"]["runStrategy"].as_str().unwrap_or_default() {
            "Always" => true,
            "RerunOnFailure" => phase == "Failed",
            _ => false,
        };
        // A restart that was asked for of this very instance is still owed.
        let owed = matches!(&self.promise, Promise::Runs { not, .. } if *not == self.uid());
        if owed {
            return;
        }
        // What begins again by itself does not begin paused.
        match &mut self.promise {
            Promise::Runs { paused, .. } if again => *paused = false,
            Promise::Runs { .. } => self.promise = Promise::Nothing,
            Promise::Nothing | Promise::Stands => {}
        }
    }

    fn gone(&mut self) {
        if self.leaving() {
            self.vmi = None;
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Start => self.ask("start", false),
            Happening::StartPaused => self.ask("start", true),
            Happening::Stop => self.ask("stop", false),
            Happening::Restart => self.ask("restart", false),
            Happening::Look => {
                self.look();
            }
            Happening::Ends(phase) => self.ends(phase),
            Happening::Gone => self.gone(),
        }
        assert!(self.queue().len() <= 2, "the queue grows: {:?}", self.queue());
    }

    /// Nobody asks for anything any more, and nothing ends by itself.
    fn rest(&mut self) {
        for _ in 0..60 {
            let looked = self.look();
            let left = self.leaving();
            self.gone();
            if !looked && !left {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn check(&self) {
        assert_eq!(self.queue(), [Value::Null; 0], "requests are left that nobody carries out");
        match &self.promise {
            Promise::Nothing => {}
            Promise::Runs { not, .. } => {
                assert!(self.live(), "it was to run");
                assert!(not.is_none() || *not != self.uid(), "it was to be another instance");
            }
            Promise::Stands => assert!(!self.live(), "it was to stop"),
        }
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => Just(Happening::Start),
        1 => Just(Happening::StartPaused),
        2 => Just(Happening::Stop),
        2 => Just(Happening::Restart),
        6 => Just(Happening::Look),
        1 => Just(Happening::Ends("Failed")),
        1 => Just(Happening::Ends("Succeeded")),
        3 => Just(Happening::Gone),
    ]
}

proptest! {
    #[test]
    fn what_was_promised_last_is_so_when_all_rests(
        strategy in prop::sample::select(vec!["Always", "Halted", "Manual", "RerunOnFailure"]),
        happenings in prop::collection::vec(happening(), 0..40),
    ) {
        let mut world = World::new(strategy);
        for what in happenings {
            world.happen(what);
        }
        world.rest();
        world.check();
    }
}
