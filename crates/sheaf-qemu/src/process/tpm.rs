//! The TPM emulator beside a machine: `swtpm`, one for each, started before QEMU and ended by it (`--terminate`: it ends
//! with its connection). Blocking, quick. What a crash leaves behind is ended with the machine's other remains.
//!
//! It runs as the machine's user; its state belongs to that user from then on, and its sockets and its log are handed over
//! open, as QEMU's are.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::open::listen;
use super::record::{MARK, all_pids, is_marked};
use super::spawn::SpawnError;
use super::user;
use crate::spec::Files;

fn pid_file(dir: &Path) -> std::path::PathBuf {
    dir.join("tpm.pid")
}

/// Starts the emulator of the machine in `dir`, with its state in `state`; gives the connection for QEMU.
pub(super) fn start(dir: &Path, state: &Path, user: Option<u32>) -> Result<OwnedFd, SpawnError> {
    let files = Files(dir.into());
    let failed = |why: String| SpawnError::Tpm { why };
    let no_state = |e: std::io::Error| failed(format!("has no place for its state: {e}"));
    end(dir);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(no_state)?;
    if let Some(user) = user {
        user::hand_over_tree(state, user).map_err(no_state)?;
    }
    let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(files.tpm_log());
    let log = log.map_err(|source| SpawnError::File { action: "create", path: files.tpm_log(), source })?;
    let home = std::fs::File::open(state).map_err(no_state)?;
    let control = listen(&files.tpm())?;
    let fds = [control.as_raw_fd(), log.as_raw_fd(), home.as_raw_fd()];
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--terminate", "--tpmstate", "dir=.,mode=0600"])
        .arg("--ctrl")
        .arg(format!("type=unixio,fd={}", fds[0]))
        .arg("--log")
        .arg(format!("fd={},level=1", fds[1]))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(MARK, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A group of its own, so that no signal to the agent's reaches it.
    command.process_group(0);
    // SAFETY: the closure runs in the child between fork and exec. It makes system calls only (fcntl, fchdir, those that
    // change the user), and neither allocates nor takes locks. The descriptors belong to `control`, `log` and `home`,
    // which live until after the child was started.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds[..2] {
                // SAFETY: open, as said above.
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            // SAFETY: open, as said above.
            rustix::process::fchdir(BorrowedFd::borrow_raw(fds[2]))?;
            user.map_or(Ok(()), |user| user::become_user(user, &[]))
        });
    }
    // Without a number until there is one: whoever finds it so looks for the process by its mark.
    let noting = std::fs::write(pid_file(dir), "");
    noting.map_err(|source| SpawnError::File { action: "write", path: pid_file(dir), source })?;
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            failed("is not installed on this node; install the Debian package swtpm".into())
        }
        _ => failed(format!("cannot be run: {e}")),
    })?;
    let noted = std::fs::write(pid_file(dir), child.id().to_string());
    // It need not have begun: the socket listens already.
    let connected = UnixStream::connect(files.tpm());
    // Reaped when it ends: a thread costs less than a zombie for each machine.
    std::thread::spawn(move || child.wait());
    noted.map_err(|source| SpawnError::File { action: "write", path: pid_file(dir), source })?;
    let connected = connected.map_err(|e| failed(format!("takes no connection: {e}")))?;
    Ok(connected.into())
}

/// Ends the emulator of the machine in `dir`, if it still runs. Only a process that has this machine's mark is taken for
/// it.
pub(super) fn end(dir: &Path) {
    let Ok(text) = std::fs::read_to_string(pid_file(dir)) else { return };
    match text.trim().parse() {
        Ok(pid) => end_process(pid, dir),
        // The agent died between starting it and writing its number.
        Err(_) => all_pids().filter(|pid| is_emulator(*pid)).for_each(|pid| end_process(pid, dir)),
    }
}

fn is_emulator(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "swtpm")
}

fn end_process(pid: u32, dir: &Path) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { return };
    // Looked at after the process is held, so that its number cannot have passed to another.
    if is_marked(pid, dir) {
        let _ = rustix::process::pidfd_send_signal(&process, Signal::TERM);
    }
}
