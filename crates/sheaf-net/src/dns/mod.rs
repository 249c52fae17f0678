//! The resolver of the guests: knows their names, forwards the rest.
//!
//! A guest with a lease is known as `HOSTNAME.sheaf.internal` and, for short, as `HOSTNAME` (which resolvers complete
//! with the domain that DHCP tells them). Host names are not unique across namespaces; guests of the same name are
//! answered with all their addresses. Only guests of this node are known. Everything else goes to the resolvers of the
//! host, from the host, so that a resolver on its loopback works too.
//!
//! [`on_query`] decides about one query, without socket; the [`serve_udp`] and [`serve_tcp`] shells move packets.
//! No cache, no recursion, no DNSSEC of its own: what upstreams answer is passed on as it is. State: none; the records
//! come from a watch.
//!
//! Source: RFC 1035.

mod forward;
mod message;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub use forward::{Context, Upstreams, serve_tcp, serve_udp};

use crate::Subnet;
use message::{Question, ResponseCode};

/// The domain of guests' names.
pub const DOMAIN: &str = "sheaf.internal";
/// The DNS port.
pub const PORT: u16 = 53;
/// Lifetime of our own answers in seconds; guests come and go.
const TTL: u32 = 5;
/// Addresses per name in one answer, so that it fits into the 512 bytes of plain DNS over UDP.
const MAX_ANSWERS: usize = 8;

/// The names that we answer for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    subnet: Option<Subnet>,
    forward: BTreeMap<String, Vec<Ipv4Addr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
}

impl Records {
    /// Names of the guests, and `gateway.sheaf.internal` for the node. Host names that are no DNS labels are left out.
    #[must_use]
    pub fn new(subnet: Option<Subnet>, guests: impl IntoIterator<Item = (String, Ipv4Addr)>) -> Self {
        let mut records = Self { subnet, ..Self::default() };
        if let Some(subnet) = subnet {
            records.insert("gateway".to_owned(), subnet.gateway());
        }
        for (hostname, address) in guests {
            let hostname = hostname.to_ascii_lowercase();
            if is_label(&hostname) && hostname != "gateway" {
                records.insert(hostname, address);
            }
        }
        records
    }

    fn insert(&mut self, label: String, address: Ipv4Addr) {
        self.reverse.insert(address, format!("{label}.{DOMAIN}"));
        self.forward.entry(label).or_default().push(address);
    }
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// What to do about a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer with this packet.
    Reply(Vec<u8>),
    /// Ask the host's resolvers.
    Forward,
    /// Not a query at all.
    Ignore,
}

/// Decides about one query.
#[must_use]
pub fn on_query(records: &Records, packet: &[u8]) -> Action {
    let question = match message::parse(packet) {
        Ok(question) => question,
        Err(message::ParseError::NotAQuery) => return Action::Ignore,
        Err(message::ParseError::Malformed) => {
            return message::bare_reply(packet, ResponseCode::FormatError)
                .map_or(Action::Ignore, Action::Reply);
        }
        Err(message::ParseError::NotImplemented) => {
            return message::bare_reply(packet, ResponseCode::NotImplemented)
                .map_or(Action::Ignore, Action::Reply);
        }
    };
    if question.class != message::CLASS_IN {
        return Action::Forward;
    }
    if let Some(address) = reverse_address(&question.name) {
        let Some(name) = records.reverse.get(&address) else {
            // Private addresses of our own are nobody else's business.
            let own = records.subnet.is_some_and(|s| s.contains(address));
            return if own {
                reply(packet, &question, ResponseCode::NoSuchName, &[])
            } else {
                Action::Forward
            };
        };
        let answers = [message::Record::Pointer(name)];
        let answers = if question.wants(message::TYPE_PTR) { &answers[..] } else { &[] };
        return reply(packet, &question, ResponseCode::NoError, answers);
    }
    let name = question.name.as_str();
    let (label, own) = match name.strip_suffix(DOMAIN) {
        Some("") => return reply(packet, &question, ResponseCode::NoError, &[]),
        Some(prefix) if prefix.ends_with('.') => (prefix.trim_end_matches('.'), true),
        _ => (name, false),
    };
    match records.forward.get(label) {
        Some(addresses) => {
            let answers: Vec<_> =
                addresses.iter().take(MAX_ANSWERS).map(|a| message::Record::Address(*a)).collect();
            let answers = if question.wants(message::TYPE_A) { answers.as_slice() } else { &[] };
            reply(packet, &question, ResponseCode::NoError, answers)
        }
        None if own => reply(packet, &question, ResponseCode::NoSuchName, &[]),
        None => Action::Forward,
    }
}

fn reply(packet: &[u8], question: &Question, code: ResponseCode, answers: &[message::Record<'_>]) -> Action {
    Action::Reply(message::reply(packet, question, code, TTL, answers))
}

/// `4.3.2.1.in-addr.arpa` is about 1.2.3.4.
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let reversed: Ipv4Addr = name.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    let [a, b, c, d] = reversed.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests;
