//! NBD, the server's side: fixed newstyle negotiation, simple replies. Pure: bytes in, [`Asked`] and bytes out.
//!
//! Flush, FUA, trim and write-zeroes are offered; block sizes are said (512 at least, 4096 preferred, 32 MiB at most).
//! Several connections see one device, a flush on one covers all. Payload of a write is taken in parts as it comes, so
//! that a connection holds no more than one part. TLS, structured replies and metadata contexts are declined.

use sheaf_block_core::wire::Data;
use sheaf_disk::buffer::Buffer;

use super::{Asked, Completion, Failed};

/// Bytes of the longest request for data.
pub const REQUEST_MAX: u32 = 32 << 20;
/// Bytes of a part of a write.
pub const PART: usize = 512 << 10;
/// Bytes of the longest option.
const OPTION_MAX: usize = 64 << 10;

const GREETING: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256;
const COMMAND_FUA: u16 = 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_UNSUPPORTED: u32 = (1 << 31) + 1;
const REP_INVALID: u32 = (1 << 31) + 3;
const REP_UNKNOWN: u32 = (1 << 31) + 6;
const REP_TOO_BIG: u32 = (1 << 31) + 9;

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NbdError {
    /// Not NBD, or not what we can go on from.
    #[error("the client does not speak NBD ({0})")]
    Protocol(&'static str),
    /// The export does not exist, and the option has no way to say so.
    #[error("the client asked for an export that is not here")]
    Export,
    /// More data than any request may have.
    #[error("a request with {0} bytes of data, more than {REQUEST_MAX}")]
    TooLong(u32),
}

/// The device, as it is told to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its name; the empty name means it too.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Options { no_zeroes: bool },
    Requests,
    Payload { offset: u64, left: u32, part: Buffer, filled: usize, keep: bool },
    Ended,
}

/// One connection.
#[derive(Debug)]
pub struct Nbd {
    export: Export,
    state: State,
    buffer: Vec<u8>,
}

/// Bytes that go out at once, or a part of shared data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sent {
    /// A few bytes.
    Bytes(Vec<u8>),
    /// Data of a reply.
    Shared(Data),
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.iter().take(2).fold(0, |sum, byte| sum << 8 | u16::from(*byte))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl Nbd {
    /// A connection that was just made; `out` gets the greeting.
    pub fn new(export: Export, out: &mut Vec<Sent>) -> Self {
        let mut hello = Vec::with_capacity(18);
        hello.extend(GREETING.to_be_bytes());
        hello.extend(OPTION.to_be_bytes());
        hello.extend(3u16.to_be_bytes());
        out.push(Sent::Bytes(hello));
        Self { export, state: State::ClientFlags, buffer: Vec::new() }
    }

    /// The size that the client was told.
    pub fn bytes(&self) -> u64 {
        self.export.bytes
    }

    /// Where the next bytes of a write may be read to directly; none: use [`Nbd::feed`].
    pub fn payload(&mut self) -> Option<&mut [u8]> {
        if !self.buffer.is_empty() {
            return None;
        }
        match &mut self.state {
            State::Payload { part, filled, .. } => Some(&mut part[*filled..]),
            _ => None,
        }
    }

    /// So many bytes were read there.
    pub fn payload_filled(&mut self, count: usize, asked: &mut Vec<Asked>) {
        let State::Payload { part, filled, .. } = &mut self.state else { return };
        *filled += count;
        if *filled < part.len() {
            return;
        }
        let full = std::mem::replace(&mut self.state, State::Requests);
        let State::Payload { offset, left, part, keep, .. } = full else { return };
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let left = left - len;
        if left > 0 {
            let offset = offset.saturating_add(u64::from(len));
            self.state = State::Payload { offset, left, part: fresh(left), filled: 0, keep };
        }
        if keep {
            asked.push(Asked::WritePart { offset, data: part.into() });
            asked.extend((left == 0).then_some(Asked::WriteEnd));
        }
    }

    /// Takes bytes in.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<Sent>,
        asked: &mut Vec<Asked>,
    ) -> Result<(), NbdError> {
        // What is left over is the exception: bytes are looked at where they are.
        let mut kept = std::mem::take(&mut self.buffer);
        let input: &[u8] = if kept.is_empty() {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            &kept
        };
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let taken = match &mut self.state {
                State::Ended => rest.len(),
                State::Payload { .. } => {
                    let State::Payload { part, filled, .. } = &mut self.state else {
                        unreachable!("just matched")
                    };
                    let count = rest.len().min(part.len() - *filled);
                    let from = *filled;
                    part[from..from + count].copy_from_slice(&rest[..count]);
                    if count > 0 {
                        self.payload_filled(count, asked);
                    }
                    count
                }
                State::ClientFlags => self.client_flags(rest)?,
                State::Options { no_zeroes } => {
                    let no_zeroes = *no_zeroes;
                    self.option(rest, no_zeroes, out, asked)?
                }
                State::Requests => self.request(rest, asked)?,
            };
            at += taken;
            if taken == 0 || at == input.len() {
                break;
            }
        }
        if at < input.len() {
            self.buffer = input[at..].to_vec();
        }
        Ok(())
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Result<usize, NbdError> {
        if bytes.len() < 4 {
            return Ok(0);
        }
        let flags = be32(bytes);
        if flags & 1 == 0 {
            return Err(NbdError::Protocol("fixed newstyle negotiation is needed"));
        }
        if flags & !3 != 0 {
            return Err(NbdError::Protocol("unknown flags"));
        }
        self.state = State::Options { no_zeroes: flags & 2 != 0 };
        Ok(4)
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn option(
        &mut self,
        bytes: &[u8],
        no_zeroes: bool,
        out: &mut Vec<Sent>,
        asked: &mut Vec<Asked>,
    ) -> Result<usize, NbdError> {
        if bytes.len() < 16 {
            return Ok(0);
        }
        if be64(bytes) != OPTION {
            return Err(NbdError::Protocol("an option begins otherwise"));
        }
        let (option, len) = (be32(&bytes[8..]), be32(&bytes[12..]) as usize);
        if len > OPTION_MAX {
            reply(out, option, REP_TOO_BIG, &[]);
            return Err(NbdError::Protocol("an option is too long"));
        }
        let Some(data) = bytes.get(16..16 + len) else { return Ok(0) };
        match option {
            OPT_EXPORT_NAME => {
                if !self.is_ours(data) {
                    return Err(NbdError::Export);
                }
                let mut answer = Vec::new();
                answer.extend(self.export.bytes.to_be_bytes());
                answer.extend(FLAGS.to_be_bytes());
                if !no_zeroes {
                    answer.extend([0; 124]);
                }
                out.push(Sent::Bytes(answer));
                self.state = State::Requests;
            }
            OPT_ABORT => {
                reply(out, option, REP_ACK, &[]);
                asked.push(Asked::Leave);
                self.state = State::Ended;
            }
            OPT_LIST if len == 0 => {
                let mut name = u32::try_from(self.export.name.len()).unwrap_or(0).to_be_bytes().to_vec();
                name.extend(self.export.name.as_bytes());
                reply(out, option, REP_SERVER, &name);
                reply(out, option, REP_ACK, &[]);
            }
            OPT_LIST => reply(out, option, REP_INVALID, &[]),
            OPT_INFO | OPT_GO => self.info(option, data, out),
            _ => reply(out, option, REP_UNSUPPORTED, &[]),
        }
        Ok(16 + len)
    }

    fn info(&mut self, option: u32, data: &[u8], out: &mut Vec<Sent>) {
        let name_len = be32(data) as usize;
        let valid = data.len() >= 6
            && data.len() - 6 >= name_len
            && data.len() - 6 - name_len == 2 * usize::from(be16(&data[4 + name_len..]));
        if !valid {
            return reply(out, option, REP_INVALID, &[]);
        }
        if !self.is_ours(&data[4..4 + name_len]) {
            return reply(out, option, REP_UNKNOWN, b"there is no such export");
        }
        let mut info = vec![0, 0];
        info.extend(self.export.bytes.to_be_bytes());
        info.extend(FLAGS.to_be_bytes());
        reply(out, option, REP_INFO, &info);
        let mut sizes = vec![0, 3];
        [512, 4096, REQUEST_MAX].iter().for_each(|size: &u32| sizes.extend(size.to_be_bytes()));
        reply(out, option, REP_INFO, &sizes);
        reply(out, option, REP_ACK, &[]);
        if option == OPT_GO {
            self.state = State::Requests;
        }
    }

    fn request(&mut self, bytes: &[u8], asked: &mut Vec<Asked>) -> Result<usize, NbdError> {
        if bytes.len() < 28 {
            return Ok(0);
        }
        if be32(bytes) != REQUEST {
            return Err(NbdError::Protocol("a request begins otherwise"));
        }
        let (flags, kind, cookie) = (be16(&bytes[4..]), be16(&bytes[6..]), be64(&bytes[8..]));
        let (offset, len) = (be64(&bytes[16..]), be32(&bytes[24..]));
        let fua = flags & COMMAND_FUA != 0;
        let fits = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.export.bytes);
        let sectors = offset.is_multiple_of(512) && len.is_multiple_of(512) && len > 0;
        let fail = |with| Asked::Fail { cookie, with };
        match kind {
            1 => {
                if len > REQUEST_MAX {
                    return Err(NbdError::TooLong(len));
                }
                let keep = fits && sectors;
                if !keep {
                    asked.push(fail(if fits { Failed::Invalid } else { Failed::NoSpace }));
                } else {
                    asked.push(Asked::WriteBegin { cookie, fua });
                }
                if len > 0 {
                    self.state = State::Payload { offset, left: len, part: fresh(len), filled: 0, keep };
                }
            }
            0 if fits && sectors && len <= REQUEST_MAX => asked.push(Asked::Read { cookie, offset, len }),
            4 if fits && sectors => asked.push(Asked::Discard { cookie, offset, len, fua }),
            6 if fits && sectors => asked.push(Asked::Zero { cookie, offset, len, fua }),
            3 => asked.push(Asked::Flush { cookie }),
            0 | 4 | 6 => asked.push(fail(Failed::Invalid)),
            2 => {
                asked.push(Asked::Leave);
                self.state = State::Ended;
            }
            _ => asked.push(fail(Failed::Unsupported)),
        }
        Ok(28)
    }
}

/// Room for the next part of a write.
fn fresh(left: u32) -> Buffer {
    Buffer::any((left as usize).min(PART))
}

fn reply(out: &mut Vec<Sent>, option: u32, kind: u32, data: &[u8]) {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(OPTION_REPLY.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(data);
    out.push(Sent::Bytes(bytes));
}

/// The bytes of an answer.
pub fn answer(completion: Completion, out: &mut Vec<Sent>) {
    let (error, data): (u32, _) = match completion.result {
        Ok(data) => (0, data),
        Err(Failed::Io) => (5, vec![]),
        Err(Failed::Invalid) => (22, vec![]),
        Err(Failed::NoSpace) => (28, vec![]),
        Err(Failed::Unsupported) => (95, vec![]),
    };
    let mut head = Vec::with_capacity(16);
    head.extend(REPLY.to_be_bytes());
    head.extend(error.to_be_bytes());
    head.extend(completion.cookie.to_be_bytes());
    out.push(Sent::Bytes(head));
    out.extend(data.into_iter().map(Sent::Shared));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION.to_be_bytes().to_vec();
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    fn connection() -> (Nbd, Vec<Sent>) {
        let mut out = vec![];
        let export = Export { name: "disk".into(), bytes: 8 << 20 };
        let nbd = Nbd::new(export, &mut out);
        (nbd, out)
    }

    fn session() -> Vec<u8> {
        let go = [&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat();
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option(8, &[]));
        bytes.extend(option(OPT_GO, &go));
        bytes.extend(request(0, 0, 1, 4096, 8192));
        bytes.extend(request(1, 1, 2, 512, 700 * 1024));
        bytes.extend(vec![7; 700 * 1024]);
        bytes.extend(request(0, 3, 3, 0, 0));
        bytes.extend(request(0, 1, 4, 8 << 20, 512));
        bytes.extend(vec![9; 512]);
        bytes.extend(request(0, 6, 5, 0, 4096));
        bytes.extend(request(0, 4, 6, 100, 4096));
        bytes.extend(request(0, 2, 7, 0, 0));
        bytes
    }

    #[test]
    fn a_session_means_the_same_however_it_is_cut() {
        let bytes = session();
        let mut results = vec![];
        for step in [1, 7, 28, 1000, 100_000, bytes.len()] {
            let (mut nbd, mut out) = connection();
            let mut asked = vec![];
            for chunk in bytes.chunks(step) {
                nbd.feed(chunk, &mut out, &mut asked).expect("is NBD");
            }
            results.push((out, asked));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        let (out, asked) = &results[0];
        assert_eq!(out.len(), 1 + 1 + 3, "greeting, declined option, two infos and an end");
        assert_eq!(asked[0], Asked::Read { cookie: 1, offset: 4096, len: 8192 });
        assert_eq!(asked[1], Asked::WriteBegin { cookie: 2, fua: true });
        let parts: Vec<(u64, usize)> = asked
            .iter()
            .filter_map(|asked| match asked {
                Asked::WritePart { offset, data } => Some((*offset, data.len())),
                _ => None,
            })
            .collect();
        assert_eq!(parts, [(512, PART), (512 + PART as u64, 700 * 1024 - PART)]);
        assert_eq!(
            asked[5..],
            [
                Asked::Flush { cookie: 3 },
                Asked::Fail { cookie: 4, with: Failed::NoSpace },
                Asked::Zero { cookie: 5, offset: 0, len: 4096, fua: false },
                Asked::Fail { cookie: 6, with: Failed::Invalid },
                Asked::Leave,
            ]
        );
    }

    #[test]
    fn what_is_not_nbd_ends_the_connection() {
        let cut = |bytes: &[u8]| {
            let (mut nbd, mut out) = connection();
            nbd.feed(bytes, &mut out, &mut vec![]).expect_err("is refused").to_string()
        };
        assert!(cut(&[0; 4]).contains("fixed newstyle"));
        assert!(cut(&[&3u32.to_be_bytes()[..], &[1; 16]].concat()).contains("an option begins"));
        let long = [&3u32.to_be_bytes()[..], &option(1, b"disk"), &request(0, 1, 1, 0, u32::MAX)].concat();
        assert!(cut(&long).contains("4294967295"));
        let other = [&3u32.to_be_bytes()[..], &option(1, b"other")].concat();
        assert!(cut(&other).contains("not here"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), start in 0usize..3) {
            let (mut nbd, mut out) = connection();
            let whole = session();
            let prefix = [0, 4, 4 + 16 + 16 + 10][start];
            let _ = nbd.feed(&whole[..prefix], &mut out, &mut vec![]);
            let _ = nbd.feed(&bytes, &mut out, &mut vec![]);
        }
    }
}
