//! What this machine as a whole uses, as the kernel counts it. Reads; keeps nothing.

use std::fs;
use std::path::Path;

use sheaf_plan::usage::Counters;

/// Ticks of `/proc` in a second, on every Linux that is not of a museum.
pub(crate) const TICKS: f64 = 100.0;
/// Bytes of a sector in `/proc/diskstats`, whatever the disk has.
const SECTOR: u64 = 512;

/// The counters as they are now; what cannot be read is zero.
pub(crate) fn counters() -> Counters {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // Partitions and what is layered above count the same bytes again: only what a driver stands behind is counted.
    let (read, written) = disks(&text("/proc/diskstats"), |name| has_device("/sys/block", name));
    let (received, sent) =
        links().iter().map(|link| traffic(link)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    Counters {
        cpu_seconds: busy(&text("/proc/stat")),
        memory: super::facts::mem_used(&text("/proc/meminfo")),
        read,
        written,
        received,
        sent,
    }
}

/// Bytes that a network device received and sent.
pub(crate) fn traffic(link: &str) -> (u64, u64) {
    let count = |what: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{link}/statistics/{what}"));
        text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    };
    (count("rx_bytes"), count("tx_bytes"))
}

fn has_device(class: &str, name: &str) -> bool {
    Path::new(class).join(name).join("device").exists()
}

/// The network devices by which this machine reaches others: those with a driver, or, in a container, those that are neither
/// the loopback, nor a bridge, nor a guest's.
fn links() -> Vec<String> {
    const CLASS: &str = "/sys/class/net";
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let all: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    let real: Vec<String> = all.iter().filter(|n| has_device(CLASS, n)).cloned().collect();
    if !real.is_empty() {
        return real;
    }
    let other = |name: &String| {
        let has = |what: &str| Path::new(CLASS).join(name).join(what).exists();
        name != "lo" && !has("bridge") && !has("tun_flags")
    };
    all.into_iter().filter(other).collect()
}

/// Seconds in which processors worked: in user mode, nice, in the kernel, on interrupts. Guests are in user mode already.
fn busy(stat: &str) -> f64 {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu ")).unwrap_or_default();
    let fields: Vec<f64> = line.split_ascii_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|n| fields.get(*n)).sum::<f64>() / TICKS
}

/// Bytes read and written by the disks of a name that counts.
fn disks(diskstats: &str, counts: impl Fn(&str) -> bool) -> (u64, u64) {
    let mut sum = (0, 0);
    for line in diskstats.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let Some([_, _, name, _, _, read, _, _, _, written]) = fields.get(..10) else { continue };
        if counts(name) {
            let bytes = |sectors: &str| sectors.parse::<u64>().unwrap_or(0).saturating_mul(SECTOR);
            sum = (sum.0 + bytes(read), sum.1 + bytes(written));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counts() {
        let stat = "cpu  100 50 50 9000 70 10 90 5 40 0\ncpu0 1 1 1 1\n";
        assert!((busy(stat) - 3.0).abs() < 1e-9);
        let text = " 253 0 vda 10 0 4 0 5 0 8 0 0 0 0\n 253 1 vda1 1 0 4 0 1 0 8 0\n 7 0 loop0 1 0 1 0 1 0 1 0\nshort\n";
        assert_eq!(disks(text, |name| name == "vda"), (2048, 4096));
        assert_eq!(disks("", |_| true), (0, 0));
    }

    #[test]
    fn this_very_machine_is_at_work() {
        let now = counters();
        assert!(now.cpu_seconds > 0.0 && now.memory > 0, "{now:?}");
        assert_eq!(traffic("no-such-link"), (0, 0));
    }
}
