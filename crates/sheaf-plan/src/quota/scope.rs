//! Scopes of a quota: which objects it is about.

use serde_json::Value;

use super::{Kind, pod};

#[derive(Debug, Clone)]
pub(super) struct Scope {
    name: String,
    operator: String,
    values: Vec<String>,
}

/// The scopes of a quota's spec, of both ways to say them.
pub(super) fn of(spec: &Value) -> Vec<Scope> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let plain = spec["scopes"].as_array().into_iter().flatten();
    let plain = plain.map(|name| Scope { name: text(name), operator: "Exists".into(), values: Vec::new() });
    let chosen = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let chosen = chosen.map(|e| Scope {
        name: text(&e["scopeName"]),
        operator: text(&e["operator"]),
        values: e["values"].as_array().into_iter().flatten().map(text).collect(),
    });
    plain.chain(chosen).collect()
}

impl Scope {
    pub(super) fn matches(&self, kind: Kind<'_>, object: &Value, _now: jiff::Timestamp) -> bool {
        if self.name == "VolumeAttributesClass" {
            let class = object.pointer("/spec/volumeAttributesClassName").and_then(Value::as_str);
            return kind.is("", "persistentvolumeclaims") && self.chosen(class.unwrap_or_default());
        }
        if !kind.is_pods() {
            return false;
        }
        let spec = &object["spec"];
        let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
        let best_effort = || pod::quality(object) == pod::Quality::BestEffort;
        match self.name.as_str() {
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            "BestEffort" => best_effort(),
            "NotBestEffort" => !best_effort(),
            "PriorityClass" => self.chosen(spec["priorityClassName"].as_str().unwrap_or_default()),
            "CrossNamespacePodAffinity" => crosses_namespaces(spec),
            _ => false,
        }
    }

    fn chosen(&self, value: &str) -> bool {
        match self.operator.as_str() {
            "In" => self.values.iter().any(|v| v == value),
            "NotIn" => !self.values.iter().any(|v| v == value),
            "DoesNotExist" => value.is_empty(),
            _ => !value.is_empty(),
        }
    }
}

/// Whether affinity to pods of other namespaces is asked for.
fn crosses_namespaces(spec: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|l| !l.is_empty())
            || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|which| {
        let affinity = &spec["affinity"][*which];
        let required = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        required.into_iter().flatten().any(crosses)
            || preferred.into_iter().flatten().any(|p| crosses(&p["podAffinityTerm"]))
    })
}
