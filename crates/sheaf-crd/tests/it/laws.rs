//! What holds for all schemas and objects.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sheaf_crd::{CustomSchema, default_crd, validate_crd};

use super::{crd, show};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..9i64).prop_map(Value::from),
        Just(json!(1.5)),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Schemas that are mostly structural.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "maxLength": 2})),
        Just(json!({"type": "string", "nullable": true, "default": "ab"})),
        Just(json!({"type": "integer", "minimum": 0, "maximum": 5})),
        Just(json!({"type": "integer", "default": 3, "x-kubernetes-validations": [{"rule": "self < 5"}]})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "number", "multipleOf": 0.5})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "default": {"a": 1}})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let fields = prop::collection::btree_map("[a-d]", inner.clone(), 0..4);
        prop_oneof![
            (fields, prop::option::of("[a-d]"), any::<bool>()).prop_map(|(fields, required, atomic)| {
                let fields: Map<String, Value> = fields.into_iter().collect();
                let mut out = json!({"type": "object", "properties": fields});
                if let Some(name) = required.filter(|r| out["properties"].get(r).is_some()) {
                    out["required"] = json!([name]);
                }
                if atomic {
                    out["x-kubernetes-map-type"] = json!("atomic");
                }
                out
            }),
            (inner.clone(), 1..4u8).prop_map(
                |(items, max)| json!({"type": "array", "items": items, "maxItems": max, "x-kubernetes-list-type": "atomic"})
            ),
            inner.clone().prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            prop::collection::btree_map("[b-d]", inner, 0..3).prop_map(|fields| {
                let mut fields: Map<String, Value> = fields.into_iter().collect();
                fields.insert("a".into(), json!({"type": "string"}));
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
                    "items": {"type": "object", "required": ["a"], "properties": fields}})
            }),
        ]
    })
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec})
}

fn compile(spec: &Value) -> CustomSchema {
    CustomSchema::compile(&json!({"type": "object", "properties": {"spec": spec}}))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What was pruned and defaulted once stays as it is.
    #[test]
    fn shaping_is_idempotent(schema in schema(), spec in any_json()) {
        let compiled = compile(&schema);
        let mut once = object(spec);
        compiled.shape(&mut once);
        let mut twice = once.clone();
        prop_assert!(compiled.shape(&mut twice).is_empty());
        prop_assert_eq!(once, twice);
    }

    /// An object that is written as it is stored is never refused, whatever the schema has become.
    #[test]
    fn what_stays_is_tolerated(schema in schema(), spec in any_json()) {
        let compiled = compile(&schema);
        let mut stored = object(spec);
        compiled.shape(&mut stored);
        let (errors, _) = compiled.validate(&stored, Some(&stored));
        prop_assert_eq!(show(&errors), Vec::<String>::new());
    }

    /// What is there before can only make an update easier.
    #[test]
    fn old_objects_excuse_and_never_accuse(schema in schema(), old in any_json(), new in any_json()) {
        let compiled = compile(&schema);
        let (mut old, mut new) = (object(old), object(new));
        compiled.shape(&mut old);
        compiled.shape(&mut new);
        let alone = show(&compiled.validate(&new, None).0);
        let (after, _) = compiled.validate(&new, Some(&old));
        let unchecked = "some validation rules were not checked";
        for error in show(&after).iter().filter(|e| !e.contains(unchecked)) {
            // With fewer errors of shape, rules may run that did not run before.
            let rule = error.contains("failed rule");
            prop_assert!(rule || alone.contains(error), "{}", error);
        }
    }

    /// Definitions of such schemas are accepted or refused for a reason; accepted ones have no defaults of a wrong type.
    #[test]
    fn definitions_are_judged(schema in schema()) {
        let definition = crd(schema);
        let errors = show(&validate_crd(&definition, None));
        prop_assert!(errors.iter().all(|e| e.contains(": ")));
        let again = show(&validate_crd(&definition, Some(&definition)));
        prop_assert!(again.len() <= errors.len(), "{:?} {:?}", errors, again);
    }

    /// Nothing that calls itself a definition, a schema or an object makes anything panic.
    #[test]
    fn anything_is_judged(mut definition in any_json(), at in 0..8usize, schema in schema(), object in any_json()) {
        default_crd(&mut definition);
        let _ = validate_crd(&definition, None);
        // A valid definition with a hole.
        let mut holed = crd(schema);
        let places = ["/spec", "/spec/names", "/spec/versions", "/spec/versions/0", "/spec/versions/0/schema",
            "/spec/versions/0/schema/openAPIV3Schema", "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "/status"];
        if let Some(place) = holed.pointer_mut(places[at]) {
            *place = object.clone();
        }
        let before = holed.clone();
        default_crd(&mut holed);
        let _ = validate_crd(&holed, Some(&before));
        let _ = CustomSchema::compile(&definition).prepare(&mut object.clone(), Some(&before));
    }
}
