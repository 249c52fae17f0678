//! The API server: REST, watch, admission, authentication and authorization over a [`sheaf_store::Store`].
//!
//! The generic part knows no kind: kinds are rows in the [`registry`]. A handler decodes, defaults, admits, validates,
//! stores and answers; it causes nothing else. Owns no state but the PKI's files: all objects are in the store.
//!
//! Start reading at [`core`] (what happens to a request), then [`handler`] (the verbs). [`server`] is the shell of
//! sockets and TLS, [`in_process`] the same without them.

#![allow(
    clippy::result_large_err,
    reason = "a Status is made at most once for a request and travels a few frames"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line"))]

mod admission;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
mod bootstrap;
pub mod core;
mod crds;
mod csr;
mod discovery;
pub mod extension;
mod fair;
mod handler;
mod health;
pub mod http;
pub mod in_process;
mod internal;
pub mod kubevirt;
mod life;
pub mod namespaces;
pub mod negotiate;
mod openapi;
pub mod pages;
pub mod pki;
mod policies;
mod policy;
pub mod query;
mod random;
mod rbac;
pub mod registry;
pub mod relay;
mod reviews;
pub mod scale;
pub mod server;
mod session;
mod tokens;
pub mod verb;
mod webhooks;
mod websocket;

pub use authn::UserInfo;
pub use in_process::InProcess;
pub use server::{ApiServer, Config, StartError};
