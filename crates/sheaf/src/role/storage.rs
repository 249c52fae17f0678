//! `sheaf storage`: the block storage of this machine. Guests go on while it is away: their requests wait.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use sheaf_storage::{Options, Tls};

/// Options of `sheaf storage`.
#[derive(Args)]
#[command(after_help = concat!("A node starts it by itself; by hand it is for a machine without a cluster.

Example, one machine:
  sheaf storage --disk /var/lib/sheaf/storage &
  sheaf volume create data --size 10Gi --nbd /run/data.sock

Exit codes: 0 ended by a signal; 1 failed; 2 wrong usage."))]
pub(crate) struct StorageArgs {
    /// A disk's root; replicas lie in `replicas/` below it, as Longhorn's do. May be given more than once.
    #[arg(long = "disk", value_name = "DIR", default_value = "/var/lib/sheaf/storage")]
    disks: Vec<PathBuf>,
    /// Where the process keeps what it must remember, and its control socket.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sheaf/storage/state")]
    state_dir: PathBuf,
    /// The control socket; `control.sock` in the state directory if absent.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Where the storage processes of other nodes connect; none of them can if absent.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// This node's certificate, PEM. Peers must show one of the same authority.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"], conflicts_with = "trusted_network")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A certificate for connections to peers, PEM; the same as for theirs to here if absent.
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_client_key"])]
    tls_client_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,
    /// Organization that the certificates of peers must name.
    #[arg(long, value_name = "NAME", requires = "tls_cert")]
    tls_peer_group: Option<String>,
    /// The authority of all nodes' certificates, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Speak without TLS: the network between the nodes is trusted.
    #[arg(long)]
    trusted_network: bool,
    /// Where the votes are kept that an even number of replicas needs; all nodes that attach the volume must see it.
    #[arg(long, value_name = "DIR")]
    arbiter: Option<PathBuf>,
    /// Socket of the agent, which keeps these votes in the API.
    #[arg(long, value_name = "PATH", conflicts_with = "arbiter")]
    votes: Option<PathBuf>,
    /// In a session of its own: it outlives whoever started it.
    #[arg(long, hide = true)]
    detached: bool,
    /// Do not use io_uring.
    #[arg(long)]
    no_io_uring: bool,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: StorageArgs) -> Result<()> {
    super::start_log();
    if args.detached {
        rustix::process::setsid().context("beginning a session")?;
    }
    let tls = match (args.tls_cert, args.tls_key, args.tls_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            let client = args.tls_client_cert.zip(args.tls_client_key);
            let server = (cert, key);
            let client = client.unwrap_or_else(|| server.clone());
            Some(Tls { server, client, ca, group: args.tls_peer_group })
        }
        _ => None,
    };
    let control = args.control.unwrap_or_else(|| args.state_dir.join("control.sock"));
    let options = Options {
        disks: args.disks,
        state: args.state_dir,
        control,
        listen: args.listen,
        tls,
        trusted_network: args.trusted_network,
        arbiter: args.arbiter,
        votes: args.votes,
        threads: args.no_io_uring,
    };
    // Only for the signals, and to keep small: the data path has a thread of its own.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    sheaf_storage::run(&options, || {
        let small = runtime.spawn(crate::memory::keep_small());
        if let Err(error) = runtime.block_on(super::told_to_stop()) {
            tracing::error!(%error, "signals cannot be heard; stopping");
        }
        small.abort();
    })?;
    Ok(())
}
