//! Schemas: what is pruned, reported, filled in and refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use sheaf_meta::schema::{Schema, SchemaPool};
use sheaf_meta::strict;

fn spec(properties: impl Into<Value>) -> Schema {
    let properties: Value = properties.into();
    Schema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}),
    )
}

fn object(spec: &Value) -> Value {
    json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec})
}

#[test]
fn unknown_fields_are_named_and_pruned() {
    let schema = spec(json!({
        "a": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        "strings": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                 "properties": {"typed": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "empty": {"type": "object"},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true,
                     "x-kubernetes-preserve-unknown-fields": true},
    }));
    for (given, unknown, left) in [
        (json!({"a": "1", "b": 2}), vec!["spec.b"], json!({"a": "1"})),
        (json!({"list": [{"x": 1}, {"y": 2}]}), vec!["spec.list[1].y"], json!({"list": [{"x": 1}, {}]})),
        (json!({"map": {"k": {"x": 1, "y": 2}}}), vec!["spec.map.k.y"], json!({"map": {"k": {"x": 1}}})),
        (json!({"strings": {"k": "v"}}), vec![], json!({"strings": {"k": "v"}})),
        (
            json!({"free": {"k": {"v": 1}, "typed": {"x": 1, "y": 2}}}),
            vec!["spec.free.typed.y"],
            json!({"free": {"k": {"v": 1}, "typed": {"x": 1}}}),
        ),
        (json!({"any": {"k": [1, {"v": 1}]}}), vec![], json!({"any": {"k": [1, {"v": 1}]}})),
        (json!({"empty": {"k": 1}}), vec!["spec.empty.k"], json!({"empty": {}})),
        (
            json!({"embedded": {"apiVersion": "v1", "kind": "P", "metadata": {"name": "a", "nome": "b"}, "z": 1}}),
            vec!["spec.embedded.metadata.nome"],
            json!({"embedded": {"apiVersion": "v1", "kind": "P", "metadata": {"name": "a"}, "z": 1}}),
        ),
        (json!({"a": {"wrong": "type"}}), vec![], json!({"a": {"wrong": "type"}})),
    ] {
        let mut o = object(&given);
        assert_eq!(schema.unknown_fields(&o), unknown, "{given}");
        assert_eq!(schema.prune(&mut o), unknown, "{given}");
        assert_eq!(o["spec"], left, "{given}");
        assert!(schema.prune(&mut o).is_empty());
    }
    let mut o =
        json!({"metadata": {"name": "x", "nome": "y", "labels": {"a": "b"}}, "stray": 1, "kind": "X"});
    assert_eq!(schema.prune(&mut o), ["metadata.nome", "stray"]);
    assert_eq!(o, json!({"metadata": {"name": "x", "labels": {"a": "b"}}, "kind": "X"}));
}

#[test]
fn nulls_of_fields_that_are_not_nullable_mean_absence() {
    let schema = spec(json!({
        "a": {"type": "string"},
        "d": {"type": "string", "default": "d"},
        "n": {"type": "string", "nullable": true},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "string"}},
    }));
    let nulls = json!({"a": null, "d": null, "n": null, "any": null, "map": {"k": null}, "list": [null]});
    let mut o = object(&nulls);
    o["metadata"]["labels"] = json!(null);
    assert!(schema.prune(&mut o).is_empty());
    schema.default(&mut o);
    assert_eq!(o["spec"], json!({"d": "d", "n": null, "any": null, "map": {}, "list": [null]}));
    assert_eq!(o["metadata"], json!({"name": "x"}));
    // In a list a null is an element, and of the wrong type.
    assert_eq!(schema.validate(&o).len(), 1);
}

#[test]
fn defaults() {
    let schema = spec(json!({
        "a": {"type": "string", "default": "d"},
        "n": {"type": "string", "default": "d", "nullable": true},
        "o": {"type": "object", "default": {}, "properties": {"x": {"type": "integer", "default": 1}}},
        "p": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"proto": {"type": "string", "default": "TCP"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}}},
    }));
    for (given, expected) in [
        (json!({}), json!({"a": "d", "n": "d", "o": {"x": 1}})),
        (json!({"a": "v", "o": {"x": 2}}), json!({"a": "v", "n": "d", "o": {"x": 2}})),
        (json!({"a": null, "n": null}), json!({"a": "d", "n": null, "o": {"x": 1}})),
        (json!({"p": {}}), json!({"a": "d", "n": "d", "o": {"x": 1}, "p": {"x": 1}})),
        (
            json!({"list": [{}, {"proto": "UDP"}], "map": {"k": {}}}),
            json!({"a": "d", "n": "d", "o": {"x": 1}, "list": [{"proto": "TCP"}, {"proto": "UDP"}], "map": {"k": {"x": 1}}}),
        ),
    ] {
        let mut o = object(&given);
        schema.default(&mut o);
        assert_eq!(o["spec"], expected, "{given}");
    }
}

#[test]
fn values_that_are_refused() {
    let schema = spec(json!({
        "s": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
        "e": {"type": "string", "enum": ["a", "b"]},
        "i": {"type": "integer", "minimum": 1, "maximum": 10},
        "x": {"type": "number", "minimum": 0, "exclusiveMinimum": true},
        "m": {"type": "integer", "multipleOf": 5},
        "i32": {"type": "integer", "format": "int32"},
        "b": {"type": "boolean"},
        "is": {"x-kubernetes-int-or-string": true},
        "l": {"type": "array", "maxItems": 2, "minItems": 1, "items": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "proto"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "proto": {"type": "string", "default": "TCP"}}}},
        "r": {"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}}},
        "nul": {"type": "string", "nullable": true},
        "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "any": {"type": "object", "properties": {"a": {"type": "string"}},
                "anyOf": [{"required": ["a"]}]},
        "all": {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5}]},
        "not": {"type": "string", "not": {"enum": ["bad"]}},
        "t": {"type": "string", "format": "date-time"},
        "ip": {"type": "string", "format": "ipv4"},
        "emb": {"type": "object", "x-kubernetes-embedded-resource": true},
        "mp": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}},
    }));
    for (given, expected) in [
        (
            json!({"s": "abc", "e": "a", "i": 1, "x": 0.1, "m": 10, "b": true, "is": "x", "l": ["a"], "set": ["a", "b"],
                "r": {"x": "1"}, "nul": null, "one": {"a": "1"}, "any": {"a": ""}, "all": 4, "not": "ok", "i32": 5,
                "t": "2026-01-01T00:00:00Z", "ip": "10.0.0.1", "emb": {"apiVersion": "v1", "kind": "P"}}),
            vec![],
        ),
        (json!({"is": 5, "i": 2.0}), vec![]),
        (
            json!({"s": 1}),
            vec!["spec.s: Invalid value: \"integer\": spec.s in body must be of type string: \"integer\""],
        ),
        (
            json!({"s": null}),
            vec!["spec.s: Invalid value: \"null\": spec.s in body must be of type string: \"null\""],
        ),
        (
            json!({"s": "a"}),
            vec!["spec.s: Invalid value: \"a\": spec.s in body should be at least 2 chars long"],
        ),
        (json!({"s": "abcde"}), vec!["spec.s: Too long: may not be more than 4 bytes"]),
        (json!({"s": "AB"}), vec!["spec.s: Invalid value: \"AB\": spec.s in body should match '^[a-z]+$'"]),
        (json!({"e": "c"}), vec!["spec.e: Unsupported value: \"c\": supported values: \"a\", \"b\""]),
        (
            json!({"i": 0}),
            vec!["spec.i: Invalid value: 0: spec.i in body should be greater than or equal to 1"],
        ),
        (
            json!({"i": 11}),
            vec!["spec.i: Invalid value: 11: spec.i in body should be less than or equal to 10"],
        ),
        (
            json!({"i": 1.5}),
            vec!["spec.i: Invalid value: \"number\": spec.i in body must be of type integer: \"number\""],
        ),
        (json!({"x": 0}), vec!["spec.x: Invalid value: 0: spec.x in body should be greater than 0"]),
        (json!({"m": 7}), vec!["spec.m: Invalid value: 7: spec.m in body should be a multiple of 5"]),
        (
            json!({"i32": 3_000_000_000_i64}),
            vec!["spec.i32: Invalid value: 3000000000: spec.i32 in body must be of type int32: \"number\""],
        ),
        (
            json!({"is": true}),
            vec![
                "spec.is: Invalid value: \"boolean\": spec.is in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (json!({"l": []}), vec!["spec.l: Invalid value: 0: spec.l in body should have at least 1 items"]),
        (json!({"l": ["a", "b", "c"]}), vec!["spec.l: Too many: 3: must have at most 2 items"]),
        (
            json!({"l": ["a", 1]}),
            vec![
                "spec.l[1]: Invalid value: \"integer\": spec.l[1] in body must be of type string: \"integer\"",
            ],
        ),
        (json!({"set": ["a", "b", "a"]}), vec!["spec.set[2]: Duplicate value: \"a\""]),
        (
            json!({"map": [{"name": "a"}, {"name": "a", "proto": "UDP"}, {"name": "a", "proto": "TCP"}]}),
            vec!["spec.map[2]: Duplicate value: {\"name\":\"a\",\"proto\":\"TCP\"}"],
        ),
        (json!({"map": [{}]}), vec!["spec.map[0].name: Required value"]),
        (json!({"r": {}}), vec!["spec.r.x: Required value"]),
        (
            json!({"one": {}}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                "spec.one.a: Required value",
            ],
        ),
        (
            json!({"one": {"a": "", "b": ""}}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
        (
            json!({"any": {}}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.any\" must validate at least one schema (anyOf)",
                "spec.any.a: Required value",
            ],
        ),
        (
            json!({"all": 6}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.all\" must validate all the schemas (allOf)",
                "spec.all: Invalid value: 6: spec.all in body should be less than or equal to 5",
            ],
        ),
        (
            json!({"not": "bad"}),
            vec!["<nil>: Invalid value: \"\": \"spec.not\" must not validate the schema (not)"],
        ),
        (
            json!({"t": "today"}),
            vec!["spec.t: Invalid value: \"today\": spec.t in body must be of type date-time: \"today\""],
        ),
        (
            json!({"ip": "::1"}),
            vec!["spec.ip: Invalid value: \"::1\": spec.ip in body must be of type ipv4: \"::1\""],
        ),
        (json!({"emb": {"kind": "P"}}), vec!["spec.emb.apiVersion: Required value: must not be empty"]),
        (json!({"mp": {"a": "", "b": ""}}), vec!["spec.mp: Too many: 2: must have at most 1 item"]),
        (json!([]), vec!["spec: Invalid value: \"array\": spec in body must be of type object: \"array\""]),
    ] {
        let errors: Vec<String> = schema
            .validate(&object(&given))
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        assert_eq!(errors, expected, "{given}");
    }
    let many = spec(json!({"l": {"type": "array", "items": {"type": "string"}}}));
    assert_eq!(many.validate(&object(&json!({"l": vec![1; 500]}))).len(), sheaf_meta::schema::MAX_ERRORS);
}

#[test]
fn metadata_is_typed_whatever_the_schema_says() {
    let schema = Schema::compile(&json!({"type": "object", "properties": {"metadata": {"type": "object",
        "properties": {"name": {"type": "string", "pattern": "^x-", "maxLength": 5}}}}}));
    let errors = schema.validate(&json!({"metadata": {"name": "y", "labels": {"a": 1}, "generation": "1"}}));
    let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
    assert_eq!(fields, ["metadata.generation", "metadata.labels.a", "metadata.name"]);
    let mut o = json!({"metadata": {"name": "x-y", "creationTimestamp": null}});
    schema.prune(&mut o);
    assert!(schema.validate(&o).is_empty());
}

#[test]
fn formats() {
    for (format, good, bad) in [
        ("date", "2026-01-31", "2026-02-31"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "02:00:00:00:00:01", "02:00:00:00:01"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("byte", "aGk=", "a"),
        ("duration", "1h2m3.5s", "1 parsec"),
        ("uri", "https://x/y", "no uri"),
        ("email", "a@b", "a"),
        ("ipv6", "::1", "10.0.0.1"),
        ("hostname", "a.b", "a..b"),
    ] {
        let schema = spec(json!({"f": {"type": "string", "format": format}}));
        assert!(schema.validate(&object(&json!({"f": good}))).is_empty(), "{format} {good}");
        assert!(!schema.validate(&object(&json!({"f": bad}))).is_empty(), "{format} {bad}");
    }
}

#[test]
fn equal_subtrees_are_stored_once() {
    let pod = json!({"type": "object", "description": "a", "properties": {"x": {"type": "string", "maxLength": 5}}});
    let mut same = pod.clone();
    same["description"] = json!("b");
    let mut pool = SchemaPool::new();
    pool.compile(&json!({"type": "object", "properties": {"a": pod}}));
    let before = pool.len();
    pool.compile(&json!({"type": "object", "properties": {"b": same}}));
    assert_eq!(pool.len(), before + 1);
}

#[test]
fn references_under_all_of_are_followed() {
    let schema = spec(
        json!({"a": {"default": {}, "allOf": [{"type": "object", "properties": {"x": {"type": "string"}}}]}}),
    );
    assert_eq!(schema.unknown_fields(&object(&json!({"a": {"x": "1", "y": 1}}))), ["spec.a.y"]);
}

#[test]
fn keys_that_come_twice() {
    for (body, value, duplicates) in [
        (r#"{"a": 1, "b": 2}"#, json!({"a": 1, "b": 2}), vec![]),
        (r#"{"a": 1, "a": 2, "a": 3}"#, json!({"a": 3}), vec!["a"]),
        (
            r#"{"spec": {"l": [{"x": 1}, {"x": 1, "x": 2}]}}"#,
            json!({"spec": {"l": [{"x": 1}, {"x": 2}]}}),
            vec!["spec.l[1].x"],
        ),
        (r#"[1.5, -1, "s", null, true]"#, json!([1.5, -1, "s", null, true]), vec![]),
    ] {
        let parsed = strict::parse(body.as_bytes()).unwrap();
        assert_eq!(parsed.value, value, "{body}");
        assert_eq!(parsed.duplicates, duplicates, "{body}");
    }
    for bad in ["", "{", "{} x", "{\"a\": 1,}", &"[".repeat(200)] {
        assert!(strict::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let error =
        strict::decoding_error("VirtualMachine", "v1", &["spec.foo".into()], &["spec.x".into()]).unwrap();
    assert_eq!(error.code, 400);
    assert_eq!(
        error.message,
        "VirtualMachine in version \"v1\" cannot be handled as a VirtualMachine: strict decoding error: \
         duplicate field \"spec.x\", unknown field \"spec.foo\""
    );
    assert_eq!(strict::decoding_error("X", "v1", &[], &[]), None);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
        prop_oneof!["object", "array", "string", "integer"].prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("properties".to_owned()),
        Just("items".into()),
        Just("type".into()),
        Just("default".into()),
        Just("additionalProperties".into()),
        Just("allOf".into()),
        Just("not".into()),
        Just("pattern".into()),
        Just("x-kubernetes-list-type".into()),
        Just("required".into()),
        Just("a".into()),
        Just("spec".into()),
        Just("metadata".into()),
        Just("enum".into()),
        Just("minimum".into()),
    ];
    leaf.prop_recursive(6, 60, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a CRD says, and whatever an object holds.
    #[test]
    fn nothing_panics(schema in any_json(), object in any_json()) {
        let schema = Schema::compile(&schema);
        let mut o = object.clone();
        let unknown = schema.unknown_fields(&o);
        prop_assert_eq!(&schema.prune(&mut o), &unknown);
        prop_assert!(schema.unknown_fields(&o).is_empty());
        schema.default(&mut o);
        let once = o.clone();
        schema.default(&mut o);
        prop_assert_eq!(&o, &once);
        let _ = schema.validate(&o);
        let _ = sheaf_meta::patch::strategic_merge_patch(&object, &o, &schema);
    }

    #[test]
    fn strict_reading_is_reading(value in any_json()) {
        let text = value.to_string();
        let plain: Value = serde_json::from_str(&text).unwrap();
        let parsed = strict::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(parsed.value, plain);
        prop_assert!(parsed.duplicates.is_empty());
    }

    #[test]
    fn broken_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = strict::parse(&body);
    }
}
