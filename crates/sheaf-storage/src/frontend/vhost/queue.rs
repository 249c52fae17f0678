//! A split virtqueue: taking requests out of the guest's ring, putting answers in, and the record of what is under way,
//! with which a successor of this process goes on.
//!
//! The record of a queue, in memory that QEMU keeps:
//!
//! ```text
//!  0 features 8 | 8 version 2 | 10 entries 2 | 12 head answered last 2 | 14 used index 2
//! 16 for each descriptor: under way 1 | zero 5 | next 2 | counter 8
//! ```
//!
//! A request is marked before it is begun. When it is answered, the used index moves before the mark goes; a process that
//! dies between the two leaves a difference between the record's used index and the ring's, which says what to unmark.

use std::sync::atomic::{Ordering, fence};

use super::memory::{GuestMemory, Mapping};

/// Entries of the largest queue.
pub const ENTRIES_MAX: u16 = 1024;
const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const DESCRIPTOR_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const RECORD_HEADER: u64 = 16;

/// Bytes of a queue's record.
pub fn record_bytes(entries: u16) -> u64 {
    (RECORD_HEADER + 16 * u64::from(entries)).next_multiple_of(64)
}

/// A piece of the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Address in the guest.
    pub guest: u64,
    /// Bytes.
    pub len: u32,
}

/// A request as the ring has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its first descriptor: its name.
    pub head: u16,
    /// What we may read.
    pub readable: Vec<Segment>,
    /// What we may write.
    pub writable: Vec<Segment>,
}

/// The ring is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the guest's queue is broken: {0}")]
pub struct Broken(pub &'static str);

/// Addresses in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Descriptors.
    pub desc: u64,
    /// What the guest offers.
    pub avail: u64,
    /// What is answered.
    pub used: u64,
}

/// A queue that runs.
#[derive(Debug)]
pub struct Queue {
    entries: u16,
    at: Addresses,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    /// The used index of which the guest was last told.
    signalled: u16,
    /// Where the record of this queue begins.
    record: Option<u64>,
    counter: u64,
    /// Left by a predecessor, to be done again, in order.
    again: Vec<u16>,
}

impl Queue {
    /// Begins to serve a ring. `base`: the next request, as QEMU says; with a record, the record counts.
    pub fn start(
        memory: &GuestMemory,
        at: Addresses,
        entries: u16,
        base: u16,
        event_idx: bool,
        record: Option<(&Mapping, u64)>,
    ) -> Result<Self, Broken> {
        let n = u64::from(entries);
        let fits = entries > 0 && entries <= ENTRIES_MAX && entries.is_power_of_two();
        let there = memory.has(at.desc, 16 * usize::from(entries))
            && memory.has(at.avail, (6 + 2 * n) as usize)
            && memory.has(at.used, (6 + 8 * n) as usize);
        if !fits || !there {
            return Err(Broken("its addresses or its size"));
        }
        let used = memory.load_u16(at.used + 2).ok_or(Broken("its used index"))?;
        let mut queue = Self {
            entries,
            at,
            event_idx,
            next_avail: base,
            next_used: used,
            signalled: used,
            record: record.map(|(_, at)| at),
            counter: 1,
            again: Vec::new(),
        };
        if let Some((mapping, at)) = record {
            queue.recover(mapping, at)?;
        }
        Ok(queue)
    }

    fn entry(&self, record: u64, head: u16) -> u64 {
        record + RECORD_HEADER + 16 * u64::from(head)
    }

    /// Takes over what a predecessor left.
    fn recover(&mut self, mapping: &Mapping, record: u64) -> Result<(), Broken> {
        let outside = Broken("the record of requests under way is too short");
        if mapping.load_u16(record + 8).ok_or(outside)? == 0 {
            mapping.store_u16(record + 8, 1);
            mapping.store_u16(record + 10, self.entries);
            mapping.store_u16(record + 14, self.next_used);
            return Ok(());
        }
        let last = mapping.load_u16(record + 12).ok_or(outside)?;
        if mapping.load_u16(record + 14).ok_or(outside)? != self.next_used && last < self.entries {
            mapping.write(self.entry(record, last), &[0]);
            mapping.store_u16(record + 14, self.next_used);
        }
        let mut found: Vec<(u64, u16)> = Vec::new();
        for head in 0..self.entries {
            let mut entry = [0; 16];
            if !mapping.read(self.entry(record, head), &mut entry) {
                return Err(outside);
            }
            if entry[0] == 1 {
                let mut counter = [0; 8];
                counter.copy_from_slice(&entry[8..]);
                found.push((u64::from_le_bytes(counter), head));
            }
        }
        found.sort_unstable();
        self.counter = found.last().map_or(1, |(counter, _)| counter + 1);
        self.next_avail = self.next_used.wrapping_add(u16::try_from(found.len()).unwrap_or(0));
        // The last is taken first.
        self.again = found.into_iter().rev().map(|(_, head)| head).collect();
        Ok(())
    }

    /// The next request that the guest will offer.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Takes the next request; none: nothing is offered, and the guest will kick.
    pub fn take(&mut self, memory: &GuestMemory, record: Option<&Mapping>) -> Result<Option<Chain>, Broken> {
        if let Some(head) = self.again.pop() {
            return self.chain(memory, head).map(Some);
        }
        let n = u64::from(self.entries);
        let offered = |queue: &Self| memory.load_u16(queue.at.avail + 2).ok_or(Broken("its avail index"));
        let mut index = offered(self)?;
        if index == self.next_avail {
            if self.event_idx {
                memory.store_u16(self.at.used + 4 + 8 * n, self.next_avail);
                fence(Ordering::SeqCst);
                index = offered(self)?;
            }
            if index == self.next_avail {
                return Ok(None);
            }
        }
        if index.wrapping_sub(self.next_avail) > self.entries {
            return Err(Broken("it offers more than it has"));
        }
        let slot = u64::from(self.next_avail % self.entries);
        let head = memory.load_u16(self.at.avail + 4 + 2 * slot).ok_or(Broken("its avail ring"))?;
        if head >= self.entries {
            return Err(Broken("it offers a descriptor that it does not have"));
        }
        if let (Some(mapping), Some(at)) = (record, self.record) {
            let entry = self.entry(at, head);
            mapping.write(entry + 8, &self.counter.to_le_bytes());
            mapping.write(entry, &[1]);
            self.counter += 1;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.chain(memory, head).map(Some)
    }

    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let (mut table, mut count, mut index) = (self.at.desc, u32::from(self.entries), u32::from(head));
        let mut left = u32::from(ENTRIES_MAX) * 2;
        let mut indirect = false;
        loop {
            left = left.checked_sub(1).ok_or(Broken("a chain without an end"))?;
            if index >= count {
                return Err(Broken("a descriptor that it does not have"));
            }
            let mut bytes = [0; 16];
            if !memory.read(table + 16 * u64::from(index), &mut bytes) {
                return Err(Broken("descriptors outside its memory"));
            }
            let guest = u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ]);
            let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            let next = u16::from_le_bytes([bytes[14], bytes[15]]);
            if flags & DESCRIPTOR_INDIRECT != 0 {
                if indirect || !len.is_multiple_of(16) || len == 0 || len / 16 > u32::from(ENTRIES_MAX) {
                    return Err(Broken("an indirect table that cannot be one"));
                }
                (table, count, index, indirect) = (guest, len / 16, 0, true);
                continue;
            }
            if !memory.has(guest, len as usize) {
                return Err(Broken("a buffer outside its memory"));
            }
            let segment = Segment { guest, len };
            if flags & DESCRIPTOR_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(Broken("a readable buffer behind a writable one"));
            }
            if flags & DESCRIPTOR_NEXT == 0 {
                return Ok(chain);
            }
            index = u32::from(next);
        }
    }

    /// Answers a request.
    pub fn put(
        &mut self,
        memory: &GuestMemory,
        record: Option<&Mapping>,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        let slot = u64::from(self.next_used % self.entries);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        let outside = Broken("its used ring");
        if !memory.write(self.at.used + 4 + 8 * slot, &element) {
            return Err(outside);
        }
        if let (Some(mapping), Some(at)) = (record, self.record) {
            mapping.store_u16(at + 12, head);
        }
        self.next_used = self.next_used.wrapping_add(1);
        if !memory.store_u16(self.at.used + 2, self.next_used) {
            return Err(outside);
        }
        if let (Some(mapping), Some(at)) = (record, self.record) {
            mapping.write(self.entry(at, head), &[0]);
            mapping.store_u16(at + 14, self.next_used);
        }
        Ok(())
    }

    /// Whether the guest wants to be told of what was answered since it was told last.
    pub fn must_signal(&mut self, memory: &GuestMemory) -> bool {
        let (old, new) = (self.signalled, self.next_used);
        if old == new {
            return false;
        }
        self.signalled = new;
        fence(Ordering::SeqCst);
        if self.event_idx {
            let n = u64::from(self.entries);
            let event = memory.load_u16(self.at.avail + 4 + 2 * n).unwrap_or(old);
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        memory.load_u16(self.at.avail).unwrap_or(0) & AVAIL_NO_INTERRUPT == 0
    }
}
