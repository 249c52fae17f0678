//! Checksums of the single blocks of a sealed part of a segment: when the seal does not fit any more, they tell which block it is. Pure; the
//! files (`sheaf-sums.*`) are kept by [`crate::part`].
//!
//! One sector for each segment: the seal that it belongs to, a CRC-32C of all the rest, 64 sums. They are written without a sync: an entry that is
//! lost or old does not fit its seal, and then nothing is known of single blocks.

use sheaf_block_core::crc::crc32c;
use sheaf_block_core::disk::Part;
use sheaf_block_core::ids::{BLOCK_BYTES, SEGMENT_BLOCKS};

use crate::envelope::Reader;

/// Bytes of an entry.
pub const ENTRY: usize = 512;
const SUMS: usize = SEGMENT_BLOCKS as usize;
const ABSENT: u32 = 0;
const ZERO: u32 = 1;

fn sums(part: &Part) -> [u32; SUMS] {
    let mut blocks = part.bytes.chunks(BLOCK_BYTES as usize);
    std::array::from_fn(|at| match (part.data >> at & 1, part.zero >> at & 1) {
        (1, _) => blocks.next().map_or(ABSENT, |block| crc32c(block).max(ZERO + 1)),
        (_, 1) => ZERO,
        _ => ABSENT,
    })
}

/// The entry of a part that has this seal.
pub fn encode(seal: u32, part: &Part) -> [u8; ENTRY] {
    let mut body = Vec::with_capacity(ENTRY);
    body.extend(seal.to_le_bytes());
    sums(part).iter().for_each(|sum| body.extend(sum.to_le_bytes()));
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&crc32c(&body).to_le_bytes());
    entry[4..4 + body.len()].copy_from_slice(&body);
    entry
}

/// The blocks in which a part is not what was sealed. None: the entry is not of this seal.
pub fn differing(entry: &[u8], seal: u32, part: &Part) -> Option<u64> {
    let body = entry.get(4..8 + 4 * SUMS)?;
    let mut r = Reader(entry);
    let whole = r.u32().ok()? == crc32c(body) && r.u32().ok()? == seal;
    let mut differs = 0;
    for (at, sum) in sums(part).into_iter().enumerate() {
        differs |= u64::from(r.u32().ok()? != sum) << at;
    }
    whole.then_some(differs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_changed_is_found() {
        let mut bytes = vec![7; 2 * BLOCK_BYTES as usize];
        let part = Part { data: 0b1001, zero: 0b10, bad: 0, bytes: bytes.clone().into() };
        let entry = encode(5, &part);
        assert_eq!(differing(&entry, 5, &part), Some(0));
        assert_eq!(differing(&entry, 6, &part), None, "of another seal");
        bytes[BLOCK_BYTES as usize + 9] ^= 1;
        let rotten = Part { bytes: bytes.into(), ..part.clone() };
        assert_eq!(differing(&entry, 5, &rotten), Some(0b1000));
        let gone = Part { zero: 0, ..part.clone() };
        assert_eq!(differing(&entry, 5, &gone), Some(0b10));
        for at in 0..8 + 4 * SUMS {
            let mut damaged = entry;
            damaged[at] ^= 4;
            assert_eq!(differing(&damaged, 5, &part), None, "byte {at}");
        }
        assert_eq!(differing(&[0; ENTRY], 0, &Part::empty()), None, "nothing was ever written there");
        assert_eq!(differing(&entry[..99], 5, &part), None);
    }
}
