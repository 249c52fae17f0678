//! Who may do what: the question, the trait that answers it, and the sentence of a refusal.
//!
//! Not here: the answers themselves, which [`crate::rbac`] gives. Owns nothing.

use sheaf_meta::status::Status;

use crate::authn::UserInfo;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, for people.
    pub reason: String,
}

impl Decision {
    /// Yes.
    pub fn allow(reason: impl Into<String>) -> Self {
        Self { allowed: true, reason: reason.into() }
    }
    /// No.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

/// A rule over resources, as `SelfSubjectRulesReview` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceRule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// Groups, or `*`.
    pub groups: Vec<String>,
    /// Resources with subresources, or `*`.
    pub resources: Vec<String>,
    /// Names of objects; none means all.
    pub names: Vec<String>,
}

/// A rule over paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathRule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// Paths; a star at the end stands for any rest.
    pub paths: Vec<String>,
}

/// What somebody may do in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RulesOf {
    /// On resources.
    pub resources: Vec<ResourceRule>,
    /// On paths.
    pub paths: Vec<PathRule>,
    /// Whether there is more that cannot be written as rules, and why, or what failed.
    pub incomplete: bool,
    /// What could not be evaluated.
    pub error: String,
}

/// Decides. Synchronous: whatever it needs it keeps in memory.
pub trait Authorizer: Send + Sync {
    /// Whether `user` may do it.
    fn decide(&self, user: &UserInfo, what: Attributes<'_>) -> Decision;
    /// What `user` may do in a namespace, as far as it can be listed.
    fn rules(&self, user: &UserInfo, namespace: &str) -> RulesOf;
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Never(&'static str);

    impl Authorizer for Never {
        fn decide(&self, _: &UserInfo, _: Attributes<'_>) -> Decision {
            Decision::deny(self.0)
        }
        fn rules(&self, _: &UserInfo, _: &str) -> RulesOf {
            RulesOf::default()
        }
    }

    #[test]
    fn the_refusal_is_kubernetes_sentence() {
        let base = Attributes { verb: "get", resource: "pods", ..Attributes::default() };
        let joe = UserInfo::new("joe", []);
        for (what, reason, expected) in [
            (
                Attributes { namespace: "y", ..base },
                "",
                "pods is forbidden: User \"joe\" cannot get resource \"pods\" in API group \"\" in the namespace \"y\"",
            ),
            (
                Attributes { group: "apps", subresource: "status", name: "x", ..base },
                "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found",
                "pods.apps \"x\" is forbidden: User \"joe\" cannot get resource \"pods/status\" in API group \"apps\" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found",
            ),
            (
                Attributes { verb: "get", path: "/metrics", ..Attributes::default() },
                "",
                "forbidden: User \"joe\" cannot get path \"/metrics\"",
            ),
        ] {
            assert_eq!(check(&Never(reason), &joe, what).unwrap_err().message, expected);
        }
    }
}
