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

/// A signed-in browser: its cookies as header lines.
struct Browser(Vec<String>);

impl Browser {
    async fn sign_in(server: &Server, username: &str, password: &str) -> Option<Self> {
        let body = Some(json!({"username": username, "password": password}));
        let (code, head, _) = ask(server, "POST", "/v1/auth/login", &[], body).await;
        (code == 200).then(|| Self::of(&head))
    }

    fn of(head: &str) -> Self {
        Self(vec![
            format!("Cookie: sheaf_session={}", cookie(head, "sheaf_session")),
            format!("X-Sheaf-CSRF: {}", cookie(head, "sheaf_csrf")),
            "Content-Type: application/json".into(),
        ])
    }

    async fn ask(
        &self,
        server: &Server,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, String, Value) {
        ask(server, method, path, &self.0, body).await
    }
}

const SECRETS: &str = "/api/v1/namespaces/harvester-system/secrets";

#[tokio::test]
async fn a_local_user_has_what_rbac_gives_and_no_more() {
    let server = Server::start().await;
    let body = Some(json!({"password": "amber field of barley"}));
    let (_, head, _) = ask(&server, "POST", "/v1/auth/setup", &[], body).await;
    let admin = Browser::of(&head);

    // An account is a Secret; the server makes the hash.
    let (code, _, answer) =
        admin.ask(&server, "POST", "/v1/auth/hash", Some(json!({"password": "short"}))).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("password")));
    let first = "green hills in the rain";
    let (_, _, answer) = admin.ask(&server, "POST", "/v1/auth/hash", Some(json!({"password": first}))).await;
    let user = json!({
        "metadata": {"name": "sheaf-user-ann"}, "type": "sheaf.io/local-user",
        "stringData": {"password-hash": answer["hash"], "groups": "dev,system:masters"},
    });
    assert_eq!(admin.ask(&server, "POST", SECRETS, Some(user)).await.0, 201);
    let binding = json!({
        "metadata": {"name": "ann"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(admin.ask(&server, "POST", bindings, Some(binding)).await.0, 201);

    assert!(Browser::sign_in(&server, "ann", "a wrong password").await.is_none());
    let ann = Browser::sign_in(&server, "ann", first).await.expect("ann signs in");
    let (_, _, who) = ann.ask(&server, "GET", "/v1/auth/session", None).await;
    assert_eq!(who["user"], json!({"name": "ann", "groups": ["dev", "system:authenticated"]}));
    assert_eq!(who["namespaces"], json!(["default"]));
    assert_eq!(ann.ask(&server, "GET", "/api/v1/namespaces/default/configmaps", None).await.0, 200);
    for forbidden in ["/api/v1/namespaces/kube-system/configmaps", SECRETS] {
        assert_eq!(ann.ask(&server, "GET", forbidden, None).await.0, 403, "{forbidden}");
    }

    // What is used over time is seen by whoever sees the objects.
    for (of, code) in [
        ("namespaces/default/virtualmachines", 200),
        ("namespaces/default/virtualmachines/none", 200),
        ("namespaces/kube-system/virtualmachines", 403),
        ("virtualmachines", 403),
        ("nodes", 403),
        ("pods", 404),
    ] {
        let path = format!("/v1/usage/{of}");
        assert_eq!(ann.ask(&server, "GET", &path, None).await.0, code, "{of}");
        let all = if code == 404 { 404 } else { 200 };
        assert_eq!(admin.ask(&server, "GET", &path, None).await.0, all, "{of}");
        assert!(ask(&server, "GET", &path, &[], None).await.0 > 400, "{of}");
    }
    let refused = ann.ask(&server, "POST", "/v1/auth/hash", Some(json!({"password": first}))).await;
    assert_eq!(refused.0, 403, "hashes are for those who manage users");

    // A password of her own: the other session ends, this one goes on with new cookies.
    let other = Browser::sign_in(&server, "ann", first).await.expect("a second browser");
    let second = "blue hills in the snow";
    let change = |current: &str| Some(json!({"current": current, "password": second}));
    let (code, _, answer) = ann.ask(&server, "POST", "/v1/auth/password", change("not it at all")).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (403, &json!("current")));
    let (code, head, answer) = ann.ask(&server, "POST", "/v1/auth/password", change(first)).await;
    assert_eq!(code, 200, "{answer}");
    let ann = Browser::of(&head);
    assert_eq!(other.ask(&server, "GET", "/api/v1/namespaces/default/configmaps", None).await.0, 401);
    assert_eq!(ann.ask(&server, "GET", "/api/v1/namespaces/default/configmaps", None).await.0, 200);
    assert!(Browser::sign_in(&server, "ann", first).await.is_none());

    // Without the account there is no session; it is looked at after a restart in any case.
    assert_eq!(admin.ask(&server, "DELETE", &format!("{SECRETS}/sheaf-user-ann"), None).await.0, 200);
    let Server { api, dir, store } = server;
    api.shutdown().await;
    drop(store);
    let server = Server::start_again(dir).await;
    assert_eq!(ann.ask(&server, "GET", "/api/v1/namespaces/default/configmaps", None).await.0, 401);
    assert_eq!(admin.ask(&server, "GET", "/api/v1/namespaces/default/configmaps", None).await.0, 200);
    server.api.shutdown().await;
}

#[tokio::test]
async fn a_websocket_needs_a_ticket_of_its_session() {
    let server = Server::start().await;
    let body = Some(json!({"password": "amber field of barley"}));
    let (_, head, _) = ask(&server, "POST", "/v1/auth/setup", &[], body).await;
    let admin = Browser::of(&head);
    let path = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/none/console";
    let mut lines = vec![admin.0[0].clone(), "Origin: https://sheaf:1".into(), "Upgrade: websocket".into()];
    lines.push("Sec-WebSocket-Version: 13".into());
    lines.push("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==".into());
    assert_eq!(ask(&server, "GET", path, &lines, None).await.0, 403, "without");
    let refused =
        admin.ask(&server, "POST", "/v1/auth/ticket", Some(json!({"path": "/v1/auth/login"}))).await;
    assert_eq!(refused.0, 422);
    let (_, _, answer) = admin.ask(&server, "POST", "/v1/auth/ticket", Some(json!({"path": path}))).await;
    let with = format!("{path}?ticket={}", answer["ticket"].as_str().unwrap());
    assert_eq!(ask(&server, "GET", &with, &lines, None).await.0, 404, "the machine is what is missing");
    assert_eq!(ask(&server, "GET", &with, &lines, None).await.0, 403, "once");
    server.api.shutdown().await;
}

/// Opens a watch and waits until it has begun; the rest of it as a task.
async fn watch(server: &Server, path: &str, lines: &[String]) -> tokio::task::JoinHandle<()> {
    let mut stream = connect(server, None).await.unwrap();
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: sheaf:1\r\n");
    for line in lines {
        text.push_str(&format!("{line}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.1 101"), "{head}");
    tokio::spawn(async move {
        let (mut rest, mut piece) = (Vec::new(), [0; 4096]);
        // A body of pieces ends with an empty one; the connection may stay for the next request.
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            rest.extend_from_slice(&piece[..length]);
            if rest.ends_with(b"\r\n0\r\n\r\n") || rest == b"0\r\n\r\n" {
                break;
            }
        }
    })
}

/// The end of a watch; it comes within a time that only a fault takes.
async fn ends(watch: tokio::task::JoinHandle<()>) {
    tokio::time::timeout(std::time::Duration::from_secs(60), watch)
        .await
        .expect("the watch goes on")
        .unwrap();
}

async fn setup(server: &Server) -> Browser {
    let body = Some(json!({"password": "amber field of barley"}));
    let (_, head, _) = ask(server, "POST", "/v1/auth/setup", &[], body).await;
    Browser::of(&head)
}

/// A local user who may do everything in one namespace.
async fn add_user(server: &Server, admin: &Browser, name: &str, password: &str) {
    let (_, _, answer) =
        admin.ask(server, "POST", "/v1/auth/hash", Some(json!({"password": password}))).await;
    let user = json!({
        "metadata": {"name": format!("sheaf-user-{name}")}, "type": "sheaf.io/local-user",
        "stringData": {"password-hash": answer["hash"]},
    });
    assert_eq!(admin.ask(server, "POST", SECRETS, Some(user)).await.0, 201);
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(admin.ask(server, "POST", bindings, Some(binding)).await.0, 201);
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn what_a_session_opened_ends_with_it() {
    let server = Server::start().await;
    let admin = setup(&server).await;
    let password = "green hills in the rain";
    add_user(&server, &admin, "ann", password).await;
    let watching = format!("{MAPS}?watch=true");

    // Signing out everywhere, from another browser; a watch over HTTP, and one over a WebSocket.
    let (one, two) = (
        Browser::sign_in(&server, "ann", password).await.unwrap(),
        Browser::sign_in(&server, "ann", password).await.unwrap(),
    );
    let plain = watch(&server, &watching, &one.0).await;
    let (_, _, answer) = one.ask(&server, "POST", "/v1/auth/ticket", Some(json!({"path": MAPS}))).await;
    let mut lines = vec![one.0[0].clone(), "Origin: https://sheaf:1".into(), "Connection: Upgrade".into()];
    lines.extend(["Upgrade: websocket".into(), "Sec-WebSocket-Version: 13".into()]);
    lines.push("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==".into());
    let ticket = answer["ticket"].as_str().unwrap();
    let socket = watch(&server, &format!("{watching}&ticket={ticket}"), &lines).await;
    let others = watch(&server, &watching, &admin.0).await;
    assert_eq!(two.ask(&server, "POST", "/v1/auth/logout?everywhere=true", None).await.0, 200);
    ends(plain).await;
    ends(socket).await;

    // Another password: the watch of the very session that it was given in, too.
    let one = Browser::sign_in(&server, "ann", password).await.unwrap();
    let plain = watch(&server, &watching, &one.0).await;
    let (code, head, _) = one
        .ask(
            &server,
            "POST",
            "/v1/auth/password",
            Some(json!({"current": password, "password": "blue hills in the snow"})),
        )
        .await;
    assert_eq!(code, 200);
    ends(plain).await;

    // Disabled, while nobody asks for anything.
    let one = Browser::of(&head);
    let plain = watch(&server, &watching, &one.0).await;
    let lines = [admin.0[0].clone(), admin.0[1].clone(), "Content-Type: application/merge-patch+json".into()];
    let patch = json!({"stringData": {"disabled": "true"}});
    let user = format!("{SECRETS}/sheaf-user-ann");
    assert_eq!(ask(&server, "PATCH", &user, &lines, Some(patch)).await.0, 200);
    ends(plain).await;
    assert!(!others.is_finished(), "what others opened goes on");
    server.api.shutdown().await;
}

#[tokio::test]
async fn a_user_has_a_token_for_a_while() {
    let server = Server::start().await;
    let admin = setup(&server).await;
    let password = "green hills in the rain";
    add_user(&server, &admin, "ann", password).await;
    let ann = Browser::sign_in(&server, "ann", password).await.unwrap();
    let token = |seconds: i64| Some(json!({"expirationSeconds": seconds}));
    let (code, _, answer) = ann.ask(&server, "POST", "/v1/auth/token", token(5)).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("expirationSeconds")));
    assert_eq!(
        ask(&server, "POST", "/v1/auth/token", &ann.0[..1], token(3600)).await.0,
        403,
        "no CSRF value"
    );
    let (code, _, answer) = ann.ask(&server, "POST", "/v1/auth/token", token(3600)).await;
    assert_eq!(code, 200, "{answer}");
    let bearer = [
        format!("Authorization: Bearer {}", answer["token"].as_str().unwrap()),
        "Content-Type: application/json".into(),
    ];
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, _, who) = ask(&server, "POST", reviews, &bearer, Some(review)).await;
    assert_eq!(who["status"]["userInfo"]["username"], json!("ann"), "{who}");
    let map = json!({"metadata": {"name": "made"}});
    assert_eq!(ask(&server, "POST", MAPS, &bearer, Some(map)).await.0, 201, "her rights");
    assert_eq!(ask(&server, "GET", SECRETS, &bearer, None).await.0, 403, "and no more");
    assert_eq!(
        ask(&server, "POST", "/v1/auth/token", &bearer, token(3600)).await.0,
        401,
        "a token makes none"
    );

    // It outlives a restart, and nothing that ends her sessions.
    let Server { api, dir, store } = server;
    api.shutdown().await;
    drop(store);
    let server = Server::start_again(dir).await;
    assert_eq!(ask(&server, "GET", MAPS, &bearer, None).await.0, 200);
    let open = watch(&server, &format!("{MAPS}?watch=true"), &bearer).await;
    assert_eq!(ann.ask(&server, "POST", "/v1/auth/logout?everywhere=true", None).await.0, 200);
    assert_eq!(ask(&server, "GET", MAPS, &bearer, None).await.0, 401);
    ends(open).await;
    server.api.shutdown().await;
}
