//! What the guest agent answers when a user asks: operating system, users, file systems.

use http::StatusCode;
use serde_json::{Value, json};
use sheaf_qemu::qga::{FileSystem, QgaError, User};

use super::{Answer, fail};
use crate::http::answer_json;
use crate::machines::monitor::Machine;

const VERSION: &str = "subresources.kubevirt.io/v1";

fn connected(machine: &Machine) -> Result<(), Box<sheaf_meta::status::Status>> {
    if machine.seen().guest.connected {
        return Ok(());
    }
    let message = "VMI does not have guest agent connected: install and start qemu-guest-agent in the guest";
    fail(500, "InternalError", message)
}

fn done<T>(result: Result<T, QgaError>) -> Result<T, Box<sheaf_meta::status::Status>> {
    result.or_else(|error| fail(500, "InternalError", error.to_string()))
}

fn user_json(user: &User) -> Value {
    json!({"userName": user.user, "domain": user.domain, "loginTime": user.login_time})
}

fn file_system_json(fs: &FileSystem) -> Value {
    let disks: Vec<Value> =
        fs.disk.iter().map(|d| json!({"serial": d.serial, "busType": d.bus_type})).collect();
    json!({
        "diskName": fs.name, "mountPoint": fs.mountpoint, "fileSystemType": fs.kind,
        "usedBytes": fs.used_bytes.unwrap_or(0), "totalBytes": fs.total_bytes.unwrap_or(0), "disk": disks,
    })
}

/// `guestosinfo`. What one question yields nothing for is left out.
pub(super) async fn os_info(machine: &Machine) -> Answer {
    connected(machine)?;
    let agent = machine.guest_agent();
    let info = done(agent.info().await)?;
    let commands: Vec<Value> =
        info.supported_commands.iter().map(|c| json!({"name": c.name, "enabled": c.enabled})).collect();
    let mut out = json!({
        "apiVersion": VERSION, "kind": "VirtualMachineInstanceGuestAgentInfo",
        "guestAgentVersion": info.version, "supportedCommands": commands,
    });
    if let Ok(name) = agent.host_name().await {
        out["hostname"] = json!(name);
    }
    if let Ok(os) = agent.os_info().await {
        out["os"] = json!({
            "id": os.id, "name": os.name, "prettyName": os.pretty_name, "version": os.version,
            "versionId": os.version_id, "kernelRelease": os.kernel_release, "kernelVersion": os.kernel_version,
            "machine": os.machine,
        });
    }
    if let Ok(zone) = agent.timezone().await {
        out["timezone"] = json!(format!("{}, {}", zone.zone.unwrap_or_default(), zone.offset));
    }
    if let Ok(users) = agent.users().await {
        out["userList"] = users.iter().map(user_json).collect();
    }
    if let Ok(all) = agent.file_systems().await {
        out["fsInfo"] = json!({"disks": all.iter().map(file_system_json).collect::<Vec<_>>()});
    }
    Ok(answer_json(StatusCode::OK, &out))
}

/// `userlist`.
pub(super) async fn users(machine: &Machine) -> Answer {
    connected(machine)?;
    let users = done(machine.guest_agent().users().await)?;
    let items: Vec<Value> = users.iter().map(user_json).collect();
    let body = json!({
        "apiVersion": VERSION, "kind": "VirtualMachineInstanceGuestOSUserList", "metadata": {}, "items": items,
    });
    Ok(answer_json(StatusCode::OK, &body))
}

/// `filesystemlist`.
pub(super) async fn file_systems(machine: &Machine) -> Answer {
    connected(machine)?;
    let all = done(machine.guest_agent().file_systems().await)?;
    let items: Vec<Value> = all.iter().map(file_system_json).collect();
    let body = json!({
        "apiVersion": VERSION, "kind": "VirtualMachineInstanceFileSystemList", "metadata": {}, "items": items,
    });
    Ok(answer_json(StatusCode::OK, &body))
}
