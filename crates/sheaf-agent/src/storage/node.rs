//! The node as a place for replicas: `nodes.longhorn.io`. Its spec is made once with one disk, then the users'; its status,
//! with what each disk has and holds, is this loop's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as CoreNode;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::json;
use sheaf_api::longhorn::{DiskSpec, DiskStatus, NAMESPACE, Node, NodeStatus, set_condition};
use sheaf_plan::conditions::whole_seconds;
use sheaf_plan::storage::Settings;
use sheaf_plan::storage::place::{Disk, pressure};
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, StepError, TaskGroup};
use tracing::warn;

use super::{Kind, MANAGER, Replicated};

/// How often disks are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Name of a disk's identity, at its root.
const IDENTITY: &str = "longhorn-disk.cfg";
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

struct Nodes {
    shared: Arc<Replicated>,
    nodes: Arc<Informer<CoreNode>>,
}

pub(super) fn spawn(shared: &Arc<Replicated>, nodes: &Arc<Informer<CoreNode>>, group: &TaskGroup) {
    let name = shared.node.clone();
    let (of_core, of_replica, of_setting) = (name.clone(), name.clone(), name.clone());
    let driver = Driver::new(Nodes { shared: shared.clone(), nodes: nodes.clone() })
        .on(&shared.nodes, move |node| {
            if node.name_any() == name { vec![ObjectKey::new(NAMESPACE, name.clone())] } else { Vec::new() }
        })
        .on(nodes, move |node| {
            let ours = node.name_any() == of_core;
            if ours { vec![ObjectKey::new(NAMESPACE, of_core.clone())] } else { Vec::new() }
        })
        .on(&shared.replicas, move |replica| {
            let ours = replica.spec.node_id == of_replica;
            if ours { vec![ObjectKey::new(NAMESPACE, of_replica.clone())] } else { Vec::new() }
        })
        .on(&shared.settings, move |_| vec![ObjectKey::new(NAMESPACE, of_setting.clone())]);
    shared.add_waker(Kind::Node, driver.waker());
    driver.spawn(group);
}

/// Total and free bytes of a file system.
fn space(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The UUID of the disk that is there, if it was given one.
pub(super) fn disk_of(root: &Path) -> Option<String> {
    let bytes = std::fs::read(root.join(IDENTITY)).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    value["diskUUID"].as_str().filter(|uuid| !uuid.is_empty()).map(str::to_owned)
}

/// The UUID of a disk, given once.
fn identity(root: &Path, name: &str) -> std::io::Result<String> {
    let path = root.join(IDENTITY);
    if let Some(uuid) = disk_of(root) {
        return Ok(uuid);
    }
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
    let text = json!({"diskName": name, "diskUUID": uuid, "diskDriver": ""}).to_string();
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, &path)?;
    Ok(uuid)
}

impl Controller for Nodes {
    const NAME: &'static str = "storage-node";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let shared = &self.shared;
        let api: Api<Node> = Api::namespaced(shared.client.clone(), NAMESPACE);
        let Some(core) = self.nodes.get(&ObjectKey::new("", &key.name)) else { return Ok(Next::After(LOOK)) };
        let Some(node) = shared.nodes.get(key) else {
            let object = self.first(key);
            match api.create(&PostParams::default(), &object).await {
                // The namespace may not be there yet.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                other => drop(other.map_err(StepError::api("making the node's place for replicas"))?),
            }
            return Ok(Next::After(Duration::from_secs(1)));
        };
        shared.follow_disks();
        let values: BTreeMap<String, String> =
            shared.settings.list().iter().map(|s| (s.name_any(), s.value.clone())).collect();
        let status = self.status(&node, &core, &Settings::read(&values));
        if !worth_it(&node.status.clone().unwrap_or_default(), &status) {
            return Ok(Next::After(LOOK));
        }
        let mut after = (*node).clone();
        after.status = Some(status);
        patch::write(&api, MANAGER, Target::Status, &node, &after).await?;
        Ok(Next::After(LOOK))
    }
}

/// Free space changes all the time; a write is worth a hundredth of the disk.
fn worth_it(before: &NodeStatus, after: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for disk in status.disk_status.values_mut() {
            disk.storage_available = None;
            disk.conditions.iter_mut().for_each(|c| c.message = String::new());
        }
        status
    };
    let moved = |name: &String, disk: &DiskStatus| {
        let old = before.disk_status.get(name).and_then(|d| d.storage_available).unwrap_or(0);
        let new = disk.storage_available.unwrap_or(0);
        old.abs_diff(new) > disk.storage_maximum.unwrap_or(0).unsigned_abs() / 100
    };
    strip(before) != strip(after) || after.disk_status.iter().any(|(name, disk)| moved(name, disk))
}

impl Nodes {
    /// The node as it is made: one disk, where the process keeps its own things too.
    fn first(&self, key: &ObjectKey) -> Node {
        let shared = &self.shared;
        let path = &shared.config.dir;
        let _ = std::fs::create_dir_all(path);
        let percent = Settings::default().reserved_percent;
        let reserved = space(path).map_or(0, |(all, _)| all / 100 * percent);
        let disk = DiskSpec {
            allow_scheduling: Some(true),
            disk_type: "filesystem".into(),
            eviction_requested: Some(false),
            path: path.to_string_lossy().into_owned(),
            storage_reserved: i64::try_from(reserved).ok(),
            ..DiskSpec::default()
        };
        let uuid = identity(path, "default-disk").unwrap_or_default();
        let name = format!("default-disk-{}", uuid.split('-').next().unwrap_or_default());
        let mut node = Node::new(NAMESPACE, &key.name);
        node.spec.name.clone_from(&key.name);
        node.spec.allow_scheduling = Some(true);
        node.spec.eviction_requested = Some(false);
        node.spec.disks = [(name, disk)].into();
        node
    }

    fn status(&self, node: &Node, core: &CoreNode, settings: &Settings) -> NodeStatus {
        let shared = &self.shared;
        let now = whole_seconds(Timestamp::now()).to_string();
        let mut status = node.status.clone().unwrap_or_default();
        let label = |key: &str| core.labels().get(key).cloned().unwrap_or_default();
        (status.zone, status.region) = (label(ZONE), label(REGION));
        let answers = shared.listed().is_some();
        let (ready, reason, message) = match answers {
            true => ("True", "", String::new()),
            false => ("False", "ManagerPodDown", "the storage process does not answer".to_owned()),
        };
        set_condition(&mut status.conditions, &now, "Ready", ready, reason, &message);
        let cordoned =
            core.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) && settings.not_on_cordoned;
        let (free, reason) = if cordoned { ("False", "KubernetesNodeCordoned") } else { ("True", "") };
        let text = if cordoned { "the node is cordoned" } else { "" };
        set_condition(&mut status.conditions, &now, "Schedulable", free, reason, text);
        let mut disks = BTreeMap::new();
        for (name, disk) in &node.spec.disks {
            let before = status.disk_status.get(name).cloned().unwrap_or_default();
            disks.insert(name.clone(), self.disk(name, disk, before, settings, &now));
        }
        status.disk_status = disks;
        status
    }

    fn disk(
        &self,
        name: &str,
        spec: &DiskSpec,
        before: DiskStatus,
        settings: &Settings,
        now: &str,
    ) -> DiskStatus {
        let root = Path::new(&spec.path);
        let mut status = before;
        let known = status.disk_uuid.clone();
        let found = if root.is_dir() {
            identity(root, name).map_err(|e| e.to_string())
        } else {
            Err("it is no directory".into())
        };
        let problem = match found {
            Err(error) => Some(("NoDiskInfo", format!("{}: {error}", spec.path))),
            Ok(uuid) if !known.is_empty() && known != uuid => {
                let text = format!("{} is another disk than before ({uuid}, not {known})", spec.path);
                Some(("DiskFilesystemChanged", text))
            }
            Ok(uuid) => {
                status.disk_uuid = uuid;
                None
            }
        };
        status.disk_name = name.to_owned();
        status.disk_path.clone_from(&spec.path);
        status.disk_type = "filesystem".into();
        status.instance_manager_name = format!("sheaf-storage-{}", self.shared.node);
        let (all, free) = space(root).unwrap_or((0, 0));
        status.storage_maximum = i64::try_from(all).ok();
        status.storage_available = i64::try_from(free).ok();
        status.scheduled_replica = self
            .shared
            .replicas
            .list()
            .iter()
            .filter(|r| r.spec.disk_id == status.disk_uuid)
            .map(|r| (r.name_any(), r.spec.volume_size.parse().unwrap_or(0)))
            .collect();
        let promised = status.scheduled_replica.values().fold(0_i64, |sum, n| sum.saturating_add(*n));
        status.storage_scheduled = Some(promised);
        let (ready, reason, text) = match &problem {
            None => ("True", "", String::new()),
            Some((reason, text)) => ("False", *reason, text.clone()),
        };
        if let Some((_, text)) = &problem {
            warn!(disk = name, text, "a disk cannot be used");
        }
        set_condition(&mut status.conditions, now, "Ready", ready, reason, &text);
        let seen = Disk {
            name: name.into(),
            uuid: status.disk_uuid.clone(),
            path: spec.path.clone(),
            tags: spec.tags.clone(),
            closed: None,
            leaving: false,
            maximum: all,
            available: free,
            reserved: spec.storage_reserved.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            scheduled: u64::try_from(promised).unwrap_or(0),
        };
        let full = problem.map(|(_, text)| text).or_else(|| pressure(&seen, settings));
        let (free, reason) = if full.is_some() { ("False", "DiskPressure") } else { ("True", "") };
        set_condition(&mut status.conditions, now, "Schedulable", free, reason, &full.unwrap_or_default());
        status
    }
}
