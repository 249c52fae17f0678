//! Messages of the vhost-user protocol: their numbers, their bytes. Pure.

/// Bytes of a header: request, flags, size.
pub const HEADER: usize = 12;
/// Bytes of the longest payload that is taken.
pub const PAYLOAD_MAX: usize = 4096;
/// File descriptors of the message with the most.
pub const FDS_MAX: usize = 8;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Features of the protocol: several queues, answers on demand, configuration space, record of what is under way.
pub const PROTOCOL_FEATURES: u64 = 1 | (1 << 3) | (1 << 9) | (1 << 12);
/// Whether protocol features are spoken of at all.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Why the conversation cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// The header is not one.
    #[error("a vhost-user message has version {0} or is longer than {PAYLOAD_MAX} bytes")]
    Header(u32),
    /// The payload does not fit the request.
    #[error("vhost-user request {0} has a payload that does not fit it")]
    Payload(u32),
    /// A file descriptor is missing.
    #[error("vhost-user request {0} came without its file descriptor")]
    Fd(u32),
    /// It cannot be done.
    #[error("vhost-user request {0}: {1}")]
    Refused(u32, String),
}

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Which request.
    pub request: u32,
    /// The other side wants to hear how it went.
    pub need_reply: bool,
    /// Bytes that follow.
    pub size: usize,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, MessageError> {
        let mut r = Fields(bytes);
        let (request, flags, size) = (r.u32()?, r.u32()?, r.u32()? as usize);
        if flags & 3 != VERSION || size > PAYLOAD_MAX {
            return Err(MessageError::Header(flags & 3));
        }
        Ok(Self { request, need_reply: flags & NEED_REPLY != 0, size })
    }
}

/// The bytes of a reply.
pub fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(request.to_le_bytes());
    bytes.extend((VERSION | REPLY).to_le_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A region of the guest's memory, as it is announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionAt {
    /// Address in the guest.
    pub guest: u64,
    /// Length.
    pub bytes: u64,
    /// Address in QEMU.
    pub user: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The record of what is under way: the file's part, queues, and entries of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InflightAt {
    /// Bytes mapped.
    pub bytes: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Entries of a queue.
    pub entries: u16,
}

impl InflightAt {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.bytes.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

#[allow(missing_docs)] // Named as the protocol names them.
/// A request of QEMU's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionAt>),
    SetVringNum(u32, u32),
    SetVringAddr {
        index: u32,
        desc: u64,
        used: u64,
        avail: u64,
    },
    SetVringBase(u32, u32),
    GetVringBase(u32),
    /// False: without a file descriptor, to be polled.
    SetVringKick(u32, bool),
    SetVringCall(u32, bool),
    SetVringErr(u32, bool),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(u32, bool),
    GetConfig {
        offset: u32,
        size: u32,
    },
    SetConfig,
    GetInflightFd(InflightAt),
    SetInflightFd(InflightAt),
    /// Not known.
    Other(u32),
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(MessageError::Payload(0))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u16(&mut self) -> Result<u16, MessageError> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, MessageError> {
        self.array().map(u64::from_le_bytes)
    }
}

impl Message {
    /// Reads a payload.
    pub fn decode(request: u32, payload: &[u8]) -> Result<Self, MessageError> {
        Self::read(request, &mut Fields(payload)).map_err(|_| MessageError::Payload(request))
    }

    fn read(request: u32, r: &mut Fields<'_>) -> Result<Self, MessageError> {
        let vring_fd = |value: u64| ((value & 0xff) as u32, value & 0x100 == 0);
        let inflight = |r: &mut Fields<'_>| {
            Ok::<_, MessageError>(InflightAt {
                bytes: r.u64()?,
                offset: r.u64()?,
                queues: r.u16()?,
                entries: r.u16()?,
            })
        };
        Ok(match request {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures(r.u64()?),
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => {
                let count = r.u32()?;
                r.u32()?;
                if count as usize > FDS_MAX {
                    return Err(MessageError::Payload(request));
                }
                let region = |r: &mut Fields<'_>| {
                    Ok::<_, MessageError>(RegionAt {
                        guest: r.u64()?,
                        bytes: r.u64()?,
                        user: r.u64()?,
                        offset: r.u64()?,
                    })
                };
                Self::SetMemTable((0..count).map(|_| region(r)).collect::<Result<_, _>>()?)
            }
            8 => Self::SetVringNum(r.u32()?, r.u32()?),
            9 => {
                let (index, _flags) = (r.u32()?, r.u32()?);
                Self::SetVringAddr { index, desc: r.u64()?, used: r.u64()?, avail: r.u64()? }
            }
            10 => Self::SetVringBase(r.u32()?, r.u32()?),
            11 => Self::GetVringBase(r.u32()?),
            12..=14 => {
                let (index, has_fd) = vring_fd(r.u64()?);
                match request {
                    12 => Self::SetVringKick(index, has_fd),
                    13 => Self::SetVringCall(index, has_fd),
                    _ => Self::SetVringErr(index, has_fd),
                }
            }
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures(r.u64()?),
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable(r.u32()?, r.u32()? != 0),
            24 => Self::GetConfig { offset: r.u32()?, size: r.u32()? },
            25 => Self::SetConfig,
            31 => Self::GetInflightFd(inflight(r)?),
            32 => Self::SetInflightFd(inflight(r)?),
            other => Self::Other(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_and_payloads() {
        let mut bytes = [0; HEADER];
        bytes[0] = 18;
        bytes[4] = 9;
        bytes[8] = 8;
        let header = Header::decode(&bytes).expect("valid");
        assert_eq!(header, Header { request: 18, need_reply: true, size: 8 });
        assert_eq!(Message::decode(18, &[1, 0, 0, 0, 1, 0, 0, 0]), Ok(Message::SetVringEnable(1, true)));
        assert_eq!(Message::decode(18, &[1, 0, 0]), Err(MessageError::Payload(18)));
        assert_eq!(Message::decode(12, &[3, 1, 0, 0, 0, 0, 0, 0]), Ok(Message::SetVringKick(3, false)));
        let many = [&9u32.to_le_bytes()[..], &[0; 300]].concat();
        assert_eq!(Message::decode(5, &many), Err(MessageError::Payload(5)), "more regions than descriptors");
        bytes[4] = 2;
        assert!(Header::decode(&bytes).is_err());
        let at = InflightAt { bytes: 4096, offset: 0, queues: 2, entries: 128 };
        assert_eq!(Message::decode(31, &at.encode()), Ok(Message::GetInflightFd(at)));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(request in 0u32..50, payload in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::decode(request, &payload);
        }
    }
}
