//! What can be asked of the storage process: one JSON object a line, one answer a line. Plain data, no behaviour but
//! checks that need nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sheaf_block_core::ids::VolumeId;

pub use crate::damaged::DamagedAt;

/// Bytes of the longest line.
pub const LINE_MAX: usize = 1 << 20;

/// A volume's id as people write it: a UUID, with or without hyphens.
pub fn parse_volume(text: &str) -> Result<VolumeId, String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return Err(format!("volume id {text:?}: 32 hexadecimal digits, as in a UUID"));
    }
    u128::from_str_radix(&digits, 16).map(VolumeId).map_err(|error| format!("volume id {text:?}: {error}"))
}

/// Writes a volume's id.
pub fn show_volume(id: VolumeId) -> String {
    let hex = format!("{:032x}", id.0);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whether a volume may have this name: it is part of a directory's.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.len() <= 63 && name.bytes().all(plain) && ends(name.bytes().next()) && ends(name.bytes().last()) {
        return Ok(());
    }
    Err(format!(
        "volume name {name:?}: at most 63 lower-case letters, digits, '-' and '.', a letter or digit at both ends"
    ))
}

/// A replica of a volume, and where it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaAt {
    /// Its number in the volume.
    pub id: u32,
    /// `HOST:PORT` of its node's storage process; none: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// What guests connect to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FrontendAt {
    /// NBD on a unix socket.
    Nbd(PathBuf),
    /// vhost-user-blk on a unix socket.
    Vhost(PathBuf),
}

/// A volume to be attached here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The volume's id.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// All replicas that it has.
    pub replicas: Vec<ReplicaAt>,
    /// Where guests find it.
    #[serde(default)]
    pub frontends: Vec<FrontendAt>,
}

/// What a volume begins as: a raw file that the first replica on each disk has as its lowest layer, by a hard link. The files must hold the
/// same, with the same holes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The file; it must lie in `bases/` of the replica's disk.
    pub file: PathBuf,
    /// When that was so, in seconds since 1970: the same for all replicas.
    pub created: u64,
}

/// Name of the snapshot that a volume's base becomes.
pub fn base_snapshot(volume: VolumeId) -> String {
    format!("base-{}", show_volume(volume))
}

/// One question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Everything that is here.
    List,
    /// Prometheus text.
    Metrics,
    /// End the process; only from within it.
    #[serde(skip)]
    End,
    /// The vote of the API has come; only from within the process.
    #[serde(skip)]
    Voted {
        /// Of which volume.
        volume: VolumeId,
        /// What it is.
        answer: sheaf_block_core::membership::Answer,
    },
    /// Make a directory for a replica.
    CreateReplica {
        /// The volume's id.
        volume: String,
        /// Its name.
        name: String,
        /// The replica's number.
        replica: u32,
        /// Bytes of the volume.
        bytes: u64,
        /// The disk, as the process was started with; none: the first.
        #[serde(default)]
        disk: Option<PathBuf>,
        /// The replicas that the volume is made with. Empty: the volume exists, this one is to be filled.
        #[serde(default)]
        together_with: Vec<u32>,
        /// Name of its directory; none: the volume's name and some digits.
        #[serde(default)]
        directory: Option<String>,
        /// What it begins as, with those that it is made with; none: empty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<Base>,
    },
    /// Delete a replica's directory. It must not be in use.
    DeleteReplica {
        /// The volume's id.
        volume: String,
        /// The replica's number.
        replica: u32,
    },
    /// Attach a volume here. Repeating it is no error.
    Attach(Attach),
    /// Let go of a volume. Waits until everything acknowledged is durable.
    Detach {
        /// The volume's id.
        volume: String,
    },
    /// Add a replica to an attached volume: it is filled, and joins.
    AddReplica {
        /// The volume's id.
        volume: String,
        /// The replica, which exists.
        replica: ReplicaAt,
    },
    /// Take a replica out of an attached volume for good. One that is in sync goes only if another is.
    RetireReplica {
        /// The volume's id.
        volume: String,
        /// The replica's number.
        replica: u32,
    },
    /// Keep the content of this moment under a name.
    Snapshot {
        /// The volume's id.
        volume: String,
        /// The snapshot's name.
        name: String,
        /// What a person says of it.
        #[serde(default)]
        labels: BTreeMap<String, String>,
        /// Not asked for by a person.
        #[serde(default)]
        system: bool,
    },
    /// Make the content what it was at a snapshot. No guest may be connected.
    Revert {
        /// The volume's id.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Make another volume that begins as a snapshot, without copying: its replicas are made beside those in sync, with their numbers.
    Clone {
        /// The source's id.
        volume: String,
        /// The snapshot's name.
        snapshot: String,
        /// The new volume's id.
        clone: String,
        /// The new volume's name.
        name: String,
    },
    /// Give up a snapshot; its space comes back by folding.
    RemoveSnapshot {
        /// The volume's id.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Make the volume larger.
    Expand {
        /// The volume's id.
        volume: String,
        /// Its size from now on.
        bytes: u64,
    },
    /// Compare all replicas' snapshots with each other and with their checksums, and repair what can be told.
    Scrub {
        /// The volume's id.
        volume: String,
    },
    /// Checksums of a replica's content, chunk by chunk, to be compared with another's.
    Digest {
        /// The volume's id.
        volume: String,
        /// The replica's number.
        replica: u32,
    },
    /// Take over a directory of Longhorn's, in place, as the only replica of a volume.
    Adopt {
        /// The directory; it must lie in `replicas/` of one of the disks.
        path: PathBuf,
        /// The volume's id from now on.
        volume: String,
        /// The replica's number.
        replica: u32,
        /// Take it although it was not closed properly.
        #[serde(default)]
        dirty: bool,
    },
}

/// A replica here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The volume's id.
    pub volume: String,
    /// The volume's name.
    pub name: String,
    /// Its number.
    pub replica: u32,
    /// Bytes of the volume.
    pub bytes: u64,
    /// Where it is.
    pub path: PathBuf,
    /// `open`, or why not.
    pub state: String,
    /// Layers of its chain.
    pub layers: usize,
    /// The newest membership record that it knows.
    pub version: u64,
    /// Who is in sync by that record.
    pub in_sync: Vec<u32>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Bytes that cannot be read, and of which no replica had a good copy.
    #[serde(default)]
    pub damaged_bytes: u64,
    /// Where they are: the first of the ranges.
    #[serde(default)]
    pub damaged: Vec<DamagedAt>,
}

/// A volume attached here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its id.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// `attaching`, `recovering`, `serving`, `fenced`, `failed`.
    pub phase: String,
    /// Every replica is in sync and reachable.
    pub healthy: bool,
    /// The newest membership record.
    pub version: u64,
    /// Who is in sync by it.
    pub in_sync: Vec<u32>,
    /// All replicas that it has.
    pub replicas: Vec<ReplicaAt>,
    /// The attach's epoch.
    pub epoch: u64,
    /// Where guests find it.
    pub frontends: Vec<FrontendAt>,
    /// Guests connected now.
    pub clients: usize,
    /// Requests under way.
    pub requests: usize,
    /// Snapshots, the oldest first.
    pub snapshots: Vec<SnapshotStatus>,
    /// The replica that is being rebuilt.
    pub rebuilding: Option<u32>,
    /// How far that is, percent of the layers by addresses.
    #[serde(default)]
    pub rebuilt: Option<u8>,
    /// Segments copied to replicas that came back, so far.
    pub copied: u64,
    /// Parts of snapshots that differed and were made equal, so far.
    #[serde(default)]
    pub repaired: u64,
    /// Parts of snapshots that differed, and nothing told which was right, so far.
    #[serde(default)]
    pub undecided: u64,
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its name.
    pub name: String,
    /// The one below it; none: it is the oldest, or stands on the base.
    pub parent: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Whether a person asked for it.
    pub user: bool,
    /// Given up, and not yet folded away.
    pub removed: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Checksums of a replica's content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Digest {
    /// Bytes of each chunk; the last may be shorter.
    pub chunk: u64,
    /// CRC-64 of each chunk.
    pub sums: Vec<u64>,
}

/// One answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What is here.
    List {
        /// Replicas.
        replicas: Vec<ReplicaStatus>,
        /// Attached volumes.
        volumes: Vec<VolumeStatus>,
    },
    /// A text.
    Text(String),
    /// Checksums.
    Digest(Digest),
    /// It is not possible.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names() {
        let id = parse_volume("0123456789abcdef0123456789abcdef").expect("valid");
        assert_eq!(show_volume(id), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(parse_volume(&show_volume(id)), Ok(id));
        assert!(parse_volume("xyz").is_err());
        assert!(check_name("pvc-1").is_ok() && check_name("../x").is_err() && check_name("-a").is_err());
    }

    #[test]
    fn questions_are_lines_of_json() {
        let ask: Ask = serde_json::from_str(
            r#"{"op":"attach","volume":"v","name":"n","bytes":4096,"replicas":[{"id":1}],"frontends":[{"nbd":"/x"}]}"#,
        )
        .expect("reads");
        let Ask::Attach(attach) = &ask else { panic!("{ask:?}") };
        assert_eq!(attach.frontends, [FrontendAt::Nbd("/x".into())]);
        assert_eq!(
            serde_json::from_str::<Ask>(&serde_json::to_string(&ask).expect("writes")).expect("reads"),
            ask
        );
        assert!(serde_json::from_str::<Ask>(r#"{"op":"list","more":1}"#).is_ok());
        assert!(serde_json::from_str::<Ask>(r#"{"op":"detach","volume":"v","vol":1}"#).is_err());
    }
}
