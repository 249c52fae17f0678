//! Request bodies in protobuf: any bytes as an object of some kind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_meta::protobuf::{MAGIC, decode};

/// Kinds that have every type of field between them.
const KINDS: &[(&str, &str)] = &[
    ("v1", "Pod"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("apps/v1", "ControllerRevision"),
    ("authorization.k8s.io/v1", "SubjectAccessReview"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
];

/// A field of bytes.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or_default());
    out.extend_from_slice(content);
    out
}

fuzz_target!(|input: &[u8]| {
    let _ = decode(input);
    let Some((&which, object)) = input.split_first() else { return };
    let (api_version, kind) = KINDS[usize::from(which) % KINDS.len()];
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    let body = [MAGIC.to_vec(), bytes(1, &meta), bytes(2, object)].concat();
    if let Ok(value) = decode(&body) {
        // What was accepted can be written and read again.
        let text = value.to_string();
        assert!(sheaf_meta::strict::parse(text.as_bytes()).is_ok(), "{text}");
    }
});
