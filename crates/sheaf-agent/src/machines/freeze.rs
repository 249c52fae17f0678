//! Freezing a guest's file systems, for as long as somebody outside copies its disks, and never for longer than was said.
//!
//! A guest that stays frozen hangs. So the end of a freeze is written down before it begins, and whoever runs then thaws: this
//! agent by a timer, or the next one when it adopts the machine.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use sheaf_qemu::process::Record;
use sheaf_qemu::qga::QgaError;
use sheaf_runtime::{ObjectKey, TaskGroup};
use tracing::{info, warn};

use super::monitor::Machine;
use super::table::Machines;

/// Flushing what is in memory may take a guest a while.
const FREEZE_DEADLINE: Duration = Duration::from_secs(25);
/// A thaw that failed is tried again after this, for a while.
const THAW_AGAIN: Duration = Duration::from_secs(5);
const THAW_TRIES: u32 = 24;

/// Why a guest is not frozen, or not thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The guest has no agent that answers.
    #[error("VMI does not have guest agent connected: freezing needs qemu-guest-agent in the guest")]
    NoAgent,
    /// The agent does not do it.
    #[error(transparent)]
    Agent(#[from] QgaError),
    /// The end of the freeze could not be written down.
    #[error("cannot write down when the freeze ends")]
    Record(#[source] std::io::Error),
}

/// Freezes the guest of a machine; thaws it after `timeout` at the latest, if one is given.
pub async fn freeze(
    machines: &Machines,
    machine: &Machine,
    key: &ObjectKey,
    timeout: Option<Duration>,
    group: &TaskGroup,
) -> Result<(), FreezeError> {
    if !machine.seen().guest.connected {
        return Err(FreezeError::NoAgent);
    }
    let until = timeout
        .map(|t| Timestamp::now().as_second() + i64::try_from(t.as_secs().max(1)).unwrap_or(i64::MAX / 2));
    note(machines, machine, key, Some(until.unwrap_or(i64::MAX))).await?;
    let status = machine.guest_agent().call("guest-fsfreeze-status", None, FREEZE_DEADLINE).await?;
    if status.as_str() != Some("frozen") {
        let frozen = machine.guest_agent().call("guest-fsfreeze-freeze", None, FREEZE_DEADLINE).await;
        if let Err(error) = frozen {
            // Half of it may be frozen.
            let _ = thaw(machines, machine, key).await;
            return Err(error.into());
        }
    }
    info!(machine = %key, ?timeout, "the guest's file systems are frozen");
    machine.set_frozen(true);
    if let Some(until) = until {
        thaw_at(machines.clone(), machine.clone(), key.clone(), until, group);
    }
    Ok(())
}

/// Thaws the guest of a machine. Nothing happens if it is not frozen.
pub async fn thaw(machines: &Machines, machine: &Machine, key: &ObjectKey) -> Result<(), FreezeError> {
    let status = machine.guest_agent().call("guest-fsfreeze-status", None, FREEZE_DEADLINE).await?;
    if status.as_str() == Some("frozen") {
        machine.guest_agent().call("guest-fsfreeze-thaw", None, FREEZE_DEADLINE).await?;
        info!(machine = %key, "the guest's file systems are thawed");
    }
    machine.set_frozen(false);
    note(machines, machine, key, None).await
}

/// Thaws when the time is over, unless somebody has before or has asked for more.
pub(super) fn thaw_at(machines: Machines, machine: Machine, key: ObjectKey, until: i64, group: &TaskGroup) {
    group.spawn(async move {
        let left = until - Timestamp::now().as_second();
        tokio::time::sleep(Duration::from_secs(u64::try_from(left.max(0)).unwrap_or(0))).await;
        for _ in 0..THAW_TRIES {
            let same = machines.entry(&key).is_some_and(|e| e.ledger.frozen_until == Some(until));
            if !same || machine.ended() {
                return;
            }
            match thaw(&machines, &machine, &key).await {
                Ok(()) => return warn!(machine = %key, "a freeze lasted to its end: thawed"),
                Err(error) => warn!(machine = %key, %error, "cannot thaw the guest; tried again"),
            }
            tokio::time::sleep(THAW_AGAIN).await;
        }
    });
}

async fn note(
    machines: &Machines,
    machine: &Machine,
    key: &ObjectKey,
    until: Option<i64>,
) -> Result<(), FreezeError> {
    let Some(mut entry) = machines.entry(key) else { return Ok(()) };
    if entry.ledger.frozen_until == until {
        return Ok(());
    }
    entry.ledger.frozen_until = until;
    let (dir, extra) = (machine.spec().dir.clone(), json!(entry.ledger));
    let written = tokio::task::spawn_blocking(move || -> Result<(), std::io::Error> {
        let record = Record::read(&dir).map_err(std::io::Error::other)?;
        let mut record = record.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        record.extra = extra;
        record.write().map_err(std::io::Error::other)
    });
    written.await.map_err(std::io::Error::other).and_then(|r| r).map_err(FreezeError::Record)?;
    machines.update_ledger(&entry.ledger);
    Ok(())
}
