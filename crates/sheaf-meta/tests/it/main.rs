//! The package's behaviour as tables: inputs a client may send, and what must come out.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line")]

mod apply;
mod patches;
mod schemas;
mod selectors;
mod tables;
