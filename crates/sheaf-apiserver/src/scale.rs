//! The subresource `scale`: which numbers of an object make its `autoscaling/v1` Scale, and back. Pure.
//!
//! Not here: reading and storing (`handler::scale`).

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use sheaf_meta::{
    kind::KindInfo,
    object,
    status::{FieldError, Status},
};

/// `apiVersion` of what is answered.
pub const API_VERSION: &str = "autoscaling/v1";

/// Where an object keeps the labels of what is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorAt {
    /// A LabelSelector.
    Selector(Vec<String>),
    /// Plain labels.
    Labels(Vec<String>),
    /// A selector as text already, as custom kinds have it.
    Text(Vec<String>),
}

/// Where an object keeps the numbers of its Scale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// How many are wanted.
    pub spec: Vec<String>,
    /// How many there are.
    pub status: Vec<String>,
    /// Which they are.
    pub selector: Option<SelectorAt>,
}

fn path(text: &str) -> Vec<String> {
    text.split('.').filter(|part| !part.is_empty()).map(String::from).collect()
}

impl ScalePaths {
    /// Those of Kubernetes' own kinds that have the subresource.
    pub fn of_built_in(info: &KindInfo) -> Option<Self> {
        let selector = path("spec.selector");
        let selector = match (info.group.as_str(), info.plural.as_str()) {
            ("apps", "deployments" | "replicasets" | "statefulsets") => SelectorAt::Selector(selector),
            ("", "replicationcontrollers") => SelectorAt::Labels(selector),
            _ => return None,
        };
        Some(Self { spec: path("spec.replicas"), status: path("status.replicas"), selector: Some(selector) })
    }

    /// Those that a CustomResourceDefinition names: `subresources.scale` of a version.
    pub fn of_definition(scale: &Value) -> Option<Self> {
        let text = |key: &str| scale.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        Some(Self {
            spec: path(text("specReplicasPath")?),
            status: path(text("statusReplicasPath")?),
            selector: text("labelSelectorPath").map(|p| SelectorAt::Text(path(p))),
        })
    }

    /// How many are wanted; `None` where the object does not say.
    fn wanted(&self, object: &Value) -> Option<i64> {
        at(object, &self.spec)?.as_i64()
    }

    /// The Scale of an object.
    pub fn scale_of(&self, object: &Value) -> Value {
        let mut metadata = Map::new();
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object::get(object, &["metadata", key]) {
                metadata.insert(key.into(), value.clone());
            }
        }
        let mut spec = json!({});
        if let Some(wanted) = self.wanted(object).filter(|n| *n != 0) {
            spec["replicas"] = json!(wanted);
        }
        let mut status = json!({"replicas": at(object, &self.status).and_then(Value::as_i64).unwrap_or(0)});
        let selector = self.selector.as_ref().map(|s| selector_text(object, s)).unwrap_or_default();
        if !selector.is_empty() {
            status["selector"] = json!(selector);
        }
        json!({
            "kind": "Scale", "apiVersion": API_VERSION, "metadata": metadata, "spec": spec, "status": status,
        })
    }

    /// As [`ScalePaths::scale_of`] for one who asks: an object that does not say how many it wants has no Scale.
    pub fn read(&self, object: &Value) -> Result<Value, Status> {
        if self.wanted(object).is_none() {
            let path = self.spec.iter().map(|p| format!(".{p}")).collect::<String>();
            let why = format!("Internal error occurred: the spec replicas field \"{path}\" does not exist");
            return Err(Status::new(500, "InternalError", why));
        }
        Ok(self.scale_of(object))
    }

    /// The object as a Scale wants it: its number, and the preconditions that it carries.
    pub fn write(&self, object: &Value, scale: &Value) -> Result<Value, Status> {
        check(object, scale)?;
        let mut out = object.clone();
        object::set_resource_version(&mut out, object::resource_version(scale));
        if !object::uid(scale).is_empty() {
            object::set_uid(&mut out, object::uid(scale));
        }
        self.put(&mut out, wanted_of(scale));
        Ok(out)
    }

    /// Sets the wanted number.
    pub fn put(&self, object: &mut Value, wanted: i64) {
        let Some((last, parents)) = self.spec.split_last() else { return };
        let map = parents.iter().fold(object::as_map(object), |map, key| object::entry_map(map, key));
        map.insert(last.clone(), json!(wanted));
    }

    /// Rules for custom objects that can be scaled: their numbers are numbers.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (path, what) in [(&self.spec, "spec"), (&self.status, "status")] {
            let Some(value) = at(object, path) else { continue };
            let field = path.join(".");
            match value.as_i64() {
                Some(n) if n < 0 => {
                    errors.push(FieldError::invalid(&field, value, "should be a non-negative integer"));
                }
                Some(n) if n > i64::from(i32::MAX) => {
                    let why = format!("should be less than or equal to {}", i32::MAX);
                    errors.push(FieldError::invalid(&field, value, &why));
                }
                Some(_) => {}
                None => errors.push(FieldError::invalid(
                    &field,
                    value,
                    &format!("{what} replicas should be an integer"),
                )),
            }
        }
        if let Some(SelectorAt::Text(path)) = &self.selector
            && let Some(value) = at(object, path)
            && !value.is_string()
        {
            errors.push(FieldError::invalid(path.join("."), value, "should be a string"));
        }
        errors
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key)).filter(|v| !v.is_null())
}

/// The number in a Scale; none is zero.
pub fn wanted_of(scale: &Value) -> i64 {
    scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0)
}

/// Whether a Scale can be taken for an object.
fn check(object: &Value, scale: &Value) -> Result<(), Status> {
    let (api_version, kind) = (object::api_version(scale), object::kind(scale));
    if !(kind.is_empty() && api_version.is_empty()) && (kind, api_version) != ("Scale", API_VERSION) {
        return Err(Status::bad_request(format!(
            "the object provided is {api_version}, Kind={kind}; the subresource scale takes {API_VERSION}, Kind=Scale"
        )));
    }
    for (what, given, there) in [
        ("name", object::name(scale), object::name(object)),
        ("namespace", object::namespace(scale), object::namespace(object)),
    ] {
        if !given.is_empty() && given != there {
            return Err(Status::bad_request(format!(
                "the {what} of the object ({given}) does not match the {what} on the URL ({there})"
            )));
        }
    }
    let wanted = scale.pointer("/spec/replicas").unwrap_or(&Value::Null);
    let why = match wanted.as_i64() {
        Some(n) if (0..=i64::from(i32::MAX)).contains(&n) => return Ok(()),
        None if wanted.is_null() => return Ok(()),
        Some(n) if n < 0 => "must be greater than or equal to 0",
        _ => "must be an integer of 32 bits",
    };
    let error = FieldError::invalid("spec.replicas", wanted, why);
    Err(Status::invalid("autoscaling", "Scale", object::name(object), &[error]))
}

/// A selector as a query would have it: `a=b,c in (d,e),!f`.
fn selector_text(object: &Value, selector: &SelectorAt) -> String {
    let equal = |labels: Option<&Value>| -> Vec<(String, String)> {
        let labels = labels.and_then(Value::as_object).into_iter().flatten();
        labels.map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or_default()))).collect()
    };
    let mut parts = match selector {
        SelectorAt::Text(path) => {
            return at(object, path).and_then(Value::as_str).unwrap_or_default().into();
        }
        SelectorAt::Labels(path) => equal(at(object, path)),
        SelectorAt::Selector(path) => {
            let selector = at(object, path);
            let mut parts = equal(selector.and_then(|s| s.get("matchLabels")));
            let expressions = selector.and_then(|s| s.get("matchExpressions")).and_then(Value::as_array);
            parts.extend(expressions.into_iter().flatten().map(expression));
            parts
        }
    };
    parts.sort();
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

fn expression(requirement: &Value) -> (String, String) {
    let key = requirement["key"].as_str().unwrap_or_default();
    let mut values: Vec<&str> =
        requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    values.sort_unstable();
    let values = values.join(",");
    let text = match requirement["operator"].as_str().unwrap_or_default() {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "Exists" => key.to_string(),
        _ => format!("!{key}"),
    };
    (key.into(), text)
}

/// The shape of a Scale, for documents and for unknown fields.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let integer = || json!({"type": "integer", "format": "int32"});
        json!({"type": "object", "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {"replicas": integer()}},
            "status": {"type": "object", "required": ["replicas"], "properties": {
                "replicas": integer(), "selector": {"type": "string"}}},
        }})
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom() -> ScalePaths {
        let scale = json!({
            "specReplicasPath": ".spec.size.replicas", "statusReplicasPath": ".status.ready",
            "labelSelectorPath": ".status.selector",
        });
        ScalePaths::of_definition(&scale).unwrap()
    }

    #[test]
    fn a_custom_object_and_its_scale() {
        let object = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"size": {"replicas": 3}}, "status": {"ready": 2, "selector": "a=b"},
        });
        let scale = custom().read(&object).unwrap();
        assert_eq!(
            scale,
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7"},
                "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "a=b"},
            })
        );
        let mut wanted = scale.clone();
        wanted["spec"]["replicas"] = json!(5);
        let back = custom().write(&object, &wanted).unwrap();
        assert_eq!(back["spec"], json!({"size": {"replicas": 5}}));
        assert_eq!(back["metadata"]["labels"], json!({"x": "y"}));
        assert!(custom().read(&json!({"spec": {}})).unwrap_err().message.contains(".spec.size.replicas"));
        let bare = json!({"metadata": {"name": "a", "namespace": "n"}});
        assert_eq!(custom().write(&bare, &wanted).unwrap()["spec"], json!({"size": {"replicas": 5}}));
    }

    #[test]
    fn scales_that_cannot_be_taken() {
        let object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"size": {"replicas": 3}}});
        for (scale, code, part) in [
            (json!({"spec": {"replicas": -1}}), 422, "greater than or equal to 0"),
            (json!({"spec": {"replicas": "3"}}), 422, "integer"),
            (json!({"spec": {"replicas": 1u64 << 40}}), 422, "32 bits"),
            (json!({"kind": "Other", "apiVersion": "v1"}), 400, "Kind=Scale"),
            (json!({"metadata": {"name": "b"}}), 400, "name"),
        ] {
            let status = custom().write(&object, &scale).unwrap_err();
            assert_eq!(status.code, code, "{scale}");
            assert!(status.message.contains(part), "{scale}: {}", status.message);
        }
        let none =
            custom().write(&object, &json!({"kind": "Scale", "apiVersion": "autoscaling/v1"})).unwrap();
        assert_eq!(none["spec"]["size"]["replicas"], 0, "what is not said is zero");
    }

    #[test]
    fn selectors_are_text() {
        let object = json!({"spec": {"selector": {
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "NotIn", "values": ["z"]},
                {"key": "e", "operator": "Exists"}, {"key": "f", "operator": "DoesNotExist"},
            ],
        }}});
        let selector = SelectorAt::Selector(path("spec.selector"));
        assert_eq!(selector_text(&object, &selector), "a=1,b=2,c in (x,y),d notin (z),e,!f");
        let labels = json!({"spec": {"selector": {"b": "2", "a": "1"}}});
        assert_eq!(selector_text(&labels, &SelectorAt::Labels(path(".spec.selector"))), "a=1,b=2");
    }

    #[test]
    fn numbers_of_custom_objects_are_held_to_be_numbers() {
        let errors = custom()
            .validate(&json!({"spec": {"size": {"replicas": -1}}, "status": {"ready": "x", "selector": 1}}));
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["spec.size.replicas", "status.ready", "status.selector"]);
        assert_eq!(custom().validate(&json!({})), []);
    }
}
