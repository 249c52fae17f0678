//! What is known of a machine across restarts of the agent, and finding the process that belongs to it.

use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Process;
use crate::spec::{Files, MachineSpec};

/// Version of the record's form. A later agent reads all earlier ones.
const VERSION: u32 = 1;

/// Variable in the environment of a machine's processes that names the machine's directory.
pub(super) const MARK: &str = "SHEAF_MACHINE";

/// The record of a machine: written before QEMU starts, and again when its pid is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Form of this file.
    pub version: u32,
    /// What was started.
    pub machine: MachineSpec,
    /// The boot of the host in which it was started. In another boot it cannot run any more.
    pub boot_id: String,
    /// The process; `None` if the agent died while starting it.
    pub pid: Option<u32>,
    /// When it was started, in clock ticks since the boot: tells it from a later process of the same number.
    pub start_ticks: Option<u64>,
    /// What the owner of the machine wants to find again. Not looked at here.
    #[serde(default)]
    pub extra: Value,
}

/// Reading or writing a record failed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file does not hold a record that this version understands.
    #[error("{} is not a machine's record", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What is left of a machine.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Box<Record>, Process),
    /// It does not; this is its record.
    Gone(Box<Record>),
    /// There is no record.
    Nothing,
}

impl Record {
    /// A record of a machine that is about to be started in this boot.
    pub fn new(machine: MachineSpec, extra: Value) -> Self {
        Self { version: VERSION, machine, boot_id: boot_id(), pid: None, start_ticks: None, extra }
    }

    /// Writes it into the machine's directory, whole or not at all. Not made durable against a power cut, which ends
    /// the machine, too.
    pub fn write(&self) -> Result<(), RecordError> {
        let path = Files(self.machine.dir.clone()).record();
        let new = path.with_extension("new");
        let io = |source| RecordError::Io { action: "write", path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        std::fs::write(&new, text).map_err(io)?;
        std::fs::rename(&new, &path).map_err(io)
    }

    /// Reads the record in a machine's directory; `None` if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, RecordError> {
        let path = Files(dir.into()).record();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { action: "read", path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| RecordError::Content { path, source })
    }
}

/// Finds the process of the machine in `dir`, if it still runs. A number that nobody had time to write down is written
/// down now; so a record without one, of a machine that is gone, is of one that never began.
pub fn find(dir: &Path) -> Result<Found, RecordError> {
    let Some(mut record) = Record::read(dir)? else { return Ok(Found::Nothing) };
    if record.boot_id != boot_id() {
        return Ok(Found::Gone(Box::new(record)));
    }
    let pids = match record.pid {
        Some(pid) => vec![pid],
        // The agent died between starting QEMU and writing its number.
        None => all_pids().collect(),
    };
    for pid in pids {
        let Some(process) = open(pid) else { continue };
        // Looked at after the process is held, so that its number cannot have passed to another.
        let started = start_ticks(pid);
        let same_start = record.start_ticks.is_none() || record.start_ticks == started;
        if same_start && is_machine(pid, &record.machine.uuid, dir) {
            if record.pid.is_none() {
                (record.pid, record.start_ticks) = (Some(pid), started);
                record.write()?;
            }
            record.start_ticks = started;
            return Ok(Found::Running(Box::new(record), process));
        }
    }
    Ok(Found::Gone(Box::new(record)))
}

fn open(pid: u32) -> Option<Process> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    Process::open(pid).ok()
}

pub(super) fn all_pids() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Whether a process was started for this machine: it has the machine's UUID in its command line and its directory in its
/// environment (in its command line, if an older agent started it). Both are empty in a process that has ended.
fn is_machine(pid: u32, uuid: &str, dir: &Path) -> bool {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let args: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let has =
        |option: &str, value: &[u8]| args.windows(2).any(|w| w[0] == option.as_bytes() && w[1] == value);
    let pidfile = dir.join("qemu.pid");
    has("-uuid", uuid.as_bytes())
        && (is_marked(pid, dir) || has("-pidfile", pidfile.as_os_str().as_encoded_bytes()))
}

/// Whether a process has the mark of the machine in `dir`.
pub(super) fn is_marked(pid: u32, dir: &Path) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    let mut mark = format!("{MARK}=").into_bytes();
    mark.extend_from_slice(dir.as_os_str().as_encoded_bytes());
    environment.split(|b| *b == 0).any(|variable| variable == mark)
}

/// Field 22 of `/proc/PID/stat`; the fields are counted from the last `)` because the name may hold anything.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}
