//! Admission webhooks: real HTTPS servers in the test's process.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    crds::{crontabs, tab},
    harness::{Answer, Server, eventually},
};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What a webhook does with a request.
type Decide = Arc<dyn Fn(&Value) -> Reply + Send + Sync>;

enum Reply {
    /// `response`, beside the uid.
    Response(Value),
    /// These bytes, with this code.
    Raw(u16, &'static str),
    /// Nothing, for ever.
    Hang,
}

/// A webhook that listens.
struct Hook {
    url: String,
    port: u16,
    bundle: String,
    asked: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    async fn start(decide: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::named("127.0.0.1", decide).await
    }

    /// With a certificate for a name.
    async fn named(name: &str, decide: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(rcgen::generate_simple_self_signed(vec![name.to_string()]).unwrap(), decide).await
    }

    /// With this certificate.
    async fn with(
        made: rcgen::CertifiedKey<rcgen::KeyPair>,
        decide: impl Fn(&Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let decide: Decide = Arc::new(decide);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(accept(listener, acceptor, decide, asked.clone()));
        let bundle = STANDARD.encode(made.cert.pem());
        Self { url: format!("https://127.0.0.1:{port}/hook"), port, bundle, asked, task }
    }

    /// The requests that came, oldest first.
    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    fn client(&self) -> Value {
        json!({"url": self.url, "caBundle": self.bundle})
    }
}

/// As tools make it when they are asked for a certificate: it may issue others.
#[tokio::test]
async fn a_certificate_may_be_its_own_authority() {
    let server = Server::start().await;
    for (name, code) in [("127.0.0.1", 403), ("127.0.0.2", 500)] {
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&signing_key).unwrap();
        let hook = Hook::with(rcgen::CertifiedKey { cert, signing_key }, |_| {
            Reply::Response(json!({"allowed": false, "status": {"code": 403, "message": "no"}}))
        })
        .await;
        let webhook = json!({"name": "own.example.com", "clientConfig": hook.client(), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "rules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"]}]});
        let at = format!("{CONFIGURATIONS}/validatingwebhookconfigurations");
        let made =
            server.call("POST", &at, json!({"metadata": {"name": "own"}, "webhooks": [webhook]})).await;
        assert_eq!(made.code, 201, "{:#}", made.body);
        let refused = server.call("POST", MAPS, json!({"metadata": {"name": "m"}})).await;
        assert_eq!(refused.code.as_u16(), code, "{:#}", refused.body);
        assert_eq!(server.call("DELETE", &format!("{at}/own"), None).await.code, 200);
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, decide: Decide, asked: Arc<Mutex<Vec<Value>>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, decide, asked) = (acceptor.clone(), decide.clone(), asked.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, decide.clone(), asked.clone()));
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    decide: Decide,
    asked: Arc<Mutex<Vec<Value>>>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.headers()["content-type"], "application/json");
    assert!(request.uri().query().is_some_and(|q| q.starts_with("timeout=")));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(review["kind"], "AdmissionReview");
    let asking = review["request"].clone();
    asked.lock().unwrap().push(asking.clone());
    let (code, body) = match decide(&asking) {
        Reply::Response(mut response) => {
            response["uid"] = asking["uid"].clone();
            let body =
                json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
            (200, body.to_string())
        }
        Reply::Raw(code, body) => (code, body.to_string()),
        Reply::Hang => std::future::pending().await,
    };
    let mut response = http::Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    Ok(response)
}

fn allow() -> Reply {
    Reply::Response(json!({"allowed": true}))
}

fn patch(operations: Value) -> Reply {
    let patch = STANDARD.encode(operations.to_string());
    Reply::Response(json!({"allowed": true, "patch": patch, "patchType": "JSONPatch"}))
}

/// A rule for config maps, and what `change` says.
fn webhook(name: &str, client: Value, change: &Value) -> Value {
    let mut out = json!({
        "name": format!("{name}.example.com"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 2,
        "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"],
            "resources": ["configmaps"]}],
        // Others write config maps too.
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "objectSelector": {"matchExpressions": [{"key": "hooked", "operator": "NotIn", "values": ["no"]}]},
    });
    for (key, value) in change.as_object().unwrap() {
        out[key] = value.clone();
    }
    out
}

impl Server {
    async fn hook(&self, kind: &str, name: &str, webhooks: Vec<Value>) {
        let body = json!({"metadata": {"name": name}, "webhooks": webhooks});
        let path = format!("{CONFIGURATIONS}/{kind}webhookconfigurations");
        let created = self.call("POST", &path, body).await;
        assert_eq!(created.code, 201, "{}", created.body);
        // Lists at an exact revision come from the same cache as the webhooks.
        let revision = created.text("/metadata/resourceVersion").to_string();
        let seen = self.call("GET", &format!("{path}?resourceVersion={revision}"), None).await;
        assert_eq!(seen.code, 200, "{}", seen.body);
    }

    async fn map(&self, name: &str) -> Answer {
        self.call("POST", MAPS, json!({"metadata": {"name": name}, "data": {"a": "1"}})).await
    }
}

#[tokio::test]
async fn a_refusal_is_told_as_the_webhook_said_it() {
    let server = Server::start().await;
    let hook = Hook::start(|asking| {
        if asking["object"]["data"]["a"] == "bad" {
            Reply::Response(json!({
                "allowed": false, "warnings": ["look out"],
                "status": {"code": 422, "reason": "Own", "message": "a is bad", "details": {"causes": [{"field": "data.a"}]}},
            }))
        } else {
            Reply::Response(json!({"allowed": true, "warnings": ["fine, though"]}))
        }
    })
    .await;
    server.hook("validating", "v", vec![webhook("v", hook.client(), &json!({}))]).await;
    let created = server.map("m").await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(created.warnings(), ["fine, though"]);
    let asking = &hook.asked()[0];
    for (pointer, expected) in [
        ("/operation", json!("CREATE")),
        ("/kind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("/resource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("/requestKind/kind", json!("ConfigMap")),
        ("/name", json!("m")),
        ("/namespace", json!("default")),
        ("/userInfo/username", json!("admin")),
        ("/object/metadata/name", json!("m")),
        ("/oldObject", Value::Null),
        ("/dryRun", json!(false)),
        ("/options/kind", json!("CreateOptions")),
    ] {
        assert_eq!(asking.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(asking["object"]["metadata"]["uid"].is_string());
    let patch = json!({"data": {"a": "bad"}});
    let refused = server.patch(&format!("{MAPS}/m?dryRun=All"), "merge", patch).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(refused.text("/message"), "admission webhook \"v.example.com\" denied the request: a is bad");
    assert_eq!((refused.text("/reason"), refused.text("/details/causes/0/field")), ("Own", "data.a"));
    let asking = hook.asked().pop().unwrap();
    assert_eq!(asking["operation"], "UPDATE");
    assert_eq!((&asking["oldObject"]["data"]["a"], &asking["dryRun"]), (&json!("1"), &json!(true)));
    assert_eq!(asking["options"]["kind"], "UpdateOptions");
}

#[tokio::test]
async fn objects_are_changed_in_order_and_checked_again() {
    let server = Server::start().await;
    let add = |key: &'static str| {
        move |asking: &Value| {
            let seen = asking["object"]["data"].as_object().map_or(0, serde_json::Map::len);
            patch(json!([{"op": "add", "path": format!("/data/{key}"), "value": seen.to_string()}]))
        }
    };
    let (first, second) = (Hook::start(add("first")).await, Hook::start(add("second")).await);
    // Names decide, not when they were made.
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    server.hook("mutating", "b", vec![webhook("b", second.client(), &json!({}))]).await;
    server.hook("mutating", "a", vec![webhook("a", first.client(), &again)]).await;
    let watching = Hook::start(|_| allow()).await;
    server.hook("validating", "z", vec![webhook("z", watching.client(), &json!({}))]).await;
    let created = server.map("m").await;
    assert_eq!(created.code, 201, "{}", created.body);
    // The first is asked again, since the second changed what it had seen.
    assert_eq!(created.body["data"], json!({"a": "1", "first": "3", "second": "2"}));
    assert_eq!((first.asked().len(), second.asked().len()), (2, 1));
    assert_eq!(
        watching.asked()[0]["object"]["data"],
        created.body["data"],
        "validating ones see the end of it"
    );

    // `a/b` is no key of a config map.
    let broken = Hook::start(|_| patch(json!([{"op": "add", "path": "/data/a~1b", "value": "x"}]))).await;
    server.hook("mutating", "c", vec![webhook("c", broken.client(), &json!({}))]).await;
    let refused = server.map("n").await;
    assert_eq!(refused.code, 422, "what a webhook makes is held to the rules: {}", refused.body);
    let path = format!("{CONFIGURATIONS}/mutatingwebhookconfigurations/c");
    assert_eq!(server.call("DELETE", &path, None).await.code, 200);
    let renaming =
        Hook::start(|_| patch(json!([{"op": "replace", "path": "/metadata/name", "value": "x"}]))).await;
    server.hook("mutating", "c", vec![webhook("c", renaming.client(), &json!({}))]).await;
    let refused = server.map("o").await;
    assert_eq!(refused.code, 500, "{}", refused.body);
    assert!(refused.text("/message").contains("changed metadata.name"), "{}", refused.body);
}

#[tokio::test]
async fn a_webhook_that_fails_costs_its_own_request() {
    let server = Server::start().await;
    let (hang, garbage, wrong) = (
        Hook::start(|_| Reply::Hang).await,
        Hook::start(|_| Reply::Raw(200, "<html>")).await,
        Hook::start(|_| Reply::Raw(503, "not now")).await,
    );
    let nobody = json!({"url": "https://127.0.0.1:1/x", "caBundle": hang.bundle});
    let stranger = json!({"url": hang.url, "caBundle": garbage.bundle});
    let quick = json!({"timeoutSeconds": 1});
    for (client, part) in [
        (hang.client(), "context deadline exceeded"),
        (garbage.client(), "received invalid webhook response: the answer is not valid JSON"),
        (wrong.client(), "503 Service Unavailable: not now"),
        (nobody, "Connection refused"),
        (stranger, "certificate"),
    ] {
        let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/v");
        server.hook("validating", "v", vec![webhook("v", client.clone(), &quick)]).await;
        let refused = server.map("m").await;
        assert_eq!(refused.code, 500, "{}", refused.body);
        let message = refused.text("/message");
        let head = "Internal error occurred: failed calling webhook \"v.example.com\": ";
        assert!(message.starts_with(head) && message.contains(part), "{message}");
        // What it does not want to see goes on as ever.
        assert_eq!(server.call("GET", MAPS, None).await.code, 200);
        assert_eq!(server.call("DELETE", &path, None).await.code, 200);
        let ignore = json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"});
        server.hook("validating", "v", vec![webhook("v", client, &ignore)]).await;
        let created = server.map("m").await;
        assert_eq!(created.code, 201, "{}", created.body);
        assert_eq!(server.call("DELETE", &format!("{MAPS}/m"), None).await.code, 200);
        assert_eq!(server.call("DELETE", &path, None).await.code, 200);
    }
}

#[tokio::test]
async fn what_a_webhook_does_not_want_it_is_not_shown() {
    let server = Server::start().await;
    let deny = Hook::start(|_| Reply::Response(json!({"allowed": false}))).await;
    server.hook("validating", "v", vec![webhook("v", deny.client(), &json!({}))]).await;
    let refused = server.map("m").await;
    assert_eq!(
        (refused.code.as_u16(), refused.text("/message")),
        (400, "admission webhook \"v.example.com\" denied the request without explanation")
    );
    // Another namespace, a label, another kind.
    let elsewhere = json!({"metadata": {"name": "m"}});
    let created = server.call("POST", "/api/v1/namespaces/kube-public/configmaps", elsewhere).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(server.config_map("m", json!({"hooked": "no"})).await.code, 201);
    let secret = json!({"metadata": {"name": "s"}});
    assert_eq!(server.call("POST", "/api/v1/namespaces/default/secrets", secret).await.code, 201);
    // Its own configuration, even where it asks for everything.
    let everything = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}],
        "namespaceSelector": {}});
    server.hook("validating", "w", vec![webhook("w", deny.client(), &everything)]).await;
    let refused =
        server.call("POST", "/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "t"}})).await;
    assert_eq!(refused.code, 400, "{}", refused.body);
    for name in ["v", "w"] {
        let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/{name}");
        assert_eq!(server.call("DELETE", &path, None).await.code, 200);
    }
}

#[tokio::test]
async fn deletions_are_asked_for() {
    let server = Server::start().await;
    let hook = Hook::start(|asking| {
        let keep = asking["oldObject"]["data"]["a"] == "1";
        Reply::Response(json!({"allowed": !keep, "status": {"message": "keep it"}}))
    })
    .await;
    let rules = json!({"rules": [{"operations": ["DELETE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["configmaps"]}]});
    server.hook("validating", "v", vec![webhook("v", hook.client(), &rules)]).await;
    assert_eq!(server.map("m").await.code, 201);
    let refused = server.call("DELETE", &format!("{MAPS}/m"), None).await;
    assert_eq!(refused.code, 400, "{}", refused.body);
    let all = server.call("DELETE", MAPS, None).await;
    assert_eq!(all.code, 400, "{}", all.body);
    let asking = hook.asked().pop().unwrap();
    assert_eq!((&asking["operation"], &asking["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(asking["options"]["kind"], "DeleteOptions");
    assert_eq!(server.patch(&format!("{MAPS}/m"), "merge", json!({"data": {"a": "2"}})).await.code, 200);
    assert_eq!(server.call("DELETE", &format!("{MAPS}/m"), None).await.code, 200);
}

#[tokio::test]
async fn an_eviction_is_shown_as_an_eviction() {
    let server = Server::start().await;
    let hook = Hook::start(|asking| {
        let stays = asking["name"] == "stays";
        Reply::Response(json!({"allowed": !stays, "status": {"message": "not this one"}}))
    })
    .await;
    let rules = json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["pods/eviction", "pods/binding"]}]});
    server.hook("validating", "v", vec![webhook("v", hook.client(), &rules)]).await;
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["stays", "goes"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(server.call("POST", pods, pod).await.code, 201);
    }
    let evict =
        |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    let refused = server.call("POST", &format!("{pods}/stays/eviction"), evict("stays")).await;
    assert!(refused.code == 400 && refused.text("/message").contains("not this one"), "{:#}", refused.body);
    let asking = hook.asked().pop().unwrap();
    assert_eq!(asking["kind"], json!({"group": "policy", "version": "v1", "kind": "Eviction"}));
    assert_eq!((&asking["subResource"], &asking["namespace"]), (&json!("eviction"), &json!("default")));
    assert_eq!(asking["object"]["metadata"]["name"], "stays");
    let done = server.call("POST", &format!("{pods}/goes/eviction"), evict("goes")).await;
    assert_eq!(done.code, 201, "{:#}", done.body);
    let bind = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "stays"}, "target": {"name": "n"}});
    assert_eq!(server.call("POST", &format!("{pods}/stays/binding"), bind).await.code, 400);
    assert_eq!(hook.asked().pop().unwrap()["kind"]["kind"], "Binding");
}

#[tokio::test]
async fn other_versions_of_a_kind_are_the_same_kind() {
    let server = Server::start().await;
    let mut crd = crontabs(json!({}));
    let mut v2 = crd["spec"]["versions"][0].clone();
    v2["name"] = json!("v2");
    v2["storage"] = json!(false);
    crd["spec"]["versions"].as_array_mut().unwrap().push(v2);
    server.define(crd).await;
    let hook = Hook::start(|_| patch(json!([{"op": "add", "path": "/spec/color", "value": "green"}]))).await;
    let of = |policy: &str| {
        json!({"matchPolicy": policy, "namespaceSelector": {}, "rules": [{"operations": ["CREATE"],
            "apiGroups": ["example.com"], "apiVersions": ["v1"], "resources": ["crontabs"]}]})
    };
    server.hook("mutating", "m", vec![webhook("m", hook.client(), &of("Equivalent"))]).await;
    let path = "/apis/example.com/v2/namespaces/default/crontabs";
    let body = |name: &str| {
        let mut body = tab(name, json!({}));
        body["apiVersion"] = json!("example.com/v2");
        body
    };
    let created = server.call("POST", path, body("a")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!((created.text("/spec/color"), created.text("/apiVersion")), ("green", "example.com/v2"));
    let asking = &hook.asked()[0];
    assert_eq!((&asking["kind"]["version"], &asking["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(asking["object"]["apiVersion"], "example.com/v1");
    let configuration = format!("{CONFIGURATIONS}/mutatingwebhookconfigurations/m");
    assert_eq!(server.call("DELETE", &configuration, None).await.code, 200);
    server.hook("mutating", "m", vec![webhook("m", hook.client(), &of("Exact"))]).await;
    let created = server.call("POST", path, body("b")).await;
    assert_eq!((created.code.as_u16(), created.text("/spec/color")), (201, ""), "{}", created.body);
}

#[tokio::test]
async fn a_service_is_found_by_its_endpoints() {
    let server = Server::start().await;
    let hook = Hook::named("hook.default.svc", |_| Reply::Response(json!({"allowed": false}))).await;
    let client =
        json!({"service": {"namespace": "default", "name": "hook", "path": "/x"}, "caBundle": hook.bundle});
    server.hook("validating", "v", vec![webhook("v", client, &json!({}))]).await;
    let refused = server.map("m").await;
    assert!(refused.text("/message").contains("service \"hook\" not found"), "{}", refused.body);
    let service =
        json!({"metadata": {"name": "hook"}, "spec": {"clusterIP": "None", "ports": [{"port": 443}]}});
    assert_eq!(server.call("POST", "/api/v1/namespaces/default/services", service).await.code, 201);
    eventually("the service is known and has no endpoints", async || {
        let refused = server.map("m").await;
        if refused.text("/message").contains("has no address for port 443") {
            Ok(())
        } else {
            Err(refused.body.to_string())
        }
    })
    .await;
    let slice = json!({"metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"port": hook.port, "name": ""}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(server.call("POST", slices, slice).await.code, 201);
    eventually("the webhook is reached", async || {
        let refused = server.map("m").await;
        if refused.text("/message").contains("denied the request") {
            Ok(())
        } else {
            Err(refused.body.to_string())
        }
    })
    .await;
}

#[tokio::test]
async fn dry_runs_go_to_webhooks_without_side_effects_only() {
    let server = Server::start().await;
    let hook = Hook::start(|_| allow()).await;
    let refused = server
        .call("POST", &format!("{CONFIGURATIONS}/validatingwebhookconfigurations"),
            json!({"metadata": {"name": "x"}, "webhooks": [webhook("v", hook.client(), &json!({"sideEffects": "Some"}))]}))
        .await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    server
        .hook("validating", "v", vec![webhook("v", hook.client(), &json!({"sideEffects": "NoneOnDryRun"}))])
        .await;
    let body = json!({"metadata": {"name": "m"}});
    let dry = server.call("POST", &format!("{MAPS}?dryRun=All"), body).await;
    assert_eq!(dry.code, 201, "{}", dry.body);
    assert_eq!(hook.asked()[0]["options"]["dryRun"], json!(["All"]));
}

#[tokio::test]
async fn calls_run_at_once_and_do_not_wait_for_one_another() {
    let server = Server::start().await;
    // Each waits for the other: in a row neither would ever answer.
    let gate = Arc::new(std::sync::Barrier::new(2));
    let waiting = |gate: Arc<std::sync::Barrier>| {
        move |_: &Value| {
            tokio::task::block_in_place(|| gate.wait());
            allow()
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let (a, b) = {
        let (one, two) = (gate.clone(), gate);
        let start =
            runtime.spawn(async move { (Hook::start(waiting(one)).await, Hook::start(waiting(two)).await) });
        start.await.unwrap()
    };
    server
        .hook(
            "validating",
            "v",
            vec![webhook("a", a.client(), &json!({})), webhook("b", b.client(), &json!({}))],
        )
        .await;
    let created = server.map("m").await;
    assert_eq!(created.code, 201, "{}", created.body);
    drop((a, b));
    runtime.shutdown_background();
}

#[tokio::test]
async fn conditions_decide_whether_a_webhook_is_asked() {
    let server = Server::start().await;
    let deny = Hook::start(|_| Reply::Response(json!({"allowed": false}))).await;
    let conditions = |expression: &str| json!({"matchConditions": [{"name": "c", "expression": expression}]});
    for (expression, code) in [
        ("object.data['a'] == '2'", 201),
        ("object.data['a'] == '1'", 400),
        ("request.userInfo.username != 'admin'", 201),
        ("authorizer.requestResource.check('create').allowed()", 400),
        ("object.none == 1", 500),
    ] {
        server.hook("validating", "v", vec![webhook("v", deny.client(), &conditions(expression))]).await;
        let answer = server.map("m").await;
        assert_eq!(answer.code, code, "{expression}: {}", answer.body);
        if code == 201 {
            server.call("DELETE", &format!("{MAPS}/m"), None).await;
        }
        let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/v");
        assert_eq!(server.call("DELETE", &path, None).await.code, 200);
    }
    let broken =
        json!({"metadata": {"name": "x"}, "webhooks": [webhook("v", deny.client(), &conditions("1 +"))]});
    let refused =
        server.call("POST", &format!("{CONFIGURATIONS}/validatingwebhookconfigurations"), broken).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(refused.text("/details/causes/0/field"), "webhooks[0].matchConditions[0].expression");
}

#[tokio::test]
async fn a_scale_is_shown_as_a_scale() {
    let server = Server::start().await;
    let hook = Hook::start(|_| patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]))).await;
    let rules = json!({"objectSelector": {}, "rules": [{"operations": ["UPDATE"], "apiGroups": ["apps"],
        "apiVersions": ["v1"], "resources": ["deployments/scale"]}]});
    server.hook("mutating", "m", vec![webhook("m", hook.client(), &rules)]).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let created = server.call("POST", deployments, deployment).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let path = format!("{deployments}/a/scale");
    let patched = server.patch(&path, "merge", json!({"spec": {"replicas": 9}})).await;
    assert_eq!(
        (patched.code.as_u16(), &patched.body["spec"]["replicas"]),
        (200, &json!(4)),
        "{}",
        patched.body
    );
    let asking = &hook.asked()[0];
    for (pointer, expected) in [
        ("/kind", json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})),
        ("/resource/resource", json!("deployments")),
        ("/subResource", json!("scale")),
        ("/object/spec/replicas", json!(9)),
        ("/oldObject/kind", json!("Scale")),
        ("/oldObject/spec/replicas", json!(2)),
    ] {
        assert_eq!(asking.pointer(pointer), Some(&expected), "{pointer}");
    }
    let whole = server.call("GET", &format!("{deployments}/a"), None).await.body;
    assert_eq!(whole["spec"]["replicas"], 4);
}
