//! Brings the roles and bindings of [`super::policy`] about at each start: what is missing is made, what was taken from
//! them is given back; what was added to them stays. One that says `autoupdate: "false"` is left alone.
//!
//! Pure; [`crate::bootstrap`] reads and writes.

use serde_json::{Map, Value, json};
use sheaf_meta::object;

use super::{
    policy::AUTOUPDATE,
    rules::{self, PolicyRule},
};

/// What is to be done about an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// It is as it should be, or not ours to look after.
    Nothing,
    /// Write this in its place.
    Replace(Value),
    /// Its role cannot be changed: delete it, and make it anew.
    Recreate,
}

/// Compares what should be with what is.
pub(crate) fn plan(wanted: &Value, there: &Value) -> Step {
    if object::annotation(there, AUTOUPDATE) == Some("false") {
        return Step::Nothing;
    }
    if wanted.get("roleRef") != there.get("roleRef") {
        return Step::Recreate;
    }
    let mut new = there.clone();
    for field in ["labels", "annotations"] {
        let wanted = object::get(wanted, &["metadata", field]).and_then(Value::as_object);
        let target = object::entry_map(object::metadata_mut(&mut new), field);
        fill(target, wanted);
    }
    match wanted.get("aggregationRule") {
        // Its rules are collected, not given.
        Some(rule) => add_missing(&mut new, "/aggregationRule/clusterRoleSelectors", rule),
        None => add_rules(&mut new, wanted),
    }
    add_subjects(&mut new, wanted);
    if new == *there { Step::Nothing } else { Step::Replace(new) }
}

fn fill(target: &mut Map<String, Value>, wanted: Option<&Map<String, Value>>) {
    for (key, value) in wanted.into_iter().flatten() {
        target.entry(key).or_insert_with(|| value.clone());
    }
}

fn add_rules(new: &mut Value, wanted: &Value) {
    let held = PolicyRule::list(new);
    let missing = rules::missing(&held, &PolicyRule::list(wanted));
    if missing.is_empty() {
        return;
    }
    // Whole rules of the table rather than their single permissions, so that the role stays readable.
    let whole = PolicyRule::list(wanted);
    let whole = whole.iter().filter(|rule| !rules::missing(&held, std::slice::from_ref(rule)).is_empty());
    push(new, "rules", whole.map(PolicyRule::to_json));
}

fn add_missing(new: &mut Value, pointer: &str, rule: &Value) {
    let wanted = rule.get("clusterRoleSelectors").and_then(Value::as_array).cloned().unwrap_or_default();
    let there = new.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let missing: Vec<Value> = wanted.into_iter().filter(|s| !there.contains(s)).collect();
    if !missing.is_empty() {
        let all: Vec<Value> = there.into_iter().chain(missing).collect();
        new["aggregationRule"] = json!({"clusterRoleSelectors": all});
    }
}

fn add_subjects(new: &mut Value, wanted: &Value) {
    let list = |o: &Value| o.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
    let there = list(new);
    let missing: Vec<Value> = list(wanted).into_iter().filter(|s| !there.contains(s)).collect();
    if !missing.is_empty() {
        push(new, "subjects", missing.into_iter());
    }
}

fn push(new: &mut Value, field: &str, items: impl Iterator<Item = Value>) {
    let map = object::as_map(new);
    let list = map.entry(field).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbac::policy;

    fn find(name: &str) -> Value {
        let mut all = policy::roles().into_iter().filter(|r| r.name == name).map(|r| r.object());
        all.next().unwrap_or_else(|| {
            let found = policy::bindings().into_iter().find(|b| b.name == name);
            found.unwrap_or_else(|| panic!("{name} is not in the table")).object()
        })
    }

    #[test]
    fn what_was_taken_comes_back_and_what_was_added_stays() {
        let wanted = find("system:basic-user");
        assert_eq!(plan(&wanted, &wanted), Step::Nothing);
        let mut changed = wanted.clone();
        changed["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        object::set_label(&mut changed, "own", Some("yes"));
        let Step::Replace(new) = plan(&wanted, &changed) else { panic!("nothing is given back") };
        assert_eq!(new["rules"].as_array().map(Vec::len), Some(3), "{new}");
        assert_eq!(object::label(&new, "own"), Some("yes"));
        assert_eq!(plan(&wanted, &new), Step::Nothing, "once is enough");

        object::set_annotation(&mut changed, AUTOUPDATE, Some("false"));
        assert_eq!(plan(&wanted, &changed), Step::Nothing, "its owner wants it so");
    }

    #[test]
    fn bindings_and_aggregated_roles() {
        let wanted = find("system:public-info-viewer");
        let mut binding = policy::bindings()
            .into_iter()
            .find(|b| b.name == "system:public-info-viewer")
            .map(|b| b.object())
            .unwrap_or_default();
        let full = binding.clone();
        binding["subjects"] = json!([]);
        let Step::Replace(new) = plan(&full, &binding) else { panic!("no subject comes back") };
        assert_eq!(new["subjects"], full["subjects"]);
        binding["roleRef"]["name"] = json!("other");
        assert_eq!(plan(&full, &binding), Step::Recreate);
        assert_eq!(wanted["kind"], "ClusterRole");

        let admin = find("admin");
        let mut collected = admin.clone();
        collected["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        assert_eq!(plan(&admin, &collected), Step::Nothing, "collected rules are not ours");
    }
}
