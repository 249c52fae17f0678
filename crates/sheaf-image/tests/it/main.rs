//! Downloads from a scripted server on loopback, uploads from streams, and overlays as QEMU's own tools see them.
#![allow(clippy::unwrap_used, missing_docs)]

mod fetch;
mod server;
mod upload;
mod volume;

/// A disk with a boot sector, some zeroes and some data that differs from place to place.
pub(crate) fn disk(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..len).map(|i| if (i >> 14) % 3 == 0 { 0 } else { (i * 31 + (i >> 8) * 7) as u8 }).collect();
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

pub(crate) fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest;
    sheaf_image::digest::hex(&sha2::Sha512::digest(bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sheaf_image::digest::hex(&sha2::Sha256::digest(bytes))
}
