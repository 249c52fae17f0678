//! Custom objects: pruning, defaulting, validation by the schema, embedded resources.

use serde_json::{Value, json};
use sheaf_crd::CustomSchema;

use super::show;

fn compile(spec: Value) -> CustomSchema {
    CustomSchema::compile(&json!({"type": "object", "properties": {"spec": spec}}))
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec})
}

/// Schema of spec, spec, what is stored, what was pruned, errors.
#[test]
fn pruned_and_defaulted() {
    for (schema, given, stored, pruned, errors) in [
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}}),
            json!({"a": "x", "b": 1, "c": {"d": 1}}),
            json!({"a": "x"}),
            vec!["spec.b", "spec.c"],
            vec![],
        ),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "object"}}}),
            json!({"a": {"x": 1}, "b": 1}),
            json!({"a": {}, "b": 1}),
            vec!["spec.a.x"],
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 1}}}}}),
            json!({}),
            json!({"a": {"b": 1}}),
            vec![],
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "integer", "default": 1}}}}}}),
            json!({"l": [{}, {"b": 2}]}),
            json!({"l": [{"b": 1}, {"b": 2}]}),
            vec![],
            vec![],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {"type": "integer", "default": 1}}}}),
            json!({"k": {"z": 1}}),
            json!({"k": {"b": 1}}),
            vec!["spec.k.z"],
            vec![],
        ),
        // Null: with a default it is replaced, where null is a value it stays, else it is an error.
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "d"}}}),
            json!({"a": null}),
            json!({"a": "d"}),
            vec![],
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "d", "nullable": true}}}),
            json!({"a": null}),
            json!({"a": null}),
            vec![],
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "nullable": true}}}),
            json!({"a": null}),
            json!({"a": null}),
            vec![],
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}}),
            json!({"a": null}),
            json!({"a": null}),
            vec![],
            vec![r#"spec.a: Invalid value: "null": spec.a in body must be of type string: "null""#],
        ),
    ] {
        let schema = compile(schema);
        let mut new = object(given.clone());
        let prepared = schema.prepare(&mut new, None);
        assert_eq!(new["spec"], stored, "{given}");
        assert_eq!(prepared.pruned, pruned, "{given}");
        assert_eq!(show(&prepared.errors), errors, "{given}");
    }
}

#[test]
fn metadata_is_that_of_every_object() {
    let schema = CustomSchema::compile(&json!({"type": "object", "properties": {
        "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}}));
    let mut new = json!({"apiVersion": "example.com/v1", "kind": "Foo",
        "metadata": {"name": "long", "creationTimestamp": null, "labels": {"a": "b"}, "nope": 1}});
    let prepared = schema.prepare(&mut new, None);
    assert_eq!(new["metadata"], json!({"name": "long", "labels": {"a": "b"}}));
    assert_eq!(prepared.pruned, ["metadata.nope"]);
    assert_eq!(show(&prepared.errors), ["metadata.name: Too long: may not be more than 3 bytes"]);
}

#[test]
fn validated_in_the_originals_words() {
    let scalar = |schema: Value| json!({"type": "object", "properties": {"x": schema}});
    for (schema, value, errors) in [
        (
            json!({"type": "integer"}),
            json!("a"),
            vec![r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#],
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            vec![r#"spec.x: Invalid value: "number": spec.x in body must be of type integer: "number""#],
        ),
        (json!({"type": "integer"}), json!(2.0), vec![]),
        (json!({"type": "number"}), json!(2), vec![]),
        (
            json!({"type": "integer", "minimum": 1, "maximum": 5}),
            json!(9),
            vec!["spec.x: Invalid value: 9: spec.x in body should be less than or equal to 5"],
        ),
        (
            json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            json!(1),
            vec!["spec.x: Invalid value: 1: spec.x in body should be greater than 1"],
        ),
        (
            json!({"type": "integer", "multipleOf": 5}),
            json!(7),
            vec!["spec.x: Invalid value: 7: spec.x in body should be a multiple of 5"],
        ),
        (
            json!({"type": "integer", "enum": [1, 2]}),
            json!(3),
            vec![r#"spec.x: Unsupported value: 3: supported values: "1", "2""#],
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            vec![r#"spec.x: Unsupported value: "c": supported values: "a", "b""#],
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("é"),
            vec![r#"spec.x: Invalid value: "é": spec.x in body should be at least 2 chars long"#],
        ),
        (
            json!({"type": "string", "maxLength": 1}),
            json!("ab"),
            vec!["spec.x: Too long: may not be more than 1 byte"],
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            vec![r#"spec.x: Invalid value: "b": spec.x in body should match '^a+$'"#],
        ),
        (json!({"type": "string", "format": "date-time"}), json!("2026-01-02T03:04:05Z"), vec![]),
        (json!({"type": "string", "format": "date-time"}), json!("9999-12-31T23:59:59Z"), vec![]),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("x"),
            vec![r#"spec.x: Invalid value: "x": spec.x in body must be of type date-time: "x""#],
        ),
        (
            json!({"type": "string", "format": "ipv4"}),
            json!("1.2.3"),
            vec![r#"spec.x: Invalid value: "1.2.3": spec.x in body must be of type ipv4: "1.2.3""#],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            vec!["spec.x: Too many: 2: must have at most 1 item"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            vec!["spec.x: Invalid value: 0: spec.x in body should have at least 1 items"],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1}),
            json!({"a": "", "b": ""}),
            vec!["spec.x: Too many: 2: must have at most 1 item"],
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
            json!({}),
            vec!["spec.x.a: Required value"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
            json!(["a", "a"]),
            vec![r#"spec.x[1]: Duplicate value: "a""#],
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}}),
            json!([{"k": "a"}, {"k": "a"}]),
            vec![r#"spec.x[1]: Duplicate value: {"k":"a"}"#],
        ),
        (json!({"x-kubernetes-int-or-string": true}), json!("a"), vec![]),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            vec![
                r#"spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean""#,
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            vec![
                r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid"#,
                "spec.x.a: Required value",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({"a": "", "b": ""}),
            vec![
                r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        ),
        (
            json!({"type": "integer", "not": {"minimum": 3}}),
            json!(5),
            vec![r#"<nil>: Invalid value: "": "spec.x" must not validate the schema (not)"#],
        ),
        (
            json!({"type": "integer", "anyOf": [{"minimum": 3}, {"maximum": 1}]}),
            json!(2),
            vec![
                r#"<nil>: Invalid value: "": "spec.x" must validate at least one schema (anyOf)"#,
                "spec.x: Invalid value: 2: spec.x in body should be greater than or equal to 3",
            ],
        ),
        (
            json!({"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 9}]}),
            json!(2),
            vec![
                r#"<nil>: Invalid value: "": "spec.x" must validate all the schemas (allOf)"#,
                "spec.x: Invalid value: 2: spec.x in body should be greater than or equal to 3",
            ],
        ),
    ] {
        let compiled = compile(scalar(schema.clone()));
        let mut new = object(json!({"x": value}));
        assert_eq!(show(&compiled.prepare(&mut new, None).errors), errors, "{schema} {value}");
    }
}

#[test]
fn embedded_resources() {
    let schema = compile(json!({"type": "object", "properties": {"t": {
        "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}));
    for (value, errors) in [
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "b"}}, "spec": {"any": 1}}),
            vec![],
        ),
        (
            json!({}),
            vec![
                "spec.t.apiVersion: Required value: must not be empty",
                "spec.t.kind: Required value: must not be empty",
            ],
        ),
        (
            json!({"apiVersion": "a/b/c", "kind": ""}),
            vec![
                r#"spec.t.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
                r#"spec.t.kind: Invalid value: "": must not be empty"#,
            ],
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a/b"}}),
            vec![r#"spec.t.metadata.name: Invalid value: "a/b": may not contain '/'"#],
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 1}}}),
            vec![
                r#"spec.t.metadata.labels.a: Invalid value: "integer": spec.t.metadata.labels.a in body must be of type string: "integer""#,
            ],
        ),
    ] {
        let mut new = object(json!({"t": value}));
        assert_eq!(show(&schema.prepare(&mut new, None).errors), errors, "{value}");
    }
    let mut new = object(
        json!({"t": {"apiVersion": "v1", "kind": "Pod", "metadata": {"nope": 1, "creationTimestamp": null}}}),
    );
    assert_eq!(schema.prepare(&mut new, None).pruned, ["spec.t.metadata.nope"]);
    assert_eq!(new["spec"]["t"]["metadata"], json!({}));
}

#[test]
fn a_finalizer_that_could_be_anybodys_is_told_once() {
    let schema = CustomSchema::compile(&json!({"type": "object"}));
    let object = |names: &[&str]| json!({"metadata": {"finalizers": names}});
    let (new, old) = (object(&["a", "b.io/c", "orphan"]), object(&["a"]));
    let why = "metadata.finalizers: \"a\": prefer a domain-qualified finalizer name including a path (/) to avoid \
               accidental conflicts with other finalizer writers";
    assert_eq!(schema.validate(&new, None), (vec![], vec![why.to_owned()]));
    assert_eq!(schema.validate(&new, Some(&old)), (vec![], vec![]));
}
