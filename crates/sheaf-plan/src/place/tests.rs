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
    place(&Demand { namespace: "lab", neighbours: &[], spec, claims: &BTreeMap::new() }, &states)
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
        place(&Demand { namespace: "lab", neighbours: &[], spec: &spec, claims: &claims }, &states),
        Placement::Node("b".into())
    );
    let claims = BTreeMap::from([("root".to_owned(), ClaimState::Only(BTreeSet::from(["gone".to_owned()])))]);
    let Placement::Unschedulable { message } =
        place(&Demand { namespace: "lab", neighbours: &[], spec: &spec, claims: &claims }, &states)
    else {
        panic!("its data are on no node");
    };
    assert!(message.contains("claim root, whose data are on gone"), "{message}");
}

#[test]
fn what_is_promised_already_counts() {
    let nodes = [node("a", json!({}))];
    let full = [NodeState { node: &nodes[0], memory_used: 4 << 30, vcpus_used: 0 }];
    let spec = spec(json!({}));
    let answer =
        place(&Demand { namespace: "lab", neighbours: &[], spec: &spec, claims: &BTreeMap::new() }, &full);
    assert!(matches!(answer, Placement::Unschedulable { .. }));
}

#[test]
fn machines_of_a_group_keep_apart() {
    let nodes = [
        node("a", json!({})),
        node("b", json!({})),
        node("c", json!({"metadata": {"labels": {"rack": "8"}}})),
    ];
    let group = BTreeMap::from([("app".to_string(), "web".to_string())]);
    let states: Vec<_> = nodes.iter().map(|node| NodeState { node, memory_used: 0, vcpus_used: 0 }).collect();
    let at =
        |namespace: &'static str, node: &'static str| Neighbour { namespace, labels: Some(&group), node };
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    let hard = |key: &str| {
        spec(
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term(key)]}}}),
        )
    };
    let soft =
        spec(json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term("kubernetes.io/hostname")},
        ]}}}));
    let put = |spec: &VirtualMachineInstanceSpec, neighbours: &[Neighbour<'_>]| {
        place(&Demand { namespace: "lab", neighbours, spec, claims: &BTreeMap::new() }, &states)
    };
    let host = hard("kubernetes.io/hostname");
    let on = |name: &str| Placement::Node(name.into());
    assert_eq!(put(&host, &[at("lab", "a")]), on("b"));
    assert_eq!(put(&host, &[at("other", "a")]), on("a"), "another namespace is another group");
    assert_eq!(put(&hard("rack"), &[at("lab", "a")]), on("c"), "the whole rack is taken");
    let full = [at("lab", "a"), at("lab", "b"), at("lab", "c")];
    assert_eq!(put(&soft, &full[..2]), on("c"));
    assert_eq!(put(&soft, &full), on("a"), "a wish only");
    let Placement::Unschedulable { message } = put(&host, &full) else { panic!("it was placed") };
    assert!(message.contains("anti-affinity rules by kubernetes.io/hostname=a"), "{message}");
}
