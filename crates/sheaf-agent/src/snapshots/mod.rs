//! Snapshots of local volumes: copies, made on the node that has the volumes, of all disks of a machine at one moment.
//!
//! A machine that runs goes on: QEMU copies what was there at the moment at which its jobs began, and the guest's file systems
//! are frozen for that moment only. One that does not run is copied as it lies. Copies share with their volumes what the file
//! system can share, and the image below an overlay always. See note 0020.
//!
//! State: the directories below `<data>/agent/snapshots`; what is asked for, and what became of it, stands in
//! VirtualMachineSnapshotContents. Who makes those is the snapshot controller.

pub mod memory;
#[cfg(test)]
mod memory_tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_api::kubevirt::{
    SnapshotContentStatus, SnapshotError, SnapshotOfVolume, VirtualMachineSnapshotContent, VolumeBackup,
};
use sheaf_plan::snapshot::{CONTENT_NODE, LOCAL_FINALIZER, MEMORY, QUIESCED};
use sheaf_qemu::qmp::{Backup, Copies, Qmp};
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, Selection, StepError, TaskGroup};
use tracing::{info, warn};

use crate::machines::Machines;
use crate::machines::freeze;
use crate::machines::monitor::{Machine, Pause, Run};
use crate::parts::DiskFormat;
use crate::volumes::Volumes;
use crate::volumes::files::{Volume, copy_disk};

const MANAGER: &str = "sheaf-snapshots";
/// How often copies are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// A freeze ends by itself after this, should we not come to end it.
const FREEZE_MAX: Duration = Duration::from_secs(30);
/// What cannot be copied yet is tried again after this.
const AGAIN: Duration = Duration::from_secs(3);

struct Snapshots {
    client: Client,
    node: String,
    contents: Arc<Informer<VirtualMachineSnapshotContent>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Volumes>,
    machines: Machines,
    group: TaskGroup,
}

/// Starts the loop.
pub fn spawn(
    client: &Client,
    group: &TaskGroup,
    node: &str,
    claims: &Arc<Informer<PersistentVolumeClaim>>,
    volumes: &Arc<Volumes>,
    machines: &Machines,
) {
    let contents: Arc<Informer<VirtualMachineSnapshotContent>> =
        Informer::spawn(client, group, &Selection::all());
    let snapshots = Snapshots {
        client: client.clone(),
        node: node.into(),
        contents: contents.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
        machines: machines.clone(),
        group: group.clone(),
    };
    Driver::new(snapshots).workers(2).for_each(&contents).after(claims).spawn(group);
}

/// One disk to copy.
struct Job {
    backup: VolumeBackup,
    volume: Volume,
    from: std::path::PathBuf,
    to: std::path::PathBuf,
    bytes: u64,
}

impl Controller for Snapshots {
    const NAME: &'static str = "snapshots";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(content) = self.contents.get(key) else { return Ok(Next::Done) };
        let annotations = content.metadata.annotations.clone().unwrap_or_default();
        if annotations.get(CONTENT_NODE) != Some(&self.node) {
            return Ok(Next::Done);
        }
        let held = content.metadata.finalizers.iter().flatten().any(|f| f == LOCAL_FINALIZER);
        if content.metadata.deletion_timestamp.is_some() {
            if held {
                self.remove(&content).await?;
                self.finalizer(&content, false).await?;
            }
            return Ok(Next::Done);
        }
        let status = content.status.clone().unwrap_or_default();
        if status.ready_to_use == Some(true) {
            return Ok(Next::Done);
        }
        if !held {
            self.finalizer(&content, true).await?;
            return Ok(Next::Done);
        }
        // The cache may not show yet that it was made a moment ago; made again, it would hold what came after.
        let now = self.api(&content).get_opt(&key.name).await;
        let now = now.map_err(StepError::api("reading a snapshot's content"))?;
        let ready = |c: &VirtualMachineSnapshotContent| {
            c.status.as_ref().is_some_and(|s| s.ready_to_use == Some(true))
        };
        match now.filter(|c| c.metadata.uid == content.metadata.uid && !ready(c)) {
            Some(now) => Box::pin(self.make(key, &now)).await,
            None => Ok(Next::Done),
        }
    }
}

impl Snapshots {
    fn api(&self, content: &VirtualMachineSnapshotContent) -> Api<VirtualMachineSnapshotContent> {
        let namespace = content.metadata.namespace.as_deref().unwrap_or("default");
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn make(
        &self,
        key: &ObjectKey,
        content: &VirtualMachineSnapshotContent,
    ) -> Result<Next, StepError> {
        let mut jobs = Vec::new();
        for backup in &content.spec.volume_backups {
            match self.job(&key.namespace, backup) {
                Ok(job) => jobs.push(job),
                Err(why) => {
                    self.fail(content, &why).await?;
                    return Ok(Next::After(AGAIN));
                }
            }
        }
        let vm = content.spec.source.virtual_machine.as_ref();
        let name = vm.and_then(|vm| vm.metadata.name.clone()).unwrap_or_default();
        let at = Timestamp::now();
        let machine = self.machines.get(&key.namespace, &name);
        let wants_memory =
            content.metadata.annotations.as_ref().and_then(|a| a.get(MEMORY)).is_some_and(|m| m == "true");
        let memory = wants_memory.then(|| self.memory_dir(content));
        let done = match &machine {
            Some(machine) => {
                let key = ObjectKey::new(&key.namespace, &name);
                self.online(machine, &key, &jobs, memory.as_deref()).await
            }
            None if wants_memory => Err("the guest's memory is wanted, and the machine does not run".into()),
            None => offline(&jobs).await.map(|()| "offline"),
        };
        let quiesced = match done {
            Ok(quiesced) => quiesced,
            Err(why) => {
                warn!(content = %key, %why, "no snapshot");
                self.fail(content, &why).await?;
                return Ok(Next::After(AGAIN));
            }
        };
        for job in &jobs {
            complete(job).map_err(StepError::other("writing down a snapshot"))?;
        }
        info!(content = %key, disks = jobs.len(), quiesced, "snapshot made");
        let note = json!({"metadata": {"annotations": {QUIESCED: quiesced}}});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let name = content.metadata.name.clone().unwrap_or_default();
        let noted = self.api(content).patch(&name, &params, &Patch::Merge(note)).await;
        let noted = noted.map_err(StepError::api("writing a snapshot's content"))?;
        let mut after = noted.clone();
        let at = Time(sheaf_plan::conditions::whole_seconds(at));
        after.status = Some(SnapshotContentStatus {
            creation_time: Some(at.clone()),
            ready_to_use: Some(true),
            error: None,
            volume_snapshot_status: jobs
                .iter()
                .map(|job| SnapshotOfVolume {
                    volume_snapshot_name: job.backup.volume_snapshot_name.clone(),
                    creation_time: Some(at.clone()),
                    ready_to_use: Some(true),
                    error: None,
                })
                .collect(),
        });
        patch::write(&self.api(content), MANAGER, Target::Status, &noted, &after).await?;
        Ok(Next::Done)
    }

    /// What is to be copied, and where to.
    fn job(&self, namespace: &str, backup: &VolumeBackup) -> Result<Job, String> {
        let claim = backup.persistent_volume_claim.metadata.name.clone().unwrap_or_default();
        let pvc = self.claims.get(&ObjectKey::new(namespace, &claim));
        let pvc = pvc.ok_or_else(|| format!("claim {namespace}/{claim} does not exist"))?;
        let name = pvc.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let files = self.volumes.files();
        let volume = files.get(&name).ok_or_else(|| {
            format!("volume {name:?} of claim {namespace}/{claim} is no file of node {}", self.node)
        })?;
        let bytes = files.size(&name, volume.format()).map_err(|e| e.to_string())?;
        let to = files.snapshot_dir(&backup.volume_snapshot_name);
        Ok(Job { backup: backup.clone(), volume, from: files.place(&name), to, bytes })
    }

    fn memory_dir(&self, content: &VirtualMachineSnapshotContent) -> PathBuf {
        let name = content.metadata.name.as_deref().unwrap_or_default();
        memory::dir_of(&self.volumes.files().snapshots_dir(), name)
    }

    async fn online(
        &self,
        machine: &Machine,
        key: &ObjectKey,
        jobs: &[Job],
        memory: Option<&Path>,
    ) -> Result<&'static str, String> {
        let qmp = machine.qmp().ok_or("QEMU does not answer")?;
        if let Some(dir) = memory {
            self.with_memory(machine, &qmp, jobs, dir).await?;
            return Ok("memory");
        }
        let mut backups = Vec::new();
        for job in jobs {
            let claim = job.backup.persistent_volume_claim.metadata.name.clone().unwrap_or_default();
            let drives = self.machines.drives(key);
            let disk = drives.into_iter().find(|(_, c)| *c == claim).map(|(disk, _)| disk);
            let disk = disk.ok_or_else(|| format!("claim {claim} is in no disk of the machine"))?;
            let (target, format) = target(job).await?;
            backups.push(Backup { disk, target, format });
        }
        let paused =
            matches!(machine.seen().run, Run::Paused(Pause::ByUser | Pause::IoError(_) | Pause::Other(_)));
        let mut quiesced = if paused { "paused" } else { "no-agent" };
        let mut frozen = false;
        if machine.seen().guest.connected && !paused {
            match freeze::freeze(&self.machines, machine, key, Some(FREEZE_MAX), &self.group).await {
                Ok(()) => (quiesced, frozen) = ("agent", true),
                Err(error) => {
                    warn!(machine = %key, %error, "not frozen for a snapshot");
                    quiesced = "failed";
                }
            }
        }
        let begun = qmp.begin_backups(&backups).await;
        if frozen && let Err(error) = freeze::thaw(&self.machines, machine, key).await {
            warn!(machine = %key, %error, "not thawed after a snapshot; the timer will");
        }
        begun.map_err(|e| e.to_string())?;
        let copied = wait(&qmp, &backups).await;
        let ended = qmp.end_backups(&backups).await;
        copied?;
        ended.map_err(|e| e.to_string())?;
        Ok(quiesced)
    }

    /// Saves the memory of a guest, and copies its disks before it goes on. QEMU has written all to its files and let go of
    /// them when the memory is saved, so they are copied as those of a machine that does not run. (A backup job that begins
    /// in this state has been seen to bring QEMU down when the guest went on.)
    async fn with_memory(
        &self,
        machine: &Machine,
        qmp: &Qmp,
        jobs: &[Job],
        dir: &Path,
    ) -> Result<(), String> {
        let paused = matches!(machine.seen().run, Run::Paused(_));
        machine.hold(true);
        let saved = async {
            qmp.stop().await.map_err(|e| e.to_string())?;
            memory::save(qmp, &machine.spec(), dir).await?;
            offline(jobs).await
        };
        let saved = saved.await;
        let went_on = if paused { Ok(()) } else { qmp.cont().await };
        machine.hold(false);
        saved?;
        went_on.map_err(|e| format!("the guest does not go on after its memory was saved: {e}"))
    }

    async fn fail(&self, content: &VirtualMachineSnapshotContent, why: &str) -> Result<(), StepError> {
        let same = content.status.as_ref().and_then(|s| s.error.as_ref()).is_some_and(|e| e.message == why);
        if same {
            return Ok(());
        }
        let mut after = content.clone();
        let status = after.status.get_or_insert_default();
        status.ready_to_use = Some(false);
        let now = sheaf_plan::conditions::whole_seconds(Timestamp::now());
        status.error = Some(SnapshotError { message: why.into(), time: Some(Time(now)) });
        patch::write(&self.api(content), MANAGER, Target::Status, content, &after).await.map(drop)
    }

    async fn remove(&self, content: &VirtualMachineSnapshotContent) -> Result<(), StepError> {
        let mut dirs = vec![self.memory_dir(content)];
        let files = self.volumes.files();
        dirs.extend(content.spec.volume_backups.iter().map(|b| files.snapshot_dir(&b.volume_snapshot_name)));
        for dir in dirs {
            match tokio::fs::remove_dir_all(&dir).await {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StepError::other(format!("removing {}", dir.display()))(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn finalizer(&self, content: &VirtualMachineSnapshotContent, there: bool) -> Result<(), StepError> {
        let mut list = content.metadata.finalizers.clone().unwrap_or_default();
        list.retain(|f| f != LOCAL_FINALIZER);
        if there {
            list.push(LOCAL_FINALIZER.into());
        }
        let version = &content.metadata.resource_version;
        let patch: Value = json!({"metadata": {"finalizers": list, "resourceVersion": version}});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let name = content.metadata.name.clone().unwrap_or_default();
        match self.api(content).patch(&name, &params, &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(StepError::api("holding a snapshot's content")(error)),
            Ok(_) => Ok(()),
        }
    }
}

async fn wait(qmp: &Qmp, backups: &[Backup]) -> Result<(), String> {
    loop {
        match qmp.backups(backups).await.map_err(|e| e.to_string())? {
            Copies::Running => tokio::time::sleep(LOOK).await,
            Copies::Done => return Ok(()),
            Copies::Failed(why) => return Err(why),
        }
    }
}

/// The empty file that a copy is written to.
async fn target(job: &Job) -> Result<(std::path::PathBuf, &'static str), String> {
    let (to, from, bytes) = (job.to.clone(), job.from.clone(), job.bytes);
    let overlay = job.volume.format() == DiskFormat::Qcow2;
    let made = tokio::task::spawn_blocking(move || -> Result<(std::path::PathBuf, &'static str), String> {
        let io = |e: std::io::Error| format!("{}: {e}", to.display());
        std::fs::create_dir_all(&to).map_err(io)?;
        if !overlay {
            let file = to.join("disk.img");
            std::fs::File::create(&file).and_then(|f| f.set_len(bytes)).map_err(io)?;
            return Ok((file, "raw"));
        }
        let link = to.join("base");
        let _ = std::fs::remove_file(&link);
        std::fs::hard_link(from.join("base"), &link).map_err(io)?;
        let below = below(&from.join("disk.qcow2"))?;
        let file = to.join("disk.qcow2");
        let out = std::process::Command::new("qemu-img")
            .current_dir(&to)
            .args(["create", "-q", "-f", "qcow2", "-F", &below, "-b", "base", "disk.qcow2"])
            .arg(bytes.to_string())
            .output()
            .map_err(io)?;
        match out.status.success() {
            true => Ok((file, "qcow2")),
            false => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        }
    });
    made.await.map_err(|e| e.to_string())?
}

/// The format of the file below an overlay, as the overlay names it.
fn below(overlay: &Path) -> Result<String, String> {
    let out = std::process::Command::new("qemu-img")
        .args(["info", "--force-share", "--output=json", "-f", "qcow2"])
        .arg(overlay)
        .output()
        .map_err(|e| format!("cannot run qemu-img: {e}"))?;
    let info: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let format = info["backing-filename-format"].as_str().map(str::to_owned);
    format.ok_or_else(|| format!("{} names no format of what is below it", overlay.display()))
}

async fn offline(jobs: &[Job]) -> Result<(), String> {
    for job in jobs {
        let (from, to, format) = (job.from.clone(), job.to.clone(), job.volume.format());
        let copied = tokio::task::spawn_blocking(move || copy_disk(&from, &to, format)).await;
        copied.map_err(|e| e.to_string())?.map_err(|e| {
            let why = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{e}{why}")
        })?;
    }
    Ok(())
}

/// A snapshot counts when this file is there.
fn complete(job: &Job) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(&job.volume).map_err(std::io::Error::other)?;
    let new = job.to.join("volume.json.new");
    std::fs::write(&new, text)?;
    std::fs::File::open(&new)?.sync_all()?;
    std::fs::rename(&new, job.to.join("volume.json"))
}
