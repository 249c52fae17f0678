//! The agent's loops against the real kernel.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod links;
#[path = "../../../sheaf-net/tests/it/netns.rs"]
mod netns;
