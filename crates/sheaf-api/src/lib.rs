//! Typed views of every kind, with defaulting and validation as pure functions.
//!
//! - [`kubevirt`], [`harvester`], [`cni`]: structs that clients (controllers, agents, command line) use with
//!   `kube::Api`. Kinds of core Kubernetes come from `k8s-openapi`.
//!
//! No I/O, no clock and no randomness. Who owns stored objects: the API server, as whole JSON values.

pub mod cni;
pub mod harvester;
pub mod kubevirt;
pub mod object;
#[cfg(feature = "schema")]
pub mod shape;
