//! What webhooks and policies of `admissionregistration.k8s.io` have in common: which requests they want to see
//! ([`rules`], [`constraint`]), what they read to decide ([`read`]), how their configurations are kept compiled ([`compiled`]), and what expressions are told
//! of a request.
//!
//! Not here: what they do with a request, which is theirs.

pub(crate) mod compiled;
pub(crate) mod constraint;
pub(crate) mod read;
pub(crate) mod rules;

use serde_json::Value;
use sheaf_cel::authorizer::{Decision, Question};
use sheaf_meta::{object, selector::LabelSelector};

use crate::{authn::UserInfo, authz::Attributes, core::Core};

/// The API group of all of them.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";

/// A text of a configuration, empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A list of a configuration.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A label selector of a configuration; all where there is none.
pub(crate) fn selector(value: &Value, key: &str) -> Result<LabelSelector, String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(LabelSelector::everything()),
        Some(selector) => LabelSelector::from_object(selector).map_err(|e| format!("{key}: {e}")),
    }
}

/// The namespace that an object is in, or is itself.
pub(crate) fn namespace_of(is_namespace: bool, object: &Value) -> &str {
    if is_namespace { object::name(object) } else { object::namespace(object) }
}

/// The server's authorizer, as expressions ask it.
pub(crate) struct Asker<'a> {
    pub(crate) core: &'a Core,
    pub(crate) user: &'a UserInfo,
}

impl sheaf_cel::authorizer::Authorizer for Asker<'_> {
    fn check(&self, question: &Question) -> Decision {
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let groups =
                ["system:serviceaccounts".to_string(), format!("system:serviceaccounts:{namespace}")];
            let name = format!("system:serviceaccount:{namespace}:{name}");
            UserInfo::new(&name, groups.iter().map(String::as_str))
        });
        let what = Attributes {
            verb: &question.verb,
            group: &question.group,
            resource: &question.resource,
            subresource: &question.subresource,
            namespace: &question.namespace,
            name: &question.name,
            path: &question.path,
        };
        let decision = self.core.authorizer.decide(account.as_ref().unwrap_or(self.user), what);
        Decision { allowed: decision.allowed, reason: decision.reason, error: String::new() }
    }
}
