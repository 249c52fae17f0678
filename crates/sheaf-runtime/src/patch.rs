//! Writing what one owns, and only when it differs: merge patches computed from before and after.
//!
//! A typed view does not hold fields that it does not know, so it is never PUT back. The difference between the view
//! before and the view after is what its owner changed, and is sent as a merge patch that carries the
//! resourceVersion: whoever wrote in between wins, and the loop looks again.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::StepError;

/// The merge patch (RFC 7386) that turns `before` into `after`; `None` where they are equal.
pub fn merge_diff(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for key in old.keys().filter(|k| !new.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in new {
                match old.get(key) {
                    None => {
                        patch.insert(key.clone(), value.clone());
                    }
                    Some(previous) => {
                        if let Some(inner) = merge_diff(previous, value) {
                            patch.insert(key.clone(), inner);
                        }
                    }
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

/// Which part of an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The object itself.
    Main,
    /// Its status subresource.
    Status,
}

/// Sends the difference between two views of one object, if there is one; true if something was written. The views
/// differ only in what the caller owns. Fails with [`StepError::Conflict`] if `before` is not the newest version.
pub async fn write<K>(
    api: &Api<K>,
    manager: &str,
    target: Target,
    before: &K,
    after: &K,
) -> Result<bool, StepError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
{
    let encode = |object: &K| {
        serde_json::to_value(object).map_err(StepError::other("encoding an object for comparison"))
    };
    let Some(mut patch) = merge_diff(&encode(before)?, &encode(after)?) else { return Ok(false) };
    patch["metadata"]["resourceVersion"] = json!(before.meta().resource_version);
    let name = before.meta().name.clone().unwrap_or_default();
    let params = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
    match target {
        Target::Main => api.patch(&name, &params, &Patch::Merge(&patch)).await,
        Target::Status => api.patch_status(&name, &params, &Patch::Merge(&patch)).await,
    }
    .map_err(StepError::api("writing an object"))?;
    Ok(true)
}

/// What the API answered; none: there is no such object (any more).
pub fn found<T>(result: Result<T, kube::Error>, context: &'static str) -> Result<Option<T>, StepError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        other => other.map(Some).map_err(StepError::api(context)),
    }
}

/// Fine if the object went away meanwhile.
pub fn gone<T>(result: Result<T, kube::Error>, context: &'static str) -> Result<(), StepError> {
    found(result, context).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_minimal_and_removals_are_nulls() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2}))),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
            (json!({"s": {"x": 1, "y": 2}}), json!({"s": {"x": 1, "y": 3}}), Some(json!({"s": {"y": 3}}))),
            (json!({"l": [1, 2]}), json!({"l": [1]}), Some(json!({"l": [1]}))),
            (json!({}), json!({"s": {"x": []}}), Some(json!({"s": {"x": []}}))),
        ];
        for (before, after, want) in cases {
            assert_eq!(merge_diff(&before, &after), want, "{before} -> {after}");
        }
    }
}
