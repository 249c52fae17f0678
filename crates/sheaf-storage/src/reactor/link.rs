//! A connection between storage processes: frames over TCP, with TLS or plain. Owned by the reactor.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use sheaf_block_core::ids::{ReplicaId, VolumeId};
use sheaf_block_core::wire::{Frame, FrameError, HEADER_BYTES, Header};

use super::out::OutQueue;

/// Bytes that may wait to be sent before a connection counts as broken.
const OUT_MAX: usize = 64 << 20;
/// Bytes read at a time.
const READ: usize = 256 << 10;

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
    input: Vec<u8>,
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
        Self {
            stream,
            tls,
            side,
            connecting,
            input: Vec::new(),
            out: OutQueue::default(),
            wants_write: false,
        }
    }

    /// Takes a frame to be sent at the next [`Link::flush`].
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        self.out.push_own(frame.encode());
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
            None => {
                let before = self.input.len();
                self.input.resize(before + READ, 0);
                let read = self.stream.read(&mut self.input[before..]);
                self.input.truncate(before + *read.as_ref().unwrap_or(&0));
                match read {
                    Ok(0) => ended = true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some(tls) => {
                match tls.read_tls(&mut self.stream) {
                    Ok(0) => ended = true,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
                let state = tls.process_new_packets()?;
                let before = self.input.len();
                self.input.resize(before + state.plaintext_bytes_to_read(), 0);
                if state.plaintext_bytes_to_read() > 0 {
                    tls.reader().read_exact(&mut self.input[before..])?;
                }
            }
        }
        self.decode(frames)?;
        if ended { Err(LinkError::Closed) } else { Ok(()) }
    }

    fn decode(&mut self, frames: &mut Vec<Frame>) -> Result<(), LinkError> {
        let mut at = 0;
        while let Some(head) = self.input[at..].first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head)?;
            let end = at + HEADER_BYTES + header.payload_bytes as usize;
            let Some(payload) = self.input.get(at + HEADER_BYTES..end) else { break };
            frames.push(header.frame(payload)?);
            at = end;
        }
        self.input.drain(..at);
        if self.input.capacity() > 4 * READ && self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(())
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
