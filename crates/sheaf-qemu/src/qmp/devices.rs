//! Changing a machine that runs, and reading its counters: QMP's commands for devices, by what they are for.
//!
//! Each is safe to repeat: what is there already, or gone already, is no error. Nothing is remembered here; what a
//! machine has is asked of QEMU.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::args::{self, Device, OpenLayer, PLUGGED_MEMORY, disk_id, nic_id, node_name};
use crate::process::open_disk;
use crate::spec::{Disk, Limits};

/// Opening or flushing a disk may take a while on storage that is busy.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// Counters of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Name of the disk in the machine's specification.
    pub disk: String,
    /// Read operations.
    pub reads: u64,
    /// Written operations.
    pub writes: u64,
    /// Flush operations.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Nanoseconds spent reading.
    pub read_ns: u64,
    /// Nanoseconds spent writing.
    pub write_ns: u64,
    /// Nanoseconds spent flushing.
    pub flush_ns: u64,
}

/// A disk whose last request failed, and for which the guest stands still.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FailedDisk {
    /// Name of the disk in the machine's specification.
    pub disk: String,
    /// There is no space left where it lies.
    pub full: bool,
}

/// A processor of the guest and its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuThread {
    /// Number of the processor.
    pub index: u32,
    /// Thread id on the host.
    pub thread: u32,
}

/// What the guest's balloon driver tells, in bytes; `None` is what it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// Size of the balloon: what the guest has.
    pub actual: Option<u64>,
    /// All that the guest's kernel manages.
    pub total: Option<u64>,
    /// Free.
    pub free: Option<u64>,
    /// Can be had without swapping.
    pub available: Option<u64>,
    /// Held for caches.
    pub caches: Option<u64>,
    /// Swapped in.
    pub swap_in: Option<u64>,
    /// Swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
}

/// The disk that a path of QEMU's objects belongs to: `/machine/peripheral/disk-root`, and for virtio `.../virtio-backend`
/// behind it.
fn disk_of(path: &Value) -> Option<&str> {
    path.as_str()?.split('/').find_map(|part| part.strip_prefix("disk-"))
}

/// The disks that have failed, in an answer of `query-block`.
fn failed(blocks: &Value) -> Vec<FailedDisk> {
    let mut out: Vec<FailedDisk> = blocks
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|block| {
            let full = match block["io-status"].as_str()? {
                "nospace" => true,
                "failed" => false,
                _ => return None,
            };
            Some(FailedDisk { disk: disk_of(&block["qdev"])?.to_owned(), full })
        })
        .collect();
    out.sort();
    out
}

/// Fine if QEMU says that it is gone already.
fn or_gone(result: Result<Value, QmpError>) -> Result<(), QmpError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

impl Qmp {
    /// Ids of all devices that have one.
    pub async fn devices(&self) -> Result<BTreeSet<String>, QmpError> {
        let v =
            self.execute("qom-list", Some(json!({"path": "/machine/peripheral"})), COMMAND_DEADLINE).await?;
        let list = v.as_array().ok_or_else(|| QmpError::Shape { command: "qom-list".into() })?;
        Ok(list
            .iter()
            .filter(|p| p["type"].as_str().is_some_and(|t| t.starts_with("child<")))
            .filter_map(|p| p["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Names of all block nodes.
    pub async fn block_nodes(&self) -> Result<BTreeSet<String>, QmpError> {
        let flat = Some(json!({"flat": true}));
        let v = self.execute("query-named-block-nodes", flat, COMMAND_DEADLINE).await?;
        let list =
            v.as_array().ok_or_else(|| QmpError::Shape { command: "query-named-block-nodes".into() })?;
        Ok(list.iter().filter_map(|n| n["node-name"].as_str().map(str::to_owned)).collect())
    }

    async fn add_node(&self, disk: &Disk) -> Result<(), QmpError> {
        if disk.source.is_none() || self.block_nodes().await?.contains(&node_name(&disk.name)) {
            return Ok(());
        }
        let wanted = disk.clone();
        let opened = tokio::task::spawn_blocking(move || open_disk(&wanted)).await;
        let opened = opened.map_err(|_| QmpError::Closed { command: "blockdev-add".into() })??;
        let name = node_name(&disk.name);
        let mut layers = Vec::new();
        for open in opened {
            let host_device = open.layer.path.starts_with("/dev");
            let set = self.lend(open.file.into(), &name).await?;
            layers.push(OpenLayer { format: open.layer.format, set, host_device });
        }
        let Some(node) = args::block_node(disk, &layers) else { return Ok(()) };
        let added = self.execute("blockdev-add", Some(node), DISK_DEADLINE).await;
        if added.is_err() {
            self.take_back(&name).await?;
        }
        added.map(drop)
    }

    /// Plugs in a disk with a file behind it.
    pub async fn plug_disk(&self, disk: &Disk, device: &Device) -> Result<(), QmpError> {
        self.add_node(disk).await?;
        if self.devices().await?.contains(&disk_id(&disk.name)) {
            return Ok(());
        }
        let added = self.execute("device_add", Some(device.to_json()), DISK_DEADLINE).await;
        if added.is_err() {
            // A node without a device would keep the file open.
            let _ = self.drop_node(&disk.name).await;
        }
        added.map(drop)
    }

    /// Asks the guest to give up a device. It is gone when [`Qmp::devices`] has it no more, which may take the guest a
    /// while; asked again while that is under way, nothing more happens.
    pub async fn request_unplug(&self, id: &str) -> Result<(), QmpError> {
        match self.execute("device_del", Some(json!({"id": id})), COMMAND_DEADLINE).await {
            Err(QmpError::Refused { refusal, .. }) if refusal.desc.contains("already in the process") => {
                Ok(())
            }
            other => or_gone(other),
        }
    }

    /// Closes the file of a disk whose device is gone.
    pub async fn drop_node(&self, disk: &str) -> Result<(), QmpError> {
        let args = json!({"node-name": node_name(disk)});
        or_gone(self.execute("blockdev-del", Some(args), DISK_DEADLINE).await)?;
        self.take_back(&node_name(disk)).await
    }

    /// Takes the disc out of a CD-ROM drive, if there is one, and leaves the tray open. A guest that has locked the tray is
    /// overruled.
    pub async fn eject(&self, disk: &str) -> Result<(), QmpError> {
        let id = json!({"id": disk_id(disk)});
        self.open_tray(disk).await?;
        match self.execute("blockdev-remove-medium", Some(id), COMMAND_DEADLINE).await {
            Err(QmpError::Refused { refusal, .. }) if refusal.desc.contains("tray is not open") => {
                return Err(QmpError::Refused { command: "blockdev-remove-medium".into(), refusal });
            }
            // The drive was empty.
            Err(QmpError::Refused { .. }) | Ok(_) => {}
            Err(error) => return Err(error),
        }
        self.drop_node(disk).await
    }

    /// Opens the tray of a drive, whatever is in it.
    pub async fn open_tray(&self, disk: &str) -> Result<(), QmpError> {
        let args = json!({"id": disk_id(disk), "force": true});
        self.execute("blockdev-open-tray", Some(args), COMMAND_DEADLINE).await.map(drop)
    }

    /// Puts a disc into an empty drive and closes its tray.
    pub async fn insert(&self, disk: &Disk) -> Result<(), QmpError> {
        self.add_node(disk).await?;
        let id = json!({"id": disk_id(&disk.name)});
        let medium = json!({"id": disk_id(&disk.name), "node-name": node_name(&disk.name)});
        self.open_tray(&disk.name).await?;
        match self.execute("blockdev-insert-medium", Some(medium), DISK_DEADLINE).await {
            // It is in there: the node is this drive's.
            Err(QmpError::Refused { refusal, .. }) if refusal.desc.contains("already in use") => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.execute("blockdev-close-tray", Some(id), COMMAND_DEADLINE).await.map(drop)
    }

    /// Tells QEMU and the guest that a disk is larger now. A file grows with it; a volume behind NBD has grown before.
    pub async fn resize(&self, disk: &str, bytes: u64) -> Result<(), QmpError> {
        let args = json!({"node-name": node_name(disk), "size": bytes});
        match self.execute("block_resize", Some(args.clone()), DISK_DEADLINE).await {
            Err(QmpError::Refused { .. }) => {}
            other => return other.map(drop),
        }
        // The server of an NBD disk hangs up when it has grown, and QEMU asks for the size when it connects again, which it
        // does for a request: here is one, should the guest be idle.
        let read = format!("qemu-io {} \"read 0 512\"", node_name(disk));
        let poke = json!({"command-line": read});
        self.execute("human-monitor-command", Some(poke), DISK_DEADLINE).await?;
        self.execute("block_resize", Some(args), DISK_DEADLINE).await.map(drop)
    }

    /// Sizes of the disks that QEMU has open, by the name of their node.
    pub async fn node_size(&self, disk: &str) -> Result<Option<u64>, QmpError> {
        let flat = Some(json!({"flat": true}));
        let v = self.execute("query-named-block-nodes", flat, COMMAND_DEADLINE).await?;
        let name = node_name(disk);
        let node = v.as_array().into_iter().flatten().find(|n| n["node-name"] == name.as_str());
        Ok(node.and_then(|n| n.pointer("/image/virtual-size")).and_then(Value::as_u64))
    }

    /// Limits the use of a disk.
    pub async fn throttle(&self, disk: &str, limits: &Limits) -> Result<(), QmpError> {
        let args = args::throttle(disk, limits);
        self.execute("block_set_io_throttle", Some(args), COMMAND_DEADLINE).await.map(drop)
    }

    /// Plugs in a network card; the queues of its `tap` become QEMU's.
    pub async fn plug_nic(&self, name: &str, tap: Vec<OwnedFd>, device: &Device) -> Result<(), QmpError> {
        let (id, host) = (nic_id(name), format!("host-{}", nic_id(name)));
        if self.devices().await?.contains(&id) {
            return Ok(());
        }
        // Left over from an attempt that was cut short.
        self.drop_netdev(name).await?;
        let mut fds = Vec::new();
        for (n, queue) in tap.into_iter().enumerate() {
            fds.push(format!("fd-{id}-{n}"));
            self.name_fd(&fds[n], queue).await?;
        }
        let key = if fds.len() == 1 { "fd" } else { "fds" };
        let netdev = json!({"type": "tap", "id": host, key: fds.join(":")});
        self.execute("netdev_add", Some(netdev), COMMAND_DEADLINE).await?;
        let added = self.execute("device_add", Some(device.to_json()), COMMAND_DEADLINE).await;
        if added.is_err() {
            let _ = self.drop_netdev(name).await;
        }
        added.map(drop)
    }

    /// Gives up the host's end of a network card that is gone.
    pub async fn drop_netdev(&self, name: &str) -> Result<(), QmpError> {
        let args = json!({"id": format!("host-{}", nic_id(name))});
        or_gone(self.execute("netdev_del", Some(args), COMMAND_DEADLINE).await)
    }

    /// Plugs in the processors of sockets below `sockets` that are not there yet; gives their number.
    pub async fn plug_cpus(&self, sockets: u32) -> Result<u32, QmpError> {
        let v = self.execute("query-hotpluggable-cpus", None, COMMAND_DEADLINE).await?;
        let shape = || QmpError::Shape { command: "query-hotpluggable-cpus".into() };
        let mut wanted: Vec<(u64, u64, u64, &Value)> = Vec::new();
        for cpu in v.as_array().ok_or_else(shape)? {
            let part = |key: &str| cpu.pointer(&format!("/props/{key}")).and_then(Value::as_u64).unwrap_or(0);
            if cpu.get("qom-path").is_none() && part("socket-id") < u64::from(sockets) {
                wanted.push((part("socket-id"), part("core-id"), part("thread-id"), cpu));
            }
        }
        wanted.sort_by_key(|(s, c, t, _)| (*s, *c, *t));
        for (socket, core, thread, cpu) in &wanted {
            let mut device = cpu["props"].clone();
            device["driver"] = cpu["type"].clone();
            device["id"] = json!(format!("cpu-{socket}-{core}-{thread}"));
            self.execute("device_add", Some(device), COMMAND_DEADLINE).await?;
        }
        Ok(u32::try_from(wanted.len()).unwrap_or(u32::MAX))
    }

    /// Asks the guest to take (or give back) memory so that it has this many bytes beside those of its start.
    pub async fn request_memory(&self, bytes: u64) -> Result<(), QmpError> {
        let args = json!({"path": format!("/machine/peripheral/{PLUGGED_MEMORY}"), "property": "requested-size", "value": bytes});
        self.execute("qom-set", Some(args), COMMAND_DEADLINE).await.map(drop)
    }

    /// Bytes that the guest has taken beside those of its start.
    pub async fn plugged_memory(&self) -> Result<u64, QmpError> {
        let args = json!({"path": format!("/machine/peripheral/{PLUGGED_MEMORY}"), "property": "size"});
        let v = self.execute("qom-get", Some(args), COMMAND_DEADLINE).await?;
        v.as_u64().ok_or_else(|| QmpError::Shape { command: "qom-get".into() })
    }

    /// Begins to write the guest's memory into a file. [`Qmp::dump_state`] says how far it is.
    pub async fn begin_dump(&self, file: OwnedFd) -> Result<(), QmpError> {
        self.name_fd("dump", file).await?;
        let args = json!({"paging": false, "protocol": "fd:dump", "detach": true});
        self.execute("dump-guest-memory", Some(args), DISK_DEADLINE).await.map(drop)
    }

    /// `none`, `active`, `completed` or `failed`.
    pub async fn dump_state(&self) -> Result<String, QmpError> {
        let v = self.execute("query-dump", None, COMMAND_DEADLINE).await?;
        let state = v["status"].as_str().map(str::to_owned);
        state.ok_or_else(|| QmpError::Shape { command: "query-dump".into() })
    }

    /// Counters of all disks.
    pub async fn block_stats(&self) -> Result<Vec<BlockStats>, QmpError> {
        let v = self.execute("query-blockstats", None, COMMAND_DEADLINE).await?;
        let list = v.as_array().ok_or_else(|| QmpError::Shape { command: "query-blockstats".into() })?;
        let mut out = Vec::new();
        for entry in list {
            let Some(disk) = disk_of(&entry["qdev"]) else { continue };
            let n = |key: &str| entry["stats"][key].as_u64().unwrap_or(0);
            out.push(BlockStats {
                disk: disk.into(),
                reads: n("rd_operations"),
                writes: n("wr_operations"),
                flushes: n("flush_operations"),
                read_bytes: n("rd_bytes"),
                written_bytes: n("wr_bytes"),
                read_ns: n("rd_total_time_ns"),
                write_ns: n("wr_total_time_ns"),
                flush_ns: n("flush_total_time_ns"),
            });
        }
        Ok(out)
    }

    /// The disks whose last request failed, by name. Those that went well since are not among them.
    pub async fn failed_disks(&self) -> Result<Vec<FailedDisk>, QmpError> {
        Ok(failed(&self.query_block().await?))
    }

    /// The threads of the guest's processors.
    pub async fn cpu_threads(&self) -> Result<Vec<CpuThread>, QmpError> {
        let v = self.execute("query-cpus-fast", None, COMMAND_DEADLINE).await?;
        let list = v.as_array().ok_or_else(|| QmpError::Shape { command: "query-cpus-fast".into() })?;
        let number = |cpu: &Value, key: &str| cpu[key].as_u64().and_then(|n| u32::try_from(n).ok());
        Ok(list
            .iter()
            .filter_map(|c| {
                Some(CpuThread { index: number(c, "cpu-index")?, thread: number(c, "thread-id")? })
            })
            .collect())
    }

    /// Asks the balloon driver for news this often; 0 never.
    pub async fn poll_guest_memory(&self, seconds: u32) -> Result<(), QmpError> {
        let args = json!({"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": seconds});
        self.execute("qom-set", Some(args), COMMAND_DEADLINE).await.map(drop)
    }

    /// What the balloon driver told last.
    pub async fn guest_memory(&self) -> Result<GuestMemory, QmpError> {
        let actual = self.execute("query-balloon", None, COMMAND_DEADLINE).await?;
        let args = json!({"path": "/machine/peripheral/balloon0", "property": "guest-stats"});
        let v = self.execute("qom-get", Some(args), COMMAND_DEADLINE).await?;
        // What is not known is -1 as a number without sign.
        let n = |key: &str| v["stats"][key].as_u64().filter(|n| *n != u64::MAX);
        Ok(GuestMemory {
            actual: actual["actual"].as_u64(),
            total: n("stat-total-memory"),
            free: n("stat-free-memory"),
            available: n("stat-available-memory"),
            caches: n("stat-disk-caches"),
            swap_in: n("stat-swap-in"),
            swap_out: n("stat-swap-out"),
            major_faults: n("stat-major-faults"),
            minor_faults: n("stat-minor-faults"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_failed_is_read() {
        let block = |qdev: &str, status: &str| json!({"device": "", "qdev": qdev, "io-status": status});
        let blocks = json!([
            block("/machine/peripheral/disk-root/virtio-backend", "nospace"),
            block("/machine/peripheral/disk-data", "failed"),
            block("/machine/peripheral/disk-fine", "ok"),
            block("/machine/unattached/device[3]", "failed"),
            {"device": "pflash0"},
        ]);
        let disk = |disk: &str, full| FailedDisk { disk: disk.into(), full };
        assert_eq!(failed(&blocks), [disk("data", false), disk("root", true)]);
        assert_eq!(failed(&json!("nonsense")), []);
    }
}
