//! A VM's template with its instance type and its preference applied. Pure.
//!
//! The instance type says how large a machine is, and nothing may say it beside it: what does is a [`Conflict`]. The
//! preference fills in what the template leaves open. Both are given as the `spec` of their objects; the template as the
//! `spec` of the instance that would be made. Contract: instancetype.kubevirt.io/v1beta1.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use sheaf_meta::quantity::Quantity;

/// What cannot be: the field that is at fault, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Path of the field, from the VM.
    pub field: String,
    /// Why; for people.
    pub why: String,
}

/// Cores of a socket, or threads of a core, where processors are spread.
const SPREAD_RATIO: u64 = 2;
const B: &str = "spec.template.spec";

/// Says how the template contradicts the instance type.
pub fn conflicts(spec: &Value, instancetype: &Value) -> Vec<Conflict> {
    let given = |pointer: &str| {
        spec.pointer(pointer)
            .is_some_and(|v| !v.is_null() && *v != json!(0) && *v != json!("") && *v != json!([]))
    };
    let sets = |pointer: &str| {
        instancetype.pointer(pointer).is_some_and(|v| !v.is_null() && *v != json!([]) && *v != json!(""))
    };
    // What the type always says, and what it says only if it does.
    let always = [
        "domain/cpu/cores",
        "domain/cpu/sockets",
        "domain/cpu/threads",
        "domain/memory/guest",
        "domain/resources/requests/cpu",
        "domain/resources/limits/cpu",
        "domain/resources/requests/memory",
        "domain/resources/limits/memory",
    ];
    let sometimes = [
        ("domain/cpu/model", "/cpu/model"),
        ("domain/cpu/dedicatedCpuPlacement", "/cpu/dedicatedCPUPlacement"),
        ("domain/cpu/isolateEmulatorThread", "/cpu/isolateEmulatorThread"),
        ("domain/cpu/numa", "/cpu/numa"),
        ("domain/cpu/realtime", "/cpu/realtime"),
        ("domain/cpu/maxSockets", "/cpu/maxSockets"),
        ("domain/memory/hugepages", "/memory/hugepages"),
        ("domain/memory/maxGuest", "/memory/maxGuest"),
        ("domain/devices/gpus", "/gpus"),
        ("domain/devices/hostDevices", "/hostDevices"),
        ("domain/ioThreadsPolicy", "/ioThreadsPolicy"),
        ("domain/ioThreads", "/ioThreads"),
        ("domain/launchSecurity", "/launchSecurity"),
        ("schedulerName", "/schedulerName"),
    ];
    let mut fields: Vec<String> =
        always.iter().filter(|f| given(&format!("/{f}"))).map(|f| (*f).to_owned()).collect();
    fields.extend(
        sometimes.iter().filter(|(f, of)| given(&format!("/{f}")) && sets(of)).map(|(f, _)| (*f).to_owned()),
    );
    for key in object(instancetype, "nodeSelector").keys() {
        if object(spec, "nodeSelector").contains_key(key) {
            fields.push(format!("nodeSelector.{key}"));
        }
    }
    fields
        .into_iter()
        .map(|f| {
            let field = format!("{B}.{}", f.replace('/', "."));
            let why = format!("VM field(s) {field} conflicts with selected instance type");
            Conflict { field, why }
        })
        .collect()
}

fn object(of: &Value, key: &str) -> Map<String, Value> {
    of.get(key).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Sockets, cores and threads of so many processors, as a preference has them.
pub fn topology(guest: u64, preference: Option<&Value>) -> Result<(u64, u64, u64), Conflict> {
    let cpu = preference.and_then(|p| p.get("cpu"));
    let asked = cpu.and_then(|c| c["preferredCPUTopology"].as_str()).unwrap_or_default();
    let uneven = |parts: u64| {
        Err(Conflict {
            field: "instancetype.spec.cpu.guest".into(),
            why: format!("{guest} vCPUs cannot be spread over topologies of {parts}"),
        })
    };
    match asked {
        "cores" | "preferCores" => Ok((1, guest, 1)),
        "threads" | "preferThreads" => Ok((1, 1, guest)),
        "spread" | "preferSpread" => {
            let options = cpu.map(|c| &c["spreadOptions"]);
            let ratio = options.and_then(|o| o["ratio"].as_u64());
            let ratio =
                ratio.or_else(|| preference.and_then(|p| p["preferSpreadSocketToCoreRatio"].as_u64()));
            let ratio = ratio.filter(|r| *r > 0).unwrap_or(SPREAD_RATIO);
            match options.and_then(|o| o["across"].as_str()).unwrap_or("SocketsCores") {
                "CoresThreads" if guest.is_multiple_of(ratio) => Ok((1, guest / ratio, ratio)),
                "SocketsCoresThreads" if guest.is_multiple_of(ratio * 2) => Ok((guest / ratio / 2, ratio, 2)),
                "SocketsCoresThreads" => uneven(ratio * 2),
                "SocketsCores" if guest.is_multiple_of(ratio) => Ok((guest / ratio, ratio, 1)),
                _ => uneven(ratio),
            }
        }
        _ => Ok((guest, 1, 1)),
    }
}

/// Whether what the preference requires is there: by the instance type, else by the template.
pub fn requirements(spec: &Value, instancetype: Option<&Value>, preference: &Value) -> Vec<Conflict> {
    let mut out = Vec::new();
    let Some(required) = preference.get("requirements") else { return out };
    if let Some(cpus) = required.pointer("/cpu/guest").and_then(Value::as_u64) {
        let typed = instancetype.and_then(|i| i.pointer("/cpu/guest")).and_then(Value::as_u64);
        let part = |key: &str| {
            spec.pointer(&format!("/domain/cpu/{key}")).and_then(Value::as_u64).unwrap_or(1).max(1)
        };
        let has = typed.unwrap_or_else(|| part("sockets") * part("cores") * part("threads"));
        if has < cpus {
            let why =
                format!("insufficient CPU resources of {has} vCPU provided, preference requires {cpus} vCPU");
            let field =
                if typed.is_some() { "spec.instancetype".into() } else { format!("{B}.domain.cpu.sockets") };
            out.push(Conflict { field, why });
        }
    }
    let bytes = |v: Option<&Value>| {
        let text = v.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))?;
        Quantity::parse(&text).ok()
    };
    if let Some(wanted) = bytes(required.pointer("/memory/guest")) {
        let typed = bytes(instancetype.and_then(|i| i.pointer("/memory/guest")));
        let has =
            typed.or_else(|| bytes(spec.pointer("/domain/memory/guest"))).unwrap_or_else(Quantity::zero);
        if has < wanted {
            let why =
                format!("insufficient Memory resources of {has} provided, preference requires {wanted}");
            let field =
                if typed.is_some() { "spec.instancetype".into() } else { format!("{B}.domain.memory") };
            out.push(Conflict { field, why });
        }
    }
    if let Some(wanted) = required["architecture"].as_str().filter(|a| !a.is_empty()) {
        let has = spec["architecture"].as_str().unwrap_or_default();
        if !has.is_empty() && has != wanted {
            let why = format!("preference requires architecture {wanted} but {has} is being requested");
            out.push(Conflict { field: format!("{B}.architecture"), why });
        }
    }
    out
}

/// The template's spec with both applied. `annotations` are those of the instance; the type's are added.
pub fn apply(
    spec: &mut Value,
    annotations: &mut Map<String, Value>,
    instancetype: Option<&Value>,
    preference: Option<&Value>,
) -> Result<(), Vec<Conflict>> {
    if let Some(instancetype) = instancetype {
        let found = conflicts(spec, instancetype);
        if !found.is_empty() {
            return Err(found);
        }
        size(spec, instancetype, preference).map_err(|c| vec![c])?;
        for (key, value) in object(instancetype, "annotations") {
            annotations.entry(key).or_insert(value);
        }
    }
    if let Some(preference) = preference {
        let unmet = requirements(spec, instancetype, preference);
        if !unmet.is_empty() {
            return Err(unmet);
        }
        prefer(spec, preference);
        for (key, value) in object(preference, "annotations") {
            annotations.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// The value at a path, made on the way.
fn at<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('/').fold(object, |at, key| {
        if !at.is_object() {
            *at = json!({});
        }
        &mut at[key]
    })
}

fn put(object: &mut Value, path: &str, value: Value) {
    *at(object, path) = value;
}

/// Sets what is not set.
fn fill(object: &mut Value, path: &str, value: Option<&Value>) {
    let Some(value) = value.filter(|v| !v.is_null() && **v != json!("")) else { return };
    let pointer = format!("/{path}");
    let open = object.pointer(&pointer).is_none_or(|v| v.is_null() || *v == json!(""));
    if open {
        put(object, path, value.clone());
    }
}

fn size(spec: &mut Value, instancetype: &Value, preference: Option<&Value>) -> Result<(), Conflict> {
    let guest = instancetype.pointer("/cpu/guest").and_then(Value::as_u64).unwrap_or(1).max(1);
    let (sockets, cores, threads) = topology(guest, preference)?;
    for (key, value) in [("sockets", sockets), ("cores", cores), ("threads", threads)] {
        put(spec, &format!("domain/cpu/{key}"), json!(value));
    }
    for (from, to) in [
        ("/cpu/maxSockets", "domain/cpu/maxSockets"),
        ("/cpu/model", "domain/cpu/model"),
        ("/cpu/dedicatedCPUPlacement", "domain/cpu/dedicatedCpuPlacement"),
        ("/cpu/isolateEmulatorThread", "domain/cpu/isolateEmulatorThread"),
        ("/cpu/numa", "domain/cpu/numa"),
        ("/cpu/realtime", "domain/cpu/realtime"),
        ("/memory/guest", "domain/memory/guest"),
        ("/memory/hugepages", "domain/memory/hugepages"),
        ("/memory/maxGuest", "domain/memory/maxGuest"),
        ("/gpus", "domain/devices/gpus"),
        ("/hostDevices", "domain/devices/hostDevices"),
        ("/ioThreadsPolicy", "domain/ioThreadsPolicy"),
        ("/ioThreads", "domain/ioThreads"),
        ("/launchSecurity", "domain/launchSecurity"),
        ("/schedulerName", "schedulerName"),
    ] {
        fill(spec, to, instancetype.pointer(from));
    }
    for (key, value) in object(instancetype, "nodeSelector") {
        put(spec, "nodeSelector", {
            let mut all = object(spec, "nodeSelector");
            all.insert(key, value);
            Value::Object(all)
        });
    }
    let percent = instancetype.pointer("/memory/overcommitPercent").and_then(Value::as_i64).unwrap_or(0);
    if percent > 0
        && let Some(memory) = instancetype.pointer("/memory/guest")
    {
        let text = memory.as_str().map_or_else(|| memory.to_string(), str::to_owned);
        if let Ok(memory) = Quantity::parse(&text) {
            let mut bytes = String::new();
            let _ = write!(bytes, "{}", i128::from(memory.value()) * i128::from(100 - percent) / 100);
            put(spec, "domain/resources/requests/memory", json!(bytes));
        }
    }
    Ok(())
}

fn prefer(spec: &mut Value, p: &Value) {
    devices(spec, p);
    let get = |path: &str| p.pointer(path);
    for (from, to) in [
        ("/features/preferredApic", "domain/features/apic"),
        ("/features/preferredHyperv", "domain/features/hyperv"),
        ("/features/preferredKvm", "domain/features/kvm"),
        ("/features/preferredPvspinlock", "domain/features/pvspinlock"),
        ("/features/preferredSmm", "domain/features/smm"),
        ("/clock/preferredTimer", "domain/clock/timer"),
        ("/machine/preferredMachineType", "domain/machine/type"),
        ("/preferredSubdomain", "subdomain"),
        ("/preferredTerminationGracePeriodSeconds", "terminationGracePeriodSeconds"),
        ("/preferredLaunchSecurity", "domain/launchSecurity"),
    ] {
        fill(spec, to, get(from));
    }
    // Upstream's two that win over the template.
    if let Some(acpi) = get("/features/preferredAcpi") {
        put(spec, "domain/features/acpi", acpi.clone());
    }
    if let Some(offset) = get("/clock/preferredClockOffset")
        && spec.pointer("/domain/clock/utc").is_none()
        && spec.pointer("/domain/clock/timezone").is_none()
    {
        for (key, value) in offset.as_object().into_iter().flatten() {
            put(spec, &format!("domain/clock/{key}"), value.clone());
        }
    }
    let features = p.pointer("/cpu/preferredCPUFeatures").and_then(Value::as_array);
    for feature in features.into_iter().flatten() {
        let all = at(spec, "domain/cpu/features");
        if !all.is_array() {
            *all = json!([]);
        }
        if let Some(all) = all.as_array_mut()
            && !all.iter().any(|f| f["name"] == feature["name"])
        {
            all.push(feature.clone());
        }
    }
    firmware(spec, p);
}

fn firmware(spec: &mut Value, p: &Value) {
    let on = |key: &str| p.pointer(&format!("/firmware/{key}")) == Some(&json!(true));
    let loader = spec.pointer("/domain/firmware/bootloader");
    let bios = loader.is_some_and(|l| l.get("bios").is_some_and(|b| !b.is_null()));
    let efi = loader.is_some_and(|l| l.get("efi").is_some_and(|e| !e.is_null()));
    if on("preferredUseBios") && !efi && !bios {
        put(spec, "domain/firmware/bootloader/bios", json!({}));
        if on("preferredUseBiosSerial") {
            put(spec, "domain/firmware/bootloader/bios/useSerial", json!(true));
        }
    } else if !bios && !efi {
        if let Some(wanted) = p.pointer("/firmware/preferredEfi").filter(|v| v.is_object()) {
            put(spec, "domain/firmware/bootloader/efi", wanted.clone());
        } else if on("preferredUseEfi") {
            put(spec, "domain/firmware/bootloader/efi", json!({"secureBoot": on("preferredUseSecureBoot")}));
        }
    }
}

fn devices(spec: &mut Value, p: &Value) {
    let Some(d) = p.get("devices") else { return };
    for (from, to) in [
        ("preferredAutoattachGraphicsDevice", "autoattachGraphicsDevice"),
        ("preferredAutoattachInputDevice", "autoattachInputDevice"),
        ("preferredAutoattachMemBalloon", "autoattachMemBalloon"),
        ("preferredAutoattachPodInterface", "autoattachPodInterface"),
        ("preferredAutoattachSerialConsole", "autoattachSerialConsole"),
        ("preferredBlockMultiQueue", "blockMultiQueue"),
        ("preferredNetworkInterfaceMultiQueue", "networkInterfaceMultiqueue"),
        ("preferredUseVirtioTransitional", "useVirtioTransitional"),
        ("preferredRng", "rng"),
        ("preferredTPM", "tpm"),
        ("preferredVideoType", "video/type"),
    ] {
        // Without a screen there is no card.
        let headless = spec.pointer("/domain/devices/autoattachGraphicsDevice") == Some(&json!(false));
        if !(to == "video/type" && headless) {
            fill(spec, &format!("domain/devices/{to}"), d.get(from));
        }
    }
    if let Some(fixed) = d.get("preferredDisableHotplug") {
        put(spec, "domain/devices/disableHotplug", fixed.clone());
    }
    if spec.pointer("/domain/devices/sound").is_some() {
        fill(spec, "domain/devices/sound/model", d.get("preferredSoundModel"));
    }
    for list in ["disks", "interfaces", "inputs", "panicDevices"] {
        let all = spec.pointer_mut(&format!("/domain/devices/{list}")).and_then(Value::as_array_mut);
        for device in all.into_iter().flatten() {
            match list {
                "disks" => disk(device, d),
                "interfaces" => interface(device, d),
                "inputs" => {
                    fill(device, "bus", d.get("preferredInputBus"));
                    fill(device, "type", d.get("preferredInputType"));
                }
                _ => fill(device, "model", d.get("preferredPanicDeviceModel")),
            }
        }
    }
}

fn disk(disk: &mut Value, d: &Value) {
    if !["disk", "cdrom", "lun"].iter().any(|t| disk.get(*t).is_some()) {
        put(disk, "disk", json!({}));
    }
    for (target, bus) in
        [("disk", "preferredDiskBus"), ("cdrom", "preferredCdromBus"), ("lun", "preferredLunBus")]
    {
        if disk.get(target).is_some() {
            fill(disk, &format!("{target}/bus"), d.get(bus));
        }
    }
    if disk.get("disk").is_none() {
        return;
    }
    fill(disk, "cache", d.get("preferredDiskCache"));
    fill(disk, "io", d.get("preferredDiskIO"));
    fill(disk, "blockSize", d.get("preferredDiskBlockSize"));
    if disk.pointer("/disk/bus") == Some(&json!("virtio")) {
        fill(disk, "dedicatedIOThread", d.get("preferredDiskDedicatedIoThread"));
    }
}

fn interface(interface: &mut Value, d: &Value) {
    fill(interface, "model", d.get("preferredInterfaceModel"));
    let bindings = ["bridge", "masquerade", "sriov", "passtBinding", "binding"];
    if !bindings.iter().any(|b| interface.get(*b).is_some()) {
        fill(interface, "masquerade", d.get("preferredInterfaceMasquerade"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium() -> Value {
        json!({"cpu": {"guest": 4, "maxSockets": 8}, "memory": {"guest": "8Gi", "overcommitPercent": 50},
            "nodeSelector": {"a": "b"}, "ioThreadsPolicy": "auto", "annotations": {"x": "y"}})
    }

    #[test]
    fn topologies() {
        let pref = |cpu: Value| json!({"cpu": cpu});
        let cases = [
            (json!({}), Ok((4, 1, 1))),
            (json!({"preferredCPUTopology": "preferCores"}), Ok((1, 4, 1))),
            (json!({"preferredCPUTopology": "threads"}), Ok((1, 1, 4))),
            (json!({"preferredCPUTopology": "any"}), Ok((4, 1, 1))),
            (json!({"preferredCPUTopology": "spread"}), Ok((2, 2, 1))),
            (json!({"preferredCPUTopology": "spread", "spreadOptions": {"ratio": 4}}), Ok((1, 4, 1))),
            (
                json!({"preferredCPUTopology": "spread", "spreadOptions": {"across": "SocketsCoresThreads"}}),
                Ok((1, 2, 2)),
            ),
            (
                json!({"preferredCPUTopology": "spread", "spreadOptions": {"across": "CoresThreads"}}),
                Ok((1, 2, 2)),
            ),
        ];
        for (cpu, want) in cases {
            assert_eq!(topology(4, Some(&pref(cpu.clone()))), want, "{cpu}");
        }
        let err = topology(3, Some(&pref(json!({"preferredCPUTopology": "spread"})))).expect_err("uneven");
        assert_eq!(err.field, "instancetype.spec.cpu.guest");
    }

    #[test]
    fn a_type_and_a_preference_make_a_machine() {
        let mut spec = json!({"domain": {"devices": {
            "disks": [{"name": "root"}, {"name": "cd", "cdrom": {}}, {"name": "own", "disk": {"bus": "sata"}}],
            "interfaces": [{"name": "default"}]}}});
        let preference = json!({
            "devices": {"preferredDiskBus": "virtio", "preferredCdromBus": "sata", "preferredInterfaceModel": "virtio",
                "preferredInterfaceMasquerade": {}, "preferredRng": {}, "preferredDiskDedicatedIoThread": true},
            "features": {"preferredAcpi": {}, "preferredSmm": {"enabled": true}},
            "firmware": {"preferredUseEfi": true, "preferredUseSecureBoot": true},
            "cpu": {"preferredCPUTopology": "preferCores", "preferredCPUFeatures": [{"name": "aes"}]},
            "requirements": {"cpu": {"guest": 2}, "memory": {"guest": "4Gi"}},
        });
        let mut annotations = Map::new();
        apply(&mut spec, &mut annotations, Some(&medium()), Some(&preference)).expect("fits");
        assert_eq!(annotations["x"], "y");
        assert_eq!(
            spec["domain"]["cpu"],
            json!({"sockets": 1, "cores": 4, "threads": 1, "maxSockets": 8,
            "features": [{"name": "aes"}]})
        );
        assert_eq!(spec["domain"]["memory"]["guest"], "8Gi");
        assert_eq!(spec["domain"]["resources"]["requests"]["memory"], "4294967296");
        assert_eq!(
            spec["domain"]["devices"]["disks"],
            json!([
            {"name": "root", "disk": {"bus": "virtio"}, "dedicatedIOThread": true},
            {"name": "cd", "cdrom": {"bus": "sata"}}, {"name": "own", "disk": {"bus": "sata"}}])
        );
        assert_eq!(
            spec["domain"]["devices"]["interfaces"][0],
            json!({"name": "default", "model": "virtio", "masquerade": {}})
        );
        assert_eq!(spec["domain"]["firmware"]["bootloader"]["efi"]["secureBoot"], true);
        assert_eq!(
            (&spec["nodeSelector"]["a"], &spec["domain"]["ioThreadsPolicy"]),
            (&json!("b"), &json!("auto"))
        );
    }

    #[test]
    fn what_contradicts_is_named() {
        let spec = json!({"nodeSelector": {"a": "c"}, "domain": {"cpu": {"sockets": 2, "model": "x", "maxSockets": 2},
            "memory": {"guest": "1Gi"}, "resources": {"requests": {"memory": "1Gi"}}}});
        let fields: Vec<String> = conflicts(&spec, &medium()).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            [
                "spec.template.spec.domain.cpu.sockets",
                "spec.template.spec.domain.memory.guest",
                "spec.template.spec.domain.resources.requests.memory",
                "spec.template.spec.domain.cpu.maxSockets",
                "spec.template.spec.nodeSelector.a",
            ]
        );
        let required = json!({"requirements": {"cpu": {"guest": 8}, "memory": {"guest": "1Gi"}}});
        let by_type: Vec<String> =
            requirements(&json!({}), Some(&medium()), &required).into_iter().map(|c| c.field).collect();
        assert_eq!(by_type, ["spec.instancetype"]);
        let by_hand: Vec<String> =
            requirements(&json!({}), None, &required).into_iter().map(|c| c.field).collect();
        assert_eq!(by_hand, ["spec.template.spec.domain.cpu.sockets", "spec.template.spec.domain.memory"]);
    }
}
