//! The server as its clients meet it: over HTTPS with raw requests, the crate `kube` and the real kubectl, and in
//! process. Each test has a server and a data directory of its own.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line")]

mod answers;
mod auth;
mod conformance;
mod crds;
mod discovery;
mod harness;
mod kinds;
mod kube_client;
mod kubectl;
mod kubevirt;
mod limits;
mod lists;
mod mutating;
mod policy;
mod protobuf;
mod rest;
mod scale;
mod sessions;
mod updates;
mod watches;
mod webhooks;
mod websockets;
mod writes;
