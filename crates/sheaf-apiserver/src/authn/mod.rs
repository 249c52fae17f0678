//! Who is asking: the identity in a client certificate of the cluster's CA, in a bearer token, or given in process.
//!
//! Not here: what they may do ([`crate::authz`]), and how tokens are checked ([`crate::tokens`]). Owns nothing.

pub(crate) mod bootstrap_token;
pub(crate) mod impersonation;

use std::collections::BTreeMap;

use base64::Engine;
use http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An authenticated (or anonymous) user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// `sheaf-admin`, `system:node:a`, ...
    pub username: String,
    /// Stable identity behind the name, where there is one.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What else the proof says: which credential it was, the node that a token is bound to, ...
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Everyone who proved an identity is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everyone who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of whoever proved nothing.
pub const ANONYMOUS: &str = "system:anonymous";
/// May do everything.
pub const MASTERS: &str = "system:masters";
/// The agents.
pub const NODES: &str = "system:nodes";
/// Agents are called this, followed by the name of their Node.
pub const NODE_USER: &str = "system:node:";
/// Joiners that have nothing but a token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Which credential proved the identity, so that an audit finds all that was done with it.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Names of users that are service accounts begin so.
const SERVICE_ACCOUNT_USER: &str = "system:serviceaccount:";
/// All service accounts.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// Attribute of a certificate's subject that carries the user's uid.
const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";

impl UserInfo {
    /// An authenticated user with groups; `system:authenticated` is added.
    pub fn new<'a>(username: &str, groups: impl IntoIterator<Item = &'a str>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(String::from).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { username: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// A service account. Namespace and name are those of an object that exists.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = service_account_groups(namespace);
        let mut user = Self::new(&service_account_name(namespace, name), groups.iter().map(String::as_str));
        user.uid = uid.into();
        user
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether this is nobody in particular.
    pub fn is_anonymous(&self) -> bool {
        !self.in_group(AUTHENTICATED)
    }

    /// The name of the Node whose agent this is.
    pub fn node(&self) -> Option<&str> {
        let name = self.username.strip_prefix(NODE_USER).filter(|n| !n.is_empty())?;
        self.in_group(NODES).then_some(name)
    }

    /// The identity in a client certificate that TLS has verified: CN is the user, each O a group.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        if name.is_empty() {
            return None;
        }
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
        let mut user = Self::new(name, groups);
        user.uid = subject
            .iter_attributes()
            .find(|a| a.attr_type().to_id_string() == UID_ATTRIBUTE)
            .and_then(|a| a.as_str().ok())
            .unwrap_or_default()
            .into();
        let hash = crate::pki::hex(&Sha256::digest(der.as_ref()));
        user.extra.insert(CREDENTIAL_ID.into(), vec![format!("X509SHA256={hash}")]);
        Some(user)
    }

    /// As `authentication.k8s.io/v1` writes it.
    pub fn to_json(&self) -> Value {
        let mut out = json!({"username": self.username});
        if !self.uid.is_empty() {
            out["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            out["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            out["extra"] = json!(self.extra);
        }
        out
    }
}

/// The user name of a service account.
pub fn service_account_name(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_USER}{namespace}:{name}")
}

/// Namespace and name of the service account that a user name stands for.
pub fn split_service_account(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix(SERVICE_ACCOUNT_USER)?.split_once(':')?;
    let good = sheaf_meta::names::dns_label(namespace).is_empty()
        && sheaf_meta::names::dns_subdomain(name).is_empty();
    good.then_some((namespace, name))
}

/// The groups that each service account of a namespace is in.
pub fn service_account_groups(namespace: &str) -> [String; 2] {
    [SERVICE_ACCOUNTS.into(), format!("{SERVICE_ACCOUNTS}:{namespace}")]
}

/// Whether two secrets are equal, in a time that tells nothing of where they differ.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a) == Sha256::digest(b)
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
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let raw = engine.decode(encoded.trim_end_matches('=')).ok()?;
    String::from_utf8(raw).ok().filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn service_accounts_are_users_with_a_name_of_four_parts() {
        let user = UserInfo::service_account("ns", "robot", "u-1");
        assert_eq!(user.username, "system:serviceaccount:ns:robot");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(split_service_account(&user.username), Some(("ns", "robot")));
        for not_one in
            ["system:serviceaccount:ns", "system:serviceaccount::x", "joe", "system:serviceaccount:a:B"]
        {
            assert_eq!(split_service_account(not_one), None, "{not_one}");
        }
    }

    #[test]
    fn a_certificate_says_name_groups_and_which_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let ca = crate::pki::Ca::load_or_create(dir.path()).unwrap();
        let pair = ca.issue_client("system:node:a", NODES, 1).unwrap();
        use rustls_pki_types::pem::PemObject;
        let der = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let user = UserInfo::from_certificate(&der).unwrap();
        assert_eq!((user.username.as_str(), user.node()), ("system:node:a", Some("a")));
        let id = &user.extra[CREDENTIAL_ID][0];
        assert_eq!(id.len(), "X509SHA256=".len() + 64, "{id}");
        assert_eq!(UserInfo::new("system:node:a", []).node(), None, "the name alone makes no node");
    }
}
