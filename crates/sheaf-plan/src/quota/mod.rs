//! What objects use of a namespace's quota, and whether one more may be stored. Pure.
//!
//! The API server refuses before it stores, the quota controller keeps `status.used`; both ask here. Words of refusals
//! are Kubernetes' own, since clients show them.

pub mod pod;
mod scope;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;

/// Amounts by the name of the resource (`pods`, `requests.cpu`, `count/jobs.batch`).
pub type Amounts = BTreeMap<String, Quantity>;

/// Core kinds that quotas know without `count/`.
const PLAIN: &[&str] = &["configmaps", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// What a storage class's own limits end with.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// A kind of object, by group and plural.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind<'a> {
    /// API group, empty for the core group.
    pub group: &'a str,
    /// Plural name.
    pub plural: &'a str,
}

impl Kind<'_> {
    /// `count/jobs.batch`, `count/pods`.
    pub fn count(&self) -> String {
        match self.group {
            "" => format!("count/{}", self.plural),
            group => format!("count/{}.{group}", self.plural),
        }
    }
    fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
    fn is_pods(&self) -> bool {
        self.is("", "pods")
    }
    fn is_machines(&self) -> bool {
        self.is("kubevirt.io", "virtualmachineinstances")
    }
    /// Whether usage of the kind depends on more than how many there are.
    pub fn is_measured(&self) -> bool {
        self.is_pods()
            || self.is_machines()
            || self.is("", "services")
            || self.is("", "persistentvolumeclaims")
    }
    /// Whether some of these limits concern the kind.
    pub fn concerned(&self, limits: &Amounts) -> bool {
        limits.keys().any(|name| self.counts(name))
    }
    /// Whether a limit's name is about the kind.
    pub fn counts(&self, name: &str) -> bool {
        if name == self.count() {
            return true;
        }
        match (self.group, self.plural) {
            ("", "pods") => name == "pods" || is_compute(name),
            ("kubevirt.io", "virtualmachineinstances") => is_compute(name),
            ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
            ("", "persistentvolumeclaims") => {
                matches!(name, "persistentvolumeclaims" | "requests.storage") || name.contains(OF_CLASS)
            }
            ("", plural) => PLAIN.contains(&plural) && name == plural,
            _ => false,
        }
    }
}

/// Whether a limit is a sum over what runs.
fn is_compute(name: &str) -> bool {
    const NAMES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
    let inner = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    let extended = name.strip_prefix("requests.").is_some_and(|n| n.contains('/'));
    NAMES.contains(&inner) || inner.starts_with("hugepages-") || extended
}

/// The kind that a limit of the form `count/PLURAL[.GROUP]` counts.
pub fn counted(name: &str) -> Option<Kind<'_>> {
    let rest = name.strip_prefix("count/")?;
    let (plural, group) = rest.split_once('.').unwrap_or((rest, ""));
    Some(Kind { group, plural })
}

/// Kinds of core that a limit concerns beyond `count/…`.
pub fn kinds_of(name: &str) -> Vec<Kind<'_>> {
    if let Some(kind) = counted(name) {
        return vec![kind];
    }
    let core = ["pods", "services", "persistentvolumeclaims"].into_iter().chain(PLAIN.iter().copied());
    let all = core.map(|plural| Kind { group: "", plural });
    let machines = Kind { group: "kubevirt.io", plural: "virtualmachineinstances" };
    let mut found: Vec<Kind<'_>> = all.chain([machines]).filter(|k| k.counts(name)).collect();
    found.dedup();
    found
}

/// What one object uses.
pub fn usage(kind: Kind<'_>, object: &Value, now: jiff::Timestamp) -> Amounts {
    let one = Quantity::from_int(1, sheaf_meta::quantity::Notation::Decimal);
    let mut used = Amounts::from([(kind.count(), one)]);
    match (kind.group, kind.plural) {
        ("", "pods") => used.extend(pod::usage(object, now)),
        ("kubevirt.io", "virtualmachineinstances") => used.extend(machine(object)),
        ("", "services") => {
            used.insert("services".into(), one);
            used.extend(service(object));
        }
        ("", "persistentvolumeclaims") => used.extend(claim(object, one)),
        ("", plural) if PLAIN.contains(&plural) => drop(used.insert(plural.into(), one)),
        _ => {}
    }
    used
}

/// Ports on nodes, and load balancers.
fn service(object: &Value) -> Amounts {
    let decimal = |n: usize| {
        Quantity::from_int(i64::try_from(n).unwrap_or(i64::MAX), sheaf_meta::quantity::Notation::Decimal)
    };
    let spec = &object["spec"];
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let given = || ports.iter().filter(|p| p["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let (balancers, ports) = match spec["type"].as_str() {
        Some("NodePort") => (0, ports.len()),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => (1, given()),
        Some("LoadBalancer") => (1, ports.len()),
        _ => (0, 0),
    };
    Amounts::from([
        ("services.nodeports".into(), decimal(ports)),
        ("services.loadbalancers".into(), decimal(balancers)),
    ])
}

fn claim(object: &Value, one: Quantity) -> Amounts {
    let asked = amount(object.pointer("/spec/resources/requests/storage"));
    let given = amount(object.pointer("/status/allocatedResources/storage"));
    let size = asked.max(given);
    let mut used = Amounts::from([("persistentvolumeclaims".into(), one)]);
    used.extend(size.map(|size| ("requests.storage".into(), size)));
    let class = object::annotation(object, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| object.pointer("/spec/storageClassName").and_then(Value::as_str));
    if let Some(class) = class.filter(|c| !c.is_empty()) {
        used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one);
        used.extend(size.map(|size| (format!("{class}{OF_CLASS}requests.storage"), size)));
    }
    used
}

/// What a machine's resources ask of its node, as the pod that holds it elsewhere does. No pod is counted, for there is
/// none.
fn machine(object: &Value) -> Amounts {
    if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return Amounts::new();
    }
    let resources = object.pointer("/spec/domain/resources").cloned().unwrap_or_default();
    let (requests, limits) = (amounts(&resources["requests"]), amounts(&resources["limits"]));
    let mut all = requests.clone();
    for (name, limit) in &limits {
        all.entry(name.clone()).or_insert(*limit);
    }
    pod::compute(&all, &limits)
}

/// An amount, where it is one.
fn amount(value: Option<&Value>) -> Option<Quantity> {
    match value? {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// A map of amounts.
pub fn amounts(value: &Value) -> Amounts {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), amount(Some(value))?))).collect()
}

/// A map of amounts as the API has it.
pub fn to_json(amounts: &Amounts) -> Value {
    Value::Object(
        amounts.iter().map(|(name, value)| (name.clone(), json!(value.to_string()))).collect::<Map<_, _>>(),
    )
}

/// Adds what is in `more`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, value) in more {
        let entry = sum.entry(name.clone());
        entry.and_modify(|s| *s = s.plus(*value)).or_insert(*value);
    }
}

/// Takes out what is in `less`.
fn subtract(sum: &mut Amounts, less: &Amounts) {
    for (name, value) in less {
        let entry = sum.entry(name.clone());
        entry.and_modify(|s| *s = s.minus(*value)).or_insert(Quantity::zero().minus(*value));
    }
}

/// A quota, as far as it decides.
#[derive(Debug, Clone)]
pub struct Quota {
    /// Its name.
    pub name: String,
    /// What may be used.
    pub hard: Amounts,
    scopes: Vec<scope::Scope>,
}

impl Quota {
    /// Reads a ResourceQuota.
    pub fn of(object: &Value) -> Self {
        Self {
            name: object::name(object).to_owned(),
            hard: amounts(&object["spec"]["hard"]),
            scopes: scope::of(&object["spec"]),
        }
    }

    /// Whether it limits objects of a kind at all.
    pub fn concerns(&self, kind: Kind<'_>) -> bool {
        kind.concerned(&self.hard)
    }

    /// Whether an object is in its scopes. What has no scope of that sort at all is in none.
    pub fn matches(&self, kind: Kind<'_>, object: &Value, now: jiff::Timestamp) -> bool {
        self.scopes.iter().all(|scope| scope.matches(kind, object, now))
    }

    /// What of `used` it limits.
    pub fn mask(&self, used: Amounts) -> Amounts {
        used.into_iter().filter(|(name, _)| self.hard.contains_key(name)).collect()
    }

    /// What is used in all, of what it limits; `used` holds what was summed up.
    pub fn totals(&self, used: &Amounts) -> Amounts {
        let of = |name: &String| (name.clone(), used.get(name).copied().unwrap_or_else(Quantity::zero));
        self.hard.keys().map(of).collect()
    }
}

/// A write that a quota has to allow.
#[derive(Debug)]
pub struct Demand<'a> {
    /// What is written.
    pub kind: Kind<'a>,
    /// Its new state.
    pub new: &'a Value,
    /// Its old one.
    pub old: Option<&'a Value>,
    /// When.
    pub now: jiff::Timestamp,
}

impl Demand<'_> {
    /// What more of a quota's resources is wanted than the stored state uses; nothing of what shrinks.
    pub fn more(&self, quota: &Quota) -> Amounts {
        let of = |object: &Value| {
            let inside = quota.matches(self.kind, object, self.now);
            if inside { quota.mask(usage(self.kind, object, self.now)) } else { Amounts::new() }
        };
        let mut more = of(self.new);
        if let Some(old) = self.old {
            subtract(&mut more, &of(old));
        }
        more.retain(|_, value| value.signum() > 0);
        more
    }

    /// What has to be said for each container because a quota limits it, and is not. Empty if all is said.
    pub fn unsaid(&self, quota: &Quota) -> Option<String> {
        let relevant =
            self.kind.is_pods() && self.old.is_none() && quota.matches(self.kind, self.new, self.now);
        if !relevant {
            return None;
        }
        pod::unsaid(self.new, &quota.hard).map(|what| format!("failed quota: {}: {what}", quota.name))
    }

    /// Whether a quota allows it on top of what is used; if not, why.
    pub fn allowed(&self, quota: &Quota, used: &Amounts) -> Result<Amounts, String> {
        let more = self.more(quota);
        let exceeded: BTreeSet<&String> = more
            .iter()
            .filter(|(name, more)| {
                let used = used.get(*name).copied().unwrap_or_else(Quantity::zero);
                quota.hard.get(*name).is_some_and(|hard| used.plus(**more) > *hard)
            })
            .map(|(name, _)| name)
            .collect();
        if exceeded.is_empty() {
            return Ok(more);
        }
        let shown = |amounts: &Amounts| {
            let zero = Quantity::zero();
            let one = |name: &&String| format!("{name}={}", amounts.get(*name).unwrap_or(&zero));
            exceeded.iter().map(one).collect::<Vec<_>>().join(",")
        };
        Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            quota.name,
            shown(&more),
            shown(used),
            shown(&quota.hard)
        ))
    }
}
