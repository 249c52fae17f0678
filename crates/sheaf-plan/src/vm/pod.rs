//! The Pod that stands for a running instance. Pure.
//!
//! No container runs: the Pod is there for those who look at pods (`kubectl get pods`, Services, drains, backup programs, the
//! CSI driver) and says truthfully what the machine does. Names, labels and conditions are those of upstream's launcher.
//! What is done to it is done to the machine: deletion and eviction shut the guest down.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sheaf_api::kubevirt::{VirtualMachineInstance, VirtualMachineInstanceStatus};

use crate::machine;

/// Keeps a Pod until its machine has ended.
pub const POD_FINALIZER: &str = "sheaf.io/machine";
/// On an instance: its Pod was deleted, with so many seconds of grace.
pub const POD_DELETED: &str = "sheaf.io/pod-deleted";
/// The condition of a Pod's readiness gate.
const UNPAUSED: &str = "kubevirt.io/virtual-machine-unpaused";
/// The image that the Pod claims to be made of; nobody pulls it.
const IMAGE: &str = "sheaf.io/machine:builtin";
/// Seconds beyond the guest's own, as upstream gives its launcher.
const GRACE_MORE: i64 = 15;
/// Letters of generated names: none that make words.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The one thing to do about the Pod of an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum PodStep {
    /// Make it.
    Create(Value),
    /// Write its status.
    Status(Value),
    /// Note on the instance that its Pod was deleted, with this much grace in seconds.
    ShutDown(i64),
    /// Let it go: nothing of the machine is left.
    Release,
    /// Note the Pod on the instance (`status.activePods`).
    Note,
    /// Nothing.
    Nothing,
}

fn status(vmi: &VirtualMachineInstance) -> VirtualMachineInstanceStatus {
    vmi.status.clone().unwrap_or_default()
}

fn is_final(vmi: &VirtualMachineInstance) -> bool {
    matches!(status(vmi).phase.as_str(), "Succeeded" | "Failed")
}

/// Name of the Pod of an instance: the same for the same instance, so that it is made once.
pub fn pod_name(vmi: &VirtualMachineInstance) -> String {
    let uid = vmi.metadata.uid.as_deref().unwrap_or_default();
    let mut hash =
        uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut suffix = String::new();
    for _ in 0..5 {
        suffix.push(char::from(LETTERS[usize::try_from(hash % LETTERS.len() as u64).unwrap_or(0)]));
        hash /= LETTERS.len() as u64;
    }
    // A name has 63 characters at most where it becomes a host name.
    let name = vmi.metadata.name.as_deref().unwrap_or_default();
    format!(
        "virt-launcher-{}-{suffix}",
        name.get(..43.min(name.len())).unwrap_or_default().trim_end_matches(['-', '.'])
    )
}

/// Decides. `pod` is the Pod of this name, if there is one.
pub fn plan_pod(vmi: Option<&VirtualMachineInstance>, pod: Option<&Value>, now: Timestamp) -> PodStep {
    let Some(pod) = pod else {
        return match vmi {
            Some(vmi) if vmi.metadata.deletion_timestamp.is_none() && !is_final(vmi) => {
                PodStep::Create(pod_of(vmi))
            }
            _ => PodStep::Nothing,
        };
    };
    let deleting = pod.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    let owner = pod.pointer("/metadata/ownerReferences/0/uid").and_then(Value::as_str);
    let vmi = vmi.filter(|vmi| vmi.metadata.uid.as_deref() == owner);
    let Some(vmi) = vmi else { return if deleting { PodStep::Release } else { PodStep::Nothing } };
    if deleting {
        let annotations = vmi.metadata.annotations.as_ref();
        let told = annotations.and_then(|a| a.get(POD_DELETED)).and_then(|g| g.parse::<i64>().ok());
        let grace = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
        let own = vmi.spec.termination_grace_period_seconds.unwrap_or(30);
        let grace = grace.unwrap_or(own).min(own).max(0);
        if is_final(vmi) {
            return PodStep::Release;
        }
        return match told {
            Some(before) if before <= grace => PodStep::Nothing,
            _ => PodStep::ShutDown(grace),
        };
    }
    let wanted = pod_status(vmi, pod, now);
    if pod.get("status") != Some(&wanted) {
        return PodStep::Status(wanted);
    }
    let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    let (node, noted) = (status(vmi).node_name, status(vmi).active_pods);
    if !uid.is_empty() && !node.is_empty() && noted.get(uid) != Some(&node) && !is_final(vmi) {
        return PodStep::Note;
    }
    PodStep::Nothing
}

/// The Pod of an instance, as it is made.
fn pod_of(vmi: &VirtualMachineInstance) -> Value {
    let meta = &vmi.metadata;
    let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let mut labels: Map<String, Value> = Map::new();
    for (key, value) in meta.labels.iter().flatten() {
        if key != "kubevirt.io/nodeName" {
            labels.insert(key.clone(), json!(value));
        }
    }
    for (key, value) in [
        ("kubevirt.io", "virt-launcher"),
        ("kubevirt.io/created-by", uid.as_str()),
        ("vm.kubevirt.io/name", name.as_str()),
        ("vmi.kubevirt.io/id", name.as_str()),
    ] {
        labels.insert(key.into(), json!(value));
    }
    let mut annotations: Map<String, Value> = Map::new();
    for (key, value) in meta.annotations.iter().flatten() {
        // What leads the machine is nobody's business here.
        if !key.starts_with("sheaf.io/") {
            annotations.insert(key.clone(), json!(value));
        }
    }
    annotations.insert("kubevirt.io/domain".into(), json!(name));
    annotations.insert("kubectl.kubernetes.io/default-container".into(), json!("compute"));
    let spec = &vmi.spec;
    let (mut volumes, mut devices) = (Vec::new(), Vec::new());
    for volume in &spec.volumes {
        let claim = volume.persistent_volume_claim.as_ref().map(|c| (c.claim_name.clone(), c.hotpluggable));
        let claim = claim.or_else(|| volume.data_volume.as_ref().map(|d| (d.name.clone(), d.hotpluggable)));
        // As upstream: what is plugged in later is not the launcher's.
        if let Some((claim, _)) = claim.filter(|(_, hot)| *hot != Some(true)) {
            volumes.push(json!({"name": volume.name, "persistentVolumeClaim": {"claimName": claim}}));
            devices.push(json!({"name": volume.name, "devicePath": format!("/dev/{}", volume.name)}));
        }
    }
    let grace = spec.termination_grace_period_seconds.unwrap_or(30) + GRACE_MORE;
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(vmi), "namespace": meta.namespace, "labels": labels, "annotations": annotations,
            "finalizers": [POD_FINALIZER],
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": name, "uid": uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "containers": [{
                "name": "compute", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "resources": resources(vmi),
                "volumeDevices": devices,
            }],
            "volumes": volumes,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace,
            "hostname": if spec.hostname.is_empty() { &name } else { &spec.hostname },
            "readinessGates": [{"conditionType": UNPAUSED}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        },
    });
    if !spec.subdomain.is_empty() {
        pod["spec"]["subdomain"] = json!(spec.subdomain);
    }
    if !spec.node_selector.is_empty() {
        pod["spec"]["nodeSelector"] = json!(spec.node_selector);
    }
    if let Some(affinity) = &spec.affinity {
        pod["spec"]["affinity"] = json!(affinity);
    }
    if !spec.tolerations.is_empty() {
        pod["spec"]["tolerations"] = json!(spec.tolerations);
    }
    let node = status(vmi).node_name;
    if !node.is_empty() {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

/// What the machine takes: what it asks for, and QEMU's own.
fn resources(vmi: &VirtualMachineInstance) -> Value {
    let given = vmi.spec.domain.resources.clone().unwrap_or_default();
    let guest = machine::guest_memory(&vmi.spec).unwrap_or(0);
    let over = machine::overhead(guest, machine::vcpus(&vmi.spec));
    let plus = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
        q.and_then(machine::bytes).map(|bytes| json!((bytes + over).to_string()))
    };
    let mut requests = Map::new();
    let cpu = given.requests.get("cpu").map(|q| json!(q.0));
    requests
        .insert("cpu".into(), cpu.unwrap_or_else(|| json!(format!("{}m", 100 * machine::vcpus(&vmi.spec)))));
    let memory = plus(given.requests.get("memory")).unwrap_or_else(|| json!((guest + over).to_string()));
    requests.insert("memory".into(), memory);
    let mut limits = Map::new();
    if let Some(cpu) = given.limits.get("cpu") {
        limits.insert("cpu".into(), json!(cpu.0));
    }
    if let Some(memory) = plus(given.limits.get("memory")) {
        limits.insert("memory".into(), memory);
    }
    json!({"requests": requests, "limits": limits})
}

/// The status of a Pod, as its instance is.
fn pod_status(vmi: &VirtualMachineInstance, pod: &Value, now: Timestamp) -> Value {
    let own = status(vmi);
    let condition = |kind: &str| own.conditions.iter().find(|c| c.r#type == kind);
    let is = |kind: &str| condition(kind).is_some_and(|c| c.status == "True");
    let scheduled = !own.node_name.is_empty();
    let phase = match own.phase.as_str() {
        "Succeeded" => "Succeeded",
        "Failed" => "Failed",
        "Running" => "Running",
        _ => "Pending",
    };
    let running = phase == "Running";
    let old = pod.get("status").cloned().unwrap_or_default();
    let was = |kind: &str, value: &str| {
        let all = old["conditions"].as_array().cloned().unwrap_or_default();
        all.iter()
            .find(|c| c["type"] == kind && c["status"] == value)
            .map(|c| c["lastTransitionTime"].clone())
    };
    let now = json!(crate::conditions::whole_seconds(now).to_string());
    let make = |kind: &str, value: bool, reason: &str, message: &str| {
        let value = if value { "True" } else { "False" };
        let mut out = json!({"type": kind, "status": value, "lastTransitionTime": was(kind, value).unwrap_or(now.clone())});
        if value == "False" && !reason.is_empty() {
            (out["reason"], out["message"]) = (json!(reason), json!(message));
        }
        out
    };
    let ready = running && is("Ready") && !is("Paused");
    let why = if own.phase == "Succeeded" { "PodCompleted" } else { "ContainersNotReady" };
    let unscheduled = condition("PodScheduled").filter(|c| c.status == "False");
    let conditions = json!([
        make(
            UNPAUSED,
            running && !is("Paused"),
            if is("Paused") { "Paused" } else { "NotRunning" },
            "the virtual machine does not run"
        ),
        make(
            "Ready",
            ready,
            if running && is("Paused") { "ReadinessGatesNotReady" } else { why },
            "the virtual machine is not ready"
        ),
        make("ContainersReady", running && is("Ready"), why, "the virtual machine is not ready"),
        make("Initialized", scheduled, "", ""),
        make(
            "PodScheduled",
            scheduled,
            unscheduled.map_or("", |c| c.reason.as_str()),
            unscheduled.map_or("", |c| c.message.as_str()),
        ),
    ]);
    let ips: Vec<Value> = own
        .interfaces
        .first()
        .map(|i| if i.ip_addresses.is_empty() { vec![i.ip_address.clone()] } else { i.ip_addresses.clone() })
        .unwrap_or_default()
        .into_iter()
        .filter(|ip| !ip.is_empty())
        .map(|ip| json!({"ip": ip}))
        .collect();
    let since = own
        .phase_transition_timestamps
        .iter()
        .find(|t| t.phase == "Running")
        .and_then(|t| t.phase_transition_timestamp.as_ref())
        .map(|t| json!(t));
    let state = match (phase, &since) {
        ("Running", Some(since)) => json!({"running": {"startedAt": since}}),
        ("Succeeded", _) => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
        ("Failed", _) => json!({"terminated": {"exitCode": 1, "reason": "Error"}}),
        _ => json!({"waiting": {"reason": "ContainerCreating"}}),
    };
    let mut out = json!({
        "phase": phase,
        "qosClass": own.qos_class.as_deref().unwrap_or("Burstable"),
        "conditions": conditions,
        "containerStatuses": [{
            "name": "compute", "image": IMAGE, "imageID": "", "restartCount": 0, "ready": running && is("Ready"),
            "started": running, "state": state, "lastState": {},
        }],
    });
    if let Some(first) = ips.first() {
        out["podIP"] = first["ip"].clone();
        out["podIPs"] = json!(ips);
    }
    if scheduled {
        out["startTime"] = old.get("startTime").filter(|t| !t.is_null()).cloned().unwrap_or(now.clone());
    }
    if let Some(host) = old.get("hostIP") {
        out["hostIP"] = host.clone();
        out["hostIPs"] = old.get("hostIPs").cloned().unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(phase: &str) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "x", "uid": "u-1", "labels": {"app": "web", "kubevirt.io/nodeName": "n"},
                "annotations": {"a": "b", "sheaf.io/pause": "true"}},
            "spec": {"domain": {"devices": {}, "memory": {"guest": "1Gi"}}, "terminationGracePeriodSeconds": 60,
                "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "hot", "persistentVolumeClaim": {"claimName": "h", "hotpluggable": true}}]},
            "status": {"phase": phase, "nodeName": "n", "interfaces": [{"name": "default", "ipAddress": "10.0.0.2"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .expect("an instance")
    }

    fn made(vmi: &VirtualMachineInstance) -> Value {
        let PodStep::Create(mut pod) = plan_pod(Some(vmi), None, Timestamp::UNIX_EPOCH) else {
            panic!("no pod")
        };
        pod["metadata"]["uid"] = json!("p-1");
        pod
    }

    #[test]
    fn a_pod_comes_says_what_is_and_is_noted() {
        let running = vmi("Running");
        let mut pod = made(&running);
        assert!(pod_name(&running).starts_with("virt-launcher-web-"), "{}", pod_name(&running));
        assert_eq!(pod["metadata"]["labels"]["kubevirt.io/created-by"], "u-1");
        assert_eq!(pod["metadata"]["labels"]["app"], "web");
        assert_eq!(pod["metadata"]["annotations"]["sheaf.io/pause"], Value::Null);
        assert_eq!(pod["spec"]["volumes"].as_array().map(Vec::len), Some(1));
        let now = Timestamp::UNIX_EPOCH;
        let PodStep::Status(status) = plan_pod(Some(&running), Some(&pod), now) else { panic!("no status") };
        assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.0.0.2")));
        pod["status"] = status;
        assert_eq!(plan_pod(Some(&running), Some(&pod), now), PodStep::Note);
        let mut noted = running;
        if let Some(s) = &mut noted.status {
            s.active_pods.insert("p-1".into(), "n".into());
        }
        assert_eq!(plan_pod(Some(&noted), Some(&pod), now), PodStep::Nothing);
        // A later moment changes nothing by itself.
        assert_eq!(
            plan_pod(Some(&noted), Some(&pod), Timestamp::from_second(99).expect("t")),
            PodStep::Nothing
        );
    }

    #[test]
    fn what_is_done_to_a_pod_is_done_to_its_machine() {
        let now = Timestamp::UNIX_EPOCH;
        let running = vmi("Running");
        let mut pod = made(&running);
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-28T10:00:00Z");
        assert_eq!(plan_pod(Some(&running), Some(&pod), now), PodStep::ShutDown(60));
        let mut told = running.clone();
        told.metadata.annotations = Some([(POD_DELETED.to_owned(), "60".to_owned())].into());
        assert_eq!(plan_pod(Some(&told), Some(&pod), now), PodStep::Nothing);
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        assert_eq!(plan_pod(Some(&told), Some(&pod), now), PodStep::ShutDown(0));
        assert_eq!(plan_pod(Some(&vmi("Succeeded")), Some(&pod), now), PodStep::Release);
        assert_eq!(plan_pod(None, Some(&pod), now), PodStep::Release);
        assert_eq!(plan_pod(None, None, now), PodStep::Nothing);
        assert_eq!(plan_pod(Some(&vmi("Failed")), None, now), PodStep::Nothing);
    }
}
