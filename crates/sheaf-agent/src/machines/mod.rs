//! The machine loop: runs the VirtualMachineInstances that are bound to this node.
//!
//! ```text
//!  VMI (status.nodeName = us) --plan--> start (parts -> QEMU) --> monitor (one task owns each machine)
//!        ^                                                            |
//!        +------------------ status <--- what is seen <---------------+
//! ```
//!
//! [`plan`] decides (pure), [`start`] builds, [`monitor`] owns what runs, [`status`] reports (pure). Who owns the
//! state: the machines themselves; their tasks publish what they see, and the table of machines here is found anew
//! after a restart by [`Machines::adopt`]. Nothing here decides where a machine runs, or whether it should.

mod allot;
mod care;
mod change;
mod cloudinit;
mod control;
pub mod convert;
#[cfg(test)]
mod convert_tests;
mod credentials;
pub mod disks;
pub mod dump;
mod ends;
pub mod freeze;
pub mod guest;
mod hardware;
mod iso;
pub mod ledger;
pub mod live;
pub mod metrics;
pub mod monitor;
#[cfg(test)]
mod monitor_tests;
mod pages;
pub mod plan;
pub mod probes;
pub mod requests;
pub mod seen;
mod start;
mod states;
pub mod status;
#[cfg(test)]
mod status_tests;
mod table;
pub mod usage;

pub use control::{MachinesConfig, spawn};
pub use table::Machines;
