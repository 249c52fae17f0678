//! The watch cache: lists and watches from memory, so that they cost the store nothing.
//!
//! One [`Cache`] follows the whole store with a single watch (the *feed*) and keeps, for each *kind* (a prefix such as
//! `/registry/core/pods/`), the present objects in order of their keys and a bounded window of recent events. A kind is
//! loaded when it is first asked for. Because the feed sees every revision of the store, each kind knows how current it
//! is even when nothing of it changes: a list can wait until it is as new as the store, and a watcher on an idle kind
//! can be told the current revision (bookmarks).
//!
//! ```text
//! store --one watch--> feed task --> Kind { objects, window } --cursor--> Watcher (any number)
//! ```
//!
//! Watchers have no queues: each is a cursor into the shared window, and events are shared by `Arc`. One that falls out
//! of the window gets `Compacted` and has to list again; it slows nobody and costs no memory. A watcher that *starts*
//! further back than the window reads what it misses from the store's history.
//!
//! ```no_run
//! # async fn example(store: std::sync::Arc<dyn sheaf_store::Store>) -> sheaf_store::Result<()> {
//! use sheaf_store::cache::{At, Cache, Options};
//!
//! let cache = Cache::start(store, "/registry/", Options::default(), |entry| entry.value.clone()).await?;
//! let pods = cache.kind("/registry/core/pods/").await?;
//! let page = pods.list("/registry/core/pods/default/", "", 500, At::Latest).await?;
//! let mut watcher = pods.watch("/registry/core/pods/default/", page.at).await?;
//! for event in watcher.next().await? {
//!     let line = event.encoded(|event| event.object.value.clone());
//!     println!("{:?} {} at {:?}: {} bytes", event.what, event.object.key, event.at, line.len());
//! }
//! println!("a bookmark may say {:?}", watcher.progress());
//! # Ok(())
//! # }
//! ```
//!
//! The form `V` in which values are kept is the caller's choice: raw bytes or something decoded. Not here: selectors,
//! JSON, who may see what. Who owns the state: the feed task changes it, under a short lock per kind.

mod feed;
mod kind;
mod watcher;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

pub use kind::Kind;
pub use watcher::Watcher;

use crate::{Change, Entry, Result, Revision, Store, StoreError};
use kind::KindState;

/// Limits of a [`Cache`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Events that a kind's window holds at most.
    pub window_events: usize,
    /// Bytes of stored values that the events of a kind's window hold at most.
    pub window_bytes: usize,
    /// Events older than this leave the window, except for the newest few.
    pub window_age: Duration,
    /// How long a list or a watch waits for a revision that the cache has not seen yet.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            window_events: 8192,
            window_bytes: 24 << 20,
            window_age: Duration::from_secs(75),
            wait: Duration::from_secs(3),
        }
    }
}

/// An object as the cache keeps it.
#[derive(Debug)]
pub struct Object<V> {
    /// The key in the store.
    pub key: Box<str>,
    /// The value, as the cache's decoder made it.
    pub value: V,
    /// Revision of the write that created the key.
    pub created: Revision,
    /// Revision of the last write.
    pub modified: Revision,
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It was created.
    Created,
    /// It was changed.
    Updated,
    /// It was deleted.
    Deleted,
}

/// A change, shared by all who watch it.
#[derive(Debug)]
pub struct Event<V> {
    /// What happened.
    pub what: What,
    /// The object after the change; of a deletion, the object as it was last.
    pub object: Arc<Object<V>>,
    /// The object before an update.
    pub previous: Option<Arc<Object<V>>>,
    /// Revision of the change (of a deletion, it is newer than `object.modified`).
    pub at: Revision,
    seen: Instant,
    /// Size of the values as they are stored; what the window's bound counts.
    bytes: usize,
    encoded: OnceLock<Bytes>,
}

impl<V> Event<V> {
    /// The event in the form in which it is sent; `encode` runs at most once for all watchers.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(self))
    }
}

/// How current a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// As new as the store at the moment of the call: own writes and those of others are in it.
    Latest,
    /// Whatever the cache has.
    Any,
    /// Not older than the revision.
    AtLeast(Revision),
    /// Exactly at the revision.
    Exact(Revision),
}

/// A page of a list, consistent at `at`.
#[derive(Debug, Clone)]
pub struct Listing<V> {
    /// In order of the keys.
    pub objects: Vec<Arc<Object<V>>>,
    /// The revision that the list shows.
    pub at: Revision,
    /// How many objects follow after the last one.
    pub remaining: u64,
}

type Decode<V> = Box<dyn Fn(&Entry) -> V + Send + Sync>;
type Load<V> = (String, oneshot::Sender<Result<Arc<KindState<V>>>>);

/// What the feed, the kinds and the watchers share.
struct Shared<V> {
    store: Arc<dyn Store>,
    options: Options,
    decode: Decode<V>,
    kinds: RwLock<HashMap<String, Arc<KindState<V>>>>,
    /// Everything up to this revision has been applied to all kinds.
    reached: watch::Sender<Revision>,
}

impl<V> Shared<V> {
    fn object(&self, entry: &Entry) -> Arc<Object<V>> {
        let value = (self.decode)(entry);
        let (created, modified) = (entry.created, entry.modified);
        Arc::new(Object { key: entry.key.as_str().into(), value, created, modified })
    }

    /// The event for a change; `known` is the cached object before it, which saves decoding it again.
    fn event(&self, change: &Change, known: Option<Arc<Object<V>>>) -> Event<V> {
        let before = |entry: &Entry| match known {
            Some(object) if object.modified == entry.modified => object,
            _ => self.object(entry),
        };
        let (what, object, previous) = match change {
            Change::Put { entry, previous: None } => (What::Created, self.object(entry), None),
            Change::Put { entry, previous: Some(previous) } => {
                (What::Updated, self.object(entry), Some(before(previous)))
            }
            Change::Delete { previous, .. } => (What::Deleted, before(previous), None),
        };
        let at = change.revision();
        let bytes = change.bytes();
        Event { what, object, previous, at, seen: Instant::now(), bytes, encoded: OnceLock::new() }
    }
}

/// Ends the feed when the last handle goes: its thread hears that this end is closed.
struct Feed(#[allow(dead_code, reason = "held to be dropped")] oneshot::Sender<()>);

/// The cache above a store. Cheap to clone; the feed runs until the last clone and the last [`Kind`] are dropped.
pub struct Cache<V> {
    shared: Arc<Shared<V>>,
    loads: mpsc::Sender<Load<V>>,
    feed: Arc<Feed>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Cache { shared: self.shared.clone(), loads: self.loads.clone(), feed: self.feed.clone() }
    }
}

impl<V: Send + Sync + 'static> Cache<V> {
    /// Starts to follow the keys under `root`. `decode` makes the form in which values are kept; it must not fail, so
    /// for a value that it cannot read it returns a form that says so.
    pub async fn start(
        store: Arc<dyn Store>,
        root: &str,
        options: Options,
        decode: impl Fn(&Entry) -> V + Send + Sync + 'static,
    ) -> Result<Self> {
        let from = store.revision().await?;
        let watch = store.watch(root, from).await?;
        let shared = Arc::new(Shared {
            store,
            options,
            decode: Box::new(decode),
            kinds: RwLock::default(),
            reached: watch::Sender::new(from),
        });
        let (loads, requests) = mpsc::channel(64);
        let (held, dropped) = oneshot::channel();
        feed::spawn(feed::run(shared.clone(), root.to_owned(), watch, requests), dropped).map_err(
            |source| StoreError::Backend { context: "start the watch cache", source: source.into() },
        )?;
        Ok(Cache { shared, loads, feed: Arc::new(Feed(held)) })
    }

    /// The kind whose keys start with `prefix` (which ends in `/`); loaded from the store if it is not there yet.
    pub async fn kind(&self, prefix: &str) -> Result<Kind<V>> {
        debug_assert!(prefix.ends_with('/'), "{prefix}: a kind's prefix ends in a slash");
        let known = self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).get(prefix).cloned();
        let state = match known {
            Some(state) => state,
            None => {
                let (answer, answered) = oneshot::channel();
                self.loads.send((prefix.to_owned(), answer)).await.map_err(|_| StoreError::Closed)?;
                answered.await.unwrap_or(Err(StoreError::Closed))?
            }
        };
        Ok(Kind { shared: self.shared.clone(), state, _feed: self.feed.clone() })
    }

    /// Drops a kind's objects, for example because its definition is gone. Its watchers end with `Closed`.
    pub fn forget(&self, prefix: &str) {
        let state = self.shared.kinds.write().unwrap_or_else(PoisonError::into_inner).remove(prefix);
        if let Some(state) = state {
            state.close();
        }
    }

    /// Everything up to this revision is in the cache.
    pub fn revision(&self) -> Revision {
        *self.shared.reached.borrow()
    }
}
