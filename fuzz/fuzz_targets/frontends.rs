//! What guests send: NBD from the first byte and after the negotiation, in two pieces; messages of vhost-user.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_storage::frontend::nbd::{Export, Nbd};
use sheaf_storage::frontend::vhost::message::{HEADER, Header, Message};

fuzz_target!(|input: (bool, u32, &[u8], &[u8])| {
    let (negotiated, request, first, second) = input;
    let (mut out, mut asked) = (Vec::new(), Vec::new());
    let mut nbd = Nbd::new(Export { name: "disk".into(), bytes: 1 << 30 }, &mut out);
    if negotiated {
        let hello = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
        nbd.feed(&hello, &mut out, &mut asked).expect("a valid beginning");
    }
    if nbd.feed(first, &mut out, &mut asked).is_ok() {
        let _ = nbd.feed(second, &mut out, &mut asked);
    }
    if let Some(head) = first.first_chunk::<HEADER>() {
        let _ = Header::decode(head);
    }
    let _ = Message::decode(request % 64, second);
});
