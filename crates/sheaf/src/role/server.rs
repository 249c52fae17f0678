//! `sheaf server`: API server, controllers, and this machine's agent. Owns their order of start and end.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use kube::Client;
use sheaf_agent::agent::{Agent, AgentConfig};
use sheaf_agent::identity::{Identity, KeyedCertificate};
use sheaf_agent::node::local_address;
use sheaf_apiserver::audit::{AuditOptions, LogOptions};
use sheaf_apiserver::pki::{Ca, LEAF_DAYS};
use sheaf_apiserver::{ApiServer, Config, UserInfo};
use sheaf_runtime::TaskGroup;
use sheaf_store::sqlite::{Options, SqliteStore};
use tracing::info;

/// Options of `sheaf server`.
#[derive(Args)]
pub(crate) struct ServerArgs {
    /// Where everything of this machine is kept: objects, certificates, images, volumes.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sheaf", env = "SHEAF_DATA_DIR")]
    data_dir: PathBuf,
    /// Address and port of the API.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// A name or address under which clients reach the API, for its certificate. May be given several times.
    #[arg(long = "tls-san", value_name = "NAME")]
    sans: Vec<String>,
    /// Name of this machine's Node; its host name if absent.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Address under which other nodes reach this machine; found by its routes if absent.
    #[arg(long, value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// Port of this machine's stream endpoints.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    agent_port: u16,
    /// Port on which this machine's storage process hears those of other nodes; 0: no replicated volumes here.
    #[arg(long, value_name = "PORT", default_value_t = 8500)]
    storage_port: u16,
    /// Serve the API and run the controllers only: no guests on this machine.
    #[arg(long)]
    no_agent: bool,
    #[command(flatten)]
    audit: AuditArgs,
}

/// How requests are written down. All of it is off unless a file for the log is given.
#[derive(Args)]
struct AuditArgs {
    /// Write a line for each request to this file (`-`: standard output), as audit.k8s.io/v1 Events.
    #[arg(long, value_name = "FILE", help_heading = "Audit log")]
    audit_log_path: Option<PathBuf>,
    /// Which requests are written down, and how much of them: a Policy of audit.k8s.io/v1. Without it, the metadata of all.
    #[arg(long, value_name = "FILE", requires = "audit_log_path", help_heading = "Audit log")]
    audit_policy_file: Option<PathBuf>,
    /// From this many mebibytes on, the file is put aside and a new one begun.
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Audit log")]
    audit_log_maxsize: u64,
    /// Remove files that were put aside after this many days; 0 keeps them.
    #[arg(long, value_name = "DAYS", default_value_t = 0, help_heading = "Audit log")]
    audit_log_maxage: u32,
    /// Keep at most this many files that were put aside; 0 keeps all.
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = "Audit log")]
    audit_log_maxbackup: usize,
}

impl AuditArgs {
    fn options(&self) -> Option<AuditOptions> {
        let path = self.audit_log_path.clone()?;
        let log = LogOptions {
            path,
            max_bytes: self.audit_log_maxsize.saturating_mul(1024 * 1024),
            max_age_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
        };
        Some(AuditOptions { policy_file: self.audit_policy_file.clone(), log })
    }
}

/// Runs until SIGTERM or SIGINT. Guests go on.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let data = &args.data_dir;
    std::fs::create_dir_all(data).with_context(|| format!("making the data directory {}", data.display()))?;
    let path = data.join("state.db");
    let store = SqliteStore::open(&path, &Options::default())
        .with_context(|| format!("opening the store {}", path.display()))?;
    let address = args.node_ip.unwrap_or_else(|| local_address(None));
    let mut extra_sans = args.sans.clone();
    extra_sans.push(address.to_string());
    let config = Config { data_dir: data.clone(), listen: args.listen, extra_sans, server_url: None };
    let api = ApiServer::start_with(config, Arc::new(store), sheaf_api::kinds(), args.audit.options())
        .await
        .context("starting the API server")?;
    api.serve_pages(Arc::new(sheaf_dashboard::answer));

    let group = TaskGroup::new();
    let host = args.node_name.clone().unwrap_or_else(super::host_name);
    let user = || UserInfo::new("system:sheaf-controllers", []);
    let (controllers, identities) =
        (client(&api, user()), Client::new(api.in_process(user()).identities(), "default"));
    sheaf_controllers::spawn(&controllers, &identities, &group, &host, api.ca().clone());
    if !args.no_agent {
        let user = format!("system:node:{host}");
        let agent_client = client(&api, UserInfo::new(&user, ["system:nodes"]));
        let identity = own_identity(api.ca(), &host, address)?;
        let config = AgentConfig {
            node_name: host,
            address,
            port: args.agent_port,
            dir: data.join("agent"),
            control_plane: true,
            storage: super::storage_config(data, address, args.storage_port)?,
        };
        Agent::start(&config, &agent_client, &identity, &group)
            .await
            .context("starting this machine's agent")?;
    }
    info!(url = api.url(), kubeconfig = %data.join("admin.kubeconfig").display(), dashboard = %format!("{}/dashboard/", api.url()), "ready");
    super::told_to_stop().await?;
    info!("stopping; guests go on");
    group.shutdown().await;
    api.shutdown().await;
    Ok(())
}

fn client(api: &ApiServer, user: UserInfo) -> Client {
    Client::new(api.in_process(user), "default")
}

/// The server's own node needs no token: it has the CA. Its certificates live as long as the process, and are renewed
/// by its next start, which the life of a leaf leaves time for.
fn own_identity(ca: &Ca, node: &str, address: IpAddr) -> Result<Arc<Identity>> {
    let keyed = |pair: sheaf_apiserver::pki::KeyedCert| KeyedCertificate {
        certificate_pem: pair.cert_pem,
        key_pem: pair.key_pem,
    };
    let user = format!("system:node:{node}");
    let client =
        ca.issue_client(&user, "system:nodes", LEAF_DAYS).context("issuing the node's certificate")?;
    let names = [node.to_owned(), address.to_string(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let serving =
        ca.issue_server(&user, &names, LEAF_DAYS).context("issuing the node's serving certificate")?;
    Ok(Identity::new(ca.cert_pem().to_owned(), &keyed(client), &keyed(serving), None)?)
}
