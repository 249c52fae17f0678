//! The guest of the simulator: it knows, for every sector, what a read may return.

use std::collections::BTreeMap;

use crate::ids::{SECTOR_BYTES, Token};

/// One sector's history: each write has a number, and fills its sectors with it.
#[derive(Clone, Debug, Default)]
struct Sector {
    /// The newest write known to be there.
    current: u64,
    /// Later writes whose end is not known: on their way, failed, or of a coordinator that is gone.
    maybe: Vec<u64>,
}

/// What is on its way.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Read { first: u64, count: u64 },
    Write { first: u64, count: u64, id: u64 },
    Flush,
}

/// The guest's memory.
#[derive(Debug)]
pub(super) struct Guest {
    sectors: Vec<Sector>,
    pub(super) asked: BTreeMap<Token, Asked>,
    next: u64,
    pub(super) acknowledged: u64,
    pub(super) read: u64,
    pub(super) failed: u64,
}

impl Guest {
    pub(super) fn new(sectors: u64) -> Self {
        let sectors = (0..sectors).map(|_| Sector::default()).collect();
        Self { sectors, asked: BTreeMap::new(), next: 0, acknowledged: 0, read: 0, failed: 0 }
    }

    pub(super) fn token(&mut self) -> Token {
        self.next += 1;
        Token(self.next)
    }

    fn overlaps(&self, first: u64, count: u64, writes_only: bool) -> bool {
        self.asked.values().any(|asked| match asked {
            Asked::Read { first: f, count: c } => !writes_only && first < f + c && *f < first + count,
            Asked::Write { first: f, count: c, .. } => first < f + c && *f < first + count,
            Asked::Flush => false,
        })
    }

    /// A read is only checked where nobody writes at the same time.
    pub(super) fn may_read(&self, first: u64, count: u64) -> bool {
        !self.overlaps(first, count, true)
    }

    /// Writes may overlap writes (the later one wins), not reads.
    pub(super) fn may_write(&self, first: u64, count: u64) -> bool {
        !self.asked.values().any(|asked| {
            matches!(asked, Asked::Read { first: f, count: c } if first < f + c && *f < first + count)
        })
    }

    /// Begins a write (`zero`: of zeroes, which read as write 0 does); returns its number.
    pub(super) fn write(&mut self, token: Token, first: u64, count: u64) -> u64 {
        let id = token.0;
        for sector in &mut self.sectors[first as usize..(first + count) as usize] {
            sector.maybe.push(id);
        }
        self.asked.insert(token, Asked::Write { first, count, id });
        id
    }

    /// An answer came. An error text is a violation.
    pub(super) fn complete(&mut self, token: Token, ok: bool, data: Option<&[u8]>) -> Result<(), String> {
        let Some(asked) = self.asked.remove(&token) else {
            return Err(format!("{token:?} was answered twice"));
        };
        if !ok {
            self.failed += 1;
            return Ok(());
        }
        match asked {
            Asked::Flush => {}
            Asked::Write { first, count, id } => {
                self.acknowledged += 1;
                for sector in &mut self.sectors[first as usize..(first + count) as usize] {
                    sector.current = sector.current.max(id);
                    let current = sector.current;
                    sector.maybe.retain(|maybe| *maybe > current);
                }
            }
            Asked::Read { first, count } => {
                self.read += 1;
                let data = data.ok_or("a read was answered without data")?;
                self.see(first, count, data)?;
            }
        }
        Ok(())
    }

    /// Content was read: legal, and from now on the truth.
    pub(super) fn see(&mut self, first: u64, count: u64, data: &[u8]) -> Result<(), String> {
        for (at, chunk) in (first..first + count).zip(data.chunks(SECTOR_BYTES as usize)) {
            let mut words = chunk.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            let seen = words.next().unwrap_or_default();
            let sector = &mut self.sectors[at as usize];
            if !words.all(|word| word == seen) {
                return Err(format!("sector {at} is torn: begins with write {seen}"));
            }
            if seen != sector.current && !sector.maybe.contains(&seen) {
                return Err(format!(
                    "sector {at} has write {seen}; it should have {} or one of {:?}",
                    sector.current, sector.maybe
                ));
            }
            sector.current = seen;
            sector.maybe.clear();
        }
        Ok(())
    }
}
