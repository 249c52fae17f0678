//! What a pod asks of its node, and what a quota wants said about it.

use std::collections::BTreeMap;

use serde_json::Value;
use sheaf_meta::object;
use sheaf_meta::quantity::{Notation, Quantity};

use super::{Amounts, add, amounts};

/// Compute resources that each container has to name where a quota limits them.
const SAID: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// How a pod is treated when its node runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Requests and limits are equal for all.
    Guaranteed,
    /// Some are said.
    Burstable,
    /// None is said.
    BestEffort,
}

impl Quality {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

fn list<'a>(pod: &'a Value, key: &str) -> &'a [Value] {
    pod["spec"][key].as_array().map_or(&[], Vec::as_slice)
}

/// A pod's quality of service, from CPU and memory of all its containers.
pub fn quality(pod: &Value) -> Quality {
    if let Some(whole) =
        pod.pointer("/spec/resources").filter(|r| r.as_object().is_some_and(|r| !r.is_empty()))
    {
        return of_resources(std::iter::once(whole));
    }
    of_resources(list(pod, "containers").iter().chain(list(pod, "initContainers")).map(|c| &c["resources"]))
}

fn of_resources<'a>(all: impl Iterator<Item = &'a Value>) -> Quality {
    let (mut any, mut equal) = (false, true);
    for resources in all {
        let (requests, limits) = (amounts(&resources["requests"]), amounts(&resources["limits"]));
        for name in ["cpu", "memory"] {
            let positive = |a: &Amounts| a.get(name).copied().filter(|q| q.signum() > 0);
            let (request, limit) = (positive(&requests), positive(&limits));
            any |= request.is_some() || limit.is_some();
            equal &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, equal) {
        (false, _) => Quality::BestEffort,
        (true, true) => Quality::Guaranteed,
        (true, false) => Quality::Burstable,
    }
}

/// Whether a pod has ended, or should have: it uses nothing of its node any more.
pub fn ended(pod: &Value, now: jiff::Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let grace = object::deletion_grace_period_seconds(pod).unwrap_or(0);
    let end = object::deletion_timestamp(pod).parse::<jiff::Timestamp>().ok();
    end.is_some_and(|end| end.as_second().saturating_add(grace) < now.as_second())
}

/// Requests or limits (`requests`, `limits`) of a whole pod: containers that run side by side are added, those that run
/// before them count where they want more.
pub fn total(pod: &Value, which: &str) -> Amounts {
    let of = |container: &Value| {
        let mut own = amounts(&container["resources"][which]);
        if which == "requests" {
            for (name, limit) in amounts(&container["resources"]["limits"]) {
                own.entry(name).or_insert(limit);
            }
        }
        own
    };
    let mut sum = Amounts::new();
    list(pod, "containers").iter().for_each(|c| add(&mut sum, &of(c)));
    // Sidecars begin before the others and stay.
    let (mut sidecars, mut before) = (Amounts::new(), Amounts::new());
    for container in list(pod, "initContainers") {
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut before, &sidecars);
        } else {
            let mut then = own;
            add(&mut then, &sidecars);
            raise(&mut before, &then);
        }
    }
    raise(&mut sum, &before);
    for (name, value) in amounts(&pod["spec"]["resources"][which]) {
        sum.insert(name, value);
    }
    let overhead = amounts(&pod["spec"]["overhead"]);
    if which == "requests" {
        add(&mut sum, &overhead);
    } else {
        for (name, value) in &overhead {
            sum.entry(name.clone()).and_modify(|s| *s = s.plus(*value));
        }
    }
    sum
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, value) in least {
        let entry = to.entry(name.clone());
        entry.and_modify(|v| *v = (*v).max(*value)).or_insert(*value);
    }
}

/// Requests and limits by the names that quotas have for them.
pub(super) fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::new();
    for (name, value) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(name.clone(), *value);
        }
        used.insert(format!("requests.{name}"), *value);
    }
    for (name, value) in limits {
        used.insert(format!("limits.{name}"), *value);
    }
    used
}

pub(super) fn usage(pod: &Value, now: jiff::Timestamp) -> Amounts {
    if ended(pod, now) {
        return Amounts::new();
    }
    let mut used = compute(&total(pod, "requests"), &total(pod, "limits"));
    used.insert("pods".into(), Quantity::from_int(1, Notation::Decimal));
    used
}

/// The sentence about containers that leave open what `hard` limits.
pub(super) fn unsaid(pod: &Value, hard: &Amounts) -> Option<String> {
    let mut open: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in list(pod, "containers").iter().chain(list(pod, "initContainers")) {
        let of = |which: &str| amounts(&container["resources"][which]);
        let said = compute(&of("requests"), &of("limits"));
        let whole = |which: &str| amounts(&pod["spec"]["resources"][which]);
        let said_for_all = compute(&whole("requests"), &whole("limits"));
        for name in SAID.iter().filter(|name| hard.contains_key(**name)) {
            if !said.contains_key(*name) && !said_for_all.contains_key(*name) {
                open.entry(name).or_default().push(container["name"].as_str().unwrap_or_default());
            }
        }
    }
    if open.is_empty() {
        return None;
    }
    let each: Vec<String> = open
        .into_iter()
        .map(|(name, mut containers)| {
            containers.sort_unstable();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    Some(format!("must specify {}", each.join("; ")))
}
