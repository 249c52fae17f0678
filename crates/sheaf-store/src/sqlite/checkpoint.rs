//! The checkpointer: a thread that carries the log over into the database file while the writer goes on writing.
//!
//! Without it SQLite does that inside the commit that makes the log long, and everybody who waits for that commit waits
//! for hundreds of pages and two syncs more. What is left for the writer is the end: once the log has
//! [`LOG_PAGES`] pages, its commits carry over the few that came in meanwhile, so that the log begins anew and stays
//! bounded even while nobody ever pauses. Owns nothing but its connection; a failure costs speed, and no data.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use super::schema;

/// Pages of the log from which on a commit of the writer completes the checkpoint itself (16 MiB).
pub(super) const LOG_PAGES: u32 = 4096;
/// The thread looks again after so many bytes, as the writer estimates them.
const LOOK_AFTER: usize = 4 << 20;
/// What a write puts into the log beside its value: pages of the index and the rest of the pages that it touches.
const OF_A_WRITE: usize = 8 << 10;
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
    closed: bool,
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
    pub(super) fn spawn(path: &Path) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (path, inner) = (path.to_owned(), shared.clone());
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || {
            // Opened when there is something to do first: an idle store pays for no second connection.
            let mut connection = None;
            while inner.wanted() {
                if let Err(error) = carry_over(&path, &mut connection) {
                    tracing::warn!(error = %error, "the log could not be carried over; writes will do it");
                    connection = None;
                }
            }
        })?;
        Ok(Checkpointer { shared, thread: Some(thread), since: 0 })
    }

    /// A group of so many writes with so many bytes was committed.
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
    /// Waits for work; false at the end.
    fn wanted(&self) -> bool {
        let mut state = self.lock();
        while !state.wanted && !state.closed {
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted = false;
        !state.closed
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
