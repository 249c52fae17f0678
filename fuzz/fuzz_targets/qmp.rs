//! What QEMU says on its control socket, in two pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let mut decoder = sheaf_qemu::qmp::wire::Decoder::default();
    let mut messages = Vec::new();
    decoder.feed(input.0, &mut messages);
    decoder.feed(input.1, &mut messages);
});
