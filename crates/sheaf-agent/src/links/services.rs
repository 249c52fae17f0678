//! The servers on the management bridge: DHCP and DNS. Owns their tasks.
//!
//! A socket dies with the device it is bound to, so all are made anew when the bridge is; and each by itself when it
//! fails, so that a port that somebody else has costs the guests one service, not all.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use sheaf_net::dhcp::{self, Server};
use sheaf_net::{Subnet, dns, socket};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The servers, for one bridge with one subnet.
#[derive(Debug)]
pub(super) struct Services {
    bound_to: (u32, Subnet),
    dhcp: Option<Task>,
    dns_udp: Option<Task>,
    dns_tcp: Option<Task>,
}

/// Ends its task when dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Services {
    /// None running yet.
    pub(super) fn new(bridge_index: u32, subnet: Subnet) -> Self {
        Self { bound_to: (bridge_index, subnet), dhcp: None, dns_udp: None, dns_tcp: None }
    }

    /// Whether the sockets are those of this bridge and subnet.
    pub(super) fn are_for(&self, bridge_index: u32, subnet: Subnet) -> bool {
        self.bound_to == (bridge_index, subnet)
    }

    /// Starts what does not run. Returns what could not be started.
    pub(super) async fn ensure(
        &mut self,
        bridge: &str,
        server: &Arc<Server>,
        dns: &dns::Context,
    ) -> Vec<String> {
        let gateway = self.bound_to.1.gateway();
        let mut problems = Vec::new();
        if !runs(self.dhcp.as_ref()) {
            match socket::udp_on_device(bridge, dhcp::SERVER_PORT) {
                Ok(socket) => {
                    let server = Arc::clone(server);
                    self.dhcp = Some(spawn(async move {
                        let error = dhcp::serve(&server, &socket).await;
                        tracing::warn!(%error, "DHCP server ended; it is started again");
                    }));
                }
                Err(error) => problems.push(cannot_listen("DHCP", gateway, dhcp::SERVER_PORT, &error)),
            }
        }
        if !runs(self.dns_udp.as_ref()) {
            match socket::udp_on_address(gateway, dns::PORT) {
                Ok(socket) => {
                    let (dns, socket) = (dns.clone(), Arc::new(socket));
                    self.dns_udp = Some(spawn(async move { dns::serve_udp(&dns, socket).await }));
                }
                Err(error) => problems.push(cannot_listen("DNS", gateway, dns::PORT, &error)),
            }
        }
        if !runs(self.dns_tcp.as_ref()) {
            match TcpListener::bind((gateway, dns::PORT)).await {
                Ok(listener) => {
                    let dns = dns.clone();
                    self.dns_tcp = Some(spawn(async move { dns::serve_tcp(&dns, listener).await }));
                }
                Err(error) => problems.push(cannot_listen("DNS over TCP", gateway, dns::PORT, &error)),
            }
        }
        problems
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(task))
}

fn runs(task: Option<&Task>) -> bool {
    task.is_some_and(|t| !t.0.is_finished())
}

fn cannot_listen(what: &str, address: Ipv4Addr, port: u16, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program listens there on all addresses, so limit it to its own"
        }
        _ => "",
    };
    format!("{what} for guests cannot listen on {address} port {port}: {error}{hint}")
}
