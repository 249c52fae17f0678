//! Rules as widely used definitions have them: accepted, with their costs, and right about objects.

use serde_json::{Value, json};
use sheaf_crd::{CustomSchema, validate_crd};

use super::{crd, show};

fn verdicts(schema: &Value, cases: Vec<(Value, Vec<&str>)>) {
    assert_eq!(
        show(&validate_crd(&crd(schema.clone()), None)),
        Vec::<String>::new(),
        "the definition is accepted"
    );
    let compiled = CustomSchema::compile(&json!({"type": "object", "properties": {"spec": schema}}));
    for (spec, wanted) in cases {
        let mut object =
            json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec});
        let errors = compiled.prepare(&mut object, None).errors;
        let found: Vec<String> =
            errors.iter().map(|e| e.message.trim_start_matches("Invalid value: ").to_owned()).collect();
        assert_eq!(found, wanted, "{spec}");
    }
}

/// Listeners of a gateway: unique in name, and in port, protocol and host.
#[test]
fn listeners() {
    let name = || json!({"type": "string", "minLength": 1, "maxLength": 253});
    let schema = json!({"type": "object", "required": ["listeners"], "properties": {"listeners": {
    "type": "array", "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
    "items": {"type": "object", "required": ["name", "port", "protocol"], "properties": {
        "name": name(), "hostname": name(), "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535},
        "protocol": {"type": "string", "maxLength": 255},
        "tls": {"type": "object", "properties": {
            "mode": {"type": "string", "enum": ["Terminate", "Passthrough"], "default": "Terminate"},
            "options": {"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 4096}},
            "certificateRefs": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {"name": name()}}}},
            "x-kubernetes-validations": [{"message": "certificateRefs or options must be specified when mode is Terminate",
                "rule": "self.mode == 'Terminate' ? size(self.certificateRefs) > 0 || size(self.options) > 0 : true"}]}}},
    "x-kubernetes-validations": [
        {"message": "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
            "rule": "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)"},
        {"message": "tls mode must be Terminate for protocol HTTPS",
            "rule": "self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)"},
        {"message": "hostname must not be specified for protocols ['TCP', 'UDP']",
            "rule": "self.all(l, l.protocol in ['TCP', 'UDP'] ? (!has(l.hostname) || l.hostname == '') : true)"},
        {"message": "Listener name must be unique within the Gateway",
            "rule": "self.all(l1, self.exists_one(l2, l1.name == l2.name))"},
        {"message": "Combination of port, protocol and hostname must be unique for each listener",
            "rule": "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))"},
    ]}}});
    let listener =
        |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": protocol});
    verdicts(
        &schema,
        vec![
            (json!({"listeners": [listener("a", 80, "HTTP"), listener("b", 443, "HTTPS")]}), vec![]),
            (
                json!({"listeners": [listener("a", 80, "HTTP"), listener("b", 80, "HTTP")]}),
                vec![
                    r#""array": Combination of port, protocol and hostname must be unique for each listener"#,
                ],
            ),
            (
                json!({"listeners": [{"name": "a", "port": 1, "protocol": "TCP", "hostname": "h", "tls": {"certificateRefs": [{"name": "c"}]}}]}),
                vec![
                    r#""array": tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']"#,
                    r#""array": hostname must not be specified for protocols ['TCP', 'UDP']"#,
                ],
            ),
            (
                json!({"listeners": [{"name": "a", "port": 1, "protocol": "HTTPS", "tls": {}}]}),
                vec![
                    r#""object": no such key: certificateRefs evaluating rule: certificateRefs or options must be specified when mode is Terminate"#,
                ],
            ),
        ],
    );
}

/// Parents of a route: with a section each, or each its own.
#[test]
fn parents() {
    let text = |max: u64| json!({"type": "string", "maxLength": max});
    let rule = "self.all(p1, self.all(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && \
        (((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '')) || \
        (has(p1.__namespace__) && has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__)) ? \
        ((!has(p1.sectionName) || p1.sectionName == '') == (!has(p2.sectionName) || p2.sectionName == '')) : true))";
    let schema = json!({"type": "object", "properties": {"parentRefs": {"type": "array", "maxItems": 32, "items": {
        "type": "object", "required": ["name"], "properties": {
            "group": {"type": "string", "maxLength": 253, "default": "gateway.networking.k8s.io"},
            "kind": {"type": "string", "maxLength": 63, "default": "Gateway"},
            "name": text(253), "namespace": text(63), "sectionName": text(253)}},
        "x-kubernetes-validations": [{"rule": rule, "message": "sectionName must be specified when parentRefs includes 2 or more references to the same parent"}]}}});
    verdicts(
        &schema,
        vec![
            (json!({"parentRefs": [{"name": "a"}, {"name": "b"}]}), vec![]),
            (
                json!({"parentRefs": [{"name": "a", "sectionName": "x"}, {"name": "a", "sectionName": "y"}]}),
                vec![],
            ),
            (
                json!({"parentRefs": [{"name": "a", "sectionName": "x"}, {"name": "a"}]}),
                vec![
                    r#""array": sectionName must be specified when parentRefs includes 2 or more references to the same parent"#,
                ],
            ),
        ],
    );
}

/// Requirements of a node pool.
#[test]
fn requirements() {
    let schema = json!({"type": "object", "properties": {
        "requirements": {"type": "array", "maxItems": 100, "items": {"type": "object", "required": ["key", "operator"], "properties": {
            "key": {"type": "string", "maxLength": 316, "pattern": "^([a-zA-Z0-9](/)?)+", "x-kubernetes-validations": [
                {"message": "label domain \"kubernetes.io\" is restricted", "rule":
                    "self in [\"beta.kubernetes.io/instance-type\", \"kubernetes.io/arch\", \"kubernetes.io/os\"] || self.find(\"^([^/]+)\").endsWith(\"node.kubernetes.io\") || !self.find(\"^([^/]+)\").endsWith(\"kubernetes.io\")"}]},
            "minValues": {"type": "integer", "minimum": 1, "maximum": 50},
            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]},
            "values": {"type": "array", "maxItems": 50, "items": {"type": "string", "maxLength": 63}}}},
            "x-kubernetes-validations": [
                {"message": "requirements with operator 'In' must have a value defined", "rule": "self.all(x, x.operator == 'In' ? x.values.size() != 0 : true)"},
                {"message": "requirements operator 'Gt' or 'Lt' must have a single positive integer value", "rule": "self.all(x, (x.operator == 'Gt' || x.operator == 'Lt') ? (x.values.size() == 1 && int(x.values[0]) >= 0) : true)"},
                {"message": "requirements with 'minValues' must have at least that many values specified in the 'values' field", "rule": "self.all(x, (x.operator == 'In' && has(x.minValues)) ? x.values.size() >= x.minValues : true)"}]},
        "budgets": {"type": "array", "maxItems": 50, "items": {"type": "object", "properties": {
            "schedule": {"type": "string"}, "duration": {"type": "string"}}},
            "x-kubernetes-validations": [{"message": "'schedule' must be set with 'duration'", "rule": "self.all(x, has(x.schedule) == has(x.duration))"}]},
        "limits": {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^[0-9]+[a-zA-Z]*$"}}},
        "x-kubernetes-validations": [{"message": "cpu must be at most 100", "rule": "!has(self.limits) || !('cpu' in self.limits) || quantity(string(self.limits['cpu'])).compareTo(quantity('100')) <= 0"}]});
    let requirement = |key: &str, operator: &str, values: Value| json!({"requirements": [{"key": key, "operator": operator, "values": values}]});
    verdicts(
        &schema,
        vec![
            (requirement("kubernetes.io/arch", "In", json!(["amd64"])), vec![]),
            (requirement("example.com/n", "Gt", json!(["5"])), vec![]),
            (requirement("node.kubernetes.io/x", "Exists", json!([])), vec![]),
            (
                requirement("kubernetes.io/x", "Exists", json!([])),
                vec![r#""string": label domain "kubernetes.io" is restricted"#],
            ),
            (
                requirement("a", "In", json!([])),
                vec![r#""array": requirements with operator 'In' must have a value defined"#],
            ),
            (
                requirement("a", "Gt", json!(["x"])),
                vec![
                    r#""array": type conversion error from 'string' to 'int' evaluating rule: requirements operator 'Gt' or 'Lt' must have a single positive integer value"#,
                ],
            ),
            (
                json!({"budgets": [{"schedule": "@daily"}]}),
                vec![r#""array": 'schedule' must be set with 'duration'"#],
            ),
            (json!({"limits": {"cpu": "99", "memory": "1Gi"}}), vec![]),
            (json!({"limits": {"cpu": 101}}), vec![r#""object": cpu must be at most 100"#]),
        ],
    );
}
