//! Where the parts are of what is on its way through the store to the watch cache, so that the cache need not look for them.
//!
//! Known by the allocation, which is kept here and so is nobody else's meanwhile. Bounded: what does not come (a write that the
//! store refused, a kind that nobody has listed) is pushed out by what follows. Owns its queue.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{object::Encoded, raw::Parts};

/// Writes that are followed, and the largest of them.
const MOST: usize = 64;
const LARGEST: usize = 32 * 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Underway(Mutex<VecDeque<(Bytes, Parts)>>);

impl Underway {
    /// Remembers what is given to the store.
    pub(super) fn put(&self, encoded: &Encoded) {
        let Some(parts) = encoded.parts.filter(|_| encoded.bytes.len() <= LARGEST) else { return };
        let mut queue = self.lock();
        if queue.len() >= MOST {
            queue.pop_front();
        }
        queue.push_back((encoded.bytes.clone(), parts));
    }

    /// The parts of what came from the store, if it was given to it a moment ago.
    pub(super) fn take(&self, bytes: &Bytes) -> Option<Parts> {
        let mut queue = self.lock();
        let same = |(ours, _): &(Bytes, Parts)| ours.as_ptr() == bytes.as_ptr() && ours.len() == bytes.len();
        let at = queue.iter().position(same)?;
        queue.remove(at).map(|(_, parts)| parts)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Bytes, Parts)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
