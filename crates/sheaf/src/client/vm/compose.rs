//! From the options of `sheaf vm create` to objects: a VM that brings its claims along, and a secret with its
//! cloud-init user data. Pure.

use serde_json::{Value, json};

/// Claims that the VM brings along; the VM controller makes them (harvester.md 2.1).
pub(crate) const CLAIM_TEMPLATES: &str = "harvesterhci.io/volumeClaimTemplates";
/// Network that needs no attachment definition.
pub(crate) const MANAGEMENT: &str = "management";

/// What is to be made.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wanted {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// NAMESPACE/NAME of the image that the first disk begins as.
    pub(crate) image: Option<String>,
    pub(crate) size: Size,
    /// What suits the guest: a preference.
    pub(crate) preference: Option<Named>,
    /// Sizes; the first is that of the root disk, the others are empty disks.
    pub(crate) disks: Vec<String>,
    /// Claims that are there already; the VM does not own them.
    pub(crate) claims: Vec<String>,
    /// [`MANAGEMENT`], or NAMESPACE/NAME of a network attachment definition.
    pub(crate) networks: Vec<String>,
    pub(crate) node: Option<String>,
    pub(crate) run_strategy: String,
    /// Seconds that the guest has for shutting down.
    pub(crate) grace_period: u32,
    /// Cloud-init user data, complete.
    pub(crate) user_data: Option<String>,
}

/// An object that is referred to by kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
}

impl Named {
    fn reference(&self) -> Value {
        json!({"kind": self.kind, "name": self.name})
    }
}

/// How large a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Size {
    /// So many processors and so much memory.
    Own { cpus: u32, memory: String },
    /// What an instance type says.
    Type(Named),
}

impl Default for Size {
    fn default() -> Self {
        Self::Own { cpus: 1, memory: "1Gi".into() }
    }
}

impl Wanted {
    /// With a preference, the models of devices are left to it.
    fn device(&self, key: &str) -> Value {
        if self.preference.is_some() { json!({}) } else { json!({key: "virtio"}) }
    }

    fn claim(&self, at: usize) -> String {
        if at == 0 { format!("{}-root", self.name) } else { format!("{}-data{at}", self.name) }
    }

    /// Name of the secret with the user data.
    pub(crate) fn secret_name(&self) -> String {
        format!("{}-cloudinit", self.name)
    }

    /// The secret, if there is user data.
    pub(crate) fn secret(&self) -> Option<Value> {
        let user_data = self.user_data.as_ref()?;
        Some(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self.secret_name(),
                "namespace": self.namespace,
                "labels": {"harvesterhci.io/vmName": self.name},
            },
            "stringData": {"userdata": user_data},
        }))
    }

    /// The VM.
    pub(crate) fn vm(&self) -> Value {
        let mut claims = Vec::new();
        let mut disks = Vec::new();
        let mut volumes = Vec::new();
        for (at, size) in self.disks.iter().enumerate() {
            let claim = self.claim(at);
            let name = if at == 0 { "root".to_owned() } else { format!("data{at}") };
            let mut disk = json!({"name": name, "disk": self.device("bus")});
            let mut template = json!({
                "metadata": {"name": claim},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "volumeMode": "Block",
                    "resources": {"requests": {"storage": size}},
                },
            });
            if at == 0 {
                disk["bootOrder"] = 1.into();
                if let Some(image) = &self.image {
                    template["metadata"]["annotations"] = json!({"harvesterhci.io/imageId": image});
                }
            }
            claims.push(template);
            disks.push(disk);
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}));
        }
        for (at, claim) in self.claims.iter().enumerate() {
            let name = format!("volume{at}");
            disks.push(json!({"name": name, "disk": self.device("bus")}));
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}));
        }
        if self.user_data.is_some() {
            disks.push(json!({"name": "cloudinit", "disk": self.device("bus")}));
            volumes.push(
                json!({"name": "cloudinit", "cloudInitNoCloud": {"secretRef": {"name": self.secret_name()}}}),
            );
        }
        let (interfaces, networks): (Vec<Value>, Vec<Value>) = self
            .networks
            .iter()
            .enumerate()
            .map(|(at, network)| {
                let name = if at == 0 { "default".to_owned() } else { format!("nic{at}") };
                let (binding, place) = if network == MANAGEMENT {
                    ("masquerade", json!({"name": name, "pod": {}}))
                } else {
                    ("bridge", json!({"name": name, "multus": {"networkName": network}}))
                };
                let mut interface = self.device("model");
                interface["name"] = name.into();
                interface[binding] = json!({});
                (interface, place)
            })
            .unzip();
        let mut spec = json!({
            "terminationGracePeriodSeconds": self.grace_period,
            "domain": {"devices": {"disks": disks, "interfaces": interfaces}},
            "networks": networks,
            "volumes": volumes,
        });
        if let Size::Own { cpus, memory } = &self.size {
            spec["domain"]["cpu"] = json!({"cores": cpus});
            spec["domain"]["memory"] = json!({"guest": memory});
        }
        if let Some(node) = &self.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        let labels = json!({"harvesterhci.io/vmName": self.name});
        let mut vm = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": {CLAIM_TEMPLATES: Value::Array(claims).to_string()},
            },
            "spec": {
                "runStrategy": self.run_strategy,
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        });
        if let Size::Type(of) = &self.size {
            vm["spec"]["instancetype"] = of.reference();
        }
        if let Some(of) = &self.preference {
            vm["spec"]["preference"] = of.reference();
        }
        vm
    }
}

/// Puts keys into user data. What is no cloud-config can take none; the error says so.
pub(crate) fn user_data(given: Option<&str>, keys: &[String]) -> Result<Option<String>, String> {
    let Some(given) = given else {
        if keys.is_empty() {
            return Ok(None);
        }
        return render(&json!({"ssh_authorized_keys": keys})).map(Some);
    };
    if keys.is_empty() {
        return Ok(Some(given.to_owned()));
    }
    let first = given.lines().next().unwrap_or_default().trim_end();
    if first != "#cloud-config" {
        return Err(format!(
            "--ssh-key needs user data that begins with the line #cloud-config, not {first:?}; put the key into the file, or leave one of the two options out"
        ));
    }
    let mut config: Value =
        serde_saphyr::from_str(given).map_err(|error| format!("the user data is no valid YAML: {error}"))?;
    if config.is_null() {
        config = json!({});
    }
    let Some(map) = config.as_object_mut() else {
        return Err("the user data is no map of settings, as a #cloud-config has to be".into());
    };
    match map.entry("ssh_authorized_keys").or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(keys.iter().map(|key| Value::from(key.as_str()))),
        _ => return Err("ssh_authorized_keys in the user data is no list".into()),
    }
    render(&config).map(Some)
}

fn render(config: &Value) -> Result<String, String> {
    let yaml = serde_saphyr::to_string(config).map_err(|error| format!("writing the user data: {error}"))?;
    Ok(format!("#cloud-config\n{}\n", yaml.trim_end()))
}

/// The public key in a file's content; the error completes "FILE ".
pub(crate) fn public_key(content: &str) -> Result<String, String> {
    let line = content.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let line = line.unwrap_or_default();
    if line.starts_with("-----BEGIN") {
        return Err("is a private key; give the file that ends in .pub".into());
    }
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|kind| line.starts_with(kind));
    if known && line.split_whitespace().count() >= 2 {
        Ok(line.to_owned())
    } else {
        Err("holds no public SSH key: expected one line as `ssh-ed25519 AAAA... comment`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            namespace: "lab".into(),
            name: "web".into(),
            image: Some("default/debian-12".into()),
            size: Size::Own { cpus: 2, memory: "2Gi".into() },
            preference: None,
            disks: vec!["10Gi".into(), "1Gi".into()],
            claims: vec!["kept".into()],
            networks: vec![MANAGEMENT.into(), "default/vlan100".into()],
            node: Some("node2".into()),
            run_strategy: "RerunOnFailure".into(),
            grace_period: 120,
            user_data: Some("#cloud-config\n{}\n".into()),
        }
    }

    #[test]
    fn a_vm_with_everything() {
        let vm = wanted().vm();
        let claims = vm["metadata"]["annotations"][CLAIM_TEMPLATES].as_str().unwrap();
        let claims: Value = serde_json::from_str(claims).unwrap();
        assert_eq!(
            claims,
            json!([
                {
                    "metadata": {"name": "web-root", "annotations": {"harvesterhci.io/imageId": "default/debian-12"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": {"requests": {"storage": "10Gi"}}},
                },
                {
                    "metadata": {"name": "web-data1"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": {"requests": {"storage": "1Gi"}}},
                },
            ])
        );
        assert_eq!(
            vm["spec"],
            json!({
                "runStrategy": "RerunOnFailure",
                "template": {
                    "metadata": {"labels": {"harvesterhci.io/vmName": "web"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 120,
                        "nodeSelector": {"kubernetes.io/hostname": "node2"},
                        "domain": {
                            "cpu": {"cores": 2},
                            "memory": {"guest": "2Gi"},
                            "devices": {
                                "disks": [
                                    {"name": "root", "bootOrder": 1, "disk": {"bus": "virtio"}},
                                    {"name": "data1", "disk": {"bus": "virtio"}},
                                    {"name": "volume0", "disk": {"bus": "virtio"}},
                                    {"name": "cloudinit", "disk": {"bus": "virtio"}},
                                ],
                                "interfaces": [
                                    {"name": "default", "model": "virtio", "masquerade": {}},
                                    {"name": "nic1", "model": "virtio", "bridge": {}},
                                ],
                            },
                        },
                        "networks": [
                            {"name": "default", "pod": {}},
                            {"name": "nic1", "multus": {"networkName": "default/vlan100"}},
                        ],
                        "volumes": [
                            {"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}},
                            {"name": "data1", "persistentVolumeClaim": {"claimName": "web-data1"}},
                            {"name": "volume0", "persistentVolumeClaim": {"claimName": "kept"}},
                            {"name": "cloudinit", "cloudInitNoCloud": {"secretRef": {"name": "web-cloudinit"}}},
                        ],
                    },
                },
            })
        );
        let secret = wanted().secret().unwrap();
        assert_eq!(secret["metadata"]["name"], "web-cloudinit");
        assert_eq!(secret["stringData"]["userdata"], "#cloud-config\n{}\n");
    }

    #[test]
    fn the_least_vm_knows_its_kind() {
        let vm = Wanted { user_data: None, node: None, claims: Vec::new(), ..wanted() }.vm();
        assert_eq!(vm["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 2);
        assert_eq!(vm["spec"]["template"]["spec"].get("nodeSelector"), None);
        let typed: sheaf_api::kubevirt::VirtualMachine = serde_json::from_value(vm).unwrap();
        assert_eq!(typed.spec.run_strategy, "RerunOnFailure");
    }

    #[test]
    fn types_and_preferences_say_what_is_left_out() {
        let of = |kind: &'static str, name: &str| Named { kind, name: name.into() };
        let vm = Wanted {
            size: Size::Type(of("VirtualMachineClusterInstancetype", "u1.small")),
            preference: Some(of("VirtualMachinePreference", "mine")),
            ..wanted()
        }
        .vm();
        assert_eq!(
            vm["spec"]["instancetype"],
            json!({"kind": "VirtualMachineClusterInstancetype", "name": "u1.small"})
        );
        assert_eq!(vm["spec"]["preference"], json!({"kind": "VirtualMachinePreference", "name": "mine"}));
        let domain = &vm["spec"]["template"]["spec"]["domain"];
        assert_eq!((domain.get("cpu"), domain.get("memory")), (None, None));
        assert_eq!(domain["devices"]["disks"][1], json!({"name": "data1", "disk": {}}));
        assert_eq!(domain["devices"]["interfaces"][0], json!({"name": "default", "masquerade": {}}));
    }

    #[test]
    fn user_data_with_keys() {
        let keys = ["ssh-ed25519 AAAA me".to_owned()];
        assert_eq!(user_data(None, &[]), Ok(None));
        let only_key = user_data(None, &keys).unwrap().unwrap();
        assert!(only_key.starts_with("#cloud-config\n"), "{only_key}");
        let back: Value = serde_saphyr::from_str(&only_key).unwrap();
        assert_eq!(back, json!({"ssh_authorized_keys": keys}));

        let given = "#cloud-config\npassword: x\nssh_authorized_keys: [old]\n";
        let both = user_data(Some(given), &keys).unwrap().unwrap();
        let back: Value = serde_saphyr::from_str(&both).unwrap();
        assert_eq!(back, json!({"password": "x", "ssh_authorized_keys": ["old", keys[0]]}));

        assert_eq!(user_data(Some("#!/bin/sh\n"), &[]), Ok(Some("#!/bin/sh\n".into())), "kept as it is");
        for bad in [
            "#!/bin/sh\n",
            "#cloud-config\n- a\n",
            "#cloud-config\nssh_authorized_keys: x\n",
            "#cloud-config\na: [\n",
        ] {
            assert!(user_data(Some(bad), &keys).is_err(), "{bad}");
        }
        assert!(user_data(Some("#cloud-config\n"), &keys).is_ok(), "an empty one");
    }

    #[test]
    fn public_keys() {
        assert_eq!(public_key("\n# c\nssh-ed25519 AAAA me\n"), Ok("ssh-ed25519 AAAA me".into()));
        for (bad, says) in [
            ("", "no public SSH key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
            ("hello", "no public SSH key"),
        ] {
            assert!(public_key(bad).unwrap_err().contains(says), "{bad}");
        }
    }
}
