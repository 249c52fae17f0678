//! vhost-user-blk, the device's side: QEMU shares the guest's memory, and requests come through rings in it.
//!
//! - [`message`]: what QEMU says on the socket; bytes, pure.
//! - [`memory`]: the guest's memory, mapped. The only place with `unsafe` here.
//! - [`queue`]: a ring, and the record of what is under way.
//! - [`device`]: all of it together; owned by the reactor, one for each connection.
//!
//! A request under way is recorded in a region that QEMU keeps ("inflight"). When this process is gone and another takes
//! its place, QEMU connects again by itself, hands that region over, and what was not answered is done again: the guest
//! sees nothing but a pause.
//!
//! What a guest puts into its rings is not trusted: addresses, lengths and chains are checked, and a broken ring is
//! stopped, not followed. QEMU itself is trusted not to shorten the memory that it shared.

pub mod device;
pub mod memory;
pub mod message;
pub mod queue;
