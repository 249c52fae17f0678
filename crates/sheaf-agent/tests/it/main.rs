//! The agent's loops against the real kernel.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod links;
#[path = "../../../sheaf-net/tests/it/netns.rs"]
mod netns;
#[allow(dead_code, reason = "its other half is used by its own package")]
#[path = "../../../sheaf-image/tests/it/server.rs"]
mod server;
mod storage;
