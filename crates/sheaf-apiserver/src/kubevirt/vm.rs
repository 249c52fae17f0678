//! start, stop and restart of a VirtualMachine: what they write, and when they are refused.
//!
//! The decision is pure ([`decide`]); the shell reads VM and VMI, writes what was decided with the VM's
//! resourceVersion as precondition, and decides again when somebody wrote in between. What happens then is the VM
//! controller's.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};

use super::{Round, VM, condition, dry_run, get_vmi, is_final, object_path, phase, until_written};
use crate::{core::Core, internal};

/// What is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Change {
    /// New grace period of the instance, written first.
    grace_seconds: Option<i64>,
    /// Merge patch of the VM's spec.
    pub(super) spec: Option<Value>,
    /// Replaces `status.stateChangeRequests`.
    pub(super) requests: Option<Value>,
}

/// Carries out a subresource.
pub(super) async fn change(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    action: &str,
    options: &Value,
    _now: jiff::Timestamp,
) -> Result<(), Status> {
    let dry = dry_run(options)?;
    let path = object_path("virtualmachines", namespace, name);
    until_written(VM, name, || {
        Box::pin(async {
            let vm = internal::get(core, &path).await?.ok_or_else(|| Status::not_found(VM, name))?;
            let vmi = get_vmi(core, namespace, name).await?;
            let change = decide(action, &vm, vmi.as_ref(), options)?;
            write(core, namespace, name, &vm, vmi.as_ref(), &change, dry).await.map_err(Round::Overtaken)
        })
    })
    .await
}

async fn write(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    vm: &Value,
    vmi: Option<&Value>,
    change: &Change,
    dry: &str,
) -> Result<(), Status> {
    if let (Some(seconds), Some(vmi)) = (change.grace_seconds, vmi) {
        let path = object_path("virtualmachineinstances", namespace, name);
        let patch = json!({
            "metadata": {"uid": object::uid(vmi)},
            "spec": {"terminationGracePeriodSeconds": seconds},
        });
        internal::merge(core, &(path + dry), &patch).await?;
    }
    let path = object_path("virtualmachines", namespace, name);
    let version = object::resource_version(vm);
    let mut patch = json!({"metadata": {"resourceVersion": version}});
    if let Some(requests) = &change.requests {
        patch["status"] = json!({"stateChangeRequests": requests});
        let written = internal::merge(core, &format!("{path}/status{dry}"), &patch).await?;
        patch = json!({"metadata": {"resourceVersion": object::resource_version(&written)}});
    }
    if let Some(spec) = &change.spec {
        patch["spec"] = spec.clone();
        internal::merge(core, &(path + dry), &patch).await?;
    }
    Ok(())
}

/// The strategy that holds: `runStrategy`, or what the older `running` means.
fn strategy(vm: &Value) -> &str {
    if let Some(strategy) = vm.pointer("/spec/runStrategy").and_then(Value::as_str) {
        return strategy;
    }
    match vm.pointer("/spec/running").and_then(Value::as_bool) {
        Some(true) => "Always",
        _ => "Halted",
    }
}

/// The patch that makes a VM run or not, in the field that it uses.
fn run(vm: &Value, run: bool) -> Value {
    if vm.pointer("/spec/running").is_some_and(Value::is_boolean) {
        json!({"running": run})
    } else {
        json!({"runStrategy": if run { "Always" } else { "Halted" }})
    }
}

fn start_request(paused: bool) -> Value {
    if paused { json!({"action": "Start", "data": {"paused": "true"}}) } else { json!({"action": "Start"}) }
}

fn stop_request(vmi: &Value) -> Value {
    json!({"action": "Stop", "uid": object::uid(vmi)})
}

/// Queues requests. A stop overrides a start that was not carried out yet; anything else has to wait.
fn queue(vm: &Value, requests: Vec<Value>) -> Result<Change, Status> {
    let waiting = vm.pointer("/status/stateChangeRequests").and_then(Value::as_array);
    let stop_only = requests.len() == 1 && requests[0]["action"] == "Stop";
    let blocked = waiting.into_iter().flatten().any(|w| !(stop_only && w["action"] == "Start"));
    if blocked {
        let text = "Internal error occurred: unable to complete request: stop/start already underway";
        return Err(Status::new(500, "InternalError", text));
    }
    Ok(Change { requests: Some(json!(requests)), ..Change::default() })
}

/// What is left of the queue when a change of the strategy takes the place of the starts that wait; none, if none waits.
fn without_starts(vm: &Value) -> Option<Value> {
    let waiting = vm.pointer("/status/stateChangeRequests")?.as_array()?;
    let left: Vec<&Value> = waiting.iter().filter(|w| w["action"] != "Start").collect();
    (left.len() < waiting.len()).then(|| json!(left))
}

/// What an action changes, or why it is refused (409 unless the table says otherwise).
pub(super) fn decide(
    action: &str,
    vm: &Value,
    vmi: Option<&Value>,
    options: &Value,
) -> Result<Change, Status> {
    let name = object::name(vm);
    let refuse = |why: &str| Err(Status::conflict(VM, name, why));
    let strategy = strategy(vm);
    let live = vmi.filter(|v| !is_final(v));
    match action {
        "start" => {
            if live.is_some_and(|v| !matches!(phase(v), "" | "Unknown")) {
                return refuse("VM is already running");
            }
            if condition(vm, "ManualRecoveryRequired") {
                return refuse("VM recovery required");
            }
            let paused = options.get("paused").and_then(Value::as_bool).unwrap_or(false);
            let again = |v: &Value| vec![stop_request(v), start_request(paused)];
            match strategy {
                // Paused: the controller flips the strategy when it carries out the request.
                "Halted" if paused => queue(vm, vmi.map_or_else(|| vec![start_request(true)], again)),
                "Halted" => Ok(Change {
                    spec: Some(run(vm, true)),
                    requests: without_starts(vm),
                    ..Change::default()
                }),
                "Manual" => queue(vm, vmi.map_or_else(|| vec![start_request(paused)], again)),
                "RerunOnFailure" => match vmi {
                    Some(v) if phase(v) == "Failed" => {
                        refuse("RerunOnFailure does not support starting VM from failed state")
                    }
                    Some(v) => queue(vm, again(v)),
                    None => queue(vm, vec![start_request(paused)]),
                },
                other => refuse(&format!("{other} does not support manual start requests")),
            }
        }
        "stop" => {
            let grace = options.get("gracePeriod").and_then(Value::as_i64);
            if grace.is_some_and(|g| g < 0) {
                return Err(Status::bad_request("gracePeriod has to be 0 or more seconds"));
            }
            let mut change = match strategy {
                "Halted" => match live {
                    Some(v) if grace.is_some_and(|g| g < grace_of(v)) => queue(vm, vec![stop_request(v)])?,
                    Some(_) => {
                        return refuse(
                            "Halted only supports manual stop requests with a shorter graceperiod",
                        );
                    }
                    None => return refuse("Halted does not support manual stop requests"),
                },
                "Always" | "Once" => {
                    Change { spec: Some(run(vm, false)), requests: without_starts(vm), ..Change::default() }
                }
                _ => match live {
                    Some(v) => queue(vm, vec![stop_request(v)])?,
                    None => return refuse("VM is not running"),
                },
            };
            change.grace_seconds = grace.filter(|_| live.is_some());
            Ok(change)
        }
        "restart" => {
            let grace = options.get("gracePeriodSeconds").and_then(Value::as_i64);
            if grace.is_some_and(|g| g != 0) {
                return Err(Status::bad_request(
                    "For force restart, only gracePeriod=0 is supported for now",
                ));
            }
            if matches!(strategy, "Halted" | "Once") {
                return refuse(&format!("{strategy} does not support manual restart requests"));
            }
            let Some(vmi) = vmi else { return refuse("VM is not running") };
            if condition(vmi, "VolumesChange") {
                return refuse("VM recovery required: its volumes are being changed");
            }
            let mut change = queue(vm, vec![stop_request(vmi), start_request(false)])?;
            change.grace_seconds = grace.map(|_| 1);
            Ok(change)
        }
        _ => Err(Status::no_such_path()),
    }
}

/// The grace period that an instance has; upstream's default is 30 s.
fn grace_of(vmi: &Value) -> i64 {
    vmi.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(strategy: &str) -> Value {
        json!({"metadata": {"name": "a"}, "spec": {"runStrategy": strategy}})
    }

    fn vmi(phase: &str) -> Value {
        json!({"metadata": {"name": "a", "uid": "u"}, "status": {"phase": phase}})
    }

    /// Renders a decision: `spec`, the queued actions, or the refusal's code.
    fn shown(action: &str, vm: &Value, vmi: Option<&Value>, options: &Value) -> String {
        match decide(action, vm, vmi, options) {
            Err(status) => status.code.to_string(),
            Ok(c) => {
                let grace = c.grace_seconds.map(|g| format!("grace {g} ")).unwrap_or_default();
                match (c.spec, c.requests) {
                    (Some(spec), None) => format!("{grace}{spec}"),
                    (None, Some(r)) => {
                        let actions = r.as_array().unwrap().iter().filter_map(|r| r["action"].as_str());
                        format!("{grace}{}", actions.collect::<Vec<_>>().join("+"))
                    }
                    other => format!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_table_of_run_strategies() {
        let none = json!({});
        let (running, failed, succeeded) = (vmi("Running"), vmi("Failed"), vmi("Succeeded"));
        for (strategy, action, instance, expected) in [
            ("Always", "start", None, "409"),
            ("Always", "start", Some(&running), "409"),
            ("Always", "stop", None, r#"{"runStrategy":"Halted"}"#),
            ("Always", "stop", Some(&running), r#"{"runStrategy":"Halted"}"#),
            ("Always", "restart", Some(&running), "Stop+Start"),
            ("Always", "restart", None, "409"),
            ("Halted", "start", None, r#"{"runStrategy":"Always"}"#),
            ("Halted", "stop", None, "409"),
            ("Halted", "restart", Some(&running), "409"),
            ("Manual", "start", None, "Start"),
            ("Manual", "start", Some(&succeeded), "Stop+Start"),
            ("Manual", "stop", Some(&running), "Stop"),
            ("Manual", "stop", Some(&succeeded), "409"),
            ("RerunOnFailure", "start", None, "Start"),
            ("RerunOnFailure", "start", Some(&succeeded), "Stop+Start"),
            ("RerunOnFailure", "start", Some(&failed), "409"),
            ("RerunOnFailure", "stop", Some(&running), "Stop"),
            ("RerunOnFailure", "stop", None, "409"),
            ("Once", "start", None, "409"),
            ("Once", "stop", Some(&running), r#"{"runStrategy":"Halted"}"#),
            ("Once", "restart", Some(&running), "409"),
        ] {
            assert_eq!(
                shown(action, &vm(strategy), instance, &none),
                expected,
                "{strategy} {action} {instance:?}"
            );
        }
    }

    #[test]
    fn options_and_the_older_field() {
        let running = vmi("Running");
        let old = json!({"metadata": {"name": "a"}, "spec": {"running": false}});
        assert_eq!(shown("start", &old, None, &json!({})), r#"{"running":true}"#);
        assert_eq!(shown("start", &vm("Halted"), None, &json!({"paused": true})), "Start");
        assert_eq!(
            shown("restart", &vm("Always"), Some(&running), &json!({"gracePeriodSeconds": 0})),
            "grace 1 Stop+Start"
        );
        assert_eq!(shown("restart", &vm("Always"), Some(&running), &json!({"gracePeriodSeconds": 5})), "400");
        assert_eq!(shown("stop", &vm("Halted"), Some(&running), &json!({"gracePeriod": 0})), "grace 0 Stop");
        assert_eq!(shown("stop", &vm("Manual"), Some(&running), &json!({"gracePeriod": 0})), "grace 0 Stop");
    }

    #[test]
    fn a_stop_overrides_a_start_that_waits_and_nothing_else_does() {
        let running = vmi("Running");
        let mut waiting = vm("Manual");
        waiting["status"] = json!({"stateChangeRequests": [{"action": "Start"}]});
        assert_eq!(shown("stop", &waiting, Some(&running), &json!({})), "Stop");
        assert_eq!(shown("start", &waiting, None, &json!({})), "500");
    }
}
