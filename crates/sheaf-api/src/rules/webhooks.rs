//! Validating- and MutatingWebhookConfigurations: what is held to be right. What is filled in stands in the table of
//! types; match conditions are looked at where they are evaluated.

use serde_json::{Value, json};
use sheaf_meta::{names, selector::LabelSelector, status::FieldError};

use super::{Problems, list, text};

/// What holds for both kinds.
pub(super) fn validate(object: &Value, _: Option<&Value>, problems: &mut Problems) {
    let mut seen = Vec::new();
    for (i, webhook) in list(object, "/webhooks").iter().enumerate() {
        let at = format!("webhooks[{i}]");
        let name = text(webhook, "/name");
        validate_name(problems, &format!("{at}.name"), name);
        if seen.contains(&name) {
            problems.duplicate(format!("{at}.name"), name);
        }
        seen.push(name);
        one(problems, &at, webhook);
    }
}

fn validate_name(problems: &mut Problems, at: &str, name: &str) {
    if name.is_empty() {
        return problems.required(at, "");
    }
    problems.name(at, name, names::dns_subdomain);
    if name.split('.').count() < 3 {
        problems.invalid(at, name, "should be a domain with at least three segments separated by dots");
    }
}

fn one(problems: &mut Problems, at: &str, webhook: &Value) {
    for (i, rule) in list(webhook, "/rules").iter().enumerate() {
        validate_rule(problems, &format!("{at}.rules[{i}]"), rule);
    }
    for (field, allowed) in [
        ("failurePolicy", &["Fail", "Ignore"]),
        ("matchPolicy", &["Equivalent", "Exact"]),
        ("reinvocationPolicy", &["IfNeeded", "Never"]),
    ] {
        problems.one_of(format!("{at}.{field}"), text(webhook, &format!("/{field}")), allowed);
    }
    match text(webhook, "/sideEffects") {
        "" => problems.required(format!("{at}.sideEffects"), "must specify one of None, NoneOnDryRun"),
        given => problems.one_of(format!("{at}.sideEffects"), given, &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = webhook.get("timeoutSeconds").and_then(Value::as_i64)
        && !(1..=30).contains(&seconds)
    {
        problems.invalid(
            format!("{at}.timeoutSeconds"),
            seconds,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(Err(why)) = webhook.get(field).map(LabelSelector::from_object) {
            problems.invalid(format!("{at}.{field}"), webhook[field].clone(), why);
        }
    }
    validate_versions(problems, &format!("{at}.admissionReviewVersions"), webhook);
    validate_client(problems, &format!("{at}.clientConfig"), &webhook["clientConfig"]);
}

fn validate_versions(problems: &mut Problems, at: &str, webhook: &Value) {
    let versions = list(webhook, "/admissionReviewVersions");
    if versions.is_empty() {
        return problems.required(at, "must specify one of v1, v1beta1");
    }
    let mut seen = Vec::new();
    for (i, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        problems.name(&format!("{at}[{i}]"), version, names::dns1035_label);
        if seen.contains(&version) {
            problems.invalid(format!("{at}[{i}]"), version, "duplicate version");
        }
        seen.push(version);
    }
    if !seen.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        problems.invalid(at, json!(seen), "must include at least one of v1, v1beta1");
    }
}

fn validate_rule(problems: &mut Problems, at: &str, rule: &Value) {
    for (field, what) in
        [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
    {
        let all: Vec<&str> = list(rule, &format!("/{field}")).iter().filter_map(Value::as_str).collect();
        let at = format!("{at}.{field}");
        if all.is_empty() {
            problems.required(&at, "");
        }
        if all.len() > 1 && all.contains(&"*") {
            problems.invalid(&at, json!(all), format!("if '*' is present, must not specify other {what}"));
        }
        for (i, value) in all.iter().enumerate() {
            let at = format!("{at}[{i}]");
            match field {
                "operations" => {
                    let allowed = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
                    if !allowed.contains(value) {
                        problems.list.push(FieldError::not_supported(at, &json!(value), &allowed));
                    }
                }
                "apiVersions" if value.is_empty() => problems.required(at, ""),
                _ => {}
            }
        }
    }
    let at_resources = format!("{at}.resources");
    let resources: Vec<&str> = list(rule, "/resources").iter().filter_map(Value::as_str).collect();
    if resources.is_empty() {
        problems.required(&at_resources, "");
    }
    for (i, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            problems.required(format!("{at_resources}[{i}]"), "");
        }
        let (name, sub) = resource.split_once('/').unwrap_or((resource, ""));
        // One that another in the list contains already is most likely a mistake.
        let contained = |other: &str| {
            other != *resource
                && match other.split_once('/') {
                    Some(("*", "*")) => true,
                    Some(("*", s)) => !sub.is_empty() && s == sub,
                    Some((n, "*")) => n == name && !sub.is_empty(),
                    Some(_) => false,
                    None => other == "*" && sub.is_empty(),
                }
        };
        if let Some(other) = resources.iter().find(|other| contained(other)) {
            let why = format!("if '{other}' is present, must not specify {resource}");
            problems.invalid(format!("{at_resources}[{i}]"), *resource, why);
        }
    }
    problems.one_of(format!("{at}.scope"), text(rule, "/scope"), &["*", "Cluster", "Namespaced"]);
}

fn validate_client(problems: &mut Problems, at: &str, client: &Value) {
    let url = client.get("url").and_then(Value::as_str);
    let service = client.get("service").filter(|s| s.is_object());
    match (url, service) {
        (Some(url), None) => validate_url(problems, &format!("{at}.url"), url),
        (None, Some(service)) => validate_service(problems, &format!("{at}.service"), service),
        _ => problems.required(at, "exactly one of url or service is required"),
    }
}

fn validate_url(problems: &mut Problems, at: &str, url: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest.split_once('/').map_or((rest, String::new()), |(h, p)| (h, format!("/{p}")));
    let mut wrong = |value: &str, why: &str| problems.invalid(at, value, format!("{why}{FORM}"));
    if scheme != "https" {
        wrong(scheme, "'https' is the only allowed URL scheme");
    }
    if host.is_empty() {
        wrong(host, "host must be specified");
    }
    if let Some((user, _)) = host.split_once('@') {
        wrong(user, "user information is not permitted in URL");
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        wrong(fragment, "fragments are not permitted in URL");
    }
    if let Some((_, query)) = path.split_once('?') {
        wrong(query, "query parameters are not permitted in URL");
    }
}

fn validate_service(problems: &mut Problems, at: &str, service: &Value) {
    for field in ["name", "namespace"] {
        if text(service, &format!("/{field}")).is_empty() {
            problems.required(format!("{at}.{field}"), &format!("service {field} is required"));
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    if !(1..=65535).contains(&port) {
        problems.invalid(
            format!("{at}.port"),
            port,
            "port is not valid: must be between 1 and 65535, inclusive",
        );
    }
    let path = text(service, "/path");
    if !path.is_empty() && !path.starts_with('/') {
        problems.invalid(format!("{at}.path"), path, "must start with a '/'");
    }
    if path.contains("//") {
        problems.invalid(format!("{at}.path"), path, "segment may not be empty");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(change: &Value) -> Value {
        let mut webhook = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            webhook[key] = value.clone();
        }
        json!({"webhooks": [webhook]})
    }

    #[test]
    fn rules_as_a_table() {
        let rule = |change: Value| {
            let mut rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
            for (key, value) in change.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            json!({"rules": [rule]})
        };
        let url = |url: &str| json!({"clientConfig": {"url": url}});
        for (change, field, part) in [
            (json!({}), "", ""),
            (json!({"name": ""}), "webhooks[0].name", "Required"),
            (json!({"name": "a.b"}), "webhooks[0].name", "at least three segments"),
            (json!({"sideEffects": ""}), "webhooks[0].sideEffects", "Required"),
            (json!({"sideEffects": "Some"}), "webhooks[0].sideEffects", "Unsupported"),
            (json!({"failurePolicy": "X"}), "webhooks[0].failurePolicy", "\"Fail\", \"Ignore\""),
            (json!({"timeoutSeconds": 31}), "webhooks[0].timeoutSeconds", "between 1 and 30"),
            (json!({"admissionReviewVersions": []}), "webhooks[0].admissionReviewVersions", "Required"),
            (
                json!({"admissionReviewVersions": ["v2"]}),
                "webhooks[0].admissionReviewVersions",
                "at least one of",
            ),
            (json!({"clientConfig": {}}), "webhooks[0].clientConfig", "exactly one"),
            (url("http://h/p"), "webhooks[0].clientConfig.url", "only allowed URL scheme"),
            (url("https://"), "webhooks[0].clientConfig.url", "host must be specified"),
            (url("https://u@h/p"), "webhooks[0].clientConfig.url", "user information"),
            (url("https://h/p?q"), "webhooks[0].clientConfig.url", "query parameters"),
            (url("https://h/p"), "", ""),
            (
                json!({"clientConfig": {"service": {"name": "s"}}}),
                "webhooks[0].clientConfig.service.namespace",
                "Required",
            ),
            (
                json!({"objectSelector": {"matchExpressions": [{"key": "a", "operator": "X"}]}}),
                "webhooks[0].objectSelector",
                "",
            ),
            (rule(json!({"operations": []})), "webhooks[0].rules[0].operations", "Required"),
            (
                rule(json!({"operations": ["*", "CREATE"]})),
                "webhooks[0].rules[0].operations",
                "if '*' is present",
            ),
            (rule(json!({"operations": ["PATCH"]})), "webhooks[0].rules[0].operations[0]", "Unsupported"),
            (
                rule(json!({"resources": ["*", "pods"]})),
                "webhooks[0].rules[0].resources[1]",
                "if '*' is present",
            ),
            (rule(json!({"resources": ["pods", "pods/status"]})), "", ""),
            (rule(json!({"scope": "All"})), "webhooks[0].rules[0].scope", "Unsupported"),
        ] {
            let mut problems = Problems::default();
            validate(&configuration(&change), None, &mut problems);
            match field {
                "" => assert_eq!(problems.list, [], "{change}"),
                field => {
                    let found = problems.list.iter().find(|e| e.field == field);
                    assert!(found.is_some_and(|e| e.message.contains(part)), "{change}: {:?}", problems.list);
                }
            }
        }
        let mut twice = configuration(&json!({}));
        let copy = twice["webhooks"][0].clone();
        twice["webhooks"].as_array_mut().expect("a list").push(copy);
        let mut problems = Problems::default();
        validate(&twice, None, &mut problems);
        assert_eq!(problems.list[0].reason, "FieldValueDuplicate");
    }
}
