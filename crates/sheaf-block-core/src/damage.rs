//! Damage that nobody can repair: blocks of a layer that could not be read, and of which no replica in sync had a good copy.
//!
//! Each replica keeps a bounded list of them durably ([`Damage`], in its [`Metadata`](crate::disk::Metadata)). A marked block is
//! neither there nor absent: it hides what is below it, a read that meets it fails with
//! [`Failure::Corrupt`](crate::disk::Failure::Corrupt), and a write of the whole block heals it. Marks travel with parts of segments
//! ([`Part::bad`]), so a rebuild restores redundancy for all the rest, and a fold takes them along. Decision note 0032.
//!
//! It does not decide when something is given up as damaged; the coordinator does, once nobody can read it.

use std::collections::BTreeMap;

use crate::disk::{Data, Part};
use crate::ids::{BLOCK_BYTES, BlockCount, BlockIndex, SEGMENT_BLOCKS, SegmentIndex};
use crate::structure::LayerId;

/// Parts of segments in which a replica may have damage; a disk with more of it is not worth being read from any longer.
pub const MAX_DAMAGED: usize = 1024;

/// Which blocks of which layers are damaged: a bit for each block of a segment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Damage(BTreeMap<(LayerId, SegmentIndex), u64>);

impl Damage {
    /// Whether nothing is damaged, as it should be.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parts of segments with damage.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Damaged blocks.
    pub fn blocks(&self) -> u64 {
        self.0.values().map(|bad| u64::from(bad.count_ones())).sum()
    }

    /// The damaged blocks of a layer's part of a segment.
    pub fn of(&self, layer: LayerId, segment: SegmentIndex) -> u64 {
        self.0.get(&(layer, segment)).copied().unwrap_or(0)
    }

    /// Whether the list has room for damage there.
    pub fn has_room(&self, layer: LayerId, segment: SegmentIndex) -> bool {
        self.0.len() < MAX_DAMAGED || self.0.contains_key(&(layer, segment))
    }

    /// These blocks are damaged, too.
    pub fn add(&mut self, layer: LayerId, segment: SegmentIndex, bad: u64) {
        if bad != 0 {
            *self.0.entry((layer, segment)).or_default() |= bad;
        }
    }

    /// These blocks are not damaged any more.
    pub fn heal(&mut self, layer: LayerId, segment: SegmentIndex, healed: u64) {
        if let Some(bad) = self.0.get_mut(&(layer, segment)) {
            *bad &= !healed;
            if *bad == 0 {
                self.0.remove(&(layer, segment));
            }
        }
    }

    /// Forgets what is of layers that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(LayerId) -> bool) {
        self.0.retain(|(layer, _), _| keep(*layer));
    }

    /// All of it: layer, segment, blocks.
    pub fn iter(&self) -> impl Iterator<Item = (LayerId, SegmentIndex, u64)> {
        self.0.iter().map(|((layer, segment), bad)| (*layer, *segment, *bad))
    }

    /// Whether any of these blocks of a layer is damaged.
    pub fn touches(&self, layer: LayerId, start: BlockIndex, count: BlockCount) -> bool {
        !self.0.is_empty()
            && crate::ids::segments(start, count)
                .any(|segment| self.of(layer, segment) & within(segment, start, count) != 0)
    }

    /// Segments in which a layer has damage, from this one on.
    pub fn segments(&self, layer: LayerId, from: SegmentIndex) -> impl Iterator<Item = SegmentIndex> {
        let range = (layer, from)..=(layer, SegmentIndex(u32::MAX));
        self.0.range(range).map(|((_, segment), _)| *segment)
    }

    /// A page of the segments of which a layer holds anything, with those of which it holds nothing but damage.
    pub fn listed(
        &self,
        layer: LayerId,
        from: SegmentIndex,
        mut page: Vec<SegmentIndex>,
        limit: usize,
    ) -> Vec<SegmentIndex> {
        // A full page goes on behind its last segment.
        let until = if page.len() >= limit { page.last().copied() } else { None };
        let more = self.segments(layer, from).filter(|at| until.is_none_or(|until| *at <= until));
        let before = page.len();
        page.extend(more);
        if page.len() > before {
            page.sort_unstable();
            page.dedup();
            page.truncate(limit);
        }
        page
    }
}

/// The bits of those of some blocks that lie in a segment.
pub fn within(segment: SegmentIndex, start: BlockIndex, count: BlockCount) -> u64 {
    let first = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS);
    let bits = u64::from(SEGMENT_BLOCKS);
    let from = start.0.saturating_sub(first).min(bits);
    let to = start.0.saturating_add(u64::from(count.0)).saturating_sub(first).min(bits);
    below(to) & !below(from)
}

fn below(bits: u64) -> u64 {
    if bits >= u64::from(u64::BITS) { !0 } else { (1 << bits) - 1 }
}

/// What a layer has of one block.
#[derive(Clone, Copy)]
enum Has<'a> {
    Nothing,
    Zero,
    Data(&'a [u8]),
    Damage,
}

impl Part {
    fn blocks(&self) -> impl Iterator<Item = Has<'_>> {
        let mut bytes = self.bytes.chunks(BLOCK_BYTES as usize);
        (0..SEGMENT_BLOCKS).map(move |at| {
            let has = |mask: u64| mask >> at & 1 == 1;
            match () {
                () if has(self.bad) => Has::Damage,
                () if has(self.data) => bytes.next().map_or(Has::Damage, Has::Data),
                () if has(self.zero) => Has::Zero,
                () => Has::Nothing,
            }
        })
    }

    fn collect<'a>(blocks: impl Iterator<Item = Has<'a>>) -> Self {
        let (mut part, mut bytes) = (Self::empty(), Vec::new());
        for (at, block) in blocks.enumerate() {
            match block {
                Has::Nothing => {}
                Has::Zero => part.zero |= 1 << at,
                Has::Damage => part.bad |= 1 << at,
                Has::Data(block) => {
                    part.data |= 1 << at;
                    bytes.extend_from_slice(block);
                }
            }
        }
        part.bytes = Data::from(bytes);
        part
    }

    /// The same, with these blocks damaged.
    #[must_use]
    pub fn without(&self, bad: u64) -> Self {
        if bad & !self.bad == 0 {
            return self.clone();
        }
        let damaged = |(at, has)| if bad >> at & 1 == 1 { Has::Damage } else { has };
        Self::collect((0..SEGMENT_BLOCKS).zip(self.blocks()).map(damaged))
    }

    /// The same, with what another replica has of the blocks that are damaged here.
    #[must_use]
    pub fn filled(&self, from: &Self) -> Self {
        let better = |(own, other)| if matches!(own, Has::Damage) { other } else { own };
        Self::collect(self.blocks().zip(from.blocks()).map(better))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CoordinatorId;
    use crate::structure::OrderId;

    const LAYER: LayerId = OrderId { number: 1, run: CoordinatorId(1) };

    #[test]
    fn blocks_of_a_segment() {
        let all = |start, count| within(SegmentIndex(1), BlockIndex(start), BlockCount(count));
        assert_eq!(all(0, 64), 0);
        assert_eq!(all(0, 65), 1);
        assert_eq!(all(60, 256), !0);
        assert_eq!(all(66, 2), 0b1100);
        assert_eq!(all(127, 9), 1 << 63);
        assert_eq!(all(128, 9), 0);
    }

    #[test]
    fn marks_come_and_go() {
        let mut damage = Damage::default();
        damage.add(LAYER, SegmentIndex(3), 0b110);
        damage.add(LAYER, SegmentIndex(4), 0);
        assert_eq!((damage.len(), damage.blocks()), (1, 2));
        let touches = |damage: &Damage, start| damage.touches(LAYER, BlockIndex(start), BlockCount(1));
        assert!(touches(&damage, 3 * 64 + 1) && !touches(&damage, 3 * 64));
        damage.heal(LAYER, SegmentIndex(3), 0b010);
        assert_eq!(damage.of(LAYER, SegmentIndex(3)), 0b100);
        damage.heal(LAYER, SegmentIndex(3), !0);
        assert!(damage.is_empty());
        (0..MAX_DAMAGED as u32).for_each(|at| damage.add(LAYER, SegmentIndex(at), 1));
        assert!(!damage.has_room(LAYER, SegmentIndex(9_999)) && damage.has_room(LAYER, SegmentIndex(5)));
    }

    #[test]
    fn pages_have_segments_of_which_only_damage_is_there() {
        let mut damage = Damage::default();
        [2, 5, 9].into_iter().for_each(|at| damage.add(LAYER, SegmentIndex(at), 1));
        let listed = |from, page: &[u32], limit| -> Vec<u32> {
            let page = page.iter().copied().map(SegmentIndex).collect();
            damage.listed(LAYER, SegmentIndex(from), page, limit).into_iter().map(|at| at.0).collect()
        };
        assert_eq!(listed(0, &[1, 5], 3), [1, 2, 5], "cut: the rest is on the next page");
        assert_eq!(listed(6, &[], 3), [9]);
        assert_eq!(listed(3, &[4, 6], 2), [4, 5], "a full page ends where it ended, or before");
        assert_eq!(listed(10, &[11], 2), [11]);
    }

    #[test]
    fn parts_lose_blocks_and_get_them_from_others() {
        let block = |value: u8| vec![value; BLOCK_BYTES as usize];
        let bytes = [block(1), block(2)].concat().into();
        let part = Part { data: 0b101, zero: 0b1000, bad: 0, bytes };
        let less = part.without(0b1100);
        assert_eq!((less.data, less.zero, less.bad), (0b1, 0, 0b1100));
        assert!(less.is_sound() && less.bytes[..] == block(1)[..]);
        assert_ne!(less.checksum(), part.checksum());
        assert_eq!(less.filled(&part), part);
        let other = part.without(0b1);
        assert_eq!(other.filled(&less), part, "each had what the other lacked");
        assert_eq!(part.without(0b10).filled(&part), part, "what is absent is absent again");
    }
}
