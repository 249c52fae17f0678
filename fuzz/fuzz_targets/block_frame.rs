//! Frames of block storage: whatever is taken for one is written again as the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_block_core::crc::crc32c;
use sheaf_block_core::wire::{Frame, HEADER_BYTES};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(frame.encode(), bytes);
    }
    // With right checksums, so that what is behind them is reached.
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let payload = (bytes.len() - HEADER_BYTES) as u32;
    let crc = crc32c(&bytes[HEADER_BYTES..]);
    bytes[..4].copy_from_slice(b"SHFB");
    bytes[4..6].copy_from_slice(&1u16.to_le_bytes());
    bytes[7] = 0;
    bytes[60..64].copy_from_slice(&payload.to_le_bytes());
    bytes[64..68].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c(&bytes[..68]);
    bytes[68..72].copy_from_slice(&crc.to_le_bytes());
    if let Ok(frame) = Frame::decode(&bytes) {
        assert_eq!(frame.encode(), bytes);
    }
});
