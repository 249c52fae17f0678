//! Namespaces that are being deleted: empties them, says what remains, and lets them go.
//!
//! Owns the finalizer `kubernetes` in a namespace's spec and its deletion conditions. VMs go before the claims they
//! use; everything else in the order of discovery.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, Selection, StepError, TaskGroup};
use tracing::info;

use crate::kinds::{Served, served};

const MANAGER: &str = "sheaf-namespaces";

struct Namespaces {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
}

pub(crate) fn spawn(client: &Client, group: &TaskGroup) {
    let namespaces = Informer::spawn(client, group, &Selection::all());
    let controller = Namespaces { client: client.clone(), namespaces: namespaces.clone() };
    Driver::new(controller).for_each(&namespaces).spawn(group);
}

/// What is left of one kind.
struct Remaining {
    what: String,
    count: usize,
    /// Finalizers seen on them, with counts.
    finalizers: Vec<(String, usize)>,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespaces";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(Next::Done);
        }
        let kinds = served(&self.client).await.map_err(StepError::api("listing the kinds"))?;
        let mut remaining = Vec::new();
        for kind in in_order(kinds) {
            if let Some(left) = self.empty(&key.name, &kind).await? {
                remaining.push(left);
            }
        }
        self.say(&namespace, &remaining).await?;
        if !remaining.is_empty() {
            // What remains ends by its own finalizers, of which this hears nothing: look again.
            return Ok(Next::After(Duration::from_millis(500)));
        }
        self.finalize(key).await
    }
}

fn in_order(kinds: Vec<Served>) -> Vec<Served> {
    let mut kinds: Vec<Served> = kinds.into_iter().filter(|k| k.namespaced).collect();
    // Events last: those of the deletion itself would otherwise come after.
    kinds.sort_by_key(|k| match k.resource.plural.as_str() {
        "virtualmachines" => 0,
        "virtualmachineinstances" => 1,
        "events" => 9,
        _ => 5,
    });
    kinds
}

impl Namespaces {
    /// Deletes what there is of a kind; says what is left.
    async fn empty(&self, namespace: &str, kind: &Served) -> Result<Option<Remaining>, StepError> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let list = |api: Api<DynamicObject>| async move {
            api.list_metadata(&ListParams::default())
                .await
                .map_err(StepError::api("listing a namespace's content"))
        };
        if list(api.clone()).await?.items.is_empty() {
            return Ok(None);
        }
        match api.delete_collection(&DeleteParams::background(), &ListParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 405 => {}
            Err(error) => return Err(StepError::api("deleting a namespace's content")(error)),
        }
        let items = list(api).await?.items;
        if items.is_empty() {
            return Ok(None);
        }
        let mut finalizers: Vec<(String, usize)> = Vec::new();
        for name in items.iter().flat_map(|i| i.metadata.finalizers.iter().flatten()) {
            match finalizers.iter_mut().find(|(n, _)| n == name) {
                Some((_, count)) => *count += 1,
                None => finalizers.push((name.clone(), 1)),
            }
        }
        let group = &kind.resource.group;
        let plural = &kind.resource.plural;
        let what = if group.is_empty() { format!("{plural}.") } else { format!("{plural}.{group}") };
        Ok(Some(Remaining { what, count: items.len(), finalizers }))
    }

    async fn say(&self, namespace: &Namespace, remaining: &[Remaining]) -> Result<(), StepError> {
        let old = serde_json::to_value(namespace.status.as_ref().and_then(|s| s.conditions.as_ref()))
            .unwrap_or_default();
        let new = conditions(&old, remaining, Timestamp::now());
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
        let body = serde_json::to_vec(&live).map_err(StepError::other("encoding a namespace"))?;
        match api.replace_subresource("finalize", &key.name, &PostParams::default(), &live_with(body)?).await
        {
            Ok(_) => {
                info!("namespace emptied and gone");
                Ok(Next::Done)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("finalizing a namespace")(error)),
        }
    }
}

fn live_with(body: Vec<u8>) -> Result<Namespace, StepError> {
    serde_json::from_slice(&body).map_err(StepError::other("encoding a namespace"))
}

/// The two conditions that clients read; a transition time moves only when the status does.
fn conditions(old: &Value, remaining: &[Remaining], now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let content = remaining
        .iter()
        .map(|r| format!("{} has {} resource instances", r.what, r.count))
        .collect::<Vec<_>>()
        .join(", ");
    let mut by_finalizer: Vec<(String, usize)> = Vec::new();
    for (name, count) in remaining.iter().flat_map(|r| &r.finalizers) {
        match by_finalizer.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum += count,
            None => by_finalizer.push((name.clone(), *count)),
        }
    }
    let finalizers = by_finalizer
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect::<Vec<_>>()
        .join(", ");
    let all = [
        (
            "NamespaceContentRemaining",
            !content.is_empty(),
            "SomeResourcesRemain",
            format!("Some resources are remaining: {content}"),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            !finalizers.is_empty(),
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {finalizers}"),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let list = all.map(|(kind, holds, reason, message, (no_reason, no_message))| {
        let status = if holds { "True" } else { "False" };
        let before = old.as_array().and_then(|l| l.iter().find(|c| c["type"] == kind));
        let since = before.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
        json!({
            "type": kind, "status": status, "lastTransitionTime": since.unwrap_or(&now),
            "reason": if holds { reason } else { no_reason },
            "message": if holds { message.as_str() } else { no_message },
        })
    });
    Value::Array(list.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_said_with_numbers() {
        let remaining = [Remaining {
            what: "virtualmachines.kubevirt.io".into(),
            count: 2,
            finalizers: vec![("x.io/y".into(), 2)],
        }];
        let said = conditions(&Value::Null, &remaining, Timestamp::UNIX_EPOCH);
        assert_eq!(
            said[0]["message"],
            "Some resources are remaining: virtualmachines.kubevirt.io has 2 resource instances"
        );
        assert_eq!(
            said[1]["message"],
            "Some content in the namespace has finalizers remaining: x.io/y in 2 resource instances"
        );
        let later = conditions(&said, &[], Timestamp::UNIX_EPOCH);
        assert_eq!((&later[0]["status"], &later[1]["status"]), (&json!("False"), &json!("False")));
    }
}
