//! addvolume and removevolume: a disk for a machine that runs, as part of its spec.
//!
//! On a VM they change the template, from where the VM controller carries the disk to the running instance; on an instance
//! that belongs to no VM they change the instance. The decision is pure; texts and codes are upstream's.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{ResourceRef, Status},
};

use super::{Round, VM, VMI, dry_run, get_vmi, object_path, phase, until_written};
use crate::{core::Core, internal};

/// Carries out a subresource.
pub(super) async fn change(
    core: &Arc<Core>,
    resource: &str,
    namespace: &str,
    name: &str,
    action: &str,
    options: &Value,
) -> Result<(), Status> {
    check(action, options)?;
    let dry = dry_run(options)?;
    let of_vm = resource == "virtualmachines";
    let (kind, path) = (if of_vm { VM } else { VMI }, object_path(resource, namespace, name));
    until_written(kind, name, || {
        Box::pin(async {
            let found = match of_vm {
                true => internal::get(core, &path).await?,
                false => get_vmi(core, namespace, name).await?,
            };
            let object = found.ok_or_else(|| Status::not_found(kind, name))?;
            if !of_vm {
                instance(&object)?;
            }
            let at = if of_vm { "/spec/template/spec" } else { "/spec" };
            let spec = object.pointer(at).cloned().unwrap_or_default();
            let changed = decide(action, &spec, options, kind, name)?;
            let mut patch = json!({"metadata": {"resourceVersion": object::resource_version(&object)}});
            patch["spec"] = if of_vm { json!({"template": {"spec": changed}}) } else { changed };
            let written = internal::merge(core, &format!("{path}{dry}"), &patch).await;
            written.map(drop).map_err(|status| match status.reason {
                "Conflict" | "Invalid" => Round::Overtaken(status),
                _ => {
                    let what = if of_vm { "vm" } else { "vmi" };
                    let text = format!("Internal error occurred: unable to patch {what}: {}", status.message);
                    Round::Refused(Status::new(500, "InternalError", text))
                }
            })
        })
    })
    .await
}

/// Whether the options say enough.
fn check(action: &str, options: &Value) -> Result<(), Status> {
    let there = |key: &str| options.get(key).is_some_and(|v| !v.is_null());
    let named = options["name"].as_str().is_some_and(|n| !n.is_empty());
    let missing = match action {
        _ if options.as_object().is_none_or(|o| o.is_empty()) => {
            "Request with no body, a new name is expected as the request body"
        }
        "addvolume" if !named => "AddVolumeOptions requires name to be set",
        "addvolume" if !there("disk") => "AddVolumeOptions requires disk to not be nil",
        "addvolume" if !there("volumeSource") => "AddVolumeOptions requires VolumeSource to not be nil",
        "removevolume" if !named => "RemoveVolumeOptions requires name to be set",
        _ => return Ok(()),
    };
    Err(Status::bad_request(missing))
}

/// Whether an instance may be changed by itself.
fn instance(vmi: &Value) -> Result<(), Status> {
    let name = object::name(vmi);
    let owners = vmi.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    if owners.into_iter().flatten().any(|o| o["kind"] == "VirtualMachine" && o["controller"] == true) {
        let text =
            format!("VMI {name} is owned by a VM; add or remove the volume on the VM of the same name");
        return Err(Status::bad_request(text));
    }
    if phase(vmi) != "Running" {
        return Err(Status::conflict(VMI, name, "VMI is not running"));
    }
    Ok(())
}

fn source(of: &Value) -> &str {
    let claim = of.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str);
    claim.or_else(|| of.pointer("/dataVolume/name").and_then(Value::as_str)).unwrap_or_default()
}

/// The merge patch of a spec, or why there is none.
fn decide(
    action: &str,
    spec: &Value,
    options: &Value,
    kind: ResourceRef<'static>,
    name: &str,
) -> Result<Value, Status> {
    let refuse = |why: String| Err(Status::conflict(kind, name, &why));
    let list = |pointer: &str| spec.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut volumes, mut disks) = (list("/volumes"), list("/domain/devices/disks"));
    let wanted = options["name"].as_str().unwrap_or_default();
    if action == "addvolume" {
        let mut volume = options["volumeSource"].clone();
        let from = source(&volume).to_owned();
        for there in &volumes {
            if there["name"] == wanted {
                return refuse(format!(
                    "Unable to add volume [{wanted}] because volume with that name already exists"
                ));
            }
            if !from.is_empty() && source(there) == from {
                return refuse(format!("Unable to add volume source [{from}] because it already exists"));
            }
        }
        for kind in ["persistentVolumeClaim", "dataVolume"] {
            if let Some(source) = volume.get_mut(kind).filter(|s| s.is_object()) {
                source["hotpluggable"] = json!(true);
            }
        }
        volume["name"] = json!(wanted);
        let mut disk = options["disk"].clone();
        disk["name"] = json!(wanted);
        // A drive that is there and empty gets the disc; anything else is a disk of its own.
        match disks.iter_mut().find(|d| d["name"] == wanted) {
            Some(drive) if drive.get("cdrom").is_some() => {}
            Some(there) => *there = disk,
            None => disks.push(disk),
        }
        volumes.push(volume);
    } else {
        let found = volumes.iter().find(|v| v["name"] == wanted || source(v) == wanted).cloned();
        let Some(found) = found else {
            return refuse(format!("Unable to remove volume [{wanted}] because it does not exist"));
        };
        let hotpluggable =
            ["persistentVolumeClaim", "dataVolume"].iter().any(|k| found[*k]["hotpluggable"] == true);
        if !hotpluggable {
            let volume = found["name"].as_str().unwrap_or_default();
            return refuse(format!("Unable to remove volume [{volume}] because it is not hotpluggable"));
        }
        volumes.retain(|v| v["name"] != found["name"]);
        disks.retain(|d| d["name"] != found["name"] || d.get("cdrom").is_some());
    }
    Ok(json!({"volumes": volumes, "domain": {"devices": {"disks": disks}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({"volumes": [
            {"name": "root", "persistentVolumeClaim": {"claimName": "r"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "d", "hotpluggable": true}}],
            "domain": {"devices": {"disks": [{"name": "root", "disk": {}}, {"name": "data", "disk": {"bus": "scsi"}},
                {"name": "cd", "cdrom": {"bus": "sata"}}]}}})
    }

    fn shown(action: &str, options: &Value) -> String {
        let decided = check(action, options).and_then(|()| decide(action, &spec(), options, VM, "a"));
        match decided {
            Err(status) => {
                format!("{} {}", status.code, status.message.rsplit(": ").next().unwrap_or_default())
            }
            Ok(patch) => {
                let names = |pointer: &str| {
                    let all = patch.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
                    all.iter()
                        .filter_map(|v| v["name"].as_str().map(String::from))
                        .collect::<Vec<_>>()
                        .join(",")
                };
                format!("{} | {}", names("/volumes"), names("/domain/devices/disks"))
            }
        }
    }

    #[test]
    fn volumes_are_added_and_removed() {
        let add = |name: &str, claim: &str| json!({"name": name, "disk": {"disk": {"bus": "scsi"}}, "volumeSource": {"persistentVolumeClaim": {"claimName": claim}}});
        for (action, options, want) in [
            ("addvolume", add("new", "n"), "root,data,new | root,data,cd,new"),
            ("addvolume", add("cd", "iso"), "root,data,cd | root,data,cd"),
            (
                "addvolume",
                add("data", "n"),
                "409 Unable to add volume [data] because volume with that name already exists",
            ),
            ("addvolume", add("new", "d"), "409 Unable to add volume source [d] because it already exists"),
            ("addvolume", json!({"name": "x"}), "400 AddVolumeOptions requires disk to not be nil"),
            ("addvolume", json!({}), "400 Request with no body, a new name is expected as the request body"),
            ("removevolume", json!({"name": "data"}), "root | root,cd"),
            ("removevolume", json!({"name": "d"}), "root | root,cd"),
            (
                "removevolume",
                json!({"name": "root"}),
                "409 Unable to remove volume [root] because it is not hotpluggable",
            ),
            (
                "removevolume",
                json!({"name": "x"}),
                "409 Unable to remove volume [x] because it does not exist",
            ),
            ("removevolume", json!({"dryRun": ["All"]}), "400 RemoveVolumeOptions requires name to be set"),
        ] {
            assert_eq!(shown(action, &options), want, "{action} {options}");
        }
        let patch = decide("addvolume", &spec(), &add("new", "n"), VM, "a").unwrap();
        assert_eq!(patch["volumes"][2]["persistentVolumeClaim"]["hotpluggable"], true);
    }

    #[test]
    fn an_instance_of_a_vm_is_changed_through_its_vm() {
        let mut vmi = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        assert!(instance(&vmi).is_ok());
        vmi["metadata"]["ownerReferences"] = json!([{"kind": "VirtualMachine", "controller": true}]);
        assert_eq!(instance(&vmi).unwrap_err().code, 400);
        let stopped = json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}});
        assert_eq!(instance(&stopped).unwrap_err().code, 409);
    }
}
