//! Images of this node: downloads, uploads, and copies of what other nodes have.
//!
//! The image controller names the node that is to have an image first (annotation [`IMAGE_NODE`]). That node brings it
//! in and owns the image's status ([`plan`]); every other node copies it from there when a volume needs it
//! ([`Images::local`]), and holds it against the checksum that the image bears ([`IMAGE_SUM`]). Files are removed when the object has gone; no finalizer is needed for that, and volumes made
//! of the image keep its data ([`files`]).
//!
//! State: the files, and the transfers of this process. A transfer that dies with the process is resumed by the next.

pub mod files;
pub mod plan;
mod serve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderName;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt};
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_image::explain;
use sheaf_image::fetch::{Fetcher, Progress, Source, system_tls};
use sheaf_image::intake::Stored;
use sheaf_plan::storage::IMAGE_SUM;
use sheaf_runtime::patch::{Target, write};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, StepError, TaskGroup, Waker};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::identity::Identity;
use files::{ImageFiles, Kept};
use plan::{Seen, Step, Transfer, condition, is_imported, plan_image};

/// Annotation of an image: the node that brings it in and gives it to others. Written by the image controller.
pub const IMAGE_NODE: &str = "sheaf.io/image-node";
/// Header with the SHA-512 of an exported image, in hexadecimal.
pub const CHECKSUM_HEADER: HeaderName = HeaderName::from_static("x-sheaf-sha512");
/// Downloads and copies at the same time; others wait.
const TRANSFERS_MAX: usize = 3;
/// After a failed copy from another node.
const COPY_WAIT: Duration = Duration::from_secs(10);
const MANAGER: &str = "sheaf-images";

/// What an image is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Complete.
    Here {
        /// What it is.
        kept: Kept,
        /// Its data.
        base: PathBuf,
    },
    /// Not yet; what is going on, as a sentence.
    Coming(String),
    /// Not, and nothing is going on; why, as a sentence.
    Missing(String),
}

/// Something under way, or just failed.
struct Work {
    /// Empty for uploads.
    url: String,
    /// From another node: its outcome is of no concern to the image's status.
    copy: bool,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    failed: Option<(String, Instant)>,
    /// `status.lastFailedTime` as it was written for this failure; the cache may not have it yet.
    told: Option<String>,
}

/// The images of this node; shared by the loop, the HTTP handlers and the volumes.
pub struct Images {
    node: String,
    files: ImageFiles,
    client: Client,
    images: Arc<Informer<VirtualMachineImage>>,
    nodes: Arc<Informer<Node>>,
    identity: Arc<Identity>,
    group: TaskGroup,
    slots: Arc<Semaphore>,
    work: Mutex<BTreeMap<String, Work>>,
    tried: Mutex<BTreeMap<String, (String, String)>>,
    waker: OnceLock<Waker>,
    changes: watch::Sender<u64>,
}

impl Images {
    /// Starts the loop. `agent_dir` is `<data>/agent`.
    pub fn spawn(
        client: &Client,
        group: &TaskGroup,
        node: &str,
        agent_dir: &Path,
        identity: &Arc<Identity>,
        images: &Arc<Informer<VirtualMachineImage>>,
        nodes: &Arc<Informer<Node>>,
    ) -> Arc<Self> {
        let shared = Arc::new(Images {
            node: node.to_owned(),
            files: ImageFiles::new(agent_dir),
            client: client.clone(),
            images: Arc::clone(images),
            nodes: Arc::clone(nodes),
            identity: Arc::clone(identity),
            group: group.clone(),
            slots: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            work: Mutex::default(),
            tried: Mutex::default(),
            waker: OnceLock::new(),
            changes: watch::Sender::new(0),
        });
        // A weak reference: the informer outlives no one on our account.
        let weak = Arc::downgrade(&shared);
        images.subscribe(move |_| {
            if let Some(images) = weak.upgrade() {
                images.changes.send_modify(|n| *n = n.wrapping_add(1));
            }
        });
        let driver = Driver::new(Loop(Arc::clone(&shared)))
            .for_each(images)
            .after(nodes)
            .resync(Duration::from_secs(600), || vec![everything()]);
        let waker = driver.waker();
        waker.wake(everything());
        let _ = shared.waker.set(waker);
        driver.spawn(group);
        shared
    }

    /// What an image is on this node; begins to copy it from its own node if it is not here.
    pub fn local(self: &Arc<Self>, image: &VirtualMachineImage) -> Local {
        let uid = image.uid().unwrap_or_default();
        let name = ObjectKey::of(image);
        if let Some(kept) = self.files.get(&uid) {
            if !self.is_stale(image, &kept) {
                return Local::Here { kept, base: self.files.base(&uid) };
            }
            // Volumes that have it keep it: they hold it by links of their own.
            warn!(image = %name, "its node has another file than was copied from there; it is copied anew");
            if let Err(error) = self.files.remove(&uid) {
                return Local::Missing(format!("the old file of image {name} cannot be removed: {error}"));
            }
        }
        let status = image.status.clone().unwrap_or_default();
        if !is_imported(&status) {
            let failed = [plan::RETRY_LIMIT, plan::IMPORTED, plan::INITIALIZED]
                .into_iter()
                .filter_map(|kind| condition(&status, kind).map(|c| (kind, c)))
                .find(|(kind, c)| {
                    !c.message.is_empty() && (c.status == "True") == (*kind == plan::RETRY_LIMIT)
                });
            return match failed {
                Some((_, c)) if c.status != "Unknown" => {
                    Local::Missing(format!("image {name} is not imported: {}", c.message))
                }
                _ => Local::Coming(format!(
                    "image {name} is being imported ({} %)",
                    status.progress.unwrap_or(0)
                )),
            };
        }
        let Some(holder) = image.annotations().get(IMAGE_NODE).filter(|holder| **holder != self.node) else {
            return Local::Missing(format!("the file of image {name} is missing on node {}", self.node));
        };
        self.copy(image, &uid, &name, holder)
    }

    /// Whether a file from another node is not what that node has: it was fetched there again, and the source had changed.
    fn is_stale(&self, image: &VirtualMachineImage, kept: &Kept) -> bool {
        let annotations = image.annotations();
        let theirs = annotations.get(IMAGE_NODE).is_some_and(|holder| *holder != self.node);
        theirs && annotations.get(IMAGE_SUM).is_some_and(|sum| *sum != kept.stored.sha512)
    }

    /// Copies from another node, unless that is going on or has just failed.
    fn copy(
        self: &Arc<Self>,
        image: &VirtualMachineImage,
        uid: &str,
        name: &ObjectKey,
        holder: &str,
    ) -> Local {
        if let Some(work) = self.work().get(uid) {
            match &work.failed {
                None => {
                    let percent = work.progress.borrow().percent();
                    return Local::Coming(format!(
                        "image {name} is being copied from node {holder} ({percent} %)"
                    ));
                }
                Some((why, at)) if at.elapsed() < COPY_WAIT => {
                    return Local::Missing(format!(
                        "image {name} cannot be copied from node {holder}: {why}"
                    ));
                }
                Some(_) => {}
            }
        }
        let Some(authority) =
            self.nodes.get(&ObjectKey::new("", holder)).and_then(|node| stream_authority(&node))
        else {
            return Local::Missing(format!("image {name} is on node {holder}, whose address is not known"));
        };
        let source = Source {
            url: format!("https://{authority}/v1/images/{}/{}/file", name.namespace, name.name),
            checksum: image.spec.checksum.parse().ok(),
            checksum_header: Some(CHECKSUM_HEADER),
        };
        self.start(uid, name, source, true);
        Local::Coming(format!("image {name} is being copied from node {holder} (0 %)"))
    }

    fn start(self: &Arc<Self>, uid: &str, key: &ObjectKey, source: Source, copy: bool) {
        let progress = watch::Sender::new(Progress::default());
        let cancel = CancellationToken::new();
        let work = Work {
            url: source.url.clone(),
            copy,
            progress: progress.subscribe(),
            cancel: cancel.clone(),
            failed: None,
            told: None,
        };
        self.work().insert(uid.to_owned(), work);
        let (images, uid, key) = (Arc::clone(self), uid.to_owned(), key.clone());
        self.group.spawn(async move {
            let transfer = images.transfer(&uid, &source, copy, &progress);
            let outcome = tokio::select! {
                () = cancel.cancelled() => return,
                outcome = transfer => outcome,
            };
            let url = if copy { String::new() } else { source.url.clone() };
            images.ended(&uid, &key, &url, outcome);
        });
    }

    async fn transfer(
        &self,
        uid: &str,
        source: &Source,
        copy: bool,
        progress: &watch::Sender<Progress>,
    ) -> Result<Stored, String> {
        let _slot = self.slots.acquire().await.map_err(|error| error.to_string())?;
        let tls = if copy {
            Arc::new(self.identity.client_config().map_err(|error| explain(&error))?)
        } else {
            // Read anew each time, so that what the administrator adds is seen.
            match tokio::task::spawn_blocking(|| system_tls(&[])).await {
                Ok(tls) => tls,
                Err(error) => return Err(error.to_string()),
            }
        };
        let fetcher = Fetcher::new(tls, self.keep_free());
        let result = fetcher.fetch(source, &self.files.base(uid), progress).await;
        result.map_err(|error| format!("cannot be fetched: {}", explain(&error)))
    }

    fn keep_free(&self) -> u64 {
        let _ = std::fs::create_dir_all(self.files.dir());
        files::keep_free_at(self.files.dir())
    }

    /// A transfer is over: its outcome becomes visible to the loop.
    fn ended(&self, uid: &str, key: &ObjectKey, url: &str, outcome: Result<Stored, String>) {
        let recorded = outcome.and_then(|stored| {
            info!(image = %key, bytes = stored.len, format = ?stored.format, "image complete");
            let kept = Kept { stored, url: url.to_owned() };
            self.files.put(uid, &kept).map_err(|error| format!("cannot be recorded: {error}"))
        });
        {
            let mut work = self.work();
            match recorded {
                Ok(()) => {
                    work.remove(uid);
                }
                Err(why) => {
                    warn!(image = %key, "the image {why}");
                    if let Some(work) = work.get_mut(uid) {
                        work.failed = Some((why, Instant::now()));
                    }
                }
            }
        }
        self.wake(key);
    }

    fn wake(&self, key: &ObjectKey) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        if let Some(waker) = self.waker.get() {
            waker.wake(key.clone());
        }
    }

    /// Changes whenever an image's object or file may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn work(&self) -> MutexGuard<'_, BTreeMap<String, Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tried(&self) -> MutexGuard<'_, BTreeMap<String, (String, String)>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is under way; it stops at its next await.
    fn stop(&self, uid: &str) {
        if let Some(work) = self.work().remove(uid) {
            work.cancel.cancel();
        }
    }

    /// As [`plan`] sees it. Copies are no concern of the image's own node.
    fn seen_transfer(&self, uid: &str) -> Option<Transfer> {
        let work = self.work();
        let work = work.get(uid).filter(|work| !work.copy)?;
        Some(match &work.failed {
            None => Transfer::Running { url: work.url.clone(), progress: *work.progress.borrow() },
            Some((why, _)) => Transfer::Failed { url: work.url.clone(), why: why.clone() },
        })
    }

    /// Forgets a failure that the image's status tells; false while the cache does not show that yet.
    fn forget_told(&self, uid: &str, image: &VirtualMachineImage) -> bool {
        let mut work = self.work();
        let Some(told) = work.get(uid).and_then(|work| work.told.as_ref()) else { return true };
        let shown = image.status.as_ref().is_some_and(|status| status.last_failed_time == *told);
        if shown {
            work.remove(uid);
        }
        shown
    }

    /// Removes what belongs to no image any more.
    fn collect(&self) {
        let alive: std::collections::BTreeSet<String> =
            self.images.list().iter().filter_map(|image| image.uid()).collect();
        self.tried().retain(|uid, _| alive.contains(uid));
        let under_way: Vec<String> = self.work().keys().cloned().collect();
        for uid in under_way.into_iter().filter(|uid| !alive.contains(uid)) {
            self.stop(&uid);
        }
        for uid in self.files.uids().into_iter().filter(|uid| !alive.contains(uid)) {
            match self.files.remove(&uid) {
                Ok(()) => info!(uid, "removed the files of an image that is gone"),
                Err(error) => warn!(uid, %error, "cannot remove the files of an image that is gone"),
            }
        }
    }

    async fn reconcile(self: &Arc<Self>, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(image) = self.images.get(key) else {
            self.collect();
            return Ok(Next::Done);
        };
        if image.annotations().get(IMAGE_NODE) != Some(&self.node) {
            return Ok(Next::Done);
        }
        let uid = image.uid().unwrap_or_default();
        if !self.forget_told(&uid, &image) {
            // Our own write is on its way here, and wakes us.
            return Ok(Next::After(Duration::from_secs(1)));
        }
        let (kept, transfer) = (self.files.get(&uid), self.seen_transfer(&uid));
        let tried = self.tried().get(&uid).cloned();
        let plan = plan_image(&Seen {
            image: &image,
            kept: kept.as_ref(),
            transfer: transfer.as_ref(),
            tried: tried.as_ref(),
            now: Timestamp::now(),
        });
        let again = match plan.step {
            Step::Nothing => plan.again,
            Step::Start { url, checksum } => {
                self.tried().insert(uid.clone(), (url.clone(), image.spec.checksum.clone()));
                self.start(&uid, key, Source { url, checksum, checksum_header: None }, false);
                plan.again
            }
            Step::Stop => {
                self.stop(&uid);
                Some(Duration::ZERO)
            }
            Step::Discard => {
                self.files.remove(&uid).map_err(StepError::other("removing a file that is not asked for"))?;
                Some(Duration::ZERO)
            }
        };
        let mut after = (*image).clone();
        if let Some(kept) = kept.filter(|_| is_imported(&plan.status)) {
            // By this, every other node knows that it has the same.
            let annotations = after.metadata.annotations.get_or_insert_default();
            annotations.insert(IMAGE_SUM.to_owned(), kept.stored.sha512);
        }
        after.status = Some(plan.status);
        let api: Api<VirtualMachineImage> = Api::namespaced(self.client.clone(), &key.namespace);
        write(&api, MANAGER, Target::Main, &*image, &after).await?;
        if plan.told_failure
            && let Some(work) = self.work().get_mut(&uid).filter(|work| work.failed.is_some())
        {
            work.told = after.status.map(|status| status.last_failed_time);
        }
        Ok(again.map_or(Next::Done, Next::After))
    }
}

/// The loop; a type of its own because it needs the shared `Arc`.
struct Loop(Arc<Images>);

impl Controller for Loop {
    const NAME: &'static str = "images";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        self.0.reconcile(key).await
    }
}

/// No image has this key: whoever looks at it collects what is left over.
fn everything() -> ObjectKey {
    ObjectKey::new("", "")
}

/// `address:port` of a node's streams.
fn stream_authority(node: &Node) -> Option<String> {
    let status = node.status.as_ref()?;
    let address = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP")?;
    let address: std::net::IpAddr = address.address.parse().ok()?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    Some(std::net::SocketAddr::new(address, u16::try_from(port).ok()?).to_string())
}
