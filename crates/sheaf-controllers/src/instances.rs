//! Instances that no agent will ever let go: without a node, or of a node that has been removed from the cluster.
//!
//! The agent of an instance's node removes the finalizer when the machine is gone. Where there is no such agent, this
//! does it, so that deletion ends from every state. Owns nothing else of an instance. A node that is merely silent is
//! not "gone": its machines may run, and only the removal of the Node object says that they do not.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_plan::conditions;
use sheaf_plan::vm::VMI_FINALIZER;
use sheaf_plan::vm::pod::POD_DELETED;
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-instances";

struct Instances {
    client: Client,
    world: Arc<World>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let of_node = world.clone();
    Driver::new(Instances { client: client.clone(), world: world.clone() })
        .for_each(&world.instances)
        .on(&world.nodes, move |node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let on = |vmi: &VirtualMachineInstance| vmi.status.as_ref().is_some_and(|s| s.node_name == name);
            let all = of_node.instances.list();
            all.iter().filter(|vmi| on(vmi)).map(|vmi| ObjectKey::of(&**vmi)).collect()
        })
        .spawn(group);
}

/// What has to be done in the agent's place.
#[derive(Debug, PartialEq, Eq)]
enum Rescue {
    Nothing,
    /// Deletion is asked for, and nobody has a machine of it.
    Release,
    /// Its node was removed from the cluster: the machine is no more.
    Fail,
}

fn plan_rescue(vmi: &VirtualMachineInstance, node_exists: impl Fn(&str) -> bool) -> Rescue {
    let status = vmi.status.as_ref();
    let node = status.map_or("", |s| s.node_name.as_str());
    let orphan = node.is_empty() || !node_exists(node);
    let deleting = vmi.metadata.deletion_timestamp.is_some();
    let phase = status.map_or("", |s| s.phase.as_str());
    if !orphan {
        Rescue::Nothing
    } else if deleting {
        Rescue::Release
    } else if (!node.is_empty() || pod_deleted(vmi)) && !matches!(phase, "Succeeded" | "Failed") {
        Rescue::Fail
    } else {
        Rescue::Nothing
    }
}

/// The Pod of an instance was deleted: it is not to be started any more.
fn pod_deleted(vmi: &VirtualMachineInstance) -> bool {
    vmi.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(POD_DELETED))
}

impl Controller for Instances {
    const NAME: &'static str = "instances";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(vmi) = self.world.instances.get(key) else { return Ok(Next::Done) };
        let exists = |node: &str| self.world.nodes.get(&ObjectKey::new("", node)).is_some();
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &key.namespace);
        match plan_rescue(&vmi, exists) {
            Rescue::Nothing => {}
            Rescue::Release => {
                let mut left = vmi.metadata.finalizers.clone().unwrap_or_default();
                left.retain(|f| f != VMI_FINALIZER);
                let version = &vmi.metadata.resource_version;
                let patch = json!({"metadata": {"finalizers": left, "resourceVersion": version}});
                let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                match api.patch(&key.name, &params, &Patch::Merge(patch)).await {
                    Ok(_) => info!("instance without a node released"),
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(StepError::api("releasing an instance")(error)),
                }
            }
            Rescue::Fail => {
                let mut after = (*vmi).clone();
                let status = after.status.get_or_insert_default();
                let message = match status.node_name.as_str() {
                    "" => "its Pod was deleted before it had a node".to_owned(),
                    node => format!("node {node} was removed from the cluster"),
                };
                status.phase = "Failed".into();
                if !status.node_name.is_empty() {
                    status.reason = "NodeUnresponsive".into();
                }
                let now = conditions::whole_seconds(Timestamp::now());
                conditions::set(&mut status.conditions, now, "Ready", "False", "GuestNotRunning", &message);
                patch::write(&api, MANAGER, Target::Main, &vmi, &after).await?;
            }
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn only_instances_without_an_agent_are_rescued() {
        // node of the instance, whether that node exists, deleting, phase, what follows
        let cases = [
            ("", false, false, "Pending", Rescue::Nothing),
            ("", false, true, "Pending", Rescue::Release),
            ("n", true, true, "Running", Rescue::Nothing),
            ("n", true, false, "Running", Rescue::Nothing),
            ("n", false, true, "Running", Rescue::Release),
            ("n", false, false, "Running", Rescue::Fail),
            ("n", false, false, "Succeeded", Rescue::Nothing),
        ];
        for (node, exists, deleting, phase, want) in cases {
            let mut vmi = VirtualMachineInstance::default();
            let status = vmi.status.get_or_insert_default();
            status.node_name = node.into();
            status.phase = phase.into();
            vmi.metadata.deletion_timestamp = deleting.then_some(Time(Timestamp::UNIX_EPOCH));
            assert_eq!(plan_rescue(&vmi, |_| exists), want, "{node:?} {exists} {deleting} {phase}");
        }
    }
}
