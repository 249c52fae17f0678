//! Lists and single reads in all their forms, as tables of cases.

use std::io::Read;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sheaf_apiserver::{UserInfo, authn::MASTERS};
use tower::ServiceExt;

use crate::harness::{Answer, Server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

fn names(answer: &Answer) -> Vec<&str> {
    let items = answer.body["items"].as_array().expect("a list has items");
    items.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect()
}

/// What `limit`, `resourceVersion` and `resourceVersionMatch` mean together.
#[tokio::test]
async fn revisions_limits_and_matches() {
    let server = Server::start().await;
    server.config_map("a", json!({})).await;
    let early = server.config_map("b", json!({})).await.text("/metadata/resourceVersion").to_owned();
    let late = server.config_map("c", json!({})).await.text("/metadata/resourceVersion").to_owned();
    for (query, expected, goes_on) in [
        (String::new(), &["a", "b", "c"][..], false),
        ("resourceVersion=0".into(), &["a", "b", "c"], false),
        ("resourceVersion=0&limit=1".into(), &["a", "b", "c"], false),
        ("limit=2".into(), &["a", "b"], true),
        ("limit=3".into(), &["a", "b", "c"], false),
        (format!("resourceVersion={early}"), &["a", "b", "c"], false),
        (format!("resourceVersion={early}&resourceVersionMatch=NotOlderThan"), &["a", "b", "c"], false),
        (format!("resourceVersion={early}&resourceVersionMatch=NotOlderThan&limit=1"), &["a"], true),
        (format!("resourceVersion={early}&resourceVersionMatch=Exact"), &["a", "b"], false),
        (format!("resourceVersion={early}&limit=5"), &["a", "b"], false),
        (format!("resourceVersion={early}&limit=1"), &["a"], true),
        (format!("resourceVersion={late}&resourceVersionMatch=Exact&limit=2"), &["a", "b"], true),
    ] {
        let answer = server.call("GET", &format!("{MAPS}?{query}"), None).await;
        assert_eq!(answer.code, 200, "{query}: {:?}", answer.body);
        assert_eq!(names(&answer), expected, "{query}");
        assert_eq!(!answer.text("/metadata/continue").is_empty(), goes_on, "{query}");
        assert!(answer.text("/metadata/resourceVersion").parse::<u64>().unwrap() > 0, "{query}");
    }
    for (query, code, says) in [
        (
            "resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Latest",
            422,
            "resourceVersionMatch: Unsupported value: \"Latest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        (
            "sendInitialEvents=true",
            422,
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        ),
        ("limit=x", 400, "limit"),
        ("continue=nonsense", 400, "continue key is not valid"),
        ("labelSelector=a%20b", 400, "found 'b'"),
        ("fieldSelector=spec.x%3D1", 400, "field label not supported: spec.x"),
    ] {
        let answer = server.call("GET", &format!("{MAPS}?{query}"), None).await;
        assert_eq!(answer.code, code, "{query}: {:?}", answer.body);
        assert!(answer.text("/message").contains(says), "{query}: {}", answer.text("/message"));
        assert_eq!(answer.text("/status"), "Failure");
    }
}

/// Chunks with selectors: each full as far as there is enough, none twice, none forgotten, no count of the rest.
#[tokio::test]
async fn chunks_with_selectors() {
    let server = Server::start().await;
    for i in 0..12 {
        let label = if i % 3 == 0 { "yes" } else { "no" };
        server.config_map(&format!("m{i:02}"), json!({"third": label})).await;
    }
    let (mut all, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("{MAPS}?limit=3&labelSelector=third%3Dyes&continue={token}");
        let page = server.call("GET", &path, None).await;
        assert_eq!(page.body["metadata"].get("remainingItemCount"), None);
        all.extend(names(&page).into_iter().map(str::to_owned));
        token = page.text("/metadata/continue").to_owned();
        pages += 1;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((all.join(" "), pages), ("m00 m03 m06 m09".into(), 2));
    for (selector, expected) in [
        ("labelSelector=third", 12),
        ("labelSelector=!third", 0),
        ("labelSelector=third+in+(yes,no)", 12),
        ("labelSelector=third+notin+(yes)", 8),
        ("labelSelector=third!%3Dyes", 8),
        ("fieldSelector=metadata.name%3Dm03", 1),
        ("fieldSelector=metadata.name!%3Dm03", 11),
        ("fieldSelector=metadata.name%3Dm03,metadata.namespace%3Ddefault", 1),
        ("fieldSelector=metadata.name%3Dm03,metadata.namespace%3Dother", 0),
        ("fieldSelector=metadata.name%3Dm0", 0),
        ("fieldSelector=metadata.name%3Dm03&labelSelector=third%3Dno", 0),
    ] {
        for place in [MAPS, "/api/v1/configmaps"] {
            let path = format!("{place}?{selector}&limit=50");
            let answer = server.call("GET", &path, None).await;
            let found = answer.body["items"].as_array().unwrap().iter();
            let found = found.filter(|o| o["metadata"]["name"].as_str().unwrap().starts_with('m')).count();
            assert_eq!(found, expected, "{path}");
        }
    }
}

/// The same objects in every form, each as if it were made from the whole object.
#[tokio::test]
async fn forms() {
    let server = Server::start().await;
    let label = json!({"a": "b"});
    server.config_map("one", label).await;
    let get = async |path: &str, accept: &str| server.send("GET", path, &[("accept", accept)], None).await;
    let one = format!("{MAPS}/one");
    let whole = server.call("GET", &one, None).await;
    let list = server.call("GET", MAPS, None).await;
    assert_eq!(list.body["items"][0], whole.body, "an item is what a GET gives");
    assert_eq!((list.text("/kind"), list.text("/apiVersion")), ("ConfigMapList", "v1"));

    for version in ["v1", "v1beta1"] {
        let meta = format!("meta.k8s.io/{version}");
        let accept = format!("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v={version}");
        let partial = get(&one, &accept).await;
        assert_eq!((partial.text("/kind"), partial.text("/apiVersion")), ("PartialObjectMetadata", &*meta));
        assert_eq!(partial.body["metadata"], whole.body["metadata"]);
        assert_eq!(partial.body.get("data"), None);
        let accept = format!("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v={version}");
        let partials = get(MAPS, &accept).await;
        assert_eq!(partials.text("/kind"), "PartialObjectMetadataList");
        assert_eq!(partials.body["items"][0], partial.body);

        let accept = format!("application/json;as=Table;g=meta.k8s.io;v={version}");
        for (path, include) in
            [(MAPS, "Metadata"), (&one, "Metadata"), (MAPS, "Object"), (MAPS, "None"), (MAPS, "")]
        {
            let path = format!("{path}?includeObject={include}");
            let table = get(&path, &accept).await;
            assert_eq!((table.text("/kind"), table.text("/apiVersion")), ("Table", &*meta), "{path}");
            assert!(!table.text("/metadata/resourceVersion").is_empty(), "{path}");
            assert_eq!(table.body["columnDefinitions"][0]["name"], "Name");
            assert_eq!(table.body["rows"][0]["cells"][0], "one");
            let object = table.body["rows"][0].get("object");
            match include {
                "None" => assert_eq!(object, None),
                "Object" => assert_eq!(object, Some(&whole.body)),
                _ => assert_eq!(object, Some(&partial.body), "{path}"),
            }
        }
    }
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(get(&format!("{MAPS}?includeObject=Some"), table).await.code, 400);
    assert_eq!(get(MAPS, "application/json;as=Table;g=meta.k8s.io;v=v7").await.code, 406);
    // The definitions of the program's own kinds are still being written: the revision moves.
    let other = get(MAPS, "application/cbor,application/json").await;
    assert_eq!((other.text("/kind"), &other.body["items"]), ("ConfigMapList", &list.body["items"]));
    let yaml = get(&one, "application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.body.as_str().unwrap().contains("kind: ConfigMap"), "{:?}", yaml.body);

    // Written to be read by people where people read.
    for (query, agent, indented) in [
        ("", "kubectl/v1.36", false),
        ("pretty=true", "x", true),
        ("", "curl/8", true),
        ("pretty=0", "curl/8", false),
    ] {
        for path in [&one, MAPS] {
            let headers = [("user-agent", agent)];
            let raw = raw(&server, &format!("{path}?{query}"), &headers).await;
            assert_eq!(raw.1.starts_with(b"{\n  \""), indented, "{query} {agent} {path}");
            let value: Value = serde_json::from_slice(&raw.1).unwrap();
            assert!(value["kind"].as_str().unwrap().starts_with("ConfigMap"));
        }
    }
}

async fn raw(server: &Server, path: &str, headers: &[(&str, &str)]) -> (http::HeaderMap, Bytes) {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = path.parse().unwrap();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let response = server.api.in_process(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let headers = response.headers().clone();
    (headers, response.into_body().collect().await.unwrap().to_bytes())
}

/// Large answers are written in pieces; the pieces are the whole, compressed or not.
#[tokio::test]
async fn large_lists_come_in_pieces_and_compressed_where_that_is_wanted() {
    let server = Server::start().await;
    for i in 0..40 {
        let body = json!({"metadata": {"name": format!("big{i:02}")}, "data": {"x": format!("{i:04}").repeat(3000)}});
        assert_eq!(server.call("POST", MAPS, body).await.code, 201);
    }
    let (headers, plain) = raw(&server, MAPS, &[]).await;
    assert!(plain.len() > 400_000 && !headers.contains_key("content-encoding"));
    let whole: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(whole["items"].as_array().unwrap().len(), 40);
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for accept in ["application/json", table] {
        for query in ["", "?includeObject=Object"] {
            let path = format!("{MAPS}{query}");
            let plain = raw(&server, &path, &[("accept", accept)]).await.1;
            let (headers, packed) =
                raw(&server, &path, &[("accept", accept), ("accept-encoding", "br, gzip;q=0.5")]).await;
            let compressed = headers.get("content-encoding").is_some_and(|v| v == "gzip");
            assert_eq!(compressed, plain.len() >= 128 * 1024, "{accept} {query}");
            let mut unpacked = Vec::new();
            match compressed {
                true => drop(flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap()),
                false => unpacked = packed.to_vec(),
            }
            // But for the age, which goes on between the two, and the revision, since others write.
            let read = |bytes: &[u8]| {
                let mut list: Value = serde_json::from_slice(bytes).unwrap();
                let rows = list["rows"].as_array_mut().into_iter().flatten();
                rows.for_each(|row| row["cells"][2] = Value::Null);
                list["metadata"]["resourceVersion"] = Value::Null;
                list
            };
            assert!(read(&plain) == read(&unpacked), "{accept} {query}");
        }
    }
    let small = raw(&server, &format!("{MAPS}/big00"), &[("accept-encoding", "gzip")]).await;
    assert!(!small.0.contains_key("content-encoding"), "small answers are not worth it");
}

/// HEAD, OPTIONS, slashes and escapes.
#[tokio::test]
async fn methods_and_paths() {
    let server = Server::start().await;
    server.config_map("a.b", json!({})).await;
    for path in [
        format!("{MAPS}/a.b"),
        format!("{MAPS}/a.b/"),
        "/api/v1/namespaces/default//configmaps/a.b".into(),
        "//api/v1/namespaces/default/configmaps/a.b".into(),
        format!("{MAPS}/a%2Eb"),
        "/api/v1/namespaces/def%61ult/configmaps/a.b".into(),
    ] {
        let answer = server.call("GET", &path, None).await;
        assert_eq!((answer.code.as_u16(), answer.text("/metadata/name")), (200, "a.b"), "{path}");
    }
    for (method, path, code) in [
        ("HEAD", MAPS.to_owned(), 200),
        ("OPTIONS", MAPS.to_owned(), 405),
        ("POST", format!("{MAPS}/a.b"), 405),
        ("POST", "/api/v1/configmaps".into(), 405),
        ("PUT", MAPS.to_owned(), 405),
        ("PATCH", MAPS.to_owned(), 405),
        ("TRACE", MAPS.to_owned(), 405),
        ("GET", format!("{MAPS}/a.b/none"), 404),
        ("GET", format!("{MAPS}/a.b/status/x"), 404),
        ("GET", "/api/v1/namespaces/default/nodes/x".into(), 404),
        ("GET", "/api/v2/configmaps".into(), 404),
        ("GET", format!("{MAPS}/%zz"), 400),
        ("GET", format!("{MAPS}/{}", "x".repeat(20_000)), 400),
    ] {
        let answer = server.call(method, &path, None).await;
        assert_eq!(answer.code, code, "{method} {path}: {:?}", answer.body);
        if code != 200 {
            assert_eq!(
                (answer.text("/kind"), answer.text("/status")),
                ("Status", "Failure"),
                "{method} {path}"
            );
            assert_eq!(answer.body["code"], json!(code));
        }
    }
    assert_eq!(server.call("GET", MAPS, None).await.headers["cache-control"], "no-cache, private");
}

/// Some kinds are created by a PUT, most are not; some take one without a resourceVersion, custom ones do not.
#[tokio::test]
async fn puts_that_create_and_puts_that_insist_on_nothing() {
    let server = Server::start().await;
    const KEYS: &str = "/apis/harvesterhci.io/v1beta1/namespaces/default/keypairs";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}});
    let made = server.call("PUT", &format!("{LEASES}/l"), lease.clone()).await;
    assert_eq!(made.code, 201, "{:?}", made.body);
    assert!(!made.text("/metadata/uid").is_empty() && !made.text("/metadata/resourceVersion").is_empty());
    let mut of_another = lease.clone();
    of_another["metadata"] = json!({"name": "none", "uid": "other"});
    assert_eq!(server.call("PUT", &format!("{LEASES}/none"), of_another).await.code, 409);
    let refused = server.call("PUT", &format!("{LEASES}/l"), lease).await;
    assert_eq!(refused.code, 422, "{:?}", refused.body);
    let missing = server.call("PUT", &format!("{MAPS}/none"), json!({"metadata": {"name": "none"}})).await;
    assert_eq!((missing.code.as_u16(), missing.text("/details/name")), (404, "none"));

    server.config_map("m", json!({})).await;
    let free = json!({"metadata": {"name": "m"}, "data": {"b": "2"}});
    let replaced = server.call("PUT", &format!("{MAPS}/m"), free).await;
    assert_eq!((replaced.code.as_u16(), &replaced.body["data"]), (200, &json!({"b": "2"})));
    let unnamed = server.call("PUT", &format!("{MAPS}/m"), json!({"data": {}})).await;
    assert_eq!(unnamed.code, 400);
    assert_eq!(
        unnamed.text("/message"),
        "the name of the object (m based on URL) was undeterminable: name must be provided"
    );
    let other = json!({"metadata": {"name": "m", "namespace": "other"}});
    assert_eq!(
        server.call("PUT", &format!("{MAPS}/m"), other).await.text("/message"),
        "the namespace of the object (other) does not match the namespace on the request (default)"
    );

    let key = json!({"metadata": {"name": "k"}, "spec": {"publicKey": crate::writes::PUBLIC_KEY}});
    assert_eq!(server.call("POST", KEYS, key.clone()).await.code, 201);
    let refused = server.call("PUT", &format!("{KEYS}/k"), key).await;
    assert_eq!((refused.code.as_u16(), refused.text("/reason")), (422, "Invalid"), "{:?}", refused.body);
    assert_eq!(
        refused.text("/message"),
        "keypairs.harvesterhci.io \"k\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
    );
}

/// Where names are taken, and by whom.
#[tokio::test]
async fn names_that_are_taken() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "f", "finalizers": ["example.com/hold"]}});
    assert_eq!(server.call("POST", MAPS, body.clone()).await.code, 201);
    assert_eq!(
        server.call("POST", MAPS, body.clone()).await.text("/message"),
        "configmaps \"f\" already exists"
    );
    server.call("DELETE", &format!("{MAPS}/f"), None).await;
    for path in [MAPS.to_owned(), format!("{MAPS}?dryRun=All")] {
        let going = server.call("POST", &path, body.clone()).await;
        assert_eq!((going.code.as_u16(), going.text("/reason")), (409, "AlreadyExists"));
        assert_eq!(going.text("/message"), "object is being deleted: configmaps \"f\" already exists");
    }
    let unreadable =
        server.send("POST", MAPS, &[("accept", "image/png")], json!({"metadata": {"name": "p"}})).await;
    assert_eq!(unreadable.code, 406);
    assert_eq!(server.call("GET", &format!("{MAPS}/p"), None).await.code, 404, "nothing was done unseen");
}

/// What is answered and not stored has no table.
#[tokio::test]
async fn reviews_are_no_tables() {
    let server = Server::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (accept, code) in [
        (table.to_owned(), 406),
        (format!("{table},application/json"), 201),
        ("application/vnd.kubernetes.protobuf,application/json".into(), 201),
        ("image/png".into(), 406),
    ] {
        let answer = server.send("POST", path, &[("accept", &accept)], review.clone()).await;
        assert_eq!(answer.code, code, "{accept}: {:?}", answer.body);
    }
}
