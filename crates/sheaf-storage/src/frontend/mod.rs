//! What guests talk to. A frontend turns bytes or rings into [`Asked`], and [`Completion`]s into answers; what lies
//! between is the reactor's. [`nbd`] is for tools and for QEMU without shared memory, [`vhost`] for guests.

pub mod nbd;
pub mod vhost;

use sheaf_block_core::wire::Data;

/// Why a request failed, as both frontends can say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The device failed, or did not answer in time.
    Io,
    /// It does not fit the device.
    Invalid,
    /// There is no space.
    NoSpace,
    /// It is not supported.
    Unsupported,
}

/// A request is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// What the frontend called it.
    pub cookie: u64,
    /// What was read, in order; empty for all others.
    pub result: Result<Vec<Data>, Failed>,
}

/// What a guest asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Read.
    Read {
        /// What the answer is to be called.
        cookie: u64,
        /// From which byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Make zero.
    Zero {
        /// What the answer is to be called.
        cookie: u64,
        /// From which byte.
        offset: u64,
        /// How many.
        len: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// The content is not needed.
    Discard {
        /// What the answer is to be called.
        cookie: u64,
        /// From which byte.
        offset: u64,
        /// How many.
        len: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// Make everything answered durable.
    Flush {
        /// What the answer is to be called.
        cookie: u64,
    },
    /// A write begins; its parts follow, and no other request before its end.
    WriteBegin {
        /// What the answer is to be called.
        cookie: u64,
        /// Durable when answered.
        fua: bool,
    },
    /// A part of the write that has begun.
    WritePart {
        /// From which byte.
        offset: u64,
        /// The bytes, at most a coordinator's request.
        data: Data,
    },
    /// The write is complete; none of it if that is so.
    WriteEnd,
    /// Answer this at once, without touching the device.
    Fail {
        /// What the answer is to be called.
        cookie: u64,
        /// With this.
        with: Failed,
    },
    /// The guest says goodbye.
    Leave,
}
