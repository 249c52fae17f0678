//! The way back along a reference: which objects of an informer mention a thing. Kept from the informer's changes, so that finding
//! them costs what they are, and not what the kind has.
//!
//! Not a cache of objects: it gives keys, and what is true of them is in the informer. Owns its two maps. Make it before the drivers
//! that ask it: an informer tells of a change in the order of subscription.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Resource;
use serde::de::DeserializeOwned;

use crate::{Informer, ObjectKey};

/// See the module. `V` is what is mentioned.
pub struct Index<V>(Mutex<Maps<V>>);

struct Maps<V> {
    users: BTreeMap<V, BTreeSet<ObjectKey>>,
    /// Only of objects that mention something.
    mentioned: BTreeMap<ObjectKey, Vec<V>>,
}

impl<V: Ord + Clone + Send + 'static> Index<V> {
    /// An index over an informer's objects by what `mentions` finds in each. `mentions` must be quick.
    pub fn over<K>(
        informer: &Arc<Informer<K>>,
        mentions: impl Fn(&K) -> Vec<V> + Send + Sync + 'static,
    ) -> Arc<Self>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        let index = Arc::new(Self(Mutex::new(Maps { users: BTreeMap::new(), mentioned: BTreeMap::new() })));
        let (kept, source) = (index.clone(), Arc::downgrade(informer));
        informer.subscribe(move |object| {
            let key = ObjectKey::of(&**object);
            // What is told is only that something changed: an object that went away is told of as it was last.
            let now = source.upgrade().and_then(|informer| informer.get(&key));
            kept.set(key, now.map(|object| mentions(&object)).unwrap_or_default());
        });
        index
    }

    /// The objects that mention `what`, in order of their keys.
    pub fn users(&self, what: &V) -> Vec<ObjectKey> {
        self.lock().users.get(what).into_iter().flatten().cloned().collect()
    }

    fn set(&self, key: ObjectKey, mentions: Vec<V>) {
        let mut maps = self.lock();
        if maps.mentioned.get(&key).map_or(&[][..], Vec::as_slice) == mentions {
            return;
        }
        for gone in maps.mentioned.remove(&key).unwrap_or_default() {
            if let Some(users) = maps.users.get_mut(&gone) {
                users.remove(&key);
                if users.is_empty() {
                    maps.users.remove(&gone);
                }
            }
        }
        for what in &mentions {
            maps.users.entry(what.clone()).or_default().insert(key.clone());
        }
        if !mentions.is_empty() {
            maps.mentioned.insert(key, mentions);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Maps<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mentioned_no_more_is_forgotten() {
        let index = Index(Mutex::new(Maps { users: BTreeMap::new(), mentioned: BTreeMap::new() }));
        let key = |name: &str| ObjectKey::new("ns", name);
        index.set(key("a"), vec!["disk", "data"]);
        index.set(key("b"), vec!["data"]);
        assert_eq!(index.users(&"data"), [key("a"), key("b")]);
        index.set(key("a"), vec!["disk"]);
        assert_eq!(index.users(&"data"), [key("b")]);
        index.set(key("b"), Vec::new());
        index.set(key("a"), Vec::new());
        assert_eq!(index.users(&"disk"), []);
        let maps = index.lock();
        assert!(maps.users.is_empty() && maps.mentioned.is_empty());
    }
}
