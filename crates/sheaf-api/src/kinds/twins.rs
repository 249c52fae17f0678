//! Objects that two rows show in two forms, and that are stored once: events of both groups, autoscalers of both
//! versions. The stored form is core/v1's for events and v2's for autoscalers.
//!
//! Pure renamings and moves; nothing that one form can say is lost when it is stored in the other.

use serde_json::{Map, Value, json};
use sheaf_meta::kind::Twin;
use sheaf_meta::object;

type Object = Map<String, Value>;

/// `events.k8s.io/v1`, stored as core/v1.
pub(super) struct Events;

/// Core's name of a field, and that of `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

impl Twin for Events {
    fn prefix(&self) -> &'static str {
        "/registry/core/events/"
    }
    fn to_stored(&self, object: &mut Value) {
        rename(object, EVENT_FIELDS.into_iter().map(|(core, own)| (own, core)));
        object::set_gvk(object, "v1", "Event");
    }
    /// Clients refuse an event of this group without the time at which it happened, which one of the core group may lack: it is
    /// the one that is nearest to it then.
    fn from_stored(&self, object: &mut Value) {
        if object.get("eventTime").is_none_or(Value::is_null)
            && let Some(time) = happened(object)
        {
            object::as_map(object).insert("eventTime".into(), json!(time));
        }
        rename(object, EVENT_FIELDS.into_iter());
        object::set_gvk(object, "events.k8s.io/v1", "Event");
    }
}

/// When a core event was seen first, or else when it was told.
fn happened(event: &Value) -> Option<String> {
    let times = ["/firstTimestamp", "/lastTimestamp", "/metadata/creationTimestamp"];
    let first = times.into_iter().find_map(|at| event.pointer(at)?.as_str())?;
    let time: jiff::Timestamp = first.parse().ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// An older version of a kind of ours, which differs in its name alone.
pub(super) struct OlderVersion {
    /// Where the newer one is stored.
    pub(super) prefix: &'static str,
    pub(super) kind: &'static str,
    pub(super) stored: &'static str,
    pub(super) shown: &'static str,
}

impl Twin for OlderVersion {
    fn prefix(&self) -> &'static str {
        self.prefix
    }
    fn to_stored(&self, object: &mut Value) {
        object::set_gvk(object, self.stored, self.kind);
    }
    fn from_stored(&self, object: &mut Value) {
        object::set_gvk(object, self.shown, self.kind);
    }
}

/// `autoscaling/v1`, stored as v2.
pub(super) struct Autoscalers;

/// Where v1 keeps what only v2 has fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const GOAL: &str = "targetCPUUtilizationPercentage";
const NOW: &str = "currentCPUUtilizationPercentage";

/// The share of CPU that a metric aims at or has; `part` is `target` or `current`.
fn cpu_share(metric: &Value, part: &str) -> Option<Value> {
    let resource = metric.get("resource").filter(|r| metric["type"] == "Resource" && r["name"] == "cpu")?;
    resource.get(part)?.get("averageUtilization").filter(|share| share.is_i64()).cloned()
}

/// Takes the one metric that v1 has a field for out of a list.
fn take_cpu(list: &mut Vec<Value>, part: &str) -> Option<Value> {
    let at = list.iter().position(|m| cpu_share(m, part).is_some())?;
    cpu_share(&list.remove(at), part)
}

fn map_at<'a>(object: &'a mut Value, key: &str) -> &'a mut Object {
    object::as_map(object::as_map(object).entry(key).or_insert_with(|| json!({})))
}

fn keep(object: &mut Value, annotation: &str, value: Option<Value>) {
    let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    let text = value.filter(|v| !empty(v)).map(|v| v.to_string());
    object::set_annotation(object, annotation, text.as_deref());
}

fn kept(object: &mut Value, annotation: &str) -> Option<Value> {
    let text = object::annotation(object, annotation)?.to_owned();
    object::set_annotation(object, annotation, None);
    serde_json::from_str(&text).ok()
}

impl Twin for Autoscalers {
    fn prefix(&self) -> &'static str {
        "/registry/autoscaling/horizontalpodautoscalers/"
    }

    fn from_stored(&self, object: &mut Value) {
        let take = |object: &mut Value, at: &str, key: &str| map_at(object, at).remove(key);
        let list = |value: Option<Value>| match value {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let mut metrics = list(take(object, "spec", "metrics"));
        if let Some(share) = take_cpu(&mut metrics, "target") {
            map_at(object, "spec").insert(GOAL.into(), share);
        }
        let behavior = take(object, "spec", "behavior");
        keep(object, METRICS, Some(Value::Array(metrics)));
        keep(object, BEHAVIOR, behavior);
        if object.get("status").is_some() {
            let mut current = list(take(object, "status", "currentMetrics"));
            if let Some(share) = take_cpu(&mut current, "current") {
                map_at(object, "status").insert(NOW.into(), share);
            }
            let conditions = take(object, "status", "conditions");
            keep(object, CURRENT, Some(Value::Array(current)));
            keep(object, CONDITIONS, conditions);
            let status = map_at(object, "status");
            for count in ["currentReplicas", "desiredReplicas"] {
                status.entry(count).or_insert(json!(0));
            }
        }
        object::set_gvk(object, "autoscaling/v1", "HorizontalPodAutoscaler");
    }

    fn to_stored(&self, object: &mut Value) {
        let goal = map_at(object, "spec").remove(GOAL);
        let mut metrics = match kept(object, METRICS) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        if let Some(share) = goal.filter(|g| !g.is_null()) {
            let target = json!({"type": "Utilization", "averageUtilization": share});
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        let behavior = kept(object, BEHAVIOR);
        let spec = map_at(object, "spec");
        if !metrics.is_empty() {
            spec.insert("metrics".into(), Value::Array(metrics));
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
        if object.get("status").is_some() {
            let share = map_at(object, "status").remove(NOW);
            let mut current = match kept(object, CURRENT) {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            };
            if let Some(share) = share.filter(|s| !s.is_null()) {
                let now = json!({"averageUtilization": share, "averageValue": "0"});
                current.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": now}}));
            }
            let conditions = kept(object, CONDITIONS);
            let status = map_at(object, "status");
            if !current.is_empty() {
                status.insert("currentMetrics".into(), Value::Array(current));
            }
            if let Some(conditions) = conditions {
                status.insert("conditions".into(), conditions);
            }
        }
        object::set_gvk(object, "autoscaling/v2", "HorizontalPodAutoscaler");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_its_time_is_shown_with_the_one_that_is_nearest() {
        let first = json!({"firstTimestamp": "2026-01-02T03:04:05Z", "metadata": {"creationTimestamp": "2026-01-02T03:04:06Z"}});
        let made = json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:06Z"}});
        let own = json!({"eventTime": "2026-01-02T03:04:07.5Z", "firstTimestamp": "2026-01-02T03:04:05Z"});
        for (mut event, time) in [
            (first, "2026-01-02T03:04:05.000000Z"),
            (made, "2026-01-02T03:04:06.000000Z"),
            (own, "2026-01-02T03:04:07.5Z"),
        ] {
            Events.from_stored(&mut event);
            assert_eq!(event["eventTime"], time);
        }
    }

    #[test]
    fn an_event_has_two_faces() {
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "count": 2, "message": "m",
            "involvedObject": {"kind": "Pod"}, "source": {"component": "c"}, "firstTimestamp": "t1",
            "lastTimestamp": "t2", "reportingComponent": "r", "reportingInstance": "i", "type": "Normal",
            "series": {"count": 3}, "eventTime": null});
        let mut seen = stored.clone();
        Events.from_stored(&mut seen);
        assert_eq!(
            seen,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "deprecatedCount": 2, "note": "m", "regarding": {"kind": "Pod"}, "deprecatedSource": {"component": "c"},
            "deprecatedFirstTimestamp": "t1", "deprecatedLastTimestamp": "t2", "reportingController": "r",
            "reportingInstance": "i", "type": "Normal", "series": {"count": 3}, "eventTime": null})
        );
        Events.to_stored(&mut seen);
        assert_eq!(seen, stored);
    }

    #[test]
    fn an_autoscaler_comes_back_as_it_was() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 50}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory",
            "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"a": "b"}},
            "spec": {"maxReplicas": 3, "metrics": [cpu, memory], "behavior": {"scaleUp": {"selectPolicy": "Max"}}},
            "status": {"desiredReplicas": 0, "currentReplicas": 0,
                "conditions": [{"type": "AbleToScale"}]}});
        let mut seen = stored.clone();
        Autoscalers.from_stored(&mut seen);
        assert_eq!(seen["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(object::annotations(&seen).len(), 4);
        Autoscalers.to_stored(&mut seen);
        assert_eq!(seen, stored);
    }
}
