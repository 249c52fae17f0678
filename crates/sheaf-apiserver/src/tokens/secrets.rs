//! Tokens that are kept in Secrets of type `kubernetes.io/service-account-token`: filled in when such a Secret appears, and
//! removed when its account is gone.
//!
//! In the API server's process, so that the signing key leaves it for nobody. Level-triggered: at start and after a lost
//! watch it looks at all Secrets, in between at those that change.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_store::{Change, Entry, Revision, StoreError};

use super::{
    Tokens,
    claims::{Bound, Claims, Ref},
};
use crate::{core::Core, internal};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
const SECRETS: &str = "/registry/core/secrets/";
const ACCOUNTS: &str = "/registry/core/serviceaccounts/";
const PAGE: u64 = 500;
/// After a failure everything is looked at again.
const RETRY: Duration = Duration::from_secs(2);

/// The token that a Secret holds.
pub(super) fn token_of(secret: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(object::str_at(secret, &["data", "token"])).ok().filter(|t| !t.is_empty())
}

/// What is to be done about a Secret.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone, or another.
    Delete,
    /// Merge this into it.
    Fill(Value),
}

/// Decides; `account` is the uid of the account that the Secret names, if there is one.
fn plan(secret: &Value, account: Option<&str>, ca: &str, sign: impl FnOnce(&str) -> Option<String>) -> Step {
    let name = object::annotation(secret, NAME).unwrap_or_default();
    if object::str_at(secret, &["type"]) != TYPE || name.is_empty() || object::is_deleting(secret) {
        return Step::Nothing;
    }
    let Some(uid) = account else { return Step::Delete };
    let named = object::annotation(secret, UID).unwrap_or_default();
    if !named.is_empty() && named != uid {
        return Step::Delete;
    }
    let mut data = json!({});
    let namespace = object::namespace(secret);
    for (key, value) in [("ca.crt", ca), ("namespace", namespace)] {
        let value = STANDARD.encode(value);
        if object::str_at(secret, &["data", key]) != value {
            data[key] = json!(value);
        }
    }
    if token_of(secret).is_none() {
        match sign(uid) {
            Some(token) => data["token"] = json!(STANDARD.encode(token)),
            None => return Step::Nothing,
        }
    }
    if named == uid && data == json!({}) {
        return Step::Nothing;
    }
    Step::Fill(json!({"metadata": {"annotations": {UID: uid}}, "data": data}))
}

/// Never returns.
pub(crate) async fn keep_filled(core: Arc<Core>, tokens: Arc<Tokens>) {
    loop {
        match follow(&core, &tokens).await {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => tracing::warn!(%error, "tokens in Secrets are looked at anew"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(core: &Arc<Core>, tokens: &Tokens) -> Result<(), StoreError> {
    let from = core.store.revision().await?;
    let mut watch = core.store.watch("/registry/core/", from).await?;
    // Secrets whose account was not there yet, or that could not be written.
    let mut again: BTreeSet<String> = BTreeSet::new();
    let mut after = String::new();
    loop {
        let page = core.store.list(SECRETS, &after, from, PAGE).await?;
        for entry in &page.entries {
            look(core, tokens, entry, &mut again).await;
        }
        match page.entries.last() {
            Some(last) if page.more => after = last.key.clone(),
            _ => break,
        }
    }
    loop {
        let changes = match tokio::time::timeout(RETRY, watch.next()).await {
            Ok(changes) => changes?,
            Err(_) if again.is_empty() => watch.next().await?,
            Err(_) => Vec::new(),
        };
        let mut gone: BTreeSet<&str> = BTreeSet::new();
        for change in &changes {
            match change {
                Change::Put { entry, .. } if entry.key.starts_with(SECRETS) => {
                    look(core, tokens, entry, &mut again).await;
                }
                Change::Delete { previous, .. } => {
                    again.remove(&previous.key);
                    let account = previous.key.strip_prefix(ACCOUNTS).and_then(|rest| rest.split_once('/'));
                    gone.extend(account.map(|(namespace, _)| namespace));
                }
                Change::Put { .. } => {}
            }
        }
        for namespace in gone {
            let page = core.store.list(&format!("{SECRETS}{namespace}/"), "", Revision(0), 0).await?;
            for entry in &page.entries {
                look(core, tokens, entry, &mut again).await;
            }
        }
        for key in std::mem::take(&mut again) {
            if let Some(entry) = core.store.get(&key, Revision(0)).await? {
                look(core, tokens, &entry, &mut again).await;
            }
        }
    }
}

async fn look(core: &Arc<Core>, tokens: &Tokens, entry: &Entry, again: &mut BTreeSet<String>) {
    // Most Secrets are none of ours: they need not be read.
    let ours = entry.value.windows(TYPE.len()).any(|part| part == TYPE.as_bytes());
    if !ours {
        return;
    }
    let Ok(secret) = serde_json::from_slice::<Value>(&entry.value) else { return };
    let (namespace, name) = (object::namespace(&secret).to_owned(), object::name(&secret).to_owned());
    let account = object::annotation(&secret, NAME).unwrap_or_default().to_owned();
    core.access.settle().await;
    let found = core.access.account(&namespace, &account);
    let uid = found.as_ref().map(object::uid);
    let sign = |uid: &str| {
        let claims = Claims {
            namespace: namespace.clone(),
            account: Ref { name: account.clone(), uid: uid.into() },
            bound: Bound::Legacy(name.clone()),
            ..Claims::default()
        };
        tokens.sign(&claims).inspect_err(|why| tracing::error!(secret = name, "{why}")).ok()
    };
    let step = plan(&secret, uid, core.ca.cert_pem(), sign);
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let done: Result<(), Status> = match step {
        Step::Nothing => Ok(()),
        Step::Delete => {
            let options = json!({"preconditions": {"uid": object::uid(&secret)}});
            internal::call(core, Method::DELETE, &path, "application/json", Some(&options)).await.map(drop)
        }
        Step::Fill(mut patch) => {
            // Of the state that was decided on: a Secret that has changed since is looked at again.
            patch["metadata"]["resourceVersion"] = json!(entry.modified.0.to_string());
            internal::merge(core, &path, &patch).await.map(drop)
        }
    };
    match done {
        Ok(()) => {}
        Err(status) if matches!(status.code, 404 | 409) => {}
        Err(status) => {
            tracing::warn!(namespace, secret = name, message = %status, "a token's Secret cannot be written; tried again");
            again.insert(entry.key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(uid: Option<&str>, data: Value) -> Value {
        let mut secret = json!({
            "type": TYPE, "data": data,
            "metadata": {"name": "s", "namespace": "ns", "annotations": {NAME: "robot"}},
        });
        object::set_annotation(&mut secret, UID, uid);
        secret
    }

    #[test]
    fn what_becomes_of_a_secret() {
        let b64 = |text: &str| STANDARD.encode(text);
        let full = json!({"token": b64("t"), "ca.crt": b64("ca"), "namespace": b64("ns")});
        let step = |secret: &Value, account: Option<&str>| {
            plan(secret, account, "ca", |uid| Some(format!("for {uid}")))
        };
        let filled = |data: Value| Step::Fill(json!({"metadata": {"annotations": {UID: "u"}}, "data": data}));
        let new = json!({"token": b64("for u"), "ca.crt": b64("ca"), "namespace": b64("ns")});
        for (secret, account, expected) in [
            (secret(None, json!({})), Some("u"), filled(new)),
            (secret(Some("u"), full.clone()), Some("u"), Step::Nothing),
            (secret(None, full.clone()), Some("u"), filled(json!({}))),
            (
                secret(Some("u"), json!({"token": b64("t"), "namespace": b64("ns")})),
                Some("u"),
                filled(json!({"ca.crt": b64("ca")})),
            ),
            (secret(Some("u"), full.clone()), Some("v"), Step::Delete),
            (secret(Some("u"), full.clone()), None, Step::Delete),
            (secret(None, json!({})), None, Step::Delete),
            (json!({"type": "Opaque"}), None, Step::Nothing),
        ] {
            assert_eq!(step(&secret, account), expected, "{secret} {account:?}");
        }
    }
}
