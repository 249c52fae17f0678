//! Definitions and custom objects, as tables of cases.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line")]

mod custom;
mod definitions;
mod known;
mod laws;
mod ratcheting;
mod rules;

use serde_json::{Value, json};
use sheaf_meta::status::FieldError;

/// Errors as clients read them.
pub(crate) fn show(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

/// A definition with a schema for `spec`.
pub(crate) fn crd(spec: Value) -> Value {
    let schema = json!({"type": "object", "properties": {"spec": spec}});
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    });
    sheaf_crd::default_crd(&mut crd);
    crd
}
