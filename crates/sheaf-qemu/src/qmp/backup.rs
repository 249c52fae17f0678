//! Copies of disks as they are at one moment, while the guest goes on: QEMU's backup jobs, begun together in one
//! transaction.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{COMMAND_DEADLINE, Qmp, QmpError};
use crate::args::node_name;
use crate::chain::ChainError;

/// Beginning flushes what is under way.
const BEGIN_DEADLINE: Duration = Duration::from_secs(60);

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Name of the disk.
    pub disk: String,
    /// A file of the disk's format that is there already, empty.
    pub target: PathBuf,
    /// QEMU's word for the format: `raw`, or `qcow2` with the same file below it as the disk has.
    pub format: &'static str,
}

/// How far the copies are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copies {
    /// Under way.
    Running,
    /// All are complete.
    Done,
    /// One has failed; QEMU's words.
    Failed(String),
}

fn job(disk: &str) -> String {
    format!("snap-{}", node_name(disk))
}

fn target_node(disk: &str) -> String {
    // Below QEMU's limit, as the node's own name is.
    let node = node_name(disk);
    format!("s{}", node.strip_prefix("b-").map_or(node.as_str(), |n| n)).chars().take(31).collect()
}

impl Qmp {
    /// Begins copies of all these disks at one moment. What an earlier attempt left is cleared away first.
    pub async fn begin_backups(&self, backups: &[Backup]) -> Result<(), QmpError> {
        self.end_backups(backups).await?;
        let mut actions = Vec::new();
        for backup in backups {
            let (name, format) = (target_node(&backup.disk), backup.format);
            let target = std::fs::OpenOptions::new().read(true).write(true).open(&backup.target);
            let target = target.map_err(|source| ChainError::Io { path: backup.target.clone(), source })?;
            let set = self.lend(target.into(), &name).await?;
            let mut node = json!({
                "driver": format, "node-name": name, "discard": "unmap", "detect-zeroes": "unmap",
                "file": {"driver": "file", "filename": format!("/dev/fdset/{set}"), "discard": "unmap"},
            });
            if format == "qcow2" {
                // Only the top layer is copied; what is below is not needed for that.
                node["backing"] = Value::Null;
            }
            self.execute("blockdev-add", Some(node), BEGIN_DEADLINE).await?;
            let sync = if format == "qcow2" { "top" } else { "full" };
            actions.push(json!({"type": "blockdev-backup", "data": {
                "job-id": job(&backup.disk), "device": node_name(&backup.disk), "target": name, "sync": sync,
                "auto-dismiss": false,
            }}));
        }
        self.execute("transaction", Some(json!({"actions": actions})), BEGIN_DEADLINE).await.map(drop)
    }

    /// How far they are.
    pub async fn backups(&self, backups: &[Backup]) -> Result<Copies, QmpError> {
        let v = self.execute("query-jobs", None, COMMAND_DEADLINE).await?;
        let jobs = v.as_array().ok_or_else(|| QmpError::Shape { command: "query-jobs".into() })?;
        let mut running = false;
        for backup in backups {
            let found = jobs.iter().find(|j| j["id"] == job(&backup.disk).as_str());
            let Some(found) = found else {
                return Ok(Copies::Failed(format!("the copy of disk {} is not there any more", backup.disk)));
            };
            if let Some(error) = found["error"].as_str() {
                return Ok(Copies::Failed(format!("disk {}: {error}", backup.disk)));
            }
            running |= found["status"] != "concluded";
        }
        Ok(if running { Copies::Running } else { Copies::Done })
    }

    /// Ends the copies, complete or not, and closes their files.
    pub async fn end_backups(&self, backups: &[Backup]) -> Result<(), QmpError> {
        let v = self.execute("query-jobs", None, COMMAND_DEADLINE).await?;
        for backup in backups {
            let id = json!({"id": job(&backup.disk)});
            let found = v.as_array().into_iter().flatten().find(|j| j["id"] == id["id"]);
            if let Some(found) = found {
                if found["status"] != "concluded" {
                    let _ = self.execute("job-cancel", Some(id.clone()), COMMAND_DEADLINE).await;
                }
                for _ in 0..100 {
                    if self.execute("job-dismiss", Some(id.clone()), COMMAND_DEADLINE).await.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            let node = json!({"node-name": target_node(&backup.disk)});
            match self.execute("blockdev-del", Some(node), COMMAND_DEADLINE).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
            self.take_back(&target_node(&backup.disk)).await?;
        }
        Ok(())
    }
}
