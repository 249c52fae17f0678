//! The layers of a volume, and the ordered operations that change them.
//!
//! A volume's content is a tree of *layers*: each holds some blocks and hides those of its parent. One layer is the
//! *head*, which is written; the others are snapshots, whose content never changes, except that a removed snapshot is
//! *folded* into its only child, which changes nothing that is read through the child. Where no layer of the chain
//! has a block, the *base* has it (an image, or a snapshot of another volume: a linked clone), else it is zero.
//!
//! [`Operation`]s are ordered: the coordinator gives each the next number, runs it alone (every earlier write is on
//! all replicas and synced, no later one has begun), and counts it as done when every replica that must have a write
//! has made it durable. So in-sync replicas differ by at most the last operation, which [`Structure::last`] tells, and
//! whoever attaches lets those that lack it do it too. [`Structure::apply`] is the only place that says what an
//! operation does; coordinator, replica and disk all use it.
//!
//! It does not know files; `sheaf-disk` maps layers to them.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{BLOCK_BYTES, CoordinatorId, ReplicaSet, VolumeId};

/// Snapshots of a volume, removed ones included; what Longhorn allows.
pub const MAX_LAYERS: usize = 250;
/// Bytes of a snapshot's name.
pub const MAX_NAME: usize = 200;
/// Labels of a snapshot, and bytes of them all together.
pub const MAX_LABELS: usize = 16;
/// Bytes of all labels of a snapshot together.
pub const MAX_LABEL_BYTES: usize = 1024;
/// Linked clones that may hold on to one snapshot at a time.
pub const MAX_PINS: usize = 64;
/// Blocks of the largest volume: segment numbers fit 32 bits (1 PiB).
pub const MAX_BLOCKS: u64 = (u32::MAX as u64) * (crate::ids::SEGMENT_BLOCKS as u64);

/// One operation: its place in the volume's order, and the coordinator's run that gave it, so that an operation that
/// was begun and given up is never taken for another with the same number. A layer is named by what created it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OrderId {
    /// Counts the operations of the volume; zero: its creation.
    pub number: u64,
    /// Who gave it.
    pub run: CoordinatorId,
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.number, self.run.0)
    }
}

/// A layer is named by the operation that created it.
pub type LayerId = OrderId;

/// A snapshot's name: letters, digits, `_`, `.`, `-`; begins with a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, Refused> {
        let name = name.into();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(Refused::Name);
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What makes a layer a snapshot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snapshot {
    /// Its name, unique in the volume.
    pub name: SnapshotName,
    /// When it was asked for, in seconds since 1970, by the coordinator's clock.
    pub created: u64,
    /// Whether a user asked for it.
    pub user: bool,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Given up: it will be folded into its child, or dropped.
    pub removed: bool,
    /// Volumes that read through it: linked clones. As long as there are any it stays.
    pub pins: Vec<VolumeId>,
    /// The operation that froze it. Two replicas whose layers have equal `id`, `frozen` and `folded` hold the same.
    pub frozen: OrderId,
}

/// One layer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Layer {
    /// Its name within the volume, never used again.
    pub id: LayerId,
    /// The layer below; none: the base, or zeroes.
    pub parent: Option<LayerId>,
    /// The operation that folded another layer into it last.
    pub folded: Option<OrderId>,
    /// None for the head.
    pub snapshot: Option<Snapshot>,
}

/// The tree of layers, and the size.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Structure {
    /// The newest operation that is part of it.
    pub at: OrderId,
    /// Size of the volume.
    pub blocks: u64,
    /// What is below the layers that have no parent: named by the shell, the same on every node that has it.
    pub base: Option<VolumeId>,
    /// The layer that is written.
    pub head: LayerId,
    /// All layers, in ascending order of their ids; so parents come before what was made on top of them.
    pub layers: Vec<Layer>,
    /// The operation that `at` names, for replicas that have not done it.
    pub last: Option<Operation>,
}

/// A change of the structure.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Operation {
    /// Its place in the order; a new head is named by it.
    pub id: OrderId,
    /// What is done.
    pub kind: Kind,
}

/// What an operation does.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The head becomes a snapshot, under a new, empty head.
    Snapshot {
        /// Its name.
        name: SnapshotName,
        /// Seconds since 1970.
        created: u64,
        /// Whether a user asked for it.
        user: bool,
        /// Labels.
        labels: BTreeMap<String, String>,
    },
    /// The head is dropped; a new, empty one stands on this snapshot.
    Revert(LayerId),
    /// The snapshot is given up, and waits to be folded or dropped.
    Remove(LayerId),
    /// A removed snapshot leaves the tree. If it has a child, its content has been folded into it on every replica.
    Drop(LayerId),
    /// The volume has so many blocks, more than before. What is new reads as zeroes.
    Expand(u64),
    /// A linked clone begins to read through the snapshot.
    Pin(LayerId, VolumeId),
    /// It does not any more.
    Unpin(LayerId, VolumeId),
    /// Another volume begins as what a snapshot is. Nothing changes here: the clone's replicas have the layers as their own.
    Clone(Box<CloneOf>),
}

/// A volume that begins as a snapshot of another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CloneOf {
    /// The snapshot.
    pub from: LayerId,
    /// The new volume.
    pub volume: VolumeId,
    /// Its name; it is part of its directories' names.
    pub name: SnapshotName,
    /// Seconds since 1970.
    pub created: u64,
    /// The replicas that it is made with: those in sync, each beside the one that it is made of, with its number.
    pub members: ReplicaSet,
}

/// Why an operation is not possible.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Refused {
    /// Letters, digits and so on.
    #[error(
        "a snapshot's name has 1 to {MAX_NAME} letters, digits, '_', '.', '-' and begins with a letter or a digit"
    )]
    Name,
    /// Names are unique.
    #[error("the volume has a snapshot of this name already")]
    Exists,
    /// There is no such snapshot.
    #[error("the volume has no such snapshot")]
    NoSuch,
    /// It is given up already.
    #[error("the snapshot is being removed")]
    Removed,
    /// It must be given up first.
    #[error("the snapshot is not marked as removed")]
    NotRemoved,
    /// Too many.
    #[error("a volume has at most {MAX_LAYERS} snapshots, those that are being removed included")]
    TooMany,
    /// Linked clones need it.
    #[error("a linked clone reads through the snapshot")]
    Pinned,
    /// The clone is not there, or already there, or one too many.
    #[error("the clone is not held, is held already, or is one more than {MAX_PINS}")]
    Pin,
    /// It is below more than one layer.
    #[error("the snapshot is below more than one layer")]
    Shared,
    /// A volume never gets smaller.
    #[error("a volume does not get smaller, and has at most {MAX_BLOCKS} blocks of {BLOCK_BYTES} bytes")]
    Size,
    /// Too much text.
    #[error("a snapshot has at most {MAX_LABELS} labels, of {MAX_LABEL_BYTES} bytes together")]
    Labels,
    /// Not the next operation.
    #[error("the operation is not the next one")]
    Order,
}

impl Structure {
    /// A new volume: an empty head, on the base if it has one.
    pub fn new(blocks: u64, base: Option<VolumeId>) -> Self {
        let id = OrderId::default();
        let head = Layer { id, parent: None, folded: None, snapshot: None };
        Self { at: id, blocks, base, head: id, layers: vec![head], last: None }
    }

    /// A new volume that begins as something that is there: an empty head on a snapshot that nobody asked for. The same, ids included, for
    /// whoever makes it with the same arguments.
    pub fn over(blocks: u64, name: SnapshotName, created: u64) -> Self {
        let (bottom, head) = (OrderId::default(), OrderId { number: 1, run: CoordinatorId(0) });
        let snapshot = Snapshot {
            name,
            created,
            user: false,
            labels: BTreeMap::new(),
            removed: false,
            pins: vec![],
            frozen: head,
        };
        let layers = vec![
            Layer { id: bottom, parent: None, folded: None, snapshot: Some(snapshot) },
            Layer { id: head, parent: Some(bottom), folded: None, snapshot: None },
        ];
        Self { at: head, blocks, base: None, head, layers, last: None }
    }

    /// The id of the next operation of this coordinator.
    pub fn next(&self, run: CoordinatorId) -> OrderId {
        OrderId { number: self.at.number + 1, run }
    }

    /// A layer.
    pub fn layer(&self, id: LayerId) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// A snapshot by its name.
    pub fn snapshot(&self, name: &SnapshotName) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.snapshot.as_ref().is_some_and(|s| s.name == *name))
    }

    /// The layers on top of this one.
    pub fn children(&self, id: LayerId) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| layer.parent == Some(id))
    }

    /// This layer and those below it, in the order in which a block is looked for.
    pub fn chain(&self, from: LayerId) -> impl Iterator<Item = &Layer> {
        let mut next = self.layer(from);
        std::iter::from_fn(move || {
            let layer = next?;
            next = layer.parent.and_then(|parent| self.layer(parent));
            Some(layer)
        })
    }

    /// The layers of a volume that begins as this snapshot, under a new head of this id.
    pub fn cloned(&self, from: LayerId, id: OrderId) -> Option<Self> {
        let mut layers: Vec<Layer> = self.chain(from).cloned().collect();
        layers.iter_mut().filter_map(|layer| layer.snapshot.as_mut()).for_each(|s| s.pins.clear());
        layers.reverse();
        layers.push(Layer { id, parent: Some(from), folded: None, snapshot: None });
        let cloned = Self { at: id, blocks: self.blocks, base: self.base, head: id, layers, last: None };
        cloned.is_sound().then_some(cloned)
    }

    /// A removed snapshot that can leave the tree now, and the child that takes its content, if there is one.
    pub fn foldable(&self) -> Option<(LayerId, Option<LayerId>)> {
        self.foldable_but(|_| false)
    }

    /// The same, but for those that are to be left alone for now.
    pub fn foldable_but(&self, leave: impl Fn(LayerId) -> bool) -> Option<(LayerId, Option<LayerId>)> {
        self.layers.iter().filter(|layer| !leave(layer.id)).find_map(|layer| {
            let given_up = layer.snapshot.as_ref().is_some_and(|s| s.removed && s.pins.is_empty());
            let mut children = self.children(layer.id);
            let (first, more) = (children.next(), children.next());
            (given_up && more.is_none()).then(|| (layer.id, first.map(|child| child.id)))
        })
    }

    /// The structure after `operation`, or why it is not possible.
    pub fn apply(&self, operation: &Operation) -> Result<Self, Refused> {
        if operation.id.number != self.at.number + 1 {
            return Err(Refused::Order);
        }
        let mut next = self.clone();
        next.at = operation.id;
        next.last = Some(operation.clone());
        match &operation.kind {
            Kind::Snapshot { name, created, user, labels } => {
                if self.layers.len() > MAX_LAYERS {
                    return Err(Refused::TooMany);
                }
                if self.snapshot(name).is_some() {
                    return Err(Refused::Exists);
                }
                let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
                if labels.len() > MAX_LABELS || bytes > MAX_LABEL_BYTES {
                    return Err(Refused::Labels);
                }
                let frozen = Snapshot {
                    name: name.clone(),
                    created: *created,
                    user: *user,
                    labels: labels.clone(),
                    removed: false,
                    pins: vec![],
                    frozen: operation.id,
                };
                next.edit(self.head, |layer| layer.snapshot = Some(frozen));
                next.new_head(operation.id, Some(self.head));
            }
            Kind::Revert(to) => {
                let snapshot = self.snapshot_of(*to)?;
                if snapshot.removed {
                    return Err(Refused::Removed);
                }
                next.layers.retain(|layer| layer.id != self.head);
                next.new_head(operation.id, Some(*to));
            }
            Kind::Remove(id) => {
                let snapshot = self.snapshot_of(*id)?;
                if snapshot.removed {
                    return Err(Refused::Removed);
                }
                if !snapshot.pins.is_empty() {
                    return Err(Refused::Pinned);
                }
                next.edit_snapshot(*id, |snapshot| snapshot.removed = true);
            }
            Kind::Drop(id) => {
                let snapshot = self.snapshot_of(*id)?;
                if !snapshot.removed {
                    return Err(Refused::NotRemoved);
                }
                if !snapshot.pins.is_empty() {
                    return Err(Refused::Pinned);
                }
                let children: Vec<LayerId> = self.children(*id).map(|layer| layer.id).collect();
                if children.len() > 1 {
                    return Err(Refused::Shared);
                }
                let parent = self.layer(*id).and_then(|layer| layer.parent);
                for child in children {
                    next.edit(child, |layer| (layer.parent, layer.folded) = (parent, Some(operation.id)));
                }
                next.layers.retain(|layer| layer.id != *id);
            }
            Kind::Expand(blocks) => {
                if *blocks <= self.blocks || *blocks > MAX_BLOCKS {
                    return Err(Refused::Size);
                }
                next.blocks = *blocks;
            }
            Kind::Pin(id, by) => {
                let snapshot = self.snapshot_of(*id)?;
                if snapshot.removed {
                    return Err(Refused::Removed);
                }
                if snapshot.pins.contains(by) || snapshot.pins.len() >= MAX_PINS {
                    return Err(Refused::Pin);
                }
                next.edit_snapshot(*id, |snapshot| snapshot.pins.push(*by));
            }
            Kind::Unpin(id, by) => {
                if !self.snapshot_of(*id)?.pins.contains(by) {
                    return Err(Refused::Pin);
                }
                next.edit_snapshot(*id, |snapshot| snapshot.pins.retain(|pin| pin != by));
            }
            Kind::Clone(clone) => {
                if self.snapshot_of(clone.from)?.removed {
                    return Err(Refused::Removed);
                }
            }
        }
        Ok(next)
    }

    /// Whether it is a tree in order, within all bounds. What comes from outside is held against this.
    pub fn is_sound(&self) -> bool {
        let ordered = self.layers.windows(2).all(|pair| pair[0].id < pair[1].id);
        let rooted = self.layers.iter().all(|layer| {
            layer.id <= self.at
                && layer.parent.is_none_or(|parent| parent < layer.id && self.layer(parent).is_some())
                && (layer.id == self.head) == layer.snapshot.is_none()
        });
        let bounded = self.layers.len() <= MAX_LAYERS + 1 && self.blocks <= MAX_BLOCKS && self.blocks > 0;
        ordered
            && rooted
            && bounded
            && self.layer(self.head).is_some()
            && self.children(self.head).next().is_none()
            && self.last.as_ref().is_none_or(|last| last.id == self.at)
    }

    fn snapshot_of(&self, id: LayerId) -> Result<&Snapshot, Refused> {
        self.layer(id).and_then(|layer| layer.snapshot.as_ref()).ok_or(Refused::NoSuch)
    }

    fn edit(&mut self, id: LayerId, with: impl FnOnce(&mut Layer)) {
        if let Some(layer) = self.layers.iter_mut().find(|layer| layer.id == id) {
            with(layer);
        }
    }

    fn edit_snapshot(&mut self, id: LayerId, with: impl FnOnce(&mut Snapshot)) {
        if let Some(snapshot) = self.layers.iter_mut().find(|l| l.id == id).and_then(|l| l.snapshot.as_mut())
        {
            with(snapshot);
        }
    }

    fn new_head(&mut self, id: LayerId, parent: Option<LayerId>) {
        self.head = id;
        self.layers.push(Layer { id, parent, folded: None, snapshot: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SnapshotName {
        SnapshotName::new(text).unwrap()
    }

    fn then(on: &Structure, kind: Kind) -> Result<Structure, Refused> {
        let after = on.apply(&Operation { id: on.next(CoordinatorId(9)), kind })?;
        assert!(after.is_sound(), "{after:?}");
        Ok(after)
    }

    fn snapshot(on: &Structure, text: &str) -> Structure {
        let kind = Kind::Snapshot { name: name(text), created: 1, user: true, labels: BTreeMap::new() };
        then(on, kind).unwrap()
    }

    #[test]
    fn names() {
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", &"a".repeat(MAX_NAME + 1)] {
            assert_eq!(SnapshotName::new(bad), Err(Refused::Name), "{bad:?}");
        }
        for good in ["a", "0", "a_b.c-d", "5b4fdb69-7a1c-4f0e-8d5e-1c7c1c3d2e1f"] {
            assert_eq!(SnapshotName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_tree_grows_and_shrinks() {
        let empty = Structure::new(100, None);
        let one = snapshot(&empty, "one");
        let two = snapshot(&one, "two");
        assert_eq!(two.chain(two.head).count(), 3);
        let first = two.snapshot(&name("one")).unwrap().id;
        let second = two.snapshot(&name("two")).unwrap().id;
        // A branch: the head stands on "one", "two" stays.
        let branch = then(&two, Kind::Revert(first)).unwrap();
        assert_eq!(branch.chain(branch.head).count(), 2);
        assert_eq!(branch.children(first).count(), 2);
        let marked = then(&branch, Kind::Remove(first)).unwrap();
        assert_eq!(marked.foldable(), None, "it is below two layers");
        assert_eq!(then(&marked, Kind::Drop(first)), Err(Refused::Shared));
        assert_eq!(then(&marked, Kind::Revert(first)), Err(Refused::Removed));
        let leaf = then(&marked, Kind::Remove(second)).unwrap();
        assert_eq!(leaf.foldable(), Some((second, None)));
        let dropped = then(&leaf, Kind::Drop(second)).unwrap();
        assert_eq!(dropped.foldable(), Some((first, Some(dropped.head))));
        let bare = then(&dropped, Kind::Drop(first)).unwrap();
        assert_eq!(bare.layers.len(), 1);
        assert_eq!(bare.layers[0].folded, Some(bare.at));
    }

    #[test]
    fn a_volume_over_something_is_one_that_was_snapshotted_while_it_was_empty() {
        let over = Structure::over(100, name("image"), 7);
        assert!(over.is_sound(), "{over:?}");
        assert_eq!(over, Structure::over(100, name("image"), 7));
        let empty = Structure::new(100, None);
        let kind = Kind::Snapshot { name: name("image"), created: 7, user: false, labels: BTreeMap::new() };
        let made = empty.apply(&Operation { id: empty.next(CoordinatorId(0)), kind }).unwrap();
        assert_eq!(
            over,
            Structure { last: None, ..made },
            "only that nobody has an operation to catch up with"
        );
        // It lives as any other: reverted to, given up, grown.
        let bottom = over.snapshot(&name("image")).unwrap().id;
        let back = then(&over, Kind::Revert(bottom)).unwrap();
        let removed = then(&back, Kind::Remove(bottom)).unwrap();
        assert_eq!(removed.foldable(), Some((bottom, Some(back.head))));
        assert_eq!(then(&over, Kind::Expand(200)).unwrap().layers, over.layers);
    }

    #[test]
    fn a_clone_has_the_snapshots_chain_and_a_head_of_its_own() {
        let one = snapshot(&Structure::new(100, None), "one");
        let two = snapshot(&one, "two");
        let first = two.snapshot(&name("one")).unwrap().id;
        let branch = snapshot(&then(&two, Kind::Revert(first)).unwrap(), "three");
        let pinned = then(&branch, Kind::Pin(first, VolumeId(5))).unwrap();
        let third = pinned.snapshot(&name("three")).unwrap().id;
        let clone = |from| CloneOf {
            from,
            volume: VolumeId(8),
            name: name("c"),
            created: 1,
            members: ReplicaSet::EMPTY,
        };
        let after = then(&pinned, Kind::Clone(Box::new(clone(third)))).unwrap();
        assert_eq!((&after.layers, after.head), (&pinned.layers, pinned.head), "nothing changes here");
        let cloned = pinned.cloned(third, after.at).unwrap();
        assert_eq!(cloned.chain(cloned.head).count(), 3);
        assert_eq!((cloned.layers.len(), cloned.head, &cloned.last), (3, after.at, &None));
        assert!(cloned.layers.iter().filter_map(|l| l.snapshot.as_ref()).all(|s| s.pins.is_empty()));
        let free = then(&pinned, Kind::Unpin(first, VolumeId(5))).unwrap();
        let removed = then(&free, Kind::Remove(third)).unwrap();
        assert_eq!(then(&removed, Kind::Clone(Box::new(clone(third)))), Err(Refused::Removed));
        assert_eq!(then(&free, Kind::Clone(Box::new(clone(free.head)))), Err(Refused::NoSuch));
        assert_eq!(removed.foldable_but(|id| id == third), None);
    }

    #[test]
    fn what_is_refused() {
        let one = snapshot(&Structure::new(100, None), "one");
        let first = one.snapshot(&name("one")).unwrap().id;
        let again = Kind::Snapshot { name: name("one"), created: 1, user: true, labels: BTreeMap::new() };
        assert_eq!(then(&one, again), Err(Refused::Exists));
        assert_eq!(then(&one, Kind::Expand(100)), Err(Refused::Size));
        assert_eq!(then(&one, Kind::Expand(MAX_BLOCKS + 1)), Err(Refused::Size));
        assert_eq!(then(&one, Kind::Remove(one.head)), Err(Refused::NoSuch));
        assert_eq!(then(&one, Kind::Drop(first)), Err(Refused::NotRemoved));
        let pinned = then(&one, Kind::Pin(first, VolumeId(5))).unwrap();
        assert_eq!(then(&pinned, Kind::Remove(first)), Err(Refused::Pinned));
        assert_eq!(then(&pinned, Kind::Pin(first, VolumeId(5))), Err(Refused::Pin));
        assert_eq!(then(&pinned, Kind::Unpin(first, VolumeId(6))), Err(Refused::Pin));
        let free = then(&pinned, Kind::Unpin(first, VolumeId(5))).unwrap();
        assert!(then(&free, Kind::Remove(first)).is_ok());
        let stale = Operation { id: OrderId { number: 1, run: CoordinatorId(1) }, kind: Kind::Expand(200) };
        assert_eq!(free.apply(&stale), Err(Refused::Order));
        let full = (0..MAX_LAYERS).fold(Structure::new(1, None), |on, at| snapshot(&on, &format!("s{at}")));
        let more = Kind::Snapshot { name: name("more"), created: 1, user: true, labels: BTreeMap::new() };
        assert_eq!(then(&full, more), Err(Refused::TooMany));
    }
}
