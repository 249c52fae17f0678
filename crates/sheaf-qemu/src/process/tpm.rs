//! The TPM emulator beside a machine: `swtpm`, one for each, started before QEMU and ended by it (`--terminate`: it ends
//! with its connection). Blocking, quick. What a crash leaves behind is ended with the machine's other remains.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::spawn::SpawnError;
use crate::spec::Files;

/// It makes its socket within this.
const START_DEADLINE: Duration = Duration::from_secs(5);

fn pid_file(dir: &Path) -> std::path::PathBuf {
    dir.join("tpm.pid")
}

/// Starts the emulator of the machine in `dir`, with its state in `state`.
pub(super) fn start(dir: &Path, state: &Path) -> Result<(), SpawnError> {
    let files = Files(dir.into());
    let failed = |why: String| SpawnError::Tpm { why };
    end(dir);
    std::fs::create_dir_all(state).map_err(|e| failed(format!("has no place for its state: {e}")))?;
    for stale in [files.tpm(), pid_file(dir)] {
        let _ = std::fs::remove_file(stale);
    }
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
        .arg(format!("dir={},mode=0600", state.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={},mode=0600", files.tpm().display()))
        .arg("--pid")
        .arg(format!("file={}", pid_file(dir).display()))
        .arg("--log")
        .arg(format!("file={},level=1", files.tpm_log().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A group of its own, so that no signal to the agent's reaches it.
    command.process_group(0);
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            failed("is not installed on this node; install the Debian package swtpm".into())
        }
        _ => failed(format!("cannot be run: {e}")),
    })?;
    let until = Instant::now() + START_DEADLINE;
    while !files.tpm().exists() {
        if let Ok(Some(status)) = child.try_wait() {
            let log = std::fs::read_to_string(files.tpm_log()).unwrap_or_default();
            let words: Vec<&str> = log.lines().rev().take(2).collect();
            return Err(failed(format!("ended at once, {status}: {}", words.join("; "))));
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("made no socket within {} s", START_DEADLINE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Reaped when it ends: a thread costs less than a zombie for each machine.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Ends the emulator of the machine in `dir`, if it still runs. Only a process whose command line names this machine's
/// socket is taken for it.
pub(super) fn end(dir: &Path) {
    let Ok(text) = std::fs::read_to_string(pid_file(dir)) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let socket = format!("path={}", Files(dir.into()).tpm().display());
    if String::from_utf8_lossy(&cmdline).contains(&socket) {
        let _ = rustix::process::pidfd_send_signal(&process, Signal::TERM);
    }
}
