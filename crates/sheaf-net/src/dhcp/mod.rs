//! DHCPv4 for the guests of one node's management network.
//!
//! Only NICs that we attached are served, each with an address that stays its own: across renewals, restarts of guest
//! and agent, and as long as the pool has room for newcomers. [`on_packet`] is the whole protocol, without clock and
//! socket; [`Server`] keeps the leases and their file, [`serve`] moves packets. No relays, no BOOTP, no IPv6.
//!
//! Sources: RFC 2131 (protocol), 2132 (options), 6842 (client identifier is echoed).

mod leases;
mod server;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, DhcpOptions, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};

pub use leases::{Lease, LeaseState, Leases, LeasesError};
pub use server::{Server, serve};

use crate::{Mac, Subnet};

/// The server's UDP port.
pub const SERVER_PORT: u16 = 67;
/// The clients' UDP port.
pub const CLIENT_PORT: u16 = 68;
/// How long an offered address is kept for the client that has not yet asked for it, in seconds.
const OFFER_SECONDS: u64 = 60;
/// The fixed header of BOOTP with the magic cookie, in bytes.
const HEADER_LEN: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// What every client of the network is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The subnet; its gateway is the router, the DHCP and the DNS server.
    pub subnet: Subnet,
    /// Domain of the guests' names.
    pub domain: String,
    /// How long a lease lasts, in seconds. Guests must survive a long absence of the agent, so it is long.
    pub lease_seconds: u32,
    /// Largest packet in bytes.
    pub mtu: u16,
}

/// The NICs that are served, with the host name for each.
pub type Clients = BTreeMap<Mac, String>;

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To all on the link. Also for a client that has no address yet and did not ask for a broadcast: RFC 2131, 4.1
    /// allows it where the server cannot address a frame to a client that does not answer ARP.
    Broadcast,
    /// To a client that has its address.
    Unicast(Ipv4Addr),
}

/// What a packet leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The packet to send.
    pub packet: Vec<u8>,
    /// Its destination, port [`CLIENT_PORT`].
    pub to: Destination,
}

/// Answers one packet, or not. `now` is in seconds since the Unix epoch. Leases that changed must be durable before
/// the reply is sent: [`Leases::generation`] tells.
#[must_use]
pub fn on_packet(
    now: u64,
    config: &Config,
    clients: &Clients,
    leases: &mut Leases,
    packet: &[u8],
) -> Option<Reply> {
    let (request, mac) = parse(packet)?;
    let hostname = clients.get(&mac)?;
    let exchange = Exchange { now, config, clients, hostname, request: &request, mac };
    match request.opts().msg_type()? {
        MessageType::Discover => exchange.on_discover(leases),
        MessageType::Request => exchange.on_request(leases),
        MessageType::Decline => {
            if let Some(address) = requested_address(&request) {
                leases.decline(now, mac, address);
            }
            None
        }
        MessageType::Release => {
            leases.release(now, mac, request.ciaddr());
            None
        }
        MessageType::Inform => exchange.on_inform(),
        _ => None,
    }
}

/// Reads a request of a client; `None` if it is none.
///
/// The parser is given a packet that is reduced to what is read here, as it panics on some lengths (of the hardware
/// address, and with debug assertions of options), and stops at the first option that it cannot read.
fn parse(packet: &[u8]) -> Option<(Message, Mac)> {
    let (header, options) = packet.split_at_checked(HEADER_LEN)?;
    let [op, htype, hlen, ..] = header else { return None };
    if (*op, *htype, *hlen) != (1, 1, 6) || !header.ends_with(&MAGIC) {
        return None;
    }
    let mut reduced = header.to_vec();
    reduced.extend(readable_options(options));
    let message = Message::decode(&mut Decoder::new(&reduced)).ok()?;
    // A relay would need its reply elsewhere, and there is none on our own bridge.
    if message.opcode() != Opcode::BootRequest || !message.giaddr().is_unspecified() {
        return None;
    }
    let mac = Mac(message.chaddr().try_into().ok()?);
    Some((message, mac))
}

/// The options that we read, if their lengths are right, each once. No client puts them into the overloaded header
/// fields, or in parts.
fn readable_options(mut rest: &[u8]) -> Vec<u8> {
    let mut kept: BTreeMap<u8, &[u8]> = BTreeMap::new();
    while let [code, tail @ ..] = rest {
        match OptionCode::from(*code) {
            OptionCode::Pad => rest = tail,
            OptionCode::End => break,
            known => {
                let [len, tail @ ..] = tail else { break };
                let Some((data, tail)) = tail.split_at_checked(usize::from(*len)) else { break };
                rest = tail;
                let fits = match known {
                    OptionCode::MessageType => data.len() == 1,
                    OptionCode::RequestedIpAddress | OptionCode::ServerIdentifier => data.len() == 4,
                    OptionCode::ClientIdentifier => data.len() >= 2,
                    _ => false,
                };
                if fits {
                    kept.entry(*code).or_insert(data);
                }
            }
        }
    }
    let mut options = Vec::new();
    for (code, data) in kept {
        options.push(code);
        options.push(u8::try_from(data.len()).unwrap_or_default());
        options.extend_from_slice(data);
    }
    options.push(OptionCode::End.into());
    options
}

fn requested_address(request: &Message) -> Option<Ipv4Addr> {
    match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    }
}

/// One request with what is needed to answer it.
struct Exchange<'a> {
    now: u64,
    config: &'a Config,
    clients: &'a Clients,
    hostname: &'a str,
    request: &'a Message,
    mac: Mac,
}

impl Exchange<'_> {
    fn on_discover(&self, leases: &mut Leases) -> Option<Reply> {
        let wanted = requested_address(self.request);
        let address = leases.offer(self.now, self.config.subnet, self.clients, self.mac, wanted)?;
        self.reply(MessageType::Offer, address)
    }

    fn on_request(&self, leases: &mut Leases) -> Option<Reply> {
        let server = match self.request.opts().get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(address)) => Some(*address),
            _ => None,
        };
        // The client chose another server's offer.
        if server.is_some_and(|s| s != self.config.subnet.gateway()) {
            return None;
        }
        // SELECTING and INIT-REBOOT name the address in the option, RENEWING and REBINDING in the header.
        let wanted = match requested_address(self.request) {
            Some(address) => address,
            None if !self.request.ciaddr().is_unspecified() => self.request.ciaddr(),
            None => return None,
        };
        let expires = self.now + u64::from(self.config.lease_seconds);
        let subnet = self.config.subnet;
        if leases.bind(self.now, subnet, self.mac, self.hostname, wanted, expires) {
            self.reply(MessageType::Ack, wanted)
        } else {
            self.nak()
        }
    }

    fn on_inform(&self) -> Option<Reply> {
        if !self.config.subnet.contains(self.request.ciaddr()) {
            return None;
        }
        self.reply(MessageType::Ack, Ipv4Addr::UNSPECIFIED)
    }

    /// `address` is unspecified for a client that only wants to be informed.
    fn reply(&self, kind: MessageType, address: Ipv4Addr) -> Option<Reply> {
        let Config { subnet, domain, lease_seconds, mtu } = self.config;
        let mut message = self.message(kind);
        message.set_ciaddr(if kind == MessageType::Ack {
            self.request.ciaddr()
        } else {
            Ipv4Addr::UNSPECIFIED
        });
        message.set_yiaddr(address);
        let options = message.opts_mut();
        options.insert(DhcpOption::SubnetMask(subnet.mask()));
        options.insert(DhcpOption::BroadcastAddr(subnet.broadcast()));
        options.insert(DhcpOption::Router(vec![subnet.gateway()]));
        options.insert(DhcpOption::DomainNameServer(vec![subnet.gateway()]));
        options.insert(DhcpOption::DomainName(domain.clone()));
        options.insert(DhcpOption::InterfaceMtu(*mtu));
        if !self.hostname.is_empty() {
            options.insert(DhcpOption::Hostname(self.hostname.to_owned()));
        }
        if !address.is_unspecified() {
            options.insert(DhcpOption::AddressLeaseTime(*lease_seconds));
            options.insert(DhcpOption::Renewal(lease_seconds / 2));
            options.insert(DhcpOption::Rebinding(lease_seconds / 8 * 7));
        }
        let ciaddr = self.request.ciaddr();
        let to = if ciaddr.is_unspecified() { Destination::Broadcast } else { Destination::Unicast(ciaddr) };
        encode(&message, to)
    }

    fn nak(&self) -> Option<Reply> {
        encode(&self.message(MessageType::Nak), Destination::Broadcast)
    }

    fn message(&self, kind: MessageType) -> Message {
        let unspecified = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(
            self.request.xid(),
            unspecified,
            unspecified,
            unspecified,
            unspecified,
            &self.mac.0,
        );
        message.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_flags(self.request.flags());
        let mut options = DhcpOptions::new();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.config.subnet.gateway()));
        if let Some(id) = self.request.opts().get(OptionCode::ClientIdentifier) {
            options.insert(id.clone());
        }
        message.set_opts(options);
        message
    }
}

fn encode(message: &Message, to: Destination) -> Option<Reply> {
    let mut packet = Vec::with_capacity(HEADER_LEN + 128);
    message.encode(&mut Encoder::new(&mut packet)).ok()?;
    // BOOTP's minimum, which some clients still insist on.
    if packet.len() < dhcproto::v4::MIN_PACKET_SIZE {
        packet.resize(dhcproto::v4::MIN_PACKET_SIZE, 0);
    }
    Some(Reply { packet, to })
}

#[cfg(test)]
mod tests;
