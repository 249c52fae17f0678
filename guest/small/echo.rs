//! For the small guest: sends datagrams to a UDP port back to where they came from. Busybox has nothing that answers UDP.

use std::net::UdpSocket;

fn main() -> std::io::Result<()> {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(7);
    let socket = UdpSocket::bind(("::", port))?;
    let mut datagram = [0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        // Whoever has gone meanwhile does not matter to others.
        let _ = socket.send_to(&datagram[..length], from);
    }
}
