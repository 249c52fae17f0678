//! Rules of core kinds that hold no storage: namespaces, secrets, config maps, events, leases, nodes, requests for
//! certificates. Words as Kubernetes' own validation has them, since clients match them.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sheaf_meta::names;
use sheaf_meta::object::find;

use super::{Problems, at, changed, fill, list, map, text};

/// Most bytes of data of a secret or a config map.
const DATA_MAX: usize = 1024 * 1024;

/// Secret types, and the keys that each must have.
const SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
];

const IMMUTABLE: &str = "field is immutable";

/// Objects of flow control say nothing here, and their owner should know.
pub(super) fn warn_flow(_: &Value) -> Vec<String> {
    vec!["the server's turns are shared among users as they come; flow control objects are kept without effect".into()]
}

pub(super) fn warn_endpoints(_: &Value) -> Vec<String> {
    vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()]
}

pub(super) fn default_namespace(o: &mut Value, old: Option<&Value>) {
    let name = text(o, "/metadata/name").to_string();
    if let Some(labels) = at(o, &["metadata", "labels"]) {
        labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    if old.is_none()
        && let Some(spec) = at(o, &["spec"])
    {
        fill(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = at(o, &["status"]) {
        fill(status, "phase", "Active");
    }
}

pub(super) fn default_secret(o: &mut Value, _: Option<&Value>) {
    let Some(object) = o.as_object_mut() else { return };
    fill(object, "type", "Opaque");
    let Some(Value::Object(plain)) = object.get("stringData").cloned() else { return };
    if plain.values().any(|v| !v.is_string()) {
        return;
    }
    object.remove("stringData");
    if let Some(data) = super::sub(object, "data") {
        let encoded = |v: &Value| json!(STANDARD.encode(v.as_str().unwrap_or_default()));
        data.extend(plain.iter().map(|(k, v)| (k.clone(), encoded(v))));
    }
}

/// Checks keys and size of `data`-like maps; gives the bytes that they hold.
fn data_size(o: &Value, field: &str, base64: bool, problems: &mut Problems) -> usize {
    let mut size = 0;
    for (key, value) in o.get(field).and_then(Value::as_object).into_iter().flatten() {
        for why in names::config_map_key(key) {
            problems.invalid(format!("{field}[{key}]"), key.as_str(), why);
        }
        let value = value.as_str().unwrap_or_default();
        size += if base64 {
            match STANDARD.decode(value) {
                Ok(bytes) => bytes.len(),
                Err(e) => {
                    problems.invalid(format!("{field}[{key}]"), "<redacted>", format!("must be base64: {e}"));
                    0
                }
            }
        } else {
            value.len()
        };
    }
    size
}

fn too_big(size: usize, field: &str, problems: &mut Problems) {
    if size > DATA_MAX {
        problems.list.push(sheaf_meta::status::FieldError {
            field: field.into(),
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {DATA_MAX} bytes"),
        });
    }
}

/// What may not change once `immutable` is set.
fn immutable(o: &Value, old: Option<&Value>, fields: &[&str], problems: &mut Problems) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if o["immutable"] != true {
        problems.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if changed(o, old, &format!("/{field}")) {
            problems.forbidden(*field, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) fn validate_secret(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let size = data_size(o, "data", true, problems);
    too_big(size, "data", problems);
    if let Some(old) = old
        && changed(o, old, "/type")
    {
        problems.invalid("type", o["type"].clone(), IMMUTABLE);
    }
    immutable(o, old, &["data"], problems);
    let needed = SECRET_KEYS.iter().find(|(ty, _)| o["type"] == *ty).map_or(&[][..], |(_, keys)| keys);
    for key in needed {
        if o["data"].get(*key).is_none() {
            problems.required(format!("data[{key}]"), "");
        }
    }
    // The rest of it is filled in by the API server.
    let account = "kubernetes.io/service-account.name";
    if o["type"] == "kubernetes.io/service-account-token"
        && sheaf_meta::object::annotation(o, account).is_none_or(str::is_empty)
    {
        problems.required(format!("metadata.annotations[{account}]"), "");
    }
    if o["type"] == "kubernetes.io/basic-auth"
        && o["data"].get("username").is_none()
        && o["data"].get("password").is_none()
    {
        problems.required("data[username]", "");
        problems.required("data[password]", "");
    }
}

pub(super) fn validate_config_map(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let size = data_size(o, "data", false, problems) + data_size(o, "binaryData", true, problems);
    too_big(size, "", problems);
    for key in map(o, "/data").into_iter().flatten().map(|(key, _)| key) {
        if o["binaryData"].get(key).is_some() {
            problems.invalid(format!("data[{key}]"), key.as_str(), "duplicate of key present in binaryData");
        }
    }
    immutable(o, old, &["data", "binaryData"], problems);
}

/// Longest names in an event.
const EVENT_NAME_MAX: usize = 128;

/// What `events.k8s.io` asks of a new event: who says it, about what, when and why.
fn validate_new_event(o: &Value, problems: &mut Problems) {
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        if text(o, &format!("/{field}")).is_empty() {
            problems.required(field, "");
        }
    }
    let controller = text(o, "/reportingController");
    if !controller.is_empty() {
        problems.name("reportingController", controller, names::qualified_name);
    }
    for field in ["reportingInstance", "action", "reason"] {
        if text(o, &format!("/{field}")).len() > EVENT_NAME_MAX {
            problems.invalid(field, "", format!("can have at most {EVENT_NAME_MAX} characters"));
        }
    }
    let ty = text(o, "/type");
    if !matches!(ty, "Normal" | "Warning") {
        problems.invalid("type", ty, format!("has invalid value: {ty}"));
    }
    for field in
        ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"]
    {
        let there = o
            .get(field)
            .is_some_and(|v| !v.is_null() && *v != 0 && v.as_object().is_none_or(|m| !m.is_empty()));
        if there {
            problems.invalid(field, o[field].clone(), "must be unset");
        }
    }
}

/// Of an event of `events.k8s.io` nothing changes but its series.
fn validate_event_update(o: &Value, old: &Value, problems: &mut Problems) {
    const FIXED: &[&str] = &[
        "regarding",
        "reason",
        "note",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
    ];
    for field in FIXED.iter().filter(|field| changed(o, old, &format!("/{field}"))) {
        problems.invalid(*field, o.get(*field).cloned().unwrap_or_default(), IMMUTABLE);
    }
}

pub(super) fn validate_event(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    if sheaf_meta::object::api_version(o).starts_with("events.k8s.io/") {
        match old {
            None => validate_new_event(o, problems),
            Some(old) if !text(old, "/eventTime").is_empty() => validate_event_update(o, old, problems),
            Some(_) => {}
        }
    }
    let about = if o.get("involvedObject").is_some() { "involvedObject" } else { "regarding" };
    let (mine, theirs) = (text(o, "/metadata/namespace"), text(o, &format!("/{about}/namespace")));
    // Events about objects of the whole cluster are in the namespace default.
    if !(mine == theirs || theirs.is_empty() && matches!(mine, "default" | "kube-system")) {
        problems.invalid(format!("{about}.namespace"), theirs, "does not match event.namespace");
    }
    let message = if o.get("note").is_some() { "note" } else { "message" };
    if message == "note" && text(o, "/note").len() > 1024 {
        problems.invalid(message, "", "can have at most 1024 bytes");
    }
}

pub(super) fn validate_node(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (i, taint) in list(o, "/spec/taints").iter().enumerate() {
        let field = format!("spec.taints[{i}]");
        let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
        problems.name(&format!("{field}.key"), key, names::label_key);
        match effect {
            "" => problems.required(format!("{field}.effect"), ""),
            _ => problems.one_of(
                format!("{field}.effect"),
                effect,
                &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            ),
        }
        if !seen.insert((key, effect)) {
            problems.duplicate(field, taint.clone());
        }
    }
    let Some(old) = old else { return };
    for field in ["podCIDR", "providerID"] {
        let pointer = format!("/spec/{field}");
        if !text(old, &pointer).is_empty() && changed(o, old, &pointer) {
            problems.forbidden(
                format!("spec.{field}"),
                "node updates may not change podCIDR or providerID except from \"\" to valid",
            );
        }
    }
}

pub(super) fn validate_signing_request(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    if let Some(old) = old {
        if changed(o, old, "/spec") {
            problems.forbidden("spec", "a request cannot change after it was made; make another one");
        }
        return;
    }
    let request = text(o, "/spec/request");
    let pem = STANDARD.decode(request).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match pem {
        _ if request.is_empty() => problems.required("spec.request", ""),
        Some(pem) if pem.contains("-----BEGIN CERTIFICATE REQUEST-----") => {}
        _ => problems.invalid(
            "spec.request",
            "<request>",
            "PEM block type must be CERTIFICATE REQUEST (in base64, as all bytes in JSON)",
        ),
    }
    let signer = text(o, "/spec/signerName");
    match signer.split_once('/') {
        _ if signer.is_empty() => problems.required("spec.signerName", ""),
        Some((domain, path)) if !path.is_empty() && domain.contains('.') => {}
        _ => problems.invalid(
            "spec.signerName",
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
    }
    if list(o, "/spec/usages").is_empty() {
        problems.required("spec.usages", "usages are required");
    }
    let seconds = find(o, "/spec/expirationSeconds").and_then(Value::as_i64);
    if let Some(seconds) = seconds.filter(|s| *s < 600) {
        problems.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
}
