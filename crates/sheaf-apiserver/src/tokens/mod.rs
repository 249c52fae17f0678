//! Bearer tokens: who comes with one, and how service accounts get theirs.
//!
//! [`Tokens::check`] knows three kinds: tokens of service accounts ([`claims`], signed by [`keys`]), those that are kept
//! in Secrets ([`secrets`]), and bootstrap tokens. [`endpoints`] serves TokenRequest, TokenReview and what others need to verify
//! tokens themselves. Owns the signing keys; all else is in the store.

mod claims;
mod endpoints;
mod jwt;
mod keys;
mod request;
mod secrets;

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;
use sheaf_meta::object;

use claims::{Bound, Claims, still_there};
use keys::Keys;

pub(crate) use endpoints::{Endpoints, Reviews};
pub(crate) use secrets::keep_filled;

use crate::{
    authn::{UserInfo, bootstrap_token, same_secret},
    core::Core,
    pki::PkiError,
};

/// Who issues tokens. The audience of those that name none, too.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Issues and checks tokens.
pub(crate) struct Tokens {
    keys: Keys,
    /// What the API server itself is called in tokens.
    audiences: Vec<String>,
    /// Where the public keys are, for others.
    jwks_uri: String,
}

/// What a token proves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) user: UserInfo,
    pub(crate) audiences: Vec<String>,
}

impl Tokens {
    /// Reads the signing keys below `pki`, or makes one.
    pub(crate) fn open(pki: &Path, url: &str) -> Result<Self, PkiError> {
        let keys = Keys::load_or_create(&pki.join("service-accounts"))?;
        let jwks_uri = format!("{}/openid/v1/jwks", url.trim_end_matches('/'));
        Ok(Self { keys, audiences: vec![ISSUER.into()], jwks_uri })
    }

    /// What a token proves to somebody who goes by these names (the API server's own, if none are given). Nothing, or why not, for one
    /// that is not good; the reason is for the log and for TokenReviews.
    pub(crate) async fn check(
        &self,
        core: &Core,
        token: &str,
        accepted: &[String],
        now: Timestamp,
    ) -> Result<Option<Proof>, String> {
        let accepted = if accepted.is_empty() { &self.audiences } else { accepted };
        if let Some((id, secret)) = bootstrap_token::split(token) {
            let name = bootstrap_token::secret_name(id);
            let found = stored(core, "secrets", "kube-system", &name).await?;
            let user = found.and_then(|object| bootstrap_token::identity(&object, id, secret, now));
            let audiences: Vec<String> =
                self.audiences.iter().filter(|a| accepted.contains(a)).cloned().collect();
            return Ok(user.filter(|_| !audiences.is_empty()).map(|user| Proof { user, audiences }));
        }
        let Some(parsed) = jwt::parse(token) else { return Ok(None) };
        let Some(claims) = Claims::read(&parsed.claims, ISSUER) else { return Ok(None) };
        if !parsed.verify(&self.keys) {
            return Err("go-jose/go-jose: error in cryptographic primitive".into());
        }
        let audiences = claims.meant_for(accepted, &self.audiences)?;
        claims.timely(now.as_second())?;
        self.still_holds(core, &claims, token, now.as_second()).await?;
        Ok(Some(Proof { user: claims.user(), audiences }))
    }

    /// Whether the account, and what the token is bound to, are still there.
    async fn still_holds(&self, core: &Core, claims: &Claims, token: &str, now_s: i64) -> Result<(), String> {
        let Claims { namespace, account, .. } = claims;
        core.access.settle().await;
        match core.access.account(namespace, &account.name) {
            None => return Err(format!("serviceaccounts \"{}\" not found", account.name)),
            Some(found) => still_there("service account", Some(&found), &account.uid, now_s)?,
        }
        match &claims.bound {
            Bound::No => Ok(()),
            Bound::Pod(pod, _) => {
                let found = stored(core, "pods", namespace, &pod.name).await?;
                still_there("pod", found.as_ref(), &pod.uid, now_s)
            }
            Bound::Secret(secret) => {
                let found = stored(core, "secrets", namespace, &secret.name).await?;
                still_there("secret", found.as_ref(), &secret.uid, now_s)
            }
            Bound::Node(node) => {
                let found = stored(core, "nodes", "", &node.name).await?;
                still_there("node", found.as_ref(), &node.uid, now_s)
            }
            Bound::Legacy(secret) => {
                let found = stored(core, "secrets", namespace, secret).await?;
                let uid = found.as_ref().map_or("", object::uid);
                still_there("secret", found.as_ref(), uid, now_s)?;
                let kept = found.as_ref().and_then(secrets::token_of).unwrap_or_default();
                match same_secret(&kept, token.as_bytes()) {
                    true => Ok(()),
                    false => Err("service account token has been invalidated".into()),
                }
            }
        }
    }

    fn sign(&self, claims: &Claims) -> Result<String, &'static str> {
        jwt::sign(&self.keys, &claims.write(ISSUER))
    }
}

/// An object of the core group, as it is stored.
async fn stored(core: &Core, plural: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
    let key = match namespace {
        "" => format!("/registry/core/{plural}/{name}"),
        ns => format!("/registry/core/{plural}/{ns}/{name}"),
    };
    let failed = |what: &dyn std::fmt::Display| {
        tracing::error!(key, error = %what, "an object that a token depends on cannot be read");
        "token lookup failed".to_owned()
    };
    let entry = core.store.get(&key, sheaf_store::Revision(0)).await.map_err(|e| failed(&e))?;
    entry.map(|e| serde_json::from_slice(&e.value)).transpose().map_err(|e| failed(&e))
}
