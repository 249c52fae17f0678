//! Watching over a WebSocket, through TLS and HTTP/1.1.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, handshake::client::Response},
};

use crate::{crds::crontabs, harness::Server};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn connect(server: &Server, path: &str, protocols: &str) -> Result<(Socket, Response), Error> {
    let ca = server.api.ca();
    let pair = ca.issue_client("admin", "system:masters", 1).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).unwrap();
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = TcpStream::connect(server.api.local_addr()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let mut request = format!("wss://{}{path}", server.api.local_addr()).into_client_request().unwrap();
    if !protocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    client_async(request, stream).await
}

async fn event(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps?watch=true";

#[tokio::test]
async fn each_event_is_a_text_message() {
    let server = Server::start().await;
    server.config_map("before", json!({})).await;
    let offered = "base64url.bearer.authorization.k8s.io.YWJj, base64.binary.k8s.io";
    let (mut socket, response) = connect(&server, MAPS, offered).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "base64.binary.k8s.io");
    loop {
        let event = event(&mut socket).await;
        assert_eq!(event["type"], "ADDED");
        if event["object"]["metadata"]["name"] == "before" {
            break;
        }
    }
    server.config_map("after", json!({})).await;
    let event = event(&mut socket).await;
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("after")));
    socket.send(Message::Close(None)).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_watch_closes_the_socket() {
    let server = Server::start().await;
    let (mut socket, response) = connect(&server, &format!("{MAPS}&timeoutSeconds=1"), "").await.unwrap();
    assert!(response.headers().get("sec-websocket-protocol").is_none());
    let end = loop {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => break frame,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end.map(|f| u16::from(f.code)), Some(1000));
}

#[tokio::test]
async fn a_refusal_is_an_ordinary_answer() {
    let server = Server::start().await;
    for (path, code) in [
        ("/api/v1/nothing?watch=true", 404),
        ("/api/v1/configmaps?watch=true&resourceVersion=x", 400),
        ("/api/v1/configmaps?watch=true&labelSelector=!!", 400),
    ] {
        match connect(&server, path, "").await {
            Err(Error::Http(response)) => {
                let got = response.status().as_u16();
                assert!(got == code || (got, code) == (422, 400), "{path}: {got}");
            }
            other => panic!("{path}: {:?}", other.map(|_| ())),
        }
    }
}

#[tokio::test]
async fn watches_hear_of_the_last_deletion_before_their_kind_goes() {
    let server = Server::start().await;
    server.define(crontabs(json!({}))).await;
    let tabs = "/apis/example.com/v1/namespaces/default/crontabs";
    let body = json!({"metadata": {"name": "a"}});
    assert_eq!(server.call("POST", tabs, body).await.code, 201);
    let (mut socket, _) = connect(&server, &format!("{tabs}?watch=true"), "").await.unwrap();
    assert_eq!(event(&mut socket).await["type"], "ADDED");
    server.call("DELETE", &format!("{}/crontabs.example.com", crate::crds::CRDS), None).await;
    assert_eq!(event(&mut socket).await["type"], "DELETED");
    let end = socket.next().await.unwrap().unwrap();
    assert!(end.is_close(), "{end:?}");
}
