//! What is seen of a running machine, as its task publishes it. No behaviour; who owns it is [`super::monitor`].

use sheaf_qemu::qmp::FailedDisk;

use super::guest::Guest;

/// Why a machine is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// It was asked to.
    ByUser,
    /// Disks failed: these, as far as it is known.
    IoError(Vec<FailedDisk>),
    /// QEMU's word for anything else.
    Other(String),
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    Shutdown,
    /// The guest crashed and said so.
    Panicked,
    /// The guest did not feed its watchdog, which pulled the plug.
    Watchdog,
    /// It did not power off in time and was ended.
    Forced {
        /// Seconds it had been given.
        grace: u64,
    },
    /// The agent died while it started it: its guest has never run, and is started again.
    Unborn,
    /// QEMU ended by itself, or somebody ended it; its last words, or what is known.
    Crashed(String),
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// QEMU is there; the guest has not begun.
    Starting,
    /// The guest runs.
    Running,
    /// It does not, for now.
    Paused(Pause),
    /// It is over.
    Ended(End),
}

/// What is seen of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// How it is.
    pub run: Run,
    /// Its end has been asked for, with this many seconds of grace.
    pub stopping: Option<u64>,
    /// What the guest tells.
    pub guest: Guest,
    /// Versioned machine type (`pc-q35-7.2`).
    pub machine_type: String,
    /// Memory that the guest has taken beside that of its start, in bytes.
    pub memory_plugged: u64,
}
