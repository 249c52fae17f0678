//! The guest of the simulator: it knows, for every sector and in every snapshot, what a read may return.

use std::collections::{BTreeMap, BTreeSet};

use crate::coordinator::{Request, RequestError};
use crate::ids::{BLOCK_BYTES, SECTOR_BYTES, Token};
use crate::structure::{Kind, LayerId, Structure};

/// A write: its number, and what it fills its sectors with (its number, or zero).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct Write {
    id: u64,
    value: u64,
}

/// One sector's history.
#[derive(Clone, Debug, Default)]
struct Sector {
    /// The newest write known to be there.
    current: Write,
    /// Later writes whose end is not known: on their way, failed, or of a coordinator that is gone.
    maybe: Vec<Write>,
}

/// What is on its way.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Read {
        first: u64,
        count: u64,
    },
    Write {
        first: u64,
        count: u64,
    },
    Flush,
    /// An operation; the head that there was before.
    Operate(Kind, LayerId),
    Scrub,
}

/// The guest's memory.
#[derive(Debug)]
pub(super) struct Guest {
    sectors: Vec<Sector>,
    snapshots: BTreeMap<LayerId, Vec<Sector>>,
    /// What a linked clone reads through: it stays, also when the snapshot is removed.
    pinned: BTreeMap<LayerId, Vec<Sector>>,
    pub(super) asked: BTreeMap<Token, (Asked, Request)>,
    /// An operation whose end was not heard of; the volume's layers will tell. Nothing is asked before.
    pub(super) unsure: Option<(Kind, LayerId)>,
    next: u64,
    pub(super) acknowledged: u64,
    pub(super) read: u64,
    pub(super) failed: u64,
    pub(super) operations: u64,
}

impl Guest {
    pub(super) fn new(sectors: u64) -> Self {
        Self {
            sectors: vec![Sector::default(); sectors as usize],
            snapshots: BTreeMap::new(),
            pinned: BTreeMap::new(),
            asked: BTreeMap::new(),
            unsure: None,
            next: 0,
            acknowledged: 0,
            read: 0,
            failed: 0,
            operations: 0,
        }
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Layers that a linked clone reads through.
    pub(super) fn pinned(&self) -> impl Iterator<Item = LayerId> {
        self.pinned.keys().copied()
    }

    pub(super) fn snapshots(&self) -> impl Iterator<Item = LayerId> {
        self.snapshots.keys().copied()
    }

    pub(super) fn token(&mut self) -> Token {
        self.next += 1;
        Token(self.next)
    }

    /// The guest is gone, and does not hear of what it asked.
    pub(super) fn forget(&mut self) {
        for (asked, _) in std::mem::take(&mut self.asked).into_values() {
            if let Asked::Operate(kind, head) = asked {
                self.unsure = Some((kind, head));
            }
        }
    }

    /// Whether an operation is on its way, so that nothing else is asked.
    pub(super) fn is_operating(&self) -> bool {
        self.unsure.is_some() || self.asked.values().any(|(asked, _)| matches!(asked, Asked::Operate(..)))
    }

    /// A read is only checked where nobody writes at the same time; writes may overlap writes (the later one wins).
    pub(super) fn may(&self, first: u64, count: u64, write: bool) -> bool {
        !self.is_operating()
            && !self.asked.values().any(|(asked, _)| match asked {
                Asked::Read { first: f, count: c } => write && first < f + c && *f < first + count,
                Asked::Write { first: f, count: c } => !write && first < f + c && *f < first + count,
                _ => false,
            })
    }

    /// Begins a write of its number, or of zeroes.
    pub(super) fn write(&mut self, token: Token, first: u64, count: u64, zero: bool) {
        let write = Write { id: token.0, value: if zero { 0 } else { token.0 } };
        for sector in &mut self.sectors[first as usize..(first + count) as usize] {
            sector.maybe.push(write);
        }
    }

    /// An answer came. An error text is a violation.
    pub(super) fn complete(
        &mut self,
        token: Token,
        result: Result<Option<&[u8]>, RequestError>,
        structure: Option<&Structure>,
    ) -> Result<(), String> {
        let Some((asked, request)) = self.asked.remove(&token) else {
            return Err(format!("{token:?} was answered twice"));
        };
        if let Asked::Operate(kind, head) = asked {
            self.operations += 1;
            self.unsure = Some((kind, head));
            if let (Ok(_), Some(structure)) = (&result, structure) {
                self.resolve(structure)?;
            }
            return Ok(());
        }
        let Ok(data) = result else {
            self.failed += 1;
            return match result {
                Err(RequestError::Invalid | RequestError::Refused(_)) => {
                    Err(format!("a valid request was refused: {result:?}"))
                }
                _ => Ok(()),
            };
        };
        match asked {
            Asked::Write { first, count } => {
                self.acknowledged += 1;
                let zero = matches!(request, Request::WriteZeroes { .. } | Request::Discard { .. });
                let write = Write { id: token.0, value: if zero { 0 } else { token.0 } };
                for sector in &mut self.sectors[first as usize..(first + count) as usize] {
                    sector.current = sector.current.max(write);
                    let current = sector.current;
                    sector.maybe.retain(|maybe| *maybe > current);
                }
            }
            Asked::Read { first, count } => {
                self.read += 1;
                let data = data.ok_or("a read was answered without data")?;
                see(&mut self.sectors, first, count, data)?;
            }
            Asked::Flush | Asked::Scrub | Asked::Operate(..) => {}
        }
        Ok(())
    }

    /// What became of an operation, as the volume's layers tell.
    pub(super) fn resolve(&mut self, structure: &Structure) -> Result<(), String> {
        let Some((kind, head)) = self.unsure.take() else { return Ok(()) };
        match kind {
            Kind::Snapshot { name, .. } => {
                if let Some(layer) = structure.snapshot(&name) {
                    if layer.id != head {
                        return Err(format!("snapshot {name:?} is not of the head that there was"));
                    }
                    self.snapshots.insert(layer.id, self.sectors.clone());
                }
            }
            Kind::Revert(to) => {
                if structure.head != head {
                    let mut then = self.snapshots.get(&to).cloned().ok_or("reverted to what is not there")?;
                    // Numbers go on: what was written in the meantime is gone, not older.
                    then.resize(self.sectors.len(), Sector::default());
                    self.sectors = then;
                }
            }
            Kind::Remove(layer) => {
                let kept = structure.layer(layer).and_then(|layer| layer.snapshot.as_ref());
                if kept.is_none_or(|snapshot| snapshot.removed) {
                    self.snapshots.remove(&layer);
                }
            }
            Kind::Expand(_) => {
                let sectors = structure.blocks * u64::from(BLOCK_BYTES / SECTOR_BYTES);
                if (sectors as usize) < self.sectors.len() {
                    return Err("the volume got smaller".into());
                }
                self.sectors.resize(sectors as usize, Sector::default());
            }
            Kind::Pin(layer, by) | Kind::Unpin(layer, by) => {
                let snapshot = structure.layer(layer).and_then(|layer| layer.snapshot.as_ref());
                if !snapshot.is_some_and(|snapshot| snapshot.pins.contains(&by)) {
                    self.pinned.remove(&layer);
                } else if let Some(sectors) = self.snapshots.get(&layer) {
                    self.pinned.entry(layer).or_insert_with(|| sectors.clone());
                }
            }
            Kind::Drop(_) | Kind::Clone(_) => {}
        }
        Ok(())
    }

    /// All content was read, but for damaged blocks: legal, and from now on the truth.
    pub(super) fn see_all(&mut self, data: &[u8], damaged: &BTreeSet<u64>) -> Result<(), String> {
        let count = self.sectors();
        if data.len() as u64 != count * u64::from(SECTOR_BYTES) {
            return Err(format!("the volume has {} bytes, not {count} sectors", data.len()));
        }
        see_but(&mut self.sectors, data, damaged)
    }

    /// How large the volume was when the snapshot was taken.
    pub(super) fn snapshot_bytes(&self, layer: LayerId) -> usize {
        let sectors = self.snapshots.get(&layer).or_else(|| self.pinned.get(&layer));
        sectors.map_or(0, Vec::len) * SECTOR_BYTES as usize
    }

    /// All content of a snapshot was read, but for damaged blocks.
    pub(super) fn see_snapshot(
        &mut self,
        layer: LayerId,
        data: &[u8],
        damaged: &BTreeSet<u64>,
    ) -> Result<(), String> {
        for sectors in [self.snapshots.get_mut(&layer), self.pinned.get_mut(&layer)].into_iter().flatten() {
            see_but(sectors, data, damaged).map_err(|what| format!("snapshot {layer}: {what}"))?;
        }
        Ok(())
    }
}

fn see_but(sectors: &mut [Sector], data: &[u8], damaged: &BTreeSet<u64>) -> Result<(), String> {
    const SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;
    for (block, bytes) in (0..).zip(data.chunks(BLOCK_BYTES as usize)).filter(|(at, _)| !damaged.contains(at))
    {
        let first = block * SECTORS;
        let count = SECTORS.min((sectors.len() as u64).saturating_sub(first));
        see(sectors, first, count, bytes)?;
    }
    Ok(())
}

fn see(sectors: &mut [Sector], first: u64, count: u64, data: &[u8]) -> Result<(), String> {
    for (at, chunk) in (first..first + count).zip(data.chunks(SECTOR_BYTES as usize)) {
        let mut words = chunk.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let seen = words.next().unwrap_or_default();
        let sector = &mut sectors[at as usize];
        if !words.all(|word| word == seen) {
            return Err(format!("sector {at} is torn: begins with write {seen}"));
        }
        let known = sector.maybe.iter().copied().chain([sector.current]).filter(|write| write.value == seen);
        let Some(write) = known.max() else {
            return Err(format!(
                "sector {at} has write {seen}; it should have {:?} or one of {:?}",
                sector.current, sector.maybe
            ));
        };
        (sector.current, sector.maybe) = (write, vec![]);
    }
    Ok(())
}
