//! A schema that becomes stricter does not hold up objects that were stored before, as long as what breaks it stays as it
//! is.

use serde_json::{Value, json};
use sheaf_crd::CustomSchema;

use super::show;

#[test]
fn what_is_unchanged_is_tolerated() {
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 5}}});
    let schema = CustomSchema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 2},
            "b": {"type": "string"},
            "n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 5"}]},
            "t": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf + 1"}]},
            "list": {"type": "array", "items": {"type": "integer", "maximum": 5}},
            "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "atoms": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 5"}]}},
        "map": {"type": "object", "additionalProperties": {"type": "integer", "maximum": 5}},
        }}}}),
    );
    let too_large =
        |at: &str| format!("{at}: Invalid value: 9: {at} in body should be less than or equal to 5");
    for (old, new, errors, warnings) in [
        (json!({"a": "long"}), json!({"a": "long", "b": "x"}), vec![], vec![]),
        (
            json!({"a": "long"}),
            json!({"a": "other"}),
            vec!["spec.a: Too long: may not be more than 2 bytes".to_owned()],
            vec![],
        ),
        // The list is told apart as a whole only.
        (json!({"list": [9]}), json!({"list": [9], "b": "x"}), vec![], vec![]),
        (json!({"list": [9]}), json!({"list": [9, 1]}), vec![too_large("spec.list[0]")], vec![]),
        // With keys, item by item.
        (
            json!({"keyed": [{"k": "x", "v": 9}]}),
            json!({"keyed": [{"k": "y", "v": 1}, {"k": "x", "v": 9}]}),
            vec![],
            vec![],
        ),
        (
            json!({"keyed": [{"k": "x", "v": 9}]}),
            json!({"keyed": [{"k": "y", "v": 9}]}),
            vec![too_large("spec.keyed[0].v")],
            vec![],
        ),
        (json!({"map": {"x": 9}}), json!({"map": {"x": 9, "y": 1}}), vec![], vec![]),
        (json!({"map": {"x": 9}}), json!({"map": {"z": 9}}), vec![too_large("spec.map.z")], vec![]),
        (json!({"set": ["a", "a"]}), json!({"set": ["a", "a", "b"]}), vec![], vec![]),
        (
            json!({"set": ["a"]}),
            json!({"set": ["a", "a"]}),
            vec![r#"spec.set[1]: Duplicate value: "a""#.to_owned()],
            vec![],
        ),
        // Rules: a warning where nothing changed, but what compares with the old object always counts.
        (
            json!({"n": 9}),
            json!({"n": 9, "b": "x"}),
            vec![],
            vec![r#"spec.n: Invalid value: "integer": failed rule: self < 5"#],
        ),
        (
            json!({"n": 9}),
            json!({"n": 8}),
            vec![r#"spec.n: Invalid value: "integer": failed rule: self < 5"#.to_owned()],
            vec![],
        ),
        // Items that cannot be told apart are tolerated with the whole list.
        (
            json!({"atoms": [9]}),
            json!({"atoms": [9], "b": "x"}),
            vec![],
            vec![r#"spec.atoms[0]: Invalid value: "integer": failed rule: self < 5"#],
        ),
        (json!({"t": 1}), json!({"t": 2}), vec![], vec![]),
        (
            json!({"t": 1}),
            json!({"t": 1}),
            vec![r#"spec.t: Invalid value: "integer": failed rule: self == oldSelf + 1"#.to_owned()],
            vec![],
        ),
    ] {
        let wrap = |spec: &Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec});
        let mut prepared = schema.prepare(&mut wrap(&new), Some(&wrap(&old)));
        prepared.errors.retain(|e| !e.message.contains("some validation rules were not checked"));
        assert_eq!(show(&prepared.errors), errors, "{old} -> {new}");
        assert_eq!(prepared.warnings, warnings, "{old} -> {new}");
    }
}
