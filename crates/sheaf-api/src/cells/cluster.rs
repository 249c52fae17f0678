//! Rows of nodes, events, requests for certificates, services and what else belongs to the cluster itself.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, count, human_duration, joined, list, number, pairs, since, text, text_or};

const ROLE: &str = "node-role.kubernetes.io/";

pub(crate) fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(o, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| &c["status"]) {
        Some(s) if s == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if o.pointer("/spec/unschedulable") == Some(&json!(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = o.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: BTreeSet<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE) {
            Some(role) if !role.is_empty() => Some(role.to_string()),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()).map(String::from),
            _ => None,
        })
        .collect();
    let address = |ty: &str| {
        let found = list(o, "/status/addresses").iter().find(|a| a["type"] == ty);
        json!(found.map_or("<none>", |a| text_or(a, "/address", "<none>")))
    };
    let info = |field: &str| json!(text_or(o, &format!("/status/nodeInfo/{field}"), "<unknown>"));
    vec![
        json!(status),
        joined(roles, "<none>"),
        age(o, now),
        json!(text(o, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// Both kinds of events: those of the core group and those of `events.k8s.io`, whose fields have other names.
pub(crate) fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let either =
        |a: &'static str, b: &'static str| if text(o, a).is_empty() { text(o, b) } else { text(o, a) };
    let first = match either("/firstTimestamp", "/deprecatedFirstTimestamp") {
        "" => text(o, "/eventTime"),
        at => at,
    };
    let last =
        match (text(o, "/series/lastObservedTime"), either("/lastTimestamp", "/deprecatedLastTimestamp")) {
            ("", "") => first,
            ("", at) | (at, _) => at,
        };
    let interval = |n: i64| format!("{} (x{n} over {})", shown(last, now), shown(first, now));
    let times = [number(o, "/series/count"), number(o, "/count"), number(o, "/deprecatedCount")];
    let times = times.into_iter().find(|n| *n > 0).unwrap_or(1);
    let object = if o.get("involvedObject").is_some() { "/involvedObject" } else { "/regarding" };
    let target = format!(
        "{}/{}",
        text(o, &format!("{object}/kind")).to_lowercase(),
        text(o, &format!("{object}/name"))
    );
    let component = match either("/source/component", "/deprecatedSource/component") {
        "" => either("/reportingComponent", "/reportingController"),
        component => component,
    };
    let host = either("/source/host", "/deprecatedSource/host");
    vec![
        json!(if times > 1 { interval(times) } else { shown(last, now) }),
        json!(text(o, "/type")),
        json!(text(o, "/reason")),
        json!(target),
        json!(text(o, &format!("{object}/fieldPath"))),
        json!(if host.is_empty() { component.to_string() } else { format!("{component}, {host}") }),
        json!(either("/message", "/note").trim()),
        json!(shown(first, now)),
        json!(times),
        json!(text(o, "/metadata/name")),
    ]
}

fn shown(at: &str, now: Timestamp) -> String {
    since(at, now).as_str().unwrap_or_default().to_string()
}

pub(crate) fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
    let conditions: Vec<&str> = list(o, "/status/conditions").iter().map(|c| text(c, "/type")).collect();
    let has = |ty: &str| conditions.contains(&ty);
    let mut state = vec![match (has("Approved"), has("Denied")) {
        (_, true) => "Denied",
        (true, false) => "Approved",
        (false, false) => "Pending",
    }];
    if has("Failed") {
        state.push("Failed");
    }
    if !text(o, "/status/certificate").is_empty() {
        state.push("Issued");
    }
    let asked = o.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        age(o, now),
        json!(text_or(o, "/spec/signerName", "<none>")),
        json!(text(o, "/spec/username")),
        json!(asked.map_or_else(|| "<none>".into(), human_duration)),
        json!(state.join(",")),
    ]
}

pub(crate) fn service_account(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(count(o, "/secrets")), age(o, now)]
}

pub(crate) fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let ty = text_or(o, "/spec/type", "ClusterIP");
    let given = list(o, "/spec/externalIPs").iter().filter_map(|ip| ip.as_str().map(String::from));
    let ingress =
        list(o, "/status/loadBalancer/ingress").iter().map(|i| text_or(i, "/ip", text(i, "/hostname")));
    let external = match ty {
        "ExternalName" => json!(text(o, "/spec/externalName")),
        "LoadBalancer" => joined(ingress.map(String::from).chain(given), "<pending>"),
        _ => joined(given, "<none>"),
    };
    let port = |p: &Value| {
        let node = number(p, "/nodePort");
        let node = if node > 0 { format!(":{node}") } else { String::new() };
        format!("{}{node}/{}", number(p, "/port"), text_or(p, "/protocol", "TCP"))
    };
    vec![
        json!(ty),
        json!(text_or(o, "/spec/clusterIP", "<none>")),
        external,
        joined(list(o, "/spec/ports").iter().map(port), "<none>"),
        age(o, now),
        pairs(o, "/spec/selector", "<none>"),
    ]
}

pub(crate) fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(o, "/subsets") {
        for address in list(subset, "/addresses") {
            let ip = text(address, "/ip");
            all.extend(list(subset, "/ports").iter().map(|p| format!("{ip}:{}", number(p, "/port"))));
        }
    }
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    let mut shown = joined(all, "<none>");
    if more > 0 {
        shown = json!(format!("{} + {more} more...", shown.as_str().unwrap_or_default()));
    }
    vec![shown, age(o, now)]
}

pub(crate) fn controller_revision(o: &Value, now: Timestamp) -> Vec<Value> {
    let owners = list(o, "/metadata/ownerReferences");
    let owner = owners.iter().find(|r| r["controller"] == true).map(|r| {
        let (kind, api) = (text(r, "/kind").to_lowercase(), text(r, "/apiVersion"));
        let group = api.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
        format!("{kind}{group}/{}", text(r, "/name"))
    });
    vec![json!(owner.unwrap_or_else(|| "<none>".into())), json!(number(o, "/revision")), age(o, now)]
}

pub(crate) fn network_policy(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![super::selector(o, "/spec/podSelector"), age(o, now)]
}

pub(crate) fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &'static str| {
        let subjects = list(o, "/subjects").iter().filter(move |s| s["kind"] == kind);
        let name = |s: &Value| match text(s, "/namespace") {
            "" => text(s, "/name").to_string(),
            namespace => format!("{namespace}/{}", text(s, "/name")),
        };
        joined(subjects.map(name), "")
    };
    let role = format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name"));
    vec![json!(role), age(o, now), of("User"), of("Group"), of("ServiceAccount")]
}

pub(crate) fn api_service(o: &Value, now: Timestamp) -> Vec<Value> {
    let service = match text(o, "/spec/service/name") {
        "" => "Local".to_string(),
        name => format!("{}/{name}", text(o, "/spec/service/namespace")),
    };
    let available = list(o, "/status/conditions").iter().find(|c| c["type"] == "Available");
    let available = available.map_or("Unknown".to_string(), |c| match text(c, "/status") {
        "True" => "True".into(),
        status => format!("{status} ({})", text(c, "/reason")),
    });
    vec![json!(service), json!(available), age(o, now)]
}

pub(crate) fn webhooks(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(count(o, "/webhooks")), age(o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap_or_default()
    }

    #[test]
    fn a_node_shows_status_and_roles() {
        let node_object = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/etcd": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.0.2.4"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian"}}});
        let cells = node(&node_object, at(90));
        assert_eq!(
            cells[..5],
            ["Ready,SchedulingDisabled", "control-plane,etcd", "90s", "v1.36.0", "192.0.2.4"]
        );
    }

    #[test]
    fn an_event_repeated_says_how_often() {
        let o = json!({"type": "Normal", "reason": "Started", "message": " up\n", "count": 3,
            "involvedObject": {"kind": "VirtualMachine", "name": "a"},
            "firstTimestamp": "1970-01-01T00:00:00Z", "lastTimestamp": "1970-01-01T00:01:00Z",
            "metadata": {"name": "a.1"}});
        let cells = event(&o, at(100));
        assert_eq!(cells[0], "40s (x3 over 100s)");
        assert_eq!(cells[3], "virtualmachine/a");
        assert_eq!(cells[6], "up");
    }

    #[test]
    fn a_signing_request_shows_its_way() {
        let mut o = json!({"spec": {"signerName": "kubernetes.io/kubelet-serving"}});
        assert_eq!(signing_request(&o, at(0))[4], "Pending");
        o["status"] = json!({"conditions": [{"type": "Approved"}], "certificate": "LS0t"});
        assert_eq!(signing_request(&o, at(0))[4], "Approved,Issued");
    }
}
