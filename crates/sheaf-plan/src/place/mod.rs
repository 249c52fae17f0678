//! Where an instance runs: one node, or a reason for each node that it is refused.
//!
//! [`place`] filters and then prefers the node with most free memory. A refusal names the rule and the numbers, and
//! the whole says the smallest change that would free the instance. Not here: who writes the answer, and whether the
//! instance may leave a node again.

mod affinity;
mod company;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;

use self::company::{Broken, Side};
use crate::machine;

/// A node with what is promised on it already.
pub struct NodeState<'a> {
    /// The Node object.
    pub node: &'a Node,
    /// Bytes promised to instances that are bound to it.
    pub memory_used: u64,
    /// vCPUs promised to instances that are bound to it.
    pub vcpus_used: u64,
}

/// A claim that the instance uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimState {
    /// Its data can be reached from every node, or it is not made yet and may be made on any.
    Anywhere,
    /// Its data are on these nodes only.
    Only(BTreeSet<String>),
}

/// An object's labels, if it has any.
pub type Labels<'a> = Option<&'a BTreeMap<String, String>>;

/// An instance that is bound to a node already.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: Labels<'a>,
    /// Its spec, for whom it does not want beside itself.
    pub spec: &'a VirtualMachineInstanceSpec,
    /// Its node.
    pub node: &'a str,
}

/// What has to be placed.
pub struct Demand<'a> {
    /// The instance's namespace.
    pub namespace: &'a str,
    /// The instance's labels.
    pub labels: Labels<'a>,
    /// What is placed already, for an instance that seeks some and keeps away from others.
    pub neighbours: &'a [Neighbour<'a>],
    /// The instance's spec.
    pub spec: &'a VirtualMachineInstanceSpec,
    /// Its claims, by name.
    pub claims: &'a BTreeMap<String, ClaimState>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Bind to this node.
    Node(String),
    /// No node will do; for the condition `PodScheduled`.
    Unschedulable {
        /// In the form of Kubernetes' scheduler, then what would help.
        message: String,
    },
}

/// Why one node is refused. The order is that of the checks: the first that holds is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NotReady,
    Cordoned,
    Taint(String),
    Selector(String),
    Affinity,
    Company(Broken),
    Claim { claim: String, on: String },
    Memory { free: u64, needed: u64 },
    Cpu { free: u64, needed: u64 },
}

impl Refusal {
    fn text(&self) -> String {
        match self {
            Self::NotReady => "node(s) were not ready".into(),
            Self::Cordoned => "node(s) were unschedulable".into(),
            Self::Taint(taint) => format!("node(s) had untolerated taint {{{taint}}}"),
            Self::Selector(pair) => format!("node(s) didn't match the node selector {pair}"),
            Self::Affinity => "node(s) didn't match the node affinity".into(),
            Self::Company(Broken { side: Side::Near, at }) => {
                format!("node(s) didn't match the affinity rules by {at}")
            }
            Self::Company(Broken { side: Side::Apart, at }) => {
                format!("node(s) didn't match the anti-affinity rules by {at}")
            }
            Self::Claim { claim, on } => {
                format!("node(s) cannot reach claim {claim}, whose data are on {on}")
            }
            Self::Memory { .. } => "Insufficient memory".into(),
            Self::Cpu { .. } => "Insufficient cpu".into(),
        }
    }
    /// What would make this node acceptable, as far as this rule goes.
    fn remedy(&self, node: &str) -> String {
        match self {
            Self::NotReady => format!("start the agent of node {node}"),
            Self::Cordoned => format!("uncordon node {node}"),
            Self::Taint(taint) => format!("tolerate or remove the taint {taint} of node {node}"),
            Self::Selector(pair) => format!("label node {node} with {pair}, or change spec.nodeSelector"),
            Self::Affinity => format!("make node {node} match spec.affinity.nodeAffinity"),
            Self::Company(Broken { side: Side::Near, at }) => {
                format!("start or move a machine that this one wants to be near, to where {at} (node {node})")
            }
            Self::Company(Broken { side: Side::Apart, at }) => {
                format!("stop or move the machine that keeps this one away, where {at} (node {node})")
            }
            Self::Claim { claim, on } => format!("let the VM run on {on}, where claim {claim} is"),
            Self::Memory { free, needed } => format!(
                "free {} MiB of memory on node {node} (needed {} MiB with overhead, free {} MiB)",
                mib_up(needed.saturating_sub(*free)),
                mib_up(*needed),
                free >> 20
            ),
            Self::Cpu { free, needed } => {
                format!(
                    "free {} vCPUs on node {node} (needed {needed}, free {free})",
                    needed.saturating_sub(*free)
                )
            }
        }
    }
}

fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// vCPUs that may be promised for each processor of a node.
pub const VCPUS_PER_CPU: u64 = 10;

/// Chooses a node.
pub fn place(demand: &Demand<'_>, nodes: &[NodeState<'_>]) -> Placement {
    if nodes.is_empty() {
        return Placement::Unschedulable {
            message: "0/0 nodes are available: no node has joined yet.".into(),
        };
    }
    let company = company::Rules::of(demand, nodes);
    let mut best: Option<(u64, &str)> = None;
    let mut refused: Vec<(Refusal, &str)> = Vec::new();
    for state in nodes {
        let name = state.node.metadata.name.as_deref().unwrap_or_default();
        match judge(demand, &company, state) {
            Ok(free_after) => {
                let wishes = affinity::preference(demand.spec, state.node) + company.preference(state.node);
                let score = free_after.saturating_add(wishes << 40);
                // On a tie the first name wins, so that the answer does not depend on the order of a map.
                let better = best.is_none_or(|(most, first)| score > most || (score == most && name < first));
                if better {
                    best = Some((score, name));
                }
            }
            Err(refusal) => refused.push((refusal, name)),
        }
    }
    match best {
        Some((_, name)) => Placement::Node(name.into()),
        None => Placement::Unschedulable { message: explain(nodes.len(), &mut refused) },
    }
}

fn explain(total: usize, refused: &mut [(Refusal, &str)]) -> String {
    refused.sort();
    let mut counts: Vec<(String, usize)> = Vec::new();
    for (refusal, _) in refused.iter() {
        let text = refusal.text();
        match counts.iter_mut().find(|(t, _)| *t == text) {
            Some((_, n)) => *n += 1,
            None => counts.push((text, 1)),
        }
    }
    let parts: Vec<String> = counts.iter().map(|(text, n)| format!("{n} {text}")).collect();
    let mut message = format!("0/{total} nodes are available: {}.", parts.join(", "));
    // The last in order of the checks has passed all others: the least is missing there.
    if let Some((refusal, node)) = refused.last() {
        message.push_str(&format!(" What would help: {}.", refusal.remedy(node)));
    }
    message
}

/// Whether a node's agent is heard and says that it can work.
pub fn ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Free memory after the instance, or why not.
fn judge(demand: &Demand<'_>, company: &company::Rules, state: &NodeState<'_>) -> Result<u64, Refusal> {
    let node = state.node;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let status = node.status.as_ref();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    if !ready(node) {
        return Err(Refusal::NotReady);
    }
    let spec = node.spec.as_ref();
    if spec.and_then(|s| s.unschedulable) == Some(true) || label("kubevirt.io/schedulable") == Some("false") {
        return Err(Refusal::Cordoned);
    }
    for taint in spec.and_then(|s| s.taints.as_ref()).into_iter().flatten() {
        let holds = taint.effect == "NoSchedule" || taint.effect == "NoExecute";
        if holds && !demand.spec.tolerations.iter().any(|t| tolerates(t, taint)) {
            let value = taint.value.as_deref().unwrap_or_default();
            return Err(Refusal::Taint(format!("{}: {value}", taint.key)));
        }
    }
    for (key, value) in &demand.spec.node_selector {
        if label(key) != Some(value) {
            return Err(Refusal::Selector(format!("{key}={value}")));
        }
    }
    if !affinity::required(demand.spec, node) {
        return Err(Refusal::Affinity);
    }
    if let Some(broken) = company.refuse(node) {
        return Err(Refusal::Company(broken));
    }
    for (claim, where_) in demand.claims {
        if let ClaimState::Only(on) = where_
            && !on.contains(name)
        {
            let on = on.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Refusal::Claim { claim: claim.clone(), on });
        }
    }
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    let memory = allocatable.and_then(|a| a.get("memory")).and_then(machine::bytes).unwrap_or(0);
    let free = memory.saturating_sub(state.memory_used);
    let needed = machine::memory_demand(demand.spec);
    if needed > free {
        return Err(Refusal::Memory { free, needed });
    }
    let cpus = allocatable.and_then(|a| a.get("cpu")).and_then(machine::bytes).unwrap_or(0);
    let free_vcpus = (cpus * VCPUS_PER_CPU).saturating_sub(state.vcpus_used);
    let vcpus = machine::vcpus(demand.spec);
    if vcpus > free_vcpus {
        return Err(Refusal::Cpu { free: free_vcpus, needed: vcpus });
    }
    Ok(free - needed)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}
