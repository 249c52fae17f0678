//! The agent as a whole: starts the node's loops and joins their seams. Owns nothing but their handles.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use sheaf_runtime::{EventRecorder, Informer, Selection, TaskGroup};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::http::{self, Routes};
use crate::identity::{Identity, IdentityError};
use crate::images::Images;
use crate::links::{Links, LinksConfig, subnet_of};
use crate::machines::{self, MachinesConfig};
use crate::node::{self, NodeConfig};
use crate::parts::Network;
use crate::storage::{Given, Replicated, StorageConfig};
use crate::streams::Streams;
use crate::volumes::{Caches, Volumes, users_of};

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Address under which the API server reaches this node.
    pub address: IpAddr,
    /// Port of the stream endpoints; 0 takes any.
    pub port: u16,
    /// `<data>/agent`; made if it does not exist.
    pub dir: PathBuf,
    /// Whether this process is also a server.
    pub control_plane: bool,
    /// How the storage process is started; none: no replicated volumes on this node.
    pub storage: Option<StorageConfig>,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory could not be made, or a socket not be opened.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The node's certificates are of no use.
    #[error("the node's certificates")]
    Identity(#[from] IdentityError),
}

/// A running agent.
pub struct Agent {
    node: watch::Receiver<Option<Node>>,
}

impl Agent {
    /// Starts all loops; they end with the group. What runs on this node is adopted, and goes on when the group ends.
    pub async fn start(
        config: &AgentConfig,
        client: &Client,
        identity: &Arc<Identity>,
        group: &TaskGroup,
    ) -> Result<Self, AgentError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| AgentError::Io { what, source }
        };
        std::fs::create_dir_all(&config.dir).map_err(io(&format!("making {}", config.dir.display())))?;
        // Guests' disks, keys and records are below: nobody but us goes there, guests' own users least of all.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&config.dir, private)
            .map_err(io(&format!("closing {} to others", config.dir.display())))?;
        let bind = SocketAddr::new(unspecified(config.address), config.port);
        let listener = TcpListener::bind(bind)
            .await
            .map_err(io(&format!("listening on {bind} for streams (another agent on this machine?)")))?;
        let port = listener.local_addr().map_or(config.port, |a| a.port());

        let node = Arc::new(watch::Sender::new(None));
        let node_config = NodeConfig {
            name: config.node_name.clone(),
            address: config.address,
            port,
            control_plane: config.control_plane,
            data_dir: config.dir.clone(),
        };
        group.spawn(node::run(client.clone(), node_config, node.clone()));

        let links_config = LinksConfig::new(config.node_name.as_str(), config.dir.join("network"));
        let (links, links_loop) = Links::new(links_config, subnet(node.subscribe(), group))
            .map_err(io("opening the DHCP leases"))?;
        group.spawn(async move {
            if let Err(error) = links_loop.run().await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the node's networks are not managed"
                );
            }
        });

        let images_cache = Informer::spawn(client, group, &Selection::all());
        let nodes_cache = Informer::spawn(client, group, &Selection::all());
        let name = config.node_name.as_str();
        let images = Images::spawn(client, group, name, &config.dir, identity, &images_cache, &nodes_cache);
        let claims = Informer::spawn(client, group, &Selection::all());
        let bound = Selection::labels(format!("kubevirt.io/nodeName={name}"));
        let instances = Informer::spawn(client, group, &bound);
        let users = users_of(&instances);
        let caches = Caches {
            claims: claims.clone(),
            volumes: Informer::spawn(client, group, &Selection::all()),
            classes: Informer::spawn(client, group, &Selection::all()),
            images: images_cache.clone(),
            instances: instances.clone(),
            users: users.clone(),
        };
        let events = EventRecorder::spawn(client, group, "local.sheaf.io", name);
        let replicated = config.storage.clone().map(|storage| {
            let of_storage = EventRecorder::spawn(client, group, "longhorn", name);
            let given = Given {
                node: name,
                identity,
                images: &images,
                image_objects: &images_cache,
                claims: &claims,
                node_objects: &nodes_cache,
                events: &of_storage,
            };
            Replicated::spawn(client, group, storage, &given)
        });
        let volumes =
            Volumes::spawn(client, group, name, &config.dir, caches, &images, &events, replicated.clone());

        let network: Arc<dyn Network> = Arc::new(links);
        let machines_config = MachinesConfig {
            node: config.node_name.clone(),
            dir: config.dir.join("machines"),
            qemu: sheaf_qemu::version::PROGRAM.into(),
            instances: instances.clone(),
            users,
            claims: claims.clone(),
            network: network.clone(),
            volumes: volumes.clone(),
        };
        // Taps need no list of machines: what QEMU holds stays, what nobody holds goes.
        let (machines, _adopted) = machines::spawn(client, machines_config, group);

        crate::snapshots::spawn(client, group, name, &claims, &volumes, &machines);
        let mut routes = Routes::default();
        images.routes(&mut routes);
        machines::metrics::routes(&machines, &config.node_name, &instances, replicated.as_ref(), &mut routes);
        machines::usage::routes(&machines, &instances, &mut routes);
        Streams::new(machines, network, group).routes(&mut routes);
        http::serve(listener, Arc::new(identity.server_config()?), routes, group);
        Ok(Self { node: node.subscribe() })
    }

    /// Resolves when the Node is registered and has its guest subnet, or after `deadline`; says which.
    pub async fn registered(&self, deadline: Duration) -> bool {
        let mut node = self.node.clone();
        let done = node.wait_for(|n| n.as_ref().is_some_and(|n| subnet_of(n).is_some()));
        tokio::time::timeout(deadline, done).await.is_ok_and(|found| found.is_ok())
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv6() {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    }
}

/// The guest subnet as the Node says it.
fn subnet(
    mut node: watch::Receiver<Option<Node>>,
    group: &TaskGroup,
) -> watch::Receiver<Option<sheaf_net::Subnet>> {
    let (sender, receiver) = watch::channel(None);
    group.spawn(async move {
        loop {
            let now = node.borrow_and_update().as_ref().and_then(subnet_of);
            if now.is_some() {
                sender.send_if_modified(|old| std::mem::replace(old, now) != now);
            }
            if node.changed().await.is_err() {
                return;
            }
        }
    });
    receiver
}
