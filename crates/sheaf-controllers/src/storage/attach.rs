//! VolumeAttachments: which node a volume is to be attached to, as Kubernetes' clients see it.
//!
//! One for each volume and node that has a machine with the volume; never two nodes at a time. It goes when no machine there
//! has the volume any more, and its finalizer when the volume has let go, or its node has fallen silent: then the next one
//! takes a higher epoch, which fences the old. Keyed by the PersistentVolume.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sheaf_api::longhorn::{DRIVER, Volume, condition};
use sheaf_plan::storage::OFFLINE_REBUILDING;
use sheaf_runtime::patch::gone;
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};

use super::{Storage, claim_of, claims_held, handle, key, made};

const MANAGER: &str = "sheaf-attachments";
/// Keeps an attachment until the volume has let go.
const FINALIZER: &str = "external-attacher/driver-longhorn-io";

struct Attachments(Arc<Storage>);

pub(super) fn spawn(storage: &Arc<Storage>, group: &TaskGroup) {
    let s = storage.clone();
    Driver::new(Attachments(storage.clone()))
        .for_each(&storage.world.volumes)
        .on(&storage.attachments, |va| {
            persistent_of(va).map(|pv| ObjectKey::new("", pv)).into_iter().collect()
        })
        .on(&storage.volumes, move |volume| {
            let pv = s.persistent(&volume.name_any());
            pv.map(|pv| ObjectKey::new("", pv.name_any())).into_iter().collect()
        })
        .on(&storage.world.instances, {
            let s = storage.clone();
            move |vmi| {
                let volume = |claim: ObjectKey| {
                    let claim = s.world.claims.get(&claim)?;
                    Some(ObjectKey::new("", claim.spec.as_ref()?.volume_name.clone()?))
                };
                let mut keys: Vec<ObjectKey> = claims_held(vmi).into_iter().filter_map(volume).collect();
                // A volume that it has let go of is named by it no more.
                let node = vmi.status.as_ref().map_or("", |s| s.node_name.as_str());
                let all = s.attachments.list();
                let there = all.iter().filter(|va| !node.is_empty() && va.spec.node_name == node);
                keys.extend(there.filter_map(|va| persistent_of(va)).map(|pv| ObjectKey::new("", pv)));
                keys
            }
        })
        .on(&storage.world.claims, |claim| {
            let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
            name.map(|name| ObjectKey::new("", name)).into_iter().collect()
        })
        .on(&storage.world.nodes, {
            let s = storage.clone();
            move |_| {
                s.attachments
                    .list()
                    .iter()
                    .filter_map(|va| persistent_of(va))
                    .map(|pv| ObjectKey::new("", pv))
                    .collect()
            }
        })
        .spawn(group);
}

/// The PersistentVolume of an attachment.
pub(super) fn persistent_of(attachment: &VolumeAttachment) -> Option<String> {
    let ours = attachment.spec.attacher == DRIVER;
    attachment.spec.source.persistent_volume_name.clone().filter(|_| ours)
}

/// The name that Kubernetes gives.
fn attachment_name(volume: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{volume}{DRIVER}{node}").as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// What to do about the attachments of a volume.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make(String),
    Delete(String),
    Release(String),
    Say(String, bool),
}

/// An attachment, as far as it matters.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    node: String,
    deleting: bool,
    attached: bool,
}

/// `users`: nodes with machines that have the volume. `at`: where it is attached or about to be. `serving`: it is attached
/// there. `alive`: nodes that answer.
fn plan(
    all: &[Seen],
    users: &BTreeSet<String>,
    at: Option<&str>,
    serving: bool,
    alive: &BTreeSet<String>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for seen in all {
        let here = at == Some(seen.node.as_str());
        if seen.deleting {
            if !here || !alive.contains(&seen.node) {
                steps.push(Step::Release(seen.name.clone()));
            }
        } else if !users.contains(&seen.node) {
            steps.push(Step::Delete(seen.name.clone()));
        } else if seen.attached != (here && serving) {
            steps.push(Step::Say(seen.name.clone(), here && serving));
        }
    }
    if all.is_empty()
        && let Some(node) = users.iter().find(|n| alive.contains(*n)).or(users.first())
    {
        steps.push(Step::Make(node.clone()));
    }
    steps
}

impl Controller for Attachments {
    const NAME: &'static str = "volume-attachments";

    async fn reconcile(&self, pv: &ObjectKey) -> Result<Next, StepError> {
        let storage = &self.0;
        let all = storage.attachments(&pv.name);
        let volume = storage.world.volumes.get(pv);
        let Some(name) = volume.as_deref().and_then(handle).map(str::to_owned) else {
            // Without its volume an attachment says nothing.
            for va in &all {
                self.end(va).await?;
            }
            return Ok(Next::Done);
        };
        let claim = volume.as_deref().and_then(claim_of);
        let users = claim.map(|claim| storage.users(&claim)).unwrap_or_default();
        let replicated = storage.volumes.get(&key(name.clone()));
        let engine = storage.engines.get(&key(sheaf_plan::storage::engine_name(&name)));
        // Where it is attached for nobody, only to be made whole, it is in nobody's way.
        let mends = |v: &Arc<Volume>| {
            let told = condition(&v.status.as_ref()?.conditions, OFFLINE_REBUILDING)?.status == "True";
            told.then_some(())
        };
        let used = engine.as_ref().filter(|_| replicated.as_ref().and_then(mends).is_none());
        let at = used.map(|e| e.spec.node_id.clone()).filter(|n| !n.is_empty());
        let serving =
            replicated.as_ref().and_then(|v| v.status.as_ref()).is_some_and(|s| s.state == "attached");
        let (_, alive) = storage.alive();
        let seen: Vec<Seen> = all
            .iter()
            .map(|va| Seen {
                name: va.name_any(),
                node: va.spec.node_name.clone(),
                deleting: va.metadata.deletion_timestamp.is_some(),
                attached: va.status.as_ref().is_some_and(|s| s.attached),
            })
            .collect();
        let api: Api<VolumeAttachment> = Api::all(storage.client.clone());
        for step in plan(&seen, &users, at.as_deref(), serving, &alive) {
            match step {
                Step::Make(node) => {
                    let Some(volume) = &volume else { continue };
                    self.make(&api, volume, &name, &node).await?;
                }
                Step::Delete(name) => {
                    gone(api.delete(&name, &DeleteParams::default()).await, "deleting an attachment")?;
                }
                Step::Release(name) => {
                    if let Some(va) = all.iter().find(|va| va.name_any() == name) {
                        self.end(va).await?;
                    }
                }
                Step::Say(name, attached) => {
                    let patch = json!({"status": {"attached": attached}});
                    let written = api.patch_status(&name, &params(), &Patch::Merge(patch)).await;
                    gone(written, "writing an attachment's status")?;
                }
            }
        }
        Ok(Next::Done)
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

impl Attachments {
    async fn make(
        &self,
        api: &Api<VolumeAttachment>,
        volume: &PersistentVolume,
        handle: &str,
        node: &str,
    ) -> Result<(), StepError> {
        let object: Value = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
            "metadata": {"name": attachment_name(handle, node), "finalizers": [FINALIZER]},
            "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume.name_any()}},
        });
        let object = serde_json::from_value(object).map_err(StepError::other("composing an attachment"))?;
        made(api.create(&PostParams::default(), &object).await, "making an attachment")
    }

    /// Deletes an attachment and lets it go.
    async fn end(&self, attachment: &VolumeAttachment) -> Result<(), StepError> {
        let (name, api) = (attachment.name_any(), Api::<VolumeAttachment>::all(self.0.client.clone()));
        if attachment.metadata.deletion_timestamp.is_none() {
            gone(api.delete(&name, &DeleteParams::default()).await, "deleting an attachment")?;
        }
        let left: Vec<&String> = attachment.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        let patch = json!({"metadata": {"uid": attachment.metadata.uid, "finalizers": left}});
        gone(api.patch(&name, &params(), &Patch::Merge(patch)).await, "letting an attachment go")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: &str, deleting: bool, attached: bool) -> Seen {
        Seen { name: format!("va-{node}"), node: node.into(), deleting, attached }
    }

    #[test]
    fn one_node_at_a_time() {
        let set = |nodes: &[&str]| nodes.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<String>>();
        let alive = set(&["a", "b"]);
        assert_eq!(plan(&[], &set(&[]), None, false, &alive), []);
        assert_eq!(plan(&[], &set(&["b"]), None, false, &alive), [Step::Make("b".into())]);
        let a = [seen("a", false, false)];
        assert_eq!(plan(&a, &set(&["a"]), Some("a"), false, &alive), []);
        assert_eq!(plan(&a, &set(&["a"]), Some("a"), true, &alive), [Step::Say("va-a".into(), true)]);
        // The machine is elsewhere: the old one goes first, and its finalizer when the volume has let go.
        assert_eq!(plan(&a, &set(&["b"]), Some("a"), true, &alive), [Step::Delete("va-a".into())]);
        let going = [seen("a", true, true)];
        assert_eq!(plan(&going, &set(&["b"]), Some("a"), true, &alive), []);
        assert_eq!(plan(&going, &set(&["b"]), None, false, &alive), [Step::Release("va-a".into())]);
        // Its node is silent: the next epoch fences it.
        assert_eq!(plan(&going, &set(&["b"]), Some("a"), true, &set(&["b"])), [Step::Release("va-a".into())]);
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        let name = attachment_name("pvc-1", "node");
        assert!(name.starts_with("csi-") && name.len() == 68, "{name}");
    }
}
