//! Rules of what goes around machines: instance types, preferences, snapshots, restores, clones.

use serde_json::Value;
use sheaf_meta::object::find;

use super::super::{changed, list, text};
use super::Problems;

const TOPOLOGIES: &[&str] = &[
    "sockets",
    "cores",
    "threads",
    "spread",
    "any",
    "preferSockets",
    "preferCores",
    "preferThreads",
    "preferSpread",
    "preferAny",
];
const ACROSS: &[&str] = &["SocketsCores", "SocketsCoresThreads", "CoresThreads"];

pub(crate) fn validate_instancetype(o: &Value, _old: Option<&Value>, problems: &mut Problems) {
    if find(o, "/spec/cpu/guest").and_then(Value::as_u64).unwrap_or(0) == 0 {
        problems.required("spec.cpu.guest", "number of the guest's processors, 1 or more");
    }
    let guest = problems.quantity("spec.memory.guest", find(o, "/spec/memory/guest").unwrap_or(&Value::Null));
    if guest.is_some_and(|q| q.signum() <= 0) {
        problems.invalid("spec.memory.guest", text(o, "/spec/memory/guest"), "must be more than 0");
    }
    let percent = find(o, "/spec/memory/overcommitPercent").and_then(Value::as_i64).unwrap_or(0);
    if !(0..=100).contains(&percent) {
        problems.invalid("spec.memory.overcommitPercent", percent, "must be from 0 to 100");
    }
    if percent > 0 && find(o, "/spec/memory/hugepages").is_some() {
        let why = "cannot be given together with spec.memory.hugepages";
        problems.invalid("spec.memory.overcommitPercent", percent, why);
    }
    let max = find(o, "/spec/memory/maxGuest").and_then(|m| problems.quantity("spec.memory.maxGuest", m));
    if let (Some(guest), Some(max)) = (guest, max)
        && max < guest
    {
        problems.invalid(
            "spec.memory.maxGuest",
            text(o, "/spec/memory/maxGuest"),
            "is less than spec.memory.guest",
        );
    }
}

pub(crate) fn validate_preference(o: &Value, _old: Option<&Value>, problems: &mut Problems) {
    problems.one_of("spec.cpu.preferredCPUTopology", text(o, "/spec/cpu/preferredCPUTopology"), TOPOLOGIES);
    problems.one_of("spec.cpu.spreadOptions.across", text(o, "/spec/cpu/spreadOptions/across"), ACROSS);
    let ratio = find(o, "/spec/cpu/spreadOptions/ratio").and_then(Value::as_i64);
    if ratio.is_some_and(|r| r < 1) {
        problems.invalid("spec.cpu.spreadOptions.ratio", ratio, "must be 1 or more");
    }
    let firmware = |field: &str| find(o, &format!("/spec/firmware/{field}")) == Some(&Value::Bool(true));
    if firmware("preferredUseBios")
        && (firmware("preferredUseEfi") || find(o, "/spec/firmware/preferredEfi").is_some())
    {
        let why = "cannot be given together with preferredUseBios";
        problems.invalid("spec.firmware.preferredUseEfi", true, why);
    }
}

/// A reference to an object of another kind.
fn reference(o: &Value, field: &str, kinds: &[(&str, &str)], problems: &mut Problems) {
    let at = |leaf: &str| text(o, &format!("/{}/{leaf}", field.replace('.', "/"))).to_owned();
    let (group, kind, name) = (at("apiGroup"), at("kind"), at("name"));
    let Some((_, wanted)) = kinds.iter().find(|(k, _)| *k == kind) else {
        let names: Vec<&str> = kinds.iter().map(|(k, _)| *k).collect();
        problems.invalid(
            format!("{field}.kind"),
            kind,
            format!("invalid kind; supported: {}", names.join(", ")),
        );
        return;
    };
    if group != *wanted {
        problems.invalid(format!("{field}.apiGroup"), group, format!("must be {wanted} for kind {kind}"));
    }
    if name.is_empty() {
        problems.required(format!("{field}.name"), "name of the object");
    }
}

fn fixed(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    if old.is_some_and(|old| changed(o, old, "/spec")) {
        problems.invalid("spec", "", "spec is immutable after creation");
    }
}

/// A time as Go writes it: `5m`, `1h30m`, `500ms`, `0`. In seconds.
pub fn duration(text: &str) -> Option<f64> {
    if text == "0" {
        return Some(0.0);
    }
    let (mut rest, mut total) = (text, 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    Some(total)
}

pub(crate) fn validate_snapshot(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    reference(o, "spec.source", &[("VirtualMachine", "kubevirt.io")], problems);
    problems.one_of("spec.deletionPolicy", text(o, "/spec/deletionPolicy"), &["Delete", "Retain"]);
    let deadline = text(o, "/spec/failureDeadline");
    if !deadline.is_empty() && duration(deadline).is_none() {
        problems.invalid("spec.failureDeadline", deadline, "must be a duration, as 5m or 0");
    }
    fixed(o, old, problems);
}

pub(crate) fn validate_restore(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    reference(o, "spec.target", &[("VirtualMachine", "kubevirt.io")], problems);
    if text(o, "/spec/virtualMachineSnapshotName").is_empty() {
        problems.required(
            "spec.virtualMachineSnapshotName",
            "name of a VirtualMachineSnapshot of this namespace",
        );
    }
    let policies = ["WaitGracePeriod", "StopTarget", "FailImmediate", "WaitEventually"];
    problems.one_of("spec.targetReadinessPolicy", text(o, "/spec/targetReadinessPolicy"), &policies);
    let policies = ["RandomizeNames", "InPlace", "PrefixTargetName"];
    problems.one_of("spec.volumeRestorePolicy", text(o, "/spec/volumeRestorePolicy"), &policies);
    problems.one_of("spec.volumeOwnershipPolicy", text(o, "/spec/volumeOwnershipPolicy"), &["Vm", "None"]);
    patches(o, problems);
    fixed(o, old, problems);
}

/// JSON patches as text, one operation each.
fn patches(o: &Value, problems: &mut Problems) {
    for (i, patch) in list(o, "/spec/patches").iter().enumerate() {
        let field = format!("spec.patches[{i}]");
        let said = patch.as_str().unwrap_or_default();
        match serde_json::from_str::<Value>(said) {
            Ok(op) if text(&op, "/path").starts_with("/spec/") => {}
            Ok(_) => problems.invalid(field, said, "patching is valid only for elements under /spec/"),
            Err(e) => problems.invalid(field, said, format!("must be one operation of a JSON patch: {e}")),
        }
    }
}

pub(crate) fn validate_clone(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let kinds = [("VirtualMachine", "kubevirt.io"), ("VirtualMachineSnapshot", "snapshot.kubevirt.io")];
    reference(o, "spec.source", &kinds, problems);
    if find(o, "/spec/target").is_some_and(Value::is_object) {
        let kind = text(o, "/spec/target/kind");
        if kind != "VirtualMachine" {
            problems.invalid("spec.target.kind", kind, "must be VirtualMachine");
        }
        let (source, target) = (text(o, "/spec/source/name"), text(o, "/spec/target/name"));
        if text(o, "/spec/source/kind") == kind && source == target && !target.is_empty() {
            problems.invalid("spec.target.name", target, "must not be the source itself");
        }
    }
    for field in ["annotationFilters", "labelFilters", "template/annotationFilters", "template/labelFilters"]
    {
        for (i, filter) in list(o, &format!("/spec/{field}")).iter().enumerate() {
            let said = filter.as_str().unwrap_or_default();
            if said.is_empty() || said == "!" || said.get(1..).is_some_and(|rest| rest.contains('!')) {
                let path = format!("spec.{}[{i}]", field.replace('/', "."));
                problems.invalid(path, said, "must be a pattern, negated by a ! at its beginning if at all");
            }
        }
    }
    patches(o, problems);
    fixed(o, old, problems);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, want) in
            [("5m", Some(300.0)), ("1h30m", Some(5400.0)), ("500ms", Some(0.5)), ("0", Some(0.0))]
        {
            assert_eq!(duration(text), want, "{text}");
        }
        for wrong in ["", "5", "m", "5x", "-5m"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_refused() {
        type Rule = fn(&Value, Option<&Value>, &mut Problems);
        let source = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "a"});
        let cases: Vec<(Rule, Value, &str)> = vec![
            (
                validate_instancetype,
                json!({"cpu": {"guest": 0}, "memory": {"guest": "1Gi"}}),
                "spec.cpu.guest",
            ),
            (
                validate_instancetype,
                json!({"cpu": {"guest": 1}, "memory": {"guest": "1Gi", "overcommitPercent": 101}}),
                "spec.memory.overcommitPercent",
            ),
            (
                validate_preference,
                json!({"cpu": {"preferredCPUTopology": "x"}}),
                "spec.cpu.preferredCPUTopology",
            ),
            (validate_snapshot, json!({"source": {"kind": "Pod", "name": "a"}}), "spec.source.kind"),
            (validate_snapshot, json!({"source": source, "failureDeadline": "soon"}), "spec.failureDeadline"),
            (validate_restore, json!({"target": source}), "spec.virtualMachineSnapshotName"),
            (
                validate_restore,
                json!({"target": source, "virtualMachineSnapshotName": "s", "patches": ["{\"path\": \"/metadata\"}"]}),
                "spec.patches[0]",
            ),
            (validate_clone, json!({"source": source, "target": source}), "spec.target.name"),
            (validate_clone, json!({"source": source, "labelFilters": ["a!b"]}), "spec.labelFilters[0]"),
        ];
        for (rule, spec, field) in cases {
            let mut problems = Problems::default();
            rule(&json!({"spec": spec}), None, &mut problems);
            assert_eq!(problems.list.len(), 1, "{field}: {:?}", problems.list);
            assert_eq!(problems.list[0].field, field);
        }
        let old = json!({"spec": {"source": source}});
        let new = json!({"spec": {"source": source, "deletionPolicy": "Retain"}});
        let mut problems = Problems::default();
        validate_snapshot(&new, Some(&old), &mut problems);
        assert_eq!(problems.list[0].field, "spec");
    }
}
