//! What a replicated volume needs next.
//!
//! ```text
//! placed once (INITIAL) -> replicas made together (MADE) -> filled (FILLED) -> detached <-> attached -> deleted
//!                                                              (replicas come and go while attached; one that nobody uses
//!                                                               is attached for that: `rest`)
//! ```
//!
//! A volume of an image begins as the image's BASE, and is filled when it is made.
//!
//! One engine stands for the place where the volume is attached. It moves only when it has stopped, or when its node is
//! not alive: then whoever attaches next takes a higher epoch, and what the old one still writes is refused.

mod replicas;
mod rest;
mod size;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sheaf_api::longhorn::{
    Engine, EngineSpec, FINALIZER, KubernetesStatus, NAMESPACE, OF_VOLUME, Replica, ReplicaSpec, Volume,
    VolumeStatus, set_condition,
};

use super::place::{Chosen, Place, Taken, Wish, place_replica};
use super::{ADOPT, BASE, CONTENT, FILL, FILLED, ID, INITIAL, MADE, Settings, TOGETHER};

/// Rebuilds of one replica that may fail before it is given up.
const RETRIES_MAX: i64 = 5;
/// Looked at again after this, where time itself changes something.
const SOON: i64 = 5;
/// Reason of a replica's condition `InstanceCreation`: its disk is there, and its directory, which was there once, is not.
pub const DATA_MISSING: &str = "DataMissing";
/// Condition of a volume that is attached for nobody, only to be made whole, or that would be.
pub const OFFLINE_REBUILDING: &str = "OfflineRebuilding";

/// A replica that the volume is made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initial {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// UUID of its disk.
    pub disk: String,
    /// The disk's directory.
    pub path: String,
    /// Name of its directory in that, if it has one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// What the volume holds at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing, or what it should hold is there.
    Ready,
    /// It is to be filled, and can be now, best on one of these nodes (any, if there is none).
    From {
        /// What with; the agent reads it.
        what: String,
        /// Nodes that have it.
        nodes: BTreeSet<String>,
        /// Only those will do.
        only: bool,
    },
    /// Its first replicas begin as this, and are made so: the SHA-512 of an image's file, which every node can fetch.
    Base(String),
    /// It is to be filled, and cannot be yet. Nothing is placed before it is known what with.
    Waits {
        /// One word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// What is known of a volume.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Its engine.
    pub engine: Option<&'a Engine>,
    /// Its replicas.
    pub replicas: &'a [&'a Replica],
    /// All places for replicas.
    pub places: &'a [Place],
    /// Nodes that the cluster has.
    pub nodes: &'a BTreeSet<String>,
    /// Those of them that answer.
    pub alive: &'a BTreeSet<String>,
    /// The others, and since when they do not.
    pub silent: &'a BTreeMap<String, Timestamp>,
    /// How many other volumes are attached to a node for nobody, only to be made whole.
    pub mended: &'a BTreeMap<String, usize>,
    /// Settings, with what the volume says for itself.
    pub settings: &'a Settings,
    /// The node where somebody uses it.
    pub user: Option<&'a str>,
    /// Something is to be done that only an attached volume can do: a snapshot, say.
    pub work: bool,
    /// Its first content.
    pub content: &'a Content,
    /// Names of the claim and of the PersistentVolume.
    pub kubernetes: KubernetesStatus,
    /// Endings for the names of new replicas: eight hexadecimal digits each, drawn at random.
    pub fresh: &'a [String],
    /// Now.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write annotations on the volume, and hold it by the finalizer.
    Annotate(Vec<(&'static str, String)>),
    /// Say in the volume's spec where it is to be attached.
    Node(String),
    /// Make the engine.
    CreateEngine(Box<Engine>),
    /// Give the engine this spec, and this to fill in.
    Engine(Box<EngineSpec>, Option<String>),
    /// Remove the engine.
    DeleteEngine(String),
    /// Make a replica.
    CreateReplica(Box<Replica>),
    /// Give a replica this spec.
    Replica(String, Box<ReplicaSpec>),
    /// Remove a replica; its node's agent removes the data.
    DeleteReplica(String),
    /// Let a replica go whose node will never answer.
    ReleaseReplica(String),
    /// Let the volume go.
    Release,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// What to do.
    pub steps: Vec<Step>,
    /// The status as it is to be.
    pub status: VolumeStatus,
    /// Look again after so many seconds.
    pub again: Option<i64>,
    /// What people should hear: an event's reason and its message.
    pub news: Vec<(&'static str, String)>,
    /// The node that it is attached to for nobody, only to be made whole.
    pub mends: Option<String>,
}

/// Name of a volume's engine.
pub fn engine_name(volume: &str) -> String {
    format!("{volume}-e-0")
}

/// A replica's number in the storage processes: the digits at the end of its name.
pub fn replica_number(name: &str) -> Option<u32> {
    let (_, digits) = name.rsplit_once("-r-")?;
    u32::from_str_radix(digits, 16).ok().filter(|n| *n != 0 && digits.len() == 8)
}

/// Numbers of the replicas that a replica's volume was made with; empty for one that came later.
pub fn together(replica: &Replica) -> Vec<u32> {
    let text = annotation(&replica.metadata, TOGETHER).unwrap_or_default();
    text.split(',').filter_map(|part| part.trim().parse().ok()).collect()
}

/// The volume's id in the storage processes.
pub fn volume_id(volume: &Volume) -> Option<&str> {
    annotation(&volume.metadata, ID)
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn name(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn text(at: Timestamp) -> String {
    super::super::conditions::whole_seconds(at).to_string()
}

struct Work<'a> {
    seen: &'a Seen<'a>,
    plan: Plan,
    /// Its replicas; those that are being deleted, too, until it has let go of them.
    mine: Vec<&'a Replica>,
    /// Those of them that it lets go of.
    doomed: BTreeSet<String>,
    wanted: usize,
    name: String,
    now: String,
}

/// See the module.
pub fn plan_volume(seen: &Seen<'_>) -> Plan {
    let volume = seen.volume;
    let wanted = volume.spec.number_of_replicas.filter(|n| *n > 0).unwrap_or(seen.settings.replicas);
    let mut status = volume.status.clone().unwrap_or_default();
    status.kubernetes_status = Some(seen.kubernetes.clone());
    let mut work = Work {
        seen,
        plan: Plan { status, ..Plan::default() },
        mine: seen.replicas.iter().copied().filter(|r| member(seen, r)).collect(),
        doomed: BTreeSet::new(),
        wanted: usize::try_from(wanted).unwrap_or(1).clamp(1, 8),
        name: name(&volume.metadata),
        now: text(seen.now),
    };
    if volume.metadata.deletion_timestamp.is_some() {
        work.delete();
    } else if annotation(&volume.metadata, MADE).is_none() {
        work.make();
    } else {
        work.keep();
    }
    work.plan
}

/// Whether a replica is one of the volume's still.
fn member(seen: &Seen<'_>, replica: &Replica) -> bool {
    let held = |e: &Engine| e.spec.replica_address_map.contains_key(&name(&replica.metadata));
    replica.metadata.deletion_timestamp.is_none() || seen.engine.is_some_and(held)
}

impl Work<'_> {
    fn condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> bool {
        let list = &mut self.plan.status.conditions;
        set_condition(list, &self.now, kind, status, reason, message)
    }

    /// Both conditions: the true one, and the one that Longhorn's column shows.
    fn scheduled(&mut self, problem: Option<&str>) {
        let (status, reason) =
            if problem.is_some() { ("False", "ReplicaSchedulingFailure") } else { ("True", "") };
        let message = problem.unwrap_or_default();
        let changed = self.condition("Scheduled", status, reason, message);
        self.condition("Schedulable", status, reason, message);
        if changed && let Some(problem) = problem {
            self.plan.news.push(("ReplicaSchedulingFailure", problem.to_owned()));
        }
    }

    // ---- a new volume ----

    fn make(&mut self) {
        self.plan.status.state = "creating".into();
        self.plan.status.robustness = "unknown".into();
        let meta = &self.seen.volume.metadata;
        let Some(initial) = annotation(meta, INITIAL) else { return self.place_first() };
        let initial: Vec<Initial> = serde_json::from_str(initial).unwrap_or_default();
        let numbers: Vec<String> =
            initial.iter().filter_map(|i| replica_number(&i.name)).map(|n| n.to_string()).collect();
        let together = numbers.join(",");
        for first in &initial {
            if !self.seen.replicas.iter().any(|r| r.metadata.name.as_ref() == Some(&first.name)) {
                let replica = self.replica(first, Some(&together));
                self.plan.steps.push(Step::CreateReplica(Box::new(replica)));
            }
        }
        if self.seen.engine.is_none() {
            self.create_engine();
        }
        let there = |r: &&Replica| {
            let state = r.status.as_ref().map_or("", |s| s.current_state.as_str());
            matches!(state, "running" | "stopped")
        };
        let missing = initial.iter().filter(|first| {
            let replica = self.mine.iter().find(|r| r.metadata.name.as_ref() == Some(&first.name));
            self.seen.alive.contains(&first.node) && !replica.is_some_and(there)
        });
        let missing = missing.count();
        if self.plan.steps.is_empty() && missing == 0 && self.mine.iter().any(there) {
            let mut notes = vec![(MADE, "true".to_owned())];
            if annotation(meta, BASE).is_some() {
                notes.push((FILLED, "true".to_owned()));
            }
            self.plan.steps.push(Step::Annotate(notes));
        } else {
            self.plan.again = Some(SOON);
        }
    }

    fn place_first(&mut self) {
        let seen = self.seen;
        if let Content::Waits { reason, message } = seen.content {
            return self.content_waits(reason, message);
        }
        if *seen.content != Content::Ready {
            self.condition("WaitForBackingImage", "False", "", "");
        }
        let size = seen.volume.spec.size.parse().unwrap_or(0);
        let (mut taken, mut initial, mut problem) = (Vec::new(), Vec::new(), None);
        for fresh in seen.fresh.iter().take(self.wanted) {
            match self.choose(size, 0, &taken) {
                Ok(chosen) => {
                    taken.push(Taken {
                        node: chosen.node.clone(),
                        disk: chosen.uuid.clone(),
                        leaving: false,
                    });
                    initial.push(Initial {
                        name: format!("{}-r-{fresh}", self.name),
                        node: chosen.node,
                        disk: chosen.uuid,
                        path: chosen.path,
                        directory: None,
                    });
                }
                Err(why) => {
                    problem = Some(why);
                    break;
                }
            }
        }
        self.scheduled(problem.as_deref());
        if initial.is_empty() || (problem.is_some() && !seen.settings.degraded_creation) {
            self.plan.again = Some(SOON);
            return;
        }
        let id = volume_id(seen.volume).map(str::to_owned);
        let id = id.or_else(|| seen.volume.metadata.uid.clone()).unwrap_or_default();
        let initial = serde_json::to_string(&initial).unwrap_or_default();
        let mut notes = vec![(ID, id), (INITIAL, initial)];
        if let Content::Base(sum) = seen.content {
            notes.push((BASE, sum.clone()));
        }
        self.plan.steps.push(Step::Annotate(notes));
    }

    fn content_waits(&mut self, reason: &str, message: &str) {
        self.condition("WaitForBackingImage", "True", reason, message);
        self.plan.again = Some(SOON);
    }

    fn choose(&self, size: u64, used: u64, taken: &[Taken]) -> Result<Chosen, String> {
        let spec = &self.seen.volume.spec;
        let near = self.seen.user.or(Some(spec.node_id.as_str()).filter(|n| !n.is_empty()));
        let local = taken.iter().any(|t| !t.leaving && Some(t.node.as_str()) == near);
        let strict = spec.data_locality == "strict-local";
        let wish = Wish {
            size,
            used,
            node_tags: &spec.node_selector,
            disk_tags: &spec.disk_selector,
            only: near.filter(|_| strict),
            near: near.filter(|_| !local && spec.data_locality == "best-effort"),
            taken,
        };
        let chosen = place_replica(&wish, self.seen.places, self.seen.settings);
        chosen.map_err(|why| why.to_string())
    }

    fn owner(&self) -> Vec<OwnerReference> {
        vec![OwnerReference {
            api_version: self.seen.volume.api_version.clone(),
            kind: "Volume".into(),
            name: self.name.clone(),
            uid: self.seen.volume.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        }]
    }

    fn replica(&self, at: &Initial, together: Option<&str>) -> Replica {
        let spec = &self.seen.volume.spec;
        let mut replica = Replica::new(NAMESPACE, &at.name);
        let labels = [(OF_VOLUME, &self.name), ("longhornnode", &at.node), ("longhorndiskuuid", &at.disk)];
        replica.metadata.labels = Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.clone())).collect());
        let adopt = annotation(&self.seen.volume.metadata, ADOPT).filter(|_| at.directory.is_some());
        let notes = [(TOGETHER, together), (ADOPT, adopt)].into_iter();
        let notes: BTreeMap<String, String> =
            notes.filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
        replica.metadata.annotations = Some(notes).filter(|notes| !notes.is_empty());
        replica.metadata.finalizers = Some(vec![FINALIZER.into()]);
        replica.metadata.owner_references = Some(self.owner());
        let digits = at.name.rsplit('-').next().unwrap_or_default();
        replica.spec = ReplicaSpec {
            active: Some(true),
            backing_image: spec.backing_image.clone(),
            data_directory_name: at.directory.clone().unwrap_or_else(|| format!("{}-{digits}", self.name)),
            data_engine: "v1".into(),
            desire_state: "stopped".into(),
            disk_id: at.disk.clone(),
            disk_path: at.path.clone(),
            engine_name: engine_name(&self.name),
            // What the volume is made with is current by that.
            healthy_at: if together.is_some() { self.now.clone() } else { String::new() },
            last_healthy_at: if together.is_some() { self.now.clone() } else { String::new() },
            node_id: at.node.clone(),
            revision_counter_disabled: Some(true),
            volume_name: self.name.clone(),
            volume_size: self.seen.engine.map_or(&spec.size, |e| &e.spec.volume_size).clone(),
            ..ReplicaSpec::default()
        };
        replica
    }

    fn create_engine(&mut self) {
        let spec = &self.seen.volume.spec;
        let mut engine = Engine::new(NAMESPACE, &engine_name(&self.name));
        engine.metadata.labels = Some([(OF_VOLUME.to_owned(), self.name.clone())].into());
        engine.metadata.owner_references = Some(self.owner());
        engine.spec = EngineSpec {
            active: Some(true),
            data_engine: "v1".into(),
            desire_state: "stopped".into(),
            frontend: spec.frontend.clone(),
            revision_counter_disabled: Some(true),
            volume_name: self.name.clone(),
            volume_size: spec.size.clone(),
            ..EngineSpec::default()
        };
        self.plan.steps.push(Step::CreateEngine(Box::new(engine)));
    }

    // ---- a volume that is there ----

    fn keep(&mut self) {
        let Some(engine) = self.seen.engine else {
            self.create_engine();
            return;
        };
        let (wish, fill) = self.wish();
        let attached = attached_at(engine);
        let before = self.plan.status.state.clone();
        let mut spec = engine.spec.clone();
        self.size(&mut spec, attached.is_some());
        self.attachment(engine, wish.as_deref(), attached, &mut spec);
        spec.disable_frontend = Some(fill.is_none() && self.seen.user.is_none());
        if attached.is_some_and(|node| self.seen.alive.contains(node)) {
            self.replicas(engine);
        } else {
            // Nobody knows, except that there is nothing left.
            let lost = !self.mine.is_empty() && self.mine.iter().all(|r| self.lost(r));
            self.plan.status.robustness = if lost { "faulted" } else { "unknown" }.into();
        }
        self.release();
        spec.replica_address_map = addresses(self.mine.iter().copied())
            .into_iter()
            .filter(|(name, _)| !self.doomed.contains(name))
            .collect();
        let told = annotation(&engine.metadata, FILL).map(str::to_owned);
        if spec != engine.spec || told != fill {
            self.plan.steps.push(Step::Engine(Box::new(spec.clone()), fill));
        }
        if self.seen.volume.spec.node_id != spec.node_id {
            self.plan.steps.push(Step::Node(spec.node_id.clone()));
        }
        self.desire(&spec);
        if before != self.plan.status.state {
            match self.plan.status.state.as_str() {
                "attached" => {
                    let text = format!("volume {} has been attached to {}", self.name, spec.node_id);
                    self.plan.news.push(("Attached", text));
                }
                "detached" if before != "creating" && !before.is_empty() => {
                    self.plan.news.push(("Detached", format!("volume {} has been detached", self.name)));
                }
                _ => {}
            }
        }
    }

    /// Where it is to be attached, and what it is to be filled with there.
    fn wish(&mut self) -> (Option<String>, Option<String>) {
        let seen = self.seen;
        let this = &*self;
        let holders = move || {
            let answers = move |failed: bool| {
                let fits = move |r: &&&Replica| r.spec.failed_at.is_empty() != failed && this.answers(r);
                this.mine.iter().filter(fits).map(|r| r.spec.node_id.as_str())
            };
            answers(false).chain(answers(true))
        };
        // Work goes where the volume is already, else to a replica.
        let here = seen.engine.map(|e| e.spec.node_id.as_str());
        let here = here.filter(|n| seen.alive.contains(*n)).map(str::to_owned);
        let filled = annotation(&seen.volume.metadata, FILLED).is_some()
            || annotation(&seen.volume.metadata, CONTENT).is_none();
        match seen.content {
            Content::From { what, nodes, only } if !filled => {
                let good = |n: &str| nodes.contains(n) && seen.alive.contains(n);
                let stays = here.filter(|n| !*only || good(n));
                let best = holders().find(|n| good(n)).map(str::to_owned);
                let other = match only {
                    true => nodes.iter().find(|n| seen.alive.contains(*n)).cloned(),
                    false => holders().next().map(str::to_owned),
                };
                let node = stays.or(best).or(other);
                self.condition("WaitForBackingImage", "False", "", "");
                (node.clone(), node.map(|_| what.clone()))
            }
            Content::Waits { reason, message } if !filled => {
                self.content_waits(reason, message);
                (None, None)
            }
            _ => {
                let grows = seen.engine.is_some_and(|e| {
                    let has = e.status.as_ref().map_or("", |s| s.current_size.as_str());
                    let now = if has.is_empty() { &e.spec.volume_size } else { has };
                    number(now) < number(&seen.volume.spec.size) && self.no_room(&e.spec).is_none()
                });
                let works = seen.work || grows;
                if seen.user.is_none() && !works {
                    let mends = self.rest(here);
                    self.plan.mends.clone_from(&mends);
                    return (mends, None);
                }
                let node = seen.user.map(str::to_owned).or(here);
                let node = node.or_else(|| holders().next().map(str::to_owned));
                self.calm("", "");
                (node, None)
            }
        }
    }

    fn attachment(
        &mut self,
        engine: &Engine,
        wish: Option<&str>,
        attached: Option<&str>,
        spec: &mut EngineSpec,
    ) {
        let at = engine.spec.node_id.clone();
        let status = engine.status.clone().unwrap_or_default();
        let stopped = at.is_empty()
            || (status.owner_id == at && status.current_state == "stopped" && spec.desire_state == "stopped")
            || !self.seen.nodes.contains(&at);
        let lost = !at.is_empty() && !self.seen.alive.contains(&at);
        match wish {
            Some(node) if at == node || stopped || lost => {
                if at != node {
                    spec.node_id = node.to_owned();
                }
                spec.desire_state = "running".into();
            }
            // It has to stop where it is first.
            Some(_) => spec.desire_state = "stopped".into(),
            None => {
                spec.desire_state = "stopped".into();
                if stopped {
                    spec.node_id = String::new();
                }
            }
        }
        let running = attached.is_some() && spec.desire_state == "running" && spec.node_id == at;
        let status = &mut self.plan.status;
        status.state = match (running, spec.desire_state.as_str(), spec.node_id.is_empty()) {
            (true, ..) => "attached",
            (_, "running", _) => "attaching",
            (_, _, true) => "detached",
            _ => "detaching",
        }
        .into();
        status.current_node_id = if running { at } else { String::new() };
        status.current_engine_node_id.clone_from(&spec.node_id);
        status.owner_id.clone_from(&spec.node_id);
    }

    /// What replicas are told: to run while the volume is attached.
    fn desire(&mut self, engine: &EngineSpec) {
        for replica in self.mine.clone() {
            if replica.spec.desire_state != engine.desire_state {
                let mut spec = replica.spec.clone();
                spec.desire_state.clone_from(&engine.desire_state);
                self.change(replica, spec);
            }
        }
    }

    /// Changes a replica's spec; what was changed before stays.
    fn change(&mut self, replica: &Replica, spec: ReplicaSpec) {
        let id = name(&replica.metadata);
        let before = self.plan.steps.iter_mut().find_map(|s| match s {
            Step::Replica(n, spec) if *n == id => Some(spec),
            _ => None,
        });
        match before {
            Some(earlier) => {
                let merged = merge(&replica.spec, earlier, spec);
                **earlier = merged;
            }
            None => self.plan.steps.push(Step::Replica(id, Box::new(spec))),
        }
    }

    // ---- the end ----

    fn delete(&mut self) {
        self.plan.status.state = "deleting".into();
        self.plan.again = Some(SOON);
        if let Some(engine) = self.seen.engine {
            let at = &engine.spec.node_id;
            let status = engine.status.clone().unwrap_or_default();
            let runs = !at.is_empty()
                && self.seen.alive.contains(at)
                && !(status.owner_id == *at && status.current_state == "stopped");
            if engine.spec.desire_state != "stopped" {
                let mut spec = engine.spec.clone();
                spec.desire_state = "stopped".into();
                self.plan.steps.push(Step::Engine(Box::new(spec), None));
            }
            if runs {
                return;
            }
        }
        for replica in self.seen.replicas {
            let id = name(&replica.metadata);
            if replica.metadata.deletion_timestamp.is_none() {
                self.plan.steps.push(Step::DeleteReplica(id));
            } else if !self.seen.nodes.contains(&replica.spec.node_id) {
                self.plan.steps.push(Step::ReleaseReplica(id));
            }
        }
        if self.seen.replicas.is_empty() {
            if let Some(engine) = self.seen.engine {
                self.plan.steps.push(Step::DeleteEngine(name(&engine.metadata)));
            }
            self.plan.steps.push(Step::Release);
        }
    }
}

/// The node where the volume is attached.
fn attached_at(engine: &Engine) -> Option<&str> {
    let status = engine.status.as_ref()?;
    let at = engine.spec.node_id.as_str();
    (status.current_state == "running" && status.owner_id == at && !at.is_empty()).then_some(at)
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// Where each replica's storage process listens, as far as it has said so.
fn addresses<'a>(replicas: impl Iterator<Item = &'a Replica>) -> BTreeMap<String, String> {
    replicas
        .filter_map(|r| {
            let status = r.status.as_ref()?;
            let port = status.port.filter(|p| *p > 0)?;
            let ip = &status.storage_ip;
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
            (!ip.is_empty()).then(|| (name(&r.metadata), format!("{host}:{port}")))
        })
        .collect()
}

/// Two changes of one spec in one.
fn merge(base: &ReplicaSpec, first: &ReplicaSpec, second: ReplicaSpec) -> ReplicaSpec {
    let mut out = second;
    if out.volume_size == base.volume_size {
        out.volume_size.clone_from(&first.volume_size);
    }
    if out.desire_state == base.desire_state {
        out.desire_state.clone_from(&first.desire_state);
    }
    for (out, base, first) in [
        (&mut out.healthy_at, &base.healthy_at, &first.healthy_at),
        (&mut out.failed_at, &base.failed_at, &first.failed_at),
        (&mut out.last_healthy_at, &base.last_healthy_at, &first.last_healthy_at),
        (&mut out.last_failed_at, &base.last_failed_at, &first.last_failed_at),
    ] {
        if out == base {
            out.clone_from(first);
        }
    }
    out
}
