//! Tokens of service accounts: made, used, reviewed, and no longer good.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use sheaf_apiserver::UserInfo;

use super::{
    get,
    rbac::{make, send},
};
use crate::harness::{Answer, Server, eventually};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

async fn account(server: &Server, name: &str) {
    make(server, ACCOUNTS, json!({"metadata": {"name": name}})).await;
}

async fn request(server: &Server, name: &str, spec: Value) -> Answer {
    server.call("POST", &format!("{ACCOUNTS}/{name}/token"), json!({"spec": spec})).await
}

/// A token for an account.
async fn token(server: &Server, name: &str, spec: Value) -> String {
    let answer = request(server, name, spec).await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    answer.text("/status/token").to_owned()
}

/// The claims in a token.
fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// What a TokenReview says: the user's name, or the error.
async fn review(server: &Server, token: &str, audiences: &[&str]) -> Result<Value, String> {
    let body = json!({"spec": {"token": token, "audiences": audiences}});
    let answer = server.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body).await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    match answer.body.pointer("/status/authenticated") {
        Some(Value::Bool(true)) => Ok(answer.body["status"].clone()),
        _ => Err(answer.text("/status/error").to_owned()),
    }
}

/// Who the server takes the bearer of a token for, over HTTPS; the status line where it takes them for nobody.
async fn bearer(server: &Server, token: &str) -> String {
    let line = format!("Authorization: Bearer {token}\r\n");
    get(server, None, "/api", &line).await.unwrap().lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_token_is_for_an_account_a_purpose_and_a_while() {
    let server = Server::start().await;
    account(&server, "robot").await;
    let answer = request(&server, "robot", json!({"expirationSeconds": 600, "audiences": ["vault"]})).await;
    assert_eq!(answer.text("/kind"), "TokenRequest");
    assert_eq!(answer.text("/metadata/name"), "robot");
    let found = claims(answer.text("/status/token"));
    assert_eq!(found["aud"], json!(["vault"]));
    assert_eq!(found["exp"].as_i64().unwrap() - found["iat"].as_i64().unwrap(), 600);
    assert_eq!(found["sub"], "system:serviceaccount:default:robot");
    assert_eq!(found["iss"], ISSUER);
    assert_eq!(found["kubernetes.io"]["serviceaccount"]["name"], "robot");
    for (name, spec, code, why) in [
        ("robot", json!({"expirationSeconds": 599}), 422, "may not specify a duration less than 10 minutes"),
        (
            "robot",
            json!({"expirationSeconds": 4_294_967_297_i64}),
            422,
            "may not specify a duration larger than 2^32 seconds",
        ),
        (
            "robot",
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}}),
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        (
            "robot",
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "x"}}),
            404,
            "secrets \"x\" not found",
        ),
        ("nobody", json!({}), 404, "serviceaccounts \"nobody\" not found"),
    ] {
        let answer = request(&server, name, spec).await;
        assert_eq!(answer.code, code, "{:?}", answer.body);
        assert!(answer.text("/message").contains(why), "{:?}", answer.body);
    }
    let joe = UserInfo::new("joe", []);
    let answer = send(&server, &joe, "POST", &format!("{ACCOUNTS}/robot/token"), json!({})).await;
    assert_eq!(
        answer.text("/message"),
        "serviceaccounts \"robot\" is forbidden: User \"joe\" cannot create resource \"serviceaccounts/token\" in API group \"\" in the namespace \"default\""
    );
}

#[tokio::test]
async fn whoever_has_the_token_is_the_account() {
    let server = Server::start().await;
    account(&server, "robot").await;
    let good = token(&server, "robot", json!({})).await;
    let status = review(&server, &good, &[]).await.unwrap();
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    assert_eq!(
        status["user"]["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    assert!(
        status["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]
            .as_str()
            .unwrap()
            .starts_with("JTI=")
    );
    assert_eq!(status["audiences"], json!([ISSUER]));
    assert_eq!(bearer(&server, &good).await, "HTTP/1.1 200 OK");
    let line = format!("Authorization: Bearer {good}\r\n");
    let refused = get(&server, None, "/api/v1/nodes", &line).await.unwrap();
    assert!(
        refused.contains("User \\\"system:serviceaccount:default:robot\\\" cannot list resource"),
        "{refused}"
    );

    let vault = token(&server, "robot", json!({"audiences": ["vault", "other"]})).await;
    assert_eq!(review(&server, &vault, &["vault", "x"]).await.unwrap()["audiences"], json!(["vault"]));
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let mut other = claims(&good);
    other["kubernetes.io"]["serviceaccount"]["name"] = json!("admin");
    other["sub"] = json!("system:serviceaccount:default:admin");
    let elsewhere = Server::start().await;
    account(&elsewhere, "robot").await;
    for (what, bad, why) in [
        (
            "of another audience",
            vault,
            format!(
                "[invalid bearer token, token audiences [\"vault\" \"other\"] is invalid for the target audiences [\"{ISSUER}\"]]"
            ),
        ),
        (
            "signed by another cluster",
            token(&elsewhere, "robot", json!({})).await,
            "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]".into(),
        ),
        (
            "without a signature",
            format!("{}.{}.", encode(json!({"alg": "none"})), parts[1]),
            "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]".into(),
        ),
        (
            "with other claims",
            format!("{}.{}.{}", parts[0], encode(other), parts[2]),
            "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]".into(),
        ),
        ("that is none", "nonsense".into(), "invalid bearer token".into()),
        (
            "of another issuer",
            format!("{}.{}.{}", parts[0], encode(json!({"iss": "x"})), parts[2]),
            "invalid bearer token".into(),
        ),
    ] {
        assert_eq!(review(&server, &bad, &[]).await, Err(why), "{what}");
        assert_eq!(bearer(&server, &bad).await, "HTTP/1.1 401 Unauthorized", "{what}");
    }
    let empty = server.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {}})).await;
    assert_eq!(
        (empty.code.as_u16(), empty.text("/message")),
        (400, "token is required for TokenReview in authentication")
    );
}

#[tokio::test]
async fn a_token_falls_with_what_it_is_bound_to() {
    let server = Server::start().await;
    account(&server, "robot").await;
    make(&server, "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    make(&server, "/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "robot", "nodeName": "n",
        "containers": [{"name": "c", "image": "i"}]}});
    make(&server, "/api/v1/namespaces/default/pods", pod).await;
    let gone = Err("[invalid bearer token, service account token has been invalidated]".to_owned());
    for (kind, name, path) in [
        ("Pod", "p", "/api/v1/namespaces/default/pods/p"),
        ("Secret", "s", "/api/v1/namespaces/default/secrets/s"),
        ("Node", "n", "/api/v1/nodes/n"),
    ] {
        let bound = json!({"apiVersion": "v1", "kind": kind, "name": name});
        let mut wrong = bound.clone();
        wrong["uid"] = json!("x");
        let refused = request(&server, "robot", json!({"boundObjectRef": wrong})).await;
        assert_eq!(refused.code, 409, "{:?}", refused.body);
        let token = token(&server, "robot", json!({"boundObjectRef": bound})).await;
        let status = review(&server, &token, &[]).await.unwrap();
        if kind == "Pod" {
            let extra = &status["user"]["extra"];
            assert_eq!(extra["authentication.kubernetes.io/pod-name"], json!(["p"]));
            assert_eq!(extra["authentication.kubernetes.io/node-name"], json!(["n"]));
        }
        let deleted = server.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), None).await;
        assert_eq!(deleted.code, 200, "{:?}", deleted.body);
        assert_eq!(review(&server, &token, &[]).await, gone, "{kind}");
    }
    let token = token(&server, "robot", json!({})).await;
    let path = format!("{ACCOUNTS}/robot");
    server.call("DELETE", &path, None).await;
    assert_eq!(
        review(&server, &token, &[]).await,
        Err("[invalid bearer token, serviceaccounts \"robot\" not found]".into())
    );
    account(&server, "robot").await;
    let why = review(&server, &token, &[]).await.unwrap_err();
    assert!(why.contains("does not match claim"), "the new account is another: {why}");
}

#[tokio::test]
async fn a_token_that_is_kept_in_a_secret() {
    let server = Server::start().await;
    account(&server, "robot").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |name: &str, account: &str| {
        json!({
            "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token",
        })
    };
    make(&server, secrets, secret("long-lived", "robot")).await;
    let path = format!("{secrets}/long-lived");
    let filled = eventually("the token is filled in", async || {
        let secret = server.call("GET", &path, None).await.body;
        if secret["data"]["token"].is_string() { Ok(secret) } else { Err(secret.to_string()) }
    })
    .await;
    let text = |key: &str| {
        String::from_utf8(STANDARD.decode(filled["data"][key].as_str().unwrap()).unwrap()).unwrap()
    };
    assert_eq!(text("namespace"), "default");
    assert!(text("ca.crt").contains("BEGIN CERTIFICATE"));
    assert!(filled["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string());
    let token = text("token");
    assert_eq!(
        review(&server, &token, &[]).await.unwrap()["user"]["username"],
        "system:serviceaccount:default:robot"
    );
    assert_eq!(bearer(&server, &token).await, "HTTP/1.1 200 OK");

    // Another token in the Secret: the old one is no longer good.
    server.patch(&path, "merge", json!({"data": {"token": null}})).await;
    eventually("a new token is filled in", async || {
        let secret = server.call("GET", &path, None).await.body;
        if secret["data"]["token"].is_string() { Ok(()) } else { Err(secret.to_string()) }
    })
    .await;
    server.call("DELETE", &path, None).await;
    assert_eq!(bearer(&server, &token).await, "HTTP/1.1 401 Unauthorized");

    make(&server, secrets, secret("again", "robot")).await;
    make(&server, secrets, secret("orphan", "nobody")).await;
    server.call("DELETE", &format!("{ACCOUNTS}/robot"), None).await;
    for name in ["again", "orphan"] {
        eventually("Secrets of accounts that are gone go too", async || {
            let code = server.call("GET", &format!("{secrets}/{name}"), None).await.code;
            if code == 404 { Ok(()) } else { Err(format!("{name}: {code}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn others_can_verify_tokens_themselves() {
    let server = Server::start().await;
    account(&server, "robot").await;
    let robot = UserInfo::service_account("default", "robot", "");
    let config = "/.well-known/openid-configuration";
    let answer = send(&server, &robot, "GET", config, Value::Null).await;
    assert_eq!(answer.text("/issuer"), ISSUER);
    assert!(answer.text("/jwks_uri").ends_with("/openid/v1/jwks"));
    assert_eq!(answer.body["id_token_signing_alg_values_supported"], json!(["ES256"]));
    let keys = send(&server, &robot, "GET", "/openid/v1/jwks", Value::Null).await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(send(&server, &UserInfo::new("joe", []), "GET", config, Value::Null).await.code, 403);
    assert_eq!(send(&server, &UserInfo::anonymous(), "GET", config, Value::Null).await.code, 401);

    let token = token(&server, "robot", json!({})).await;
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap();
    let key = keys.body["keys"].as_array().unwrap().iter().find(|k| k["kid"] == header["kid"]).unwrap();
    let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], part("x"), part("y")].concat();
    let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    public.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
}
