//! Dumps of guests' memory onto claims: an ELF file that crash and gdb read, at the beginning of the claim's volume.
//!
//! A volume of kind `memoryDump` in the instance's spec asks for one; the volume's status says how far it is. One dump for a
//! machine at a time. State: what became of a dump, until its volume leaves the spec; an agent that starts anew makes the
//! dump again. Note 0026 says why the file is the volume's content.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sheaf_api::kubevirt::{self as kv, VirtualMachineInstance};
use sheaf_plan::conditions::whole_seconds;
use sheaf_qemu::qmp::Qmp;

use super::control::{Control, lock, uid};
use super::monitor::Machine;
use crate::parts::{DiskFormat, DiskSource};

/// How often is looked whether QEMU is done.
const LOOK: Duration = Duration::from_millis(100);

/// A dump that was begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Dump {
    /// Name of the volume.
    pub volume: String,
    pub(super) claim: String,
    file_name: String,
    begun: Timestamp,
    /// When it ended, and why it failed if it did.
    ended: Option<(Timestamp, Result<(), String>)>,
}

impl Dump {
    /// The status of its volume.
    pub fn status(&self) -> kv::VolumeStatus {
        let at = |t: Timestamp| Some(Time(whole_seconds(t)));
        let (phase, reason, message) = match &self.ended {
            None => (
                "MemoryDumpInProgress",
                "MemoryDumpInProgress",
                "The guest's memory is being dumped".to_owned(),
            ),
            Some((_, Ok(()))) => {
                ("MemoryDumpCompleted", "MemoryDumpCompleted", "The guest's memory was dumped".to_owned())
            }
            Some((_, Err(why))) => ("MemoryDumpFailed", "MemoryDumpFailed", why.clone()),
        };
        kv::VolumeStatus {
            name: self.volume.clone(),
            phase: phase.into(),
            reason: reason.into(),
            message,
            memory_dump_volume: Some(kv::MemoryDumpInfo {
                claim_name: self.claim.clone(),
                target_file_name: self.file_name.clone(),
                start_timestamp: at(self.begun),
                end_timestamp: self.ended.as_ref().and_then(|(t, _)| at(*t)),
            }),
            ..kv::VolumeStatus::default()
        }
    }
}

/// What a dump of so much memory needs beside it: notes, and headers of the file.
fn room(memory: u64) -> u64 {
    memory + (memory >> 10) + (1 << 20)
}

impl Control {
    /// Begins the dump that the instance asks for, and forgets one that it does not any more.
    pub(super) async fn dump(self: &std::sync::Arc<Self>, vmi: &VirtualMachineInstance, machine: &Machine) {
        let uid = uid(vmi);
        let wanted = vmi.spec.volumes.iter().find_map(|v| Some((v.name.clone(), v.memory_dump.as_ref()?)));
        let known = lock(&self.dumps).get(&uid).cloned();
        let namespace = vmi.metadata.namespace.clone().unwrap_or_default();
        match (wanted, known) {
            (Some((name, _)), Some(known)) if known.volume == name => {}
            (None, Some(known)) if known.ended.is_some() => {
                lock(&self.dumps).remove(&uid);
                if let Err(error) = self.needs.volumes.detach(&namespace, &known.claim).await {
                    tracing::warn!(claim = known.claim, %error, "the claim of a memory dump stays attached");
                }
            }
            // It is made for this machine, and wakes us when it is there.
            (Some((_, claim)), _) if !self.bound_claim(&namespace, &claim.claim_name) => {}
            (Some((volume, claim)), _) => {
                let begun = Timestamp::now();
                let stamp = begun.strftime("%Y%m%d-%H%M%S");
                let vm = vmi.metadata.name.as_deref().unwrap_or_default();
                let dump = Dump {
                    volume,
                    claim: claim.claim_name.clone(),
                    file_name: format!("{vm}-{}-{stamp}.memory.dump", claim.claim_name),
                    begun,
                    ended: None,
                };
                lock(&self.dumps).insert(uid.clone(), dump.clone());
                let (control, machine) = (self.clone(), machine.clone());
                let key = sheaf_runtime::ObjectKey::of(vmi);
                self.group.spawn(async move {
                    let result = control.write_dump(&namespace, &dump.claim, &machine).await;
                    if let Some(dump) = lock(&control.dumps).get_mut(&uid) {
                        dump.ended = Some((Timestamp::now(), result));
                    }
                    if let Some(waker) = &*lock(&control.waker) {
                        waker.wake(key);
                    }
                });
            }
            (None, _) => {}
        }
    }

    async fn write_dump(&self, namespace: &str, claim: &str, machine: &Machine) -> Result<(), String> {
        let qmp = machine.qmp().ok_or("QEMU does not answer")?;
        let spec = machine.spec();
        let needed = room(spec.memory_bytes + spec.rare.memory_plugged_bytes);
        let source =
            self.needs.volumes.attach(namespace, claim).await.map_err(
                |e| match std::error::Error::source(&e) {
                    Some(cause) => format!("{e}: {cause}"),
                    None => e.to_string(),
                },
            )?;
        let DiskSource::File { path, format: DiskFormat::Raw, read_only: false } = source else {
            return Err(format!(
                "claim {claim} is no blank volume that can be written to; a memory dump needs one"
            ));
        };
        let file =
            tokio::task::spawn_blocking(move || open(path, needed)).await.map_err(|e| e.to_string())??;
        qmp.begin_dump(file).await.map_err(|e| e.to_string())?;
        wait(&qmp).await
    }
}

/// The volume's file, if it is large enough. What was dumped there before is let go first.
fn open(path: PathBuf, needed: u64) -> Result<OwnedFd, String> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let has = file.metadata().map_err(|e| e.to_string())?.len();
    if has < needed {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(format!(
            "the claim has {} MiB, and a dump of this machine's memory needs {} MiB; make the claim larger",
            mib(has),
            mib(needed)
        ));
    }
    file.set_len(0)
        .and_then(|()| file.set_len(has))
        .map_err(|e| format!("cannot empty {}: {e}", path.display()))?;
    Ok(file.into())
}

async fn wait(qmp: &Qmp) -> Result<(), String> {
    loop {
        match qmp.dump_state().await.map_err(|e| e.to_string())?.as_str() {
            "completed" => return Ok(()),
            "active" => tokio::time::sleep(LOOK).await,
            other => return Err(format!("QEMU could not write the dump: it is {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_to_be_large_enough_and_keeps_its_size() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![7; 1 << 20]).expect("file");
        let why = open(path.clone(), room(64 << 20)).expect_err("too small");
        assert_eq!(
            why,
            "the claim has 1 MiB, and a dump of this machine's memory needs 66 MiB; make the claim larger"
        );
        open(path.clone(), 1 << 20).expect("large enough");
        let content = std::fs::read(path).expect("file");
        assert!(content.len() == 1 << 20 && content.iter().all(|b| *b == 0));
    }
}
