//! What a replica promises, kept durably beside its data: a checkpoint and a log of changes.
//!
//! `sheaf-state.N` is all of [`Metadata`], written once, synced, renamed into place. `sheaf-log.N` has the changes since:
//! a file of fixed length, zeroed beforehand, so that appending is one write without any change of the file system's
//! own. A batch of changes begins at a block:
//!
//! ```text
//!  0  magic "SHLG"    4
//!  4  body length     4
//!  8  log number N    8
//! 16  batch number    8   from 1
//! 24  body CRC-32C    4
//! 28  header CRC-32C  4   of bytes 0 to 27
//! 32  body, then zeros to the end of the block
//! ```
//!
//! Reading takes the newest whole checkpoint, then the batches of its log, of the next, and so on. The first batch that
//! is not whole ends a log, unless a whole one lies behind it: that is damage, and the directory is refused, because a
//! promise may be lost. Codecs here are pure; [`Store`] owns the files of one directory.

pub mod codec;

use std::collections::{BTreeMap, BTreeSet};

use sheaf_block_core::crc::crc32c;
use sheaf_block_core::damage::Damage;
use sheaf_block_core::disk::{Change, Metadata, Partial};
use sheaf_block_core::ids::{ReplicaId, SegmentIndex, Version, VolumeId};

use self::codec::{Writer, read_ledger, read_operation, read_order, read_structure};

use crate::envelope::{BODY_MAX, EnvelopeError, Reader, seal, unseal};
use crate::fs::{Dir, DiskError, File, Result, replace};

const STATE: &str = "sheaf-state.";
const LOG: &str = "sheaf-log.";
const STATE_MAGIC: [u8; 8] = *b"SHEAFsta";
/// The first format, which has no damage, and is written as long as there is none.
const WITHOUT_DAMAGE: u32 = 1;
const VERSION: u32 = 2;
const BATCH_MAGIC: [u8; 4] = *b"SHLG";
const BATCH_HEADER: usize = 32;
const BLOCK: usize = 4096;
/// Bytes of a log.
pub const LOG_BYTES: u64 = 2 << 20;
/// Segments of 64 TiB.
const SEGMENTS_MAX: u32 = 1 << 28;

/// Runs of neighbours that have the same value: `(first, count, value)`.
fn runs<V: Copy + PartialEq>(items: impl Iterator<Item = (u32, V)>) -> Vec<(u32, u32, V)> {
    let mut runs: Vec<(u32, u32, V)> = Vec::new();
    for (at, value) in items {
        match runs.last_mut() {
            Some((first, count, of)) if *of == value && first.checked_add(*count) == Some(at) => *count += 1,
            _ => runs.push((at, 1, value)),
        }
    }
    runs
}

/// A checkpoint's bytes.
pub fn encode_state(meta: &Metadata) -> Vec<u8> {
    let mut w = Writer(Vec::new());
    w.0.extend(meta.volume.0.to_le_bytes());
    w.u32(meta.replica.0);
    w.ledger(&meta.ledger);
    w.u32(meta.opened);
    w.0.push(u8::from(meta.suspect));
    w.u64(meta.clean_until.0);
    let active = runs(meta.active.iter().map(|segment| (segment.0, ())));
    w.len(active.len());
    for (first, count, ()) in active {
        w.u32(first);
        w.u32(count);
    }
    let stamps = runs(meta.stamps.iter().map(|(segment, version)| (segment.0, version.0)));
    w.len(stamps.len());
    for (first, count, version) in stamps {
        w.u32(first);
        w.u32(count);
        w.u64(version);
    }
    w.u64(meta.forgotten.0);
    w.structure(&meta.structure);
    w.len(meta.partial.len());
    for (layer, partial) in &meta.partial {
        w.order(*layer);
        let own = match partial {
            Partial::Full { below, own } => {
                w.u8(1);
                w.u32(below.0);
                own
            }
            Partial::Dirty { own } => {
                w.u8(2);
                own
            }
        };
        let own = runs(own.iter().map(|segment| (segment.0, ())));
        w.len(own.len());
        for (first, count, ()) in own {
            w.u32(first);
            w.u32(count);
        }
    }
    if meta.damage.is_empty() {
        return seal(STATE_MAGIC, WITHOUT_DAMAGE, &w.0);
    }
    w.len(meta.damage.len());
    for (layer, segment, bad) in meta.damage.iter() {
        w.order(layer);
        w.u32(segment.0);
        w.u64(bad);
    }
    seal(STATE_MAGIC, VERSION, &w.0)
}

/// Reads a checkpoint.
pub fn decode_state(bytes: &[u8]) -> std::result::Result<Metadata, EnvelopeError> {
    let (version, body) = unseal(STATE_MAGIC, VERSION, bytes)?;
    let mut r = Reader(body);
    let (volume, replica) = (VolumeId(r.u128()?), ReplicaId(r.u32()?));
    let ledger = read_ledger(&mut r)?;
    let (opened, suspect, clean_until) = (r.u32()?, r.flag()?, Version(r.u64()?));
    let mut active = BTreeSet::new();
    read_runs(&mut r, &mut active)?;
    let mut stamps = BTreeMap::new();
    for _ in 0..r.u32()? {
        let (first, count, version) = (r.u32()?, r.u32()?, Version(r.u64()?));
        for_run(first, count, |at| {
            stamps.insert(at, version);
        })?;
    }
    let forgotten = Version(r.u64()?);
    let structure = read_structure(&mut r)?;
    let mut partial = BTreeMap::new();
    for _ in 0..r.u32()? {
        let layer = read_order(&mut r)?;
        let below = match r.u8()? {
            1 => Some(SegmentIndex(r.u32()?)),
            2 => None,
            _ => return Err(EnvelopeError::Content),
        };
        let mut own = BTreeSet::new();
        read_runs(&mut r, &mut own)?;
        let state = match below {
            Some(below) => Partial::Full { below, own },
            None => Partial::Dirty { own },
        };
        partial.insert(layer, state);
    }
    let mut damage = Damage::default();
    if version > WITHOUT_DAMAGE {
        for _ in 0..r.u32()? {
            let (layer, segment, bad) = (read_order(&mut r)?, SegmentIndex(r.u32()?), r.u64()?);
            if bad == 0 || !damage.has_room(layer, segment) {
                return Err(EnvelopeError::Content);
            }
            damage.add(layer, segment, bad);
        }
    }
    if !r.0.is_empty() {
        return Err(EnvelopeError::Content);
    }
    Ok(Metadata {
        volume,
        replica,
        ledger,
        opened,
        suspect,
        clean_until,
        active,
        stamps,
        forgotten,
        structure,
        partial,
        damage,
    })
}

/// Calls `each` for every segment of a run. A run is no longer than the largest volume that these files are for: its
/// length is not believed before that.
fn for_run(
    first: u32,
    count: u32,
    mut each: impl FnMut(SegmentIndex),
) -> std::result::Result<(), EnvelopeError> {
    if count == 0 || count > SEGMENTS_MAX || first.checked_add(count).is_none() {
        return Err(EnvelopeError::Content);
    }
    (first..first + count).for_each(|at| each(SegmentIndex(at)));
    Ok(())
}

fn read_runs(
    r: &mut Reader<'_>,
    into: &mut BTreeSet<SegmentIndex>,
) -> std::result::Result<(), EnvelopeError> {
    for _ in 0..r.u32()? {
        let (first, count) = (r.u32()?, r.u32()?);
        for_run(first, count, |at| {
            into.insert(at);
        })?;
    }
    Ok(())
}

fn encode_change(w: &mut Writer, change: &Change) {
    match change {
        Change::Opened(went_down) => w.0.extend([1, u8::from(*went_down)]),
        Change::Ledger(ledger) => {
            w.0.push(2);
            w.ledger(ledger);
        }
        Change::Touched(segment) => {
            w.0.push(3);
            w.u32(segment.0);
        }
        Change::Stamped(segment) => {
            w.0.push(4);
            w.u32(segment.0);
        }
        Change::Entered(segment) => {
            w.0.push(11);
            w.u32(segment.0);
        }
        Change::Settled(list) => {
            w.0.push(5);
            w.len(list.len());
            list.iter().for_each(|segment| w.u32(segment.0));
        }
        Change::Trusted => w.u8(6),
        Change::Forgotten(version) => {
            w.u8(7);
            w.u64(version.0);
        }
        Change::Copied(layer, below) => {
            w.u8(8);
            w.order(*layer);
            w.u32(below.0);
        }
        Change::Operated(operation) => {
            w.u8(9);
            w.operation(operation);
        }
        Change::Adopted(structure, known) => {
            w.u8(10);
            w.flag(*known);
            w.structure(structure);
        }
        Change::Damaged(layer, segment, bad) | Change::Healed(layer, segment, bad) => {
            w.u8(if matches!(change, Change::Damaged(..)) { 12 } else { 13 });
            w.order(*layer);
            w.u32(segment.0);
            w.u64(*bad);
        }
    }
}

fn decode_change(r: &mut Reader<'_>) -> std::result::Result<Change, EnvelopeError> {
    Ok(match r.u8()? {
        1 => Change::Opened(r.flag()?),
        2 => Change::Ledger(read_ledger(r)?),
        3 => Change::Touched(SegmentIndex(r.u32()?)),
        4 => Change::Stamped(SegmentIndex(r.u32()?)),
        5 => {
            let count = r.u32()? as usize;
            if count > r.0.len() / 4 {
                return Err(EnvelopeError::Content);
            }
            Change::Settled(
                (0..count).map(|_| r.u32().map(SegmentIndex)).collect::<std::result::Result<_, _>>()?,
            )
        }
        6 => Change::Trusted,
        7 => Change::Forgotten(Version(r.u64()?)),
        8 => Change::Copied(read_order(r)?, SegmentIndex(r.u32()?)),
        9 => Change::Operated(Box::new(read_operation(r)?)),
        10 => {
            let known = r.flag()?;
            Change::Adopted(Box::new(read_structure(r)?), known)
        }
        11 => Change::Entered(SegmentIndex(r.u32()?)),
        12 => Change::Damaged(read_order(r)?, SegmentIndex(r.u32()?), r.u64()?),
        13 => Change::Healed(read_order(r)?, SegmentIndex(r.u32()?), r.u64()?),
        _ => return Err(EnvelopeError::Content),
    })
}

/// The bytes of a batch, whole blocks.
pub fn encode_batch<'a>(log: u64, batch: u64, changes: impl IntoIterator<Item = &'a Change>) -> Vec<u8> {
    let mut w = Writer(vec![0; BATCH_HEADER]);
    changes.into_iter().for_each(|change| encode_change(&mut w, change));
    let mut bytes = w.0;
    let body_crc = crc32c(&bytes[BATCH_HEADER..]);
    let mut h = Writer(Vec::with_capacity(BATCH_HEADER));
    h.0.extend(BATCH_MAGIC);
    h.len(bytes.len() - BATCH_HEADER);
    h.u64(log);
    h.u64(batch);
    h.u32(body_crc);
    let crc = crc32c(&h.0);
    h.u32(crc);
    bytes[..BATCH_HEADER].copy_from_slice(&h.0);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A batch that begins here: its number, its changes, and its length in bytes. None: not whole, or of another log.
fn decode_batch(
    log: u64,
    bytes: &[u8],
) -> Option<(u64, std::result::Result<Vec<Change>, EnvelopeError>, usize)> {
    let mut r = Reader(bytes);
    let magic: [u8; 4] = r.array().ok()?;
    let (len, of, batch) = (r.u32().ok()? as usize, r.u64().ok()?, r.u64().ok()?);
    let (body_crc, crc) = (r.u32().ok()?, r.u32().ok()?);
    if magic != BATCH_MAGIC || of != log || crc32c(&bytes[..28]) != crc {
        return None;
    }
    let body = bytes.get(BATCH_HEADER..BATCH_HEADER.checked_add(len)?)?;
    if crc32c(body) != body_crc {
        return None;
    }
    let mut r = Reader(body);
    let mut changes = Vec::new();
    while !r.0.is_empty() {
        match decode_change(&mut r) {
            Ok(change) => changes.push(change),
            Err(error) => return Some((batch, Err(error), 0)),
        }
    }
    Some((batch, Ok(changes), (BATCH_HEADER + len).next_multiple_of(BLOCK)))
}

/// Reads a log: the changes in order, and where the next batch goes: its number and offset.
pub fn decode_log(log: u64, bytes: &[u8]) -> std::result::Result<(Vec<Change>, u64, u64), EnvelopeError> {
    let mut changes = Vec::new();
    let (mut at, mut next) = (0, 1);
    while let Some((batch, found, len)) = bytes.get(at..).and_then(|rest| decode_batch(log, rest)) {
        if batch != next {
            break;
        }
        changes.extend(found?);
        next += 1;
        at += len;
    }
    // Nothing whole may lie behind the end.
    let mut behind = at;
    while let Some(rest) = bytes.get(behind..).filter(|rest| !rest.is_empty()) {
        if decode_batch(log, rest).is_some_and(|(batch, ..)| batch >= next) {
            return Err(EnvelopeError::Damaged);
        }
        behind += BLOCK;
    }
    Ok((changes, next, at as u64))
}

/// The files of a directory that is being made, to be synced before it gets its name.
pub fn first_files(meta: &Metadata) -> [(String, Vec<u8>); 2] {
    [(format!("{LOG}1"), vec![0; LOG_BYTES as usize]), (format!("{STATE}1"), encode_state(meta))]
}

/// Where a batch is to be written.
#[derive(Debug)]
pub struct Append<F> {
    /// The log.
    pub file: F,
    /// Offset in it.
    pub offset: u64,
    /// Whole blocks.
    pub bytes: Vec<u8>,
}

/// The durable metadata of one directory.
#[derive(Debug)]
pub struct Store<D: Dir> {
    number: u64,
    log: D::File,
    next_batch: u64,
    offset: u64,
}

impl<D: Dir> Store<D>
where
    D::File: Clone,
{
    /// Writes the first checkpoint of a directory.
    pub fn create(dir: &D, meta: &Metadata) -> Result<Self> {
        let log = new_log(dir, 1)?;
        replace(dir, &format!("{STATE}1"), &encode_state(meta))?;
        Ok(Self { number: 1, log, next_batch: 1, offset: 0 })
    }

    /// Reads what is there; none: the directory has no state of ours. Writes a fresh checkpoint, so that opening often
    /// costs no more than once.
    pub fn open(dir: &D) -> Result<Option<(Self, Metadata)>> {
        let Some((meta, newest)) = load(dir)? else { return Ok(None) };
        if let Some(log) = unused(dir, newest)? {
            return Ok(Some((Self { number: newest, log, next_batch: 1, offset: 0 }, meta)));
        }
        let mut this = Self { number: newest, log: new_log(dir, newest + 1)?, next_batch: 1, offset: 0 };
        this.number = newest + 1;
        this.checkpoint(dir, &meta)?;
        Ok(Some((this, meta)))
    }

    /// The changes as one batch, to be written and synced by the caller before it acts on them. None: the log is full,
    /// call [`Store::rotate`] first.
    pub fn append(&mut self, changes: &[Change]) -> Option<Append<D::File>> {
        let bytes = encode_batch(self.number, self.next_batch, changes);
        if self.offset + bytes.len() as u64 > LOG_BYTES {
            return None;
        }
        let append = Append { file: self.log.clone(), offset: self.offset, bytes };
        self.next_batch += 1;
        self.offset += append.bytes.len() as u64;
        Some(append)
    }

    /// Begins a new log with a checkpoint of `meta`, in which all changes appended so far are.
    pub fn rotate(&mut self, dir: &D, meta: &Metadata) -> Result<()> {
        self.log = new_log(dir, self.number + 1)?;
        self.number += 1;
        self.next_batch = 1;
        self.offset = 0;
        self.checkpoint(dir, meta)
    }

    fn checkpoint(&self, dir: &D, meta: &Metadata) -> Result<()> {
        replace(dir, &format!("{STATE}{}", self.number), &encode_state(meta))?;
        for name in dir.list()? {
            if number_of(&name, STATE).or(number_of(&name, LOG)).is_some_and(|of| of < self.number) {
                dir.unlink(&name)?;
            }
        }
        Ok(())
    }

    /// Persists changes now, with the caller waiting.
    pub fn persist(&mut self, dir: &D, before: &mut Metadata, changes: &[Change]) -> Result<()> {
        changes.iter().for_each(|change| before.apply(change));
        match self.append(changes) {
            Some(append) => {
                append.file.write_at(append.offset, &append.bytes)?;
                append.file.sync()
            }
            None => self.rotate(dir, before),
        }
    }
}

fn number_of(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// The newest log, if nothing was ever written to it, and the checkpoint is its own: then it need not be made anew.
fn unused<D: Dir>(dir: &D, newest: u64) -> Result<Option<D::File>> {
    let name = format!("{LOG}{newest}");
    let bytes = match dir.stat(&format!("{STATE}{newest}"))? {
        Some(_) => dir.read(&name, 2 * LOG_BYTES as usize)?.unwrap_or_default(),
        None => return Ok(None),
    };
    let whole = bytes.len() as u64 == LOG_BYTES && bytes.iter().all(|byte| *byte == 0);
    if !whole {
        return Ok(None);
    }
    dir.open(&name, true).map(Some)
}

/// Zeroed to its end and synced, so that a later write changes nothing but content.
fn new_log<D: Dir>(dir: &D, number: u64) -> Result<D::File> {
    let name = format!("{LOG}{number}");
    dir.unlink(&name)?;
    let file = dir.create(&name, LOG_BYTES)?;
    let zeros = vec![0; 1 << 18];
    for chunk in 0..LOG_BYTES / zeros.len() as u64 {
        file.write_at(chunk * zeros.len() as u64, &zeros)?;
    }
    file.sync()?;
    dir.sync()?;
    Ok(file)
}

fn refused<D: Dir>(dir: &D, name: &str, error: EnvelopeError) -> DiskError {
    DiskError::Refused { path: dir.path(), reason: format!("{name}: {error}") }
}

/// What the newest checkpoint and the logs say together, and the highest number seen. Changes nothing.
pub fn load<D: Dir>(dir: &D) -> Result<Option<(Metadata, u64)>> {
    let names = dir.list()?;
    let of =
        |prefix: &str| names.iter().filter_map(|name| number_of(name, prefix)).collect::<BTreeSet<u64>>();
    let (states, logs) = (of(STATE), of(LOG));
    let Some(newest) = states.last().copied() else {
        // A log alone is from a directory that was never finished.
        return Ok(None);
    };
    let name = format!("{STATE}{newest}");
    let bytes = dir.read(&name, BODY_MAX)?.unwrap_or_default();
    let mut meta = decode_state(&bytes).map_err(|error| refused(dir, &name, error))?;
    if !logs.contains(&newest) {
        let reason = format!("{LOG}{newest} is missing: what was promised since the checkpoint is not known");
        return Err(DiskError::Refused { path: dir.path(), reason });
    }
    let mut last = newest;
    for number in newest.. {
        if !logs.contains(&number) {
            break;
        }
        let name = format!("{LOG}{number}");
        let bytes = dir.read(&name, 2 * LOG_BYTES as usize)?.unwrap_or_default();
        let (changes, ..) = decode_log(number, &bytes).map_err(|error| refused(dir, &name, error))?;
        changes.iter().for_each(|change| meta.apply(change));
        last = number;
    }
    Ok(Some((meta, last.max(logs.last().copied().unwrap_or(0)))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use sheaf_block_core::ids::{CoordinatorId, Epoch, ReplicaSet};
    use sheaf_block_core::membership::{Ledger, Membership, Vote};
    use sheaf_block_core::structure::{Kind, Operation, SnapshotName, Structure};

    use super::*;
    use crate::sim::{Dice, SimDisk};

    fn sample() -> Metadata {
        let in_sync = ReplicaSet::of([ReplicaId(1), ReplicaId(2)]).expect("fits");
        Metadata::new(VolumeId(7), ReplicaId(2), Structure::new(64 * 1000, None), Ledger::created(in_sync))
    }

    fn change() -> impl Strategy<Value = Change> {
        let segment = || (0u32..1000).prop_map(SegmentIndex);
        prop_oneof![
            any::<bool>().prop_map(Change::Opened),
            (1u64..9, any::<u64>(), 1u64..9, prop::collection::vec(1u32..9, 1..5), any::<bool>()).prop_map(
                |(number, holder, version, ids, vote)| {
                    let epoch = Epoch { number, holder: CoordinatorId(holder) };
                    let in_sync = ReplicaSet::of(ids.into_iter().map(ReplicaId)).expect("few");
                    let accepted = vote.then_some(Vote { epoch, in_sync });
                    Change::Ledger(Ledger {
                        promised: epoch,
                        committed: Membership { version: Version(version), in_sync },
                        accepted,
                    })
                }
            ),
            segment().prop_map(Change::Touched),
            segment().prop_map(Change::Stamped),
            segment().prop_map(Change::Entered),
            (segment(), 0u64..9).prop_map(|(segment, bad)| Change::Damaged(Default::default(), segment, bad)),
            (segment(), 0u64..9).prop_map(|(segment, bad)| Change::Healed(Default::default(), segment, bad)),
            prop::collection::vec(segment(), 0..1500).prop_map(Change::Settled),
            Just(Change::Trusted),
            (1u64..9).prop_map(|version| Change::Forgotten(Version(version))),
            (1u64..9, any::<bool>()).prop_map(|(number, known)| {
                // The next operation of some history; what does not fit is passed over, as it is when applied.
                let mut structure = Structure::new(64 * 1000, None);
                let mut last = None;
                for at in 1..=number {
                    let name = SnapshotName::new(format!("s{at}")).expect("is a name");
                    let labels = [("k".to_owned(), "v".to_owned())].into();
                    let kind = match at % 3 {
                        0 => Kind::Expand(structure.blocks + 64),
                        _ => Kind::Snapshot { name, created: at, user: true, labels },
                    };
                    let operation = Operation { id: structure.next(CoordinatorId(at)), kind };
                    structure = structure.apply(&operation).expect("applies");
                    last = Some(operation);
                }
                match last.filter(|_| number.is_multiple_of(2)) {
                    Some(operation) => Change::Operated(Box::new(operation)),
                    None => Change::Adopted(Box::new(structure), known),
                }
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_checkpoint_is_read_back(changes in prop::collection::vec(change(), 0..60)) {
            let mut meta = sample();
            changes.iter().for_each(|change| meta.apply(change));
            prop_assert_eq!(decode_state(&encode_state(&meta)), Ok(meta));
        }

        #[test]
        fn a_promise_that_was_synced_outlives_a_power_cut(
            batches in prop::collection::vec(prop::collection::vec(change(), 1..5), 1..30),
            die in 0u64..80,
            seed in any::<u64>(),
            in_order in any::<bool>(),
        ) {
            let disk = SimDisk::default();
            let dir = disk.dir("r");
            let mut meta = sample();
            let mut store = Store::create(&dir, &meta).expect("creates");
            disk.die_after(Some(die));
            let mut attempted = meta.clone();
            for batch in &batches {
                let mut next = meta.clone();
                batch.iter().for_each(|change| next.apply(change));
                attempted = next;
                if store.persist(&dir, &mut meta.clone(), batch).is_err() {
                    break;
                }
                meta = attempted.clone();
                if seed % 5 == 0 && store.rotate(&dir, &meta).is_err() {
                    break;
                }
            }
            disk.power_cut(&mut Dice::new(seed), in_order);
            let (_, found) = Store::open(&dir).expect("opens").expect("is there");
            prop_assert!(found == meta || found == attempted, "{:?}\nis neither\n{:?}\nnor\n{:?}", found, meta, attempted);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decode_state(&bytes), decode_log(1, &bytes));
        }
    }

    #[test]
    fn damage_in_the_middle_is_not_taken_for_the_end() {
        let batch = |n| encode_batch(3, n, &[Change::Touched(SegmentIndex(n as u32))]);
        let mut bytes = [batch(1), batch(2), batch(3)].concat();
        bytes.resize(LOG_BYTES as usize, 0);
        assert_eq!(decode_log(3, &bytes).expect("whole").1, 4);
        let mut cut = bytes.clone();
        cut[2 * 4096 + 33] ^= 1;
        assert_eq!(decode_log(3, &cut).expect("the last batch was not whole").1, 3);
        let mut damaged = bytes;
        damaged[4096 + 33] ^= 1;
        assert_eq!(decode_log(3, &damaged), Err(EnvelopeError::Damaged));
    }

    #[test]
    fn the_log_rotates_before_it_is_full() {
        let dir = SimDisk::default().dir("r");
        let mut meta = sample();
        let mut store = Store::create(&dir, &meta).expect("creates");
        for at in 0..1200u32 {
            store.persist(&dir, &mut meta, &[Change::Touched(SegmentIndex(at % 1000))]).expect("persists");
        }
        assert_eq!(store.number, 3);
        drop(store);
        assert_eq!(Store::open(&dir).expect("opens").expect("is there").1, meta);
        let names = dir.list().expect("lists");
        assert_eq!(names, ["sheaf-log.4", "sheaf-state.4"], "old ones are gone");
    }
}
