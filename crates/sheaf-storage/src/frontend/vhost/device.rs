//! A virtio block device for one guest: the conversation with QEMU, the queues, requests from and to the guest's memory.
//!
//! The reactor owns it, reads its socket and its kicks when they are ready, gives what it [`Asked`] to the volume, and
//! brings the [`Completion`]s back. Answers are put into the rings at once; the guest is told once a round.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use sheaf_block_core::disk::Data;
use sheaf_disk::buffer::Buffer;

use super::memory::{GuestMemory, Mapping};
use super::message::{
    F_PROTOCOL_FEATURES, FDS_MAX, HEADER, Header, InflightAt, Message, MessageError, PROTOCOL_FEATURES, reply,
};
use super::queue::{Addresses, Broken, Chain, ENTRIES_MAX, Queue, Segment, record_bytes};
use crate::frontend::{Asked, Completion, Failed, nbd};

/// Queues of a device.
const QUEUES: usize = 16;
const SECTOR: u64 = 512;
const SEGMENTS_MAX: u32 = 126;
/// Sectors that one discard or write-zeroes may cover: 64 MiB.
const ZERO_SECTORS_MAX: u32 = 128 << 10;

const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const F_INDIRECT: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = F_SEG_MAX
    | F_BLK_SIZE
    | F_FLUSH
    | F_TOPOLOGY
    | F_MQ
    | F_DISCARD
    | F_WRITE_ZEROES
    | F_INDIRECT
    | F_EVENT_IDX
    | F_VERSION_1
    | F_PROTOCOL_FEATURES;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const STATUS_OK: u8 = 0;
const STATUS_IO: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Something to watch, or not any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// Kicks of this queue.
    Begin(u16),
    /// The queue is being given another descriptor, or none.
    End(u16),
}

#[derive(Debug, Default)]
struct Vring {
    entries: u16,
    user: Addresses,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    queue: Option<Queue>,
    under_way: u32,
    answered: bool,
}

/// A request of the guest that is not answered.
#[derive(Debug)]
struct Pending {
    queue: u16,
    head: u16,
    /// Where read data goes.
    to: Vec<Segment>,
    status: u64,
}

/// One connection of QEMU's.
#[derive(Debug)]
pub struct Device {
    name: String,
    bytes: u64,
    features: u64,
    memory: GuestMemory,
    vrings: Vec<Vring>,
    record: Option<(Mapping, InflightAt)>,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    pending: HashMap<u64, Pending>,
    /// Queues whose end QEMU waits for.
    ending: Vec<u32>,
    out: Vec<u8>,
}

impl Device {
    /// A device of this size; the name is its serial number.
    pub fn new(name: &str, bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            bytes,
            features: 0,
            memory: GuestMemory::default(),
            vrings: (0..QUEUES).map(|_| Vring::default()).collect(),
            record: None,
            input: Vec::new(),
            fds: Vec::new(),
            pending: HashMap::new(),
            ending: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Requests of the guest that are not answered.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// The descriptor that a queue is kicked by.
    pub fn kick_fd(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        Some(self.vrings.get(usize::from(queue))?.kick.as_ref()?.as_fd())
    }

    /// All descriptors that queues are kicked by.
    pub fn kick_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vrings.iter().filter_map(|vring| vring.kick.as_ref()).map(AsFd::as_fd)
    }

    /// Reads what QEMU says, and does it. False: it has hung up.
    pub fn readable(
        &mut self,
        stream: &UnixStream,
        watch: &mut dyn FnMut(&Self, Watch),
        asked: &mut Vec<Asked>,
    ) -> Result<bool, MessageError> {
        loop {
            let head = self.input.first_chunk::<HEADER>().map(Header::decode).transpose()?;
            let whole = head.map_or(HEADER, |header| HEADER + header.size);
            if let Some(header) = head.filter(|_| self.input.len() == whole) {
                let message = Message::decode(header.request, &self.input[HEADER..])?;
                self.input.clear();
                let done = self.message(stream, header, message, watch, asked);
                // What came with this message belongs to no later one.
                self.fds.clear();
                done?;
                self.send(stream)?;
                continue;
            }
            // Never beyond the message: the descriptors that come with bytes are those of its first byte.
            let mut bytes = vec![0; whole - self.input.len()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let count =
                match rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                    Ok(message) => message.bytes,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(true),
                    Err(errno) => return Err(MessageError::Refused(0, errno.to_string())),
                };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            if count == 0 {
                return Ok(false);
            }
            self.input.extend_from_slice(&bytes[..count]);
        }
    }

    fn send(&mut self, stream: &UnixStream) -> Result<(), MessageError> {
        while !self.out.is_empty() {
            match rustix::net::send(stream, &self.out, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                // Replies are short and QEMU waits for each: a full socket is a broken peer.
                Err(errno) => return Err(MessageError::Refused(0, errno.to_string())),
            }
        }
        Ok(())
    }

    fn vring(&mut self, request: u32, index: u32) -> Result<&mut Vring, MessageError> {
        let refused = || MessageError::Refused(request, format!("queue {index} of {QUEUES}"));
        self.vrings.get_mut(index as usize).ok_or_else(refused)
    }

    fn message(
        &mut self,
        stream: &UnixStream,
        header: Header,
        message: Message,
        watch: &mut dyn FnMut(&Self, Watch),
        asked: &mut Vec<Asked>,
    ) -> Result<(), MessageError> {
        let request = header.request;
        let refused = |error: &dyn std::fmt::Display| MessageError::Refused(request, error.to_string());
        let u64_reply = |value: u64| reply(request, &value.to_le_bytes());
        match message {
            Message::GetFeatures => return self.answer(u64_reply(FEATURES)),
            Message::GetProtocolFeatures => return self.answer(u64_reply(PROTOCOL_FEATURES)),
            Message::GetQueueNum => return self.answer(u64_reply(QUEUES as u64)),
            Message::GetConfig { offset, size } => {
                let config = self.config();
                let mut payload = [offset.to_le_bytes(), size.to_le_bytes(), [0; 4]].concat();
                let bytes = (offset..offset.saturating_add(size.min(256)))
                    .map(|at| config.get(at as usize).copied().unwrap_or(0));
                payload.extend(bytes);
                return self.answer(reply(request, &payload));
            }
            Message::GetInflightFd(wanted) => return self.new_record(stream, request, wanted),
            Message::GetVringBase(index) => {
                self.vring(request, index)?.enabled = false;
                watch(self, Watch::End(index as u16));
                self.vring(request, index)?.kick = None;
                self.ending.push(index);
                self.end_queues();
                return Ok(());
            }
            Message::SetFeatures(features) => {
                if features & !FEATURES != 0 {
                    return Err(refused(&"features that were not offered"));
                }
                self.features = features;
            }
            Message::SetProtocolFeatures(_) | Message::SetOwner | Message::ResetOwner => {}
            Message::SetMemTable(regions) => {
                let fds = std::mem::take(&mut self.fds);
                self.memory = GuestMemory::new(regions, fds).map_err(|error| refused(&error))?;
            }
            Message::SetVringNum(index, entries) => {
                let entries =
                    u16::try_from(entries).ok().filter(|n| n.is_power_of_two() && *n <= ENTRIES_MAX);
                let entries = entries.ok_or_else(|| refused(&"a queue of that size"))?;
                self.vring(request, index)?.entries = entries;
            }
            Message::SetVringAddr { index, desc, used, avail } => {
                self.vring(request, index)?.user = Addresses { desc, avail, used };
            }
            Message::SetVringBase(index, base) => self.vring(request, index)?.base = (base & 0xffff) as u16,
            Message::SetVringKick(index, has_fd) => {
                watch(self, Watch::End(index as u16));
                let fd = self.fd(request, has_fd)?;
                self.vring(request, index)?.kick = fd;
                watch(self, Watch::Begin(index as u16));
                self.start_queue(index, asked)?;
            }
            Message::SetVringCall(index, has_fd) => {
                let fd = self.fd(request, has_fd)?;
                self.vring(request, index)?.call = fd;
            }
            Message::SetVringErr(..) | Message::SetConfig => {}
            Message::SetVringEnable(index, enabled) => {
                self.vring(request, index)?.enabled = enabled;
                if enabled {
                    self.start_queue(index, asked)?;
                }
            }
            Message::SetInflightFd(at) => {
                let fd = self.fds.pop().ok_or(MessageError::Fd(request))?;
                let bytes = at.offset.checked_add(at.bytes).and_then(|end| usize::try_from(end).ok());
                let mapping = bytes
                    .ok_or(MessageError::Payload(request))
                    .and_then(|bytes| Mapping::new(&fd, bytes).map_err(|error| refused(&error)))?;
                if at.bytes < u64::from(at.queues) * record_bytes(at.entries) {
                    return Err(refused(&"a record that is too short"));
                }
                self.record = Some((mapping, at));
            }
            Message::Other(number) => {
                if header.need_reply {
                    return self.answer(u64_reply(1));
                }
                tracing::debug!(number, "a vhost-user request that is not known");
                return Ok(());
            }
        }
        if header.need_reply { self.answer(u64_reply(0)) } else { Ok(()) }
    }

    fn answer(&mut self, bytes: Vec<u8>) -> Result<(), MessageError> {
        self.out.extend(bytes);
        Ok(())
    }

    fn fd(&mut self, request: u32, has_fd: bool) -> Result<Option<OwnedFd>, MessageError> {
        match (has_fd, self.fds.pop()) {
            (true, None) => Err(MessageError::Fd(request)),
            (true, fd) => Ok(fd),
            (false, _) => Ok(None),
        }
    }

    /// Makes the record of what is under way, which QEMU will keep.
    fn new_record(
        &mut self,
        stream: &UnixStream,
        request: u32,
        wanted: InflightAt,
    ) -> Result<(), MessageError> {
        let refused = |error: io::Error| MessageError::Refused(request, error.to_string());
        if usize::from(wanted.queues) > QUEUES || wanted.entries > ENTRIES_MAX || wanted.entries == 0 {
            return Err(MessageError::Payload(request));
        }
        let bytes = u64::from(wanted.queues) * record_bytes(wanted.entries);
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let fd = rustix::fs::memfd_create("inflight", flags).map_err(|errno| refused(errno.into()))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(|errno| refused(errno.into()))?;
        let at = InflightAt { bytes, offset: 0, ..wanted };
        self.record = Some((Mapping::new(&fd, bytes as usize).map_err(refused)?, at));
        let message = reply(request, &at.encode());
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)
            .map_err(|errno| refused(errno.into()))?;
        Ok(())
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.bytes / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        // Physical blocks of 2^3 sectors.
        put(24, &[3, 0]);
        put(26, &8u16.to_le_bytes());
        put(32, &[1]);
        put(34, &(QUEUES as u16).to_le_bytes());
        put(36, &ZERO_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    /// Begins to serve a queue when everything for it is there.
    fn start_queue(&mut self, index: u32, asked: &mut Vec<Asked>) -> Result<(), MessageError> {
        let negotiated = self.features & F_PROTOCOL_FEATURES != 0;
        let event_idx = self.features & F_EVENT_IDX != 0;
        let vring = self.vring(18, index)?;
        if vring.queue.is_some() || vring.kick.is_none() || (negotiated && !vring.enabled) {
            return Ok(());
        }
        let (user, entries, base) = (vring.user, vring.entries, vring.base);
        let guest = |address: u64| self.memory.guest_of(address);
        let at = match (guest(user.desc), guest(user.avail), guest(user.used)) {
            (Some(desc), Some(avail), Some(used)) => Addresses { desc, avail, used },
            _ => return Ok(()),
        };
        let record =
            self.record.as_ref().filter(|(_, at)| index < u32::from(at.queues) && at.entries >= entries);
        let record =
            record.map(|(mapping, at)| (mapping, at.offset + u64::from(index) * record_bytes(at.entries)));
        let queue = Queue::start(&self.memory, at, entries, base, event_idx, record);
        let queue = queue.map_err(|error| MessageError::Refused(18, error.to_string()))?;
        if let Some(vring) = self.vrings.get_mut(index as usize) {
            vring.queue = Some(queue);
        }
        self.kicked(index as u16, asked);
        Ok(())
    }

    /// Answers QEMU for queues that are to end and of which nothing is under way.
    fn end_queues(&mut self) {
        for index in std::mem::take(&mut self.ending) {
            let Some(vring) = self.vrings.get_mut(index as usize) else { continue };
            if vring.under_way > 0 {
                self.ending.push(index);
                continue;
            }
            let base = vring.queue.take().map_or(vring.base, |queue| queue.next_avail());
            vring.base = base;
            let payload = [index.to_le_bytes(), u32::from(base).to_le_bytes()].concat();
            self.out.extend(reply(11, &payload));
        }
    }

    /// A queue was kicked: takes everything that it offers.
    pub fn kicked(&mut self, index: u16, asked: &mut Vec<Asked>) {
        if let Some(kick) = self.vrings.get(usize::from(index)).and_then(|vring| vring.kick.as_ref()) {
            let _ = rustix::io::read(kick, &mut [0; 8]);
        }
        loop {
            let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
            if self.ending.contains(&u32::from(index)) {
                return;
            }
            let Some(queue) = &mut vring.queue else { return };
            let record = self.record.as_ref().map(|(mapping, _)| mapping);
            match queue.take(&self.memory, record) {
                Ok(Some(chain)) => {
                    vring.under_way += 1;
                    self.request(index, chain, asked);
                }
                Ok(None) => return,
                Err(broken) => return self.broken(index, broken),
            }
        }
    }

    fn broken(&mut self, index: u16, broken: Broken) {
        tracing::error!(volume = self.name, queue = index, %broken, "a queue is stopped");
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            vring.queue = None;
        }
    }

    fn request(&mut self, queue: u16, chain: Chain, asked: &mut Vec<Asked>) {
        let head = chain.head;
        let cookie = u64::from(queue) << 16 | u64::from(head);
        let mut to = chain.writable;
        let Some(last) = to.last_mut().filter(|last| last.len > 0) else {
            return self.broken(queue, Broken("a request without room for its status"));
        };
        last.len -= 1;
        let status = last.guest + u64::from(last.len);
        let (mut from, mut header) = (chain.readable, [0; 16]);
        let whole = self.gather(&mut from, &mut header);
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0; 8];
        sector.copy_from_slice(&header[8..]);
        let sector = u64::from_le_bytes(sector);
        let sum = |segments: &[Segment]| segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>();
        let (readable, writable) = (sum(&from), sum(&to));
        self.pending.insert(cookie, Pending { queue, head, to, status });
        let fits = |sector: u64, bytes: u64| {
            let offset = sector
                .checked_mul(SECTOR)
                .filter(|offset| offset.checked_add(bytes).is_some_and(|end| end <= self.bytes));
            offset.filter(|_| {
                bytes > 0 && bytes.is_multiple_of(SECTOR) && bytes <= u64::from(nbd::REQUEST_MAX) * 2
            })
        };
        let fail = |with| Asked::Fail { cookie, with };
        if !whole {
            return asked.push(fail(Failed::Invalid));
        }
        match kind {
            IN => match fits(sector, writable) {
                Some(offset) => asked.push(Asked::Read { cookie, offset, len: writable as u32 }),
                None => asked.push(fail(Failed::Invalid)),
            },
            OUT => match fits(sector, readable) {
                Some(offset) => self.write(cookie, offset, readable, from, asked),
                None => asked.push(fail(Failed::Invalid)),
            },
            FLUSH => asked.push(Asked::Flush { cookie }),
            GET_ID => {
                let mut id = [0; 20];
                let name = self.name.as_bytes();
                let len = name.len().min(20);
                id[..len].copy_from_slice(&name[..len]);
                let data = Data::copy_from_slice(&id[..20.min(writable as usize)]);
                self.complete(Completion { cookie, result: Ok(vec![data]) });
            }
            DISCARD | WRITE_ZEROES => {
                let mut range = [0; 16];
                let whole = readable == 16 && self.gather(&mut from, &mut range);
                let mut sector = [0; 8];
                sector.copy_from_slice(&range[..8]);
                let count = u32::from_le_bytes([range[8], range[9], range[10], range[11]]);
                let bytes = u64::from(count) * SECTOR;
                let offset =
                    fits(u64::from_le_bytes(sector), bytes).filter(|_| whole && count <= ZERO_SECTORS_MAX);
                let len = bytes as u32;
                asked.push(match offset {
                    Some(offset) if kind == DISCARD => Asked::Discard { cookie, offset, len, fua: false },
                    Some(offset) => Asked::Zero { cookie, offset, len, fua: false },
                    None => fail(Failed::Invalid),
                });
            }
            _ => asked.push(fail(Failed::Unsupported)),
        }
    }

    /// Copies bytes off the front of what is readable. False: there are not as many.
    fn gather(&self, from: &mut Vec<Segment>, to: &mut [u8]) -> bool {
        let mut done = 0;
        let mut used = 0;
        for segment in from.iter_mut() {
            let len = (segment.len as usize).min(to.len() - done);
            if !self.memory.read(segment.guest, &mut to[done..done + len]) {
                return false;
            }
            segment.guest += len as u64;
            segment.len -= len as u32;
            done += len;
            if segment.len > 0 {
                break;
            }
            used += 1;
        }
        from.drain(..used);
        done == to.len()
    }

    fn write(&mut self, cookie: u64, offset: u64, len: u64, mut from: Vec<Segment>, asked: &mut Vec<Asked>) {
        asked.push(Asked::WriteBegin { cookie, fua: false });
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = (end - at).min(nbd::PART as u64 - at % nbd::PART as u64) as usize;
            let mut data = Buffer::any(part);
            if !self.gather(&mut from, &mut data) {
                // Checked when the chain was taken; what was in our memory before is not the guest's to see.
                data.fill(0);
            }
            asked.push(Asked::WritePart { offset: at, data: data.into() });
            at += part as u64;
        }
        asked.push(Asked::WriteEnd);
    }

    /// A request is done.
    pub fn complete(&mut self, completion: Completion) {
        let Some(pending) = self.pending.remove(&completion.cookie) else { return };
        let Pending { queue, head, to, status } = pending;
        let mut written = 0;
        let code = match completion.result {
            Ok(data) => {
                let mut to = to.into_iter();
                let mut place = to.next();
                'all: for data in data {
                    let mut rest = &data[..];
                    while !rest.is_empty() {
                        let Some(segment) = &mut place else { break 'all };
                        let len = (segment.len as usize).min(rest.len());
                        self.memory.write(segment.guest, &rest[..len]);
                        segment.guest += len as u64;
                        segment.len -= len as u32;
                        written += len as u32;
                        rest = &rest[len..];
                        if segment.len == 0 {
                            place = to.next();
                        }
                    }
                }
                STATUS_OK
            }
            Err(Failed::Unsupported) => STATUS_UNSUPPORTED,
            Err(Failed::Io | Failed::Invalid | Failed::NoSpace) => STATUS_IO,
        };
        self.memory.write(status, &[code]);
        let Some(vring) = self.vrings.get_mut(usize::from(queue)) else { return };
        vring.under_way -= 1;
        let record = self.record.as_ref().map(|(mapping, _)| mapping);
        let put = vring.queue.as_mut().map(|queue| queue.put(&self.memory, record, head, written + 1));
        vring.answered = true;
        if let Some(Err(broken)) = put {
            self.broken(queue, broken);
        }
    }

    /// Tells the guest, and QEMU, what is to be told. Once a round.
    pub fn flush(&mut self, stream: &UnixStream) -> Result<(), MessageError> {
        for vring in &mut self.vrings {
            if std::mem::take(&mut vring.answered)
                && let (Some(queue), Some(call)) = (&mut vring.queue, &vring.call)
                && queue.must_signal(&self.memory)
            {
                let _ = rustix::io::write(call, &1u64.to_ne_bytes());
            }
        }
        if !self.ending.is_empty() {
            self.end_queues();
        }
        self.send(stream)
    }
}
