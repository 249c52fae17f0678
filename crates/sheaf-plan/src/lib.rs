//! Decisions as pure functions: what a VM needs next, where an instance is placed, what a quota or a budget allows. Each
//! explains itself.
//!
//! Everything that a decision rests on is in its arguments, the time and chance included, so that a decision can be
//! made in a test by hand. Nothing here reads a cache, writes an object or keeps state.

pub mod claim;
pub mod conditions;
pub mod disruption;
pub mod gc;
pub mod limits;
pub mod machine;
pub mod metrics;
pub mod place;
pub mod quota;
pub mod snapshot;
pub mod storage;
pub mod usage;
pub mod vm;
