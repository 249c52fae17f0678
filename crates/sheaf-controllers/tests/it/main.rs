//! Life cycles with a real API server and the controllers that keep them: garbage, namespaces, quotas, budgets. Each test
//! has a server and a data directory of its own.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line")]

mod garbage;
mod harness;
mod namespaces;
mod policy;
mod users_kinds;
