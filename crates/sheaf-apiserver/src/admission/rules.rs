//! Which requests a webhook or a policy wants to see. Pure.

use serde_json::Value;

/// One entry of a webhook's `rules`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    /// Of policies only; empty for any.
    names: Vec<String>,
    scope: String,
}

/// A request, as rules look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `CREATE`, ...
    pub(crate) operation: &'a str,
    /// API group of the resource.
    pub(crate) group: &'a str,
    /// Its version.
    pub(crate) version: &'a str,
    /// Its plural.
    pub(crate) resource: &'a str,
    /// The subresource, or empty.
    pub(crate) subresource: &'a str,
    /// Whether the object lives in a namespace.
    pub(crate) namespaced: bool,
    /// Its name; empty if it has none yet.
    pub(crate) name: &'a str,
}

/// Configurations of admission itself: no webhook sees them, or a broken one could never be mended.
const EXEMPT: &[&str] = &[
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

impl Asked<'_> {
    /// Whether no webhook may see the request.
    pub(crate) fn is_exempt(&self) -> bool {
        self.group == "admissionregistration.k8s.io" && EXEMPT.contains(&self.resource)
    }
}

impl Rule {
    /// Reads a rule.
    pub(crate) fn read(value: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            let all = value.get(key).and_then(Value::as_array).into_iter().flatten();
            all.filter_map(|v| v.as_str().map(String::from)).collect()
        };
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            names: list("resourceNames"),
            scope: value.get("scope").and_then(Value::as_str).unwrap_or("*").into(),
        }
    }

    /// Whether a request is one that the rule names.
    pub(crate) fn matches(&self, asked: Asked<'_>) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|l| l == "*" || l == value);
        any(&self.operations, asked.operation)
            && any(&self.groups, asked.group)
            && any(&self.versions, asked.version)
            && self.resources.iter().any(|r| names(r, asked))
            && (self.names.is_empty() || self.names.iter().any(|n| n == asked.name))
            && match self.scope.as_str() {
                "Namespaced" => asked.namespaced,
                "Cluster" => !asked.namespaced,
                _ => true,
            }
    }
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*`, `*/*`.
fn names(rule: &str, asked: Asked<'_>) -> bool {
    let (resource, subresource) = rule.split_once('/').unwrap_or((rule, ""));
    (resource == "*" || resource == asked.resource)
        && (subresource == "*" || subresource == asked.subresource)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(change: &Value) -> Rule {
        let mut whole = json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
            "resources": ["deployments"]});
        for (key, value) in change.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Rule::read(&whole)
    }

    const CREATE: Asked<'static> = Asked {
        operation: "CREATE",
        group: "apps",
        version: "v1",
        resource: "deployments",
        subresource: "",
        namespaced: true,
        name: "d",
    };

    #[test]
    fn rules_as_a_table() {
        let status = Asked { operation: "UPDATE", subresource: "status", ..CREATE };
        let all =
            json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]});
        for (change, asked, expected) in [
            (json!({}), CREATE, true),
            (json!({"operations": ["UPDATE", "DELETE"]}), CREATE, false),
            (json!({"operations": ["*"]}), CREATE, true),
            (json!({"apiGroups": [""]}), CREATE, false),
            (json!({"apiGroups": ["", "apps"]}), CREATE, true),
            (json!({"apiVersions": ["v2"]}), CREATE, false),
            (json!({"resources": ["*"]}), CREATE, true),
            (json!({"resources": ["deployments/*"]}), CREATE, true),
            (json!({"resources": ["deployments/status"]}), CREATE, false),
            (json!({"resources": []}), CREATE, false),
            (json!({"resourceNames": ["c", "d"]}), CREATE, true),
            (json!({"resourceNames": ["c"]}), CREATE, false),
            (json!({"operations": ["*"]}), status, false),
            (json!({"operations": ["*"], "resources": ["*"]}), status, false),
            (json!({"operations": ["*"], "resources": ["*/status"]}), status, true),
            (json!({"operations": ["*"], "resources": ["deployments/status"]}), status, true),
            (json!({"operations": ["*"], "resources": ["deployments/*"]}), status, true),
            (all.clone(), status, true),
            (json!({"scope": "Cluster"}), CREATE, false),
            (json!({"scope": "Namespaced"}), CREATE, true),
            (json!({"scope": "Cluster"}), Asked { namespaced: false, ..CREATE }, true),
            (json!({"scope": "Namespaced"}), Asked { namespaced: false, ..CREATE }, false),
            (json!({"scope": "*"}), Asked { namespaced: false, ..CREATE }, true),
        ] {
            assert_eq!(rule(&change).matches(asked), expected, "{change} {asked:?}");
        }
    }

    #[test]
    fn admission_itself_is_exempt() {
        let configuration = Asked {
            group: "admissionregistration.k8s.io",
            resource: "validatingwebhookconfigurations",
            ..CREATE
        };
        assert!(configuration.is_exempt() && !CREATE.is_exempt());
    }
}
