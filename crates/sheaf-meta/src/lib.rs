//! API machinery without I/O: what a Kubernetes-style API server computes between the bytes that came in and the
//! bytes that are stored.
//!
//! Objects are [`serde_json::Value`]s and stay whole, so that a field nobody here knows survives. Nothing in this
//! package knows a kind: kinds are rows ([`kind::KindInfo`]) that other packages bring. No clock, no randomness
//! without a parameter, no sockets, no tokio.
//!
//! Start reading at [`object`] (accessors), [`patch`] (what a PATCH does) and [`apply`] (who owns which field).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line"))]

pub mod apply;
pub mod changes;
pub mod gvk;
pub mod jsonpath;
pub mod kind;
pub mod names;
pub mod object;
pub mod objectmeta;
pub mod patch;
pub mod path;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strict;
pub mod table;
pub mod times;
