//! Guests' connections: where they come in, what they ask, what they are answered. One volume each.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use sheaf_block_core::ids::VolumeId;

use super::out::OutQueue;
use super::poll::{Poll, Ready, Source};
use super::{Reactor, place};
use crate::frontend::nbd::{self, Export, Nbd, Sent};
use crate::frontend::vhost::device::{Device, Watch};
use crate::frontend::{Asked, Completion};

/// Bytes read at a time.
const READ: usize = 128 << 10;
/// Requests of one connection under way, and bytes of its answers that wait, before it is not read any more.
const REQUESTS: usize = 256;
const OUT_MAX: usize = 64 << 20;
/// Connections to one process.
const GUESTS: usize = 1024;

/// Where guests of a volume come in.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) volume: VolumeId,
    pub(crate) socket: UnixListener,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
}

/// What is spoken there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Nbd,
    Vhost,
}

/// What a connection speaks.
#[derive(Debug)]
enum Speaks {
    Nbd(Nbd),
    Vhost(Box<Device>),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) volume: VolumeId,
    stream: UnixStream,
    speaks: Speaks,
    out: OutQueue,
    under_way: usize,
    /// What `epoll` was told last.
    interest: (bool, bool),
    dirty: bool,
    leaving: bool,
}

fn push(out: &mut OutQueue, sent: Vec<Sent>) {
    for sent in sent {
        match sent {
            Sent::Bytes(bytes) => out.push(&bytes),
            Sent::Shared(data) => {
                let len = data.len();
                out.push_shared(data, 0..len);
            }
        }
    }
}

impl Guest {
    fn is_full(&self) -> bool {
        self.under_way >= REQUESTS || self.out.len() >= OUT_MAX
    }

    /// Reads and understands what has come. False: the connection has ended.
    fn read(
        &mut self,
        poll: &Poll,
        index: u32,
        buffer: &mut [u8],
        asked: &mut Vec<Asked>,
    ) -> Result<bool, String> {
        let nbd = match &mut self.speaks {
            Speaks::Nbd(nbd) => nbd,
            Speaks::Vhost(device) => {
                let mut watch = |device: &Device, watch: Watch| {
                    let (Watch::Begin(queue) | Watch::End(queue)) = watch;
                    let Some(fd) = device.kick_fd(queue) else { return };
                    match watch {
                        Watch::Begin(_) => drop(poll.add(fd, Source::Kick(index, queue))),
                        Watch::End(_) => poll.remove(fd),
                    }
                };
                return device.readable(&self.stream, &mut watch, asked).map_err(|error| error.to_string());
            }
        };
        let mut sent = Vec::new();
        // A few rounds, then others have their turn.
        for _ in 0..16 {
            if self.under_way + asked.len() >= REQUESTS {
                break;
            }
            let direct = nbd.payload().filter(|room| room.len() >= 4096);
            let (read, is_payload) = match direct {
                Some(room) => (self.stream.read(room), true),
                None => (self.stream.read(buffer), false),
            };
            match read {
                Ok(0) => return Ok(false),
                Ok(count) if is_payload => nbd.payload_filled(count, asked),
                Ok(count) => {
                    let fed = nbd.feed(&buffer[..count], &mut sent, asked);
                    push(&mut self.out, std::mem::take(&mut sent));
                    fed.map_err(|error| error.to_string())?;
                    if count < buffer.len() && nbd.payload().is_none() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(true)
    }
}

impl Reactor {
    pub(super) fn accept_guests(&mut self, index: u32) {
        while let Some(Some(listener)) = self.listeners.get(index as usize)
            && let Ok((stream, _)) = listener.socket.accept()
        {
            let volume = listener.volume;
            let Some(shell) = self.volumes.get(&volume) else { return };
            if self.guests.iter().flatten().count() >= GUESTS || stream.set_nonblocking(true).is_err() {
                tracing::warn!(
                    volume = shell.attach.name,
                    "a guest's connection was turned away: there are {GUESTS}"
                );
                continue;
            }
            let (name, bytes) = (shell.attach.name.clone(), shell.attach.bytes);
            let mut sent = Vec::new();
            let speaks = match listener.kind {
                Kind::Nbd => Speaks::Nbd(Nbd::new(Export { name, bytes }, &mut sent)),
                Kind::Vhost => Speaks::Vhost(Box::new(Device::new(&name, bytes))),
            };
            let mut out = OutQueue::default();
            push(&mut out, sent);
            let guest = Guest {
                volume,
                stream,
                speaks,
                out,
                under_way: 0,
                interest: (true, false),
                dirty: true,
                leaving: false,
            };
            let at = place(&mut self.guests, guest);
            self.io.to_flush.push(at);
            if let Some(Some(guest)) = self.guests.get(at as usize) {
                let _ = self.io.poll.add(&guest.stream, Source::Guest(at));
            }
        }
    }

    pub(super) fn guest_ready(&mut self, index: u32, ready: Ready) {
        let Some(Some(guest)) = self.guests.get_mut(index as usize) else { return };
        let mut asked = Vec::new();
        let mut buffer = std::mem::take(&mut self.guest_buffer);
        buffer.resize(READ, 0);
        let read =
            if ready.readable { guest.read(&self.io.poll, index, &mut buffer, &mut asked) } else { Ok(true) };
        self.guest_buffer = buffer;
        let volume = guest.volume;
        self.take_up(index, asked);
        match read {
            Ok(true) => {}
            Ok(false) => self.guest_left(index),
            Err(error) => {
                tracing::info!(volume = crate::api::show_volume(volume), error, "a guest's connection ended");
                self.guest_left(index);
            }
        }
    }

    /// Gives what a guest asked to its volume.
    fn take_up(&mut self, index: u32, asked: Vec<Asked>) {
        let Some(Some(guest)) = self.guests.get_mut(index as usize) else { return };
        let part = |asked: &&Asked| matches!(asked, Asked::WritePart { .. } | Asked::WriteEnd | Asked::Leave);
        guest.under_way += asked.len() - asked.iter().filter(part).count();
        guest.leaving |= asked.contains(&Asked::Leave);
        if !guest.dirty {
            guest.dirty = true;
            self.io.to_flush.push(index);
        }
        if let Some(shell) = self.volumes.get_mut(&guest.volume) {
            for asked in asked {
                shell.asked(&mut self.io, index, asked);
            }
        }
    }

    /// A connection has ended. Its place is given away only when nothing of it is under way.
    pub(super) fn guest_left(&mut self, index: u32) {
        let Some(guest) = self.guests.get_mut(index as usize).and_then(Option::take) else { return };
        self.io.poll.remove(&guest.stream);
        if let Speaks::Vhost(device) = &guest.speaks {
            // QEMU has these descriptors too: closing ours would not take them out.
            device.kick_fds().for_each(|fd| self.io.poll.remove(fd));
        }
        if let Some(shell) = self.volumes.get_mut(&guest.volume) {
            shell.gone(&mut self.io, index);
        }
        self.io.work.retain(|work| !matches!(work, super::io::Work::Guest(of, _) if *of == index));
    }

    pub(super) fn complete(&mut self, index: u32, completion: Completion) {
        let Some(Some(guest)) = self.guests.get_mut(index as usize) else { return };
        guest.under_way = guest.under_way.saturating_sub(1);
        match &mut guest.speaks {
            Speaks::Nbd(_) => {
                let mut sent = Vec::with_capacity(2);
                nbd::answer(completion, &mut sent);
                push(&mut guest.out, sent);
            }
            Speaks::Vhost(device) => device.complete(completion),
        }
        if !guest.dirty {
            guest.dirty = true;
            self.io.to_flush.push(index);
        }
    }

    /// Sends what waits for guests.
    pub(super) fn flush_guests(&mut self) {
        for index in std::mem::take(&mut self.io.to_flush) {
            let Some(Some(guest)) = self.guests.get_mut(index as usize) else { continue };
            guest.dirty = false;
            if let Speaks::Vhost(device) = &mut guest.speaks {
                if let Err(error) = device.flush(&guest.stream) {
                    tracing::info!(%error, "QEMU's connection ended");
                    self.guest_left(index);
                }
                continue;
            }
            let written = guest.out.write_to(&mut &guest.stream);
            let done = guest.out.is_empty();
            if written.is_err() || (guest.leaving && done && guest.under_way == 0) {
                self.guest_left(index);
                continue;
            }
            let interest = (!guest.is_full() && !guest.leaving, !done);
            if interest != guest.interest {
                guest.interest = interest;
                let _ = self.io.poll.change(&guest.stream, Source::Guest(index), interest.0, interest.1);
            }
        }
    }

    /// A guest's queue was kicked.
    pub(super) fn kicked(&mut self, index: u32, queue: u16) {
        let mut asked = Vec::new();
        if let Some(Some(Guest { speaks: Speaks::Vhost(device), .. })) = self.guests.get_mut(index as usize) {
            device.kicked(queue, &mut asked);
        }
        self.take_up(index, asked);
    }

    /// Connections of a volume.
    pub(super) fn guests_of(&self, volume: VolumeId) -> usize {
        self.guests.iter().flatten().filter(|guest| guest.volume == volume).count()
    }

    /// Ends NBD connections that know another size than the volume has by now: NBD has no way to tell. QEMU connects again,
    /// asks for the size, and sends again what was not answered.
    pub(super) fn hang_up_on_old_sizes(&mut self, volume: VolumeId) {
        let Some(bytes) = self.volumes.get(&volume).map(|shell| shell.attach.bytes) else { return };
        for index in 0..u32::try_from(self.guests.len()).unwrap_or(0) {
            if let Some(Some(Guest { volume: of, speaks: Speaks::Nbd(nbd), .. })) =
                self.guests.get(index as usize)
                && *of == volume
                && nbd.bytes() != bytes
            {
                self.guest_left(index);
            }
        }
    }

    /// Ends all connections of a volume, and the places where they come in.
    pub(super) fn shut_frontends(&mut self, volume: VolumeId) {
        for index in 0..u32::try_from(self.guests.len()).unwrap_or(0) {
            if matches!(self.guests.get(index as usize), Some(Some(guest)) if guest.volume == volume) {
                self.guest_left(index);
            }
        }
        for place in &mut self.listeners {
            if let Some(listener) = place.take_if(|listener| listener.volume == volume) {
                self.io.poll.remove(&listener.socket);
                let _ = std::fs::remove_file(&listener.path);
            }
        }
    }
}
