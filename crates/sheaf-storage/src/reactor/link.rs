//! A connection between storage processes: frames over TCP, with TLS or plain. Owned by the reactor.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use sheaf_block_core::ids::{ReplicaId, VolumeId};
use sheaf_block_core::wire::{Frame, FrameError, HEADER_BYTES, Header, Summed};
use sheaf_disk::buffer::Buffer;

use super::out::OutQueue;

/// Bytes that may wait to be sent before a connection counts as broken.
const OUT_MAX: usize = 64 << 20;
/// Bytes read at a time.
const READ: usize = 256 << 10;

/// A connection on which nothing is sent is probed by the kernel: first after so long, then every second, and it counts as broken after
/// so many probes without an answer. So a volume at rest notices a replica that is gone, though nothing is asked of it, and costs
/// no turn of the reactor for that.
const PROBE_AFTER: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBES: u32 = 4;

/// How peers talk to each other.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// On a network that somebody has said to be trusted.
    Plain,
    /// Both sides show a certificate of the cluster.
    Tls(Arc<ClientConfig>, Arc<ServerConfig>),
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the other side has closed it")]
    Closed,
    #[error("more than {OUT_MAX} bytes wait to be sent")]
    Full,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// A coordinator here connected to a replica there.
    Out(VolumeId, ReplicaId),
    /// Somebody connected to the replicas here.
    In,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    tls: Option<Box<Connection>>,
    pub(crate) side: Side,
    connecting: bool,
    input: Input,
    out: OutQueue,
    /// What `epoll` was told last.
    pub(crate) wants_write: bool,
}

impl Link {
    /// Begins to connect.
    pub(crate) fn connect(address: &str, security: &Security, side: Side) -> Result<Self, LinkError> {
        // Addresses are numbers: nothing here may wait for a name to be looked up.
        let parsed: SocketAddr = address.parse().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not ADDRESS:PORT"))
        })?;
        let family = if parsed.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
        match rustix::net::connect(&socket, &parsed) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let tls = match security {
            Security::Plain => None,
            Security::Tls(client, _) => {
                let name = ServerName::IpAddress(parsed.ip().into());
                Some(Box::new(Connection::Client(ClientConnection::new(Arc::clone(client), name)?)))
            }
        };
        Ok(Self::new(TcpStream::from(socket), tls, side, true))
    }

    /// Somebody has connected.
    pub(crate) fn accepted(stream: TcpStream, security: &Security) -> Result<Self, LinkError> {
        stream.set_nonblocking(true)?;
        let tls = match security {
            Security::Plain => None,
            Security::Tls(_, server) => {
                Some(Box::new(Connection::Server(ServerConnection::new(Arc::clone(server))?)))
            }
        };
        Ok(Self::new(stream, tls, Side::In, false))
    }

    fn new(stream: TcpStream, tls: Option<Box<Connection>>, side: Side, connecting: bool) -> Self {
        let _ = stream.set_nodelay(true);
        if let Err(error) = probe(&stream) {
            tracing::warn!(%error, "connections at rest are not probed: a replica that is gone is noticed at the next write");
        }
        Self {
            stream,
            tls,
            side,
            connecting,
            input: Input::default(),
            out: OutQueue::default(),
            wants_write: false,
        }
    }

    /// Takes a frame to be sent at the next [`Link::flush`].
    pub(crate) fn send(&mut self, frame: &Frame, summed: &mut Summed) -> Result<(), LinkError> {
        if let Some(data) = self.out.append(|bytes| frame.encode_onto(bytes, summed)) {
            let all = 0..data.len();
            self.out.push_shared(data, all);
        }
        if self.out.len() > OUT_MAX { Err(LinkError::Full) } else { Ok(()) }
    }

    /// Sends what the other side takes. True when nothing is left.
    pub(crate) fn flush(&mut self) -> Result<bool, LinkError> {
        if self.connecting {
            return Ok(false);
        }
        let Some(tls) = &mut self.tls else { return Ok(self.out.write_to(&mut self.stream)?) };
        loop {
            if !tls.is_handshaking() {
                // The connection's own buffer is bounded: what it does not take waits here.
                let mut writer = tls.writer();
                self.out.write_to(&mut Filling(&mut writer))?;
            }
            if !tls.wants_write() {
                return Ok(self.out.is_empty());
            }
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// It can be written: connected, if it was connecting.
    pub(crate) fn writable(&mut self) -> Result<bool, LinkError> {
        if self.connecting {
            if let Some(error) = self.stream.take_error()? {
                return Err(error.into());
            }
            if self.stream.peer_addr().is_err() {
                return Ok(false);
            }
            self.connecting = false;
        }
        self.flush()
    }

    /// Reads what has come.
    pub(crate) fn readable(&mut self, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
        if self.connecting {
            return Ok(());
        }
        let mut ended = false;
        match &mut self.tls {
            None => match self.stream.read(self.input.room(READ)) {
                Ok(0) => ended = true,
                Ok(count) => self.input.end += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            },
            Some(tls) => {
                match tls.read_tls(&mut self.stream) {
                    Ok(0) => ended = true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
                let state = tls.process_new_packets()?;
                let count = state.plaintext_bytes_to_read();
                if count > 0 {
                    tls.reader().read_exact(&mut self.input.room(count)[..count])?;
                    self.input.end += count;
                }
            }
        }
        self.decode(frames)?;
        if ended { Err(LinkError::Closed) } else { Ok(()) }
    }

    fn decode(&mut self, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
        while let Some(head) = self.input.bytes().first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head)?;
            let end = HEADER_BYTES + header.payload_bytes as usize;
            let Some(payload) = self.input.bytes().get(HEADER_BYTES..end) else { break };
            frames.push(header.frame(payload, |blocks| Buffer::from_slice(blocks).into())?);
            self.input.start += end;
        }
        self.input.shrink();
        Ok(())
    }
}

fn probe(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

/// Bytes that came and are not taken in yet. Room that was made once is not cleared again.
#[derive(Debug, Default)]
struct Input {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// Room for at least so many bytes behind those that are there.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.memory.len() - self.end < bytes && self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.memory.len() - self.end < bytes {
            self.memory.resize(self.end + bytes, 0);
        }
        &mut self.memory[self.end..]
    }

    /// Gives back what a rush of data took; a connection at rest keeps little.
    fn shrink(&mut self) {
        if self.start == self.end && self.memory.len() > 2 * READ {
            *self = Self::default();
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A TLS connection's buffer: what it does not take would block.
struct Filling<'a, 'b>(&'a mut rustls::Writer<'b>);

impl Write for Filling<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
