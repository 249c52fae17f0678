//! Bodies that kubectl sent, bodies made by hand, and bytes that are no bodies.

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Name, body and, where kubectl can print it, the JSON of the same object.
fn recorded() -> Vec<(&'static str, Vec<u8>, Option<Value>)> {
    let lines = include_str!("recorded.txt").lines().filter(|l| !l.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let (name, body, json) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            (name, STANDARD.decode(body).unwrap(), serde_json::from_str(json).ok())
        })
        .collect()
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field that is a number.
fn number(field: u64, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value.cast_unsigned(), &mut out);
    out
}

/// A field that is text, bytes or a message.
fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(value.as_ref().len() as u64, &mut out);
    out.extend_from_slice(value.as_ref());
    out
}

fn envelope_of(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version), bytes(2, kind)].concat();
    [MAGIC.to_vec(), bytes(1, meta), bytes(2, object), bytes(3, ""), bytes(4, "")].concat()
}

/// The object without `apiVersion` and `kind`.
fn read(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Result<Value, DecodeError> {
    let mut value = decode(&envelope_of(api_version, kind, &fields.concat()))?;
    let map = value.as_object_mut().unwrap();
    assert_eq!(map.remove("apiVersion"), Some(api_version.into()));
    assert_eq!(map.remove("kind"), Some(kind.into()));
    Ok(value)
}

#[test]
fn what_kubectl_sends_is_what_it_would_have_sent_as_json() {
    let recorded = recorded();
    assert!(recorded.len() > 20);
    for (name, body, json) in recorded {
        let got = decode(&body).unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(json) = json {
            assert_eq!(got, json, "{name}");
        }
    }
}

#[test]
fn reviews_and_options_of_kubectl() {
    for (name, pointer, want) in [
        ("token", "/spec", json!({"audiences": ["x"], "expirationSeconds": 3600})),
        ("can-i", "/spec/resourceAttributes/resource", json!("pods")),
        ("can-i-list", "/spec/namespace", json!("default")),
        ("whoami", "/status", json!({"userInfo": {}})),
        ("drain-delete", "", json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})),
    ] {
        let recorded = recorded();
        let (_, body, _) = recorded.iter().find(|(n, ..)| *n == name).unwrap();
        assert_eq!(decode(body).unwrap().pointer(pointer), Some(&want), "{name}");
    }
}

#[test]
fn zeros_stay_where_they_mean_something() {
    let claim = read("v1", "PersistentVolumeClaim", &[bytes(2, [bytes(3, ""), bytes(5, "")].concat())]);
    assert_eq!(claim, Ok(json!({"spec": {"storageClassName": ""}})), "no class is not the default class");
    let deployment = read("apps/v1", "Deployment", &[bytes(2, [number(1, 0), number(5, 0)].concat())]);
    assert_eq!(deployment, Ok(json!({"spec": {"replicas": 0}})));
    let pod = [bytes(8, ""), number(11, 0), number(21, 0)].concat();
    assert_eq!(
        read("v1", "Pod", &[bytes(2, pod)]),
        Ok(json!({"spec": {"automountServiceAccountToken": false, "containers": []}}))
    );
    let meta = [bytes(1, "a"), bytes(8, "")].concat();
    assert_eq!(read("v1", "Namespace", &[bytes(1, meta)]), Ok(json!({"metadata": {"name": "a"}})));
}

#[test]
fn messages_with_a_json_of_their_own() {
    let time = [number(1, 1_700_000_000), number(2, 123_456_789)].concat();
    let meta = [bytes(8, &time), bytes(17, [bytes(1, "m"), bytes(4, &time)].concat())].concat();
    let meta = [meta, bytes(17, bytes(7, bytes(1, r#"{"f:a":{}}"#)))].concat();
    assert_eq!(
        read("v1", "ConfigMap", &[bytes(1, meta)]),
        Ok(json!({"metadata": {"creationTimestamp": "2023-11-14T22:13:20Z", "managedFields": [
            {"manager": "m", "time": "2023-11-14T22:13:20Z"}, {"fieldsV1": {"f:a": {}}}]}}))
    );
    let lease = [bytes(1, "me"), number(2, 15), bytes(4, &time), number(5, 0)].concat();
    assert_eq!(
        read("coordination.k8s.io/v1", "Lease", &[bytes(2, lease)]),
        Ok(json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": 15,
            "renewTime": "2023-11-14T22:13:20.123456Z", "leaseTransitions": 0}}))
    );
    let port = |kind, int, text| bytes(4, [number(1, kind), number(2, int), bytes(3, text)].concat());
    let ports = [bytes(1, port(0, -1, "")), bytes(1, port(1, 0, "http"))].concat();
    assert_eq!(
        read("v1", "Service", &[bytes(2, ports)]).unwrap()["spec"]["ports"],
        json!([{"targetPort": -1}, {"targetPort": "http"}])
    );
    let extra = bytes(5, [bytes(1, "k"), bytes(2, [bytes(1, "a"), bytes(1, "b")].concat())].concat());
    assert_eq!(
        read("authorization.k8s.io/v1", "SubjectAccessReview", &[bytes(2, extra)]).unwrap()["spec"]["extra"],
        json!({"k": ["a", "b"]})
    );
    let quota = bytes(1, [bytes(1, "cpu"), bytes(2, bytes(1, "10m"))].concat());
    let zero = bytes(1, bytes(1, "pods"));
    assert_eq!(
        read("v1", "ResourceQuota", &[bytes(2, [quota, zero].concat())]),
        Ok(json!({"spec": {"hard": {"cpu": "10m", "pods": "0"}}}))
    );
}

#[test]
fn messages_within_messages_without_a_name() {
    let secret = bytes(2, bytes(6, [number(3, 0o400), number(4, 0)].concat()));
    let volume = bytes(1, [bytes(1, "v"), secret].concat());
    let handler = bytes(1, bytes(2, bytes(2, [number(1, 0), number(2, 80)].concat())));
    let container = bytes(2, [bytes(1, "c"), bytes(10, [handler, number(2, 5)].concat())].concat());
    let got = read("v1", "Pod", &[bytes(2, [volume, container].concat())]).unwrap();
    assert_eq!(
        got["spec"]["volumes"],
        json!([{"name": "v", "secret": {"defaultMode": 0o400, "optional": false}}])
    );
    assert_eq!(
        got["spec"]["containers"],
        json!([{"name": "c", "livenessProbe": {"httpGet": {"port": 80}, "initialDelaySeconds": 5}}])
    );
}

#[test]
fn schemas_of_custom_resources() {
    let text = |ty: &str| bytes(5, ty);
    let property = |name: &str, schema: Vec<u8>| bytes(29, [bytes(1, name), bytes(2, schema)].concat());
    let schema = [
        text("object"),
        property("list", [text("array"), bytes(24, bytes(1, text("string")))].concat()),
        property("open", [text("object"), bytes(30, number(1, 1))].concat()),
        property("closed", [text("object"), bytes(30, bytes(2, text("integer")))].concat()),
        property("given", [text("string"), bytes(8, bytes(1, "\"x\"")), number(18, 0)].concat()),
    ];
    let version = [bytes(1, "v1"), number(2, 1), number(3, 0), bytes(4, bytes(1, schema.concat()))].concat();
    let got =
        read("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[bytes(2, bytes(7, version))]).unwrap();
    assert_eq!(
        got["spec"]["versions"],
        json!([{"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {
                "list": {"type": "array", "items": {"type": "string"}},
                "open": {"type": "object", "additionalProperties": true},
                "closed": {"type": "object", "additionalProperties": {"type": "integer"}},
                "given": {"type": "string", "default": "x"}}}}}])
    );
}

#[test]
fn options_of_any_group_and_fields_nobody_knows() {
    let options = [number(1, 30), bytes(4, "Foreground"), bytes(5, "All"), bytes(99, "new"), number(98, 1)];
    assert_eq!(
        read("kubevirt.io/v1", "DeleteOptions", &options),
        Ok(json!({"gracePeriodSeconds": 30, "propagationPolicy": "Foreground", "dryRun": ["All"]}))
    );
}

#[test]
fn what_is_refused() {
    let unknown =
        DecodeError::UnknownKind { api_version: "kubevirt.io/v1".into(), kind: "VirtualMachine".into() };
    assert_eq!(read("kubevirt.io/v1", "VirtualMachine", &[]), Err(unknown));
    assert_eq!(decode(b"{}"), Err(DecodeError::NoEnvelope));
    let zipped = [MAGIC.to_vec(), bytes(3, "gzip")].concat();
    assert_eq!(decode(&zipped), Err(DecodeError::Encoding("gzip".into())));
    let secret = |field| read("v1", "Secret", &[field]);
    assert_eq!(secret(bytes(3, b"\xff")), Err(DecodeError::NotText("type".into())));
    assert_eq!(secret(number(3, 1)), Err(WireError::Mismatch.into()));
    assert_eq!(secret(vec![0x0a, 5]), Err(WireError::Truncated.into()));
    assert_eq!(
        read("apps/v1", "ControllerRevision", &[bytes(2, bytes(1, "{"))]),
        Err(DecodeError::NotJson("data".into()))
    );
    let year = bytes(1, bytes(8, number(1, i64::MAX)));
    assert_eq!(read("v1", "Secret", &[year]), Err(DecodeError::NotJson("creationTimestamp".into())));
    let mut schema = bytes(5, "object");
    for _ in 0..300 {
        schema = bytes(25, [&schema[..], &[]].concat());
    }
    let version = bytes(7, bytes(4, bytes(1, schema)));
    let deep = read("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[bytes(2, version)]);
    assert_eq!(deep, Err(DecodeError::TooDeep));
    let many = bytes(3, "").repeat(MAX_VALUES + 1);
    assert_eq!(
        read("v1", "Pod", &[bytes(2, bytes(2, bytes(3, "")).repeat(MAX_VALUES / 2))]),
        Err(DecodeError::TooMany)
    );
    assert_eq!(read("v1", "Secret", &[many]), Err(DecodeError::TooMany));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        at in 0usize..1000,
        junk in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(&junk);
        let _ = decode(&[MAGIC, &junk].concat());
        let kinds = table::Table::get().kinds();
        let (api_version, kind) = kinds[at % kinds.len()].rsplit_once('/').unwrap();
        let _ = decode(&envelope_of(api_version, kind, &junk));
    }

    #[test]
    fn broken_bodies_never_panic_and_what_is_read_can_be_read_back(
        which in 0usize..100,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let recorded = recorded();
        let mut body = recorded[which % recorded.len()].1.clone();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(value) = decode(&body) {
            let text = value.to_string();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
