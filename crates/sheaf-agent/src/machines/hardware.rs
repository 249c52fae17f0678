//! What an instance says about its hardware beyond processors' number, memory, disks and NICs: features, clock, firmware's
//! details, sound, TPM, panic devices. Pure.
//!
//! Part of [`super::convert`]; what cannot be had is refused with the field's path.

use sheaf_api::kubevirt as kv;
use sheaf_qemu::args::memory_block;
use sheaf_qemu::spec as q;

use super::convert::{Refused, bytes, enabled, refused};

/// Spin locks are tried this often before Hyper-V is told, if the feature does not say.
const SPINLOCKS: u32 = 4096;
/// Viewers may pass in so many USB devices.
const USB_REDIRECTIONS: u8 = 4;
/// A guest with less memory than this at its start gets no more while it runs.
pub(super) const GROWS_FROM: u64 = 1 << 30;

/// What few machines have.
pub(super) fn rare(spec: &kv::VirtualMachineInstanceSpec, memory_bytes: u64) -> Result<q::Rare, Refused> {
    let domain = &spec.domain;
    let devices = &domain.devices;
    let fixed = devices.disable_hotplug.unwrap_or(false);
    let (clock_catch_up, mut machine_flags, mut cpu_flags) = timers(domain);
    cpu_flags.extend(features(domain));
    let hugepages = hugepages(domain)?;
    let firmware = domain.firmware.as_ref();
    if enabled(domain.features.as_ref().and_then(|f| f.pvspinlock.as_ref())) == Some(false) {
        cpu_flags.push("kvm-pv-unhalt=off".into());
    }
    machine_flags.sort();
    Ok(q::Rare {
        fixed,
        memory_max_bytes: if fixed { 0 } else { memory_max(domain, memory_bytes, memory_block(hugepages))? },
        memory_plugged_bytes: 0,
        hugepages,
        iothreads: 0,
        tpm: None,
        sound: sound(devices)?,
        vsock_cid: None,
        video: video(devices)?,
        usb_redirections: if devices.client_passthrough.is_some() { USB_REDIRECTIONS } else { 0 },
        panic_devices: panic_devices(devices)?,
        cpu_flags,
        clock_catch_up,
        machine_flags,
        smm: enabled(domain.features.as_ref().and_then(|f| f.smm.as_ref())).unwrap_or(false),
        boot_menu_ms: (spec.start_strategy.as_deref() == Some("Paused")).then_some(10_000),
        firmware_on_serial: firmware
            .and_then(|f| f.bootloader.as_ref())
            .and_then(|b| b.bios.as_ref())
            .and_then(|b| b.use_serial)
            .unwrap_or(false),
        reboot_ends: domain.reboot_policy.as_deref() == Some("Terminate"),
        smbios: chassis(domain),
        acpi_tables: Vec::new(),
        firmware_files: Vec::new(),
        transitional: devices.use_virtio_transitional.unwrap_or(false),
        user: None,
        sockets: None,
        cpu_shares: shares(domain),
        io_weight: None,
        pinned: Vec::new(),
        incoming: None,
        first_cpus: None,
        memory_locked: domain.cpu.as_ref().is_some_and(|c| c.realtime.is_some()),
    })
}

/// Memory up to which the guest can grow: as upstream, only one that begins with enough.
fn memory_max(domain: &kv::DomainSpec, memory_bytes: u64, block: u64) -> Result<u64, Refused> {
    let Some(max) = domain.memory.as_ref().and_then(|m| m.max_guest.as_ref()) else { return Ok(0) };
    let max = bytes("spec.domain.memory.maxGuest", max)?;
    let even = memory_bytes.is_multiple_of(block);
    Ok(if memory_bytes >= GROWS_FROM && even { max / block * block } else { 0 })
}

/// What of a processor is requested, as the kernel counts it.
fn shares(domain: &kv::DomainSpec) -> Option<u64> {
    let cpu = domain.resources.as_ref()?.requests.get("cpu")?;
    let milli = sheaf_meta::quantity::Quantity::parse(&cpu.0).ok()?.milli();
    u64::try_from(milli).ok().map(|m| m * 1024 / 1000)
}

fn hugepages(domain: &kv::DomainSpec) -> Result<Option<u64>, Refused> {
    let Some(pages) = domain.memory.as_ref().and_then(|m| m.hugepages.as_ref()) else { return Ok(None) };
    let field = "spec.domain.memory.hugepages.pageSize";
    let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(pages.page_size.clone());
    Ok(Some(bytes(field, &size)?))
}

fn sound(devices: &kv::Devices) -> Result<Option<q::Sound>, Refused> {
    let Some(sound) = &devices.sound else { return Ok(None) };
    match sound.model.as_str() {
        "" | "ich9" => Ok(Some(q::Sound::Ich9)),
        "ac97" => Ok(Some(q::Sound::Ac97)),
        other => refused("spec.domain.devices.sound.model", format!("{other:?} is neither ich9 nor ac97")),
    }
}

fn video(devices: &kv::Devices) -> Result<Option<q::Video>, Refused> {
    match devices.video.as_ref().map_or("", |v| v.r#type.as_str()) {
        "" => Ok(None),
        "vga" => Ok(Some(q::Video::Vga)),
        "cirrus" => Ok(Some(q::Video::Cirrus)),
        "virtio" => Ok(Some(q::Video::Virtio)),
        "bochs" => Ok(Some(q::Video::Bochs)),
        "ramfb" => Ok(Some(q::Video::Ramfb)),
        other => refused(
            "spec.domain.devices.video.type",
            format!("{other:?} is none of vga, cirrus, virtio, bochs, ramfb"),
        ),
    }
}

fn panic_devices(devices: &kv::Devices) -> Result<Vec<q::PanicDevice>, Refused> {
    let mut out = Vec::new();
    for (i, device) in devices.panic_devices.iter().enumerate() {
        out.push(match device.model.as_deref().unwrap_or("isa") {
            "isa" => q::PanicDevice::Isa,
            "pvpanic" => q::PanicDevice::Pci,
            "hyperv" => q::PanicDevice::Hyperv,
            other => {
                let field = format!("spec.domain.devices.panicDevices[{i}].model");
                return refused(field, format!("{other:?} is none of isa, pvpanic, hyperv"));
            }
        });
    }
    Ok(out)
}

/// Whether ticks are made up for, properties of the machine, and of the processors.
fn timers(domain: &kv::DomainSpec) -> (bool, Vec<String>, Vec<String>) {
    let (mut machine, mut cpu) = (Vec::new(), Vec::new());
    let Some(timer) = domain.clock.as_ref().and_then(|c| c.timer.as_ref()) else {
        return (false, machine, cpu);
    };
    let switch = |on: bool| if on { "on" } else { "off" };
    if let Some(present) = timer.hpet.as_ref().and_then(|t| t.present) {
        machine.push(format!("hpet={}", switch(present)));
    }
    if let Some(present) = timer.pit.as_ref().and_then(|t| t.present) {
        machine.push(format!("pit={}", switch(present)));
    }
    if timer.kvm.as_ref().and_then(|t| t.present) == Some(false) {
        cpu.push("kvmclock=off".into());
    }
    if timer.hyperv.as_ref().is_some_and(|t| t.present.unwrap_or(true)) {
        cpu.push("hv-time=on".into());
    }
    let catch_up =
        timer.rtc.as_ref().is_some_and(|t| t.present.unwrap_or(true) && t.tick_policy == "catchup");
    (catch_up, machine, cpu)
}

/// Hyper-V's interfaces, and whether KVM shows itself.
fn features(domain: &kv::DomainSpec) -> Vec<String> {
    let mut out = Vec::new();
    let Some(features) = &domain.features else { return out };
    if features.kvm.as_ref().and_then(|k| k.hidden).unwrap_or(false) {
        out.push("kvm=off".into());
    }
    if enabled(features.hyperv_passthrough.as_ref()) == Some(true) {
        out.push("hv-passthrough=on".into());
    }
    let Some(hv) = &features.hyperv else { return out };
    let on = |state: &Option<kv::FeatureState>| enabled(state.as_ref()) == Some(true);
    for (state, flag) in [
        (&hv.relaxed, "hv-relaxed"),
        (&hv.vapic, "hv-vapic"),
        (&hv.vpindex, "hv-vpindex"),
        (&hv.runtime, "hv-runtime"),
        (&hv.synic, "hv-synic"),
        (&hv.reset, "hv-reset"),
        (&hv.frequencies, "hv-frequencies"),
        (&hv.reenlightenment, "hv-reenlightenment"),
        (&hv.ipi, "hv-ipi"),
        (&hv.evmcs, "hv-evmcs"),
    ] {
        if on(state) {
            out.push(format!("{flag}=on"));
        }
    }
    if let Some(locks) = hv.spinlocks.as_ref().filter(|l| l.enabled.unwrap_or(true)) {
        out.push(format!("hv-spinlocks={:#x}", locks.spinlocks.unwrap_or(SPINLOCKS)));
    }
    if let Some(timer) = hv.synictimer.as_ref().filter(|t| t.enabled.unwrap_or(true)) {
        out.push("hv-stimer=on".into());
        if on(&timer.direct) {
            out.push("hv-stimer-direct=on".into());
        }
    }
    if let Some(flush) = hv.tlbflush.as_ref().filter(|t| t.enabled.unwrap_or(true)) {
        out.push("hv-tlbflush=on".into());
        if on(&flush.direct) {
            out.push("hv-tlbflush-direct=on".into());
        }
        if on(&flush.extended) {
            out.push("hv-tlbflush-ext=on".into());
        }
    }
    if let Some(vendor) = hv.vendorid.as_ref().filter(|v| v.enabled.unwrap_or(true)) {
        out.push(format!("hv-vendor-id={}", vendor.vendorid));
    }
    out
}

fn chassis(domain: &kv::DomainSpec) -> Vec<(u8, String, String)> {
    let Some(c) = &domain.chassis else { return Vec::new() };
    let fields = [
        ("manufacturer", &c.manufacturer),
        ("version", &c.version),
        ("serial", &c.serial),
        ("asset", &c.asset),
        ("sku", &c.sku),
    ];
    fields.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (3, (*k).to_owned(), (*v).clone())).collect()
}

/// Gives disks their I/O threads and says how many there are: one that all share, some that are dealt round, and one for
/// each disk that asks for its own. Only virtio disks have threads.
pub(super) fn assign_iothreads(
    policy: Option<&str>,
    pool: Option<u32>,
    vcpus: u32,
    disks: &mut [(bool, &mut q::Disk)],
) -> u32 {
    let on_virtio = |d: &q::Disk| d.bus == q::DiskBus::Virtio;
    let common = disks.iter().filter(|(own, d)| on_virtio(d) && !own).count();
    let common = u32::try_from(common).unwrap_or(u32::MAX);
    let shared = match policy {
        Some("shared") => 1,
        // One for each disk, as long as there are not more than two for each processor.
        Some("auto") => common.min(vcpus.saturating_mul(2)).max(1),
        Some("supplementalPool") => pool.unwrap_or(1).max(1),
        _ => 0,
    };
    let (mut next, mut last) = (0, shared);
    for (own, disk) in disks.iter_mut().filter(|(_, d)| on_virtio(d)) {
        if *own {
            last += 1;
            disk.tuning.iothread = Some(last);
        } else if shared > 0 {
            disk.tuning.iothread = Some(next % shared + 1);
            next += 1;
        }
    }
    last
}

/// How the guest's clock begins: in another time zone, or shifted by seconds.
pub(super) fn clock(domain: &kv::DomainSpec) -> (q::Clock, i64) {
    let Some(clock) = &domain.clock else { return (q::Clock::Utc, 0) };
    if let Some(zone) = clock.timezone.as_deref().filter(|z| !z.is_empty() && *z != "UTC") {
        return (q::Clock::Zone(zone.into()), 0);
    }
    (q::Clock::Utc, clock.utc.as_ref().and_then(|u| u.offset_seconds).map_or(0, i64::from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(domain: serde_json::Value) -> kv::VirtualMachineInstanceSpec {
        let mut domain = domain;
        if domain.get("devices").is_none() {
            domain["devices"] = json!({});
        }
        serde_json::from_value(json!({"domain": domain})).expect("a spec")
    }

    #[test]
    fn what_windows_asks_for() {
        let domain = json!({
            "features": {"acpi": {}, "hyperv": {"relaxed": {}, "vapic": {"enabled": true}, "synic": {"enabled": false},
                "spinlocks": {"spinlocks": 8191}, "synictimer": {"direct": {}}, "vendorid": {"vendorid": "KVMKVMKVM"},
                "tlbflush": {"enabled": true, "extended": {"enabled": false}}}, "kvm": {"hidden": true},
                "smm": {}},
            "clock": {"utc": {"offsetSeconds": -30}, "timer": {"hpet": {"present": false}, "pit": {"tickPolicy": "delay"},
                "rtc": {"tickPolicy": "catchup"}, "hyperv": {}}},
            "devices": {"sound": {"name": "s"}, "video": {"type": "virtio"}, "panicDevices": [{"model": "hyperv"}]},
        });
        let s = spec(domain);
        let r = rare(&s, 2 << 30).expect("rare");
        let flags = "hv-time=on kvm=off hv-relaxed=on hv-vapic=on hv-spinlocks=0x1fff hv-stimer=on hv-stimer-direct=on \
                     hv-tlbflush=on hv-vendor-id=KVMKVMKVM";
        assert_eq!(r.cpu_flags.join(" "), flags);
        assert_eq!(r.machine_flags, ["hpet=off"]);
        assert!(r.clock_catch_up && r.smm && !r.fixed);
        assert_eq!((r.sound, r.video), (Some(q::Sound::Ich9), Some(q::Video::Virtio)));
        assert_eq!(clock(&s.domain), (q::Clock::Utc, -30));
        assert_eq!(
            clock(&spec(json!({"clock": {"timezone": "Asia/Tokyo"}})).domain),
            (q::Clock::Zone("Asia/Tokyo".into()), 0)
        );
    }

    #[test]
    fn only_what_begins_large_enough_grows() {
        let s = spec(json!({"memory": {"guest": "1Gi", "maxGuest": "4Gi"}}));
        let max = |bytes| rare(&s, bytes).expect("rare").memory_max_bytes;
        assert_eq!((max(1 << 30), max(512 << 20), max((1 << 30) + 4096)), (4 << 30, 0, 0));
        // In whole pages, where those are large.
        let pages =
            spec(json!({"memory": {"guest": "2Gi", "maxGuest": "5Gi", "hugepages": {"pageSize": "2Gi"}}}));
        assert_eq!(rare(&pages, 2 << 30).expect("rare").memory_max_bytes, 4 << 30);
        let fixed = spec(json!({"memory": {"maxGuest": "4Gi"}, "devices": {"disableHotplug": true}}));
        assert_eq!(rare(&fixed, 1 << 30).expect("rare").memory_max_bytes, 0);
    }

    #[test]
    fn threads_are_dealt() {
        let disk = |bus| q::Disk {
            name: "d".into(),
            source: None,
            bus,
            cdrom: false,
            read_only: false,
            boot_order: None,
            serial: None,
            cache: q::Cache::None,
            io: q::Io::Threads,
            errors: q::ErrorPolicy::Stop,
            tuning: q::Tuning::default(),
        };
        // policy, pool, processors; which threads the five disks get (the last but one asks for its own; one is SATA).
        let cases = [
            (None, None, 1, 1, [None, None, None, Some(1), None]),
            (Some("shared"), None, 1, 2, [Some(1), None, Some(1), Some(2), Some(1)]),
            (Some("auto"), None, 1, 3, [Some(1), None, Some(2), Some(3), Some(1)]),
            (Some("auto"), None, 4, 4, [Some(1), None, Some(2), Some(4), Some(3)]),
            (Some("supplementalPool"), Some(2), 1, 3, [Some(1), None, Some(2), Some(3), Some(1)]),
        ];
        for (policy, pool, vcpus, count, want) in cases {
            use q::DiskBus::{Sata, Virtio};
            let mut all = [disk(Virtio), disk(Sata), disk(Virtio), disk(Virtio), disk(Virtio)];
            let mut refs: Vec<(bool, &mut q::Disk)> =
                all.iter_mut().enumerate().map(|(i, d)| (i == 3, d)).collect();
            assert_eq!(assign_iothreads(policy, pool, vcpus, &mut refs), count, "{policy:?}");
            assert_eq!(all.map(|d| d.tuning.iothread), want, "{policy:?} {vcpus}");
        }
    }
}
