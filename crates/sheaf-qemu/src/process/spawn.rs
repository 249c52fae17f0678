//! Starting QEMU. The only place of this package with `unsafe`: what runs in the child between fork and exec.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::process::{Gid, Pid};

use super::open::Opened;
use super::record::MARK;
use super::{Process, Record, RecordError, cgroup, record, tpm};
use crate::accel::Accel;
use crate::args::{self, SpecError};
use crate::chain::ChainError;
use crate::spec::{Clock, Files};
use crate::version::{self, Version, VersionError};

/// The longest path of a unix socket (`sun_path` without its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// QEMU's own variable for the directory of its modules.
const MODULES: &str = "QEMU_MODULE_DIR";

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
    /// A disk, or what lies below it, cannot be opened.
    #[error(transparent)]
    Disk(#[from] ChainError),
    /// The host has no vsock.
    #[error("cannot open /dev/vhost-vsock; load the kernel module vhost_vsock")]
    Vsock {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What QEMU this is cannot be found out.
    #[error(transparent)]
    Version(#[from] VersionError),
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

/// Starts QEMU for `record.machine`. `taps` are inherited, the queues of each network card. The control socket takes
/// connections when this returns, though QEMU answers when it is ready. Quick (a fork and a few small files), but
/// blocking.
///
/// A start that fails leaves no process behind.
pub fn spawn(program: &Path, record: Record, taps: &[Vec<OwnedFd>]) -> Result<Started, SpawnError> {
    let dir = record.machine.dir.clone();
    let started = start(program, record, taps);
    if started.is_err() {
        tpm::end(&dir);
    }
    started
}

fn start(program: &Path, mut record: Record, taps: &[Vec<OwnedFd>]) -> Result<Started, SpawnError> {
    let machine = &record.machine;
    let files = Files(machine.dir.clone());
    let dir = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&machine.dir);
    // Also one that was there before: it is nobody else's business.
    let dir =
        dir.and_then(|()| std::fs::set_permissions(&machine.dir, std::fs::Permissions::from_mode(0o700)));
    dir.map_err(|source| SpawnError::File { action: "create", path: machine.dir.clone(), source })?;
    let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(files.log());
    let log = log.map_err(|source| SpawnError::File { action: "create", path: files.log(), source })?;
    let _ = log.set_len(0);
    let log_too =
        log.try_clone().map_err(|source| SpawnError::File { action: "open", path: files.log(), source })?;
    // Before the process exists, so that it is found if we die right after.
    record.write()?;
    let user = machine.rare.user;
    let tpm = match &machine.rare.tpm {
        Some(state) => Some(tpm::start(&machine.dir, state, user)?),
        None => None,
    };
    let mut opened = Opened::new(machine, tpm)?;
    let mut inherited = opened.taps(taps);
    inherited.extend(opened.inherited());
    let argv = args::argv(machine, &opened.handles, Version::of(program)?)?;
    let device = |source| SpawnError::File { action: "share", path: "/dev/kvm".into(), source };
    let groups = match user {
        Some(_) => super::user::groups(machine.accel == Accel::Kvm).map_err(device)?,
        None => Vec::new(),
    };
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let lock_memory = machine.rare.memory_locked;
    let cwd = machine.rare.sockets.as_deref().unwrap_or(Path::new("/"));
    let cwd = std::ffi::CString::new(cwd.as_os_str().as_encoded_bytes())
        .map_err(|error| SpawnError::File { action: "enter", path: cwd.into(), source: error.into() })?;

    let mut command = Command::new(version::locate(program));
    // Of the agent's environment a guest's process needs nothing; this is how it is known again.
    command.env_clear().env(MARK, &machine.dir);
    // But where its modules are, if it does not lie where it was built for: devices are among them.
    if let Some(modules) = std::env::var_os(MODULES) {
        command.env(MODULES, modules);
    }
    if let Clock::Zone(zone) = &machine.clock {
        command.env("TZ", zone);
    }
    command.args(argv).stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::from(log_too));
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed. It
    // makes system calls (setsid, fcntl, setrlimit, chdir, those that change the user), and neither allocates nor takes
    // locks. The descriptors belong to `opened` and `taps`, which live until after `spawn` has returned.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::process::chdir(cwd.as_c_str())?;
            for fd in &inherited {
                // SAFETY: open, as said above.
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*fd), FdFlags::empty())?;
            }
            if lock_memory {
                super::user::may_lock_memory()?;
            }
            match user {
                Some(user) => super::user::become_user(user, &groups),
                None => Ok(()),
            }
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
    let shares = cgroup::Shares::of(&record.machine.rare).starting();
    cgroup::place(&record.machine.uuid, child.id(), &shares);
    record.write()?;
    drop(opened);
    Ok(Started { process, record })
}

pub(super) fn short_enough(path: &Path) -> Result<(), SpawnError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(SpawnError::PathTooLong { path: path.into() });
    }
    Ok(())
}
