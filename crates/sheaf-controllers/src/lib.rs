//! One module per kind: gather from caches, plan (pure, in `sheaf-plan`), one step, status.
//!
//! Controllers are ordinary clients of the API and hold nothing that they could not find again after a restart.
//! What happens on a node is the agent's.

pub mod images;
pub mod instances;
pub mod nodes;
pub mod schedule;
pub mod vm;
mod world;

use kube::Client;
use sheaf_runtime::{EventRecorder, TaskGroup};

/// Starts every controller; they end with the group.
pub fn spawn(client: &Client, group: &TaskGroup, host: &str) {
    let world = world::World::spawn(client, group);
    let events = EventRecorder::spawn(client, group, "sheaf-controllers", host);
    nodes::spawn(client, &world, group);
    images::spawn(client, &world, group);
    vm::spawn(client, &world, &events, group);
    schedule::spawn(client, &world, &events, group);
    instances::spawn(client, &world, group);
}
