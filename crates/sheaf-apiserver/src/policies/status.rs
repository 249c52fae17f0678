//! The loop that says in a policy's status whether its expressions fit the kinds that it names.
//!
//! In the API server, which has the schemas. Level-triggered: at start and after a lost watch it looks at all policies, in
//! between at those that change; a policy of which the present generation was looked at is left alone. Owns
//! `status.typeChecking` and `status.observedGeneration`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_store::{Change, Entry, Revision, StoreError};
use tokio::time::Instant;

use super::types;
use crate::{core::Core, internal};

const PREFIX: &str = "/registry/admissionregistration.k8s.io/validatingadmissionpolicies/";
const COLLECTION: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const PAGE: u64 = 100;
/// So long after a change it is looked at: whoever makes a policy and changes it at once meets no other writer.
const PAUSE: Duration = Duration::from_secs(1);
/// After a failure everything is looked at again.
const RETRY: Duration = Duration::from_secs(2);

/// Never returns.
pub(crate) async fn keep_checked(core: Arc<Core>) {
    loop {
        match follow(&core).await {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => tracing::warn!(%error, "admission policies are looked at anew"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(core: &Arc<Core>) -> Result<(), StoreError> {
    let from = core.store.revision().await?;
    let mut watch = core.store.watch(PREFIX, from).await?;
    let mut after = String::new();
    loop {
        let page = core.store.list(PREFIX, &after, from, PAGE).await?;
        for entry in &page.entries {
            look(core, entry).await;
        }
        match page.entries.last() {
            Some(last) if page.more => after = last.key.clone(),
            _ => break,
        }
    }
    let mut changed: BTreeSet<String> = BTreeSet::new();
    let mut due: Option<Instant> = None;
    loop {
        let changes = match due {
            None => watch.next().await?,
            Some(at) => match tokio::time::timeout_at(at, watch.next()).await {
                Ok(changes) => changes?,
                Err(_) => {
                    due = None;
                    for key in std::mem::take(&mut changed) {
                        if let Some(entry) = core.store.get(&key, Revision(0)).await? {
                            look(core, &entry).await;
                        }
                    }
                    continue;
                }
            },
        };
        for change in changes {
            if let Change::Put { entry, .. } = change {
                changed.insert(entry.key);
                due.get_or_insert_with(|| Instant::now() + PAUSE);
            }
        }
    }
}

async fn look(core: &Arc<Core>, entry: &Entry) {
    let Ok(policy) = serde_json::from_slice::<Value>(&entry.value) else { return };
    let generation = object::generation(&policy);
    let seen = policy.pointer("/status/observedGeneration").and_then(Value::as_i64).unwrap_or(0);
    if seen >= generation {
        return;
    }
    let rows = core.registry.snapshot();
    let spec = &policy["spec"];
    let found = types::check(spec, &types::kinds(&rows, spec), types::parameters(&rows, spec).as_ref());
    // Null takes away what was said of an earlier generation.
    let found = if found.is_empty() { Value::Null } else { found.into() };
    let patch = json!({
        "metadata": {"uid": object::uid(&policy)},
        "status": {"observedGeneration": generation, "typeChecking": {"expressionWarnings": found}},
    });
    let path = format!("{COLLECTION}/{}/status", object::name(&policy));
    let written: Result<_, Status> = internal::merge(core, &path, &patch).await;
    match written {
        Ok(_) => {}
        // It is gone, or another one: the watch brings the news.
        Err(status) if matches!(status.code, 404 | 409) => {}
        Err(status) => {
            let name = object::name(&policy);
            tracing::warn!(name, message = %status, "the status of a policy cannot be written");
        }
    }
}
