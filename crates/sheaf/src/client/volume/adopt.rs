//! `sheaf volume adopt`: a replica directory of Longhorn's becomes a volume of the cluster, in place. What is in the directory is
//! looked at here, on its machine; it is taken over by that node's agent, from the objects that are written here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;
use sheaf_plan::storage::{ADOPT, ID, INITIAL};
use sheaf_storage::inspect;

use super::cluster::{NAMESPACE, made};
use super::local::new_volume;
use super::view::text;
use crate::client::Session;
use crate::client::api::{CLAIMS, PERSISTENT, PLACES, VOLUMES};
use crate::client::fail::Exit;
use crate::client::print::put;
use crate::client::progress::Progress;

/// What a disk is known by, at its root.
const IDENTITY: &str = "longhorn-disk.cfg";
/// The class of the claim: what it allows, a machine's disk needs.
const CLASS: &str = "harvester-longhorn";
const DRIVER: &str = "driver.longhorn.io";

/// What is to be adopted, and as what.
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) dirty: bool,
    pub(super) name: Option<String>,
    pub(super) replicas: Option<u8>,
    pub(super) claim: Option<String>,
}

/// Volume and eight digits that a directory's name tells.
fn parts(directory: &str) -> Option<(&str, &str)> {
    let (volume, digits) = directory.rsplit_once('-')?;
    let number = u32::from_str_radix(digits, 16).ok().filter(|n| *n != 0);
    (number.is_some() && digits.len() == 8 && digits == digits.to_lowercase() && !volume.is_empty())
        .then_some((volume, digits))
}

/// The node, and the directory of its disk with this UUID.
fn node_of(places: &[Value], uuid: &str) -> Option<(String, String)> {
    places.iter().find_map(|node| {
        let disks = node.pointer("/status/diskStatus")?.as_object()?;
        let disk = disks.values().find(|disk| text(disk, "/diskUUID") == uuid)?;
        Some((object::name(node).to_owned(), text(disk, "/diskPath").to_owned()))
    })
}

pub(super) async fn run(session: &Session, wanted: Wanted, timeout: Duration) -> Result<()> {
    let path = &wanted.path;
    let path = path.canonicalize().with_context(|| {
        format!("looking at {}: adopt is to be run on the machine that has the directory", path.display())
    })?;
    let here = path.display().to_string();
    let refuse = |why: String| Exit::usage(format!("{here}: {why}"));
    let directory = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let root = path.parent().filter(|p| p.ends_with("replicas")).and_then(Path::parent);
    let root = root.ok_or_else(|| refuse("it does not lie in replicas/ of a disk".into()))?;
    let places = session.list(PLACES, Some(NAMESPACE)).await?;
    let told = std::fs::read(root.join(IDENTITY)).ok();
    let told: Value = told.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let found = node_of(&places, text(&told, "/diskUUID"));
    let Some((node, disk)) = found.filter(|_| !text(&told, "/diskUUID").is_empty()) else {
        let why = format!(
            "{} is no disk that a node of the cluster has; add it to spec.disks of its nodes.longhorn.io object first",
            root.display()
        );
        return Err(refuse(why));
    };
    let report = inspect::look(&path).map_err(refuse)?;
    if let Some(why) = report.refused {
        return Err(refuse(why));
    }
    if let Some(belief) = report.belief {
        return Err(refuse(format!("it is replica {} of volume {} already", belief.replica, belief.volume)));
    }
    if report.rebuilding {
        return Err(refuse(
            "volume.meta: Rebuilding: a rebuild has not ended in it; take another replica".into(),
        ));
    }
    if report.dirty && !wanted.dirty {
        let why = "volume.meta: Dirty: it was not closed properly; take a replica that was, or say --dirty";
        return Err(refuse(why.into()));
    }
    let id = new_volume()?;
    let (volume, digits) = match parts(&directory) {
        Some((volume, digits)) => (volume.to_owned(), digits.to_owned()),
        // As good as any: the number is the only one of a new volume.
        None => (directory.clone(), format!("{:08x}", u32::from_str_radix(&id[..8], 16).unwrap_or(1).max(1))),
    };
    let name = wanted.name.clone().unwrap_or(volume);
    let initial = json!([{
        "name": format!("{name}-r-{digits}"), "node": node, "disk": text(&told, "/diskUUID"), "path": disk,
        "directory": directory,
    }]);
    let mut spec = json!({"size": report.bytes.to_string(), "frontend": "blockdev", "accessMode": "rwx", "migratable": true});
    if let Some(replicas) = wanted.replicas {
        spec["numberOfReplicas"] = json!(replicas);
    }
    let object = json!({
        "apiVersion": "longhorn.io/v1beta2", "kind": "Volume",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "finalizers": ["longhorn.io"],
            "annotations": {
                (ID): id, (INITIAL): initial.to_string(),
                (ADOPT): if wanted.dirty { "dirty" } else { "clean" },
            },
        },
        "spec": spec,
    });
    session.create(VOLUMES, NAMESPACE, &object, false).await?;
    made(session, &name, timeout).await?;
    put(&format!("volume {name} is what {here} holds, on node {node}\n"))?;
    match &wanted.claim {
        Some(claim) => bind(session, &name, claim, report.bytes, timeout).await,
        None => Ok(()),
    }
}

/// Makes a claim for a volume, and what joins them.
async fn bind(session: &Session, volume: &str, claim: &str, bytes: u64, timeout: Duration) -> Result<()> {
    let namespace = session.namespace.as_str();
    let size = Quantity::from_bytes(bytes).to_string();
    let modes = json!(["ReadWriteMany"]);
    let persistent = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume, "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER},
            "finalizers": ["kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer"],
        },
        "spec": {
            "capacity": {"storage": size}, "accessModes": modes, "volumeMode": "Block", "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
            "csi": {"driver": DRIVER, "volumeHandle": volume},
        },
    });
    session.create_cluster(PERSISTENT, &persistent).await?;
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": modes, "volumeMode": "Block", "storageClassName": CLASS, "volumeName": volume,
            "resources": {"requests": {"storage": size}},
        },
    });
    session.create(CLAIMS, namespace, &object, false).await?;
    let what = format!("claim {namespace}/{claim} to be bound to volume {volume}");
    Progress::spinner()
        .until(&what, timeout, async |progress| {
            let claim = session.get(CLAIMS, namespace, claim).await?;
            let phase = text(&claim, "/status/phase");
            progress.tell(&format!("it is {phase}"));
            Ok((phase == "Bound").then_some(()))
        })
        .await?;
    put(&format!("claim {namespace}/{claim} is bound to it\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_name_tells_the_volume() {
        assert_eq!(parts("pvc-1-0a1b2c3d"), Some(("pvc-1", "0a1b2c3d")));
        for other in ["pvc-1", "pvc-1-00000000", "-0a1b2c3d", "pvc-1-0A1B2C3D", "x"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn a_disk_is_known_by_its_uuid() {
        let node = json!({"metadata": {"name": "n"},
            "status": {"diskStatus": {"d": {"diskUUID": "u", "diskPath": "/d"}, "e": {"diskUUID": "v", "diskPath": "/e"}}}});
        let nodes = [json!({"metadata": {"name": "m"}}), node];
        assert_eq!(node_of(&nodes, "v"), Some(("n".into(), "/e".into())));
        assert_eq!(node_of(&nodes, "w"), None);
    }
}
