//! DNS queries of guests.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    let _ = sheaf_net::dns::on_query(&sheaf_net::dns::Records::default(), packet);
});
