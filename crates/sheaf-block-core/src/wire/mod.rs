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

mod code;
mod layers;

use crate::crc::{crc32c, crc32c_more};
use crate::disk::Partial;
pub use crate::disk::{Data, Digest, Failure, Part};
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, Epoch, JobId, ReplicaId, SegmentIndex, SessionId, Version, VolumeId,
};
use crate::jobs::MAX_JOB_BLOCKS;
use crate::membership::{Answer, Ask};
use crate::structure::{LayerId, Operation, Structure};
use code::{Reader, Writer};

/// The format written by this version.
pub const FORMAT: u16 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of the longest payload: the data of the largest job and what describes it.
pub const MAX_PAYLOAD: u32 = MAX_JOB_BLOCKS * BLOCK_BYTES + 64;
/// Segments that one list can name; so many can be in a replica's activity log.
pub const MAX_LIST: usize = 1 << 16;
const MAGIC: [u8; 4] = *b"SHFB";

/// Makes a frame's blocks, which lie in the reader's own memory, its own.
pub type Keep = fn(&[u8]) -> Data;

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

/// What a replica says of itself in the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Its machine went down with segments in the activity log: writes that were not synced may be lost.
    pub suspect: bool,
    /// The newest record in which it knows itself in sync.
    pub clean_until: Version,
    /// It knows what was written in records after this one only.
    pub forgotten: Version,
    /// Its layers.
    pub structure: Structure,
    /// Its activity log, at most [`MAX_LIST`].
    pub active: Vec<SegmentIndex>,
}

/// The content of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Membership: a question. A *prepare* opens a session. Boxed, as what is seldom: frames are handed on many times.
    Ask(Box<Ask>),
    /// Membership: an answer. A promise carries the session it opened and the introduction.
    Answer(Box<Answer>, Option<Box<Introduction>>),
    /// A piece of work of the coordinator.
    Do(JobId, Work),
    /// How it ended.
    Done(JobId, Result<Yield, Failure>),
    /// All of the in-sync set has synced the writes of generations below this: their segments may leave the activity log.
    Settle {
        /// The first generation that is not settled.
        below: u64,
        /// They are to leave it now: the guest rests.
        all: bool,
    },
    /// All replicas that the volume has are in sync with this record: stamps up to it are not needed any more.
    Forget {
        /// The record.
        upto: Version,
    },
    /// The session is over: frames of it are not taken. The coordinator opens another.
    Closed,
}

/// What a replica is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Write whole blocks.
    Write {
        /// First block.
        start: BlockIndex,
        /// Whole blocks.
        data: Data,
        /// The flush that will cover it.
        generation: u64,
    },
    /// Make whole blocks zero, and give back their space.
    Zero {
        /// First block.
        start: BlockIndex,
        /// How many.
        count: BlockCount,
        /// The flush that will cover it.
        generation: u64,
    },
    /// Read whole blocks.
    Read {
        /// First block.
        start: BlockIndex,
        /// How many.
        count: BlockCount,
    },
    /// Make everything durable that was answered before.
    Flush {
        /// It has been made equal to the others: it is not suspect any more once that is durable.
        trust: bool,
    },
    /// Do an operation on the layers, once: if it is done already, say so again.
    Operate(Operation),
    /// Take over these layers, to be rebuilt. Answered with what is missing of them.
    Adopt {
        /// The layers of the replicas in sync.
        structure: Box<Structure>,
        /// Whether what was written since it was in sync is known.
        known: bool,
    },
    /// Name the segments written in records after this one, from `from` on.
    Dirty {
        /// The last record in which the returning replica was in sync.
        since: Version,
        /// Where the list goes on.
        from: SegmentIndex,
        /// At most so many; fewer end the list.
        count: u32,
    },
    /// Name segments of which the layer holds anything, from `from` on.
    Present {
        /// The layer.
        layer: LayerId,
        /// Where the list goes on.
        from: SegmentIndex,
        /// At most so many; fewer end the list.
        count: u32,
    },
    /// Read what a layer itself holds of a segment.
    ReadPart {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Read what can be read of that. What cannot is known to be damaged from then on, durably.
    Salvage {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Make a layer hold exactly this of a segment.
    WritePart {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
        /// What it is to hold.
        part: Part,
        /// The flush that will cover it, if it is to be in the activity log.
        generation: Option<u64>,
    },
    /// The layer is complete below this segment: sync, and remember.
    Copied {
        /// The layer.
        layer: LayerId,
        /// The first segment that is missing.
        below: SegmentIndex,
    },
    /// Copy the blocks of this segment that the layer holds and its only child does not to the child.
    Fold {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Compute the checksum of a layer's part of a segment.
    Digest {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Record the checksum of a snapshot's part of a segment.
    Seal {
        /// The layer.
        layer: LayerId,
        /// The segment.
        segment: SegmentIndex,
        /// The checksum.
        checksum: u32,
    },
}

/// What a piece of work yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Yield {
    /// It is done.
    Nothing,
    /// What was read.
    Data(Data),
    /// What a layer holds.
    Part(Part),
    /// Segments, in ascending order.
    Segments(Vec<SegmentIndex>),
    /// Checksums.
    Digest(Digest),
    /// What is missing of the layers taken over.
    Missing(Vec<(LayerId, Partial)>),
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
        let mut r = Reader(bytes, Data::copy_from_slice);
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

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&FORMAT.to_le_bytes());
        put(&[self.kind, 0]);
        put(&self.volume.0.to_le_bytes());
        put(&self.replica.0.to_le_bytes());
        put(&self.epoch.number.to_le_bytes());
        put(&self.epoch.holder.0.to_le_bytes());
        put(&self.session.0.to_le_bytes());
        put(&self.seq.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
        put(&self.payload_crc.to_le_bytes());
        let crc = crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Checks the payload and puts the frame together; blocks are kept by `keep`.
    pub fn frame(&self, payload: &[u8], keep: Keep) -> Result<Frame, FrameError> {
        if payload.len() != self.payload_bytes as usize {
            return Err(FrameError::Length);
        }
        if crc32c(payload) != self.payload_crc {
            return Err(FrameError::Checksum);
        }
        let mut r = Reader(payload, keep);
        let body = r.body(self.kind)?;
        if !r.0.is_empty() {
            return Err(FrameError::Content);
        }
        let Self { volume, replica, epoch, session, seq, .. } = *self;
        Ok(Frame { volume, replica, epoch, session, seq, body })
    }
}

/// The checksum of the payload that was encoded last: the next frame is often the same work for another replica, and its blocks
/// need not be gone through again.
#[derive(Debug, Default)]
pub struct Summed {
    own: Vec<u8>,
    data: Data,
    crc: u32,
}

impl Summed {
    /// Lets go of the blocks.
    pub fn clear(&mut self) {
        self.own.clear();
        self.data = Data::new();
    }

    fn of(&mut self, own: &[u8], data: Option<&Data>) -> u32 {
        let Some(data) = data else { return crc32c(own) };
        // As long as they are held here nobody can change them.
        let same = self.data.as_ptr() == data.as_ptr() && self.data.len() == data.len();
        if !same || self.own != own {
            self.crc = crc32c_more(crc32c(own), data);
            self.data = data.clone();
            self.own.clear();
            self.own.extend_from_slice(own);
        }
        self.crc
    }
}

impl Frame {
    /// Appends the bytes of the frame but for the blocks at its end, which are returned: they are shared with all who carry them.
    pub fn encode_onto(&self, bytes: &mut Vec<u8>, summed: &mut Summed) -> Option<Data> {
        let start = bytes.len();
        bytes.resize(start + HEADER_BYTES, 0);
        let mut w = Writer(std::mem::take(bytes));
        let kind = w.body(&self.body);
        *bytes = w.0;
        let data = self.body.data().filter(|data| !data.is_empty());
        let own = &bytes[start + HEADER_BYTES..];
        let crc = summed.of(own, data);
        let payload = own.len() + data.map_or(0, |data| data.len());
        let header = Header {
            kind,
            volume: self.volume,
            replica: self.replica,
            epoch: self.epoch,
            session: self.session,
            seq: self.seq,
            payload_bytes: u32::try_from(payload).unwrap_or(u32::MAX),
            payload_crc: crc,
        };
        bytes[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        data.cloned()
    }

    /// The bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let data = self.encode_onto(&mut bytes, &mut Summed::default());
        data.iter().for_each(|data| bytes.extend_from_slice(data));
        bytes
    }

    /// The frame that `bytes` are, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Length)?;
        Header::decode(header)?.frame(payload, Data::copy_from_slice)
    }
}

impl Body {
    /// The blocks that it carries; they are the end of its payload.
    fn data(&self) -> Option<&Data> {
        match self {
            Self::Do(_, Work::Write { data, .. }) | Self::Done(_, Ok(Yield::Data(data))) => Some(data),
            Self::Do(_, Work::WritePart { part, .. }) | Self::Done(_, Ok(Yield::Part(part))) => {
                Some(&part.bytes)
            }
            _ => None,
        }
    }
}
