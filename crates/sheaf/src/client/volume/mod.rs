//! `sheaf volume`: replicated volumes, of the cluster by its API ([`cluster`]), or of one machine by the control socket of its
//! storage process ([`local`]), which works without any API.

mod adopt;
mod cluster;
mod local;
mod view;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use sheaf_meta::quantity::Quantity;

use super::Connection;
use super::print::Format;
use super::progress::duration;

/// Where the process listens on an installed machine.
const CONTROL: &str = "/var/lib/sheaf/storage/state/control.sock";

/// Options of `sheaf volume`.
#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct VolumeArgs {
    /// Ask the storage process of this machine by its control socket, and not the cluster. `detach` and looking at a directory
    /// are of one machine always.
    #[arg(long, global = true, value_name = "PATH", env = "SHEAF_STORAGE_CONTROL")]
    control: Option<PathBuf>,
    /// How long to wait for the cluster to do it, as 90s or 5m; it goes on afterwards. Two minutes if absent, a day for `check`
    /// and `rebuild`.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the cluster's volumes; with --control, those attached here and the replicas on this machine's disks.
    #[command(visible_alias = "ls")]
    List {
        /// Format of the output; with --control, only json.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Show all about one volume, or what is in a replica directory and whose belief it is.
    Show {
        /// A volume's name, its claim's (with --control its id), or the path of a replica directory.
        what: String,
        /// Format of the output: json and yaml hold the volume, its engine, its replicas and its snapshots. With --control, and of
        /// a directory, it is JSON always.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Make a volume in the cluster; with --control, one with a replica on this machine, and attach it.
    Create {
        /// Its name.
        name: String,
        /// Its size, as 10Gi or 512Mi.
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        size: u64,
        /// How many replicas it has; the cluster's setting if absent.
        #[arg(long, value_name = "N")]
        replicas: Option<u8>,
        /// Serve it by NBD on this unix socket.
        #[arg(long, value_name = "PATH", requires = "control")]
        nbd: Option<PathBuf>,
        /// Serve it by vhost-user-blk on this unix socket.
        #[arg(long, value_name = "PATH", requires = "control")]
        vhost: Option<PathBuf>,
    },
    /// Let go of a volume; everything acknowledged is durable then.
    Detach {
        /// Its name or id.
        volume: String,
    },
    /// Make a volume larger, in use or not.
    Expand {
        /// Its name or id.
        volume: String,
        /// Its size from now on.
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        size: u64,
    },
    /// Keep the content of this moment under a name, or give such a one up.
    Snapshot {
        /// The volume's name or id.
        volume: String,
        /// The snapshot's name.
        name: String,
        /// Give it up.
        #[arg(long)]
        delete: bool,
    },
    /// Make the content what it was at a snapshot. No guest may be connected.
    Revert {
        /// The volume's name or id.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Compare what the snapshots of a volume hold in all its replicas, and repair what can be told; a difference is exit code 1,
    /// also if it was repaired. With --control, the whole content of its replicas, over the control sockets of their storage
    /// processes (detach it first).
    Check {
        /// The volume's name or id.
        volume: String,
        /// Control sockets of the other storage processes.
        #[arg(long = "with", value_name = "PATH", requires = "control")]
        with: Vec<PathBuf>,
    },
    /// Give up a replica, so that another is made and filled at once; with --control, add one.
    Rebuild {
        /// The volume's name or id.
        volume: String,
        /// The replica's name; the one that has failed if absent. With --control, its number.
        #[arg(long, value_name = "REPLICA")]
        replica: Option<String>,
        /// Where it is; this machine if absent.
        #[arg(long, value_name = "ADDRESS:PORT", requires = "control")]
        address: Option<String>,
    },
    /// Take over a replica directory of Longhorn's, in place, as a volume of the cluster; with --control, as one with one replica
    /// that no cluster knows. To be run on the machine that has the directory.
    #[command(
        after_help = "The volume must be detached in Longhorn. It can be given back as long as nothing but Longhorn's own features was used: \
detach it here, stop the storage process, delete the files whose names begin with `sheaf-`."
    )]
    Adopt {
        /// The directory, in `replicas/` of one of the storage process's disks.
        path: PathBuf,
        /// Take it although it was not closed properly.
        #[arg(long)]
        dirty: bool,
        /// Name of the volume; that of the directory, without its last eight digits, if absent.
        #[arg(long, value_name = "NAME", conflicts_with = "control")]
        name: Option<String>,
        /// How many replicas it is to have; the cluster's setting if absent.
        #[arg(long, value_name = "N", conflicts_with = "control")]
        replicas: Option<u8>,
        /// Make a claim of this name for it, too.
        #[arg(long, value_name = "NAME", conflicts_with = "control")]
        claim: Option<String>,
    },
}

/// A size in bytes, as Kubernetes writes them.
fn bytes(text: &str) -> Result<u64, String> {
    let quantity = Quantity::parse(text).map_err(|error| error.to_string())?;
    quantity
        .bytes()
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text} is not a number of bytes above 0"))
}

/// Does what was asked.
pub(crate) fn run(args: VolumeArgs) -> Result<()> {
    let of_a_machine = match &args.command {
        Command::Detach { .. } => true,
        Command::Show { what, .. } => what.starts_with('/') || what.starts_with('.'),
        _ => false,
    };
    let timeout = args.timeout;
    match &args.control {
        Some(control) => local::run(control, args.command),
        None if of_a_machine => local::run(Path::new(CONTROL), args.command),
        None => {
            super::run(&args.connection, async |session| cluster::run(session, args.command, timeout).await)
        }
    }
}
