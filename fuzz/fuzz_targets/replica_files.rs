//! Every file of a replica directory: Longhorn's metadata, our copy, promises, log and intent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_disk::meta::{ChecksumRecord, ImageMeta, VolumeMeta};

/// Whether a value of a field that we do not know has no fractions: those are read to the nearest but one.
fn exact(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Number(number) => !number.is_f64(),
        serde_json::Value::Array(list) => list.iter().all(exact),
        serde_json::Value::Object(map) => map.values().all(exact),
        _ => true,
    }
}

fuzz_target!(|bytes: &[u8]| {
    // What is read is written so that it is read again the same.
    if let Ok(meta) = VolumeMeta::decode(bytes)
        && meta.other.values().all(exact)
    {
        assert_eq!(VolumeMeta::decode(&meta.encode()), Ok(meta));
    }
    if let Ok(meta) = ImageMeta::decode(bytes)
        && meta.other.values().all(exact)
    {
        assert_eq!(ImageMeta::decode(&meta.encode()), Ok(meta));
    }
    let _ = ChecksumRecord::decode(bytes);
    let _ = sheaf_disk::chain::Tree::decode(bytes);
    let _ = sheaf_disk::layers::Intent::decode(bytes);
    let _ = sheaf_disk::state::decode_state(bytes);
    let _ = sheaf_disk::state::decode_log(1, bytes);
    // Behind their checksums.
    let _ = sheaf_disk::state::codec::read_structure(&mut sheaf_disk::envelope::Reader(bytes));
    let _ = sheaf_disk::state::codec::read_operation(&mut sheaf_disk::envelope::Reader(bytes));
});
