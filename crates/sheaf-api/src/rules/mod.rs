//! What the server does with an object before it stores it, beyond the schema: defaults, rules, warnings.
//!
//! Pure: no clock, no randomness, no other objects. What needs another object (a claim that must exist) is no rule
//! but a condition that a controller writes. Defaults run even on objects whose types are wrong, so they never take
//! a type for granted; validation runs only on objects that fit their schema.

mod core;
mod harvester;
mod identity;
mod longhorn;
mod machine;
mod ssh;
mod storage;
mod types;
mod webhooks;

use std::fmt::Display;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sheaf_meta::kind::Rules;
use sheaf_meta::object::find;
use sheaf_meta::quantity::Quantity;
use sheaf_meta::status::FieldError;

pub use machine::{MachineDefaults, default_virtual_machine, duration};
pub(crate) use machine::{virtual_machine, virtual_machine_instance};
pub use ssh::{KeyError, PublicKey};

/// Rules made of plain functions; a kind names those it needs.
#[derive(Clone, Copy)]
struct Functions {
    default: Option<fn(&mut Value, Option<&Value>)>,
    validate: Option<fn(&Value, Option<&Value>, &mut Problems)>,
    warnings: Option<fn(&Value) -> Vec<String>>,
}

const NO_FUNCTIONS: Functions = Functions { default: None, validate: None, warnings: None };

impl Rules for Functions {
    fn default(&self, object: &mut Value, old: Option<&Value>) {
        if let Some(default) = self.default {
            default(object, old);
        }
    }
    fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut problems = Problems::default();
        if let Some(validate) = self.validate {
            validate(object, old, &mut problems);
        }
        problems.list
    }
    fn warnings(&self, object: &Value) -> Vec<String> {
        self.warnings.map_or_else(Vec::new, |warnings| warnings(object))
    }
}

macro_rules! rules {
    ($($name:ident { $($field:ident: $function:path),+ })*) => {$(
        pub(crate) fn $name() -> Arc<dyn Rules> {
            Arc::new(Functions { $($field: Some($function),)+ ..NO_FUNCTIONS })
        }
    )*};
}
rules! {
    instancetype { validate: machine::validate_instancetype }
    preference { validate: machine::validate_preference }
    snapshot { validate: machine::validate_snapshot }
    restore { validate: machine::validate_restore }
    clone { validate: machine::validate_clone }
    namespace { default: core::default_namespace }
    secret { default: core::default_secret, validate: core::validate_secret }
    config_map { validate: core::validate_config_map }
    event { validate: core::validate_event }
    endpoints { warnings: core::warn_endpoints }
    node { validate: core::validate_node }
    signing_request { validate: core::validate_signing_request }
    claim { default: storage::default_claim, validate: storage::validate_claim }
    volume { default: storage::default_volume, validate: storage::validate_volume }
    storage_class { default: storage::default_class, validate: storage::validate_class }
    image { default: harvester::default_image, validate: harvester::validate_image }
    key_pair { default: harvester::default_key_pair, validate: harvester::validate_key_pair }
    setting { validate: harvester::validate_setting }
    attachment { validate: harvester::validate_attachment }
    replicated_volume { default: longhorn::default_volume, validate: longhorn::validate_volume }
    volume_snapshot { validate: longhorn::validate_snapshot }
    webhooks { validate: webhooks::validate }
    flow { warnings: core::warn_flow }
}

/// The rules of a published type, with what the kind has beyond.
pub(crate) fn typed(definition: String, own: Arc<dyn Rules>) -> Arc<dyn Rules> {
    Arc::new(types::Typed::new(definition, own))
}

/// Kubernetes' sentence for a request above its limit.
fn not_more_than(resource: &str, limit: &Quantity) -> String {
    format!("must be less than or equal to {resource} limit of {limit}")
}

/// Something that a field names is not there.
fn not_found(field: String, value: &str) -> FieldError {
    FieldError { field, reason: "FieldValueNotFound".into(), message: format!("Not found: {}", json!(value)) }
}

/// Broken rules, as they are found.
#[derive(Debug, Default)]
struct Problems {
    list: Vec<FieldError>,
}

impl Problems {
    fn required(&mut self, field: impl Into<String>, why: &str) {
        self.list.push(FieldError::required(field, why));
    }
    fn invalid(&mut self, field: impl Into<String>, value: impl Into<Value>, why: impl Display) {
        self.list.push(FieldError::invalid(field, &value.into(), &why.to_string()));
    }
    fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.list.push(FieldError::forbidden(field, why));
    }
    fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.list.push(FieldError::duplicate(field, &value.into()));
    }
    /// A value that is none of those allowed. Empty counts as not given.
    fn one_of(&mut self, field: impl Into<String>, value: &str, allowed: &[&str]) {
        if !value.is_empty() && !allowed.contains(&value) {
            self.list.push(FieldError::not_supported(field, &json!(value), allowed));
        }
    }
    /// Rules of `sheaf_meta::names`.
    fn name(&mut self, field: &str, value: &str, rule: fn(&str) -> Vec<String>) {
        for why in rule(value) {
            self.invalid(field, value, why);
        }
    }
    /// A quantity, if it is one.
    fn quantity(&mut self, field: &str, value: &Value) -> Option<Quantity> {
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        match Quantity::parse(&text) {
            Ok(quantity) => Some(quantity),
            Err(e) => {
                self.invalid(field, text, e);
                None
            }
        }
    }
}

/// The string at a JSON pointer, empty where there is none.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    find(object, pointer).and_then(Value::as_str).unwrap_or("")
}

/// The list at a JSON pointer, empty where there is none.
fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    find(object, pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map at a JSON pointer.
fn map<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    find(object, pointer).and_then(Value::as_object)
}

/// The map under a key, made if nothing is there. `None` where something else is, which validation refuses.
fn sub<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

/// The map at a path of keys, made on the way.
fn at<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(object.as_object_mut()?, |map, key| sub(map, key))
}

/// Sets a field that is missing, null or empty.
fn fill(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(|v| v.is_null() || v == "") {
        map.insert(key.into(), value.into());
    }
}

/// Whether a field differs from what is stored.
fn changed(object: &Value, old: &Value, pointer: &str) -> bool {
    find(object, pointer).unwrap_or(&Value::Null) != find(old, pointer).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests;
