//! A guest's memory as part of a snapshot: written while the guest stands still, and read by a machine that goes on from
//! there.
//!
//! Kept in a directory beside those of the disks, named after the snapshot's content: what QEMU writes for a migration, and
//! the machine that it was, as only one that is made alike can read it. See note 0026.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sheaf_qemu::qmp::Qmp;
use sheaf_qemu::spec::MachineSpec;

/// How often is looked whether QEMU is done.
const LOOK: Duration = Duration::from_millis(20);
/// The state of the guest, in a directory of this module.
const STATE: &str = "state";
/// The machine that it was.
const MACHINE: &str = "machine.json";

/// A machine as it was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// With the versioned name of its kind, and the processors that it had.
    pub machine: MachineSpec,
}

/// The directory for the content of a snapshot, below the one of all snapshots.
pub fn dir_of(snapshots: &Path, content: &str) -> PathBuf {
    let safe: String = content.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
    snapshots.join(format!("memory-{}", safe.trim_start_matches('.')))
}

/// Writes the state of a guest that stands still.
pub(super) async fn save(qmp: &Qmp, machine: &MachineSpec, dir: &Path) -> Result<(), String> {
    let file = {
        let place = dir.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&place)?;
            let _ = std::fs::remove_file(place.join(MACHINE));
            File::create(place.join(STATE))
        });
        let made = made.await.map_err(|e| e.to_string())?;
        made.map_err(|e| format!("cannot make a file for the guest's memory in {}: {e}", dir.display()))?
    };
    let copy = file.try_clone().map_err(|e| e.to_string())?;
    qmp.begin_save(copy.into()).await.map_err(|e| e.to_string())?;
    loop {
        match qmp.save_state().await.map_err(|e| e.to_string())? {
            Some(Ok(())) => break,
            Some(Err(why)) => return Err(format!("QEMU cannot write the guest's memory: {why}")),
            None => tokio::time::sleep(LOOK).await,
        }
    }
    let mut machine = machine.clone();
    machine.machine = qmp.machine_type().await.map_err(|e| e.to_string())?;
    let (dir, saved) = (dir.to_owned(), Saved { machine });
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        file.sync_all()?;
        let text = serde_json::to_vec_pretty(&saved).map_err(std::io::Error::other)?;
        let new = dir.join("machine.json.new");
        std::fs::write(&new, text)?;
        File::open(&new)?.sync_all()?;
        std::fs::rename(new, dir.join(MACHINE))
    });
    let written = written.await.map_err(|e| e.to_string())?;
    written.map_err(|e| format!("cannot write down the machine whose memory was saved: {e}"))
}

/// Makes `wanted` go on from what is saved in `dir`: the machine to start, with a name of its own for the state. Says why if it
/// would not be the machine that was saved.
pub fn resume(dir: &Path, wanted: &MachineSpec) -> Result<MachineSpec, String> {
    let text = std::fs::read(dir.join(MACHINE)).map_err(|e| format!("it is not on this node: {e}"))?;
    let saved: Saved = serde_json::from_slice(&text).map_err(|e| format!("it cannot be read: {e}"))?;
    let mut machine = alike(wanted, &saved.machine)?;
    let link = machine.dir.join("memory");
    let _ = std::fs::remove_file(&link);
    let linked =
        std::fs::create_dir_all(&machine.dir).and_then(|()| std::fs::hard_link(dir.join(STATE), &link));
    linked.map_err(|e| format!("it cannot be linked: {e}"))?;
    machine.rare.incoming = Some(link);
    Ok(machine)
}

/// `wanted` with the places of `saved`'s devices, or what is different about it. Pure.
pub fn alike(wanted: &MachineSpec, saved: &MachineSpec) -> Result<MachineSpec, String> {
    let mut out = wanted.clone();
    out.machine.clone_from(&saved.machine);
    out.ports = saved.ports.clone();
    // Queues are part of a controller, and were made for the processors of the start.
    out.rare.first_cpus = saved.rare.first_cpus;
    for disk in &mut out.disks {
        if let Some(before) = saved.disks.iter().find(|d| d.name == disk.name) {
            disk.tuning.queues = before.tuning.queues;
        }
    }
    let (a, b) = (bare(&out), bare(saved));
    if a == b {
        return Ok(out);
    }
    let different = |what: &str, same: bool| if same { None } else { Some(what.to_owned()) };
    let parts = [
        different("processors", a.cpu == b.cpu),
        different(
            "memory",
            (a.memory_bytes, a.rare.memory_plugged_bytes) == (b.memory_bytes, b.rare.memory_plugged_bytes),
        ),
        different("disks", a.disks == b.disks),
        different("network interfaces", a.nics == b.nics),
        different("acceleration", a.accel == b.accel),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let what = if parts.is_empty() { "devices".to_owned() } else { parts.join(", ") };
    Err(format!("the machine has other {what} than the one that was saved"))
}

/// What of a machine its guest can see.
fn bare(machine: &MachineSpec) -> MachineSpec {
    let mut out = machine.clone();
    out.dir = PathBuf::new();
    out.clock = Default::default();
    for disk in &mut out.disks {
        if disk.source.is_some() {
            disk.source = Some(sheaf_qemu::spec::Source::Raw(PathBuf::new()));
        }
        (disk.cache, disk.io) = (sheaf_qemu::spec::Cache::None, sheaf_qemu::spec::Io::Threads);
        (disk.tuning.hotplugged, disk.tuning.limits) = Default::default();
        disk.tuning.iothread = None;
    }
    out.disks.sort_by(|a, b| a.name.cmp(&b.name));
    for nic in &mut out.nics {
        nic.tuning.hotplugged = false;
    }
    out.nics.sort_by(|a, b| a.name.cmp(&b.name));
    let r = &mut out.rare;
    (r.user, r.cpu_shares, r.io_weight, r.incoming, r.vsock_cid) = Default::default();
    (r.pinned, r.tpm, r.acpi_tables, r.memory_locked, r.boot_menu_ms) = Default::default();
    r.iothreads = 0;
    if let sheaf_qemu::spec::Firmware::Uefi { vars, .. } = &mut out.firmware {
        *vars = PathBuf::new();
    }
    out
}
