//! Who may do what: one trait, and the first simple answer to it. RBAC will be another implementation.

use sheaf_meta::status::Status;

use crate::authn::{BOOTSTRAPPERS, MASTERS, NODES, UserInfo};

/// One thing somebody wants to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, ...
    pub verb: &'a str,
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural; empty if `path` is set.
    pub resource: &'a str,
    /// `status`, `console`, ... or empty.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources and for all namespaces.
    pub namespace: &'a str,
    /// Empty for collections.
    pub name: &'a str,
    /// A path that is no resource, such as `/healthz`.
    pub path: &'a str,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, for people.
    pub reason: String,
}

/// A rule as `SelfSubjectRulesReview` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceRule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// Groups, or `*`.
    pub groups: Vec<String>,
    /// Resources with subresources, or `*`.
    pub resources: Vec<String>,
}

/// Decides. Synchronous: whatever it needs it keeps in memory.
pub trait Authorizer: Send + Sync {
    /// Whether `user` may do it.
    fn decide(&self, user: &UserInfo, what: Attributes<'_>) -> Decision;
    /// What `user` may do in a namespace, as far as it can be listed.
    fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<ResourceRule>;
}

/// 403 with Kubernetes' sentence, or nothing.
pub fn check(authorizer: &dyn Authorizer, user: &UserInfo, what: Attributes<'_>) -> Result<(), Status> {
    let decision = authorizer.decide(user, what);
    if decision.allowed {
        return Ok(());
    }
    let mut why = sentence(user, what);
    if !decision.reason.is_empty() {
        why = format!("{why}: {}", decision.reason);
    }
    if what.resource.is_empty() {
        let mut status = Status::new(403, "Forbidden", format!("forbidden: {why}"));
        status.details.kind = String::new();
        return Err(status);
    }
    let r = sheaf_meta::status::ResourceRef { group: what.group, plural: what.resource };
    Err(Status::forbidden(r, what.name, &why))
}

fn sentence(user: &UserInfo, what: Attributes<'_>) -> String {
    if what.resource.is_empty() {
        return format!("User \"{}\" cannot {} path \"{}\"", user.username, what.verb, what.path);
    }
    let resource = match what.subresource {
        "" => what.resource.to_string(),
        sub => format!("{}/{sub}", what.resource),
    };
    let place = match what.namespace {
        "" => "at the cluster scope".to_string(),
        ns => format!("in the namespace \"{ns}\""),
    };
    format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
        user.username, what.verb, what.group
    )
}

/// Masters may do all, nodes what agents need, joiners ask for certificates; everybody may ask about themselves.
pub struct Simple;

/// What an agent writes: group, resource (with subresource), verbs.
const NODE_WRITES: &[(&str, &[&str], &[&str])] = &[
    ("", &["nodes", "nodes/status"], &["create", "update", "patch"]),
    ("coordination.k8s.io", &["leases"], &["create", "update", "patch", "delete"]),
    ("", &["events"], &["create", "update", "patch"]),
    ("events.k8s.io", &["events"], &["create", "update", "patch"]),
    ("kubevirt.io", &["virtualmachineinstances", "virtualmachineinstances/status"], &["update", "patch"]),
    ("", &["persistentvolumeclaims", "persistentvolumeclaims/status"], &["update", "patch"]),
    ("", &["persistentvolumes", "persistentvolumes/status"], &["create", "update", "patch", "delete"]),
    ("harvesterhci.io", &["virtualmachineimages", "virtualmachineimages/status"], &["update", "patch"]),
    ("certificates.k8s.io", &["certificatesigningrequests"], &["create"]),
    (
        "snapshot.kubevirt.io",
        &["virtualmachinesnapshotcontents", "virtualmachinesnapshotcontents/status"],
        &["update", "patch"],
    ),
    ("", &["serviceaccounts/token"], &["create"]),
];

const READS: &[&str] = &["get", "list", "watch"];
const REVIEWS: &[&str] = &["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

impl Simple {
    fn table(user: &UserInfo) -> Vec<ResourceRule> {
        let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| ResourceRule {
            verbs: verbs.iter().map(ToString::to_string).collect(),
            groups: groups.iter().map(ToString::to_string).collect(),
            resources: resources.iter().map(ToString::to_string).collect(),
        };
        let mut rules = Vec::new();
        if user.is_anonymous() {
            return rules;
        }
        rules.push(rule(&["authorization.k8s.io", "authentication.k8s.io"], REVIEWS, &["create"]));
        if user.in_group(MASTERS) {
            rules.push(rule(&["*"], &["*"], &["*"]));
        }
        if user.in_group(NODES) && user.username.starts_with("system:node:") {
            // Agents watch kinds of every area (machines, networks, storage); which ones changes with each release.
            rules.push(rule(&["*"], &["*"], READS));
            rules
                .extend(NODE_WRITES.iter().map(|(group, resources, verbs)| rule(&[group], resources, verbs)));
        }
        if user.in_group(BOOTSTRAPPERS) {
            let verbs = ["create", "get", "list", "watch"];
            rules.push(rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &verbs));
        }
        rules
    }
}

/// Open to everybody, as `system:public-info-viewer` makes them.
pub const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/cacerts"];

fn is_public(path: &str) -> bool {
    PUBLIC_PATHS.iter().any(|p| path == *p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/')))
}

impl Authorizer for Simple {
    fn decide(&self, user: &UserInfo, what: Attributes<'_>) -> Decision {
        if what.resource.is_empty() {
            // Discovery and OpenAPI are for everyone who is known.
            let discovery = ["/api", "/apis", "/openapi"]
                .iter()
                .any(|p| what.path == *p || what.path.starts_with(&format!("{p}/")));
            let allowed = is_public(what.path)
                || (!user.is_anonymous() && discovery && what.verb == "get")
                || user.in_group(MASTERS);
            return Decision { allowed, reason: String::new() };
        }
        let resource = match what.subresource {
            "" => what.resource.to_string(),
            sub => format!("{}/{sub}", what.resource),
        };
        let has = |list: &[String], item: &str| list.iter().any(|x| x == "*" || x == item);
        let allowed = Self::table(user)
            .iter()
            .any(|r| has(&r.verbs, what.verb) && has(&r.groups, what.group) && has(&r.resources, &resource));
        Decision { allowed, reason: String::new() }
    }

    fn rules(&self, user: &UserInfo, _namespace: &str) -> Vec<ResourceRule> {
        Self::table(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_what() {
        let admin = UserInfo::new("a", [MASTERS]);
        let node = UserInfo::new("system:node:n", [NODES]);
        let joiner = UserInfo::new("system:bootstrap:abcdef", [BOOTSTRAPPERS]);
        let nobody = UserInfo::anonymous();
        let plain = UserInfo::new("joe", []);
        for (user, verb, group, resource, sub, expected) in [
            (&admin, "delete", "x", "y", "", true),
            (&node, "patch", "", "nodes", "status", true),
            (&node, "delete", "", "nodes", "", false),
            (&node, "get", "", "secrets", "", true),
            (&node, "create", "kubevirt.io", "virtualmachines", "", false),
            (&joiner, "create", "certificates.k8s.io", "certificatesigningrequests", "", true),
            (&joiner, "get", "", "secrets", "", false),
            (&plain, "create", "authorization.k8s.io", "selfsubjectaccessreviews", "", true),
            (&plain, "get", "", "pods", "", false),
            (&nobody, "get", "", "pods", "", false),
        ] {
            let what = Attributes { verb, group, resource, subresource: sub, ..Attributes::default() };
            assert_eq!(
                Simple.decide(user, what).allowed,
                expected,
                "{} {verb} {resource}/{sub}",
                user.username
            );
        }
        for (user, path, expected) in [
            (&nobody, "/healthz", true),
            (&nobody, "/livez/ping", true),
            (&nobody, "/healthzz", false),
            (&nobody, "/apis", false),
            (&plain, "/apis/apps/v1", true),
            (&plain, "/metrics", false),
        ] {
            let what = Attributes { verb: "get", path, ..Attributes::default() };
            assert_eq!(Simple.decide(user, what).allowed, expected, "{} {path}", user.username);
        }
    }

    #[test]
    fn the_refusal_is_kubernetes_sentence() {
        let what = Attributes { verb: "get", resource: "pods", namespace: "y", ..Attributes::default() };
        let status = check(&Simple, &UserInfo::new("x", []), what).unwrap_err();
        assert_eq!(
            status.message,
            "pods is forbidden: User \"x\" cannot get resource \"pods\" in API group \"\" in the namespace \"y\""
        );
    }
}
