//! Images: gives each a node that keeps its file, and a storage class by which volumes of it are made.
//!
//! The work on an image (download, upload, checks, status) is that of its node's agent. Owns the annotation
//! `sheaf.io/image-node`, the finalizer of images that have no node, and the storage class `lh-UID`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::harvester::VirtualMachineImage;
use sheaf_api::longhorn::DRIVER;
use sheaf_plan::place::ready;
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::info;

use crate::world::World;

const MANAGER: &str = "sheaf-images";
/// On an image: the node that keeps its file.
pub const IMAGE_NODE: &str = "sheaf.io/image-node";
/// Provisioner of volumes that are files of one node.
pub const LOCAL_PROVISIONER: &str = "local.sheaf.io";

struct Images {
    client: Client,
    world: Arc<World>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, group: &TaskGroup) {
    let of_node = world.clone();
    Driver::new(Images { client: client.clone(), world: world.clone() })
        .for_each(&world.images)
        .on(&world.nodes, move |_| of_node.images.list().iter().map(|i| ObjectKey::of(&**i)).collect())
        .after(&world.classes)
        .spawn(group);
}

impl Controller for Images {
    const NAME: &'static str = "images";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(image) = self.world.images.get(key) else { return Ok(Next::Done) };
        let class = class_name(&image);
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let have_class = self.world.classes.get(&ObjectKey::new("", &class)).is_some();
        if image.metadata.deletion_timestamp.is_some() {
            if have_class {
                match classes.delete(&class, &DeleteParams::default()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(StepError::api("deleting an image's storage class")(error)),
                }
            }
            return self.release_orphan(key, &image).await;
        }
        if !have_class {
            let all = self.world.classes.list();
            let base = base(&image, &all);
            let object = storage_class(&class, key, &image, base);
            let object =
                serde_json::from_value(object).map_err(StepError::other("composing a storage class"))?;
            match classes.create(&PostParams::default(), &object).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                Err(error) => return Err(StepError::api("creating an image's storage class")(error)),
            }
        }
        if self.node_of(&image).is_none() {
            // The first ready node by name: stable, and every node can fetch the file from it.
            let nodes = self.world.nodes.list();
            let chosen = nodes.iter().filter(|n| ready(n)).find_map(|n| n.metadata.name.clone());
            let Some(node) = chosen else { return Ok(Next::Done) };
            let patch = json!({"metadata": {
                "annotations": {IMAGE_NODE: node}, "resourceVersion": image.metadata.resource_version,
            }});
            self.api(key)
                .patch(&key.name, &params(), &Patch::Merge(patch))
                .await
                .map_err(StepError::api("giving an image its node"))?;
            info!(%node, "image given to a node");
        }
        Ok(Next::Done)
    }
}

impl Images {
    fn api(&self, key: &ObjectKey) -> Api<VirtualMachineImage> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// The image's node, if it still exists.
    fn node_of(&self, image: &VirtualMachineImage) -> Option<String> {
        let name = image.metadata.annotations.as_ref()?.get(IMAGE_NODE)?;
        self.world.nodes.get(&ObjectKey::new("", name)).map(|_| name.clone())
    }

    /// Without a node there is no agent that would remove its finalizer.
    async fn release_orphan(&self, key: &ObjectKey, image: &VirtualMachineImage) -> Result<Next, StepError> {
        let ours = |f: &String| f.starts_with("sheaf.io/");
        let finalizers = image.metadata.finalizers.clone().unwrap_or_default();
        if self.node_of(image).is_some() || !finalizers.iter().any(ours) {
            return Ok(Next::Done);
        }
        let left: Vec<_> = finalizers.into_iter().filter(|f| !ours(f)).collect();
        let patch = json!({"metadata": {
            "finalizers": left, "resourceVersion": image.metadata.resource_version,
        }});
        match self.api(key).patch(&key.name, &params(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("releasing an image")(error)),
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

/// Name of the storage class of an image, as clients of Harvester derive it.
pub fn class_name(image: &VirtualMachineImage) -> String {
    format!("lh-{}", image.metadata.uid.as_deref().unwrap_or_default())
}

/// The class by whose rules volumes of an image are made: the one that the image names, else the default one.
fn base<'a>(image: &VirtualMachineImage, all: &'a [Arc<StorageClass>]) -> Option<&'a StorageClass> {
    let annotations = image.metadata.annotations.as_ref();
    let named = Some(image.spec.target_storage_class_name.as_str()).filter(|n| !n.is_empty());
    let named = named.or_else(|| annotations?.get("harvesterhci.io/storageClassName").map(String::as_str));
    let default = crate::claims::plan_default(all.iter().map(|c| &**c));
    let name = named.or(default)?;
    all.iter().find(|c| c.metadata.name.as_deref() == Some(name)).map(|c| &**c)
}

fn storage_class(
    name: &str,
    image: &ObjectKey,
    object: &VirtualMachineImage,
    base: Option<&StorageClass>,
) -> serde_json::Value {
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    let replicated = base.filter(|c| c.provisioner == DRIVER);
    if let Some(base) = replicated {
        parameters.extend(base.parameters.clone().unwrap_or_default());
        parameters.extend(object.spec.storage_class_parameters.clone());
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        parameters.insert("backingImage".into(), format!("vmi-{uid}"));
        parameters.insert("backingImageDataSourceType".into(), object.spec.source_type.clone());
    }
    parameters.insert("sheaf.io/image".into(), image.to_string());
    let binding = replicated.and_then(|c| c.volume_binding_mode.as_deref());
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name, "annotations": {"harvesterhci.io/imageId": image.to_string()}},
        "provisioner": if replicated.is_some() { DRIVER } else { LOCAL_PROVISIONER },
        "parameters": parameters,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": binding.unwrap_or(if replicated.is_some() { "Immediate" } else { "WaitForFirstConsumer" }),
        "allowVolumeExpansion": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_class_follows_the_one_it_is_based_on() {
        let class = |name: &str, provisioner: &str, default: bool| {
            let mark = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
            let class = json!({"metadata": {"name": name, "annotations": mark}, "provisioner": provisioner,
                "parameters": {"numberOfReplicas": "2"}, "volumeBindingMode": "Immediate"});
            Arc::new(serde_json::from_value::<StorageClass>(class).expect("a class"))
        };
        let all = [class("local", LOCAL_PROVISIONER, false), class("lh", DRIVER, true)];
        let mut image = VirtualMachineImage::new("ns", "i");
        image.metadata.uid = Some("u".into());
        let key = ObjectKey::new("ns", "i");
        let made = storage_class("lh-u", &key, &image, base(&image, &all));
        assert_eq!((&made["provisioner"], &made["volumeBindingMode"]), (&json!(DRIVER), &json!("Immediate")));
        assert_eq!(made["parameters"]["backingImage"], "vmi-u");
        assert_eq!(made["parameters"]["numberOfReplicas"], "2");
        image.spec.target_storage_class_name = "local".into();
        let made = storage_class("lh-u", &key, &image, base(&image, &all));
        assert_eq!(made["provisioner"], LOCAL_PROVISIONER);
        assert_eq!(made["parameters"], json!({"sheaf.io/image": "ns/i"}));
        assert_eq!(storage_class("lh-u", &key, &image, None)["provisioner"], LOCAL_PROVISIONER);
    }
}
