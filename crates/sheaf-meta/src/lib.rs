//! API machinery without I/O: what a Kubernetes-style API server computes between the bytes that came in and the
//! bytes that are stored.
//!
//! Objects are [`serde_json::Value`]s and stay whole, so that a field nobody here knows survives. Nothing in this
//! package knows a kind: kinds are rows ([`kind::KindInfo`]) that other packages bring. No clock, no randomness
//! without a parameter, no sockets, no tokio.

pub mod kind;
pub mod status;
