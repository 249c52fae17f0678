//! Who may sign in with a password: `admin`, and local users. Each is one Secret of `harvester-system`, so that whoever may
//! write Secrets there manages them with any client, and what they may do is RBAC's business alone.
//!
//! A local user NAME is the Secret `sheaf-user-NAME` of type `sheaf.io/local-user`: `password-hash` (argon2id as a PHC
//! string), `groups` (separated by commas) and `disabled` (`true`). Groups of the system are not given this way: they would
//! be rights without a binding that RBAC has looked at. Owns nothing.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sheaf_meta::status::Status;

use crate::{
    authn::{MASTERS, UserInfo},
    authz::Attributes,
    core::Core,
    internal,
};

/// The user that is there from the beginning, and may do everything.
pub(super) const ADMIN: &str = "admin";
/// Where the Secrets are.
const NAMESPACE: &str = "harvester-system";
const SECRETS: &str = "/api/v1/namespaces/harvester-system/secrets";
const ADMIN_SECRET: &str = "sheaf-admin";
const PREFIX: &str = "sheaf-user-";
const TYPE: &str = "sheaf.io/local-user";
const HASH: &str = "password-hash";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/rolebindings";
/// Namespaces that a session's answer names at most.
const NAMESPACES_MAX: usize = 200;

/// Somebody who can sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: UserInfo,
    /// The password's hash; one that cannot be read fits no password.
    pub(super) hash: String,
}

impl Account {
    /// What a session was opened on. Another password, or other groups, and it is another.
    pub(super) fn stamp(&self) -> String {
        let mut digest = Sha256::new();
        for part in [self.user.username.as_str(), &self.hash, &self.user.groups.join(",")] {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        crate::pki::hex(&digest.finalize())
    }
}

/// The Secret's name of a user, where the name can be one.
fn secret_name(username: &str) -> Option<String> {
    if username == ADMIN {
        return Some(ADMIN_SECRET.into());
    }
    let good = username.len() <= 200 && sheaf_meta::names::dns_subdomain(username).is_empty();
    good.then(|| format!("{PREFIX}{username}"))
}

/// What a Secret says of a user: none where the user may not sign in.
fn read(username: &str, secret: &Value) -> Option<Account> {
    let text = |key: &str| {
        let encoded = secret.pointer(&format!("/data/{key}")).and_then(Value::as_str).unwrap_or_default();
        String::from_utf8(STANDARD.decode(encoded).unwrap_or_default()).unwrap_or_default()
    };
    if username == ADMIN {
        return Some(Account { user: UserInfo::new(ADMIN, [MASTERS]), hash: text(HASH) });
    }
    if secret["type"] != TYPE || text("disabled") == "true" {
        return None;
    }
    let groups = text("groups");
    let groups = groups.split(',').map(str::trim).filter(|g| !g.is_empty() && !g.starts_with("system:"));
    let mut user = UserInfo::new(username, groups);
    user.uid = secret["metadata"]["uid"].as_str().unwrap_or_default().into();
    Some(Account { user, hash: text(HASH) })
}

/// The account of a user.
pub(super) async fn find(core: &Arc<Core>, username: &str) -> Result<Option<Account>, Status> {
    let Some(name) = secret_name(username) else { return Ok(None) };
    let secret = internal::get(core, &format!("{SECRETS}/{name}")).await?;
    Ok(secret.and_then(|s| read(username, &s)))
}

/// 403 for whoever may not write the Secrets that users are.
pub(super) async fn may_manage(core: &Arc<Core>, user: &UserInfo) -> Result<(), Status> {
    let what = |verb| Attributes { verb, resource: "secrets", namespace: NAMESPACE, ..Attributes::default() };
    if core.check(user, what("create")).is_ok() || core.check(user, what("patch")).is_ok() {
        return Ok(());
    }
    core.authorize(user, what("create")).await
}

/// Makes the administrator's Secret. The creation decides between two who come at the same time.
pub(super) async fn create_admin(core: &Arc<Core>, hash: &str) -> Result<(), Status> {
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": ADMIN_SECRET, "namespace": "harvester-system"},
        "data": {HASH: STANDARD.encode(hash)},
    });
    internal::call(core, Method::POST, SECRETS, "application/json", Some(&object)).await.map(|_| ())
}

/// Gives a user another password.
pub(super) async fn change(core: &Arc<Core>, username: &str, hash: &str) -> Result<(), Status> {
    let Some(name) = secret_name(username) else { return Err(Status::internal("no such account")) };
    let patch = json!({"data": {HASH: STANDARD.encode(hash)}});
    internal::merge(core, &format!("{SECRETS}/{name}"), &patch).await.map(|_| ())
}

/// Namespaces in which somebody has a role: those who may not list namespaces would not find theirs otherwise.
pub(super) async fn namespaces(core: &Arc<Core>, user: &UserInfo) -> Result<Vec<String>, Status> {
    let all = internal::call(core, Method::GET, BINDINGS, "application/json", None).await?;
    Ok(bound(&all, user))
}

fn bound(bindings: &Value, user: &UserInfo) -> Vec<String> {
    let names = |s: &Value| match s["kind"].as_str() {
        Some("User") => s["name"] == user.username.as_str(),
        // Everybody's bindings make no namespace somebody's own.
        Some("Group") => {
            s["name"].as_str().is_some_and(|g| user.in_group(g) && g != crate::authn::AUTHENTICATED)
        }
        _ => false,
    };
    let mut out: Vec<String> = bindings["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|b| b["subjects"].as_array().is_some_and(|all| all.iter().any(names)))
        .filter_map(|b| b["metadata"]["namespace"].as_str().map(String::from))
        .collect();
    out.sort();
    out.dedup();
    out.truncate(NAMESPACES_MAX);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(data: &[(&str, &str)]) -> Value {
        let data: serde_json::Map<String, Value> =
            data.iter().map(|(k, v)| ((*k).into(), STANDARD.encode(v).into())).collect();
        json!({"type": TYPE, "metadata": {"uid": "u-1"}, "data": data})
    }

    #[test]
    fn a_local_user_has_its_groups_and_none_of_the_systems() {
        let account = read("ann", &secret(&[(HASH, "h"), ("groups", "dev, system:masters,,ops")])).unwrap();
        assert_eq!(account.user.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!((account.user.uid.as_str(), account.hash.as_str()), ("u-1", "h"));
        assert_eq!(read("ann", &secret(&[(HASH, "h"), ("disabled", "true")])), None);
        assert_eq!(read("ann", &json!({"type": "Opaque", "data": {}})), None, "somebody else's Secret");
        assert_eq!(read("ann", &secret(&[])).unwrap().hash, "", "fits no password");
    }

    #[test]
    fn names_that_can_be_users() {
        assert_eq!(secret_name("ann.b").as_deref(), Some("sheaf-user-ann.b"));
        for bad in ["", "system:masters", "Ann", "a/b", "../x", &"a".repeat(300)] {
            assert_eq!(secret_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stamp_changes_with_password_and_groups() {
        let stamp = |data: &[(&str, &str)]| read("ann", &secret(data)).unwrap().stamp();
        let first = stamp(&[(HASH, "h"), ("groups", "dev")]);
        assert_eq!(first, stamp(&[("groups", "dev"), (HASH, "h")]));
        assert_ne!(first, stamp(&[(HASH, "i"), ("groups", "dev")]));
        assert_ne!(first, stamp(&[(HASH, "h")]));
    }

    #[test]
    fn where_somebody_has_a_role() {
        let binding = |namespace: &str, kind: &str, name: &str| json!({"metadata": {"namespace": namespace}, "subjects": [{"kind": kind, "name": name}]});
        let all = json!({"items": [
            binding("b", "User", "ann"), binding("a", "Group", "dev"), binding("b", "Group", "dev"),
            binding("c", "User", "bob"), binding("d", "ServiceAccount", "ann"), binding("e", "Group", "system:authenticated"),
            {"metadata": {"namespace": "f"}},
        ]});
        assert_eq!(bound(&all, &UserInfo::new("ann", ["dev"])), ["a", "b"]);
    }
}
