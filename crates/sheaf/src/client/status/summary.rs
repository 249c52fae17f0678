//! From a cluster's objects to what matters about them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object::{self, str_at};
use sheaf_meta::quantity::Quantity;

use super::super::image::{Stage, image_state};
use super::super::vm::{VmView, cpus, event_time, memory};
use super::condition;

/// How long something may be under way before it is worth a word.
const PATIENCE_SECONDS: i64 = 60;
/// Warnings older than this are history.
const EVENTS_SECONDS: i64 = 600;
/// Reasons that are shown of one object.
const REASONS_MAX: usize = 4;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) version: String,
    pub(super) nodes: Vec<Value>,
    pub(super) vms: Vec<Value>,
    pub(super) instances: Vec<Value>,
    pub(super) images: Vec<Value>,
    pub(super) claims: Vec<Value>,
    pub(super) events: Vec<Value>,
}

/// What matters.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) version: String,
    pub(super) nodes: Vec<NodeSummary>,
    /// Number of VMs by status.
    pub(super) vms: BTreeMap<String, usize>,
    /// Number of images by stage.
    pub(super) images: BTreeMap<String, usize>,
    pub(super) attention: Vec<Problem>,
}

/// A node.
#[derive(Debug)]
pub(super) struct NodeSummary {
    pub(super) name: String,
    pub(super) status: String,
    pub(super) ready: bool,
    pub(super) cpus: u64,
    pub(super) cpus_promised: u64,
    /// Bytes.
    pub(super) memory: u64,
    pub(super) memory_promised: u64,
    pub(super) vms: usize,
    pub(super) address: String,
    pub(super) created: String,
}

/// Something that somebody should look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Kind and name.
    pub(super) object: String,
    pub(super) what: String,
    pub(super) why: Vec<String>,
}

impl Summary {
    /// For programs.
    pub(super) fn to_json(&self, url: &str) -> Value {
        let node = |n: &NodeSummary| {
            json!({
                "name": n.name, "status": n.status, "ready": n.ready, "address": n.address, "virtualMachines": n.vms,
                "cpu": {"total": n.cpus, "promised": n.cpus_promised},
                "memoryBytes": {"total": n.memory, "promised": n.memory_promised},
            })
        };
        let problem = |p: &Problem| json!({"object": p.object, "what": p.what, "why": p.why});
        json!({
            "server": url,
            "version": self.version,
            "healthy": self.attention.is_empty(),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "virtualMachines": self.vms,
            "images": self.images,
            "attention": self.attention.iter().map(problem).collect::<Vec<_>>(),
        })
    }
}

/// Reads a cluster's objects.
pub(super) fn summarize(seen: &Seen, now: Timestamp) -> Summary {
    let mut attention = Vec::new();
    if seen.nodes.is_empty() {
        let why = vec![
            "`sheaf server` without --no-agent is one; `sheaf token` lets other machines join".to_owned(),
        ];
        attention.push(Problem {
            object: "cluster".into(),
            what: "has no nodes, so nothing can run".into(),
            why,
        });
    }
    let nodes: Vec<NodeSummary> = seen.nodes.iter().map(|node| node_summary(node, &seen.instances)).collect();
    for (node, summary) in seen.nodes.iter().zip(&nodes) {
        attention.extend(node_problem(node, summary));
    }
    let mut vms = BTreeMap::new();
    for view in VmView::pair(&seen.vms, &seen.instances) {
        *vms.entry(view.status().to_owned()).or_default() += 1;
        attention.extend(vm_problem(&view, seen, now));
    }
    let mut images = BTreeMap::new();
    for image in &seen.images {
        let state = image_state(image);
        *images.entry(state.stage.word().to_owned()).or_default() += 1;
        if state.stage == Stage::Failed {
            let object = format!("image {}", full_name(image));
            attention.push(Problem { object, what: "failed".into(), why: some(state.why) });
        }
    }
    Summary { version: seen.version.clone(), nodes, vms, images, attention }
}

fn some(text: String) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { vec![text] }
}

fn full_name(object: &Value) -> String {
    format!("{}/{}", object::namespace(object), object::name(object))
}

fn node_summary(node: &Value, instances: &[Value]) -> NodeSummary {
    let name = object::name(node);
    let runs = |i: &&Value| {
        str_at(i, &["status", "nodeName"]) == name
            && !matches!(str_at(i, &["status", "phase"]), "Succeeded" | "Failed")
    };
    let here: Vec<&Value> = instances.iter().filter(runs).collect();
    let domains = || here.iter().map(|i| &i["spec"]["domain"]);
    let total = |resource: &str| {
        let text = match str_at(node, &["status", "allocatable", resource]) {
            "" => str_at(node, &["status", "capacity", resource]),
            text => text,
        };
        Quantity::parse(text).ok()
    };
    let ready = condition(node, "Ready").is_some_and(|c| c["status"] == "True");
    let closed = node["spec"]["unschedulable"] == true;
    let mut status = if ready { "Ready" } else { "NotReady" }.to_owned();
    if closed {
        status += ",SchedulingDisabled";
    }
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let address = addresses.into_iter().flatten().find(|a| a["type"] == "InternalIP");
    NodeSummary {
        name: name.to_owned(),
        status,
        ready,
        cpus: total("cpu").and_then(|q| u64::try_from(q.value()).ok()).unwrap_or(0),
        cpus_promised: domains().map(cpus).sum(),
        memory: total("memory").and_then(|q| q.bytes()).unwrap_or(0),
        memory_promised: domains().filter_map(|d| Quantity::parse(memory(d)).ok()?.bytes()).sum(),
        vms: here.len(),
        address: address.map_or("", |a| str_at(a, &["address"])).to_owned(),
        created: object::creation_timestamp(node).to_owned(),
    }
}

fn node_problem(node: &Value, summary: &NodeSummary) -> Option<Problem> {
    let mut why = Vec::new();
    if !summary.ready {
        why.push(match condition(node, "Ready") {
            Some(ready) => match str_at(ready, &["message"]) {
                "" => format!("its agent reports {}", str_at(ready, &["reason"])),
                message => message.to_owned(),
            },
            None => "its agent has not reported yet".into(),
        });
    }
    for kind in ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
        if let Some(c) = condition(node, kind).filter(|c| c["status"] == "True") {
            why.push(format!("{kind}: {}", str_at(c, &["message"])));
        }
    }
    if why.is_empty() {
        return None;
    }
    Some(Problem { object: format!("node {}", summary.name), what: summary.status.clone(), why })
}

/// A VM that does not do what it should: in an error, or under way for too long.
fn vm_problem(view: &VmView<'_>, seen: &Seen, now: Timestamp) -> Option<Problem> {
    let status = view.status();
    let older = |since: &str| {
        since.parse::<Timestamp>().is_ok_and(|at| now.as_second() - at.as_second() > PATIENCE_SECONDS)
    };
    let created = view.instance.map_or(object::creation_timestamp(view.vm), object::creation_timestamp);
    let begun = match object::deletion_timestamp(view.vm) {
        "" => created,
        deleted => deleted,
    };
    let needs_help = match status {
        "Running" | "Stopped" | "Paused" => false,
        "Migrating" => false,
        "New" | "Starting" | "Provisioning" | "Stopping" | "Terminating" | "WaitingForVolumeBinding" => {
            older(begun)
        }
        // Errors have names of their own.
        _ => true,
    };
    if !needs_help {
        return None;
    }
    let mut why = view.why();
    for claim in missing_claims(view, &seen.claims) {
        if !why.iter().any(|known| known.contains(&claim)) {
            why.push(format!("claim {claim} does not exist"));
        }
    }
    for warning in warnings(view, &seen.events, now) {
        if !why.contains(&warning) {
            why.push(warning);
        }
    }
    why.truncate(REASONS_MAX);
    Some(Problem { object: format!("VM {}", full_name(view.vm)), what: status.to_owned(), why })
}

fn missing_claims(view: &VmView<'_>, claims: &[Value]) -> Vec<String> {
    let namespace = object::namespace(view.vm);
    let exists =
        |name: &str| claims.iter().any(|c| object::namespace(c) == namespace && object::name(c) == name);
    let used = view.volumes().into_iter().filter(|(_, what, _)| *what == "claim").map(|(_, _, claim)| claim);
    used.filter(|claim| !exists(claim)).map(str::to_owned).collect()
}

/// The latest warnings about a VM, newest first, each sentence once.
fn warnings(view: &VmView<'_>, events: &[Value], now: Timestamp) -> Vec<String> {
    let about = |event: &&Value| {
        let recent = event_time(event)
            .parse::<Timestamp>()
            .is_ok_and(|at| now.as_second() - at.as_second() <= EVENTS_SECONDS);
        recent
            && event["type"] == "Warning"
            && str_at(event, &["involvedObject", "kind"]).starts_with("VirtualMachine")
            && str_at(event, &["involvedObject", "name"]) == object::name(view.vm)
            && str_at(event, &["involvedObject", "namespace"]) == object::namespace(view.vm)
    };
    let mut found: Vec<&Value> = events.iter().filter(about).collect();
    found.sort_by_key(|event| std::cmp::Reverse(event_time(event)));
    let mut texts: Vec<String> = Vec::new();
    for text in found.into_iter().map(|event| str_at(event, &["message"])) {
        if !text.is_empty() && !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn nodes_and_what_they_promised() {
        let node = json!({
            "metadata": {"name": "n"}, "spec": {"unschedulable": true},
            "status": {"capacity": {"cpu": "2", "memory": "4Gi"}, "conditions": [
                {"type": "Ready", "status": "Unknown", "message": "its lease has expired"},
                {"type": "DiskPressure", "status": "True", "message": "2 % are free"},
            ]},
        });
        let instance = |phase: &str, node: &str| {
            json!({"spec": {"domain": {"cpu": {"cores": 2}, "memory": {"guest": "1Gi"}}},
                "status": {"phase": phase, "nodeName": node}})
        };
        let instances = vec![
            instance("Running", "n"),
            instance("Scheduled", "n"),
            instance("Failed", "n"),
            instance("Running", "m"),
        ];
        let seen = Seen { nodes: vec![node], instances, ..Seen::default() };
        let summary = summarize(&seen, now());
        let n = &summary.nodes[0];
        assert_eq!(
            (n.cpus, n.cpus_promised, n.memory, n.memory_promised, n.vms),
            (2, 4, 4 << 30, 2 << 30, 2)
        );
        let expected = Problem {
            object: "node n".into(),
            what: "NotReady,SchedulingDisabled".into(),
            why: vec!["its lease has expired".into(), "DiskPressure: 2 % are free".into()],
        };
        assert_eq!(summary.attention, [expected]);
        assert_eq!(summary.to_json("https://a")["healthy"], false);
    }

    #[test]
    fn an_empty_cluster_says_what_to_do() {
        let summary = summarize(&Seen::default(), now());
        assert_eq!(summary.attention[0].object, "cluster");
    }

    #[test]
    fn vms_that_need_help() {
        let vm = |status: &str, created: &str| {
            json!({
                "metadata": {"name": "a", "namespace": "x", "creationTimestamp": created},
                "spec": {"template": {"spec": {"volumes": [
                    {"name": "r", "persistentVolumeClaim": {"claimName": "gone"}}
                ]}}},
                "status": {"printableStatus": status},
            })
        };
        let events = vec![json!({
            "type": "Warning", "message": "QEMU ended", "lastTimestamp": "2026-01-01T00:59:00Z",
            "involvedObject": {"kind": "VirtualMachineInstance", "name": "a", "namespace": "x"},
        })];
        let shown = |status: &str, created: &str| {
            let seen = Seen {
                nodes: vec![json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})],
                vms: vec![vm(status, created)],
                events: events.clone(),
                ..Seen::default()
            };
            summarize(&seen, now()).attention.into_iter().map(|p| p.why.join("; ")).collect::<Vec<_>>()
        };
        let (old, fresh) = ("2026-01-01T00:00:00Z", "2026-01-01T00:59:30Z");
        assert_eq!(shown("CrashLoopBackOff", fresh), ["claim gone does not exist; QEMU ended"]);
        assert_eq!(shown("Starting", old).len(), 1);
        for (status, created) in [("Starting", fresh), ("Running", old), ("Stopped", old), ("Paused", old)] {
            assert!(shown(status, created).is_empty(), "{status} {created}");
        }
    }
}
