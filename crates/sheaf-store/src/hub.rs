//! Fan-out of committed changes to the store's own watchers.
//!
//! The writer publishes each committed group once, under one short lock; every watcher has a bounded buffer. A watcher
//! that starts in the past, or whose buffer overflowed, reads what it misses from the history and joins the live
//! stream again: the join is exact because registering and publishing exclude each other. Not here: reading history
//! (the backend's [`Replay`]), thousands of watchers (the watch cache is for those).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::{Change, History, Result, Revision, StoreError, Watch};

/// How many changes a watch hands out at once.
const BATCH: usize = 256;

/// A watcher's buffer ends after so many bytes of values, too.
const BUFFER_BYTES: usize = 16 << 20;

/// Prefixes whose last change is kept; of others the newest revision of all is told.
const MAX_PREFIXES: usize = 4096;

/// Reads history for watchers; implemented by the backend.
pub(crate) trait Replay: Send + Sync + 'static {
    /// Changes under `prefix` after `from`, at most up to `until`, at most `limit` of them.
    fn replay<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
        until: Revision,
        limit: usize,
    ) -> BoxFuture<'a, Result<History>>;
}

/// Where the writer publishes and watchers register.
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Changes that a watcher may leave unread before it must go back to the history.
    buffer: usize,
}

struct Inner {
    revision: Revision,
    closed: bool,
    next_id: u64,
    watchers: HashMap<u64, Arc<Slot>>,
    /// The last change under each prefix that somebody asked for; at most [`MAX_PREFIXES`].
    changed: HashMap<Box<str>, Revision>,
}

struct Slot {
    prefix: String,
    queue: Mutex<Queue>,
    bell: Notify,
}

#[derive(Default)]
struct Queue {
    /// Shared with the other watchers; each makes its own copy when it reads, not while the writer waits.
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// The hub stopped feeding this slot: the buffer was full, or the store closed.
    cut: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(revision: Revision, buffer: usize) -> Self {
        let (watchers, changed) = (HashMap::new(), HashMap::new());
        let inner = Inner { revision, closed: false, next_id: 0, watchers, changed };
        Hub { inner: Mutex::new(inner), buffer }
    }

    /// The newest revision that has been published.
    pub(crate) fn revision(&self) -> Revision {
        lock(&self.inner).revision
    }

    /// A revision not older than the last published change under `prefix`, which ends in `/`.
    pub(crate) fn changed(&self, prefix: &str) -> Revision {
        let mut inner = lock(&self.inner);
        if let Some(at) = inner.changed.get(prefix) {
            return *at;
        }
        let now = inner.revision;
        if inner.changed.len() < MAX_PREFIXES {
            inner.changed.insert(prefix.into(), now);
        }
        now
    }

    /// Hands a committed group to all watchers.
    pub(crate) fn publish(&self, changes: &[Arc<Change>]) {
        let Some(last) = changes.last().map(|change| change.revision()) else { return };
        let mut inner = lock(&self.inner);
        inner.revision = last;
        if !inner.changed.is_empty() {
            for change in changes {
                for (slash, _) in change.key().match_indices('/') {
                    if let Some(at) = inner.changed.get_mut(&change.key()[..=slash]) {
                        *at = change.revision();
                    }
                }
            }
        }
        let buffer = self.buffer;
        inner.watchers.retain(|_, slot| slot.feed(changes, buffer));
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.closed = true;
        for (_, slot) in inner.watchers.drain() {
            lock(&slot.queue).cut = true;
            slot.bell.notify_one();
        }
    }

    /// From the revision returned on, every change reaches the slot.
    fn register(&self, prefix: &str) -> Result<(u64, Arc<Slot>, Revision)> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(StoreError::Closed);
        }
        let id = inner.next_id;
        inner.next_id += 1;
        let slot = Arc::new(Slot { prefix: prefix.to_owned(), queue: Mutex::default(), bell: Notify::new() });
        inner.watchers.insert(id, slot.clone());
        Ok((id, slot, inner.revision))
    }

    /// A watch of `prefix` after `from` (0: from now on).
    pub(crate) fn watch(
        self: &Arc<Self>,
        replay: Arc<dyn Replay>,
        prefix: &str,
        from: Revision,
    ) -> Result<HubWatch> {
        let (id, slot, joined) = self.register(prefix)?;
        let delivered = if from == Revision(0) { joined } else { from };
        Ok(HubWatch { hub: self.clone(), replay, id, slot, joined, delivered })
    }
}

impl Slot {
    /// False when the slot is not to be fed any more.
    fn feed(&self, changes: &[Arc<Change>], buffer: usize) -> bool {
        let mut matching = changes.iter().filter(|c| c.key().starts_with(&self.prefix)).peekable();
        if matching.peek().is_none() {
            return true;
        }
        let mut queue = lock(&self.queue);
        for change in matching {
            if queue.changes.len() >= buffer || queue.bytes > BUFFER_BYTES {
                queue.cut = true;
                break;
            }
            queue.bytes += change.bytes();
            queue.changes.push_back(change.clone());
        }
        let fed = !queue.cut;
        drop(queue);
        self.bell.notify_one();
        fed
    }
}

/// A watch of the hub's changes.
pub(crate) struct HubWatch {
    hub: Arc<Hub>,
    replay: Arc<dyn Replay>,
    id: u64,
    slot: Arc<Slot>,
    /// Changes after this revision are in the slot; those until it are in the history.
    joined: Revision,
    /// Everything up to this revision has been handed out.
    delivered: Revision,
}

impl HubWatch {
    /// What the slot holds, without what was seen already. `None`: nothing yet.
    fn take(&mut self) -> Result<Option<Vec<Change>>> {
        let mut queue = lock(&self.slot.queue);
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(change) = queue.changes.pop_front() else { break };
            queue.bytes -= change.bytes();
            // A list may show a revision that is published a moment later.
            if change.revision() > self.delivered {
                batch.push(Arc::unwrap_or_clone(change));
            }
        }
        if let Some(last) = batch.last() {
            self.delivered = last.revision();
            return Ok(Some(batch));
        }
        let rejoin = queue.cut && queue.changes.is_empty();
        drop(queue);
        if rejoin {
            let (id, slot, joined) = self.hub.register(&self.slot.prefix)?;
            (self.id, self.slot, self.joined) = (id, slot, joined);
        }
        Ok(None)
    }
}

impl Watch for HubWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>>> {
        Box::pin(async move {
            loop {
                while self.delivered < self.joined {
                    let (from, until) = (self.delivered, self.joined);
                    let history = self.replay.replay(&self.slot.prefix, from, until, BATCH).await?;
                    self.delivered = history.through;
                    if !history.changes.is_empty() {
                        return Ok(history.changes);
                    }
                }
                if let Some(batch) = self.take()? {
                    return Ok(batch);
                }
                if self.delivered < self.joined {
                    continue;
                }
                // A permit is kept when the bell rang before this line.
                self.slot.bell.notified().await;
            }
        })
    }

    fn progress(&mut self) -> Option<Revision> {
        self.caught_up()
    }
}

impl HubWatch {
    fn caught_up(&mut self) -> Option<Revision> {
        // In this order: all that the hub had published by then is in the slot.
        let published = self.hub.revision();
        let queue = lock(&self.slot.queue);
        if !queue.changes.is_empty() || queue.cut || self.delivered < self.joined {
            return None;
        }
        self.delivered = self.delivered.max(published);
        Some(self.delivered)
    }
}

impl Drop for HubWatch {
    fn drop(&mut self) {
        lock(&self.hub.inner).watchers.remove(&self.id);
    }
}
