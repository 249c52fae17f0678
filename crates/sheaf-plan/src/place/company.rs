//! Affinity between instances: beside whom one wants to run, and beside whom not. Pure. As Kubernetes reads `affinity.podAffinity` and
//! `affinity.podAntiAffinity`, with the labels of instances in place of those of Pods; what an instance that is placed
//! already demands of its neighbours holds for one that comes, too. Not here: namespace selectors other than the empty one (they
//! select nothing), and wishes of instances that run against one that comes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PodAffinityTerm};
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;
use sheaf_meta::selector::LabelSelector;

use super::{Demand, Labels, Neighbour, NodeState};

/// Which side of a rule is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// `podAffinity`.
    Near,
    /// `podAntiAffinity`.
    Apart,
}

/// A rule, and the values of its label where it finds those whom it means.
struct Rule {
    side: Side,
    key: String,
    found: BTreeSet<String>,
    /// None for one that has to hold.
    weight: Option<u64>,
}

impl Rule {
    fn keeps(&self, node: &Node) -> bool {
        let found = label(node, &self.key).is_some_and(|value| self.found.contains(value));
        match self.side {
            Side::Near => found,
            Side::Apart => !found,
        }
    }
}

/// The rules of one instance against what is placed, and those of what is placed against it.
pub(super) struct Rules(Vec<Rule>);

/// A rule that a node breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Broken {
    pub side: Side,
    /// The rule's topology key, with the node's value (`key=value`) where it has one.
    pub at: String,
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str)
}

impl Rules {
    pub(super) fn of(demand: &Demand<'_>, nodes: &[NodeState<'_>]) -> Self {
        let own = terms(demand.spec).map(|(side, term, weight)| {
            let others = demand.neighbours.iter();
            let meant = others.filter(|n| means(term, demand.namespace, n.namespace, n.labels));
            let mut on: BTreeSet<&str> = meant.map(|n| n.node).collect();
            // The first of a group that wants to be together has nobody to go to yet: all nodes with the label will do.
            let with_own = || means(term, demand.namespace, demand.namespace, demand.labels);
            if on.is_empty() && side == Side::Near && weight.is_none() && with_own() {
                on.extend(nodes.iter().filter_map(|state| state.node.metadata.name.as_deref()));
            }
            Rule {
                side,
                key: term.topology_key.clone(),
                found: values(&term.topology_key, &on, nodes),
                weight,
            }
        });
        let theirs = demand.neighbours.iter().flat_map(|n| refusing(n, demand, nodes));
        Self(own.chain(theirs).collect())
    }

    /// The first rule that has to hold and does not at this node.
    pub(super) fn refuse(&self, node: &Node) -> Option<Broken> {
        let rule = self.0.iter().find(|rule| rule.weight.is_none() && !rule.keeps(node))?;
        let at = match label(node, &rule.key) {
            Some(value) => format!("{}={value}", rule.key),
            None => rule.key.clone(),
        };
        Some(Broken { side: rule.side, at })
    }

    /// Sum of the weights (1 to 100 each) of the rules that a node keeps.
    pub(super) fn preference(&self, node: &Node) -> u64 {
        self.0.iter().filter(|rule| rule.keeps(node)).filter_map(|rule| rule.weight).sum()
    }
}

/// What an instance demands and wishes: the side, the term, and the weight of a wish.
fn terms(spec: &VirtualMachineInstanceSpec) -> impl Iterator<Item = (Side, &PodAffinityTerm, Option<u64>)> {
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let apart = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let must = near.and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    let must = must.into_iter().flatten().map(|term| (Side::Near, term, None));
    let must_not = apart.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let must_not = must_not.into_iter().flatten().map(|term| (Side::Apart, term, None));
    let weight = |weight: i32| Some(u64::try_from(weight.clamp(0, 100)).unwrap_or(0));
    let wish = near.and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref());
    let wish = wish.into_iter().flatten().map(move |p| (Side::Near, &p.pod_affinity_term, weight(p.weight)));
    let rather = apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let rather =
        rather.into_iter().flatten().map(move |p| (Side::Apart, &p.pod_affinity_term, weight(p.weight)));
    must.chain(must_not).chain(wish).chain(rather)
}

/// The rules by which a neighbour does not suffer the one that comes.
fn refusing<'a>(
    neighbour: &'a Neighbour<'a>,
    demand: &'a Demand<'a>,
    nodes: &'a [NodeState<'a>],
) -> impl Iterator<Item = Rule> + 'a {
    let hard = terms(neighbour.spec).filter(|(side, _, weight)| *side == Side::Apart && weight.is_none());
    let meant = hard.filter(|(_, term, _)| means(term, neighbour.namespace, demand.namespace, demand.labels));
    meant.map(|(side, term, weight)| {
        let found = values(&term.topology_key, &BTreeSet::from([neighbour.node]), nodes);
        Rule { side, key: term.topology_key.clone(), found, weight }
    })
}

/// Whether a term of an instance in `own` means one in `namespace` with these labels.
fn means(term: &PodAffinityTerm, own: &str, namespace: &str, labels: Labels<'_>) -> bool {
    let everywhere = term
        .namespace_selector
        .as_ref()
        .is_some_and(|s| s.match_labels.is_none() && s.match_expressions.is_none());
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let none_said = listed.is_empty() && term.namespace_selector.is_none();
    if !(everywhere || listed.iter().any(|n| n == namespace) || (none_said && own == namespace)) {
        return false;
    }
    // No selector means none; one that cannot be read was refused by the API.
    let selector = term.label_selector.as_ref().and_then(|s| serde_json::to_value(s).ok());
    let selector = selector.and_then(|s| LabelSelector::from_object(&s).ok());
    selector.is_some_and(|s| s.matches_by(|key| labels?.get(key).map(String::as_str)))
}

/// The label's values at the nodes of these names.
fn values(key: &str, names: &BTreeSet<&str>, nodes: &[NodeState<'_>]) -> BTreeSet<String> {
    let has = nodes
        .iter()
        .filter(|state| state.node.metadata.name.as_deref().is_some_and(|name| names.contains(name)));
    has.filter_map(|state| label(state.node, key)).map(String::from).collect()
}
