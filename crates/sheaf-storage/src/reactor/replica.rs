//! A replica on this node: its state machine, its directory, and the disk work between them. Owned by the reactor.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use sheaf_block_core::disk::{Change, Data, Done, Failure, Metadata, Op};
use sheaf_block_core::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, LinkId, OpId, SEGMENT_BLOCKS, SegmentIndex,
};
use sheaf_block_core::replica::{Event, Output, Replica};
use sheaf_block_core::structure::{Kind as Reshape, Operation, Structure};
use sheaf_block_core::wire::Frame;
use sheaf_disk::buffer::{Buffer, aligned};
use sheaf_disk::engine::{Ending, Task};
use sheaf_disk::envelope::{seal, unseal};
use sheaf_disk::fs::{Dir, DiskError, is_unreadable, replace};
use sheaf_disk::layers::{self, Intent, Opened, clone_directory};
use sheaf_disk::names::BOOT_FILE;
use sheaf_disk::real::{RealDir, RealFile, abandon};
use sheaf_disk::replica::{Piece, ReplicaDir, ZeroStep};
use sheaf_disk::state::Store;

use super::io::{Io, Key, Purpose, Work};

const BLOCK: usize = BLOCK_BYTES as usize;
const BOOT_MAGIC: [u8; 8] = *b"SHEAFboo";

/// What the reactor must do for it.
#[derive(Debug)]
pub(crate) enum Need {
    Send(LinkId, Frame),
    /// Its promises could not be made durable, or its disk refused: it must be opened again.
    Reopen(String),
    /// It has made a clone's replica there, which is to be opened.
    Made(PathBuf),
}

/// A data operation under way.
#[derive(Debug)]
struct Running {
    left: usize,
    failure: Option<Failure>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// What was read. Several pieces are put together in a buffer that is there from the beginning.
    Read(Option<Buffer>),
    Write(u64, u64),
    Zero(Vec<ZeroStep>),
    Sync,
}

/// What becomes durable in the order in which it was asked for.
#[derive(Debug)]
enum Durable {
    Changes(Vec<Change>),
    Operate(Operation),
    Adopt(Box<Structure>, bool),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ReplicaShell {
    key: Key,
    machine: Replica,
    dir: ReplicaDir<RealDir>,
    store: Store<RealDir>,
    running: BTreeMap<OpId, Running>,
    /// Segments of which a layer is being changed by the workers.
    changing: HashMap<OpId, SegmentIndex>,
    /// What must end in order, and waits for what was before.
    to_persist: VecDeque<(OpId, Durable)>,
    /// Operations whose changes are being written.
    persisting: Vec<OpId>,
    /// Disk requests that have not ended.
    pub(crate) pending: usize,
    stopped: bool,
    /// Room for what the machine says.
    out: Vec<Output>,
}

/// The number of this run of the machine.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn failure_of(error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Failure::NoSpace,
        _ => Failure::Io,
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> DiskError {
    DiskError::Refused { path: path.to_path_buf(), reason: reason.into() }
}

impl ReplicaShell {
    /// Opens a directory that has state of ours. `expected`: only as this replica.
    pub(crate) fn open(path: &Path, expected: Option<Key>) -> Result<Self, DiskError> {
        // Read before anything is written: another volume's directory is left alone.
        let looked = sheaf_disk::state::load(&RealDir::open_shared(path)?)?;
        let Some((meta, _)) = looked else {
            return Err(refused(path, "it has no state of ours (sheaf-state.*); adopt it first"));
        };
        let key = (meta.volume, meta.replica);
        if let Some(expected) = expected.filter(|expected| *expected != key) {
            let show = |key: Key| format!("replica {} of volume {}", key.1, crate::api::show_volume(key.0));
            return Err(refused(path, format!("it holds {}, not {}", show(key), show(expected))));
        }
        let dir = RealDir::open(path)?;
        let boot = boot_id();
        let before = dir.read(BOOT_FILE, 4096)?;
        let before =
            before.as_deref().and_then(|bytes| unseal(BOOT_MAGIC, 1, bytes).ok()).map(|(_, body)| body);
        let same = before == Some(boot.as_bytes());
        let went_down = before.is_some() && !same;
        let Opened { mut dir, mut store, mut meta } = layers::open(dir)?;
        if went_down {
            let per = u64::from(SEGMENT_BLOCKS);
            let blocks = meta.structure.blocks;
            let ranges = meta.active.iter().map(|segment| {
                let start = u64::from(segment.0) * per;
                (start, per.min(blocks.saturating_sub(start)))
            });
            let undone = dir.undo_unwritten(ranges)?;
            if undone > 0 {
                tracing::info!(path = %path.display(), bytes = undone, "writes that the machine's end cut off were taken back");
            }
        }
        dir.set_dirty(true)?;
        let mut out = Vec::new();
        let mut machine = Replica::open(meta.clone(), went_down, &mut out);
        while let Some(output) = out.pop() {
            if let Output::Disk(op, Op::Persist(changes)) = output {
                store.persist(dir.dir(), &mut meta, &changes)?;
                machine.on(Event::Disk(op, Ok(Done::Nothing)), &mut out);
            }
        }
        // Only now: until the opening is durable, the next one must say again that the machine went down.
        if !same {
            replace(dir.dir(), BOOT_FILE, &seal(BOOT_MAGIC, 1, boot.as_bytes()))?;
        }
        Ok(Self {
            key,
            machine,
            dir,
            store,
            running: BTreeMap::new(),
            changing: HashMap::new(),
            to_persist: VecDeque::new(),
            persisting: Vec::new(),
            pending: 0,
            stopped: false,
            out: Vec::new(),
        })
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        self.machine.metadata()
    }

    pub(crate) fn dir(&self) -> &ReplicaDir<RealDir> {
        &self.dir
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.dir().path()
    }

    /// Closes it properly: everything durable, and said to be.
    pub(crate) fn close(&mut self) -> Result<(), DiskError> {
        if let Some(change) = self.machine.closing().filter(|_| self.to_persist.is_empty() && !self.stopped) {
            let mut meta = self.machine.metadata().clone();
            self.store.persist(self.dir.dir(), &mut meta, &[change])?;
        }
        self.dir.set_dirty(false)
    }

    /// One event for the state machine, and all that follows from it.
    pub(crate) fn on(&mut self, io: &mut Io, event: Event, needs: &mut Vec<Need>) {
        if self.stopped {
            return;
        }
        let mut out = std::mem::take(&mut self.out);
        self.machine.on(event, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Send(link, frame) => needs.push(Need::Send(link, frame)),
                Output::Disk(op, what) => self.begin(io, op, what, needs),
                Output::Stop => {
                    self.stopped = true;
                    needs.push(Need::Reopen("its promises could not be made durable".into()));
                }
            }
        }
        self.out = out;
    }

    fn ended(&self, io: &mut Io, op: OpId, result: Result<Done, Failure>) {
        io.work.push_back(Work::Replica(self.key, Event::Disk(op, result)));
    }

    fn submit(&mut self, io: &mut Io, op: Option<OpId>, offset: usize, task: Task) {
        self.pending += 1;
        io.submit(Purpose { key: self.key, op, offset }, task);
    }

    fn begin(&mut self, io: &mut Io, op: OpId, what: Op, needs: &mut Vec<Need>) {
        match what {
            Op::Persist(changes) => self.durably(io, op, Durable::Changes(changes), needs),
            Op::Operate(operation) => self.durably(io, op, Durable::Operate(operation), needs),
            Op::Adopt(structure, known) => self.durably(io, op, Durable::Adopt(structure, known), needs),
            Op::Read(start, count) => self.read(io, op, start, count.0),
            Op::Write(start, data) => {
                let count = (data.len() / BLOCK) as u64;
                self.running
                    .insert(op, Running { left: 1, failure: None, kind: Kind::Write(start.0, count) });
                let head = (**self.dir.head()).clone();
                self.submit(io, Some(op), 0, Task::Write(head, start.0 * BLOCK as u64, aligned(data)));
            }
            Op::Zero(start, count) => {
                let steps = match self.dir.plan_zero(start.0, u64::from(count.0)) {
                    Ok(steps) => steps,
                    Err(error) => return self.failed(io, op, &error),
                };
                let meta = self.machine.metadata();
                let absent =
                    meta.is_complete_below(meta.structure.head) && !meta.is_damaged_below(start, count);
                let steps: Vec<ZeroStep> = match absent {
                    true => steps,
                    // What is below may still be to come, or is damaged, and must stay hidden.
                    false => steps.into_iter().map(ZeroStep::hiding).collect(),
                };
                let head = (**self.dir.head()).clone();
                for step in &steps {
                    let task = match *step {
                        ZeroStep::Punch { offset, len } => Task::Punch(head.clone(), offset, len),
                        ZeroStep::Write { offset, len } => {
                            let zeros = Buffer::zeroed(usize::try_from(len).unwrap_or(0));
                            Task::Write(head.clone(), offset, zeros.into())
                        }
                    };
                    self.submit(io, Some(op), 0, task);
                }
                self.running
                    .insert(op, Running { left: steps.len(), failure: None, kind: Kind::Zero(steps) });
            }
            Op::Sync => {
                let files = self.dir.to_sync();
                self.running.insert(op, Running { left: files.len(), failure: None, kind: Kind::Sync });
                for file in files {
                    self.submit(io, Some(op), 0, Task::Sync((*file).clone()));
                }
            }
            Op::ReadPart(..)
            | Op::Salvage(..)
            | Op::WritePart(..)
            | Op::Present(..)
            | Op::Fold(..)
            | Op::Digest(..)
            | Op::Seal(..) => match self.dir.part_job(&self.machine.metadata().structure, &what) {
                Ok(Some(job)) => {
                    self.pending += 1;
                    let job = job.beside(&self.machine.metadata().damage);
                    io.workers.submit(self.key, op, job);
                }
                Ok(None) | Err(DiskError::Refused { .. }) => self.ended(io, op, Err(Failure::Invalid)),
                Err(error) => self.failed(io, op, &error),
            },
        }
    }

    /// Work on a layer has ended.
    pub(crate) fn worked(&mut self, io: &mut Io, op: OpId, result: Result<Done, Failure>) {
        self.pending -= 1;
        if let Some(segment) = self.changing.remove(&op) {
            // What was looked up meanwhile may be of before.
            self.dir.forget(segment);
        }
        self.ended(io, op, result);
    }

    fn durably(&mut self, io: &mut Io, op: OpId, what: Durable, needs: &mut Vec<Need>) {
        self.to_persist.push_back((op, what));
        self.persist(io, needs);
    }

    fn failed(&self, io: &mut Io, op: OpId, error: &DiskError) {
        tracing::warn!(path = %self.path().display(), error = error.explain(), "a disk operation failed");
        let failure = if error.is_no_space() { Failure::NoSpace } else { Failure::Io };
        self.ended(io, op, Err(failure));
    }

    fn read(&mut self, io: &mut Io, op: OpId, start: BlockIndex, count: u32) {
        let pieces = match self.dir.plan_read(start.0, u64::from(count)) {
            Ok(pieces) => pieces,
            Err(error) => return self.failed(io, op, &error),
        };
        if self.is_damaged(&pieces) {
            return self.ended(io, op, Err(Failure::Corrupt));
        }
        // One piece is the rule: its buffer becomes the data. More are put together.
        let whole = (pieces.len() > 1).then(|| Buffer::any(count as usize * BLOCK));
        self.running.insert(op, Running { left: pieces.len(), failure: None, kind: Kind::Read(whole) });
        let mut at = 0;
        for piece in pieces {
            let buffer = Buffer::any(piece.len);
            self.submit(io, Some(op), at, Task::Read((*piece.file).clone(), piece.offset, buffer));
            at += piece.len;
        }
    }

    /// Whether any of what is to be read is known to be damaged.
    fn is_damaged(&self, pieces: &[Piece<RealFile>]) -> bool {
        let meta = self.machine.metadata();
        let top = self.dir.chain().len() - 1;
        let layer = |piece: &Piece<RealFile>| {
            let above = top.checked_sub(piece.layer).filter(|_| piece.layer > 0)?;
            meta.structure.chain(meta.structure.head).nth(above).map(|layer| layer.id)
        };
        !meta.damage.is_empty()
            && pieces.iter().any(|piece| {
                let count = u32::try_from(piece.len / BLOCK).unwrap_or(u32::MAX);
                let start = BlockIndex(piece.offset / BLOCK as u64);
                meta.is_damaged_above(layer(piece), start, BlockCount(count))
            })
    }

    /// Makes durable what waits, in order: neighbouring changes with one write, when what was before is durable.
    fn persist(&mut self, io: &mut Io, needs: &mut Vec<Need>) {
        while self.persisting.is_empty() && !self.stopped {
            let mut changes = Vec::new();
            let mut ops = Vec::new();
            while let Some((op, Durable::Changes(more))) =
                self.to_persist.pop_front_if(|(_, what)| matches!(what, Durable::Changes(_)))
            {
                ops.push(op);
                changes.extend(more);
            }
            if ops.is_empty() {
                let Some((op, what)) = self.to_persist.pop_front() else { return };
                match self.reshape(what, needs) {
                    Ok(result) => self.ended(io, op, result.map(|()| Done::Nothing)),
                    Err(error) => self.stop(&error, needs),
                }
                continue;
            }
            match self.store.append(&changes) {
                Some(append) => {
                    self.persisting = ops;
                    let bytes = Buffer::from_slice(&append.bytes).into();
                    self.submit(io, None, 0, Task::WriteSync(append.file, append.offset, bytes));
                }
                // The machine's metadata has these changes already.
                None => match self.store.rotate(self.dir.dir(), self.machine.metadata()) {
                    Ok(()) => ops.into_iter().for_each(|op| self.ended(io, op, Ok(Done::Nothing))),
                    Err(error) => self.stop(&error, needs),
                },
            }
        }
    }

    fn stop(&mut self, error: &DiskError, needs: &mut Vec<Need>) {
        self.stopped = true;
        needs.push(Need::Reopen(error.explain()));
    }

    /// Changes the layers, with the caller waiting: a few small files. An error leaves it to the next opening what is so.
    fn reshape(&mut self, what: Durable, needs: &mut Vec<Need>) -> Result<Result<(), Failure>, DiskError> {
        let mut meta = self.machine.metadata().clone();
        let change = match what {
            Durable::Changes(_) => return Ok(Ok(())),
            Durable::Operate(operation) => {
                if let Err(refused) = meta.structure.apply(&operation) {
                    tracing::warn!(path = %self.path().display(), %refused, "an operation does not fit the layers");
                    return Ok(Err(Failure::Invalid));
                }
                let done = self.dir.operate(&meta, &operation);
                if let Operation { kind: Reshape::Clone(clone), .. } = &operation {
                    // The source does not suffer from what its clone cannot have.
                    match &done {
                        Ok(()) => needs.push(Need::Made(self.path().with_file_name(clone_directory(clone)))),
                        Err(error) => {
                            let (path, error) = (self.path(), error.explain());
                            tracing::error!(path = %path.display(), error, "a clone's replica was not made");
                            // Half of it would keep the layers from being folded.
                            let root = path.parent().unwrap_or(Path::new("."));
                            let _ = abandon(root, &clone_directory(clone));
                        }
                    }
                } else {
                    done?;
                }
                Change::Operated(Box::new(operation))
            }
            Durable::Adopt(structure, known) => {
                self.dir.intend(&Intent::Adopt(structure.clone(), known, false))?;
                self.dir.adopt(&meta, &structure, known, false)?;
                Change::Adopted(structure, known)
            }
        };
        let adopted = matches!(change, Change::Adopted(..));
        self.store.persist(self.dir.dir(), &mut meta, &[change])?;
        if adopted {
            self.dir.adopted()?
        } else {
            self.dir.operated()?
        }
        Ok(Ok(()))
    }

    /// Longhorn's mark of a directory that is not complete follows what the metadata says.
    fn mark(&mut self, needs: &mut Vec<Need>) {
        let rebuilding = !self.machine.metadata().partial.is_empty();
        if self.dir.tree().volume.rebuilding != rebuilding
            && let Err(error) = self.dir.set_rebuilding(rebuilding)
        {
            self.stop(&error, needs);
        }
    }

    /// Disk work has ended.
    pub(crate) fn disk(&mut self, io: &mut Io, purpose: Purpose, ending: Ending, needs: &mut Vec<Need>) {
        self.pending -= 1;
        let Ending { result, buffer, .. } = ending;
        let Some(op) = purpose.op else {
            let result = result.map_err(|error| {
                tracing::warn!(path = %self.path().display(), %error, "promises could not be written");
                failure_of(&error)
            });
            for op in std::mem::take(&mut self.persisting) {
                self.ended(io, op, result.map(|()| Done::Nothing));
            }
            if result.is_ok() {
                self.mark(needs);
                self.persist(io, needs);
            }
            return;
        };
        let Some(running) = self.running.get_mut(&op) else { return };
        running.left -= 1;
        if let Err(error) = result {
            tracing::warn!(path = %self.dir.dir().path().display(), %error, "a disk request failed");
            let unreadable = matches!(running.kind, Kind::Read(_)) && is_unreadable(&error);
            running.failure = Some(if unreadable { Failure::Corrupt } else { failure_of(&error) });
        }
        if let (Kind::Read(whole), Some(bytes)) = (&mut running.kind, buffer) {
            match whole {
                Some(whole) => whole[purpose.offset..purpose.offset + bytes.len()].copy_from_slice(&bytes),
                None => *whole = Some(bytes),
            }
        }
        if running.left > 0 {
            return;
        }
        let Some(running) = self.running.remove(&op) else { return };
        let result = match (running.failure, running.kind) {
            (Some(failure), _) => Err(failure),
            (None, Kind::Read(whole)) => Ok(Done::Data(whole.map(Data::from).unwrap_or_default())),
            (None, Kind::Write(start, count)) => {
                self.dir.wrote(start, count);
                Ok(Done::Nothing)
            }
            (None, Kind::Zero(steps)) => {
                steps.iter().for_each(|step| self.dir.zeroed(step));
                Ok(Done::Nothing)
            }
            (None, Kind::Sync) => Ok(Done::Nothing),
        };
        self.ended(io, op, result);
    }
}
