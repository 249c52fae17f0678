//! Node affinity as Kubernetes reads it. Pure. Not here: what instances want of each other (`company`).

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm};
use sheaf_api::kubevirt::VirtualMachineInstanceSpec;

/// Whether the required terms (any of them) hold for a node.
pub(super) fn required(spec: &VirtualMachineInstanceSpec, node: &Node) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        Some(selector) => selector.node_selector_terms.iter().any(|term| term_holds(term, node)),
        None => true,
    }
}

/// Sum of the weights (1 to 100 each) of the preferred terms that hold.
pub(super) fn preference(spec: &VirtualMachineInstanceSpec, node: &Node) -> u64 {
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    affinity
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
        .filter(|p| term_holds(&p.preference, node))
        .map(|p| u64::try_from(p.weight.clamp(0, 100)).unwrap_or(0))
        .sum()
}

/// A term without any requirement matches nothing, as in Kubernetes.
pub(super) fn term_holds(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| if key == "metadata.name" { node.metadata.name.as_deref() } else { None };
    labels.iter().all(|r| holds(r, label(&r.key))) && fields.iter().all(|r| holds(r, field(&r.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |greater: bool| {
        let (Some(have), Some(bound)) = (value.and_then(number), values.first().and_then(|v| number(v)))
        else {
            return false;
        };
        if greater { have > bound } else { have < bound }
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => !value.is_some_and(|v| values.iter().any(|w| w == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}
