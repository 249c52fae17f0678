//! Handing open files and sockets to a QEMU that runs, as it can open none of ours by name.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::{COMMAND_DEADLINE, Qmp, QmpError};

/// Drawing the screen and writing it takes a moment under emulation.
const DRAW_DEADLINE: Duration = Duration::from_secs(20);

impl Qmp {
    /// Hands over a file; gives the number of the set by which QEMU opens it (`/dev/fdset/N`). `note` is what
    /// [`Qmp::take_back`] knows it by.
    pub(super) async fn lend(&self, file: OwnedFd, note: &str) -> Result<u32, QmpError> {
        let args = json!({"opaque": note});
        let v = self.send("add-fd", Some(args), Some(file), COMMAND_DEADLINE).await?;
        let set = v["fdset-id"].as_u64().and_then(|n| u32::try_from(n).ok());
        set.ok_or_else(|| QmpError::Shape { command: "add-fd".into() })
    }

    /// Closes the files that were handed over with this note, and those that the machine was started with. Whoever still
    /// uses one keeps it.
    pub(super) async fn take_back(&self, note: &str) -> Result<(), QmpError> {
        let v = self.execute("query-fdsets", None, COMMAND_DEADLINE).await?;
        for set in v.as_array().into_iter().flatten() {
            let noted = set["fds"].as_array().into_iter().flatten().any(|fd| fd["opaque"] == note);
            if noted {
                let args = json!({"fdset-id": set["fdset-id"]});
                match self.execute("remove-fd", Some(args), COMMAND_DEADLINE).await {
                    Err(error) if error.is_not_found() => {}
                    other => drop(other?),
                }
            }
        }
        Ok(())
    }

    /// Hands over a descriptor that the next command names.
    pub(super) async fn name_fd(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        self.send("getfd", Some(json!({"fdname": name})), Some(fd), COMMAND_DEADLINE).await.map(drop)
    }

    /// Draws the screen as a PNG into a file that is open for writing.
    pub async fn screendump(&self, file: OwnedFd) -> Result<(), QmpError> {
        let set = self.lend(file, "screen").await?;
        let args = json!({"filename": format!("/dev/fdset/{set}"), "format": "png"});
        let drawn = self.execute("screendump", Some(args), DRAW_DEADLINE).await;
        let back = self.execute("remove-fd", Some(json!({"fdset-id": set})), COMMAND_DEADLINE).await;
        drawn.and(back).map(drop)
    }

    /// A viewer of the screen, who is at the other end of this socket.
    pub async fn show_screen(&self, socket: OwnedFd) -> Result<(), QmpError> {
        self.name_fd("viewer", socket).await?;
        let args = json!({"protocol": "vnc", "fdname": "viewer", "skipauth": true});
        self.execute("add_client", Some(args), COMMAND_DEADLINE).await.map(drop)
    }

    /// Begins to write all that the stopped guest is, apart from its disks, into a file. [`Qmp::save_state`] says how far it is.
    pub async fn begin_save(&self, file: OwnedFd) -> Result<(), QmpError> {
        // Nobody else uses the time: the guest stands still.
        let fast = json!({"max-bandwidth": 0});
        self.execute("migrate-set-parameters", Some(fast), COMMAND_DEADLINE).await?;
        self.name_fd("save", file).await?;
        self.execute("migrate", Some(json!({"uri": "fd:save"})), COMMAND_DEADLINE).await.map(drop)
    }

    /// How far saving is: `None` while it is under way, and how it ended.
    pub async fn save_state(&self) -> Result<Option<Result<(), String>>, QmpError> {
        let v = self.execute("query-migrate", None, COMMAND_DEADLINE).await?;
        Ok(match v["status"].as_str() {
            Some("completed") => Some(Ok(())),
            Some("failed" | "cancelled") => {
                Some(Err(v["error-desc"].as_str().unwrap_or("it failed").to_owned()))
            }
            None | Some("none") => Some(Err("nothing is being saved".into())),
            Some(_) => None,
        })
    }

    /// Whether QEMU is still filling its memory from what was saved.
    pub async fn filling(&self) -> Result<bool, QmpError> {
        let v = self.execute("query-status", None, COMMAND_DEADLINE).await?;
        Ok(v.get("status").and_then(Value::as_str) == Some("inmigrate"))
    }
}
