//! What every pod gets that it does not say itself: its account, its priority, how long it stays on a node that is lost,
//! its quality of service; which parts of it change on which path; and that one priority class at most is the default.
//!
//! Not here: its account and what it mounts of that ([`super::accounts`]), and the rules of its fields, which are its
//! kind's.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{FieldError, Status},
};
use sheaf_plan::quota::pod::quality;
use sheaf_store::cache::At;

use super::{all, forbidden, is};
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// Seconds that a pod stays on a node that is not ready or cannot be reached.
const STAYS: i64 = 300;
/// Taints of such nodes.
const LOST: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// See the module.
pub(crate) struct Pods;

impl Admission for Pods {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let new = is(write.row, "", "pods") && write.old.is_none();
            if !new || !object["spec"].is_object() {
                return Ok(());
            }
            let classes = all(core, "scheduling.k8s.io", "priorityclasses", "", At::Any).await?;
            let name = object::name(object).to_owned();
            prioritize(object, classes.iter().map(|(_, class)| class))
                .map_err(|why| forbidden(write.row, &name, &why))?;
            complete(object);
            Ok(())
        })
    }

    fn review<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if let Some(old) = write.old.filter(|_| is(write.row, "", "pods")) {
                let errors = judge(old, object, write.subresource);
                if !errors.is_empty() {
                    return Err(Status::invalid("", "Pod", object::name(object), &errors));
                }
            }
            let default =
                is(write.row, "scheduling.k8s.io", "priorityclasses") && object["globalDefault"] == true;
            if !default {
                return Ok(());
            }
            let classes = all(core, "scheduling.k8s.io", "priorityclasses", "", At::Latest).await?;
            let name = object::name(object);
            let other = classes
                .iter()
                .map(|(_, class)| class)
                .find(|class| class["globalDefault"] == true && object::name(class) != name);
            match other {
                None => Ok(()),
                Some(other) => {
                    let why = format!(
                        "PriorityClass {} is already marked as default. Only one default can exist",
                        object::name(other)
                    );
                    Err(forbidden(write.row, name, &why))
                }
            }
        })
    }
}

/// Both lists that have resources.
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Takes over from `new` what its subresource may change: `resize` the resources of containers, `ephemeralcontainers`
/// these containers.
pub(crate) fn take_part(kept: &mut Value, new: &Value, subresource: &str) {
    if subresource == "ephemeralcontainers" {
        let given = new.pointer("/spec/ephemeralContainers").cloned();
        if let (Some(given), Some(spec)) = (given, kept.get_mut("spec").and_then(Value::as_object_mut)) {
            spec.insert("ephemeralContainers".into(), given);
        }
        return;
    }
    for list in CONTAINERS {
        let there = kept.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in there.into_iter().flatten().filter_map(Value::as_object_mut) {
            let given = new.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
            let named = |c: &&Value| c.get("name") == container.get("name");
            let Some(given) = given.into_iter().flatten().find(named) else { continue };
            match given.get("resources") {
                Some(resources) => drop(container.insert("resources".into(), resources.clone())),
                None => drop(container.remove("resources")),
            }
        }
    }
}

/// What a change of a pod through a path may not do.
fn judge(old: &Value, new: &Value, subresource: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let changed = |pointer: &str| old.pointer(pointer) != new.pointer(pointer);
    for list in CONTAINERS {
        let of = |pod: &Value| pod["spec"][list].as_array().cloned().unwrap_or_default();
        for (i, (before, after)) in of(old).iter().zip(&of(new)).enumerate() {
            let (before, after) = (&before["resources"], &after["resources"]);
            if before == after {
                continue;
            }
            let field = format!("spec.{list}[{i}].resources");
            if subresource != "resize" {
                let why =
                    "pod updates may not change the resources of containers; use the `resize` subresource";
                errors.push(FieldError::forbidden(field, why));
            } else if !other_than_cpu_and_memory(before).eq(other_than_cpu_and_memory(after)) {
                errors.push(FieldError::forbidden(field, "only cpu and memory resources are mutable"));
            }
        }
    }
    if subresource == "resize" && quality(old) != quality(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &json!(quality(new).as_str()), why));
    }
    if subresource.is_empty() {
        errors.extend(fixed(old, new));
    }
    if !changed("/spec/ephemeralContainers") {
        return errors;
    }
    const EPHEMERAL: &str = "spec.ephemeralContainers";
    if subresource != "ephemeralcontainers" {
        let why = "cannot be changed on update; use the `ephemeralcontainers` subresource";
        errors.push(FieldError::forbidden(EPHEMERAL, why));
        return errors;
    }
    let list = |pod: &Value| pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let after = list(new);
    for before in list(old) {
        let name = before["name"].as_str().unwrap_or_default();
        match after.iter().find(|c| c["name"] == before["name"]) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(EPHEMERAL, &why));
            }
            Some(same) if *same != before => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(EPHEMERAL, &why));
            }
            Some(_) => {}
        }
    }
    errors
}

/// What a pod is may not change once it is there, but for a few fields; some of those only in one direction. A node may be
/// given where there is none, as `binding` does it: schedulers of ours write it themselves.
fn fixed(old: &Value, new: &Value) -> Vec<FieldError> {
    const WHY: &str = "pod updates may not change fields other than `spec.containers[*].image`,        `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing         tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    let mut errors = Vec::new();
    let seconds = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].as_i64();
    const DEADLINE: &str = "spec.activeDeadlineSeconds";
    match (seconds(old), seconds(new)) {
        (Some(before), Some(after)) if after > before => {
            let why = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(DEADLINE, &json!(after), why));
        }
        (Some(_), None) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(DEADLINE, &Value::Null, why));
        }
        _ => {}
    }
    let list = |pod: &Value, key: &str| pod["spec"][key].as_array().cloned().unwrap_or_default();
    // How long something is tolerated may change.
    let lasting = |mut toleration: Value| {
        object::as_map(&mut toleration).remove("tolerationSeconds");
        toleration
    };
    let after: Vec<Value> = list(new, "tolerations").into_iter().map(lasting).collect();
    if !list(old, "tolerations").into_iter().map(lasting).all(|toleration| after.contains(&toleration)) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
    let before = list(old, "schedulingGates");
    for gate in list(new, "schedulingGates").iter().filter(|gate| !before.contains(gate)) {
        let name = gate["name"].as_str().unwrap_or_default();
        let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
        errors.push(FieldError::forbidden("spec.schedulingGates", &why));
    }
    for key in CONTAINERS {
        if list(old, key).len() != list(new, key).len() {
            errors.push(FieldError::forbidden(
                format!("spec.{key}"),
                "pod updates may not add or remove containers",
            ));
            return errors;
        }
    }
    let gated = !before.is_empty();
    if lasting_part(old, old, gated) != lasting_part(new, old, gated) {
        errors.push(FieldError::forbidden("spec", WHY));
    }
    errors
}

/// The part of a pod that its updates leave as it is. Absent and empty are the same.
fn lasting_part(pod: &Value, old: &Value, gated: bool) -> Value {
    let mut spec = pod["spec"].clone();
    let map = object::as_map(&mut spec);
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"] {
        map.remove(key);
    }
    let before = |key: &str| &old["spec"][key];
    if before("nodeName").as_str().unwrap_or_default().is_empty() {
        map.remove("nodeName");
    }
    let was_negative = before("terminationGracePeriodSeconds").as_i64().is_some_and(|grace| grace < 0);
    if was_negative && map.get("terminationGracePeriodSeconds") == Some(&json!(1)) {
        map.insert("terminationGracePeriodSeconds".into(), before("terminationGracePeriodSeconds").clone());
    }
    // Where it may run is still open, as long as it may not be looked at.
    if gated {
        map.remove("nodeSelector");
        map.remove("affinity");
    }
    for key in CONTAINERS {
        let containers = map.get_mut(key).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            container.remove("image");
            container.remove("resources");
        }
    }
    without_empty(spec)
}

fn without_empty(value: Value) -> Value {
    let full = |value: &Value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(map) => {
            let all = map.into_iter().map(|(key, value)| (key, without_empty(value)));
            all.filter(|(_, value)| full(value)).collect()
        }
        Value::Array(list) => list.into_iter().map(without_empty).collect(),
        other => other,
    }
}

/// Requests and limits that cannot change while a container runs.
fn other_than_cpu_and_memory(resources: &Value) -> impl Iterator<Item = (&'static str, &String, &Value)> {
    ["limits", "requests"].into_iter().flat_map(move |part| {
        let all = resources[part].as_object().into_iter().flatten();
        all.filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory")).map(move |(k, v)| (part, k, v))
    })
}

/// Gives a pod the number and the policy of its class.
fn prioritize<'a>(pod: &mut Value, mut classes: impl Iterator<Item = &'a Value>) -> Result<(), String> {
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if named.is_empty() {
        let defaults = classes.filter(|c| c["globalDefault"] == true);
        defaults.min_by_key(|c| c["value"].as_i64())
    } else {
        let found = classes.find(|c| object::name(c) == named);
        Some(found.ok_or_else(|| format!("no PriorityClass with name {named} was found"))?)
    };
    let value = class.and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class.and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    let spec = object::as_map(&mut pod["spec"]);
    if let Some(given) = spec.get("priority").and_then(Value::as_i64).filter(|given| *given != value) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|given| *given != policy)
    {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec.insert("priorityClassName".into(), json!(object::name(class)));
    }
    spec.insert("priority".into(), json!(value));
    spec.insert("preemptionPolicy".into(), json!(policy));
    Ok(())
}

fn complete(pod: &mut Value) {
    let quality = quality(pod).as_str();
    let spec = object::as_map(&mut pod["spec"]);
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    if account.is_empty() {
        spec.insert("serviceAccountName".into(), json!("default"));
        spec.insert("serviceAccount".into(), json!("default"));
    }
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if let Some(list) = tolerations.as_array_mut() {
        for key in LOST {
            let tolerates = |t: &Value| {
                let any_key = t["key"].as_str().unwrap_or_default().is_empty();
                let effect = t["effect"].as_str().unwrap_or_default();
                (any_key || t["key"] == key) && matches!(effect, "" | "NoExecute")
            };
            if !list.iter().any(tolerates) {
                list.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAYS,
                }));
            }
        }
    }
    object::entry_map(object::as_map(pod), "status").insert("qosClass".into(), json!(quality));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn parts_change_on_their_own_paths() {
        let spec = |cpu: &str, dongles: &str, debug: Value| {
            pod(json!({"ephemeralContainers": debug, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu, "x.com/dongle": dongles}}}]}))
        };
        let debug = json!([{"name": "d", "image": "i"}]);
        let more = json!([{"name": "d", "image": "i"}, {"name": "e", "image": "i"}]);
        let other = json!([{"name": "d", "image": "j"}]);
        let old = spec("1", "1", debug.clone());
        for (new, subresource, why) in [
            (spec("2", "1", debug.clone()), "", "resize` subresource"),
            (spec("2", "1", debug.clone()), "resize", ""),
            (spec("2", "2", debug.clone()), "resize", "only cpu and memory"),
            (spec("1", "1", more.clone()), "", "ephemeralcontainers` subresource"),
            (spec("1", "1", more), "ephemeralcontainers", ""),
            (spec("1", "1", other), "ephemeralcontainers", "may not be changed"),
            (spec("1", "1", json!([])), "ephemeralcontainers", "may not be removed"),
            (old.clone(), "", ""),
        ] {
            let errors = judge(&old, &new, subresource);
            let told = errors.first().map(|e| e.message.as_str()).unwrap_or_default();
            assert!(told.contains(why) && errors.is_empty() == why.is_empty(), "{subresource}: {errors:?}");
        }
    }

    #[test]
    fn what_a_pod_is_stays() {
        let old = pod(json!({"nodeName": "n", "activeDeadlineSeconds": 10, "volumes": [],
            "tolerations": [{"key": "k", "tolerationSeconds": 5}], "containers": [{"name": "c", "image": "i"}]}));
        for (field, value, why) in [
            ("activeDeadlineSeconds", json!(5), ""),
            ("activeDeadlineSeconds", json!(11), "less than or equal"),
            ("activeDeadlineSeconds", json!(null), "to nil value"),
            ("tolerations", json!([{"key": "k"}, {"key": "l"}]), ""),
            ("tolerations", json!([{"key": "l"}]), "can not be modified"),
            ("containers", json!([{"name": "c", "image": "j"}]), ""),
            ("containers", json!([{"name": "c", "image": "i", "env": []}]), ""),
            (
                "containers",
                json!([{"name": "c", "image": "i", "tty": true}]),
                "may not change fields other than",
            ),
            ("containers", json!([{"name": "c"}, {"name": "d"}]), "may not add or remove containers"),
            ("volumes", json!(null), ""),
            ("nodeName", json!("m"), "may not change fields other than"),
            ("hostname", json!("h"), "may not change fields other than"),
            ("schedulingGates", json!([{"name": "g"}]), "only deletion is allowed"),
        ] {
            let mut new = old.clone();
            new["spec"][field] = value.clone();
            let errors = judge(&old, &new, "");
            let told = errors.first().map(|e| e.message.as_str()).unwrap_or_default();
            assert!(told.contains(why) && errors.is_empty() == why.is_empty(), "{field} {value}: {errors:?}");
        }
        let bare = pod(json!({"terminationGracePeriodSeconds": -1, "schedulingGates": [{"name": "g"}]}));
        let placed =
            pod(json!({"terminationGracePeriodSeconds": 1, "nodeName": "n", "nodeSelector": {"a": "b"}}));
        assert_eq!(judge(&bare, &placed, ""), []);
    }

    #[test]
    fn a_subresource_brings_its_part_and_nothing_else() {
        let mut kept = pod(json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}));
        let new = pod(json!({"nodeName": "m", "containers": [
            {"name": "c", "image": "j", "resources": {"requests": {"cpu": "1"}}}, {"name": "d"}],
            "ephemeralContainers": [{"name": "e"}]}));
        take_part(&mut kept, &new, "resize");
        let resized = json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]);
        assert_eq!(kept["spec"], json!({"nodeName": "n", "containers": resized}));
        take_part(&mut kept, &new, "ephemeralcontainers");
        assert_eq!(kept["spec"]["ephemeralContainers"], json!([{"name": "e"}]));
        assert_eq!(kept["spec"]["nodeName"], "n");
    }

    #[test]
    fn priorities() {
        let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"});
        let classes = [class("high", 100, false), class("usual", 7, true)];
        let given = |spec: Value| {
            let mut pod = pod(spec);
            prioritize(&mut pod, classes.iter()).map(|()| pod["spec"].clone())
        };
        let usual = json!({"priorityClassName": "usual", "priority": 7, "preemptionPolicy": "Never"});
        assert_eq!(given(json!({})), Ok(usual));
        let high = given(json!({"priorityClassName": "high"})).unwrap();
        assert_eq!(high["priority"], 100);
        assert_eq!(
            given(json!({"priorityClassName": "none"})),
            Err("no PriorityClass with name none was found".into())
        );
        assert!(given(json!({"priority": 8})).is_err_and(|why| why.contains("computed 7 from")));
        let mut bare = pod(json!({}));
        prioritize(&mut bare, std::iter::empty()).unwrap();
        assert_eq!(bare["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    }

    #[test]
    fn a_pod_tolerates_lost_nodes_for_a_while() {
        let mut pod = pod(json!({"tolerations": [{"key": LOST[0], "operator": "Exists"}], "containers": []}));
        complete(&mut pod);
        let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert_eq!(
            (&tolerations[1]["key"], &tolerations[1]["tolerationSeconds"]),
            (&json!(LOST[1]), &json!(300))
        );
        assert_eq!(
            (&pod["spec"]["serviceAccountName"], &pod["status"]["qosClass"]),
            (&json!("default"), &json!("BestEffort"))
        );
        let before = pod.clone();
        complete(&mut pod);
        assert_eq!(pod, before);
    }
}
