//! Decisions as a table; arbitrary bytes never panic.

use proptest::prelude::*;

use super::forward::{answers, parse_resolv_conf};
use super::message::{Question, encode_name, parse_question};
use super::*;

const A: u16 = message::TYPE_A;
const PTR: u16 = message::TYPE_PTR;
const AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;

fn records() -> Records {
    let address = |n| Ipv4Addr::new(10, 52, 3, n);
    let guests = [("web", 7), ("Twin", 8), ("twin", 9), ("no_label", 10), ("gateway", 11)];
    Records::new(
        Some("10.52.3.0/24".parse().unwrap()),
        guests.into_iter().map(|(name, n)| (name.to_owned(), address(n))),
    )
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(encode_name(name));
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

/// Code and the data of the answers.
fn decide(name: &str, kind: u16) -> Option<(u8, Vec<Vec<u8>>)> {
    let packet = query(name, kind);
    let Action::Reply(reply) = on_query(&records(), &packet) else { return None };
    assert!(answers(&packet, &reply));
    let Question { end, .. } = parse_question(&reply).unwrap();
    let mut rest = &reply[end..];
    let mut data = Vec::new();
    for _ in 0..reply[7] {
        let len = usize::from(rest[11]);
        data.push(rest[12..12 + len].to_vec());
        rest = &rest[12 + len..];
    }
    assert!(rest.is_empty());
    Some((reply[3] & 0xf, data))
}

#[test]
fn who_answers_what() {
    let ok = |answers: &[&[u8]]| Some((0, answers.iter().map(|a| a.to_vec()).collect()));
    let web = encode_name("web.sheaf.internal");
    assert_eq!(decide("web.sheaf.internal", A), ok(&[&[10, 52, 3, 7]]));
    assert_eq!(decide("WEB.Sheaf.Internal", A), ok(&[&[10, 52, 3, 7]]), "case does not matter");
    assert_eq!(decide("web", A), ok(&[&[10, 52, 3, 7]]));
    assert_eq!(decide("web", 255), ok(&[&[10, 52, 3, 7]]), "any type");
    assert_eq!(decide("web", AAAA), ok(&[]), "known, but not by IPv6");
    assert_eq!(decide("twin", A), ok(&[&[10, 52, 3, 8], &[10, 52, 3, 9]]), "two guests of one name");
    assert_eq!(decide("gateway.sheaf.internal", A), ok(&[&[10, 52, 3, 1]]), "cannot be taken by a guest");
    assert_eq!(decide("7.3.52.10.in-addr.arpa", PTR), ok(&[&web]));
    assert_eq!(decide("sheaf.internal", A), ok(&[]));
    assert_eq!(decide("nobody.sheaf.internal", A), Some((NXDOMAIN, vec![])));
    assert_eq!(decide("a.web.sheaf.internal", A), Some((NXDOMAIN, vec![])));
    assert_eq!(decide("99.3.52.10.in-addr.arpa", PTR), Some((NXDOMAIN, vec![])));
    for forwarded in ["example.org", "nobody", "notsheaf.internal", "9.9.9.9.in-addr.arpa", "", "no_label"] {
        assert_eq!(decide(forwarded, A), None, "{forwarded}");
    }
}

#[test]
fn what_is_no_plain_query_is_refused_or_ignored() {
    let good = query("web", A);
    let edit = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        on_query(&records(), &packet)
    };
    let code = |action| match action {
        Action::Reply(reply) => reply.get(3).map(|b| b & 0xf),
        _ => None,
    };
    assert_eq!(edit(2, 0x81), Action::Ignore, "a response");
    assert_eq!(on_query(&records(), &good[..11]), Action::Ignore);
    assert_eq!(code(edit(2, 0x28)), Some(4), "an update");
    assert_eq!(code(edit(5, 2)), Some(1), "two questions");
    assert_eq!(code(edit(12, 0xc0)), Some(1), "a pointer");
    assert_eq!(code(edit(12, 40)), Some(1), "a label beyond the end");
}

#[test]
fn names_that_look_alike_are_not_alike() {
    let mut packet = query("", A);
    packet.splice(12..13, *b"\x12web.sheaf.internal\x00");
    assert_eq!(on_query(&records(), &packet), Action::Forward, "one label with dots in it");
}

#[test]
fn the_host_s_resolvers() {
    let text = "# c\nsearch example.org\nnameserver 127.0.0.53\nnameserver\nnameserver fe80::1%eth0\n\
                nameserver 2001:db8::1 # second\noptions edns0\nnameservers 1.2.3.4\n";
    let expected = ["127.0.0.53:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
    assert_eq!(parse_resolv_conf(text, 53), expected);
}

#[test]
fn answers_to_other_questions_are_not_taken() {
    let asked = query("example.org", A);
    let mut reply = asked.clone();
    reply[2] |= 0x80;
    assert!(answers(&asked, &reply));
    assert!(!answers(&asked, &asked), "a query");
    let mut other = query("example.com", A);
    other[2] |= 0x80;
    assert!(!answers(&asked, &other));
    reply[0] ^= 1;
    assert!(!answers(&asked, &reply), "another number");
    let failed = message::bare_reply(&asked, message::ResponseCode::ServerFailure).unwrap();
    assert!(answers(&asked, &failed));
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic_and_replies_are_replies(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut shaped = bytes.clone();
        if shaped.len() > 12 {
            shaped[2..6].copy_from_slice(&[1, 0, 0, 1]);
        }
        for packet in [&bytes, &shaped] {
            if let Action::Reply(reply) = on_query(&records(), packet) {
                prop_assert_eq!(&reply[..2], &packet[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
                prop_assert_eq!(on_query(&records(), &reply), Action::Ignore, "no loops");
            }
            let _ = answers(packet, &shaped);
        }
    }

    #[test]
    fn names_are_read_as_they_were_written(labels in proptest::collection::vec("[a-z0-9_-]{1,30}", 1..5)) {
        let name = labels.join(".");
        prop_assert_eq!(parse_question(&query(&name, A)).unwrap().name, name);
    }
}
