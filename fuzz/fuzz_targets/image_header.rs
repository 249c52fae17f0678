//! Disk images: recognition and the qcow2 header.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|head: &[u8]| {
    let _ = sheaf_image::qcow2::parse(head);
    if let Ok(look) = sheaf_image::probe::look(head) {
        let _ = sheaf_image::probe::judge(&look, head, head.len() as u64);
    }
});
