//! Bytes of what the state machines keep: ledgers, structures, operations. Pure. What is read is held against the bounds
//! of the machines ([`Structure::is_sound`] and their constants) before it counts.

use std::collections::BTreeMap;

use sheaf_block_core::ids::{CoordinatorId, Epoch, ReplicaId, ReplicaSet, Version, VolumeId};
use sheaf_block_core::membership::{Ledger, Membership, Vote};
use sheaf_block_core::structure::{
    CloneOf, Kind, Layer, MAX_LABELS, MAX_LAYERS, MAX_PINS, Operation, OrderId, Snapshot, SnapshotName,
    Structure,
};

use crate::envelope::{EnvelopeError, Reader, put_text};

type Read<T> = Result<T, EnvelopeError>;

/// Appends values, little-endian.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

#[allow(missing_docs)] // Each appends what it is named for.
impl Writer {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }
    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    pub fn len(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }
    pub fn text(&mut self, text: &str) {
        put_text(&mut self.0, text);
    }
    pub fn volume(&mut self, id: VolumeId) {
        self.0.extend(id.0.to_le_bytes());
    }
    pub fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.number);
        self.u64(epoch.holder.0);
    }
    pub fn set(&mut self, set: ReplicaSet) {
        self.len(set.len());
        set.iter().for_each(|id| self.u32(id.0));
    }
    pub fn order(&mut self, id: OrderId) {
        self.u64(id.number);
        self.u64(id.run.0);
    }
    fn maybe_order(&mut self, id: Option<OrderId>) {
        self.flag(id.is_some());
        id.into_iter().for_each(|id| self.order(id));
    }
    pub fn ledger(&mut self, ledger: &Ledger) {
        self.epoch(ledger.promised);
        self.u64(ledger.committed.version.0);
        self.set(ledger.committed.in_sync);
        self.flag(ledger.accepted.is_some());
        if let Some(vote) = ledger.accepted {
            self.epoch(vote.epoch);
            self.set(vote.in_sync);
        }
    }
    fn labels(&mut self, labels: &BTreeMap<String, String>) {
        self.len(labels.len());
        for (key, value) in labels {
            self.text(key);
            self.text(value);
        }
    }
    pub fn operation(&mut self, operation: &Operation) {
        self.order(operation.id);
        match &operation.kind {
            Kind::Snapshot { name, created, user, labels } => {
                self.u8(0);
                self.text(name.as_str());
                self.u64(*created);
                self.flag(*user);
                self.labels(labels);
            }
            Kind::Revert(id) => {
                self.u8(1);
                self.order(*id);
            }
            Kind::Remove(id) => {
                self.u8(2);
                self.order(*id);
            }
            Kind::Drop(id) => {
                self.u8(3);
                self.order(*id);
            }
            Kind::Expand(blocks) => {
                self.u8(4);
                self.u64(*blocks);
            }
            Kind::Pin(id, by) | Kind::Unpin(id, by) => {
                self.u8(if matches!(operation.kind, Kind::Pin(..)) { 5 } else { 6 });
                self.order(*id);
                self.volume(*by);
            }
            Kind::Clone(clone) => {
                self.u8(7);
                self.order(clone.from);
                self.volume(clone.volume);
                self.text(clone.name.as_str());
                self.u64(clone.created);
                self.set(clone.members);
            }
        }
    }
    pub fn structure(&mut self, structure: &Structure) {
        self.order(structure.at);
        self.u64(structure.blocks);
        self.flag(structure.base.is_some());
        structure.base.into_iter().for_each(|base| self.volume(base));
        self.order(structure.head);
        self.len(structure.layers.len());
        for layer in &structure.layers {
            self.order(layer.id);
            self.maybe_order(layer.parent);
            self.maybe_order(layer.folded);
            self.flag(layer.snapshot.is_some());
            if let Some(snapshot) = &layer.snapshot {
                self.text(snapshot.name.as_str());
                self.u64(snapshot.created);
                self.flag(snapshot.user);
                self.labels(&snapshot.labels);
                self.flag(snapshot.removed);
                self.len(snapshot.pins.len());
                snapshot.pins.iter().for_each(|pin| self.volume(*pin));
                self.order(snapshot.frozen);
            }
        }
        self.flag(structure.last.is_some());
        structure.last.iter().for_each(|last| self.operation(last));
    }
}

fn read_epoch(r: &mut Reader<'_>) -> Read<Epoch> {
    Ok(Epoch { number: r.u64()?, holder: CoordinatorId(r.u64()?) })
}

fn read_set(r: &mut Reader<'_>) -> Read<ReplicaSet> {
    let count = r.u32()?;
    let ids: Vec<ReplicaId> = (0..count.min(64)).map(|_| r.u32().map(ReplicaId)).collect::<Read<_>>()?;
    ReplicaSet::of(ids).ok().filter(|set| set.len() == count as usize).ok_or(EnvelopeError::Content)
}

/// Reads a ledger.
pub fn read_ledger(r: &mut Reader<'_>) -> Read<Ledger> {
    Ok(Ledger {
        promised: read_epoch(r)?,
        committed: Membership { version: Version(r.u64()?), in_sync: read_set(r)? },
        accepted: if r.flag()? { Some(Vote { epoch: read_epoch(r)?, in_sync: read_set(r)? }) } else { None },
    })
}

/// Reads an operation's or a layer's id.
pub fn read_order(r: &mut Reader<'_>) -> Read<OrderId> {
    Ok(OrderId { number: r.u64()?, run: CoordinatorId(r.u64()?) })
}

fn maybe_order(r: &mut Reader<'_>) -> Read<Option<OrderId>> {
    if r.flag()? { read_order(r).map(Some) } else { Ok(None) }
}

fn count(r: &mut Reader<'_>, most: usize) -> Read<usize> {
    let count = r.u32()? as usize;
    if count > most { Err(EnvelopeError::Content) } else { Ok(count) }
}

fn read_name(r: &mut Reader<'_>) -> Read<SnapshotName> {
    SnapshotName::new(r.text()?).map_err(|_| EnvelopeError::Content)
}

fn read_labels(r: &mut Reader<'_>) -> Read<BTreeMap<String, String>> {
    (0..count(r, MAX_LABELS)?).map(|_| Ok((r.text()?, r.text()?))).collect()
}

/// Reads an operation.
pub fn read_operation(r: &mut Reader<'_>) -> Read<Operation> {
    let id = read_order(r)?;
    let kind = match r.u8()? {
        0 => Kind::Snapshot {
            name: read_name(r)?,
            created: r.u64()?,
            user: r.flag()?,
            labels: read_labels(r)?,
        },
        1 => Kind::Revert(read_order(r)?),
        2 => Kind::Remove(read_order(r)?),
        3 => Kind::Drop(read_order(r)?),
        4 => Kind::Expand(r.u64()?),
        5 => Kind::Pin(read_order(r)?, VolumeId(r.u128()?)),
        6 => Kind::Unpin(read_order(r)?, VolumeId(r.u128()?)),
        7 => Kind::Clone(Box::new(CloneOf {
            from: read_order(r)?,
            volume: VolumeId(r.u128()?),
            name: read_name(r)?,
            created: r.u64()?,
            members: read_set(r)?,
        })),
        _ => return Err(EnvelopeError::Content),
    };
    Ok(Operation { id, kind })
}

/// Reads a structure; one that is not in order is none.
pub fn read_structure(r: &mut Reader<'_>) -> Read<Structure> {
    let (at, blocks) = (read_order(r)?, r.u64()?);
    let base = if r.flag()? { Some(VolumeId(r.u128()?)) } else { None };
    let head = read_order(r)?;
    let mut layers = Vec::new();
    for _ in 0..count(r, MAX_LAYERS + 1)? {
        let (id, parent, folded) = (read_order(r)?, maybe_order(r)?, maybe_order(r)?);
        let mut snapshot = None;
        if r.flag()? {
            let (name, created, user) = (read_name(r)?, r.u64()?, r.flag()?);
            let (labels, removed) = (read_labels(r)?, r.flag()?);
            let pins = (0..count(r, MAX_PINS)?).map(|_| r.u128().map(VolumeId)).collect::<Read<_>>()?;
            snapshot = Some(Snapshot { name, created, user, labels, removed, pins, frozen: read_order(r)? });
        }
        layers.push(Layer { id, parent, folded, snapshot });
    }
    let last = if r.flag()? { Some(read_operation(r)?) } else { None };
    let structure = Structure { at, blocks, base, head, layers, last };
    if structure.is_sound() { Ok(structure) } else { Err(EnvelopeError::Content) }
}
