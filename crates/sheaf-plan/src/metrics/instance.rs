//! The families of one running machine.

use std::collections::BTreeMap;

use super::{Families, Kind};

/// What is known of a running machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Seconds of processor time of the whole process, in user mode and in the kernel.
    pub cpu_seconds: (f64, f64),
    /// Each processor of the guest: its number, seconds it ran, seconds it waited to run.
    pub vcpus: Vec<(u32, f64, f64)>,
    /// Bytes of the host's memory that the process holds.
    pub resident: u64,
    /// Bytes that the guest was given.
    pub given: u64,
    /// What the guest's balloon driver tells, in bytes, by metric (`available`, `unused`, ...).
    pub guest_memory: BTreeMap<&'static str, u64>,
    /// Counters of its disks.
    pub disks: Vec<Disk>,
    /// Counters of its NICs, as the guest sees them.
    pub nics: Vec<Nic>,
    /// Its file systems: device, mount point, kind, size, bytes in use.
    pub file_systems: Vec<(String, String, String, u64, u64)>,
}

/// Counters of a disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Disk {
    /// Name of its volume.
    pub drive: String,
    /// Operations: reading, writing, flushing.
    pub operations: [u64; 3],
    /// Bytes: read, written.
    pub bytes: [u64; 2],
    /// Seconds: reading, writing, flushing.
    pub seconds: [f64; 3],
}

/// Counters of a NIC.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nic {
    /// Its name.
    pub interface: String,
    /// Received and sent: bytes, packets, errors, dropped.
    pub received: [u64; 4],
    /// The same of what was sent.
    pub sent: [u64; 4],
}

/// A label's key as Prometheus takes it.
pub fn label_key(key: &str) -> String {
    let safe: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("kubernetes_vmi_label_{safe}")
}

/// Adds the families of a machine. `labels` are the instance's own.
pub fn add(
    out: &mut Families,
    node: &str,
    namespace: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    stats: &Stats,
) {
    let own: Vec<(String, String)> = labels.iter().map(|(k, v)| (label_key(k), v.clone())).collect();
    let base = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = [("node", node), ("namespace", namespace), ("name", name)]
            .map(|(k, v)| (k.into(), v.into()))
            .to_vec();
        all.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        all.extend(own.iter().cloned());
        all
    };
    let mut put = |metric: &str, kind: Kind, help: &str, more: &[(&str, &str)], value: f64| {
        let labels = base(more);
        let refs: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        out.add(&format!("kubevirt_vmi_{metric}"), kind, help, &refs, value);
    };
    let number = |n: u64| n as f64;
    let (user, system) = stats.cpu_seconds;
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    put("cpu_usage_seconds_total", counter, "Processor time of the machine.", &[], user + system);
    put("cpu_user_usage_seconds_total", counter, "Processor time in user mode.", &[], user);
    put("cpu_system_usage_seconds_total", counter, "Processor time in the kernel.", &[], system);
    for (index, ran, waited) in &stats.vcpus {
        let id = index.to_string();
        let running = [("id", id.as_str()), ("state", "RUNNING")];
        put("vcpu_seconds_total", counter, "Time that a virtual processor ran.", &running, *ran);
        let help = "Time that a virtual processor could have run and had to wait for the host.";
        put("vcpu_delay_seconds_total", counter, help, &[("id", id.as_str())], *waited);
        put(
            "vcpu_wait_seconds_total",
            counter,
            "Time that a virtual processor waited for I/O.",
            &[("id", id.as_str())],
            0.0,
        );
    }
    put(
        "memory_resident_bytes",
        gauge,
        "Memory of the host that the machine holds.",
        &[],
        number(stats.resident),
    );
    put("memory_domain_bytes", gauge, "Memory that the guest was given.", &[], number(stats.given));
    for (metric, value) in &stats.guest_memory {
        let kind = if metric.ends_with("_total") { counter } else { gauge };
        put(&format!("memory_{metric}"), kind, "As the guest's balloon driver tells.", &[], number(*value));
    }
    for disk in &stats.disks {
        let drive = [("drive", disk.drive.as_str())];
        let [reads, writes, flushes] = disk.operations;
        let [read_s, write_s, flush_s] = disk.seconds;
        put("storage_iops_read_total", counter, "Read operations.", &drive, number(reads));
        put("storage_iops_write_total", counter, "Write operations.", &drive, number(writes));
        put("storage_read_traffic_bytes_total", counter, "Bytes read.", &drive, number(disk.bytes[0]));
        put("storage_write_traffic_bytes_total", counter, "Bytes written.", &drive, number(disk.bytes[1]));
        put("storage_read_times_seconds_total", counter, "Time spent reading.", &drive, read_s);
        put("storage_write_times_seconds_total", counter, "Time spent writing.", &drive, write_s);
        put("storage_flush_requests_total", counter, "Flush operations.", &drive, number(flushes));
        put("storage_flush_times_seconds_total", counter, "Time spent flushing.", &drive, flush_s);
    }
    for nic in &stats.nics {
        let interface = [("interface", nic.interface.as_str())];
        for (way, counts) in [("receive", nic.received), ("transmit", nic.sent)] {
            for (what, value) in
                ["bytes_total", "packets_total", "errors_total", "packets_dropped_total"].iter().zip(counts)
            {
                let help = "Traffic of a NIC, as the guest sees it.";
                put(&format!("network_{way}_{what}"), counter, help, &interface, number(value));
            }
        }
    }
    for (device, mount, kind, size, used) in &stats.file_systems {
        let labels = [
            ("disk_name", device.as_str()),
            ("mount_point", mount.as_str()),
            ("file_system_type", kind.as_str()),
        ];
        put(
            "filesystem_capacity_bytes",
            gauge,
            "Size of a file system in the guest.",
            &labels,
            number(*size),
        );
        put(
            "filesystem_used_bytes",
            gauge,
            "Bytes in use on a file system in the guest.",
            &labels,
            number(*used),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_in_numbers() {
        let stats = Stats {
            cpu_seconds: (2.0, 1.0),
            vcpus: vec![(0, 1.5, 0.25)],
            disks: vec![Disk {
                drive: "root".into(),
                operations: [5, 6, 7],
                bytes: [512, 1024],
                seconds: [0.5, 1.0, 0.0],
            }],
            nics: vec![Nic { interface: "default".into(), received: [1, 2, 3, 4], sent: [5, 6, 7, 8] }],
            guest_memory: BTreeMap::from([("available_bytes", 9), ("pgmajfault_total", 3)]),
            ..Stats::default()
        };
        let mut out = Families::default();
        let labels = BTreeMap::from([("app.io/x".to_owned(), "y".to_owned())]);
        add(&mut out, "n1", "ns", "vm", &labels, &stats);
        let text = out.render();
        let base = "node=\"n1\",namespace=\"ns\",name=\"vm\"";
        let own = "kubernetes_vmi_label_app_io_x=\"y\"";
        for line in [
            format!("kubevirt_vmi_cpu_usage_seconds_total{{{base},{own}}} 3"),
            format!("kubevirt_vmi_vcpu_seconds_total{{{base},id=\"0\",state=\"RUNNING\",{own}}} 1.5"),
            format!("kubevirt_vmi_storage_iops_write_total{{{base},drive=\"root\",{own}}} 6"),
            format!(
                "kubevirt_vmi_network_transmit_packets_dropped_total{{{base},interface=\"default\",{own}}} 8"
            ),
            format!("kubevirt_vmi_memory_available_bytes{{{base},{own}}} 9"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("# TYPE kubevirt_vmi_memory_pgmajfault_total counter"));
    }
}
