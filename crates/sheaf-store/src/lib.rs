//! The store: where objects are kept, by key and revision.
//!
//! A [`Store`] is a map from keys to bytes with etcd's revision semantics: one counter for the whole store, each
//! successful write takes the next revision, an entry remembers the revisions at which it was created and last
//! changed, old revisions stay readable until they are compacted, and a watch delivers every change after a revision
//! exactly once and in order. A write is durable before its future resolves.
//!
//! Not here: objects, kinds, JSON. Who owns the state: the backend. Conformance suite: [`conformance`].

pub mod cache;
pub mod conformance;
mod hub;
pub mod sqlite;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// A point in the store's history. 0 means "now" where a parameter allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// One key's value at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `/registry/core/configmaps/default/x`.
    pub key: String,
    /// The bytes that were written.
    pub value: Bytes,
    /// Revision of the write that created the key.
    pub created: Revision,
    /// Revision of the last write.
    pub modified: Revision,
}

/// A page of a listing, consistent at `at`.
#[derive(Debug, Clone)]
pub struct Page {
    /// In order of the keys.
    pub entries: Vec<Entry>,
    /// The revision that the page shows.
    pub at: Revision,
    /// Whether keys follow after the last of `entries`.
    pub more: bool,
    /// How many keys follow after the last of `entries`.
    pub remaining: u64,
}

/// A change, as a watch delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created (`entry.created == entry.modified`) or updated; `previous` is the entry before.
    Put {
        /// The entry after the write.
        entry: Entry,
        /// The entry before the write, if there was one.
        previous: Option<Entry>,
    },
    /// Deleted at a revision; `previous` is what was deleted.
    Delete {
        /// The entry that was deleted.
        previous: Entry,
        /// Revision of the deletion.
        at: Revision,
    },
}

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `create` found the key taken.
    #[error("key {0} exists already")]
    Exists(String),
    /// `update` or `delete` found another revision than the expected one; the current entry is inside (`None`: absent).
    #[error("key is at another revision than expected")]
    Conflict(Option<Entry>),
    /// The revision was compacted away.
    #[error("revision {asked:?} has been compacted; the oldest is {oldest:?}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision lies in the future.
    #[error("revision {asked:?} is larger than the current {current:?}")]
    Future {
        /// The revision asked for.
        asked: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The value is larger than the store takes.
    #[error("the value of key {key} has {bytes} bytes; the store takes at most {limit}")]
    TooLarge {
        /// The key that was to be written.
        key: String,
        /// Size of the value.
        bytes: usize,
        /// The largest size.
        limit: usize,
    },
    /// The disk has no room; nothing was written.
    #[error("no room is left on the disk with the server's data; nothing was written")]
    Full,
    /// The backend failed; nothing is known of the write's fate unless the backend says so.
    #[error("the store's backend failed: {context}")]
    Backend {
        /// What was being done.
        context: &'static str,
        /// What the backend said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A stretch of history, as [`Store::changes`] reads it.
#[derive(Debug, Clone)]
pub struct History {
    /// In order of their revisions.
    pub changes: Vec<Change>,
    /// Nothing is missing from `changes` up to and including this revision.
    pub through: Revision,
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put { entry, .. } => &entry.key,
            Change::Delete { previous, .. } => &previous.key,
        }
    }

    /// Size of the values in it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Change::Put { entry, previous } => {
                entry.value.len() + previous.as_ref().map_or(0, |previous| previous.value.len())
            }
            Change::Delete { previous, .. } => previous.value.len(),
        }
    }

    /// The revision at which it changed.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put { entry, .. } => entry.modified,
            Change::Delete { at, .. } => *at,
        }
    }
}

/// Result of a store's operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Changes after a revision, in order, none twice. Bounded: a reader that falls too far behind gets
/// [`StoreError::Compacted`] and has to list again.
pub trait Watch: Send {
    /// The next batch of changes (never empty). Pending until there is one. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>>>;

    /// The revision up to which all changes have been handed out, also while nothing changes under the prefix: what a
    /// bookmark may say. `None`: changes wait to be fetched by `next`, or the backend does not know.
    fn progress(&mut self) -> Option<Revision> {
        None
    }
}

/// The store. All methods are atomic; writes are durable when their future resolves.
pub trait Store: Send + Sync + 'static {
    /// The newest revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision>>;
    /// The entry at `key`, now or at `at` (0 = now).
    fn get<'a>(&'a self, key: &'a str, at: Revision) -> BoxFuture<'a, Result<Option<Entry>>>;
    /// Entries whose keys start with `prefix` and come after `after` (exclusive, if not empty), at `at` (0 = now),
    /// at most `limit` (0 = all).
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        at: Revision,
        limit: u64,
    ) -> BoxFuture<'a, Result<Page>>;
    /// Writes a key that must not exist.
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Entry>>;
    /// Replaces a key whose `modified` must be `expected`.
    fn update<'a>(&'a self, key: &'a str, expected: Revision, value: Bytes) -> BoxFuture<'a, Result<Entry>>;
    /// Deletes a key whose `modified` must be `expected`; gives the revision of the deletion.
    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<Revision>>;
    /// Changes to keys that start with `prefix`, after revision `from` (0 = from now on).
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Box<dyn Watch>>>;
    /// The changes to keys that start with `prefix` after revision `from` and until now, at most `limit` (0 = all).
    /// Unlike [`Store::watch`] it does not wait for more, and it tells how far it got.
    fn changes<'a>(&'a self, prefix: &'a str, from: Revision, limit: u64) -> BoxFuture<'a, Result<History>>;
    /// A revision from which on a reader knows the present of all keys that start with `prefix` (which ends in `/`): that
    /// of the last change among them, or a later one. Who reads one object need not wait for what happens elsewhere.
    fn changed<'a>(&'a self, _prefix: &'a str) -> BoxFuture<'a, Result<Revision>> {
        self.revision()
    }
    /// The oldest revision that can still be read, as far as the backend knows without asking anybody.
    fn oldest(&self) -> Revision {
        Revision(0)
    }
    /// Forgets what is only needed to read revisions before `before`.
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<()>>;
}
