//! Streams of a VM: serial console, VNC, ports, and ssh and scp through a port. All are WebSockets of the API, in the form
//! that virtctl speaks (clients-kubernetes.md 2.11), so they work from wherever the API can be reached.

pub(crate) mod console;
pub(crate) mod forward;
mod pump;
pub(crate) mod scp;
pub(crate) mod ssh;
mod terminal;
pub(crate) mod vnc;
mod ws;
