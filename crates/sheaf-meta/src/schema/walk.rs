//! Pruning, unknown fields and defaulting: walks of an object along its schema.

use std::fmt::Write;

use serde_json::Value;

use super::{Additional, Node, Schema, Type};
use crate::changes::{Change, Changes};

/// Most unknown fields that are reported; the rest is pruned silently.
pub const MAX_REPORTED: usize = 100;

impl Schema {
    /// Removes the fields that the schema does not know, and returns their paths (`spec.a[0].b`), at most
    /// [`MAX_REPORTED`]. Nulls of typed fields that are not nullable go too, without a word: they mean absence, and
    /// clients written in Go send many (`creationTimestamp: null`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut walk = Walk { path: String::new(), found: Vec::new(), keep_nulls: false };
        walk.prune(&self.root, object);
        walk.found
    }

    /// As [`Schema::prune`], of an object that differs by `changes` from one that was pruned.
    pub fn prune_changed(&self, object: &mut Value, changes: &Changes) -> Vec<String> {
        let mut walk = Walk { path: String::new(), found: Vec::new(), keep_nulls: false };
        walk.prune_changed(&self.root, object, changes.root());
        walk.found
    }

    /// As [`Schema::prune`], for custom objects: nulls stay, but for those that defaulting will fill in and those of
    /// `metadata`; validation says what is wrong with them.
    pub fn prune_custom(&self, object: &mut Value) -> Vec<String> {
        let mut walk = Walk { path: String::new(), found: Vec::new(), keep_nulls: true };
        walk.prune(&self.root, object);
        walk.found
    }

    /// The paths of fields that the schema does not know, as a strict request reports them; at most
    /// [`MAX_REPORTED`].
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        let mut walk = Walk { path: String::new(), found: Vec::new(), keep_nulls: false };
        walk.unknown(&self.root, object);
        walk.found
    }

    /// Fills in defaults, also for nulls of fields that are not nullable. For custom resources:
    /// what Kubernetes publishes as `default` of built-in kinds is Go's zero value, and is not meant to be stored.
    pub fn default(&self, object: &mut Value) {
        if self.root.has_defaults {
            default(&self.root, object);
        }
    }
}

struct Walk {
    path: String,
    found: Vec<String>,
    keep_nulls: bool,
}

impl Walk {
    fn within<R>(&mut self, key: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        let out = f(self);
        self.path.truncate(len);
        out
    }
    fn within_index<R>(&mut self, index: usize, f: impl FnOnce(&mut Self) -> R) -> R {
        let len = self.path.len();
        let _ = write!(self.path, "[{index}]");
        let out = f(self);
        self.path.truncate(len);
        out
    }
    fn report(&mut self, key: &str) {
        if self.found.len() < MAX_REPORTED {
            let path = self.within(key, |w| w.path.clone());
            self.found.push(path);
        }
    }

    fn prune(&mut self, node: &Node, value: &mut Value) {
        match value {
            Value::Object(map) if takes_object(node) => {
                let keeps = node.keeps_unknown();
                map.retain(|key, value| self.stays(node, keeps, key, value, &Change::Whole));
            }
            Value::Array(list) => {
                if let Some(items) = &node.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        if item.is_object() || item.is_array() {
                            self.within_index(i, |w| w.prune(items, item));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Where a value is known to have been pruned but for its changes.
    fn prune_changed(&mut self, node: &Node, value: &mut Value, change: &Change) {
        match (change, &mut *value) {
            (Change::Same, _) => {}
            (Change::Below(keys), Value::Object(map)) if takes_object(node) => {
                let keeps = node.keeps_unknown();
                for (key, change) in keys {
                    if let Some(value) = map.get_mut(&**key)
                        && !self.stays(node, keeps, key, value, change)
                    {
                        map.remove(&**key);
                    }
                }
            }
            _ => self.prune(node, value),
        }
    }

    /// Whether a field stays; prunes what is below it.
    fn stays(&mut self, node: &Node, keeps: bool, key: &str, value: &mut Value, change: &Change) -> bool {
        match node.field(key) {
            Some(child) if value.is_null() => {
                child.nullable || child.ty == Type::Any || (self.keep_nulls && child.default.is_none())
            }
            Some(child) => {
                // Most values are scalars, which need no path.
                if value.is_object() || value.is_array() {
                    let outer = self.keep_nulls;
                    // ObjectMeta is Go's, whose empty fields may come as null.
                    self.keep_nulls &= !(node.resource && key == "metadata");
                    self.within(key, |w| w.prune_changed(child, value, change));
                    self.keep_nulls = outer;
                }
                true
            }
            None if keeps => true,
            None => {
                self.report(key);
                false
            }
        }
    }

    fn unknown(&mut self, node: &Node, value: &Value) {
        match value {
            Value::Object(map) if takes_object(node) => {
                let keeps = node.keeps_unknown();
                for (key, value) in map {
                    match node.field(key) {
                        Some(child) => {
                            if value.is_object() || value.is_array() {
                                self.within(key, |w| w.unknown(child, value));
                            }
                        }
                        None if keeps => {}
                        None => self.report(key),
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &node.items {
                    for (i, item) in list.iter().enumerate() {
                        if item.is_object() || item.is_array() {
                            self.within_index(i, |w| w.unknown(items, item));
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

/// A map where a list or a scalar should be is left to validation.
fn takes_object(node: &Node) -> bool {
    matches!(node.ty, Type::Object | Type::Any)
}

fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) if takes_object(node) => {
            for (key, child) in &node.properties {
                if let Some(given) = &child.default {
                    let missing = match map.get(&**key) {
                        None => true,
                        Some(v) => v.is_null() && !child.nullable,
                    };
                    if missing {
                        map.insert(key.to_string(), given.clone());
                    }
                }
                if child.has_defaults
                    && let Some(value) = map.get_mut(&**key)
                {
                    default(child, value);
                }
            }
            if let Additional::Schema(child) = &node.additional
                && child.has_defaults
            {
                for (key, value) in map.iter_mut() {
                    if node.property(key).is_none() {
                        replace_null(child, value);
                        default(child, value);
                    }
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = node.items.as_ref().filter(|i| i.has_defaults) {
                for item in list {
                    replace_null(items, item);
                    default(items, item);
                }
            }
        }
        _ => {}
    }
}

fn replace_null(node: &Node, value: &mut Value) {
    if let Some(given) = &node.default
        && value.is_null()
        && !node.nullable
    {
        *value = given.clone();
    }
}
