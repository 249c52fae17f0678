//! The seams between the agent's loops: what the machine loop asks of the network and of the storage.
//!
//! Traits, so that replicated storage takes the place of local files, and VLAN networks that of one bridge, without
//! the machine loop noticing. No state here.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use futures_util::future::BoxFuture;

pub use sheaf_net::Mac;

use crate::links::LinksStatus;

/// Where a NIC is to be plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicTarget {
    /// The node's management network: DHCP and DNS from Sheaf, NAT to the outside.
    Management,
    /// An existing bridge of the node, untagged; from a NetworkAttachmentDefinition of type `bridge`.
    Bridge {
        /// Name of the bridge.
        name: String,
        /// VLAN tag, if the definition asks for one.
        vlan: Option<u16>,
    },
}

/// One NIC of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicRequest {
    /// UID of the VirtualMachineInstance.
    pub machine: String,
    /// Name of the interface in the VMI's spec.
    pub name: String,
    /// Address of the guest's NIC.
    pub mac: Mac,
    /// Network to attach to.
    pub target: NicTarget,
    /// Host name that DHCP and DNS give to the guest.
    pub hostname: String,
    /// Queues of the tap; one if it is 0.
    pub queues: u32,
}

/// Why a part could not do what the machine needs; the text goes into the VMI's condition.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Something that a user has to bring is not there yet; looked at again when the world changes.
    #[error("{0}")]
    Missing(String),
    /// The request can never work as it stands.
    #[error("{0}")]
    Refused(String),
    /// The system failed; tried again.
    #[error("{context}")]
    Failed {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The node's networks, as the machine loop sees them.
pub trait Network: Send + Sync {
    /// Makes sure that the NIC's tap device exists, is up and plugged in, and opens it for QEMU.
    fn attach<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<Tap, PartError>>;
    /// Records a NIC of an adopted machine, whose tap QEMU still holds.
    fn adopt<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>>;
    /// Removes the taps of a machine that has ended. Idempotent.
    fn detach<'a>(&'a self, machine: &'a str) -> BoxFuture<'a, Result<(), PartError>>;
    /// Removes the tap of one NIC, which QEMU has given up. Idempotent.
    fn detach_nic<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>>;
    /// Plugs the tap of a running machine into the network that the request names.
    fn replug<'a>(&'a self, nic: &'a NicRequest) -> BoxFuture<'a, Result<(), PartError>>;
    /// The address leased to a NIC, if any.
    fn lease(&self, mac: Mac) -> Option<IpAddr>;
    /// Changes whenever any lease does.
    fn leases_changed(&self) -> tokio::sync::watch::Receiver<u64>;
    /// How the networks are; whoever waits for one looks again when that changes.
    fn status(&self) -> tokio::sync::watch::Receiver<LinksStatus>;
}

/// An open tap device. It exists as long as any copy of the descriptor is open: QEMU has to inherit one (it is closed on
/// exec unless that is cleared), and ours is to be closed once QEMU has started, so that the tap ends with QEMU.
#[derive(Debug)]
pub struct Tap {
    /// Name of the device on the host.
    pub ifname: String,
    /// Its queues, handed to QEMU (`-netdev tap,fds=N:M`).
    pub queues: Vec<OwnedFd>,
}

/// Format of what QEMU opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What QEMU opens for one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file on this node.
    File {
        /// Absolute path.
        path: PathBuf,
        /// Its format; never probed.
        format: DiskFormat,
        /// Refuses writes.
        read_only: bool,
    },
    /// An NBD socket of the storage process.
    Nbd {
        /// Absolute path of the socket.
        socket: PathBuf,
    },
    /// A vhost-user-blk socket of the storage process.
    VhostUser {
        /// Absolute path of the socket.
        socket: PathBuf,
    },
}

/// The storage behind one class of claims. `local` implements it with files; the replicated storage will, too.
pub trait VolumeBackend: Send + Sync {
    /// Makes the volume of a bound claim usable on this node. Idempotent.
    fn attach<'a>(
        &'a self,
        namespace: &'a str,
        claim: &'a str,
    ) -> BoxFuture<'a, Result<DiskSource, PartError>>;
    /// Gives the volume up after its machine has ended. Idempotent.
    fn detach<'a>(&'a self, namespace: &'a str, claim: &'a str) -> BoxFuture<'a, Result<(), PartError>>;
    /// The directory below which the sockets of volumes lie, each in a directory of its own; `None` if there are none.
    fn sockets(&self) -> Option<PathBuf> {
        None
    }
    /// Hears that the disk of a claim was made larger by the machine that has it open.
    fn grown(&self, namespace: &str, claim: &str);
}
