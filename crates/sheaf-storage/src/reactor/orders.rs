//! Orders from the control socket, and what is remembered of them: replicas are found again by their directories,
//! attachments by a file. Each order is checked whole before anything is changed.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TryRecvError};

use serde::{Deserialize, Serialize};
use sheaf_block_core::coordinator::{Event, Phase, Request};
use sheaf_block_core::ids::{BLOCK_BYTES, CoordinatorId, ReplicaId, ReplicaSet, Time, VolumeId};
use sheaf_block_core::structure::{Kind as Operation, SnapshotName};
use sheaf_disk::real::RealDir;

use super::guests::{Kind, Listener};
use super::io::{Key, Work, random};
use super::poll::Source;
use super::replicas::Place;
use super::status::phase_name;
use super::volume::VolumeShell;
use super::{Order, Reactor, place};
use crate::api::{Answer, Ask, Attach, FrontendAt, ReplicaAt, check_name, parse_volume};

/// How long an attach is waited for before the caller hears where it stands; it goes on.
const ATTACH_WAIT: u64 = 20_000_000;
const DETACH_WAIT: u64 = 70_000_000;

/// An order that waits for something.
#[derive(Debug)]
pub(crate) enum Waiting {
    Attach {
        volume: VolumeId,
        until: Time,
        reply: SyncSender<Answer>,
    },
    /// With the number of the flush before it, if there is one.
    Detach {
        volume: VolumeId,
        flush: Option<u64>,
        until: Time,
        reply: SyncSender<Answer>,
    },
    /// With the replica that must be here by then, if there is one.
    Order {
        volume: VolumeId,
        number: u64,
        made: Option<Key>,
        reply: SyncSender<Answer>,
    },
}

/// An attachment, as it is remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Remembered {
    attach: Attach,
    /// The epoch that was taken last.
    epoch: u64,
}

pub(super) type Result<T> = std::result::Result<T, String>;

/// Seconds since 1970.
pub(super) fn now_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

impl Reactor {
    /// Takes all orders that have come.
    pub(super) fn orders(&mut self) {
        loop {
            match self.setup.inbox.try_recv() {
                Ok((ask, reply)) => self.order((ask, reply)),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stop = true;
                    return;
                }
            }
        }
    }

    fn order(&mut self, (ask, reply): Order) {
        let answer = match ask {
            Ask::End => {
                self.stop = true;
                Ok(Some(Answer::Done))
            }
            Ask::List => Ok(Some(self.list())),
            Ask::Metrics => Ok(Some(Answer::Text(self.metrics()))),
            Ask::Voted { volume, answer } => {
                self.io.work.push_back(Work::Volume(volume, Event::Api(answer)));
                Ok(Some(Answer::Done))
            }
            Ask::CreateReplica { volume, name, replica, bytes, disk, together_with, directory, base } => {
                let place = Place { disk, directory, base };
                self.create_replica(&volume, &name, replica, bytes, place, &together_with)
                    .map(|()| Some(Answer::Done))
            }
            Ask::DeleteReplica { volume, replica } => {
                self.delete_replica(&volume, replica).map(|()| Some(Answer::Done))
            }
            Ask::Adopt { path, volume, replica, dirty } => {
                self.adopt(&path, &volume, replica, dirty).map(|()| Some(Answer::Done))
            }
            Ask::Attach(attach) => self.attach(attach, &reply).map(|()| None),
            Ask::Detach { volume } => self.detach(&volume, &reply).map(|()| None),
            Ask::AddReplica { volume, replica } => {
                self.add_replica(&volume, replica).map(|()| Some(Answer::Done))
            }
            Ask::RetireReplica { volume, replica } => {
                self.retire_replica(&volume, replica).map(|()| Some(Answer::Done))
            }
            Ask::Snapshot { volume, name, labels, system } => SnapshotName::new(name)
                .map_err(|error| error.to_string())
                .and_then(|name| {
                    let created = u64::try_from(now_seconds()).unwrap_or(0);
                    let kind = Operation::Snapshot { name, created, user: !system, labels };
                    self.operate(&volume, Request::Operate(kind), &reply)
                })
                .map(|()| None),
            Ask::Clone { volume, snapshot, clone, name } => {
                self.clone_volume(&volume, &snapshot, &clone, &name, &reply).map(|()| None)
            }
            Ask::Revert { volume, name } => self.revert(&volume, &name, &reply).map(|()| None),
            Ask::RemoveSnapshot { volume, name } => self
                .layer(&volume, &name)
                .and_then(|id| self.operate(&volume, Request::Operate(Operation::Remove(id)), &reply))
                .map(|()| None),
            Ask::Expand { volume, bytes } => self.expand(&volume, bytes, &reply).map(|()| None),
            Ask::Scrub { volume } => self.operate(&volume, Request::Scrub, &reply).map(|()| None),
            Ask::Digest { .. } => Err("a digest is not made by the reactor".into()),
        };
        match answer {
            Ok(None) => {}
            Ok(Some(answer)) => drop(reply.send(answer)),
            Err(reason) => drop(reply.send(Answer::Error(reason))),
        }
    }

    // ---- volumes ----

    fn attachments(&self) -> PathBuf {
        self.setup.state.join("attached.json")
    }

    /// Remembers what is attached, durably.
    fn remember(&mut self) -> Result<()> {
        let list: Vec<Remembered> = self
            .volumes
            .values()
            .filter(|shell| !shell.detaching)
            .map(|shell| Remembered { attach: shell.attach.clone(), epoch: shell.epoch.number })
            .collect();
        let bytes = serde_json::to_vec_pretty(&list).map_err(|error| error.to_string())?;
        if bytes == self.remembered {
            return Ok(());
        }
        let dir = RealDir::open_shared(&self.setup.state).map_err(|error| error.explain())?;
        sheaf_disk::fs::replace(&dir, "attached.json", &bytes).map_err(|error| error.explain())?;
        self.remembered = bytes;
        Ok(())
    }

    /// Attaches again what was attached when the process ended.
    pub(super) fn resume(&mut self) {
        let path = self.attachments();
        let Ok(bytes) = fs::read(&path) else { return };
        let list: Vec<Remembered> = match serde_json::from_slice(&bytes) {
            Ok(list) => list,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "what was attached is not known any more; attach again");
                return;
            }
        };
        for Remembered { attach, epoch } in list {
            let name = attach.name.clone();
            if let Err(reason) = self.begin(attach, epoch) {
                tracing::error!(volume = name, reason, "a volume cannot be attached again");
            }
        }
        if let Err(reason) = self.remember() {
            tracing::error!(reason, "attachments cannot be remembered");
        }
    }

    /// Begins to attach: a new epoch, frontends, a coordinator.
    fn begin(&mut self, attach: Attach, seen: u64) -> Result<VolumeId> {
        let id = parse_volume(&attach.volume)?;
        let local = attach.replicas.iter().find(|at| at.address.is_none()).map(|at| ReplicaId(at.id));
        let promised = local.and_then(|local| self.replicas.get(&(id, local)));
        let promised = promised.map_or(0, |shell| shell.metadata().ledger.promised.number);
        let number = seen.max(promised) + 1;
        let holder = CoordinatorId(random().map_err(|error| error.to_string())?);
        let frontends = attach.frontends.clone();
        self.volumes.insert(id, VolumeShell::new(id, attach, number, holder, local, self.io.now()));
        for frontend in &frontends {
            if let Err(reason) = self.listen(id, frontend) {
                self.shut_frontends(id);
                self.volumes.remove(&id);
                return Err(reason);
            }
        }
        self.io.work.push_back(Work::Volume(id, Event::Tick));
        Ok(id)
    }

    fn listen(&mut self, volume: VolumeId, frontend: &FrontendAt) -> Result<()> {
        let (path, kind) = match frontend {
            FrontendAt::Nbd(path) => (path, Kind::Nbd),
            FrontendAt::Vhost(path) => (path, Kind::Vhost),
        };
        let socket = crate::control::listen(path)
            .map_err(|error| format!("listening on {}: {error}", path.display()))?;
        // Whoever may come near it is decided by the directory that it lies in.
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(path, all)
            .map_err(|error| format!("opening {}: {error}", path.display()))?;
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        let at = place(&mut self.listeners, Listener { volume, socket, path: path.clone(), kind });
        if let Some(Some(listener)) = self.listeners.get(at as usize) {
            self.io
                .poll
                .add(&listener.socket, Source::GuestListener(at))
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn attach(&mut self, attach: Attach, reply: &SyncSender<Answer>) -> Result<()> {
        let id = parse_volume(&attach.volume)?;
        check_name(&attach.name)?;
        let ids = attach.replicas.iter().map(|at| ReplicaId(at.id));
        let set = ReplicaSet::of(ids).map_err(|error| error.to_string())?;
        if set.is_empty() || set.len() != attach.replicas.len() || set.contains(ReplicaId(0)) {
            return Err("replicas: at least one, each with a number of its own from 1".into());
        }
        if attach.bytes == 0 || !attach.bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(format!("bytes: {} is not a multiple of {BLOCK_BYTES} above 0", attach.bytes));
        }
        for at in attach.replicas.iter().filter(|at| at.address.is_none()) {
            let key = (id, ReplicaId(at.id));
            let Some(shell) = self.replicas.get(&key) else {
                let why = self.closed.iter().find(|closed| closed.key == Some(key));
                let why =
                    why.map_or_else(|| "it is not on this node".to_owned(), |closed| closed.reason.clone());
                return Err(format!("replica {} cannot be used: {why}", at.id));
            };
            // A replica that was left behind may be smaller than the volume is by now; none is larger.
            let alone = shell.metadata().ledger.committed.in_sync.len() == 1;
            let bytes = shell.dir().bytes();
            if bytes > attach.bytes || (alone && bytes != attach.bytes) {
                return Err(format!(
                    "replica {} has {} bytes, not {}",
                    at.id,
                    shell.dir().bytes(),
                    attach.bytes
                ));
            }
        }
        if let Some(shell) = self.volumes.get(&id) {
            let over = matches!(shell.machine.phase(), Phase::Fenced(_) | Phase::LostUnsynced);
            if !over && shell.attach != attach {
                return Err(format!("volume {} is attached otherwise; detach it first", shell.attach.name));
            }
            if over {
                let seen = shell.machine.seen().number;
                self.shut_frontends(id);
                self.volumes.remove(&id);
                self.begin(attach, seen)?;
            }
        } else {
            self.begin(attach, 0)?;
        }
        self.remember()?;
        let until = self.io.now().after(ATTACH_WAIT);
        self.waiting.push(Waiting::Attach { volume: id, until, reply: reply.clone() });
        Ok(())
    }

    fn detach(&mut self, volume: &str, reply: &SyncSender<Answer>) -> Result<()> {
        let id = parse_volume(volume)?;
        let Some(shell) = self.volumes.get_mut(&id) else {
            let _ = reply.send(Answer::Done);
            return Ok(());
        };
        shell.detaching = true;
        // A flush makes everything durable; a volume that does not serve has acknowledged nothing more.
        let serves = *shell.machine.phase() == Phase::Serving;
        let flush = serves.then(|| shell.order(&mut self.io, Request::Flush));
        self.shut_frontends(id);
        let until = self.io.now().after(DETACH_WAIT);
        self.waiting.push(Waiting::Detach { volume: id, flush, until, reply: reply.clone() });
        self.remember()
    }

    fn add_replica(&mut self, volume: &str, replica: ReplicaAt) -> Result<()> {
        let id = parse_volume(volume)?;
        let shell = self.volumes.get_mut(&id).ok_or("the volume is not attached here")?;
        let new = ReplicaId(replica.id);
        match shell.replica(new) {
            Some(at) if *at == replica => return Ok(()),
            Some(at) => return Err(format!("replica {} is at {:?} already", at.id, at.address)),
            None => {}
        }
        if replica.address.is_none() && !self.replicas.contains_key(&(id, new)) {
            return Err(format!("replica {} is not on this node; make it first", replica.id));
        }
        shell.attach.replicas.push(replica);
        self.io.work.push_back(Work::Volume(id, Event::Added(new)));
        self.remember()
    }

    fn retire_replica(&mut self, volume: &str, replica: u32) -> Result<()> {
        let id = parse_volume(volume)?;
        let shell = self.volumes.get_mut(&id).ok_or("the volume is not attached here")?;
        let old = ReplicaId(replica);
        let members = shell.machine.membership().in_sync;
        if members.contains(old) && members.len() == 1 {
            return Err(format!("replica {replica} is the only one in sync"));
        }
        shell.attach.replicas.retain(|at| at.id != replica);
        self.io.work.push_back(Work::Volume(id, Event::Retired(old)));
        self.remember()
    }

    /// Something that the volume does in order with its guests' requests.
    fn operate(&mut self, volume: &str, request: Request, reply: &SyncSender<Answer>) -> Result<()> {
        self.operate_making(volume, request, None, reply)
    }

    /// The same, after which a replica must be here.
    pub(super) fn operate_making(
        &mut self,
        volume: &str,
        request: Request,
        made: Option<Key>,
        reply: &SyncSender<Answer>,
    ) -> Result<()> {
        let id = parse_volume(volume)?;
        let shell = self.volumes.get_mut(&id).ok_or("the volume is not attached here")?;
        let number = shell.order(&mut self.io, request);
        self.waiting.push(Waiting::Order { volume: id, number, made, reply: reply.clone() });
        Ok(())
    }

    /// A snapshot's layer.
    pub(super) fn layer(&self, volume: &str, name: &str) -> Result<sheaf_block_core::structure::LayerId> {
        let id = parse_volume(volume)?;
        let shell = self.volumes.get(&id).ok_or("the volume is not attached here")?;
        let structure = shell.machine.structure().ok_or("the volume does not serve yet")?;
        let name = SnapshotName::new(name).map_err(|error| error.to_string())?;
        let layer = structure.snapshot(&name).map(|layer| layer.id);
        layer.ok_or_else(|| format!("volume {} has no snapshot {}", shell.attach.name, name.as_str()))
    }

    fn revert(&mut self, volume: &str, name: &str, reply: &SyncSender<Answer>) -> Result<()> {
        let layer = self.layer(volume, name)?;
        let guests = self.guests_of(parse_volume(volume)?);
        if guests > 0 {
            return Err(format!(
                "{guests} guests are connected, and would not know that their disk has changed"
            ));
        }
        self.operate(volume, Request::Operate(Operation::Revert(layer)), reply)
    }

    fn expand(&mut self, volume: &str, bytes: u64, reply: &SyncSender<Answer>) -> Result<()> {
        let id = parse_volume(volume)?;
        let shell = self.volumes.get(&id).ok_or("the volume is not attached here")?;
        if !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(format!("bytes: {bytes} is not a multiple of {BLOCK_BYTES}"));
        }
        if bytes == shell.attach.bytes {
            let _ = reply.send(Answer::Done);
            return Ok(());
        }
        if bytes < shell.attach.bytes {
            return Err(format!(
                "volume {} has {} bytes and cannot shrink to {bytes}",
                shell.attach.name, shell.attach.bytes
            ));
        }
        self.operate(volume, Request::Operate(Operation::Expand(bytes / u64::from(BLOCK_BYTES))), reply)
    }

    /// A coordinator asks for a successor.
    pub(super) fn again(&mut self, id: VolumeId) {
        let Ok(holder) = random() else { return };
        let Some(shell) = self.volumes.get_mut(&id) else { return };
        let local = shell.attach.replicas.iter().find(|at| at.address.is_none()).map(|at| ReplicaId(at.id));
        let number = shell.machine.seen().number + 1;
        tracing::info!(volume = shell.attach.name, epoch = number, "the volume is attached again");
        shell.succeed(&mut self.io, number, CoordinatorId(holder), local);
        if let Err(reason) = self.remember() {
            tracing::error!(reason, "attachments cannot be remembered");
        }
    }

    /// Orders whose time has come.
    pub(super) fn look_at_waiting(&mut self) {
        let now = self.io.now();
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Attach { volume, until, reply } => self.look_at_attach(volume, until, reply, now),
                Waiting::Order { volume, number, made, reply } => {
                    let Some(shell) = self.volumes.get_mut(&volume) else {
                        let _ = reply.send(Answer::Error("the volume was detached meanwhile".into()));
                        continue;
                    };
                    match shell.ordered.remove(&number) {
                        None => self.waiting.push(Waiting::Order { volume, number, made, reply }),
                        Some(Ok(())) if made.is_some_and(|made| !self.replicas.contains_key(&made)) => {
                            let reason = "its replica could not be made here: the log says why";
                            let _ = reply.send(Answer::Error(reason.into()));
                        }
                        Some(Ok(())) => {
                            // A new size is remembered before it is told.
                            let answer = self.remember().map_or_else(Answer::Error, |()| Answer::Done);
                            self.hang_up_on_old_sizes(volume);
                            let _ = reply.send(answer);
                        }
                        Some(Err(error)) => drop(reply.send(Answer::Error(error.to_string()))),
                    }
                }
                Waiting::Detach { volume, flush, until, reply } => {
                    let Some(shell) = self.volumes.get(&volume) else {
                        let _ = reply.send(Answer::Done);
                        continue;
                    };
                    let flushed = flush.map_or(Some(&Ok(())), |number| shell.ordered.get(&number));
                    if flushed.is_none() && now < until {
                        self.waiting.push(Waiting::Detach { volume, flush, until, reply });
                        continue;
                    }
                    let answer = match flushed {
                        Some(Ok(())) => Answer::Done,
                        Some(Err(error)) => {
                            Answer::Error(format!("detached, but the last flush failed: {error}"))
                        }
                        None => Answer::Error("detached, but the last flush did not end in time".into()),
                    };
                    self.end(volume);
                    let _ = reply.send(answer);
                }
            }
        }
    }

    fn look_at_attach(&mut self, volume: VolumeId, until: Time, reply: SyncSender<Answer>, now: Time) {
        let Some(shell) = self.volumes.get(&volume) else {
            let _ = reply.send(Answer::Error("the volume was detached meanwhile".into()));
            return;
        };
        match shell.machine.phase() {
            Phase::Serving => drop(reply.send(Answer::Done)),
            Phase::LostUnsynced => {
                let reason =
                    "the last in-sync replica lost unsynced writes; attach again to take what is there";
                let _ = reply.send(Answer::Error(reason.into()));
            }
            Phase::Attaching | Phase::Fenced(_) if now < until && shell.machine.seen() > shell.epoch => {
                // A higher epoch was seen before we had the volume: an order to attach takes a higher one still.
                let (attach, seen) = (shell.attach.clone(), shell.machine.seen().number);
                self.end(volume);
                match self.begin(attach, seen).and_then(|_| self.remember()) {
                    Ok(()) => self.waiting.push(Waiting::Attach { volume, until, reply }),
                    Err(reason) => drop(reply.send(Answer::Error(reason))),
                }
            }
            _ if now < until => self.waiting.push(Waiting::Attach { volume, until, reply }),
            phase => {
                let missing = "replicas or votes are missing; it goes on trying";
                let _ = reply
                    .send(Answer::Error(format!("the volume is still {}: {missing}", phase_name(phase))));
            }
        }
    }

    /// Lets go of a volume.
    fn end(&mut self, volume: VolumeId) {
        self.shut_frontends(volume);
        self.volumes.remove(&volume);
        for place in &mut self.links {
            let ours = |link: &mut super::Link| matches!(link.side, super::Side::Out(of, _) if of == volume);
            if let Some(link) = place.take_if(ours) {
                self.io.poll.remove(&link);
            }
        }
    }

    /// The process ends: volumes are served no more. Sockets stay for whoever comes next: guests wait.
    pub(super) fn let_go(&mut self) {
        self.volumes.clear();
    }

    /// The process ends properly: replicas are closed.
    pub(super) fn close_all(&mut self) {
        for shell in self.replicas.values_mut().filter(|shell| shell.pending == 0) {
            if let Err(error) = shell.close() {
                tracing::warn!(error = error.explain(), "a replica was not closed properly");
            }
        }
    }
}
