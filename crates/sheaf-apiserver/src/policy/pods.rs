//! What every pod gets that it does not say itself: its account, its priority, how long it stays on a node that is lost,
//! its quality of service; and that one priority class at most is the default.
//!
//! Not here: tokens mounted into pods, for nothing runs them.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
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
