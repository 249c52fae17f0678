//! From client-side to server-side apply, and schemas that change under the record.

use serde_json::{Value, json};
use sheaf_meta::apply::LAST_APPLIED;
use sheaf_meta::schema::Schema;

use super::{Story, object, schema};

/// What `kubectl apply` (client side) leaves: the object, and the annotation with what was applied.
fn client_side(s: &mut Story, applied: &Value, live: &Value) {
    let mut body = live.clone();
    body["metadata"]["annotations"][LAST_APPLIED] = json!(format!("{}\n", object(applied)));
    s.update("kubectl-client-side-apply", &body);
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client_side() {
    let mut s = Story::new(&schema());
    let applied = json!({"spec": {"a": "1"}});
    client_side(&mut s, &applied, &applied);
    s.apply("kubectl", &json!({"spec": {"a": "2"}}));
    assert_eq!(s.body()["spec"], json!({"a": "2"}));
    // The annotation follows, for clients that still apply on their side.
    let text = s.live()["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), object(&json!({"spec": {"a": "2"}})));
    assert!(text.ends_with('\n'));
}

#[test]
fn but_not_what_others_changed_since() {
    let mut s = Story::new(&schema());
    let applied = json!({"spec": {"a": "1", "b": "1"}});
    client_side(&mut s, &applied, &applied);
    let annotations = s.live()["metadata"]["annotations"].clone();
    s.update("other", &json!({"metadata": {"annotations": annotations}, "spec": {"a": "9", "b": "1"}}));
    let e = s.try_apply("kubectl", &json!({"spec": {"a": "2", "b": "2"}}), false).unwrap_err();
    assert_eq!(e.to_string(), "Apply failed with 1 conflict: conflict with \"other\" using x.io/v1: .spec.a");
}

#[test]
fn other_managers_get_no_such_favour() {
    let mut s = Story::new(&schema());
    let applied = json!({"spec": {"a": "1"}});
    client_side(&mut s, &applied, &applied);
    assert!(s.try_apply("flux", &json!({"spec": {"a": "2"}}), false).is_err());
    s.force("flux", &json!({"spec": {"a": "2"}}));
    let text = s.live()["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert!(text.contains("\"a\":\"1\""), "only kubectl keeps the annotation up to date");
}

fn args(ty: &str) -> Schema {
    Schema::compile(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "args": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": ty},
        "a": {"type": "string"}}}}}))
}

#[test]
fn lists_that_become_granular_or_atomic_keep_their_owner() {
    let mut s = Story::new(&args("atomic"));
    s.apply("a", &json!({"spec": {"args": ["x", "y"]}}));
    s.schema = args("set");
    s.settled = false;
    s.apply("b", &json!({"spec": {"args": ["z"]}}));
    assert_eq!(s.body()["spec"]["args"], json!(["x", "y", "z"]));
    s.apply("a", &json!({"spec": {"args": ["x"]}}));
    assert_eq!(s.body()["spec"]["args"], json!(["x", "z"]));
    s.schema = args("atomic");
    s.settled = false;
    s.update("c", &json!({"spec": {"args": ["x", "z"], "a": "1"}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:args": {}}}));
    let e = s.try_apply("d", &json!({"spec": {"args": []}}), false).unwrap_err();
    assert!(e.to_string().starts_with("Apply failed with 2 conflicts"), "{e}");
}

#[test]
fn nulls_in_metadata_say_nothing() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"metadata": {"creationTimestamp": null}, "spec": {"a": "1"}}));
    assert_eq!(s.live()["metadata"].get("creationTimestamp"), None);
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:a": {}}}));
}

#[test]
fn unknown_fields_are_handed_on_but_not_owned() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1", "bogus": 1, "sub": {"z": 1}}}));
    assert_eq!(s.body(), json!({"spec": {"a": "1", "bogus": 1, "sub": {"z": 1}}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:a": {}, "f:sub": {}}}));
}

#[test]
fn managers_of_requests_that_name_none() {
    use sheaf_meta::apply::{default_manager, validate_manager};
    for (agent, manager) in [
        ("kubectl/v1.36.0 (linux/amd64) kubernetes/abc", "kubectl"),
        ("Mozilla/5.0", "Mozilla"),
        ("", "unknown"),
        ("/x", "unknown"),
    ] {
        assert_eq!(default_manager(agent), manager);
    }
    assert!(validate_manager("kubectl").is_empty());
    assert_eq!(validate_manager(&"x".repeat(129)).len(), 1);
    assert_eq!(validate_manager("a\nb").len(), 1);
}
