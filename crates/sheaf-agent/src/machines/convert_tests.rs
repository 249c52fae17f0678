//! Instances and what becomes of them, held by files: `tests/machines/NAME.json` gives `NAME.txt`. `UPDATE_GOLDEN=1`
//! writes the latter anew.

use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sheaf_api::kubevirt as kv;

use super::convert::{Wanted, wanted};
use super::disks::Content;

fn instance(text: &str) -> kv::VirtualMachineInstance {
    let spec: kv::VirtualMachineInstanceSpec = serde_json::from_str(text).expect("a spec in JSON");
    let metadata = ObjectMeta {
        name: Some("vm-a".into()),
        namespace: Some("default".into()),
        uid: Some("0a1b".into()),
        ..ObjectMeta::default()
    };
    kv::VirtualMachineInstance { metadata, spec, ..kv::VirtualMachineInstance::default() }
}

fn brief(w: &Wanted) -> String {
    let m = &w.machine;
    let mut out = format!(
        "{} uuid={} memory={}Mi cpu={}x{}x{} max={} {:?} {:?}\n",
        m.name,
        m.uuid,
        m.memory_bytes >> 20,
        m.cpu.sockets,
        m.cpu.cores,
        m.cpu.threads,
        m.cpu.max_sockets,
        m.cpu.model,
        m.cpu.features,
    );
    out += &format!(
        "host={} acpi={} serial={} graphics={} rng={} balloon={} tablet={:?} watchdog={:?} uefi={:?} paused={}\n",
        w.hostname,
        m.acpi,
        m.serial_console,
        m.graphics,
        m.rng,
        m.balloon,
        m.tablet,
        m.watchdog,
        w.uefi,
        w.start_paused
    );
    for d in &w.disks {
        let v = &d.drive;
        let content = match &d.content {
            Content::CloudInit(kind, _) => format!("{kind:?}"),
            other => format!("{other:?}"),
        };
        out += &format!(
            "disk {} {:?}{}{} boot={:?} serial={:?} {:?}{} {:?} {:?}: {content}\n",
            v.name,
            v.bus,
            if v.cdrom { " cdrom" } else { "" },
            if v.read_only { " ro" } else { "" },
            v.boot_order,
            v.serial,
            v.cache,
            if d.cache_is_ours { "?" } else { "" },
            v.io,
            v.errors
        );
    }
    for n in &w.nics {
        let c = &n.card;
        out += &format!(
            "nic {} {} {:?} boot={:?} {}: {:?}\n",
            c.name,
            n.mac,
            c.model,
            c.boot_order,
            if c.link_up { "up" } else { "down" },
            n.network
        );
    }
    out
}

fn check(name: &str) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
    let text = std::fs::read_to_string(dir.join(format!("{name}.json"))).expect("the instance");
    let got = match wanted(&instance(&text), Path::new("/machines/0a1b")) {
        Ok(w) => brief(&w),
        Err(refused) => format!("refused: {refused}\n"),
    };
    let golden = dir.join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &got).expect("write the golden file");
    }
    let want = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(got, want, "{}: UPDATE_GOLDEN=1 accepts the difference", golden.display());
}

#[test]
fn the_least_instance() {
    check("least");
}

#[test]
fn what_the_dashboard_makes() {
    check("dashboard");
}

#[test]
fn a_network_without_an_interface() {
    check("platform");
}

#[test]
fn a_bit_of_everything() {
    check("everything");
}

#[test]
fn refusals_name_the_field() {
    let refuse = |patch: serde_json::Value, want: &str| {
        let mut spec = serde_json::json!({
            "domain": {"memory": {"guest": "1Gi"}, "devices": {"disks": [], "interfaces": []}},
            "volumes": [], "networks": [],
        });
        for (path, value) in patch.as_object().expect("object") {
            let (parent, key) = path.rsplit_once('/').expect("path");
            spec.pointer_mut(parent).expect("there")[key] = value.clone();
        }
        let got = wanted(&instance(&spec.to_string()), Path::new("/m")).map(|w| brief(&w));
        assert_eq!(got.map_err(|e| e.to_string()), Err(want.to_string()));
    };
    let json = |text: &str| serde_json::from_str(text).expect("json");
    refuse(
        json(r#"{"/domain/memory": {}}"#),
        "spec.domain.memory.guest: no memory is asked for; for example 2Gi",
    );
    refuse(
        json(r#"{"/domain/memory": {"guest": "1Ki"}}"#),
        "spec.domain.memory.guest: \"1Ki\" is not between 16Mi and 64Ti",
    );
    refuse(
        json(r#"{"/volumes": [{"name": "x", "containerDisk": {"image": "fedora"}}]}"#),
        "spec.volumes[0].containerDisk: disks from container images are not supported; import the image as a \
         VirtualMachineImage and use a persistentVolumeClaim of it",
    );
    refuse(
        json(r#"{"/domain/devices/disks": [{"name": "x", "disk": {}}]}"#),
        "spec.domain.devices.disks[0].name: no volume is named \"x\"",
    );
    refuse(
        json(r#"{"/domain/devices/interfaces": [{"name": "x", "bridge": {}}]}"#),
        "spec.domain.devices.interfaces[0].name: no network is named \"x\"",
    );
    refuse(
        json(
            r#"{"/domain/devices/interfaces": [{"name": "x", "bridge": {}, "macAddress": "01:00:00:00:00:01"}],
             "/networks": [{"name": "x", "pod": {}}]}"#,
        ),
        "spec.domain.devices.interfaces[0].macAddress: \"01:00:00:00:00:01\" is an address of a group, not of one card",
    );
    refuse(
        json(r#"{"/domain/devices/gpus": [{"name": "g", "deviceName": "x/y"}]}"#),
        "spec.domain.devices.gpus: is not supported yet; remove it to run this machine",
    );
    refuse(
        json(r#"{"/domain/firmware": {"kernelBoot": {"container": {"image": "i", "kernelPath": "/k"}}}}"#),
        "spec.domain.firmware.kernelBoot: kernels from container images are not supported; boot from a disk, or remove it to \
         run this machine",
    );
    refuse(
        json(r#"{"/networks": [{"name": "x", "pod": {"vmIPv6NetworkCIDR": "fd10:0:2::/120"}}]}"#),
        "spec.networks[0].pod.vmIPv6NetworkCIDR: guests have no IPv6 on the management network yet; remove it, or use a \
         multus network whose bridge has IPv6",
    );
    refuse(
        json(r#"{"/domain/cpu": {"sockets": 4, "cores": 64}}"#),
        "spec.domain.cpu: sockets x cores x threads is 256; this kind of machine has at most 255 processors",
    );
}

#[test]
fn ignition_is_handed_to_the_firmware() {
    let mut vmi = instance(r#"{"domain": {"memory": {"guest": "1Gi"}, "devices": {}}}"#);
    let files = |vmi: &kv::VirtualMachineInstance| {
        wanted(vmi, Path::new("/m")).expect("valid").machine.rare.firmware_files
    };
    assert_eq!(files(&vmi), []);
    let note = ("kubevirt.io/ignitiondata".to_owned(), r#"{"ignition": {}}"#.to_owned());
    vmi.metadata.annotations = Some([note.clone()].into());
    assert_eq!(files(&vmi), [("opt/com.coreos/config".to_owned(), note.1)]);
}
