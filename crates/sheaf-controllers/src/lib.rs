//! One module per kind: gather from caches, plan (pure, in `sheaf-plan`), one step, status.
//!
//! Controllers are ordinary clients of the API and hold nothing that they could not find again after a restart.
//! What happens on a node is the agent's.

pub mod certificates;
mod claims;
mod defaults;
mod events;
mod gc;
pub mod images;
pub mod instances;
mod kinds;
mod namespaces;
pub mod nodes;
mod orphans;
mod pods;
mod restores;
pub mod schedule;
mod snapshots;
pub mod vm;
mod vm_live;
mod vm_types;
mod world;

use std::sync::Arc;

use kube::Client;
use sheaf_apiserver::pki::Ca;
use sheaf_runtime::{EventRecorder, TaskGroup};

/// Starts every controller; they end with the group. `ca` signs the certificates of nodes that join.
pub fn spawn(client: &Client, group: &TaskGroup, host: &str, ca: Arc<Ca>) {
    let world = world::World::spawn(client, group);
    let events = EventRecorder::spawn(client, group, "sheaf-controllers", host);
    defaults::spawn(client, group);
    certificates::spawn(client, &world, ca, group);
    claims::spawn(client, &world, group);
    nodes::spawn(client, &world, group);
    images::spawn(client, &world, group);
    orphans::spawn(client, &world, group);
    vm::spawn(client, &world, &events, group);
    schedule::spawn(client, &world, &events, group);
    instances::spawn(client, &world, group);
    pods::spawn(client, &world, group);
    snapshots::spawn(client, &world, &events, group);
    restores::spawn(client, &world, &events, group);
    gc::spawn(client, group);
    namespaces::spawn(client, group);
    events::spawn(client, group);
}
