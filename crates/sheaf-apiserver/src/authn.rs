//! Who is asking: a client certificate of the cluster's CA, a bearer token, or an identity given in process.
//!
//! Not here: what they may do ([`crate::authz`]). Owns nothing: bootstrap tokens are Secrets in kube-system.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sheaf_meta::status::Status;
use sheaf_store::{Revision, Store};

/// An authenticated (or anonymous) user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// `sheaf-admin`, `system:node:a`, ...
    pub username: String,
    /// Stable identity behind the name, where there is one.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
}

/// Everyone who proved an identity is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// May do everything.
pub const MASTERS: &str = "system:masters";
/// The agents.
pub const NODES: &str = "system:nodes";
/// Joiners that have nothing but a token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

impl UserInfo {
    /// An authenticated user with groups; `system:authenticated` is added.
    pub fn new<'a>(username: &str, groups: impl IntoIterator<Item = &'a str>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(String::from).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Self { username: username.into(), uid: String::new(), groups }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            username: "system:anonymous".into(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".into()],
        }
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether this is nobody in particular.
    pub fn is_anonymous(&self) -> bool {
        !self.in_group(AUTHENTICATED)
    }

    /// The identity in a client certificate that TLS has verified: CN is the user, each O a group.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
        Some(Self::new(name, groups))
    }
}

/// What a request asks to be instead of who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonation {
    /// `Impersonate-User`.
    pub username: String,
    /// `Impersonate-Uid`.
    pub uid: String,
    /// `Impersonate-Group`, repeated.
    pub groups: Vec<String>,
}

impl Impersonation {
    /// Reads the headers; `None` if there are none. 400 for groups or a uid without a user, and for extra fields,
    /// which nothing here would look at.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
            values.map(String::from).collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let (username, uid, groups) =
            (first("impersonate-user"), first("impersonate-uid"), all("impersonate-group"));
        if headers.keys().any(|k| k.as_str().starts_with("impersonate-extra-")) {
            return Err(Status::bad_request("Impersonate-Extra headers are not supported"));
        }
        if username.is_empty() && (!uid.is_empty() || !groups.is_empty()) {
            return Err(Status::bad_request(
                "requested impersonation of groups or a uid without impersonating a user",
            ));
        }
        Ok((!username.is_empty()).then_some(Self { username, uid, groups }))
    }

    /// The user that the request becomes.
    pub fn into_user(self) -> UserInfo {
        if self.username == UserInfo::anonymous().username {
            return UserInfo::anonymous();
        }
        let mut user = UserInfo::new(&self.username, self.groups.iter().map(String::as_str));
        user.uid = self.uid;
        user
    }
}

/// The bearer token of a request, if it carries one. Browsers, which cannot set the header on a WebSocket, send it
/// as a subprotocol.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_string());
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = offered
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(raw).ok()
}

/// Checks a bearer token. 401 for one that nobody issued, that ran out, or that may not authenticate.
pub async fn check_bearer(store: &dyn Store, token: &str, now: Timestamp) -> Result<UserInfo, Status> {
    let (id, secret) = token.split_once('.').ok_or_else(Status::unauthorized)?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
        return Err(Status::unauthorized());
    }
    let key = format!("/registry/core/secrets/kube-system/bootstrap-token-{id}");
    let entry = store.get(&key, Revision(0)).await.map_err(Status::internal)?;
    let object: Value = match entry {
        Some(entry) => serde_json::from_slice(&entry.value).map_err(Status::internal)?,
        None => return Err(Status::unauthorized()),
    };
    bootstrap_identity(&object, id, secret, now).ok_or_else(Status::unauthorized)
}

fn bootstrap_identity(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let field = |name: &str| -> Option<String> {
        let encoded = object.get("data")?.get(name)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let same = |a: &str, b: &str| Sha256::digest(a) == Sha256::digest(b);
    if object.get("type")?.as_str()? != "bootstrap.kubernetes.io/token"
        || object.pointer("/metadata/deletionTimestamp").is_some()
        || !same(&field("token-id")?, id)
        || !same(&field("token-secret")?, secret)
        || field("usage-bootstrap-authentication")?.trim() != "true"
    {
        return None;
    }
    if let Some(expiration) = field("expiration")
        && expiration.trim().parse::<Timestamp>().ok()? <= now
    {
        return None;
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    // Only groups that say what they are: a token never makes a master.
    let extra = extra.split(',').map(str::trim).filter(|g| g.starts_with("system:bootstrappers:"));
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), std::iter::once(BOOTSTRAPPERS).chain(extra)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(extra: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        let base = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (k, v) in base.iter().chain(extra) {
            data[*k] = json!(STANDARD.encode(v));
        }
        json!({"type": "bootstrap.kubernetes.io/token", "data": data})
    }

    #[test]
    fn bootstrap_tokens() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let check = |s: &Value, secret: &str| bootstrap_identity(s, "abcdef", secret, now);
        let right = "0123456789abcdef";
        let user =
            check(&secret(&[("auth-extra-groups", "system:masters,system:bootstrappers:w")]), right).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:w", "system:authenticated"]);
        assert!(check(&secret(&[]), "0123456789abcdeX").is_none(), "wrong secret");
        assert!(check(&secret(&[("expiration", "2025-12-31T00:00:00Z")]), right).is_none(), "ran out");
        assert!(
            check(&secret(&[("usage-bootstrap-authentication", "false")]), right).is_none(),
            "not for this"
        );
        assert!(check(&secret(&[("expiration", "2026-12-31T00:00:00Z")]), right).is_some());
    }

    #[test]
    fn bearer_tokens_come_in_a_header_or_a_subprotocol() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "bearer  abc".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("abc"));
        let mut headers = HeaderMap::new();
        let value = "plain.kubevirt.io, base64url.bearer.authorization.k8s.io.YWJj";
        headers.insert("sec-websocket-protocol", value.parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("abc"));
    }
}
