//! `sheaf vm`: what is done to machines that run, and what they tell; as virtctl's commands of these names.

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::super::api::{CLAIMS, subresource};
use super::super::print::{put, say};
use super::super::{EXIT_CODES, Session};
use super::{MACHINE_INSTANCES, MACHINES};

/// Commands.
#[derive(Subcommand)]
pub(crate) enum More {
    /// Ask guests to reboot.
    #[command(name = "soft-reboot", after_help = format!("Example:\n  sheaf vm soft-reboot web\n\n{EXIT_CODES}"))]
    SoftReboot {
        /// Names of VMs.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Press the reset button of VMs.
    #[command(after_help = format!("Example:\n  sheaf vm reset web\n\n{EXIT_CODES}"))]
    Reset {
        /// Names of VMs.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Move VMs to another node while they run.
    #[command(after_help = format!("Example:\n  sheaf vm migrate web\n\n{EXIT_CODES}"))]
    Migrate {
        /// Names of VMs.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Plug a claim into a VM as a disk, now and for its next starts.
    #[command(name = "addvolume", after_help = format!("Example:\n  sheaf vm addvolume web --volume-name data --bus virtio\n\n{EXIT_CODES}"))]
    AddVolume(AddVolume),
    /// Take a disk out that was plugged in; its claim stays.
    #[command(name = "removevolume", after_help = format!("Example:\n  sheaf vm removevolume web --volume-name data\n\n{EXIT_CODES}"))]
    RemoveVolume {
        /// Name of the VM.
        name: String,
        /// Name of the volume, or of its claim.
        #[arg(long, value_name = "NAME")]
        volume_name: String,
        /// Only say whether it would work.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what a guest's agent tells of its operating system.
    #[command(name = "guestosinfo", after_help = format!("Example:\n  sheaf vm guestosinfo web\n\n{EXIT_CODES}"))]
    GuestOsInfo {
        /// Name of the VM.
        name: String,
    },
    /// Show who is logged in to a guest.
    #[command(name = "userlist", after_help = format!("Example:\n  sheaf vm userlist web\n\n{EXIT_CODES}"))]
    UserList {
        /// Name of the VM.
        name: String,
    },
    /// Show a guest's file systems.
    #[command(name = "fslist", after_help = format!("Example:\n  sheaf vm fslist web\n\n{EXIT_CODES}"))]
    FsList {
        /// Name of the VM.
        name: String,
    },
    /// Freeze a guest's file systems, for a copy of its disks.
    #[command(after_help = format!("Example:\n  sheaf vm freeze web --unfreeze-timeout 1m\n\n{EXIT_CODES}"))]
    Freeze {
        /// Name of the VM.
        name: String,
        /// Thaw by itself after this; 0 never.
        #[arg(long, value_name = "DURATION", default_value = "5m")]
        unfreeze_timeout: String,
    },
    /// Thaw a guest's file systems.
    #[command(after_help = format!("Example:\n  sheaf vm unfreeze web\n\n{EXIT_CODES}"))]
    Unfreeze {
        /// Name of the VM.
        name: String,
    },
    /// Show a VM with its instance type and preference applied.
    #[command(after_help = format!("Example:\n  sheaf vm expand web\n\n{EXIT_CODES}"))]
    Expand {
        /// Name of the VM.
        name: String,
    },
}

/// Options of `addvolume`.
#[derive(Args)]
pub(crate) struct AddVolume {
    /// Name of the VM.
    name: String,
    /// Name of the claim, which becomes the volume's.
    #[arg(long, value_name = "NAME")]
    volume_name: String,
    /// Bus of the disk.
    #[arg(long, value_enum, default_value_t = Bus::Scsi)]
    bus: Bus,
    /// Serial number that the guest sees.
    #[arg(long, default_value = "")]
    serial: String,
    /// Host page cache: none, writethrough or writeback.
    #[arg(long, default_value = "")]
    cache: String,
    /// Only say whether it would work.
    #[arg(long)]
    dry_run: bool,
}

/// Buses of disks that come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bus {
    Scsi,
    Virtio,
}

fn dry(dry_run: bool) -> Value {
    if dry_run { json!(["All"]) } else { json!([]) }
}

/// The body of addvolume.
fn addition(args: &AddVolume) -> Value {
    let bus = if args.bus == Bus::Virtio { "virtio" } else { "scsi" };
    let mut disk = json!({"name": args.volume_name, "disk": {"bus": bus}});
    for (key, value) in [("serial", &args.serial), ("cache", &args.cache)] {
        if !value.is_empty() {
            disk[key] = json!(value);
        }
    }
    let source = json!({"persistentVolumeClaim": {"claimName": args.volume_name, "hotpluggable": true}});
    json!({"name": args.volume_name, "disk": disk, "volumeSource": source, "dryRun": dry(args.dry_run)})
}

/// Runs one of them.
pub(crate) async fn run(session: &Session, command: &More) -> Result<()> {
    match command {
        More::SoftReboot { names } => all(session, names, MACHINE_INSTANCES, "softreboot", "reboots").await,
        More::Reset { names } => all(session, names, MACHINE_INSTANCES, "reset", "was reset").await,
        More::Migrate { names } => all(session, names, MACHINES, "migrate", "migrates").await,
        More::AddVolume(args) => {
            let (namespace, name) = session.name(&args.name);
            session.get(CLAIMS, namespace, &args.volume_name).await?;
            let path = subresource(MACHINES, namespace, name, "addvolume");
            session
                .put(&path, &addition(args))
                .await
                .with_context(|| format!("adding a volume to VM {namespace}/{name}"))?;
            say(&format!("volume {} is plugged into VM {namespace}/{name}", args.volume_name));
            Ok(())
        }
        More::RemoveVolume { name, volume_name, dry_run } => {
            let (namespace, name) = session.name(name);
            let path = subresource(MACHINES, namespace, name, "removevolume");
            let body = json!({"name": volume_name, "dryRun": dry(*dry_run)});
            session
                .put(&path, &body)
                .await
                .with_context(|| format!("removing a volume of VM {namespace}/{name}"))?;
            say(&format!("volume {volume_name} leaves VM {namespace}/{name}"));
            Ok(())
        }
        More::GuestOsInfo { name } => tell(session, name, MACHINE_INSTANCES, "guestosinfo").await,
        More::UserList { name } => tell(session, name, MACHINE_INSTANCES, "userlist").await,
        More::FsList { name } => tell(session, name, MACHINE_INSTANCES, "filesystemlist").await,
        More::Expand { name } => tell(session, name, MACHINES, "expand-spec").await,
        More::Freeze { name, unfreeze_timeout } => {
            let (namespace, name) = session.name(name);
            let path = subresource(MACHINE_INSTANCES, namespace, name, "freeze");
            session.put(&path, &json!({"unfreezeTimeout": unfreeze_timeout})).await?;
            say(&format!("the file systems of VM {namespace}/{name} are frozen"));
            Ok(())
        }
        More::Unfreeze { name } => {
            all(session, std::slice::from_ref(name), MACHINE_INSTANCES, "unfreeze", "is thawed").await
        }
    }
}

async fn all(session: &Session, names: &[String], plural: &str, sub: &str, done: &str) -> Result<()> {
    for name in names {
        let (namespace, name) = session.name(name);
        let path = subresource(plural, namespace, name, sub);
        session.put(&path, &json!({})).await.with_context(|| format!("{sub} of VM {namespace}/{name}"))?;
        say(&format!("VM {namespace}/{name} {done}"));
    }
    Ok(())
}

async fn tell(session: &Session, name: &str, plural: &str, sub: &str) -> Result<()> {
    let (namespace, name) = session.name(name);
    let told = session.get_path(&subresource(plural, namespace, name, sub)).await?;
    put(&format!("{}\n", serde_json::to_string_pretty(&told)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_added_as_virtctl_does_it() {
        let args = AddVolume {
            name: "web".into(),
            volume_name: "data".into(),
            bus: Bus::Scsi,
            serial: "s".into(),
            cache: String::new(),
            dry_run: true,
        };
        assert_eq!(
            addition(&args),
            json!({"name": "data", "disk": {"name": "data", "disk": {"bus": "scsi"}, "serial": "s"}, "dryRun": ["All"],
                "volumeSource": {"persistentVolumeClaim": {"claimName": "data", "hotpluggable": true}}})
        );
    }
}
