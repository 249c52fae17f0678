//! The protocol as tables of exchanges, and properties over random guests.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const T0: u64 = 1_800_000_000;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 52, 3, 1);

fn config(subnet: &str) -> Config {
    Config {
        subnet: subnet.parse().unwrap(),
        domain: "sheaf.internal".into(),
        lease_seconds: 3600,
        mtu: 1400,
    }
}

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

fn clients(n: u8) -> Clients {
    (0..n).map(|n| (mac(n), format!("guest-{n}"))).collect()
}

fn request(kind: MessageType, n: u8, edit: impl FnOnce(&mut Message)) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, zero, zero, zero, zero, &mac(n).0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    edit(&mut message);
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn wants(address: Ipv4Addr) -> impl FnOnce(&mut Message) {
    move |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    }
}

fn has(address: Ipv4Addr) -> impl FnOnce(&mut Message) {
    move |m| {
        m.set_ciaddr(address);
    }
}

fn selects(address: Ipv4Addr, server: Ipv4Addr) -> impl FnOnce(&mut Message) {
    move |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        m.opts_mut().insert(DhcpOption::ServerIdentifier(server));
    }
}

type Edit = Box<dyn FnOnce(&mut Message)>;

struct World {
    now: u64,
    config: Config,
    clients: Clients,
    leases: Leases,
}

impl World {
    fn new(subnet: &str, n: u8) -> Self {
        Self { now: T0, config: config(subnet), clients: clients(n), leases: Leases::default() }
    }

    fn send(&mut self, packet: &[u8]) -> Option<(Message, Destination)> {
        let reply = on_packet(self.now, &self.config, &self.clients, &mut self.leases, packet)?;
        assert!(reply.packet.len() >= 300);
        Some((Message::decode(&mut Decoder::new(&reply.packet)).unwrap(), reply.to))
    }

    fn offer(&mut self, n: u8) -> Option<Ipv4Addr> {
        let (reply, to) = self.send(&request(MessageType::Discover, n, |_| {}))?;
        assert_eq!(reply.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(to, Destination::Broadcast);
        Some(reply.yiaddr())
    }

    fn lease(&mut self, n: u8) -> Option<Ipv4Addr> {
        let offered = self.offer(n)?;
        let (reply, _) = self.send(&request(MessageType::Request, n, selects(offered, GATEWAY)))?;
        assert_eq!(reply.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(reply.yiaddr(), offered);
        Some(offered)
    }

    /// Kind of the reply to a REQUEST.
    fn ask(&mut self, n: u8, edit: impl FnOnce(&mut Message)) -> Option<MessageType> {
        self.send(&request(MessageType::Request, n, edit)).and_then(|(reply, _)| reply.opts().msg_type())
    }
}

#[test]
fn a_lease_says_all_that_a_guest_needs() {
    let mut w = World::new("10.52.3.0/24", 1);
    let address = w.offer(0).unwrap();
    assert_eq!(w.leases.bound(w.now, mac(0)), None, "an offer is no lease");
    assert_eq!(w.leases.generation(), 0, "and not kept");
    let packet = request(MessageType::Request, 0, |m| {
        selects(address, GATEWAY)(m);
        m.opts_mut().insert(DhcpOption::ClientIdentifier(vec![1, 2, 3]));
    });
    let (ack, to) = w.send(&packet).unwrap();
    assert_eq!(to, Destination::Broadcast);
    assert_eq!((ack.opcode(), ack.xid(), ack.chaddr()), (Opcode::BootReply, 7, &mac(0).0[..]));
    let expected: DhcpOptions = [
        DhcpOption::MessageType(MessageType::Ack),
        DhcpOption::ServerIdentifier(GATEWAY),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 52, 3, 255)),
        DhcpOption::Router(vec![GATEWAY]),
        DhcpOption::DomainNameServer(vec![GATEWAY]),
        DhcpOption::DomainName("sheaf.internal".into()),
        DhcpOption::Hostname("guest-0".into()),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::AddressLeaseTime(3600),
        DhcpOption::Renewal(1800),
        DhcpOption::Rebinding(3150),
        DhcpOption::ClientIdentifier(vec![1, 2, 3]),
    ]
    .into_iter()
    .collect();
    assert_eq!(ack.opts(), &expected);
    assert_eq!(w.leases.bound(w.now, mac(0)), Some(address));
    assert_eq!(w.leases.bound(w.now + 3600, mac(0)), None);
}

#[test]
fn the_same_nic_has_the_same_address_always() {
    let mut w = World::new("10.52.3.0/24", 2);
    let address = w.lease(0).unwrap();
    w.now += 1_000_000;
    assert_eq!(w.lease(0), Some(address), "long after it expired");
    w.send(&request(MessageType::Release, 0, |m| {
        m.set_ciaddr(address);
    }));
    assert_eq!(w.leases.bound(w.now, mac(0)), None);
    assert_ne!(w.lease(1), Some(address));
    assert_eq!(w.lease(0), Some(address), "after it gave it back");
    let mut without_file = World::new("10.52.3.0/24", 1);
    assert_eq!(without_file.lease(0), Some(address), "even if all is forgotten");
}

#[test]
fn requests_of_each_state_of_a_client() {
    let mut w = World::new("10.52.3.0/24", 3);
    let address = w.lease(0).unwrap();
    let other = w.lease(1).unwrap();
    let ack = Some(MessageType::Ack);
    let nak = Some(MessageType::Nak);
    let rows: [(&str, u8, Edit, Option<MessageType>); 9] = [
        ("INIT-REBOOT with its address", 0, Box::new(wants(address)), ack),
        ("INIT-REBOOT with another's", 0, Box::new(wants(other)), nak),
        ("INIT-REBOOT from another network", 0, Box::new(wants(Ipv4Addr::new(192, 168, 1, 7))), nak),
        ("RENEWING", 0, Box::new(has(address)), ack),
        ("RENEWING another's", 0, Box::new(has(other)), nak),
        ("SELECTING another server", 0, Box::new(selects(address, Ipv4Addr::new(10, 52, 3, 9))), None),
        ("the gateway's address", 2, Box::new(wants(GATEWAY)), nak),
        ("no address at all", 2, Box::new(|_: &mut Message| {}), None),
        ("unknown to us, but free: our file was lost", 2, Box::new(wants(Ipv4Addr::new(10, 52, 3, 99))), ack),
    ];
    for (what, n, edit, expected) in rows {
        assert_eq!(w.ask(n, edit), expected, "{what}");
    }
    let renewal = request(MessageType::Request, 0, |m| {
        m.set_ciaddr(address);
    });
    assert_eq!(w.send(&renewal).unwrap().1, Destination::Unicast(address));
}

#[test]
fn renewing_without_pause_costs_no_disk() {
    let mut w = World::new("10.52.3.0/24", 1);
    let address = w.lease(0).unwrap();
    let saved = w.leases.generation();
    for _ in 0..50 {
        w.now += 1;
        assert_eq!(w.ask(0, has(address)), Some(MessageType::Ack));
    }
    assert_eq!(w.leases.generation(), saved);
    w.now += 10;
    assert_eq!(w.ask(0, has(address)), Some(MessageType::Ack));
    assert_ne!(w.leases.generation(), saved);
    assert_eq!(w.leases.bound(w.now + 3599, mac(0)), Some(address));
}

#[test]
fn informing_leases_nothing() {
    let mut w = World::new("10.52.3.0/24", 1);
    let own = Ipv4Addr::new(10, 52, 3, 77);
    let inform = request(MessageType::Inform, 0, |m| {
        m.set_ciaddr(own);
    });
    let (ack, to) = w.send(&inform).unwrap();
    assert_eq!(to, Destination::Unicast(own));
    assert!(ack.yiaddr().is_unspecified());
    assert!(!ack.opts().contains(OptionCode::AddressLeaseTime));
    assert!(ack.opts().contains(OptionCode::Router));
    assert_eq!(w.leases.iter().count(), 0);
}

#[test]
fn a_declined_address_rests_and_nobody_can_decline_the_pool_away() {
    let mut w = World::new("10.52.3.0/24", 2);
    let mut declined = BTreeSet::new();
    for _ in 0..40 {
        let address = w.lease(0).unwrap();
        declined.insert(address);
        w.send(&request(MessageType::Decline, 0, wants(address)));
    }
    assert_eq!(declined.len(), 17, "a bound, after which declining has no effect");
    let own = w.lease(1).unwrap();
    w.send(&request(MessageType::Decline, 0, wants(own)));
    assert_eq!(w.leases.bound(w.now, mac(1)), Some(own), "an address of another cannot be declined");
}

#[test]
fn a_full_pool_takes_from_those_who_are_gone_only() {
    let mut w = World::new("10.52.3.0/29", 6);
    let addresses: Vec<_> = (0..5).map(|n| w.lease(n).unwrap()).collect();
    assert_eq!(w.offer(5), None, "all five are in use");
    w.clients.remove(&mac(3));
    w.now += 10;
    assert_eq!(w.lease(5), addresses.get(3).copied());
    w.clients = clients(4);
    assert_eq!(w.offer(3), None.or(addresses.get(4).copied()), "guest 4 is gone now");
}

#[test]
fn packets_that_are_none_of_ours() {
    let mut w = World::new("10.52.3.0/24", 1);
    let good = request(MessageType::Discover, 0, |_| {});
    assert!(w.send(&good).is_some());
    let edit = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    assert!(w.send(&request(MessageType::Discover, 9, |_| {})).is_none(), "a NIC that is not ours");
    assert!(w.send(&edit(0, 2)).is_none(), "a reply");
    assert!(w.send(&edit(1, 6)).is_none(), "no Ethernet");
    assert!(w.send(&edit(2, 200)).is_none(), "an address longer than its field");
    assert!(w.send(&edit(24, 10)).is_none(), "from a relay");
    assert!(w.send(&edit(236, 0)).is_none(), "BOOTP of another kind");
    assert!(w.send(good.get(..239).unwrap()).is_none(), "cut off");
    assert!(w.send(&[]).is_none());
}

#[test]
fn odd_options_spoil_nothing() {
    let mut w = World::new("10.52.3.0/24", 1);
    let wanted = Ipv4Addr::new(10, 52, 3, 50);
    let mut packet = request(MessageType::Discover, 0, |_| {});
    packet.truncate(HEADER_LEN);
    // A name in ASCII where the parser wants DNS labels, as Windows sends it; options of wrong lengths; paddings.
    packet.extend(b"\x51\x0a\x00\x00\x00WINDOWS\x00\x98\x02ab\x32\x02ab\x00\x35\x01\x01\x32\x04\x0a\x34\x03\x32\xff\x35\x01\x03");
    let (offer, _) = w.send(&packet).unwrap();
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!(offer.yiaddr(), wanted);
}

#[test]
fn the_file_keeps_leases_and_their_version() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("leases.json");
    assert_eq!(Leases::load(&path).unwrap().iter().count(), 0);
    let mut w = World::new("10.52.3.0/24", 3);
    let address = w.lease(0).unwrap();
    w.lease(1).unwrap();
    w.offer(2).unwrap();
    w.leases.save(&path).unwrap();
    let loaded = Leases::load(&path).unwrap();
    assert_eq!(loaded.bound(T0, mac(0)), Some(address));
    assert_eq!(loaded.iter().count(), 2, "offers are not kept");

    // As version 1 wrote it. It must be readable for ever.
    let version_1 = r#"{"version": 1, "leases": [
        {"mac": "52:54:00:00:00:00", "address": "10.52.3.7", "expires": 1800000100, "hostname": "a", "released": false},
        {"mac": "52:54:00:00:00:01", "address": "10.52.3.7", "expires": 1800000100},
        {"mac": "52:54:00:00:00:02", "address": "10.52.3.8", "expires": 1800000100, "released": true}]}"#;
    std::fs::write(&path, version_1).unwrap();
    let loaded = Leases::load(&path).unwrap();
    assert_eq!(loaded.bound(T0, mac(0)), Some(Ipv4Addr::new(10, 52, 3, 7)));
    assert_eq!(loaded.get(mac(1)), None, "an address has one owner");
    assert_eq!(loaded.get(mac(2)).unwrap().state, LeaseState::Released);

    std::fs::write(&path, r#"{"version": 2, "leases": {}}"#).unwrap();
    assert!(matches!(Leases::load(&path), Err(LeasesError::Version { version: 2, .. })));
    let (_, error) = Server::open(&path);
    assert!(error.is_some());
    assert!(path.with_extension("unreadable").exists(), "put aside, not overwritten");
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(Leases::load(&path), Err(LeasesError::Format { .. })));
}

#[derive(Debug, Clone)]
enum Act {
    Discover(u8, Option<u8>),
    Request(u8, u8),
    TakeOffer(u8),
    Decline(u8),
    Release(u8),
    Leave(u8),
    Come(u8),
    Wait(u32),
}

fn any_act() -> impl Strategy<Value = Act> {
    let guest = 0_u8..12;
    prop_oneof![
        1 => (guest.clone(), proptest::option::of(0_u8..18)).prop_map(|(n, a)| Act::Discover(n, a)),
        1 => (guest.clone(), 0_u8..18).prop_map(|(n, a)| Act::Request(n, a)),
        4 => guest.clone().prop_map(Act::TakeOffer),
        1 => guest.clone().prop_map(Act::Decline),
        1 => guest.clone().prop_map(Act::Release),
        1 => guest.clone().prop_map(Act::Leave),
        1 => guest.prop_map(Act::Come),
        1 => (0_u32..5000).prop_map(Act::Wait),
    ]
}

proptest! {
    /// The oracle: who was acknowledged which address until when, as the guests themselves know it.
    #[test]
    fn no_address_is_given_twice_and_the_table_stays_bounded(acts in proptest::collection::vec(any_act(), 1..200)) {
        let mut w = World::new("10.52.3.0/28", 12);
        let mut held: BTreeMap<Mac, (Ipv4Addr, u64)> = BTreeMap::new();
        let address = |n: u8| Ipv4Addr::new(10, 52, 3, n);
        for act in acts {
            let packet = match act {
                Act::Discover(n, a) => request(MessageType::Discover, n, |m| {
                    if let Some(a) = a { wants(address(a))(m); }
                }),
                Act::Request(n, a) => request(MessageType::Request, n, wants(address(a))),
                Act::TakeOffer(n) => match w.offer(n) {
                    Some(a) => request(MessageType::Request, n, selects(a, GATEWAY)),
                    None => continue,
                },
                Act::Decline(n) => match held.remove(&mac(n)) {
                    Some((a, _)) => request(MessageType::Decline, n, wants(a)),
                    None => continue,
                },
                Act::Release(n) => match held.remove(&mac(n)) {
                    Some((a, _)) => request(MessageType::Release, n, |m| { m.set_ciaddr(a); }),
                    None => continue,
                },
                Act::Leave(n) => {
                    w.clients.remove(&mac(n));
                    held.remove(&mac(n));
                    continue;
                }
                Act::Come(n) => {
                    w.clients.insert(mac(n), String::new());
                    continue;
                }
                Act::Wait(seconds) => {
                    w.now += u64::from(seconds);
                    continue;
                }
            };
            if let Some((reply, _)) = w.send(&packet) {
                let to = Mac(reply.chaddr().try_into().unwrap());
                prop_assert!(w.clients.contains_key(&to));
                if reply.opts().msg_type() == Some(MessageType::Ack) {
                    prop_assert!(w.config.subnet.pool_contains(reply.yiaddr()));
                    held.insert(to, (reply.yiaddr(), w.now + 3600));
                }
            }
            held.retain(|_, (_, until)| *until > w.now);
            let distinct: BTreeSet<_> = held.values().map(|(a, _)| *a).collect();
            prop_assert_eq!(distinct.len(), held.len(), "{:?}", held);
            prop_assert!(w.leases.iter().count() <= 13);
        }
    }

    #[test]
    fn no_packet_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), shape: bool) {
        if shape && bytes.len() > HEADER_LEN {
            bytes[..3].copy_from_slice(&[1, 1, 6]);
            bytes[24..28].fill(0);
            bytes[28..34].copy_from_slice(&mac(0).0);
            bytes[236..240].copy_from_slice(&MAGIC);
        }
        let mut w = World::new("10.52.3.0/24", 1);
        let _ = on_packet(w.now, &w.config, &w.clients, &mut w.leases, &bytes);
    }
}
