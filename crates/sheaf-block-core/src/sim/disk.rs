//! The simulator's disk: what is written is first in a cache; a machine that goes down loses some of it, block by block
//! or in the middle of a block; a process that dies leaves its operations done, half done or not done.
//!
//! It keeps the promises of [`crate::disk`], and no more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Dice;
use crate::disk::{Change, Data, Digest, Done, Failure, Metadata, Op, Part, Partial};
use crate::ids::{BLOCK_BYTES, BlockCount, BlockIndex, OpId, SECTOR_BYTES, SEGMENT_BLOCKS, SegmentIndex};
use crate::structure::{Kind, LayerId, Structure};

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = SECTOR_BYTES as usize;

/// What a layer has of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Cell {
    Data(Data),
    Zero,
}

type Place = (LayerId, u64);

/// A replica's directory on its disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) meta: Metadata,
    cells: BTreeMap<Place, Cell>,
    /// What cells held when they were synced last, where that may differ.
    unsynced: BTreeMap<Place, Option<Cell>>,
    seals: BTreeMap<(LayerId, SegmentIndex), u32>,
    /// Blocks that the disk cannot read, until they are written again.
    unreadable: BTreeSet<Place>,
    /// Layers that linked clones have, too: their chains, and what was then read through them.
    shared: BTreeMap<LayerId, (Vec<LayerId>, BTreeMap<u64, Cell>)>,
    /// Metadata and operations are done in order.
    ordered: VecDeque<OpId>,
    running: BTreeMap<OpId, Op>,
    /// Every operation fails, or those that need space do.
    pub(super) broken: Option<Failure>,
    /// The metadata cannot be written either.
    pub(super) broken_metadata: bool,
}

fn is_ordered(op: &Op) -> bool {
    matches!(op, Op::Persist(_) | Op::Operate(_) | Op::Adopt(..))
}

impl Disk {
    pub(super) fn new(meta: Metadata) -> Self {
        Self {
            meta,
            cells: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            seals: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            shared: BTreeMap::new(),
            ordered: VecDeque::new(),
            running: BTreeMap::new(),
            broken: None,
            broken_metadata: false,
        }
    }

    pub(super) fn on_the_way(&self) -> impl Iterator<Item = (OpId, &Op)> {
        self.running.iter().map(|(id, op)| (*id, op))
    }

    pub(super) fn begin(&mut self, id: OpId, op: Op) {
        if is_ordered(&op) {
            self.ordered.push_back(id);
        }
        self.running.insert(id, op);
    }

    /// Ends an operation; none if it must wait for an earlier one.
    pub(super) fn end(&mut self, id: OpId) -> Option<Result<Done, Failure>> {
        if is_ordered(self.running.get(&id)?) {
            if self.ordered.front() != Some(&id) {
                return None;
            }
            self.ordered.pop_front();
        }
        let op = self.running.remove(&id)?;
        Some(self.fails(&op).map_or_else(|| self.perform(op), Err))
    }

    fn fails(&self, op: &Op) -> Option<Failure> {
        let failure = self.broken?;
        let fails = match op {
            Op::Persist(_) => self.broken_metadata,
            Op::Read(..) | Op::ReadPart(..) | Op::Salvage(..) | Op::Present(..) => {
                failure != Failure::NoSpace
            }
            Op::Digest(..) | Op::Zero(..) | Op::Sync => failure != Failure::NoSpace,
            _ => true,
        };
        fails.then_some(failure)
    }

    fn perform(&mut self, op: Op) -> Result<Done, Failure> {
        match op {
            Op::Persist(changes) => changes.iter().for_each(|change| self.meta.apply(change)),
            Op::Write(start, data) => self.write(start, &data, data.len()),
            Op::Zero(start, count) => self.zero(start, count),
            Op::Read(start, count) => return self.read(start, count).map(Done::Data),
            Op::Sync => self.unsynced.clear(),
            Op::Operate(operation) => {
                let before = self.meta.structure.clone();
                if before.apply(&operation).is_err() {
                    return Err(Failure::Invalid);
                }
                if let Kind::Clone(clone) = &operation.kind
                    && let Some(cloned) = self.meta.cloned(operation.id, clone)
                {
                    self.share(&cloned.structure);
                }
                self.meta.apply(&Change::Operated(Box::new(operation)));
                self.keep_known(&before);
            }
            Op::Adopt(structure, known) => {
                let before = self.meta.structure.clone();
                self.meta.apply(&Change::Adopted(structure, known));
                self.keep_known(&before);
                for (layer, partial) in self.meta.partial.clone() {
                    if matches!(partial, Partial::Full { below: SegmentIndex(0), .. }) {
                        self.forget_layer(layer);
                    }
                }
            }
            Op::ReadPart(layer, segment) => {
                self.verify(layer, segment)?;
                return self.readable(layer, segment).map(Done::Part);
            }
            Op::Salvage(layer, segment) => {
                let (known, lost) = (self.meta.damage.of(layer, segment), self.lost(layer, segment));
                let part = self.part(layer, segment);
                let bad = match self.verify(layer, segment) {
                    // It cannot be told which of them it is.
                    Err(_) if lost == 0 => part.data | part.zero,
                    _ => known | lost,
                };
                return Ok(Done::Part(part.without(bad)));
            }
            Op::WritePart(layer, segment, part) => {
                self.seals.remove(&(layer, segment));
                self.write_part(layer, segment, &part);
            }
            Op::Present(layer, from, count) => {
                let mut list: Vec<SegmentIndex> = vec![];
                let first = u64::from(from.0) * u64::from(SEGMENT_BLOCKS);
                for (place, _) in self.cells.range((layer, first)..=(layer, u64::MAX)) {
                    let segment = segment_of(place.1);
                    if list.last() != Some(&segment) {
                        list.push(segment);
                    }
                }
                list.truncate(count as usize);
                return Ok(Done::Segments(list));
            }
            Op::Fold(layer, segment) => return self.fold(layer, segment),
            Op::Digest(layer, segment) => {
                let (known, lost) = (self.meta.damage.of(layer, segment), self.lost(layer, segment));
                let bad = known | lost;
                let sealed = self.seals.get(&(layer, segment)).copied().filter(|_| bad == 0);
                let actual = self.part(layer, segment).without(bad).checksum();
                return Ok(Done::Digest(Digest { actual, sealed, bad, fresh: lost & !known != 0 }));
            }
            Op::Seal(layer, segment, checksum) => {
                if self.part(layer, segment).checksum() != checksum {
                    return Err(Failure::Corrupt);
                }
                self.seals.insert((layer, segment), checksum);
            }
        }
        Ok(Done::Nothing)
    }

    fn keep_known(&mut self, before: &Structure) {
        let gone: Vec<LayerId> = before
            .layers
            .iter()
            .map(|layer| layer.id)
            .filter(|id| self.meta.structure.layer(*id).is_none())
            .collect();
        gone.into_iter().for_each(|id| self.forget_layer(id));
    }

    fn forget_layer(&mut self, id: LayerId) {
        self.cells.retain(|(layer, _), _| *layer != id);
        self.unsynced.retain(|(layer, _), _| *layer != id);
        self.seals.retain(|(layer, _), _| *layer != id);
        self.unreadable.retain(|(layer, _)| *layer != id);
        self.shared.remove(&id);
    }

    /// Blocks of a part that the disk cannot read.
    fn lost(&self, layer: LayerId, segment: SegmentIndex) -> u64 {
        let first = first_block(segment);
        let lost = self.unreadable.range((layer, first)..(layer, first + u64::from(SEGMENT_BLOCKS)));
        lost.fold(0, |bits, (_, block)| bits | 1 << (block - first))
    }

    /// A part, but for what is known to be damaged.
    fn readable(&self, layer: LayerId, segment: SegmentIndex) -> Result<Part, Failure> {
        let known = self.meta.damage.of(layer, segment);
        if self.lost(layer, segment) & !known != 0 {
            return Err(Failure::Corrupt);
        }
        Ok(self.part(layer, segment).without(known))
    }

    fn put(&mut self, place: Place, cell: Option<Cell>) {
        self.unreadable.remove(&place);
        let old = self.cells.get(&place).cloned();
        self.unsynced.entry(place).or_insert(old);
        match cell {
            Some(cell) => drop(self.cells.insert(place, cell)),
            None => drop(self.cells.remove(&place)),
        }
    }

    /// What is read of a block through a layer; the layer that has it.
    fn look(&self, through: LayerId, block: u64) -> (Option<LayerId>, Option<&Data>) {
        for layer in self.meta.structure.chain(through) {
            match self.cells.get(&(layer.id, block)) {
                Some(Cell::Data(bytes)) => return (Some(layer.id), Some(bytes)),
                Some(Cell::Zero) => return (Some(layer.id), None),
                None => {}
            }
        }
        (None, None)
    }

    /// Everything that is read through a layer.
    pub(super) fn content(&self, through: LayerId) -> Vec<u8> {
        let mut content = vec![0; self.meta.structure.blocks as usize * BLOCK];
        let mut chain: Vec<LayerId> = self.meta.structure.chain(through).map(|layer| layer.id).collect();
        chain.reverse();
        for layer in chain {
            for ((_, block), cell) in self.cells.range((layer, 0)..=(layer, u64::MAX)) {
                let at = *block as usize * BLOCK;
                match cell {
                    Cell::Data(bytes) => content[at..at + BLOCK].copy_from_slice(bytes),
                    Cell::Zero => content[at..at + BLOCK].fill(0),
                }
            }
        }
        content
    }

    fn read(&self, start: BlockIndex, count: BlockCount) -> Result<Data, Failure> {
        let mut bytes = Vec::with_capacity(count.0 as usize * BLOCK);
        let mut verified = None;
        for block in start.0..start.0 + u64::from(count.0) {
            let (layer, found) = self.look(self.meta.structure.head, block);
            let unreadable = layer.is_some_and(|layer| self.unreadable.contains(&(layer, block)));
            if unreadable || self.meta.is_damaged_above(layer, BlockIndex(block), BlockCount(1)) {
                return Err(Failure::Corrupt);
            }
            let place = layer.map(|layer| (layer, segment_of(block)));
            if let Some((layer, segment)) = place.filter(|_| place != verified) {
                self.verify(layer, segment)?;
                verified = place;
            }
            match found {
                Some(found) => bytes.extend_from_slice(found),
                None => bytes.resize(bytes.len() + BLOCK, 0),
            }
        }
        Ok(bytes.into())
    }

    fn verify(&self, layer: LayerId, segment: SegmentIndex) -> Result<(), Failure> {
        let sealed = self.seals.get(&(layer, segment));
        if self.meta.damage.of(layer, segment) != 0 {
            return Ok(());
        }
        let same = sealed.is_none_or(|sealed| *sealed == self.part(layer, segment).checksum());
        if same { Ok(()) } else { Err(Failure::Corrupt) }
    }

    /// Writes the first `len` bytes.
    fn write(&mut self, start: BlockIndex, data: &[u8], len: usize) {
        let head = self.meta.structure.head;
        for (block, bytes) in (start.0..).zip(data[..len].chunks(BLOCK)) {
            let whole = if bytes.len() == BLOCK {
                Data::copy_from_slice(bytes)
            } else {
                let before = self.look(head, block).1.map_or(&[0; BLOCK][..], |before| before);
                [bytes, &before[bytes.len()..]].concat().into()
            };
            self.put((head, block), Some(Cell::Data(whole)));
        }
    }

    fn zero(&mut self, start: BlockIndex, count: BlockCount) {
        let head = self.meta.structure.head;
        let below = self.meta.structure.layer(head).and_then(|layer| layer.parent);
        // What is below may still be to come.
        let partial = !self.meta.is_complete_below(head);
        for block in start.0..start.0 + u64::from(count.0) {
            let damaged = self.meta.is_damaged_below(BlockIndex(block), BlockCount(1));
            let hides = below.is_some_and(|below| partial || damaged || self.look(below, block).0.is_some());
            self.put((head, block), hides.then_some(Cell::Zero));
        }
    }

    fn part(&self, layer: LayerId, segment: SegmentIndex) -> Part {
        let (mut data, mut zero, mut bytes) = (0, 0, vec![]);
        for (bit, block) in (0..SEGMENT_BLOCKS).zip(first_block(segment)..) {
            match self.cells.get(&(layer, block)) {
                Some(Cell::Data(content)) => {
                    data |= 1 << bit;
                    bytes.extend_from_slice(content);
                }
                Some(Cell::Zero) => zero |= 1 << bit,
                None => {}
            }
        }
        Part { data, zero, bad: 0, bytes: bytes.into() }
    }

    fn write_part(&mut self, layer: LayerId, segment: SegmentIndex, part: &Part) {
        let mut bytes = part.bytes.chunks(BLOCK);
        for (bit, block) in (0..SEGMENT_BLOCKS).zip(first_block(segment)..) {
            let cell = if part.data >> bit & 1 == 1 {
                bytes.next().map(|bytes| Cell::Data(Data::copy_from_slice(bytes)))
            } else {
                (part.zero >> bit & 1 == 1).then_some(Cell::Zero)
            };
            let place = (layer, block);
            if self.cells.get(&place) != cell.as_ref() || self.unreadable.contains(&place) {
                self.put(place, cell);
            }
        }
    }

    fn share(&mut self, with: &Structure) {
        for layer in with.layers.iter().filter(|layer| layer.snapshot.is_some()) {
            let chain: Vec<LayerId> = with.chain(layer.id).map(|layer| layer.id).collect();
            let view = self.view(&chain);
            self.shared.entry(layer.id).or_insert((chain, view));
        }
    }

    /// What is read through a chain of layers, the topmost first. Zeroes that are there and blocks that are in no layer are read
    /// alike: a replica that was not complete keeps zeroes for what it could not know to be absent below, and may be given a copy
    /// of one that did.
    fn view(&self, chain: &[LayerId]) -> BTreeMap<u64, Cell> {
        let mut view = BTreeMap::new();
        for layer in chain.iter().rev() {
            let cells = self.cells.range((*layer, 0)..=(*layer, u64::MAX));
            view.extend(cells.map(|((_, block), cell)| (*block, cell.clone())));
        }
        view.retain(|_, cell| *cell != Cell::Zero);
        view
    }

    fn fold(&mut self, layer: LayerId, segment: SegmentIndex) -> Result<Done, Failure> {
        let child =
            self.meta.structure.children(layer).next().map(|child| child.id).ok_or(Failure::Invalid)?;
        if self.shared.contains_key(&layer) || self.shared.contains_key(&child) {
            return Err(Failure::Shared);
        }
        self.verify(layer, segment)?;
        self.verify(child, segment)?;
        let (below, above) = (self.readable(layer, segment)?, self.readable(child, segment)?);
        let has = above.data | above.zero | above.bad;
        for (bit, block) in (0..SEGMENT_BLOCKS).zip(first_block(segment)..) {
            if (has | below.bad) >> bit & 1 == 0
                && let Some(cell) = self.cells.get(&(layer, block)).cloned()
            {
                self.put((child, block), Some(cell));
            }
        }
        self.seals.remove(&(layer, segment));
        self.seals.remove(&(child, segment));
        let bad = below.bad & !has;
        Ok(if bad == 0 { Done::Nothing } else { Done::Damaged(bad) })
    }

    /// The process dies: what was on its way may have been done, in part.
    pub(super) fn crash(&mut self, dice: &mut Dice) {
        let ordered = std::mem::take(&mut self.ordered);
        let mut done = dice.below(ordered.len() as u64 + 1);
        for id in ordered {
            let Some(op) = self.running.remove(&id) else { continue };
            if done > 0 {
                done -= 1;
                if self.fails(&op).is_some() || self.perform(op).is_err() {
                    done = 0;
                }
            }
        }
        for op in std::mem::take(&mut self.running).into_values() {
            if self.broken.is_some() {
                continue;
            }
            match op {
                Op::Write(start, data) => {
                    let len = dice.below((data.len() / SECTOR) as u64 + 1) as usize * SECTOR;
                    self.write(start, &data, len);
                }
                Op::Zero(start, count) => {
                    let some = dice.below(u64::from(count.0) + 1);
                    self.zero(start, BlockCount(some as u32));
                }
                Op::WritePart(layer, segment, part) if dice.chance(50) => {
                    self.seals.remove(&(layer, segment));
                    self.write_part(layer, segment, &part);
                }
                Op::Fold(layer, segment) if dice.chance(50) => drop(self.fold(layer, segment)),
                _ => {}
            }
        }
    }

    /// The machine goes down: each unsynced block keeps what it has, loses it, or is torn between sectors.
    pub(super) fn power_cut(&mut self, dice: &mut Dice) {
        self.crash(dice);
        for (place, old) in std::mem::take(&mut self.unsynced) {
            match dice.below(3) {
                0 => {}
                1 => match old {
                    Some(cell) => drop(self.cells.insert(place, cell)),
                    None => drop(self.cells.remove(&place)),
                },
                _ => {
                    // Both are the block's content; what is not there is what is below it.
                    let (Some(Cell::Data(_)), Some(Cell::Data(before))) = (self.cells.get(&place), old)
                    else {
                        continue;
                    };
                    if let Some(Cell::Data(now)) = self.cells.get_mut(&place) {
                        let lost = dice.below((BLOCK / SECTOR) as u64) as usize * SECTOR;
                        *now = [&before[..lost], &now[lost..]].concat().into();
                    }
                }
            }
        }
    }

    /// All clones are gone.
    pub(super) fn unshare(&mut self) {
        self.shared.clear();
    }

    /// Whether layers that clones have are read as they were.
    pub(super) fn keeps_shared(&self) -> bool {
        self.shared.values().all(|(chain, view)| self.view(chain) == *view)
    }

    /// A block that is read through the head cannot be read any more; false if it is in no layer.
    pub(super) fn lose_block(&mut self, block: u64) -> bool {
        let layer = self.look(self.meta.structure.head, block).0;
        layer.is_some_and(|layer| self.unreadable.insert((layer, block)))
    }

    /// Blocks that are damaged, seen through a layer.
    pub(super) fn damaged(&self, through: LayerId) -> BTreeSet<u64> {
        let is_damaged = |block: &u64| {
            let mut chain = self.meta.structure.chain(through).map(|layer| layer.id);
            let at = (BlockIndex(*block), BlockCount(1));
            let marked = |id: LayerId| self.meta.damage.touches(id, at.0, at.1);
            let first = chain.find(|id| marked(*id) || self.cells.contains_key(&(*id, *block)));
            first.is_some_and(|id| marked(id) || self.unreadable.contains(&(id, *block)))
        };
        (0..self.meta.structure.blocks).filter(is_damaged).collect()
    }

    /// A bit flips in something that has a checksum, where; none if there is nothing.
    pub(super) fn rot(&mut self, dice: &mut Dice) -> Option<SegmentIndex> {
        let sealed: Vec<(LayerId, SegmentIndex)> = self.seals.keys().copied().collect();
        let (layer, segment) = *sealed.get(dice.below(sealed.len() as u64) as usize)?;
        let range = first_block(segment)..first_block(segment) + u64::from(SEGMENT_BLOCKS);
        let cell = range.into_iter().find_map(|block| match self.cells.get(&(layer, block)) {
            Some(Cell::Data(_)) => Some((layer, block)),
            _ => None,
        })?;
        if let Some(Cell::Data(bytes)) = self.cells.get_mut(&cell) {
            let mut rotten = bytes.to_vec();
            rotten[dice.below(BLOCK_BYTES.into()) as usize] ^= 1 << dice.below(8);
            *bytes = rotten.into();
        }
        Some(segment)
    }

    /// Whether everything that has a checksum agrees with it.
    pub(super) fn is_sound(&self) -> bool {
        self.seals.keys().all(|(layer, segment)| self.verify(*layer, *segment).is_ok())
    }
}

fn first_block(segment: SegmentIndex) -> u64 {
    u64::from(segment.0) * u64::from(SEGMENT_BLOCKS)
}

fn segment_of(block: u64) -> SegmentIndex {
    SegmentIndex(u32::try_from(block / u64::from(SEGMENT_BLOCKS)).unwrap_or(u32::MAX))
}
