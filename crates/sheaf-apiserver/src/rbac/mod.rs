//! Who may do what, by roles and bindings ([`index`]), and by a rule of its own for nodes ([`node`]).
//!
//! [`Access`] keeps in memory whatever a decision needs, and follows the store's changes, so that no decision waits for
//! a disk; what somebody wrote counts at once for whoever asks [`Access::settle`] first. It also knows the service
//! accounts, whose tokens fall with them. Not here: who somebody is ([`crate::authn`], [`crate::tokens`]).
//!
//! Who owns the state: the objects are the store's; the memory of them is changed by one task ([`feed`]) only.

mod aggregate;
mod escalation;
mod feed;
mod index;
pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod reconcile;
mod rules;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use serde_json::{Value, json};
use sheaf_store::{Revision, Store, StoreError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use aggregate::{aggregate, encode, keep_aggregated};
pub(crate) use escalation::Escalation;
use index::{Grant, Index, RoleRef};
use rules::PolicyRule;
pub(crate) use rules::quoted;

use crate::{
    authn::{MASTERS, UserInfo},
    authz::{Attributes, Authorizer, Decision, PathRule, ResourceRule, RulesOf},
};

/// The API group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// How long a decision waits for what was written just now.
const SETTLE: Duration = Duration::from_secs(2);

/// A service account, as far as its tokens depend on it.
#[derive(Debug, Default)]
struct Account {
    uid: String,
    /// When its deletion began, if it has.
    deleted: String,
}

/// What decisions are made from.
#[derive(Debug, Default)]
struct Memory {
    index: Index,
    graph: node::Graph,
    /// The service accounts, by namespace and name.
    accounts: HashMap<(String, String), Account>,
}

/// The authorizer. Cheap to share.
pub(crate) struct Access {
    store: Arc<dyn Store>,
    memory: RwLock<Memory>,
    node_rules: Vec<PolicyRule>,
    /// Everything up to this revision is in the memory.
    reached: watch::Sender<Revision>,
    /// Some cluster role has changed.
    roles_changed: Notify,
}

impl Access {
    /// Reads what there is, and follows the store until `stop`.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let access = Arc::new(Self {
            store,
            memory: RwLock::default(),
            node_rules: node::rules(),
            reached: watch::Sender::new(Revision(0)),
            roles_changed: Notify::new(),
        });
        let watch = feed::load(&access).await?;
        let following = feed::follow(access.clone(), watch);
        tokio::spawn(async move { stop.run_until_cancelled(following).await });
        Ok(access)
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits (for a bounded time) until all that was written before the call is known here. Costs nothing while
    /// nothing is being written.
    pub(crate) async fn settle(&self) {
        let Ok(now) = self.store.revision().await else { return };
        if *self.reached.borrow() >= now {
            return;
        }
        let mut reached = self.reached.subscribe();
        // Late news make a decision stale by so much, and nothing worse: they come from one's own store.
        if tokio::time::timeout(SETTLE, reached.wait_for(|r| *r >= now)).await.is_err() {
            tracing::warn!("decisions on access are behind the store's changes");
        }
    }

    /// A service account; of the object only uid and deletion.
    pub(crate) fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let memory = self.memory();
        let account = memory.accounts.get(&(namespace.to_owned(), name.to_owned()))?;
        let mut object = json!({"metadata": {"uid": account.uid}});
        if !account.deleted.is_empty() {
            object["metadata"]["deletionTimestamp"] = json!(account.deleted);
        }
        Some(object)
    }

    /// All rules that somebody holds in a namespace (or the cluster), and what could not be found out.
    fn held(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let memory = self.memory();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        memory.index.visit(user, namespace, |grant| {
            match grant {
                Grant::Rule { rule, .. } => rules.push(rule.clone()),
                Grant::Missing(what) => errors.push(what),
            }
            false
        });
        (rules, errors)
    }

    /// The rules of a role, if it is there.
    fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        self.memory().index.role(role, namespace).map(|r| r.rules.clone())
    }

    fn by_roles(&self, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        let memory = self.memory();
        let (mut allowed, mut errors) = (None, Vec::new());
        memory.index.visit(user, what.namespace, |grant| match grant {
            Grant::Rule { rule, by } if rule.allows(what) => {
                allowed = Some(Decision::allow(format!("RBAC: allowed by {by}")));
                true
            }
            Grant::Rule { .. } => false,
            Grant::Missing(what) => {
                errors.push(what);
                false
            }
        });
        allowed.unwrap_or_else(|| match aggregate_errors(errors) {
            errors if errors.is_empty() => Decision::deny(""),
            errors => Decision::deny(format!("RBAC: {errors}")),
        })
    }
}

/// Several errors as one, as Kubernetes writes them.
fn aggregate_errors(mut errors: Vec<String>) -> String {
    let mut seen = std::collections::HashSet::new();
    errors.retain(|e| seen.insert(e.clone()));
    match errors.len() {
        0 => String::new(),
        1 => errors.remove(0),
        _ => format!("[{}]", errors.join(", ")),
    }
}

impl Authorizer for Access {
    fn decide(&self, user: &UserInfo, what: Attributes<'_>) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let node = match user.node() {
            Some(node) => node::decide(&self.memory().graph, &self.node_rules, node, &what),
            None => Decision::deny(""),
        };
        if node.allowed {
            return node;
        }
        let roles = self.by_roles(user, &what);
        if roles.allowed {
            return roles;
        }
        let reasons: Vec<String> =
            [node.reason, roles.reason].into_iter().filter(|r| !r.is_empty()).collect();
        Decision::deny(reasons.join("\n"))
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> RulesOf {
        let (held, errors) = self.held(user, namespace);
        let mut out = RulesOf { error: aggregate_errors(errors), ..RulesOf::default() };
        if user.node().is_some() {
            out.incomplete = true;
            out.error = "node authorizer does not support user rule resolution".into();
        }
        for rule in held {
            if !rule.resources.is_empty() {
                out.resources.push(ResourceRule {
                    verbs: rule.verbs.clone(),
                    groups: rule.groups,
                    resources: rule.resources,
                    names: rule.names,
                });
            }
            if !rule.urls.is_empty() {
                out.paths.push(PathRule { verbs: rule.verbs, paths: rule.urls });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{BOOTSTRAPPERS, NODES};
    use index::Kind;
    use sheaf_meta::object;
    use sheaf_store::sqlite::{Options, SqliteStore};

    /// The authorizer with the roles that every cluster has.
    async fn access(dir: &std::path::Path) -> Arc<Access> {
        let store = SqliteStore::open(&dir.join("state.db"), &Options::default()).unwrap();
        let access = Access::start(Arc::new(store), CancellationToken::new()).await.unwrap();
        let mut memory = access.memory.write().unwrap();
        for spec in policy::roles() {
            memory.index.put(Kind::Role, spec.namespace, spec.name, &spec.object());
        }
        for spec in policy::bindings() {
            memory.index.put(Kind::Binding, spec.namespace, spec.name, &spec.object());
        }
        for _ in 0..3 {
            for plan in memory.index.plan_aggregation() {
                let mut object = policy::roles().iter().find(|r| r.name == plan.name).unwrap().object();
                object["rules"] = plan.rules.iter().map(PolicyRule::to_json).collect();
                memory.index.put(Kind::Role, "", &plan.name, &object);
            }
        }
        assert_eq!(memory.index.plan_aggregation(), [], "two steps are enough: view, edit, admin");
        for role in ["admin", "edit", "view"] {
            let user = [("kind", "User"), ("name", role)].map(|(k, v)| (k.to_string(), v.into()));
            let mut binding = serde_json::json!({"roleRef": {"kind": "ClusterRole", "name": role}});
            binding["subjects"] = serde_json::json!([serde_json::Map::from_iter(user)]);
            object::set_name(&mut binding, role);
            memory.index.put(Kind::Binding, "ns", role, &binding);
        }
        drop(memory);
        access
    }

    #[tokio::test]
    async fn who_may_what() {
        let dir = tempfile::tempdir().unwrap();
        let access = access(dir.path()).await;
        let user = |name: &str, groups: &[&str]| UserInfo::new(name, groups.iter().copied());
        let (root, joe) = (user("root", &[MASTERS]), user("joe", &[]));
        let (admin, edit, view) = (user("admin", &[]), user("edit", &[]), user("view", &[]));
        let (node, joiner) = (user("system:node:n", &[NODES]), user("system:bootstrap:a", &[BOOTSTRAPPERS]));
        let controllers = user("system:sheaf-controllers", &[]);
        let nobody = UserInfo::anonymous();
        // Who, verb, GROUP/RESOURCE, namespace, and whether it is allowed.
        let cases: &[(&UserInfo, &str, &str, &str, bool)] = &[
            (&root, "delete", "x/y", "", true),
            (&joe, "create", "authorization.k8s.io/selfsubjectaccessreviews", "", true),
            (&joe, "create", "authorization.k8s.io/subjectaccessreviews", "", false),
            (&joe, "get", "/pods", "ns", false),
            (&joe, "get", "/configmaps", "harvester-public", true),
            (&joe, "get", "kubevirt.io/kubevirts", "", true),
            (&admin, "create", "rbac.authorization.k8s.io/roles", "ns", true),
            (&admin, "create", "rbac.authorization.k8s.io/roles", "other", false),
            (&admin, "create", "rbac.authorization.k8s.io/clusterroles", "", false),
            (&admin, "update", "/resourcequotas", "ns", false),
            (&admin, "get", "/secrets", "ns", true),
            (&admin, "create", "/pods", "ns", true),
            (&admin, "deletecollection", "kubevirt.io/virtualmachines", "ns", true),
            (&edit, "create", "kubevirt.io/virtualmachines", "ns", true),
            (&edit, "deletecollection", "kubevirt.io/virtualmachines", "ns", false),
            (&edit, "update", "subresources.kubevirt.io/virtualmachines/start", "ns", true),
            (&edit, "get", "subresources.kubevirt.io/virtualmachineinstances/vnc", "ns", true),
            (&edit, "create", "/serviceaccounts/token", "ns", true),
            (&edit, "create", "rbac.authorization.k8s.io/roles", "ns", false),
            (&edit, "create", "harvesterhci.io/virtualmachineimages", "ns", true),
            (&view, "list", "kubevirt.io/virtualmachines", "ns", true),
            (&view, "create", "kubevirt.io/virtualmachines", "ns", false),
            (&view, "update", "subresources.kubevirt.io/virtualmachines/start", "ns", false),
            (&view, "get", "subresources.kubevirt.io/virtualmachineinstances/vnc", "ns", false),
            (&view, "get", "subresources.kubevirt.io/virtualmachineinstances/guestosinfo", "ns", true),
            (&node, "patch", "/nodes/status", "", true),
            (&node, "delete", "/nodes", "", false),
            (&node, "list", "/secrets", "", false),
            (&node, "create", "kubevirt.io/virtualmachines", "ns", false),
            (&joiner, "create", "certificates.k8s.io/certificatesigningrequests", "", true),
            (&joiner, "get", "/secrets", "kube-system", false),
            (&joiner, "patch", "/nodes/status", "", false),
            (&controllers, "delete", "any.io/things", "ns", true),
            (&controllers, "impersonate", "/users", "", false),
            (&controllers, "escalate", "rbac.authorization.k8s.io/clusterroles", "", false),
            (&nobody, "get", "/pods", "ns", false),
        ];
        for (user, verb, resource, namespace, expected) in cases {
            let (group, resource) = resource.split_once('/').unwrap();
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let what = Attributes { verb, group, resource, subresource, namespace, name: "", path: "" };
            let decision = access.decide(user, what);
            assert_eq!(
                decision.allowed, *expected,
                "{} {verb} {group}/{resource}/{subresource} in {namespace:?}",
                user.username
            );
        }
        for (user, path, expected) in [
            (&nobody, "/healthz", true),
            (&nobody, "/readyz", true),
            (&nobody, "/version", true),
            (&nobody, "/healthzz", false),
            (&nobody, "/apis", false),
            (&joe, "/apis/apps/v1", true),
            (&joe, "/openapi/v2", true),
            (&joe, "/metrics", false),
            (&joe, "/openid/v1/jwks", false),
            (&root, "/metrics", true),
        ] {
            let what = Attributes { verb: "get", path, ..Attributes::default() };
            assert_eq!(access.decide(user, what).allowed, expected, "{} {path}", user.username);
        }
        let what =
            Attributes { verb: "get", resource: "configmaps", namespace: "ns", ..Attributes::default() };
        assert_eq!(
            access.decide(&view, what).reason,
            "RBAC: allowed by RoleBinding \"view/ns\" of ClusterRole \"view\" to User \"view\""
        );
        let rules = access.rules(&joe, "default");
        assert!(
            !rules.incomplete && rules.paths.iter().any(|p| p.paths.contains(&"/api".into())),
            "{rules:?}"
        );
    }
}
