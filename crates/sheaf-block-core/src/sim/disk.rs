//! The simulator's disk: what is written is first in a cache; a machine that goes down loses some of it, block by block
//! or in the middle of a block; a process that dies leaves its operations done, half done or not done.

use std::collections::{BTreeMap, VecDeque};

use super::Dice;
use crate::ids::{BLOCK_BYTES, BlockCount, BlockIndex, OpId, SECTOR_BYTES};
use crate::replica::{Metadata, Op};
use crate::wire::{Data, Failure};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A replica's directory on its disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) meta: Metadata,
    pub(super) content: Vec<u8>,
    /// What blocks held when they were synced last, where that differs.
    unsynced: BTreeMap<u64, Vec<u8>>,
    /// Metadata is written in order.
    persists: VecDeque<OpId>,
    running: BTreeMap<OpId, Op>,
    /// Every operation fails, or those that need space do.
    pub(super) broken: Option<Failure>,
}

impl Disk {
    pub(super) fn new(meta: Metadata) -> Self {
        let content = vec![0; meta.blocks as usize * BLOCK];
        Self {
            meta,
            content,
            unsynced: BTreeMap::new(),
            persists: VecDeque::new(),
            running: BTreeMap::new(),
            broken: None,
        }
    }

    pub(super) fn begin(&mut self, id: OpId, op: Op) {
        if matches!(op, Op::Persist(_)) {
            self.persists.push_back(id);
        }
        self.running.insert(id, op);
    }

    /// Ends an operation; none if it must wait for an earlier one.
    pub(super) fn end(&mut self, id: OpId) -> Option<Result<Option<Data>, Failure>> {
        if matches!(self.running.get(&id)?, Op::Persist(_)) && self.persists.front() != Some(&id) {
            return None;
        }
        let op = self.running.remove(&id)?;
        let full = self.broken == Some(Failure::NoSpace);
        match (self.broken, &op) {
            (Some(failure), Op::Write(..)) if full => return Some(Err(failure)),
            (Some(failure), Op::Write(..) | Op::Zero(..) | Op::Read(..) | Op::Sync) if !full => {
                return Some(Err(failure));
            }
            _ => {}
        }
        match op {
            Op::Persist(changes) => {
                self.persists.pop_front();
                changes.iter().for_each(|change| self.meta.apply(change));
                Some(Ok(None))
            }
            Op::Write(start, data) => {
                self.put(start, &data, data.len());
                Some(Ok(None))
            }
            Op::Zero(start, count) => {
                let zeroes = vec![0; count.0 as usize * BLOCK];
                self.put(start, &zeroes, zeroes.len());
                Some(Ok(None))
            }
            Op::Read(start, count) => Some(Ok(Some(self.get(start, count)))),
            Op::Sync => {
                self.unsynced.clear();
                Some(Ok(None))
            }
        }
    }

    fn get(&self, start: BlockIndex, count: BlockCount) -> Data {
        let from = start.0 as usize * BLOCK;
        self.content[from..from + count.0 as usize * BLOCK].into()
    }

    /// Writes the first `len` bytes.
    fn put(&mut self, start: BlockIndex, data: &[u8], len: usize) {
        let from = start.0 as usize * BLOCK;
        for at in 0..len.div_ceil(BLOCK) {
            let old = || self.content[from + at * BLOCK..from + (at + 1) * BLOCK].to_vec();
            self.unsynced.entry(start.0 + at as u64).or_insert_with(old);
        }
        self.content[from..from + len].copy_from_slice(&data[..len]);
    }

    /// The process dies: what was on its way may have been done, in part.
    pub(super) fn crash(&mut self, dice: &mut Dice) {
        let persists = std::mem::take(&mut self.persists);
        let mut done = dice.below(persists.len() as u64 + 1);
        for id in persists {
            let Some(Op::Persist(changes)) = self.running.remove(&id) else { continue };
            if done > 0 {
                done -= 1;
                changes.iter().for_each(|change| self.meta.apply(change));
            }
        }
        for op in std::mem::take(&mut self.running).into_values() {
            let (start, data) = match op {
                Op::Write(start, data) => (start, data),
                Op::Zero(start, count) => (start, vec![0; count.0 as usize * BLOCK].into()),
                _ => continue,
            };
            let sectors = data.len() / SECTOR_BYTES as usize;
            let len = dice.below(sectors as u64 + 1) as usize * SECTOR_BYTES as usize;
            if self.broken.is_none() {
                self.put(start, &data, len);
            }
        }
    }

    /// The machine goes down: each unsynced block keeps what it has, loses it, or is torn between sectors.
    pub(super) fn power_cut(&mut self, dice: &mut Dice) {
        self.crash(dice);
        for (block, old) in std::mem::take(&mut self.unsynced) {
            let from = block as usize * BLOCK;
            let lost = match dice.below(3) {
                0 => 0,
                1 => BLOCK,
                _ => dice.below(u64::from(BLOCK_BYTES / SECTOR_BYTES)) as usize * SECTOR_BYTES as usize,
            };
            self.content[from..from + lost].copy_from_slice(&old[..lost]);
        }
    }
}
