//! Computed table rows of core kinds: what `kubectl get` shows where a path into the object is not enough.
//!
//! Each function gives one cell for each column of its row in [`crate::kinds`], in that order. Pure: the time comes
//! from the caller.

mod cluster;
mod policy;
mod storage;
mod workloads;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::kind::{Rules, Twin};
use sheaf_meta::status::FieldError;

pub(crate) use cluster::{
    api_service, binding, controller_revision, endpoints, event, network_policy, node, service,
    service_account, signing_request, webhooks,
};
pub(crate) use policy::{
    admission_policy, autoscaler, cron_job, csi_driver, csi_node, disruption_budget, endpoint_slice, ingress,
    ingress_class, ip_address, pod_template, policy_binding, priority_class, quota, service_cidr,
};
pub(crate) use storage::{claim, config_map, secret, storage_class, volume};
pub(crate) use workloads::{daemon_set, deployment, job, pod, replicas, stateful_set};

/// A computed row.
pub(crate) type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// Rules of a kind together with its computed row and its stored form.
struct WithCells {
    rules: Arc<dyn Rules>,
    cells: Option<Cells>,
    twin: Option<&'static dyn Twin>,
}

impl Rules for WithCells {
    fn default(&self, object: &mut Value, old: Option<&Value>) {
        self.rules.default(object, old);
    }
    fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        self.rules.validate(object, old)
    }
    fn warnings(&self, object: &Value) -> Vec<String> {
        self.rules.warnings(object)
    }
    fn cells(&self, object: &Value, now: Timestamp) -> Option<Vec<Value>> {
        self.cells.map(|cells| cells(object, now))
    }
    fn twin(&self) -> Option<&dyn Twin> {
        self.twin
    }
}

/// Adds a computed row and a stored form to rules.
pub(crate) fn with_cells(
    rules: Arc<dyn Rules>,
    cells: Option<Cells>,
    twin: Option<&'static dyn Twin>,
) -> Arc<dyn Rules> {
    match (cells, twin) {
        (None, None) => rules,
        (cells, twin) => Arc::new(WithCells { rules, cells, twin }),
    }
}

/// A duration as Kubernetes' tables show it: two units at most, and fewer the longer it is.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..=-2 => "<invalid>".into(),
        -1 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// Age of a moment in text, `<unknown>` where there is none.
fn since(text: &str, now: Timestamp) -> Value {
    let then = text.parse::<Timestamp>();
    json!(then.map_or_else(|_| "<unknown>".into(), |t| human_duration(now.as_second() - t.as_second())))
}

/// Age of the object.
fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "/metadata/creationTimestamp"), now)
}

/// The string at a JSON pointer, empty where there is none.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The string at a pointer, or what stands for nothing.
fn text_or<'a>(object: &'a Value, pointer: &str, none: &'a str) -> &'a str {
    let found = text(object, pointer);
    if found.is_empty() { none } else { found }
}

/// The number at a pointer, 0 where there is none.
fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The list at a pointer.
fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How many entries a map or list has.
fn count(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    }
}

/// Text parted by commas, or what stands for nothing.
fn joined(parts: impl IntoIterator<Item = String>, none: &str) -> Value {
    let parts: Vec<String> = parts.into_iter().collect();
    if parts.is_empty() { json!(none) } else { json!(parts.join(",")) }
}

/// `a=1,b=2` of a map of strings.
fn pairs(object: &Value, pointer: &str, none: &str) -> Value {
    let map = object.pointer(pointer).and_then(Value::as_object);
    joined(map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())), none)
}

/// A label selector as `kubectl` shows it; only what must be equal.
fn selector(object: &Value, pointer: &str) -> Value {
    pairs(object, &format!("{pointer}/matchLabels"), "<none>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        let table = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (9 * 3600, "9h"),
            (49 * 3600, "2d1h"),
            (8 * 86_400, "8d"),
            (800 * 86_400, "2y70d"),
            (9 * 365 * 86_400, "9y"),
        ];
        for (seconds, want) in table {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }

    #[test]
    fn a_row_that_names_itself_has_one_name() {
        let kinds = crate::kinds();
        let class = kinds.iter().find(|k| k.kind == "StorageClass").map(sheaf_meta::table::Columns::of);
        let Some(Ok(columns)) = class else { panic!("no columns") };
        let object = json!({"metadata": {"name": "local"}, "provisioner": "local.sheaf.io"});
        assert_eq!(columns.cells(&object, Timestamp::UNIX_EPOCH)[..2], ["local", "local.sheaf.io"]);
        assert_eq!(columns.definitions()[0]["name"], "Name");
        assert_eq!(columns.definitions()[1]["name"], "Provisioner");
    }

    #[test]
    fn each_computed_row_has_a_cell_for_each_column() {
        for kind in crate::kinds() {
            let now = Timestamp::UNIX_EPOCH;
            if let Some(cells) = kind.rules.cells(&json!({"metadata": {"name": "x"}}), now) {
                assert_eq!(cells.len(), kind.columns.len(), "{}", kind.kind);
            } else {
                for column in &kind.columns {
                    assert!(!column.path.is_empty(), "{} {}", kind.kind, column.name);
                }
            }
        }
    }
}
