//! A new volume's first content where it is copied: a snapshot of another volume, or an image if the volume was placed before images became
//! bases ([`super::bases`]). It goes in through the volume's own socket, so that every replica gets it and no copy is trusted that the volume
//! has not acknowledged and flushed.
//!
//! One copy for each volume at a time, two for the node. What fails is begun again from the beginning: nobody has used the
//! volume before it is said to be full.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, Patch};
use serde_json::json;
use sheaf_api::longhorn::{Engine, NAMESPACE, Volume};
use sheaf_image::probe::Format;
use sheaf_plan::storage::{FILL_PROBLEM, FILLED, volume_id};
use sheaf_runtime::patch::gone;
use sheaf_runtime::{ObjectKey, Severity};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::{Replicated, params};
use crate::images::Local;

/// Copies on this node at a time, those of images into bases among them.
pub(super) static COPIES: Semaphore = Semaphore::const_new(2);
/// What failed is begun again after this.
const AGAIN: Duration = Duration::from_secs(3);

impl Replicated {
    /// Begins to fill a volume, unless that is going on.
    pub(super) fn fill(self: &Arc<Self>, engine: &Engine, id: &str, what: String) {
        let volume = engine.spec.volume_name.clone();
        let cached = self.volumes.get(&ObjectKey::new(NAMESPACE, &volume));
        let done = cached.is_none_or(|v| v.annotations().contains_key(FILLED));
        if done || !Self::lock(&self.filling).insert(id.to_owned()) {
            return;
        }
        let (this, engine, id) = (self.clone(), engine.clone(), id.to_owned());
        self.group.spawn(async move {
            let turn = COPIES.acquire().await;
            let api: Api<Volume> = Api::namespaced(this.client.clone(), NAMESPACE);
            let result = match unfilled(&api, &volume).await {
                Ok(true) => this.copy(&id, &what).await.map(|()| true),
                other => other,
            };
            drop(turn);
            match result {
                Ok(false) => {}
                Ok(true) => {
                    info!(volume, what, "the volume is filled");
                    let patch = json!({"metadata": {"annotations": {FILLED: "true"}}});
                    let told = api.patch(&volume, &params(), &Patch::Merge(patch)).await;
                    if let Err(error) = gone(told, "saying that a volume is filled") {
                        warn!(volume, %error, "the API does not know yet that the volume is filled");
                    }
                }
                Err(why) => {
                    warn!(volume, what, why, "the volume cannot be filled yet");
                    this.say_problem(&engine, &format!("filling it from {what}: {why}")).await;
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Self::lock(&this.filling).remove(&id);
            this.wake_all();
        });
    }

    async fn say_problem(&self, engine: &Engine, text: &str) {
        if engine.annotations().get(FILL_PROBLEM).is_some_and(|said| said == text) {
            return;
        }
        let api: Api<Engine> = Api::namespaced(self.client.clone(), NAMESPACE);
        let patch = json!({"metadata": {"annotations": {FILL_PROBLEM: text}}});
        if let Err(error) = api.patch(&engine.name_any(), &params(), &Patch::Merge(patch)).await {
            warn!(%error, "the API does not know why a volume cannot be filled");
        }
        self.events.record(engine, Severity::Warning, "FillingFailed", text);
    }

    async fn copy(self: &Arc<Self>, id: &str, what: &str) -> Result<(), String> {
        let socket = self.socket(id);
        if let Some(name) = what.strip_prefix("image:") {
            let (namespace, image) = name.split_once('/').unwrap_or(("default", name));
            let object = self.image_objects.get(&ObjectKey::new(namespace, image));
            let object = object.ok_or_else(|| format!("image {name} does not exist"))?;
            return match self.images.local(&object) {
                Local::Here { kept, base } => convert(base, kept.stored.format, socket).await,
                Local::Coming(message) | Local::Missing(message) => Err(message),
            };
        }
        let Some((source, moment)) = what.strip_prefix("snap://").and_then(|rest| rest.split_once('/'))
        else {
            return Err("it is no image and no snapshot".into());
        };
        let volume = self.volumes.get(&ObjectKey::new(NAMESPACE, source));
        let of = volume.as_deref().and_then(volume_id).map(str::to_owned);
        let of = of.ok_or_else(|| format!("volume {source} does not exist"))?;
        let listed = self.listed().ok_or("the storage process does not answer")?;
        let found = listed.replicas.iter().find(|r| r.volume == of && r.state == "open");
        let found = found.ok_or_else(|| format!("no replica of volume {source} is on node {}", self.node))?;
        let (path, moment) = (found.path.clone(), moment.to_owned());
        let copied = tokio::task::spawn_blocking(move || {
            sheaf_storage::nbd::copy_snapshot(&path, &moment, &socket, |_, _| {})
        });
        let copied = copied.await.map_err(|error| error.to_string())?;
        copied.map_err(|error| {
            let why = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{error}{why}")
        })
    }
}

/// Whether a volume waits for its first content, by the API itself: the cache may not show yet that it has had it a moment ago, and
/// filled again it would lose what a guest has written since.
async fn unfilled(api: &Api<Volume>, volume: &str) -> Result<bool, String> {
    let now =
        api.get_opt(volume).await.map_err(|error| format!("the API does not say whether it was: {error}"))?;
    Ok(now.is_some_and(|v| !v.annotations().contains_key(FILLED)))
}

/// Copies an image; what is zero in it is not written, as the volume is new and empty.
async fn convert(base: PathBuf, format: Format, socket: PathBuf) -> Result<(), String> {
    let target = format!("nbd+unix:///?socket={}", socket.display());
    let options =
        ["convert", "-n", "--target-is-zero", "-t", "writeback", "-f", name_of(format), "-O", "raw"];
    qemu_img(options.map(OsString::from).into_iter().chain([base.into(), target.into()])).await.map(drop)
}

/// What qemu-img calls a format.
pub(super) fn name_of(format: Format) -> &'static str {
    match format {
        Format::Qcow2 => "qcow2",
        _ => "raw",
    }
}

/// Runs qemu-img; what it said, or what it said instead.
pub(super) async fn qemu_img(args: impl IntoIterator<Item = OsString>) -> Result<Vec<u8>, String> {
    let out = tokio::process::Command::new("qemu-img")
        .args(args)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("cannot run qemu-img: {error}"))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    Err(format!("qemu-img: {}", String::from_utf8_lossy(&out.stderr).trim()))
}
