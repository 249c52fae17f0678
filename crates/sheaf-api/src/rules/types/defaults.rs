//! Defaults that depend on other fields. Types of fields are not taken for granted: defaults run before validation.

use serde_json::{Map, Value, json};

use super::super::{fill, sub};

type Object = Map<String, Value>;

fn text<'a>(map: &'a Object, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or("")
}

fn missing(map: &Object, key: &str) -> bool {
    map.get(key).is_none_or(|v| v.is_null() || v == "" || v.as_array().is_some_and(Vec::is_empty))
}

/// Sets a field that is missing or null.
fn set(map: &mut Object, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.into(), value.into());
    }
}

/// Pods themselves: limits stand for requests that were not given.
pub(super) fn pod(map: &mut Object) {
    let Some(spec) = sub(map, "spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
                continue;
            };
            requests_from_limits(resources);
        }
    }
    if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
        requests_from_limits(resources);
    }
    set(spec, "enableServiceLinks", true);
}

fn requests_from_limits(resources: &mut Object) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let Some(requests) = sub(resources, "requests") else { return };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// Go's types leave out what is false, and so do selectors of fields.
fn drop_false(map: &mut Object, fields: &[&str]) {
    for field in fields {
        if map.get(*field) == Some(&json!(false)) {
            map.remove(*field);
        }
    }
}

pub(super) fn node_spec(spec: &mut Object) {
    drop_false(spec, &["unschedulable"]);
}

/// Ports of containers on the host's network, and the two names of one account.
pub(super) fn pod_spec(spec: &mut Object) {
    drop_false(spec, &["hostNetwork", "hostPID", "hostIPC"]);
    if spec.get("hostNetwork") == Some(&json!(true)) {
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let ports = container.get_mut("ports").and_then(Value::as_array_mut);
                for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                    let unset = port.get("hostPort").is_none_or(|p| p.is_null() || *p == 0);
                    if let (true, Some(inner)) = (unset, port.get("containerPort").cloned()) {
                        port.insert("hostPort".into(), inner);
                    }
                }
            }
        }
    }
    let account = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", old) => old.to_owned(),
        (new, _) => new.to_owned(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName".into(), json!(account));
        spec.insert("serviceAccount".into(), json!(account));
    }
}

pub(super) fn container(map: &mut Object) {
    let image = text(map, "image");
    let last = image.rsplit('/').next().unwrap_or(image);
    let moving = match (last.contains('@'), last.split('@').next().unwrap_or("").rsplit_once(':')) {
        (_, Some((_, tag))) => tag == "latest",
        (digest, None) => !digest,
    };
    fill(map, "imagePullPolicy", if moving { "Always" } else { "IfNotPresent" });
}

pub(super) fn volume(map: &mut Object) {
    if map.keys().all(|k| k == "name") {
        map.insert("emptyDir".into(), json!({}));
    }
}

pub(super) fn service(map: &mut Object) {
    let Some(spec) = sub(map, "spec") else { return };
    let ty = match text(spec, "type") {
        "" => "ClusterIP".to_owned(),
        ty => ty.to_owned(),
    };
    if text(spec, "sessionAffinity") == "ClientIP" {
        if let Some(client) = sub(spec, "sessionAffinityConfig").and_then(|c| sub(c, "clientIP")) {
            set(client, "timeoutSeconds", 10800);
        }
    } else {
        spec.remove("sessionAffinityConfig");
    }
    let open = matches!(ty.as_str(), "NodePort" | "LoadBalancer");
    if open {
        fill(spec, "externalTrafficPolicy", "Cluster");
    } else if missing(spec, "externalIPs") {
        spec.remove("externalTrafficPolicy");
        spec.remove("healthCheckNodePort");
    }
    if ty == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    } else {
        fill(spec, "internalTrafficPolicy", "Cluster");
        // One address, given in two places.
        let first = spec.get("clusterIPs").and_then(|l| l.get(0)).and_then(Value::as_str).map(str::to_owned);
        match (text(spec, "clusterIP").to_owned(), first) {
            (ip, None) if !ip.is_empty() => drop(spec.insert("clusterIPs".into(), json!([ip]))),
            (ip, Some(first)) if ip.is_empty() => drop(spec.insert("clusterIP".into(), json!(first))),
            _ => {}
        }
        let six = text(spec, "clusterIP").contains(':');
        if missing(spec, "ipFamilies") {
            spec.insert("ipFamilies".into(), json!([if six { "IPv6" } else { "IPv4" }]));
        }
        fill(spec, "ipFamilyPolicy", "SingleStack");
    }
    if ty == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
        let status = sub(map, "status").and_then(|s| sub(s, "loadBalancer"));
        let ways = status.and_then(|b| b.get_mut("ingress")).and_then(Value::as_array_mut);
        for way in ways.into_iter().flatten().filter_map(Value::as_object_mut) {
            if !text(way, "ip").is_empty() {
                fill(way, "ipMode", "VIP");
            }
        }
    } else {
        spec.remove("allocateLoadBalancerNodePorts");
    }
}

pub(super) fn service_port(map: &mut Object) {
    let unset = map.get("targetPort").is_none_or(|p| p.is_null() || *p == "" || *p == 0);
    if let (true, Some(port)) = (unset, map.get("port").cloned()) {
        map.insert("targetPort".into(), port);
    }
}

pub(super) fn network_policy(map: &mut Object) {
    let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if missing(spec, "policyTypes") {
        let types: &[&str] = if missing(spec, "egress") { &["Ingress"] } else { &["Ingress", "Egress"] };
        spec.insert("policyTypes".into(), json!(types));
    }
    set(spec, "podSelector", json!({}));
}

/// Selector and labels of a replication controller are those of its pods.
pub(super) fn replication_controller(map: &mut Object) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    let Some(labels) = labels.filter(Value::is_object) else { return };
    if let Some(spec) = sub(map, "spec")
        && spec.get("selector").is_none_or(|s| s.as_object().is_none_or(Map::is_empty))
    {
        spec.insert("selector".into(), labels.clone());
    }
    labels_from(map, labels);
}

fn labels_from(map: &mut Object, labels: Value) {
    if let Some(metadata) = sub(map, "metadata")
        && metadata.get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty))
    {
        metadata.insert("labels".into(), labels);
    }
}

pub(super) fn deployment(map: &mut Object) {
    let Some(strategy) = sub(map, "spec").and_then(|spec| sub(spec, "strategy")) else { return };
    fill(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = sub(strategy, "rollingUpdate")
    {
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
}

pub(super) fn daemon_set(map: &mut Object) {
    let Some(strategy) = sub(map, "spec").and_then(|spec| sub(spec, "updateStrategy")) else { return };
    fill(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = sub(strategy, "rollingUpdate")
    {
        set(rolling, "maxUnavailable", 1);
        set(rolling, "maxSurge", 0);
    }
}

pub(super) fn stateful_set(map: &mut Object) {
    let Some(spec) = sub(map, "spec") else { return };
    if let Some(strategy) = sub(spec, "updateStrategy") {
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = sub(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
        }
    }
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(claim) = claim.as_object_mut() else { continue };
        claim.insert("apiVersion".into(), json!("v1"));
        claim.insert("kind".into(), json!("PersistentVolumeClaim"));
        if let Some(status) = sub(claim, "status") {
            fill(status, "phase", "Pending");
        }
    }
}

/// Labels by which a job knows its pods, the present and the old ones.
const JOB_UID: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const JOB_NAME: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

pub(super) fn job(map: &mut Object) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|l| !l.is_empty())) {
        labels_from(map, labels);
    }
    let (name, uid) = match map.get("metadata").and_then(Value::as_object) {
        Some(metadata) => (text(metadata, "name").to_owned(), text(metadata, "uid").to_owned()),
        None => return,
    };
    let Some(spec) = sub(map, "spec") else { return };
    if missing(spec, "completions") && missing(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    set(spec, "parallelism", 1);
    let limit = if missing(spec, "backoffLimitPerIndex") { 6 } else { i32::MAX };
    set(spec, "backoffLimit", limit);
    fill(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    let replaced = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill(spec, "podReplacementPolicy", replaced);
    let manual = spec.get("manualSelector") == Some(&json!(true));
    if manual {
        return;
    }
    set(spec, "manualSelector", false);
    if spec.get("selector").is_some_and(|s| !s.is_null()) || uid.is_empty() {
        return;
    }
    spec.insert("selector".into(), json!({"matchLabels": {JOB_UID[0]: uid}}));
    let labels = sub(spec, "template").and_then(|t| sub(t, "metadata")).and_then(|m| sub(m, "labels"));
    if let Some(labels) = labels {
        JOB_UID.iter().for_each(|key| drop(labels.insert((*key).into(), json!(uid))));
        JOB_NAME.iter().for_each(|key| drop(labels.insert((*key).into(), json!(name))));
        let labels = Value::Object(labels.clone());
        labels_from(map, labels);
    }
}

pub(super) fn autoscaler(map: &mut Object) {
    let Some(spec) = sub(map, "spec") else { return };
    if missing(spec, "metrics") {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics".into(), cpu);
    }
    let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) else { return };
    let hundred = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, hundred]);
    for (direction, window, policies) in [("scaleUp", Some(0), up), ("scaleDown", None, json!([hundred]))] {
        let Some(rules) = sub(behavior, direction) else { continue };
        fill(rules, "selectPolicy", "Max");
        if let Some(window) = window {
            set(rules, "stabilizationWindowSeconds", window);
        }
        if missing(rules, "policies") {
            rules.insert("policies".into(), policies);
        }
    }
}

/// The first version has a field for the one goal that is filled in, and an annotation for all others.
pub(super) fn old_autoscaler(map: &mut Object) {
    const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
    let others = map.get("metadata").and_then(|m| m.get("annotations")?.get(METRICS)).is_some();
    let Some(spec) = sub(map, "spec") else { return };
    if missing(spec, "targetCPUUtilizationPercentage") && !others {
        set(spec, "targetCPUUtilizationPercentage", 80);
    }
}

/// Limits of containers follow from one another: what is at most is the default, and the default is requested.
pub(super) fn limit_item(map: &mut Object) {
    if text(map, "type") != "Container" {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let Some(from) = map.get(from).and_then(Value::as_object).cloned() else { continue };
        let Some(to) = sub(map, to) else { continue };
        for (name, value) in from {
            to.entry(name).or_insert(value);
        }
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn role_ref(map: &mut Object) {
    fill(map, "apiGroup", RBAC);
}

pub(super) fn subject(map: &mut Object) {
    if matches!(text(map, "kind"), "User" | "Group") {
        fill(map, "apiGroup", RBAC);
    }
}
