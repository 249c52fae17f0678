//! Starting QEMU. The only place of this package with `unsafe`: what runs in the child between fork and exec.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::process::Pid;

use super::{Process, Record, RecordError, cgroup, record, tpm};
use crate::args::{self, Handles, SpecError};
use crate::spec::{Clock, Files};

/// The longest path of a unix socket (`sun_path` without its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The specification is at fault.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A file could not be made.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A socket's path is longer than the system takes.
    #[error("the path {} is longer than the {SOCKET_PATH_MAX} bytes that a unix socket may have; use a shorter data directory", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The TPM emulator does not work.
    #[error("the TPM emulator swtpm {why}")]
    Tpm {
        /// What it did, or did not.
        why: String,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The program could not be run.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A QEMU that was just started, with the guest's processors stopped.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Process,
    /// Its record, as written.
    pub record: Record,
}

/// Starts QEMU for `record.machine`. `taps` are inherited, one for each network card. The control socket takes
/// connections when this returns, though QEMU answers when it is ready. Quick (a fork and a few small files), but
/// blocking.
pub fn spawn(program: &Path, mut record: Record, taps: &[OwnedFd]) -> Result<Started, SpawnError> {
    let machine = &record.machine;
    let files = Files(machine.dir.clone());
    let dir = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&machine.dir);
    dir.map_err(|source| SpawnError::File { action: "create", path: machine.dir.clone(), source })?;
    for stale in [files.pid(), files.vnc()] {
        let _ = std::fs::remove_file(stale);
    }
    let qmp = listen(&files.qmp())?;
    let serial = machine.serial_console.then(|| listen(&files.serial())).transpose()?;
    let guest_agent = machine.guest_agent.then(|| listen(&files.guest_agent())).transpose()?;
    if machine.graphics {
        short_enough(&files.vnc())?;
    }
    let handles = Handles {
        qmp: qmp.as_raw_fd(),
        serial: serial.as_ref().map(AsRawFd::as_raw_fd),
        guest_agent: guest_agent.as_ref().map(AsRawFd::as_raw_fd),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let argv = args::argv(machine, &handles)?;
    let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(files.log());
    let log = log.map_err(|source| SpawnError::File { action: "create", path: files.log(), source })?;
    let _ = log.set_len(0);
    let log_too =
        log.try_clone().map_err(|source| SpawnError::File { action: "open", path: files.log(), source })?;
    // Before the process exists, so that it is found if we die right after.
    record.write()?;
    if let Some(state) = &record.machine.rare.tpm {
        short_enough(&files.tpm())?;
        tpm::start(&record.machine.dir, state)?;
    }

    let mut inherited = handles.taps;
    inherited.push(handles.qmp);
    inherited.extend(handles.serial);
    inherited.extend(handles.guest_agent);
    let mut command = Command::new(program);
    if let Clock::Zone(zone) = &record.machine.clock {
        command.env("TZ", zone);
    }
    command.args(argv).stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::from(log_too));
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed. It
    // makes the system calls setsid and fcntl, and neither allocates nor takes locks. The descriptors belong to
    // `qmp`, `serial`, `guest_agent` and `taps`, which live until after `spawn` has returned.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            for fd in &inherited {
                // SAFETY: open, as said above.
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let failed = |source| SpawnError::Program { program: program.into(), source };
    let child = command.spawn().map_err(failed)?;
    record.pid = Some(child.id());
    record.start_ticks = record::start_ticks(child.id());
    // `child` is dropped unreaped: `Process::exited` reaps it. Until then its number is not given to another.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(std::io::Error::other("the system gave no process number")))?;
    let process = Process::open(pid).map_err(failed)?;
    cgroup::place(&record.machine.uuid, child.id(), record.machine.rare.cpu_shares);
    record.write()?;
    Ok(Started { process, record })
}

fn short_enough(path: &Path) -> Result<(), SpawnError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(SpawnError::PathTooLong { path: path.into() });
    }
    Ok(())
}

fn listen(path: &Path) -> Result<UnixListener, SpawnError> {
    short_enough(path)?;
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| SpawnError::File {
        action: "listen at",
        path: path.into(),
        source,
    })
}
