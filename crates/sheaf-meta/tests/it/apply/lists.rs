//! Lists that are maps or sets: items are owned one by one, and keep a sensible order.

use serde_json::{Value, json};

use super::{Story, schema};

#[test]
fn items_are_owned_by_key() {
    let mut s = Story::new(&schema());
    s.apply(
        "a",
        &json!({"spec": {"containers": [
        {"name": "c", "image": "1", "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}]}}),
    );
    assert_eq!(
        s.owned("a"),
        json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {
            "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}},
            "k:{\"port\":80,\"protocol\":\"UDP\"}": {".": {}, "f:port": {}, "f:protocol": {}}}}}}})
    );
    s.apply("b", &json!({"spec": {"containers": [{"name": "d", "image": "2"}]}}));
    assert_eq!(s.body()["spec"]["containers"].as_array().unwrap().len(), 2);
    let e =
        s.try_apply("b", &json!({"spec": {"containers": [{"name": "c", "image": "2"}]}}), false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.containers[name=\"c\"].image"
    );
    // Each takes only its own away.
    s.apply("a", &json!({"spec": {}}));
    assert_eq!(s.body(), json!({"spec": {"containers": [{"name": "d", "image": "2"}]}}));
}

#[test]
fn fields_of_a_shared_item_go_one_by_one() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"containers": [{"name": "c", "image": "1"}]}}));
    s.apply("b", &json!({"spec": {"containers": [{"name": "c", "args": ["x"]}]}}));
    assert_eq!(s.body(), json!({"spec": {"containers": [{"name": "c", "image": "1", "args": ["x"]}]}}));
    s.apply("a", &json!({"spec": {}}));
    assert_eq!(s.body(), json!({"spec": {"containers": [{"name": "c", "args": ["x"]}]}}));
    s.apply("b", &json!({"spec": {}}));
    assert_eq!(s.body().pointer("/spec/containers"), None);
}

#[test]
fn sets_are_owned_by_value() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"set": ["x", "y"]}})).apply("b", &json!({"spec": {"set": ["y", "z"]}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:set": {"v:\"x\"": {}, "v:\"y\"": {}}}}));
    assert_eq!(s.body(), json!({"spec": {"set": ["x", "y", "z"]}}));
    s.apply("a", &json!({"spec": {"set": ["x"]}}));
    assert_eq!(s.body(), json!({"spec": {"set": ["x", "y", "z"]}}));
    s.apply("b", &json!({"spec": {"set": ["z"]}}));
    assert_eq!(s.body(), json!({"spec": {"set": ["x", "z"]}}));
}

#[test]
fn finalizers_and_owners_are_a_set_and_a_map() {
    let mut s = Story::new(&schema());
    let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid});
    s.update("a", &json!({"metadata": {"finalizers": ["x/a"], "ownerReferences": [owner("1")]}}));
    s.apply("b", &json!({"metadata": {"finalizers": ["x/b"], "ownerReferences": [owner("2")]}}));
    assert_eq!(
        s.body(),
        json!({"metadata": {"finalizers": ["x/a", "x/b"], "ownerReferences": [owner("1"), owner("2")]}})
    );
    assert_eq!(
        s.owned("b"),
        json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}, "f:ownerReferences": {"k:{\"uid\":\"2\"}": {}}}})
    );
    s.apply("b", &json!({}));
    assert_eq!(s.body(), json!({"metadata": {"finalizers": ["x/a"], "ownerReferences": [owner("1")]}}));
}

#[test]
fn a_patch_merge_key_makes_a_map_too() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"merged": [{"name": "c", "image": "1"}]}}));
    assert_eq!(
        s.owned("a"),
        json!({"f:spec": {"f:merged": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}})
    );
}

/// (live, applied, merged) by names.
#[test]
fn merged_lists_keep_both_orders_as_far_as_they_agree() {
    for (live, applied, merged) in [
        ("", "ab", "ab"),
        ("ab", "", "ab"),
        ("ab", "ab", "ab"),
        ("ab", "ba", "ba"),
        ("ab", "c", "abc"),
        ("abc", "ca", "bca"),
        ("abc", "xbyz", "axbcyz"),
        ("abcd", "dx", "abcdx"),
        ("sab", "ban", "sban"),
    ] {
        let list = |names: &str| -> Value { names.chars().map(|c| json!({"name": c.to_string()})).collect() };
        let mut s = Story::new(&schema());
        s.update("live", &json!({"spec": {"a": "1", "containers": list(live)}}));
        s.apply("a", &json!({"spec": {"containers": list(applied)}}));
        let names: String = s.body()["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, merged, "{live} + {applied}");
    }
}

/// A live list may hold what a set may not, written before the schema said so.
#[test]
fn repeated_items_of_a_live_list_do_no_harm() {
    let mut s = Story::new(&schema());
    s.update("old", &json!({"spec": {"set": ["x", "x", "y"], "containers": [{"name": "c"}, {"name": "c", "image": "1"}]}}));
    s.apply("a", &json!({"spec": {"set": ["z"]}}));
    assert_eq!(s.body()["spec"]["set"], json!(["x", "x", "y", "z"]));
    s.update("fix", &json!({"spec": {"set": ["x", "y", "z"], "containers": [{"name": "c", "image": "1"}]}}));
    assert_eq!(s.body()["spec"]["set"], json!(["x", "y", "z"]));
    // Items without a key make the list one value.
    s.update("odd", &json!({"spec": {"containers": [{"image": "no name"}]}}));
    assert_eq!(s.owned("odd"), json!({"f:spec": {"f:containers": {}}}));
}

#[test]
fn empty_lists_and_maps() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"labels": {}, "set": [], "args": []}}));
    assert_eq!(s.body(), json!({"spec": {"labels": {}, "set": [], "args": []}}));
    s.apply("a", &json!({"spec": {"labels": {"k": "v"}, "set": ["x"], "args": ["y"]}}));
    assert_eq!(s.body(), json!({"spec": {"labels": {"k": "v"}, "set": ["x"], "args": ["y"]}}));
    s.apply("a", &json!({"spec": {"a": "1"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "1"}}));
}
