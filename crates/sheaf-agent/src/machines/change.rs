//! Carries out one [`Change`] of a running machine: the part first, then QEMU, then the record; taking away goes the other
//! way. Every change can be repeated from any point at which it was cut short.
//!
//! What a guest has to agree to (giving up a PCI device, taking memory) is asked for, and looked at again later.

use serde_json::json;
use sheaf_qemu::args::{self, disk_device, disk_id, nic_device, nic_id};
use sheaf_qemu::pci;
use sheaf_qemu::process::{self, Record};
use sheaf_qemu::qmp::{Qmp, QmpError};
use sheaf_qemu::spec::{Disk, DiskBus, MachineSpec, Source};

use super::ledger::Ledger;
use super::live::{Change, claim_of};
use super::monitor::Machine;
use super::start::{Needs, NotYet, Plan};
use crate::parts::PartError;

/// How far a change got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is done.
    Done,
    /// The guest was asked and has not answered yet.
    Asked,
}

/// Why a change could not be made; the text goes into a status.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// QEMU does not do it.
    #[error(transparent)]
    Qemu(#[from] QmpError),
    /// A part is not to be had.
    #[error("{0}")]
    Part(String),
    /// No place is left.
    #[error(transparent)]
    Full(#[from] pci::NoPort),
    /// The specification is at fault.
    #[error(transparent)]
    Spec(#[from] args::SpecError),
    /// The guest's user cannot be given a socket.
    #[error("disk {disk}: its socket cannot be handed over")]
    Socket {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The record could not be written.
    #[error("cannot write down what the machine has")]
    Record(#[source] std::io::Error),
}

impl From<NotYet> for ChangeError {
    fn from(not_yet: NotYet) -> Self {
        match not_yet {
            NotYet::Blocked(problem) | NotYet::Failed(problem) => Self::Part(problem.message),
        }
    }
}

impl From<PartError> for ChangeError {
    fn from(error: PartError) -> Self {
        match &error {
            PartError::Failed { source, .. } => Self::Part(format!("{error}: {source}")),
            PartError::Missing(_) | PartError::Refused(_) => Self::Part(error.to_string()),
        }
    }
}

/// A machine that is being changed: its record is written whenever one of the two changes.
pub(super) struct Workpiece<'a> {
    pub(super) machine: &'a Machine,
    pub(super) qmp: Qmp,
    pub(super) spec: MachineSpec,
    pub(super) ledger: Ledger,
    pub(super) plan: Plan,
    pub(super) needs: &'a Needs,
}

impl Workpiece<'_> {
    /// Carries out one change.
    pub(super) async fn apply(&mut self, change: &Change) -> Result<Progress, ChangeError> {
        match change {
            Change::PlugDisk(name) => self.plug_disk(name).await,
            Change::UnplugDisk(name) => self.unplug_disk(name).await,
            Change::Insert(name) => self.insert(name).await,
            Change::Eject(name) => self.eject(name).await,
            Change::Limit(name) => self.limit(name).await,
            Change::Resize(name, claim, bytes) => self.resize(name, claim, *bytes).await,
            Change::PlugNic(name) => self.plug_nic(name).await,
            Change::UnplugNic(name) => self.unplug_nic(name).await,
            Change::MoveNic(name) => self.move_nic(name).await,
            Change::Link(name, up) => self.link(name, *up).await,
            Change::Sockets(sockets) => {
                self.qmp.plug_cpus(*sockets).await?;
                self.spec.cpu.sockets = *sockets;
                self.write().await?;
                Ok(Progress::Done)
            }
            Change::Memory(bytes) => {
                self.qmp.request_memory(*bytes).await?;
                self.spec.rare.memory_plugged_bytes = *bytes;
                self.write().await?;
                Ok(Progress::Asked)
            }
        }
    }

    /// Writes down what there is now, for this agent and for the next.
    async fn write(&mut self) -> Result<(), ChangeError> {
        let (dir, spec, ledger) = (self.spec.dir.clone(), self.spec.clone(), json!(self.ledger));
        let written = tokio::task::spawn_blocking(move || -> Result<(), std::io::Error> {
            let mut record = Record::read(&dir)
                .map_err(std::io::Error::other)?
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
            (record.machine, record.extra) = (spec, ledger);
            record.write().map_err(std::io::Error::other)
        });
        written.await.map_err(std::io::Error::other).and_then(|r| r).map_err(ChangeError::Record)?;
        self.machine.changed(self.spec.clone());
        Ok(())
    }

    async fn plug_disk(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let Some(wish) = self.plan.disk(name) else { return Ok(Progress::Done) };
        let claim = claim_of(&wish).map(str::to_owned);
        let mut drive = self.plan.drive(wish, self.needs).await?;
        drive.tuning.hotplugged = true;
        // Threads are made with the machine.
        drive.tuning.iothread = None;
        if let Some(Source::VhostUser(_)) = drive.source {
            let why =
                format!("disk {name}: a volume of this kind cannot be plugged into a running machine yet");
            return Err(ChangeError::Part(why));
        }
        self.hand_over(&drive)?;
        self.spec.disks.retain(|d| d.name != name);
        self.spec.disks.push(drive.clone());
        if drive.bus == DiskBus::Virtio && drive.tuning.pci.is_none() {
            self.spec.ports = pci::plug(&self.spec.ports, &disk_id(name)).inspect_err(|_| {
                self.spec.disks.retain(|d| d.name != name);
            })?;
        }
        self.spec.ports.units = pci::units(&self.spec.ports, &args::drives(&self.spec));
        let device = disk_device(&self.spec, &drive)?;
        if let Some(claim) = &claim {
            self.ledger.hold(name, claim);
        }
        // Before the disk is there: whoever comes after a crash knows of it.
        self.write().await?;
        if let Err(error) = self.qmp.plug_disk(&drive, &device).await {
            self.forget_disk(name).await?;
            return Err(error.into());
        }
        if super::live::limited(&drive.tuning.limits) {
            self.qmp.throttle(name, &drive.tuning.limits).await?;
        }
        Ok(Progress::Done)
    }

    /// A volume's socket becomes the guest's, as those with which it was started have.
    fn hand_over(&self, drive: &Disk) -> Result<(), ChangeError> {
        let (Some(Source::Nbd(socket)), Some(user)) = (&drive.source, self.spec.rare.user) else {
            return Ok(());
        };
        process::user::hand_over_socket(socket, user)
            .map_err(|source| ChangeError::Socket { disk: drive.name.clone(), source })
    }

    async fn unplug_disk(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let id = disk_id(name);
        self.qmp.request_unplug(&id).await?;
        if self.qmp.devices().await?.contains(&id) {
            return Ok(Progress::Asked);
        }
        if let Err(error) = self.qmp.drop_node(name).await {
            // A request of the guest may still be under way.
            tracing::debug!(machine = self.spec.name, disk = name, %error, "the file is still open");
            return Ok(Progress::Asked);
        }
        self.forget_disk(name).await?;
        Ok(Progress::Done)
    }

    async fn forget_disk(&mut self, name: &str) -> Result<(), ChangeError> {
        self.spec.disks.retain(|d| d.name != name);
        self.spec.ports.devices.remove(&disk_id(name));
        self.spec.ports.units.remove(&disk_id(name));
        let claim = self.ledger.release(name);
        self.write().await?;
        if let Some(claim) = claim {
            self.needs.volumes.detach(&self.ledger.namespace, &claim).await?;
        }
        Ok(())
    }

    async fn insert(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let Some(wish) = self.plan.disk(name) else { return Ok(Progress::Done) };
        let claim = claim_of(&wish).map(str::to_owned);
        let mut drive = self.plan.drive(wish, self.needs).await?;
        drive.read_only = true;
        self.hand_over(&drive)?;
        self.qmp.insert(&drive).await?;
        if let Some(claim) = &claim {
            self.ledger.hold(name, claim);
        }
        if let Some(disk) = self.spec.disks.iter_mut().find(|d| d.name == name) {
            (disk.source, disk.cache, disk.io) = (drive.source, drive.cache, drive.io);
        }
        self.write().await?;
        Ok(Progress::Done)
    }

    async fn eject(&mut self, name: &str) -> Result<Progress, ChangeError> {
        self.qmp.eject(name).await?;
        if let Some(disk) = self.spec.disks.iter_mut().find(|d| d.name == name) {
            disk.source = None;
        }
        let claim = self.ledger.release(name);
        self.write().await?;
        if let Some(claim) = claim {
            self.needs.volumes.detach(&self.ledger.namespace, &claim).await?;
        }
        Ok(Progress::Done)
    }

    async fn limit(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let limits = self.plan.disk(name).map(|w| w.drive.tuning.limits).unwrap_or_default();
        self.qmp.throttle(name, &limits).await?;
        if let Some(disk) = self.spec.disks.iter_mut().find(|d| d.name == name) {
            disk.tuning.limits = limits;
        }
        self.write().await?;
        Ok(Progress::Done)
    }

    async fn resize(&mut self, name: &str, claim: &str, bytes: u64) -> Result<Progress, ChangeError> {
        if self.qmp.node_size(name).await?.is_some_and(|has| has < bytes) {
            self.qmp.resize(name, bytes).await?;
        }
        self.needs.volumes.grown(&self.ledger.namespace, claim);
        Ok(Progress::Asked)
    }

    async fn plug_nic(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let Some(wish) = self.plan.nic(name) else { return Ok(Progress::Done) };
        let found = self.plan.nic_targets(self.needs)?.into_iter().find(|t| t.name == name);
        let Some(mut target) = found else { return Ok(Progress::Done) };
        let mut card = wish.card;
        card.tuning.hotplugged = true;
        self.spec.nics.retain(|n| n.name != name);
        if card.tuning.pci.is_none() {
            self.spec.ports = pci::plug(&self.spec.ports, &nic_id(name))?;
        }
        let device = nic_device(&self.spec, &card)?;
        let tap = self.needs.network.attach(&target.request(&self.ledger.uid)).await?;
        self.spec.nics.push(card.clone());
        target.tap.clone_from(&tap.ifname);
        self.ledger.nics.retain(|n| n.name != name);
        self.ledger.nics.push(target);
        self.write().await?;
        if let Err(error) = self.qmp.plug_nic(name, tap.queues, &device).await {
            self.forget_nic(name).await?;
            return Err(error.into());
        }
        if !card.link_up {
            self.qmp.set_link(&nic_id(name), false).await?;
        }
        Ok(Progress::Done)
    }

    async fn unplug_nic(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let id = nic_id(name);
        self.qmp.request_unplug(&id).await?;
        if self.qmp.devices().await?.contains(&id) {
            return Ok(Progress::Asked);
        }
        self.qmp.drop_netdev(name).await?;
        self.forget_nic(name).await?;
        Ok(Progress::Done)
    }

    async fn forget_nic(&mut self, name: &str) -> Result<(), ChangeError> {
        self.spec.nics.retain(|n| n.name != name);
        self.spec.ports.devices.remove(&nic_id(name));
        let gone = self.ledger.nics.iter().position(|n| n.name == name).map(|i| self.ledger.nics.remove(i));
        self.write().await?;
        if let Some(nic) = gone {
            self.needs.network.detach_nic(&nic.request(&self.ledger.uid)).await?;
        }
        Ok(())
    }

    async fn move_nic(&mut self, name: &str) -> Result<Progress, ChangeError> {
        let Some(target) = self.plan.nic_targets(self.needs)?.into_iter().find(|t| t.name == name) else {
            return Ok(Progress::Done);
        };
        self.needs.network.replug(&target.request(&self.ledger.uid)).await?;
        // The guest asks for an address anew when its cable was pulled.
        let up = self.spec.nics.iter().any(|n| n.name == name && n.link_up);
        if up {
            self.qmp.set_link(&nic_id(name), false).await?;
            self.qmp.set_link(&nic_id(name), true).await?;
        }
        if let Some(nic) = self.ledger.nics.iter_mut().find(|n| n.name == name) {
            let tap = std::mem::take(&mut nic.tap);
            *nic = target;
            nic.tap = tap;
        }
        self.write().await?;
        Ok(Progress::Done)
    }

    async fn link(&mut self, name: &str, up: bool) -> Result<Progress, ChangeError> {
        self.qmp.set_link(&nic_id(name), up).await?;
        if let Some(nic) = self.spec.nics.iter_mut().find(|n| n.name == name) {
            nic.link_up = up;
        }
        self.write().await?;
        Ok(Progress::Done)
    }
}
