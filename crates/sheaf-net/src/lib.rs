//! Netlink, nftables, DHCP and DNS: desired state against the kernel's.
//!
//! What it is: the building blocks of a node's networks. Each is a pure core (what should be done, what should be
//! answered) with a thin shell (netlink socket, `nft`, UDP). What it is not: it knows no Kubernetes object, holds no
//! desired state, and starts no task of its own: `sheaf-agent::links` does. State: the DHCP leases belong to
//! [`dhcp::Server`]; everything else is the caller's or the kernel's.
//!
//! `unsafe` is allowed in [`links::tap`] and [`socket`] only: ioctls and socket options that no safe crate offers.
//!
//! Start reading at [`links::plan_links`], [`dhcp::on_packet`] and [`dns::on_query`].

pub mod dhcp;
pub mod dns;
pub mod links;
mod mac;
pub mod nft;
pub mod socket;
mod subnet;
pub mod sysctl;

pub use mac::{Mac, MacError};
pub use subnet::{Subnet, SubnetError};
