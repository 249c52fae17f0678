//! The Node object of this machine: registered at start, kept true, and its heartbeat.
//!
//! The heartbeat is a Lease (`kube-node-lease/NAME`), renewed every 10 s: cheap, and what the node controller judges
//! by. The Node's status is written only when a fact changes, and every 5 minutes. Who owns the state: this loop owns
//! the Node's labels, addresses, capacity, info and conditions; `spec` belongs to others.

mod facts;
pub(crate) mod load;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_runtime::patch::merge_diff;
use tokio::sync::watch;
use tracing::{info, warn};

pub use facts::{Facts, local_address};

/// Renewal of the Lease; the node controller waits for four missed ones.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a Lease is good for.
pub const LEASE_SECONDS: u32 = 40;
/// The status is written at least this often.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
const MANAGER: &str = "sheaf-node";

/// What the node says of itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Name of the Node object.
    pub name: String,
    /// Address under which the API server reaches the node's stream endpoints.
    pub address: IpAddr,
    /// Port of the stream endpoints.
    pub port: u16,
    /// Whether this process is also a server.
    pub control_plane: bool,
    /// Where volumes and images lie, for the disk's capacity.
    pub data_dir: PathBuf,
}

/// Registers the node and keeps its object true; never returns. Publishes the Node as it is in the API, since other
/// loops need its `spec` (the guest subnet, cordons).
pub async fn run(client: Client, config: NodeConfig, published: Arc<watch::Sender<Option<Node>>>) {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut last_status: Option<(Timestamp, Value)> = None;
    let mut failing = false;
    loop {
        let facts = Facts::gather(&config.data_dir);
        match beat(&nodes, &leases, &config, &facts, &mut last_status).await {
            Ok(node) => {
                if failing {
                    info!(node = config.name, "the API answers again");
                }
                failing = false;
                published.send_if_modified(|old| {
                    let changed = old.as_ref().and_then(|n| n.metadata.resource_version.clone())
                        != node.metadata.resource_version;
                    *old = Some(node);
                    changed
                });
            }
            Err(error) => {
                if !failing {
                    warn!(node = config.name, %error, "the node's state is not reported; tried again");
                }
                failing = true;
            }
        }
        let new_here =
            published.borrow().as_ref().is_none_or(|n| n.spec.as_ref().is_none_or(|s| s.pod_cidr.is_none()));
        // A node that has just joined is given its guests' subnet at once; its first guest is not to wait for a heartbeat.
        let wait = match (failing, new_here) {
            (true, _) => Duration::from_secs(1),
            (false, true) => Duration::from_millis(200),
            (false, false) => HEARTBEAT,
        };
        tokio::time::sleep(wait).await;
    }
}

async fn beat(
    nodes: &Api<Node>,
    leases: &Api<Lease>,
    config: &NodeConfig,
    facts: &Facts,
    last_status: &mut Option<(Timestamp, Value)>,
) -> Result<Node, kube::Error> {
    let now = Timestamp::now();
    let mut node = match nodes.get_opt(&config.name).await? {
        Some(node) => node,
        None => {
            *last_status = None;
            info!(node = config.name, "registering this node");
            let fresh = parse(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": config.name, "labels": labels(config)},
            }))?;
            nodes.create(&PostParams::default(), &fresh).await?
        }
    };
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let have = node.metadata.labels.clone().unwrap_or_default();
    let missing: BTreeMap<_, _> =
        labels(config).into_iter().filter(|(k, v)| have.get(k) != Some(v)).collect();
    if !missing.is_empty() {
        let patch = json!({"metadata": {"labels": missing}});
        node = nodes.patch(&config.name, &params, &Patch::Merge(patch)).await?;
    }
    let wanted = status(config, facts);
    let stale = last_status.as_ref().is_none_or(|(at, said)| {
        *said != wanted || now.as_second() - at.as_second() >= STATUS_PERIOD.as_secs().cast_signed()
    });
    let not_ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status != "True");
    if stale || not_ready {
        let old = serde_json::to_value(&node.status).map_err(kube::Error::SerdeError)?;
        let mut new = wanted.clone();
        new["conditions"] = conditions(&old["conditions"], now);
        if merge_diff(&old, &new).is_some() {
            let patch = json!({"status": new});
            node = nodes.patch_status(&config.name, &params, &Patch::Merge(patch)).await?;
        }
        *last_status = Some((now, wanted));
    }
    renew(leases, config, &node, now).await?;
    Ok(node)
}

async fn renew(
    leases: &Api<Lease>,
    config: &NodeConfig,
    node: &Node,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let renewed = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let patch = json!({"spec": {"renewTime": renewed}});
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    match leases.patch(&config.name, &params, &Patch::Merge(patch)).await {
        Err(kube::Error::Api(missing)) if missing.code == 404 => {
            let lease = parse(json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": config.name, "namespace": "kube-node-lease", "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": config.name, "uid": node.metadata.uid,
                }]},
                "spec": {"holderIdentity": config.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed},
            }))?;
            leases.create(&PostParams::default(), &lease).await.map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

fn parse<K: serde::de::DeserializeOwned>(value: Value) -> Result<K, kube::Error> {
    serde_json::from_value(value).map_err(kube::Error::SerdeError)
}

fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut labels = BTreeMap::from(
        [
            ("kubernetes.io/hostname", config.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("kubevirt.io/schedulable", "true"),
            ("harvesterhci.io/managed", "true"),
            ("network.harvesterhci.io/mgmt", "true"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    if config.control_plane {
        labels.insert("node-role.kubernetes.io/control-plane".into(), "true".into());
    }
    labels
}

/// Everything of the status except the conditions.
fn status(config: &NodeConfig, facts: &Facts) -> Value {
    let mut capacity = json!({
        "cpu": facts.cpus.to_string(),
        "memory": format!("{}Ki", facts.memory_bytes / 1024),
        "ephemeral-storage": facts.disk_bytes.to_string(),
        "pods": "250",
    });
    // KubeVirt's device resources: 1000 each where the device works, as its device plugin says.
    for (name, there) in [("kvm", facts.kvm), ("tun", facts.tun), ("vhost-net", facts.vhost_net)] {
        let count = if there { "1k" } else { "0" };
        capacity[format!("devices.kubevirt.io/{name}")] = json!(count);
    }
    json!({
        "capacity": capacity, "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": config.address.to_string()},
            {"type": "Hostname", "address": config.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
        "nodeInfo": {
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "bootID": facts.boot_id, "machineID": facts.machine_id, "systemUUID": facts.system_uuid,
            "kernelVersion": facts.kernel, "operatingSystem": "linux", "osImage": facts.os,
            "containerRuntimeVersion": format!("qemu://{}", facts.qemu.map(|v| v.to_string()).unwrap_or_default()),
            "kubeProxyVersion": "", "kubeletVersion": concat!("v1.36.2+sheaf-", env!("CARGO_PKG_VERSION")),
        },
    })
}

/// The node's conditions; a transition time moves only when the status does.
fn conditions(old: &Value, now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let all = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "the node has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "the node has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "the node has sufficient process ids available"),
        ("Ready", "True", "KubeletReady", "the agent reports that this node is ready"),
    ];
    let list = all.map(|(kind, status, reason, message)| {
        let before = old.as_array().and_then(|l| l.iter().find(|c| c["type"] == kind));
        let since = before.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since.unwrap_or(&now),
        })
    });
    Value::Array(list.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_transition_time_until_its_status_changes() {
        let t0 = Timestamp::from_second(1000).expect("a time");
        let t1 = Timestamp::from_second(2000).expect("a time");
        let first = conditions(&Value::Null, t0);
        let second = conditions(&first, t1);
        assert_eq!(second[3]["lastTransitionTime"], first[3]["lastTransitionTime"]);
        assert_ne!(second[3]["lastHeartbeatTime"], first[3]["lastHeartbeatTime"]);
        let mut lost = second.clone();
        lost[3]["status"] = json!("Unknown");
        assert_eq!(conditions(&lost, t1)[3]["lastTransitionTime"], second[3]["lastHeartbeatTime"]);
    }
}
