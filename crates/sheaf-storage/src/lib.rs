//! The storage process of a node: all replicas on its disks, the coordinators of the volumes attached here, and what
//! guests and people talk to.
//!
//! One thread, the [`reactor`], owns every state machine and every data socket; it waits on one `epoll` for disks,
//! peers and guests. Control comes over a unix socket ([`control`]), from the agent or from `sheaf volume`. The process
//! may be killed at any time: what it promised is on disk, guests' requests wait in QEMU and are sent again.
//!
//! - [`api`]: what can be asked over the control socket; plain data.
//! - [`control`]: that socket, both ends.
//! - [`reactor`]: the thread.
//! - [`frontend`]: NBD and vhost-user-blk.
//! - [`arbiter`], [`votes`]: the vote that an even number of replicas needs, in a directory or asked of the agent.
//! - [`bases`]: files that volumes begin as.
//! - [`nbd`]: a client of our own NBD, and copying a snapshot into another volume by it.
//! - [`damaged`]: damage that nobody can repair, as people are told of it.
//! - [`inspect`]: what is on a disk, and whose belief it is; without a running process.
//!
//! What it does not do: decide who is in sync (`sheaf-block-core`), lay out files (`sheaf-disk`), place replicas or speak
//! to the API server (`sheaf-plan`, `sheaf-agent`).

pub mod api;
pub mod arbiter;
pub mod bases;
pub mod control;
pub mod damaged;
pub mod frontend;
pub mod inspect;
pub mod nbd;
mod process;
mod reactor;
pub mod votes;

pub use process::{Options, StartError, Tls, run};
