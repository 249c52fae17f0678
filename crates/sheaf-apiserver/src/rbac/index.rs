//! Roles and bindings, ready for decisions: who is bound to which role where.
//!
//! Pure: a map that is told of objects as they come and go. Who feeds it: [`super::Rbac`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use sheaf_meta::{object, selector::LabelSelector};

use super::rules::PolicyRule;
use crate::authn::{UserInfo, service_account_name};

/// A Role or ClusterRole.
#[derive(Debug, Default)]
pub(crate) struct Role {
    pub(crate) rules: Vec<PolicyRule>,
    /// Of cluster roles: what others collect them by.
    labels: Vec<(String, String)>,
    /// Of cluster roles that collect others: one of these has to match.
    collects: Option<Vec<LabelSelector>>,
}

/// Somebody in a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    /// `u` and the user's name, or `g` and the group's.
    key: String,
    /// `User "joe"`, `ServiceAccount "robot/default"`.
    described: String,
}

/// Which role a binding gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl RoleRef {
    pub(crate) fn of(binding: &Value) -> Self {
        let text = |field: &str| object::str_at(binding, &["roleRef", field]).to_owned();
        Self { kind: text("kind"), name: text("name") }
    }

    /// The sentence of its absence.
    pub(crate) fn not_found(&self) -> String {
        format!("{}.rbac.authorization.k8s.io \"{}\" not found", self.kind.to_lowercase(), self.name)
    }
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
struct Binding {
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// What belongs to one namespace, or (under the empty name) to the cluster.
#[derive(Debug, Default)]
struct Scope {
    roles: BTreeMap<String, Role>,
    bindings: BTreeMap<String, Binding>,
    /// Bindings by the keys of their subjects.
    bound: HashMap<String, BTreeSet<String>>,
}

/// Which of the two an object is, from its key in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Role,
    Binding,
}

/// All roles and bindings.
#[derive(Debug, Default)]
pub(crate) struct Index {
    scopes: HashMap<String, Scope>,
}

/// One thing that a user has by a binding.
pub(crate) enum Grant<'a> {
    /// A rule, and by what.
    Rule {
        rule: &'a PolicyRule,
        /// Says the sentence of how the user comes to it.
        by: Way<'a>,
    },
    /// The binding names a role that is not there.
    Missing(String),
}

/// How somebody comes to a rule.
pub(crate) struct Way<'a> {
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
    subject: &'a Subject,
}

impl std::fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = &self.binding.role;
        match self.namespace {
            "" => write!(f, "ClusterRoleBinding \"{}\"", self.name)?,
            ns => write!(f, "RoleBinding \"{}/{ns}\"", self.name)?,
        }
        write!(f, " of {} \"{}\" to {}", role.kind, role.name, self.subject.described)
    }
}

/// What an aggregated cluster role should have instead of what it has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Aggregation {
    pub(crate) name: String,
    pub(crate) rules: Vec<PolicyRule>,
}

impl Index {
    /// Takes in an object, new or changed.
    pub(crate) fn put(&mut self, kind: Kind, namespace: &str, name: &str, object: &Value) {
        self.remove(kind, namespace, name);
        let scope = self.scopes.entry(namespace.to_owned()).or_default();
        match kind {
            Kind::Role => drop(scope.roles.insert(name.to_owned(), role(namespace, object))),
            Kind::Binding => {
                let binding = Binding { role: RoleRef::of(object), subjects: subjects(object, namespace) };
                for subject in &binding.subjects {
                    scope.bound.entry(subject.key.clone()).or_default().insert(name.to_owned());
                }
                scope.bindings.insert(name.to_owned(), binding);
            }
        }
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        let Some(scope) = self.scopes.get_mut(namespace) else { return };
        match kind {
            Kind::Role => drop(scope.roles.remove(name)),
            Kind::Binding => {
                let Some(old) = scope.bindings.remove(name) else { return };
                for subject in old.subjects {
                    if let Some(names) = scope.bound.get_mut(&subject.key) {
                        names.remove(name);
                        if names.is_empty() {
                            scope.bound.remove(&subject.key);
                        }
                    }
                }
            }
        }
        if scope.roles.is_empty() && scope.bindings.is_empty() {
            self.scopes.remove(namespace);
        }
    }

    /// Shows what a user has, for the cluster and then in a namespace (if not empty), until `enough`.
    pub(crate) fn visit<'a>(
        &'a self,
        user: &UserInfo,
        namespace: &'a str,
        mut enough: impl FnMut(Grant<'a>) -> bool,
    ) {
        let keys: Vec<String> = std::iter::once(format!("u{}", user.username))
            .chain(user.groups.iter().map(|g| format!("g{g}")))
            .collect();
        for place in std::iter::once("").chain((!namespace.is_empty()).then_some(namespace)) {
            let Some(scope) = self.scopes.get(place) else { continue };
            let names: BTreeSet<&String> =
                keys.iter().filter_map(|key| scope.bound.get(key)).flatten().collect();
            for name in names {
                let Some(binding) = scope.bindings.get(name) else { continue };
                let Some(subject) = binding.subjects.iter().find(|s| keys.contains(&s.key)) else { continue };
                match self.role(&binding.role, place) {
                    None => {
                        if enough(Grant::Missing(binding.role.not_found())) {
                            return;
                        }
                    }
                    Some(role) => {
                        for rule in &role.rules {
                            let by = Way { namespace: place, name, binding, subject };
                            if enough(Grant::Rule { rule, by }) {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    /// The role that a binding of a namespace means.
    pub(crate) fn role(&self, role: &RoleRef, namespace: &str) -> Option<&Role> {
        let place = if role.kind == "Role" { namespace } else { "" };
        self.scopes.get(place)?.roles.get(&role.name)
    }

    /// Aggregated cluster roles whose rules are not what they collect.
    pub(crate) fn plan_aggregation(&self) -> Vec<Aggregation> {
        let Some(cluster) = self.scopes.get("") else { return Vec::new() };
        let mut plans = Vec::new();
        for (name, role) in &cluster.roles {
            let Some(selectors) = &role.collects else { continue };
            let mut rules: Vec<PolicyRule> = Vec::new();
            for selector in selectors {
                let matching =
                    cluster.roles.iter().filter(|(n, other)| *n != name && other.matches(selector));
                for rule in matching.flat_map(|(_, other)| &other.rules) {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
            if rules != role.rules {
                plans.push(Aggregation { name: name.clone(), rules });
            }
        }
        plans
    }
}

impl Role {
    fn matches(&self, selector: &LabelSelector) -> bool {
        let get = |key: &str| self.labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        selector.matches_by(get)
    }
}

fn role(namespace: &str, object: &Value) -> Role {
    let mut role = Role { rules: PolicyRule::list(object), ..Role::default() };
    if namespace.is_empty() {
        let labels = object::labels(object);
        role.labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let selectors = object.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
        role.collects = selectors.map(|list| {
            // One that cannot be read collects nothing.
            list.iter()
                .map(|s| LabelSelector::from_object(s).unwrap_or_else(|_| LabelSelector::nothing()))
                .collect()
        });
    }
    role
}

fn subjects(binding: &Value, namespace: &str) -> Vec<Subject> {
    let all = binding.get("subjects").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|subject| {
        let text = |field: &str| object::str_at(subject, &[field]);
        let (kind, name) = (text("kind"), text("name"));
        let described = format!("{kind} \"{name}\"");
        match kind {
            "User" => Some(Subject { key: format!("u{name}"), described }),
            "Group" => Some(Subject { key: format!("g{name}"), described }),
            "ServiceAccount" => {
                let place = if text("namespace").is_empty() { namespace } else { text("namespace") };
                let key = format!("u{}", service_account_name(place, name));
                let described = format!("{kind} \"{name}/{place}\"");
                (!place.is_empty()).then_some(Subject { key, described })
            }
            _ => None,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
        json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects})
    }

    fn pods(verb: &str) -> Value {
        json!({"rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]})
    }

    /// Who gets what, as `VERB by WAY`, and what is missing.
    fn of(index: &Index, user: &UserInfo, namespace: &str) -> Vec<String> {
        let mut all = Vec::new();
        index.visit(user, namespace, |grant| {
            all.push(match grant {
                Grant::Rule { rule, by } => format!("{} by {by}", rule.verbs.join(",")),
                Grant::Missing(what) => what,
            });
            false
        });
        all
    }

    #[test]
    fn bindings_reach_users_groups_and_service_accounts() {
        let mut index = Index::default();
        index.put(Kind::Role, "", "reader", &pods("get"));
        index.put(Kind::Role, "a", "writer", &pods("create"));
        let joe = json!([{"kind": "User", "name": "joe"}, {"kind": "Group", "name": "staff"}]);
        index.put(Kind::Binding, "", "all", &binding("ClusterRole", "reader", &joe));
        let robot = json!([{"kind": "ServiceAccount", "name": "robot"}, {"kind": "User", "name": "joe"}]);
        index.put(Kind::Binding, "a", "w", &binding("Role", "writer", &robot));
        index.put(
            Kind::Binding,
            "a",
            "gone",
            &binding("ClusterRole", "gone", &json!([{"kind": "User", "name": "ann"}])),
        );

        let cluster = "get by ClusterRoleBinding \"all\" of ClusterRole \"reader\" to";
        let here = "create by RoleBinding \"w/a\" of Role \"writer\" to";
        for (user, namespace, expected) in [
            (UserInfo::new("joe", []), "", vec![format!("{cluster} User \"joe\"")]),
            (UserInfo::new("joe", []), "b", vec![format!("{cluster} User \"joe\"")]),
            (
                UserInfo::new("joe", []),
                "a",
                vec![format!("{cluster} User \"joe\""), format!("{here} User \"joe\"")],
            ),
            (UserInfo::new("eve", ["staff"]), "a", vec![format!("{cluster} Group \"staff\"")]),
            (UserInfo::new("staff", ["joe"]), "a", vec![]),
            (
                UserInfo::service_account("a", "robot", ""),
                "a",
                vec![format!("{here} ServiceAccount \"robot/a\"")],
            ),
            (UserInfo::service_account("b", "robot", ""), "a", vec![]),
            (
                UserInfo::new("ann", []),
                "a",
                vec!["clusterrole.rbac.authorization.k8s.io \"gone\" not found".into()],
            ),
        ] {
            assert_eq!(of(&index, &user, namespace), expected, "{} in {namespace:?}", user.username);
        }

        // A changed binding loses those that it no longer names, a removed one all.
        index.put(Kind::Binding, "", "all", &binding("ClusterRole", "reader", &json!([])));
        assert_eq!(of(&index, &UserInfo::new("eve", ["staff"]), ""), [""; 0]);
        index.remove(Kind::Binding, "a", "w");
        assert_eq!(of(&index, &UserInfo::new("joe", []), "a"), [""; 0]);
    }

    #[test]
    fn aggregated_roles_collect_what_their_selectors_match() {
        let labelled = |verb: &str| {
            let mut role = pods(verb);
            role["metadata"] = json!({"labels": {"to": "all"}});
            role
        };
        let mut index = Index::default();
        let selector = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]});
        index.put(
            Kind::Role,
            "",
            "sum",
            &json!({"aggregationRule": selector, "metadata": {"labels": {"to": "all"}}}),
        );
        index.put(Kind::Role, "", "b", &labelled("list"));
        index.put(Kind::Role, "", "a", &labelled("get"));
        index.put(Kind::Role, "", "c", &labelled("get"));
        index.put(Kind::Role, "", "other", &pods("delete"));
        let plan = index.plan_aggregation();
        let verbs: Vec<&str> = plan[0].rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!((plan.len(), plan[0].name.as_str(), &verbs[..]), (1, "sum", &["get", "list"][..]));
        let rules: Vec<Value> = plan[0].rules.iter().map(PolicyRule::to_json).collect();
        index.put(Kind::Role, "", "sum", &json!({"aggregationRule": selector, "rules": rules}));
        assert_eq!(index.plan_aggregation(), [], "what is right is left alone");
        index.remove(Kind::Role, "", "b");
        assert_eq!(index.plan_aggregation()[0].rules.len(), 1);
    }
}
