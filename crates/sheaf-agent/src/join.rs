//! How a machine becomes a node of a cluster: from a token to certificates, and how these are renewed.
//!
//! The token (`HASH.ID.SECRET`, see [`Token`]) names the cluster's CA by its SHA-256, so the first connection trusts
//! nothing else; with `ID.SECRET` it may do one thing, which is to ask for certificates. No state is kept here: what
//! was issued goes into [`Identity`].

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{ByteString, Metadata};
use kube::api::PostParams;
use kube::client::ConfigExt;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tower::BoxError;
use tracing::{info, warn};

use crate::identity::{Identity, IdentityError, KeyedCertificate, Purpose, certificates, provider};

/// Signer of client certificates of nodes.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of serving certificates of nodes.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Why a machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is not of the form `HASH.ID.SECRET`.
    #[error(
        "the token is malformed: it is 64 hexadecimal digits, a dot, 6 characters, a dot and 16 characters, as printed by `sheaf token`"
    )]
    Token,
    /// The server's address is no URL.
    #[error("{0:?} is not the address of a server: expected https://HOST:PORT")]
    Server(String),
    /// The server could not be reached.
    #[error("cannot reach the server at {url}")]
    Unreachable {
        /// The address tried.
        url: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server is not the one that the token was made for.
    #[error(
        "the server at {url} has another CA than the token names: either the token belongs to another cluster, or somebody answers in the server's place"
    )]
    WrongCa {
        /// The address tried.
        url: String,
    },
    /// The server does not accept the token.
    #[error(
        "the server refuses the token: it is wrong or has expired; `sheaf token` on the server prints a valid one"
    )]
    Refused,
    /// The request for a certificate failed.
    #[error("asking for the node's certificates")]
    Api(#[source] kube::Error),
    /// A controller denied the request.
    #[error("the server denied a certificate to node {node}: {why}")]
    Denied {
        /// Name of the node.
        node: String,
        /// The controller's words.
        why: String,
    },
    /// Nobody signed in time.
    #[error("nobody signed the certificate request {name} within {} s", waited.as_secs())]
    Unsigned {
        /// Name of the request.
        name: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The certificate that came back is of no use.
    #[error("the node's identity")]
    Identity(#[from] IdentityError),
    /// A key could not be made.
    #[error("making a key")]
    Key(#[source] rcgen::Error),
}

/// What `sheaf token` prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA certificate's DER form, hexadecimal.
    pub ca_hash: String,
    /// The bearer token `ID.SECRET`.
    pub bearer: String,
}

impl std::str::FromStr for Token {
    type Err = JoinError;
    fn from_str(text: &str) -> Result<Self, JoinError> {
        let lower = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        let mut parts = text.trim().split('.');
        let (Some(hash), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinError::Token);
        };
        let hex = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || id.len() != 6 || secret.len() != 16 || !lower(id) || !lower(secret) {
            return Err(JoinError::Token);
        }
        Ok(Self { ca_hash: hash.to_ascii_lowercase(), bearer: format!("{id}.{secret}") })
    }
}

/// Names under which the node's endpoints may be reached.
#[derive(Debug, Clone)]
pub struct NodeNames {
    /// Name of the Node object.
    pub node: String,
    /// Host names and addresses.
    pub sans: Vec<String>,
}

/// Exchanges a token for an identity, kept in `dir`.
pub async fn join(
    server: &http::Uri,
    token: &Token,
    names: &NodeNames,
    dir: &std::path::Path,
) -> Result<Arc<Identity>, JoinError> {
    let ca_pem = trusted_ca(server, token).await?;
    let client = bearer_client(server, &ca_pem, &token.bearer)?;
    info!(%server, "the server is the one that the token names; asking for certificates");
    let client_pair = request(&client, names, Purpose::Client).await?;
    let serving_pair = request(&client, names, Purpose::Serving).await?;
    Ok(Identity::new(ca_pem, &client_pair, &serving_pair, Some(dir.to_owned()))?)
}

/// A client of the API with the node's certificate, which follows renewals.
pub fn client(server: &http::Uri, identity: &Arc<Identity>) -> Result<Client, JoinError> {
    let config = kube::Config::new(server.clone());
    Ok(over_tls(&config, identity.client_config()?))
}

/// Renews certificates when two thirds of their life have passed; never returns.
pub async fn keep_renewed(client: Client, identity: Arc<Identity>, names: NodeNames) {
    loop {
        for purpose in [Purpose::Client, Purpose::Serving] {
            let due = identity.validity(purpose).map(|(from, to)| renewal_due(Timestamp::now(), from, to));
            match due {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => {
                    warn!(%error, ?purpose, "a certificate of this node is unreadable; asking for a new one")
                }
            }
            let renewed = match request(&client, &names, purpose).await {
                Ok(pair) => identity.renew(purpose, &pair).map_err(JoinError::from),
                Err(error) => Err(error),
            };
            match renewed {
                Ok(()) => info!(?purpose, "certificate renewed"),
                Err(error) => warn!(%error, ?purpose, "certificate not renewed; tried again in 10 minutes"),
            }
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
}

/// Whether two thirds of a certificate's life have passed.
fn renewal_due(now: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    let life = to.as_second().saturating_sub(from.as_second());
    now.as_second().saturating_sub(from.as_second()) >= life / 3 * 2
}

async fn trusted_ca(server: &http::Uri, token: &Token) -> Result<String, JoinError> {
    let url = server.to_string();
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| JoinError::Unreachable {
        url: url.clone(),
        source,
    };
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(IdentityError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified))
        .with_no_client_auth();
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
    let http: legacy::Client<_, Empty<bytes::Bytes>> =
        legacy::Client::builder(TokioExecutor::new()).build(connector);
    let cacerts: http::Uri = format!("{}/cacerts", url.trim_end_matches('/'))
        .parse()
        .map_err(|_| JoinError::Server(url.clone()))?;
    let answer = tokio::time::timeout(Duration::from_secs(15), http.get(cacerts))
        .await
        .map_err(|e| unreachable(e.into()))?
        .map_err(|e| unreachable(e.into()))?;
    let body = Limited::new(answer.into_body(), 64 * 1024).collect().await.map_err(unreachable)?;
    let pem = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let named = certificates(&pem).ok().and_then(|found| {
        found.iter().any(|c| hex(&Sha256::digest(c.as_ref())) == token.ca_hash).then_some(())
    });
    // Only the certificate that the token names is trusted; a bundle with others beside it is refused as well.
    match named {
        Some(()) if certificates(&pem).is_ok_and(|found| found.len() == 1) => Ok(pem),
        _ => Err(JoinError::WrongCa { url }),
    }
}

fn bearer_client(server: &http::Uri, ca_pem: &str, bearer: &str) -> Result<Client, JoinError> {
    let mut config = kube::Config::new(server.clone());
    config.auth_info.token = Some(bearer.to_owned().into());
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(IdentityError::Tls)?
        .with_root_certificates(crate::identity::roots(ca_pem)?)
        .with_no_client_auth();
    Ok(over_tls(&config, tls))
}

fn over_tls(config: &kube::Config, tls: ClientConfig) -> Client {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .build();
    let http: legacy::Client<_, kube::client::Body> =
        legacy::Client::builder(TokioExecutor::new()).build(connector);
    // A token, where there is one, is a plain string: the layer that adds it cannot fail.
    let auth = config.auth_layer().ok().flatten();
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .map_err(BoxError::from)
        .service(http);
    Client::new(service, "default")
}

async fn request(
    client: &Client,
    names: &NodeNames,
    purpose: Purpose,
) -> Result<KeyedCertificate, JoinError> {
    let key = KeyPair::generate().map_err(JoinError::Key)?;
    let object = signing_request(names, purpose, &key)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api.create(&PostParams::default(), &object).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 401 => JoinError::Refused,
        _ => JoinError::Api(error),
    })?;
    let name = created.metadata().name.clone().unwrap_or_default();
    let waited = Duration::from_secs(60);
    let signed = |object: Option<&CertificateSigningRequest>| {
        object.and_then(|o| o.status.as_ref()).is_some_and(|status| {
            status.certificate.is_some()
                || status.conditions.iter().flatten().any(|c| c.type_ == "Denied" || c.type_ == "Failed")
        })
    };
    let found = tokio::time::timeout(waited, kube::runtime::wait::await_condition(api, &name, signed))
        .await
        .map_err(|_| JoinError::Unsigned { name: name.clone(), waited })?
        .map_err(|e| JoinError::Unreachable { url: "the API".into(), source: e.into() })?;
    let status = found.and_then(|object| object.status).unwrap_or_default();
    match status.certificate {
        Some(ByteString(pem)) => Ok(KeyedCertificate {
            certificate_pem: String::from_utf8_lossy(&pem).into_owned(),
            key_pem: key.serialize_pem(),
        }),
        None => Err(JoinError::Denied {
            node: names.node.clone(),
            why: status.conditions.iter().flatten().find_map(|c| c.message.clone()).unwrap_or_default(),
        }),
    }
}

fn signing_request(
    names: &NodeNames,
    purpose: Purpose,
    key: &KeyPair,
) -> Result<CertificateSigningRequest, JoinError> {
    let (signer, usage, sans) = match purpose {
        Purpose::Client => (CLIENT_SIGNER, "client auth", Vec::new()),
        Purpose::Serving => (SERVING_SIGNER, "server auth", names.sans.clone()),
    };
    let mut params = CertificateParams::new(sans).map_err(JoinError::Key)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{}", names.node));
    params.distinguished_name = subject;
    let pem = params.serialize_request(key).and_then(|csr| csr.pem()).map_err(JoinError::Key)?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("node-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Accepts any certificate: for the one request that fetches the CA and carries no secret (what it brings is then compared with
/// the token's hash), and for probes of guests, whose certificates are nobody's business here.
#[derive(Debug)]
pub(crate) struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_or_refused() {
        let hash = "ab".repeat(32);
        let good = format!("{hash}.abc123.0123456789abcdef");
        let Ok(token) = good.parse::<Token>() else { panic!("a good token is refused") };
        assert_eq!(token.bearer, "abc123.0123456789abcdef");
        for bad in ["", "x", "a.b.c", &format!("{hash}.ABC123.0123456789abcdef"), &format!("{good}.more")] {
            assert!(matches!(bad.parse::<Token>(), Err(JoinError::Token)), "{bad}");
        }
    }

    #[test]
    fn renewal_is_due_after_two_thirds_also_after_a_long_sleep() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        assert!(!renewal_due(at(659), at(0), at(990)));
        assert!(renewal_due(at(660), at(0), at(990)));
        assert!(renewal_due(at(315_360_000), at(0), at(990)), "ten years later");
    }
}
