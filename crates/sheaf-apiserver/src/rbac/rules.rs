//! Rules of roles: what one allows, and which of some rules are not covered by others (the escalation check).
//!
//! Pure. The measure is Kubernetes' RBAC: a rule is a product of verbs, groups, resources and names, and covering is
//! decided on its single factors.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::authz::Attributes;

/// Stands for all verbs, groups, resources or paths.
pub(crate) const ALL: &str = "*";
/// Single permissions that one check looks at; beyond this the rest counts as not covered.
const MAX_PRODUCT: usize = 100_000;

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PolicyRule {
    /// `get`, ..., or `*`.
    pub(crate) verbs: Vec<String>,
    /// API groups, or `*`.
    pub(crate) groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, or `*`.
    pub(crate) resources: Vec<String>,
    /// Names of objects; none means all.
    pub(crate) names: Vec<String>,
    /// Paths that are no resources.
    pub(crate) urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == item)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|v| v.as_str().map(String::from)).collect()
}

impl PolicyRule {
    /// From an object's JSON. What is of another type counts as absent; validation refuses it.
    pub(crate) fn from_json(rule: &Value) -> Self {
        Self {
            verbs: strings(rule.get("verbs")),
            groups: strings(rule.get("apiGroups")),
            resources: strings(rule.get("resources")),
            names: strings(rule.get("resourceNames")),
            urls: strings(rule.get("nonResourceURLs")),
        }
    }

    /// All rules of a role.
    pub(crate) fn list(role: &Value) -> Vec<Self> {
        let rules = role.get("rules").and_then(Value::as_array).into_iter().flatten();
        rules.map(Self::from_json).collect()
    }

    /// As an object has it: `verbs` always, the rest where it says something.
    pub(crate) fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !list.is_empty() {
                out.insert(key.into(), json!(list));
            }
        }
        out.insert("verbs".into(), json!(self.verbs));
        Value::Object(out)
    }

    /// Whether the rule allows it.
    pub(crate) fn allows(&self, what: &Attributes<'_>) -> bool {
        let verb = has(&self.verbs, ALL) || has(&self.verbs, what.verb);
        if what.resource.is_empty() {
            return verb && self.urls.iter().any(|url| url_matches(url, what.path));
        }
        verb && (has(&self.groups, ALL) || has(&self.groups, what.group))
            && self.resources.iter().any(|r| resource_matches(r, what.resource, what.subresource))
            && (self.names.is_empty() || has(&self.names, what.name))
    }

    /// The single permissions that the rule is the product of.
    fn single(&self) -> Vec<Self> {
        let one = |s: &String| vec![s.clone()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.urls {
                out.push(Self { verbs: one(verb), urls: one(url), ..Self::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let rule = Self {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    match self.names.as_slice() {
                        [] => out.push(rule),
                        names => out.extend(names.iter().map(|n| Self { names: one(n), ..rule.clone() })),
                    }
                    if out.len() > MAX_PRODUCT {
                        return out;
                    }
                }
            }
        }
        out
    }

    /// Whether this rule includes a single permission.
    fn covers(&self, other: &Self) -> bool {
        let all = |mine: &[String], theirs: &[String]| has(mine, ALL) || theirs.iter().all(|x| has(mine, x));
        let resource = |r: &String| {
            has(&self.resources, r)
                || r.split_once('/').is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
        };
        let names = match other.names.is_empty() {
            true => self.names.is_empty(),
            false => self.names.is_empty() || other.names.iter().all(|n| has(&self.names, n)),
        };
        all(&self.verbs, &other.verbs)
            && all(&self.groups, &other.groups)
            && (has(&self.resources, ALL) || other.resources.iter().all(resource))
            && other.urls.iter().all(|theirs| self.urls.iter().any(|mine| url_matches(mine, theirs)))
            && names
    }

    /// The form in which refusals name a rule.
    fn describe(&self) -> String {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.iter().filter(|(_, list)| !list.is_empty());
        let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// A list as Kubernetes' messages write it: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|s| format!("{s:?}")).collect();
    format!("[{}]", items.join(" "))
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == ALL || rule == path || rule.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

fn resource_matches(rule: &str, resource: &str, sub: &str) -> bool {
    if rule == ALL {
        return true;
    }
    match (rule.split_once('/'), sub) {
        (None, "") => rule == resource,
        (Some((r, s)), sub) if !sub.is_empty() => s == sub && (r == ALL || r == resource),
        _ => false,
    }
}

/// The single permissions of `wanted` that `held` does not include.
pub(crate) fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let uncovered = |rule: &PolicyRule| -> Vec<PolicyRule> {
        // Most rules are held as they are; then there is no need to take them apart.
        if held.iter().any(|h| h.covers(rule)) {
            return Vec::new();
        }
        let mut single = rule.single();
        single.retain(|one| !held.iter().any(|h| h.covers(one)));
        single
    };
    wanted.iter().flat_map(uncovered).collect()
}

/// Puts single permissions together again that differ in their verbs only, and names them, sorted.
pub(crate) fn describe(rules: &[PolicyRule]) -> String {
    let mut joined: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let same = |other: &&mut PolicyRule| {
            rule.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.names)
                    == (&other.groups, &other.resources, &other.names)
        };
        match joined.iter_mut().find(same) {
            Some(there) => there.verbs.extend(rule.verbs.iter().cloned()),
            None => joined.push(rule.clone()),
        }
    }
    let lines: BTreeSet<String> = joined.iter().map(PolicyRule::describe).collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(|w| if w == "core" { String::new() } else { w.into() }).collect()
    }

    pub(crate) fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
        PolicyRule {
            verbs: words(verbs),
            groups: words(groups),
            resources: words(resources),
            names: words(names),
            urls: Vec::new(),
        }
    }

    fn urls(verbs: &str, urls: &str) -> PolicyRule {
        PolicyRule { verbs: words(verbs), urls: words(urls), ..PolicyRule::default() }
    }

    #[test]
    fn what_a_rule_allows() {
        // Rule; then verb, group, resource/subresource, name, and whether it is allowed.
        let cases = [
            (rule("get", "core", "pods", ""), "get", "", "pods", "x", true),
            (rule("get", "core", "pods", ""), "list", "", "pods", "", false),
            (rule("get", "core", "pods", ""), "get", "apps", "pods", "x", false),
            (rule("get", "core", "pods", ""), "get", "", "pods/log", "x", false),
            (rule("get", "core", "pods/log", ""), "get", "", "pods", "x", false),
            (rule("get", "core", "pods/log", ""), "get", "", "pods/log", "x", true),
            (rule("*", "*", "*", ""), "delete", "any.io", "things/status", "x", true),
            (rule("*", "*", "*", "x"), "delete", "any.io", "things", "y", false),
            (rule("update", "apps", "*/scale", ""), "update", "apps", "deployments/scale", "x", true),
            (rule("update", "apps", "*/scale", ""), "update", "apps", "deployments", "x", false),
            (rule("update", "apps", "*/scale", ""), "update", "apps", "deployments/status", "x", false),
            (rule("get", "core", "pods", "x y"), "get", "", "pods", "y", true),
            (rule("list", "core", "pods", "x"), "list", "", "pods", "", false),
            (urls("get", "*"), "get", "", "pods", "x", false),
        ];
        for (rule, verb, group, resource, name, expected) in cases {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let what = Attributes { verb, group, resource, subresource, name, ..Attributes::default() };
            assert_eq!(rule.allows(&what), expected, "{rule:?} {what:?}");
        }
        for (rule, path, expected) in [
            (urls("get", "/healthz"), "/healthz", true),
            (urls("get", "/healthz"), "/healthz/ping", false),
            (urls("get", "/healthz/*"), "/healthz/ping", true),
            (urls("get", "/healthz/*"), "/healthz", false),
            (urls("get", "*"), "/metrics", true),
            (rule("*", "*", "*", ""), "/metrics", false),
        ] {
            let what = Attributes { verb: "get", path, ..Attributes::default() };
            assert_eq!(rule.allows(&what), expected, "{rule:?} {path}");
        }
    }

    #[test]
    fn what_is_held_and_what_is_missing() {
        let pods = rule("get list", "core apps", "pods pods/log", "");
        // Held, wanted, what is missing in the words of a refusal.
        let cases = [
            (vec![pods.clone()], pods.clone(), ""),
            (vec![rule("*", "*", "*", "")], pods.clone(), ""),
            (vec![rule("*", "*", "*", "")], urls("get", "/x"), r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#),
            (vec![urls("*", "*")], urls("get", "/x/*"), ""),
            (vec![urls("get", "/x/*")], urls("get", "/x/y/*"), ""),
            (vec![urls("get", "/x")], urls("get", "/x/*"), r#"{NonResourceURLs:["/x/*"], Verbs:["get"]}"#),
            (
                vec![rule("get", "core", "pods", "")],
                rule("get list delete", "core", "pods", ""),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "delete"]}"#,
            ),
            (
                vec![rule("get", "core", "pods", "a")],
                rule("get", "core", "pods", "a b"),
                r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["b"], Verbs:["get"]}"#,
            ),
            (
                vec![rule("get", "core", "pods", "a")],
                rule("get", "core", "pods", ""),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#,
            ),
            (vec![rule("get", "core", "pods", "")], rule("get", "core", "pods", "a"), ""),
            (vec![rule("get", "*", "*/scale", "")], rule("get", "apps", "deployments/scale", ""), ""),
            (
                vec![rule("get", "*", "*/scale", "")],
                rule("get", "apps", "deployments", ""),
                r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}"#,
            ),
            (
                vec![rule("get list watch", "*", "*", "")],
                rule("*", "core", "pods", ""),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#,
            ),
            (
                vec![rule("get", "core", "pods", ""), rule("list", "core", "pods", "")],
                rule("get list", "core", "pods", ""),
                "",
            ),
        ];
        for (held, wanted, expected) in cases {
            assert_eq!(
                describe(&missing(&held, std::slice::from_ref(&wanted))),
                expected,
                "{held:?} {wanted:?}"
            );
        }
    }

    #[test]
    fn a_huge_product_is_bounded_and_not_covered() {
        let many = |prefix: &str| (0..600).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let wanted =
            PolicyRule { verbs: many("v"), groups: many("g"), resources: many("r"), ..PolicyRule::default() };
        assert!(!missing(&[rule("get", "core", "pods", "")], &[wanted]).is_empty());
    }

    #[test]
    fn json_and_back() {
        for rule in [rule("get", "core", "pods", "a"), urls("get", "/x")] {
            assert_eq!(PolicyRule::from_json(&rule.to_json()), rule);
        }
    }
}
