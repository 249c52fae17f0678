//! Anti-affinity between instances: what should not run beside another of its kind. Pure. As Kubernetes reads
//! `affinity.podAntiAffinity`, with the labels of instances in place of those of Pods. Not here: `podAffinity`, and rules of
//! instances that run already against one that comes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PodAffinityTerm};
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;
use sheaf_meta::selector::LabelSelector;

use super::{Demand, Neighbour, NodeState};

/// A rule, and where it is taken already.
struct Rule {
    key: String,
    taken: BTreeSet<String>,
    /// None for one that has to hold.
    weight: Option<u64>,
}

/// The rules of one instance against what runs now.
pub(super) struct Rules(Vec<Rule>);

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str)
}

impl Rules {
    pub(super) fn of(demand: &Demand<'_>, nodes: &[NodeState<'_>]) -> Self {
        let rules = terms(demand.spec).into_iter().map(|(term, weight)| Rule {
            key: term.topology_key.clone(),
            taken: taken(term, demand, nodes),
            weight,
        });
        Self(rules.collect())
    }

    /// The label by which a node is too near to another of the kind, with its value.
    pub(super) fn refuse(&self, node: &Node) -> Option<(String, String)> {
        let hard = self.0.iter().filter(|rule| rule.weight.is_none());
        let mut near = hard.filter_map(|rule| {
            Some((&rule.key, label(node, &rule.key).filter(|v| rule.taken.contains(*v))?))
        });
        near.next().map(|(key, value)| (key.clone(), value.to_owned()))
    }

    /// Sum of the weights (1 to 100 each) of the rules that a node keeps.
    pub(super) fn preference(&self, node: &Node) -> u64 {
        let kept = |rule: &&Rule| !label(node, &rule.key).is_some_and(|value| rule.taken.contains(value));
        self.0.iter().filter(kept).filter_map(|rule| rule.weight).sum()
    }
}

fn terms(spec: &VirtualMachineInstanceSpec) -> Vec<(&PodAffinityTerm, Option<u64>)> {
    let Some(rules) = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref()) else {
        return Vec::new();
    };
    let hard =
        rules.required_during_scheduling_ignored_during_execution.iter().flatten().map(|term| (term, None));
    let soft = rules.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    let soft = soft.map(|p| (&p.pod_affinity_term, Some(u64::try_from(p.weight.clamp(0, 100)).unwrap_or(0))));
    hard.chain(soft).collect()
}

/// Values of the term's label at the nodes that have an instance which it means.
fn taken(term: &PodAffinityTerm, demand: &Demand<'_>, nodes: &[NodeState<'_>]) -> BTreeSet<String> {
    // No selector means none; one that cannot be read was refused by the API.
    let selector = term.label_selector.as_ref().and_then(|s| serde_json::to_value(s).ok());
    let Some(selector) = selector.and_then(|s| LabelSelector::from_object(&s).ok()) else {
        return BTreeSet::new();
    };
    let everywhere = term
        .namespace_selector
        .as_ref()
        .is_some_and(|s| s.match_labels.is_none() && s.match_expressions.is_none());
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let means = |other: &&Neighbour<'_>| {
        let there = everywhere
            || listed.iter().any(|n| n == other.namespace)
            || (listed.is_empty() && other.namespace == demand.namespace);
        there && selector.matches_by(|key| other.labels?.get(key).map(String::as_str))
    };
    let on: BTreeSet<&str> = demand.neighbours.iter().filter(means).map(|n| n.node).collect();
    let has = nodes
        .iter()
        .filter(|state| state.node.metadata.name.as_deref().is_some_and(|name| on.contains(name)));
    has.filter_map(|state| label(state.node, &term.topology_key)).map(String::from).collect()
}
