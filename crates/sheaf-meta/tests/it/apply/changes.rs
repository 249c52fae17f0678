//! What is known of the changes saves looking at the rest, and nothing else: the short way is the long one.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sheaf_meta::apply::{self, Writer};
use sheaf_meta::changes::Changes;
use sheaf_meta::kind::Scope;
use sheaf_meta::names::NameRule;
use sheaf_meta::schema::Schema;
use sheaf_meta::{object, objectmeta};

use super::laws::config;

/// What somebody does to an object: where (by the numbers of members on the way), and what.
#[derive(Debug, Clone)]
struct Edit {
    place: Vec<usize>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Set(Value),
    Put(String, Value),
    Remove,
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!("")),
        Just(json!("1")),
        Just(json!("Not A Name")),
        Just(json!(1)),
        Just(json!(1.0)),
        Just(json!(true)),
        Just(json!({})),
        Just(json!([])),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let keys = [
        "spec",
        "status",
        "a",
        "b",
        "n",
        "sub",
        "labels",
        "whole",
        "args",
        "set",
        "containers",
        "name",
        "ports",
        "port",
        "protocol",
        "x",
        "free",
        "unknown",
        "phase",
        "metadata",
        "annotations",
        "finalizers",
        "ownerReferences",
        "uid",
        "generation",
        "odd key",
        "managedFields",
        "kind",
    ];
    prop::sample::select(keys.to_vec()).prop_map(str::to_owned)
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let what = prop_oneof![
        value().prop_map(What::Set),
        (key(), value()).prop_map(|(key, value)| What::Put(key, value)),
        Just(What::Remove),
    ];
    let edit = (prop::collection::vec(0..8usize, 0..5), what).prop_map(|(place, what)| Edit { place, what });
    prop::collection::vec(edit, 0..3)
}

fn edited(object: &Value, edits: &[Edit]) -> Value {
    let mut out = object.clone();
    for edit in edits {
        apply_edit(&mut out, &edit.place, &edit.what);
    }
    // The way of a request: an object stays an object, with metadata.
    object::metadata_mut(&mut out);
    out
}

fn apply_edit(value: &mut Value, place: &[usize], what: &What) {
    let Some((first, rest)) = place.split_first() else {
        match (value, what) {
            (Value::Object(map), What::Put(key, given)) => drop(map.insert(key.clone(), given.clone())),
            (value, What::Set(given) | What::Put(_, given)) => *value = given.clone(),
            (value, What::Remove) => *value = Value::Null,
        }
        return;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(first % map.len()).cloned().unwrap();
            if rest.is_empty() && matches!(what, What::Remove) {
                map.remove(&key);
            } else {
                apply_edit(&mut map[&key], rest, what);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = first % list.len();
            apply_edit(&mut list[at], rest, what);
        }
        value => apply_edit(value, &[], what),
    }
}

/// The kind of the stories, with rules.
fn schema() -> Schema {
    let container = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1}, "image": {"type": "string"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {"type": "object", "properties": {
                "port": {"type": "integer", "minimum": 1}, "protocol": {"type": "string", "default": "TCP"}}}},
        "args": {"type": "array", "items": {"type": "string"}}}});
    Schema::compile(&json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "maxProperties": 7, "not": {"required": ["b", "n"]}, "properties": {
            "a": {"type": "string", "enum": ["1", "2"]}, "b": {"type": "string", "nullable": true}, "n": {"type": "integer"},
            "sub": {"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}, "y": {"type": "string"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3}},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "containers": {"type": "array", "items": container, "x-kubernetes-list-type": "map",
                           "x-kubernetes-list-map-keys": ["name"]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                     "properties": {"deep": {"type": "object", "additionalProperties": {"type": "string"}}}}}},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
    }}))
}

/// A state as it is stored: pruned, and good, with owners.
fn stored(body: &Value, schema: &Schema, meta: &Value) -> Option<Value> {
    let mut out = super::object(body);
    let metadata = object::metadata_mut(&mut out);
    metadata.extend(meta.as_object().cloned().unwrap_or_default());
    schema.prune(&mut out);
    objectmeta::drop_empty(&mut out);
    let errors = objectmeta::validate(&out, Scope::Namespaced, NameRule::Subdomain);
    if !errors.is_empty() || !schema.validate(&out).is_empty() {
        return None;
    }
    apply::update(None, &mut out, schema, &writer("a", 0));
    Some(out)
}

fn writer(manager: &str, second: i64) -> Writer<'_> {
    let now = jiff::Timestamp::from_second(1_767_225_600 + second).unwrap();
    Writer { manager, api_version: "x.io/v1", subresource: "", now, settled: true }
}

fn metadata() -> impl Strategy<Value = Value> {
    let text = prop_oneof![Just("a"), Just("b")];
    let strings = || prop::collection::btree_map("[ab]", text.clone(), 0..3);
    let owner = || json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u"});
    (strings(), strings(), any::<bool>(), any::<bool>()).prop_map(
        move |(labels, annotations, owned, held)| {
            let mut out =
                json!({"labels": labels, "annotations": annotations, "uid": "1", "resourceVersion": "5"});
            if owned {
                out["ownerReferences"] = json!([owner()]);
            }
            if held {
                out["finalizers"] = json!(["x.io/y"]);
            }
            out
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_short_way_is_the_long_one(body in config(), meta in metadata(), edits in edits(), who in "[ab]") {
        let schema = schema();
        let Some(old) = stored(&body, &schema, &meta) else { return Ok(()) };
        let sent = edited(&old, &edits);
        let changes = Changes::between(&old, &sent);
        prop_assert_eq!(changes.is_same(), old == sent);

        let (mut long, mut short) = (sent.clone(), sent);
        objectmeta::carry_over(&mut long, &old);
        objectmeta::carry_over_changed(&mut short, &old, &changes);
        prop_assert_eq!(&short, &long);
        let unknown = schema.prune(&mut long);
        prop_assert_eq!(schema.prune_changed(&mut short, &changes), unknown);
        prop_assert_eq!(&short, &long);

        let mut new = long;
        // Pruning touches a record of owners only where the client has changed it.
        let sent = changes;
        let changes = Changes::between(&old, &new);
        prop_assert_eq!(&sent.again(&old, &new), &changes);
        prop_assert_eq!(schema.validate_changed(&new, &changes), schema.validate(&new));
        let (scope, rule) = (Scope::Namespaced, NameRule::Subdomain);
        prop_assert_eq!(
            objectmeta::validate_changed(&new, &changes, scope, rule), objectmeta::validate(&new, scope, rule));
        prop_assert_eq!(
            objectmeta::validate_update_changed(&new, &old, &changes), objectmeta::validate_update(&new, &old));
        prop_assert_eq!(changes.leave_desired_state(), object::same_desired_state(&new, &old));
        let without_owners = |object: &Value| {
            let mut out = object.clone();
            object::metadata_mut(&mut out).remove("managedFields");
            out
        };
        prop_assert_eq!(
            changes.are_bookkeeping(),
            object::equal_apart_from_bookkeeping(&without_owners(&new), &without_owners(&old)));

        // Whatever came of it, the record of owners is the same; with what was found, and without.
        let mut plain = new.clone();
        let mut distrustful = new.clone();
        apply::update(Some(&old), &mut plain, &schema, &writer(&who, 1));
        apply::update(Some(&old), &mut distrustful, &schema, &Writer { settled: false, ..writer(&who, 1) });
        apply::update_changed(Some(&old), &mut new, Some(&changes), &schema, &writer(&who, 1));
        prop_assert_eq!(&new, &plain);
        prop_assert_eq!(&new, &distrustful);
    }
}

#[test]
fn what_changes_touch() {
    let old = json!({"a": 1, "metadata": {"labels": {"x": "1"}, "name": "n"}, "spec": {"list": [1]}});
    let new =
        json!({"metadata": {"labels": {"x": "2"}, "name": "n"}, "spec": {"list": [1, 2]}, "status": {}});
    let changes = Changes::between(&old, &new);
    for (path, touched) in [
        (&["a"][..], true),
        (&["a", "below"], true),
        (&["status"], true),
        (&["metadata"], true),
        (&["metadata", "labels", "x"], true),
        (&["metadata", "labels", "y"], false),
        (&["metadata", "name"], false),
        (&["spec", "list"], true),
        (&[], true),
    ] {
        assert_eq!(changes.touch(path), touched, "{path:?}");
    }
    let owners = |list: Value| json!({"metadata": {"managedFields": list}});
    assert!(Changes::between(&owners(json!([1])), &owners(json!([2]))).are_bookkeeping());
    assert!(!Changes::between(&owners(json!([1])), &json!({})).are_bookkeeping());
    assert!(!Changes::between(&owners(json!([1])), &owners(json!([2]))).is_same());
    assert!(Changes::between(&Value::Object(Map::new()), &json!({})).is_same());
}
