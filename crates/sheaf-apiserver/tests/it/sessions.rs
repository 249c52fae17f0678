//! Signing in with a password, and what the cookie is good for, over HTTPS.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{auth::connect, harness::Server};

/// One request; status, header lines and body.
async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    lines: &[String],
    body: Option<Value>,
) -> (u16, String, Value) {
    let body = body.map(|b| b.to_string()).unwrap_or_default();
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: sheaf:1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for line in lines {
        text.push_str(&format!("{line}\r\n"));
    }
    let mut stream = connect(server, None).await.unwrap();
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end without a close_notify is an end, too.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_owned(), serde_json::from_str(body).unwrap_or_default())
}

/// The value of a cookie that an answer sets.
fn cookie(head: &str, name: &str) -> String {
    let start = format!("set-cookie: {name}=");
    let line = head.lines().find(|l| l.to_lowercase().starts_with(&start)).unwrap();
    line[start.len()..].split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn from_the_first_password_to_signing_out() {
    let server = Server::start().await;
    let password = "amber field of barley";
    let (code, _, first) = ask(&server, "GET", "/v1/auth/session", &[], None).await;
    assert_eq!(
        (code, &first["setup"], &first["codeNeeded"]),
        (200, &json!(true), &json!(false)),
        "at this machine"
    );
    let proxied = ["X-Forwarded-For: 192.0.2.7".to_string()];
    let (code, _, answer) =
        ask(&server, "POST", "/v1/auth/setup", &proxied, Some(json!({"password": password}))).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (403, &json!("code")));
    let (code, _, answer) =
        ask(&server, "POST", "/v1/auth/setup", &[], Some(json!({"password": "short"}))).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("password")));
    let evil = ["Origin: https://evil".to_string()];
    assert_eq!(
        ask(&server, "POST", "/v1/auth/setup", &evil, Some(json!({"password": password}))).await.0,
        403
    );

    // From elsewhere, with the code of the file.
    let setup_code = std::fs::read_to_string(server.dir.path().join("setup-code")).unwrap();
    let body = json!({"password": password, "code": setup_code});
    let (code, head, answer) = ask(&server, "POST", "/v1/auth/setup", &proxied, Some(body.clone())).await;
    assert_eq!((code, &answer["user"]["name"]), (200, &json!("admin")), "{answer}");
    assert!(
        head.contains("HttpOnly") && head.contains("Secure") && head.contains("SameSite=Strict"),
        "{head}"
    );
    assert!(!server.dir.path().join("setup-code").exists(), "the code is used up");
    assert_eq!(ask(&server, "POST", "/v1/auth/setup", &[], Some(body)).await.0, 409, "only once");

    let with = format!("Cookie: sheaf_session={}", cookie(&head, "sheaf_session"));
    let csrf = format!("X-Sheaf-CSRF: {}", cookie(&head, "sheaf_csrf"));
    let namespaces = "/api/v1/namespaces";
    assert_eq!(ask(&server, "GET", namespaces, &[], None).await.0, 401);
    assert_eq!(ask(&server, "GET", namespaces, std::slice::from_ref(&with), None).await.0, 200);
    let made = Some(json!({"metadata": {"name": "made"}}));
    let json_body = "Content-Type: application/json".to_string();
    let (code, _, answer) =
        ask(&server, "POST", namespaces, &[with.clone(), json_body.clone()], made.clone()).await;
    assert_eq!(code, 403, "without the header: {answer}");
    assert_eq!(ask(&server, "POST", namespaces, &[with.clone(), csrf.clone(), json_body], made).await.0, 201);

    let login = |password: &str| Some(json!({"username": "admin", "password": password}));
    assert_eq!(ask(&server, "POST", "/v1/auth/login", &[], login("wrong wrong wrong")).await.0, 401);
    let (code, head, _) = ask(&server, "POST", "/v1/auth/login", &[], login(password)).await;
    assert_eq!(code, 200);
    // A restart of the server signs nobody out.
    let Server { api, dir, store } = server;
    api.shutdown().await;
    drop(store);
    let server = Server::start_again(dir).await;
    assert_eq!(ask(&server, "GET", namespaces, std::slice::from_ref(&with), None).await.0, 200);
    let other = format!("Cookie: sheaf_session={}", cookie(&head, "sheaf_session"));
    assert_eq!(ask(&server, "POST", "/v1/auth/logout", std::slice::from_ref(&with), None).await.0, 403);
    assert_eq!(
        ask(&server, "POST", "/v1/auth/logout?everywhere=true", &[with.clone(), csrf], None).await.0,
        200
    );
    for gone in [with, other] {
        assert_eq!(ask(&server, "GET", namespaces, &[gone], None).await.0, 401, "everywhere");
    }
    server.api.shutdown().await;
}

#[tokio::test]
async fn guessing_ends() {
    let server = Server::start().await;
    let body = Some(json!({"password": "amber field of barley"}));
    assert_eq!(ask(&server, "POST", "/v1/auth/setup", &[], body).await.0, 200);
    let mut codes = Vec::new();
    for _ in 0..11 {
        let guess = Some(json!({"username": "admin", "password": "a wrong password"}));
        codes.push(ask(&server, "POST", "/v1/auth/login", &[], guess).await.0);
    }
    assert_eq!(codes[..10], [401; 10]);
    assert_eq!(codes[10], 429);
    server.api.shutdown().await;
}
