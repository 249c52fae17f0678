//! The vote that breaks ties of an even in-sync set, kept in files: one ledger for each volume, in a directory that all
//! who attach the volume see (one machine, or a shared file system with locks).
//!
//! In a cluster the API's record of the volume has this vote ([`crate::votes`]). Both are [`Ledger::on`] with what it says
//! made durable before the answer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sheaf_block_core::ids::{CoordinatorId, Epoch, ReplicaId, ReplicaSet, Version, VolumeId};
use sheaf_block_core::membership::{Answer, Ask, Ledger, Membership, Vote};
use sheaf_disk::envelope::{EnvelopeError, Reader, seal, unseal};

use crate::api::show_volume;

const MAGIC: [u8; 8] = *b"SHEAFarb";
const VERSION: u32 = 1;

/// Why there is no answer. The coordinator asks again.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The file system said no.
    #[error("the vote's file {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("the vote's file {path}: {source}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        source: EnvelopeError,
    },
}

/// A directory of votes.
#[derive(Clone, Debug)]
pub struct Arbiter(PathBuf);

pub(crate) fn encode(ledger: &Ledger) -> Vec<u8> {
    let mut body = Vec::new();
    let epoch = |body: &mut Vec<u8>, epoch: Epoch| {
        body.extend(epoch.number.to_le_bytes());
        body.extend(epoch.holder.0.to_le_bytes());
    };
    let set = |body: &mut Vec<u8>, set: ReplicaSet| {
        body.extend(u32::try_from(set.len()).unwrap_or(u32::MAX).to_le_bytes());
        set.iter().for_each(|id| body.extend(id.0.to_le_bytes()));
    };
    epoch(&mut body, ledger.promised);
    body.extend(ledger.committed.version.0.to_le_bytes());
    set(&mut body, ledger.committed.in_sync);
    body.push(u8::from(ledger.accepted.is_some()));
    if let Some(vote) = ledger.accepted {
        epoch(&mut body, vote.epoch);
        set(&mut body, vote.in_sync);
    }
    seal(MAGIC, VERSION, &body)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Ledger, EnvelopeError> {
    let (_, body) = unseal(MAGIC, VERSION, bytes)?;
    let mut r = Reader(body);
    let epoch = |r: &mut Reader<'_>| Ok(Epoch { number: r.u64()?, holder: CoordinatorId(r.u64()?) });
    let set = |r: &mut Reader<'_>| {
        let count = r.u32()?.min(64);
        let ids: Vec<ReplicaId> = (0..count).map(|_| r.u32().map(ReplicaId)).collect::<Result<_, _>>()?;
        ReplicaSet::of(ids).map_err(|_| EnvelopeError::Content)
    };
    Ok(Ledger {
        promised: epoch(&mut r)?,
        committed: Membership { version: Version(r.u64()?), in_sync: set(&mut r)? },
        accepted: if r.flag()? { Some(Vote { epoch: epoch(&mut r)?, in_sync: set(&mut r)? }) } else { None },
    })
}

impl Arbiter {
    /// Votes in this directory, which is made if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(failed(&path))?;
        Ok(Self(path))
    }

    fn file(&self, volume: VolumeId) -> PathBuf {
        self.0.join(format!("{}.vote", show_volume(volume)))
    }

    /// The vote of a volume that is made with these replicas. One that is there already stays.
    pub fn create(&self, volume: VolumeId, in_sync: ReplicaSet) -> Result<(), ArbiterError> {
        self.with(volume, |ledger| {
            if *ledger == Ledger::default() {
                *ledger = Ledger::created(in_sync);
            }
        })
    }

    /// Answers, durably.
    pub fn ask(&self, volume: VolumeId, ask: Ask) -> Result<Answer, ArbiterError> {
        self.with(volume, |ledger| ledger.on(ask))
    }

    fn with<T>(&self, volume: VolumeId, change: impl FnOnce(&mut Ledger) -> T) -> Result<T, ArbiterError> {
        let path = self.file(volume);
        let lock_path = path.with_extension("lock");
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(failed(&lock_path))?;
        let mut ledger = match fs::read(&path) {
            Ok(bytes) => {
                decode(&bytes).map_err(|source| ArbiterError::Damaged { path: path.clone(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ledger::default(),
            Err(error) => return Err(failed(&path)(error)),
        };
        let before = ledger;
        let result = change(&mut ledger);
        if ledger != before {
            let temporary = path.with_extension("tmp");
            let mut file = fs::File::create(&temporary).map_err(failed(&temporary))?;
            io::Write::write_all(&mut file, &encode(&ledger)).map_err(failed(&temporary))?;
            file.sync_all().map_err(failed(&temporary))?;
            fs::rename(&temporary, &path).map_err(failed(&path))?;
            fs::File::open(&self.0).and_then(|dir| dir.sync_all()).map_err(failed(&self.0))?;
        }
        Ok(result)
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ArbiterError {
    let path = path.to_path_buf();
    move |source| ArbiterError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vote_is_kept() {
        let here = tempfile::tempdir().expect("a directory");
        let arbiter = Arbiter::open(here.path().join("votes")).expect("opens");
        let in_sync = ReplicaSet::of([ReplicaId(1), ReplicaId(2)]).expect("fits");
        arbiter.create(VolumeId(5), in_sync).expect("creates");
        let epoch = Epoch { number: 3, holder: CoordinatorId(9) };
        let base = Membership { version: Version(1), in_sync };
        let alone = ReplicaSet::of([ReplicaId(2)]).expect("fits");
        let vote = Ask::Accept { epoch, base, in_sync: alone };
        assert!(matches!(arbiter.ask(VolumeId(5), vote).expect("answers"), Answer::Accepted { .. }));
        let again = Arbiter::open(here.path().join("votes")).expect("opens");
        again.create(VolumeId(5), in_sync).expect("changes nothing");
        let low = Ask::Prepare(Epoch { number: 2, holder: CoordinatorId(1) });
        assert_eq!(
            again.ask(VolumeId(5), low).expect("answers"),
            Answer::Refused { epoch: low.epoch(), promised: epoch }
        );
    }
}
