//! Changes of a template, as a table: what reaches the instance, and why it must be restarted.

use super::*;

fn template() -> Value {
    json!({"spec": {
        "domain": {
            "cpu": {"sockets": 2, "cores": 1, "threads": 1},
            "memory": {"guest": "1Gi"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "cd", "cdrom": {"bus": "sata"}}],
                "interfaces": [{"name": "default", "masquerade": {}, "macAddress": "02:00:00:00:00:01"}],
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "root"}}],
    }})
}

/// The instance that was made of a template, as defaults and its node leave it.
fn instance(template: &Value) -> Value {
    let mut vmi = template.clone();
    vmi["spec"]["domain"]["cpu"]["maxSockets"] = json!(8);
    vmi["spec"]["domain"]["memory"]["maxGuest"] = json!("4Gi");
    vmi["spec"]["architecture"] = json!("amd64");
    vmi["status"] = json!({"memory": {"guestAtBoot": "1Gi"}, "interfaces": [{"name": "default"}]});
    vmi
}

/// Applies a merge patch, for the test of what is left afterwards.
fn merged(mut to: Value, patch: &Value) -> Value {
    match patch {
        Value::Object(map) => {
            if !to.is_object() {
                to = json!({});
            }
            for (key, value) in map {
                if value.is_null() {
                    set(&mut to, key, None);
                } else {
                    let inner = to.get(key).cloned().unwrap_or_default();
                    to[key] = merged(inner, value);
                }
            }
            to
        }
        other => other.clone(),
    }
}

/// Changes the template; gives the plan, and checks that it says nothing more once it is carried out.
fn change(before: &Value, edit: impl FnOnce(&mut Value)) -> LivePlan {
    let vmi = instance(before);
    let mut after = before.clone();
    edit(&mut after);
    let plan = plan_live(&LiveWorld { template: &after, started: before, vmi: &vmi });
    let settled = merged(vmi, plan.vmi.as_ref().unwrap_or(&json!({})));
    let again = plan_live(&LiveWorld { template: &after, started: before, vmi: &settled });
    assert_eq!((again.vmi, &again.restart), (None, &plan.restart), "the plan is carried out");
    plan
}

fn data() -> (Value, Value) {
    (
        json!({"name": "data", "disk": {"bus": "scsi"}, "serial": "x"}),
        json!({"name": "data", "persistentVolumeClaim": {"claimName": "d", "hotpluggable": true}}),
    )
}

#[test]
fn nothing_changed() {
    let plan = change(&template(), |_| {});
    assert_eq!(plan, LivePlan { vmi: None, restart: None, unchanged: true });
    let empties = change(&template(), |t| t["spec"]["accessCredentials"] = json!([]));
    assert_eq!((empties.vmi, empties.restart), (None, None));
}

#[test]
fn processors_and_memory() {
    let sockets = |n: u32| change(&template(), |t| t["spec"]["domain"]["cpu"]["sockets"] = json!(n));
    assert_eq!(sockets(4).vmi, Some(json!({"spec": {"domain": {"cpu": {"sockets": 4}}}})));
    assert_eq!(
        sockets(9).restart.expect("why"),
        "CPU sockets updated in template spec to a value higher than what's available"
    );
    assert_eq!(sockets(1).restart.expect("why"), "Reduction of CPU socket count requires a restart");
    let cores = change(&template(), |t| t["spec"]["domain"]["cpu"]["cores"] = json!(2));
    assert_eq!(cores.restart.as_deref(), Some(OTHER));
    let max = change(&template(), |t| t["spec"]["domain"]["cpu"]["maxSockets"] = json!(16));
    assert_eq!((max.vmi, max.restart), (None, None), "it matters at the next start");

    let guest = |q: &str| change(&template(), |t| t["spec"]["domain"]["memory"]["guest"] = json!(q));
    assert_eq!(guest("3Gi").vmi, Some(json!({"spec": {"domain": {"memory": {"guest": "3Gi"}}}})));
    for (q, word) in [("5Gi", "higher"), ("512Mi", "lower"), ("1073741825", "multiple of 2Mi")] {
        let why = guest(q).restart.expect("why");
        assert!(why.contains(word), "{q}: {why}");
    }
    let mut small = template();
    small["spec"]["domain"]["memory"]["guest"] = json!("512Mi");
    let mut vmi = instance(&small);
    vmi["status"]["memory"]["guestAtBoot"] = json!("512Mi");
    let mut more = small.clone();
    more["spec"]["domain"]["memory"]["guest"] = json!("1Gi");
    let plan = plan_live(&LiveWorld { template: &more, started: &small, vmi: &vmi });
    assert!(plan.restart.expect("why").contains("not available"));
}

#[test]
fn disks_come_and_go() {
    let (disk, volume) = data();
    let plugged = change(&template(), |t| {
        push(t, &["spec", "volumes"], volume.clone());
        push(t, &["spec", "domain", "devices", "disks"], disk.clone());
    });
    let vmi = plugged.vmi.expect("a change");
    assert_eq!(plugged.restart, None);
    assert_eq!(vmi["spec"]["volumes"][1], volume);
    assert_eq!(vmi["spec"]["domain"]["devices"]["disks"][2], disk);

    let mut with = template();
    push(&mut with, &["spec", "volumes"], volume);
    push(&mut with, &["spec", "domain", "devices", "disks"], disk);
    let unplugged = change(&with, |t| {
        remove(t, "/spec/volumes", "data");
        remove(t, "/spec/domain/devices/disks", "data");
    });
    assert_eq!(unplugged.restart, None);
    let vmi = unplugged.vmi.expect("a change");
    assert_eq!(vmi["spec"]["volumes"].as_array().map(Vec::len), Some(1));
    assert_eq!(vmi["spec"]["domain"]["devices"]["disks"].as_array().map(Vec::len), Some(2));

    // A volume that is there for good needs a restart.
    let fixed = change(&template(), |t| {
        push(t, &["spec", "volumes"], json!({"name": "x", "persistentVolumeClaim": {"claimName": "x"}}));
    });
    assert_eq!((fixed.vmi, fixed.restart.as_deref()), (None, Some(OTHER)));
}

#[test]
fn discs_are_changed() {
    let disc = |claim: &str| json!({"name": "cd", "persistentVolumeClaim": {"claimName": claim, "hotpluggable": true}});
    let inserted = change(&template(), |t| push(t, &["spec", "volumes"], disc("iso")));
    assert_eq!(
        (inserted.restart, inserted.vmi.expect("a change")["spec"]["volumes"][1].clone()),
        (None, disc("iso"))
    );
    let mut with = template();
    push(&mut with, &["spec", "volumes"], disc("iso"));
    let ejected = change(&with, |t| remove(t, "/spec/volumes", "cd"));
    assert_eq!(ejected.restart, None);
    assert_eq!(ejected.vmi.expect("a change")["spec"]["volumes"].as_array().map(Vec::len), Some(1));
    let swapped = change(&with, |t| replace(t, "/spec/volumes", disc("other")));
    assert_eq!(swapped.vmi.expect("a change")["spec"]["volumes"][1], disc("other"));
    let no_drive = change(&template(), |t| remove(t, "/spec/domain/devices/disks", "cd"));
    assert_eq!(no_drive.restart.as_deref(), Some(OTHER));
}

#[test]
fn nics_come_go_and_move() {
    let nic = json!({"name": "vlan", "bridge": {}, "macAddress": "02:00:00:00:00:02"});
    let net = json!({"name": "vlan", "multus": {"networkName": "ns/a"}});
    let plugged = change(&template(), |t| {
        push(t, &["spec", "domain", "devices", "interfaces"], nic.clone());
        push(t, &["spec", "networks"], net.clone());
    });
    assert_eq!(plugged.restart, None);
    assert_eq!(plugged.vmi.expect("a change")["spec"]["domain"]["devices"]["interfaces"][1], nic);
    let mut with = template();
    push(&mut with, &["spec", "domain", "devices", "interfaces"], nic.clone());
    push(&mut with, &["spec", "networks"], net);
    let state =
        |t: &mut Value, state: &str| t["spec"]["domain"]["devices"]["interfaces"][1]["state"] = json!(state);
    let down = change(&with, |t| state(t, "down"));
    assert_eq!((down.restart, down.vmi.is_some()), (None, true));
    let moved = change(&with, |t| t["spec"]["networks"][1]["multus"]["networkName"] = json!("ns/b"));
    assert_eq!(moved.restart, None);
    assert_eq!(moved.vmi.expect("a change")["spec"]["networks"][1]["multus"]["networkName"], "ns/b");
    let absent = change(&with, |t| state(t, "absent"));
    assert_eq!(absent.restart, None);
    // Removed without having been unplugged; on the management network.
    let removed = change(&with, |t| {
        remove(t, "/spec/domain/devices/interfaces", "vlan");
        remove(t, "/spec/networks", "vlan");
    });
    assert_eq!(removed.restart.as_deref(), Some(OTHER));
    let pod = change(&template(), |t| {
        push(t, &["spec", "domain", "devices", "interfaces"], json!({"name": "p", "masquerade": {}}));
        push(t, &["spec", "networks"], json!({"name": "p", "pod": {}}));
    });
    assert_eq!(pod.restart.as_deref(), Some(OTHER));
}

/// An unplugged NIC's entries go once the instance has it no more, and that needs no restart.
#[test]
fn absent_nics_are_tidied_away() {
    let mut with = template();
    push(&mut with, &["spec", "domain", "devices", "interfaces"], json!({"name": "vlan", "bridge": {}}));
    push(&mut with, &["spec", "networks"], json!({"name": "vlan", "multus": {"networkName": "n"}}));
    let mut absent = with.clone();
    absent["spec"]["domain"]["devices"]["interfaces"][1]["state"] = json!("absent");
    let mut vmi = instance(&absent);
    vmi["status"]["interfaces"] = json!([{"name": "default"}, {"name": "vlan"}]);
    assert_eq!(plan_absent(&absent, Some(&vmi)), None, "it is still there");
    vmi["status"]["interfaces"] = json!([{"name": "default"}]);
    let patch = plan_absent(&absent, Some(&vmi)).expect("it is gone");
    let tidy = merged(json!({"template": absent}), &patch)["template"].clone();
    assert_eq!(tidy["spec"]["networks"].as_array().map(Vec::len), Some(1));
    let plan = plan_live(&LiveWorld { template: &tidy, started: &with, vmi: &vmi });
    assert_eq!(plan.restart, None);
    let spec = plan.vmi.expect("the instance is tidied, too");
    assert_eq!(spec["spec"]["networks"].as_array().map(Vec::len), Some(1));
    assert_eq!(plan_absent(&tidy, None), None);
}

#[test]
fn annotations_and_placement() {
    let placed = change(&template(), |t| {
        t["metadata"] = json!({"annotations": {DISK_LIMITS: "{}", "other": "x"}});
        t["spec"]["nodeSelector"] = json!({"a": "b"});
    });
    assert_eq!(placed.restart, None);
    assert_eq!(
        placed.vmi,
        Some(json!({"spec": {"nodeSelector": {"a": "b"}}, "metadata": {"annotations": {DISK_LIMITS: "{}"}}}))
    );
    let other = change(&template(), |t| t["spec"]["hostname"] = json!("b"));
    assert_eq!(other.restart.as_deref(), Some(OTHER));
}
