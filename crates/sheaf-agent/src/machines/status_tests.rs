//! Statuses, case by case.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_api::kubevirt as kv;
use sheaf_net::Mac;
use sheaf_qemu::qga::{Address, Interface, OsInfo};

use super::convert::wanted;
use super::guest::Guest;
use super::ledger::LedgerNic;
use super::monitor::{End, Pause, Run, Seen};
use super::status::{Facts, Problem, fits, with_status};

const T: &str = "2026-11-21T10:00:00Z";

fn vmi(phase: &str) -> kv::VirtualMachineInstance {
    serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "x"},
        "spec": {
            "domain": {"memory": {"guest": "1Gi"}, "devices": {"disks": [
                {"name": "root", "disk": {"bus": "virtio"}}, {"name": "cd", "cdrom": {"bus": "sata"}}]}},
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "c"}}],
        },
        "status": {"phase": phase, "nodeName": "n", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    }))
    .expect("vmi")
}

fn seen(run: Run) -> Seen {
    Seen {
        run,
        stopping: None,
        guest: Guest::default(),
        machine_type: "pc-q35-7.2".into(),
        memory_plugged: 0,
    }
}

fn status(vmi: &kv::VirtualMachineInstance, facts: &Facts<'_>) -> Value {
    let now: Timestamp = T.parse().expect("time");
    serde_json::to_value(with_status(vmi, facts, now).status).expect("json")
}

fn condition(status: &Value, kind: &str) -> Option<(String, String, String)> {
    let list = status["conditions"].as_array().expect("conditions");
    let found = list.iter().find(|c| c["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_string();
    Some((text("status"), text("reason"), text("message")))
}

fn with(run: Run, phase: &str) -> Value {
    let (v, s) = (vmi(phase), seen(run));
    let machine = wanted(&v, "/m".as_ref()).expect("valid").machine;
    status(&v, &Facts { seen: Some(&s), machine: Some(&machine), ..Facts::default() })
}

#[test]
fn phases() {
    let cases = [
        (Run::Starting, "Scheduled", "Scheduled"),
        (Run::Running, "Scheduled", "Running"),
        (Run::Paused(Pause::ByUser), "Scheduled", "Running"),
        (Run::Ended(End::Shutdown), "Running", "Succeeded"),
        (Run::Ended(End::Panicked), "Running", "Failed"),
        (Run::Ended(End::Watchdog), "Running", "Failed"),
        (Run::Ended(End::Crashed("x".into())), "Scheduled", "Failed"),
        (Run::Ended(End::Forced { grace: 30 }), "Running", "Failed"),
        (Run::Ended(End::Forced { grace: 0 }), "Running", "Succeeded"),
        (Run::Ended(End::Crashed("x".into())), "Succeeded", "Succeeded"),
    ];
    for (run, before, after) in cases {
        let s = with(run.clone(), before);
        assert_eq!(s["phase"], after, "{run:?} from {before}");
        let steps = s["phaseTransitionTimestamps"].as_array().map_or(0, Vec::len);
        assert_eq!(steps, usize::from(before != after), "{run:?} from {before}");
        assert!(condition(&s, "PodScheduled").is_some(), "what others own stays");
    }
    let lost = status(&vmi("Running"), &Facts::default());
    assert_eq!(lost["phase"], "Failed");
    assert_eq!(status(&vmi("Scheduled"), &Facts::default())["phase"], "Scheduled");
}

#[test]
fn conditions() {
    let s = with(Run::Running, "Scheduled");
    assert_eq!(condition(&s, "Ready").expect("Ready").0, "True");
    assert_eq!(condition(&s, "Synchronized").expect("Synchronized").0, "True");
    assert_eq!((condition(&s, "Paused"), condition(&s, "AgentConnected")), (None, None));
    assert_eq!(condition(&s, "LiveMigratable").expect("LiveMigratable").1, "DisksNotLiveMigratable");
    let s = with(Run::Paused(Pause::IoError(vec![])), "Running");
    assert_eq!(condition(&s, "Paused").expect("Paused").1, "PausedIOError");
    let s = with(Run::Ended(End::Crashed("no such file".into())), "Running");
    let ready = condition(&s, "Ready").expect("Ready");
    assert_eq!((ready.0.as_str(), ready.1.as_str()), ("False", "GuestNotRunning"));
    assert_eq!(ready.2, "The VirtualMachineInstance crashed: no such file");
    let problem = Problem { reason: "FailedPvcNotFound", message: "no claim".into() };
    let s = status(&vmi("Scheduled"), &Facts { problem: Some(&problem), ..Facts::default() });
    let want = ("False".to_string(), "FailedPvcNotFound".to_string(), "no claim".to_string());
    assert_eq!(condition(&s, "Synchronized"), Some(want));
}

#[test]
fn nothing_changes_when_nothing_happened() {
    let mut v = vmi("Scheduled");
    let s = seen(Run::Running);
    let machine = wanted(&v, "/m".as_ref()).expect("valid").machine;
    let facts = Facts { seen: Some(&s), machine: Some(&machine), ..Facts::default() };
    v = with_status(&v, &facts, T.parse().expect("time"));
    let later = with_status(&v, &facts, "2026-11-21T11:00:00Z".parse().expect("time"));
    assert_eq!(v, later);
}

#[test]
fn addresses_and_guest() {
    let v = vmi("Running");
    let wanted = wanted(&v, "/m".as_ref()).expect("valid");
    let mut machine = wanted.machine;
    machine.disks = wanted.disks.into_iter().map(|d| d.drive).collect();
    let nic = LedgerNic {
        name: "default".into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        bridge: None,
        vlan: None,
        hostname: "a".into(),
        tap: String::new(),
        queues: 1,
    };
    let lease = Some("10.52.0.7".parse().expect("ip"));
    let s = seen(Run::Running);
    let facts =
        |s| Facts { seen: Some(s), machine: Some(&machine), nics: vec![(&nic, lease)], ..Facts::default() };
    let plain = status(&v, &facts(&s));
    assert_eq!(plain["interfaces"][0]["ipAddress"], "10.52.0.7");
    assert_eq!(plain["interfaces"][0]["infoSource"], "domain");
    assert_eq!(
        plain["volumeStatus"],
        json!([{"name": "root", "target": "vda"}]),
        "an empty drive has no volume"
    );
    assert_eq!(plain["memory"]["guestCurrent"], "1Gi");

    let address = |ip: &str| Address { ip: ip.into(), prefix: 64 };
    let interface = |name: &str, mac: &str, ips: &[&str]| Interface {
        name: name.into(),
        mac: Some(mac.into()),
        addresses: ips.iter().map(|ip| address(ip)).collect(),
    };
    let mut told = s.clone();
    told.guest = Guest {
        connected: true,
        version: "7.2".into(),
        interfaces: vec![
            interface("lo", "00:00:00:00:00:00", &["127.0.0.1"]),
            interface("enp1s0", "02:00:00:00:00:01", &["fe80::1", "2001:db8::1", "10.52.0.7"]),
            interface("docker0", "02:42:00:00:00:01", &["172.17.0.1"]),
        ],
        os: Some(OsInfo { id: "debian".into(), ..OsInfo::default() }),
        file_systems: Vec::new(),
    };
    let told = status(&v, &facts(&told));
    assert_eq!(told["interfaces"][0]["ipAddresses"], json!(["10.52.0.7", "2001:db8::1", "fe80::1"]));
    assert_eq!(told["interfaces"][0]["interfaceName"], "enp1s0");
    assert_eq!(told["interfaces"][1]["interfaceName"], "docker0");
    assert_eq!(told["interfaces"][1].get("name"), None, "only the guest knows it");
    assert_eq!(told["interfaces"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["guestOSInfo"]["id"], "debian");
    assert_eq!(condition(&told, "AgentConnected").expect("AgentConnected").0, "True");
}

#[test]
fn memory_is_counted_in_the_refusal() {
    let gib = 1_u64 << 30;
    assert_eq!(fits(gib, gib / 8, 4 * gib, gib), Ok(()));
    assert_eq!(
        fits(4 * gib, gib / 2, 5 * gib, gib),
        Err("the machine needs 4.5 GiB (4.0 GiB for the guest and 0.5 GiB for QEMU), and this node has 4.0 GiB left \
             (5.0 GiB available, of which 1.0 GiB are promised to guests that run); ask for less memory, or stop another \
             machine"
            .into())
    );
}

#[test]
fn huge_pages_are_not_everybodys_memory() {
    let mut v = vmi("Running");
    let promised = |v: &kv::VirtualMachineInstance| {
        let machine = wanted(v, "/m".as_ref()).expect("valid").machine;
        super::status::promised(&machine, 0) - super::status::overhead(&machine)
    };
    assert_eq!(promised(&v), 1 << 30);
    let memory = json!({"guest": "1Gi", "hugepages": {"pageSize": "2Mi"}});
    v.spec.domain.memory = Some(serde_json::from_value(memory).expect("memory"));
    assert_eq!(promised(&v), 0);
}

#[test]
fn failed_disks_are_told_in_upstreams_words() {
    let disk = |disk: &str, full| sheaf_qemu::qmp::FailedDisk { disk: disk.into(), full };
    assert_eq!(
        super::status::io_error_text(&[disk("data", false), disk("root", true)]),
        "VM Paused due to IO error at the volume: data; VM Paused due to not enough space on volume: root"
    );
}
