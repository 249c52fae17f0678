//! Rules of volumes.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Problems;
use crate::kubevirt::{CloudInit, VirtualMachineInstanceSpec, Volume};

const VOLUMES_MAX: usize = 256;
/// Most bytes of cloud-init data inside an object; more goes into a secret.
const INLINE_MAX: usize = 2048;

pub(super) fn validate(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let base = format!("{b}.volumes");
    if spec.volumes.len() > VOLUMES_MAX {
        problems.invalid(base.clone(), spec.volumes.len(), format!("may have at most {VOLUMES_MAX} entries"));
        return;
    }
    let mut names = BTreeSet::new();
    for (i, volume) in spec.volumes.iter().enumerate() {
        let field = format!("{base}[{i}]");
        if volume.name.is_empty() {
            problems.required(format!("{field}.name"), "");
        } else if !names.insert(volume.name.as_str()) {
            problems.duplicate(format!("{field}.name"), volume.name.as_str());
        }
        one_source(&field, volume, problems);
        source(&field, volume, problems);
    }
    for (name, count) in [
        ("serviceAccount", spec.volumes.iter().filter(|v| v.service_account.is_some()).count()),
        ("downwardMetrics", spec.volumes.iter().filter(|v| v.downward_metrics.is_some()).count()),
        ("memoryDump", spec.volumes.iter().filter(|v| v.memory_dump.is_some()).count()),
    ] {
        if count > 1 {
            problems.invalid(base.clone(), count, format!("may have at most one {name} volume"));
        }
    }
}

fn one_source(field: &str, volume: &Volume, problems: &mut Problems) {
    let given = serde_json::to_value(volume).unwrap_or_default();
    let given: Vec<&str> =
        given.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).filter(|k| *k != "name").collect();
    match given.as_slice() {
        [_] => {}
        [] => problems.invalid(
            field,
            volume.name.as_str(),
            "must have exactly one source, as persistentVolumeClaim, dataVolume, cloudInitNoCloud or containerDisk; it has none",
        ),
        several => problems.invalid(
            field,
            volume.name.as_str(),
            format!("must have exactly one source; it has {}", several.join(" and ")),
        ),
    }
}

fn source(field: &str, v: &Volume, problems: &mut Problems) {
    let mut named = |path: &str, name: Option<&str>| {
        if name == Some("") {
            problems.required(format!("{field}.{path}"), "");
        }
    };
    named("name", v.data_volume.as_ref().map(|d| d.name.as_str()));
    named("configMap.name", v.config_map.as_ref().map(|c| c.name.as_str()));
    named("secret.secretName", v.secret.as_ref().map(|s| s.secret_name.as_str()));
    named(
        "serviceAccount.serviceAccountName",
        v.service_account.as_ref().map(|s| s.service_account_name.as_str()),
    );
    named(
        "persistentVolumeClaim.claimName",
        v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str()),
    );
    named("memoryDump.claimName", v.memory_dump.as_ref().map(|c| c.claim_name.as_str()));
    named("containerDisk.image", v.container_disk.as_ref().map(|c| c.image.as_str()));
    if let Some(seed) = &v.cloud_init_no_cloud {
        cloud_init(&format!("{field}.cloudInitNoCloud"), seed, problems);
    }
    if let Some(seed) = &v.cloud_init_config_drive {
        cloud_init(&format!("{field}.cloudInitConfigDrive"), seed, problems);
    }
    if let Some(disk) = &v.empty_disk {
        let path = format!("{field}.emptyDisk.capacity");
        let size = problems.quantity(&path, &disk.capacity.0.as_str().into());
        if size.is_some_and(|s| s.signum() <= 0) {
            problems.invalid(path, disk.capacity.0.as_str(), "must be greater than 0");
        }
    }
    if let Some(disk) = &v.host_disk {
        let path = format!("{field}.hostDisk");
        if disk.path.is_empty() {
            problems.required(format!("{path}.path"), "path is required");
        }
        match disk.r#type.as_str() {
            "" => problems.required(format!("{path}.type"), "Disk or DiskOrCreate"),
            ty => problems.one_of(format!("{path}.type"), ty, &["Disk", "DiskOrCreate"]),
        }
        if disk.r#type == "Disk" && disk.capacity.as_ref().is_some_and(|c| !c.0.is_empty() && c.0 != "0") {
            problems.invalid(format!("{path}.capacity"), "", "is allowed only when the type is DiskOrCreate");
        }
    }
    if let Some(sysprep) = &v.sysprep
        && sysprep.config_map.is_some() == sysprep.secret.is_some()
    {
        problems.required(format!("{field}.sysprep"), "exactly one of configMap and secret must be given");
    }
}

fn cloud_init(field: &str, seed: &CloudInit, problems: &mut Problems) {
    let user = [
        ("userData", !seed.user_data.is_empty()),
        ("userDataBase64", !seed.user_data_base64.is_empty()),
        ("secretRef", seed.secret_ref.is_some()),
    ];
    let network = [
        ("networkData", !seed.network_data.is_empty()),
        ("networkDataBase64", !seed.network_data_base64.is_empty()),
        ("networkDataSecretRef", seed.network_data_secret_ref.is_some()),
    ];
    for (what, sources) in [("userdata", &user), ("networkdata", &network)] {
        let given: Vec<&str> = sources.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if given.len() > 1 {
            problems.invalid(field, given.join(", "), format!("must have only one {what} source"));
        }
    }
    if !user.iter().chain(&network).any(|(_, given)| *given) {
        problems.required(field, "must have at least one userdatasource or one networkdatasource");
    }
    for (name, secret) in
        [("secretRef", &seed.secret_ref), ("networkDataSecretRef", &seed.network_data_secret_ref)]
    {
        if secret.as_ref().is_some_and(|s| s.name.is_empty()) {
            problems.required(format!("{field}.{name}.name"), "");
        }
    }
    for (name, text, base64) in [
        ("userData", &seed.user_data, false),
        ("userDataBase64", &seed.user_data_base64, true),
        ("networkData", &seed.network_data, false),
        ("networkDataBase64", &seed.network_data_base64, true),
    ] {
        let path = format!("{field}.{name}");
        let size = if base64 {
            match STANDARD.decode(text.trim()) {
                Ok(bytes) => bytes.len(),
                Err(e) => {
                    problems.invalid(path, "", format!("is not a valid base64 value: {e}"));
                    continue;
                }
            }
        } else {
            text.len()
        };
        if size > INLINE_MAX {
            problems.invalid(
                path,
                "",
                format!(
                    "has {size} bytes, more than the {INLINE_MAX} that fit into an object: put it into a Secret and name that \
                     in {}",
                    if name.starts_with("user") { "secretRef" } else { "networkDataSecretRef" }
                ),
            );
        }
    }
}
