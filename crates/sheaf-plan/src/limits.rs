//! Limits of a namespace (LimitRange): what pods get where they say nothing, and what they may not say. Pure.
//!
//! Words are Kubernetes' own, since clients show them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;

use crate::quota::{Amounts, amounts, pod};

/// Where it is said what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Numbers up to here are compared in thousandths.
const MILLI_MAX: i64 = i64::MAX / 1000;

fn items<'a>(range: &'a Value, ty: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == ty)
}

/// Fills in what a pod's containers leave open. Several ranges add to one another; the first that says something wins.
pub fn complete(ranges: &[Value], pod: &mut Value) {
    let mut notes = Vec::new();
    for range in ranges {
        let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
        for item in items(range, "Container") {
            requests.extend(amounts(&item["defaultRequest"]));
            limits.extend(amounts(&item["default"]));
        }
        for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
            let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)?.as_array_mut());
            for container in containers.into_iter().flatten() {
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                for (which, defaults) in [("limits", &limits), ("requests", &requests)] {
                    let set = fill(container, which, defaults);
                    if !set.is_empty() {
                        let what = which.trim_end_matches('s');
                        notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        object::set_annotation(pod, ANNOTATION, Some(&text));
    }
}

/// Puts in what is missing; gives the names of what was put in.
fn fill(container: &mut Value, which: &str, defaults: &Amounts) -> Vec<String> {
    if defaults.is_empty() || !container.is_object() {
        return Vec::new();
    }
    let resources = object::as_map(container).entry("resources").or_insert_with(|| json!({}));
    let map = object::as_map(object::as_map(resources).entry(which).or_insert_with(|| json!({})));
    let mut set = Vec::new();
    for (name, value) in defaults {
        if !map.contains_key(name) {
            map.insert(name.clone(), json!(value.to_string()));
            set.push(name.clone());
        }
    }
    if map.is_empty() {
        object::as_map(resources).remove(which);
    }
    set
}

/// What is against an object of `plural`, in one sentence; `None` if nothing is.
pub fn refusal(ranges: &[Value], plural: &str, object: &Value) -> Option<String> {
    let mut why = Vec::new();
    for range in ranges {
        match plural {
            "pods" => of_pod(range, object, &mut why),
            "persistentvolumeclaims" => of_claim(range, object, &mut why),
            _ => {}
        }
    }
    match why.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        all => Some(format!("[{}]", all.join(", "))),
    }
}

fn of_claim(range: &Value, claim: &Value, why: &mut Vec<String>) {
    let ty = "PersistentVolumeClaim";
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for item in items(range, ty) {
        let part = Part { ty, requests: &requests, limits: &Amounts::new() };
        amounts(&item["min"]).iter().for_each(|(name, min)| why.extend(part.below(name, *min)));
        amounts(&item["max"]).iter().for_each(|(name, max)| why.extend(part.asks_above(name, *max)));
    }
}

fn of_pod(range: &Value, object: &Value, why: &mut Vec<String>) {
    let containers = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| object["spec"][*list].as_array().into_iter().flatten());
    for container in containers {
        let of = |which: &str| amounts(&container["resources"][which]);
        let (requests, limits) = (of("requests"), of("limits"));
        let part = Part { ty: "Container", requests: &requests, limits: &limits };
        items(range, "Container").for_each(|item| part.check(item, why));
    }
    let (requests, limits) = (pod::total(object, "requests"), pod::total(object, "limits"));
    let part = Part { ty: "Pod", requests: &requests, limits: &limits };
    items(range, "Pod").for_each(|item| part.check(item, why));
}

/// What is judged: a container, a pod, a claim.
struct Part<'a> {
    ty: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

impl Part<'_> {
    fn check(&self, item: &Value, why: &mut Vec<String>) {
        amounts(&item["min"]).iter().for_each(|(name, min)| why.extend(self.below(name, *min)));
        amounts(&item["max"]).iter().for_each(|(name, max)| why.extend(self.above(name, *max)));
        let ratios = amounts(&item["maxLimitRequestRatio"]);
        ratios.iter().for_each(|(name, ratio)| why.extend(self.spread(name, *ratio)));
    }

    fn below(&self, name: &str, min: Quantity) -> Option<String> {
        let head = format!("minimum {name} usage per {} is {min}", self.ty);
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        match (request, limit) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(r), _) if *r < min => Some(format!("{head}, but request is {r}")),
            (_, Some(l)) if *l < min => Some(format!("{head}, but limit is {l}")),
            _ => None,
        }
    }

    fn above(&self, name: &str, max: Quantity) -> Option<String> {
        let head = format!("maximum {name} usage per {} is {max}", self.ty);
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        match (limit, request) {
            (None, _) => Some(format!("{head}.  No limit is specified")),
            (Some(l), _) if *l > max => Some(format!("{head}, but limit is {l}")),
            (_, Some(r)) if *r > max => Some(format!("{head}, but request is {r}")),
            _ => None,
        }
    }

    fn asks_above(&self, name: &str, max: Quantity) -> Option<String> {
        let head = format!("maximum {name} usage per {} is {max}", self.ty);
        match self.requests.get(name) {
            None => Some(format!("{head}.  No request is specified")),
            Some(r) if *r > max => Some(format!("{head}, but request is {r}")),
            _ => None,
        }
    }

    fn spread(&self, name: &str, most: Quantity) -> Option<String> {
        let head = format!("{name} max limit to request ratio per {} is {most}", self.ty);
        let positive = |a: &Amounts| a.get(name).copied().filter(|q| q.signum() > 0);
        let Some(request) = positive(self.requests) else {
            return Some(format!("{head}, but no request is specified or request is 0"));
        };
        let Some(limit) = positive(self.limits) else {
            return Some(format!("{head}, but no limit is specified or limit is 0"));
        };
        let ratio = limit.as_f64() / request.as_f64();
        let small = most.value() <= MILLI_MAX;
        let above = if small { ratio * 1000.0 > most.as_f64() * 1000.0 } else { ratio > most.as_f64() };
        above.then(|| format!("{head}, but provided ratio is {ratio:.6}"))
    }
}

/// Names of the resources that a range has something to say about, for its description.
pub fn resources(range: &Value) -> BTreeSet<String> {
    let parts = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let all = range["spec"]["limits"].as_array().into_iter().flatten();
    all.flat_map(|item| parts.iter().flat_map(|part| amounts(&item[*part]).into_keys())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limits: Value) -> Vec<Value> {
        vec![json!({"spec": {"limits": limits}})]
    }

    fn pod_of(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_is_left_open_is_filled_in_and_said() {
        let ranges = range(
            json!([{"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]),
        );
        let mut pod = pod_of(json!({"limits": {"cpu": "1"}}));
        complete(&ranges, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            object::annotation(&pod, ANNOTATION),
            Some("LimitRanger plugin set: memory limit for container c; cpu request for container c")
        );
        let before = pod.clone();
        complete(&ranges, &mut pod);
        assert_eq!(pod, before);
    }

    /// Limits, resources of the only container, what is said.
    #[test]
    fn refusals() {
        let cpu = |value: &str| json!({"cpu": value});
        let container = |part: &str, value: &str| json!([{"type": "Container", part: {"cpu": value}}]);
        let table = [
            (container("min", "100m"), json!({"requests": cpu("100m"), "limits": cpu("1")}), ""),
            (
                container("min", "100m"),
                json!({}),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                container("min", "100m"),
                json!({"requests": cpu("50m")}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                container("max", "1"),
                json!({"requests": cpu("1")}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                container("max", "1"),
                json!({"limits": cpu("1500m")}),
                "maximum cpu usage per Container is 1, but limit is 1500m",
            ),
            (
                container("maxLimitRequestRatio", "2"),
                json!({"limits": cpu("3"), "requests": cpu("1")}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                container("maxLimitRequestRatio", "2"),
                json!({"limits": cpu("3")}),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (
                json!([{"type": "Pod", "max": {"cpu": "1"}}]),
                json!({"limits": cpu("2")}),
                "maximum cpu usage per Pod is 1, but limit is 2",
            ),
            (
                json!([{"type": "Container", "min": {"cpu": "1", "memory": "1"}}]),
                json!({}),
                "[minimum cpu usage per Container is 1.  No request is specified, minimum memory usage per Container is 1.  No request is specified]",
            ),
        ];
        for (limits, resources, want) in table {
            let got = refusal(&range(limits.clone()), "pods", &pod_of(resources.clone()));
            assert_eq!(got.unwrap_or_default(), want, "{limits} {resources}");
        }
        let claims = range(
            json!([{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]),
        );
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let said = |size| refusal(&claims, "persistentvolumeclaims", &claim(size)).unwrap_or_default();
        assert_eq!(
            said("500Mi"),
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"
        );
        assert_eq!(said("3Gi"), "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi");
        assert_eq!(said("2Gi"), "");
    }
}
