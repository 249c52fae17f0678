//! The loop that owns the node's networks: what is desired, and the only hand that changes the kernel.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sheaf_net::dhcp::{Clients, Config, Server};
use sheaf_net::dns::{self, Records, Upstreams};
use sheaf_net::links::{
    DesiredBridge, DesiredLinks, DesiredTap, Events, Identity, Kernel, KernelError, ObservedLinks, Obstacle,
    Step, plan_links, tap, tap_name,
};
use sheaf_net::{Mac, Subnet};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::filter::Filter;
use super::services::Services;
use super::{LinksConfig, LinksStatus, Request};
use crate::parts::{NicRequest, NicTarget, PartError, Tap};

/// How often everything is looked at, the packet filter included.
const FULL_PASS: Duration = Duration::from_secs(60);
/// Events of the kernel come in bursts; one look follows a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// The most that a look may wait after an event, when every look so far found something to mend: another program works
/// against us, and an endless quarrel must not cost more than a little.
const MAX_SETTLE: Duration = Duration::from_secs(3);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// A lease outlives an agent that is away for half of it.
const LEASE_SECONDS: u32 = 24 * 60 * 60;
/// IPv4 works above this in any case, and IPv6 needs it.
const MIN_MTU: u32 = 1280;
/// What every guest's NIC can do.
const MAX_MTU: u32 = 1500;

/// The owner. Made by [`super::Links::new`].
#[derive(Debug)]
pub struct LinksLoop {
    config: LinksConfig,
    subnet: watch::Receiver<Option<Subnet>>,
    requests: mpsc::Receiver<Request>,
    dhcp: Arc<Server>,
    status: watch::Sender<LinksStatus>,
}

impl LinksLoop {
    pub(super) fn new(
        config: LinksConfig,
        subnet: watch::Receiver<Option<Subnet>>,
        requests: mpsc::Receiver<Request>,
        dhcp: Arc<Server>,
        status: watch::Sender<LinksStatus>,
    ) -> Self {
        Self { config, subnet, requests, dhcp, status }
    }

    /// Runs until the future is dropped, which may be at any time. An error means that the kernel
    /// gives no netlink socket, without which there is nothing to do.
    pub async fn run(mut self) -> Result<(), KernelError> {
        let kernel = Kernel::connect()?;
        let mut events = Events::listen()?;
        let mut leases_changed = self.dhcp.changed();
        let records = watch::Sender::new(Arc::default());
        let remembered = Remembered { file: self.config.directory.join("subnet") };
        let told = *self.subnet.borrow_and_update();
        if let Some(subnet) = told {
            remembered.write(subnet);
        }
        let subnet = told.or_else(|| remembered.read());
        let mut owner = Owner {
            upstreams: Arc::new(Upstreams::new(&self.config.resolv_conf)),
            config: self.config,
            kernel,
            subnet,
            nics: BTreeMap::new(),
            mtu: MAX_MTU,
            dhcp: self.dhcp,
            records,
            services: None,
            filter: Filter::default(),
            filter_problems: Vec::new(),
            status: self.status,
            settle: SETTLE,
        };
        let mut full = interval(FULL_PASS);
        full.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut subnet_known = true;
        let mut look_at: Option<Instant> = None;
        loop {
            let due = look_at.unwrap_or_else(Instant::now);
            // Each arm only notes what to do; all are cancel-safe.
            let todo = tokio::select! {
                // Without anybody who could ask, the guests that are there still need their network.
                Some(request) = self.requests.recv() => Todo::Answer(request),
                changed = events.changed() => match changed {
                    Ok(()) => Todo::LookSoon,
                    Err(_) => Todo::ListenAgain,
                },
                changed = self.subnet.changed(), if subnet_known => {
                    // A sender that is gone will send no other subnet.
                    subnet_known = changed.is_ok();
                    Todo::NewSubnet
                }
                _ = leases_changed.changed() => Todo::Publish,
                _ = full.tick() => Todo::FullPass,
                () = sleep_until(due), if look_at.is_some() => Todo::Look,
            };
            let healthy = match todo {
                Todo::Answer(request) => owner.answer(request).await,
                Todo::LookSoon => {
                    let soon = Instant::now() + owner.settle;
                    look_at = Some(look_at.map_or(soon, |at| at.min(soon)));
                    continue;
                }
                Todo::ListenAgain => {
                    tracing::warn!("the kernel's notifications were interrupted");
                    events = Events::listen()?;
                    owner.full_pass().await
                }
                Todo::NewSubnet => {
                    let subnet = *self.subnet.borrow_and_update();
                    // A node that loses its subnet keeps its guests' network.
                    let Some(subnet) = subnet else { continue };
                    remembered.write(subnet);
                    owner.subnet = Some(subnet);
                    owner.full_pass().await
                }
                Todo::Publish => {
                    owner.publish_records();
                    continue;
                }
                Todo::FullPass => owner.full_pass().await,
                Todo::Look => owner.pass().await,
            };
            look_at = if healthy { None } else { Some(Instant::now() + RETRY) };
        }
    }
}

/// The subnet that the node had last, so that its guests are served before the API server can be reached.
struct Remembered {
    file: PathBuf,
}

impl Remembered {
    fn read(&self) -> Option<Subnet> {
        std::fs::read_to_string(&self.file).ok()?.trim().parse().ok()
    }

    fn write(&self, subnet: Subnet) {
        // Only a help for a start without API server: it is no loss if it cannot be kept.
        if self.read() != Some(subnet)
            && let Err(error) = std::fs::write(&self.file, format!("{subnet}\n"))
        {
            tracing::warn!(%error, file = %self.file.display(), "the node's subnet could not be written down");
        }
    }
}

enum Todo {
    Answer(Request),
    LookSoon,
    ListenAgain,
    NewSubnet,
    Publish,
    FullPass,
    Look,
}

struct Owner {
    config: LinksConfig,
    kernel: Kernel,
    subnet: Option<Subnet>,
    nics: BTreeMap<Identity, Nic>,
    mtu: u32,
    dhcp: Arc<Server>,
    records: watch::Sender<Arc<Records>>,
    upstreams: Arc<Upstreams>,
    services: Option<Services>,
    filter: Filter,
    filter_problems: Vec<String>,
    status: watch::Sender<LinksStatus>,
    /// How long the next look waits after an event.
    settle: Duration,
}

/// A NIC that a machine has, or is about to get.
struct Nic {
    request: NicRequest,
    tap: String,
}

impl Owner {
    /// Answers, and lets a pass follow: see there.
    async fn answer(&mut self, request: Request) -> bool {
        // Whoever asked and has gone meanwhile asks again if it still matters.
        match request {
            Request::Attach { nic, reply } => {
                let _ = reply.send(self.attach(nic).await);
            }
            Request::Adopt { nic, reply } => {
                let _ = reply.send(self.adopt(nic).await);
            }
            Request::Detach { machine, reply } => {
                let _ = reply.send(self.detach(&machine).await);
            }
            Request::DetachNic { nic, reply } => {
                let _ = reply.send(self.detach_nic(&nic).await);
            }
            Request::Replug { nic, reply } => {
                let _ = reply.send(self.replug(nic).await);
            }
        }
        self.pass().await
    }

    async fn attach(&mut self, nic: NicRequest) -> Result<Tap, PartError> {
        let context = format!("attaching NIC {} of machine {}", nic.name, nic.machine);
        let identity = identity_of(&nic);
        self.check(&nic)?;
        let observed = self.kernel.observe().await.map_err(failed(&context))?;
        let name = name_of(&identity, &observed)?;
        let desired =
            DesiredLinks { bridge: self.desired_bridge(), taps: vec![self.desired_tap(&nic, &name)] };
        // Before the tap is made: it must not appear and vanish again with every attempt.
        self.check_bridge(&nic, &desired, &observed)?;
        let queues = tap::open(&name, nic.queues.max(1)).map_err(failed(&context))?;
        // Until it has its mark and its bridge, the tap is known to this function only; if a step fails, closing the
        // descriptor removes it.
        self.converge(&desired).await.map_err(failed(&context))?;
        self.nics.insert(identity, Nic { request: nic, tap: name.clone() });
        self.publish_clients();
        Ok(Tap { ifname: name, queues })
    }

    async fn adopt(&mut self, nic: NicRequest) -> Result<(), PartError> {
        let context = format!("adopting NIC {} of machine {}", nic.name, nic.machine);
        let identity = identity_of(&nic);
        let observed = self.kernel.observe().await.map_err(failed(&context))?;
        let name = name_of(&identity, &observed)?;
        if observed.by_name(&name).is_none() {
            // Only a restart of the machine can give it a new one: said, but no reason to stop managing it.
            tracing::warn!(machine = %nic.machine, nic = %nic.name, "the tap is gone, the guest has lost this network");
        }
        self.nics.insert(identity, Nic { request: nic, tap: name });
        self.publish_clients();
        Ok(())
    }

    async fn detach(&mut self, machine: &str) -> Result<(), PartError> {
        let context = format!("removing the taps of machine {machine}");
        self.nics.retain(|identity, _| identity.machine != machine);
        self.publish_clients();
        let observed = self.kernel.observe().await.map_err(failed(&context))?;
        for link in &observed.links {
            if Identity::from_alias(&link.alias).is_some_and(|i| i.machine == machine) {
                let step = Step::Delete { link: link.name.clone() };
                self.kernel.apply(&step).await.map_err(failed(&context))?;
            }
        }
        Ok(())
    }

    async fn detach_nic(&mut self, nic: &NicRequest) -> Result<(), PartError> {
        let context = format!("removing the tap of NIC {} of machine {}", nic.name, nic.machine);
        let identity = identity_of(nic);
        self.nics.remove(&identity);
        self.publish_clients();
        let observed = self.kernel.observe().await.map_err(failed(&context))?;
        for link in &observed.links {
            if Identity::from_alias(&link.alias).is_some_and(|i| i == identity) {
                let step = Step::Delete { link: link.name.clone() };
                self.kernel.apply(&step).await.map_err(failed(&context))?;
            }
        }
        Ok(())
    }

    /// The tap stays as it is; what it is plugged into changes.
    async fn replug(&mut self, nic: NicRequest) -> Result<(), PartError> {
        let context = format!("moving NIC {} of machine {} to another network", nic.name, nic.machine);
        let identity = identity_of(&nic);
        self.check(&nic)?;
        let observed = self.kernel.observe().await.map_err(failed(&context))?;
        let name = name_of(&identity, &observed)?;
        let desired =
            DesiredLinks { bridge: self.desired_bridge(), taps: vec![self.desired_tap(&nic, &name)] };
        self.check_bridge(&nic, &desired, &observed)?;
        self.converge(&desired).await.map_err(failed(&context))?;
        self.nics.insert(identity, Nic { request: nic, tap: name });
        self.publish_clients();
        Ok(())
    }

    /// What the NIC needs from the management network.
    fn check(&self, nic: &NicRequest) -> Result<(), PartError> {
        if nic.target != NicTarget::Management {
            return Ok(());
        }
        if self.subnet.is_none() {
            return Err(PartError::Missing(format!(
                "NIC {} waits for the management network: node {} has no subnet yet (spec.podCIDR)",
                nic.name, self.config.node
            )));
        }
        let identity = identity_of(nic);
        let twin = self.nics.iter().find(|(other, n)| {
            **other != identity && n.request.target == NicTarget::Management && n.request.mac == nic.mac
        });
        match twin {
            Some((other, _)) => Err(PartError::Missing(format!(
                "NIC {} waits: its hardware address {} is in use by NIC {} of machine {} on node {}",
                nic.name, nic.mac, other.nic, other.machine, self.config.node
            ))),
            None => Ok(()),
        }
    }

    /// Whether the NIC can be plugged in.
    fn check_bridge(
        &self,
        nic: &NicRequest,
        desired: &DesiredLinks,
        observed: &ObservedLinks,
    ) -> Result<(), PartError> {
        // The plan speaks of taps that exist, so this one is made to.
        let mut imagined = observed.clone();
        for tap in &desired.taps {
            imagined.links.retain(|l| l.name != tap.name);
            imagined.links.push(sheaf_net::links::ObservedLink {
                index: 0,
                name: tap.name.clone(),
                kind: sheaf_net::links::LinkKind::Tap,
                up: false,
                mtu: MAX_MTU,
                mac: None,
                master: None,
                alias: String::new(),
                addresses: Vec::new(),
                carrier: true,
                vlans: Vec::new(),
            });
        }
        match plan_links(desired, &imagined).obstacles.first() {
            None => Ok(()),
            Some(obstacle) => {
                let text = format!("NIC {}: {obstacle} on node {}", nic.name, self.config.node);
                Err(match obstacle {
                    Obstacle::NoVlanFiltering { .. } => PartError::Refused(format!(
                        "NIC {}: on node {}, {obstacle}",
                        nic.name, self.config.node
                    )),
                    _ => PartError::Missing(text),
                })
            }
        }
    }

    /// Takes the steps that are left for `desired`. One that fails does not keep the others from being taken, as they
    /// may be for other guests; the first failure is returned.
    ///
    /// Returns whether there were any.
    async fn converge(&self, desired: &DesiredLinks) -> Result<bool, KernelError> {
        let plan = plan_links(desired, &self.kernel.observe().await?);
        let mut result = Ok(());
        for step in &plan.steps {
            tracing::debug!(?step, "link");
            result = result.and(self.kernel.apply(step).await);
        }
        result.map(|()| !plan.steps.is_empty())
    }

    /// Looks at everything, the packet filter included.
    async fn full_pass(&mut self) -> bool {
        match self.kernel.default_route_mtu().await {
            Ok(mtu) => self.mtu = mtu.unwrap_or(MAX_MTU).clamp(MIN_MTU, MAX_MTU),
            Err(error) => {
                tracing::warn!(error = %with_cause(&error), "the MTU towards the outside is not known")
            }
        }
        self.filter_problems = match self.subnet {
            Some(subnet) => self.filter.ensure(&self.config.bridge, subnet).await,
            None => Vec::new(),
        };
        self.publish_clients();
        self.pass().await
    }

    /// Looks at the links and the servers, and mends them. Returns whether that is all for now.
    async fn pass(&mut self) -> bool {
        let mut problems = self.filter_problems.clone();
        let desired = self.desired();
        let (mut ready, mut look_again) = (false, false);
        match self.converge(&desired).await {
            Ok(mended) => {
                self.settle = if mended { (self.settle * 2).min(MAX_SETTLE) } else { SETTLE };
            }
            // A guest ended between the look and the step.
            Err(KernelError::Gone { .. }) => look_again = true,
            Err(error) => {
                look_again = true;
                problems.push(with_cause(&error));
            }
        }
        match self.kernel.observe().await {
            Ok(observed) => {
                let plan = plan_links(&desired, &observed);
                look_again |= !plan.steps.is_empty();
                // Somebody else has to mend these, and the kernel tells when they have.
                problems.extend(plan.obstacles.iter().map(ToString::to_string));
                if let (Some(subnet), Some(bridge)) = (self.subnet, observed.by_name(&self.config.bridge)) {
                    let failures = self.ensure_services(bridge.index, subnet).await;
                    ready = failures.is_empty() && self.filter_problems.is_empty() && !look_again;
                    look_again |= !failures.is_empty();
                    problems.extend(failures);
                }
            }
            Err(error) => {
                look_again = true;
                problems.push(with_cause(&error));
                // Should it be the connection that broke, the next look has another.
                match Kernel::connect() {
                    Ok(kernel) => self.kernel = kernel,
                    Err(error) => problems.push(with_cause(&error)),
                }
            }
        }
        if self.subnet.is_none() {
            self.services = None;
        }
        self.status.send_if_modified(|status| {
            let new = LinksStatus { ready, problems };
            if *status == new {
                return false;
            }
            for problem in &new.problems {
                tracing::warn!("{problem}");
            }
            *status = new;
            true
        });
        !look_again
    }

    async fn ensure_services(&mut self, bridge_index: u32, subnet: Subnet) -> Vec<String> {
        self.dhcp.set_config(Some(Config {
            subnet,
            domain: dns::DOMAIN.to_owned(),
            lease_seconds: LEASE_SECONDS,
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
        }));
        if self.services.as_ref().is_none_or(|s| !s.are_for(bridge_index, subnet)) {
            // The old sockets first: they have the ports.
            self.services = None;
        }
        let context = dns::Context {
            subnet,
            records: self.records.subscribe(),
            upstreams: Arc::clone(&self.upstreams),
        };
        self.services
            .get_or_insert_with(|| Services::new(bridge_index, subnet))
            .ensure(&self.config.bridge, &self.dhcp, &context)
            .await
    }

    fn desired(&self) -> DesiredLinks {
        DesiredLinks {
            bridge: self.desired_bridge(),
            taps: self.nics.values().map(|n| self.desired_tap(&n.request, &n.tap)).collect(),
        }
    }

    fn desired_bridge(&self) -> Option<DesiredBridge> {
        let name = self.config.bridge.clone();
        self.subnet.map(|subnet| DesiredBridge { name, subnet, mtu: self.mtu })
    }

    fn desired_tap(&self, nic: &NicRequest, name: &str) -> DesiredTap {
        let (bridge, vlan) = match &nic.target {
            NicTarget::Management => (self.config.bridge.clone(), None),
            // CNI writes 0 for untagged.
            NicTarget::Bridge { name, vlan } => (name.clone(), vlan.filter(|v| *v != 0)),
        };
        DesiredTap { name: name.to_owned(), identity: identity_of(nic), guest_mac: nic.mac, bridge, vlan }
    }

    fn publish_clients(&self) {
        let served = self.nics.values().map(|n| &n.request).filter(|r| r.target == NicTarget::Management);
        let clients: Clients = served.map(|r| (r.mac, r.hostname.clone())).collect::<BTreeMap<Mac, String>>();
        self.dhcp.set_clients(clients);
        self.publish_records();
    }

    fn publish_records(&self) {
        let records = Records::new(self.subnet, self.dhcp.bindings());
        self.records.send_if_modified(|current| {
            let modified = **current != records;
            *current = Arc::new(records);
            modified
        });
    }
}

fn identity_of(nic: &NicRequest) -> Identity {
    Identity { machine: nic.machine.clone(), nic: nic.name.clone() }
}

fn name_of(identity: &Identity, observed: &ObservedLinks) -> Result<String, PartError> {
    tap_name(identity, |name| observed.by_name(name).map(|l| l.alias.as_str()))
        .map_err(|error| PartError::Refused(error.to_string()))
}

fn failed<E: std::error::Error + Send + Sync + 'static>(context: &str) -> impl Fn(E) -> PartError {
    move |source| PartError::Failed { context: context.to_owned(), source: Box::new(source) }
}

/// An error with its causes, for a status.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
