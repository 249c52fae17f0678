//! Ids and units of block storage: unequal kinds of integers are types, so that they cannot be confused.
//!
//! Nothing here allocates or decides. Sizes of the volume's geometry are constants of the format.

use std::fmt;

/// Bytes of a block: the granularity in which replicas store, order and check data (Longhorn's layer map too).
pub const BLOCK_BYTES: u32 = 4096;
/// Bytes of a sector: the granularity in which a guest may address the volume (Longhorn's logical block).
pub const SECTOR_BYTES: u32 = 512;
/// Replicas that one volume can have at a time.
pub const MAX_REPLICAS: usize = 8;

/// Blocks of a segment.
pub const SEGMENT_BLOCKS: u32 = 64;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// A volume, for ever.
    VolumeId(u128)
);
number!(
    /// A replica of a volume: given once per volume, never used again for another directory.
    ReplicaId(u32)
);
number!(
    /// One run of a coordinator: drawn at random by the shell for every attach, never used twice.
    CoordinatorId(u64)
);
number!(
    /// The number of a membership record; each is decided by the voters of the one before.
    Version(u64)
);
number!(
    /// One handshake between a coordinator and a replica, numbered by the replica; only the latest is served.
    SessionId(u64)
);
number!(
    /// Position of a block in its volume, in blocks of [`BLOCK_BYTES`].
    BlockIndex(u64)
);
number!(
    /// A number of blocks.
    BlockCount(u32)
);
number!(
    /// A piece of work of a coordinator, in the order in which it was taken up.
    JobId(u64)
);
number!(
    /// A request of a frontend, named by it; answered exactly once.
    Token(u64)
);
number!(
    /// A segment of the volume: the unit of the activity log and of resync.
    SegmentIndex(u32)
);

number!(
    /// A connection, numbered by the shell that owns it.
    LinkId(u64)
);
number!(
    /// An operation on a disk, numbered by who asked for it.
    OpId(u64)
);
number!(
    /// Microseconds since a moment that the shell chose; never goes back.
    Time(u64)
);

impl Time {
    /// Later by `micros`.
    pub fn after(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

/// The segments that `count` blocks from `start` touch.
pub fn segments(start: BlockIndex, count: BlockCount) -> impl Iterator<Item = SegmentIndex> {
    let per = u64::from(SEGMENT_BLOCKS);
    let last = start.0 + u64::from(count.0.max(1)) - 1;
    (start.0 / per..=last / per).map(|at| SegmentIndex(u32::try_from(at).unwrap_or(u32::MAX)))
}

/// The right to write to a volume. The higher one fences the lower one; `holder` makes equal numbers impossible.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch {
    /// Counts attaches.
    pub number: u64,
    /// The run of a coordinator that took the number.
    pub holder: CoordinatorId,
}

impl Epoch {
    /// The epoch that `holder` may try after having seen `self`.
    pub fn next(self, holder: CoordinatorId) -> Self {
        Self { number: self.number + 1, holder }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.number, self.holder.0)
    }
}

/// A set of at most [`MAX_REPLICAS`] replicas, ordered, without heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaSet {
    len: u8,
    ids: [ReplicaId; MAX_REPLICAS],
}

/// A set of replicas would exceed [`MAX_REPLICAS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a volume has at most {MAX_REPLICAS} replicas at a time")]
pub struct TooMany;

impl ReplicaSet {
    /// The set without members.
    pub const EMPTY: Self = Self { len: 0, ids: [ReplicaId(0); MAX_REPLICAS] };

    /// A set from ids in any order; duplicates count once.
    pub fn of(ids: impl IntoIterator<Item = ReplicaId>) -> Result<Self, TooMany> {
        ids.into_iter().try_fold(Self::EMPTY, Self::with)
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.ids[..usize::from(self.len)].iter().copied()
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `id` is in it.
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.iter().any(|member| member == id)
    }

    /// This set and `id`.
    pub fn with(self, id: ReplicaId) -> Result<Self, TooMany> {
        if self.contains(id) {
            return Ok(self);
        }
        let mut set = self;
        let at = set.iter().take_while(|member| *member < id).count();
        if set.len() == MAX_REPLICAS {
            return Err(TooMany);
        }
        let len = set.len();
        set.ids.copy_within(at..len, at + 1);
        set.ids[at] = id;
        set.len += 1;
        Ok(set)
    }

    /// This set without `id`.
    pub fn without(self, id: ReplicaId) -> Self {
        let mut set = Self::EMPTY;
        for member in self.iter().filter(|member| *member != id) {
            set.ids[set.len()] = member;
            set.len += 1;
        }
        set
    }

    /// Members of either.
    pub fn union(self, other: Self) -> Result<Self, TooMany> {
        other.iter().try_fold(self, Self::with)
    }

    /// Whether every member of this set is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|member| other.contains(member))
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|id| id.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_ordered_and_bounded() {
        let set = ReplicaSet::of([3, 1, 2, 1].map(ReplicaId)).unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 2, 3].map(ReplicaId));
        assert_eq!(set.without(ReplicaId(2)).iter().collect::<Vec<_>>(), [1, 3].map(ReplicaId));
        assert_eq!(set, ReplicaSet::of([1, 2, 3].map(ReplicaId)).unwrap(), "equal sets compare equal");
        assert_eq!(set.without(ReplicaId(3)), ReplicaSet::of([2, 1].map(ReplicaId)).unwrap());
        assert_eq!(ReplicaSet::of((0..9).map(ReplicaId)), Err(TooMany));
        assert_eq!(ReplicaSet::of((0..8).map(ReplicaId)).unwrap().len(), MAX_REPLICAS);
    }

    #[test]
    fn epochs_order_by_number_then_holder() {
        let low = Epoch { number: 1, holder: CoordinatorId(9) };
        assert!(low < low.next(CoordinatorId(1)));
        assert!(low > Epoch { number: 1, holder: CoordinatorId(8) });
    }
}
