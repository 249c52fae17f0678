//! The task that keeps [`Access`]'s memory as the store is.
//!
//! It follows every change of the store, so that it knows at each moment how far it has come; most changes concern
//! nothing here and cost a look at their key.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::Value;
use sheaf_meta::object;
use sheaf_store::{Change, Entry, Revision, StoreError, Watch};

use super::{Access, Account, Memory, index::Kind};

const ROOT: &str = "/registry/";
/// What is kept, by prefix.
const KEPT: &[(&str, What)] = &[
    ("/registry/rbac.authorization.k8s.io/clusterroles/", What::Access(Kind::Role)),
    ("/registry/rbac.authorization.k8s.io/roles/", What::Access(Kind::Role)),
    ("/registry/rbac.authorization.k8s.io/clusterrolebindings/", What::Access(Kind::Binding)),
    ("/registry/rbac.authorization.k8s.io/rolebindings/", What::Access(Kind::Binding)),
    ("/registry/core/serviceaccounts/", What::Account),
    ("/registry/kubevirt.io/virtualmachineinstances/", What::Instance),
];
/// Objects read at once.
const PAGE: u64 = 500;
/// Wait before the store is tried again, doubled up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Access(Kind),
    Account,
    Instance,
}

/// What a key is of, its namespace (empty for the cluster) and its name.
fn of_key(key: &str) -> Option<(What, &str, &str)> {
    let (prefix, what) = KEPT.iter().find(|(prefix, _)| key.starts_with(prefix))?;
    let rest = &key[prefix.len()..];
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    Some((*what, namespace, name))
}

impl Memory {
    fn put(&mut self, entry: &Entry) {
        let Some((what, namespace, name)) = of_key(&entry.key) else { return };
        let object: Value = match serde_json::from_slice(&entry.value) {
            Ok(object) => object,
            Err(error) => {
                tracing::error!(key = entry.key, %error, "an object that decides on access cannot be read; it counts as absent");
                return self.remove(&entry.key);
            }
        };
        match what {
            What::Access(kind) => self.index.put(kind, namespace, name, &object),
            What::Account => {
                let (uid, deleted) =
                    (object::uid(&object).into(), object::deletion_timestamp(&object).into());
                self.accounts.insert((namespace.into(), name.into()), Account { uid, deleted });
            }
            What::Instance => self.graph.put(namespace, name, &object),
        }
    }

    fn remove(&mut self, key: &str) {
        match of_key(key) {
            Some((What::Access(kind), namespace, name)) => self.index.remove(kind, namespace, name),
            Some((What::Account, namespace, name)) => {
                self.accounts.remove(&(namespace.into(), name.into()));
            }
            Some((What::Instance, namespace, name)) => self.graph.remove(namespace, name),
            None => {}
        }
    }
}

/// Reads everything anew; gives the watch that goes on from there.
pub(super) async fn load(access: &Access) -> Result<Box<dyn Watch>, StoreError> {
    let from = access.store.revision().await?;
    let watch = access.store.watch(ROOT, from).await?;
    let mut memory = Memory::default();
    for (prefix, _) in KEPT {
        let mut after = String::new();
        loop {
            let page = access.store.list(prefix, &after, from, PAGE).await?;
            page.entries.iter().for_each(|entry| memory.put(entry));
            match page.entries.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
    }
    *access.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
    access.reached.send_replace(from);
    access.roles_changed.notify_one();
    Ok(watch)
}

/// Follows until the store closes.
pub(super) async fn follow(access: Arc<Access>, mut watch: Box<dyn Watch>) {
    let mut pause = BACK_OFF.0;
    loop {
        match watch.next().await {
            Ok(changes) => {
                apply(&access, &changes);
                pause = BACK_OFF.0;
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "the memory of roles lost the store's watch; it reads again");
                watch = loop {
                    match load(&access).await {
                        Ok(watch) => break watch,
                        Err(StoreError::Closed) => return,
                        Err(error) => tracing::warn!(%error, "the memory of roles cannot read the store"),
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                };
            }
        }
    }
}

fn apply(access: &Access, changes: &[Change]) {
    let mut roles = false;
    for change in changes {
        let Some((what, namespace, _)) = of_key(change.key()) else { continue };
        roles |= what == What::Access(Kind::Role) && namespace.is_empty();
        let mut memory = access.memory.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Put { entry, .. } => memory.put(entry),
            Change::Delete { previous, .. } => memory.remove(&previous.key),
        }
    }
    if let Some(last) = changes.last() {
        let at: Revision = last.revision();
        access.reached.send_replace(at);
    }
    if roles {
        access.roles_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are_of() {
        let role = What::Access(Kind::Role);
        for (key, expected) in [
            ("/registry/rbac.authorization.k8s.io/clusterroles/system:node", Some((role, "", "system:node"))),
            ("/registry/rbac.authorization.k8s.io/roles/ns/a", Some((role, "ns", "a"))),
            ("/registry/core/serviceaccounts/ns/a", Some((What::Account, "ns", "a"))),
            ("/registry/core/secrets/ns/a", None),
        ] {
            assert_eq!(of_key(key), expected, "{key}");
        }
    }
}
