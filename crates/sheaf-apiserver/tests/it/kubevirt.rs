//! Subresources of machines: what they write, and streams relayed to an agent (played by the test).

use std::sync::{Arc, Mutex};

use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{harness::Server, writes::vm};

const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const SUB: &str = "/apis/subresources.kubevirt.io/v1/namespaces/default";

fn vmi(name: &str, phase: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"domain": {"devices": {},
        "resources": {"requests": {"memory": "64Mi"}}}}, "status": {"phase": phase, "nodeName": "n1"}})
}

async fn make_vmi(server: &Server, name: &str, phase: &str) {
    let object = vmi(name, phase);
    let made = server.call("POST", VMIS, object.clone()).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let status = json!({"status": object["status"]});
    for path in [format!("{VMIS}/{name}/status"), format!("{VMIS}/{name}")] {
        server.patch(&path, "merge", status.clone()).await;
    }
    let there = server.call("GET", &format!("{VMIS}/{name}"), None).await;
    assert_eq!(there.text("/status/phase"), phase, "{:?}", there.body);
}

#[tokio::test]
async fn start_stop_restart() {
    let server = Server::start().await;
    let put =
        async |path: &str, body: Option<Value>| server.call("PUT", &format!("{SUB}/{path}"), body).await;
    let missing = put("virtualmachines/none/start", None).await;
    assert_eq!((missing.code.as_u16(), missing.text("/reason")), (404, "NotFound"));
    server.call("POST", VMS, vm("h", "Halted")).await;
    assert_eq!(put("virtualmachines/h/start", None).await.code, 202);
    assert_eq!(server.call("GET", &format!("{VMS}/h"), None).await.text("/spec/runStrategy"), "Always");
    let again = put("virtualmachines/h/start", None).await;
    assert_eq!((again.code.as_u16(), again.text("/reason")), (409, "Conflict"));
    assert!(again.text("/message").contains("does not support manual start requests"), "{:?}", again.body);
    assert_eq!(put("virtualmachines/h/stop", Some(json!({}))).await.code, 202);
    assert_eq!(server.call("GET", &format!("{VMS}/h"), None).await.text("/spec/runStrategy"), "Halted");

    server.call("POST", VMS, vm("m", "Manual")).await;
    assert_eq!(put("virtualmachines/m/start?dryRun=All", Some(json!({"dryRun": ["All"]}))).await.code, 202);
    assert_eq!(
        server.call("GET", &format!("{VMS}/m"), None).await.body.pointer("/status/stateChangeRequests"),
        None
    );
    assert_eq!(put("virtualmachines/m/start", None).await.code, 202);
    let queued = server.call("GET", &format!("{VMS}/m"), None).await;
    assert_eq!(queued.text("/status/stateChangeRequests/0/action"), "Start");
    make_vmi(&server, "m", "Running").await;
    let running = put("virtualmachines/m/start", None).await;
    assert!(running.text("/message").contains("VM is already running"), "{:?}", running.body);
    let force = put("virtualmachines/m/stop", Some(json!({"gracePeriod": 0}))).await;
    assert_eq!(force.code, 202, "{:?}", force.body);
    let object = server.call("GET", &format!("{VMS}/m"), None).await;
    assert_eq!(object.text("/status/stateChangeRequests/0/action"), "Stop");
    let instance = server.call("GET", &format!("{VMIS}/m"), None).await;
    assert_eq!(instance.body["spec"]["terminationGracePeriodSeconds"], json!(0));
    assert_eq!(object.text("/status/stateChangeRequests/0/uid"), instance.text("/metadata/uid"));
    assert_eq!(put("virtualmachines/m/restart", Some(json!({"gracePeriodSeconds": 3}))).await.code, 400);
}

#[tokio::test]
async fn pause_is_desired_state() {
    let server = Server::start().await;
    make_vmi(&server, "p", "Running").await;
    let put =
        async |sub: &str| server.call("PUT", &format!("{SUB}/virtualmachineinstances/p/{sub}"), None).await;
    assert_eq!(put("unpause").await.code, 409);
    assert_eq!(put("pause").await.code, 200);
    let there = server.call("GET", &format!("{VMIS}/p"), None).await;
    assert_eq!(there.body["metadata"]["annotations"]["sheaf.io/pause"], "true");
    assert_eq!(put("pause").await.code, 409);
    assert_eq!(put("unpause").await.code, 200);
    assert_eq!(put("softreboot").await.code, 200);
    assert_eq!(put("nonsense").await.code, 404);
    let found = server.call("GET", "/apis/subresources.kubevirt.io/v1", None).await;
    let names: Vec<&str> =
        found.body["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(names.contains(&"virtualmachineinstances/console"), "{names:?}");
    assert_eq!(server.call("GET", "/apis/subresources.kubevirt.io/v1/version", None).await.code, 200);
}

#[tokio::test]
async fn streams_say_why_they_cannot_be_had() {
    let server = Server::start().await;
    let get =
        async |path: &str| server.call("GET", &format!("{SUB}/virtualmachineinstances/{path}"), None).await;
    assert_eq!(get("none/console").await.code, 404);
    make_vmi(&server, "s", "Scheduled").await;
    assert_eq!(get("s/console").await.code, 400, "virtctl waits on 400");
    make_vmi(&server, "r", "Running").await;
    let unknown = get("r/console").await;
    assert_eq!((unknown.code.as_u16(), unknown.text("/kind")), (503, "Status"), "{:?}", unknown.body);
    assert_eq!(get("r/portforward/none").await.code, 400);
}

/// An agent: answers `guestosinfo`, and echoes what comes over an upgraded connection. Records paths and clients.
async fn agent(server: &Server) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let ca = server.api.ca();
    let pair = ca.issue_server("system:node:n1", &["n1".into(), "127.0.0.1".into()], 10).unwrap();
    let chain =
        CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.cert_der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, record) = (acceptor.clone(), record.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = service_fn(move |request| serve(request, record.clone()));
                let io = TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    (address, seen)
}

async fn serve(
    mut request: http::Request<Incoming>,
    record: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<bytes::Bytes>>, hyper::Error> {
    let secret = request.headers().contains_key("authorization");
    record.lock().unwrap().push(format!("{} credentials={secret}", request.uri()));
    if !request.headers().contains_key("upgrade") {
        return Ok(Response::new(Full::from(r#"{"guestAgentVersion":"x"}"#)));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..n]).await.unwrap();
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    response.headers_mut().insert("sec-websocket-protocol", "plain.kubevirt.io".parse().unwrap());
    Ok(response)
}

#[tokio::test]
async fn streams_are_relayed_byte_for_byte() {
    let server = Server::start().await;
    let (address, seen) = agent(&server).await;
    let node = json!({"metadata": {"name": "n1"}});
    assert_eq!(server.call("POST", "/api/v1/nodes", node).await.code, 201);
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    }});
    let patched = server.patch("/api/v1/nodes/n1/status", "merge", status).await;
    assert_eq!(patched.code, 200, "{:?}", patched.body);
    make_vmi(&server, "r", "Running").await;

    let info = server.call("GET", &format!("{SUB}/virtualmachineinstances/r/guestosinfo"), None).await;
    assert_eq!((info.code.as_u16(), info.text("/guestAgentVersion")), (200, "x"), "{:?}", info.body);

    let admin = server.api.ca().issue_client("admin", "system:masters", 1).unwrap();
    let mut stream = crate::auth::connect(&server, Some(&admin)).await.unwrap();
    let head = format!(
        "GET {SUB}/virtualmachines/r/portforward/22/tcp HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: plain.kubevirt.io\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_lowercase().contains("sec-websocket-protocol: plain.kubevirt.io"), "{answer}");
    stream.write_all(b"\x00\xffhello").await.unwrap();
    let mut echo = [0; 7];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"\x00\xffhello");
    let seen = seen.lock().unwrap().clone();
    let expected = format!("{SUB}/virtualmachineinstances/r/portforward/22/tcp credentials=false");
    assert!(seen.contains(&expected), "{seen:?}");
}
