//! One kind: its objects in order, the window of recent events, and reads from them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::watch;

use super::{At, Event, Feed, Listing, Object, Options, Shared, Watcher, What};
use crate::{Change, Result, Revision, StoreError};

/// Events that stay in the window however old they are.
const KEEP_EVENTS: usize = 16;

/// An object in the ordered set; ordered by its key, which it carries itself (no second copy of it).
struct ByKey<V>(Arc<Object<V>>);

impl<V> Borrow<str> for ByKey<V> {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}

impl<V> PartialEq for ByKey<V> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl<V> Eq for ByKey<V> {}

impl<V> PartialOrd for ByKey<V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<V> Ord for ByKey<V> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// What the feed read of a kind.
pub(super) struct Loaded<V> {
    pub(super) objects: Vec<Arc<Object<V>>>,
    pub(super) at: Revision,
}

struct Content<V> {
    objects: BTreeSet<ByKey<V>>,
    /// Oldest first.
    window: VecDeque<Arc<Event<V>>>,
    /// Sum of the events' `bytes`.
    window_bytes: usize,
    /// The window holds every event after this revision.
    floor: Revision,
    /// The kind was read, or changed last, at this revision.
    newest: Revision,
    closed: bool,
}

/// A kind's state, shared between the feed, readers and watchers.
pub(super) struct KindState<V> {
    prefix: String,
    content: RwLock<Content<V>>,
    signal: watch::Sender<()>,
}

/// What a watcher finds behind its cursor.
pub(super) enum Found<V> {
    /// Events, and how far they reach.
    Events(Vec<Arc<Event<V>>>, Revision),
    /// The window begins after the cursor.
    Behind(Revision),
    Closed,
}

impl<V> KindState<V> {
    pub(super) fn new(prefix: &str, loaded: Loaded<V>) -> Self {
        let content = Content {
            objects: loaded.objects.into_iter().map(ByKey).collect(),
            window: VecDeque::new(),
            window_bytes: 0,
            floor: loaded.at,
            newest: loaded.at,
            closed: false,
        };
        KindState { prefix: prefix.to_owned(), content: RwLock::new(content), signal: watch::Sender::new(()) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Content<V>> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content<V>> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.signal.subscribe()
    }

    /// Lets the watchers look again.
    pub(super) fn wake(&self) {
        self.signal.send_replace(());
    }

    pub(super) fn close(&self) {
        self.write().closed = true;
        self.wake();
    }

    /// Applies a change of the store. Only the feed calls this, so that nothing changes between look-up and insert.
    pub(super) fn apply(&self, change: &Change, shared: &Shared<V>) {
        let content = self.read();
        if change.revision() <= content.newest {
            return;
        }
        let known = content.objects.get(change.key()).map(|o| o.0.clone());
        drop(content);
        // Decoding is the expensive part, and happens outside the lock.
        let event = Arc::new(shared.event(change, known));
        let mut content = self.write();
        match event.what {
            What::Created | What::Updated => drop(content.objects.replace(ByKey(event.object.clone()))),
            What::Deleted => drop(content.objects.take(change.key())),
        }
        content.newest = event.at;
        content.window_bytes += event.bytes;
        content.window.push_back(event);
        content.trim(Instant::now(), &shared.options);
    }

    pub(super) fn trim(&self, now: Instant, options: &Options) {
        if self.read().window.len() > KEEP_EVENTS {
            self.write().trim(now, options);
        }
    }

    /// The kind as it was read again after events were lost.
    pub(super) fn reload(&self, loaded: Loaded<V>) {
        let mut content = self.write();
        if loaded.at > content.newest {
            content.objects = loaded.objects.into_iter().map(ByKey).collect();
            content.window.clear();
            content.window_bytes = 0;
            content.floor = loaded.at;
            content.newest = loaded.at;
        }
    }

    /// Events under `prefix` after `cursor`, at most `most`; `reached` is how far the feed is (read before the call).
    pub(super) fn after(&self, prefix: &str, cursor: Revision, most: usize, reached: Revision) -> Found<V> {
        let content = self.read();
        if content.closed {
            return Found::Closed;
        }
        if cursor < content.floor {
            return Found::Behind(content.floor);
        }
        let start = content.window.partition_point(|event| event.at <= cursor);
        let mut matching = content.window.range(start..).filter(|e| e.object.key.starts_with(prefix));
        let events: Vec<_> = matching.by_ref().take(most).cloned().collect();
        let through = match (matching.next(), events.last()) {
            (Some(_), Some(last)) => last.at,
            (Some(_), None) => cursor,
            (None, _) => content.newest.max(reached).max(cursor),
        };
        Found::Events(events, through)
    }
}

impl<V> Content<V> {
    fn trim(&mut self, now: Instant, options: &Options) {
        while let Some(oldest) = self.window.front() {
            let many = self.window.len() > options.window_events.max(1)
                || (self.window_bytes > options.window_bytes && self.window.len() > 1);
            let old = now.duration_since(oldest.seen) > options.window_age && self.window.len() > KEEP_EVENTS;
            if !many && !old {
                break;
            }
            self.floor = oldest.at;
            self.window_bytes -= oldest.bytes;
            self.window.pop_front();
        }
        if self.window.capacity() > 64 && self.window.len() < self.window.capacity() / 4 {
            self.window.shrink_to_fit();
        }
    }

    /// A page as of now.
    fn page(&self, prefix: &str, after: &str, limit: usize) -> (Vec<Arc<Object<V>>>, u64) {
        let objects = self.from(prefix, after);
        cut(objects.map(|o| &o.0), limit)
    }

    fn from<'a>(&'a self, prefix: &'a str, after: &'a str) -> impl Iterator<Item = &'a ByKey<V>> + 'a {
        let start = if after >= prefix && !after.is_empty() {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        self.objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |object| object.0.key.starts_with(prefix))
    }

    /// A page as of `at`, which the window must reach back to: the present, with the later events undone.
    fn page_at(&self, prefix: &str, after: &str, limit: usize, at: Revision) -> (Vec<Arc<Object<V>>>, u64) {
        let later = self.window.partition_point(|event| event.at <= at);
        // What each changed key was at `at`: the first later event knows, so the newest are entered first.
        let mut undone: BTreeMap<&str, Option<&Arc<Object<V>>>> = BTreeMap::new();
        for event in self.window.range(later..).rev() {
            let key = &*event.object.key;
            if key.starts_with(prefix) && (after.is_empty() || key > after) {
                let before =
                    if event.what == What::Deleted { Some(&event.object) } else { event.previous.as_ref() };
                undone.insert(key, before);
            }
        }
        if undone.is_empty() {
            return self.page(prefix, after, limit);
        }
        let mut present =
            self.from(prefix, after).filter(|o| !undone.contains_key(&*o.0.key)).map(|o| &o.0).peekable();
        let mut past = undone.values().copied().flatten().peekable();
        let merged = std::iter::from_fn(|| match (present.peek(), past.peek()) {
            (Some(one), Some(other)) if one.key < other.key => present.next(),
            (_, Some(_)) => past.next(),
            (_, None) => present.next(),
        });
        cut(merged, limit)
    }

    fn get_at(&self, key: &str, at: Revision) -> Option<Arc<Object<V>>> {
        let later = self.window.partition_point(|event| event.at <= at);
        match self.window.range(later..).find(|event| &*event.object.key == key) {
            Some(event) if event.what == What::Deleted => Some(event.object.clone()),
            Some(event) => event.previous.clone(),
            None => self.objects.get(key).map(|o| o.0.clone()),
        }
    }
}

/// The first `limit` (0 = all), and how many there are beyond.
fn cut<'a, V: 'a>(
    mut objects: impl Iterator<Item = &'a Arc<Object<V>>>,
    limit: usize,
) -> (Vec<Arc<Object<V>>>, u64) {
    if limit == 0 {
        return (objects.cloned().collect(), 0);
    }
    let page = objects.by_ref().take(limit).cloned().collect();
    (page, objects.count() as u64)
}

/// A kind in the cache: lists, gets and watches of the keys under its prefix.
pub struct Kind<V> {
    pub(super) shared: Arc<Shared<V>>,
    pub(super) state: Arc<KindState<V>>,
    pub(super) _feed: Arc<Feed>,
}

impl<V> Clone for Kind<V> {
    fn clone(&self) -> Self {
        Kind { shared: self.shared.clone(), state: self.state.clone(), _feed: self._feed.clone() }
    }
}

impl<V: Send + Sync + 'static> Kind<V> {
    /// The prefix of the kind's keys.
    pub fn prefix(&self) -> &str {
        self.state.prefix()
    }

    /// The kind is complete up to this revision.
    pub fn revision(&self) -> Revision {
        let reached = *self.shared.reached.borrow();
        self.state.read().newest.max(reached)
    }

    /// How many objects there are now.
    pub fn count(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Waits, for a bounded time, until the kind is complete up to `revision`.
    pub async fn wait(&self, revision: Revision) -> Result<()> {
        if self.state.read().closed {
            return Err(StoreError::Closed);
        }
        if self.revision() >= revision {
            return Ok(());
        }
        let mut reached = self.shared.reached.subscribe();
        let waiting = reached.wait_for(|reached| *reached >= revision);
        match tokio::time::timeout(self.shared.options.wait, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Future { asked: revision, current: self.revision() }),
        }
    }

    /// Waits until the kind is as `at` demands; gives the exact revision, if one is demanded.
    async fn settle(&self, at: At) -> Result<Option<Revision>> {
        match at {
            At::Any => self.wait(Revision(0)).await?,
            At::Latest => self.wait(self.shared.store.revision().await?).await?,
            At::AtLeast(revision) => self.wait(revision).await?,
            At::Exact(revision) => {
                self.wait(revision).await?;
                // The window may reach back further than the store does. Which of the two answers must not depend on
                // how many other events there were.
                let oldest = self.shared.store.oldest();
                if revision < oldest {
                    return Err(StoreError::Compacted { asked: revision, oldest });
                }
                return Ok(Some(revision));
            }
        }
        Ok(None)
    }

    /// Objects whose keys start with `prefix` (within the kind's own) and come after `after` (if not empty), at most
    /// `limit` (0 = all).
    pub async fn list(&self, prefix: &str, after: &str, limit: usize, at: At) -> Result<Listing<V>> {
        let exact = self.settle(at).await?;
        let reached = *self.shared.reached.borrow();
        {
            let content = self.state.read();
            match exact {
                None => {
                    let (objects, remaining) = content.page(prefix, after, limit);
                    return Ok(Listing { objects, at: content.newest.max(reached), remaining });
                }
                Some(at) if at >= content.floor => {
                    let (objects, remaining) = content.page_at(prefix, after, limit, at);
                    return Ok(Listing { objects, at, remaining });
                }
                Some(_) => {}
            }
        }
        let at = exact.unwrap_or_default();
        let page = self.shared.store.list(prefix, after, at, limit as u64).await?;
        let objects = page.entries.iter().map(|entry| self.shared.object(entry)).collect();
        Ok(Listing { objects, at: page.at, remaining: page.remaining })
    }

    /// The object at `key`.
    pub async fn get(&self, key: &str, at: At) -> Result<Option<Arc<Object<V>>>> {
        let exact = match at {
            // What happens to other kinds is not waited for.
            At::Latest => {
                self.wait(self.shared.store.changed(self.prefix()).await?).await?;
                None
            }
            at => self.settle(at).await?,
        };
        {
            let content = self.state.read();
            match exact {
                None => return Ok(content.objects.get(key).map(|o| o.0.clone())),
                Some(at) if at >= content.floor => return Ok(content.get_at(key, at)),
                Some(_) => {}
            }
        }
        let entry = self.shared.store.get(key, exact.unwrap_or_default()).await?;
        Ok(entry.as_ref().map(|entry| self.shared.object(entry)))
    }

    /// Events of keys that start with `prefix`, after `from` (0: from now on). A revision older than the window is read
    /// from the store's history, if it is still there.
    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watcher<V>> {
        let from = match from {
            Revision(0) => {
                self.wait(from).await?;
                self.revision()
            }
            from => {
                self.wait(from).await?;
                from
            }
        };
        Watcher::start(self.clone(), prefix, from).await
    }
}
