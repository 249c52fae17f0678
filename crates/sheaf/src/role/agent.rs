//! `sheaf agent`: joins a cluster, once, and then runs this machine as a node of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use sheaf_agent::agent::{Agent, AgentConfig};
use sheaf_agent::identity::Identity;
use sheaf_agent::join::{self, JoinError, NodeNames, Token};
use sheaf_agent::node::local_address;
use sheaf_runtime::TaskGroup;
use tracing::{info, warn};

/// Options of `sheaf agent`.
#[derive(Args)]
pub(crate) struct AgentArgs {
    /// The API of the cluster.
    #[arg(long, value_name = "https://HOST:PORT")]
    server: String,
    /// What `sheaf token` printed on the server; needed until this machine has joined.
    #[arg(long, value_name = "TOKEN", env = "SHEAF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where everything of this machine is kept: certificates, images, volumes.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sheaf", env = "SHEAF_DATA_DIR")]
    data_dir: PathBuf,
    /// Name of this machine's Node; its host name if absent.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Address under which the server reaches this machine; found by its routes if absent.
    #[arg(long, value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// Port of this machine's stream endpoints.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    agent_port: u16,
    /// Port on which this machine's storage process hears those of other nodes; 0: no replicated volumes here.
    #[arg(long, value_name = "PORT", default_value_t = 8500)]
    storage_port: u16,
}

/// Runs until SIGTERM or SIGINT. Guests go on.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let server: http::Uri =
        args.server.parse().ok().filter(is_server).ok_or(JoinError::Server(args.server.clone()))?;
    let node = args.node_name.clone().unwrap_or_else(super::host_name);
    let peer = server.host().and_then(|h| h.trim_matches(['[', ']']).parse().ok());
    let address = args.node_ip.unwrap_or_else(|| local_address(peer));
    let names = NodeNames { node: node.clone(), sans: vec![node.clone(), address.to_string()] };
    let dir = args.data_dir.join("agent");
    let pki = dir.join("pki");

    let identity = match Identity::load(&pki).context("reading this node's certificates")? {
        Some(identity) => identity,
        None => {
            let Some(token) = &args.token else {
                bail!(
                    "this machine has not joined yet: give --token, as printed by `sheaf token` on the server"
                );
            };
            let token: Token = token.parse()?;
            joined(&server, &token, &names, &pki).await?
        }
    };
    let client = join::client(&server, &identity)?;
    let group = TaskGroup::new();
    group.spawn(join::keep_renewed(client.clone(), identity.clone(), names));
    let storage = super::storage_config(&args.data_dir, address, args.storage_port)?;
    let config =
        AgentConfig { node_name: node, address, port: args.agent_port, dir, control_plane: false, storage };
    Agent::start(&config, &client, &identity, &group).await.context("starting the agent")?;
    info!(%server, node = config.node_name, "ready");
    super::told_to_stop().await?;
    info!("stopping; guests go on");
    group.shutdown().await;
    Ok(())
}

/// Tries until the server answers; what a wait cannot mend ends it at once.
async fn joined(
    server: &http::Uri,
    token: &Token,
    names: &NodeNames,
    pki: &std::path::Path,
) -> Result<std::sync::Arc<Identity>> {
    loop {
        match join::join(server, token, names, pki).await {
            Ok(identity) => return Ok(identity),
            Err(error @ (JoinError::Unreachable { .. } | JoinError::Unsigned { .. })) => {
                warn!("{:#}; tried again in 2 s", anyhow::Error::from(error));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_server(uri: &http::Uri) -> bool {
    uri.scheme_str() == Some("https") && uri.host().is_some()
}
