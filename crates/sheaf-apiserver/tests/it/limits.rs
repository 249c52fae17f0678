//! What a client may do to the server's sockets: all of it costs that client only.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A TLS connection as the administrator.
async fn connect(server: &Server, protocol: &str) -> TlsStream<TcpStream> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
    let config: Value = serde_saphyr::from_str(&text).unwrap();
    let pem = |p: &str| STANDARD.decode(config.pointer(p).and_then(Value::as_str).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&pem("/clusters/0/cluster/certificate-authority-data")).unwrap())
        .unwrap();
    let certificate = CertificateDer::from_pem_slice(&pem("/users/0/user/client-certificate-data")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&pem("/users/0/user/client-key-data")).unwrap();
    let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![protocol.into()];
    let stream = TcpStream::connect(server.api.local_addr()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
}

/// All that comes until the other side closes, as text.
async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut all));
    // Many servers close without TLS' farewell after an error.
    let _ = reading.await.expect("the server closes the connection");
    String::from_utf8_lossy(&all).into_owned()
}

async fn is_well(server: &Server) {
    let answer = server.call("GET", MAPS, None).await;
    assert_eq!(answer.code, 200, "others go on");
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let server = Server::start().await;
    let mut stream = connect(&server, "http/1.1").await;
    let huge = format!("GET {MAPS} HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "x".repeat(100 * 1024));
    // The server may close before it has read all of it.
    let _ = stream.write_all(huge.as_bytes()).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    let io = TokioIo::new(connect(&server, "h2").await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("https://127.0.0.1{MAPS}");
    let request = http::Request::get(&uri).header("x-huge", "x".repeat(100 * 1024));
    match sender.send_request(request.body(Full::default()).unwrap()).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(error.to_string().contains("http2"), "{error}"),
    }
    is_well(&server).await;
}

/// Bytes of a body that are never sent hold nothing up but their own request.
#[tokio::test]
async fn bodies_that_never_come_hold_nobody_up() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(&server, "http/1.1").await;
        let head = format!("POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    is_well(&server).await;
    let answer = rest(&mut silent[0]).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come"), "{answer}");
    let mut over = connect(&server, "http/1.1").await;
    let head =
        format!("POST {MAPS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    over.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..8 {
        over.write_all(chunk.as_bytes()).await.expect("what is too large is taken all the same");
    }
    over.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = rest(&mut over).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("Request entity too large: limit is 3145728"), "{answer}");
}

#[tokio::test]
async fn half_open_connections_are_nobodys_business() {
    let server = Server::start().await;
    let mut half = Vec::new();
    for i in 0..200 {
        let mut stream = TcpStream::connect(server.api.local_addr()).await.unwrap();
        if i % 2 == 0 {
            // The beginning of a TLS record, and then nothing.
            stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
        }
        half.push(stream);
    }
    is_well(&server).await;
    let out = server.kubectl("get --raw /readyz").await;
    assert_eq!(out, "ok");
    let mut byte = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(30), half[1].read(&mut byte)).await;
    assert!(
        matches!(closed, Ok(Ok(0) | Err(_))),
        "a handshake that does not come is not waited for: {closed:?}"
    );
}

#[tokio::test]
async fn bodies_that_are_absurd_are_refused_with_reasons() {
    let server = Server::start().await;
    let admin = || sheaf_apiserver::UserInfo::new("admin", ["system:masters"]);
    let deep = format!("{{\"metadata\":{}{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let deep_yaml = "[".repeat(50_000);
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = [("content-type", "application/json-patch+json")];
    let yaml = [("content-type", "application/yaml")];
    server.config_map("m", json!({})).await;
    let one = format!("{MAPS}/m");
    let many = json!(vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001]).to_string();
    for (method, path, headers, body, code, says) in [
        ("POST", MAPS, &[][..], String::new(), 400, "no body"),
        ("POST", MAPS, &[], "{".into(), 400, "not valid JSON"),
        ("POST", MAPS, &[], "[]".into(), 400, "not a JSON object"),
        ("POST", MAPS, &[], "\"x\"".into(), 400, "not a JSON object"),
        ("POST", MAPS, &[], "{\"metadata\": []}".into(), 400, "metadata"),
        ("POST", MAPS, &[], deep.clone(), 400, "recursion"),
        ("POST", MAPS, &yaml, deep_yaml, 400, "not valid YAML"),
        ("POST", MAPS, &yaml, "a: &a [x]\nb: *none\n".into(), 400, "not valid YAML"),
        ("PATCH", &one, &merge, deep, 400, "recursion"),
        ("PATCH", &one, &merge, "7".into(), 400, "no object"),
        ("PATCH", &one, &patch, "{}".into(), 400, "list of operations"),
        ("PATCH", &one, &patch, many, 413, "maximum operations in a JSON patch is 10000, got 10001"),
        ("PATCH", &one, &[], "{}".into(), 415, "application/merge-patch+json"),
    ] {
        let shown = format!("{method} {}", body.chars().take(40).collect::<String>());
        let answer = server.send_as(admin(), method, path, headers, body).await;
        assert_eq!(answer.code, code, "{shown}: {:?}", answer.body);
        assert!(answer.text("/message").contains(says), "{shown}: {}", answer.text("/message"));
    }
    let bomb = format!(
        "a0: &a0 [x]\n{}",
        (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1)).collect::<String>()
    );
    let answer = server.send_as(admin(), "POST", MAPS, &yaml, bomb).await;
    assert_eq!(answer.code, 400, "aliases do not multiply without end: {:?}", answer.body);
    let selector = format!("{MAPS}?labelSelector={}", vec!["a%3Db"; 10_000].join(","));
    let answer = server.call("GET", &selector, None).await;
    assert!(answer.code == 200 || answer.code == 400, "{:?}", answer.body);
    is_well(&server).await;
}

/// A user who floods the server waits for themselves; the others are served.
#[tokio::test]
async fn a_flood_of_one_user_starves_nobody() {
    let server = Server::start().await;
    let mut flood = Vec::new();
    for _ in 0..8 {
        let io = TokioIo::new(connect(&server, "h2").await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), io)
                .await
                .unwrap();
        tokio::spawn(connection);
        for _ in 0..200 {
            let mut sender = sender.clone();
            let request =
                http::Request::get(format!("https://127.0.0.1{MAPS}")).body(Full::default()).unwrap();
            flood.push(tokio::spawn(async move {
                let response = sender.send_request(request).await?;
                let (code, retry) = (response.status(), response.headers().get("retry-after").cloned());
                response.into_body().collect().await?;
                Ok::<_, hyper::Error>((code, retry))
            }));
        }
    }
    let other = sheaf_apiserver::UserInfo::new("other", ["system:masters"]);
    for _ in 0..20 {
        let answer = server.send_as(other.clone(), "GET", MAPS, &[], String::new()).await;
        assert_eq!(answer.code, 200, "{:?}", answer.body);
    }
    for task in flood {
        let (code, retry) = task.await.unwrap().unwrap();
        assert!(code == 200 || (code == 429 && retry.is_some_and(|v| v == "1")), "{code}");
    }
}

#[tokio::test]
async fn a_connection_goes_on_after_a_refusal_that_needed_no_body() {
    let server = Server::start().await;
    let mut stream = connect(&server, "http/1.1").await;
    for (line, code) in [
        (format!("POST {MAPS}/none"), "405"),
        ("POST /api/v1/namespaces/default/nothings".to_owned(), "404"),
        (format!("POST {MAPS}?dryRun=x"), "422"),
    ] {
        let headers = format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n");
        stream.write_all(headers.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        // Python's clients send a body in a packet of its own.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"{}").await.unwrap();
        let answer = one(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{answer}");
    }
}

/// One answer, by its length.
async fn one(stream: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    loop {
        let mut some = [0; 4096];
        let read =
            tokio::time::timeout(Duration::from_secs(10), stream.read(&mut some)).await.unwrap().unwrap();
        assert!(read > 0, "the connection is still there");
        all.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return text;
        }
    }
}
