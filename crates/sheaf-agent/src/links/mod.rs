//! The node's networks: the management network, and guests' NICs on bridges that the node has.
//!
//! The management network is a bridge with the first address of `Node.spec.podCIDR`: the guests' router, DHCP and DNS
//! server, masqueraded to the outside. Other bridges are the administrator's; NICs are plugged into them as they are.
//!
//! State: one task ([`LinksLoop`]) owns what is desired and is the only one to change the kernel; [`Links`] is how the
//! other loops ask it. It looks at the kernel whenever that tells of a change, and every minute anyway, and mends
//! what is not as it should be: a bridge that was deleted, an address that was removed, a rule that another firewall
//! flushed. Nothing is torn down when the agent ends, as guests go on; taps end with the QEMU that holds them.
//!
//! After a restart, taps that QEMU holds stay as they are, and are looked after again once they are adopted. A tap of
//! ours that nobody holds has no machine, and is removed.

mod filter;
mod owner;
mod services;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use sheaf_net::dhcp::Server;
use sheaf_net::{Mac, Subnet};
use tokio::sync::{mpsc, oneshot, watch};

use crate::parts::{Network, NicRequest, PartError, Tap};

pub use owner::LinksLoop;

/// Requests that wait for the loop at any time; those beyond wait to be let in.
const MAX_REQUESTS: usize = 64;

/// What the loop is told once.
#[derive(Debug, Clone)]
pub struct LinksConfig {
    /// Name of the node, for messages.
    pub node: String,
    /// Directory of its own, `<data>/agent/network`; made if it does not exist.
    pub directory: PathBuf,
    /// Where the host's resolvers are written down.
    pub resolv_conf: PathBuf,
    /// Name of the management network's bridge.
    pub bridge: String,
}

impl LinksConfig {
    /// The usual: bridge `sheaf0`, resolvers from `/etc/resolv.conf`.
    #[must_use]
    pub fn new(node: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self {
            node: node.into(),
            directory: directory.into(),
            resolv_conf: "/etc/resolv.conf".into(),
            bridge: "sheaf0".into(),
        }
    }
}

/// How the node's networks are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinksStatus {
    /// The management network serves guests.
    pub ready: bool,
    /// What is in the way, in words for the node's condition; empty if nothing.
    pub problems: Vec<String>,
}

enum Request {
    Attach { nic: NicRequest, reply: oneshot::Sender<Result<Tap, PartError>> },
    Adopt { nic: NicRequest, reply: oneshot::Sender<Result<(), PartError>> },
    Detach { machine: String, reply: oneshot::Sender<Result<(), PartError>> },
    DetachNic { nic: NicRequest, reply: oneshot::Sender<Result<(), PartError>> },
    Replug { nic: NicRequest, reply: oneshot::Sender<Result<(), PartError>> },
}

/// The loop, as others see it. Clone freely.
#[derive(Debug, Clone)]
pub struct Links {
    requests: mpsc::Sender<Request>,
    dhcp: Arc<Server>,
    status: watch::Receiver<LinksStatus>,
}

impl Links {
    /// Makes the loop and its handle; the caller runs [`LinksLoop::run`]. The subnet is `Node.spec.podCIDR`, `None`
    /// while the node has none: see [`subnet_of`].
    pub fn new(
        config: LinksConfig,
        subnet: watch::Receiver<Option<Subnet>>,
    ) -> std::io::Result<(Self, LinksLoop)> {
        std::fs::create_dir_all(&config.directory)?;
        let (dhcp, error) = Server::open(&config.directory.join("leases.json"));
        if let Some(error) = error {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the leases were put aside; guests may get other addresses"
            );
        }
        let dhcp = Arc::new(dhcp);
        let (requests, receiver) = mpsc::channel(MAX_REQUESTS);
        let (status_sender, status) = watch::channel(LinksStatus::default());
        let links = LinksLoop::new(config, subnet, receiver, Arc::clone(&dhcp), status_sender);
        Ok((Self { requests, dhcp, status }, links))
    }

    async fn ask<T>(
        &self,
        context: impl FnOnce() -> String,
        request: impl FnOnce(oneshot::Sender<Result<T, PartError>>) -> Request,
    ) -> Result<T, PartError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await.is_ok();
        match if sent { answer.await.ok() } else { None } {
            Some(answer) => answer,
            None => {
                Err(PartError::Failed { context: context(), source: "the network loop has ended".into() })
            }
        }
    }
}

impl Network for Links {
    fn attach<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<Tap, PartError>> {
        let context = || format!("attaching NIC {}", nic.name);
        Box::pin(self.ask(context, |reply| Request::Attach { nic: nic.clone(), reply }))
    }

    fn adopt<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>> {
        let context = || format!("adopting NIC {}", nic.name);
        Box::pin(self.ask(context, |reply| Request::Adopt { nic: nic.clone(), reply }))
    }

    fn detach<'a>(&'a self, machine: &'a str) -> BoxFuture<'a, Result<(), PartError>> {
        let context = move || format!("detaching the NICs of machine {machine}");
        Box::pin(self.ask(context, |reply| Request::Detach { machine: machine.to_owned(), reply }))
    }

    fn detach_nic<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>> {
        let context = || format!("detaching NIC {}", nic.name);
        Box::pin(self.ask(context, |reply| Request::DetachNic { nic: nic.clone(), reply }))
    }

    fn replug<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>> {
        let context = || format!("moving NIC {} to another network", nic.name);
        Box::pin(self.ask(context, |reply| Request::Replug { nic: nic.clone(), reply }))
    }

    fn lease(&self, mac: Mac) -> Option<IpAddr> {
        self.dhcp.address_of(mac).map(IpAddr::V4)
    }

    fn leases_changed(&self) -> watch::Receiver<u64> {
        self.dhcp.changed()
    }

    fn status(&self) -> watch::Receiver<LinksStatus> {
        self.status.clone()
    }
}

/// The guest subnet of a node; `None` while the node controller has given none, or if it is not usable (which is
/// logged: only a hand-made value can be).
#[must_use]
pub fn subnet_of(node: &Node) -> Option<Subnet> {
    let text = node.spec.as_ref()?.pod_cidr.as_ref()?;
    text.parse()
        .inspect_err(|error: &sheaf_net::SubnetError| {
            tracing::warn!(%error, "spec.podCIDR of the node is not usable");
        })
        .ok()
}

/// Removes the bridge and the packet filter rules of the management network, for a node that is to be clean again. Only
/// while neither agent nor guests run.
pub async fn remove_all(config: &LinksConfig) -> Result<(), PartError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| PartError::Failed {
        context: format!("removing the management network (bridge {})", config.bridge),
        source,
    };
    let kernel = sheaf_net::links::Kernel::connect().map_err(|e| failed(e.into()))?;
    let step = sheaf_net::links::Step::Delete { link: config.bridge.clone() };
    kernel.apply(&step).await.map_err(|e| failed(e.into()))?;
    sheaf_net::nft::remove(&config.bridge).await.map_err(|e| failed(e.into()))
}
