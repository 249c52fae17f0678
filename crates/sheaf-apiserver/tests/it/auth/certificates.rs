//! Requests for certificates: what is refused, who may approve and who may sign.

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};
use sheaf_apiserver::UserInfo;

use super::rbac::{grant, rule, send};
use crate::harness::Server;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// A request for a certificate, in base64.
fn request(name: &str, organization: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    let key = KeyPair::generate().unwrap();
    STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

fn object(name: &str, request: &str, signer: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"request": request, "signerName": signer, "usages": ["client auth"], "username": "forged", "groups": ["system:masters"]},
    })
}

fn approved() -> Value {
    json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}})
}

#[tokio::test]
async fn the_server_says_who_asks_and_nobody_changes_it() {
    let server = Server::start().await;
    grant(
        &server,
        "asks",
        "joe",
        "",
        json!([rule(&["create", "get", "patch"], "certificates.k8s.io", &["certificatesigningrequests"])]),
    )
    .await;
    let joe = UserInfo::new("joe", ["dev"]);
    let made = send(&server, &joe, "POST", REQUESTS, object("a", &request("joe", "dev"), CLIENT)).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    assert_eq!(
        (made.text("/spec/username"), &made.body["spec"]["groups"]),
        ("joe", &json!(["dev", "system:authenticated"]))
    );
    let path = format!("{REQUESTS}/a");
    let patched = send(
        &server,
        &joe,
        "PATCH",
        &path,
        json!({"spec": {"username": "ann"}, "status": {"certificate": "eA=="}}),
    )
    .await;
    assert_eq!((patched.text("/spec/username"), patched.body.pointer("/status/certificate")), ("joe", None));
    for (object, code, why) in [
        (
            object("m", &request("joe", "system:masters"), CLIENT),
            403,
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed",
        ),
        (object("b", &STANDARD.encode("nonsense"), CLIENT), 422, "spec.request: Invalid value"),
        (
            object("c", &request("joe", "dev"), "kubernetes.io/legacy-unknown"),
            422,
            "the legacy signerName is not allowed via this API version",
        ),
    ] {
        let refused = send(&server, &joe, "POST", REQUESTS, object).await;
        assert_eq!(refused.code, code, "{:?}", refused.body);
        assert!(refused.text("/message").contains(why), "{:?}", refused.body);
    }
}

#[tokio::test]
async fn who_approves_and_who_signs() {
    let server = Server::start().await;
    let verbs = ["get", "update", "patch"];
    let parts = ["certificatesigningrequests/approval", "certificatesigningrequests/status"];
    let signers = |verb: &str, name: &str| {
        let mut rule = rule(&[verb], "certificates.k8s.io", &["signers"]);
        rule["resourceNames"] = json!([name]);
        rule
    };
    let writes = rule(&verbs, "certificates.k8s.io", &parts);
    grant(&server, "writes", "joe", "", json!([writes])).await;
    grant(&server, "approves", "ann", "", json!([writes, signers("approve", CLIENT)])).await;
    grant(&server, "signs", "bob", "", json!([writes, signers("sign", "example.com/*")])).await;
    let admin = UserInfo::new("admin", ["system:masters"]);
    let [joe, ann, bob] = ["joe", "ann", "bob"].map(|name| UserInfo::new(name, []));
    for (name, signer) in [("a", CLIENT), ("b", "example.com/own")] {
        let made =
            send(&server, &admin, "POST", REQUESTS, object(name, &request("joe", "dev"), signer)).await;
        assert_eq!(made.code, 201, "{:?}", made.body);
    }
    let ca = STANDARD.encode(server.api.ca().cert_pem());
    let certificate = json!({"status": {"certificate": ca}});
    let failed = json!({"status": {"conditions": [{"type": "Failed", "status": "True"}]}});
    for (who, path, patch, code, why) in [
        (
            &joe,
            "a/approval",
            approved(),
            403,
            "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\"",
        ),
        (
            &ann,
            "b/approval",
            approved(),
            403,
            "user not permitted to approve requests with signerName \"example.com/own\"",
        ),
        (&ann, "a/status", approved(), 403, "user not permitted to sign requests with signerName"),
        (&admin, "a/status", approved(), 422, "updates may not add a condition of type \"Approved\""),
        (&ann, "a/approval", certificate.clone(), 200, ""),
        (&ann, "a/approval", approved(), 200, ""),
        (
            &ann,
            "a/approval",
            json!({"status": {"conditions": []}}),
            422,
            "updates may not remove a condition of type \"Approved\"",
        ),
        (
            &joe,
            "b/status",
            certificate.clone(),
            403,
            "user not permitted to sign requests with signerName \"example.com/own\"",
        ),
        (&joe, "b/status", failed, 403, "user not permitted to sign requests"),
        (&joe, "b/status", json!({"metadata": {"labels": {"a": "b"}}}), 200, ""),
        (
            &bob,
            "b/status",
            json!({"status": {"certificate": STANDARD.encode("x")}}),
            422,
            "must contain at least one CERTIFICATE PEM block",
        ),
        (&bob, "b/status", certificate, 200, ""),
    ] {
        let answer = send(&server, who, "PATCH", &format!("{REQUESTS}/{path}"), patch.clone()).await;
        assert_eq!(answer.code, code, "{} {path} {patch}: {:?}", who.username, answer.body);
        assert!(answer.text("/message").contains(why), "{:?}", answer.body);
    }
    let a = server.call("GET", &format!("{REQUESTS}/a"), None).await;
    assert!(a.body.pointer("/status/certificate").is_none(), "whoever approves does not sign: {:?}", a.body);
    let condition = &a.body["status"]["conditions"][0];
    assert!(
        condition["lastUpdateTime"].is_string() && condition["lastTransitionTime"].is_string(),
        "{condition}"
    );
    let out = server.kubectl("get csr").await;
    assert!(out.contains("Approved") && out.contains("Pending,Issued"), "{out}");
}

#[tokio::test]
async fn kubectl_approves_and_denies() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.call("POST", REQUESTS, object(name, &request("joe", "dev"), CLIENT)).await;
    }
    assert!(server.kubectl("certificate approve a").await.contains("approved"));
    assert!(server.kubectl("certificate deny b").await.contains("denied"));
    let conditions = server.kubectl("get csr -o jsonpath={.items[*].status.conditions[*].type}").await;
    assert_eq!(conditions, "Approved Denied");
    let (ok, _, err) = server.try_kubectl("certificate approve b", "").await;
    assert!(!ok && err.contains("already Denied"), "{err}");
}

/// What a suite that knows only the API does with requests of a signer of its own.
#[tokio::test]
async fn subresources_by_every_verb() {
    let server = Server::start().await;
    let mut asked = object("", &request("e2e", "dev"), "example.com/e2e");
    asked["metadata"] = json!({"generateName": "e2e-", "labels": {"suite": "x"}});
    asked["spec"]["expirationSeconds"] = json!(3600);
    let made = server.call("POST", REQUESTS, asked).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    let path = format!("{REQUESTS}/{}", made.text("/metadata/name"));
    let listed = server
        .call("GET", &format!("{REQUESTS}?fieldSelector=spec.signerName%3Dexample.com%2Fe2e"), None)
        .await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    let condition = |ty: &str| json!([{"type": ty, "status": "True", "reason": "e2e", "message": "set"}]);
    let noted =
        |note: &str, status: Value| json!({"metadata": {"annotations": {note: "true"}}, "status": status});
    let patched = server
        .patch(
            &format!("{path}/approval"),
            "merge",
            noted("by-approval", json!({"conditions": condition("ApprovalPatch")})),
        )
        .await;
    assert_eq!(patched.text("/status/conditions/0/type"), "ApprovalPatch");
    assert_eq!(patched.text("/metadata/annotations/by-approval"), "true");
    let mut whole = server.call("GET", &format!("{path}/approval"), None).await.body;
    whole["status"]["conditions"].as_array_mut().unwrap().push(condition("ApprovalUpdate")[0].clone());
    let put = server.call("PUT", &format!("{path}/approval"), whole).await;
    assert_eq!(put.text("/status/conditions/1/type"), "ApprovalUpdate", "{:?}", put.body);
    let certificate = STANDARD.encode(server.api.ca().cert_pem());
    let status = json!({"certificate": certificate, "conditions": condition("StatusPatch")});
    let patched = server.patch(&format!("{path}/status"), "merge", noted("by-status", status)).await;
    assert_eq!(patched.text("/status/certificate"), certificate, "{:?}", patched.body);
    assert_eq!(patched.text("/metadata/annotations/by-status"), "true");
    let read = server.call("GET", &format!("{path}/status"), None).await;
    assert_eq!(read.text("/status/conditions/0/type"), "StatusPatch");
    let gone = server.call("DELETE", &format!("{REQUESTS}?labelSelector=suite%3Dx"), None).await;
    assert_eq!(gone.code, 200);
    assert_eq!(server.call("GET", &path, None).await.code, 404);
}
