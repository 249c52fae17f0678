//! A file of the store's log, as it may be after a crash; also with a first record whose sum is right.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sheaf_store::sqlite::log::read(bytes);
    if bytes.len() > 24 {
        let mut whole = bytes.to_vec();
        let length = whole.len() as u32;
        whole[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c(&whole[4..]);
        whole[..4].copy_from_slice(&sum.to_le_bytes());
        let _ = sheaf_store::sqlite::log::read(&whole);
    }
});
