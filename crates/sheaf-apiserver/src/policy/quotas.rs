//! Resource quotas: refuses what a namespace may not have any more, before it is stored.
//!
//! What is used is counted here, from the watch cache at the newest revision, and not taken from a quota's status, which
//! a controller keeps for readers: so nothing is counted twice or forgotten, and a handler writes nothing but its own
//! object. Between the look and the write, what was allowed is held in memory, by key; whoever looks next counts it.
//! Owns those holds. One server at a time: several would have to agree through the store.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_plan::quota::{self, Amounts, Demand, Kind, Quota};
use sheaf_store::cache::At;

use super::{all, forbidden};
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
    registry::Row,
};

/// See the module.
#[derive(Default)]
pub(crate) struct Quotas {
    held: Arc<Held>,
}

/// Looks and holds of the namespaces in which something is being written.
#[derive(Default)]
struct Held(Mutex<HashMap<String, Place>>);

#[derive(Default)]
struct Place {
    /// One look at a time.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// States that were allowed and may not be stored yet, by their keys.
    holds: HashMap<u64, (String, Arc<Allowed>)>,
    next: u64,
    /// Who looks or holds; the last one clears up.
    users: usize,
}

/// A state that was allowed.
struct Allowed {
    group: String,
    plural: String,
    object: Value,
}

impl Held {
    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn enter(self: &Arc<Self>, namespace: &str) -> (Arc<tokio::sync::Mutex<()>>, Presence) {
        let mut places = self.places();
        let place = places.entry(namespace.to_owned()).or_default();
        place.users += 1;
        (place.gate.clone(), Presence { held: self.clone(), namespace: namespace.to_owned(), hold: None })
    }
    fn holds(&self, namespace: &str) -> Vec<(String, Arc<Allowed>)> {
        self.places().get(namespace).map(|p| p.holds.values().cloned().collect()).unwrap_or_default()
    }
}

/// Keeps a place, and a hold in it, until it is dropped.
struct Presence {
    held: Arc<Held>,
    namespace: String,
    hold: Option<u64>,
}

impl Presence {
    fn hold(&mut self, key: String, allowed: Allowed) {
        let mut places = self.held.places();
        let Some(place) = places.get_mut(&self.namespace) else { return };
        place.next += 1;
        self.hold = Some(place.next);
        place.holds.insert(place.next, (key, Arc::new(allowed)));
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut places = self.held.places();
        let Some(place) = places.get_mut(&self.namespace) else { return };
        place.users -= 1;
        if let Some(hold) = self.hold {
            place.holds.remove(&hold);
        }
        if place.users == 0 {
            places.remove(&self.namespace);
        }
    }
}

fn kind_of(row: &Row) -> Kind<'_> {
    Kind { group: &row.info.group, plural: &row.info.plural }
}

impl Admission for Quotas {
    fn review<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let kind = kind_of(write.row);
        // What is only counted does not change its count.
        let may_use_more = write.old.is_none() || kind.is_measured();
        if !write.row.namespaced() || !write.subresource.is_empty() || !may_use_more {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(async move {
            let namespace = object::namespace(object);
            let found = all(core, "", "resourcequotas", namespace, At::Any).await?;
            let quotas: Vec<Quota> =
                found.iter().map(|(_, q)| Quota::of(q)).filter(|q| q.concerns(kind)).collect();
            if quotas.is_empty() {
                return Ok(());
            }
            let demand = Demand { kind, new: object, old: write.old, now: cx.now };
            if let Some(why) = quotas.iter().find_map(|quota| demand.unsaid(quota)) {
                return Err(forbidden(write.row, object::name(object), &why));
            }
            let quotas: Vec<&Quota> = quotas.iter().filter(|q| !demand.more(q).is_empty()).collect();
            if quotas.is_empty() {
                return Ok(());
            }
            let (gate, mut presence) = self.held.enter(namespace);
            let looking = gate.lock().await;
            // Holds first: what is let go of after this is in the cache by then.
            let holds = self.held.holds(namespace);
            let key = write.row.key(namespace, object::name(object));
            for quota in &quotas {
                let used = count(core, quota, namespace, &holds, (kind, &key), write.old, cx.now).await?;
                demand
                    .allowed(quota, &used)
                    .map_err(|why| forbidden(write.row, object::name(object), &why))?;
            }
            if !write.dry_run {
                let (group, plural) = (kind.group.to_owned(), kind.plural.to_owned());
                presence.hold(key, Allowed { group, plural, object: object.clone() });
                let guard: Box<dyn Any + Send> = Box::new(presence);
                write.said.hold(guard);
            }
            drop(looking);
            Ok(())
        })
    }
}

/// What the objects of a namespace use of a quota, those that are about to be stored included. The object itself counts
/// as it is stored (`old`), since a demand is what it wants beyond that.
async fn count(
    core: &Core,
    quota: &Quota,
    namespace: &str,
    holds: &[(String, Arc<Allowed>)],
    own: (Kind<'_>, &str),
    old: Option<&Value>,
    now: jiff::Timestamp,
) -> Result<Amounts, Status> {
    let kinds: BTreeSet<(String, String)> = quota
        .hard
        .keys()
        .flat_map(|name| quota::kinds_of(name))
        .map(|kind| (kind.group.to_owned(), kind.plural.to_owned()))
        .collect();
    let mut used = Amounts::new();
    let mut add = |kind: Kind<'_>, object: &Value| {
        if quota.matches(kind, object, now) {
            quota::add(&mut used, &quota.mask(quota::usage(kind, object, now)));
        }
    };
    for (group, plural) in &kinds {
        let kind = Kind { group, plural };
        for (key, object) in all(core, group, plural, namespace, At::Latest).await? {
            if key != own.1 && !holds.iter().any(|(held, _)| *held == key) {
                add(kind, &object);
            }
        }
    }
    for (_, allowed) in holds.iter().filter(|(key, _)| key != own.1) {
        add(Kind { group: &allowed.group, plural: &allowed.plural }, &allowed.object);
    }
    if let Some(old) = old {
        add(own.0, old);
    }
    Ok(used)
}
