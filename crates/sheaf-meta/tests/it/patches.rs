//! The three patches as tables. Strategic merge is driven by a schema with the extensions of a Pod.

use proptest::prelude::*;
use serde_json::{Value, json};
use sheaf_meta::patch::{PatchError, json_patch, merge_patch, strategic_merge_patch};
use sheaf_meta::schema::Schema;

#[test]
fn json_patches() {
    let doc = || json!({"a": {"b": [1, 2, 3]}, "x/y": 1, "t~": 2});
    for (patch, expected) in [
        (json!([]), doc()),
        (
            json!([{"op": "add", "path": "/a/c", "value": 1}]),
            json!({"a": {"b": [1, 2, 3], "c": 1}, "x/y": 1, "t~": 2}),
        ),
        (
            json!([{"op": "add", "path": "/a/b/1", "value": 9}]),
            json!({"a": {"b": [1, 9, 2, 3]}, "x/y": 1, "t~": 2}),
        ),
        (
            json!([{"op": "add", "path": "/a/b/-", "value": 9}]),
            json!({"a": {"b": [1, 2, 3, 9]}, "x/y": 1, "t~": 2}),
        ),
        (json!([{"op": "remove", "path": "/x~1y"}]), json!({"a": {"b": [1, 2, 3]}, "t~": 2})),
        (json!([{"op": "remove", "path": "/t~0"}]), json!({"a": {"b": [1, 2, 3]}, "x/y": 1})),
        (
            json!([{"op": "replace", "path": "/a/b/0", "value": null}]),
            json!({"a": {"b": [null, 2, 3]}, "x/y": 1, "t~": 2}),
        ),
        (json!([{"op": "replace", "path": "", "value": 1}]), json!(1)),
        (
            json!([{"op": "copy", "from": "/a/b", "path": "/c"}]),
            json!({"a": {"b": [1, 2, 3]}, "c": [1, 2, 3], "x/y": 1, "t~": 2}),
        ),
        (
            json!([{"op": "move", "from": "/a/b/0", "path": "/a/b/2"}]),
            json!({"a": {"b": [2, 3, 1]}, "x/y": 1, "t~": 2}),
        ),
        (json!([{"op": "move", "from": "/a", "path": "/a"}]), doc()),
        (json!([{"op": "test", "path": "/a/b", "value": [1, 2.0, 3]}]), doc()),
        (json!([{"op": "test", "path": "/missing", "value": null}]), doc()),
    ] {
        assert_eq!(json_patch(&doc(), &patch), Ok(expected), "{patch}");
    }
}

#[test]
fn json_patches_that_do_not_apply() {
    let doc = json!({"a": {"b": [1, 2, 3]}});
    let answer = |patch: Value| {
        let e = json_patch(&doc, &patch).expect_err("must fail");
        (e.status().code, matches!(e, PatchError::TestFailed { .. }))
    };
    for (patch, code, test) in [
        (json!({}), 400, false),
        (json!([1]), 400, false),
        (json!([{"op": "add", "path": "/a"}]), 422, false),
        (json!([{"op": "add", "path": "a", "value": 1}]), 422, false),
        (json!([{"op": "leap", "path": "/a"}]), 422, false),
        (json!([{"path": "/a"}]), 422, false),
        (json!([{"op": "test", "path": "/a/b/0", "value": 2}]), 422, true),
        (json!([{"op": "remove", "path": "/x"}]), 422, false),
        (json!([{"op": "remove", "path": ""}]), 422, false),
        (json!([{"op": "test", "path": "/a/b/9", "value": null}]), 422, true),
        (json!([{"op": "test", "path": "/x/y", "value": null}]), 422, true),
        (json!([{"op": "replace", "path": "/x", "value": 1}]), 422, false),
        (json!([{"op": "add", "path": "/x/y", "value": 1}]), 422, false),
        (json!([{"op": "add", "path": "/a/b/4", "value": 1}]), 422, false),
        (json!([{"op": "add", "path": "/a/b/01", "value": 1}]), 422, false),
        (json!([{"op": "move", "from": "/a", "path": "/a/b"}]), 422, false),
    ] {
        assert_eq!(answer(patch.clone()), (code, test), "{patch}");
    }
    let test = json!([{"op": "test", "path": "/a", "value": 2}]);
    assert_eq!(
        json_patch(&doc, &test).unwrap_err().status().message,
        "the server rejected our request due to an error in our request"
    );
}

#[test]
fn json_patches_are_bounded() {
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "", "value": 1})).collect();
    let status = |doc: &Value, patch: &Value| json_patch(doc, patch).unwrap_err().status().code;
    assert_eq!(status(&json!(1), &json!(many)), 413);
    // Doubling by copies.
    let big = json!({"a": "x".repeat(100_000)});
    let copies: Vec<Value> =
        (0..40).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/c{i}")})).collect();
    assert_eq!(status(&big, &json!(copies)), 413);
    // Nesting by moves of the whole document into itself.
    let deeper: Vec<Value> = (0..200).map(|_| json!({"op": "copy", "from": "", "path": "/a"})).collect();
    assert_eq!(status(&json!({"a": 1}), &json!(deeper)), 413);
}

/// The examples of RFC 7386, appendix A.
#[test]
fn merge_patches() {
    for (doc, patch, expected) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (
            json!({"a": [1]}),
            json!({"a": [{"b": null, "c": [{"d": null}]}, null]}),
            json!({"a": [{"c": [{}]}, null]}),
        ),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"a": "foo"}), json!("bar"), json!("bar")),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        assert_eq!(merge_patch(&doc, &patch), expected, "{doc} + {patch}");
    }
}

fn pod() -> Schema {
    let named = |item: Value| {
        json!({"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
               "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"})
    };
    let env = named(
        json!({"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}}),
    );
    let container = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "image": {"type": "string"}, "env": env,
        "args": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"}}});
    let mut volumes = named(json!({"type": "object", "properties": {"name": {"type": "string"},
        "emptyDir": {"type": "object"}, "secret": {"type": "object"}}}));
    volumes["x-kubernetes-patch-strategy"] = json!("merge,retainKeys");
    Schema::compile(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "containers": named(container), "volumes": volumes,
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "strategy": {"type": "object", "x-kubernetes-patch-strategy": "retainKeys", "properties": {
            "type": {"type": "string"}, "rollingUpdate": {"type": "object"}}},
        "replaced": {"type": "object", "x-kubernetes-patch-strategy": "replace"},
        "tolerations": {"type": "array", "items": {"type": "object"}},
        "prims": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-patch-strategy": "merge"},
    }}}}))
}

#[test]
fn strategic_merges() {
    let ab = || json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]);
    for (what, spec, patch, expected) in [
        (
            "lists of named things merge by name",
            json!({"containers": ab()}),
            json!({"containers": [{"name": "b", "image": "3"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}),
        ),
        (
            "new elements come first, as upstream has it",
            json!({"containers": ab()}),
            json!({"containers": [{"name": "c", "image": "3"}]}),
            json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
        ),
        (
            "elements are deleted by name",
            json!({"containers": ab()}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "2"}]}),
        ),
        (
            "a list is replaced by a mark",
            json!({"containers": ab()}),
            json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "z"}]}),
        ),
        (
            "lists nest",
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null}]}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X"}]}]}),
        ),
        (
            "atomic lists are replaced",
            json!({"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"k": 1}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"k": 2}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"k": 2}]}),
        ),
        (
            "maps merge, null removes",
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"a": null, "c": "3"}}),
            json!({"nodeSelector": {"b": "2", "c": "3"}}),
        ),
        (
            "maps are replaced by a mark",
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
            json!({"nodeSelector": {"c": "3"}}),
        ),
        (
            "maps are emptied by a mark",
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"nodeSelector": {}}),
        ),
        (
            "replaced by strategy",
            json!({"replaced": {"a": 1}}),
            json!({"replaced": {"b": 1}}),
            json!({"replaced": {"b": 1}}),
        ),
        (
            "retained keys",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "retained keys in list elements",
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"$retainKeys": ["name", "secret"], "name": "v", "secret": {}}]}),
            json!({"volumes": [{"name": "v", "secret": {}}]}),
        ),
        (
            "primitives merge as a set",
            json!({"prims": [1, 2]}),
            json!({"prims": [3, 1]}),
            json!({"prims": [3, 1, 2]}),
        ),
        (
            "primitives are deleted one by one",
            json!({"prims": [1, 2, 3]}),
            json!({"$deleteFromPrimitiveList/prims": [2]}),
            json!({"prims": [1, 3]}),
        ),
        (
            "order alone",
            json!({"containers": ab()}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "a", "image": "1"}]}),
        ),
        (
            "order with what only the server has",
            json!({"containers": [{"name": "s"}, {"name": "a"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "n"}], "containers": [{"name": "n"}]}),
            json!({"containers": [{"name": "s"}, {"name": "b"}, {"name": "a"}, {"name": "n"}]}),
        ),
        (
            "order of primitives",
            json!({"prims": [1, 2, 3]}),
            json!({"$setElementOrder/prims": [3, 1], "$deleteFromPrimitiveList/prims": [2]}),
            json!({"prims": [3, 1]}),
        ),
        (
            "what is new loses nulls and directives",
            json!({}),
            json!({"strategy": {"type": "x", "rollingUpdate": null, "$retainKeys": ["type"]}}),
            json!({"strategy": {"type": "x"}}),
        ),
        (
            "deleted and made anew",
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "a", "image": "2"}]}),
            json!({"containers": [{"name": "a", "image": "2"}]}),
        ),
        (
            "what is not there can be deleted",
            json!({"containers": ab()}),
            json!({"containers": [{"name": "z", "$patch": "delete"}], "nodeSelector": {"$patch": "delete"}, "tolerations": null}),
            json!({"containers": ab(), "nodeSelector": {}}),
        ),
        (
            "as kubectl apply sends it: one changed, one gone, one new, and the order of all",
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "gone"}, {"name": "injected"}, {"name": "b", "image": "2"}]}),
            json!({
                "$setElementOrder/containers": [{"name": "n"}, {"name": "b"}, {"name": "a"}],
                "containers": [{"name": "n"}, {"name": "a", "image": "3"}, {"name": "gone", "$patch": "delete"}],
            }),
            json!({"containers": [{"name": "n"}, {"name": "injected"}, {"name": "b", "image": "2"}, {"name": "a", "image": "3"}]}),
        ),
        (
            "a list of primitives: one gone, one new, and the order of all",
            json!({"prims": [1, 2, 9]}),
            json!({"$deleteFromPrimitiveList/prims": [1], "$setElementOrder/prims": [3, 2], "prims": [3]}),
            json!({"prims": [3, 2, 9]}),
        ),
        (
            "an empty list merges nothing",
            json!({"containers": ab(), "tolerations": [{"k": 1}]}),
            json!({"containers": [], "tolerations": []}),
            json!({"containers": ab(), "tolerations": []}),
        ),
        ("null removes the whole list", json!({"containers": ab()}), json!({"containers": null}), json!({})),
        (
            "replacing by a mark drops the other marks",
            json!({"containers": ab()}),
            json!({"containers": [{"$patch": "replace"}, {"name": "a", "$patch": "delete"}, {"name": "z"}]}),
            json!({"containers": [{"name": "z"}]}),
        ),
        (
            "another type replaces",
            json!({"nodeSelector": 1}),
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"a": "1"}}),
        ),
    ] {
        let out = strategic_merge_patch(&json!({"spec": spec}), &json!({"spec": patch}), &pod());
        assert_eq!(out, Ok(json!({"spec": expected})), "{what}");
    }
}

/// Long lists take no longer than their length: thousands against thousands, in every way.
#[test]
fn long_lists_merge() {
    let named =
        |from: usize| (from..from + 4_000).map(|i| json!({"name": format!("n{i}")})).collect::<Vec<_>>();
    let doc = json!({"spec": {"containers": named(0), "prims": (0..4_000).collect::<Vec<_>>()}});
    let gone: Vec<Value> = (0..2_000).map(|i| json!({"name": format!("n{i}"), "$patch": "delete"})).collect();
    let change: Vec<Value> = [named(4_000)[..2_000].to_vec(), gone].concat();
    let patch = json!({"spec": {
        "containers": change, "$setElementOrder/containers": named(2_000),
        "prims": (3_000..7_000).collect::<Vec<_>>(), "$deleteFromPrimitiveList/prims": (0..2_000).collect::<Vec<_>>(),
    }});
    let out = strategic_merge_patch(&doc, &patch, &pod()).unwrap();
    assert_eq!(out["spec"]["containers"], json!(named(2_000)));
    assert_eq!(out["spec"]["prims"].as_array().unwrap().len(), 5_000);
}

#[test]
fn metadata_merges_whatever_the_schema() {
    let doc = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"},
        "ownerReferences": [{"uid": "1", "name": "o"}]}});
    let patch = json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"],
        "labels": {"y": "2"}, "ownerReferences": [{"uid": "1", "$patch": "delete"}, {"uid": "2"}]}});
    let out = strategic_merge_patch(&doc, &patch, &Schema::unknown()).unwrap();
    let meta = &out["metadata"];
    assert_eq!(meta["finalizers"], json!(["c", "b"]));
    assert_eq!(meta["labels"], json!({"x": "1", "y": "2"}));
    assert_eq!(meta["ownerReferences"], json!([{"uid": "2"}]));
}

#[test]
fn strategic_patches_that_are_refused() {
    let doc = json!({"spec": {"containers": [{"name": "a"}], "strategy": {"type": "x"}}});
    for spec in [
        json!({"containers": [{"image": "no name"}]}),
        json!({"containers": [{"$patch": "delete"}]}),
        json!({"containers": [{"name": "a", "$patch": "eat"}]}),
        json!({"containers": [{"name": "a"}, 7]}),
        json!({"strategy": {"$patch": 7}}),
        json!({"strategy": {"$retainKeys": ["rollingUpdate"], "type": "x"}}),
        json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}),
        json!({"$deleteFromPrimitiveList/prims": 1}),
    ] {
        let e = strategic_merge_patch(&doc, &json!({"spec": spec}), &pod()).expect_err(&spec.to_string());
        assert_eq!(e.status().code, 400, "{spec}");
    }
    assert!(strategic_merge_patch(&doc, &json!([]), &pod()).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i32).prop_map(Value::from),
        "[ab]".prop_map(Value::from),
        prop_oneof!["delete", "replace", "merge"].prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("spec".to_owned()),
        Just("containers".into()),
        Just("name".into()),
        Just("$patch".into()),
        Just("$retainKeys".into()),
        Just("$setElementOrder/containers".into()),
        Just("prims".into()),
        Just("$deleteFromPrimitiveList/prims".into()),
        Just("metadata".into()),
        Just("finalizers".into()),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn without_nulls(v: &Value) -> bool {
    match v {
        Value::Null => false,
        Value::Array(a) => a.iter().all(without_nulls),
        Value::Object(m) => m.values().all(without_nulls),
        _ => true,
    }
}

proptest! {
    #[test]
    fn patches_never_panic(doc in any_json(), patch in any_json()) {
        let _ = json_patch(&doc, &patch);
        let _ = merge_patch(&doc, &patch);
        let _ = strategic_merge_patch(&doc, &patch, &pod());
    }

    /// A merge patch applied twice changes nothing more; one without nulls is found in the result.
    #[test]
    fn merging_is_idempotent(doc in any_json(), patch in any_json()) {
        let once = merge_patch(&doc, &patch);
        prop_assert_eq!(merge_patch(&once, &patch), once.clone());
        if without_nulls(&patch) {
            prop_assert_eq!(merge_patch(&once, &patch), once);
        }
    }

    #[test]
    fn json_operations_never_panic(ops in prop::collection::vec(
        ("(add|remove|replace|move|copy|test)", "(/[ab01-]){0,3}", "(/[ab01-]){0,3}", any_json()), 0..6)) {
        let patch: Vec<Value> = ops.into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let _ = json_patch(&json!({"a": {"b": [1, {"a": 2}]}, "b": [[0]]}), &json!(patch));
    }
}
