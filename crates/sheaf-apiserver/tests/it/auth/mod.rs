//! Who gets in, and what they may do.

mod audit;
mod certificates;
mod kubectl;
mod rbac;
mod reviews;
mod tokens;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::json;
use sheaf_apiserver::{
    UserInfo,
    pki::{Ca, KeyedCert},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::Server;

/// A TLS connection to the server, which is verified by its CA; with a client certificate or without.
pub(crate) async fn connect(
    server: &Server,
    pair: Option<&KeyedCert>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.api.ca().cert_der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        None => config.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let stream = TcpStream::connect(server.api.local_addr()).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// One GET over HTTP/1.1 with further header lines; the whole answer.
async fn get(
    server: &Server,
    pair: Option<&KeyedCert>,
    path: &str,
    headers: &str,
) -> std::io::Result<String> {
    let mut stream = connect(server, pair).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn certificates_and_tokens_over_https() {
    let server = Server::start().await;
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
        },
    });
    let made = server.call("POST", "/api/v1/namespaces/kube-system/secrets", secret).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let right = "Authorization: Bearer abcdef.0123456789abcdef\r\n";
    let node = server.api.ca().issue_client("system:node:a", "system:nodes", 1).unwrap();
    for (pair, path, headers, expected) in [
        (None, requests, right, "200 OK"),
        (None, secrets, right, "403 Forbidden"),
        (None, requests, "Authorization: Bearer abcdef.0123456789abcdeX\r\n", "401 Unauthorized"),
        (None, requests, "Authorization: Basic abc\r\n", "401 Unauthorized"),
        (None, requests, "", "401 Unauthorized"),
        (None, "/cacerts", "", "200 OK"),
        (Some(&node), secrets, "", "403 Forbidden"),
        (Some(&node), "/api/v1/nodes", "", "200 OK"),
        (Some(&node), "/metrics", "", "403 Forbidden"),
    ] {
        let answer = get(&server, pair, path, headers).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{path} {headers}: {answer}");
        assert!(path == "/cacerts" || answer.contains("application/json"), "{answer}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Ca::load_or_create(elsewhere.path()).unwrap();
    let forged = other.issue_client("admin", "system:masters", 1).unwrap();
    let answer = get(&server, Some(&forged), "/api/v1/nodes", "").await;
    assert!(answer.map_or(true, |a| !a.contains("200 OK")), "a certificate of another CA proves nothing");
    let flood = format!("X-Flood: {}\r\n", "x".repeat(200_000));
    let answer = get(&server, Some(&node), "/healthz", &flood).await;
    assert!(answer.map_or(true, |a| !a.contains("200 OK")), "headers have a limit");
}

#[tokio::test]
async fn strangers_see_health_and_nothing_else() {
    let server = Server::start().await;
    let nobody = UserInfo::anonymous;
    for (path, code) in [
        ("/healthz", 200),
        ("/readyz?verbose", 200),
        ("/version/", 200),
        ("/cacerts", 200),
        ("/api", 401),
        ("/api/v1/nodes", 401),
    ] {
        let answer = server.send_as(nobody(), "GET", path, &[], String::new()).await;
        assert_eq!(answer.code, code, "{path}");
    }
}

#[tokio::test]
async fn refusals_have_kubernetes_sentence() {
    let server = Server::start().await;
    let joe = || UserInfo::new("joe", []);
    let answer = server.send_as(joe(), "GET", "/api/v1/namespaces/y/configmaps/z", &[], String::new()).await;
    assert_eq!(answer.code, 403);
    assert_eq!(
        answer.text("/message"),
        "configmaps \"z\" is forbidden: User \"joe\" cannot get resource \"configmaps\" in API group \"\" in the namespace \"y\""
    );
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}).to_string();
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = server.send_as(joe(), "POST", path, &[], review).await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    assert_eq!(answer.body["status"]["allowed"], json!(false));
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = server.send_as(joe(), "POST", path, &[], "{}".into()).await;
    assert_eq!(answer.text("/status/userInfo/username"), "joe");
}

#[tokio::test]
async fn impersonation_is_allowed_or_refused_and_never_ignored() {
    let server = Server::start().await;
    let asking = [("impersonate-user", "joe"), ("impersonate-group", "staff")];
    let answer = server.send("GET", "/api/v1/nodes", &asking, None).await;
    assert_eq!(answer.code, 403, "joe may not, whoever asks for him: {:?}", answer.body);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = server.send("POST", path, &asking, json!({})).await;
    assert_eq!(answer.body["status"]["userInfo"]["groups"], json!(["staff", "system:authenticated"]));
    let joe = UserInfo::new("joe", []);
    let answer = server.send_as(joe, "GET", "/api", &[("impersonate-user", "admin")], String::new()).await;
    assert_eq!(answer.code, 403);
    let orphan = server.send("GET", "/api", &[("impersonate-group", "staff")], None).await;
    assert_eq!(orphan.code, 400);
}
