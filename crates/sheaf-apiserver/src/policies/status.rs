//! The loop that says in a policy's status whether its expressions fit the kinds that it names.
//!
//! In the API server, which has the schemas. Level-triggered: at start and after a lost watch it looks at all policies, in
//! between at those that change; a policy of which the present generation was looked at is left alone. Owns
//! `status.typeChecking` and `status.observedGeneration`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_store::{Change, Entry, StoreError};

use super::types;
use crate::{core::Core, internal};

const PREFIX: &str = "/registry/admissionregistration.k8s.io/validatingadmissionpolicies/";
const COLLECTION: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const PAGE: u64 = 100;
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
    loop {
        for change in watch.next().await? {
            if let Change::Put { entry, .. } = change {
                look(core, &entry).await;
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
