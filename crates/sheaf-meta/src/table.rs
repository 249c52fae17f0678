//! Tables: what `kubectl get` prints, computed here so that the client needs to know no kind.
//!
//! A [`Columns`] is compiled once for each kind and version, from the kind's row. Cells are computed from the columns'
//! paths or by the kind's own [`Rules::cells`].

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::jsonpath::{JsonPath, JsonPathError};
use crate::kind::{Column, KindInfo, Rules};
use crate::object;

/// Longest text of one cell, in bytes; what is longer is cut.
const MAX_CELL: usize = 16 * 1024;

const NAME_HELP: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
     resources may allow a client to request the generation of an appropriate name automatically. Name is primarily \
     intended for creation idempotence and configuration definition. Cannot be updated. More info: \
     https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_HELP: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It \
     is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. \
     It is represented in RFC3339 form and is in UTC.";

/// Which of a row's object is sent along (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowObject {
    /// PartialObjectMetadata: the default.
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl RowObject {
    /// Reads the query parameter; `None` for a word that is not allowed (a 400).
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            "None" => Some(Self::None),
            _ => None,
        }
    }
}

/// Version of `meta.k8s.io` a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetaVersion {
    /// `v1`.
    #[default]
    V1,
    /// `v1beta1`.
    V1beta1,
}

impl MetaVersion {
    /// Reads the `v=` parameter of an Accept header.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        }
    }
    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The compiled columns of a kind.
#[derive(Clone)]
pub struct Columns {
    columns: Vec<(Column, JsonPath)>,
    rules: Option<Arc<dyn Rules>>,
}

impl Columns {
    /// Compiles columns. The name comes first of itself, unless a column of format `name` says where it stands. None
    /// at all means an age.
    pub fn compile(columns: &[Column]) -> Result<Self, JsonPathError> {
        let age = [age_column()];
        let columns = if columns.is_empty() { &age[..] } else { columns };
        let columns = columns
            .iter()
            .map(|c| Ok((c.clone(), JsonPath::parse(&c.path)?)))
            .collect::<Result<Vec<_>, JsonPathError>>()?;
        Ok(Self { columns, rules: None })
    }
    /// Compiles the columns of a kind, whose rules may compute rows.
    pub fn of(kind: &KindInfo) -> Result<Self, JsonPathError> {
        Ok(Self { rules: Some(kind.rules.clone()), ..Self::compile(&kind.columns)? })
    }

    /// `columnDefinitions`.
    pub fn definitions(&self) -> Value {
        let define = |name: &str, ty: &str, format: &str, help: &str, priority: i32| json!({"name": name, "type": ty, "format": format, "description": help, "priority": priority});
        let name = (!self.names_itself()).then(|| define("Name", "string", "name", NAME_HELP, 0));
        name.into_iter()
            .chain(self.columns.iter().map(|(c, _)| {
                let path = || format!("Custom resource definition column (in JSONPath format): {}", c.path);
                let help = if c.description.is_empty() { path() } else { c.description.clone() };
                define(&c.name, &c.ty, &c.format, &help, c.priority)
            }))
            .collect()
    }

    /// Whether a column carries the name, so that none is put first.
    fn names_itself(&self) -> bool {
        self.columns.iter().any(|(c, _)| c.format == "name")
    }

    /// The cells of an object, the name first. What is missing is null, which prints as nothing.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let name = (!self.names_itself()).then(|| Value::String(object::name(object).into()));
        let mut out: Vec<Value> = name.into_iter().collect();
        if let Some(cells) = self.rules.as_ref().and_then(|r| r.cells(object, now)) {
            // A rule that miscounts must not shift columns.
            out.extend(cells.into_iter().chain(std::iter::repeat(Value::Null)).take(self.columns.len()));
            return out;
        }
        out.extend(self.columns.iter().map(|(column, path)| cell(column, path, object, now)));
        out
    }

    /// One row.
    pub fn row(&self, object: &Value, include: RowObject, version: MetaVersion, now: Timestamp) -> Value {
        let mut row = json!({"cells": self.cells(object, now)});
        match include {
            RowObject::Metadata => row["object"] = partial_object_metadata(object, version),
            RowObject::Object => row["object"] = object.clone(),
            RowObject::None => {}
        }
        row
    }

    /// A Table. `list_metadata` is the list's metadata (resourceVersion, continue, remainingItemCount), or for a
    /// single object `{"resourceVersion": ...}` of that object ([`single_metadata`]).
    pub fn table<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a Value>,
        list_metadata: &Value,
        include: RowObject,
        version: MetaVersion,
        now: Timestamp,
    ) -> Value {
        let rows: Vec<Value> = objects.into_iter().map(|o| self.row(o, include, version, now)).collect();
        json!({
            "kind": "Table", "apiVersion": version.api_version(), "metadata": list_metadata,
            "columnDefinitions": self.definitions(), "rows": rows,
        })
    }
}

/// The metadata of a Table that shows one object.
pub fn single_metadata(object: &Value) -> Value {
    json!({"resourceVersion": object::resource_version(object)})
}

/// The column that every kind without columns of its own has.
pub fn age_column() -> Column {
    Column {
        name: "Age".into(),
        ty: "date".into(),
        format: String::new(),
        priority: 0,
        path: ".metadata.creationTimestamp".into(),
        description: AGE_HELP.into(),
    }
}

/// An object reduced to its metadata.
pub fn partial_object_metadata(object: &Value, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A list reduced to its objects' metadata.
pub fn partial_object_metadata_list<'a>(
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: &Value,
    version: MetaVersion,
) -> Value {
    let items: Vec<Value> = objects.into_iter().map(|o| partial_object_metadata(o, version)).collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": list_metadata,
        "items": items,
    })
}

fn cell(column: &Column, path: &JsonPath, object: &Value, now: Timestamp) -> Value {
    let Some(value) = path.first(object).filter(|v| !v.is_null()) else { return Value::Null };
    match column.ty.as_str() {
        "integer" => match value.as_i64() {
            Some(n) => n.into(),
            None => value.as_f64().map_or(Value::Null, |f| (f as i64).into()),
        },
        "number" => value.as_f64().map_or(Value::Null, Value::from),
        "boolean" => {
            if value.is_boolean() {
                value.clone()
            } else {
                Value::Null
            }
        }
        "date" => match value.as_str() {
            Some(text) => Value::String(age_of(text, now)),
            None => Value::Null,
        },
        "string" => Value::String(cut(match value {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        })),
        _ => Value::Null,
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_CELL {
        let mut end = MAX_CELL;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// A timestamp's age as kubectl shows it: `<unknown>` if empty, `<invalid>` if it is no timestamp.
pub fn age_of(timestamp: &str, now: Timestamp) -> String {
    if timestamp.is_empty() {
        return "<unknown>".into();
    }
    match timestamp.parse::<Timestamp>() {
        Ok(t) => human_duration(now.as_second().saturating_sub(t.as_second())),
        Err(_) => "<invalid>".into(),
    }
}

/// Seconds as `duration.HumanDuration` shows them: two units at most, fewer as it grows.
pub fn human_duration(seconds: i64) -> String {
    let pair = |big: i64, b: &str, small: i64, s: &str| {
        if small == 0 { format!("{big}{b}") } else { format!("{big}{b}{small}{s}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(days, "d", hours % 24, "h"),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}
