//! Typed views of every kind, with defaulting and validation as pure functions.
//!
//! - [`kubevirt`], [`harvester`], [`longhorn`], [`volumesnapshot`], [`cni`]: structs that clients (controllers, agents, command line) use with
//!   `kube::Api`. Kinds of core Kubernetes come from `k8s-openapi`.
//! - [`kinds()`]: every built-in kind as a row for the API server, with schema, printer columns and rules.
//!
//! No I/O, no clock and no randomness. Who owns stored objects: the API server, as whole JSON values.

mod cells;
pub mod cni;
pub mod harvester;
pub mod kinds;
pub mod kubevirt;
pub mod longhorn;
pub mod object;
pub mod rules;
pub mod shape;
pub mod volumesnapshot;

pub use cells::human_duration;
pub use kinds::kinds;
