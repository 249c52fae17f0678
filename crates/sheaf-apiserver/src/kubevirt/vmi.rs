//! pause, unpause and softreboot of an instance: desired state in annotations, which the agent of its node follows.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};

use super::{Round, VMI, condition, dry_run, get_vmi, object_path, phase, until_written};
use crate::{core::Core, internal};

/// Asks the agent to keep the machine paused.
pub(super) const PAUSE: &str = "sheaf.io/pause";
/// Asks the agent to reboot the guest once; the value is when it was asked.
const SOFT_REBOOT: &str = "sheaf.io/softreboot";

/// Carries out a subresource.
pub(super) async fn change(
    core: &Arc<Core>,
    namespace: &str,
    name: &str,
    action: &str,
    options: &Value,
    now: jiff::Timestamp,
) -> Result<(), Status> {
    let dry = dry_run(options)?;
    let path = object_path("virtualmachineinstances", namespace, name);
    until_written(VMI, name, || {
        Box::pin(async {
            let vmi = get_vmi(core, namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
            let (annotation, value) = decide(action, &vmi, now)?;
            let patch = json!({"metadata": {
                "resourceVersion": object::resource_version(&vmi),
                "annotations": {annotation: value},
            }});
            internal::merge(core, &format!("{path}{dry}"), &patch).await.map(drop).map_err(Round::Overtaken)
        })
    })
    .await
}

/// The annotation that an action writes (null removes it), or why it is refused.
fn decide(action: &str, vmi: &Value, now: jiff::Timestamp) -> Result<(&'static str, Value), Status> {
    let name = object::name(vmi);
    let refuse = |why: &str| Err(Status::conflict(VMI, name, why));
    // What was asked counts as much as what is: two calls in a row answer the same as two calls with time between.
    let paused = condition(vmi, "Paused") || object::annotation(vmi, PAUSE) == Some("true");
    let running = phase(vmi) == "Running";
    match action {
        _ if !running => refuse("VM is not running"),
        "pause" if paused => refuse("VMI is already paused"),
        "pause" => match probe(vmi) {
            true => Err(Status::forbidden(
                VMI,
                name,
                "Pausing VMIs with LivenessProbe is currently not supported",
            )),
            false => Ok((PAUSE, json!("true"))),
        },
        "unpause" if !paused => refuse("VMI is not paused"),
        "unpause" => Ok((PAUSE, Value::Null)),
        "softreboot" if paused => refuse("VMI is paused"),
        "softreboot" if !reachable(vmi) => {
            refuse("VMI neither have the agent connected nor the ACPI feature enabled")
        }
        "softreboot" => Ok((SOFT_REBOOT, json!(now.to_string()))),
        _ => Err(Status::no_such_path()),
    }
}

/// Whether there is a liveness probe that a pause would trip.
fn probe(vmi: &Value) -> bool {
    vmi.pointer("/spec/livenessProbe")
        .and_then(Value::as_object)
        .is_some_and(|p| !p.contains_key("guestAgentPing"))
}

/// Whether the guest can be asked to reboot.
fn reachable(vmi: &Value) -> bool {
    let acpi_off = vmi.pointer("/spec/domain/features/acpi/enabled") == Some(&json!(false));
    condition(vmi, "AgentConnected") || !acpi_off
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_and_its_opposite() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let code = |action: &str, vmi: &Value| match decide(action, vmi, now) {
            Ok((annotation, value)) => format!("{annotation}={value}"),
            Err(s) => s.code.to_string(),
        };
        let running = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        let mut paused = running.clone();
        paused["status"]["conditions"] = json!([{"type": "Paused", "status": "True"}]);
        let mut probed = running.clone();
        probed["spec"] = json!({"livenessProbe": {"tcpSocket": {"port": 1}}});
        let scheduled = json!({"metadata": {"name": "a"}, "status": {"phase": "Scheduled"}});
        for (action, vmi, expected) in [
            ("pause", &running, r#"sheaf.io/pause="true""#),
            ("pause", &paused, "409"),
            ("pause", &probed, "403"),
            ("pause", &scheduled, "409"),
            ("unpause", &paused, "sheaf.io/pause=null"),
            ("unpause", &running, "409"),
            ("softreboot", &running, r#"sheaf.io/softreboot="1970-01-01T00:00:00Z""#),
            ("softreboot", &paused, "409"),
        ] {
            assert_eq!(code(action, vmi), expected, "{action}");
        }
    }
}
