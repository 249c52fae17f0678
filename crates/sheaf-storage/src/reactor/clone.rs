//! Linked clones: a volume that begins as a snapshot of another, made on all nodes at once by an operation of the source, in order with everything
//! else that happens to it. The new replicas lie beside the old ones, and share the layers' files; the process that has made one opens it.

use std::path::PathBuf;
use std::sync::mpsc::SyncSender;

use sheaf_block_core::coordinator::Request;
use sheaf_block_core::ids::ReplicaId;
use sheaf_block_core::structure::{CloneOf, Kind as Operation, SnapshotName};

use super::Reactor;
use super::orders::{Result, now_seconds};
use crate::api::{Answer, check_name, parse_volume};
use crate::votes::Votes;

impl Reactor {
    /// Begins to make it; the answer comes when all replicas in sync have theirs. Repeating it is no error.
    pub(super) fn clone_volume(
        &mut self,
        volume: &str,
        snapshot: &str,
        clone: &str,
        name: &str,
        reply: &SyncSender<Answer>,
    ) -> Result<()> {
        let (id, new) = (parse_volume(volume)?, parse_volume(clone)?);
        check_name(name)?;
        if id == new {
            return Err("a clone is another volume: give it an id of its own".into());
        }
        let from = self.layer(volume, snapshot)?;
        let shell = self.volumes.get(&id).ok_or("the volume is not attached here")?;
        let members = shell.machine.membership().in_sync;
        let local = shell.attach.replicas.iter().find(|at| at.address.is_none()).map(|at| ReplicaId(at.id));
        let made = local.filter(|local| members.contains(*local)).map(|local| (new, local));
        if made.is_some_and(|made| self.replicas.contains_key(&made)) {
            let _ = reply.send(Answer::Done);
            return Ok(());
        }
        if let Some(Votes::Here(arbiter)) = &self.setup.votes
            && members.len().is_multiple_of(2)
        {
            arbiter.create(new, members).map_err(|error| error.to_string())?;
        }
        let name = SnapshotName::new(name).map_err(|error| error.to_string())?;
        let created = u64::try_from(now_seconds()).unwrap_or(0);
        let clone = CloneOf { from, volume: new, name, created, members };
        self.operate_making(volume, Request::Operate(Operation::Clone(Box::new(clone))), made, reply)
    }

    /// A replica here has made one of a clone's.
    pub(super) fn made(&mut self, path: PathBuf) {
        // Not everybody who takes part in it makes one.
        if path.exists() && !self.replicas.values().any(|shell| shell.path() == path) {
            self.open_replica(path, None);
        }
    }
}
