//! One kind's objects, cached: a list and a watch that never end, shared by every loop of the process.
//!
//! An object that does not decode as `K` stops nobody: it is logged, left out, and comes in when it is mended.
//! The informer owns the cache; readers get `Arc`s and never hold its lock across an await.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, RwLock};

use futures_util::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{ObjectKey, TaskGroup};

/// Which objects an informer keeps. Empty strings mean "all".
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// A label selector in its string form.
    pub labels: String,
    /// A field selector in its string form.
    pub fields: String,
}

impl Selection {
    /// Every object of the kind.
    pub fn all() -> Self {
        Self::default()
    }
    /// Objects that match a label selector.
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { labels: selector.into(), ..Self::default() }
    }
    /// Objects that match a field selector.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: selector.into(), ..Self::default() }
    }
}

type Subscriber<K> = Box<dyn Fn(&Arc<K>) + Send + Sync>;

/// The cache of one kind.
pub struct Informer<K> {
    objects: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    subscribers: Mutex<Vec<Subscriber<K>>>,
    ready: watch::Sender<bool>,
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    /// Starts to watch all namespaces (or the cluster) and returns at once; see [`Informer::ready`].
    pub fn spawn(client: &Client, group: &TaskGroup, selection: &Selection) -> Arc<Self> {
        let informer = Arc::new(Self {
            objects: RwLock::default(),
            subscribers: Mutex::default(),
            ready: watch::Sender::new(false),
        });
        let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
        let config = watcher::Config::default().labels(&selection.labels).fields(&selection.fields);
        let fed = informer.clone();
        group.spawn(async move {
            let mut pending = BTreeMap::new();
            let mut events = watcher(api, config).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => fed.on_event(event, &mut pending),
                    Err(error) => debug!(kind = %K::kind(&()), error = %chain(&error), "watch interrupted"),
                }
            }
        });
        informer
    }

    fn on_event(
        &self,
        event: watcher::Event<DeserializeGuard<K>>,
        pending: &mut BTreeMap<ObjectKey, Arc<K>>,
    ) {
        match event {
            watcher::Event::Init => pending.clear(),
            watcher::Event::InitApply(object) => {
                if let Some((key, object)) = decoded(object) {
                    pending.insert(key, object);
                }
            }
            watcher::Event::InitDone => {
                let fresh = std::mem::take(pending);
                let old = {
                    let mut objects = self.write();
                    std::mem::replace(&mut *objects, fresh.clone())
                };
                self.ready.send_replace(true);
                for (_, object) in old.iter().filter(|(key, _)| !fresh.contains_key(key)) {
                    self.tell(object);
                }
                for object in fresh.values() {
                    self.tell(object);
                }
            }
            watcher::Event::Apply(object) => {
                if let Some((key, object)) = decoded(object) {
                    self.write().insert(key, object.clone());
                    self.tell(&object);
                }
            }
            watcher::Event::Delete(object) => {
                let meta = object.meta();
                let key = ObjectKey::new(
                    meta.namespace.clone().unwrap_or_default(),
                    meta.name.clone().unwrap_or_default(),
                );
                let removed = self.write().remove(&key);
                if let Some(object) = removed {
                    self.tell(&object);
                }
            }
        }
    }

    /// The object, if it exists.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().get(key).cloned()
    }
    /// All objects, in order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }
    /// The objects of one namespace.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        self.read()
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }
    /// Resolves when the cache has been filled once.
    pub async fn ready(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
    /// Whether the cache has been filled once.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
    /// Calls `f` for every object that comes, changes or goes, and for all that are there now. `f` must be quick, must
    /// not block, and says only *that* something changed: what is true is in the cache.
    pub fn subscribe(&self, f: impl Fn(&Arc<K>) + Send + Sync + 'static) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for object in self.read().values() {
            f(object);
        }
        subscribers.push(Box::new(f));
    }

    fn tell(&self, object: &Arc<K>) {
        let subscribers = self.subscribers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for f in subscribers.iter() {
            f(object);
        }
    }
    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ObjectKey, Arc<K>>> {
        self.objects.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ObjectKey, Arc<K>>> {
        self.objects.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn decoded<K: Resource<DynamicType = ()>>(guarded: DeserializeGuard<K>) -> Option<(ObjectKey, Arc<K>)> {
    match guarded.0 {
        Ok(object) => Some((ObjectKey::of(&object), Arc::new(object))),
        Err(error) => {
            let name = error.metadata.name.unwrap_or_default();
            warn!(kind = %K::kind(&()), %name, error = %error.error, "an object is left out: it does not decode");
            None
        }
    }
}

/// An error with its causes, for logs.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
