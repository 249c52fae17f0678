//! Replica directories on this node: found, opened and opened again, made, taken over, deleted. Which are wanted is decided elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sheaf_block_core::disk::Metadata;
use sheaf_block_core::ids::{BLOCK_BYTES, ReplicaId, ReplicaSet, Time};
use sheaf_block_core::membership::Ledger;
use sheaf_block_core::structure::{SnapshotName, Structure};
use sheaf_disk::fs::Dir;
use sheaf_disk::meta::rfc3339;
use sheaf_disk::real::{RealDir, abandon, delete, sweep};
use sheaf_disk::replica::{self, Create, ReplicaDir, SnapshotInfo};
use sheaf_disk::state::{Store, first_files};

use super::io::{Key, random};
use super::orders::{Result, now_seconds};
use super::replica::ReplicaShell;
use super::{Closed, REOPEN, Reactor};
use crate::api::{Base, base_snapshot, check_name, parse_volume};
use crate::votes::Votes;

/// Where a new replica goes, and on what it stands there.
pub(super) struct Place {
    pub(super) disk: Option<PathBuf>,
    pub(super) directory: Option<String>,
    pub(super) base: Option<Base>,
}

/// A base that a replica can stand on.
struct Found {
    dir: RealDir,
    file: String,
}

/// Looks for a base where replicas of this disk can have it by a link.
fn find_base(disk: &Path, replicas: &Path, file: &Path) -> Result<Found> {
    let bases = crate::bases::directory(disk);
    let name = file.file_name().and_then(|name| name.to_str());
    let Some(name) = name.filter(|_| file.parent() == Some(&bases)) else {
        return Err(format!(
            "base {} does not lie in {}, on the replica's disk",
            file.display(),
            bases.display()
        ));
    };
    let look = |path: &Path| {
        fs::symlink_metadata(path).map_err(|error| format!("looking at {}: {error}", path.display()))
    };
    let found = look(file)?;
    if !found.is_file() {
        return Err(format!("base {} is no file", file.display()));
    }
    if found.dev() != fs::metadata(replicas).map_err(|error| error.to_string())?.dev() {
        let (file, replicas) = (file.display(), replicas.display());
        return Err(format!("base {file} is on another file system than {replicas}"));
    }
    let dir = RealDir::open_shared(&bases).map_err(|error| error.explain())?;
    Ok(Found { dir, file: name.to_owned() })
}

impl Reactor {
    /// Opens every replica directory on the disks.
    pub(super) fn scan(&mut self) {
        for disk in self.setup.disks.clone() {
            let root = disk.join("replicas");
            match sweep(&root) {
                Ok(swept) => swept.iter().for_each(|path| {
                    tracing::info!(path = %path.display(), "what was half made or half deleted is gone");
                }),
                Err(error) => tracing::warn!(error = error.explain(), "what was half made cannot be swept"),
            }
            let Ok(entries) = fs::read_dir(&root) else { continue };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths.into_iter().filter(|path| path.is_dir()) {
                self.open_replica(path, None);
            }
        }
    }

    pub(super) fn open_replica(&mut self, path: PathBuf, key: Option<Key>) {
        match ReplicaShell::open(&path, key) {
            Ok(shell) if self.replicas.contains_key(&shell.key()) => {
                let reason = "another directory holds the same replica".to_owned();
                tracing::error!(path = %path.display(), reason);
                self.closed.push(Closed { path, key: None, reason, again_at: Time(u64::MAX) });
            }
            Ok(shell) => {
                for note in shell.dir().notes() {
                    tracing::warn!(path = %path.display(), note);
                }
                self.replicas.insert(shell.key(), shell);
            }
            Err(error) => {
                let reason = error.explain();
                tracing::error!(path = %path.display(), reason, "a replica cannot be opened");
                // One that was open before is tried again; one that is refused at the start waits for a person.
                let again_at = key.map_or(Time(u64::MAX), |_| self.io.now().after(REOPEN));
                self.closed.push(Closed { path, key, reason, again_at });
            }
        }
    }

    /// A replica stops: what is under way ends first, then it is opened again.
    pub(super) fn give_up(&mut self, key: Key, reason: String) {
        let Some(shell) = self.replicas.get(&key) else { return };
        tracing::error!(path = %shell.path().display(), reason, "a replica stops, and will be opened again");
        let again_at = self.io.now().after(REOPEN);
        self.closed.push(Closed { path: shell.path(), key: Some(key), reason, again_at });
    }

    pub(super) fn reopen(&mut self, now: Time) {
        let due: Vec<Closed> = {
            let (due, later) =
                std::mem::take(&mut self.closed).into_iter().partition(|closed| closed.again_at <= now);
            self.closed = later;
            due
        };
        for closed in due {
            if let Some(key) = closed.key {
                // Its files are let go of only when no request is on them.
                if self.replicas.get(&key).is_some_and(|shell| shell.pending > 0) {
                    self.closed.push(Closed { again_at: now.after(REOPEN / 10), ..closed });
                    continue;
                }
                self.replicas.remove(&key);
            }
            self.open_replica(closed.path, closed.key);
        }
    }

    fn disk(&self, disk: Option<PathBuf>) -> Result<PathBuf> {
        match disk {
            None => self.setup.disks.first().cloned().ok_or_else(|| "this process has no disk".into()),
            Some(disk) if self.setup.disks.contains(&disk) => Ok(disk),
            Some(disk) => {
                Err(format!("{} is not one of this process's disks: {:?}", disk.display(), self.setup.disks))
            }
        }
    }

    pub(super) fn create_replica(
        &mut self,
        volume: &str,
        name: &str,
        replica: u32,
        bytes: u64,
        place: Place,
        together_with: &[u32],
    ) -> Result<()> {
        let key = (parse_volume(volume)?, ReplicaId(replica));
        check_name(name)?;
        if replica == 0 {
            return Err("a replica's number begins at 1".into());
        }
        if let Some(shell) = self.replicas.get(&key) {
            let has = shell.dir().bytes();
            return if has == bytes { Ok(()) } else { Err(format!("the replica exists, with {has} bytes")) };
        }
        let ids = together_with.iter().copied().map(ReplicaId);
        let in_sync = ReplicaSet::of(ids).map_err(|error| error.to_string())?;
        if !in_sync.is_empty() && !in_sync.contains(key.1) {
            return Err(format!("replica {replica} is not among those that the volume is made with"));
        }
        let disk = self.disk(place.disk)?;
        let root = disk.join("replicas");
        fs::create_dir_all(&root).map_err(|error| format!("creating {}: {error}", root.display()))?;
        let directory = match place.directory {
            Some(directory) => {
                check_name(&directory)?;
                directory
            }
            None => {
                let tag = random().map_err(|error| error.to_string())? as u32;
                format!("{name}-{tag:08x}")
            }
        };
        let path = root.join(&directory);
        if path.exists() {
            return Err(format!("{} exists, and is not this replica", path.display()));
        }
        let what = Create { bytes, created: rfc3339(now_seconds()), ..Create::default() };
        let ledger = if in_sync.is_empty() { Ledger::default() } else { Ledger::created(in_sync) };
        let blocks = bytes / u64::from(BLOCK_BYTES);
        let (structure, found) = match &place.base {
            None => (Structure::new(blocks, None), None),
            Some(_) if in_sync.is_empty() => {
                return Err("a replica that comes later gets a volume's base from the others".into());
            }
            Some(base) => {
                let name = SnapshotName::new(base_snapshot(key.0)).map_err(|error| error.to_string())?;
                let found = find_base(&disk, &root, &base.file)?;
                (Structure::over(blocks, name, base.created), Some((found, base.created)))
            }
        };
        let base = found.as_ref().map(|(found, created)| {
            let created = rfc3339(i64::try_from(*created).unwrap_or(0));
            let snapshot = SnapshotInfo { name: base_snapshot(key.0), created, ..SnapshotInfo::default() };
            replica::Base { dir: &found.dir, file: &found.file, snapshot }
        });
        let state = Metadata::new(key.0, key.1, structure, ledger);
        // Half of it is never found: it has its name when it is whole.
        let made = RealDir::half_made(&root, &directory).and_then(|dir| {
            ReplicaDir::fill(&dir, &what, base.as_ref(), first_files(&state))?;
            dir.finish(&directory)
        });
        if let Err(error) = made {
            let _ = abandon(&root, &directory);
            return Err(error.explain());
        }
        if in_sync.len().is_multiple_of(2)
            && !in_sync.is_empty()
            && let Some(Votes::Here(arbiter)) = &self.setup.votes
        {
            arbiter.create(key.0, in_sync).map_err(|error| error.to_string())?;
        }
        self.replicas.insert(key, ReplicaShell::open(&path, Some(key)).map_err(|error| error.explain())?);
        Ok(())
    }

    pub(super) fn delete_replica(&mut self, volume: &str, replica: u32) -> Result<()> {
        let key = (parse_volume(volume)?, ReplicaId(replica));
        if let Some(shell) = self.volumes.get(&key.0)
            && shell.replica(key.1).is_some_and(|at| at.address.is_none())
            && shell.machine.membership().in_sync.contains(key.1)
        {
            return Err(format!("replica {replica} is in sync in the attached volume {}", shell.attach.name));
        }
        let Some(shell) = self.replicas.get(&key) else { return Ok(()) };
        if shell.pending > 0 {
            return Err(format!("replica {replica} has requests on its disk; ask again"));
        }
        let path = shell.path();
        self.replicas.remove(&key);
        delete(&path).map_err(|error| error.explain())
    }

    pub(super) fn adopt(&mut self, path: &Path, volume: &str, replica: u32, dirty: bool) -> Result<()> {
        let key = (parse_volume(volume)?, ReplicaId(replica));
        if replica == 0 {
            return Err("a replica's number begins at 1".into());
        }
        if !self.setup.disks.iter().any(|disk| path.parent() == Some(&disk.join("replicas"))) {
            return Err(format!(
                "{} does not lie in replicas/ of one of this process's disks",
                path.display()
            ));
        }
        let looked = RealDir::open_shared(path).map_err(|error| error.explain())?;
        if sheaf_disk::state::load(&looked).map_err(|error| error.explain())?.is_some() {
            return Err(format!("{} is ours already", path.display()));
        }
        let listing = sheaf_disk::replica::list(&looked).map_err(|error| error.explain())?;
        let plan = sheaf_disk::chain::plan_open(&listing)?;
        let meta = &plan.tree.volume;
        if meta.rebuilding {
            return Err("a rebuild has not ended in it; take another replica".into());
        }
        if meta.dirty && !dirty {
            return Err(
                "it was not closed properly; prefer a replica that was, or say that this one is to be taken"
                    .into(),
            );
        }
        if !meta.size.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(format!("its {} bytes are not a multiple of {BLOCK_BYTES}", meta.size));
        }
        let mut dir = RealDir::open(path).and_then(ReplicaDir::open).map_err(|error| error.explain())?;
        let settled = dir.settle_unwritten().map_err(|error| error.explain())?;
        if settled > 0 {
            tracing::info!(path = %path.display(), bytes = settled, "prepared but unwritten space was made zeros");
        }
        let alone = ReplicaSet::of([key.1]).map_err(|error| error.to_string())?;
        let structure = sheaf_disk::layers::structure_of(dir.tree())?;
        let state = Metadata::new(key.0, key.1, structure, Ledger::created(alone));
        Store::create(dir.dir(), &state).map_err(|error| error.explain())?;
        drop(dir);
        self.closed.retain(|closed| closed.path != path);
        let shell = ReplicaShell::open(path, Some(key)).map_err(|error| error.explain())?;
        self.replicas.insert(key, shell);
        Ok(())
    }
}
