//! Replicated storage on this node: its process, the replicas on its disks, the volumes attached here.
//!
//! ```text
//!  Replica (spec.nodeID = us) -> directory       Engine (spec.nodeID = us) -> attached -> socket -> QEMU
//!        status <----------- what the storage process says (asked for every second or so) -----------> status
//! ```
//!
//! [`plan`] decides (pure); [`process`] keeps the process running; [`votes`] gives it the API's vote; [`engines`],
//! [`replicas`], [`moments`] and [`node`] are the loops over Longhorn's kinds; [`bases`] makes what volumes of images begin as; [`fill`]
//! copies first content in where it has to be copied.
//! Who owns the state: the process, on disk. Nothing here is needed for guests' requests.

mod bases;
mod engines;
mod fill;
mod metrics;
mod moments;
mod node;
mod plan;
mod process;
mod replicas;
mod votes;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::longhorn::{self, DRIVER, NAMESPACE};
use sheaf_plan::storage::{engine_name, volume_id};
use sheaf_runtime::{EventRecorder, Informer, ObjectKey, Selection, StepError, TaskGroup, Waker};
use sheaf_storage::api::{Answer, Ask, FrontendAt, ReplicaStatus, VolumeStatus};
use sheaf_storage::control::CallError;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use crate::identity::Identity;
use crate::images::Images;
use crate::parts::{DiskSource, PartError};

pub use process::StorageConfig;
use ways::Ways;

const MANAGER: &str = "sheaf-storage";
/// Longer than the process itself waits for anything.
const PATIENCE: Duration = Duration::from_secs(100);
/// How often the process is asked what there is: while something is attached, and else.
const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(4);
/// How long a machine waits for its volume before it says so and comes again.
const ATTACH: Duration = Duration::from_secs(20);

/// What the process said last.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Listed {
    replicas: Vec<ReplicaStatus>,
    volumes: Vec<VolumeStatus>,
}

/// See the module.
pub struct Replicated {
    node: String,
    client: Client,
    config: StorageConfig,
    ways: Ways,
    volumes: Arc<Informer<longhorn::Volume>>,
    engines: Arc<Informer<longhorn::Engine>>,
    replicas: Arc<Informer<longhorn::Replica>>,
    moments: Arc<Informer<longhorn::Snapshot>>,
    nodes: Arc<Informer<longhorn::Node>>,
    settings: Arc<Informer<longhorn::Setting>>,
    images: Arc<Images>,
    image_objects: Arc<Informer<VirtualMachineImage>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    events: EventRecorder,
    /// None: the process does not answer.
    listed: watch::Sender<Option<Arc<Listed>>>,
    kick: Notify,
    wakers: Mutex<Vec<(Kind, Waker)>>,
    filling: Mutex<BTreeSet<String>>,
    bases: Mutex<BTreeMap<PathBuf, bases::Work>>,
    disks: watch::Sender<Vec<PathBuf>>,
    group: TaskGroup,
}

/// Which loop a waker is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Engine,
    Replica,
    Moment,
    Node,
}

/// What the loops are given.
pub(crate) struct Given<'a> {
    pub(crate) node: &'a str,
    pub(crate) identity: &'a Arc<Identity>,
    pub(crate) images: &'a Arc<Images>,
    pub(crate) image_objects: &'a Arc<Informer<VirtualMachineImage>>,
    pub(crate) claims: &'a Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) node_objects: &'a Arc<Informer<CoreNode>>,
    pub(crate) events: &'a EventRecorder,
}

impl Replicated {
    /// Starts the process and the loops.
    pub(crate) fn spawn(
        client: &Client,
        group: &TaskGroup,
        config: StorageConfig,
        given: &Given<'_>,
    ) -> Arc<Self> {
        let all = Selection::all();
        let (disks, wanted_disks) = watch::channel(vec![config.dir.clone()]);
        let shared = Arc::new(Self {
            node: given.node.to_owned(),
            client: client.clone(),
            volumes: Informer::spawn(client, group, &all),
            engines: Informer::spawn(client, group, &all),
            replicas: Informer::spawn(client, group, &all),
            moments: Informer::spawn(client, group, &all),
            nodes: Informer::spawn(client, group, &all),
            settings: Informer::spawn(client, group, &all),
            images: given.images.clone(),
            image_objects: given.image_objects.clone(),
            claims: given.claims.clone(),
            events: given.events.clone(),
            listed: watch::Sender::new(None),
            kick: Notify::new(),
            wakers: Mutex::default(),
            filling: Mutex::default(),
            bases: Mutex::default(),
            disks,
            group: group.clone(),
            ways: Ways::new(&config.state()),
            config: config.clone(),
        });
        // Before any machine starts: each gets it as its working directory.
        if let Err(error) = shared.ways.begin() {
            warn!(%error, "guests get no way to the sockets of volumes");
        }
        if let Err(error) = votes::spawn(client, group, config.votes(), shared.volumes.clone()) {
            warn!(%error, "nobody gives the storage process the API's votes");
        }
        let supervisor =
            process::Supervisor { config, identity: given.identity.clone(), disks: wanted_disks };
        node::spawn(&shared, given.node_objects, group);
        let waits = shared.clone();
        group.spawn(async move {
            // The disks that there are to be, before the process is started with them.
            waits.nodes.ready().await;
            waits.replicas.ready().await;
            waits.follow_disks();
            supervisor.run().await;
        });
        bases::spawn(&shared);
        engines::spawn(&shared, group);
        replicas::spawn(&shared, group);
        moments::spawn(&shared, group);
        let polled = shared.clone();
        group.spawn(async move { polled.poll().await });
        shared
    }

    fn lock<'a, T>(mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_waker(&self, kind: Kind, waker: Waker) {
        Self::lock(&self.wakers).push((kind, waker));
    }

    /// Asks the process.
    async fn ask(&self, ask: Ask) -> Result<Answer, CallError> {
        debug!(?ask, "the storage process is asked");
        let socket = self.config.control();
        let talk = async {
            let stream = UnixStream::connect(&socket).await;
            let mut stream = stream.map_err(|error| CallError::Connect(socket.clone(), error))?;
            let mut line = serde_json::to_vec(&ask).map_err(std::io::Error::from)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = Vec::new();
            BufReader::new(stream).read_until(b'\n', &mut answer).await?;
            match serde_json::from_slice(&answer).map_err(CallError::Answer)? {
                Answer::Error(reason) => Err(CallError::Refused(reason)),
                answer => Ok(answer),
            }
        };
        let late = |_| CallError::Io(std::io::Error::from(std::io::ErrorKind::TimedOut));
        tokio::time::timeout(PATIENCE, talk).await.map_err(late)?
    }

    /// What the process says now.
    async fn look(&self) {
        let found = match self.ask(Ask::List).await {
            Ok(Answer::List { replicas, volumes }) => Some(Arc::new(Listed { replicas, volumes })),
            Ok(_) => None,
            Err(error) => {
                debug!(%error, "the storage process does not say what there is");
                None
            }
        };
        let quiet = |listed: &Option<Arc<Listed>>| {
            listed.as_ref().map(|listed| {
                let mut still = (**listed).clone();
                // What changes all the time is nobody's reason to look.
                still.volumes.iter_mut().for_each(|v| (v.requests, v.copied, v.epoch) = (0, 0, 0));
                still
            })
        };
        let changed = quiet(&self.listed.borrow()) != quiet(&found);
        self.listed.send_replace(found);
        if changed {
            self.wake_all();
        }
    }

    fn wake_all(&self) {
        let wakers = Self::lock(&self.wakers).clone();
        for (kind, waker) in wakers {
            let keys: Vec<String> = match kind {
                Kind::Engine => self.engines.list().iter().map(|e| e.name_any()).collect(),
                Kind::Replica => {
                    let all = self.replicas.list();
                    all.iter().filter(|r| r.spec.node_id == self.node).map(|r| r.name_any()).collect()
                }
                Kind::Node => vec![self.node.clone()],
                Kind::Moment => self.moments.list().iter().map(|m| m.name_any()).collect(),
            };
            keys.into_iter().for_each(|name| waker.wake(ObjectKey::new(NAMESPACE, name)));
        }
    }

    async fn poll(&self) {
        loop {
            self.look().await;
            let busy = self.listed.borrow().as_ref().is_none_or(|l| !l.volumes.is_empty());
            tokio::select! {
                () = self.kick.notified() => {}
                () = tokio::time::sleep(if busy { BUSY } else { IDLE }) => {}
            }
        }
    }

    /// What the process said last.
    fn listed(&self) -> Option<Arc<Listed>> {
        self.listed.borrow().clone()
    }

    /// The process is told which disks there are.
    fn follow_disks(&self) {
        let node = self.nodes.get(&ObjectKey::new(NAMESPACE, &self.node));
        let mut wanted = vec![self.config.dir.clone()];
        // A disk that was taken out of the node while replicas are on it goes on serving them.
        let replicas = self.replicas.list();
        let used = replicas.iter().filter(|r| r.spec.node_id == self.node).map(|r| &r.spec.disk_path);
        for disk in node.iter().flat_map(|n| n.spec.disks.values()).map(|disk| &disk.path).chain(used) {
            let path = PathBuf::from(disk);
            if path.is_dir() && !wanted.contains(&path) {
                wanted.push(path);
            }
        }
        self.disks.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
    }

    /// Where guests find a volume.
    fn socket(&self, id: &str) -> PathBuf {
        self.ways.socket(id)
    }

    /// Where the sockets of volumes are, each in a directory of its own, which belongs to the guest that has the volume.
    pub(crate) fn guests(&self) -> PathBuf {
        self.ways.guests().to_path_buf()
    }

    fn frontends(&self, id: &str) -> Vec<FrontendAt> {
        vec![FrontendAt::Nbd(self.socket(id))]
    }

    /// The socket of a volume, as soon as it is attached here and the API says that it shall be.
    pub(crate) async fn open(&self, claim: &ObjectKey, volume: &str) -> Result<DiskSource, PartError> {
        let end = tokio::time::Instant::now() + ATTACH;
        let mut listed = self.listed.subscribe();
        loop {
            match self.ready(volume) {
                Ok(socket) => return Ok(DiskSource::Nbd { socket }),
                Err(why) if tokio::time::Instant::now() >= end => {
                    return Err(PartError::Missing(format!("volume {volume} of claim {claim} {why}")));
                }
                Err(_) => {}
            }
            tokio::select! {
                _ = listed.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
        }
    }

    /// The socket of a volume that is attached here, or what it waits for.
    fn ready(&self, name: &str) -> Result<PathBuf, String> {
        let Some(volume) = self.volumes.get(&ObjectKey::new(NAMESPACE, name)) else {
            return Err("does not exist in longhorn-system".into());
        };
        let status = volume.status.clone().unwrap_or_default();
        let engine = self.engines.get(&ObjectKey::new(NAMESPACE, engine_name(name)));
        let Some(engine) = engine.filter(|e| e.spec.node_id == self.node && e.spec.desire_state == "running")
        else {
            let at = match status.current_engine_node_id.as_str() {
                "" => String::new(),
                node => format!(" (node {node})"),
            };
            return Err(format!("is {}{at}, and not attached to node {} yet", status.state, self.node));
        };
        if engine.spec.disable_frontend == Some(true)
            || engine.annotations().contains_key(sheaf_plan::storage::FILL)
        {
            return Err("is attached for work of its own".into());
        }
        let id = volume_id(&volume).unwrap_or_default();
        let listed = self.listed().ok_or("waits for the storage process, which does not answer")?;
        match listed.volumes.iter().find(|v| v.volume == id) {
            Some(found) if found.phase == "serving" => Ok(self.socket(id)),
            Some(found) => Err(format!("is {}", found.phase)),
            None => Err("is being attached".into()),
        }
    }

    /// A machine has seen that its disk has grown: the claim may say so.
    pub(crate) fn grown(self: &Arc<Self>, claim: ObjectKey) {
        let this = self.clone();
        self.group.spawn(async move {
            if let Err(error) = this.tell_capacity(&claim).await {
                warn!(%claim, %error, "the claim does not say yet that it has grown");
            }
        });
    }

    async fn tell_capacity(&self, key: &ObjectKey) -> Result<(), StepError> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let Ok(asked) = crate::volumes::plan::requested(&claim) else { return Ok(()) };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let engine = self.engines.get(&ObjectKey::new(NAMESPACE, engine_name(&name)));
        let has = engine.and_then(|e| e.status.as_ref()?.current_size.parse::<u64>().ok()).unwrap_or(0);
        if has < asked {
            return Ok(());
        }
        let mut after = (*claim).clone();
        let status = after.status.get_or_insert_default();
        let text = Quantity(crate::volumes::plan::text_of(has));
        status.capacity.get_or_insert_default().insert("storage".into(), text);
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| c.type_ != "Resizing" && c.type_ != "FileSystemResizePending");
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        sheaf_runtime::patch::write(&api, MANAGER, sheaf_runtime::patch::Target::Status, &claim, &after)
            .await
            .map(drop)
    }

    /// Bytes that the layers of a replica here take, by the snapshot's name.
    fn sizes(&self, id: &str) -> BTreeMap<String, LayerSize> {
        let listed = self.listed();
        let found = listed.iter().flat_map(|l| &l.replicas).find(|r| r.volume == id);
        let Some(entries) = found.and_then(|f| std::fs::read_dir(&f.path).ok()) else {
            return BTreeMap::new();
        };
        let mut out: BTreeMap<String, LayerSize> = BTreeMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(layer) = name.strip_suffix(".img") else { continue };
            let key = match layer.strip_prefix("volume-snap-") {
                Some(snapshot) => snapshot.to_owned(),
                None if layer.starts_with("volume-head-") => "volume-head".to_owned(),
                None => continue,
            };
            let (blocks, links) = entry.metadata().map_or((0, 1), |m| (m.blocks(), m.nlink()));
            let bytes = blocks.saturating_mul(512);
            // The file system has it once, whoever else reads it.
            let size = match links > 1 && key != "volume-head" {
                true => LayerSize { own: 0, shared: bytes },
                false => LayerSize { own: bytes, shared: 0 },
            };
            out.insert(key, size);
        }
        out
    }
}

/// What a layer takes of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LayerSize {
    /// Bytes that nobody else has.
    own: u64,
    /// Bytes that others have, too: the base of an image, layers of linked clones.
    shared: u64,
}

/// The driver's name, for who asks whose a PersistentVolume is.
pub(crate) fn handle(volume: &k8s_openapi::api::core::v1::PersistentVolume) -> Option<&str> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    (csi.driver == DRIVER).then_some(csi.volume_handle.as_str())
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

/// Lets an object go that is held by Longhorn's finalizer.
fn released(finalizers: &[String]) -> Patch<serde_json::Value> {
    let left: Vec<&String> = finalizers.iter().filter(|f| *f != longhorn::FINALIZER).collect();
    Patch::Merge(json!({"metadata": {"finalizers": left}}))
}
