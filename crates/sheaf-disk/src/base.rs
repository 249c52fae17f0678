//! A raw file made ready to be the lowest layer of many replicas ([`crate::replica::Base`]).
//!
//! What a layer has, and what is a hole in it, is part of what replicas compare with each other. Whoever wrote the file may have left zeros
//! where another left a hole; afterwards there is one form only: every block that is there has something in it. Owns nothing.

use crate::fs::{Extent, File, Result, each_extent};

const BLOCK: u64 = 4096;
/// Extents are listed, and data is read, in pieces of so much.
const WINDOW: u64 = 64 << 20;
const PIECE: u64 = 1 << 20;
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Makes a hole of every block of zeros, and the length one of whole blocks. Nobody else may have the file. Durable when it returns; says how
/// many bytes are left in it.
pub fn settle<F: File>(file: &F) -> Result<u64> {
    let bytes = file.len()?.next_multiple_of(BLOCK);
    file.set_len(bytes)?;
    let mut buffer = vec![0; PIECE as usize];
    let (mut at, mut left) = (0, 0);
    while at < bytes {
        let len = WINDOW.min(bytes - at);
        let mut extents = Vec::new();
        each_extent(file, at, len, |extent| {
            extents.push(extent);
            Ok(())
        })?;
        for extent in extents {
            left += settle_extent(file, extent, &mut buffer)?;
        }
        at += len;
    }
    file.sync()?;
    Ok(left)
}

fn settle_extent<F: File>(file: &F, extent: Extent, buffer: &mut [u8]) -> Result<u64> {
    let mut at = extent.start / BLOCK * BLOCK;
    let end = (extent.start + extent.len).next_multiple_of(BLOCK);
    // Whatever is said of it, only what was read as zeros goes.
    let mut left = 0;
    while at < end {
        let piece = &mut buffer[..PIECE.min(end - at) as usize];
        file.read_at(at, piece)?;
        let mut empty = None;
        for block in piece.chunks(BLOCK as usize) {
            if block == ZEROS {
                empty.get_or_insert(at);
            } else {
                left += BLOCK;
                if let Some(from) = empty.take() {
                    file.punch(from, at - from)?;
                }
            }
            at += BLOCK;
        }
        if let Some(from) = empty {
            file.punch(from, at - from)?;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fs::Dir;
    use crate::sim::SimDisk;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However the same bytes were written, the file is the same afterwards.
        #[test]
        fn equal_bytes_become_equal_files(
            blocks in prop::collection::vec((0u8..3, any::<bool>()), 1..40),
            odd in any::<bool>(),
        ) {
            let dir = SimDisk::default().dir("bases");
            let len = blocks.len() as u64 * BLOCK - u64::from(odd) * 512;
            let file = dir.create("b", len).expect("creates");
            for (at, (value, written)) in blocks.iter().enumerate() {
                if *value > 0 || *written {
                    file.write_at(at as u64 * BLOCK, &[*value; BLOCK as usize]).expect("writes");
                }
            }
            file.set_len(len).expect("cuts");
            let mut before = vec![9; blocks.len() * BLOCK as usize];
            file.read_at(0, &mut before).expect("reads");
            let filled = blocks.iter().filter(|(value, _)| *value > 0).count() as u64;
            prop_assert_eq!(settle(&file).expect("settles"), filled * BLOCK);
            let mut after = vec![9; before.len()];
            file.read_at(0, &mut after).expect("reads");
            prop_assert!(before == after);
            prop_assert_eq!(file.len().expect("has a length"), blocks.len() as u64 * BLOCK);
            for (at, (value, _)) in blocks.iter().enumerate() {
                let there = !file.extents(at as u64 * BLOCK, BLOCK, 1).expect("lists").is_empty();
                prop_assert_eq!(there, *value > 0, "block {}", at);
            }
        }
    }
}
