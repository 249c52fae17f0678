//! What of a VM's changed template reaches its running instance, and what has to wait for a restart. Pure.
//!
//! The template as it was when the instance was made (its start revision) is compared with the template as it is. What can
//! change in a running machine is carried over to the instance's spec, whose node then follows; what is left is a reason for
//! `RestartRequired`. Words are upstream's, as clients show them. Works on JSON, so that a field no view knows is compared,
//! too.
//!
//! Beyond upstream, which resizes by moving the machine: here everything happens in place.

use serde_json::{Map, Value, json};
use sheaf_api::kubevirt::DISK_LIMITS;
use sheaf_meta::quantity::Quantity;

/// Guests that begin with less memory get no more while they run.
const GROWS_FROM: u64 = 1 << 30;
/// Memory is plugged in in parts of this size.
const MEMORY_BLOCK: u64 = 2 << 20;
/// Annotations of a template that reach a running instance.
const LIVE_ANNOTATIONS: [&str; 3] = [
    DISK_LIMITS,
    "descheduler.alpha.kubernetes.io/evict",
    "descheduler.alpha.kubernetes.io/prefer-no-eviction",
];
/// The same, by how they begin.
const LIVE_PREFIXES: [&str; 2] = ["pre.hook.backup.velero.io/", "post.hook.backup.velero.io/"];
/// What is said of any other change.
const OTHER: &str = "a non-live-updatable field was changed in the template spec";

/// What a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct LiveWorld<'a> {
    /// `spec.template` of the VM.
    pub template: &'a Value,
    /// The template that the instance was made of.
    pub started: &'a Value,
    /// The whole instance.
    pub vmi: &'a Value,
}

/// A decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LivePlan {
    /// Merge patch of the instance; `None` if it is as it should be.
    pub vmi: Option<Value>,
    /// Why a restart is needed.
    pub restart: Option<String>,
    /// The template has not changed since the instance was made.
    pub unchanged: bool,
}

fn list<'a>(of: &'a Value, pointer: &str) -> &'a [Value] {
    of.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn name(of: &Value) -> &str {
    of["name"].as_str().unwrap_or_default()
}

fn named<'a>(all: &'a [Value], wanted: &str) -> Option<&'a Value> {
    all.iter().find(|v| name(v) == wanted)
}

fn bytes(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Quantity::parse(&text).ok()?.bytes()
}

/// Whether a volume may come and go.
pub fn hotpluggable(volume: &Value) -> bool {
    ["persistentVolumeClaim", "dataVolume"].iter().any(|source| volume[*source]["hotpluggable"] == true)
}

/// Decides.
pub fn plan_live(world: &LiveWorld<'_>) -> LivePlan {
    let unchanged = world.template == world.started;
    let mut now = world.template.get("spec").cloned().unwrap_or_default();
    let mut then = world.started.get("spec").cloned().unwrap_or_default();
    let mut spec = world.vmi.get("spec").cloned().unwrap_or_default();
    for side in [&mut now, &mut then] {
        if let Some(volumes) = side.get_mut("volumes").and_then(Value::as_array_mut) {
            volumes.retain(|v| v.get("memoryDump").is_none());
        }
    }
    let mut restart = None;
    let mut because = |why: Option<String>| restart = restart.take().or(why);

    because(sockets(&mut now, &mut then, &mut spec));
    because(memory(&mut now, &mut then, &mut spec, world.vmi));
    for key in ["nodeSelector", "affinity", "tolerations"] {
        carry(key, &mut now, &mut then, &mut spec);
    }
    volumes(&mut now, &mut then, &mut spec);
    because(interfaces(&mut now, &mut then, &mut spec));
    let same = without_empty(&now) == without_empty(&then);
    because((!same).then(|| OTHER.to_owned()));

    let mut patch = Map::new();
    if let Some(spec) = diff(world.vmi.get("spec").unwrap_or(&Value::Null), &spec) {
        patch.insert("spec".into(), spec);
    }
    if let Some(annotations) = annotations(world) {
        patch.insert("metadata".into(), json!({"annotations": annotations}));
    }
    LivePlan { vmi: (!patch.is_empty()).then_some(Value::Object(patch)), restart, unchanged }
}

/// A field that goes over as a whole.
fn carry(key: &str, now: &mut Value, then: &mut Value, spec: &mut Value) {
    let (new, old) = (now.get(key).cloned(), then.get(key).cloned());
    if new != old {
        set(spec, key, new);
    }
    for side in [now, then] {
        set(side, key, None);
    }
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => drop(map.insert(key.into(), value)),
        None => drop(map.remove(key)),
    }
}

/// The object at a pointer, made on the way.
fn make<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(object, |at, key| {
        if !at.is_object() {
            *at = json!({});
        }
        &mut at[*key]
    })
}

fn sockets(now: &mut Value, then: &mut Value, spec: &mut Value) -> Option<String> {
    let at = "/domain/cpu/sockets";
    let (new, old) = (now.pointer(at).cloned(), then.pointer(at).cloned());
    let count = |v: Option<&Value>| v.and_then(Value::as_u64).unwrap_or(1).max(1);
    let has = count(spec.pointer(at));
    let (wanted, most) = (count(new.as_ref()), count(spec.pointer("/domain/cpu/maxSockets")).max(has));
    // maxSockets says how far it may go at the next start; by itself it changes nothing.
    for side in [&mut *now, &mut *then] {
        if let Some(cpu) = side.pointer_mut("/domain/cpu") {
            set(cpu, "maxSockets", None);
            set(cpu, "sockets", None);
        }
    }
    if new == old && (new.is_none() || wanted == has) {
        return None;
    }
    if wanted > most {
        return Some("CPU sockets updated in template spec to a value higher than what's available".into());
    }
    if wanted < has {
        return Some("Reduction of CPU socket count requires a restart".into());
    }
    *make(spec, &["domain", "cpu", "sockets"]) = json!(wanted);
    None
}

fn memory(now: &mut Value, then: &mut Value, spec: &mut Value, vmi: &Value) -> Option<String> {
    let at = "/domain/memory/guest";
    let new = now.pointer(at).cloned();
    let wanted = bytes(new.as_ref());
    for side in [&mut *now, &mut *then] {
        if let Some(memory) = side.pointer_mut("/domain/memory") {
            set(memory, "maxGuest", None);
            set(memory, "guest", None);
        }
    }
    let wanted = wanted.filter(|w| bytes(spec.pointer(at)) != Some(*w))?;
    let boot = bytes(vmi.pointer("/status/memory/guestAtBoot")).or_else(|| bytes(spec.pointer(at)))?;
    let most = bytes(spec.pointer("/domain/memory/maxGuest")).unwrap_or(0);
    let say = |what: &str| Some(format!("memory updated in template spec {what}"));
    if most == 0 || boot < GROWS_FROM || spec.pointer("/domain/cpu/realtime").is_some() {
        return say("while memory hotplug is not available for this VM configuration");
    }
    if wanted > most {
        return say("to a value higher than what's available");
    }
    if wanted < boot {
        return say("to a value lower than what the VM started with");
    }
    if !wanted.is_multiple_of(MEMORY_BLOCK) {
        return say("to a value that is not a multiple of 2Mi");
    }
    *make(spec, &["domain", "memory", "guest"]) = new.unwrap_or_default();
    None
}

/// Volumes that may come and go, with their disks; of CD-ROM drives the discs only.
fn volumes(now: &mut Value, then: &mut Value, spec: &mut Value) {
    let wanted: Vec<Value> = list(now, "/volumes").iter().filter(|v| hotpluggable(v)).cloned().collect();
    let disks = list(now, "/domain/devices/disks").to_vec();
    let is_drive = |disks: &[Value], disk: &str| named(disks, disk).is_some_and(|d| d.get("cdrom").is_some());
    let was: Vec<String> =
        list(spec, "/volumes").iter().filter(|v| hotpluggable(v)).map(|v| name(v).to_owned()).collect();
    let had_drive = |spec: &Value, disk: &str| is_drive(list(spec, "/domain/devices/disks"), disk);

    for gone in was.iter().filter(|n| named(&wanted, n).is_none()) {
        let drive = had_drive(spec, gone);
        remove(spec, "/volumes", gone);
        if !drive {
            remove(spec, "/domain/devices/disks", gone);
        }
    }
    for volume in &wanted {
        let disk = named(&disks, name(volume));
        // A drive that the machine does not have cannot be given a disc.
        if disk.is_some_and(|d| d.get("cdrom").is_some()) && !had_drive(spec, name(volume)) {
            continue;
        }
        match named(list(spec, "/volumes"), name(volume)) {
            Some(there) if there == volume => {}
            Some(_) => replace(spec, "/volumes", volume.clone()),
            None => {
                push(spec, &["volumes"], volume.clone());
                if named(list(spec, "/domain/devices/disks"), name(volume)).is_none() {
                    let plain = json!({"name": name(volume), "disk": {"bus": "scsi"}});
                    push(spec, &["domain", "devices", "disks"], disk.cloned().unwrap_or(plain));
                }
            }
        }
    }
    for side in [now, then] {
        let gone: Vec<String> =
            list(side, "/volumes").iter().filter(|v| hotpluggable(v)).map(|v| name(v).to_owned()).collect();
        for volume in gone {
            let drive = had_drive(side, &volume);
            remove(side, "/volumes", &volume);
            if !drive {
                remove(side, "/domain/devices/disks", &volume);
            }
        }
    }
}

fn remove(from: &mut Value, pointer: &str, gone: &str) {
    if let Some(all) = from.pointer_mut(pointer).and_then(Value::as_array_mut) {
        all.retain(|v| name(v) != gone);
    }
}

fn replace(at: &mut Value, pointer: &str, value: Value) {
    let all = at.pointer_mut(pointer).and_then(Value::as_array_mut);
    if let Some(old) = all.into_iter().flatten().find(|v| name(v) == name(&value)) {
        *old = value;
    }
}

fn push(to: &mut Value, path: &[&str], value: Value) {
    let at = make(to, path);
    if !at.is_array() {
        *at = json!([]);
    }
    if let Some(all) = at.as_array_mut() {
        all.push(value);
    }
}

const INTERFACES: &str = "/domain/devices/interfaces";

/// Whether a NIC may be plugged in: a bridge to a network of its own.
fn pluggable(interface: &Value, network: Option<&Value>) -> bool {
    let binding = interface.get("bridge").is_some() || interface.get("binding").is_some();
    binding && network.is_some_and(|n| n.get("multus").is_some())
}

/// NICs that come, go, move and lose their cable.
fn interfaces(now: &mut Value, then: &mut Value, spec: &mut Value) -> Option<String> {
    let wanted = list(now, INTERFACES).to_vec();
    let networks = list(now, "/networks").to_vec();
    for interface in &wanted {
        let nic = name(interface);
        let network = named(&networks, nic);
        let old = named(list(then, INTERFACES), nic).is_some();
        let in_spec = named(list(spec, INTERFACES), nic).cloned();
        let absent = interface["state"] == "absent";
        match in_spec {
            Some(mut has) => {
                let state = interface.get("state").cloned();
                if has.get("state") != state.as_ref() {
                    set(&mut has, "state", state.clone());
                    replace(spec, INTERFACES, has);
                }
                move_network(spec, network, nic);
            }
            None if !absent && pluggable(interface, network) => {
                push(spec, &["domain", "devices", "interfaces"], interface.clone());
                push(spec, &["networks"], network.cloned().unwrap_or_default());
            }
            None => {}
        }
        // What was carried over is no difference any more.
        let carried = named(list(spec, INTERFACES), nic).is_some() || absent;
        if !old && carried && pluggable(interface, network) {
            remove(now, INTERFACES, nic);
            remove(now, "/networks", nic);
        } else if old && !carried {
            // It was unplugged, and is wanted again, in a form that cannot be plugged in.
            return Some(OTHER.into());
        }
    }
    // Gone from the template after it was unplugged.
    let was: Vec<String> = list(then, INTERFACES).iter().map(|i| name(i).to_owned()).collect();
    for nic in was.iter().filter(|n| named(&wanted, n).is_none()) {
        let there = named(list(spec, INTERFACES), nic);
        if there.is_none_or(|i| i["state"] == "absent") {
            remove(then, INTERFACES, nic);
            remove(then, "/networks", nic);
        }
    }
    // An entry of the instance that is absent, and that nobody names any more.
    let over: Vec<String> = list(spec, INTERFACES)
        .iter()
        .filter(|i| i["state"] == "absent" && named(&wanted, name(i)).is_none())
        .map(|i| name(i).to_owned())
        .collect();
    for nic in over {
        remove(spec, INTERFACES, &nic);
        remove(spec, "/networks", &nic);
    }
    for side in [now, then] {
        for interface in side.pointer_mut(INTERFACES).and_then(Value::as_array_mut).into_iter().flatten() {
            set(interface, "state", None);
        }
        for network in side.pointer_mut("/networks").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(multus) = network.get_mut("multus") {
                set(multus, "networkName", None);
            }
        }
    }
    None
}

/// The name of the network that a NIC is plugged into.
fn move_network(spec: &mut Value, network: Option<&Value>, nic: &str) {
    let Some(wanted) = network.and_then(|n| n.pointer("/multus/networkName")).cloned() else { return };
    let all = spec.pointer_mut("/networks").and_then(Value::as_array_mut);
    if let Some(multus) = all.into_iter().flatten().find(|n| name(n) == nic).and_then(|n| n.get_mut("multus"))
    {
        set(multus, "networkName", Some(wanted));
    }
}

/// Annotations of the template that reach the instance, where they differ.
fn annotations(world: &LiveWorld<'_>) -> Option<Value> {
    let of = |o: &Value| {
        o.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (wanted, has) = (of(world.template), of(world.vmi));
    let live = |key: &&String| {
        LIVE_ANNOTATIONS.contains(&key.as_str()) || LIVE_PREFIXES.iter().any(|p| key.starts_with(p))
    };
    let mut out = Map::new();
    for (key, value) in wanted.iter().filter(|(k, _)| live(k)) {
        if has.get(key) != Some(value) {
            out.insert(key.clone(), value.clone());
        }
    }
    for key in has.keys().filter(|k| live(k) && !wanted.contains_key(*k)) {
        out.insert(key.clone(), Value::Null);
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// Without null, empty lists and empty objects that say nothing: whether somebody wrote them is no difference. (`rng: {}` and
/// the like do say something, and have names that a list or a map has not.)
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept =
                map.iter().filter(|(_, v)| !v.is_null() && !matches!(v, Value::Array(a) if a.is_empty()));
            Value::Object(kept.map(|(k, v)| (k.clone(), without_empty(v))).collect())
        }
        Value::Array(all) => Value::Array(all.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

/// Merge patch from one object to another; lists as a whole.
fn diff(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for key in old.keys().filter(|k| !new.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in new {
                match old.get(key) {
                    None => drop(patch.insert(key.clone(), value.clone())),
                    Some(previous) => {
                        if let Some(inner) = diff(previous, value) {
                            patch.insert(key.clone(), inner);
                        }
                    }
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

/// NICs of a template that are `absent` and that the instance has no more: their entries may go. Gives the merge patch of the
/// VM's spec.
pub fn plan_absent(template: &Value, vmi: Option<&Value>) -> Option<Value> {
    let reported = |nic: &str| {
        vmi.is_some_and(|vmi| {
            let in_spec = named(list(vmi, "/spec/domain/devices/interfaces"), nic);
            in_spec.is_some_and(|i| i["state"] != "absent")
                || list(vmi, "/status/interfaces").iter().any(|i| name(i) == nic)
        })
    };
    let interfaces = list(template, "/spec/domain/devices/interfaces");
    let over: Vec<&str> =
        interfaces.iter().filter(|i| i["state"] == "absent").map(name).filter(|n| !reported(n)).collect();
    if over.is_empty() {
        return None;
    }
    let left = |pointer: &str| -> Vec<Value> {
        list(template, pointer).iter().filter(|v| !over.contains(&name(v))).cloned().collect()
    };
    Some(json!({"template": {"spec": {
        "domain": {"devices": {"interfaces": left("/spec/domain/devices/interfaces")}},
        "networks": left("/spec/networks"),
    }}}))
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
