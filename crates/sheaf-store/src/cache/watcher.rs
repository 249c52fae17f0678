//! A watcher of a kind: a cursor into the window, nothing more.

use std::sync::Arc;

use tokio::sync::watch;

use super::Event;
use super::kind::{Found, Kind};
use crate::{Change, Result, Revision, StoreError};

/// How many events are handed out at once.
const BATCH: usize = 256;

/// Events of a kind after a revision, in order, none twice. One that is not read for so long that the window passed it
/// gets [`StoreError::Compacted`].
pub struct Watcher<V> {
    kind: Kind<V>,
    prefix: String,
    signal: watch::Receiver<()>,
    /// Everything up to this revision has been handed out.
    cursor: Revision,
    /// What the history gave, not yet handed out; only at the start.
    history: Vec<Change>,
    /// Whether the cursor has been inside the window: from then on, falling out of it ends the watch.
    joined: bool,
}

impl<V: Send + Sync + 'static> Watcher<V> {
    pub(super) async fn start(kind: Kind<V>, prefix: &str, from: Revision) -> Result<Self> {
        let signal = kind.state.subscribe();
        let mut watcher = Watcher {
            kind,
            prefix: prefix.to_owned(),
            signal,
            cursor: from,
            history: Vec::new(),
            joined: false,
        };
        if let Found::Behind(_) = watcher.look(1) {
            // Now, so that the caller learns at once whether the history is still there.
            watcher.recall().await?;
        } else {
            watcher.joined = true;
        }
        Ok(watcher)
    }

    fn look(&self, most: usize) -> Found<V> {
        // Read before the window: all that it promises is in the window by then.
        let reached = *self.kind.shared.reached.borrow();
        self.kind.state.after(&self.prefix, self.cursor, most, reached)
    }

    /// Fetches the next part of the history before the window.
    async fn recall(&mut self) -> Result<()> {
        let part = self.kind.shared.store.changes(&self.prefix, self.cursor, BATCH as u64).await?;
        self.cursor = part.through;
        self.history = part.changes;
        Ok(())
    }

    /// The next events (never none). Pending until there are some. Cancel-safe.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event<V>>>> {
        loop {
            if !self.history.is_empty() {
                let part = std::mem::take(&mut self.history);
                return Ok(part.iter().map(|c| Arc::new(self.kind.shared.event(c, None))).collect());
            }
            // Marked as seen before looking, so that what comes after the look wakes us.
            self.signal.borrow_and_update();
            match self.look(BATCH) {
                Found::Closed => return Err(StoreError::Closed),
                Found::Behind(oldest) if self.joined => {
                    return Err(StoreError::Compacted { asked: self.cursor, oldest });
                }
                Found::Behind(_) => {
                    self.recall().await?;
                    continue;
                }
                Found::Events(events, through) => {
                    self.joined = true;
                    self.cursor = through;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
            }
            self.signal.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// The revision up to which everything has been handed out: what a bookmark may say now. On an idle kind it
    /// follows the store. `None` while events wait to be fetched by [`Watcher::next`].
    pub fn progress(&mut self) -> Option<Revision> {
        if !self.history.is_empty() || !self.joined {
            return None;
        }
        match self.look(1) {
            Found::Events(events, through) if events.is_empty() => {
                self.cursor = through;
                Some(through)
            }
            _ => None,
        }
    }
}
