//! Label and field selectors: which labels match, and what clients read when the text is wrong.

use proptest::prelude::*;
use serde_json::{Value, json};
use sheaf_meta::selector::{FieldSelector, LabelSelector};

#[test]
fn label_selectors_match() {
    let labels = json!({"metadata": {"labels": {"env": "prod", "tier": "db", "n": "5", "a.io/b": ""}}});
    for (selector, expected) in [
        ("", true),
        ("env=prod", true),
        ("env==prod", true),
        (" env = prod , tier = db ", true),
        ("env!=prod", false),
        ("missing!=x", true),
        ("missing=x", false),
        ("env", true),
        ("!env", false),
        ("!missing", true),
        ("env in (prod,test)", true),
        ("env in (test)", false),
        ("env notin (prod)", false),
        ("missing notin (x)", true),
        ("a.io/b", true),
        ("a.io/b=", true),
        ("a.io/b in (x,)", true),
        ("n>4", true),
        ("n<5", false),
        ("env>4", false),
        ("env=prod,tier!=db", false),
        ("in in (in)", false),
    ] {
        let parsed = LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
        assert_eq!(parsed.matches(&labels), expected, "{selector}");
    }
}

#[test]
fn what_clients_read_about_a_broken_label_selector() {
    for (selector, expected) in [
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("=a", "found '=', expected: !, identifier, or 'end of string'"),
        ("a===b", "unable to parse requirement: found '=', expected: identifier"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        (
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
        ),
        (
            "a>b",
            "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ] {
        assert_eq!(LabelSelector::parse(selector).unwrap_err().to_string(), expected, "{selector}");
    }
    let long = format!("a={}", "b".repeat(64));
    assert!(LabelSelector::parse(&long).unwrap_err().to_string().ends_with("must be no more than 63 bytes"));
    let key = LabelSelector::parse("-a=b").unwrap_err().to_string();
    assert!(
        key.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"),
        "{key}"
    );
}

#[test]
fn selector_objects() {
    let labels = json!({"metadata": {"labels": {"env": "prod"}}});
    for (selector, expected) in [
        (json!(null), false),
        (json!({}), true),
        (json!({"matchLabels": {"env": "prod"}}), true),
        (json!({"matchLabels": {"env": "x"}}), false),
        (json!({"matchExpressions": [{"key": "env", "operator": "In", "values": ["prod"]}]}), true),
        (json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["prod"]}]}), true),
        (json!({"matchExpressions": [{"key": "x", "operator": "Exists"}]}), false),
        (json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}), true),
    ] {
        assert_eq!(LabelSelector::from_object(&selector).unwrap().matches(&labels), expected, "{selector}");
    }
    for bad in [
        json!({"matchExpressions": [{"key": "x", "operator": "Gt", "values": ["1"]}]}),
        json!({"matchExpressions": [{"key": "x", "operator": "In"}]}),
        json!({"matchExpressions": [{"key": "x", "operator": "Exists", "values": ["1"]}]}),
        json!({"matchLabels": {"x": 1}}),
    ] {
        assert!(LabelSelector::from_object(&bad).is_err(), "{bad}");
    }
}

#[test]
fn field_selectors() {
    let pod = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"nodeName": "n,1", "on": true, "n": 3}});
    for (selector, expected) in [
        ("", true),
        ("metadata.name=a", true),
        ("metadata.name==a,metadata.namespace!=other", true),
        ("metadata.name!=a", false),
        (r"spec.nodeName=n\,1", true),
        ("spec.on=true,spec.n=3", true),
        ("involvedObject.namespace=", true),
        ("spec.missing!=x", true),
        (",metadata.name=a,", true),
    ] {
        let parsed = FieldSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
        assert_eq!(parsed.matches(&pod), expected, "{selector}");
    }
    for (selector, expected) in [
        ("a", "invalid selector: 'a'; can't understand 'a'"),
        ("a=b=c", "invalid field selector: unescaped character in value: ="),
        (r"a=b\x", r"invalid field selector: invalid escape sequence: \x"),
    ] {
        assert_eq!(FieldSelector::parse(selector).unwrap_err().to_string(), expected, "{selector}");
    }
    let s = FieldSelector::parse("metadata.name=a,spec.nodeName!=b").unwrap();
    assert_eq!(s.required("metadata.name"), Some("a"));
    assert_eq!(s.required("spec.nodeName"), None);
    assert_eq!(s.check_supported(&[]).unwrap_err().to_string(), "field label not supported: spec.nodeName");
    assert!(s.check_supported(&["spec.nodeName".into()]).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,60}") {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse(&text);
        let _ = sheaf_meta::quantity::Quantity::parse(&text);
        let _ = sheaf_meta::names::qualified_name(&text);
        let _ = sheaf_meta::path::parse(&text);
        let _ = sheaf_meta::gvk::GroupVersion::parse(&text);
    }

    #[test]
    fn near_misses_never_panic(text in "[a-c=!,() <>inot]{0,30}") {
        let _ = LabelSelector::parse(&text);
    }

    /// What a selector prints reads back as itself.
    #[test]
    fn a_selector_reads_back_as_itself(text in "(!?[ab]|[ab](=|==|!=)[cd]|[ab] (in|notin) \\([cd](,[ef])?\\))(,[ab]=c)?") {
        let parsed = LabelSelector::parse(&text).unwrap();
        prop_assert_eq!(LabelSelector::parse(&parsed.to_string()).unwrap(), parsed);
    }

    /// Quantities: the canonical form has the same value and is its own canonical form.
    #[test]
    fn canonical_quantities_are_stable(text in "-?[0-9]{1,6}(\\.[0-9]{1,4})?(n|u|m|k|M|G|T|Ki|Mi|Gi|Ti|e[1-6])?") {
        use sheaf_meta::quantity::Quantity;
        let q = Quantity::parse(&text).unwrap();
        let again = Quantity::parse(&q.to_string()).unwrap();
        prop_assert_eq!(again, q);
        prop_assert_eq!(again.to_string(), q.to_string());
    }
}

#[test]
fn metadata_rules() {
    use sheaf_meta::{kind::Scope, names::NameRule, objectmeta};
    let check = |o: Value, scope| {
        objectmeta::validate(&o, scope, NameRule::Subdomain)
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect::<Vec<_>>()
    };
    let meta = |m: Value| json!({"metadata": m});
    assert!(check(meta(json!({"name": "a", "namespace": "b"})), Scope::Namespaced).is_empty());
    assert_eq!(
        check(meta(json!({})), Scope::Namespaced),
        [
            "metadata.name: Required value: name or generateName is required",
            "metadata.namespace: Required value"
        ]
    );
    assert_eq!(
        check(meta(json!({"name": "a", "namespace": "b"})), Scope::Cluster),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
    let labels = check(meta(json!({"name": "a", "labels": {"a": "b c"}})), Scope::Cluster);
    assert!(
        labels[0].starts_with("metadata.labels: Invalid value: \"b c\": a valid label must"),
        "{labels:?}"
    );
    let two = json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true});
    let owners = check(meta(json!({"name": "a", "ownerReferences": [two, two]})), Scope::Cluster);
    assert!(owners[0].contains("Only one reference can have Controller set to true"), "{owners:?}");
    let old = meta(json!({"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
    let new = meta(json!({"name": "b", "uid": "1", "finalizers": ["x/y"]}));
    let update: Vec<String> = objectmeta::validate_update(&new, &old)
        .into_iter()
        .map(|e| format!("{}: {}", e.field, e.message))
        .collect();
    assert_eq!(
        update,
        [
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/y\"}",
            "metadata.name: Invalid value: \"b\": field is immutable",
            "metadata.deletionTimestamp: Invalid value: null: field is immutable",
        ]
    );
    let mut carried = new.clone();
    objectmeta::carry_over(&mut carried, &old);
    assert_eq!(objectmeta::validate_update(&carried, &old).len(), 2);
}
