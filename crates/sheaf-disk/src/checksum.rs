//! Checksums of snapshots, recorded as Longhorn does: CRC-64 of a layer's file with its holes as zeros, beside the
//! file's ctime. Made in steps by whoever reads the bytes at rest; a record is only believed while the ctime is the same.

use std::sync::Arc;

use crate::crc64::Crc64;
use crate::fs::{Dir, File, Result, replace};
use crate::meta::{ChecksumRecord, META_BYTES_MAX, go_time, rfc3339};
use crate::names;
use crate::replica::ReplicaDir;

const CHUNK: usize = 1 << 20;

/// A checksum under way.
#[derive(Debug)]
pub struct Hashing<F> {
    image: String,
    file: Arc<F>,
    crc: Crc64,
    cursor: u64,
    end: u64,
    buffer: Vec<u8>,
}

/// What a record says of a snapshot now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// There is none, or it cannot be read.
    None,
    /// The file has changed since.
    Stale,
    /// Sixteen hexadecimal digits.
    Valid(String),
}

impl<D: Dir> ReplicaDir<D> {
    /// Begins to hash a snapshot's layer.
    pub fn hash(&self, snapshot: &str) -> Result<Hashing<D::File>> {
        let image = names::snapshot(snapshot);
        if !self.tree.images.contains_key(&image) {
            return self.refuse(format!("there is no snapshot {snapshot}"));
        }
        let file = self.dir.open(&image, false)?;
        let end = file.len()?;
        Ok(Hashing { image, file: Arc::new(file), crc: Crc64::default(), cursor: 0, end, buffer: Vec::new() })
    }

    /// Ends it: writes the record and returns the checksum. `silently`: an earlier, valid record said otherwise.
    pub fn record_checksum(&self, hashing: Hashing<D::File>, now: i64) -> Result<(String, bool)> {
        let checksum = format!("{:016x}", hashing.crc.finish());
        let snapshot = names::snapshot_of(&hashing.image).unwrap_or_default();
        let silently = matches!(self.recorded(snapshot)?, Recorded::Valid(before) if before != checksum);
        let (seconds, nanos) = hashing.file.stat()?.changed;
        let record = ChecksumRecord {
            method: "crc64".into(),
            checksum: checksum.clone(),
            change_time: go_time(seconds, nanos),
            last_hashed_at: rfc3339(now),
            silently_corrupted: silently,
            ..ChecksumRecord::default()
        };
        replace(&self.dir, &names::checksum_of(&hashing.image), &record.encode())?;
        Ok((checksum, silently))
    }

    /// What is recorded of a snapshot.
    pub fn recorded(&self, snapshot: &str) -> Result<Recorded> {
        let image = names::snapshot(snapshot);
        let Some(bytes) = self.dir.read(&names::checksum_of(&image), META_BYTES_MAX)? else {
            return Ok(Recorded::None);
        };
        let Ok(record) = ChecksumRecord::decode(&bytes) else { return Ok(Recorded::None) };
        let Some(stat) = self.dir.stat(&image)? else { return Ok(Recorded::None) };
        let (seconds, nanos) = stat.changed;
        let valid = record.method == "crc64" && record.change_time == go_time(seconds, nanos);
        Ok(if valid { Recorded::Valid(record.checksum) } else { Recorded::Stale })
    }
}

impl<F: File> Hashing<F> {
    /// Reads about `budget` bytes more. True when it is done.
    pub fn step(&mut self, budget: u64) -> Result<bool> {
        let mut left = budget.max(CHUNK as u64);
        while self.cursor < self.end && left > 0 {
            let extent = self.file.extents(self.cursor, self.end - self.cursor, 1)?.first().copied();
            let data = extent.map_or(self.end, |extent| extent.start.max(self.cursor));
            self.crc.zeros(data - self.cursor);
            self.cursor = data;
            let Some(extent) = extent else { break };
            let stop = (extent.start + extent.len).min(self.end).min(self.cursor + CHUNK as u64);
            let len = stop - self.cursor;
            if extent.unwritten {
                self.crc.zeros(len);
            } else {
                self.buffer.resize(len as usize, 0);
                self.file.read_at(self.cursor, &mut self.buffer)?;
                self.crc.update(&self.buffer);
            }
            self.cursor = stop;
            left = left.saturating_sub(len);
        }
        Ok(self.cursor >= self.end)
    }
}
