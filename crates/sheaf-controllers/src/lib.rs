//! One module per kind: gather from caches, plan (pure, in `sheaf-plan`), one step, status.
//!
//! Controllers are ordinary clients of the API and hold nothing that they could not find again after a restart.
//! What happens on a node is the agent's.

pub mod certificates;
mod claims;
mod defaults;
mod disruption;
mod events;
mod gc;
pub mod images;
pub mod instances;
mod kinds;
mod launchers;
mod namespaces;
pub mod nodes;
mod orphans;
mod pods;
mod quotas;
mod restores;
pub mod schedule;
mod snapshots;
mod storage;
pub mod vm;
mod vm_dump;
mod vm_live;
mod vm_types;
mod world;

use std::sync::Arc;

use kube::Client;
use sheaf_apiserver::pki::Ca;
use sheaf_runtime::{EventRecorder, Informer, Selection, TaskGroup};

use kinds::Everything;

/// Starts every controller; they end with the group. `identities` is a client, too, whose watches of metadata may leave out what
/// `InProcess::identities` does. `ca` signs the certificates of nodes that join.
pub fn spawn(client: &Client, identities: &Client, group: &TaskGroup, host: &str, ca: Arc<Ca>) {
    let world = world::World::spawn(client, group);
    let events = EventRecorder::spawn(client, group, "sheaf-controllers", host);
    defaults::spawn_class(client, group);
    let certificate = ca.cert_pem().to_owned();
    certificates::spawn(client, &world, ca, group);
    claims::spawn(client, &world, group);
    nodes::spawn(client, &world, group);
    images::spawn(client, &world, group);
    orphans::spawn(client, &world, group);
    vm::spawn(client, &world, &events, group);
    schedule::spawn(client, &world, &events, group);
    instances::spawn(client, &world, group);
    launchers::spawn(client, &world, group);
    snapshots::spawn(client, &world, &events, group);
    restores::spawn(client, &world, &events, group);
    storage::spawn(client, &world, &events, group);
    spawn_life(client, identities, &events, &certificate, group);
}

/// Starts the controllers of what Kubernetes itself does with objects of any kind: namespaces and what they always have,
/// garbage, quotas, disruption budgets, pods that end, events that are old. [`spawn`] starts them with the others.
/// `certificate` is the authority's, in PEM.
pub fn spawn_life(
    client: &Client,
    identities: &Client,
    events: &EventRecorder,
    certificate: &str,
    group: &TaskGroup,
) {
    let mut everything = Everything::default();
    let (garbage, emptied, counted) =
        (gc::listen(&mut everything), namespaces::listen(&mut everything), quotas::listen(&mut everything));
    let everything = Arc::new(everything);
    let namespaces = Informer::spawn(client, group, &Selection::all());
    let pods = Informer::spawn(client, group, &Selection::all());
    gc::spawn(client, &everything, garbage, events, group);
    namespaces::spawn(client, &namespaces, &emptied, group);
    defaults::spawn_in_namespaces(client, &namespaces, certificate, group);
    quotas::spawn(client, &everything, &counted, group);
    disruption::spawn(client, &everything, &pods, group);
    pods::spawn(client, &pods, group);
    events::spawn(client, group);
    everything.spawn(client, identities, group);
}
