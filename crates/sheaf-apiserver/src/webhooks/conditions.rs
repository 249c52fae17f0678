//! `matchConditions`: expressions that say whether a webhook wants to see a request. Pure.

use serde_json::Value;

/// The conditions of a webhook, compiled.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<String>);

impl Conditions {
    /// Compiles them.
    pub(super) fn compile(conditions: &Value) -> Result<Self, String> {
        let all = conditions.as_array().into_iter().flatten();
        Ok(Self(all.filter_map(|c| c["expression"].as_str().map(String::from)).collect()))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of them hold.
    pub(super) fn hold(&self, _object: &Value, _old: &Value, _request: &Value) -> Result<bool, String> {
        Err("match conditions cannot be evaluated".into())
    }
}
