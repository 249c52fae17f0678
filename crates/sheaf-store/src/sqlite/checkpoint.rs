//! The checkpointer: a thread that carries the log over into the database file while the writer goes on writing.
//!
//! Without it SQLite does that inside the commit that makes the log long, and everybody who waits for that commit waits
//! for hundreds of pages and two syncs more. What is left for the writer is the end: once the log has
//! [`LOG_PAGES`] pages, its commits carry over the few that came in meanwhile, so that the log begins anew and stays
//! bounded even while nobody ever pauses. It also syncs that log for the writer, so that a file of our own log (`log.rs`) is free again
//! when its turn comes. "The log" here is SQLite's (`-wal`). Owns nothing but its connection; a failure costs speed, and no data.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use super::schema;
use crate::Revision;

/// Pages of the log from which on a commit of the writer completes the checkpoint itself (16 MiB).
pub(super) const LOG_PAGES: u32 = 4096;
/// The thread looks again after so many bytes, as the writer estimates them.
const LOOK_AFTER: usize = 4 << 20;
/// What a write puts into the log beside its value: pages of the index and the rest of the pages that it touches.
const OF_A_WRITE: usize = 4 << 10;
/// Page cache; pages are copied from file to file, and not kept.
const CACHE_KIB: u32 = 64;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    wanted: bool,
    /// The log shall be synced, which then has everything up to this revision.
    sync: Option<Revision>,
    /// Synced up to here.
    synced: Revision,
    sync_failed: bool,
    closed: bool,
}

struct Wanted {
    checkpoint: bool,
    sync: Option<Revision>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end. The thread ends with it.
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Bytes since the thread was last woken.
    since: usize,
}

impl Checkpointer {
    /// `wal` is a descriptor of the log.
    pub(super) fn spawn(path: &Path, wal: File) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (path, inner) = (path.to_owned(), shared.clone());
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || {
            // Opened when there is something to do first: an idle store pays for no second connection.
            let mut connection = None;
            while let Some(wanted) = inner.wanted() {
                if let Some(through) = wanted.sync {
                    inner.sync(&wal, through);
                }
                if wanted.checkpoint
                    && let Err(error) = carry_over(&path, &mut connection)
                {
                    tracing::warn!(error = %error, "the log could not be carried over; writes will do it");
                    connection = None;
                }
            }
        })?;
        Ok(Checkpointer { shared, thread: Some(thread), since: 0 })
    }

    /// Syncs the log, which has all up to `through`, when the thread gets to it.
    pub(super) fn sync(&self, through: Revision) {
        self.shared.lock().sync = Some(through);
        self.shared.bell.notify_one();
    }

    /// Up to where [`Checkpointer::sync`] has got.
    pub(super) fn synced(&self) -> Revision {
        self.shared.lock().synced
    }

    /// A sync failed. The kernel says so once only, so that it must not be tried again.
    pub(super) fn sync_failed(&self) -> bool {
        self.shared.lock().sync_failed
    }

    /// So many writes with so many bytes were committed.
    pub(super) fn committed(&mut self, writes: usize, bytes: usize) {
        self.since += bytes + writes * OF_A_WRITE;
        if self.since >= LOOK_AFTER {
            self.since = 0;
            self.shared.lock().wanted = true;
            self.shared.bell.notify_one();
        }
    }
}

impl Shared {
    /// Waits for work; `None` at the end.
    fn wanted(&self) -> Option<Wanted> {
        let mut state = self.lock();
        while !state.wanted && state.sync.is_none() && !state.closed {
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let wanted = Wanted { checkpoint: std::mem::take(&mut state.wanted), sync: state.sync.take() };
        (!state.closed).then_some(wanted)
    }

    fn sync(&self, wal: &File, through: Revision) {
        let result = wal.sync_data();
        let mut state = self.lock();
        match result {
            Ok(()) => state.synced = through,
            Err(error) => {
                tracing::error!(%error, "the database's log could not be synced");
                state.sync_failed = true;
            }
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was already printed by the panic hook.
            let _ = thread.join();
        }
    }
}

fn carry_over(path: &Path, connection: &mut Option<Connection>) -> rusqlite::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let opened = schema::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, CACHE_KIB)?;
            // The database file is synced before the log may be overwritten.
            opened.pragma_update(None, "synchronous", "FULL")?;
            connection.insert(opened)
        }
    };
    // Passive: it waits for nobody, and nobody waits for it. Busy only says that the writer is at the end of it itself.
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
