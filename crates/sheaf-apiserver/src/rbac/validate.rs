//! Rules for the four kinds of `rbac.authorization.k8s.io` beyond their schemas, and their defaults. Pure; words as
//! Kubernetes has them.

use serde_json::{Value, json};
use sheaf_meta::{names, object, selector::LabelSelector, status::FieldError};

use super::GROUP;

/// Fills in groups that a client may leave open.
pub(crate) fn default(kind: &str, object: &mut Value) {
    if !kind.ends_with("Binding") {
        return;
    }
    if let Some(role) = object.get_mut("roleRef").and_then(Value::as_object_mut)
        && role.get("apiGroup").is_none_or(|g| g.is_null() || g == "")
    {
        role.insert("apiGroup".into(), json!(GROUP));
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        let person = matches!(object::kind(subject), "User" | "Group");
        if let Some(subject) = subject.as_object_mut()
            && person
            && subject.get("apiGroup").is_none_or(|g| g.is_null() || g == "")
        {
            subject.insert("apiGroup".into(), json!(GROUP));
        }
    }
}

/// What is wrong with an object.
pub(crate) fn validate(kind: &str, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match kind {
        "Role" => rules(object, true, &mut errors),
        "ClusterRole" => {
            rules(object, false, &mut errors);
            aggregation(object, &mut errors);
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            role_ref(object, old, kind == "RoleBinding", &mut errors);
            subjects(object, kind == "RoleBinding", &mut errors);
        }
        _ => {}
    }
    errors
}

fn rules(object: &Value, namespaced: bool, errors: &mut Vec<FieldError>) {
    let all = object.get("rules").and_then(Value::as_array);
    for (i, rule) in all.into_iter().flatten().enumerate() {
        let field = |name: &str| format!("rules[{i}].{name}");
        let count = |name: &str| rule.get(name).and_then(Value::as_array).map_or(0, Vec::len);
        if count("verbs") == 0 {
            errors.push(FieldError::required(field("verbs"), "verbs must contain at least one value"));
        }
        if count("nonResourceURLs") > 0 {
            let urls = &rule["nonResourceURLs"];
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(field("nonResourceURLs"), urls, why));
            }
            if count("apiGroups") > 0 || count("resources") > 0 || count("resourceNames") > 0 {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(field("nonResourceURLs"), urls, why));
            }
            continue;
        }
        if count("apiGroups") == 0 {
            let why = "resource rules must supply at least one api group";
            errors.push(FieldError::required(field("apiGroups"), why));
        }
        if count("resources") == 0 {
            let why = "resource rules must supply at least one resource";
            errors.push(FieldError::required(field("resources"), why));
        }
    }
}

fn aggregation(object: &Value, errors: &mut Vec<FieldError>) {
    let Some(rule) = object.get("aggregationRule").filter(|r| r.is_object()) else { return };
    let field = "aggregationRule.clusterRoleSelectors";
    let selectors = rule.get("clusterRoleSelectors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(field, why));
    }
    for (i, selector) in selectors.iter().enumerate() {
        if let Err(error) = LabelSelector::from_object(selector) {
            errors.push(FieldError::invalid(format!("{field}[{i}]"), selector, &error.to_string()));
        }
    }
}

fn role_ref(object: &Value, old: Option<&Value>, namespaced: bool, errors: &mut Vec<FieldError>) {
    let text = |field: &str| object::str_at(object, &["roleRef", field]);
    if text("apiGroup") != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", &json!(text("apiGroup")), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text("kind")) {
        errors.push(FieldError::not_supported("roleRef.kind", &json!(text("kind")), kinds));
    }
    if text("name").is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for why in names::path_segment(text("name")) {
        errors.push(FieldError::invalid("roleRef.name", &json!(text("name")), &why));
    }
    if let Some(old) = old {
        let same = |field| object::str_at(old, &["roleRef", field]) == text(field);
        if !["apiGroup", "kind", "name"].into_iter().all(same) {
            errors.push(FieldError::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
        }
    }
}

fn subjects(object: &Value, namespaced: bool, errors: &mut Vec<FieldError>) {
    let all = object.get("subjects").and_then(Value::as_array);
    for (i, subject) in all.into_iter().flatten().enumerate() {
        let text = |field: &str| object::str_at(subject, &[field]);
        let field = |name: &str| format!("subjects[{i}].{name}");
        if text("name").is_empty() {
            errors.push(FieldError::required(field("name"), ""));
        }
        let (kind, group, name) = (text("kind"), text("apiGroup"), text("name"));
        match kind {
            "ServiceAccount" => {
                if !name.is_empty() {
                    for why in names::dns_subdomain(name) {
                        errors.push(FieldError::invalid(field("name"), &json!(name), &why));
                    }
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(field("apiGroup"), &json!(group), &[""]));
                }
                if !namespaced && text("namespace").is_empty() {
                    errors.push(FieldError::required(field("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.push(FieldError::not_supported(field("apiGroup"), &json!(group), &[GROUP]));
                }
            }
            _ => {
                let kinds = &["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(field("kind"), &json!(kind), kinds));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields and sentences of what is wrong.
    fn wrong(kind: &str, object: &Value, old: Option<&Value>) -> String {
        let mut object = object.clone();
        default(kind, &mut object);
        let all = validate(kind, &object, old);
        all.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_is_refused() {
        let urls = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        let mixed = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}]});
        let reader = json!({"kind": "ClusterRole", "name": "r"});
        let other = json!({"roleRef": {"kind": "ClusterRole", "name": "o", "apiGroup": GROUP}});
        let subject = |subject: Value| json!({"roleRef": reader, "subjects": [subject]});
        let cases: Vec<(&str, Value, Option<&Value>, &str)> = vec![
            (
                "Role",
                json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
                None,
                "",
            ),
            ("Role", json!({"rules": null}), None, ""),
            (
                "Role",
                json!({"rules": [{}]}),
                None,
                "rules[0].verbs: Required value: verbs must contain at least one value; \
                rules[0].apiGroups: Required value: resource rules must supply at least one api group; \
                rules[0].resources: Required value: resource rules must supply at least one resource",
            ),
            ("ClusterRole", urls.clone(), None, ""),
            (
                "Role",
                urls,
                None,
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ),
            (
                "ClusterRole",
                mixed,
                None,
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs",
            ),
            (
                "ClusterRole",
                json!({"aggregationRule": {}}),
                None,
                "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
            ),
            ("RoleBinding", json!({"roleRef": reader}), None, ""),
            ("RoleBinding", json!({"roleRef": {"kind": "Role", "name": "r"}}), None, ""),
            (
                "ClusterRoleBinding",
                json!({"roleRef": {"kind": "Role", "name": "r"}}),
                None,
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            ),
            (
                "RoleBinding",
                json!({"roleRef": {"kind": "Role", "apiGroup": "x"}}),
                None,
                "roleRef.apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"; roleRef.name: Required value",
            ),
            (
                "RoleBinding",
                json!({"roleRef": reader}),
                Some(&other),
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"r\"}: cannot change roleRef",
            ),
            ("RoleBinding", subject(json!({"kind": "User", "name": "joe"})), None, ""),
            ("RoleBinding", subject(json!({"kind": "ServiceAccount", "name": "a"})), None, ""),
            (
                "ClusterRoleBinding",
                subject(json!({"kind": "ServiceAccount", "name": "a"})),
                None,
                "subjects[0].namespace: Required value",
            ),
            (
                "RoleBinding",
                subject(json!({"kind": "ServiceAccount", "name": "a", "apiGroup": GROUP})),
                None,
                "subjects[0].apiGroup: Unsupported value: \"rbac.authorization.k8s.io\": supported values: \"\"",
            ),
            (
                "RoleBinding",
                subject(json!({"kind": "Robot"})),
                None,
                "subjects[0].name: Required value; subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
            ),
        ];
        for (kind, object, old, expected) in cases {
            assert_eq!(wrong(kind, &object, old), expected, "{kind} {object}");
        }
    }
}
