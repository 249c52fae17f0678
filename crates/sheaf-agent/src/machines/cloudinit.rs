//! The files on cloud-init's disk: from the volume's data, the secrets it names and the instance itself. Pure.
//!
//! The identity that cloud-init goes by is the firmware's UUID: it stays the same when the machine restarts, so that
//! first-boot work is done once, and differs in a clone. Network data is passed on as it is.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheaf_api::kubevirt as kv;

use super::disks::CloudInitKind;

/// Values by key of a secret or a config map.
pub(super) type Data = BTreeMap<String, Vec<u8>>;

/// What the files are made of, besides the volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inputs {
    /// Firmware UUID.
    pub uuid: String,
    /// Namespace and name.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// Host name, qualified if the instance has a subdomain.
    pub hostname: String,
    /// Public keys from `accessCredentials`.
    pub ssh_keys: Vec<String>,
}

/// The text given inline, in base64, or in a secret under one of `keys`.
fn text(
    plain: &str,
    base64: &str,
    secret: Option<&Data>,
    keys: [&str; 2],
    field: &str,
) -> Result<Option<Vec<u8>>, String> {
    if !plain.is_empty() {
        return Ok(Some(plain.as_bytes().to_vec()));
    }
    if !base64.is_empty() {
        let encoded = Value::String(base64.split_whitespace().collect());
        let decoded: Result<k8s_openapi::ByteString, _> = serde_json::from_value(encoded);
        return decoded.map(|b| Some(b.0)).map_err(|_| format!("{field}Base64 is not valid base64"));
    }
    Ok(keys.iter().find_map(|key| secret.and_then(|s| s.get(*key))).cloned())
}

/// The label of a disk, and its files.
pub(super) type Labelled = (&'static str, Vec<(String, Vec<u8>)>);

/// The files of the disk and its label.
pub(super) fn files(
    kind: CloudInitKind,
    volume: &kv::CloudInit,
    user_secret: Option<&Data>,
    network_secret: Option<&Data>,
    inputs: &Inputs,
) -> Result<Labelled, String> {
    let user =
        text(&volume.user_data, &volume.user_data_base64, user_secret, ["userdata", "userData"], "userData")?;
    let network = text(
        &volume.network_data,
        &volume.network_data_base64,
        network_secret,
        ["networkdata", "networkData"],
        "networkData",
    )?;
    let network = network.filter(|n| !n.trim_ascii().is_empty());
    let keys: BTreeMap<String, &String> =
        inputs.ssh_keys.iter().enumerate().map(|(i, k)| (i.to_string(), k)).collect();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    match kind {
        CloudInitKind::NoCloud => {
            let mut meta = json!({"instance-id": inputs.uuid, "local-hostname": inputs.hostname});
            if !keys.is_empty() {
                meta["public-keys"] = json!(inputs.ssh_keys);
            }
            files.push(("meta-data".into(), pretty(&meta)));
            files.push(("user-data".into(), user.unwrap_or_default()));
            if let Some(network) = network {
                files.push(("network-config".into(), network));
            }
            Ok(("cidata", files))
        }
        CloudInitKind::ConfigDrive => {
            let mut meta = json!({
                "instance_id": format!("{}.{}", inputs.name, inputs.namespace),
                "hostname": inputs.hostname,
                "local_hostname": inputs.hostname,
                "uuid": inputs.uuid,
            });
            if !keys.is_empty() {
                meta["public_keys"] = json!(keys);
            }
            files.push(("openstack/latest/meta_data.json".into(), pretty(&meta)));
            files.push(("openstack/latest/user_data".into(), user.unwrap_or_default()));
            if let Some(network) = network {
                files.push(("openstack/latest/network_data.json".into(), network));
            }
            Ok(("config-2", files))
        }
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    // cloud-init reads meta-data as YAML, of which JSON is a part.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The public keys in a secret of `accessCredentials`: one or more to a value, one to a line.
pub(super) fn public_keys(secret: &Data) -> Vec<String> {
    let lines = secret
        .values()
        .flat_map(|v| String::from_utf8_lossy(v).lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|l| l.trim().to_string()).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        Inputs {
            uuid: "6f5dfbd4-29b8-4b7e-9d2c-5d7d9a1f4b10".into(),
            namespace: "default".into(),
            name: "vm-a".into(),
            hostname: "vm-a".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
        }
    }

    fn get<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
        files.iter().find(|(n, _)| n == name).and_then(|(_, d)| std::str::from_utf8(d).ok())
    }

    #[test]
    fn no_cloud_from_all_sources() {
        let mut v = kv::CloudInit { user_data: "#cloud-config\n".into(), ..kv::CloudInit::default() };
        let (label, f) = files(CloudInitKind::NoCloud, &v, None, None, &inputs()).expect("files");
        assert_eq!(label, "cidata");
        assert_eq!(get(&f, "user-data"), Some("#cloud-config\n"));
        assert_eq!(get(&f, "network-config"), None);
        let meta: Value = serde_json::from_str(get(&f, "meta-data").expect("meta")).expect("json");
        assert_eq!(meta["instance-id"], inputs().uuid);
        assert_eq!(meta["public-keys"][0], "ssh-ed25519 AAAA me");

        v.user_data = String::new();
        v.user_data_base64 = "I2Nsb3VkLWNvbmZpZwo=".into();
        let secret = Data::from([("networkData".into(), b"version: 2\n".to_vec())]);
        let (_, f) = files(CloudInitKind::NoCloud, &v, None, Some(&secret), &inputs()).expect("files");
        assert_eq!(get(&f, "user-data"), Some("#cloud-config\n"));
        assert_eq!(get(&f, "network-config"), Some("version: 2\n"));

        // A missing key in a secret means no data.
        let (_, f) = files(CloudInitKind::NoCloud, &kv::CloudInit::default(), Some(&secret), None, &inputs())
            .expect("files");
        assert_eq!(get(&f, "user-data"), Some(""));
        v.user_data_base64 = "no base64!".into();
        let err = files(CloudInitKind::NoCloud, &v, None, None, &inputs()).expect_err("bad base64");
        assert_eq!(err, "userDataBase64 is not valid base64");
    }

    #[test]
    fn config_drive() {
        let v = kv::CloudInit { user_data: "x".into(), ..kv::CloudInit::default() };
        let (label, f) = files(CloudInitKind::ConfigDrive, &v, None, None, &inputs()).expect("files");
        assert_eq!((label, get(&f, "openstack/latest/user_data")), ("config-2", Some("x")));
        let meta: Value =
            serde_json::from_str(get(&f, "openstack/latest/meta_data.json").expect("meta")).expect("json");
        assert_eq!(
            (&meta["instance_id"], &meta["public_keys"]["0"]),
            (&json!("vm-a.default"), &json!("ssh-ed25519 AAAA me"))
        );
    }

    #[test]
    fn keys_by_line() {
        let secret = Data::from([("a".into(), b"ssh-rsa A\n\n# old\nssh-rsa B\n".to_vec())]);
        assert_eq!(public_keys(&secret), ["ssh-rsa A", "ssh-rsa B"]);
    }
}
