//! The shell of the resolver: UDP and TCP on the gateway's address, and the way to the host's resolvers.
//!
//! Bounds: [`MAX_OUTSTANDING`] queries at a time over UDP (those beyond fail at once), [`MAX_CONNECTIONS`] connections
//! over TCP, each with one query at a time; [`MAX_UPSTREAMS`] resolvers, each asked for [`UPSTREAM_TIMEOUT`] at most.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::message::{self, ResponseCode};
use super::{Action, PORT, Records, on_query};
use crate::Subnet;

/// Queries that wait for an upstream at any time, over UDP.
const MAX_OUTSTANDING: usize = 256;
/// Connections at any time.
const MAX_CONNECTIONS: usize = 32;
/// Resolvers that are asked, as in the C library.
const MAX_UPSTREAMS: usize = 3;
/// Time for one resolver to answer.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the next query on a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Larger than any answer over UDP that resolvers agree on (1232), with room for those that do not.
const MAX_UDP: usize = 8192;
/// A failure of the socket that is not the peer's is followed by this pause, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The host's resolvers, from its `resolv.conf`, read again when it changes.
#[derive(Debug)]
pub struct Upstreams {
    path: PathBuf,
    port: u16,
    read: Mutex<Option<(Stamp, Vec<SocketAddr>)>>,
}

type Stamp = (Option<SystemTime>, u64);

impl Upstreams {
    /// From that file, usually `/etc/resolv.conf`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_port(path, PORT)
    }

    /// As [`Upstreams::new`], with resolvers on another port; for tests.
    #[must_use]
    pub fn with_port(path: impl Into<PathBuf>, port: u16) -> Self {
        Self { path: path.into(), port, read: Mutex::new(None) }
    }

    /// The resolvers to ask, in this order. Ourselves excepted.
    fn current(&self, gateway: Ipv4Addr) -> Vec<SocketAddr> {
        // One `stat` a query: cheaper than any watch, and right at once.
        let Ok(meta) = std::fs::metadata(&self.path) else { return Vec::new() };
        let stamp = (meta.modified().ok(), meta.len());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.as_ref().is_none_or(|(s, _)| *s != stamp) {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            *read = Some((stamp, parse_resolv_conf(&text, self.port)));
        }
        let all = read.as_ref().map(|(_, list)| list.as_slice()).unwrap_or_default();
        all.iter().filter(|a| a.ip() != IpAddr::V4(gateway)).take(MAX_UPSTREAMS).copied().collect()
    }
}

/// Addresses of the `nameserver` lines. Those with a zone (`fe80::1%eth0`) are left out.
pub(super) fn parse_resolv_conf(text: &str, port: u16) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        Some(SocketAddr::new(words.next()?.parse().ok()?, port))
    });
    servers.collect()
}

/// What the servers need to know.
#[derive(Debug, Clone)]
pub struct Context {
    /// Queries are answered to this subnet and to the host, so that nobody outside finds an open resolver.
    pub subnet: Subnet,
    /// Names that we answer for.
    pub records: watch::Receiver<Arc<Records>>,
    /// Where the rest is forwarded to.
    pub upstreams: Arc<Upstreams>,
}

impl Context {
    fn serves(&self, peer: SocketAddr) -> bool {
        match peer.ip() {
            IpAddr::V4(address) => self.subnet.contains(address) || address.is_loopback(),
            IpAddr::V6(_) => false,
        }
    }

    fn decide(&self, query: &[u8]) -> Action {
        on_query(&self.records.borrow(), query)
    }
}

/// Serves on a socket of [`crate::socket::udp_on_address`] until the future is dropped.
pub async fn serve_udp(context: &Context, socket: Arc<UdpSocket>) {
    let permits = Arc::new(Semaphore::new(MAX_OUTSTANDING));
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_UDP];
    loop {
        while tasks.try_join_next().is_some() {}
        let (len, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query failed");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if !context.serves(peer) {
            continue;
        }
        let query = buffer.get(..len).unwrap_or_default();
        let reply = match context.decide(query) {
            Action::Ignore => continue,
            Action::Reply(reply) => reply,
            Action::Forward => match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => {
                    let (context, socket, query) = (context.clone(), Arc::clone(&socket), query.to_vec());
                    tasks.spawn(async move {
                        let reply = forward(&context, &query, Transport::Udp).await;
                        let _ = socket.send_to(&reply, peer).await;
                        drop(permit);
                    });
                    continue;
                }
                Err(_) => failure(query),
            },
        };
        // A client that is gone does not concern us.
        let _ = socket.send_to(&reply, peer).await;
    }
}

/// Serves on a listener at the gateway's address until the future is dropped.
pub async fn serve_tcp(context: &Context, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) if context.serves(peer) => {
                let context = context.clone();
                tasks.spawn(async move {
                    // The peer's mistakes are the peer's business.
                    let _ = serve_connection(&context, stream).await;
                    drop(permit);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(context: &Context, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let query = match timeout(IDLE_TIMEOUT, read_framed(&mut stream)).await {
            Ok(query) => query?,
            Err(_) => return Ok(()),
        };
        let reply = match context.decide(&query) {
            Action::Ignore => return Ok(()),
            Action::Reply(reply) => reply,
            Action::Forward => forward(context, &query, Transport::Tcp).await,
        };
        timeout(IDLE_TIMEOUT, write_framed(&mut stream, &reply)).await??;
    }
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

async fn forward(context: &Context, query: &[u8], transport: Transport) -> Vec<u8> {
    for upstream in context.upstreams.current(context.subnet.gateway()) {
        let answer = async {
            match transport {
                Transport::Udp => ask_udp(upstream, query).await,
                Transport::Tcp => ask_tcp(upstream, query).await,
            }
        };
        match timeout(UPSTREAM_TIMEOUT, answer).await {
            Ok(Ok(reply)) => return reply,
            Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
            Err(_) => tracing::debug!(%upstream, "resolver did not answer in time"),
        }
    }
    failure(query)
}

/// A socket for each query: the kernel chooses its port at random, and a connected socket takes answers from nobody
/// but the one who was asked.
async fn ask_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let len = socket.recv(&mut buffer).await?;
        buffer.truncate(len);
        if answers(query, &buffer) {
            return Ok(buffer);
        }
        buffer.resize(MAX_UDP, 0);
    }
}

async fn ask_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_framed(&mut stream, query).await?;
    let reply = read_framed(&mut stream).await?;
    if answers(query, &reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether the packet is a response to that query: same number, and the same question, if it has one.
pub(super) fn answers(query: &[u8], reply: &[u8]) -> bool {
    let is_response = reply.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_question = match (message::parse_question(query), message::parse_question(reply)) {
        (Some(asked), Some(answered)) => {
            (asked.name, asked.kind, asked.class) == (answered.name, answered.kind, answered.class)
        }
        // An error may come without its question.
        _ => reply.get(4..6) == Some(&[0, 0]),
    };
    reply.len() >= message::HEADER_LEN && query.get(..2) == reply.get(..2) && is_response && same_question
}

fn failure(query: &[u8]) -> Vec<u8> {
    match message::parse(query) {
        Ok(question) => message::reply(query, &question, ResponseCode::ServerFailure, 0, &[]),
        Err(_) => message::bare_reply(query, ResponseCode::ServerFailure).unwrap_or_default(),
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(len)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let len = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}
