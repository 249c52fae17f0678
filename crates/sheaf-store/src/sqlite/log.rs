//! The log: what was acknowledged and may not be on the disk in the database yet.
//!
//! A group of writes is appended and synced, then answered; the rows go to the database in larger transactions that nobody waits for.
//! There are two files beside the database, used in turns: while one fills, what the other holds becomes durable in the database, and
//! then it is written over from its start. Their blocks are reserved, so that neither a full disk nor the file system's own
//! journal comes into an append.
//!
//! A file is a chain of records. All numbers are little endian:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | CRC-32C of the rest of the record |
//! | 4..8 | length of the record, with these 24 bytes |
//! | 8..16 | salt: a random number of this use of the file; what an earlier use left behind has another one |
//! | 16..24 | revision before the first row; the rows' own follow one by one |
//! | then, for each row | length of its key (4), of its value (4; `ff ff ff ff`: a deletion), `created` (8), `previous` (8), key, value |
//!
//! The chain ends where a record is torn, has another salt, or does not begin where the one before it ended. What was acknowledged was synced, so
//! nothing acknowledged can stand after a torn record.
//!
//! Owns the two files. Not here: the database, and when a file is free again.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::Revision;

/// A file with so many rows is full, however small they are: with this the room that their pages need is bounded (see `room.rs`).
const FILE_ROWS: usize = 1024;
/// Rows are encoded up to so many bytes before they are written: memory, and the length of a record.
const RECORD_BYTES: usize = 256 << 10;
const HEADER: usize = 24;
const ROW: usize = 24;
/// Instead of a value's length.
const NO_VALUE: u32 = u32::MAX;

/// A row of the history without its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key that was written.
    pub key: &'a str,
    /// The revision that created the key; 0: this row is a deletion.
    pub created: Revision,
    /// The revision before; 0: none.
    pub previous: Revision,
    /// `None` in a deletion.
    pub value: Option<&'a [u8]>,
}

/// What one file holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// The revision before the first row.
    pub after: Revision,
    /// The first has the revision `after` + 1, and so on.
    pub rows: Vec<Row<'a>>,
}

/// A record's sum is right, and its content makes no sense: it was not written by this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record at byte {0} of the log has a right sum and a content that makes no sense")]
pub struct Malformed(pub usize);

/// Reads a file's content. `None`: it holds no record.
pub fn read(bytes: &[u8]) -> Result<Option<Chain<'_>>, Malformed> {
    let mut chain: Option<(u64, Chain<'_>)> = None;
    let mut at = 0;
    while let Some((salt, after, body, length)) = bytes.get(at..).and_then(record) {
        let (_, chain) = match &mut chain {
            Some((own, chain))
                if *own != salt || Revision(chain.after.0 + chain.rows.len() as u64) != after =>
            {
                break;
            }
            Some(chain) => chain,
            none => none.insert((salt, Chain { after, rows: Vec::new() })),
        };
        let mut rest = body;
        while !rest.is_empty() {
            let (row, left) = row(rest).ok_or(Malformed(at))?;
            chain.rows.push(row);
            rest = left;
        }
        at += length;
    }
    Ok(chain.map(|(_, chain)| chain))
}

/// Salt, revision before, rows and length of the record at the start of `bytes`, if there is a whole one.
fn record(bytes: &[u8]) -> Option<(u64, Revision, &[u8], usize)> {
    let sum = u32::from_le_bytes(*bytes.first_chunk()?);
    let length = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
    let rest = bytes.get(4..length).filter(|_| length > HEADER)?;
    if crc32c::crc32c(rest) != sum {
        return None;
    }
    let salt = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    let after = u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
    // Room for the revisions of as many rows as there can be.
    after.checked_add(length as u64)?;
    Some((salt, Revision(after), bytes.get(HEADER..length)?, length))
}

fn row(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(ROW)?;
    let number = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let length = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let (key, rest) = rest.split_at_checked(length(0)? as usize)?;
    let (value, rest) = match length(4)? {
        NO_VALUE => (None, rest),
        length => rest.split_at_checked(length as usize).map(|(value, rest)| (Some(value), rest))?,
    };
    let (created, previous) = (Revision(number(8)?), Revision(number(16)?));
    let row = Row { key: std::str::from_utf8(key).ok()?, created, previous, value };
    (value.is_some() == (created != Revision(0))).then_some((row, rest))
}

/// A record in the making.
fn begin(buffer: &mut Vec<u8>, salt: u64, after: Revision) {
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&salt.to_le_bytes());
    buffer.extend_from_slice(&after.0.to_le_bytes());
}

fn add(buffer: &mut Vec<u8>, row: &Row<'_>) {
    // Lengths fit: keys and values are bounded far below 4 GiB.
    let value = row.value.map_or(NO_VALUE, |value| value.len() as u32);
    buffer.extend_from_slice(&(row.key.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&value.to_le_bytes());
    buffer.extend_from_slice(&row.created.0.to_le_bytes());
    buffer.extend_from_slice(&row.previous.0.to_le_bytes());
    buffer.extend_from_slice(row.key.as_bytes());
    buffer.extend_from_slice(row.value.unwrap_or_default());
}

fn finish(buffer: &mut [u8]) {
    let length = (buffer.len() as u32).to_le_bytes();
    buffer[4..8].copy_from_slice(&length);
    let sum = crc32c::crc32c(&buffer[4..]).to_le_bytes();
    buffer[..4].copy_from_slice(&sum);
}

/// The two files, one of which is written.
pub(super) struct Log {
    files: [Half; 2],
    /// Length of a file; a single append may make it longer for a while.
    bytes: u64,
    at: usize,
    salt: u64,
    /// Where the next record begins.
    end: u64,
    rows: usize,
    buffer: Vec<u8>,
}

struct Half {
    file: File,
    /// The last revision in it.
    through: Revision,
}

/// Where the two files of the database at `path` are.
fn paths(path: &Path) -> [PathBuf; 2] {
    [".log0", ".log1"].map(|end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        name.into()
    })
}

impl Log {
    /// Opens the files, which are made if they are absent. Nothing may be appended before [`Log::clear`].
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            reserve(&file, bytes)?;
            Ok::<_, io::Error>(Half { file, through: Revision(0) })
        };
        let [first, second] = paths(path);
        let files = [open(&first)?, open(&second)?];
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(Log { files, bytes, at: 0, salt: salt(), end: 0, rows: 0, buffer: Vec::new() })
    }

    /// What the files hold: for [`read`].
    pub(super) fn contents(&self) -> io::Result<[Vec<u8>; 2]> {
        let content = |half: &Half| {
            let mut first = [0; HEADER];
            half.file.read_exact_at(&mut first, 0)?;
            if first == [0; HEADER] {
                return Ok(Vec::new());
            }
            let mut bytes = vec![0; usize::try_from(half.file.metadata()?.len()).map_err(io::Error::other)?];
            half.file.read_exact_at(&mut bytes, 0)?;
            Ok::<_, io::Error>(bytes)
        };
        Ok([content(&self.files[0])?, content(&self.files[1])?])
    }

    /// Forgets everything. All that was acknowledged must be durable in the database.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        for half in &self.files {
            // Without a first record there is no chain.
            half.file.write_all_at(&[0; HEADER], 0)?;
            half.file.sync_data()?;
        }
        (self.at, self.salt, self.end, self.rows) = (0, salt(), 0, 0);
        Ok(())
    }

    /// Appends rows whose revisions follow `after`, and waits until they are on the disk. After an error it is unknown what of them is, and nothing
    /// more may be appended before [`Log::clear`].
    pub(super) fn append<'a>(
        &mut self,
        after: Revision,
        rows: impl Iterator<Item = Row<'a>>,
    ) -> io::Result<()> {
        let (mut at, mut end) = (after, self.end);
        let half = &mut self.files[self.at];
        let buffer = &mut self.buffer;
        let mut write = |buffer: &mut Vec<u8>| {
            finish(buffer);
            half.file.write_all_at(buffer, end)?;
            end += buffer.len() as u64;
            buffer.clear();
            // One large value is no reason to keep its memory.
            buffer.shrink_to(RECORD_BYTES);
            Ok::<_, io::Error>(())
        };
        buffer.clear();
        for row in rows {
            if buffer.is_empty() {
                begin(buffer, self.salt, at);
            }
            add(buffer, &row);
            at.0 += 1;
            if buffer.len() >= RECORD_BYTES {
                write(buffer)?;
            }
        }
        if !buffer.is_empty() {
            write(buffer)?;
        }
        if at == after {
            return Ok(());
        }
        half.file.sync_data()?;
        half.through = at;
        self.rows += usize::try_from(at.0 - after.0).unwrap_or(usize::MAX);
        self.end = end;
        Ok(())
    }

    /// The file has what it may have: [`Log::turn`] before the next append.
    pub(super) fn is_full(&self) -> bool {
        self.end >= self.bytes / 8 * 7 || self.rows >= FILE_ROWS
    }

    /// How far the database must be durable before [`Log::turn`].
    pub(super) fn other(&self) -> Revision {
        self.files[1 - self.at].through
    }

    /// Goes on in the other file, whose content is forgotten.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.at = 1 - self.at;
        (self.salt, self.end, self.rows) = (salt(), 0, 0);
        let half = &self.files[self.at];
        if half.file.metadata()?.len() > self.bytes {
            half.file.set_len(self.bytes)?;
        }
        Ok(())
    }
}

/// Makes a new file as long as it will be, with its blocks.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() >= bytes {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // The blocks come with the first use then.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        Err(error) => Err(error.into()),
    }
}

/// Nobody who writes values can know it in advance, so that no value can pass for a record. The standard library's hash keys are
/// random.
fn salt() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    type Owned = (String, u64, u64, Option<Vec<u8>>);

    fn of(row: &Owned) -> Row<'_> {
        let (key, created, previous, value) = row;
        let created = if value.is_some() { created + 1 } else { 0 };
        Row { key, created: Revision(created), previous: Revision(*previous), value: value.as_deref() }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
        ("[a-z/\u{e9}]{0,40}", 0..u64::MAX, any::<u64>(), value)
    }

    fn log(bytes: u64) -> (tempfile::TempDir, Log) {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(&directory.path().join("x"), bytes).unwrap();
        (directory, log)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_appended_is_read_and_what_is_torn_ends_it(
            groups in proptest::collection::vec(proptest::collection::vec(owned(), 1..8), 1..8),
            after in 0..u64::MAX / 2,
            torn in any::<prop::sample::Index>(),
        ) {
            let (_directory, mut log) = log(1 << 20);
            let mut at = Revision(after);
            // How many rows are whole from which byte on.
            let mut ends = Vec::new();
            for group in &groups {
                log.append(at, group.iter().map(of)).unwrap();
                at.0 += group.len() as u64;
                ends.push((log.end as usize, (at.0 - after) as usize));
            }
            let rows: Vec<_> = groups.iter().flatten().map(of).collect();
            let [mut first, second] = log.contents().unwrap();
            prop_assert_eq!(read(&second), Ok(None));
            prop_assert_eq!(read(&first), Ok(Some(Chain { after: Revision(after), rows: rows.clone() })));
            let torn = torn.index(log.end as usize);
            first[torn] ^= 0x10;
            let whole = ends.iter().take_while(|(end, _)| *end <= torn).last().map_or(0, |(_, rows)| *rows);
            let chain = read(&first).unwrap();
            prop_assert_eq!(chain.map_or_else(Vec::new, |chain| chain.rows), &rows[..whole]);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400), sum in any::<bool>()) {
            let mut bytes = bytes;
            if sum && bytes.len() > HEADER {
                bytes[16..24].fill(0);
                finish(&mut bytes);
            }
            let _ = read(&bytes);
        }
    }

    #[test]
    fn what_an_earlier_use_left_behind_is_not_read() {
        let (_directory, mut log) = log(1 << 20);
        let long = ("/long".to_owned(), 0, 0, Some(vec![7; 5000]));
        let short = ("/short".to_owned(), 0, 0, Some(vec![8; 10]));
        log.append(Revision(1), [&long, &long].into_iter().map(of)).unwrap();
        log.turn().unwrap();
        log.append(Revision(3), [&long].into_iter().map(of)).unwrap();
        log.turn().unwrap();
        log.append(Revision(4), [&short].into_iter().map(of)).unwrap();
        let [first, second] = log.contents().unwrap();
        assert_eq!(read(&first), Ok(Some(Chain { after: Revision(4), rows: vec![of(&short)] })));
        assert_eq!(read(&second), Ok(Some(Chain { after: Revision(3), rows: vec![of(&long)] })));
        log.clear().unwrap();
        assert!(log.contents().unwrap().iter().all(|bytes| read(bytes) == Ok(None)));
    }

    #[test]
    fn a_large_group_has_several_records_and_the_file_shrinks_again() {
        let (_directory, mut log) = log(64 << 10);
        let large = ("/large".to_owned(), 0, 0, Some(vec![1; RECORD_BYTES / 3]));
        log.append(Revision(1), std::iter::repeat_n(&large, 10).map(of)).unwrap();
        assert!(log.is_full() && log.buffer.capacity() <= 2 * RECORD_BYTES);
        let rows = read(&log.contents().unwrap()[0]).unwrap().unwrap().rows.len();
        assert_eq!((rows, log.other()), (10, Revision(0)));
        log.turn().unwrap();
        log.turn().unwrap();
        assert_eq!((log.contents().unwrap()[0].len(), log.is_full()), (64 << 10, false));
    }

    #[test]
    fn a_right_sum_over_nonsense_is_said() {
        let mut record = Vec::new();
        begin(&mut record, 1, Revision(1));
        record.extend_from_slice(&[9; 10]);
        finish(&mut record);
        assert_eq!(read(&record), Err(Malformed(0)));
    }
}
