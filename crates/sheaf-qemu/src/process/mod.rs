//! QEMU as a process: started apart from the agent, found again after the agent's restart, watched to its end.
//!
//! A machine's directory holds its [`Record`], its sockets and its logs. The process gets a session of its own and,
//! where the host allows it, a cgroup of its own, so that nothing that happens to the agent reaches it. It runs as a
//! [`user`] of its own that can open nothing here: what it works with is opened before and inherited. What runs is found
//! by evidence: the recorded pid, the boot, the start time, the machine's UUID in the command line and its directory in
//! the environment. What matches is adopted and never killed here.
//!
//! Does not decide when a machine starts or stops.

mod cgroup;
mod open;
mod record;
mod spawn;
mod tpm;
pub mod user;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use open::{OpenFile, open_disk};
pub use record::{Found, Record, RecordError, find};
pub use spawn::{SpawnError, Started, spawn};

use crate::spec::{Files, MachineSpec};

/// Log files are cut when they are larger than this.
pub const LOG_MAX: u64 = 1 << 20;
/// What is kept of a log that is cut.
const LOG_KEEP: u64 = 64 << 10;

/// A running QEMU.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as it can be known: the exit status of a process that is not our child cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was started by an earlier run of the agent; nobody can tell.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

impl Process {
    #[allow(unsafe_code)]
    fn open(pid: Pid) -> std::io::Result<Self> {
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` is open and gives the same descriptor for as long as it lives, and the `AsyncFd` owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { pid, fd })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for its end, and reaps it if it is our child. May be called again.
    pub async fn exited(&self) -> Exit {
        if let Err(error) = self.fd.readable().await {
            tracing::error!(pid = self.pid(), %error, "cannot wait for a QEMU process");
            return std::future::pending().await;
        }
        match rustix::process::waitid(WaitId::PidFd(self.fd.get_ref().as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            _ => Exit::Unknown,
        }
    }

    /// Ends it at once.
    pub fn kill(&self) -> std::io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }
}

/// The machine's QEMU has come up: from here on it has the share of the processors that is its own. Again at each adoption,
/// as nobody may have been there when it came up.
pub fn settle(machine: &MachineSpec) {
    cgroup::settle(&machine.uuid, &cgroup::Shares::of(&machine.rare));
}

/// What QEMU last said in its log, without time stamps and program names: for the condition of a machine that did
/// not start. At most 1000 characters.
pub fn last_words(dir: &Path) -> Option<String> {
    let log = tail(&Files(dir.into()).log(), 4096)?;
    words(&String::from_utf8_lossy(&log))
}

fn words(log: &str) -> Option<String> {
    let lines: Vec<&str> = log
        .lines()
        .map(|line| match line.split_once(": ") {
            Some((head, rest)) if head.contains("qemu-system-") => rest,
            _ => line,
        })
        .filter(|line| !line.trim().is_empty() && !line.contains("warning: "))
        .collect();
    let last = lines.iter().rev().take(4).rev().copied().collect::<Vec<_>>().join("; ");
    (!last.is_empty()).then(|| last.chars().take(1000).collect())
}

/// The last `max` bytes of a file.
pub fn tail(file: &Path, max: u64) -> Option<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(file).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max))).ok()?;
    let mut out = Vec::new();
    file.take(max).read_to_end(&mut out).ok()?;
    Some(out)
}

/// Cuts the logs of a machine that have grown beyond [`LOG_MAX`] (QEMU opened them for appending). Keeps the end of
/// each beside it, with the suffix `.1`.
pub fn trim_logs(dir: &Path) {
    let files = Files(dir.into());
    for log in [files.serial_log(), files.log()] {
        let Ok(meta) = std::fs::metadata(&log) else { continue };
        if meta.len() <= LOG_MAX {
            continue;
        }
        let kept = tail(&log, LOG_KEEP).unwrap_or_default();
        let mut old = log.clone().into_os_string();
        old.push(".1");
        let cut = std::fs::write(old, kept)
            .and_then(|()| std::fs::OpenOptions::new().write(true).open(&log))
            .and_then(|f| f.set_len(0));
        if let Err(error) = cut {
            tracing::warn!(log = %log.display(), %error, "cannot shorten a log");
        }
    }
}

/// Removes what a machine that has ended leaves on the host besides its directory: its cgroup, and a TPM emulator that
/// has not ended with it.
pub fn clean(uuid: &str, dir: &Path) {
    cgroup::remove(uuid);
    tpm::end(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_words_without_the_noise() {
        let log = "2026-11-21T10:00:00.1Z qemu-system-x86_64: warning: TCG doesn't support requested feature\n\
                   2026-11-21T10:00:00.2Z qemu-system-x86_64: -blockdev {\"driver\":\"raw\"}: Could not open '/x': No such file or directory\n";
        assert_eq!(
            words(log).expect("words"),
            "-blockdev {\"driver\":\"raw\"}: Could not open '/x': No such file or directory"
        );
        assert_eq!(words("\n \n"), None);
    }

    #[test]
    fn long_logs_are_cut_and_their_end_is_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let files = Files(dir.path().into());
        let mut text = vec![b'a'; LOG_MAX as usize];
        text.extend_from_slice(b"the end");
        std::fs::write(files.serial_log(), &text).expect("write");
        trim_logs(dir.path());
        assert_eq!(std::fs::metadata(files.serial_log()).expect("log").len(), 0);
        let kept = std::fs::read(dir.path().join("serial.log.1")).expect("kept");
        assert_eq!(kept.len() as u64, LOG_KEEP);
        assert!(kept.ends_with(b"the end"));
    }
}
