//! Rows of ingresses, budgets, quotas, autoscalers, drivers and admission policies.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, count, joined, list, number, pairs, since, text, text_or};

/// `True` or `False`, as Go prints booleans in tables.
fn truth(o: &Value, pointer: &str) -> Value {
    json!(o.pointer(pointer) == Some(&Value::Bool(true)))
}

/// A number or a text as it is, or what stands for nothing.
fn shown(o: &Value, pointer: &str, none: &str) -> Value {
    match o.pointer(pointer) {
        Some(Value::String(s)) if !s.is_empty() => json!(s),
        Some(Value::Number(n)) => json!(n.to_string()),
        _ => json!(none),
    }
}

/// At most three, and how many more.
fn some(all: Vec<String>, none: &str) -> Value {
    let more = all.len().saturating_sub(3);
    let shown = joined(all.into_iter().take(3), none);
    if more == 0 { shown } else { json!(format!("{} + {more} more...", shown.as_str().unwrap_or_default())) }
}

pub(crate) fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let hosts = list(o, "/spec/rules").iter().map(|r| text_or(r, "/host", "*").to_string());
    let address = list(o, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| text_or(i, "/ip", text(i, "/hostname")).to_string());
    let ports = if list(o, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        json!(text_or(o, "/spec/ingressClassName", "<none>")),
        some(hosts.collect(), "*"),
        joined(address, ""),
        json!(ports),
        age(o, now),
    ]
}

pub(crate) fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match text(o, "/spec/parameters/kind") {
        "" => "<none>".to_string(),
        kind => {
            let group = text(o, "/spec/parameters/apiGroup");
            let kind = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
            format!("{kind}/{}", text(o, "/spec/parameters/name"))
        }
    };
    vec![json!(text(o, "/spec/controller")), json!(parameters), age(o, now)]
}

pub(crate) fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let port = |p: &Value| match number(p, "/port") {
        0 => text_or(p, "/name", "*").to_string(),
        n => n.to_string(),
    };
    let addresses = list(o, "/endpoints").iter().flat_map(|e| list(e, "/addresses"));
    let addresses = addresses.filter_map(Value::as_str).map(String::from).collect();
    vec![
        json!(text(o, "/addressType")),
        some(list(o, "/ports").iter().map(port).collect(), "<unset>"),
        some(addresses, "<unset>"),
        age(o, now),
    ]
}

pub(crate) fn cron_job(o: &Value, now: Timestamp) -> Vec<Value> {
    let containers = list(o, "/spec/jobTemplate/spec/template/spec/containers");
    let of = |field: &'static str| joined(containers.iter().map(|c| text(c, field).to_string()), "");
    let last = match text(o, "/status/lastScheduleTime") {
        "" => json!("<none>"),
        at => since(at, now),
    };
    vec![
        json!(text(o, "/spec/schedule")),
        json!(text_or(o, "/spec/timeZone", "<none>")),
        json!(if o.pointer("/spec/suspend") == Some(&Value::Bool(true)) { "True" } else { "False" }),
        json!(count(o, "/status/active")),
        last,
        age(o, now),
        of("/name"),
        of("/image"),
        pairs(o, "/spec/jobTemplate/spec/selector/matchLabels", "<none>"),
    ]
}

pub(crate) fn disruption_budget(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        shown(o, "/spec/minAvailable", "N/A"),
        shown(o, "/spec/maxUnavailable", "N/A"),
        json!(number(o, "/status/disruptionsAllowed")),
        age(o, now),
    ]
}

pub(crate) fn quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let of = |limits: bool| {
        let hard = o.pointer("/status/hard").and_then(Value::as_object);
        let named = hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits.") == limits);
        let used = |name: &str| o.pointer("/status/used").and_then(|u| u.get(name)).and_then(Value::as_str);
        let row = |(name, hard): (&String, &Value)| {
            format!("{name}: {}/{}", used(name).unwrap_or("0"), hard.as_str().unwrap_or_default())
        };
        json!(named.map(row).collect::<Vec<_>>().join(", "))
    };
    vec![of(false), of(true), age(o, now)]
}

pub(crate) fn autoscaler(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference =
        format!("{}/{}", text(o, "/spec/scaleTargetRef/kind"), text(o, "/spec/scaleTargetRef/name"));
    let targets = if o.pointer("/spec/metrics").is_some() { metrics(o) } else { cpu_of_v1(o) };
    vec![
        json!(reference),
        json!(targets),
        shown(o, "/spec/minReplicas", "<unset>"),
        json!(number(o, "/spec/maxReplicas")),
        json!(number(o, "/status/currentReplicas")),
        age(o, now),
    ]
}

fn cpu_of_v1(o: &Value) -> String {
    let percent = |pointer: &str| match o.pointer(pointer).and_then(Value::as_i64) {
        Some(n) => format!("{n}%"),
        None => "<unknown>".into(),
    };
    match o.pointer("/spec/targetCPUUtilizationPercentage") {
        None => "<none>".into(),
        Some(_) => format!(
            "cpu: {}/{}",
            percent("/status/currentCPUUtilizationPercentage"),
            percent("/spec/targetCPUUtilizationPercentage")
        ),
    }
}

fn metrics(o: &Value) -> String {
    let all = list(o, "/spec/metrics");
    let current = list(o, "/status/currentMetrics");
    let value = |v: Option<&Value>| -> String {
        let Some(v) = v else { return "<unknown>".into() };
        match (v["averageUtilization"].as_i64(), text(v, "/averageValue"), text(v, "/value")) {
            (Some(percent), _, _) => format!("{percent}%"),
            (_, "", "") => "<unknown>".into(),
            (_, "", value) => value.into(),
            (_, average, _) => average.into(),
        }
    };
    let mut shown: Vec<String> = Vec::new();
    for (i, metric) in all.iter().enumerate().take(2) {
        let ty = text(metric, "/type");
        let source = match ty {
            "ContainerResource" => "containerResource".to_string(),
            other => other.to_lowercase(),
        };
        let source = &metric[source.as_str()];
        let now = current.get(i).and_then(|c| c.as_object()?.values().find_map(|v| v.get("current")));
        let pair = format!("{}/{}", value(now), value(source.get("target")));
        shown.push(match ty {
            "Resource" => format!("{}: {pair}", text(source, "/name")),
            _ => pair,
        });
    }
    let more = all.len().saturating_sub(2);
    match (shown.join(", "), more) {
        (list, _) if list.is_empty() => "<none>".into(),
        (list, 0) => list,
        (list, more) => format!("{list} + {more} more..."),
    }
}

pub(crate) fn csi_driver(o: &Value, now: Timestamp) -> Vec<Value> {
    let audiences = list(o, "/spec/tokenRequests").iter().map(|t| text(t, "/audience").to_string());
    let modes = list(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str).map(String::from);
    vec![
        json!(o.pointer("/spec/attachRequired") != Some(&Value::Bool(false))),
        truth(o, "/spec/podInfoOnMount"),
        truth(o, "/spec/storageCapacity"),
        joined(audiences, "<unset>"),
        truth(o, "/spec/requiresRepublish"),
        joined(modes, "<none>"),
        age(o, now),
    ]
}

pub(crate) fn csi_node(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(count(o, "/spec/drivers")), age(o, now)]
}

pub(crate) fn pod_template(o: &Value, _: Timestamp) -> Vec<Value> {
    let containers = list(o, "/template/spec/containers");
    let of = |field: &'static str| joined(containers.iter().map(|c| text(c, field).to_string()), "");
    vec![of("/name"), of("/image"), pairs(o, "/template/metadata/labels", "<none>")]
}

/// What an admission policy has, and what its parameters are.
pub(crate) fn priority_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let (value, default) = (o["value"].as_i64().unwrap_or(0), o["globalDefault"] == true);
    vec![json!(value), json!(default), age(o, now), json!(text(o, "/preemptionPolicy"))]
}

pub(crate) fn admission_policy(o: &Value, now: Timestamp) -> Vec<Value> {
    let kind = match text(o, "/spec/paramKind/kind") {
        "" => "<unset>".to_string(),
        kind => format!("{}/{kind}", text(o, "/spec/paramKind/apiVersion")),
    };
    vec![json!(count(o, "/spec/validations") + count(o, "/spec/mutations")), json!(kind), age(o, now)]
}

pub(crate) fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match (text(o, "/spec/paramRef/namespace"), text(o, "/spec/paramRef/name")) {
        _ if o.pointer("/spec/paramRef").is_none() => "<unset>".to_string(),
        ("", name) if !name.is_empty() => name.to_string(),
        (namespace, name) if !name.is_empty() => format!("{namespace}/{name}"),
        _ => "*".into(),
    };
    vec![json!(text(o, "/spec/policyName")), json!(parameters), age(o, now)]
}

pub(crate) fn ip_address(o: &Value, now: Timestamp) -> Vec<Value> {
    let part = |field: &str| text(o, &format!("/spec/parentRef/{field}")).to_string();
    let parts = [part("resource"), part("group"), part("namespace"), part("name")];
    let parent = match parts.iter().all(String::is_empty) {
        true => "<none>".to_string(),
        false => {
            let group = if parts[1].is_empty() { String::new() } else { format!(".{}", parts[1]) };
            let namespace = if parts[2].is_empty() { String::new() } else { format!("{}/", parts[2]) };
            format!("{}{group}/{namespace}{}", parts[0], parts[3])
        }
    };
    vec![json!(parent), age(o, now)]
}

pub(crate) fn service_cidr(o: &Value, now: Timestamp) -> Vec<Value> {
    let all = list(o, "/spec/cidrs").iter().filter_map(Value::as_str).map(String::from);
    vec![joined(all, ""), age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingress_shows_hosts_addresses_and_ports() {
        let o = json!({"spec": {"ingressClassName": "n", "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {}],
            "tls": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}]}}});
        let cells = ingress(&o, Timestamp::UNIX_EPOCH);
        assert_eq!(cells[..4], ["n", "a,b,c + 1 more...", "192.0.2.1,x", "80, 443"]);
    }

    #[test]
    fn a_quota_shows_what_is_used_of_what() {
        let o = json!({"status": {"hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "3"}}});
        assert_eq!(quota(&o, Timestamp::UNIX_EPOCH)[..2], ["pods: 3/10", "limits.cpu: 0/2"]);
    }

    #[test]
    fn an_autoscaler_shows_what_it_aims_at() {
        let o = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, "minReplicas": 1,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}});
        assert_eq!(autoscaler(&o, Timestamp::UNIX_EPOCH)[..3], ["Deployment/d", "cpu: <unknown>/80%", "1"]);
    }
}
