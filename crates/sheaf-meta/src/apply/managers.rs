//! `metadata.managedFields` as data: who owns which fields, in which operation and version, since when.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::FieldSet;
use crate::object;

/// Most entries of operation Update; beyond it the oldest are merged, as upstream.
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager into which old entries are merged.
const ANCIENT: &str = "ancient-changes";

/// How a manager wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

impl Operation {
    pub(super) fn word(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) set: FieldSet,
}

impl Manager {
    /// Whether two entries are of the same manager. Those of Update are told apart by version too.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
    /// As conflicts name it: `"x" using v1`, `"x" with subresource "status"`.
    pub(super) fn show(&self) -> String {
        let mut out = Value::from(self.name.as_str()).to_string();
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource \"{}\"", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
    fn seconds(&self) -> i64 {
        seconds(self.time.as_deref())
    }

    pub(super) fn decode(entry: &Value) -> Option<Self> {
        let operation = match object::str_at(entry, &["operation"]) {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = object::str_at(entry, &["apiVersion"]);
        if api_version.is_empty() || object::str_at(entry, &["fieldsType"]) != "FieldsV1" {
            return None;
        }
        let set = match entry.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => FieldSet::decode(fields)?,
        };
        Some(Self {
            name: object::str_at(entry, &["manager"]).into(),
            operation,
            api_version: api_version.into(),
            subresource: object::str_at(entry, &["subresource"]).into(),
            time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
            set,
        })
    }

    pub(super) fn encode(&self) -> Value {
        self.encode_with(self.set.encode())
    }
    /// The entry with fields that are encoded already; its own do not count.
    pub(super) fn encode_with(&self, fields: Value) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
        put("operation", self.operation.word().into());
        put("apiVersion", self.api_version.as_str().into());
        put("fieldsType", "FieldsV1".into());
        put("fieldsV1", fields);
        for (key, value) in [("manager", &self.name), ("subresource", &self.subresource)] {
            if !value.is_empty() {
                put(key, value.as_str().into());
            }
        }
        if let Some(time) = &self.time {
            put("time", time.as_str().into());
        }
        Value::Object(out)
    }
}

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|t| t.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_second)
}

/// The operation of an encoded entry.
pub(super) fn word_of(entry: &Value) -> &str {
    object::str_at(entry, &["operation"])
}

/// Upstream's order of entries, for encoded ones.
pub(super) fn order(a: &Value, b: &Value) -> Ordering {
    // The words are in the order of the operations.
    let text = |e, key| object::str_at(e, &[key]);
    let time = |e: &Value| seconds(e.get("time").and_then(Value::as_str));
    word_of(a)
        .cmp(word_of(b))
        .then_with(|| time(a).cmp(&time(b)))
        .then_with(|| text(a, "manager").cmp(text(b, "manager")))
        .then_with(|| text(a, "apiVersion").cmp(text(b, "apiVersion")))
        .then_with(|| text(a, "subresource").cmp(text(b, "subresource")))
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Managers(pub(super) Vec<Manager>);

impl Managers {
    /// Reads an object's entries. `None` if one is broken.
    pub(super) fn decode(object: &Value) -> Option<Self> {
        match object::get(object, &["metadata", "managedFields"]) {
            None | Some(Value::Null) => Some(Self::default()),
            Some(Value::Array(list)) => {
                list.iter().map(Manager::decode).collect::<Option<Vec<_>>>().map(Self)
            }
            Some(_) => None,
        }
    }

    /// Writes the entries into an object, in upstream's order; none removes the field.
    pub(super) fn encode_into(mut self, object: &mut Value) {
        self.0.retain(|m| !m.set.is_empty());
        self.0.sort_by(|a, b| {
            (a.operation, a.seconds(), &a.name, &a.api_version, &a.subresource).cmp(&(
                b.operation,
                b.seconds(),
                &b.name,
                &b.api_version,
                &b.subresource,
            ))
        });
        let meta = object::metadata_mut(object);
        if self.0.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".into(), self.0.iter().map(Manager::encode).collect());
        }
    }

    /// Merges the oldest entries of Update, version by version, until there are few enough.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<usize> =
            (0..self.0.len()).filter(|i| self.0[*i].operation == Operation::Update).collect();
        let mut excess = updaters.len().saturating_sub(MAX_UPDATE_MANAGERS);
        if excess == 0 {
            return;
        }
        updaters.sort_by(|a, b| {
            let key = |i: &usize| (self.0[*i].seconds(), self.0[*i].name.clone());
            key(a).cmp(&key(b))
        });
        let mut buckets: Vec<usize> = Vec::new();
        let mut gone: Vec<usize> = Vec::new();
        for i in updaters {
            if excess == 0 {
                break;
            }
            match buckets.iter().find(|b| self.0[**b].api_version == self.0[i].api_version).copied() {
                None => buckets.push(i),
                Some(bucket) => {
                    let (set, time) = (self.0[i].set.clone(), self.0[i].time.clone());
                    let target = &mut self.0[bucket];
                    target.name = ANCIENT.into();
                    target.subresource = String::new();
                    target.set.extend(&set);
                    // The younger of the two.
                    target.time = time;
                    gone.push(i);
                    excess -= 1;
                }
            }
        }
        let mut index = 0;
        self.0.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        self.join();
    }

    /// Joins entries that have become the same manager.
    fn join(&mut self) {
        let mut out: Vec<Manager> = Vec::with_capacity(self.0.len());
        for manager in self.0.drain(..) {
            match out.iter_mut().find(|m| m.is(&manager)) {
                Some(m) => m.set.extend(&manager.set),
                None => out.push(manager),
            }
        }
        self.0 = out;
    }
}

/// Whether a request asks to forget all ownership: `managedFields: []` or `[{}]`.
pub(super) fn is_reset(object: &Value) -> bool {
    match object::get(object, &["metadata", "managedFields"]) {
        Some(Value::Array(list)) => match list.as_slice() {
            [] => true,
            [Value::Object(only)] => only.is_empty(),
            _ => false,
        },
        _ => false,
    }
}

/// Takes the managed fields out of an object.
pub(super) fn drop_managed_fields(object: &mut Value) {
    if let Some(Value::Object(meta)) = object.get_mut("metadata") {
        meta.remove("managedFields");
    }
}

/// Takes the managed fields out of an object, if they are a list.
pub(super) fn take_managed_fields(object: &mut Value) -> Option<Vec<Value>> {
    match object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")? {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

/// Puts encoded entries into an object; none removes the field.
pub(super) fn put_encoded(object: &mut Value, entries: Vec<Value>) {
    let meta = object::metadata_mut(object);
    if entries.is_empty() {
        meta.remove("managedFields");
    } else {
        meta.insert("managedFields".into(), Value::Array(entries));
    }
}

/// Fields of an object that nobody owns, since the server writes them. Of `metadata` it is the map itself.
pub(super) const UNOWNED: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Those of `metadata`.
pub(super) const UNOWNED_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// The same as a set, which is taken out of every set that is written.
pub(super) fn unowned() -> FieldSet {
    let mut fields = Map::new();
    fields.insert(".".into(), json!({}));
    for name in UNOWNED_METADATA {
        fields.insert(format!("f:{name}"), json!({}));
    }
    let mut all: Map<String, Value> = UNOWNED.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
    all.insert("f:metadata".into(), fields.into());
    let all = Value::Object(all);
    FieldSet::decode(&all).unwrap_or_default()
}
