//! Ownership of fields: who gets it, who loses it, what conflicts.

use serde_json::json;
use sheaf_meta::apply::ApplyError;

use super::{Story, schema};

#[test]
fn applying_creates_and_owns() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"metadata": {"labels": {"l": "1"}}, "spec": {"a": "1", "sub": {"x": "1"}}}));
    assert_eq!(s.body(), json!({"metadata": {"labels": {"l": "1"}}, "spec": {"a": "1", "sub": {"x": "1"}}}));
    let entries = &s.live()["metadata"]["managedFields"];
    assert_eq!(
        entries,
        &json!([{"manager": "a", "operation": "Apply", "apiVersion": "x.io/v1", "time": "2026-01-01T00:00:01Z",
            "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": {"f:labels": {"f:l": {}}},
                "f:spec": {"f:a": {}, "f:sub": {"f:x": {}}}}}])
    );
}

#[test]
fn creating_otherwise_owns_with_the_containers() {
    let mut s = Story::new(&schema());
    s.update("kubectl-create", &json!({"metadata": {"labels": {"l": "1"}}, "spec": {"a": "1"}}));
    assert_eq!(
        s.owned("kubectl-create"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:l": {}}}, "f:spec": {".": {}, "f:a": {}}})
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let mut s = Story::new(&schema());
    let body =
        json!({"spec": {"a": "1", "set": ["x"], "containers": [{"name": "c", "image": "i"}], "labels": {}}});
    let before = s.apply("a", &body).live().clone();
    assert_eq!(s.apply("a", &body).live(), &before);
    assert_eq!(s.apply("a", &body).live(), &before);
}

#[test]
fn an_update_that_changes_nothing_changes_no_record() {
    let mut s = Story::new(&schema());
    let before = s.apply("a", &json!({"spec": {"a": "1"}})).live().clone();
    assert_eq!(s.update("b", &json!({"spec": {"a": "1"}})).live(), &before);
}

#[test]
fn one_conflict_in_kubernetes_words() {
    let mut s = Story::new(&schema());
    s.apply("x", &json!({"spec": {"a": "1"}}));
    let e = s.try_apply("y", &json!({"spec": {"a": "2"}}), false).unwrap_err().status();
    assert_eq!(e.code, 409);
    assert_eq!(e.reason, "Conflict");
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"x\": .spec.a");
    let cause = &e.details.causes[0];
    assert_eq!(cause.reason, "FieldManagerConflict");
    assert_eq!(cause.message, "conflict with \"x\"");
    assert_eq!(cause.field, ".spec.a");

    let mut s = Story::new(&schema());
    s.update("x", &json!({"spec": {"a": "1"}}));
    let e = s.try_apply("y", &json!({"spec": {"a": "2"}}), false).unwrap_err();
    assert_eq!(e.to_string(), "Apply failed with 1 conflict: conflict with \"x\" using x.io/v1: .spec.a");
}

#[test]
fn several_conflicts() {
    let mut s = Story::new(&schema());
    s.apply("x", &json!({"spec": {"a": "1", "containers": [{"name": "c", "image": "1"}]}}));
    s.update("y", &json!({"spec": {"a": "1", "b": "1", "containers": [{"name": "c", "image": "1"}]}}));
    let wanted = json!({"spec": {"a": "2", "b": "2", "containers": [{"name": "c", "image": "2"}]}});
    let e = s.try_apply("z", &wanted, false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"x\":\n- .spec.a\n- .spec.containers[name=\"c\"].image\n\
         conflicts with \"y\" using x.io/v1:\n- .spec.b"
    );
    assert_eq!(e.status().details.causes.len(), 3);
}

#[test]
fn force_takes_over() {
    let mut s = Story::new(&schema());
    s.apply("x", &json!({"spec": {"a": "1", "b": "1"}}));
    s.force("y", &json!({"spec": {"a": "2"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "2", "b": "1"}}));
    assert_eq!(s.owned("x"), json!({"f:spec": {"f:b": {}}}));
    assert_eq!(s.owned("y"), json!({"f:spec": {"f:a": {}}}));
    s.force("y", &json!({"spec": {"a": "2", "b": "2"}}));
    assert_eq!(s.managers(), ["y Apply"]);
}

#[test]
fn the_same_value_is_shared_not_contested() {
    let mut s = Story::new(&schema());
    s.apply("x", &json!({"spec": {"a": "1"}})).apply("y", &json!({"spec": {"a": "1"}}));
    assert_eq!(s.owned("x"), json!({"f:spec": {"f:a": {}}}));
    assert_eq!(s.owned("y"), json!({"f:spec": {"f:a": {}}}));
    // What one gives up stays for the other.
    s.apply("x", &json!({}));
    assert_eq!(s.body(), json!({"spec": {"a": "1"}}));
    assert_eq!(s.managers(), ["y Apply"]);
    s.apply("y", &json!({}));
    assert_eq!(s.body(), json!({}));
}

#[test]
fn what_is_no_longer_applied_goes() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"metadata": {"labels": {"l": "1", "m": "2"}}, "spec": {"a": "1", "sub": {"x": "1", "y": "2"}}}));
    s.apply("a", &json!({"metadata": {"labels": {"l": "1"}}, "spec": {"a": "1", "sub": {"x": "1"}}}));
    assert_eq!(s.body(), json!({"metadata": {"labels": {"l": "1"}}, "spec": {"a": "1", "sub": {"x": "1"}}}));
    s.apply("a", &json!({"spec": {"a": "1"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "1"}}));
}

#[test]
fn what_others_set_stays() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1", "sub": {"x": "1"}}}));
    s.update("b", &json!({"spec": {"a": "1", "b": "2", "sub": {"x": "1", "y": "2"}}}));
    assert_eq!(s.owned("b"), json!({"f:spec": {"f:b": {}, "f:sub": {"f:y": {}}}}));
    s.apply("a", &json!({}));
    assert_eq!(s.body(), json!({"spec": {"b": "2", "sub": {"y": "2"}}}));
}

#[test]
fn an_update_takes_what_it_changes_and_apply_wins_it_back_by_force_only() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}}));
    s.update("b", &json!({"spec": {"a": "2"}}));
    assert_eq!(s.managers(), ["b Update"]);
    assert!(matches!(s.try_apply("a", &json!({"spec": {"a": "1"}}), false), Err(ApplyError::Conflict(_))));
    s.force("a", &json!({"spec": {"a": "1"}}));
    assert_eq!(s.managers(), ["a Apply"]);
    // Applying what it is already is sharing.
    s.update("b", &json!({"spec": {"a": "3"}})).apply("a", &json!({"spec": {"a": "3"}}));
    assert_eq!(s.managers(), ["a Apply", "b Update"]);
}

#[test]
fn an_update_that_removes_disowns() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1", "b": "1"}})).update("b", &json!({"spec": {"a": "1"}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:a": {}}}));
    assert_eq!(s.managers(), ["a Apply"]);
}

#[test]
fn times_move_only_with_the_entry() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}}));
    let first = s.time_of("a");
    s.apply("b", &json!({"spec": {"b": "1"}}));
    assert_eq!(s.time_of("a"), first);
    // Taken away by another: not its own change.
    s.apply("a", &json!({"spec": {"a": "1", "sub": {"x": "1"}}}));
    let second = s.time_of("a");
    assert_ne!(second, first);
    s.force("b", &json!({"spec": {"a": "2", "b": "1"}}));
    assert_eq!(s.time_of("a"), second);
    // Another value.
    s.apply("a", &json!({"spec": {"sub": {"x": "2"}}}));
    assert_ne!(s.time_of("a"), second);
}

#[test]
fn atomic_maps_and_lists_are_owned_whole() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"whole": {"k": "1"}, "args": ["x"]}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:args": {}, "f:whole": {}}}));
    let e = s.try_apply("b", &json!({"spec": {"whole": {"j": "1"}, "args": ["y"]}}), false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.args\n- .spec.whole"
    );
    s.force("b", &json!({"spec": {"whole": {"j": "1"}, "args": ["y"]}}));
    assert_eq!(s.body(), json!({"spec": {"whole": {"j": "1"}, "args": ["y"]}}));
    assert_eq!(s.managers(), ["b Apply"]);
}

#[test]
fn untyped_parts_are_granular_maps_and_atomic_lists() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"free": {"m": {"x": 1}, "l": [1, 2]}}}));
    assert_eq!(s.owned("a"), json!({"f:spec": {"f:free": {"f:l": {}, "f:m": {".": {}, "f:x": {}}}}}));
    s.apply("b", &json!({"spec": {"free": {"m": {"y": 2}}}}));
    assert_eq!(s.body(), json!({"spec": {"free": {"m": {"x": 1, "y": 2}, "l": [1, 2]}}}));
    let e = s.try_apply("b", &json!({"spec": {"free": {"l": [3]}}}), false).unwrap_err();
    assert_eq!(e.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.free.l");
    // Another type replaces.
    s.force("b", &json!({"spec": {"free": {"m": "text"}}}));
    assert_eq!(s.body(), json!({"spec": {"free": {"m": "text", "l": [1, 2]}}}));
}

#[test]
fn the_status_subresource_owns_apart() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}, "status": {"phase": "ignored"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "1"}}));
    s.apply_status("a", &json!({"spec": {"a": "ignored"}, "status": {"phase": "Up"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "1"}, "status": {"phase": "Up"}}));
    assert_eq!(s.owned("a/Apply"), json!({"f:spec": {"f:a": {}}}));
    assert_eq!(s.owned("a/Apply/status"), json!({"f:status": {"f:phase": {}}}));
    s.update_through(
        "agent",
        "status",
        &json!({"spec": {"a": "1"}, "status": {"phase": "Up", "ready": true}}),
    );
    assert_eq!(s.owned("agent/Update/status"), json!({"f:status": {"f:ready": {}}}));
    // The main resource gives nothing of the status up.
    s.apply("a", &json!({"spec": {"a": "2"}}));
    assert_eq!(s.body(), json!({"spec": {"a": "2"}, "status": {"phase": "Up", "ready": true}}));
    s.apply_status("a", &json!({}));
    assert_eq!(s.body(), json!({"spec": {"a": "2"}, "status": {"ready": true}}));
}

#[test]
fn ownership_is_forgotten_on_request() {
    for reset in [json!([]), json!([{}])] {
        let mut s = Story::new(&schema());
        s.apply("a", &json!({"spec": {"a": "1"}}));
        s.update("b", &json!({"metadata": {"managedFields": reset}, "spec": {"a": "1"}}));
        assert_eq!(s.live()["metadata"].get("managedFields"), None);
        // And stays forgotten until the next apply, which shares what is there.
        s.update("b", &json!({"spec": {"a": "2"}}));
        assert_eq!(s.live()["metadata"].get("managedFields"), None);
        s.apply("c", &json!({"spec": {"b": "1"}}));
        assert_eq!(s.managers(), ["c Apply", "before-first-apply Update"]);
        assert_eq!(s.owned("before-first-apply"), json!({"f:spec": {".": {}, "f:a": {}}}));
    }
}

#[test]
fn clients_that_drop_managed_fields_lose_nothing() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}}));
    s.update("b", &json!({"metadata": {"managedFields": null}, "spec": {"a": "1", "b": "1"}}));
    assert_eq!(s.managers(), ["a Apply", "b Update"]);
    // Nor those that send broken ones.
    s.update("b", &json!({"metadata": {"managedFields": [{"manager": "x"}]}, "spec": {"a": "1", "b": "2"}}));
    assert_eq!(s.managers(), ["a Apply", "b Update"]);
}

#[test]
fn clients_may_write_managed_fields() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}}));
    let mut entries = s.live()["metadata"]["managedFields"].clone();
    entries[0]["manager"] = json!("z");
    s.update("b", &json!({"metadata": {"managedFields": entries}, "spec": {"a": "1"}}));
    assert_eq!(s.managers(), ["z Apply"]);
    // But not through a subresource.
    entries[0]["manager"] = json!("q");
    s.update_through("b", "status", &json!({"metadata": {"managedFields": entries}, "spec": {"a": "1"}}));
    assert_eq!(s.managers(), ["z Apply"]);
}

#[test]
fn old_updaters_are_merged() {
    let mut s = Story::new(&schema());
    s.apply("applier", &json!({"spec": {"a": "1"}}));
    let mut labels = serde_json::Map::new();
    for i in 0..15 {
        labels.insert(format!("k{i:02}"), json!("v"));
        s.update(&format!("u{i:02}"), &json!({"metadata": {"labels": labels}, "spec": {"a": "1"}}));
    }
    let managers = s.managers();
    assert_eq!(managers.iter().filter(|m| m.ends_with("Update")).count(), 10);
    assert_eq!(managers[..3], ["applier Apply", "ancient-changes Update", "u06 Update"]);
    let ancient = s.owned("ancient-changes");
    assert_eq!(ancient["f:metadata"]["f:labels"].as_object().unwrap().len(), 7);
}

#[test]
fn what_cannot_be_applied() {
    let mut s = Story::new(&schema());
    s.apply("a", &json!({"spec": {"a": "1"}}));
    for (body, expected) in [
        (json!({"metadata": {"managedFields": [{}]}}), "metadata.managedFields must be nil"),
        (
            json!({"apiVersion": "x.io/v2"}),
            "Incorrect version specified in apply patch. Specified patch version: x.io/v2, expected: x.io/v1",
        ),
        (
            json!({"spec": {"containers": [{"image": "i"}]}}),
            "failed to create typed patch object (ns/o; x.io/v1, Kind=X): .spec.containers: element 0: associative list \
          with keys has an element that omits key field \"name\" (and doesn't have default value)",
        ),
        (
            json!({"spec": {"containers": [{"name": "i"}, {"name": "i"}]}}),
            "failed to create typed patch object (ns/o; x.io/v1, Kind=X): .spec.containers: duplicate entries for key \
          [name=\"i\"]",
        ),
        (
            json!({"spec": {"set": ["a", "a"]}}),
            "failed to create typed patch object (ns/o; x.io/v1, Kind=X): .spec.set: duplicate entries for key [=\"a\"]",
        ),
    ] {
        let e = s.try_apply("a", &body, true).unwrap_err();
        assert_eq!(e.status().code, if expected.contains("typed") { 500 } else { 400 });
        assert_eq!(e.to_string(), expected);
    }
}
