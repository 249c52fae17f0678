//! Rules of pods and of what pods are made of. Words as Kubernetes' own validation has them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sheaf_meta::names;
use sheaf_meta::quantity::Quantity;

use super::super::{Problems, not_more_than};
use super::At;

/// What may change of a pod's spec after it was made.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn pod(at: &At<'_>, problems: &mut Problems) {
    let (Some(old), Some(new)) = (at.old.and_then(|old| old.get("spec")), at.map.get("spec")) else { return };
    let (mut old, mut new) = (old.clone(), new.clone());
    for spec in [&mut old, &mut new] {
        let Some(spec) = spec.as_object_mut() else { return };
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                // Requests and limits are changed through `/resize`.
                for field in ["image", "resources"] {
                    container.as_object_mut().map(|c| c.remove(field));
                }
            }
        }
        // The scheduler's choice, and containers that are added through `/ephemeralcontainers`.
        for field in ["activeDeadlineSeconds", "nodeName", "ephemeralContainers"] {
            spec.remove(field);
        }
    }
    if at.text("/spec/nodeName") != find(at.old, "/spec/nodeName")
        && !find(at.old, "/spec/nodeName").is_empty()
    {
        problems.forbidden("spec", MUTABLE);
        return;
    }
    let before = old["tolerations"].as_array().cloned().unwrap_or_default();
    let after = new["tolerations"].as_array().cloned().unwrap_or_default();
    if !before.iter().all(|t| after.contains(t)) {
        problems.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    for spec in [&mut old, &mut new] {
        spec.as_object_mut().map(|s| s.remove("tolerations"));
        if at.map.get("spec").is_some_and(|s| s.get("schedulingGates").is_none()) {
            spec.as_object_mut().map(|s| s.remove("schedulingGates"));
        }
    }
    if old != new {
        problems.forbidden("spec", MUTABLE);
    }
}

fn find<'a>(map: Option<&'a Map<String, Value>>, pointer: &str) -> &'a str {
    map.and_then(|m| super::find(m, pointer)).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn spec(at: &At<'_>, problems: &mut Problems) {
    let volumes: BTreeSet<&str> = at.list("/volumes").iter().filter_map(|v| v["name"].as_str()).collect();
    let mut seen = BTreeSet::new();
    for (list, named) in [("initContainers", true), ("containers", false)] {
        for (i, container) in at.list(&format!("/{list}")).iter().enumerate() {
            let field = at.field(&format!("{list}[{i}]"));
            let name = container["name"].as_str().unwrap_or("");
            if !seen.insert(name) && !named && !name.is_empty() {
                let twice = at.list("/containers").iter().filter(|c| c["name"] == name).count() > 1;
                if !twice {
                    problems.duplicate(format!("{field}.name"), name);
                }
            }
            for (j, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
                let volume = mount["name"].as_str().unwrap_or("");
                if !volume.is_empty() && !volumes.contains(volume) {
                    let field = format!("{field}.volumeMounts[{j}].name");
                    problems.list.push(super::super::not_found(field, volume));
                }
            }
            if list == "initContainers" && container["restartPolicy"] != "Always" {
                for probe in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if container.get(probe).is_some() {
                        let field = format!("{field}.{probe}");
                        problems.forbidden(
                            field,
                            "may not be set for init containers without restartPolicy=Always",
                        );
                    }
                }
            }
        }
    }
}

pub(super) fn container(at: &At<'_>, problems: &mut Problems) {
    let image = at.text("/image");
    if image.is_empty() {
        problems.required(at.field("image"), "");
    } else if image.trim() != image {
        problems.invalid(at.field("image"), image, "must not have leading or trailing whitespace");
    }
}

/// Requests stay below limits, and names of resources are names.
pub(super) fn resources(at: &At<'_>, problems: &mut Problems) {
    let amounts = |key: &str| at.map.get(key).and_then(Value::as_object);
    for list in ["limits", "requests"] {
        for (name, value) in amounts(list).into_iter().flatten() {
            let field = format!("{}[{name}]", at.field(list));
            resource_name(name, &at.field(list), problems);
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            if Quantity::parse(&text).is_ok_and(|q| q.signum() < 0) {
                problems.invalid(field, text, "must be greater than or equal to 0");
            }
        }
    }
    let Some(limits) = amounts("limits") else { return };
    for (name, request) in amounts("requests").into_iter().flatten() {
        let Some(limit) = limits.get(name) else { continue };
        let parse = |v: &Value| Quantity::parse(v.as_str().unwrap_or_default()).ok();
        if let (Some(asked), Some(most)) = (parse(request), parse(limit))
            && asked > most
        {
            let field = at.field("requests");
            problems.invalid(field, request.clone(), not_more_than(name, &most));
        }
    }
}

/// Resources that containers may name without a domain.
const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage", "storage"];

fn resource_name(name: &str, path: &str, problems: &mut Problems) {
    problems.name(path, name, names::qualified_name);
    if !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        problems.invalid(path, name, "must be a standard resource type or fully qualified");
        problems.invalid(path, name, "must be a standard resource for containers");
    }
}

pub(super) fn probe(at: &At<'_>, problems: &mut Problems) {
    let handlers = ["exec", "grpc", "httpGet", "tcpSocket"].into_iter().filter(|h| at.map.contains_key(*h));
    match handlers.count() {
        0 => problems.required(at.path, "must specify a handler type"),
        1 => {}
        _ => problems.forbidden(at.path, "may not specify more than 1 handler type"),
    }
    if matches!(at.path.rsplit('.').next(), Some("livenessProbe" | "startupProbe"))
        && let Some(threshold) = at.int("/successThreshold").filter(|n| *n != 1)
    {
        problems.invalid(at.field("successThreshold"), threshold, "must be 1");
    }
}

pub(super) fn env(at: &At<'_>, problems: &mut Problems) {
    let name = at.text("/name");
    if name.contains('=') {
        problems.invalid(
            at.field("name"),
            name,
            "a valid environment variable name must consist only of printable ASCII characters other than '='",
        );
    }
    if !at.text("/value").is_empty() && at.map.contains_key("valueFrom") {
        problems.invalid(at.field("valueFrom"), "", "may not be specified when `value` is not empty");
    }
}

pub(super) fn volume(at: &At<'_>, problems: &mut Problems) {
    let sources: Vec<&String> = at.map.keys().filter(|k| *k != "name").collect();
    if let [_, second, ..] = sources.as_slice() {
        problems.forbidden(at.field(second), "may not specify more than 1 volume type");
    }
}

pub(super) fn toleration(at: &At<'_>, problems: &mut Problems) {
    let (key, operator, value) = (at.text("/key"), at.text("/operator"), at.text("/value"));
    if key.is_empty() && operator != "Exists" {
        problems.invalid(
            at.field("operator"),
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if at.int("/tolerationSeconds").is_some() && at.text("/effect") != "NoExecute" {
        problems.invalid(
            at.field("effect"),
            at.text("/effect"),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    if operator == "Exists" && !value.is_empty() {
        problems.invalid(at.field("operator"), value, "value must be empty when `operator` is 'Exists'");
    }
}

pub(super) fn template(at: &At<'_>, problems: &mut Problems) {
    for field in ["labels", "annotations"] {
        let Some(map) = at.get(&format!("/metadata/{field}")).and_then(Value::as_object) else { continue };
        let path = at.field(&format!("metadata.{field}"));
        match field {
            "labels" => super::labels(map, &path, problems),
            _ => map.keys().for_each(|key| problems.name(&path, &key.to_lowercase(), names::qualified_name)),
        }
    }
}

/// One requirement of a label selector.
pub(super) fn requirement(at: &At<'_>, problems: &mut Problems) {
    let values = at.list("/values");
    match at.text("/operator") {
        "In" | "NotIn" if values.is_empty() => {
            problems.required(at.field("values"), "must be specified when `operator` is 'In' or 'NotIn'")
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => problems.forbidden(
            at.field("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "" | "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => problems.invalid(at.field("operator"), other, "not a valid selector operator"),
    }
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        problems.name(&at.field(&format!("values[{i}]")), value, names::label_value);
    }
}

pub(super) fn selector(at: &At<'_>, problems: &mut Problems) {
    if let Some(map) = at.get("/matchLabels").and_then(Value::as_object) {
        super::labels(map, &at.field("matchLabels"), problems);
    }
}

/// A template whose pods have to restart always, and whose labels the selector has to match.
pub(super) fn selected(at: &At<'_>, what: &str, problems: &mut Problems) {
    let selector = at.get("/spec/selector").cloned().unwrap_or(json!({}));
    let given = ["matchLabels", "matchExpressions"].iter().any(|part| match &selector[*part] {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    });
    if at.get("/spec/selector").is_none() {
        return;
    }
    if !given {
        problems.invalid("spec.selector", selector, format!("empty selector is invalid for {what}"));
        return;
    }
    let labels = at.get("/spec/template/metadata/labels").cloned().unwrap_or(json!({}));
    if let Ok(selector) = sheaf_meta::selector::LabelSelector::from_object(&selector)
        && !selector.matches_by(|key| labels.get(key).and_then(Value::as_str))
    {
        problems.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        );
    }
}

/// Pods of a kind that keeps them running restart always.
pub(super) fn restarts_always(at: &At<'_>, problems: &mut Problems) {
    let policy = at.text("/spec/template/spec/restartPolicy");
    if !policy.is_empty() && policy != "Always" {
        problems.one_of("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if at.get("/spec/template/spec/activeDeadlineSeconds").is_some() {
        problems.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}
