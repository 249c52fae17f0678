//! The feed: the thread that follows the store and keeps all kinds current.
//!
//! When the store's watch breaks (it fell too far behind, or the backend failed), all kinds are loaded again: their
//! objects stay readable meanwhile, and watchers for whom events are missing are sent back to list.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::kind::{KindState, Loaded};
use super::{Load, Shared};
use crate::{Change, Result, Revision, StoreError, Watch};

/// Objects per page when a kind is loaded.
const PAGE: u64 = 500;
/// Wait before the store is tried again, doubled up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Runs the feed on a thread of its own until it ends or `dropped` does. Every read that wants to be current waits for
/// the feed, which therefore must not queue behind the requests that wait for it.
pub(super) fn spawn(
    feed: impl Future<Output = ()> + Send + 'static,
    dropped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let thread = std::thread::Builder::new().name("store-feed".into());
    thread.spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = feed => {}
                _ = dropped => {}
            }
        });
    })?;
    Ok(())
}

pub(super) async fn run<V: Send + Sync + 'static>(
    shared: Arc<Shared<V>>,
    root: String,
    mut watch: Box<dyn Watch>,
    mut requests: mpsc::Receiver<Load<V>>,
) {
    let _close = Close(shared.clone());
    let mut trim = tokio::time::interval(shared.options.window_age.max(Duration::from_secs(1)));
    loop {
        tokio::select! {
            batch = watch.next() => match batch {
                Ok(changes) => apply(&shared, &changes),
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(error = %error, "the watch cache lost the store's watch; it loads again");
                    match restart(&shared, &root).await {
                        Some(again) => watch = again,
                        None => return,
                    }
                }
            },
            request = requests.recv() => match request {
                Some((prefix, answer)) => {
                    // The caller may have gone; the kind will be asked for again.
                    let _ = answer.send(load(&shared, &prefix).await);
                }
                None => return,
            },
            _ = trim.tick() => {
                let now = Instant::now();
                kinds(&shared).iter().for_each(|kind| kind.trim(now, &shared.options));
            }
        }
    }
}

/// However the feed ends: nobody waits for events that will not come.
struct Close<V>(Arc<Shared<V>>);

impl<V> Drop for Close<V> {
    fn drop(&mut self) {
        kinds(&self.0).iter().for_each(|kind| kind.close());
    }
}

fn kinds<V>(shared: &Shared<V>) -> Vec<Arc<KindState<V>>> {
    shared.kinds.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

/// Hands each change to the kinds whose prefix its key has.
fn apply<V>(shared: &Shared<V>, changes: &[Change]) {
    let Some(last) = changes.last() else { return };
    let mut touched: Vec<Arc<KindState<V>>> = Vec::new();
    for change in changes {
        let key = change.key();
        for (slash, _) in key.match_indices('/') {
            let kinds = shared.kinds.read().unwrap_or_else(PoisonError::into_inner);
            let Some(kind) = kinds.get(&key[..=slash]).cloned() else { continue };
            drop(kinds);
            kind.apply(change, shared);
            if !touched.iter().any(|t| Arc::ptr_eq(t, &kind)) {
                touched.push(kind);
            }
        }
    }
    // After all kinds have them: who waits for this revision may read any kind.
    shared.reached.send_replace(last.revision());
    touched.iter().for_each(|kind| kind.wake());
}

/// Reads all objects under `prefix`, page by page, at one revision.
async fn read<V>(shared: &Shared<V>, prefix: &str) -> Result<Loaded<V>> {
    let mut loaded = Loaded { objects: Vec::new(), at: Revision(0) };
    let mut after = String::new();
    loop {
        let page = shared.store.list(prefix, &after, loaded.at, PAGE).await?;
        loaded.at = page.at;
        loaded.objects.extend(page.entries.iter().map(|entry| shared.object(entry)));
        match page.entries.into_iter().next_back() {
            Some(last) if page.more => after = last.key,
            _ => return Ok(loaded),
        }
    }
}

/// Loads a kind and makes it known. The feed stands still meanwhile, so that no event passes it by: what the store
/// commits now arrives afterwards, and is skipped if the load shows it already.
async fn load<V>(shared: &Shared<V>, prefix: &str) -> Result<Arc<KindState<V>>> {
    let known = shared.kinds.read().unwrap_or_else(PoisonError::into_inner).get(prefix).cloned();
    if let Some(kind) = known {
        return Ok(kind);
    }
    let kind = Arc::new(KindState::new(prefix, read(shared, prefix).await?));
    let mut kinds = shared.kinds.write().unwrap_or_else(PoisonError::into_inner);
    kinds.insert(prefix.to_owned(), kind.clone());
    Ok(kind)
}

/// A new watch of the store, and every kind as it is now. `None`: the store is closed.
async fn restart<V>(shared: &Shared<V>, root: &str) -> Option<Box<dyn Watch>> {
    let mut pause = BACK_OFF.0;
    loop {
        let result = async {
            // The watch comes first: what happens while the kinds are read is in both, and skipped.
            let from = shared.store.revision().await?;
            let watch = shared.store.watch(root, from).await?;
            for kind in kinds(shared) {
                kind.reload(read(shared, kind.prefix()).await?);
            }
            Ok((watch, from))
        };
        match result.await {
            Ok((watch, from)) => {
                shared.reached.send_if_modified(|reached| {
                    let newer = from > *reached;
                    *reached = from.max(*reached);
                    newer
                });
                kinds(shared).iter().for_each(|kind| kind.wake());
                return Some(watch);
            }
            Err(StoreError::Closed) => return None,
            Err(error) => {
                tracing::warn!(error = %error, "the watch cache cannot load from the store; it tries again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}
