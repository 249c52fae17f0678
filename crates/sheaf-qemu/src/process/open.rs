//! What a machine works with, opened by the agent, to be inherited by its QEMU: disks with their layers, firmware, logs,
//! sockets. QEMU, a user without any rights, opens nothing of ours by itself.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::spawn::{SpawnError, short_enough};
use crate::args::{Handles, OpenLayer};
use crate::chain::{self, ChainError, Layer};
use crate::spec::{Cache, Disk, Files, Firmware, MachineSpec, Source};

/// Open files of one machine; they are closed when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// What QEMU is told of them.
    pub(super) handles: Handles,
    held: Vec<OwnedFd>,
}

/// A layer of a disk, opened.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// What it is.
    pub layer: Layer,
    /// It is written to.
    pub writable: bool,
}

/// Opens a disk and all that lies below it. Only the top is written to. What goes past the host's cache is opened so: since 9.1,
/// QEMU takes no descriptor whose flags are others than those that it asks for.
pub fn open_disk(disk: &Disk) -> Result<Vec<OpenFile>, ChainError> {
    let Some(source) = &disk.source else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for layer in chain::layers(source)? {
        let writable = out.is_empty() && !disk.read_only;
        let flags = if disk.cache == Cache::None { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(&layer.path);
        let file = file.map_err(|source| ChainError::Io { path: layer.path.clone(), source })?;
        out.push(OpenFile { file, layer, writable });
    }
    Ok(out)
}

impl Opened {
    /// All descriptors that QEMU inherits.
    pub(super) fn inherited(&self) -> Vec<RawFd> {
        self.held.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn hold(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        let raw = fd.as_raw_fd();
        self.held.push(fd);
        raw
    }

    /// A file that QEMU names by the number of a set.
    fn set(&mut self, file: File, note: &str) -> u32 {
        let fd = self.hold(file);
        self.handles.sets.push((fd, note.into()));
        u32::try_from(self.handles.sets.len()).unwrap_or(u32::MAX)
    }

    /// Opens what the machine needs. `tpm` is the connection to its emulator.
    pub(super) fn new(machine: &MachineSpec, tpm: Option<OwnedFd>) -> Result<Self, SpawnError> {
        let files = Files(machine.dir.clone());
        let mut out = Self::default();
        let qmp = listen(&files.qmp())?;
        out.handles.qmp = out.hold(qmp);
        if machine.serial_console {
            let serial = listen(&files.serial())?;
            out.handles.serial = Some(out.hold(serial));
            let path = files.serial_log();
            // For appending, so that the agent can cut the log short while QEMU writes to it.
            let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
            let log = log.map_err(|source| SpawnError::File { action: "create", path, source })?;
            out.handles.serial_log = Some(out.set(log, "serial-log"));
        }
        if machine.guest_agent {
            let socket = listen(&files.guest_agent())?;
            out.handles.guest_agent = Some(out.hold(socket));
        }
        for n in 0..machine.rare.usb_redirections {
            let socket = listen(&files.usb_redirection(n))?;
            let fd = out.hold(socket);
            out.handles.usb.push(fd);
        }
        if let Some(tpm) = tpm {
            out.handles.tpm = Some(out.hold(tpm));
        }
        if machine.rare.vsock_cid.is_some() {
            let device = OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock");
            let device = device.map_err(|source| SpawnError::Vsock { source })?;
            out.handles.vsock = Some(out.hold(device));
        }
        if let Firmware::Uefi { code, vars, .. } = &machine.firmware {
            for (node, path, writable) in [("pflash0", code, false), ("pflash1", vars, true)] {
                let file = open(path, writable)?;
                let set = out.set(file, node);
                out.handles.firmware.push(set);
            }
        }
        if let Some(path) = &machine.rare.incoming {
            let file = open(path, false)?;
            out.handles.incoming = Some(out.hold(file));
        }
        for (_, path) in &machine.rare.acpi_tables {
            let file = open(path, false)?;
            if let Some(user) = machine.rare.user {
                // QEMU opens it anew, by the descriptor.
                super::user::hand_over(path, user).map_err(|source| SpawnError::File {
                    action: "hand over",
                    path: path.clone(),
                    source,
                })?;
            }
            let fd = out.hold(file);
            out.handles.acpi_tables.push(fd);
        }
        for (name, text) in &machine.rare.firmware_files {
            let file = in_memory(name, text).map_err(|source| SpawnError::File {
                action: "hold in memory",
                path: name.into(),
                source,
            })?;
            let fd = out.hold(file);
            out.handles.firmware_files.push(fd);
        }
        for disk in &machine.disks {
            if let (Some(Source::Nbd(socket)), Some(user)) = (&disk.source, machine.rare.user) {
                super::user::hand_over_socket(socket, user).map_err(|source| SpawnError::File {
                    action: "hand over",
                    path: socket.clone(),
                    source,
                })?;
            }
            out.disk(disk)?;
        }
        Ok(out)
    }

    fn disk(&mut self, disk: &Disk) -> Result<(), SpawnError> {
        if let Some(Source::VhostUser(socket)) = &disk.source {
            // The socket itself may be made anew while the machine runs; the directory stays.
            let dir = socket.parent().unwrap_or(Path::new("/"));
            let flags =
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::open(dir, flags, rustix::fs::Mode::empty());
            let fd =
                fd.map_err(|e| SpawnError::File { action: "open", path: dir.into(), source: e.into() })?;
            let raw = self.hold(fd);
            self.handles.sockets.insert(disk.name.clone(), raw);
            return Ok(());
        }
        let mut layers = Vec::new();
        let node = crate::args::node_name(&disk.name);
        for open in open_disk(disk)? {
            let host_device = open.layer.path.starts_with("/dev");
            let set = self.set(open.file, &node);
            layers.push(OpenLayer { format: open.layer.format, set, host_device });
        }
        self.handles.disks.insert(disk.name.clone(), layers);
        Ok(())
    }

    /// Taps, which QEMU inherits, too.
    pub(super) fn taps(&mut self, taps: &[Vec<OwnedFd>]) -> Vec<RawFd> {
        let raw = |queues: &Vec<OwnedFd>| queues.iter().map(AsRawFd::as_raw_fd).collect();
        self.handles.taps = taps.iter().map(raw).collect::<Vec<Vec<RawFd>>>();
        self.handles.taps.concat()
    }
}

fn open(path: &Path, writable: bool) -> Result<File, SpawnError> {
    let file = OpenOptions::new().read(true).write(writable).open(path);
    file.map_err(|source| SpawnError::File { action: "open", path: path.into(), source })
}

/// A file that is on no disk. QEMU opens it anew, by the descriptor, which any user may.
fn in_memory(name: &str, text: &str) -> std::io::Result<File> {
    let memory = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

/// Sockets listen before QEMU starts, so that nobody has to wait for them.
pub(super) fn listen(path: &Path) -> Result<UnixListener, SpawnError> {
    short_enough(path)?;
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| SpawnError::File {
        action: "listen at",
        path: path.into(),
        source,
    })
}
