//! DHCP packets of guests. The parser below panics on some of them, so this also holds the fence around it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_net::dhcp::{Clients, Config, Leases, on_packet};

fuzz_target!(|packet: &[u8]| {
    let Ok(subnet) = "10.52.0.0/24".parse() else { return };
    let config = Config { subnet, domain: "sheaf.internal".into(), lease_seconds: 60, mtu: 1500 };
    let mut clients = Clients::new();
    if let Some(mac) = packet.get(28..34).and_then(|m| <[u8; 6]>::try_from(m).ok()) {
        clients.insert(sheaf_net::Mac(mac), "guest".into());
    }
    let _ = on_packet(1, &config, &clients, &mut Leases::default(), packet);
});
