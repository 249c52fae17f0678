//! The audit policy: how much of which request is written down. Pure; the file's format is Kubernetes'.

use serde::Deserialize;

use super::Subject;

/// How much of a request is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and how it ended.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A moment of a request at which something may be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    /// It is known who asks for what.
    RequestReceived,
    /// The head of a stream's answer was sent.
    ResponseStarted,
    /// All was sent.
    ResponseComplete,
    /// The handler failed with a panic.
    Panic,
}

impl Stage {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "clients write it; nothing depends on it")]
    metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What a policy says about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) level: Level,
    pub(crate) omit_stages: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

impl Policy {
    /// Metadata of everything, once a request is done.
    pub(crate) fn plain() -> Self {
        let rule = Rule {
            level: Level::Metadata,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            paths: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        };
        Self {
            api_version: "audit.k8s.io/v1".into(),
            kind: "Policy".into(),
            metadata: serde_json::Value::Null,
            rules: vec![rule],
            omit_stages: vec![Stage::RequestReceived],
            omit_managed_fields: true,
        }
    }

    /// Reads a policy, YAML or JSON; what is wrong with it in words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(format!(
                "it is a {} of {}; expected a Policy of audit.k8s.io/v1",
                policy.kind, policy.api_version
            ));
        }
        if policy.rules.is_empty() {
            return Err("it has no rules".into());
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if of_resources && !rule.paths.is_empty() {
                return Err(format!(
                    "rules[{i}].nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs"
                ));
            }
            for path in &rule.paths {
                let inner = path.strip_suffix('*').unwrap_or(path);
                if path != "*" && (!path.starts_with('/') || inner.contains('*')) {
                    return Err(format!(
                        "rules[{i}].nonResourceURLs: {path:?} must begin with a slash, and may have a star at its end only"
                    ));
                }
            }
            for resources in &rule.resources {
                if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                    return Err(format!(
                        "rules[{i}].resources: using resourceNames requires at least one resource"
                    ));
                }
            }
        }
        Ok(policy)
    }

    /// What the first rule that fits says; nothing is written down where none does.
    pub(crate) fn extent(&self, subject: &Subject<'_>) -> Extent {
        let rule = self.rules.iter().find(|rule| rule.fits(subject));
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(rule.into_iter().flat_map(|r| &r.omit_stages));
        Extent {
            level: rule.map_or(Level::None, |r| r.level),
            omit_stages,
            omit_managed_fields: rule.and_then(|r| r.omit_managed_fields).unwrap_or(self.omit_managed_fields),
        }
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == item)
}

impl Rule {
    fn fits(&self, subject: &Subject<'_>) -> bool {
        let what = &subject.what;
        let who = (self.users.is_empty() || has(&self.users, &subject.user.username))
            && (self.user_groups.is_empty() || subject.user.groups.iter().any(|g| has(&self.user_groups, g)));
        if !who || !(self.verbs.is_empty() || has(&self.verbs, what.verb)) {
            return false;
        }
        let is_path = what.resource.is_empty();
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return !is_path
                && (self.namespaces.is_empty() || has(&self.namespaces, what.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.fits(subject)));
        }
        if !self.paths.is_empty() {
            let fits = |rule: &String| {
                rule == "*"
                    || rule == what.path
                    || rule.strip_suffix('*').is_some_and(|start| what.path.starts_with(start))
            };
            return is_path && self.paths.iter().any(fits);
        }
        true
    }
}

impl Resources {
    fn fits(&self, subject: &Subject<'_>) -> bool {
        let what = &subject.what;
        if self.group != what.group {
            return false;
        }
        let named = self.resource_names.is_empty() || has(&self.resource_names, what.name);
        let fits = |rule: &String| match rule.split_once('/') {
            None => rule == "*" || (rule == what.resource && what.subresource.is_empty()),
            Some(("*", sub)) => sub == what.subresource,
            Some((resource, "*")) => resource == what.resource,
            Some((resource, sub)) => resource == what.resource && sub == what.subresource,
        };
        self.resources.is_empty() || (named && self.resources.iter().any(fits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authn::UserInfo, authz::Attributes};

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:apiserver"]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Metadata
  resources:
  - group: ""
    resources: ["secrets", "serviceaccounts/token"]
- level: RequestResponse
  omitManagedFields: false
  omitStages: [ResponseStarted]
  namespaces: ["default"]
  verbs: ["create", "update"]
  resources:
  - group: kubevirt.io
    resources: ["virtualmachines/*"]
- level: Request
  resources:
  - group: ""
    resources: ["configmaps"]
    resourceNames: ["settings"]
- level: Request
  userGroups: ["auditors"]
"#;

    #[test]
    fn the_first_rule_that_fits_counts() {
        let policy = Policy::parse(POLICY).unwrap();
        let (joe, ann) = (UserInfo::new("joe", []), UserInfo::new("ann", ["auditors"]));
        let server = UserInfo::new("system:apiserver", []);
        let base = Attributes { verb: "create", namespace: "default", ..Attributes::default() };
        let vm = Attributes { group: "kubevirt.io", resource: "virtualmachines", ..base };
        for (user, what, expected) in [
            (&joe, Attributes { resource: "secrets", ..base }, Level::Metadata),
            (&joe, Attributes { resource: "secrets", subresource: "x", ..base }, Level::None),
            (&server, Attributes { resource: "secrets", ..base }, Level::None),
            (&joe, Attributes { resource: "serviceaccounts", subresource: "token", ..base }, Level::Metadata),
            (&joe, vm, Level::RequestResponse),
            (&joe, Attributes { subresource: "status", ..vm }, Level::RequestResponse),
            (&joe, Attributes { namespace: "other", ..vm }, Level::None),
            (&joe, Attributes { verb: "get", ..vm }, Level::None),
            (&joe, Attributes { resource: "configmaps", name: "settings", ..base }, Level::Request),
            (&joe, Attributes { resource: "configmaps", name: "other", ..base }, Level::None),
            (&ann, Attributes { resource: "configmaps", name: "other", ..base }, Level::Request),
            (&ann, Attributes { verb: "get", path: "/healthz/ping", ..Attributes::default() }, Level::None),
            (&ann, Attributes { verb: "get", path: "/metrics", ..Attributes::default() }, Level::Request),
        ] {
            assert_eq!(policy.extent(&Subject { user, what }).level, expected, "{} {what:?}", user.username);
        }
        let extent = policy.extent(&Subject { user: &joe, what: vm });
        assert_eq!(extent.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(!extent.omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy() {
        let with = |rules: &str| format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}\n");
        for (text, expected) in [
            (with("[]"), "no rules"),
            (
                "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\n".into(),
                "expected a Policy of audit.k8s.io/v1",
            ),
            (with("[{level: Everything}]"), "Everything"),
            (with("[{level: None, verb: [get]}]"), "verb"),
            (with("[{level: None, namespaces: [a], nonResourceURLs: [/x]}]"), "rules[0].nonResourceURLs"),
            (with("[{level: None, nonResourceURLs: [x]}]"), "must begin with a slash"),
            (with("[{level: None, resources: [{resourceNames: [a]}]}]"), "requires at least one resource"),
            (with("[{level: None, omitStages: [Never]}]"), "Never"),
        ] {
            let why = Policy::parse(&text).err().unwrap_or_default();
            assert!(why.contains(expected), "{text}: {why}");
        }
    }
}
