//! Who gets in, and what they may do.

use serde_json::json;
use sheaf_apiserver::UserInfo;

use crate::harness::Server;

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
