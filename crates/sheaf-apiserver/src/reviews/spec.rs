//! What a question about access asks, and what is wrong with it. Pure; words as Kubernetes has them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{FieldError, Status},
};

use crate::{authn::UserInfo, authz::Attributes};

const GROUP: &str = "authorization.k8s.io";

/// Refuses a question that cannot be answered; `namespace` is that of the path.
pub(super) fn validate(kind: &str, review: &Value, namespace: &str) -> Result<(), Status> {
    if kind == "SelfSubjectRulesReview" {
        return Ok(());
    }
    let mut errors = spec(kind, review);
    metadata(kind, review, &mut errors);
    if kind == "LocalSubjectAccessReview" {
        let asked = object::str_at(review, &["spec", "resourceAttributes", "namespace"]);
        if object::namespace(review) != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if given(review, "nonResourceAttributes") {
            let why = "disallowed on this kind of request";
            let value = &review["spec"]["nonResourceAttributes"];
            errors.push(FieldError::invalid("spec.nonResourceAttributes", value, why));
        } else if asked != namespace {
            let why = "must match metadata.namespace";
            errors.push(FieldError::invalid("spec.resourceAttributes.namespace", &json!(asked), why));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, kind, object::name(review), &errors)) }
}

fn given(review: &Value, field: &str) -> bool {
    object::get(review, &["spec", field]).is_some_and(Value::is_object)
}

fn spec(kind: &str, review: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (given(review, "resourceAttributes"), given(review, "nonResourceAttributes")) {
        (true, true) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            &review["spec"]["nonResourceAttributes"],
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let groups = object::get(review, &["spec", "groups"]).and_then(Value::as_array);
    if kind != "SelfSubjectAccessReview"
        && object::str_at(review, &["spec", "user"]).is_empty()
        && groups.is_none_or(Vec::is_empty)
    {
        let why = "at least one of user or group must be specified";
        errors.push(FieldError::invalid("spec.user", &json!(""), why));
    }
    for selector in ["fieldSelector", "labelSelector"] {
        selector_of(review, selector, &mut errors);
    }
    errors
}

/// Selectors are accepted, and restrict nothing: rules of roles know none.
fn selector_of(review: &Value, which: &str, errors: &mut Vec<FieldError>) {
    let path = format!("spec.resourceAttributes.{which}");
    let Some(selector) =
        object::get(review, &["spec", "resourceAttributes", which]).filter(|s| s.is_object())
    else {
        return;
    };
    let raw = object::str_at(selector, &["rawSelector"]);
    let requirements = selector.get("requirements").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => errors.push(FieldError::invalid(
            format!("{path}.rawSelector"),
            &json!(raw),
            "may not specified at the same time as requirements",
        )),
        (true, true) => {
            let why = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(format!("{path}.requirements"), &why));
        }
        _ => {}
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let at = format!("{path}.requirements[{i}]");
        if object::str_at(requirement, &["key"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.key"), "must be specified"));
        }
        let values = requirement.get("values").and_then(Value::as_array).map_or(0, Vec::len);
        match object::str_at(requirement, &["operator"]) {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{at}.values"), why));
            }
            _ => {}
        }
    }
}

fn metadata(kind: &str, review: &Value, errors: &mut Vec<FieldError>) {
    let allowed: &[&str] = match kind {
        "LocalSubjectAccessReview" => &["namespace", "managedFields", "creationTimestamp"],
        _ => &["managedFields", "creationTimestamp"],
    };
    let empty = |v: &Value| v.is_null() || v == "" || v == &json!({}) || v == &json!([]);
    let all = object::metadata(review).into_iter().flatten();
    if all.filter(|(key, _)| !allowed.contains(&key.as_str())).any(|(_, value)| !empty(value)) {
        let why = match kind {
            "LocalSubjectAccessReview" => "must be empty except for namespace",
            _ => "must be empty",
        };
        errors.push(FieldError::invalid("metadata", &review["metadata"], why));
    }
}

/// About whom somebody asks.
pub(super) fn subject(review: &Value) -> UserInfo {
    let text = |field: &str| object::str_at(review, &["spec", field]).to_owned();
    let list = |value: Option<&Value>| -> Vec<String> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|i| i.as_str().map(String::from)).collect()
    };
    let extra = object::get(review, &["spec", "extra"]).and_then(Value::as_object);
    let extra: BTreeMap<String, Vec<String>> =
        extra.into_iter().flatten().map(|(k, v)| (k.to_lowercase(), list(Some(v)))).collect();
    UserInfo {
        username: text("user"),
        uid: text("uid"),
        groups: list(object::get(review, &["spec", "groups"])),
        extra,
    }
}

/// What is asked.
pub(super) fn attributes(review: &Value) -> Attributes<'_> {
    let of_paths = |field: &str| object::str_at(review, &["spec", "nonResourceAttributes", field]);
    let of = |field: &str| object::str_at(review, &["spec", "resourceAttributes", field]);
    if given(review, "nonResourceAttributes") {
        return Attributes { verb: of_paths("verb"), path: of_paths("path"), ..Attributes::default() };
    }
    Attributes {
        verb: of("verb"),
        group: of("group"),
        resource: of("resource"),
        subresource: of("subresource"),
        namespace: of("namespace"),
        name: of("name"),
        path: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked() {
        let pods = json!({"verb": "get", "resource": "pods", "namespace": "ns"});
        let full = |selector: Value| json!({"spec": {"resourceAttributes": {"resource": "pods", "fieldSelector": selector}}});
        let local = |attributes: &Value| {
            json!({
                "metadata": {"namespace": "ns"}, "spec": {"user": "joe", "resourceAttributes": attributes},
            })
        };
        let (me, other, here) =
            ("SelfSubjectAccessReview", "SubjectAccessReview", "LocalSubjectAccessReview");
        for (kind, review, expected) in [
            (me, json!({"spec": {"resourceAttributes": pods}}), ""),
            (
                me,
                json!({"spec": {}}),
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            (
                me,
                json!({"spec": {"resourceAttributes": pods, "nonResourceAttributes": {"path": "/"}}}),
                "spec.nonResourceAttributes: Invalid value: {\"path\":\"/\"}: cannot be specified in combination with resourceAttributes",
            ),
            (
                me,
                json!({"metadata": {"name": "x"}, "spec": {"resourceAttributes": pods}}),
                "metadata: Invalid value: {\"name\":\"x\"}: must be empty",
            ),
            (me, json!({"metadata": {"creationTimestamp": null}, "spec": {"resourceAttributes": pods}}), ""),
            (
                other,
                json!({"spec": {"resourceAttributes": pods}}),
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ),
            (other, json!({"spec": {"resourceAttributes": pods, "groups": ["staff"]}}), ""),
            (here, local(&pods), ""),
            (
                here,
                local(&json!({"resource": "pods", "namespace": "else"})),
                "spec.resourceAttributes.namespace: Invalid value: \"else\": must match metadata.namespace",
            ),
            (me, full(json!({"rawSelector": "a=b"})), ""),
            (me, full(json!({"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]})), ""),
            (
                me,
                full(json!({})),
                "spec.resourceAttributes.fieldSelector.requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required",
            ),
            (
                me,
                full(json!({"rawSelector": "a", "requirements": [{"key": "a", "operator": "Exists"}]})),
                "spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: \"a\": may not specified at the same time as requirements",
            ),
        ] {
            let said = match validate(kind, &review, "ns") {
                Ok(()) => String::new(),
                Err(status) => status.message,
            };
            match expected {
                "" => assert_eq!(said, "", "{review}"),
                expected => assert!(said.ends_with(expected), "{review}: {said}"),
            }
        }
    }
}
