//! Node loops: machines, attachments, links, images, disks, node status.
//!
//! The agent is a client of the API whose world is the kernel and QEMU. It watches what names its node, compares it
//! with what runs here, takes one step, and reports. Nothing in it assumes that the API server is on this machine.
//! Who owns the state: each loop its own; the seams between them are the traits in [`parts`].

pub mod agent;
pub mod http;
pub mod identity;
pub mod images;
pub mod join;
pub mod links;
pub mod machines;
pub mod node;
pub mod parts;
pub mod snapshots;
pub mod storage;
pub mod streams;
pub mod volumes;
