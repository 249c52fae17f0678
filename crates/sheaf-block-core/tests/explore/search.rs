//! Depth-first search over all states, each visited once. States are remembered by a 128-bit fingerprint.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::world::{Bounds, Durable, World};

/// What was visited.
#[derive(Default, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) durable: usize,
    pub(crate) attaches: usize,
}

pub(crate) enum Found {
    Nothing(Count),
    Violation { what: String, trace: Vec<String> },
}

/// A fast multiplicative hash, seeded; two of them make a fingerprint.
#[derive(Default)]
struct Mix(u64);
impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word) | 0x100);
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

fn fingerprint<T: Hash>(value: &T) -> u128 {
    let (mut a, mut b) = (Mix(0x1234_5678_9abc_def1), Mix(0xfedc_ba98_7654_3211));
    value.hash(&mut a);
    value.hash(&mut b);
    (u128::from(a.finish()) << 64) | u128::from(b.finish())
}

type Seen = HashSet<u128, BuildHasherDefault<Mix128>>;
/// Fingerprints are random already.
#[derive(Default)]
struct Mix128(u64);
impl Hasher for Mix128 {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            self.0 ^= u64::from(*byte) << (8 * (at % 8));
        }
    }
}

/// Visits every state within `bounds`.
pub(crate) fn explore(bounds: Bounds) -> Found {
    let mut count = Count::default();
    let (mut seen, mut durable) = (Seen::default(), Seen::default());
    let start = World::new(bounds);
    seen.insert(fingerprint(&start));
    // Each level: the state, and its steps that are still to be taken.
    let mut path: Vec<(World, Vec<crate::world::Step>)> = vec![];
    let steps = start.steps();
    path.push((start, steps));
    let trace = |path: &[(World, Vec<crate::world::Step>)], last: &str| {
        let mut lines: Vec<String> = path.iter().map(|(world, _)| world.last.clone()).collect();
        lines.push(last.to_owned());
        lines
    };
    while let Some((world, todo)) = path.last_mut() {
        let Some(step) = todo.pop() else {
            path.pop();
            continue;
        };
        count.steps += 1;
        let mut next = world.clone();
        if let Err(what) = next.take(step) {
            return Found::Violation { what, trace: trace(&path, &format!("{step:?}")) };
        }
        if !seen.insert(fingerprint(&next)) {
            continue;
        }
        count.states += 1;
        let state = Durable::of(&next);
        if durable.insert(fingerprint(&state)) {
            count.durable += 1;
            match state.attach_from_everywhere() {
                Ok(attaches) => count.attaches += attaches,
                Err(what) => return Found::Violation { what, trace: trace(&path, &format!("{step:?}")) },
            }
        }
        let steps = next.steps();
        path.push((next, steps));
    }
    Found::Nothing(count)
}

/// Walks at random, for flaws that sit deep: `walks` times from the start until nothing is left to do.
pub(crate) fn wander(bounds: Bounds, walks: u64) -> Found {
    let mut count = Count::default();
    let mut seen = Seen::default();
    for walk in 0..walks {
        let mut dice = walk.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut world = World::new(bounds);
        let mut trace = vec![];
        for _ in 0..80 {
            let steps = world.steps();
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let Some(step) = steps.get((dice % steps.len().max(1) as u64) as usize) else { break };
            let taken = world.take(*step);
            trace.push(world.last.clone());
            count.steps += 1;
            let state = Durable::of(&world);
            let checked = taken.and_then(|()| match seen.insert(fingerprint(&state)) {
                true => state.attach_from_everywhere().map(drop),
                false => Ok(()),
            });
            if let Err(what) = checked {
                return Found::Violation { what, trace };
            }
        }
    }
    Found::Nothing(count)
}
