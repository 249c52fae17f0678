//! The kernel's links over rtnetlink: observe, apply one step, be told of changes.
//!
//! Everything happens in the network namespace that the thread was in that called [`Kernel::connect`]. State: the
//! netlink socket; nothing is cached.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgeVlan, LinkMessageBuilder, LinkUnspec, MulticastGroup, RouteMessageBuilder,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{LinkKind, ObservedLink, ObservedLinks, PortVlan, Step};
use crate::Mac;

/// Why the kernel could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error("opening a netlink socket failed")]
    Socket(#[source] io::Error),
    /// A request failed.
    #[error("{context} failed")]
    Request {
        /// What was asked.
        context: String,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
    /// A link that a step needs is gone by now; the next look at the kernel will tell.
    #[error("{context} failed: interface {link} does not exist")]
    Gone {
        /// What was asked.
        context: String,
        /// The link.
        link: String,
    },
}

impl KernelError {
    fn request(context: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let context = context.into();
        move |source| Self::Request { context, source }
    }
}

/// A connection to the kernel's links.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    /// Connects. Needs a tokio runtime.
    pub fn connect() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All links with their IPv4 addresses.
    pub async fn observe(&self) -> Result<ObservedLinks, KernelError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(KernelError::request("listing interfaces"))?;
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(KernelError::request("listing addresses"))?;
        let mut links: Vec<ObservedLink> = links.iter().filter_map(read_link).collect();
        if links.iter().any(|l| l.kind == LinkKind::Bridge { vlan_filtering: true }) {
            let mut vlans = self.port_vlans().await?;
            for link in &mut links {
                link.vlans = vlans.remove(&link.index).unwrap_or_default();
            }
        }
        for message in &addresses {
            let Some(address) = read_address(message) else { continue };
            if let Some(link) = links.iter_mut().find(|l| l.index == message.header.index) {
                link.addresses.push((address, message.header.prefix_len));
            }
        }
        Ok(ObservedLinks { links })
    }

    async fn port_vlans(&self) -> Result<HashMap<u32, Vec<PortVlan>>, KernelError> {
        let ports: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan])
            .execute()
            .try_collect()
            .await
            .map_err(KernelError::request("listing VLANs of bridge ports"))?;
        Ok(ports.iter().map(|p| (p.header.index, read_vlans(p))).collect())
    }

    /// The MTU of the interface that the default IPv4 route leads to; `None` without such a route.
    pub async fn default_route_mtu(&self) -> Result<Option<u32>, KernelError> {
        let routes: Vec<RouteMessage> = self
            .handle
            .route()
            .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
            .execute()
            .try_collect()
            .await
            .map_err(KernelError::request("listing routes"))?;
        let metric = |r: &RouteMessage| {
            r.attributes.iter().find_map(|a| match a {
                RouteAttribute::Priority(p) => Some(*p),
                _ => None,
            })
        };
        let oif = |r: &RouteMessage| {
            r.attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        };
        let index = routes
            .iter()
            .filter(|r| r.header.destination_prefix_length == 0)
            .min_by_key(|r| metric(r).unwrap_or(0))
            .and_then(oif);
        let Some(index) = index else { return Ok(None) };
        let observed = self.observe().await?;
        Ok(observed.links.iter().find(|l| l.index == index).map(|l| l.mtu))
    }

    /// Takes one step.
    pub async fn apply(&self, step: &Step) -> Result<(), KernelError> {
        let context = describe(step);
        let failed = |source| KernelError::Request { context: context.clone(), source };
        match step {
            Step::CreateBridge { name, mac } => {
                // Built by hand, as `LinkBridge::new` would set it up before it has its address.
                let message = LinkMessageBuilder::<LinkBridge>::new(name).address(mac.0.to_vec()).build();
                self.handle.link().add(message).execute().await.map_err(failed)
            }
            Step::Delete { link } => {
                let index = match self.index(link, &context).await {
                    Err(KernelError::Gone { .. }) => return Ok(()),
                    other => other?,
                };
                match self.handle.link().del(index).execute().await {
                    Err(e) if is_errno(&e, libc::ENODEV) => Ok(()),
                    other => other.map_err(failed),
                }
            }
            Step::SetAlias { link, alias } => self.change(link, &context, |b| b.alias(alias)).await,
            Step::SetMac { link, mac } => self.change(link, &context, |b| b.address(mac.0.to_vec())).await,
            Step::SetMtu { link, mtu } => self.change(link, &context, |b| b.mtu(*mtu)).await,
            Step::SetUp { link } => self.change(link, &context, LinkMessageBuilder::up).await,
            Step::SetMaster { link, bridge } => {
                let bridge = self.index(bridge, &context).await?;
                self.change(link, &context, |b| b.controller(bridge)).await
            }
            Step::AddAddress { link, address, prefix_len } => {
                let index = self.index(link, &context).await?;
                let address = IpAddr::V4(*address);
                self.handle
                    .address()
                    .add(index, address, *prefix_len)
                    .replace()
                    .execute()
                    .await
                    .map_err(failed)
            }
            Step::DeleteAddress { link, address, prefix_len } => {
                let index = self.index(link, &context).await?;
                let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
                    .index(index)
                    .address(*address, *prefix_len)
                    .build();
                self.handle.address().del(message).execute().await.map_err(failed)
            }
            Step::SetPortVlan { link, vlan, remove } => {
                let index = self.index(link, &context).await?;
                let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
                let add = LinkBridgeVlan::new(index).vlan(*vlan, flags).build();
                self.handle.link().set(add).execute().await.map_err(failed)?;
                for old in remove {
                    let message = LinkBridgeVlan::new(index).vlan(*old, BridgeVlanInfoFlags::empty()).build();
                    match self.handle.link().del_with_message(message).execute().await {
                        // The port never had it.
                        Err(e) if is_errno(&e, libc::ENOENT) => {}
                        other => other.map_err(failed)?,
                    }
                }
                Ok(())
            }
        }
    }

    async fn change(
        &self,
        link: &str,
        context: &str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), KernelError> {
        let index = self.index(link, context).await?;
        let message = edit(LinkUnspec::new_with_index(index)).build();
        self.handle.link().change(message).execute().await.map_err(KernelError::request(context))
    }

    async fn index(&self, link: &str, context: &str) -> Result<u32, KernelError> {
        let gone = || KernelError::Gone { context: context.to_owned(), link: link.to_owned() };
        let mut found = std::pin::pin!(self.handle.link().get().match_name(link).execute());
        match found.next().await {
            Some(Ok(message)) => Ok(message.header.index),
            Some(Err(e)) if is_errno(&e, libc::ENODEV) => Err(gone()),
            Some(Err(e)) => Err(KernelError::request(context)(e)),
            None => Err(gone()),
        }
    }
}

/// Tells when links or IPv4 addresses change, whoever changed them. Several changes may be told as one.
#[derive(Debug)]
pub struct Events {
    changes: watch::Receiver<u64>,
    tasks: [JoinHandle<()>; 2],
}

impl Events {
    /// Starts to listen. Needs a tokio runtime.
    pub fn listen() -> Result<Self, KernelError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(KernelError::Socket)?;
        let (sender, changes) = watch::channel(0);
        let counter = tokio::spawn(async move {
            while messages.next().await.is_some() {
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(Self { changes, tasks: [tokio::spawn(connection), counter] })
    }

    /// Waits for a change. An error means that no further change will be told. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.changes.changed().await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn describe(step: &Step) -> String {
    match step {
        Step::CreateBridge { name, .. } => format!("making bridge {name}"),
        Step::Delete { link } => format!("deleting interface {link}"),
        Step::SetAlias { link, .. } => format!("setting the alias of {link}"),
        Step::SetMac { link, mac } => format!("setting the hardware address of {link} to {mac}"),
        Step::SetMtu { link, mtu } => format!("setting the MTU of {link} to {mtu}"),
        Step::AddAddress { link, address, prefix_len } => {
            format!("adding address {address}/{prefix_len} to {link}")
        }
        Step::DeleteAddress { link, address, prefix_len } => {
            format!("removing address {address}/{prefix_len} from {link}")
        }
        Step::SetMaster { link, bridge } => format!("plugging {link} into bridge {bridge}"),
        Step::SetPortVlan { link, vlan, .. } => format!("giving VLAN {vlan} to {link}"),
        Step::SetUp { link } => format!("setting {link} up"),
    }
}

fn read_link(message: &LinkMessage) -> Option<ObservedLink> {
    let mut link = ObservedLink {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        master: None,
        alias: String::new(),
        addresses: Vec::new(),
        carrier: false,
        vlans: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
            LinkAttribute::Controller(index) if *index != 0 => link.master = Some(*index),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => link.kind = read_kind(infos),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn read_kind(infos: &[LinkInfo]) -> LinkKind {
    let kind = infos.iter().find_map(|i| match i {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Tun) => LinkKind::Tap,
        Some(InfoKind::Bridge) => {
            let filtering = infos.iter().any(|i| {
                matches!(i, LinkInfo::Data(InfoData::Bridge(data))
                    if data.iter().any(|d| matches!(d, InfoBridge::VlanFiltering(true))))
            });
            LinkKind::Bridge { vlan_filtering: filtering }
        }
        _ => LinkKind::Other,
    }
}

fn read_vlans(message: &LinkMessage) -> Vec<PortVlan> {
    let access = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    let specs = message.attributes.iter().filter_map(|a| match a {
        LinkAttribute::AfSpecBridge(specs) => Some(specs),
        _ => None,
    });
    specs
        .flatten()
        .filter_map(|spec| match spec {
            AfSpecBridge::VlanInfo(info) => {
                Some(PortVlan { id: info.vid, access: info.flags.contains(access) })
            }
            _ => None,
        })
        .collect()
}

fn read_address(message: &AddressMessage) -> Option<Ipv4Addr> {
    // Of a point-to-point link, `Address` is the peer's; `Local` is always ours.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => return Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => found = Some(*address),
            _ => {}
        }
    }
    found
}
