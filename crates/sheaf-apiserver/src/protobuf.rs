//! Request bodies in Kubernetes' protobuf form, of the kinds that clients send so: what kubectl and client-go make by
//! themselves (secrets, config maps, namespaces, reviews, leases, events, options of deletions).
//!
//! Decoding only: answers are JSON, which all those clients read. A table says which field is what; it grows by rows. The
//! formats are the published `generated.proto` files of Kubernetes, whose numbers never change.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use sheaf_meta::{object, status::Status};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages.
const MAX_DEPTH: usize = 32;

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Type {
    /// Text; empty is absent.
    Text,
    /// Text of a pointer: present means set.
    TextPointer,
    /// A list of texts.
    Texts,
    /// A number; 0 is absent.
    Int,
    /// A number of a pointer.
    IntPointer,
    /// A boolean of a pointer.
    BoolPointer,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `map<string, string>`.
    TextMap,
    /// `map<string, bytes>`, base64 in JSON.
    BytesMap,
    /// Another message.
    One(&'static [Field]),
    /// A list of messages.
    Many(&'static [Field]),
}
use Type::{
    BoolPointer, BytesMap, Int, IntPointer, Many, MicroTime, One, Text, TextMap, TextPointer, Texts, Time,
};

/// Number, name in JSON, type.
type Field = (u64, &'static str, Type);

const OWNER: &[Field] = &[
    (1, "kind", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "controller", BoolPointer),
    (7, "blockOwnerDeletion", BoolPointer),
];
const META: &[Field] = &[
    (1, "name", Text),
    (2, "generateName", Text),
    (3, "namespace", Text),
    (5, "uid", Text),
    (6, "resourceVersion", Text),
    (7, "generation", Int),
    (8, "creationTimestamp", Time),
    (9, "deletionTimestamp", Time),
    (10, "deletionGracePeriodSeconds", IntPointer),
    (11, "labels", TextMap),
    (12, "annotations", TextMap),
    (13, "ownerReferences", Many(OWNER)),
    (14, "finalizers", Texts),
];
const REFERENCE: &[Field] = &[
    (1, "kind", Text),
    (2, "namespace", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "resourceVersion", Text),
    (7, "fieldPath", Text),
];
const RESOURCE_ATTRIBUTES: &[Field] = &[
    (1, "namespace", Text),
    (2, "verb", Text),
    (3, "group", Text),
    (4, "version", Text),
    (5, "resource", Text),
    (6, "subresource", Text),
    (7, "name", Text),
];
const PATH_ATTRIBUTES: &[Field] = &[(1, "path", Text), (2, "verb", Text)];
const LEASE_SPEC: &[Field] = &[
    (1, "holderIdentity", TextPointer),
    (2, "leaseDurationSeconds", IntPointer),
    (3, "acquireTime", MicroTime),
    (4, "renewTime", MicroTime),
    (5, "leaseTransitions", IntPointer),
];

/// The messages that are read, by apiVersion (empty: any) and kind.
const KINDS: &[(&str, &str, &[Field])] = &[
    (
        "v1",
        "Secret",
        &[
            (1, "metadata", One(META)),
            (2, "data", BytesMap),
            (3, "type", Text),
            (4, "stringData", TextMap),
            (5, "immutable", BoolPointer),
        ],
    ),
    (
        "v1",
        "ConfigMap",
        &[
            (1, "metadata", One(META)),
            (2, "data", TextMap),
            (3, "binaryData", BytesMap),
            (4, "immutable", BoolPointer),
        ],
    ),
    (
        "v1",
        "Namespace",
        &[
            (1, "metadata", One(META)),
            (2, "spec", One(&[(1, "finalizers", Texts)])),
            (3, "status", One(&[(1, "phase", Text)])),
        ],
    ),
    (
        "v1",
        "Event",
        &[
            (1, "metadata", One(META)),
            (2, "involvedObject", One(REFERENCE)),
            (3, "reason", Text),
            (4, "message", Text),
            (5, "source", One(&[(1, "component", Text), (2, "host", Text)])),
            (6, "firstTimestamp", Time),
            (7, "lastTimestamp", Time),
            (8, "count", Int),
            (9, "type", Text),
            (10, "eventTime", MicroTime),
            (11, "series", One(&[(1, "count", Int), (2, "lastObservedTime", MicroTime)])),
            (12, "action", Text),
            (13, "related", One(REFERENCE)),
            (14, "reportingComponent", Text),
            (15, "reportingInstance", Text),
        ],
    ),
    ("coordination.k8s.io/v1", "Lease", &[(1, "metadata", One(META)), (2, "spec", One(LEASE_SPEC))]),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        &[
            (1, "metadata", One(META)),
            (
                2,
                "spec",
                One(&[
                    (1, "resourceAttributes", One(RESOURCE_ATTRIBUTES)),
                    (2, "nonResourceAttributes", One(PATH_ATTRIBUTES)),
                ]),
            ),
        ],
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectRulesReview",
        &[(1, "metadata", One(META)), (2, "spec", One(&[(1, "namespace", Text)]))],
    ),
    ("authentication.k8s.io/v1", "SelfSubjectReview", &[(1, "metadata", One(META))]),
    (
        "",
        "DeleteOptions",
        &[
            (1, "gracePeriodSeconds", IntPointer),
            (2, "preconditions", One(&[(1, "uid", TextPointer), (2, "resourceVersion", TextPointer)])),
            (3, "orphanDependents", BoolPointer),
            (4, "propagationPolicy", TextPointer),
            (5, "dryRun", Texts),
        ],
    ),
];

/// One field as it is on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads fields one by one; `None` inside for what is malformed.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(out);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
}

/// Decodes an enveloped object. 415 for a kind that has no row, 400 for bytes that are no such message.
pub fn decode(bytes: &[u8], accepted: &[&str]) -> Result<Value, Status> {
    let malformed = || Status::bad_request("the body is no valid protobuf object of Kubernetes");
    let mut envelope = Reader(bytes.strip_prefix(MAGIC).ok_or_else(malformed)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while !envelope.0.is_empty() {
        match envelope.field().ok_or_else(malformed)? {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while !meta.0.is_empty() {
                    match meta.field().ok_or_else(malformed)? {
                        (1, Wire::Bytes(b)) => api_version = text(b).ok_or_else(malformed)?,
                        (2, Wire::Bytes(b)) => kind = text(b).ok_or_else(malformed)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let (_, _, fields) = KINDS
        .iter()
        .find(|(v, k, _)| *k == kind && (v.is_empty() || *v == api_version))
        .ok_or_else(|| Status::unsupported_media_type(accepted))?;
    let mut out = Value::Object(message(raw, fields, 0).ok_or_else(malformed)?);
    object::set_gvk(&mut out, &api_version, &kind);
    Ok(out)
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(String::from)
}

fn message(bytes: &[u8], fields: &[Field], depth: usize) -> Option<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut out = Map::new();
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let (number, wire) = reader.field()?;
        let Some((_, name, ty)) = fields.iter().find(|(n, ..)| *n == number) else { continue };
        let value = match (ty, wire) {
            (Text, Wire::Bytes(b)) => Some(text(b)?).filter(|t| !t.is_empty()).map(Value::String),
            (TextPointer, Wire::Bytes(b)) => Some(Value::String(text(b)?)),
            (Int, Wire::Number(n)) => (n != 0).then(|| json!(n.cast_signed())),
            (IntPointer, Wire::Number(n)) => Some(json!(n.cast_signed())),
            (BoolPointer, Wire::Number(n)) => Some(json!(n != 0)),
            (Time, Wire::Bytes(b)) => time(b, false)?,
            (MicroTime, Wire::Bytes(b)) => time(b, true)?,
            (One(fields), Wire::Bytes(b)) => {
                Some(message(b, fields, depth + 1)?).filter(|m| !m.is_empty()).map(Value::Object)
            }
            (Texts, Wire::Bytes(b)) => {
                push(&mut out, name, json!(text(b)?));
                None
            }
            (Many(fields), Wire::Bytes(b)) => {
                push(&mut out, name, Value::Object(message(b, fields, depth + 1)?));
                None
            }
            (TextMap | BytesMap, Wire::Bytes(b)) => {
                let (key, value) = entry(b)?;
                let value = if matches!(ty, TextMap) { text(value)? } else { STANDARD.encode(value) };
                let map = out.entry(*name).or_insert_with(|| json!({}));
                object::as_map(map).insert(key, Value::String(value));
                None
            }
            _ => return None,
        };
        if let Some(value) = value {
            out.insert((*name).into(), value);
        }
    }
    Some(out)
}

fn push(out: &mut Map<String, Value>, name: &str, value: Value) {
    if let Value::Array(list) = out.entry(name).or_insert_with(|| json!([])) {
        list.push(value);
    }
}

/// One entry of a map.
fn entry(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (mut key, mut value) = (String::new(), &[][..]);
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        match reader.field()? {
            (1, Wire::Bytes(b)) => key = text(b)?,
            (2, Wire::Bytes(b)) => value = b,
            _ => {}
        }
    }
    Some((key, value))
}

/// Seconds and nanoseconds since 1970; Go's zero time, and an empty message, are absent.
#[allow(clippy::option_option, reason = "malformed, absent, present")]
fn time(bytes: &[u8], micro: bool) -> Option<Option<Value>> {
    let (mut seconds, mut nanos) = (None, 0);
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        match reader.field()? {
            (1, Wire::Number(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Number(n)) => nanos = i32::try_from(n).ok()?,
            _ => {}
        }
    }
    let Some(seconds) = seconds.filter(|s| *s > -62_135_596_800) else { return Some(None) };
    let at = jiff::Timestamp::new(seconds, nanos).ok()?;
    Some(Some(json!(if micro { object::micro_time(at) } else { object::time(at) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_secret_as_client_go_sends_it() {
        let meta = [
            field(1, b"s"),
            field(2, b""),
            field(8, b""),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ];
        let data = [field(1, b"a"), field(2, b"b")].concat();
        let raw = [field(1, &meta.concat()), field(2, &data), field(3, b"Opaque")].concat();
        assert_eq!(
            decode(&envelope("v1", "Secret", &raw), &[]).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"k": "v"}},
                "data": {"a": "Yg=="}, "type": "Opaque",
            })
        );
    }

    #[test]
    fn pointers_keep_their_zero_and_times_their_precision() {
        let spec =
            [field(1, b""), vec![2 << 3, 15], field(4, &[1 << 3, 100, 2 << 3, 0xc0, 0x84, 0x3d])].concat();
        let lease = decode(&envelope("coordination.k8s.io/v1", "Lease", &field(2, &spec)), &[]).unwrap();
        assert_eq!(
            lease["spec"],
            json!({"holderIdentity": "", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:01:40.001000Z"})
        );
        let options = decode(&envelope("policy/v1", "DeleteOptions", &[1 << 3, 0]), &[]).unwrap();
        assert_eq!(options["gracePeriodSeconds"], json!(0));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(decode(&envelope("apps/v1", "Deployment", b""), &[]).unwrap_err().code, 415);
        assert_eq!(decode(b"k8s\0\xff", &[]).unwrap_err().code, 400);
        assert_eq!(decode(b"{}", &[]).unwrap_err().code, 400);
        let cut = envelope("v1", "Secret", &field(1, &field(1, b"s")));
        for end in 4..cut.len() {
            let _ = decode(&cut[..end], &[]);
        }
    }
}
