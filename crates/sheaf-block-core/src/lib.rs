//! Replicated block storage without I/O.
//!
//! A *volume* has *replicas*, each a directory on a disk of some node; the *coordinator* of a volume runs where the
//! volume is attached. This package holds what they decide, as state machines: no sockets, disks, clock, threads or
//! async runtime. The storage process is a thin shell around them, and so is the simulator that tests them.
//!
//! - [`ids`]: the numbers, each a type of its own.
//! - [`membership`]: who is in sync, decided durably before it matters. Start with decision note 0010.
//! - [`structure`]: layers (snapshots), and the ordered operations that change them.
//! - [`disk`]: what a replica asks of its files: the seam to `sheaf-disk`. [`damage`]: what nobody can read any more.
//! - [`jobs`]: which work may run at the same time.
//! - [`wire`]: frames between coordinator and replica.
//! - [`replica`]: the replica as a state machine.
//! - [`coordinator`]: the coordinator as a state machine.
//! - [`sim`]: the world in which they are tested, decided by one seed.
//!
//! What it does not do: formats on disk (`sheaf-disk`), sockets and frontends (`sheaf-storage`), placement of
//! replicas (`sheaf-plan`).
#![forbid(unsafe_code)]

pub mod coordinator;
pub mod crc;
pub mod damage;
pub mod disk;
mod each;
pub mod ids;
pub mod jobs;
pub mod membership;
pub mod replica;
pub mod sim;
pub mod structure;
pub mod wire;
