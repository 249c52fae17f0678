//! Tables of [`super::plan_claim`] and [`super::plan_volume`].

use super::*;

const GIB: u64 = 1 << 30;

fn claim(patch: Value) -> PersistentVolumeClaim {
    let mut object = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "d", "name": "c", "uid": "u1", "annotations": {SELECTED_NODE: "n1"}},
        "spec": {"storageClassName": "local", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
            "resources": {"requests": {"storage": "10Gi"}}},
    });
    merge(&mut object, patch);
    serde_json::from_value(object).expect("a claim")
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn class() -> StorageClass {
    serde_json::from_value(json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER}))
        .expect("a class")
}

fn volume(patch: Value) -> PersistentVolume {
    let mut object =
        volume_object(&claim(json!({})), &class(), "n1", std::path::Path::new("/x/disk.img"), 10 * GIB);
    merge(&mut object, patch);
    serde_json::from_value(object).expect("a volume")
}

struct World {
    volume: Option<PersistentVolume>,
    image: ImageOf,
    users: Vec<String>,
    node: &'static str,
    space: (u64, u64),
}

fn world() -> World {
    World { volume: None, image: ImageOf::None, users: Vec::new(), node: "n1", space: (90 * GIB, 100 * GIB) }
}

fn plan(world: &World, patch: Value) -> ClaimStep {
    plan_claim(&ClaimSeen {
        claim: &claim(patch),
        class: Some(&class()),
        volume: world.volume.as_ref(),
        image: &world.image,
        disk_bytes: None,
        users: &world.users,
        node: world.node,
        space: world.space,
    })
}

fn held(step: ClaimStep) -> (&'static str, String) {
    match step {
        ClaimStep::Hold(hold) => (hold.reason, hold.message),
        other => panic!("not held: {other:?}"),
    }
}

fn image(virtual_size: u64) -> ImageOf {
    ImageOf::Here { name: "d/debian".to_owned(), base: "/i/base".into(), format: Format::Qcow2, virtual_size }
}

#[test]
fn only_claims_of_this_node_and_class_are_served() {
    let here = world();
    assert_eq!(plan(&here, json!({})), ClaimStep::Create { bytes: 10 * GIB, content: Content::Blank });
    assert_eq!(plan(&World { node: "n2", ..world() }, json!({})), ClaimStep::Nothing);
    assert_eq!(plan(&here, json!({"metadata": {"annotations": null}})), ClaimStep::Nothing);
    let mut other = class();
    other.provisioner = "driver.longhorn.io".to_owned();
    let claim = claim(json!({}));
    for class in [None, Some(&other)] {
        let seen = ClaimSeen {
            claim: &claim,
            class,
            volume: None,
            image: &ImageOf::None,
            disk_bytes: None,
            users: &[],
            node: "n1",
            space: (90 * GIB, 100 * GIB),
        };
        assert_eq!(plan_claim(&seen), ClaimStep::Nothing);
    }
}

#[test]
fn claims_of_images_wait_for_them() {
    let with = |image| World { image, ..world() };
    let ClaimStep::Create { bytes, content: Content::Image { name, .. } } =
        plan(&with(image(10 * GIB)), json!({}))
    else {
        panic!("not created")
    };
    assert_eq!((bytes, name.as_str()), (10 * GIB, "d/debian"));
    let (reason, message) = held(plan(&with(image(20 * GIB)), json!({})));
    assert_eq!(reason, "TooSmall");
    assert_eq!(
        message,
        "spec.resources.requests.storage is 10.0 GiB (10737418240 bytes), less than the 20.0 GiB (21474836480 bytes) \
         of image d/debian; ask for at least as much"
    );
    assert_eq!(
        held(plan(&with(ImageOf::Coming("a".to_owned())), json!({}))),
        ("WaitingForImage", "a".to_owned())
    );
    assert_eq!(
        held(plan(&with(ImageOf::Missing("b".to_owned())), json!({}))),
        ("ImageMissing", "b".to_owned())
    );
}

#[test]
fn what_cannot_be_is_held_with_numbers() {
    let size = |text| json!({"spec": {"resources": {"requests": {"storage": text}}}});
    assert_eq!(held(plan(&world(), size("0"))).0, "InvalidSize");
    assert_eq!(held(plan(&world(), json!({"spec": {"resources": null}}))).0, "InvalidSize");
    assert_eq!(plan(&world(), size("1")), ClaimStep::Create { bytes: 4096, content: Content::Blank });
    let (reason, message) = held(plan(&world(), size("200Gi")));
    assert_eq!(reason, "NoSpace");
    assert_eq!(
        message,
        "no space on node n1: the claim asks for 200.0 GiB, of 100.0 GiB on the file system of the volumes 90.0 GiB \
         are free"
    );
    assert_eq!(held(plan(&World { space: (1 << 20, 100 * GIB), ..world() }, json!({}))).0, "NoSpace");
    let clone = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}});
    assert_eq!(held(plan(&world(), clone)).0, "NotSupported");
}

/// A claim that is bound, with all that belongs to it.
fn bound() -> Value {
    json!({
        "metadata": {"finalizers": [PROTECTION]},
        "spec": {"volumeName": "pvc-u1"},
        "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}},
    })
}

#[test]
fn binding_is_finished_where_it_was_interrupted() {
    let pv = volume(json!({"status": {"phase": "Bound"}}));
    let there = World { volume: Some(pv), ..world() };
    assert_eq!(plan(&there, bound()), ClaimStep::Nothing);
    for missing in [
        json!({"metadata": {"finalizers": null}}),
        json!({"status": {"phase": "Pending"}}),
        json!({"status": {"capacity": null}}),
    ] {
        let mut claim = bound();
        merge(&mut claim, missing);
        assert_eq!(plan(&there, claim), ClaimStep::Bind);
    }
    let unmarked = World { volume: Some(volume(json!({}))), ..world() };
    assert_eq!(plan(&unmarked, bound()), ClaimStep::Bind);
    assert_eq!(plan(&world(), bound()), ClaimStep::Nothing, "the volume has gone: not for us to mend");
    let other = volume(json!({"spec": {"claimRef": {"uid": "u2"}}}));
    assert_eq!(plan(&World { volume: Some(other), ..world() }, bound()), ClaimStep::Nothing);
}

#[test]
fn volumes_grow_while_nobody_uses_them() {
    let pv = || Some(volume(json!({"status": {"phase": "Bound"}})));
    let mut larger = bound();
    merge(&mut larger, json!({"spec": {"resources": {"requests": {"storage": "20Gi"}}}}));
    let free = World { volume: pv(), ..world() };
    assert_eq!(plan(&free, larger.clone()), ClaimStep::Grow { bytes: 20 * GIB });
    let used = World { volume: pv(), users: vec!["web".to_owned()], ..world() };
    let later =
        "the volume grows from 10.0 GiB to 20.0 GiB in machine web, or when that is stopped".to_owned();
    assert_eq!(plan(&used, larger.clone()), ClaimStep::GrowLater(later));
    let small = World { volume: pv(), space: (9 * GIB, 15 * GIB), ..world() };
    assert!(matches!(plan(&small, larger), ClaimStep::GrowLater(text) if text.contains("no space")));
    let mut smaller = bound();
    merge(&mut smaller, json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}));
    assert_eq!(plan(&free, smaller), ClaimStep::Nothing);
}

#[test]
fn a_claim_goes_when_nobody_uses_it() {
    let mut going = bound();
    merge(&mut going, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let pv = || Some(volume(json!({})));
    assert_eq!(plan(&World { volume: pv(), ..world() }, going.clone()), ClaimStep::Unprotect);
    let used = World { volume: pv(), users: vec!["web".to_owned()], ..world() };
    assert_eq!(plan(&used, going.clone()), ClaimStep::Nothing);
    assert_eq!(plan(&World { volume: pv(), node: "n2", ..world() }, going), ClaimStep::Nothing);
}

#[test]
fn volumes_follow_their_claims() {
    let retain = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let released = json!({"status": {"phase": "Released"}});
    let with = |patches: &[&Value]| {
        let mut all = json!({});
        patches.iter().for_each(|patch| merge(&mut all, (*patch).clone()));
        volume(all)
    };
    for (patches, claim_there, users, step) in [
        (&[][..], true, 0, VolumeStep::Nothing),
        (&[], false, 0, VolumeStep::Destroy),
        (&[], false, 1, VolumeStep::Nothing),
        (&[&deleting], true, 0, VolumeStep::Nothing),
        (&[&deleting], false, 0, VolumeStep::Destroy),
        (&[&retain], false, 0, VolumeStep::Release),
        (&[&retain, &released], false, 0, VolumeStep::Nothing),
        (&[&retain, &released, &deleting], false, 0, VolumeStep::Forget),
    ] {
        let users = vec!["web".to_owned(); users];
        assert_eq!(plan_volume(&with(patches), "n1", claim_there, &users), step, "{patches:?} {claim_there}");
        assert_eq!(plan_volume(&with(patches), "n2", claim_there, &users), VolumeStep::Nothing);
    }
}

#[test]
fn instances_name_their_claims() {
    let instance: VirtualMachineInstance = serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": "web"},
        "spec": {"domain": {}, "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "root"}},
            {"name": "b", "dataVolume": {"name": "data"}},
            {"name": "c", "cloudInitNoCloud": {"userData": ""}},
        ]},
        "status": {"nodeName": "n1", "phase": "Running"},
    }))
    .expect("an instance");
    assert_eq!(claims_of(&instance), [ObjectKey::new("d", "root"), ObjectKey::new("d", "data")]);
    assert!(is_user(&instance, "n1") && !is_user(&instance, "n2"));
}
