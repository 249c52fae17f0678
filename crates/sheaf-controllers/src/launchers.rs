//! The Pods that stand for instances: made, kept true, and what is done to them passed on to the machines.
//!
//! The rules are `sheaf_plan::vm::pod`. Owns these Pods, and of an instance `status.activePods` and the annotation that its
//! Pod was deleted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_plan::vm::pod::{POD_DELETED, POD_FINALIZER, PodStep, plan_pod, pod_name};
use sheaf_runtime::patch::gone;
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-launchers";

struct Launchers {
    client: Client,
    world: Arc<World>,
}

/// Keys are those of Pods.
pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let of_vmi = |vmi: &Arc<VirtualMachineInstance>| {
        vec![ObjectKey::new(vmi.metadata.namespace.clone().unwrap_or_default(), pod_name(vmi))]
    };
    Driver::new(Launchers { client: client.clone(), world: world.clone() })
        .for_each(&world.pods)
        .on(&world.instances, of_vmi)
        .spawn(group);
}

impl Controller for Launchers {
    const NAME: &'static str = "launchers";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let pod = self.world.pods.get(key);
        let owner = |pod: &Pod| pod.metadata.owner_references.as_ref()?.first().map(|o| o.name.clone());
        let named = pod.as_deref().and_then(owner);
        let vmi = match named {
            Some(name) => self.world.instances.get(&ObjectKey::new(&key.namespace, &name)),
            None => {
                let of_it = self.world.instances_of_pod.users(key);
                of_it.iter().find_map(|vmi| self.world.instances.get(vmi))
            }
        };
        let as_json = pod.as_deref().and_then(|p| serde_json::to_value(p).ok());
        let step = plan_pod(vmi.as_deref(), as_json.as_ref(), Timestamp::now());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match (step, vmi.clone()) {
            (PodStep::Create(pod), _) => {
                let pod: Pod = serde_json::from_value(pod).map_err(StepError::other("composing a Pod"))?;
                match api.create(&PostParams::default(), &pod).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                    Err(error) => return Err(StepError::api("making an instance's Pod")(error)),
                }
            }
            (PodStep::Status(status), _) => {
                // A merge cannot take away: what is not said any more is null.
                let mut patch = status;
                let known = as_json.as_ref().and_then(|p| p["status"].as_object());
                for key in known.into_iter().flat_map(|s| s.keys()) {
                    if patch.get(key).is_none() {
                        patch[key] = serde_json::Value::Null;
                    }
                }
                let node = as_json.as_ref().and_then(|p| p.pointer("/spec/nodeName")).is_some();
                let placed = vmi.as_ref().and_then(|v| v.status.as_ref()).map(|s| s.node_name.clone());
                if let Some(placed) = placed.filter(|n| !node && !n.is_empty()) {
                    let spec = json!({"spec": {"nodeName": placed}});
                    gone(
                        api.patch(&key.name, &params(), &Patch::Merge(spec)).await,
                        "binding an instance's Pod",
                    )?;
                }
                let patch = json!({"status": patch});
                let written = api.patch_status(&key.name, &params(), &Patch::Merge(patch)).await;
                gone(written, "writing the status of an instance's Pod")?;
            }
            (PodStep::ShutDown(grace), Some(vmi)) => {
                info!(grace, "the instance's Pod was deleted: its guest is shut down");
                let patch = json!({"metadata": {"annotations": {POD_DELETED: grace.to_string()}}});
                self.instance(&vmi, patch).await?;
            }
            (PodStep::Note, Some(vmi)) => {
                let uid = pod.as_ref().and_then(|p| p.metadata.uid.clone()).unwrap_or_default();
                let node = vmi.status.as_ref().map(|s| s.node_name.clone()).unwrap_or_default();
                self.instance(&vmi, json!({"status": {"activePods": {uid: node}}})).await?;
            }
            (PodStep::Release, _) => {
                let left: Vec<String> = pod
                    .iter()
                    .flat_map(|p| p.metadata.finalizers.iter().flatten())
                    .filter(|f| *f != POD_FINALIZER)
                    .cloned()
                    .collect();
                let patch = json!({"metadata": {"finalizers": left}});
                gone(api.patch(&key.name, &params(), &Patch::Merge(patch)).await, "letting a Pod go")?;
                // What it had grace for has ended.
                let now = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: pod
                        .as_ref()
                        .map(|p| Preconditions { uid: p.metadata.uid.clone(), resource_version: None }),
                    ..DeleteParams::default()
                };
                match api.delete(&key.name, &now).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    deleted => gone(deleted, "ending an instance's Pod")?,
                }
            }
            _ => {}
        }
        Ok(Next::Done)
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

impl Launchers {
    async fn instance(
        &self,
        vmi: &VirtualMachineInstance,
        patch: serde_json::Value,
    ) -> Result<(), StepError> {
        let namespace = vmi.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), namespace);
        let name = vmi.metadata.name.clone().unwrap_or_default();
        gone(api.patch(&name, &params(), &Patch::Merge(patch)).await, "writing an instance")
    }
}
