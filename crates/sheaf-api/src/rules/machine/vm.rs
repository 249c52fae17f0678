//! Rules of a machine around its template.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use sheaf_meta::names;
use sheaf_meta::object::{self, find};
use sheaf_meta::quantity::Quantity;

use super::super::{changed, text};
use super::{Problems, spec};
use crate::kubevirt::{
    DISK_LIMITS, DataVolumeTemplateSpec, DiskLimits, IO_WEIGHT, InstancetypeMatcher, VirtualMachine,
    VirtualMachineSpec,
};

const STRATEGIES: &[&str] = &["Always", "Halted", "Manual", "RerunOnFailure", "Once", "WaitAsReceiver"];
const MAINTENANCE: &[&str] =
    &["Migrate", "ShutdownAndRestartAfterEnable", "ShutdownAndRestartAfterDisable", "Shutdown"];
const CLAIM_TEMPLATES: &str = "harvesterhci.io/volumeClaimTemplates";
const RESERVED_MEMORY: &str = "harvesterhci.io/reservedMemory";
const MAINTAIN: &str = "harvesterhci.io/maintain-mode-strategy";
const B: &str = "spec.template.spec";

pub(super) fn warnings(o: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if find(o, "/spec/running").is_some_and(Value::is_boolean) {
        warnings.push("spec.running is deprecated, please use spec.runStrategy instead.".into());
    }
    let devices = "/spec/template/spec/domain/devices";
    let networks = super::super::list(o, "/spec/template/spec/networks");
    let none = super::super::list(o, &format!("{devices}/interfaces")).is_empty();
    if none && !networks.is_empty() {
        warnings.push(
            "spec.template.spec.networks has no interface in spec.template.spec.domain.devices.interfaces: each network \
             gets one of the same name, bridged, when the machine starts."
                .into(),
        );
    }
    for (at, network) in networks.iter().enumerate() {
        if find(network, "/pod/vmNetworkCIDR").and_then(Value::as_str).is_some_and(|cidr| !cidr.is_empty()) {
            warnings.push(format!(
                "spec.template.spec.networks[{at}].pod.vmNetworkCIDR has no effect: guests on the management network \
                 have addresses of their node's subnet, by DHCP."
            ));
        }
    }
    warnings
}

pub(super) fn validate(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    if old.is_some_and(|old| is_as_it_was(o, old)) {
        return;
    }
    let vm = match VirtualMachine::deserialize(o) {
        Ok(vm) => vm,
        Err(e) => return problems.invalid("spec", "", e),
    };
    names_and_labels(o, problems);
    strategy(&vm.spec, problems);
    if !find(o, "/spec/template").is_some_and(Value::is_object) {
        return problems.required("spec.template", "the instance to be made");
    }
    matcher(vm.spec.instancetype.as_ref(), "spec.instancetype", problems);
    matcher(vm.spec.preference.as_ref(), "spec.preference", problems);
    problems.one_of(
        "spec.updateVolumesStrategy",
        &vm.spec.update_volumes_strategy,
        &["Migration", "Replacement"],
    );
    data_volume_templates(&vm, problems);
    claim_templates(o, problems);
    disk_limits(o, problems);
    memory(o, &vm, problems);
    spec::validate(B, &vm.spec.template.spec, vm.spec.instancetype.is_some(), problems);
    if let Some(old) = old {
        locks(o, old, problems);
    }
}

/// Whether a write leaves all that is judged here as it was. What was accepted stays acceptable, even if the rules have
/// become stricter since: else a machine could not be let go of any more. And most writes are of this kind.
fn is_as_it_was(o: &Value, old: &Value) -> bool {
    let annotation = |key| object::annotation(o, key) == object::annotation(old, key);
    o.get("spec") == old.get("spec")
        && object::name(o) == object::name(old)
        && object::label(o, MAINTAIN) == object::label(old, MAINTAIN)
        && [CLAIM_TEMPLATES, RESERVED_MEMORY].into_iter().all(annotation)
}

fn names_and_labels(o: &Value, problems: &mut Problems) {
    let name = object::name(o);
    if name.len() > 63 {
        problems.invalid(
            "metadata.name",
            name,
            "must be no more than 63 characters: it becomes a label and a host name",
        );
    }
    let maintain = object::label(o, MAINTAIN).unwrap_or("");
    problems.one_of(format!("metadata.labels[{MAINTAIN}]"), maintain, MAINTENANCE);
    let template = find(o, "/spec/template/metadata/labels").and_then(Value::as_object);
    for (key, value) in template.into_iter().flatten() {
        let field = "spec.template.metadata.labels";
        problems.name(field, key, names::label_key);
        problems.name(field, value.as_str().unwrap_or_default(), names::label_value);
    }
}

fn strategy(spec: &VirtualMachineSpec, problems: &mut Problems) {
    match (spec.running, spec.run_strategy.as_str()) {
        (Some(running), strategy) if !strategy.is_empty() => problems.invalid(
            "spec.running",
            running,
            "Running and RunStrategy are mutually exclusive: remove running and keep runStrategy",
        ),
        (None, "") => problems.required(
            "spec.running",
            "one of runStrategy or running must be given; runStrategy is the newer",
        ),
        (_, strategy) => problems.one_of("spec.runStrategy", strategy, STRATEGIES),
    }
}

fn matcher(matcher: Option<&InstancetypeMatcher>, field: &str, problems: &mut Problems) {
    let Some(m) = matcher else { return };
    match (m.name.is_empty(), m.infer_from_volume.is_empty()) {
        (true, true) => problems.required(field, "either name or inferFromVolume must be given"),
        (false, false) => problems.invalid(
            format!("{field}.name"),
            m.name.as_str(),
            "name must not be given together with inferFromVolume",
        ),
        _ => {}
    }
    if !m.infer_from_volume.is_empty() && !m.kind.is_empty() {
        problems.invalid(
            format!("{field}.kind"),
            m.kind.as_str(),
            "kind must not be given together with inferFromVolume",
        );
    }
    let policy = &m.infer_from_volume_failure_policy;
    problems.one_of(format!("{field}.inferFromVolumeFailurePolicy"), policy, &["Ignore", "Reject"]);
}

fn data_volume_templates(vm: &VirtualMachine, problems: &mut Problems) {
    let volumes = &vm.spec.template.spec.volumes;
    for (i, template) in vm.spec.data_volume_templates.iter().enumerate() {
        let field = format!("spec.dataVolumeTemplates[{i}]");
        let metadata = template.metadata.clone().unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        if name.is_empty() {
            problems.required(
                format!("{field}.name"),
                "'name' field must not be empty for DataVolumeTemplate entry",
            );
            continue;
        }
        if let Some(namespace) = metadata.namespace.filter(|n| Some(n) != vm.metadata.namespace.as_ref()) {
            problems.invalid(
                field.clone(),
                namespace,
                "must be in the namespace of the machine, or name none",
            );
        }
        storage_and_source(template, &field, problems);
        let used = volumes.iter().any(|v| {
            v.data_volume.as_ref().is_some_and(|d| d.name == name)
                || v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == name)
        });
        if !used {
            // The path without the plural is what clients have seen since the first version.
            problems.required(
                format!("spec.dataVolumeTemplate[{i}]"),
                &format!(
                    "DataVolumeTemplate entry {name} must be referenced in the VMI template's 'volumes' list"
                ),
            );
        }
    }
}

fn storage_and_source(template: &DataVolumeTemplateSpec, field: &str, problems: &mut Problems) {
    let spec = &template.spec;
    match (&spec.pvc, &spec.storage) {
        (None, None) => {
            problems.required(format!("{field}.PVC.Storage"), "one of pvc or storage must be given")
        }
        (Some(_), Some(_)) => {
            problems.forbidden(format!("{field}.PVC.Storage"), "only one of pvc and storage may be given")
        }
        _ => {}
    }
    let sources =
        serde_json::to_value(&spec.source).ok().and_then(|v| v.as_object().map(serde_json::Map::len));
    match (sources.unwrap_or(0), &spec.source_ref) {
        (0, None) => problems.required(format!("{field}.source"), "one of source or sourceRef must be given"),
        (1, None) | (0, Some(_)) => {}
        _ => problems.forbidden(format!("{field}.source"), "exactly one source or sourceRef may be given"),
    }
}

/// Harvester's claims of a machine, as JSON in an annotation.
fn claim_templates(o: &Value, problems: &mut Problems) {
    let Some(value) = object::annotation(o, CLAIM_TEMPLATES).filter(|v| !v.is_empty()) else { return };
    let field = format!("metadata.annotations[{CLAIM_TEMPLATES}]");
    let mut names = BTreeSet::new();
    match serde_json::from_str::<Value>(value) {
        Err(e) => problems.invalid(field, value, format!("must be a JSON array of claims: {e}")),
        Ok(Value::Array(claims)) => {
            for (i, claim) in claims.iter().enumerate() {
                let name = text(claim, "/metadata/name");
                if name.is_empty() {
                    problems.required(format!("{field}[{i}].metadata.name"), "the claim needs a name");
                } else if !names.insert(name.to_string()) {
                    problems.duplicate(format!("{field}[{i}].metadata.name"), name);
                }
            }
        }
        Ok(other) => problems.invalid(field, other, "must be a JSON array of claims"),
    }
}

/// Limits of disks' use, as JSON in an annotation of the template.
fn disk_limits(o: &Value, problems: &mut Problems) {
    let annotations = find(o, "/spec/template/metadata/annotations");
    let given = |key: &str| annotations.and_then(|a| a.get(key)).and_then(Value::as_str);
    if let Some(text) = given(IO_WEIGHT)
        && !matches!(text.parse(), Ok(1_u16..=10_000))
    {
        let field = format!("spec.template.metadata.annotations[{IO_WEIGHT}]");
        problems.invalid(field, text, "is no weight; a number from 1 to 10000, where others have 100");
    }
    let Some(text) = given(DISK_LIMITS) else { return };
    if let Err(why) = DiskLimits::parse(text) {
        problems.invalid(format!("spec.template.metadata.annotations[{DISK_LIMITS}]"), text, why);
    }
}

/// Harvester's rules on memory: something must say how much, and the reservation must leave some.
fn memory(o: &Value, vm: &VirtualMachine, problems: &mut Problems) {
    let Some(value) = object::annotation(o, RESERVED_MEMORY).filter(|v| !v.is_empty()) else { return };
    let field = format!("metadata.annotations[{RESERVED_MEMORY}]");
    let Some(reserved) = problems.quantity(&field, &Value::from(value)) else { return };
    let limits = vm.spec.template.spec.domain.resources.as_ref().and_then(|r| r.limits.get("memory"));
    let Some(limit) = limits.and_then(|l| Quantity::parse(&l.0).ok()) else { return };
    if reserved.signum() < 0 || reserved >= limit {
        problems.invalid(field, value, format!("must be 0 or more and less than the memory limit {limit}"));
        return;
    }
    let guest = vm.spec.template.spec.domain.memory.as_ref().and_then(|m| m.guest.as_ref());
    if let Some(guest) = guest.and_then(|g| Quantity::parse(&g.0).ok())
        && guest.plus(reserved) > limit
    {
        problems.invalid(
            field,
            value,
            format!("with the guest's memory {guest} it is more than the memory limit {limit}"),
        );
    }
}

/// A snapshot or a restore under way holds the spec still.
fn locks(o: &Value, old: &Value, problems: &mut Problems) {
    let run = changed(o, old, "/spec/running") || changed(o, old, "/spec/runStrategy");
    let template = "/spec/template/spec";
    let disks = changed(o, old, &format!("{template}/volumes"))
        || changed(o, old, &format!("{template}/domain/devices/disks"));
    let snapshot = text(old, "/status/snapshotInProgress");
    if !snapshot.is_empty() && (run || disks) {
        problems.forbidden(
            "spec",
            &format!(
                "run strategy, disks and volumes cannot change while snapshot \"{snapshot}\" is in progress"
            ),
        );
    }
    let restore = text(old, "/status/restoreInProgress");
    if !restore.is_empty() && run {
        problems.forbidden(
            "spec",
            &format!("the run strategy cannot change while restore \"{restore}\" is in progress"),
        );
    }
}
