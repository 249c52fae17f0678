//! Frames between a coordinator and a replica: their meaning, and their bytes.
//!
//! ```text
//!  0  magic "SHFB"        4
//!  4  format              2   see FORMAT
//!  6  kind                1   which body
//!  7  zero                1
//!  8  volume             16
//! 24  replica             4
//! 28  epoch number        8
//! 36  epoch holder        8
//! 44  session             8
//! 52  sequence            8
//! 60  payload length      4   at most MAX_PAYLOAD
//! 64  payload CRC-32C     4
//! 68  header CRC-32C      4   of bytes 0 to 67
//! 72  payload
//! ```
//!
//! All integers little-endian. The header has a checksum of its own, so that a length is trusted before that much is
//! read. A frame that is cut, damaged, of another format or with anything left over is an error, never a panic, and
//! the connection it came from ends. Hand-written, because every byte of it is a contract between versions.
//!
//! Formats: 1, the first.

use std::sync::Arc;

use crate::crc::crc32c;
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, CoordinatorId, Epoch, JobId, ReplicaId, ReplicaSet, SegmentIndex,
    SessionId, Version, VolumeId,
};
use crate::jobs::MAX_JOB_BLOCKS;
use crate::membership::{Answer, Ask, Ledger, Membership, Vote};

/// The format written by this version.
pub const FORMAT: u16 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of the longest payload: the data of the largest job and what describes it.
pub const MAX_PAYLOAD: u32 = MAX_JOB_BLOCKS * BLOCK_BYTES + 64;
/// Segments that one list can name.
pub const MAX_LIST: usize = (MAX_PAYLOAD as usize - 64) / 4;
const MAGIC: [u8; 4] = *b"SHFB";

/// Content of whole blocks, shared between the frames that carry it.
pub type Data = Arc<[u8]>;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Whose.
    pub volume: VolumeId,
    /// The replica that is asked or that answers.
    pub replica: ReplicaId,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// The handshake it belongs to; zero in the handshake itself.
    pub session: SessionId,
    /// Position in the session, from 1, in each direction; zero in membership frames, which may come twice.
    pub seq: u64,
    /// What it says.
    pub body: Body,
}

/// Why a replica did not do what a job asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The disk failed.
    #[error("the replica's disk reported an error")]
    Io,
    /// The disk is full.
    #[error("the replica's disk is full")]
    NoSpace,
    /// The request lies outside the volume or over a limit.
    #[error("the request does not fit the volume")]
    Invalid,
}

/// What a replica says of itself in the handshake.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Introduction {
    /// Its machine went down with segments in the activity log: writes that were not synced may be lost.
    pub suspect: bool,
    /// The newest record in which it knows itself in sync.
    pub clean_until: Version,
    /// Its activity log.
    pub active: Vec<SegmentIndex>,
}

/// The content of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Membership: a question. A *prepare* opens a session.
    Ask(Ask),
    /// Membership: an answer. A promise carries the session it opened and the introduction.
    Answer(Answer, Option<Box<Introduction>>),
    /// Write whole blocks. A copy (rebuild, recovery) leaves the activity log alone.
    Write {
        /// The coordinator's job.
        job: JobId,
        /// First block.
        start: BlockIndex,
        /// Whole blocks.
        data: Data,
        /// The flush that will cover it.
        generation: u64,
        /// Whether it is a copy.
        copy: bool,
    },
    /// Make whole blocks zero, and give back their space.
    Zero {
        /// The coordinator's job.
        job: JobId,
        /// First block.
        start: BlockIndex,
        /// How many.
        count: BlockCount,
        /// The flush that will cover it.
        generation: u64,
    },
    /// Read whole blocks.
    Read {
        /// The coordinator's job.
        job: JobId,
        /// First block.
        start: BlockIndex,
        /// How many.
        count: BlockCount,
    },
    /// Make everything durable that was answered before.
    Flush {
        /// The coordinator's job.
        job: JobId,
    },
    /// All of the in-sync set has synced the writes of generations below this: their segments leave the activity log.
    Settle {
        /// The first generation that is not settled.
        below: u64,
    },
    /// Name the segments written in records after this one.
    ListDirty {
        /// The coordinator's job.
        job: JobId,
        /// The last record in which the returning replica was in sync.
        since: Version,
        /// Where the list goes on; it ends when fewer than [`MAX_LIST`] are named.
        from: SegmentIndex,
    },
    /// A write, zero or flush is done, or anything failed.
    Done {
        /// The coordinator's job.
        job: JobId,
        /// How it ended.
        result: Result<(), Failure>,
    },
    /// What was read.
    Data {
        /// The coordinator's job.
        job: JobId,
        /// Whole blocks.
        data: Data,
    },
    /// The dirty segments.
    Segments {
        /// The coordinator's job.
        job: JobId,
        /// In ascending order.
        list: Vec<SegmentIndex>,
    },
    /// The session is over: frames of it are not taken. The coordinator opens another.
    Closed,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Fewer or more bytes than the frame has.
    #[error("a frame is cut short or has bytes left over")]
    Length,
    /// The magic number is missing.
    #[error("this is not a frame of block storage")]
    Magic,
    /// Another version of the format.
    #[error("the frame has format {0}, and this version speaks only format {FORMAT}")]
    Format(u16),
    /// A checksum does not match.
    #[error("a frame was damaged on its way (checksum)")]
    Checksum,
    /// The payload would be longer than any can be.
    #[error("a frame announces {0} bytes, more than the {MAX_PAYLOAD} that one may have")]
    TooLong(u32),
    /// The content contradicts the format.
    #[error("a frame's content is not valid")]
    Content,
}

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    kind: u8,
    volume: VolumeId,
    replica: ReplicaId,
    epoch: Epoch,
    session: SessionId,
    seq: u64,
    /// Bytes that follow.
    pub payload_bytes: u32,
    payload_crc: u32,
}

impl Header {
    /// Checks a header before its payload is read.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut r = Reader(bytes);
        if r.array::<4>()? != MAGIC {
            return Err(FrameError::Magic);
        }
        let format = u16::from_le_bytes(r.array()?);
        if u32::from_le_bytes(bytes[68..].try_into().map_err(|_| FrameError::Length)?) != crc32c(&bytes[..68])
        {
            return Err(FrameError::Checksum);
        }
        if format != FORMAT {
            return Err(FrameError::Format(format));
        }
        let kind = r.u8()?;
        if r.u8()? != 0 {
            return Err(FrameError::Content);
        }
        let header = Self {
            kind,
            volume: VolumeId(u128::from_le_bytes(r.array()?)),
            replica: ReplicaId(r.u32()?),
            epoch: r.epoch()?,
            session: SessionId(r.u64()?),
            seq: r.u64()?,
            payload_bytes: r.u32()?,
            payload_crc: r.u32()?,
        };
        if header.payload_bytes > MAX_PAYLOAD {
            return Err(FrameError::TooLong(header.payload_bytes));
        }
        Ok(header)
    }

    /// Checks the payload and puts the frame together.
    pub fn frame(&self, payload: &[u8]) -> Result<Frame, FrameError> {
        if payload.len() != self.payload_bytes as usize {
            return Err(FrameError::Length);
        }
        if crc32c(payload) != self.payload_crc {
            return Err(FrameError::Checksum);
        }
        let mut r = Reader(payload);
        let body = r.body(self.kind)?;
        if !r.0.is_empty() {
            return Err(FrameError::Content);
        }
        let Self { volume, replica, epoch, session, seq, .. } = *self;
        Ok(Frame { volume, replica, epoch, session, seq, body })
    }
}

impl Frame {
    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer(vec![0; HEADER_BYTES]);
        let kind = w.body(&self.body);
        let payload = w.0.split_off(HEADER_BYTES);
        let mut h = Writer(Vec::with_capacity(HEADER_BYTES + payload.len()));
        h.0.extend(MAGIC);
        h.0.extend(FORMAT.to_le_bytes());
        h.0.extend([kind, 0]);
        h.0.extend(self.volume.0.to_le_bytes());
        h.u32(self.replica.0);
        h.epoch(self.epoch);
        h.u64(self.session.0);
        h.u64(self.seq);
        h.u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        h.u32(crc32c(&payload));
        let crc = crc32c(&h.0);
        h.u32(crc);
        h.0.extend(payload);
        h.0
    }

    /// The frame that `bytes` are, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Length)?;
        Header::decode(header)?.frame(payload)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.number);
        self.u64(epoch.holder.0);
    }
    fn set(&mut self, set: ReplicaSet) {
        self.0.push(u8::try_from(set.len()).unwrap_or(u8::MAX));
        set.iter().for_each(|id| self.u32(id.0));
    }
    fn membership(&mut self, record: Membership) {
        self.u64(record.version.0);
        self.set(record.in_sync);
    }
    fn list(&mut self, list: &[SegmentIndex]) {
        debug_assert!(list.len() <= MAX_LIST, "a list is split before it is sent");
        self.u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
        list.iter().for_each(|segment| self.u32(segment.0));
    }
    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Prepare(epoch) => {
                self.0.push(0);
                self.epoch(epoch);
            }
            Ask::Accept { epoch, base, in_sync } => {
                self.0.push(1);
                self.epoch(epoch);
                self.membership(base);
                self.set(in_sync);
            }
            Ask::Learn { epoch, membership } => {
                self.0.push(2);
                self.epoch(epoch);
                self.membership(membership);
            }
        }
    }
    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Promised { epoch, ledger } => {
                self.0.push(0);
                self.epoch(epoch);
                self.epoch(ledger.promised);
                self.membership(ledger.committed);
                self.0.push(u8::from(ledger.accepted.is_some()));
                if let Some(vote) = ledger.accepted {
                    self.epoch(vote.epoch);
                    self.set(vote.in_sync);
                }
            }
            Answer::Accepted { epoch, version } | Answer::Learnt { epoch, version } => {
                self.0.push(if matches!(answer, Answer::Accepted { .. }) { 1 } else { 2 });
                self.epoch(epoch);
                self.u64(version.0);
            }
            Answer::Refused { epoch, promised } => {
                self.0.push(3);
                self.epoch(epoch);
                self.epoch(promised);
            }
        }
    }
    fn body(&mut self, body: &Body) -> u8 {
        match body {
            Body::Ask(ask) => {
                self.ask(*ask);
                1
            }
            Body::Answer(answer, introduction) => {
                self.answer(*answer);
                self.0.push(u8::from(introduction.is_some()));
                if let Some(introduction) = introduction {
                    self.0.push(u8::from(introduction.suspect));
                    self.u64(introduction.clean_until.0);
                    self.list(&introduction.active);
                }
                2
            }
            Body::Write { job, start, data, generation, copy } => {
                self.u64(job.0);
                self.u64(start.0);
                self.u64(*generation);
                self.0.push(u8::from(*copy));
                self.0.extend_from_slice(data);
                3
            }
            Body::Zero { job, start, count, generation } => {
                self.u64(job.0);
                self.u64(start.0);
                self.u32(count.0);
                self.u64(*generation);
                4
            }
            Body::Read { job, start, count } => {
                self.u64(job.0);
                self.u64(start.0);
                self.u32(count.0);
                5
            }
            Body::Flush { job } => {
                self.u64(job.0);
                6
            }
            Body::Settle { below } => {
                self.u64(*below);
                7
            }
            Body::ListDirty { job, since, from } => {
                self.u64(job.0);
                self.u64(since.0);
                self.u32(from.0);
                8
            }
            Body::Done { job, result } => {
                self.u64(job.0);
                self.0.push(match result {
                    Ok(()) => 0,
                    Err(Failure::Io) => 1,
                    Err(Failure::NoSpace) => 2,
                    Err(Failure::Invalid) => 3,
                });
                9
            }
            Body::Data { job, data } => {
                self.u64(job.0);
                self.0.extend_from_slice(data);
                10
            }
            Body::Segments { job, list } => {
                self.u64(job.0);
                self.list(list);
                11
            }
            Body::Closed => 12,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Content)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }
    fn flag(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Content),
        }
    }
    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn epoch(&mut self) -> Result<Epoch, FrameError> {
        Ok(Epoch { number: self.u64()?, holder: CoordinatorId(self.u64()?) })
    }
    fn set(&mut self) -> Result<ReplicaSet, FrameError> {
        let mut set = ReplicaSet::EMPTY;
        for nth in 1..=self.u8()? {
            set = set.with(ReplicaId(self.u32()?)).map_err(|_| FrameError::Content)?;
            if set.len() != usize::from(nth) {
                return Err(FrameError::Content);
            }
        }
        Ok(set)
    }
    fn membership(&mut self) -> Result<Membership, FrameError> {
        Ok(Membership { version: Version(self.u64()?), in_sync: self.set()? })
    }
    fn list(&mut self) -> Result<Vec<SegmentIndex>, FrameError> {
        let count = self.u32()? as usize;
        if count > MAX_LIST || self.0.len() != count * 4 {
            return Err(FrameError::Content);
        }
        (0..count).map(|_| self.u32().map(SegmentIndex)).collect()
    }
    fn ask(&mut self) -> Result<Ask, FrameError> {
        let kind = self.u8()?;
        let epoch = self.epoch()?;
        match kind {
            0 => Ok(Ask::Prepare(epoch)),
            1 => Ok(Ask::Accept { epoch, base: self.membership()?, in_sync: self.set()? }),
            2 => Ok(Ask::Learn { epoch, membership: self.membership()? }),
            _ => Err(FrameError::Content),
        }
    }
    fn answer(&mut self) -> Result<Answer, FrameError> {
        let kind = self.u8()?;
        let epoch = self.epoch()?;
        Ok(match kind {
            0 => {
                let (promised, committed) = (self.epoch()?, self.membership()?);
                let accepted = self
                    .flag()?
                    .then(|| Ok(Vote { epoch: self.epoch()?, in_sync: self.set()? }))
                    .transpose()?;
                Answer::Promised { epoch, ledger: Ledger { promised, committed, accepted } }
            }
            1 => Answer::Accepted { epoch, version: Version(self.u64()?) },
            2 => Answer::Learnt { epoch, version: Version(self.u64()?) },
            3 => Answer::Refused { epoch, promised: self.epoch()? },
            _ => return Err(FrameError::Content),
        })
    }
    /// The rest: at least one whole block, and not more than a job may have.
    fn blocks(&mut self) -> Result<Data, FrameError> {
        let rest = std::mem::take(&mut self.0);
        let whole = !rest.is_empty() && rest.len().is_multiple_of(BLOCK_BYTES as usize);
        if !whole || rest.len() > (MAX_JOB_BLOCKS * BLOCK_BYTES) as usize {
            return Err(FrameError::Content);
        }
        Ok(rest.into())
    }
    fn body(&mut self, kind: u8) -> Result<Body, FrameError> {
        if kind == 1 {
            return Ok(Body::Ask(self.ask()?));
        }
        if kind == 2 {
            let answer = self.answer()?;
            let introduction = if self.flag()? {
                let (suspect, clean_until) = (self.flag()?, Version(self.u64()?));
                Some(Box::new(Introduction { suspect, clean_until, active: self.list()? }))
            } else {
                None
            };
            return Ok(Body::Answer(answer, introduction));
        }
        if kind == 12 {
            return Ok(Body::Closed);
        }
        let first = self.u64()?;
        let job = JobId(first);
        Ok(match kind {
            3 => {
                let (start, generation, copy) = (BlockIndex(self.u64()?), self.u64()?, self.flag()?);
                Body::Write { job, start, generation, copy, data: self.blocks()? }
            }
            4 => {
                let (start, count) = (BlockIndex(self.u64()?), BlockCount(self.u32()?));
                Body::Zero { job, start, count, generation: self.u64()? }
            }
            5 => Body::Read { job, start: BlockIndex(self.u64()?), count: BlockCount(self.u32()?) },
            6 => Body::Flush { job },
            7 => Body::Settle { below: first },
            8 => Body::ListDirty { job, since: Version(self.u64()?), from: SegmentIndex(self.u32()?) },
            9 => {
                let result = match self.u8()? {
                    0 => Ok(()),
                    1 => Err(Failure::Io),
                    2 => Err(Failure::NoSpace),
                    3 => Err(Failure::Invalid),
                    _ => return Err(FrameError::Content),
                };
                Body::Done { job, result }
            }
            10 => Body::Data { job, data: self.blocks()? },
            11 => Body::Segments { job, list: self.list()? },
            _ => return Err(FrameError::Content),
        })
    }
}
