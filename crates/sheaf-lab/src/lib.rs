//! Clusters of real Sheaf processes in network namespaces: what the end-to-end tests stand on.
//!
//! [`run`] makes a lab, gives it to a test and removes everything afterwards, also when the test panics: processes,
//! guests, namespaces, data. Each node is a network namespace with one link to a switch (a bridge in a namespace of its
//! own), a data directory and a log file. The test itself runs inside the namespace of the first node, so that
//! `127.0.0.1`, guests' addresses and `kubectl` mean there what they mean on a real machine.
//!
//! What it does not do: it simulates nothing and knows no internals. It starts the binary that users start, and looks
//! through the API, the command line and the guests' consoles.
//!
//! Owner of the state: [`Lab`]. Only what runs in its own namespaces is ever killed.
//!
//! Start reading at [`Lab`], then [`wait_for`].

mod api;
mod console;
mod guest;
mod namespace;
mod node;
mod process;
mod run;
mod socket;
mod wait;
mod wire;

pub use console::Console;
pub use guest::{condition, small_guest_image};
pub use node::{Node, Role, Switch};
pub use process::Output;
pub use run::{Lab, ready, run};
pub use socket::Forward;
pub use wait::{Deadline, wait_for};
pub use wire::Wire;
