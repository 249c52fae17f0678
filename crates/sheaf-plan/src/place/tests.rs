//! Placement as a table: worlds in, a node or an explanation out.

use super::*;
use serde_json::{Value, json};

fn node(name: &str, extra: Value) -> Node {
    let mut object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "rack": "7"}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    merge(&mut object, &extra);
    serde_json::from_value(object).expect("a node")
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k.clone()).or_insert(Value::Null), v);
            }
        }
        (a, b) => *a = b.clone(),
    }
}

fn spec(extra: Value) -> VirtualMachineInstanceSpec {
    let mut object = json!({"domain": {"devices": {}, "memory": {"guest": "1Gi"}}});
    merge(&mut object, &extra);
    serde_json::from_value(object).expect("a spec")
}

fn answer(spec: &VirtualMachineInstanceSpec, nodes: &[Node]) -> Placement {
    let states: Vec<_> = nodes.iter().map(|node| NodeState { node, memory_used: 0, vcpus_used: 0 }).collect();
    place(
        &Demand { namespace: "lab", labels: None, neighbours: &[], spec, claims: &BTreeMap::new() },
        &states,
    )
}

fn refusal(spec: &VirtualMachineInstanceSpec, nodes: &[Node]) -> String {
    match answer(spec, nodes) {
        Placement::Unschedulable { message } => message,
        Placement::Node(name) => panic!("placed on {name}"),
    }
}

#[test]
fn the_node_with_most_free_memory_is_taken_and_ties_go_by_name() {
    let nodes = [node("b", json!({})), node("a", json!({}))];
    assert_eq!(answer(&spec(json!({})), &nodes), Placement::Node("a".into()));
    let nodes = [node("a", json!({})), node("b", json!({"status": {"allocatable": {"memory": "8Gi"}}}))];
    assert_eq!(answer(&spec(json!({})), &nodes), Placement::Node("b".into()));
}

#[test]
fn what_is_refused_says_why_and_what_would_help() {
    let cases = [
        (
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            json!({}),
            "0/1 nodes are available: 1 node(s) were not ready. What would help: start the agent of node n.",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({}),
            "0/1 nodes are available: 1 node(s) were unschedulable. What would help: uncordon node n.",
        ),
        (
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
            json!({}),
            "0/1 nodes are available: 1 node(s) had untolerated taint {k: v}. What would help: tolerate or remove the taint k: v of node n.",
        ),
        (
            json!({}),
            json!({"nodeSelector": {"disk": "ssd"}}),
            "0/1 nodes are available: 1 node(s) didn't match the node selector disk=ssd. What would help: label node n with disk=ssd, or change spec.nodeSelector.",
        ),
        (
            json!({}),
            json!({"domain": {"memory": {"guest": "16Gi"}}}),
            "0/1 nodes are available: 1 Insufficient memory. What would help: free 12418 MiB of memory on node n (needed 16514 MiB with overhead, free 4096 MiB).",
        ),
        (
            json!({}),
            json!({"domain": {"cpu": {"cores": 64}}}),
            "0/1 nodes are available: 1 Insufficient cpu. What would help: free 44 vCPUs on node n (needed 64, free 20).",
        ),
    ];
    for (extra, wish, want) in cases {
        assert_eq!(refusal(&spec(wish), &[node("n", extra)]), want);
    }
    assert!(refusal(&spec(json!({})), &[]).contains("no node has joined yet"));
}

#[test]
fn tolerations_and_affinity() {
    let tainted =
        || node("n", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
    for toleration in [
        json!({"key": "k", "operator": "Exists"}),
        json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
        json!({"operator": "Exists"}),
    ] {
        let spec = spec(json!({"tolerations": [toleration]}));
        assert_eq!(answer(&spec, &[tainted()]), Placement::Node("n".into()), "{toleration}");
    }
    let affinity = |operator: &str, values: Value| {
        let term = json!({"matchExpressions": [{"key": "rack", "operator": operator, "values": values}]});
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
        spec(json!({"affinity": {"nodeAffinity": required}}))
    };
    for (operator, values, fits) in [
        ("In", json!(["7"]), true),
        ("In", json!(["8"]), false),
        ("NotIn", json!(["7"]), false),
        ("Exists", json!([]), true),
        ("DoesNotExist", json!([]), false),
        ("Gt", json!(["6"]), true),
        ("Lt", json!(["6"]), false),
        ("Sometimes", json!([]), false),
    ] {
        let placed = answer(&affinity(operator, values), &[node("n", json!({}))]);
        assert_eq!(matches!(placed, Placement::Node(_)), fits, "{operator}");
    }
}

#[test]
fn an_instance_goes_where_its_data_are() {
    let nodes = [node("a", json!({"status": {"allocatable": {"memory": "64Gi"}}})), node("b", json!({}))];
    let states: Vec<_> = nodes.iter().map(|node| NodeState { node, memory_used: 0, vcpus_used: 0 }).collect();
    let claims = BTreeMap::from([("root".to_owned(), ClaimState::Only(BTreeSet::from(["b".to_owned()])))]);
    let spec = spec(json!({}));
    assert_eq!(
        place(
            &Demand { namespace: "lab", labels: None, neighbours: &[], spec: &spec, claims: &claims },
            &states
        ),
        Placement::Node("b".into())
    );
    let claims = BTreeMap::from([("root".to_owned(), ClaimState::Only(BTreeSet::from(["gone".to_owned()])))]);
    let Placement::Unschedulable { message } = place(
        &Demand { namespace: "lab", labels: None, neighbours: &[], spec: &spec, claims: &claims },
        &states,
    ) else {
        panic!("its data are on no node");
    };
    assert!(message.contains("claim root, whose data are on gone"), "{message}");
}

#[test]
fn what_is_promised_already_counts() {
    let nodes = [node("a", json!({}))];
    let full = [NodeState { node: &nodes[0], memory_used: 4 << 30, vcpus_used: 0 }];
    let spec = spec(json!({}));
    let answer = place(
        &Demand { namespace: "lab", labels: None, neighbours: &[], spec: &spec, claims: &BTreeMap::new() },
        &full,
    );
    assert!(matches!(answer, Placement::Unschedulable { .. }));
}

/// Two nodes in rack 7 and one in rack 8, and instances of the group `web` on some: what is answered to one of the group.
fn beside(
    spec: &VirtualMachineInstanceSpec,
    there: &[(&str, &str, &VirtualMachineInstanceSpec)],
) -> Placement {
    let nodes = [
        node("a", json!({})),
        node("b", json!({})),
        node("c", json!({"metadata": {"labels": {"rack": "8"}}})),
    ];
    let group = BTreeMap::from([("app".to_string(), "web".to_string())]);
    let states: Vec<_> = nodes.iter().map(|node| NodeState { node, memory_used: 0, vcpus_used: 0 }).collect();
    let neighbours: Vec<_> = there
        .iter()
        .map(|&(namespace, node, spec)| Neighbour { namespace, labels: Some(&group), spec, node })
        .collect();
    let claims = BTreeMap::new();
    let demand =
        Demand { namespace: "lab", labels: Some(&group), neighbours: &neighbours, spec, claims: &claims };
    place(&demand, &states)
}

/// A spec with one rule about the group `web`.
fn rule(kind: &str, key: &str, must: bool) -> VirtualMachineInstanceSpec {
    let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    let rules = if must {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
    } else {
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]})
    };
    spec(json!({"affinity": {kind: rules}}))
}

const HOST: &str = "kubernetes.io/hostname";

#[test]
fn machines_of_a_group_keep_apart() {
    let none = spec(json!({}));
    let host = rule("podAntiAffinity", HOST, true);
    let rack = rule("podAntiAffinity", "rack", true);
    let soft = rule("podAntiAffinity", HOST, false);
    let on = |name: &str| Placement::Node(name.into());
    assert_eq!(beside(&host, &[("lab", "a", &none)]), on("b"));
    assert_eq!(beside(&host, &[("other", "a", &none)]), on("a"), "another namespace is another group");
    assert_eq!(beside(&rack, &[("lab", "a", &none)]), on("c"), "the whole rack is taken");
    let full = [("lab", "a", &none), ("lab", "b", &none), ("lab", "c", &none)];
    assert_eq!(beside(&soft, &full[..2]), on("c"));
    assert_eq!(beside(&soft, &full), on("a"), "a wish only");
    let Placement::Unschedulable { message } = beside(&host, &full) else { panic!("it was placed") };
    assert!(message.contains("anti-affinity rules by kubernetes.io/hostname=a"), "{message}");
    // Who runs already has a say, too.
    assert_eq!(beside(&none, &[("lab", "a", &host)]), on("b"));
    assert_eq!(beside(&none, &[("lab", "a", &rack)]), on("c"));
    assert_eq!(beside(&none, &[("lab", "a", &soft)]), on("a"), "its wishes do not bind others");
    assert_eq!(beside(&none, &[("other", "a", &host)]), on("a"));
}

#[test]
fn machines_of_a_group_stay_together() {
    let none = spec(json!({}));
    let host = rule("podAffinity", HOST, true);
    let rack = rule("podAffinity", "rack", true);
    let on = |name: &str| Placement::Node(name.into());
    assert_eq!(beside(&host, &[("lab", "b", &none)]), on("b"));
    assert_eq!(beside(&rack, &[("lab", "c", &none)]), on("c"));
    assert_eq!(beside(&rack, &[("lab", "b", &none)]), on("a"), "the same rack will do");
    assert_eq!(beside(&rule("podAffinity", HOST, false), &[("lab", "c", &none)]), on("c"));
    assert_eq!(beside(&host, &[]), on("a"), "the first of a group goes anywhere");
    let Placement::Unschedulable { message } =
        beside(&rule("podAffinity", "zone", true), &[("lab", "a", &none)])
    else {
        panic!("no node has a zone")
    };
    assert!(message.contains("3 node(s) didn't match the affinity rules by zone"), "{message}");
}

#[test]
fn a_namespace_selector_takes_the_place_of_the_own_namespace() {
    let none = spec(json!({}));
    let mut everywhere = rule("podAntiAffinity", HOST, true);
    let term = |spec: &mut VirtualMachineInstanceSpec, selector: Value| {
        let affinity = spec.affinity.as_mut().and_then(|a| a.pod_anti_affinity.as_mut()).expect("a rule");
        let terms = affinity.required_during_scheduling_ignored_during_execution.as_mut().expect("a term");
        terms[0].namespace_selector = serde_json::from_value(selector).expect("a selector");
    };
    term(&mut everywhere, json!({}));
    assert_eq!(beside(&everywhere, &[("other", "a", &none)]), Placement::Node("b".into()));
}
