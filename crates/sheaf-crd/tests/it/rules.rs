//! Rules in CEL on custom objects: where they run, what they say, what they may cost.

use serde_json::{Value, json};
use sheaf_crd::CustomSchema;

use super::show;

fn run(schema: &Value, new: Value, old: Option<Value>) -> Vec<String> {
    let compiled = CustomSchema::compile(&json!({"type": "object", "properties": {"spec": schema}}));
    let wrap = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec});
    let old = old.map(wrap);
    show(&compiled.prepare(&mut wrap(new), old.as_ref()).errors)
}

#[test]
fn messages_reasons_and_paths() {
    let schema = |rule: Value| json!({"type": "object", "properties": {"a": {"type": "integer"}, "b-c": {"type": "integer"}}, "x-kubernetes-validations": [rule]});
    for (rule, errors) in [
        (json!({"rule": "self.a > 5"}), vec![r#"spec: Invalid value: "object": failed rule: self.a > 5"#]),
        (
            json!({"rule": "self.a > 5", "message": " too small "}),
            vec![r#"spec: Invalid value: "object": too small"#],
        ),
        (
            json!({"rule": "self.a > 5", "message": "m", "messageExpression": "'a is %d, and that is too small'.format([self.a])"}),
            vec![r#"spec: Invalid value: "object": a is 1, and that is too small"#],
        ),
        (
            json!({"rule": "self.a > 5", "message": "m", "messageExpression": "' '"}),
            vec![r#"spec: Invalid value: "object": m"#],
        ),
        (
            json!({"rule": "self.a > 5", "message": "m", "reason": "FieldValueForbidden", "fieldPath": ".a"}),
            vec!["spec.a: Forbidden: m"],
        ),
        (
            json!({"rule": "self.a > 5", "message": "m", "reason": "FieldValueRequired", "fieldPath": "['b-c']"}),
            vec!["spec.b-c: Required value: m"],
        ),
        (
            json!({"rule": "self.b__dash__c > 5"}),
            vec![
                r#"spec: Invalid value: "object": no such key: b__dash__c evaluating rule: self.b__dash__c > 5"#,
            ],
        ),
        (json!({"rule": "!has(self.b__dash__c) && self.a == 1"}), vec![]),
        (
            json!({"rule": "1 / (self.a - 1) > 0", "message": "m"}),
            vec![r#"spec: Invalid value: "object": division by zero evaluating rule: m"#],
        ),
    ] {
        assert_eq!(run(&schema(rule.clone()), json!({"a": 1}), None), errors, "{rule}");
    }
}

#[test]
fn rules_at_all_levels() {
    let schema = json!({"type": "object", "properties": {
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.n > 0"}]}},
        "map": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self != ''"}]}},
        "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "type(self) == int ? self > 0 : self.endsWith('%')"}]},
        "none": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "has(self.x)"}]},
        "when": {"type": "string", "format": "date-time", "x-kubernetes-validations": [{"rule": "self > timestamp('2026-01-01T00:00:00Z')"}]}}});
    assert_eq!(
        run(
            &schema,
            json!({"list": [{"n": 1}, {"n": 0}], "map": {"k": ""}, "port": "5", "none": null, "when": "2025-01-01T00:00:00Z"}),
            None
        ),
        [
            r#"spec.list[1]: Invalid value: "object": failed rule: self.n > 0"#,
            r#"spec.map[k]: Invalid value: "string": failed rule: self != ''"#,
            r#"spec.port: Invalid value: "": failed rule: type(self) == int ? self > 0 : self.endsWith('%')"#,
            r#"spec.when: Invalid value: "string": failed rule: self > timestamp('2026-01-01T00:00:00Z')"#,
        ]
    );
    assert_eq!(run(&schema, json!({"list": [{"n": 1}], "port": 5}), None), Vec::<String>::new());
}

#[test]
fn the_root_and_metadata() {
    let compiled = CustomSchema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "string"}}}},
        "x-kubernetes-validations": [{"rule": "self.metadata.name == self.spec.n && self.kind == 'Foo'"}]}),
    );
    let object = |n: &str| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"n": n}});
    assert_eq!(show(&compiled.prepare(&mut object("a"), None).errors), Vec::<String>::new());
    assert_eq!(
        show(&compiled.prepare(&mut object("b"), None).errors),
        [r#"<nil>: Invalid value: "": failed rule: self.metadata.name == self.spec.n && self.kind == 'Foo'"#
            .replace("\"\"", "\"object\"")]
    );
}

#[test]
fn transitions() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "immutable"}]},
        "o": {"type": "integer", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() ? self == 0 : self >= oldSelf.value()", "optionalOldSelf": true, "message": "must begin with 0 and not fall"}]},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"],
            "properties": {"k": {"type": "string"}, "v": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "must not fall"}]}}}}}});
    for (old, new, errors) in [
        (None, json!({"a": "x"}), vec![]),
        (Some(json!({"a": "x"})), json!({"a": "x"}), vec![]),
        (Some(json!({"a": "x"})), json!({"a": "y"}), vec![r#"spec.a: Invalid value: "string": immutable"#]),
        (Some(json!({})), json!({"a": "y"}), vec![]),
        (Some(json!({"a": "x"})), json!({}), vec![]),
        (None, json!({"o": 1}), vec![r#"spec.o: Invalid value: "integer": must begin with 0 and not fall"#]),
        (None, json!({"o": 0}), vec![]),
        (
            Some(json!({"o": 3})),
            json!({"o": 2}),
            vec![r#"spec.o: Invalid value: "integer": must begin with 0 and not fall"#],
        ),
        (
            Some(json!({"keyed": [{"k": "x", "v": 5}, {"k": "y", "v": 1}]})),
            json!({"keyed": [{"k": "y", "v": 2}, {"k": "x", "v": 4}, {"k": "z", "v": 0}]}),
            vec![r#"spec.keyed[1].v: Invalid value: "integer": must not fall"#],
        ),
    ] {
        assert_eq!(run(&schema, new.clone(), old.clone()), errors, "{old:?} -> {new}");
    }
}

#[test]
fn rules_wait_until_the_object_has_its_shape() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "maxLength": 3}}, "x-kubernetes-validations": [{"rule": "self.a != 'x'"}]});
    let unchecked = "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    assert_eq!(run(&schema, json!({}), None), ["spec.a: Required value", unchecked]);
    assert_eq!(run(&schema, json!({"a": 5}), None).last().unwrap(), unchecked);
    assert_eq!(
        run(&schema, json!({"a": "x"}), None),
        [r#"spec: Invalid value: "object": failed rule: self.a != 'x'"#]
    );
}

#[test]
fn costs_are_bounded() {
    let list = |n: usize| json!({"l": (0..n).collect::<Vec<_>>()});
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": [{"rule": "self.l.all(x, self.l.all(y, x + y >= 0))", "message": "m"}, {"rule": "false"}]});
    let found = run(&schema, list(1000), None);
    assert_eq!(
        found,
        [
            r#"spec: Invalid value: "object": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: m"#
        ]
    );
}
