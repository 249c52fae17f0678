//! What a coordinator has done so far: plain numbers, counted where it is done.

/// What happened so far, for metrics and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Segments copied to replicas that came back.
    pub copied: u64,
    /// Segments copied when members were made equal.
    pub recovered: u64,
    /// Parts of segments repaired from another replica.
    pub repaired: u64,
    /// Parts of segments where replicas differ and nobody can tell who is right.
    pub undecided: u64,
    /// Parts of segments of which nobody could read everything.
    pub damaged: u64,
    /// Rebuilds that ended with the replica in sync.
    pub rebuilt: u64,
    /// Rebuilds that were given up.
    pub abandoned: u64,
}
