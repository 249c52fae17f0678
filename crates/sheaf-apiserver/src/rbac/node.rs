//! What the agent of a node may do: the same rules for all of them, and beyond these only what concerns the node itself.
//!
//! Rules are fixed ([`rules`]); Secrets and ConfigMaps are read one by one, and only those that a machine on the node
//! refers to, and tokens are made only for its accounts; an agent writes its own Node, its own Lease and the instances that run on it, which admission checks
//! ([`Restriction`]), since there the object is at hand. Pure but for that. Who feeds the graph: [`super::Rbac`].

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_meta::{object, status::Status};

use super::{policy::rule, rules::PolicyRule};
use crate::{
    authn::UserInfo,
    authz::{Attributes, Decision},
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// What every agent may do, as the role `system:node` shows it. A loop of the agent that needs more gets a line here.
pub(crate) fn rules() -> Vec<PolicyRule> {
    const READ: &str = "get list watch";
    vec![
        rule(READ, "core", "nodes persistentvolumeclaims persistentvolumes pods services namespaces"),
        rule(READ, "storage.k8s.io", "*"),
        rule(READ, "coordination.k8s.io", "leases"),
        rule(READ, "certificates.k8s.io", "certificatesigningrequests"),
        rule(READ, "discovery.k8s.io", "endpointslices"),
        // Agents watch kinds of every area that they act for (machines, networks, storage).
        rule(
            READ,
            "cdi.kubevirt.io clone.kubevirt.io export.kubevirt.io snapshot.kubevirt.io devices.harvesterhci.io harvesterhci.io k8s.cni.cncf.io kubevirt.io \
            loadbalancer.harvesterhci.io longhorn.io network.harvesterhci.io node.harvesterhci.io \
            snapshot.storage.k8s.io",
            "*",
        ),
        rule("create patch update", "core", "nodes nodes/status"),
        rule("create delete patch update", "coordination.k8s.io", "leases"),
        rule("create get patch update", "core events.k8s.io", "events"),
        rule("create", "certificates.k8s.io", "certificatesigningrequests"),
        rule("patch update", "kubevirt.io", "virtualmachineinstances virtualmachineinstances/status"),
        rule("patch update", "core", "persistentvolumeclaims persistentvolumeclaims/status"),
        rule("create delete patch update", "core", "persistentvolumes persistentvolumes/status"),
        rule("patch update", "harvesterhci.io", "virtualmachineimages virtualmachineimages/status"),
        rule(
            "patch update",
            "snapshot.kubevirt.io",
            "virtualmachinesnapshotcontents virtualmachinesnapshotcontents/status",
        ),
        // Replicated volumes: what stands on its disks, and what is attached to it.
        rule(
            "create patch update",
            "longhorn.io",
            "nodes nodes/status engines engines/status replicas replicas/status snapshots snapshots/status volumes",
        ),
        rule("create", "authorization.k8s.io", "subjectaccessreviews"),
        rule("create", "authentication.k8s.io", "tokenreviews"),
    ]
}

/// A machine as far as its node's rights depend on it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Instance {
    /// Where it runs, and where it is going.
    nodes: BTreeSet<String>,
    /// `secrets`, `configmaps` or `serviceaccounts`, and a name, in its own namespace.
    refers: BTreeSet<(&'static str, String)>,
}

/// Which machine is where, and what it refers to.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// By namespace and name.
    instances: BTreeMap<(String, String), Instance>,
}

impl Graph {
    /// Takes in an instance, new or changed.
    pub(crate) fn put(&mut self, namespace: &str, name: &str, object: &Value) {
        let mut instance = Instance { nodes: nodes_of(object), ..Instance::default() };
        if let Some(spec) = object.get("spec").filter(|_| !instance.nodes.is_empty()) {
            references(spec, &mut instance.refers);
        }
        self.instances.insert((namespace.into(), name.into()), instance);
    }

    /// Forgets an instance.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str) {
        self.instances.remove(&(namespace.into(), name.into()));
    }

    fn refers(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let here = self.instances.range((namespace.to_owned(), String::new())..);
        here.take_while(|((ns, _), _)| ns == namespace).any(|(_, instance)| {
            instance.nodes.contains(node) && instance.refers.iter().any(|(r, n)| *r == resource && n == name)
        })
    }
}

/// Nodes that have to do with an instance.
fn nodes_of(object: &Value) -> BTreeSet<String> {
    let at = |path: &[&str]| object::str_at(object, path);
    let all = [
        at(&["status", "nodeName"]),
        at(&["status", "migrationState", "targetNode"]),
        at(&["status", "migrationState", "sourceNode"]),
        object::label(object, "kubevirt.io/nodeName").unwrap_or_default(),
        object::label(object, "kubevirt.io/migrationTargetNodeName").unwrap_or_default(),
    ];
    all.into_iter().filter(|n| !n.is_empty()).map(String::from).collect()
}

/// Secrets, ConfigMaps and accounts that are named anywhere in a specification, by the names that such fields have.
fn references(value: &Value, into: &mut BTreeSet<(&'static str, String)>) {
    match value {
        Value::Array(list) => list.iter().for_each(|v| references(v, into)),
        Value::Object(map) => {
            for (key, value) in map {
                let resource = match key.as_str() {
                    "secretName" => "secrets",
                    "secret" => "secrets",
                    key if key.ends_with("ecretRef") => "secrets",
                    "configMap" | "configMapRef" => "configmaps",
                    "serviceAccountName" => "serviceaccounts",
                    _ => "",
                };
                let name = value.as_str().or_else(|| value.get("name").and_then(Value::as_str));
                if let (false, Some(name)) = (resource.is_empty(), name) {
                    into.insert((resource, name.to_owned()));
                }
                references(value, into);
            }
        }
        _ => {}
    }
}

/// What the rules for nodes say; where they say nothing, roles may.
pub(crate) fn decide(graph: &Graph, rules: &[PolicyRule], node: &str, what: &Attributes<'_>) -> Decision {
    if what.group.is_empty() && matches!(what.resource, "secrets" | "configmaps") {
        return read_one(graph, node, what);
    }
    if what.group.is_empty() && (what.resource, what.subresource) == ("serviceaccounts", "token") {
        let theirs = what.verb == "create" && graph.refers(node, what.resource, what.namespace, what.name);
        let why = format!("no relationship found between node '{node}' and this object");
        return if theirs { Decision::allow("") } else { Decision::deny(why) };
    }
    Decision { allowed: rules.iter().any(|rule| rule.allows(what)), reason: String::new() }
}

fn read_one(graph: &Graph, node: &str, what: &Attributes<'_>) -> Decision {
    // `kube-root-ca.crt` is no secret, and the same everywhere.
    let public = what.resource == "configmaps" && what.name == "kube-root-ca.crt";
    let why = match what.verb {
        "get" | "list" | "watch" if !what.subresource.is_empty() => "cannot read subresource",
        "get" | "list" | "watch" if what.namespace.is_empty() => {
            "can only read namespaced object of this type"
        }
        "get" | "list" | "watch" if what.name.is_empty() => "No Object name found",
        "get" | "list" | "watch"
            if public || graph.refers(node, what.resource, what.namespace, what.name) =>
        {
            return Decision::allow("");
        }
        "get" | "list" | "watch" => {
            return Decision::deny(format!("no relationship found between node '{node}' and this object"));
        }
        _ => "can only read resources of this type",
    };
    Decision::deny(why)
}

/// Keeps an agent to its own Node, Lease and machines.
pub(crate) struct Restriction;

impl Admission for Restriction {
    fn admit<'a>(
        &'a self,
        _core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let verdict = cx.user.node().map_or(Ok(()), |node| restrict(&cx.user, node, write, object));
        Box::pin(std::future::ready(verdict))
    }
}

fn restrict(user: &UserInfo, node: &str, write: &Write<'_>, object: &Value) -> Result<(), Status> {
    let info = &write.row.info;
    let own_name = object::name(object) == node;
    let why = match (info.group.as_str(), info.plural.as_str()) {
        ("", "nodes") if !own_name => {
            format!("node \"{node}\" is not allowed to modify node \"{}\"", object::name(object))
        }
        ("", "nodes") => match write.old {
            Some(old) if object.pointer("/spec/taints") != old.pointer("/spec/taints") => {
                format!("node \"{node}\" is not allowed to modify taints")
            }
            _ => return Ok(()),
        },
        ("coordination.k8s.io", "leases") if !own_name || object::namespace(object) != "kube-node-lease" => {
            format!(
                "node \"{node}\" can only access leases in the \"kube-node-lease\" system namespace with the same name as the node"
            )
        }
        ("kubevirt.io", "virtualmachineinstances") => {
            let before = write.old.map(nodes_of).unwrap_or_default();
            if before.contains(node) {
                return Ok(());
            }
            format!("node \"{node}\" can only modify instances that run on it")
        }
        _ => return Ok(()),
    };
    tracing::warn!(user = user.username, object = object::name(object), "an agent was refused: {why}");
    Err(Status::forbidden(info.resource(), object::name(object), &why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine(node: &str) -> Value {
        json!({
            "status": {"nodeName": node},
            "spec": {
                "accessCredentials": [{"sshPublicKey": {"source": {"secret": {"secretName": "keys"}}}}],
                "volumes": [
                    {"cloudInitNoCloud": {"secretRef": {"name": "user-data"}, "networkDataSecretRef": {"name": "net"}}},
                    {"configMap": {"name": "settings"}},
                    {"persistentVolumeClaim": {"claimName": "disk"}},
                    {"serviceAccount": {"serviceAccountName": "robot"}},
                ],
            },
        })
    }

    #[test]
    fn a_node_reads_what_its_machines_refer_to() {
        let mut graph = Graph::default();
        graph.put("ns", "a", &machine("one"));
        graph.put(
            "ns",
            "b",
            &json!({"spec": {"x": {"secretRef": {"name": "other"}}}, "status": {"nodeName": "two"}}),
        );
        graph.put("else", "c", &json!({"spec": {"x": {"secretName": "far"}}, "status": {"nodeName": "one"}}));
        let rules = rules();
        let base = Attributes { verb: "get", namespace: "ns", ..Attributes::default() };
        for (what, expected) in [
            (Attributes { resource: "secrets", name: "user-data", ..base }, true),
            (Attributes { resource: "secrets", name: "net", ..base }, true),
            (Attributes { resource: "secrets", name: "keys", ..base }, true),
            (Attributes { resource: "configmaps", name: "settings", ..base }, true),
            (Attributes { resource: "secrets", name: "settings", ..base }, false),
            (Attributes { resource: "secrets", name: "other", ..base }, false),
            (Attributes { resource: "secrets", name: "far", ..base }, false),
            (Attributes { resource: "secrets", name: "far", namespace: "else", ..base }, true),
            (Attributes { resource: "secrets", verb: "list", ..base }, false),
            (Attributes { resource: "secrets", verb: "update", name: "net", ..base }, false),
            (Attributes { resource: "configmaps", name: "kube-root-ca.crt", ..base }, true),
            (Attributes { resource: "persistentvolumeclaims", verb: "watch", ..base }, true),
            (Attributes { resource: "serviceaccounts", ..base }, false),
            (
                Attributes {
                    resource: "serviceaccounts",
                    subresource: "token",
                    verb: "create",
                    name: "robot",
                    ..base
                },
                true,
            ),
            (
                Attributes {
                    resource: "serviceaccounts",
                    subresource: "token",
                    verb: "create",
                    name: "admin",
                    ..base
                },
                false,
            ),
            (Attributes { group: "rbac.authorization.k8s.io", resource: "roles", ..base }, false),
            (Attributes { group: "kubevirt.io", resource: "virtualmachines", verb: "create", ..base }, false),
            (
                Attributes {
                    group: "kubevirt.io",
                    resource: "virtualmachineinstances",
                    verb: "patch",
                    ..base
                },
                true,
            ),
            (Attributes { resource: "nodes", verb: "delete", namespace: "", ..base }, false),
        ] {
            assert_eq!(decide(&graph, &rules, "one", &what).allowed, expected, "{what:?}");
        }
        let what = Attributes { resource: "secrets", name: "net", ..base };
        assert_eq!(
            decide(&graph, &rules, "two", &what).reason,
            "no relationship found between node 'two' and this object"
        );
        graph.remove("ns", "a");
        assert!(!decide(&graph, &rules, "one", &what).allowed);
    }

    #[test]
    fn a_machine_on_the_move_concerns_both_nodes() {
        let mut object = machine("one");
        object["status"]["migrationState"] = json!({"targetNode": "two"});
        assert_eq!(nodes_of(&object), ["one", "two"].map(String::from).into());
    }
}
