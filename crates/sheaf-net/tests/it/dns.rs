//! The resolver over real sockets, on loopback: forwarding by UDP and TCP, a `resolv.conf` that changes, the bounds.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sheaf_net::dns::{Context, Records, Upstreams, serve_tcp, serve_udp};
use sheaf_net::socket::udp_on_address;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SERVFAIL: u8 = 2;

struct Resolver {
    udp: SocketAddr,
    tcp: SocketAddr,
    directory: tempfile::TempDir,
    _records: watch::Sender<Arc<Records>>,
}

impl Resolver {
    /// With upstreams on that port, at the addresses of `resolv_conf`.
    async fn start(port: u16, resolv_conf: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::fs::write(&path, resolv_conf).unwrap();
        let subnet = "10.52.3.0/24".parse().unwrap();
        let guests = [("web".to_owned(), Ipv4Addr::new(10, 52, 3, 7))];
        let (sender, records) = watch::channel(Arc::new(Records::new(Some(subnet), guests)));
        let context = Context { subnet, records, upstreams: Arc::new(Upstreams::with_port(path, port)) };
        let socket = Arc::new(udp_on_address(LOCALHOST, 0).unwrap());
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        let other = context.clone();
        tokio::spawn(async move { serve_udp(&context, socket).await });
        tokio::spawn(async move { serve_tcp(&other, listener).await });
        Self { udp, tcp, directory, _records: sender }
    }

    async fn ask(&self, name: &str) -> Vec<u8> {
        let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        socket.send_to(&query(7, name), self.udp).await.unwrap();
        receive(&socket).await
    }

    async fn ask_tcp(&self, name: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.tcp).await.unwrap();
        framed(&mut stream, &query(7, name)).await
    }
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1500];
    let len = timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(len);
    buffer
}

async fn framed(stream: &mut TcpStream, packet: &[u8]) -> Vec<u8> {
    stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

fn code(reply: &[u8]) -> u8 {
    reply[3] & 0xf
}

/// Answers everything with the address 192.0.2.`last`, by UDP and TCP; first with an answer to nobody's question.
async fn upstream(address: SocketAddr, last: u8) -> SocketAddr {
    let udp = UdpSocket::bind(address).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let answer = move |query: &[u8]| {
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
        reply
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (len, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let mut wrong = answer(&buffer[..len]);
            wrong[0] ^= 0xff;
            udp.send_to(&wrong, peer).await.unwrap();
            udp.send_to(&answer(&buffer[..len]), peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let reply = answer(&query);
            stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn own_names_and_those_of_others_by_udp_and_tcp() {
    let port = upstream((LOCALHOST, 0).into(), 1).await.port();
    let resolver = Resolver::start(port, "nameserver 127.0.0.1\n").await;
    for reply in [resolver.ask("web").await, resolver.ask_tcp("web.sheaf.internal").await] {
        assert!(reply.ends_with(&[10, 52, 3, 7]), "{reply:?}");
    }
    for reply in [resolver.ask("example.org").await, resolver.ask_tcp("example.org").await] {
        assert_eq!(&reply[..2], [0, 7]);
        assert!(reply.ends_with(&[192, 0, 2, 1]), "{reply:?}");
    }
    // Several on one connection.
    let mut stream = TcpStream::connect(resolver.tcp).await.unwrap();
    for id in 0..3 {
        let reply = framed(&mut stream, &query(id, "example.org")).await;
        assert_eq!(reply[..2], id.to_be_bytes());
    }
}

#[tokio::test]
async fn resolvers_are_followed_and_their_absence_is_a_failure() {
    let first = upstream((LOCALHOST, 0).into(), 1).await;
    let second = upstream((Ipv4Addr::new(127, 0, 0, 2), first.port()).into(), 2).await;
    let resolver = Resolver::start(first.port(), "nameserver 127.0.0.1\n").await;
    assert!(resolver.ask("example.org").await.ends_with(&[192, 0, 2, 1]));
    let path = resolver.directory.path().join("resolv.conf");
    std::fs::write(&path, format!("# changed\nnameserver {}\n", second.ip())).unwrap();
    assert!(resolver.ask("example.org").await.ends_with(&[192, 0, 2, 2]));
    // The first of the two does not listen: the second is asked.
    std::fs::write(&path, "nameserver 127.0.0.3\nnameserver 127.0.0.1\n").unwrap();
    assert!(resolver.ask("example.org").await.ends_with(&[192, 0, 2, 1]));
    // Asking ourselves would never end.
    std::fs::write(&path, "nameserver 10.52.3.1\n").unwrap();
    assert_eq!(code(&resolver.ask("example.org").await), SERVFAIL);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(code(&resolver.ask("example.org").await), SERVFAIL);
    assert_eq!(code(&resolver.ask_tcp("example.org").await), SERVFAIL);
    assert!(resolver.ask("web").await.ends_with(&[10, 52, 3, 7]), "our own names need nobody");
}

#[tokio::test]
async fn queries_that_wait_are_bounded() {
    // A resolver that never answers.
    let silent = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let resolver = Resolver::start(silent.local_addr().unwrap().port(), "nameserver 127.0.0.1\n").await;
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let began = tokio::time::Instant::now();
    for id in 0..257 {
        // The resolver must get each before the next is sent, lest the kernel drops some.
        socket.send_to(&query(id, "example.org"), resolver.udp).await.unwrap();
        tokio::task::yield_now().await;
    }
    // The one too many is told at once.
    let first = receive(&socket).await;
    assert_eq!(code(&first), SERVFAIL);
    assert!(began.elapsed() < Duration::from_millis(1900), "before any of the others gave up");
    for _ in 0..256 {
        assert_eq!(code(&receive(&socket).await), SERVFAIL);
    }
}
