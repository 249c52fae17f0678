//! Which work may run: jobs that touch the same blocks run in the order in which they came.
//!
//! Pure bookkeeping for a coordinator, which owns it. A job *waits for* every earlier unfinished job that it conflicts
//! with: overlapping blocks, unless both only read; and a barrier waits for every earlier job that changes blocks, while nobody
//! waits for it. So what runs at the same time never conflicts, replicas may finish it in any order, and every
//! replica ends with the same content. Held against a slow oracle by a property test.

use std::collections::BTreeMap;

use crate::ids::{BlockCount, BlockIndex, JobId};

/// Blocks that a job of more than a whole-volume kind may cover at most; bounds the search for overlaps.
pub const MAX_JOB_BLOCKS: u32 = 256;

/// What a job does to which blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads a range of at most [`MAX_JOB_BLOCKS`].
    Read(BlockIndex, BlockCount),
    /// Changes a range of at most [`MAX_JOB_BLOCKS`].
    Change(BlockIndex, BlockCount),
    /// Runs after every earlier change; later jobs do not wait for it (a flush).
    Barrier,
    /// Runs when nothing else does: after everything earlier, before everything later (an operation on the layers).
    Alone,
    /// Runs alone among changes: after every earlier change, before every later one (listing what is dirty).
    Exclusive,
}

impl Access {
    fn conflicts(self, earlier: Access) -> bool {
        use Access::{Alone, Barrier, Change, Exclusive, Read};
        match (self, earlier) {
            (Alone, _) | (_, Alone) => true,
            (_, Barrier) | (Read(..) | Exclusive, Read(..)) | (Barrier, Read(..)) => false,
            (Read(..), Exclusive) | (Barrier, Exclusive) => false,
            (Barrier | Exclusive, Change(..) | Exclusive) | (Change(..), Exclusive) => true,
            (Read(a, n) | Change(a, n), Change(b, m)) | (Change(a, n), Read(b, m)) => overlap(a, n, b, m),
        }
    }

    fn range(self) -> Option<(BlockIndex, BlockCount)> {
        match self {
            Self::Read(start, count) | Self::Change(start, count) => Some((start, count)),
            Self::Barrier | Self::Exclusive | Self::Alone => None,
        }
    }
}

fn overlap(a: BlockIndex, n: BlockCount, b: BlockIndex, m: BlockCount) -> bool {
    a.0 < b.0 + u64::from(m.0) && b.0 < a.0 + u64::from(n.0)
}

#[derive(Debug)]
struct Entry {
    access: Access,
    /// Earlier conflicting jobs that have not finished.
    waits_for: u32,
    /// Later jobs that count this one.
    waiters: Vec<JobId>,
}

/// The unfinished jobs of a volume.
#[derive(Debug, Default)]
pub struct ActiveJobs {
    entries: BTreeMap<JobId, Entry>,
    /// Jobs with a range by their first block.
    ranges: BTreeMap<(BlockIndex, JobId), BlockCount>,
    /// Jobs of the whole volume.
    whole: Vec<JobId>,
}

impl ActiveJobs {
    /// Adds a job, later than all before. True if it may run now.
    pub fn add(&mut self, id: JobId, access: Access) -> bool {
        debug_assert!(self.entries.last_key_value().is_none_or(|(last, _)| *last < id), "jobs come in order");
        let mut earlier: Vec<JobId> = match access.range() {
            Some((start, count)) => {
                debug_assert!(count.0 >= 1 && count.0 <= MAX_JOB_BLOCKS, "a job's range is bounded");
                let from = BlockIndex(start.0.saturating_sub(u64::from(MAX_JOB_BLOCKS) - 1));
                let to = BlockIndex(start.0 + u64::from(count.0));
                let near = self.ranges.range((from, JobId(0))..(to, JobId(0))).map(|((_, job), _)| *job);
                near.chain(self.whole.iter().copied()).collect()
            }
            None => self.entries.keys().copied().collect(),
        };
        earlier.retain(|job| access.conflicts(self.entries[job].access));
        for job in &earlier {
            if let Some(entry) = self.entries.get_mut(job) {
                entry.waiters.push(id);
            }
        }
        let waits_for = u32::try_from(earlier.len()).unwrap_or(u32::MAX);
        self.entries.insert(id, Entry { access, waits_for, waiters: Vec::new() });
        match access.range() {
            Some((start, count)) => drop(self.ranges.insert((start, id), count)),
            None => self.whole.push(id),
        }
        waits_for == 0
    }

    /// Removes a finished job; `ready` gets the jobs that may run now because of it.
    pub fn finish(&mut self, id: JobId, ready: &mut Vec<JobId>) {
        let Some(entry) = self.entries.remove(&id) else { return };
        match entry.access.range() {
            Some((start, _)) => drop(self.ranges.remove(&(start, id))),
            None => self.whole.retain(|job| *job != id),
        }
        for waiter in entry.waiters {
            if let Some(later) = self.entries.get_mut(&waiter) {
                later.waits_for -= 1;
                if later.waits_for == 0 {
                    ready.push(waiter);
                }
            }
        }
    }

    /// Number of unfinished jobs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is unfinished.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The rule said again, block by block and without any cleverness.
    #[derive(Default)]
    struct Oracle(Vec<(JobId, Access, BTreeSet<JobId>)>);

    fn blocks(access: Access) -> BTreeSet<u64> {
        access
            .range()
            .map(|(start, count)| (start.0..start.0 + u64::from(count.0)).collect())
            .unwrap_or_default()
    }

    fn changes(access: Access) -> bool {
        matches!(access, Access::Change(..) | Access::Exclusive)
    }

    impl Oracle {
        fn add(&mut self, id: JobId, access: Access) -> bool {
            let before = self.0.iter().filter(|(_, earlier, _)| match (access, *earlier) {
                (Access::Alone, _) | (_, Access::Alone) => true,
                (_, Access::Barrier) => false,
                (Access::Barrier | Access::Exclusive, earlier) => {
                    changes(earlier) && !(access == Access::Barrier && earlier == Access::Exclusive)
                }
                (later, Access::Exclusive) => changes(later),
                (later, earlier) => {
                    (changes(later) || changes(earlier)) && !blocks(later).is_disjoint(&blocks(earlier))
                }
            });
            let before: BTreeSet<JobId> = before.map(|(job, ..)| *job).collect();
            let ready = before.is_empty();
            self.0.push((id, access, before));
            ready
        }

        fn finish(&mut self, id: JobId) -> BTreeSet<JobId> {
            self.0.retain(|(job, ..)| *job != id);
            let mut ready = BTreeSet::new();
            for (job, _, before) in &mut self.0 {
                if before.remove(&id) && before.is_empty() {
                    ready.insert(*job);
                }
            }
            ready
        }
    }

    fn access() -> impl Strategy<Value = Access> {
        let range = || (0u64..600, 1u32..=MAX_JOB_BLOCKS).prop_map(|(s, n)| (BlockIndex(s), BlockCount(n)));
        let near = || (0u64..24, 1u32..6).prop_map(|(s, n)| (BlockIndex(s), BlockCount(n)));
        prop_oneof![
            4 => near().prop_map(|(s, n)| Access::Read(s, n)),
            6 => near().prop_map(|(s, n)| Access::Change(s, n)),
            1 => range().prop_map(|(s, n)| Access::Read(s, n)),
            1 => range().prop_map(|(s, n)| Access::Change(s, n)),
            1 => Just(Access::Barrier),
            1 => Just(Access::Exclusive),
            1 => Just(Access::Alone),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(steps in prop::collection::vec((access(), any::<prop::sample::Index>(), 0u8..3), 1..80)) {
            let (mut jobs, mut oracle) = (ActiveJobs::default(), Oracle::default());
            let mut running: BTreeSet<JobId> = BTreeSet::new();
            for (id, (access, pick, finish)) in (1u64..).map(JobId).zip(steps) {
                let may_run = oracle.add(id, access);
                prop_assert_eq!(jobs.add(id, access), may_run);
                if may_run {
                    running.insert(id);
                }
                for _ in 0..finish {
                    if running.is_empty() { break; }
                    let id = *running.iter().nth(pick.index(running.len())).expect("not empty");
                    running.remove(&id);
                    let mut ready = vec![];
                    jobs.finish(id, &mut ready);
                    let ready: BTreeSet<JobId> = ready.into_iter().collect();
                    prop_assert_eq!(&ready, &oracle.finish(id));
                    running.extend(ready);
                }
                prop_assert_eq!(jobs.len(), oracle.0.len());
            }
            // Whatever is left can always be finished: nothing waits for itself.
            while let Some(id) = running.pop_first() {
                let mut ready = vec![];
                jobs.finish(id, &mut ready);
                running.extend(ready);
            }
            prop_assert!(jobs.is_empty() && jobs.ranges.is_empty() && jobs.whole.is_empty());
        }
    }
}
