//! Damage as people are told of it: ranges of bytes, by snapshot. Pure.

use serde::{Deserialize, Serialize};
use sheaf_block_core::disk::Metadata;
use sheaf_block_core::ids::{BLOCK_BYTES, SEGMENT_BLOCKS};

/// Ranges that are told; the bytes of all of them are told beside.
pub const RANGES_MAX: usize = 64;

/// A range that cannot be read, until it is written to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedAt {
    /// The snapshot whose data it is; none: what was written since the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// The first damaged ranges of a replica, neighbours together.
pub fn ranges(meta: &Metadata) -> Vec<DamagedAt> {
    let block = u64::from(BLOCK_BYTES);
    let mut found: Vec<DamagedAt> = Vec::new();
    for (layer, segment, bad) in meta.damage.iter() {
        let layer = meta.structure.layer(layer).and_then(|layer| layer.snapshot.as_ref());
        let snapshot = layer.map(|snapshot| snapshot.name.as_str().to_owned());
        let first = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS);
        for at in (0..u64::from(SEGMENT_BLOCKS)).filter(|at| bad >> at & 1 == 1) {
            let offset = (first + at) * block;
            let full = found.len() == RANGES_MAX;
            match found.last_mut() {
                Some(last) if last.snapshot == snapshot && last.offset + last.bytes == offset => {
                    last.bytes += block
                }
                _ if full => return found,
                _ => found.push(DamagedAt { snapshot: snapshot.clone(), offset, bytes: block }),
            }
        }
    }
    found
}

/// All damaged bytes of a replica.
pub fn bytes(meta: &Metadata) -> u64 {
    meta.damage.blocks() * u64::from(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use sheaf_block_core::disk::Change;
    use sheaf_block_core::ids::{ReplicaId, ReplicaSet, SegmentIndex, VolumeId};
    use sheaf_block_core::membership::Ledger;
    use sheaf_block_core::structure::Structure;

    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let set = ReplicaSet::of([ReplicaId(1)]).expect("fits");
        let structure = Structure::new(1 << 20, None);
        let head = structure.head;
        let mut meta = Metadata::new(VolumeId(1), ReplicaId(1), structure, Ledger::created(set));
        assert_eq!((ranges(&meta), bytes(&meta)), (vec![], 0));
        for (segment, bad) in [(1, 1 << 63 | 0b100), (2, 0b11)] {
            meta.apply(&Change::Damaged(head, SegmentIndex(segment), bad));
        }
        let at = |offset: u64, bytes| DamagedAt { snapshot: None, offset: offset * 4096, bytes };
        assert_eq!(ranges(&meta), [at(66, 4096), at(127, 3 * 4096)]);
        assert_eq!(bytes(&meta), 4 * 4096);
        (10..900).for_each(|at| meta.apply(&Change::Damaged(head, SegmentIndex(at), 1)));
        assert_eq!((ranges(&meta).len(), bytes(&meta)), (RANGES_MAX, 894 * 4096));
    }
}
