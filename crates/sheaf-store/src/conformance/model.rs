//! The oracle of the property tests: a store so simple that it is right by inspection. It keeps every revision.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Change, Entry, Result, Revision, StoreError};

/// All states that the store has been in.
#[derive(Debug, Clone)]
pub struct Model {
    first: u64,
    oldest: Revision,
    /// The state at revision `first + index`.
    states: Vec<BTreeMap<String, Entry>>,
}

impl Model {
    /// An empty store whose revision is `first`.
    pub fn new(first: Revision) -> Self {
        Model { first: first.0, oldest: Revision(0), states: vec![BTreeMap::new()] }
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        Revision(self.first + self.states.len() as u64 - 1)
    }

    fn now(&self) -> &BTreeMap<String, Entry> {
        &self.states[self.states.len() - 1]
    }

    /// The state at `at` (0 = now).
    pub fn at(&self, at: Revision) -> Result<&BTreeMap<String, Entry>> {
        let current = self.revision();
        if at == Revision(0) {
            return Ok(self.now());
        }
        if at > current {
            return Err(StoreError::Future { asked: at, current });
        }
        if at < self.oldest {
            return Err(StoreError::Compacted { asked: at, oldest: self.oldest });
        }
        // Revisions before the first one show the empty store, too.
        Ok(&self.states[at.0.saturating_sub(self.first) as usize])
    }

    /// As [`crate::Store::create`].
    pub fn create(&mut self, key: &str, value: Bytes) -> Result<Entry> {
        if self.now().contains_key(key) {
            return Err(StoreError::Exists(key.to_owned()));
        }
        let at = Revision(self.revision().0 + 1);
        Ok(self.put(Entry { key: key.to_owned(), value, created: at, modified: at }))
    }

    /// As [`crate::Store::update`].
    pub fn update(&mut self, key: &str, expected: Revision, value: Bytes) -> Result<Entry> {
        let created = self.expect(key, expected)?.created;
        let modified = Revision(self.revision().0 + 1);
        Ok(self.put(Entry { key: key.to_owned(), value, created, modified }))
    }

    /// As [`crate::Store::delete`].
    pub fn delete(&mut self, key: &str, expected: Revision) -> Result<Revision> {
        self.expect(key, expected)?;
        let mut state = self.now().clone();
        state.remove(key);
        self.states.push(state);
        Ok(self.revision())
    }

    fn expect(&self, key: &str, expected: Revision) -> Result<&Entry> {
        let current = self.now().get(key);
        current.filter(|e| e.modified == expected).ok_or_else(|| StoreError::Conflict(current.cloned()))
    }

    fn put(&mut self, entry: Entry) -> Entry {
        let mut state = self.now().clone();
        state.insert(entry.key.clone(), entry.clone());
        self.states.push(state);
        entry
    }

    /// As [`crate::Store::compact`].
    pub fn compact(&mut self, before: Revision) -> Result<()> {
        let current = self.revision();
        if before > current {
            return Err(StoreError::Future { asked: before, current });
        }
        self.oldest = self.oldest.max(before);
        Ok(())
    }

    /// The changes under `prefix` after `from`, by comparing states.
    pub fn changes(&self, prefix: &str, from: Revision) -> Result<Vec<Change>> {
        self.at(from)?;
        let skip = from.0.saturating_sub(self.first) as usize;
        let mut changes = Vec::new();
        for (index, pair) in self.states.windows(2).enumerate().skip(skip) {
            let at = Revision(self.first + index as u64 + 1);
            let (before, after) = (&pair[0], &pair[1]);
            let put = after.values().find(|e| e.modified == at);
            let change = match put {
                Some(entry) => {
                    Change::Put { entry: entry.clone(), previous: before.get(&entry.key).cloned() }
                }
                None => match before.values().find(|e| !after.contains_key(&e.key)) {
                    Some(previous) => Change::Delete { previous: previous.clone(), at },
                    None => continue,
                },
            };
            if change.key().starts_with(prefix) {
                changes.push(change);
            }
        }
        Ok(changes)
    }
}
