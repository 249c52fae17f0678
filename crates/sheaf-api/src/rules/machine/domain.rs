//! Rules of the virtual hardware, except disks and interfaces.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use sheaf_meta::quantity::Quantity;

use super::Problems;
use crate::kubevirt::{Cpu, DomainSpec, Firmware, VirtualMachineInstanceSpec};

const POLICIES: &[&str] = &["force", "require", "optional", "disable", "forbid"];

pub(super) fn validate(b: &str, spec: &VirtualMachineInstanceSpec, typed: bool, problems: &mut Problems) {
    let d = &spec.domain;
    let base = format!("{b}.domain");
    if let Some(cpu) = &d.cpu {
        processors(&base, cpu, d, spec, problems);
    }
    resources(&base, d, typed, problems);
    if let Some(machine) = d.machine.as_ref().filter(|m| !m.r#type.is_empty()) {
        let ty = machine.r#type.as_str();
        let known = ["q35", "virt", "microvm", "s390-ccw-virtio"].contains(&ty)
            || ["pc-q35-", "virt-", "s390-ccw-virtio-"].iter().any(|p| ty.starts_with(p));
        if !known {
            problems.invalid(
                format!("{base}.machine.type"),
                ty,
                "is not supported: use q35 (amd64) or virt (arm64), with or without a version as in pc-q35-9.2",
            );
        }
    }
    if let Some(firmware) = &d.firmware {
        boot(&base, firmware, d, problems);
    }
    threads(&base, d, problems);
    if let Some(policy) = &d.reboot_policy {
        problems.one_of(format!("{base}.rebootPolicy"), policy, &["Reboot", "Terminate"]);
    }
    devices(b, d, spec, problems);
}

fn processors(
    base: &str,
    cpu: &Cpu,
    d: &DomainSpec,
    spec: &VirtualMachineInstanceSpec,
    problems: &mut Problems,
) {
    let sockets = cpu.sockets.unwrap_or(0);
    if let Some(max) = cpu.max_sockets.filter(|max| *max != 0 && sockets > *max) {
        problems.invalid(
            format!("{base}.cpu.sockets"),
            sockets,
            format!("Number of sockets in CPU topology is greater than the maximum sockets allowed ({max})"),
        );
    }
    for (i, feature) in cpu.features.iter().enumerate() {
        if feature.name.is_empty() {
            problems.required(format!("{base}.cpu.features[{i}].name"), "");
        }
        problems.one_of(format!("{base}.cpu.features[{i}].policy"), &feature.policy, POLICIES);
    }
    let dedicated = cpu.dedicated_cpu_placement == Some(true);
    if cpu.isolate_emulator_thread == Some(true) && !dedicated {
        problems.invalid(
            format!("{base}.cpu.isolateEmulatorThread"),
            true,
            "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement",
        );
    }
    let numa = cpu.numa.as_ref().is_some_and(|n| n.guest_mapping_passthrough.is_some());
    let huge = d.memory.as_ref().is_some_and(|m| m.hugepages.is_some());
    if numa && !(dedicated && huge) {
        problems.invalid(
            format!("{base}.cpu.numa.guestMappingPassthrough"),
            "",
            "needs dedicatedCpuPlacement and memory.hugepages",
        );
    }
    if cpu.realtime.is_some() && !numa {
        problems.required(
            format!("{base}.cpu.numa.guestMappingPassthrough"),
            "must be given together with realtime",
        );
    }
    if dedicated {
        let of = |map: &std::collections::BTreeMap<String, Text>| {
            map.get("cpu").and_then(|q| Quantity::parse(&q.0).ok())
        };
        let resources = d.resources.clone().unwrap_or_default();
        let (limit, request) = (of(&resources.limits), of(&resources.requests));
        let field = format!("{base}.cpu.dedicatedCpuPlacement");
        if [limit, request].into_iter().flatten().any(|q| q.milli() % 1000 != 0) {
            problems.invalid(field.clone(), true, "needs a whole number of CPUs in limits and requests");
        }
        if let (Some(limit), Some(request)) = (limit, request)
            && limit != request
        {
            problems.invalid(field, true, format!("needs equal CPU limit ({limit}) and request ({request})"));
        }
    }
    if cpu.threads.unwrap_or(1) > 1 && spec.architecture == "arm64" {
        problems.invalid(format!("{base}.cpu.threads"), cpu.threads.unwrap_or(1), "must be 1 on arm64");
    }
}

fn resources(base: &str, d: &DomainSpec, typed: bool, problems: &mut Problems) {
    let mut read = |field: String, text: Option<&Text>| {
        let text = text?;
        match Quantity::parse(&text.0) {
            Ok(quantity) => Some((field, quantity, text.0.clone())),
            Err(e) => {
                problems.invalid(field, text.0.as_str(), e);
                None
            }
        }
    };
    let none = std::collections::BTreeMap::new();
    let (requests, limits) = d.resources.as_ref().map_or((&none, &none), |r| (&r.requests, &r.limits));
    let request = read(format!("{base}.resources.requests.memory"), requests.get("memory"));
    let limit = read(format!("{base}.resources.limits.memory"), limits.get("memory"));
    let cpu_request = read(format!("{base}.resources.requests.cpu"), requests.get("cpu"));
    let cpu_limit = read(format!("{base}.resources.limits.cpu"), limits.get("cpu"));
    let memory = d.memory.as_ref();
    let guest = read(format!("{base}.memory.guest"), memory.and_then(|m| m.guest.as_ref()));
    let max = read(format!("{base}.memory.maxGuest"), memory.and_then(|m| m.max_guest.as_ref()));
    let pages = memory.and_then(|m| m.hugepages.as_ref());
    let page = pages.map(|p| (p.page_size.as_str(), Quantity::parse(&p.page_size)));

    if let Some((size, quantity)) = &page {
        let good = quantity.as_ref().is_ok_and(|q| q.signum() > 0 && (q.value() as u64).is_power_of_two());
        if !good {
            problems.invalid(
                format!("{base}.memory.hugepages.pageSize"),
                *size,
                "must be the size of a huge page of the node, as 2Mi or 1Gi",
            );
        }
    }
    let said = |q: &Option<(String, Quantity, String)>| q.is_some();
    if !typed && page.is_none() && !said(&guest) && !said(&request) && !said(&limit) {
        problems.required(
            format!("{base}.memory.guest"),
            &format!(
                "no memory requested: give at least one of {base}.memory.guest, {base}.memory.hugepages.pageSize and \
                 {base}.resources.requests.memory"
            ),
        );
    }
    for (field, quantity, text) in [&request, &limit, &guest, &max].into_iter().flatten() {
        if quantity.signum() <= 0 {
            problems.invalid(field.as_str(), text.as_str(), "must be greater than 0");
        } else if quantity.value() < 1_000_000 && !field.ends_with("limits.memory") {
            problems.invalid(
                field.as_str(),
                text.as_str(),
                "must be greater than or equal to 1M: was a unit forgotten, as Mi or Gi?",
            );
        }
    }
    for (field, quantity, text) in [&cpu_request, &cpu_limit].into_iter().flatten() {
        if quantity.signum() < 0 {
            problems.invalid(field.as_str(), text.as_str(), "must be greater than or equal to 0");
        }
    }
    let mut at_most = |a: &Option<(String, Quantity, String)>, b: &Option<(String, Quantity, String)>| {
        if let (Some((field, low, text)), Some((bound, high, shown))) = (a, b)
            && low > high
        {
            problems.invalid(
                field.as_str(),
                text.as_str(),
                format!("must be less than or equal to {bound} ({shown})"),
            );
        }
    };
    at_most(&request, &limit);
    at_most(&cpu_request, &cpu_limit);
    at_most(&guest, &limit);
    at_most(&guest, &max);
    if let Some((_, Ok(page))) = &page
        && let Some((field, quantity, text)) = guest.as_ref().or(request.as_ref())
        && page.signum() > 0
        && quantity.value() % page.value() != 0
    {
        problems.invalid(
            field.as_str(),
            text.as_str(),
            format!("must be a multiple of the huge page size {page}"),
        );
    }
}

fn boot(base: &str, firmware: &Firmware, d: &DomainSpec, problems: &mut Problems) {
    if let Some(loader) = &firmware.bootloader {
        if loader.bios.is_some() && loader.efi.is_some() {
            problems.invalid(
                format!("{base}.firmware.bootloader"),
                "",
                "has both EFI and BIOS configured, but they are mutually exclusive.",
            );
        }
        let secure = loader.efi.as_ref().is_some_and(|efi| efi.secure_boot != Some(false));
        let smm = d.features.as_ref().and_then(|f| f.smm.as_ref());
        if secure && smm.is_none_or(|s| s.enabled == Some(false)) {
            problems.invalid(
                base,
                "",
                "has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled: set features.smm.enabled \
                 to true, or firmware.bootloader.efi.secureBoot to false",
            );
        }
    }
    if let Some(kernel) = &firmware.kernel_boot {
        let field = format!("{base}.firmware.kernelBoot");
        match &kernel.container {
            None if !kernel.kernel_args.is_empty() => {
                problems.invalid(
                    format!("{field}.kernelArgs"),
                    kernel.kernel_args.as_str(),
                    "needs kernelBoot.container",
                );
            }
            Some(c) if c.image.is_empty() => problems.required(format!("{field}.container.image"), ""),
            Some(c) if c.kernel_path.is_empty() && c.initrd_path.is_empty() => {
                problems
                    .required(format!("{field}.container"), "one of kernelPath and initrdPath must be given");
            }
            _ => {}
        }
    }
}

fn threads(base: &str, d: &DomainSpec, problems: &mut Problems) {
    let Some(policy) = &d.io_threads_policy else { return };
    problems.one_of(format!("{base}.ioThreadsPolicy"), policy, &["shared", "auto", "supplementalPool"]);
    let count = d.io_threads.as_ref().and_then(|t| t.supplemental_pool_thread_count).unwrap_or(0);
    if policy == "supplementalPool" && count == 0 {
        problems.invalid(
            format!("{base}.ioThreads.count"),
            count,
            "the number of iothreads needs to be set and positive for the dedicated policy",
        );
    }
}

fn devices(b: &str, d: &DomainSpec, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let base = format!("{b}.domain.devices");
    for (i, input) in d.devices.inputs.iter().enumerate() {
        problems.one_of(format!("{base}.inputs[{i}].bus"), &input.bus, &["virtio", "usb"]);
        problems.one_of(format!("{base}.inputs[{i}].type"), &input.r#type, &["tablet", "keyboard"]);
    }
    if let Some(sound) = &d.devices.sound {
        if sound.name.is_empty() {
            problems.required(format!("{b}.Sound"), "Sound device requires a name field.");
        }
        problems.one_of(format!("{b}.Sound"), &sound.model, &["ich9", "ac97"]);
    }
    if let Some(video) = &d.devices.video {
        if d.devices.autoattach_graphics_device == Some(false) {
            problems.invalid(format!("{b}.video"), video.r#type.as_str(), "needs autoattachGraphicsDevice");
        }
        let types: &[&str] = match spec.architecture.as_str() {
            "arm64" => &["virtio", "ramfb"],
            _ => &["vga", "cirrus", "virtio", "ramfb", "bochs"],
        };
        problems.one_of(format!("{base}.video.type"), &video.r#type, types);
    }
    if let Some(watchdog) = &d.devices.watchdog {
        for (name, action) in [("i6300esb", &watchdog.i6300esb), ("diag288", &watchdog.diag288)] {
            if let Some(action) = action {
                let field = format!("{base}.watchdog.{name}.action");
                problems.one_of(field, &action.action, &["poweroff", "reset", "shutdown"]);
            }
        }
    }
    for (kind, names) in [
        ("gpus", d.devices.gpus.iter().map(|g| &g.name).collect::<Vec<_>>()),
        ("hostDevices", d.devices.host_devices.iter().map(|h| &h.name).collect()),
    ] {
        for (i, name) in names.iter().enumerate() {
            if name.is_empty() {
                problems.required(format!("{base}.{kind}[{i}].name"), "");
            } else if names[..i].contains(name) {
                problems.duplicate(format!("{base}.{kind}[{i}].name"), name.as_str());
            }
        }
    }
}
