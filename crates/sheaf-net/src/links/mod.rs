//! Links of the node: what they should be, what the kernel says, and the steps between the two.
//!
//! [`plan_links`] is pure and never deletes what is not marked as ours: our bridge and taps carry a link alias
//! (`sheaf:...`), which the kernel keeps as long as the device, so a restarted agent knows its own. [`Kernel`] observes
//! and applies, one step at a time, without choices. State: none here; the kernel's is the truth.
//!
//! Taps do not persist: a tap exists as long as somebody holds its descriptor. QEMU inherits it, so that the NIC
//! outlives the agent, and it vanishes with QEMU without anybody having to clean up. Opening one is no step of a plan,
//! as it yields the descriptor: see [`tap::open`].

mod kernel;
mod name;
pub mod tap;

use std::net::Ipv4Addr;

pub use kernel::{Events, Kernel, KernelError};
pub use name::{Identity, MAX_ALIAS_LEN, TapNameError, tap_name};

use crate::{Mac, Subnet};

/// What the links should be. Links that it does not name are left alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredLinks {
    /// The bridge of the management network; `None` while the node has no subnet.
    pub bridge: Option<DesiredBridge>,
    /// Taps that exist by now, or are about to.
    pub taps: Vec<DesiredTap>,
}

/// A bridge of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredBridge {
    /// Name of the device.
    pub name: String,
    /// Subnet whose gateway the bridge is.
    pub subnet: Subnet,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
}

/// A guest's NIC on the host's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredTap {
    /// Name of the device.
    pub name: String,
    /// Whose it is.
    pub identity: Identity,
    /// The guest's hardware address.
    pub guest_mac: Mac,
    /// Name of the bridge to plug into.
    pub bridge: String,
    /// VLAN for untagged frames of the guest, on a bridge that filters VLANs.
    pub vlan: Option<u16>,
}

/// The kernel's links, from one dump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedLinks {
    /// All of the network namespace.
    pub links: Vec<ObservedLink>,
}

impl ObservedLinks {
    /// The link of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&ObservedLink> {
        self.links.iter().find(|l| l.name == name)
    }
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// The kernel's number; never used again in the life of the namespace until it wraps.
    pub index: u32,
    /// Name of the device.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Administratively up.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
    /// Hardware address, if it is Ethernet.
    pub mac: Option<Mac>,
    /// Index of the bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// The alias, empty if none.
    pub alias: String,
    /// IPv4 addresses with prefix length.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Whether frames can pass; of a tap, whether somebody holds its descriptor.
    pub carrier: bool,
    /// VLANs of a bridge port.
    pub vlans: Vec<PortVlan>,
}

/// Kinds of links that make a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge {
        /// Whether frames are sorted by VLAN.
        vlan_filtering: bool,
    },
    /// A tap or tun device.
    Tap,
    /// Any other.
    Other,
}

/// A VLAN of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    /// 1 to 4094.
    pub id: u16,
    /// Frames that arrive without a tag belong to it, and its frames leave without one.
    pub access: bool,
}

/// One change to the kernel's links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes a bridge, down and without address.
    CreateBridge {
        /// Its name.
        name: String,
        /// Its hardware address.
        mac: Mac,
    },
    /// Deletes a link.
    Delete {
        /// Its name.
        link: String,
    },
    /// Marks a link as ours.
    SetAlias {
        /// The link.
        link: String,
        /// The mark.
        alias: String,
    },
    /// Sets the hardware address.
    SetMac {
        /// The link.
        link: String,
        /// The address.
        mac: Mac,
    },
    /// Sets the MTU.
    SetMtu {
        /// The link.
        link: String,
        /// In bytes.
        mtu: u32,
    },
    /// Adds an IPv4 address.
    AddAddress {
        /// The link.
        link: String,
        /// The address.
        address: Ipv4Addr,
        /// Length of its prefix.
        prefix_len: u8,
    },
    /// Removes an IPv4 address.
    DeleteAddress {
        /// The link.
        link: String,
        /// The address.
        address: Ipv4Addr,
        /// Length of its prefix.
        prefix_len: u8,
    },
    /// Plugs a link into a bridge.
    SetMaster {
        /// The link.
        link: String,
        /// The bridge.
        bridge: String,
    },
    /// Makes a VLAN the port's only one, untagged.
    SetPortVlan {
        /// The port.
        link: String,
        /// The VLAN.
        vlan: u16,
        /// VLANs that it had besides.
        remove: Vec<u16>,
    },
    /// Sets a link up.
    SetUp {
        /// The link.
        link: String,
    },
}

/// Something in the way that no step can mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The name that our bridge should have is taken.
    #[error(
        "interface {name} exists and is no bridge; rename or remove it, so that the management network can be made"
    )]
    NotABridge {
        /// The name.
        name: String,
    },
    /// A bridge that a NIC needs is not there.
    #[error("bridge {bridge} does not exist")]
    BridgeMissing {
        /// The bridge.
        bridge: String,
        /// The tap that needs it.
        tap: String,
    },
    /// What a NIC names as its bridge is none.
    #[error("interface {bridge} is no bridge")]
    NotTheBridge {
        /// The interface.
        bridge: String,
        /// The tap that needs it.
        tap: String,
    },
    /// A VLAN is asked for on a bridge that knows none.
    #[error(
        "bridge {bridge} does not filter VLANs, so VLAN {vlan} cannot be given to a NIC on it; \
         turn VLAN filtering on (ip link set {bridge} type bridge vlan_filtering 1), or use a network without VLAN"
    )]
    NoVlanFiltering {
        /// The bridge.
        bridge: String,
        /// The VLAN.
        vlan: u16,
        /// The tap that needs it.
        tap: String,
    },
}

impl Obstacle {
    /// The tap that cannot be plugged in; `None` if it is our bridge that cannot be made.
    #[must_use]
    pub fn tap(&self) -> Option<&str> {
        match self {
            Self::NotABridge { .. } => None,
            Self::BridgeMissing { tap, .. }
            | Self::NotTheBridge { tap, .. }
            | Self::NoVlanFiltering { tap, .. } => Some(tap),
        }
    }
}

/// What to do, and what stands in the way of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinksPlan {
    /// In this order. Empty when nothing is to be done.
    pub steps: Vec<Step>,
    /// What no step can mend.
    pub obstacles: Vec<Obstacle>,
}

/// The steps from what the kernel says to what should be.
#[must_use]
pub fn plan_links(desired: &DesiredLinks, observed: &ObservedLinks) -> LinksPlan {
    let mut plan = LinksPlan::default();
    // First what goes, so that what is planned next does not count on it: taps of ours that were made to persist and
    // that nobody holds. One that is held is some guest's, even if we do not know which.
    let goes = |link: &ObservedLink| {
        link.kind == LinkKind::Tap && !link.carrier && Identity::from_alias(&link.alias).is_some()
    };
    let (going, links) = observed.links.iter().cloned().partition::<Vec<_>, _>(goes);
    plan.steps.extend(going.into_iter().map(|link| Step::Delete { link: link.name }));
    let observed = &ObservedLinks { links };
    if let Some(bridge) = &desired.bridge {
        plan_bridge(&mut plan, bridge, observed.by_name(&bridge.name));
    }
    for tap in &desired.taps {
        plan_tap(&mut plan, tap, desired, observed);
    }
    plan
}

/// The bridge's alias records the address that we gave to it, so that it can be taken back when the subnet changes.
fn bridge_alias(subnet: Subnet) -> String {
    format!("sheaf:management {subnet}")
}

fn plan_bridge(plan: &mut LinksPlan, want: &DesiredBridge, have: Option<&ObservedLink>) {
    let name = &want.name;
    let mac = want.subnet.gateway_mac();
    let alias = bridge_alias(want.subnet);
    let new;
    let have = match have {
        Some(link) if !matches!(link.kind, LinkKind::Bridge { .. }) => {
            plan.obstacles.push(Obstacle::NotABridge { name: name.clone() });
            return;
        }
        Some(link) => link,
        None => {
            plan.steps.push(Step::CreateBridge { name: name.clone(), mac });
            new = ObservedLink {
                index: 0,
                name: name.clone(),
                kind: LinkKind::Bridge { vlan_filtering: false },
                up: false,
                mtu: 1500,
                mac: Some(mac),
                master: None,
                alias: String::new(),
                addresses: Vec::new(),
                carrier: false,
                vlans: Vec::new(),
            };
            &new
        }
    };
    if have.mac != Some(mac) {
        plan.steps.push(Step::SetMac { link: name.clone(), mac });
    }
    if have.mtu != want.mtu {
        plan.steps.push(Step::SetMtu { link: name.clone(), mtu: want.mtu });
    }
    let recorded = have.alias.strip_prefix("sheaf:management ").and_then(|s| s.parse::<Subnet>().ok());
    if let Some(old) = recorded.filter(|old| *old != want.subnet) {
        let old = (old.gateway(), old.prefix_len());
        if have.addresses.contains(&old) {
            plan.steps.push(Step::DeleteAddress { link: name.clone(), address: old.0, prefix_len: old.1 });
        }
    }
    let address = (want.subnet.gateway(), want.subnet.prefix_len());
    if !have.addresses.contains(&address) {
        plan.steps.push(Step::AddAddress { link: name.clone(), address: address.0, prefix_len: address.1 });
    }
    if have.alias != alias {
        plan.steps.push(Step::SetAlias { link: name.clone(), alias });
    }
    if !have.up {
        plan.steps.push(Step::SetUp { link: name.clone() });
    }
}

fn plan_tap(plan: &mut LinksPlan, want: &DesiredTap, desired: &DesiredLinks, observed: &ObservedLinks) {
    // Without anybody who holds it there is nothing to plug in; and a name that a link of another kind has is not ours.
    let found = observed.by_name(&want.name).filter(|l| l.kind == LinkKind::Tap && l.carrier);
    let Some(have) = found else { return };
    let name = &want.name;
    let ours = desired.bridge.as_ref().filter(|b| b.name == want.bridge);
    let bridge = observed.by_name(&want.bridge);
    let (bridge_index, mtu, vlan_filtering) = match (bridge, ours) {
        (Some(link), ours) => match link.kind {
            LinkKind::Bridge { vlan_filtering } => {
                (Some(link.index), ours.map_or(link.mtu, |b| b.mtu), vlan_filtering)
            }
            _ => {
                plan.obstacles
                    .push(Obstacle::NotTheBridge { bridge: want.bridge.clone(), tap: name.clone() });
                return;
            }
        },
        // Made by an earlier step of this plan.
        (None, Some(ours)) => (None, ours.mtu, false),
        (None, None) => {
            plan.obstacles.push(Obstacle::BridgeMissing { bridge: want.bridge.clone(), tap: name.clone() });
            return;
        }
    };
    let alias = want.identity.alias();
    if have.alias != alias {
        plan.steps.push(Step::SetAlias { link: name.clone(), alias });
    }
    let mac = want.guest_mac.host_end();
    if have.mac != Some(mac) {
        plan.steps.push(Step::SetMac { link: name.clone(), mac });
    }
    // A port with a smaller MTU would lower that of a bridge that has none set.
    if have.mtu != mtu {
        plan.steps.push(Step::SetMtu { link: name.clone(), mtu });
    }
    if let Some(vlan) = want.vlan
        && !vlan_filtering
    {
        // Not plugged in: without filtering, the guest would see the frames of other VLANs.
        plan.obstacles.push(Obstacle::NoVlanFiltering {
            bridge: want.bridge.clone(),
            vlan,
            tap: name.clone(),
        });
        return;
    }
    let plugged = bridge_index.is_some() && have.master == bridge_index;
    if !plugged {
        plan.steps.push(Step::SetMaster { link: name.clone(), bridge: want.bridge.clone() });
    }
    if let Some(vlan) = want.vlan {
        let wanted = PortVlan { id: vlan, access: true };
        if !plugged || have.vlans != [wanted] {
            // A port that is just being plugged in gets the bridge's default VLAN, which is 1 unless changed.
            let mut remove: Vec<u16> = have.vlans.iter().map(|v| v.id).filter(|id| *id != vlan).collect();
            if !plugged && vlan != 1 && !remove.contains(&1) {
                remove.push(1);
            }
            plan.steps.push(Step::SetPortVlan { link: name.clone(), vlan, remove });
        }
    }
    if !have.up {
        plan.steps.push(Step::SetUp { link: name.clone() });
    }
}

#[cfg(test)]
mod tests;
