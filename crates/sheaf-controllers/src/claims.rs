//! Claims that name no class get the default one: at once, or as soon as there is a default. Kubernetes does both, the
//! former when a claim is made and the latter from a controller; a controller alone gives the same end.
//!
//! Owns `spec.storageClassName` of claims that have none. A claim with an empty class ("") has chosen to have none and is
//! left alone, as is one that has a volume already.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Api, Client};
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-claims";
/// The mark of a default class.
pub(crate) const DEFAULT_MARK: &str = "storageclass.kubernetes.io/is-default-class";
/// That, and the old one.
const DEFAULT_MARKS: [&str; 2] = [DEFAULT_MARK, "storageclass.beta.kubernetes.io/is-default-class"];

struct Claims {
    client: Client,
    world: Arc<World>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let of_class = world.clone();
    Driver::new(Claims { client: client.clone(), world: world.clone() })
        .for_each(&world.claims)
        .on(&world.classes, move |_| {
            of_class.claims.list().iter().filter(|c| undecided(c)).map(|c| ObjectKey::of(&**c)).collect()
        })
        .spawn(group);
}

/// True if the claim leaves its class to the cluster.
fn undecided(claim: &PersistentVolumeClaim) -> bool {
    let chosen = |s: &k8s_openapi::api::core::v1::PersistentVolumeClaimSpec| {
        s.storage_class_name.is_some() || s.volume_name.as_deref().is_some_and(|v| !v.is_empty())
    };
    claim.metadata.deletion_timestamp.is_none() && !claim.spec.as_ref().is_some_and(chosen)
}

/// The newest of the classes that are marked as default; by name among equals. Kubernetes takes the newest, too.
pub(crate) fn plan_default<'a>(classes: impl Iterator<Item = &'a StorageClass>) -> Option<&'a str> {
    let marked = |class: &&StorageClass| {
        let of = |mark| class.metadata.annotations.as_ref().and_then(|a| a.get(mark));
        DEFAULT_MARKS.into_iter().any(|mark| of(mark).is_some_and(|v| v == "true"))
    };
    let age = |class: &&StorageClass| {
        let time = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(time), class.metadata.name.clone())
    };
    classes.filter(marked).min_by_key(age)?.metadata.name.as_deref()
}

impl Controller for Claims {
    const NAME: &'static str = "claim-classes";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(claim) = self.world.claims.get(key).filter(|c| undecided(c)) else { return Ok(Next::Done) };
        let classes = self.world.classes.list();
        let Some(class) = plan_default(classes.iter().map(|c| &**c)) else { return Ok(Next::Done) };
        let mut after = (*claim).clone();
        after.spec.get_or_insert_default().storage_class_name = Some(class.to_owned());
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        patch::write(&api, MANAGER, Target::Main, &claim, &after).await?;
        info!(class, "claim given the default class");
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(name: &str, mark: Value, made: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": mark, "creationTimestamp": made}, "provisioner": "x",
        }))
        .expect("a class")
    }

    #[test]
    fn the_newest_default_is_taken() {
        let mark = |v: &str| json!({DEFAULT_MARKS[0]: v});
        let (old, new) = ("2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z");
        let plain = class("plain", json!({}), new);
        let no = class("no", mark("false"), new);
        let first = class("first", mark("true"), old);
        let beta = class("beta", json!({DEFAULT_MARKS[1]: "true"}), new);
        assert_eq!(plan_default([&plain, &no].into_iter()), None);
        assert_eq!(plan_default([&plain, &first, &no].into_iter()), Some("first"));
        assert_eq!(plan_default([&first, &beta].into_iter()), Some("beta"));
    }

    #[test]
    fn a_choice_is_left_alone() {
        let claim = |spec: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).expect("a claim")
        };
        assert!(undecided(&claim(json!({}))));
        assert!(!undecided(&claim(json!({"storageClassName": ""}))));
        assert!(!undecided(&claim(json!({"storageClassName": "local"}))));
        assert!(!undecided(&claim(json!({"volumeName": "pv"}))));
    }
}
