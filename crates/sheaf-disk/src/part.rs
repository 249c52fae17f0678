//! What one layer holds of one segment: read, written, folded up, checked. Runs on any thread, with the files it was given.
//!
//! Blocks that are known to be damaged are left out of what is read, whatever is on the disk there. What the disk cannot read, or what does
//! not fit its checksum, is told as damage ([`Failure::Corrupt`]); an error of anything else is an error of the disk.

use std::sync::{Arc, Mutex, PoisonError};

use sheaf_block_core::damage::Damage;
use sheaf_block_core::disk::{Digest, Done, Failure, Op, Part};
use sheaf_block_core::ids::{BLOCK_BYTES, SEGMENT_BLOCKS, SegmentIndex};
use sheaf_block_core::structure::LayerId;

use crate::envelope::Reader;
use crate::fs::{DiskError, File, Result, each_extent};
use crate::sums;

const BLOCK: u64 = BLOCK_BYTES as u64;
const SEGMENT: u64 = SEGMENT_BLOCKS as u64 * BLOCK;

/// Work on a layer's part of a segment; runs on any thread.
#[derive(Debug)]
pub struct PartJob<F> {
    pub(crate) op: Op,
    /// First block of the segment, and how many it has.
    pub(crate) first: u64,
    pub(crate) blocks: u64,
    pub(crate) file: Arc<F>,
    pub(crate) child: Option<Arc<F>>,
    /// The layer, and its child; what is known to be damaged of them; their checksums.
    pub(crate) layers: Vec<LayerId>,
    pub(crate) bad: Vec<u64>,
    pub(crate) seals: Vec<Option<Arc<F>>>,
    /// Checksums of the layer's blocks, where they are needed.
    pub(crate) sums: Option<Arc<F>>,
    pub(crate) sealing: Arc<Mutex<()>>,
    /// Blocks of the volume.
    pub(crate) end: u64,
    /// Others have the file, too.
    pub(crate) shared: bool,
    /// Why it is not done.
    pub(crate) refused: Option<Failure>,
}

fn failure(error: &DiskError) -> Failure {
    if error.is_no_space() { Failure::NoSpace } else { Failure::Io }
}

/// Where the checksums of a segment's blocks are: the block of the file, and the byte in it.
fn sums_entry(at: u32) -> (u64, usize) {
    let byte = u64::from(at) * sums::ENTRY as u64;
    (byte / BLOCK * BLOCK, (byte % BLOCK) as usize)
}

impl<F: File> PartJob<F> {
    /// Does it.
    pub fn run(self) -> std::result::Result<Done, Failure> {
        if let Some(failure) = self.refused {
            return Err(failure);
        }
        self.act().unwrap_or_else(|error| Err(failure(&error)))
    }

    /// With what is known to be damaged.
    #[must_use]
    pub fn beside(mut self, damage: &Damage) -> Self {
        let at = self.segment();
        self.bad = self.layers.iter().map(|layer| damage.of(*layer, at)).collect();
        self
    }

    fn segment(&self) -> SegmentIndex {
        SegmentIndex(u32::try_from(self.first / u64::from(SEGMENT_BLOCKS)).unwrap_or(u32::MAX))
    }

    fn act(&self) -> Result<std::result::Result<Done, Failure>> {
        let at = self.segment().0;
        Ok(match &self.op {
            Op::ReadPart(..) => self.sound(0, at)?.map(Done::Part),
            Op::Salvage(..) => {
                let (part, fresh) = self.look(0)?;
                let rotten = !fresh && self.is_rotten(0, at, &part)?;
                Ok(Done::Part(if rotten { part.without(self.rotten_blocks(at, &part)?) } else { part }))
            }
            Op::WritePart(_, _, part) => {
                let has = part.data | part.zero | part.bad;
                if !part.is_sound() || (self.blocks < 64 && has >> self.blocks != 0) {
                    return Ok(Err(Failure::Invalid));
                }
                self.unseal(at)?;
                self.write(&self.file, part, !0)?;
                if self.shared {
                    self.file.sync()?;
                }
                Ok(Done::Nothing)
            }
            Op::Present(_, _, limit) => Ok(Done::Segments(self.present(*limit as usize)?)),
            Op::Fold(..) => {
                let Some(child) = &self.child else { return Ok(Err(Failure::Invalid)) };
                let (below, above) = match (self.sound(0, at)?, self.sound(1, at)?) {
                    (Ok(below), Ok(above)) => (below, above),
                    (Err(failure), _) | (_, Err(failure)) => return Ok(Err(failure)),
                };
                self.unseal(at)?;
                // Only what the child does not have: what is read through it stays the same at every moment.
                let has = above.data | above.zero | above.bad;
                self.write(child, &below, !(has | below.bad))?;
                Ok(if below.bad & !has == 0 { Done::Nothing } else { Done::Damaged(below.bad & !has) })
            }
            Op::Digest(..) => {
                let (part, fresh) = self.look(0)?;
                let sealed = if part.bad == 0 { self.sealed(0, at)? } else { None };
                Ok(Done::Digest(Digest { actual: part.checksum(), sealed, bad: part.bad, fresh }))
            }
            Op::Seal(_, _, checksum) => {
                let part = match self.sound(0, at)? {
                    Ok(part) if part.bad == 0 => part,
                    _ => return Ok(Err(Failure::Corrupt)),
                };
                if part.checksum() != *checksum {
                    return Ok(Err(Failure::Corrupt));
                }
                self.set_sums(at, *checksum, &part)?;
                self.set_seal(0, at, Some(*checksum))?;
                Ok(Done::Nothing)
            }
            _ => Err(Failure::Invalid),
        })
    }

    /// What a layer, or its child, holds of the segment, if all of that can be read that is not known to be damaged, and fits.
    fn sound(&self, which: usize, at: u32) -> Result<std::result::Result<Part, Failure>> {
        let (part, fresh) = self.look(which)?;
        let rotten = fresh || self.is_rotten(which, at, &part)?;
        // A seal may be recorded anew over what is read here, so what was to be sealed is held against it later.
        let sealing = matches!(self.op, Op::Seal(..)) && !fresh;
        Ok(if rotten && !sealing { Err(Failure::Corrupt) } else { Ok(part) })
    }

    /// Whether it does not fit its checksum, if that can be told.
    fn is_rotten(&self, which: usize, at: u32, part: &Part) -> Result<bool> {
        Ok(part.bad == 0 && self.sealed(which, at)?.is_some_and(|sealed| sealed != part.checksum()))
    }

    /// Which blocks of a part that does not fit its seal are to blame: those whose own checksums do not fit. Without these it cannot be told, and
    /// it is all that are there; what is not there is vouched for by the file system.
    fn rotten_blocks(&self, at: u32, part: &Part) -> Result<u64> {
        let all = part.data | part.zero;
        let (Some(seal), Some(file)) = (self.sealed(0, at)?, &self.sums) else { return Ok(all) };
        let (offset, within) = sums_entry(at);
        let mut block = vec![0; BLOCK as usize];
        file.read_at(offset, &mut block)?;
        let differing = sums::differing(&block[within..within + sums::ENTRY], seal, part);
        Ok(differing.filter(|blocks| *blocks != 0).unwrap_or(all))
    }

    /// Keeps the checksums of single blocks, as well as that can be done without waiting for the disk.
    fn set_sums(&self, at: u32, seal: u32, part: &Part) -> Result<()> {
        let Some(file) = &self.sums else { return Ok(()) };
        let _alone = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let (offset, within) = sums_entry(at);
        let mut block = vec![0; BLOCK as usize];
        file.read_at(offset, &mut block)?;
        block[within..within + sums::ENTRY].copy_from_slice(&sums::encode(seal, part));
        file.write_at(offset, &block)
    }

    /// What a layer, or its child, holds of the segment, and whether something of it cannot be read that was not known to be damaged. A block of
    /// zeros is told as such, however it is stored.
    fn look(&self, which: usize) -> Result<(Part, bool)> {
        let known = self.bad.get(which).copied().unwrap_or(0);
        let file = match (which, &self.child) {
            (1, Some(child)) => child,
            _ => &self.file,
        };
        let (offset, len) = (self.first * BLOCK, self.blocks * BLOCK);
        let mut buffer = vec![0; len as usize];
        let (mut there, mut lost) = (0u64, 0u64);
        each_extent(&**file, offset, len, |extent| {
            let from = (extent.start - offset) / BLOCK;
            let to = (extent.start + extent.len - offset).div_ceil(BLOCK).min(self.blocks);
            (from..to).for_each(|block| there |= 1 << block);
            if !extent.unwritten {
                lost |= self.read_blocks(file, from, to, known, &mut buffer)?;
            }
            Ok(())
        })?;
        let bad = known | lost;
        let (mut data, mut zero, mut bytes) = (0u64, 0u64, Vec::new());
        for (at, block) in
            buffer.chunks(BLOCK as usize).enumerate().filter(|(at, _)| (there & !bad) >> at & 1 == 1)
        {
            if block.iter().all(|byte| *byte == 0) {
                zero |= 1 << at;
            } else {
                data |= 1 << at;
                bytes.extend_from_slice(block);
            }
        }
        Ok((Part { data, zero, bad, bytes: bytes.into() }, lost & !known != 0))
    }

    /// Reads blocks of the segment, but for those known to be damaged; says which could not be read. Together, and one by one only if that
    /// failed, twice: a disk may succeed at the second attempt.
    fn read_blocks(&self, file: &F, from: u64, to: u64, known: u64, buffer: &mut [u8]) -> Result<u64> {
        let mut read = |from: u64, to: u64| {
            let range = (from * BLOCK) as usize..(to * BLOCK) as usize;
            file.read_at((self.first + from) * BLOCK, &mut buffer[range])
        };
        let spared = (from..to).any(|block| known >> block & 1 == 1);
        if !spared {
            match read(from, to) {
                Err(error) if error.is_unreadable() => {}
                other => return other.map(|()| 0),
            }
        }
        let mut lost = 0;
        for block in (from..to).filter(|block| known >> block & 1 == 0) {
            match read(block, block + 1).or_else(|_| read(block, block + 1)) {
                Err(error) if error.is_unreadable() => lost |= 1 << block,
                other => other?,
            }
        }
        Ok(lost)
    }

    /// Makes a layer hold a part, in the blocks of `mask`. Without a gap in the mask, what was there and is not in the part
    /// goes.
    fn write(&self, file: &F, part: &Part, mask: u64) -> Result<()> {
        let zeros = vec![0; BLOCK as usize];
        let mut bytes = part.bytes.chunks(BLOCK as usize);
        let whole = mask == !0;
        let mut at = 0;
        while at < self.blocks {
            let bit = 1u64 << at;
            let offset = (self.first + at) * BLOCK;
            if part.data & bit != 0 {
                // Neighbours in one request.
                let mut run = Vec::new();
                let from = at;
                while at < self.blocks && part.data >> at & 1 == 1 {
                    let block = bytes.next().unwrap_or(&zeros);
                    if mask >> at & 1 == 0 {
                        at += 1;
                        break;
                    }
                    run.extend_from_slice(block);
                    at += 1;
                }
                if !run.is_empty() {
                    file.write_at((self.first + from) * BLOCK, &run)?;
                }
                continue;
            }
            if mask & bit != 0 {
                if part.zero & bit != 0 {
                    file.write_at(offset, &zeros)?;
                } else if whole {
                    file.punch(offset, BLOCK)?;
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn present(&self, limit: usize) -> Result<Vec<SegmentIndex>> {
        let mut found: Vec<SegmentIndex> = Vec::new();
        let mut at = self.first * BLOCK;
        let end = self.end * BLOCK;
        while at < end && found.len() < limit {
            let Some(extent) = self.file.extents(at, end - at, 1)?.first().copied() else { break };
            let (from, to) = (extent.start / SEGMENT, (extent.start + extent.len).div_ceil(SEGMENT));
            for segment in from..to {
                if found.len() >= limit {
                    return Ok(found);
                }
                found.push(SegmentIndex(u32::try_from(segment).unwrap_or(u32::MAX)));
            }
            at = to * SEGMENT;
        }
        Ok(found)
    }

    fn entry(at: u32) -> (u64, usize) {
        let byte = u64::from(at) * 8;
        (byte / BLOCK * BLOCK, (byte % BLOCK) as usize)
    }

    /// The checksum that was recorded for the layer, or for its child.
    fn sealed(&self, which: usize, at: u32) -> Result<Option<u32>> {
        let Some(Some(file)) = self.seals.get(which) else { return Ok(None) };
        let (offset, within) = Self::entry(at);
        let mut block = vec![0; BLOCK as usize];
        file.read_at(offset, &mut block)?;
        let mut r = Reader(&block[within..]);
        let (value, check) = (r.u32().unwrap_or(0), r.u32().unwrap_or(0));
        Ok((check == !value).then_some(value))
    }

    fn set_seal(&self, which: usize, at: u32, value: Option<u32>) -> Result<()> {
        let Some(Some(file)) = self.seals.get(which) else { return Ok(()) };
        // Jobs of other segments run on other threads, and their seals may lie in the same block.
        let _alone = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let (offset, within) = Self::entry(at);
        let mut block = vec![0; BLOCK as usize];
        file.read_at(offset, &mut block)?;
        let entry = value.map_or([0; 8], |value| {
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&value.to_le_bytes());
            entry[4..].copy_from_slice(&(!value).to_le_bytes());
            entry
        });
        if block[within..within + 8] != entry {
            block[within..within + 8].copy_from_slice(&entry);
            file.write_at(offset, &block)?;
            file.sync()?;
        }
        Ok(())
    }

    fn unseal(&self, at: u32) -> Result<()> {
        (0..self.seals.len()).try_for_each(|which| self.set_seal(which, at, None))
    }
}
