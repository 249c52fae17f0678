//! Tests against the real kernel, each in a network namespace of its own.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod dns;
mod kernel;
mod netns;
