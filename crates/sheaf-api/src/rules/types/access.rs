//! Rules of roles and their bindings. Words as Kubernetes' own validation has them. Not here: who may give what, which is
//! decided by the API server.

use serde_json::Value;
use sheaf_meta::{names, selector::LabelSelector};

use super::super::Problems;
use super::At;

/// The API group of roles, and of the users and groups in bindings.
const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn role(at: &At<'_>, problems: &mut Problems) {
    let cluster = at.get("/metadata/namespace").is_none();
    for (i, rule) in at.list("/rules").iter().enumerate() {
        let field = |name: &str| format!("rules[{i}].{name}");
        let has = |key: &str| rule[key].as_array().is_some_and(|l| !l.is_empty());
        if !has("verbs") {
            problems.required(field("verbs"), "verbs must contain at least one value");
        }
        if has("nonResourceURLs") {
            let mut refuse =
                |why| problems.invalid(field("nonResourceURLs"), rule["nonResourceURLs"].clone(), why);
            if !cluster {
                refuse("namespaced rules cannot apply to non-resource URLs");
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                refuse("rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if !has("apiGroups") {
            problems.required(field("apiGroups"), "resource rules must supply at least one api group");
        }
        if !has("resources") {
            problems.required(field("resources"), "resource rules must supply at least one resource");
        }
    }
    if at.get("/aggregationRule").is_some_and(Value::is_object) {
        aggregation(at, problems);
    }
}

fn aggregation(at: &At<'_>, problems: &mut Problems) {
    let field = "aggregationRule.clusterRoleSelectors";
    let selectors = at.list("/aggregationRule/clusterRoleSelectors");
    if selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        problems.required(field, why);
    }
    for (i, selector) in selectors.iter().enumerate() {
        if let Err(error) = LabelSelector::from_object(selector) {
            problems.invalid(format!("{field}[{i}]"), selector.clone(), error);
        }
    }
}

pub(super) fn binding(at: &At<'_>, problems: &mut Problems) {
    let namespaced = at.get("/metadata/namespace").is_some();
    let (group, kind, name) =
        (at.text("/roleRef/apiGroup"), at.text("/roleRef/kind"), at.text("/roleRef/name"));
    problems.one_of("roleRef.apiGroup", group, &[RBAC]);
    if !namespaced && kind == "Role" {
        problems.one_of("roleRef.kind", kind, &["ClusterRole"]);
    }
    if !name.is_empty() {
        problems.name("roleRef.name", name, names::path_segment);
    }
    if at.changed("/roleRef") {
        problems.invalid("roleRef", at.get("/roleRef").cloned().unwrap_or_default(), "cannot change roleRef");
    }
    for (i, subject) in at.list("/subjects").iter().enumerate() {
        let field = |name: &str| format!("subjects[{i}].{name}");
        let text = |name: &str| subject[name].as_str().unwrap_or_default();
        match text("kind") {
            "ServiceAccount" => {
                if !text("name").is_empty() {
                    problems.name(&field("name"), text("name"), names::dns_subdomain);
                }
                problems.one_of(field("apiGroup"), text("apiGroup"), &[""]);
                // In a namespace, an account without one is of that namespace.
                if !namespaced && text("namespace").is_empty() {
                    problems.required(field("namespace"), "");
                }
            }
            "User" | "Group" => problems.one_of(field("apiGroup"), text("apiGroup"), &[RBAC]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    /// The fields and sentences of what is wrong with an object, after defaulting.
    fn wrong(kind: &str, mut object: Value, old: Option<&Value>) -> String {
        let found = crate::kinds().into_iter().find(|k| k.kind == kind && k.group == super::RBAC);
        let Some(found) = found else { panic!("{kind} is not served") };
        if !kind.starts_with("Cluster") {
            object["metadata"] = json!({"namespace": "ns"});
        }
        found.rules.default(&mut object, old);
        let all = found.rules.validate(&object, old);
        all.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_is_refused() {
        let urls = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        let mixed = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}]});
        let reader = json!({"kind": "ClusterRole", "name": "r"});
        let group = super::RBAC;
        let other = json!({"metadata": {"namespace": "ns"}, "roleRef": {"kind": "ClusterRole", "name": "o", "apiGroup": group}});
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
                json!({"roleRef": {"kind": "Role", "name": "a/b", "apiGroup": "x"}}),
                None,
                "roleRef.apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"; \
                roleRef.name: Invalid value: \"a/b\": may not contain '/'",
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
                subject(json!({"kind": "ServiceAccount", "name": "a", "apiGroup": group})),
                None,
                "subjects[0].apiGroup: Unsupported value: \"rbac.authorization.k8s.io\": supported values: \"\"",
            ),
            (
                "RoleBinding",
                subject(json!({"kind": "User", "name": "a", "apiGroup": "x"})),
                None,
                "subjects[0].apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"",
            ),
        ];
        for (kind, object, old, expected) in cases {
            assert_eq!(wrong(kind, object.clone(), old), expected, "{kind} {object}");
        }
    }
}
