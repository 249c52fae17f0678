//! Claims and volumes of class `local` whose node has been removed from the cluster.
//!
//! The agent of a volume's node lets its claim go and removes its file. Where there is no such node any more, this
//! does it, so that deletion ends from every state. The file, if the machine still exists somewhere, is left alone. A
//! node that is merely silent is not "gone". Owns nothing else of claims and volumes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use sheaf_plan::claim::{self, PROTECTION};
use sheaf_runtime::patch::gone;
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::info;

use crate::images::LOCAL_PROVISIONER;
use crate::world::World;

const MANAGER: &str = "sheaf-orphans";
const RELEASING: &str = "releasing what a removed node had";
/// Set by the agent on the volumes that it makes.
const VOLUME_FINALIZER: &str = "sheaf.io/local-volume";

/// Keyed by the volume's name.
struct Orphans {
    client: Client,
    world: Arc<World>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let of_node = world.clone();
    Driver::new(Orphans { client: client.clone(), world: world.clone() })
        .for_each(&world.volumes)
        .on(&world.claims, |claim| {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
            name.map(|name| ObjectKey::new("", name)).into_iter().collect()
        })
        .on(&world.nodes, move |node| {
            let on = |volume: &PersistentVolume| node_of(volume).as_deref() == Some(&node.name_any());
            let all = of_node.volumes.list();
            all.iter().filter(|volume| on(volume)).map(|volume| ObjectKey::of(&**volume)).collect()
        })
        .spawn(group);
}

/// What has to be done in the agent's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rescue {
    Nothing,
    /// The claim is to be deleted: let it go.
    Claim,
    /// The volume's claim has gone: remove the object.
    Volume,
}

fn plan_rescue(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    node_exists: impl Fn(&str) -> bool,
) -> Rescue {
    let ours =
        volume.annotations().get("pv.kubernetes.io/provisioned-by").is_some_and(|p| p == LOCAL_PROVISIONER);
    if !ours || node_of(volume).is_none_or(|node| node_exists(&node)) {
        return Rescue::Nothing;
    }
    let spec = volume.spec.as_ref();
    let uid = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref());
    let deleting = volume.metadata.deletion_timestamp.is_some();
    match claim.filter(|claim| uid.is_some() && claim.metadata.uid.as_ref() == uid) {
        Some(claim) => {
            let held = claim.finalizers().iter().any(|f| f == PROTECTION);
            let going = claim.metadata.deletion_timestamp.is_some();
            if held && going { Rescue::Claim } else { Rescue::Nothing }
        }
        None => {
            let delete =
                spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
            if deleting || (delete && uid.is_some()) { Rescue::Volume } else { Rescue::Nothing }
        }
    }
}

/// The node that a volume's affinity names.
fn node_of(volume: &PersistentVolume) -> Option<String> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let mut all =
        affinity.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    all.find(|e| e.key == "kubernetes.io/hostname" && e.operator == "In")?.values.as_ref()?.first().cloned()
}

impl Controller for Orphans {
    const NAME: &'static str = "orphans";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(volume) = self.world.volumes.get(key) else { return Ok(Next::Done) };
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
        let claim_key =
            ObjectKey::new(reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
        let claim = self.world.claims.get(&claim_key);
        let exists = |node: &str| self.world.nodes.get(&ObjectKey::new("", node)).is_some();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &claim_key.namespace);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match plan_rescue(&volume, claim.as_deref(), exists) {
            Rescue::Nothing => {}
            Rescue::Claim => {
                let Some(claim) = claim else { return Ok(Next::Done) };
                let patch = Patch::Merge(claim::let_go(&claim));
                gone(claims.patch(&claim_key.name, &params, &patch).await, RELEASING)?;
                info!(claim = %claim_key, "claim of a removed node released");
            }
            Rescue::Volume => {
                // The cache may be behind, and this cannot be undone.
                let now = claims.get_opt(&claim_key.name).await.map_err(StepError::api("reading a claim"))?;
                let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone());
                if now.is_some_and(|claim| claim.metadata.uid == uid) {
                    return Ok(Next::After(std::time::Duration::from_secs(1)));
                }
                let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
                if volume.metadata.deletion_timestamp.is_none() {
                    gone(volumes.delete(&key.name, &DeleteParams::default()).await, RELEASING)?;
                    return Ok(Next::Done);
                }
                let patch = Patch::Merge(without(&*volume, VOLUME_FINALIZER));
                gone(volumes.patch(&key.name, &params, &patch).await, RELEASING)?;
                info!(volume = key.name, "volume of a removed node released");
            }
        }
        Ok(Next::Done)
    }
}

/// A patch that takes a finalizer away.
fn without<K: kube::Resource>(object: &K, finalizer: &str) -> Value {
    let left: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    json!({"metadata": {"finalizers": left, "resourceVersion": object.meta().resource_version}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(uid: &str, policy: &str, deleting: bool) -> PersistentVolume {
        let mut object = json!({
            "metadata": {"name": "v", "annotations": {"pv.kubernetes.io/provisioned-by": LOCAL_PROVISIONER}},
            "spec": {
                "persistentVolumeReclaimPolicy": policy, "claimRef": {"namespace": "d", "name": "c", "uid": uid},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}},
            },
        });
        if deleting {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(object).expect("a volume")
    }

    fn claim(deleting: bool) -> PersistentVolumeClaim {
        let mut object = json!({"metadata": {"name": "c", "uid": "u1", "finalizers": [PROTECTION]}});
        if deleting {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(object).expect("a claim")
    }

    #[test]
    fn only_what_a_removed_node_held_is_released() {
        let (there, going) = (claim(false), claim(true));
        for (volume, claim, rescue) in [
            (volume("u1", "Delete", false), Some(&there), Rescue::Nothing),
            (volume("u1", "Delete", false), Some(&going), Rescue::Claim),
            (volume("u1", "Delete", false), None, Rescue::Volume),
            (volume("u2", "Delete", false), Some(&going), Rescue::Volume),
            (volume("u1", "Retain", false), None, Rescue::Nothing),
            (volume("u1", "Retain", true), None, Rescue::Volume),
            (volume("u1", "Retain", true), Some(&there), Rescue::Nothing),
        ] {
            assert_eq!(plan_rescue(&volume, claim, |_| false), rescue, "{volume:?}");
            assert_eq!(plan_rescue(&volume, claim, |node| node == "n1"), Rescue::Nothing);
        }
    }
}
