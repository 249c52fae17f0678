//! How kinds differ in what a PUT may do: facts of upstream's registries, by resource. Pure.
//!
//! Custom resources (ours among them, which are custom resources where they come from) follow one rule; of Kubernetes'
//! own kinds the exceptions are named.

use crate::registry::Row;

/// Whether a PUT of an object that is not there creates it.
pub(crate) fn creates_on_update(row: &Row) -> bool {
    match (row.info.group.as_str(), row.info.plural.as_str()) {
        ("", "endpoints" | "events" | "limitranges" | "services")
        | ("events.k8s.io", "events")
        | ("coordination.k8s.io", "leases")
        | ("rbac.authorization.k8s.io", "roles" | "rolebindings" | "clusterroles" | "clusterrolebindings") => {
            row.built_in()
        }
        _ => false,
    }
}

/// Whether a PUT without a resourceVersion overwrites whatever is there. Where it does not, it is refused.
pub(crate) fn updates_unconditionally(row: &Row) -> bool {
    let strict = matches!(
        (row.info.group.as_str(), row.info.plural.as_str()),
        ("coordination.k8s.io" | "admissionregistration.k8s.io" | "apiextensions.k8s.io", _)
            | ("apiregistration.k8s.io" | "flowcontrol.apiserver.k8s.io" | "node.k8s.io", _)
            | ("policy", "poddisruptionbudgets")
            | ("storage.k8s.io", "csidrivers" | "csinodes" | "volumeattachments")
    );
    row.built_in() && !strict
}
