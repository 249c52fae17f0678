//! How many pods may be disturbed now: the status of a PodDisruptionBudget, and what an eviction may do. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use sheaf_meta::object;

use crate::quota::pod::ended;

/// An eviction that was allowed and did not come about is forgotten after this long.
const CONFIRM: SignedDuration = SignedDuration::from_mins(2);

/// Whether a pod serves.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// What a budget is about: its pods, and how many their controllers want.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The budget.
    pub budget: &'a Value,
    /// The pods that its selector matches, in its namespace.
    pub pods: Vec<&'a Value>,
    /// Wanted replicas by the UID of the controller of each pod that has one; `None` where it cannot be found.
    pub scales: BTreeMap<String, Option<i64>>,
    /// Now.
    pub now: Timestamp,
}

/// A count, or a share of `total` rounded up.
fn share(value: &Value, total: i64) -> i64 {
    match value {
        Value::Number(n) => n.as_i64().unwrap_or(0),
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            (total.saturating_mul(percent) + 99) / 100
        }
        _ => 0,
    }
}

impl Facts<'_> {
    /// Pods that are there to stay.
    fn alive(&self) -> impl Iterator<Item = &&Value> {
        self.pods.iter().filter(|pod| !ended(pod, self.now))
    }

    /// How many pods there should be, and how many of them healthy.
    fn wanted(&self) -> Result<(i64, i64), String> {
        let spec = &self.budget["spec"];
        let count = i64::try_from(self.pods.len()).unwrap_or(i64::MAX);
        if let Some(most) = spec.get("maxUnavailable").filter(|v| !v.is_null()) {
            let expected = self.scale()?;
            return Ok((expected, (expected - share(most, expected)).max(0)));
        }
        let least = spec.get("minAvailable").filter(|v| !v.is_null()).cloned().unwrap_or(json!(1));
        if least.is_string() {
            let expected = self.scale()?;
            return Ok((expected, share(&least, expected)));
        }
        Ok((count, share(&least, count)))
    }

    /// The sum of what the pods' controllers want. Pods without one count for nothing.
    fn scale(&self) -> Result<i64, String> {
        let mut sum = BTreeMap::new();
        for pod in &self.pods {
            let Some(owner) = object::controller_of(pod) else { continue };
            match self.scales.get(owner.uid) {
                Some(Some(replicas)) => drop(sum.insert(owner.uid, *replicas)),
                _ => return Err(format!("found no controllers for pod {:?}", object::name(pod))),
            }
        }
        Ok(sum.values().sum())
    }

    /// The budget's new status.
    pub fn status(&self) -> Value {
        let old = &self.budget["status"];
        let generation = object::generation(self.budget);
        let (expected, desired) = match self.wanted() {
            Ok(wanted) => wanted,
            Err(why) => {
                let mut status = old.clone();
                let failed = ("DisruptionAllowed", false, "SyncFailed", why.as_str());
                status["conditions"] = self.conditions(old, failed);
                status["disruptionsAllowed"] = json!(0);
                status["observedGeneration"] = json!(generation);
                return status;
            }
        };
        let disrupted = self.still_disrupted();
        let healthy = self.alive().filter(|pod| {
            !object::is_deleting(pod) && !disrupted.contains_key(object::name(pod)) && is_ready(pod)
        });
        let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let condition = match allowed > 0 {
            true => ("DisruptionAllowed", true, "SufficientPods", ""),
            false => ("DisruptionAllowed", false, "InsufficientPods", ""),
        };
        let mut status = json!({
            "observedGeneration": generation, "expectedPods": expected, "desiredHealthy": desired,
            "currentHealthy": healthy, "disruptionsAllowed": allowed, "conditions": self.conditions(old, condition),
        });
        if !disrupted.is_empty() {
            status["disruptedPods"] = Value::Object(disrupted);
        }
        status
    }

    /// Evictions that were allowed and whose pods are still to go.
    fn still_disrupted(&self) -> Map<String, Value> {
        let listed = self.budget["status"]["disruptedPods"].as_object();
        let going = |name: &String, at: &Value| {
            let pod = self.pods.iter().find(|p| object::name(p) == name);
            let since = at.as_str().and_then(|t| t.parse::<Timestamp>().ok());
            pod.is_some_and(|p| !object::is_deleting(p))
                && since.is_some_and(|t| self.now.duration_since(t) < CONFIRM)
        };
        listed
            .into_iter()
            .flatten()
            .filter(|(n, at)| going(n, at))
            .map(|(n, at)| (n.clone(), at.clone()))
            .collect()
    }

    /// When the status changes by time alone.
    pub fn look_again(&self) -> Option<SignedDuration> {
        let times = self.budget["status"]["disruptedPods"].as_object().into_iter().flat_map(Map::values);
        let ends = times.filter_map(|t| t.as_str()?.parse::<Timestamp>().ok());
        ends.map(|t| (CONFIRM - self.now.duration_since(t)).max(SignedDuration::ZERO)).min()
    }

    fn conditions(&self, old: &Value, (ty, holds, reason, message): (&str, bool, &str, &str)) -> Value {
        let status = if holds { "True" } else { "False" };
        let mut all: Vec<Value> = old["conditions"].as_array().cloned().unwrap_or_default();
        let before = all.iter().find(|c| c["type"] == ty && c["status"] == status);
        let since = before.map_or_else(|| json!(object::time(self.now)), |c| c["lastTransitionTime"].clone());
        let new = json!({"type": ty, "status": status, "reason": reason, "message": message,
            "observedGeneration": object::generation(self.budget), "lastTransitionTime": since});
        match all.iter_mut().find(|c| c["type"] == ty) {
            Some(there) => *there = new,
            None => all.push(new),
        }
        Value::Array(all)
    }
}

/// What an eviction has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// Delete the pod.
    Delete,
    /// Write this status of the budget first, then delete the pod.
    Charge(Value),
    /// Not now: why, and after how many seconds it may be tried again.
    Wait {
        /// The cause that clients are shown.
        cause: String,
        /// 0: not said.
        retry_after: u32,
    },
    /// Never like this.
    Refuse(String),
}

/// Most evictions that may be on their way under one budget.
const DISRUPTED_MAX: usize = 2000;

/// Whether budgets are no matter for a pod: it does not serve, or goes already.
pub fn ignores_budgets(pod: &Value) -> bool {
    object::is_deleting(pod)
        || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
}

/// What an eviction of a pod may do under its only budget.
pub fn evict(pod: &Value, budget: &Value, now: Timestamp) -> Eviction {
    let (spec, status) = (&budget["spec"], &budget["status"]);
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let name = object::name(budget);
    if !is_ready(pod) {
        let always = spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let enough = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if always || enough {
            return Eviction::Delete;
        }
    }
    if number("observedGeneration") < object::generation(budget) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Eviction::Wait { cause, retry_after: 10 };
    }
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Eviction::Refuse("pdb disruptions allowed is negative".into());
    }
    let disrupted = status["disruptedPods"].as_object();
    if disrupted.is_some_and(|d| d.len() > DISRUPTED_MAX) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Eviction::Refuse(why.into());
    }
    if allowed == 0 {
        let failed = status["conditions"].as_array().into_iter().flatten();
        let mut failed = failed.filter(|c| c["type"] == "DisruptionAllowed" && c["reason"] == "SyncFailed");
        let mut cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        if let Some(why) = failed.next().and_then(|c| c["message"].as_str()) {
            cause = format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}"
            );
        }
        return Eviction::Wait { cause, retry_after: 0 };
    }
    let mut next = status.clone();
    next["disruptionsAllowed"] = json!(allowed - 1);
    if allowed == 1 {
        let facts = Facts { budget, pods: Vec::new(), scales: BTreeMap::new(), now };
        next["conditions"] = facts.conditions(status, ("DisruptionAllowed", false, "InsufficientPods", ""));
    }
    object::entry_map(object::as_map(&mut next), "disruptedPods")
        .insert(object::name(pod).to_owned(), json!(object::time(now)));
    Eviction::Charge(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap_or_default()
    }

    fn pod(name: &str, ready: bool) -> Value {
        json!({"metadata": {"name": name, "ownerReferences": [{"uid": "rs", "controller": true, "kind": "ReplicaSet", "name": "r", "apiVersion": "apps/v1"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn status(spec: Value, pods: &[Value], scale: Option<i64>) -> [i64; 4] {
        let budget = json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": {}});
        let scales = BTreeMap::from([("rs".to_owned(), scale)]);
        let facts = Facts { budget: &budget, pods: pods.iter().collect(), scales, now: at(0) };
        let status = facts.status();
        assert_eq!(status["observedGeneration"], 2);
        ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"]
            .map(|f| status[f].as_i64().unwrap_or(-1))
    }

    /// Spec, ready pods, other pods, scale: expected, desired, healthy, allowed.
    #[test]
    fn budgets() {
        let table = [
            (json!({"minAvailable": 2}), 3, 0, None, [3, 2, 3, 1]),
            (json!({"minAvailable": 2}), 1, 2, None, [3, 2, 1, 0]),
            (json!({"minAvailable": 0}), 2, 0, None, [2, 0, 2, 2]),
            (json!({"minAvailable": "50%"}), 3, 0, Some(5), [5, 3, 3, 0]),
            (json!({"minAvailable": "100%"}), 4, 0, Some(4), [4, 4, 4, 0]),
            (json!({"maxUnavailable": 1}), 4, 0, Some(4), [4, 3, 4, 1]),
            (json!({"maxUnavailable": "30%"}), 7, 0, Some(7), [7, 4, 7, 3]),
            (json!({"maxUnavailable": 9}), 2, 0, Some(2), [2, 0, 2, 2]),
            (json!({}), 2, 0, None, [2, 1, 2, 1]),
            (json!({"minAvailable": 1}), 0, 0, None, [0, 1, 0, 0]),
        ];
        for (spec, ready, other, scale, want) in table {
            let pods: Vec<Value> = (0..ready + other).map(|i| pod(&format!("p{i}"), i < ready)).collect();
            assert_eq!(status(spec.clone(), &pods, scale), want, "{spec} {ready} {other}");
        }
    }

    #[test]
    fn without_a_controller_nothing_is_allowed_and_it_says_why() {
        let budget = json!({"metadata": {"name": "b", "generation": 1}, "spec": {"maxUnavailable": 1}, "status": {"disruptionsAllowed": 1}});
        let one = pod("p", true);
        let facts = Facts { budget: &budget, pods: vec![&one], scales: BTreeMap::new(), now: at(0) };
        let status = facts.status();
        assert_eq!(status["disruptionsAllowed"], 0);
        assert_eq!(status["conditions"][0]["reason"], "SyncFailed");
        assert_eq!(status["conditions"][0]["message"], "found no controllers for pod \"p\"");
    }

    #[test]
    fn an_eviction_is_charged_once_and_forgotten_when_it_does_not_come() {
        let mut budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1}, "status": {"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1}});
        let (a, b) = (pod("a", true), pod("b", true));
        let Eviction::Charge(status) = evict(&a, &budget, at(0)) else { panic!("one is allowed") };
        assert_eq!(
            (&status["disruptionsAllowed"], &status["disruptedPods"]),
            (&json!(0), &json!({"a": "1970-01-01T00:00:00Z"}))
        );
        budget["status"] = status;
        let Eviction::Wait { cause, .. } = evict(&b, &budget, at(1)) else { panic!("none is left") };
        assert_eq!(cause, "The disruption budget b needs 1 healthy pods and has 2 currently");
        let facts = |seconds| Facts {
            budget: &budget,
            pods: vec![&a, &b],
            scales: BTreeMap::new(),
            now: at(seconds),
        };
        assert_eq!(facts(60).status()["currentHealthy"], 1, "a counts as gone");
        assert_eq!(facts(60).look_again(), Some(SignedDuration::from_secs(60)));
        let later = facts(121).status();
        assert_eq!((&later["currentHealthy"], later.get("disruptedPods")), (&json!(2), None));
    }

    #[test]
    fn pods_that_do_not_serve_are_evicted_where_the_budget_is_met() {
        let broken = pod("a", false);
        let budget = |spec: Value, healthy: i64| {
            json!({"metadata": {"name": "b"}, "spec": spec,
            "status": {"disruptionsAllowed": 0, "currentHealthy": healthy, "desiredHealthy": 1}})
        };
        assert_eq!(evict(&broken, &budget(json!({}), 1), at(0)), Eviction::Delete);
        assert!(matches!(evict(&broken, &budget(json!({}), 0), at(0)), Eviction::Wait { .. }));
        assert_eq!(
            evict(&broken, &budget(json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"}), 0), at(0)),
            Eviction::Delete
        );
        assert!(ignores_budgets(&json!({"status": {"phase": "Pending"}})));
    }
}
