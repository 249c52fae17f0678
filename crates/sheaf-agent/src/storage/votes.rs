//! The API's vote, for the storage process: one annotation of a Volume, read and replaced by compare-and-swap.
//!
//! A relay and nothing more: what the value means is known to `sheaf_storage::votes`. The write carries the
//! resourceVersion that was read, so of two who vote at once one hears of a conflict.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sheaf_api::longhorn::{NAMESPACE, Volume};
use sheaf_plan::storage::{VOTE, volume_id};
use sheaf_runtime::{Informer, TaskGroup};
use sheaf_storage::votes::{Held, Wish};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Bytes of the longest question.
const LINE_MAX: u64 = 64 << 10;
/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(6);

/// Listens, and answers as long as the group lives.
pub(super) fn spawn(
    client: &Client,
    group: &TaskGroup,
    socket: PathBuf,
    volumes: Arc<Informer<Volume>>,
) -> std::io::Result<()> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let api: Api<Volume> = Api::namespaced(client.clone(), NAMESPACE);
    group.spawn(async move {
        loop {
            // One at a time: the process asks by one thread.
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = converse(stream, &api, &volumes).await {
                        warn!(%error, "a question for a vote was not answered");
                    }
                }
                Err(error) => {
                    warn!(%error, "nobody can ask for votes");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn converse(
    mut stream: UnixStream,
    api: &Api<Volume>,
    volumes: &Informer<Volume>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(LINE_MAX));
    tokio::time::timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let wish: Wish = serde_json::from_slice(&line)?;
    let held = match tokio::time::timeout(PATIENCE, answer(&wish, api, volumes)).await {
        Ok(held) => held,
        Err(_) => Held::Error("the API does not answer in time".into()),
    };
    let mut reply = serde_json::to_vec(&held)?;
    reply.push(b'\n');
    writer.write_all(&reply).await
}

async fn answer(wish: &Wish, api: &Api<Volume>, volumes: &Informer<Volume>) -> Held {
    let all = volumes.list();
    let Some(name) = all.iter().find(|v| volume_id(v) == Some(&wish.volume)).map(|v| v.name_any()) else {
        return Held::Error(format!("the API knows no volume {}", wish.volume));
    };
    let value = |volume: Volume| Held::Value {
        value: volume.annotations().get(VOTE).cloned().unwrap_or_default(),
        revision: volume.metadata.resource_version.unwrap_or_default(),
    };
    let Some(put) = &wish.put else {
        return match api.get(&name).await {
            Ok(volume) => value(volume),
            Err(error) => Held::Error(error.to_string()),
        };
    };
    let patch = json!({"metadata": {"resourceVersion": wish.revision, "annotations": {VOTE: put}}});
    let params = PatchParams { field_manager: Some("sheaf-storage".into()), ..PatchParams::default() };
    match api.patch(&name, &params, &Patch::Merge(patch)).await {
        Ok(volume) => value(volume),
        Err(kube::Error::Api(status)) if status.code == 409 => Held::Conflict,
        Err(error) => Held::Error(error.to_string()),
    }
}
