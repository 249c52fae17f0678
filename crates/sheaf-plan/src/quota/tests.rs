//! Usage, scopes and refusals as tables.

use serde_json::{Value, json};

use super::*;

const PODS: Kind<'static> = Kind { group: "", plural: "pods" };
const CLAIMS: Kind<'static> = Kind { group: "", plural: "persistentvolumeclaims" };
const SERVICES: Kind<'static> = Kind { group: "", plural: "services" };

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

fn quota(spec: Value) -> Quota {
    Quota::of(&json!({"metadata": {"name": "q"}, "spec": spec}))
}

fn shown(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// What objects use: kind, object, amounts.
#[test]
fn used() {
    let busy = json!([{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1"}}},
        {"name": "b", "resources": {"limits": {"memory": "512Mi", "x.io/gpu": "1"}}}]);
    let mut heavy_start = pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]));
    heavy_start["spec"]["initContainers"] = json!([
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "2"}}},
        {"name": "i", "resources": {"requests": {"cpu": "3"}}}]);
    heavy_start["spec"]["overhead"] = json!({"cpu": "100m"});
    let mut ended = pod(busy.clone());
    ended["status"] = json!({"phase": "Succeeded"});
    let table = [
        (
            PODS,
            pod(busy),
            "count/pods=1 cpu=100m limits.cpu=1 limits.memory=512Mi limits.x.io/gpu=1 memory=1536Mi pods=1 \
            requests.cpu=100m requests.memory=1536Mi requests.x.io/gpu=1",
        ),
        (PODS, pod(json!([{"name": "a"}])), "count/pods=1 pods=1"),
        (PODS, heavy_start, "count/pods=1 cpu=5100m pods=1 requests.cpu=5100m"),
        (PODS, ended, "count/pods=1"),
        (
            SERVICES,
            json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
            "count/services=1 services=1 services.loadbalancers=0 services.nodeports=2",
        ),
        (
            SERVICES,
            json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{}]}}),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=0",
        ),
        (
            CLAIMS,
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
            "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             gold.storageclass.storage.k8s.io/requests.storage=1Gi persistentvolumeclaims=1 requests.storage=1Gi",
        ),
        (Kind { group: "", plural: "secrets" }, json!({}), "count/secrets=1 secrets=1"),
        (Kind { group: "batch", plural: "jobs" }, json!({}), "count/jobs.batch=1"),
        (
            Kind { group: "kubevirt.io", plural: "virtualmachineinstances" },
            json!({"spec": {"domain": {"resources": {"limits": {"cpu": "2", "memory": "4Gi"}}}}}),
            "count/virtualmachineinstances.kubevirt.io=1 cpu=2 limits.cpu=2 limits.memory=4Gi memory=4Gi requests.cpu=2 \
             requests.memory=4Gi",
        ),
    ];
    for (kind, object, want) in table {
        assert_eq!(shown(&usage(kind, &object, now())), want, "{kind:?} {object}");
    }
}

/// Scopes, pods, and whether they match.
#[test]
fn scopes() {
    let bare = pod(json!([{"name": "a"}]));
    let asks = pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]));
    let mut short = bare.clone();
    short["spec"]["activeDeadlineSeconds"] = json!(5);
    let mut high = bare.clone();
    high["spec"]["priorityClassName"] = json!("high");
    let mut far = bare.clone();
    far["spec"]["affinity"] =
        json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}});
    let class = |operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
    let table: [(Value, [bool; 5]); 9] = [
        (json!({}), [true, true, true, true, true]),
        (json!({"scopes": ["BestEffort"]}), [true, false, true, true, true]),
        (json!({"scopes": ["NotBestEffort"]}), [false, true, false, false, false]),
        (json!({"scopes": ["Terminating"]}), [false, false, true, false, false]),
        (json!({"scopes": ["NotTerminating", "BestEffort"]}), [true, false, false, true, true]),
        (json!({"scopes": ["CrossNamespacePodAffinity"]}), [false, false, false, false, true]),
        (class("In", json!(["high"])), [false, false, false, true, false]),
        (class("NotIn", json!(["high"])), [true, true, true, false, true]),
        (class("Exists", json!([])), [false, false, false, true, false]),
    ];
    for (spec, want) in table {
        let quota = quota(spec.clone());
        let got = [&bare, &asks, &short, &high, &far].map(|p| quota.matches(PODS, p, now()));
        assert_eq!(got, want, "{spec}");
    }
    assert!(
        !quota(json!({"scopes": ["BestEffort"]})).matches(SERVICES, &json!({}), now()),
        "services have no such scope"
    );
}

#[test]
fn refusals_say_what_is_wanted_used_and_limited() {
    let quota = quota(json!({"hard": {"pods": "2", "requests.cpu": "1", "limits.memory": "1Gi"}}));
    let new =
        pod(json!([{"name": "b", "resources": {"requests": {"cpu": "600m"}, "limits": {"memory": "1Mi"}}}]));
    let demand = Demand { kind: PODS, new: &new, old: None, now: now() };
    let used = amounts(&json!({"pods": "2", "requests.cpu": "500m"}));
    assert_eq!(
        demand.allowed(&quota, &used),
        Err("exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=2,requests.cpu=500m, limited: pods=2,requests.cpu=1".into())
    );
    let fits = demand.allowed(&quota, &Amounts::new());
    assert_eq!(fits.map(|m| shown(&m)), Ok("limits.memory=1Mi pods=1 requests.cpu=600m".into()));
    let two = pod(json!([{"name": "b"}, {"name": "a", "resources": {"limits": {"memory": "1"}}}]));
    let demand = Demand { kind: PODS, new: &two, old: None, now: now() };
    assert_eq!(
        demand.unsaid(&quota),
        Some("failed quota: q: must specify limits.memory for: b; requests.cpu for: a,b".into())
    );
}

#[test]
fn what_shrinks_is_always_allowed() {
    let quota = quota(json!({"hard": {"requests.storage": "1Gi", "persistentvolumeclaims": "0"}}));
    let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let (small, large) = (claim("2Gi"), claim("3Gi"));
    let used = amounts(&json!({"requests.storage": "3Gi", "persistentvolumeclaims": "1"}));
    let shrinking = Demand { kind: CLAIMS, new: &small, old: Some(&large), now: now() };
    assert_eq!(shrinking.allowed(&quota, &used), Ok(Amounts::new()));
    let growing = Demand { kind: CLAIMS, new: &large, old: Some(&small), now: now() };
    assert!(growing.allowed(&quota, &used).is_err_and(|why| why.contains("requested: requests.storage=1Gi")));
}

#[test]
fn limits_name_the_kinds_that_they_concern() {
    let of = |name: &str| {
        kinds_of(name).iter().map(|k| format!("{}/{}", k.group, k.plural)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("requests.cpu"), "/pods kubevirt.io/virtualmachineinstances");
    assert_eq!(of("count/widgets.example.com"), "example.com/widgets");
    assert_eq!(of("gold.storageclass.storage.k8s.io/requests.storage"), "/persistentvolumeclaims");
    assert_eq!(of("services.nodeports"), "/services");
    assert_eq!(of("configmaps"), "/configmaps");
}
