//! Server-side apply as stories: who applies or updates what, what the object is then, and who owns which field.

use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::apply::{self, ApplyError, Part, Writer};
use sheaf_meta::schema::Schema;

mod changes;
mod laws;
mod lists;
mod owners;
mod upgrade;

/// One stored object and the hands that write it. Each write is a second later than the one before.
pub(crate) struct Story {
    schema: Schema,
    live: Option<Value>,
    seconds: i64,
    /// Whether the last write went through the present schema.
    settled: bool,
}

impl Story {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self { schema: schema.clone(), live: None, seconds: 1_767_225_600, settled: false }
    }

    fn writer<'a>(&mut self, manager: &'a str, subresource: &'a str) -> Writer<'a> {
        self.seconds += 1;
        let now = Timestamp::from_second(self.seconds).unwrap();
        Writer { manager, api_version: "x.io/v1", subresource, now, settled: false }
    }

    pub(crate) fn try_apply(&mut self, manager: &str, body: &Value, force: bool) -> Result<(), ApplyError> {
        let writer = self.writer(manager, "");
        let config = object(body);
        let part = Part::WithoutStatus;
        let out = apply::apply(self.live.as_ref(), &config, part, force, &self.schema, &writer)?;
        self.live = Some(stored(out));
        self.settled = true;
        Ok(())
    }
    pub(crate) fn apply(&mut self, manager: &str, body: &Value) -> &mut Self {
        self.try_apply(manager, body, false).unwrap_or_else(|e| panic!("{manager} applies {body}: {e}"));
        self
    }
    pub(crate) fn force(&mut self, manager: &str, body: &Value) -> &mut Self {
        self.try_apply(manager, body, true).unwrap_or_else(|e| panic!("{manager} forces {body}: {e}"));
        self
    }
    pub(crate) fn apply_status(&mut self, manager: &str, body: &Value) -> &mut Self {
        let writer = self.writer(manager, "status");
        let live = self.live.as_ref();
        let out = apply::apply(live, &object(body), Part::Status, false, &self.schema, &writer).unwrap();
        self.live = Some(stored(out));
        self.settled = true;
        self
    }
    /// Writes with PUT or a patch: the object becomes `body` but for what the server keeps.
    pub(crate) fn update(&mut self, manager: &str, body: &Value) -> &mut Self {
        self.update_through(manager, "", body)
    }
    pub(crate) fn update_through(&mut self, manager: &str, subresource: &str, body: &Value) -> &mut Self {
        let mut new = object(body);
        new["metadata"]["uid"] = json!("1");
        let before = self.live.as_ref().map(|live| live["metadata"]["managedFields"].clone());
        let given = new["metadata"].get("managedFields").is_some();
        let settled = self.settled;
        let writer = self.writer(manager, subresource);
        let plain = new.clone();
        apply::update(self.live.as_ref(), &mut new, &self.schema, &writer);
        // Clients send back what they were given, or leave it out; and where the record fits its schema, it need not be read
        // as a whole. The outcome is the same.
        for settled in [false, settled] {
            for back in [None, before.clone()].into_iter().filter(|_| !given) {
                let mut again = plain.clone();
                if let Some(back) = back {
                    again["metadata"]["managedFields"] = back;
                }
                let writer = Writer { settled, ..writer };
                apply::update(self.live.as_ref(), &mut again, &self.schema, &writer);
                assert_eq!(again, new, "settled: {settled}");
            }
        }
        self.settled = true;
        self.live = Some(stored(new));
        self
    }

    pub(crate) fn live(&self) -> &Value {
        self.live.as_ref().expect("nothing was written yet")
    }
    /// The object without apiVersion, kind, and metadata that is the same in all stories.
    pub(crate) fn body(&self) -> Value {
        let mut out = self.live().clone();
        let map = out.as_object_mut().unwrap();
        map.remove("apiVersion");
        map.remove("kind");
        let meta = map["metadata"].as_object_mut().unwrap();
        for key in ["name", "namespace", "uid", "managedFields"] {
            meta.remove(key);
        }
        if meta.is_empty() {
            map.remove("metadata");
        }
        out
    }
    /// `fieldsV1` by `manager`, `manager/Apply`, or `manager/Apply/subresource`.
    pub(crate) fn owned(&self, who: &str) -> Value {
        let mut parts = who.split('/');
        let (manager, operation, sub) = (parts.next(), parts.next(), parts.next().unwrap_or(""));
        let entries = self.live()["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let fits = |e: &&Value| {
            e["manager"].as_str() == manager
                && operation.is_none_or(|o| e["operation"] == o)
                && e["subresource"].as_str().unwrap_or("") == sub
        };
        entries.iter().find(fits).map_or(Value::Null, |e| e["fieldsV1"].clone())
    }
    pub(crate) fn managers(&self) -> Vec<String> {
        let entries = self.live()["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let word = |v: &Value| v.as_str().unwrap_or("").to_owned();
        entries.iter().map(|e| format!("{} {}", word(&e["manager"]), word(&e["operation"]))).collect()
    }
    pub(crate) fn time_of(&self, manager: &str) -> String {
        let entries = self.live()["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .find(|e| e["manager"] == manager)
            .map_or(String::new(), |e| e["time"].as_str().unwrap_or("").to_owned())
    }
}

pub(crate) fn object(body: &Value) -> Value {
    let mut out = json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "o", "namespace": "ns"}});
    for (key, value) in body.as_object().into_iter().flatten() {
        if key == "metadata" {
            for (k, v) in value.as_object().into_iter().flatten() {
                out["metadata"][k] = v.clone();
            }
        } else {
            out[key] = value.clone();
        }
    }
    out
}

/// What the server adds.
fn stored(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!("1");
    object
}

/// A kind with one field of each sort.
pub(crate) fn schema() -> Schema {
    let port = json!({"type": "object", "properties": {
        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"}}});
    let container = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "image": {"type": "string"},
        "ports": {"type": "array", "items": port, "x-kubernetes-list-type": "map",
                  "x-kubernetes-list-map-keys": ["port", "protocol"]},
        "args": {"type": "array", "items": {"type": "string"}}}});
    Schema::compile(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "a": {"type": "string"}, "b": {"type": "string"}, "n": {"type": "integer"},
            "sub": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "containers": {"type": "array", "items": container, "x-kubernetes-list-type": "map",
                           "x-kubernetes-list-map-keys": ["name"]},
            "merged": {"type": "array", "items": container, "x-kubernetes-patch-strategy": "merge",
                       "x-kubernetes-patch-merge-key": "name"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}, "ready": {"type": "boolean"}}},
    }}))
}
