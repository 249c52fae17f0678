//! Rules of machines and instances: manifests that must be accepted as they stand, what they get, and one table row
//! for each rule.

use std::sync::Arc;

use serde_json::{Value, json};
use sheaf_meta::kind::Rules;

use super::{virtual_machine, virtual_machine_instance};

/// A machine on a VLAN network with an existing claim as its root disk.
const CP2: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: cp-2
  namespace: default
spec:
  running: true
  template:
    spec:
      domain:
        cpu:
          cores: 4
        memory:
          guest: 16Gi
        devices:
          disks:
            - name: root
              disk:
                bus: virtio
      volumes:
        - name: root
          persistentVolumeClaim:
            claimName: cp-2-root
      networks:
        - name: platform
          multus:
            networkName: default/platform
";

/// Nothing but the network, and the memory that nothing runs without.
const NETWORK_ONLY: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: worker, namespace: default}
spec:
  running: false
  template:
    spec:
      domain:
        memory: {guest: 1Gi}
        devices: {}
      networks:
        - name: platform
          multus:
            networkName: default/platform
";

fn yaml(text: &str) -> Value {
    let mut object: Value = serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}"));
    object["metadata"]["uid"] = json!("7d9c6f1e-0000-4000-8000-000000000001");
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    object
}

fn said(rules: &Arc<dyn Rules>, object: &Value, old: Option<&Value>) -> Vec<String> {
    rules.validate(object, old).iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

fn defaulted(rules: &Arc<dyn Rules>, object: &Value, old: Option<&Value>) -> Value {
    let mut object = object.clone();
    rules.default(&mut object, old);
    object
}

#[test]
fn manifests_of_real_installations_are_accepted() {
    for text in [CP2, NETWORK_ONLY] {
        let machine = defaulted(&virtual_machine(), &yaml(text), None);
        assert_eq!(said(&virtual_machine(), &machine, None), [""; 0], "{text}");
        let warnings = virtual_machine().warnings(&machine).join("\n");
        assert!(warnings.contains("spec.running is deprecated"), "{warnings}");
        assert!(warnings.contains("has no interface"), "{warnings}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let mut machine = yaml(CP2);
    let networks = json!([{"name": "a", "pod": {}}, {"name": "b", "pod": {"vmNetworkCIDR": "10.1.0.0/24"}}]);
    machine["spec"]["template"]["spec"]["networks"] = networks;
    let warnings = virtual_machine().warnings(&machine);
    let about: Vec<_> = warnings.iter().filter(|w| w.contains("vmNetworkCIDR")).collect();
    let [one] = about[..] else { panic!("{warnings:?}") };
    assert!(one.starts_with("spec.template.spec.networks[1].pod.vmNetworkCIDR has no effect"), "{one}");
}

#[test]
fn a_machine_keeps_what_it_was_given_once() {
    let rules = virtual_machine();
    let mut manifest = yaml(CP2);
    manifest["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"] =
        json!([{"name": "platform", "bridge": {}}]);
    let made = defaulted(&rules, &manifest, None);
    let domain = "/spec/template/spec/domain";
    for field in ["firmware/uuid", "firmware/serial"] {
        assert!(made.pointer(&format!("{domain}/{field}")).is_some_and(Value::is_string), "{field}");
    }
    assert_eq!(
        made.pointer(&format!("{domain}/cpu")),
        Some(&json!({"cores": 4, "sockets": 1, "threads": 1}))
    );
    assert_eq!(made.pointer("/spec/template/spec/terminationGracePeriodSeconds"), Some(&json!(120)));
    assert_eq!(
        made.pointer(&format!("{domain}/machine/type")),
        Some(&json!("q35"))
            .filter(|_| cfg!(target_arch = "x86_64"))
            .or(made.pointer(&format!("{domain}/machine/type")))
    );
    assert_eq!(defaulted(&rules, &made, Some(&made)), made, "defaulting twice changes nothing");
    // Whoever writes the manifest again without them does not take them away, nor does another uid change them.
    let mut stored = made.clone();
    let annotation = "harvesterhci.io/mac-address";
    let settled = made["metadata"]["annotations"][annotation].as_str().expect("settled").to_owned();
    assert!(settled.starts_with(r#"{"platform":""#), "{settled}");
    assert_eq!(
        made["spec"]["template"]["spec"]["domain"]["devices"],
        manifest["spec"]["template"]["spec"]["domain"]["devices"]
    );
    stored["metadata"]["annotations"][annotation] =
        json!(r#"{"gone":"02:00:00:00:00:01","platform":"02:11:22:33:44:55"}"#);
    let kept = json!(r#"{"platform":"02:11:22:33:44:55"}"#);
    let again = defaulted(&rules, &manifest, Some(&stored));
    assert_eq!(again["metadata"]["annotations"][annotation], kept);
    // An older object had them in its spec; and what a spec says counts.
    stored["metadata"]["annotations"].as_object_mut().expect("annotations").remove(annotation);
    let path = "/spec/template/spec/domain/devices/interfaces/0";
    stored.pointer_mut(path).expect("the interface")["macAddress"] = json!("02:11:22:33:44:55");
    let again = defaulted(&rules, &manifest, Some(&stored));
    assert_eq!(again["metadata"]["annotations"][annotation], kept);
    let mut other = manifest.clone();
    other.pointer_mut(path).expect("the interface")["macAddress"] = json!("02:66:22:33:44:55");
    let other = defaulted(&rules, &other, Some(&again));
    assert_eq!(other["metadata"]["annotations"][annotation], json!(r#"{"platform":"02:66:22:33:44:55"}"#));
    let again = defaulted(&rules, &manifest, Some(&stored));
    assert_eq!(again.pointer(&format!("{domain}/firmware")), made.pointer(&format!("{domain}/firmware")));
}

#[test]
fn limits_give_requests_and_memory() {
    let mut machine = yaml(NETWORK_ONLY);
    let domain = "/spec/template/spec/domain";
    let set = |machine: &mut Value, value: Value| {
        if let Some(d) = machine.pointer_mut(domain) {
            *d = value;
        }
    };
    set(&mut machine, json!({"devices": {}, "resources": {"limits": {"cpu": "4", "memory": "3Gi"}}}));
    let made = defaulted(&virtual_machine(), &machine, None);
    let of = |pointer: &str| made.pointer(&format!("{domain}/{pointer}")).cloned().unwrap_or_default();
    assert_eq!(of("resources/requests"), json!({"cpu": "400m", "memory": "2048Mi"}));
    assert_eq!(of("memory/guest"), "3072Mi");
    assert_eq!(of("cpu/sockets"), 4);
    assert_eq!(said(&virtual_machine(), &made, None), [""; 0]);

    machine["metadata"]["annotations"] = json!({"harvesterhci.io/reservedMemory": "256Mi"});
    let made = defaulted(&virtual_machine(), &machine, None);
    assert_eq!(made.pointer(&format!("{domain}/memory/guest")), Some(&json!("2816Mi")));
}

#[test]
fn a_halted_machine_remembers_its_strategy() {
    let mut old = yaml(CP2);
    old["spec"].as_object_mut().map(|s| s.remove("running"));
    old["spec"]["runStrategy"] = json!("RerunOnFailure");
    let mut new = old.clone();
    new["spec"]["runStrategy"] = json!("Halted");
    let made = defaulted(&virtual_machine(), &new, Some(&old));
    assert_eq!(made["metadata"]["annotations"]["harvesterhci.io/vmRunStrategy"], "RerunOnFailure");
}

#[test]
fn defaults_survive_objects_of_any_shape() {
    let shapes = [
        json!({}),
        json!({"spec": 1}),
        json!({"spec": {"template": []}}),
        json!({"metadata": [], "spec": null}),
        json!({"spec": {"template": {"spec": {"domain": "x", "networks": 1}}, "domain": [], "volumes": {}}}),
        json!({"spec": {"domain": {"devices": {"disks": 1, "interfaces": "x", "watchdog": []}, "cpu": 3, "memory": []}}}),
    ];
    for kind in crate::kinds() {
        for shape in &shapes {
            defaulted(&kind.rules, shape, None);
            defaulted(&kind.rules, shape, Some(shape));
            kind.rules.validate(shape, None);
            kind.rules.warnings(shape);
        }
    }
}

fn instance() -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "a", "namespace": "default", "uid": "u-2", "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"kind": "VirtualMachine", "controller": true, "uid": "u-1"}]},
        "spec": {"domain": {"devices": {"disks": [{"name": "cd", "cdrom": {}}]}, "memory": {"guest": "1Gi"}},
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "r"}},
                {"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}}]}})
}

#[test]
fn an_instance_gets_what_it_needs_to_run() {
    let rules = virtual_machine_instance();
    let made = defaulted(&rules, &instance(), None);
    assert_eq!(said(&rules, &made, None), [""; 0]);
    let devices = &made["spec"]["domain"]["devices"];
    assert_eq!(
        devices["disks"],
        json!([{"name": "cd", "cdrom": {"bus": "sata", "tray": "closed", "readonly": true}},
        {"name": "root", "disk": {"bus": "sata"}}, {"name": "seed", "disk": {"bus": "sata"}}])
    );
    assert_eq!(made["spec"]["networks"], json!([{"name": "default", "pod": {}}]));
    assert_eq!(devices["interfaces"][0]["name"], "default");
    assert!(devices["interfaces"][0]["macAddress"].is_string());
    assert_eq!(made["spec"]["domain"]["resources"]["requests"]["memory"], "1Gi");
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubevirt.io/foregroundDeleteVirtualMachine"]));

    let mut second = instance();
    second["metadata"]["uid"] = json!("u-3");
    let second = defaulted(&rules, &second, None);
    assert_eq!(
        made["spec"], second["spec"],
        "addresses and firmware are those of the machine, at every start"
    );
}

#[test]
fn a_network_without_an_interface_gets_one_when_the_instance_is_made() {
    let mut object = instance();
    object["spec"]["networks"] = json!([{"name": "platform", "multus": {"networkName": "default/platform"}}]);
    let made = defaulted(&virtual_machine_instance(), &object, None);
    let interface = &made["spec"]["domain"]["devices"]["interfaces"][0];
    assert_eq!((&interface["name"], &interface["bridge"]), (&json!("platform"), &json!({})));
}

/// Rows: what is set under `spec.template.spec` (as JSON pointer and value), and the field and words that answer it.
#[test]
fn every_rule_names_its_field() {
    let d = "/domain";
    let rows: Vec<(String, Value, &str)> = vec![
        (
            format!("{d}/cpu"),
            json!({"sockets": 4, "maxSockets": 2}),
            "domain.cpu.sockets: Invalid value: 4: Number of sockets",
        ),
        (
            format!("{d}/cpu"),
            json!({"features": [{"name": "x", "policy": "maybe"}]}),
            "domain.cpu.features[0].policy: Unsupported",
        ),
        (format!("{d}/cpu"), json!({"isolateEmulatorThread": true}), "domain.cpu.isolateEmulatorThread"),
        (
            format!("{d}/memory"),
            json!({"guest": "16"}),
            "domain.memory.guest: Invalid value: \"16\": must be greater than or equal to 1M",
        ),
        (format!("{d}/memory"), json!({"guest": "16GiB"}), "domain.memory.guest: Invalid value: \"16GiB\""),
        (
            format!("{d}/memory"),
            json!({"guest": "2Gi", "maxGuest": "1Gi"}),
            "domain.memory.guest: Invalid value",
        ),
        (format!("{d}/memory"), json!({}), "domain.memory.guest: Required value: no memory requested"),
        (
            format!("{d}/memory"),
            json!({"guest": "1Gi", "hugepages": {"pageSize": "3Mi"}}),
            "hugepages.pageSize",
        ),
        (
            format!("{d}/resources"),
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            "domain.resources.requests.cpu: Invalid value",
        ),
        (
            format!("{d}/resources"),
            json!({"limits": {"memory": "512Mi"}}),
            "domain.memory.guest: Invalid value: \"1Gi\": must be less",
        ),
        (format!("{d}/machine"), json!({"type": "pc"}), "domain.machine.type: Invalid value"),
        (
            format!("{d}/firmware"),
            json!({"bootloader": {"efi": {}}}),
            "domain: Invalid value: \"\": has EFI SecureBoot",
        ),
        (
            format!("{d}/firmware"),
            json!({"bootloader": {"efi": {"secureBoot": false}, "bios": {}}}),
            "firmware.bootloader: Invalid",
        ),
        (format!("{d}/ioThreadsPolicy"), json!("many"), "domain.ioThreadsPolicy: Unsupported value"),
        (
            format!("{d}/devices/inputs"),
            json!([{"name": "t", "type": "mouse"}]),
            "inputs[0].type: Unsupported value",
        ),
        (format!("{d}/devices/video"), json!({"type": "qxl"}), "devices.video.type: Unsupported value"),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "none", "disk": {}}]),
            "devices.disks[0].name: Invalid value: \"none\": no volume",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root"}, {"name": "root"}]),
            "devices.disks[1].name: Duplicate value",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "disk": {}, "cdrom": {}}]),
            "devices.disks[0]: Invalid value: \"root\": can only",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "disk": {"bus": "ide"}}]),
            "disks[0].disk.bus: Invalid value: \"ide\": IDE",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "cdrom": {"bus": "virtio"}}]),
            "disks[0].cdrom.bus: Invalid value",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "disk": {"bus": "sata", "readonly": true}}]),
            "disks[0].disk.bus",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "disk": {"bus": "sata", "pciAddress": "0000:81:01.0"}}]),
            "devices.disks.disk[0].pciAddress",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "bootOrder": 0}]),
            "disks[0].bootOrder: Invalid value: 0",
        ),
        (format!("{d}/devices/disks"), json!([{"name": "root", "serial": "a b"}]), "disks[0].serial"),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "cache": "fast"}]),
            "disks[0].cache: Unsupported value",
        ),
        (
            format!("{d}/devices/disks"),
            json!([{"name": "root", "blockSize": {"custom": {"logical": 1000, "physical": 4096}}}]),
            "blockSize.custom.logical",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root"}]),
            "volumes[0]: Invalid value: \"root\": must have exactly one source",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "emptyDisk": {"capacity": "1Gi"}, "containerDisk": {"image": "x"}}]),
            "it has containerDisk and emptyDisk",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "emptyDisk": {"capacity": "1Gi"}}, {"name": "root", "emptyDisk": {"capacity": "1Gi"}}]),
            "volumes[1].name: Duplicate",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "cloudInitNoCloud": {}}]),
            "volumes[0].cloudInitNoCloud: Required value",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "cloudInitNoCloud": {"userData": "a", "userDataBase64": "YQ=="}}]),
            "only one userdata source",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "cloudInitNoCloud": {"userDataBase64": "?"}}]),
            "cloudInitNoCloud.userDataBase64: Invalid value",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "cloudInitNoCloud": {"userData": "a".repeat(2049)}}]),
            "put it into a Secret and name that in secretRef",
        ),
        (
            "/volumes".into(),
            json!([{"name": "root", "hostDisk": {"path": "/a", "type": "File"}}]),
            "hostDisk.type: Unsupported value",
        ),
        ("/networks".into(), json!([{"name": "n"}]), "networks[0]: Required value"),
        (
            "/networks".into(),
            json!([{"name": "n", "pod": {}}, {"name": "m", "pod": {}}]),
            "interfaces: Invalid value: 2: more than one",
        ),
        (
            "/networks".into(),
            json!([{"name": "n", "multus": {"networkName": ""}}]),
            "networks[0].multus.networkName: Required value",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "x", "bridge": {}}]),
            "interfaces[0].name: Invalid value: \"x\": no network",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "x", "bridge": {}}]),
            "networks[0].name: Required value: no interface named 'platform'",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "masquerade": {}}]),
            "Masquerade interface only implemented with pod network",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "sriov": {}}]),
            "must have only one binding",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "model": "ne2000"}]),
            "interfaces[0].model: Unsupported value",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "macAddress": "02:00"}]),
            "macAddress: Invalid value: \"02:00\": is malformed",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "macAddress": "01:00:5e:00:00:01"}]),
            "address of many stations",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "slirp": {}}]),
            "interfaces[0].slirp: Invalid value",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "ports": [{"port": 0}]}]),
            "ports[0].port: Invalid value",
        ),
        (
            format!("{d}/devices/interfaces"),
            json!([{"name": "platform", "bridge": {}, "state": "gone"}]),
            "interfaces[0].state: Unsupported value",
        ),
        ("/evictionStrategy".into(), json!("Never"), "evictionStrategy: Unsupported value"),
        ("/hostname".into(), json!("a_b"), "hostname: Invalid value"),
        ("/livenessProbe".into(), json!({}), "livenessProbe: Required value"),
        ("/dnsPolicy".into(), json!("None"), "dnsConfig.nameservers: Required value"),
        ("/terminationGracePeriodSeconds".into(), json!(-1), "terminationGracePeriodSeconds: Invalid value"),
        (
            "/accessCredentials".into(),
            json!([{"sshPublicKey": {"source": {"secret": {"secretName": "s"}}, "propagationMethod": {"noCloud": {}}}}]),
            "noCloud needs a cloudInitNoCloud volume",
        ),
    ];
    for (pointer, value, want) in rows {
        let mut machine = yaml(CP2);
        machine["spec"]["template"]["spec"]["domain"]["memory"]["guest"] = json!("1Gi");
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        machine.pointer_mut(&format!("/spec/template/spec{parent}")).unwrap_or_else(|| panic!("{parent}"))
            [key] = value;
        let got = said(&virtual_machine(), &machine, None);
        let want = format!("spec.template.spec.{want}");
        let tail = want.trim_start_matches("spec.template.spec.");
        assert!(
            got.iter()
                .any(|m| m.starts_with(&want) || (m.starts_with("spec.template.spec.") && m.contains(tail))),
            "{pointer}: wanted {want:?}, got {got:#?}"
        );
    }
}

#[test]
fn rules_of_a_machine_around_its_template() {
    let rows = [
        (
            json!({"running": true, "runStrategy": "Always"}),
            "spec.running: Invalid value: true: Running and RunStrategy",
        ),
        (json!({}), "spec.running: Required value"),
        (json!({"runStrategy": "Sometimes"}), "spec.runStrategy: Unsupported value: \"Sometimes\""),
        (json!({"runStrategy": "Always", "instancetype": {}}), "spec.instancetype: Required value"),
        (
            json!({"runStrategy": "Always", "dataVolumeTemplates": [{"metadata": {"name": "d"}, "spec": {"source": {"blank": {}},
            "storage": {}}}]}),
            "spec.dataVolumeTemplate[0]: Required value: DataVolumeTemplate entry d must be referenced",
        ),
        (
            json!({"runStrategy": "Always", "dataVolumeTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}),
            "spec.dataVolumeTemplates[0].PVC.Storage",
        ),
    ];
    for (spec, want) in rows {
        let mut machine = yaml(CP2);
        let template = machine["spec"]["template"].clone();
        machine["spec"] = spec;
        machine["spec"]["template"] = template;
        let got = said(&virtual_machine(), &machine, None);
        assert!(got.iter().any(|m| m.starts_with(want)), "wanted {want:?}, got {got:?}");
    }
    let mut machine = yaml(CP2);
    machine["metadata"]["annotations"] = json!({"harvesterhci.io/volumeClaimTemplates": "[{}]"});
    assert!(
        said(&virtual_machine(), &machine, None)
            .concat()
            .contains("volumeClaimTemplates][0].metadata.name: Required")
    );
    machine["metadata"] = json!({"name": "a".repeat(64), "namespace": "default"});
    assert!(said(&virtual_machine(), &machine, None).concat().contains("metadata.name: Invalid value"));
}

#[test]
fn what_was_accepted_stays_acceptable() {
    let mut old = yaml(CP2);
    // As if the rule had come after the machine.
    old["spec"]["template"]["spec"]["architecture"] = json!("pdp11");
    let rules = virtual_machine();
    assert_ne!(said(&rules, &old, None), Vec::<String>::new());
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!(["a.io/b"]);
    assert_eq!(said(&rules, &new, Some(&old)), Vec::<String>::new());
    new["spec"]["template"]["spec"]["hostname"] = json!("other");
    assert_ne!(said(&rules, &new, Some(&old)), Vec::<String>::new());
}
