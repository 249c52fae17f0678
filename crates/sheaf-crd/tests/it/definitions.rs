//! What a definition may say. Each case changes one thing of a valid definition.

use serde_json::{Value, json};
use sheaf_crd::validate_crd;
use sheaf_meta::patch::merge_patch;

use super::{crd, show};

fn valid() -> Value {
    crd(json!({"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}))
}

fn check(cases: Vec<(Value, Vec<&str>)>) {
    for (change, wanted) in cases {
        let found = show(&validate_crd(&merge_patch(&valid(), &change), None));
        assert_eq!(found, wanted, "{change}");
    }
}

/// Cases of schemas for `spec`; places are below `spec.validation.openAPIV3Schema.properties[spec]`.
fn schemas(cases: Vec<(Value, Vec<&str>)>) {
    for (schema, wanted) in cases {
        let found = show(&validate_crd(&crd(schema.clone()), None));
        let place = "spec.validation.openAPIV3Schema.properties[spec]";
        let found: Vec<String> = found.iter().map(|e| e.replace(place, "S")).collect();
        assert_eq!(found, wanted, "{schema}");
    }
}

#[test]
fn defaults() {
    let crd = valid();
    assert_eq!(crd["spec"]["names"]["singular"], "foo");
    assert_eq!(crd["spec"]["names"]["listKind"], "FooList");
    assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(show(&validate_crd(&crd, None)), Vec::<String>::new());
    for broken in [json!(null), json!([]), json!({"spec": 1}), json!({"spec": {"names": 1, "versions": {}}})]
    {
        let mut crd = broken.clone();
        sheaf_crd::default_crd(&mut crd);
        assert!(!validate_crd(&crd, None).is_empty(), "{broken}");
    }
}

#[test]
fn names_group_scope() {
    let label = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    check(vec![
        (
            json!({"metadata": {"name": "x"}}),
            vec![r#"metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group"#],
        ),
        (
            json!({"metadata": {"name": "foos.com"}, "spec": {"group": "com"}}),
            vec![r#"spec.group: Invalid value: "com": should be a domain with at least one dot"#],
        ),
        (json!({"metadata": {"name": "foos."}, "spec": {"group": null}}), vec!["spec.group: Required value"]),
        (json!({"spec": {"scope": null}}), vec!["spec.scope: Required value"]),
        (
            json!({"spec": {"scope": "World"}}),
            vec![r#"spec.scope: Unsupported value: "World": supported values: "Cluster", "Namespaced""#],
        ),
        (
            json!({"spec": {"names": {"shortNames": ["F"], "categories": ["all"]}}}),
            vec![&*format!(r#"spec.names.shortNames[0]: Invalid value: "F": {label}"#)],
        ),
        (
            json!({"spec": {"names": {"kind": "Foo_"}}}),
            vec![&*format!(
                r#"spec.names.kind: Invalid value: "Foo_": may have mixed case, but should otherwise match: {label}"#
            )],
        ),
        (
            json!({"spec": {"names": {"listKind": "Foo"}}}),
            vec![r#"spec.names.listKind: Invalid value: "Foo": kind and listKind may not be the same"#],
        ),
        (
            json!({"spec": {"preserveUnknownFields": true}}),
            vec![
                "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            ],
        ),
        (json!({"spec": {"preserveUnknownFields": false}}), vec![]),
        (
            json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {}}}}),
            vec![
                r#"spec.conversion.strategy: Invalid value: "Webhook": conversion by webhook is not served yet: versions must share one schema and use strategy None"#,
            ],
        ),
        (
            json!({"metadata": {"name": "foos.a.k8s.io"}, "spec": {"group": "a.k8s.io"}}),
            vec![
                r#"metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111"#,
            ],
        ),
        (
            json!({"metadata": {"name": "foos.a.k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved, experimental"}}, "spec": {"group": "a.k8s.io"}}),
            vec![],
        ),
    ]);
}

#[test]
fn versions() {
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    let with = |versions: Vec<Value>| json!({"spec": {"versions": versions}});
    let first = |found: Vec<String>| {
        found.into_iter().map(|e| e.chars().take(120).collect::<String>()).collect::<Vec<_>>()
    };
    for (versions, wanted) in [
        (vec![version("v1", true), version("v2", false)], vec![]),
        (vec![version("v1", true), version("v1", false)], vec!["must contain unique version names"]),
        (
            vec![version("v1", true), version("v2", true)],
            vec![
                "must have exactly one version marked as storage version",
                "must have the storage version v2",
            ],
        ),
        (vec![version("v1", false)], vec!["must have exactly one version marked as storage version"]),
        (
            vec![version("V1", true)],
            vec![
                "a DNS-1035 label must consist",
                "must have the storage version V1",
                "missing from spec.versions; v1 was",
            ],
        ),
        (vec![json!({"name": "v1", "served": true, "storage": true})], vec!["schemas are required"]),
        (
            vec![merge_patch(&version("v1", true), &json!({"deprecationWarning": "x"}))],
            vec!["can only be set for deprecated versions"],
        ),
    ] {
        let found = show(&validate_crd(&merge_patch(&valid(), &with(versions.clone())), None));
        assert_eq!(found.len(), wanted.len(), "{:?}", first(found));
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.contains(wanted), "{found}");
        }
    }
}

#[test]
fn subresources_columns_selectable_fields() {
    let version = |extra: Value| {
        let base = valid()["spec"]["versions"][0].clone();
        json!({"spec": {"versions": [merge_patch(&base, &extra)]}})
    };
    let path = |p: &str| json!([{"jsonPath": p}]);
    check(vec![
        (
            version(
                json!({"subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}}}),
            ),
            vec![],
        ),
        (
            version(json!({"subresources": {"scale": {"specReplicasPath": ".n", "labelSelectorPath": "x"}}})),
            vec![
                r#"spec.subresources.scale.specReplicasPath: Invalid value: ".n": should be a json path under .spec"#,
                "spec.subresources.scale.statusReplicasPath: Required value",
                r#"spec.subresources.scale.labelSelectorPath: Invalid value: "x": must be a simple json path starting with ."#,
            ],
        ),
        (
            version(
                json!({"additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}]}),
            ),
            vec![],
        ),
        (
            version(json!({"additionalPrinterColumns": [{"type": "text", "format": "x", "jsonPath": "a"}]})),
            vec![
                "spec.additionalPrinterColumns[0].name: Required value",
                r#"spec.additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string"#,
                r#"spec.additionalPrinterColumns[0].format: Invalid value: "x": must be one of binary,byte,date,date-time,double,float,int32,int64,password"#,
                r#"spec.additionalPrinterColumns[0].JSONPath: Invalid value: "a": must be a simple json path starting with ."#,
            ],
        ),
        (version(json!({"selectableFields": path(".spec.a")})), vec![]),
        (
            version(json!({"selectableFields": path(".spec.zz")})),
            vec![
                r#"spec.selectableFields[0].jsonPath: Invalid value: ".spec.zz": is an invalid path: does not refer to a valid field"#,
            ],
        ),
        (
            version(json!({"selectableFields": path(".spec")})),
            vec![
                r#"spec.selectableFields[0].jsonPath: Invalid value: ".spec": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."#,
            ],
        ),
        (
            version(json!({"selectableFields": [{"jsonPath": ".spec.a"}, {"jsonPath": ".spec.a"}]})),
            vec![r#"spec.selectableFields[1].jsonPath: Duplicate value: ".spec.a""#],
        ),
    ]);
}

#[test]
fn structural_schemas() {
    schemas(vec![
        (json!({"type": "object"}), vec![]),
        (json!({}), vec!["S.type: Required value: must not be empty for specified object fields"]),
        (json!({"x-kubernetes-preserve-unknown-fields": true}), vec![]),
        (
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            vec![],
        ),
        (
            json!({"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true}),
            vec![
                "S.x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true",
            ],
        ),
        (json!({"type": "array"}), vec!["S.items: Required value: must be specified"]),
        (
            json!({"type": "array", "items": {}}),
            vec!["S.items.type: Required value: must not be empty for specified array items"],
        ),
        (
            json!({"type": "string", "anyOf": [{"type": "string"}, {"description": "x", "default": 1, "nullable": true}]}),
            vec![
                "S.anyOf[0].type: Forbidden: must be empty to be structural",
                "S.anyOf[1].default: Forbidden: must be undefined to be structural",
                "S.anyOf[1].description: Forbidden: must be empty to be structural",
                "S.anyOf[1].nullable: Forbidden: must be false to be structural",
            ],
        ),
        (
            json!({"type": "object", "oneOf": [{"required": ["a"]}, {"properties": {"b": {"minimum": 1}}}]}),
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"b": {"type": "integer"}}, "oneOf": [{"properties": {"b": {"minimum": 1}}}]}),
            vec![],
        ),
        (
            json!({"type": "string", "pattern": "["}),
            vec![
                "S.pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: error parsing regexp",
            ],
        ),
        (
            json!({"type": "text"}),
            vec![
                r#"S.type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string""#,
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true}),
            vec![
                "S.properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            vec![],
        ),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            vec!["S.x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            vec![
                "S.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            vec![
                "S.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ],
        ),
        (json!({"type": "object", "$ref": "#/x"}), vec!["S.$ref: Forbidden: $ref is not supported"]),
    ]);
}

#[test]
fn roots() {
    let with = |schema: Value| {
        let mut crd = valid();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        show(&validate_crd(&crd, None))
            .into_iter()
            .map(|e| e.replace("spec.validation.openAPIV3Schema", "R"))
            .collect::<Vec<_>>()
    };
    for (schema, wanted) in [
        (json!({"type": "string"}), vec![r#"R.type: Invalid value: "string": must be object at the root"#]),
        (
            json!({"type": "object", "nullable": true}),
            vec!["R.nullable: Forbidden: nullable cannot be true at the root"],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            vec!["R.additionalProperties: Forbidden: must not be used at the root"],
        ),
        (
            json!({"type": "object", "oneOf": [{"required": ["a"]}, {"properties": {"b": {"minimum": 1}}}]}),
            vec!["R.properties[b]: Required value: because it is defined in R.oneOf[1].properties[b]"],
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}}}),
            vec![],
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            vec![
                "R.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ],
        ),
        (
            json!({"type": "object", "properties": {"kind": {"type": "integer"}}}),
            vec![r#"R.properties[kind].type: Invalid value: "integer": must be string"#],
        ),
        (
            json!({"type": "object", "properties": {"apiVersion": {"type": "string", "default": "v1"}}}),
            vec!["R.properties[apiVersion].default: Forbidden: must not be set in top-level apiVersion"],
        ),
    ] {
        assert_eq!(with(schema.clone()), wanted, "{schema}");
    }
    let mut crd = valid();
    crd["spec"]["versions"][0]["subresources"] = json!({"status": {}});
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["oneOf"] = json!([{"required": ["spec"]}]);
    let found = show(&validate_crd(&crd, None));
    assert!(
        found[0]
            .contains("fields are allowed at the root of the schema if the status subresource is enabled"),
        "{found:?}"
    );
}

#[test]
fn lists_and_maps() {
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "o": {"type": "object"}, "d": {"type": "string", "default": "x"}, "u": {"type": "string"}}});
    let map_list = |keys: Value| json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": item});
    schemas(vec![
        (map_list(json!(["k", "d"])), vec![]),
        (
            map_list(json!([])),
            vec![
                "S.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            ],
        ),
        (
            map_list(json!(["k", "k"])),
            vec![
                r#"S.x-kubernetes-list-map-keys: Invalid value: ["k","k"]: must not contain duplicate entries"#,
            ],
        ),
        (
            map_list(json!(["zz"])),
            vec![
                r#"S.x-kubernetes-list-map-keys: Invalid value: ["zz"]: entries must all be names of item properties"#,
            ],
        ),
        (
            map_list(json!(["u"])),
            vec![
                "S.items.properties[u].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
            vec![
                "S.items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ],
        ),
        (
            json!({"type": "array", "items": {"type": "string", "nullable": true}, "x-kubernetes-list-type": "set"}),
            vec!["S.items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is set"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"}),
            vec![
                r#"S.x-kubernetes-list-type: Unsupported value: "bag": supported values: "atomic", "set", "map""#,
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-list-type": "set"}),
            vec![r#"S.type: Invalid value: "object": must be array if x-kubernetes-list-type is specified"#],
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-map-keys": ["a"]}),
            vec![
                "S.x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty",
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-map-type": "bag"}),
            vec![
                r#"S.x-kubernetes-map-type: Unsupported value: "bag": supported values: "atomic", "granular""#,
            ],
        ),
    ]);
}

#[test]
fn defaults_of_schemas() {
    schemas(vec![
        (json!({"type": "integer", "default": 5}), vec![]),
        (
            json!({"type": "integer", "default": "5"}),
            vec![
                r#"S.default: Invalid value: "string": S.default in body must be of type integer: "string""#,
            ],
        ),
        (
            json!({"type": "integer", "default": 5, "maximum": 3}),
            vec!["S.default: Invalid value: 5: S.default in body should be less than or equal to 3"],
        ),
        (
            json!({"type": "object", "default": {"a": 1, "b": 2}, "properties": {"a": {"type": "integer"}}}),
            vec![r#"S.default: Invalid value: {"a":1,"b":2}: must not have unknown fields"#],
        ),
        (
            json!({"type": "string", "default": "x", "x-kubernetes-validations": [{"rule": "self == 'y'"}]}),
            vec![r#"S.default: Invalid value: "string": failed rule: self == 'y'"#],
        ),
    ]);
}

#[test]
fn rules_in_cel() {
    let rule = |rule: Value| json!({"type": "object", "properties": {"a": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}}, "x-kubernetes-validations": [rule]});
    let at = |s: &'static str| s;
    schemas(vec![
        (
            rule(
                json!({"rule": "self.a == 'x'", "message": "m", "reason": "FieldValueForbidden", "fieldPath": ".a"}),
            ),
            vec![],
        ),
        (
            rule(json!({"rule": " "})),
            vec!["S.x-kubernetes-validations[0].rule: Required value: rule is not specified"],
        ),
        (
            rule(json!({"rule": "true", "message": " "})),
            vec![
                r#"S.x-kubernetes-validations[0].message: Invalid value: " ": must be non-empty if specified"#,
            ],
        ),
        (
            rule(json!({"rule": "true\n||true"})),
            vec![
                "S.x-kubernetes-validations[0].message: Required value: message must be specified if rule contains line breaks",
            ],
        ),
        (
            rule(json!({"rule": "true", "reason": "Nope"})),
            vec![
                r#"S.x-kubernetes-validations[0].reason: Unsupported value: "Nope": supported values: "FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired""#,
            ],
        ),
        (
            rule(json!({"rule": "true", "fieldPath": ".zz"})),
            vec![r#"S.x-kubernetes-validations[0].fieldPath: Invalid value: ".zz": must be a valid path"#],
        ),
        (
            rule(json!({"rule": "self.zz"})),
            vec![at(
                "S.x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self.zz\"}: compilation failed: ERROR: <input>:1:5: undefined field 'zz'\n | self.zz\n | ....^",
            )],
        ),
        (
            rule(json!({"rule": "'x'"})),
            vec![
                r#"S.x-kubernetes-validations[0].rule: Invalid value: {"rule":"'x'"}: cel expression must evaluate to a bool"#,
            ],
        ),
        (
            rule(json!({"rule": "true", "messageExpression": "1"})),
            vec![
                r#"S.x-kubernetes-validations[0].messageExpression: Invalid value: {"messageExpression":"1","rule":"true"}: messageExpression must evaluate to a string"#,
            ],
        ),
        (
            rule(json!({"rule": "true", "optionalOldSelf": true})),
            vec![
                "S.x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
            ],
        ),
        (rule(json!({"rule": "oldSelf.hasValue() || true", "optionalOldSelf": true})), vec![]),
        (
            rule(json!({"rule": "self.l.all(x, self.l.all(y, x == y))"})),
            vec![
                "S.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
                "S.x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule & messageExpression cost total exceeding cost limit for entire OpenAPIv3 schema",
                "spec.validation.openAPIV3Schema: Forbidden: x-kubernetes-validations estimated rule & messageExpression cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
            ],
        ),
        (
            json!({"type": "array", "maxItems": 9, "items": {"type": "string", "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}),
            vec![
                r#"S.items.x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within S"#,
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string", "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}),
            vec![
                r#"S.properties[a].x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within S"#,
            ],
        ),
        (
            json!({"x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-validations": [{"rule": "true"}]}),
            vec![
                r#"S.x-kubernetes-validations[0].rule: Invalid value: {"rule":"true"}: rule declared on schema that does not support validation rules type: '' x-kubernetes-preserve-unknown-fields: 'true'"#,
            ],
        ),
    ]);
}

/// Figures that were measured on the original.
#[test]
fn costs_as_the_original_estimates_them() {
    let case = |message: u64, expected: u64| {
        json!({"type": "array", "maxItems": 20, "items": {"type": "object", "properties": {
            "message": {"type": "string", "maxLength": message},
            "expect": {"type": "object", "properties": {
                "contains": {"type": "string", "maxLength": expected}, "equals": {"type": "string", "maxLength": expected}}}},
            "x-kubernetes-validations": [{"message": "m", "rule":
                "(!has(self.expect.contains) || !self.message.contains(self.expect.contains)) && (!has(self.expect.equals) || self.message != self.expect.equals)"}]}})
    };
    let factor = |schema| {
        show(&validate_crd(&crd(schema), None))
            .first()
            .and_then(|e| e.split("factor of ").nth(1).map(|f| f.split(' ').next().unwrap().to_owned()))
    };
    assert_eq!(factor(case(4096, 4096)).as_deref(), Some("5.4x"));
    assert_eq!(factor(case(1024, 1024)), None);
    assert_eq!(factor(case(4096, 512)), None);
}

#[test]
fn updates() {
    let mut old = valid();
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let change = |change: Value| show(&validate_crd(&merge_patch(&old, &change), Some(&old)));
    assert_eq!(change(json!({})), Vec::<String>::new());
    assert_eq!(
        change(json!({"spec": {"scope": "Cluster", "names": {"kind": "Bar"}}})),
        [
            r#"spec.scope: Invalid value: "Cluster": field is immutable"#,
            r#"spec.names.kind: Invalid value: "Bar": field is immutable"#
        ]
    );
    let mut renamed = merge_patch(&old, &json!({"spec": {"versions": null}}));
    renamed["spec"]["versions"] = json!([{"name": "v2", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}}]);
    sheaf_crd::default_crd(&mut renamed);
    assert_eq!(renamed["status"]["storedVersions"], json!(["v1", "v2"]));
    let found = show(&validate_crd(&renamed, Some(&old)));
    assert!(
        found[0].starts_with(
            "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was"
        )
    );
    // A rule that was accepted once is not weighed again as long as its schema stays.
    let dear = crd(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [
        {"rule": "self.all(x, self.exists(y, x == y))"}]}));
    assert!(show(&validate_crd(&dear, None)).iter().any(|e| e.contains("estimated rule cost exceeds")));
    assert!(
        !show(&validate_crd(&dear, Some(&dear))).iter().any(|e| e.contains("estimated rule cost exceeds"))
    );
}
