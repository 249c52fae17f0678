//! Keeps `status` of resource quotas: what is used of what is limited.
//!
//! Hears of every object that comes, changes or goes, and counts anew the quotas of its namespace that concern its kind.
//! The API server refuses on its own count; this one is for readers. Owns `status` of ResourceQuota: what others write
//! there stays until something is counted, as upstream, where clients test the subresource so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use sheaf_plan::quota::{self, Amounts, Kind, Quota};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, Selection, StepError, TaskGroup, Waker};

use crate::kinds::{Everything, Served};

const MANAGER: &str = "sheaf-quotas";
/// Objects of one page.
const PAGE: u32 = 500;
/// All quotas are counted anew so often.
const RESYNC: Duration = Duration::from_secs(300);

struct Quotas {
    client: Client,
    everything: Arc<Everything>,
    quotas: Arc<Informer<ResourceQuota>>,
}

/// Wakes the controller for the quotas of a namespace, once there is a controller.
pub(crate) type Prepared = Arc<Mutex<Option<(Arc<Informer<ResourceQuota>>, Waker)>>>;

/// Lets the controller hear of everything.
pub(crate) fn listen(everything: &mut Everything) -> Prepared {
    let prepared: Prepared = Arc::default();
    let heard_by = prepared.clone();
    everything.listen(move |kind, heard| {
        use crate::kinds::Heard;
        let namespace = match heard {
            Heard::Seen(meta) | Heard::Gone(meta) => meta.namespace.as_deref(),
            Heard::All(_) | Heard::Ended => Some(""),
        };
        // Quotas themselves wake the driver already.
        let Some(namespace) = namespace.filter(|_| kind.resource.plural != "resourcequotas") else { return };
        let guard = heard_by.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((quotas, waker)) = &*guard else { return };
        let found = if namespace.is_empty() { quotas.list() } else { quotas.list_namespace(namespace) };
        for quota in found.iter().filter(|q| concerns(q, kind)) {
            waker.wake(ObjectKey::of(&**quota));
        }
    });
    prepared
}

/// Whether quotas limit more of a kind than how many there are.
pub(crate) fn measures(kind: &Served) -> bool {
    Kind { group: &kind.resource.group, plural: &kind.resource.plural }.is_measured()
}

/// Whether a quota limits something of a kind.
fn concerns(quota: &ResourceQuota, kind: &Served) -> bool {
    let kind = Kind { group: &kind.resource.group, plural: &kind.resource.plural };
    let hard = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
    hard.is_some_and(|hard| hard.keys().any(|name| kind.counts(name)))
}

pub(crate) fn spawn(client: &Client, everything: &Arc<Everything>, prepared: &Prepared, group: &TaskGroup) {
    let quotas = Informer::spawn(client, group, &Selection::all());
    let controller =
        Quotas { client: client.clone(), everything: everything.clone(), quotas: quotas.clone() };
    let (asks, all) = (Asks { quotas: quotas.clone(), seen: Mutex::default() }, quotas.clone());
    let driver = Driver::new(controller)
        .on(&quotas, move |quota| asks.anew(quota))
        .resync(RESYNC, move || all.list().iter().map(|quota| ObjectKey::of(&**quota)).collect());
    *prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some((quotas, driver.waker()));
    driver.spawn(group);
}

/// What each quota asked for when it was heard of last; only quotas that are there have an entry.
struct Asks {
    quotas: Arc<Informer<ResourceQuota>>,
    seen: Mutex<BTreeMap<ObjectKey, Value>>,
}

impl Asks {
    /// The quota, if it is new or asks for something else than before.
    fn anew(&self, quota: &ResourceQuota) -> Vec<ObjectKey> {
        let key = ObjectKey::of(quota);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if self.quotas.get(&key).is_none() {
            seen.remove(&key);
            return Vec::new();
        }
        let asked = json!({"uid": quota.uid(), "spec": quota.spec});
        if seen.get(&key) == Some(&asked) {
            return Vec::new();
        }
        seen.insert(key.clone(), asked);
        vec![key]
    }
}

impl Controller for Quotas {
    const NAME: &'static str = "quotas";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(object) = self.quotas.get(key) else { return Ok(Next::Done) };
        let value = serde_json::to_value(&*object).map_err(StepError::other("encoding a quota"))?;
        let quota = Quota::of(&value);
        let used = self.count(&quota, &key.namespace).await?;
        let status =
            json!({"hard": quota::to_json(&quota.hard), "used": quota::to_json(&quota.totals(&used))});
        if same(&value["status"], &status) {
            return Ok(Next::Done);
        }
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": object.uid()},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let patch: Patch<Value> = Patch::Json(
            serde_json::from_value(patch).map_err(StepError::other("encoding a quota's status"))?,
        );
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match api.patch_status(&key.name, &params, &patch).await {
            Ok(_) => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("saying what is used of a quota")(error)),
        }
    }
}

/// Whether two statuses say the same amounts, however they are written.
fn same(old: &Value, new: &Value) -> bool {
    let part = |s: &Value, key: &str| quota::amounts(&s[key]);
    ["hard", "used"].iter().all(|key| part(old, key) == part(new, key))
}

impl Quotas {
    /// What the objects in its scopes use.
    async fn count(&self, quota: &Quota, namespace: &str) -> Result<Amounts, StepError> {
        let mut kinds: BTreeMap<(String, String), Arc<Served>> = BTreeMap::new();
        for kind in self.everything.kinds().into_iter().filter(|k| k.namespaced) {
            let id = (kind.resource.group.clone(), kind.resource.plural.clone());
            if quota.concerns(Kind { group: &id.0, plural: &id.1 }) {
                kinds.insert(id, kind);
            }
        }
        let mut used = Amounts::new();
        for ((group, plural), served) in &kinds {
            let kind = Kind { group, plural };
            let api: Api<DynamicObject> = served.api(&self.client, namespace);
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let (items, next) = if kind.is_measured() {
                    let list = api.list(&page).await;
                    let list = list.map_err(StepError::api("counting what is used of a quota"))?;
                    let items: Result<Vec<Value>, _> = list.items.iter().map(serde_json::to_value).collect();
                    (items.map_err(StepError::other("decoding what is used"))?, list.metadata.continue_)
                } else {
                    let list = api.list_metadata(&page).await;
                    let list = list.map_err(StepError::api("counting what is used of a quota"))?;
                    (vec![json!({}); list.items.len()], list.metadata.continue_)
                };
                let now = Timestamp::now();
                for item in items.iter().filter(|item| quota.matches(kind, item, now)) {
                    quota::add(&mut used, &quota.mask(quota::usage(kind, item, now)));
                }
                match next {
                    Some(token) if !token.is_empty() => page = page.continue_token(&token),
                    _ => break,
                }
            }
        }
        Ok(used)
    }
}
