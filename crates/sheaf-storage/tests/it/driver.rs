//! A virtio driver in miniature: what QEMU and a guest's kernel do together to a vhost-user-blk device, one queue. It
//! keeps memory, ring and the record of requests under way when the device's process goes, and connects again.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use sheaf_storage::frontend::vhost::memory::Mapping;

/// Entries of the queue; each request takes three.
pub(crate) const ENTRIES: u16 = 128;
/// Requests at a time.
pub(crate) const SLOTS: u16 = ENTRIES / 3;
/// Bytes of data of a request.
pub(crate) const DATA: u64 = 1 << 20;
const DESC: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const HEADERS: u64 = 0xc000;
const BUFFERS: u64 = 0x10_0000;
const MEMORY: u64 = BUFFERS + SLOTS as u64 * DATA;
/// The guest's and QEMU's address of the memory's begin.
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7000_0000_0000;

pub(crate) struct Driver {
    path: PathBuf,
    stream: UnixStream,
    memory: Mapping,
    memory_fd: OwnedFd,
    inflight: Option<(OwnedFd, Vec<u8>)>,
    kick: OwnedFd,
    call: OwnedFd,
    avail: u16,
    used: u16,
    event_idx: bool,
    pub(crate) sectors: u64,
    pub(crate) reconnects: u32,
}

fn send(stream: &UnixStream, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut message = Vec::new();
    message.extend(request.to_le_bytes());
    message.extend(1u32.to_le_bytes());
    message.extend((payload.len() as u32).to_le_bytes());
    message.extend(payload);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty())?;
    if got.bytes < 12 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((bytes[12..got.bytes].to_vec(), fd))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

impl Driver {
    pub(crate) fn connect(path: &Path) -> Self {
        let memory_fd =
            rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("makes memory");
        rustix::fs::ftruncate(&memory_fd, MEMORY).expect("sizes it");
        let mut driver = Self {
            path: path.to_path_buf(),
            stream: UnixStream::connect(path).expect("connects"),
            memory: Mapping::new(&memory_fd, MEMORY as usize).expect("maps"),
            memory_fd,
            inflight: None,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("makes it"),
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("makes it"),
            avail: 0,
            used: 0,
            event_idx: true,
            sectors: 0,
            reconnects: 0,
        };
        driver.set_up().expect("sets up");
        driver
    }

    fn ask(&self, request: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        send(&self.stream, request, payload, &[])?;
        receive(&self.stream).map(|(bytes, _)| bytes)
    }

    fn set_up(&mut self) -> io::Result<()> {
        let features = number(&self.ask(1, &[])?);
        let protocol = number(&self.ask(15, &[])?);
        assert_eq!(protocol & 0x1209, 0x1201 | 8, "queues, answers, configuration, record");
        send(&self.stream, 16, &protocol.to_le_bytes(), &[])?;
        assert!(number(&self.ask(17, &[])?) >= 1);
        let config = self.ask(
            24,
            &[[0; 4], 60u32.to_le_bytes(), [0; 4]]
                .concat()
                .iter()
                .copied()
                .chain([0; 60])
                .collect::<Vec<_>>(),
        )?;
        self.sectors = number(&config[12..]);
        match &self.inflight {
            None => {
                let wanted = [&[0; 16][..], &1u16.to_le_bytes(), &ENTRIES.to_le_bytes(), &[0; 4]].concat();
                send(&self.stream, 31, &wanted, &[])?;
                let (at, fd) = receive(&self.stream)?;
                self.inflight = Some((fd.expect("the record's descriptor"), at));
            }
            Some(_) => self.reconnects += 1,
        }
        if let Some((fd, at)) = &self.inflight {
            send(&self.stream, 32, at, &[fd.as_fd()])?;
        }
        send(&self.stream, 2, &features.to_le_bytes(), &[])?;
        let region = [1, 0, GUEST, MEMORY, USER, 0];
        let table: Vec<u8> = [&1u32.to_le_bytes()[..], &[0; 4]]
            .concat()
            .into_iter()
            .chain(region[2..].iter().flat_map(|n| n.to_le_bytes()))
            .collect();
        send(&self.stream, 5, &table, &[self.memory_fd.as_fd()])?;
        let pair = |value: u32| [0u32.to_le_bytes(), value.to_le_bytes()].concat();
        send(&self.stream, 8, &pair(u32::from(ENTRIES)), &[])?;
        send(&self.stream, 10, &pair(u32::from(self.memory.load_u16(USED + 2).expect("is there"))), &[])?;
        let mut addresses = vec![0; 8];
        [DESC, USED, AVAIL, 0].iter().for_each(|at| addresses.extend((USER + at).to_le_bytes()));
        send(&self.stream, 9, &addresses, &[])?;
        send(&self.stream, 13, &0u64.to_le_bytes(), &[self.call.as_fd()])?;
        send(&self.stream, 12, &0u64.to_le_bytes(), &[self.kick.as_fd()])?;
        send(&self.stream, 18, &pair(1), &[])?;
        // An answer says that all of it was taken in.
        self.ask(17, &[]).map(drop)
    }

    /// Offers a request in a slot: kind, sector, data out (or bytes to read).
    pub(crate) fn offer(&mut self, slot: u16, kind: u32, sector: u64, out: Option<&[u8]>, len: u32) {
        let header = HEADERS + u64::from(slot) * 32;
        let data = BUFFERS + u64::from(slot) * DATA;
        self.memory
            .write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &[0xff]].concat());
        if let Some(out) = out {
            self.memory.write(data, out);
        }
        let first = slot * 3;
        let put = |at: u16, address: u64, len: u32, flags: u16, next: u16| {
            let bytes = [
                &(GUEST + address).to_le_bytes()[..],
                &len.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            self.memory.write(DESC + 16 * u64::from(at), &bytes.concat());
        };
        if len > 0 {
            put(first, header, 16, 1, first + 1);
            put(first + 1, data, len, if out.is_some() { 1 } else { 3 }, first + 2);
        } else {
            put(first, header, 16, 1, first + 2);
        }
        put(first + 2, header + 16, 1, 2, 0);
        self.memory.store_u16(AVAIL + 4 + 2 * u64::from(self.avail % ENTRIES), first);
        self.avail = self.avail.wrapping_add(1);
        self.memory.store_u16(AVAIL + 2, self.avail);
    }

    /// Tells the device, if it wants to be told.
    pub(crate) fn kick(&mut self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let _ = self.event_idx;
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("kicks");
    }

    /// Slots that were answered, with their status; waits for at least one. Connects again where that is needed.
    pub(crate) fn answered(&mut self) -> Vec<(u16, u8)> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let mut found = Vec::new();
            while self.memory.load_u16(USED + 2).expect("is there") != self.used {
                let mut element = [0; 8];
                self.memory.read(USED + 4 + 8 * u64::from(self.used % ENTRIES), &mut element);
                let head = u32::from_le_bytes(element[..4].try_into().expect("four bytes")) as u16;
                let mut status = [0; 1];
                self.memory.read(HEADERS + u64::from(head / 3) * 32 + 16, &mut status);
                found.push((head / 3, status[0]));
                self.used = self.used.wrapping_add(1);
            }
            if !found.is_empty() {
                return found;
            }
            // Interrupt me for the next one.
            self.memory.store_u16(AVAIL + 4 + 2 * u64::from(ENTRIES), self.used);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.memory.load_u16(USED + 2).expect("is there") != self.used {
                continue;
            }
            assert!(Instant::now() < end, "the device does not answer");
            let gone = {
                let mut fds =
                    [PollFd::new(&self.call, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
                let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
                poll(&mut fds, Some(&wait)).expect("polls");
                !fds[1].revents().is_empty()
            };
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
            if gone {
                self.again(end);
            }
        }
    }

    fn again(&mut self, end: Instant) {
        loop {
            let result = UnixStream::connect(&self.path).and_then(|stream| {
                self.stream = stream;
                self.set_up()
            });
            match result {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < end, "cannot connect again: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    pub(crate) fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read(BUFFERS + u64::from(slot) * DATA, &mut data);
        data
    }

    /// Stops the queue properly, as a guest's reset does.
    pub(crate) fn stop(self) {
        let base = self.ask(11, &[0; 8]).expect("answers");
        assert_eq!(base[4..6], self.avail.to_le_bytes(), "everything offered was taken");
    }
}
