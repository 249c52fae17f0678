//! What was written last, by key: what a group has acknowledged, or is about to, before it is in the rows; and who updates or deletes a key
//! often wrote it a moment ago, so that SQLite need not be asked what is there.
//!
//! The values are those that the log got and the watch cache keeps, so that remembering them copies nothing. Between groups it is bounded in
//! number and bytes; the oldest goes first. Only the keeper has it, and forgets all of it when something fails: it may know what never came to be.

use std::collections::{HashMap, VecDeque};

use crate::{Change, Entry, Revision};

/// Keys that are remembered, and the bytes of their values.
const MOST: usize = 512;
const MOST_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Recent {
    known: HashMap<String, Known>,
    /// In the order of writing; has those, too, that were written again since.
    order: VecDeque<(String, Revision)>,
    bytes: usize,
}

struct Known {
    at: Revision,
    /// `None`: it was deleted.
    entry: Option<Entry>,
}

impl Known {
    fn bytes(&self) -> usize {
        self.entry.as_ref().map_or(0, |entry| entry.value.len())
    }
}

impl Recent {
    /// What is under a key, if that was written lately.
    pub(super) fn get(&self, key: &str) -> Option<Option<&Entry>> {
        self.known.get(key).map(|known| known.entry.as_ref())
    }

    /// Remembers what a change leaves behind.
    pub(super) fn note(&mut self, change: &Change) {
        let entry = match change {
            Change::Put { entry, .. } => Some(entry.clone()),
            Change::Delete { .. } => None,
        };
        let (key, at) = (change.key().to_owned(), change.revision());
        let known = Known { at, entry };
        self.bytes += known.bytes();
        self.order.push_back((key.clone(), at));
        if let Some(before) = self.known.insert(key, known) {
            self.bytes -= before.bytes();
        }
    }

    /// Forgets what is too much. All that is remembered must be in the rows.
    pub(super) fn trim(&mut self) {
        while self.known.len() > MOST || self.bytes > MOST_BYTES || self.order.len() > 2 * MOST {
            let Some((oldest, at)) = self.order.pop_front() else { break };
            if self.known.get(&oldest).is_some_and(|known| known.at == at) {
                self.bytes -= self.known.remove(&oldest).map_or(0, |known| known.bytes());
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Recent::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use super::*;

    fn put(recent: &mut Recent, key: &str, at: u64, bytes: usize) {
        let (key, value) = (key.to_owned(), Bytes::from(vec![7; bytes]));
        let entry = Entry { key, value, created: Revision(1), modified: Revision(at) };
        recent.note(&Change::Put { entry, previous: None });
    }

    #[test]
    fn the_newest_is_known_and_that_a_key_is_gone() {
        let mut recent = Recent::default();
        put(&mut recent, "/a", 2, 10);
        put(&mut recent, "/a", 3, 20);
        let previous = recent.get("/a").unwrap().unwrap().clone();
        assert_eq!((previous.modified, recent.bytes), (Revision(3), 20));
        recent.note(&Change::Delete { previous, at: Revision(4) });
        assert!(recent.get("/a").unwrap().is_none() && recent.bytes == 0);
        assert!(recent.get("/b").is_none(), "SQLite has to be asked");
    }

    #[test]
    fn a_group_is_known_whole_and_trimmed_when_it_is_in_the_rows() {
        let mut recent = Recent::default();
        (0..2000).for_each(|n| put(&mut recent, &format!("/{n}"), n, 1));
        assert!((0..2000).all(|n| recent.get(&format!("/{n}")).is_some()));
        recent.trim();
        assert_eq!((recent.known.len(), recent.bytes), (MOST, MOST));
        assert!(recent.get("/1999").is_some() && recent.get("/100").is_none());
        // The same few keys again and again.
        for n in 2000..9000 {
            put(&mut recent, &format!("/{}", n % 8), n, 1);
            recent.trim();
        }
        assert!(recent.order.len() <= 2 * MOST && recent.get("/7").is_some());
        put(&mut recent, "/large", 9000, MOST_BYTES / 2);
        put(&mut recent, "/too large", 9001, MOST_BYTES + 1);
        recent.trim();
        assert_eq!((recent.known.len(), recent.bytes), (0, 0));
    }
}
