//! Replicated volumes: what a volume needs next, where its replicas go, what its objects say. Pure.
//!
//! The objects are Longhorn's ([`sheaf_api::longhorn`]); what stands in them is a view. Who is in sync is decided by the
//! replicas themselves (note 0010), and nothing here can make a replica current that is not: at worst a volume waits.

pub mod place;
pub mod settings;
mod volume;
#[cfg(test)]
mod volume_tests;

pub use settings::Settings;
pub use volume::{
    Content, DATA_MISSING, Initial, OFFLINE_REBUILDING, Plan, Seen, Step, engine_name, plan_volume,
    replica_number, together, volume_id,
};

/// On a volume: its id in the storage processes, for ever.
pub const ID: &str = "storage.sheaf.io/id";
/// On a volume: the replicas that it is made with, as they were decided once.
pub const INITIAL: &str = "storage.sheaf.io/initial";
/// On a volume: its first replicas exist.
pub const MADE: &str = "storage.sheaf.io/made";
/// On a volume: what it holds at first; see [`Content`].
pub const CONTENT: &str = "storage.sheaf.io/content";
/// On a volume that its replicas begin with, by links instead of copies: the SHA-512 of the image's file, as [`IMAGE_SUM`] said it when the
/// volume was placed. Every node holds its own file against that.
pub const BASE: &str = "storage.sheaf.io/base";
/// On an image: the SHA-512 of its file, in hexadecimal. Written by the agent of the image's node.
pub const IMAGE_SUM: &str = "sheaf.io/image-sha512";
/// Label of a snapshot in an engine's status: bytes of its layer that others have, too, and that its size does not count.
pub const SHARED: &str = "storage.sheaf.io/shared";
/// On a volume: it holds that.
pub const FILLED: &str = "storage.sheaf.io/filled";
/// On a volume: the API's vote on who is in sync. Written by the storage processes only.
pub const VOTE: &str = "storage.sheaf.io/vote";
/// On an engine: what its agent has to fill the volume with.
pub const FILL: &str = "storage.sheaf.io/fill";
/// On an engine: why that does not succeed.
pub const FILL_PROBLEM: &str = "storage.sheaf.io/fill-problem";
/// On a replica: numbers of the replicas that the volume is made with, this one among them.
pub const TOGETHER: &str = "storage.sheaf.io/together";
/// On a volume: the snapshot whose content it is to have again; removed when that is done, or cannot be.
pub const REVERT: &str = "storage.sheaf.io/revert";
/// On a volume: how the last revert ended: `SNAPSHOT ok`, or `SNAPSHOT` and why it could not be.
pub const REVERTED: &str = "storage.sheaf.io/reverted";
/// On a volume, and on its first replica: the directory is one of Longhorn's, to be taken over (`clean`, or `dirty`: although it was
/// not closed properly).
pub const ADOPT: &str = "storage.sheaf.io/adopt";
/// On a volume: when somebody asked for its replicas to be compared.
pub const CHECK: &str = "storage.sheaf.io/check";
/// On a volume: the request of which the comparison has ended, and how: `TIME ok` or `TIME` and what was found.
pub const CHECKED: &str = "storage.sheaf.io/checked";
