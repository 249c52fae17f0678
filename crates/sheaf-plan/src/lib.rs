//! Decisions as pure functions: what a VM needs next, where an instance is placed. Each explains itself.
//!
//! Everything that a decision rests on is in its arguments, the time and chance included, so that a decision can be
//! made in a test by hand. Nothing here reads a cache, writes an object or keeps state.

pub mod conditions;
pub mod gc;
pub mod machine;
pub mod metrics;
pub mod place;
pub mod snapshot;
pub mod vm;
