//! How kinds differ in the way they go: facts of Kubernetes' registries, by resource. Pure.

use serde_json::Value;
use sheaf_meta::{object, selector::FieldTerm};

use crate::registry::Row;

fn is_pod(row: &Row) -> bool {
    row.info.group.is_empty() && row.info.plural == "pods"
}

/// Fields of selectors that are not called, or not kept, as they are asked for: what is false or 0 is not stored.
pub(crate) fn as_stored(row: &Row, term: &mut FieldTerm) {
    let zero = match (row.info.group.as_str(), row.info.plural.as_str(), term.field.as_str()) {
        ("", "nodes", "spec.unschedulable") | ("", "pods", "spec.hostNetwork") => "false",
        ("batch", "jobs", "status.successful") => {
            term.field = "status.succeeded".into();
            "0"
        }
        ("", "events", "source") => {
            term.field = "source.component".into();
            return;
        }
        _ => return,
    };
    if term.value == zero {
        term.value.clear();
    }
}

/// Whether dependents stay when nobody says what becomes of them, as it was in the first versions of these kinds.
pub(crate) fn orphans(row: &Row) -> bool {
    matches!(
        (row.info.group.as_str(), row.info.plural.as_str()),
        ("batch", "jobs") | ("", "replicationcontrollers")
    )
}

/// Whether the deletion of an object answers what it was; of other kinds the answer is a status.
pub(crate) fn shows_deleted(row: &Row) -> bool {
    let one_of_them = matches!(
        (row.info.group.as_str(), row.info.plural.as_str()),
        ("", "persistentvolumeclaims" | "persistentvolumes" | "pods" | "podtemplates")
            | ("", "resourcequotas" | "serviceaccounts" | "services")
            | ("storage.k8s.io", "csidrivers" | "csinodes" | "storageclasses")
            | ("storage.k8s.io", "volumeattachments" | "volumeattributesclasses")
    );
    one_of_them && row.built_in()
}

/// The state in which an object goes: of a pod the one that was told to end, of others the last that was stored.
pub(crate) fn last_state<'a>(row: &Row, stored: &'a Value, told: &'a Value) -> &'a Value {
    if is_pod(row) { told } else { stored }
}

/// How long an object that is deleted now may take to end: only pods that run somewhere take any time.
pub(crate) fn grace_seconds(row: &Row, object: &Value, asked: Option<i64>) -> i64 {
    if !is_pod(row) {
        return 0;
    }
    let on_node = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !on_node || ended {
        return 0;
    }
    let usual = || object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match asked.unwrap_or_else(usual) {
        grace if grace < 0 => 1,
        grace => grace,
    }
}

/// Whether an object that is being deleted may still run somewhere: whoever runs it deletes it again, with no time left.
pub(crate) fn runs_on(row: &Row, object: &Value) -> bool {
    is_pod(row) && object::deletion_grace_period_seconds(object).is_some_and(|grace| grace > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    #[test]
    fn time_to_end() {
        let rows = Registry::new(sheaf_api::kinds()).snapshot();
        let row = |group: &str, plural: &str| rows.find_any_version(group, plural).unwrap().clone();
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        let pods = row("", "pods");
        assert_eq!(grace_seconds(&pods, &pod("n", "Running"), None), 30);
        assert_eq!(grace_seconds(&pods, &pod("n", "Running"), Some(5)), 5);
        assert_eq!(grace_seconds(&pods, &pod("n", "Running"), Some(-3)), 1);
        assert_eq!(grace_seconds(&pods, &pod("", "Pending"), None), 0, "it runs nowhere");
        assert_eq!(grace_seconds(&pods, &pod("n", "Failed"), Some(9)), 0, "it has ended");
        assert_eq!(grace_seconds(&row("", "configmaps"), &json!({}), Some(9)), 0);
        assert!(shows_deleted(&pods) && !shows_deleted(&row("", "configmaps")));
        assert!(orphans(&row("batch", "jobs")) && !orphans(&row("apps", "deployments")));
    }
}
