//! The seam between the replica's state machine and the files of its directory.
//!
//! [`Replica`](crate::replica::Replica) says what is to be done as [`Op`]s; whoever owns the files does them and answers
//! with [`Done`] or [`Failure`]. The production side is `sheaf-disk`, the other is the simulator's disk. What the owner of the files
//! must keep:
//!
//! - **Layers.** Reads look for each block in the head's chain, top down, then in the base, else it is zero. `Write`
//!   and `Zero` change the head only. A zeroed block is *there* in the head, as zeroes (a hole would show what is
//!   below), unless nothing below has it.
//! - **Order.** `Persist`, `Operate` and `Adopt` end in the order in which they were given. Other operations may run at
//!   the same time and end in any order; those that the state machine lets run together never touch the same blocks
//!   of the same layer, and `Operate` and `Adopt` run while nothing else does.
//! - **Atomic and durable when answered.** `Persist`, `Operate`, `Adopt`, `Seal`: after a crash the directory opens as
//!   before or as after, and [`Metadata`] tells which. A new metadata is [`Metadata::apply`] of the old; the log or
//!   slot that keeps it is the owner's business. What was `Persist`ed before an `Operate` is durable before it.
//! - **`Write`, `Zero`, `WritePart`, `Fold`** are in the files when answered (so they survive the process), and durable after a
//!   later `Sync` was answered. Without it a machine that goes down may lose them, each sector by itself.
//! - **Damage.** A block that [`Metadata::damage`] names counts as there in its layer, and cannot be read: `Read` fails with `Corrupt` if a
//!   block is looked for in a layer that has it damaged; `ReadPart` and `Digest` leave it out, and hold nothing against a checksum of before.
//!   `Zero` hides it, like what is there.
//! - **Clones.** [`Kind::Clone`](crate::structure::Kind::Clone) makes a directory for the clone's replica, with [`Metadata::cloned`], beside this
//!   one. The layers are in both from then on, and no `Fold` changes them; `WritePart` may, with what they hold already.
//! - **`Fold`** may be done in any direction and may be repeated; what is read through any layer but the folded one
//!   stays the same at every moment, also after a crash in the middle. Both layers' parts are checked against their
//!   seals first; the seals end with it.
//! - A failure leaves blocks that were to be written in any mixture of old and new sectors, and nothing else changed. A
//!   failed `Operate` or `Adopt` has changed nothing. A failed `Persist` stops the replica; it is opened again from the
//!   files. Whoever cannot keep one of these promises must stop the replica, too.
//!
//! The first operation is always a `Persist` of [`Change::Opened`]; it says whether the machine may have gone down since
//! the directory was open last (another boot id than the one kept beside the metadata).

use std::collections::{BTreeMap, BTreeSet};

use crate::crc::crc32c;
use crate::damage::Damage;
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, ReplicaId, SEGMENT_BLOCKS, SegmentIndex, Version, VolumeId,
};
use crate::membership::Ledger;
use crate::structure::{CloneOf, Layer, LayerId, Operation, OrderId, Structure};

/// Segments that a replica remembers to have written on its own, while it is being rebuilt. With more, layers are copied
/// from the beginning.
pub const MAX_OWN: usize = 1 << 14;

/// Content of whole blocks, shared between those that carry it. Where it lies is the shell's choice: on a disk that wants aligned
/// memory, it comes from such memory and goes there without a copy.
pub type Data = bytes::Bytes;

/// Why an operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The disk failed.
    #[error("the replica's disk reported an error")]
    Io,
    /// The disk is full.
    #[error("the replica's disk is full")]
    NoSpace,
    /// The request lies outside the volume or over a limit, or names a layer that is not there.
    #[error("the request does not fit the volume")]
    Invalid,
    /// What was read does not have the checksum that was recorded for it, the disk cannot read it, or it is known to be damaged.
    #[error("the data on the replica's disk is damaged")]
    Corrupt,
    /// Linked clones have the layer, too: it is not changed.
    #[error("the layer belongs to linked clones, too")]
    Shared,
}

/// What one layer holds of one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Blocks of the segment whose bytes follow, lowest bit first.
    pub data: u64,
    /// Blocks that are there as zeroes, though something below may have them.
    pub zero: u64,
    /// Blocks that are damaged: nobody knows any more what is there.
    pub bad: u64,
    /// The blocks of `data`, in order.
    pub bytes: Data,
}

impl Part {
    /// Nothing is there.
    pub fn empty() -> Self {
        Self { data: 0, zero: 0, bad: 0, bytes: Data::new() }
    }

    /// Whether bits and bytes agree.
    pub fn is_sound(&self) -> bool {
        const { assert!(SEGMENT_BLOCKS == u64::BITS) };
        self.data & self.zero == 0
            && (self.data | self.zero) & self.bad == 0
            && self.bytes.len() == self.data.count_ones() as usize * BLOCK_BYTES as usize
    }

    /// One number for all of it.
    pub fn checksum(&self) -> u32 {
        let mut all = Vec::with_capacity(24 + 4);
        all.extend(self.data.to_le_bytes());
        all.extend(self.zero.to_le_bytes());
        if self.bad != 0 {
            all.extend(self.bad.to_le_bytes());
        }
        all.extend(crc32c(&self.bytes).to_le_bytes());
        crc32c(&all)
    }
}

/// What the disk is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Make these changes of the metadata durable.
    Persist(Vec<Change>),
    /// Write whole blocks to the head.
    Write(BlockIndex, Data),
    /// Make blocks zero, in the head, and give back their space. Where a layer below has the block, or may still get it because it is
    /// not complete ([`Metadata::is_complete_below`]), the head must hide it.
    Zero(BlockIndex, BlockCount),
    /// Read whole blocks through the head. Answered with [`Done::Data`].
    Read(BlockIndex, BlockCount),
    /// Make everything durable that was answered before.
    Sync,
    /// Change the layers as [`Structure::apply`] says, and the metadata as [`Change::Operated`] does. O(1) in the size of the volume.
    Operate(Operation),
    /// Make the layers those of this structure, and the metadata as [`Change::Adopted`] does: layers that it does not name are
    /// deleted, those that become [`Partial::Full`] from segment zero are made (again) empty, the others stay as they are.
    /// The flag says whether what was written since the replica was in sync is known.
    Adopt(Box<Structure>, bool),
    /// Read what a layer itself holds of a segment. Answered with [`Done::Part`].
    ReadPart(LayerId, SegmentIndex),
    /// Read what can be read of that, also against a checksum of before: blocks that cannot be read are damaged, and all that are there
    /// if everything can be read and does not fit what was sealed. Answered with [`Done::Part`].
    Salvage(LayerId, SegmentIndex),
    /// Make a layer hold exactly this of a segment, and nothing where it is damaged. What was sealed before it is not any more, durably before anything is changed.
    WritePart(LayerId, SegmentIndex, Part),
    /// Name segments of which the layer holds anything, from this one on, in order, so many or all that there are. Answered
    /// with [`Done::Segments`].
    Present(LayerId, SegmentIndex, u32),
    /// The blocks of this segment that the layer holds and its only child does not: copy them to the child. The layer
    /// itself goes on holding them until it is dropped. Answered with [`Done::Damaged`] if some of them are damaged; refused with
    /// [`Failure::Shared`] if linked clones have one of the two layers.
    Fold(LayerId, SegmentIndex),
    /// Compute the checksum of a layer's part of a segment from what is on the disk. Answered with [`Done::Digest`].
    Digest(LayerId, SegmentIndex),
    /// Record this checksum for a snapshot's part of a segment, if it is (still) the right one; else [`Failure::Corrupt`]. From
    /// then on reads of it that do not match fail with [`Failure::Corrupt`].
    Seal(LayerId, SegmentIndex, u32),
}

/// How an operation that succeeded ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// It is done.
    Nothing,
    /// What was read.
    Data(Data),
    /// What the layer holds.
    Part(Part),
    /// Which segments.
    Segments(Vec<SegmentIndex>),
    /// The checksum of what is there, and the one that was recorded.
    Digest(Digest),
    /// It is done, but for these blocks: they are damaged, and the child does not hold them.
    Damaged(u64),
}

/// What is known of a layer's part of a segment, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// The checksum of what can be read.
    pub actual: u32,
    /// The one recorded by [`Op::Seal`]; none, too, if anything is damaged.
    pub sealed: Option<u32>,
    /// Damaged blocks.
    pub bad: u64,
    /// Not all of these were known before.
    pub fresh: bool,
}

impl Digest {
    /// Of something that can be read.
    pub fn of(actual: u32, sealed: Option<u32>) -> Self {
        Self { actual, sealed, bad: 0, fresh: false }
    }

    /// Whether it cannot be what it should be, whatever the others have.
    pub fn is_damaged(&self) -> bool {
        self.bad != 0 || self.sealed.is_some_and(|sealed| sealed != self.actual)
    }
}

/// What is still missing of a layer, in a replica that is being rebuilt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Partial {
    /// Only the segments below this one are there (and synced), with the same exceptions as in `Dirty`.
    Full {
        /// The first segment that is missing.
        below: SegmentIndex,
        /// Segments that it wrote on its own.
        own: BTreeSet<SegmentIndex>,
    },
    /// It is as it was when the replica was in sync last, except in these segments, which it wrote on its own; what the others
    /// wrote since, they know from their stamps.
    Dirty {
        /// Segments that were active when the replica came back.
        own: BTreeSet<SegmentIndex>,
    },
}

impl Partial {
    /// All of it is missing.
    pub fn nothing() -> Self {
        Self::Full { below: SegmentIndex(0), own: BTreeSet::new() }
    }

    /// Segments that the replica wrote on its own.
    pub fn own(&self) -> &BTreeSet<SegmentIndex> {
        match self {
            Self::Full { own, .. } | Self::Dirty { own } => own,
        }
    }
}

/// What a replica keeps durably beside its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The volume.
    pub volume: VolumeId,
    /// This replica.
    pub replica: ReplicaId,
    /// Its vote and its promise.
    pub ledger: Ledger,
    /// How often the directory was opened; the upper half of session numbers.
    pub opened: u32,
    /// Unsynced writes may have been lost, and nobody has made it equal to another replica since.
    pub suspect: bool,
    /// The newest record in which it knows itself in sync.
    pub clean_until: Version,
    /// Segments of the head with writes that are not known to be everywhere and synced.
    pub active: BTreeSet<SegmentIndex>,
    /// The record in which a segment was written last, where that is after `forgotten`.
    pub stamps: BTreeMap<SegmentIndex, Version>,
    /// Stamps of this record and earlier ones are not kept.
    pub forgotten: Version,
    /// The layers.
    pub structure: Structure,
    /// Layers that are not complete. Not empty: it is being rebuilt, and nothing may be read from it.
    pub partial: BTreeMap<LayerId, Partial>,
    /// What could not be read, and what nobody had a copy of.
    pub damage: Damage,
}

/// One change of [`Metadata`]; the owner of the files may keep a log of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The directory was opened; true if the machine may have gone down since it was open last.
    Opened(bool),
    /// The ledger changed. A newer record stamps all active segments again.
    Ledger(Ledger),
    /// A guest's write to the segment may begin.
    Touched(SegmentIndex),
    /// The segment is in the activity log, because a neighbour is being written to; nothing was written to it itself.
    Entered(SegmentIndex),
    /// A copy to the segment may begin.
    Stamped(SegmentIndex),
    /// These segments are everywhere and synced.
    Settled(Vec<SegmentIndex>),
    /// It was made equal to the others, and synced.
    Trusted,
    /// Stamps up to this record are not needed any more.
    Forgotten(Version),
    /// The layer is there, synced, below this segment.
    Copied(LayerId, SegmentIndex),
    /// The operation was done; only by [`Op::Operate`].
    Operated(Box<Operation>),
    /// The structure was taken over; only by [`Op::Adopt`], whose flag this has.
    Adopted(Box<Structure>, bool),
    /// These blocks of a layer's part of a segment are damaged.
    Damaged(LayerId, SegmentIndex, u64),
    /// They are not any more: they were written anew, and synced.
    Healed(LayerId, SegmentIndex, u64),
}

impl Metadata {
    /// A new directory. `ledger` is [`Ledger::created`] for a replica that is made with its volume, and the default
    /// for one that is to be rebuilt.
    pub fn new(volume: VolumeId, replica: ReplicaId, structure: Structure, ledger: Ledger) -> Self {
        let member = ledger.committed.in_sync.contains(replica);
        let clean_until = if member { ledger.committed.version } else { Version(0) };
        // A directory that was never in sync has nothing.
        let partial = match member {
            true => BTreeMap::new(),
            false => BTreeMap::from([(structure.head, Partial::nothing())]),
        };
        Self {
            volume,
            replica,
            ledger,
            opened: 0,
            suspect: false,
            clean_until,
            active: BTreeSet::new(),
            stamps: BTreeMap::new(),
            forgotten: clean_until,
            structure,
            partial,
            damage: Damage::default(),
        }
    }

    /// Applies one change; the same on the way to the disk and when a log is read back.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Opened(went_down) => {
                self.opened += 1;
                self.suspect |= *went_down && !self.active.is_empty();
            }
            Change::Ledger(ledger) => self.new_ledger(*ledger),
            Change::Touched(segment) => {
                self.active.insert(*segment);
                self.stamp(*segment);
            }
            Change::Entered(segment) => {
                self.active.insert(*segment);
            }
            Change::Stamped(segment) => self.stamp(*segment),
            Change::Settled(list) => {
                for segment in list {
                    self.active.remove(segment);
                }
            }
            Change::Trusted => self.suspect = false,
            Change::Forgotten(version) => self.forget(*version),
            Change::Copied(layer, below) => {
                if let Some(Partial::Full { below: until, .. }) = self.partial.get_mut(layer) {
                    *until = (*until).max(*below);
                }
            }
            Change::Operated(operation) => {
                if let Ok(next) = self.structure.apply(operation) {
                    self.structure = next;
                    // Everything before the operation is everywhere and synced.
                    self.active.clear();
                    let kept = &self.structure;
                    self.partial.retain(|id, _| kept.layer(*id).is_some());
                    self.damage.retain(|id| kept.layer(id).is_some());
                }
            }
            Change::Adopted(structure, known) => {
                self.partial = self.missing(structure, *known);
                self.structure = (**structure).clone();
                self.active.clear();
                // What is made empty has no damage either.
                let empty = Some(SegmentIndex(0));
                let below = |id| match self.partial.get(&id) {
                    Some(Partial::Full { below, .. }) => Some(*below),
                    _ => None,
                };
                self.damage.retain(|id| structure.layer(id).is_some() && below(id) != empty);
            }
            Change::Damaged(layer, segment, bad) => self.damage.add(*layer, *segment, *bad),
            Change::Healed(layer, segment, healed) => self.damage.heal(*layer, *segment, *healed),
        }
    }

    fn new_ledger(&mut self, ledger: Ledger) {
        let newer = ledger.committed.version > self.ledger.committed.version;
        self.ledger = ledger;
        if !newer {
            return;
        }
        let version = ledger.committed.version;
        for segment in self.active.clone() {
            self.stamp(segment);
        }
        if ledger.committed.in_sync.contains(self.replica) {
            self.clean_until = version;
            if self.partial.values().any(|partial| matches!(partial, Partial::Full { .. })) {
                // What was absent where it was copied from left no stamp here.
                self.forget(version);
            }
            self.partial.clear();
        }
    }

    fn forget(&mut self, version: Version) {
        self.forgotten = self.forgotten.max(version);
        let forgotten = self.forgotten;
        self.stamps.retain(|_, stamp| *stamp > forgotten);
    }

    fn stamp(&mut self, segment: SegmentIndex) {
        let version = self.ledger.committed.version;
        if version > self.forgotten {
            self.stamps.insert(segment, version);
        }
    }

    /// Whether a write to the segment has nothing new to say in the stamps.
    pub fn is_stamped(&self, segment: SegmentIndex) -> bool {
        let version = self.ledger.committed.version;
        version <= self.forgotten || self.stamps.get(&segment) == Some(&version)
    }

    /// Whether every layer below this one is all there, so that what is absent now stays absent.
    pub fn is_complete_below(&self, layer: LayerId) -> bool {
        self.structure.chain(layer).skip(1).all(|below| !self.partial.contains_key(&below.id))
    }

    /// Whether any of these blocks would be looked for in a layer that has it damaged, if it is in none above `found`; none: in no layer.
    pub fn is_damaged_above(&self, found: Option<LayerId>, start: BlockIndex, count: BlockCount) -> bool {
        if self.damage.is_empty() {
            return false;
        }
        let mut ended = false;
        self.structure
            .chain(self.structure.head)
            .map(|layer| layer.id)
            .take_while(|id| !std::mem::replace(&mut ended, Some(*id) == found))
            .any(|id| self.damage.touches(id, start, count))
    }

    /// Whether a layer below the head has any of these blocks damaged.
    pub fn is_damaged_below(&self, start: BlockIndex, count: BlockCount) -> bool {
        let head = self.structure.head;
        !self.damage.is_empty()
            && self.structure.chain(head).skip(1).any(|layer| self.damage.touches(layer.id, start, count))
    }

    /// What the replica of a linked clone beside this one begins with. None: this one is none of those that it is made with, or does not have all of it.
    pub fn cloned(&self, id: OrderId, clone: &CloneOf) -> Option<Self> {
        if !self.partial.is_empty() || !clone.members.contains(self.replica) {
            return None;
        }
        let structure = self.structure.cloned(clone.from, id)?;
        let mut new = Self::new(clone.volume, self.replica, structure, Ledger::created(clone.members));
        for (layer, segment, bad) in self.damage.iter() {
            if new.structure.layer(layer).is_some() {
                new.damage.add(layer, segment, bad);
            }
        }
        Some(new)
    }

    /// What a replica with this metadata lacks of the volume that has `target` as its layers.
    /// `known`: whether what was written since it was in sync is known; if not, only frozen layers are as they were.
    pub fn missing(&self, target: &Structure, known: bool) -> BTreeMap<LayerId, Partial> {
        let mut room = MAX_OWN;
        let frozen = |layer: &Layer| layer.snapshot.as_ref().map(|s| s.frozen);
        let mut missing = BTreeMap::new();
        for layer in &target.layers {
            let same = self.structure.layer(layer.id).filter(|own| own.folded == layer.folded);
            let Some(own) = same else {
                missing.insert(layer.id, Partial::nothing());
                continue;
            };
            let is_head = own.id == self.structure.head;
            let mut partial = match self.partial.get(&layer.id) {
                Some(partial) => partial.clone(),
                None if !is_head && frozen(own) == frozen(layer) => continue,
                None => Partial::Dirty { own: BTreeSet::new() },
            };
            let (Partial::Full { own, .. } | Partial::Dirty { own }) = &mut partial;
            if is_head {
                own.extend(self.active.iter().copied());
            }
            let bounded = own.len() <= room;
            if !known || !bounded {
                partial = Partial::nothing();
            }
            room -= partial.own().len();
            missing.insert(layer.id, partial);
        }
        missing
    }
}
