//! Gives aggregated cluster roles the rules that they collect, whenever some cluster role changes.
//!
//! Level-triggered: looks at what there is, and writes what differs, through the ordinary path. In the API server's
//! process rather than among the controllers, because `admin`, `edit` and `view` would mean nothing without it.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};

use super::{GROUP, rules::PolicyRule};
use crate::{core::Core, internal};

/// As Kubernetes' controller calls itself in managed fields.
const MANAGER: &str = "clusterrole-aggregation-controller";
/// After a failure it is tried again, whatever happens meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// Never returns.
pub(crate) async fn keep_aggregated(core: Arc<Core>) {
    loop {
        let failed = !aggregate(&core).await;
        let changed = core.access.roles_changed.notified();
        if failed {
            let _ = tokio::time::timeout(RETRY, changed).await;
        } else {
            changed.await;
        }
    }
}

/// One round; says whether all went well. A role that collects another aggregated one follows in the next round, which
/// the write itself brings about.
pub(crate) async fn aggregate(core: &Arc<Core>) -> bool {
    core.access.settle().await;
    let plans = core.access.memory().index.plan_aggregation();
    let mut well = true;
    for plan in plans {
        let path =
            format!("/apis/{GROUP}/v1/clusterroles/{}?fieldManager={MANAGER}&force=true", encode(&plan.name));
        let rules: Vec<Value> = plan.rules.iter().map(PolicyRule::to_json).collect();
        let body = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": {"name": plan.name}, "rules": rules,
        });
        let written = internal::call(core, Method::PATCH, &path, "application/apply-patch+yaml", Some(&body));
        if let Err(status) = written.await {
            well = false;
            tracing::warn!(role = plan.name, message = %status, "the rules of an aggregated role cannot be written");
        }
    }
    well
}

/// Names of roles have characters that mean something in a URL.
pub(crate) fn encode(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
