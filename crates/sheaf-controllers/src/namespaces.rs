//! Namespaces that are being deleted: empties them, says what remains, and lets them go.
//!
//! Owns the finalizer `kubernetes` in a namespace's spec and its deletion conditions. Pods go first and alone, as in
//! Kubernetes; then VMs before the claims they use, and everything else in the order of discovery.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, StepError, TaskGroup, Waker};
use tracing::info;

use crate::kinds::{Everything, Heard, Served, served};

const MANAGER: &str = "sheaf-namespaces";
/// Objects of one page when what remains is counted.
const PAGE: u32 = 500;
/// A namespace that waits is looked at again after this long; what goes in it is heard of at once.
const AGAIN: Duration = Duration::from_secs(2);

struct Namespaces {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
}

/// Wakes the controller for a namespace from which something went, once there is a controller.
pub(crate) type Prepared = Arc<Mutex<Option<(Arc<Informer<Namespace>>, Waker)>>>;

/// Lets the controller hear of what goes.
pub(crate) fn listen(everything: &mut Everything) -> Prepared {
    let prepared: Prepared = Arc::default();
    let heard_by = prepared.clone();
    everything.listen(move |_, heard| {
        let Heard::Gone(meta) = heard else { return };
        let Some(namespace) = &meta.namespace else { return };
        let guard = heard_by.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((namespaces, waker)) = &*guard else { return };
        let key = ObjectKey::new("", namespace.clone());
        if namespaces.get(&key).is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            waker.wake(key);
        }
    });
    prepared
}

pub(crate) fn spawn(
    client: &Client,
    namespaces: &Arc<Informer<Namespace>>,
    prepared: &Prepared,
    group: &TaskGroup,
) {
    let controller = Namespaces { client: client.clone(), namespaces: namespaces.clone() };
    let driver = Driver::new(controller).for_each(namespaces);
    *prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some((namespaces.clone(), driver.waker()));
    driver.spawn(group);
}

/// What is left of one kind.
#[derive(Debug, Default)]
struct Remaining {
    what: String,
    count: usize,
    /// Finalizers seen on them, with counts.
    finalizers: BTreeMap<String, usize>,
}

/// What a look at a namespace's content came to.
#[derive(Debug, Default)]
struct Findings {
    remaining: Vec<Remaining>,
    /// Why kinds could not be listed at all.
    undiscovered: Option<String>,
    /// Why content could not be deleted.
    failures: Vec<String>,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespaces";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        let held = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
        let ours = held.is_some_and(|f| f.iter().any(|f| f == "kubernetes"));
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Ok(Next::Done);
        }
        let mut findings = Findings::default();
        match served(&self.client).await {
            Ok(kinds) => self.empty_all(&key.name, in_order(kinds), &mut findings).await,
            Err(error) => findings.undiscovered = Some(error.to_string()),
        }
        self.say(&namespace, &findings).await?;
        let done =
            findings.remaining.is_empty() && findings.failures.is_empty() && findings.undiscovered.is_none();
        if !done {
            return Ok(Next::After(AGAIN));
        }
        self.finalize(key).await
    }
}

fn in_order(kinds: Vec<Served>) -> Vec<Served> {
    let mut kinds: Vec<Served> = kinds.into_iter().filter(|k| k.namespaced).collect();
    // Events last: those of the deletion itself would otherwise come after.
    kinds.sort_by_key(|k| match k.resource.plural.as_str() {
        "pods" => 0,
        "virtualmachines" => 1,
        "virtualmachineinstances" => 2,
        "events" => 9,
        _ => 5,
    });
    kinds
}

impl Namespaces {
    async fn empty_all(&self, namespace: &str, kinds: Vec<Served>, findings: &mut Findings) {
        for kind in kinds {
            match self.empty(namespace, &kind).await {
                Ok(None) => {}
                Ok(Some(left)) => {
                    findings.remaining.push(left);
                    // Pods may still need what else is there.
                    if kind.resource.plural == "pods" && kind.resource.group.is_empty() {
                        return;
                    }
                }
                Err(error) => findings.failures.push(error.to_string()),
            }
        }
    }

    /// Deletes what there is of a kind; says what is left.
    async fn empty(&self, namespace: &str, kind: &Served) -> Result<Option<Remaining>, kube::Error> {
        let api = kind.api(&self.client, namespace);
        let gone = |status: &kube::core::Status| status.code == 404 || status.code == 405;
        let before = match api.list_metadata(&ListParams::default().limit(1)).await {
            // The kind itself has gone meanwhile.
            Err(kube::Error::Api(status)) if gone(&status) => return Ok(None),
            other => other?,
        };
        if before.items.is_empty() {
            return Ok(None);
        }
        match api.delete_collection(&DeleteParams::background(), &ListParams::default()).await {
            Err(kube::Error::Api(status)) if gone(&status) => {}
            other => drop(other?),
        }
        let mut left = Remaining::default();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list_metadata(&page).await?;
            left.count += list.items.len();
            for name in list.items.iter().flat_map(|i| i.metadata.finalizers.iter().flatten()) {
                *left.finalizers.entry(name.clone()).or_default() += 1;
            }
            match list.metadata.continue_ {
                Some(token) if !token.is_empty() => page = page.continue_token(&token),
                _ => break,
            }
        }
        if left.count == 0 {
            return Ok(None);
        }
        left.what = format!("{}.{}", kind.resource.plural, kind.resource.group);
        Ok(Some(left))
    }

    async fn say(&self, namespace: &Namespace, findings: &Findings) -> Result<(), StepError> {
        let old = serde_json::to_value(namespace.status.as_ref().and_then(|s| s.conditions.as_ref()))
            .unwrap_or_default();
        let new = conditions(&old, findings, Timestamp::now());
        if old == new {
            return Ok(());
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"status": {"conditions": new, "phase": "Terminating"}});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match api.patch_status(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(StepError::api("saying what remains of a namespace")(error)),
        }
    }

    async fn finalize(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let read = api.get_opt(&key.name).await.map_err(StepError::api("reading a namespace"))?;
        let Some(mut live) = read else { return Ok(Next::Done) };
        let finalizers = live.spec.get_or_insert_default().finalizers.get_or_insert_default();
        finalizers.retain(|f| f != "kubernetes");
        match api.replace_subresource("finalize", &key.name, &Default::default(), &live).await {
            Ok(_) => {
                info!("namespace emptied and let go");
                Ok(Next::Done)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("finalizing a namespace")(error)),
        }
    }
}

/// One condition: type, what it says when all is well, and what it says now if all is not.
type Said = (&'static str, (&'static str, &'static str), Option<(&'static str, String)>);

/// The conditions that clients read, in Kubernetes' words; a transition time moves only when the status does.
fn conditions(old: &Value, findings: &Findings, now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut content: Vec<String> =
        findings.remaining.iter().map(|r| format!("{} has {} resource instances", r.what, r.count)).collect();
    content.sort();
    let mut by_finalizer: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, count) in findings.remaining.iter().flat_map(|r| &r.finalizers) {
        *by_finalizer.entry(name).or_default() += count;
    }
    let finalizers: Vec<String> =
        by_finalizer.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let failures = findings.failures.join(", ");
    let all: [Said; 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("ResourcesDiscovered", "All resources successfully discovered"),
            findings.undiscovered.as_ref().map(|why| ("DiscoveryFailed", format!("Discovery failed: {why}"))),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            (!failures.is_empty()).then(|| {
                let count = findings.failures.len();
                (
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {count} remaining: {failures}"),
                )
            }),
        ),
        (
            "NamespaceContentRemaining",
            ("ContentRemoved", "All content successfully removed"),
            (!content.is_empty()).then(|| {
                ("SomeResourcesRemain", format!("Some resources are remaining: {}", content.join(", ")))
            }),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            (!finalizers.is_empty()).then(|| {
                let list = finalizers.join(", ");
                (
                    "SomeFinalizersRemain",
                    format!("Some content in the namespace has finalizers remaining: {list}"),
                )
            }),
        ),
    ];
    let mut list: Vec<Value> = old.as_array().cloned().unwrap_or_default();
    for (kind, (reason, message), wrong) in all {
        let status = if wrong.is_some() { "True" } else { "False" };
        let (reason, message) = wrong.unwrap_or((reason, message.to_owned()));
        let before = list.iter().find(|c| c["type"] == kind && c["status"] == status);
        let since = before.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(&now).to_owned();
        let new = json!({
            "type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
        });
        match list.iter_mut().find(|c| c["type"] == kind) {
            Some(there) => *there = new,
            None => list.push(new),
        }
    }
    Value::Array(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(conditions: &Value) -> Vec<(&str, &str)> {
        let all = conditions.as_array().map_or(&[][..], Vec::as_slice);
        all.iter()
            .map(|c| (c["status"].as_str().unwrap_or(""), c["message"].as_str().unwrap_or("")))
            .collect()
    }

    #[test]
    fn what_remains_is_said_with_numbers() {
        let left = |what: &str, count, finalizers: &[(&str, usize)]| Remaining {
            what: what.into(),
            count,
            finalizers: finalizers.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
        };
        let findings = Findings {
            remaining: vec![
                left("virtualmachines.kubevirt.io", 2, &[("x.io/y", 2)]),
                left("configmaps.", 1, &[("x.io/y", 1), ("a.io/b", 1)]),
            ],
            ..Findings::default()
        };
        let said = conditions(&Value::Null, &findings, Timestamp::UNIX_EPOCH);
        assert_eq!(
            messages(&said),
            [
                ("False", "All resources successfully discovered"),
                ("False", "All legacy kube types successfully parsed"),
                ("False", "All content successfully deleted, may be waiting on finalization"),
                (
                    "True",
                    "Some resources are remaining: configmaps. has 1 resource instances, \
                     virtualmachines.kubevirt.io has 2 resource instances"
                ),
                (
                    "True",
                    "Some content in the namespace has finalizers remaining: a.io/b in 1 resource instances, \
                     x.io/y in 3 resource instances"
                ),
            ]
        );
        let failed = Findings {
            failures: vec!["no".into()],
            undiscovered: Some("down".into()),
            ..Findings::default()
        };
        let later = conditions(&said, &failed, Timestamp::UNIX_EPOCH);
        assert_eq!(
            messages(&later),
            [
                ("True", "Discovery failed: down"),
                ("False", "All legacy kube types successfully parsed"),
                ("True", "Failed to delete all resource types, 1 remaining: no"),
                ("False", "All content successfully removed"),
                ("False", "All content-preserving finalizers finished"),
            ]
        );
        assert_eq!(conditions(&later, &failed, Timestamp::now()), later, "times move only with the status");
    }
}
