//! What nodes and machines use, as a node tells it every half minute: counters in, numbers per second out. Pure.
//!
//! A few numbers of each, for the charts of the dashboard; [`crate::metrics`] has everything, for Prometheus.

use serde::{Deserialize, Serialize};

/// Counters of a node or a machine at one moment. All but the memory only grow, until the process begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Seconds of processor time.
    pub cpu_seconds: f64,
    /// Bytes of the host's memory in use.
    pub memory: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
    /// Bytes that came by the network.
    pub received: u64,
    /// Bytes that went out.
    pub sent: u64,
}

/// The counters of one machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Uid of the VirtualMachine, or of the instance where there is none: another one of the same name is another.
    pub uid: String,
    /// What it used so far.
    pub counters: Counters,
}

/// What a node tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its own.
    pub node: Counters,
    /// Those of the machines that run there.
    pub machines: Vec<Machine>,
}

/// Names of the numbers, as they are served.
pub const NAMES: [&str; 6] = ["cpu", "memory", "read", "written", "received", "sent"];
/// Processors that were busy; bytes of memory; bytes in a second read, written, received and sent.
pub type Numbers = [f32; NAMES.len()];

/// What was used between two moments, a number of seconds apart: none where the counters began anew in between.
pub fn between(before: &Counters, after: &Counters, seconds: f64) -> Option<Numbers> {
    if seconds <= 0.0 || after.cpu_seconds < before.cpu_seconds {
        return None;
    }
    // A disk or NIC that was unplugged takes its share of the sum along; that is no use.
    let speed = |before: u64, after: u64| (after.saturating_sub(before) as f64 / seconds) as f32;
    Some([
        ((after.cpu_seconds - before.cpu_seconds) / seconds) as f32,
        after.memory as f32,
        speed(before.read, after.read),
        speed(before.written, after.written),
        speed(before.received, after.received),
        speed(before.sent, after.sent),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_what_counters_grew_by() {
        let before =
            Counters { cpu_seconds: 10.0, memory: 1, read: 100, written: 50, received: 7, sent: 900 };
        let after =
            Counters { cpu_seconds: 25.0, memory: 512, read: 3100, written: 50, received: 307, sent: 0 };
        assert_eq!(between(&before, &after, 30.0), Some([0.5, 512.0, 100.0, 0.0, 10.0, 0.0]));
        assert_eq!(between(&after, &before, 30.0), None, "another process");
        assert_eq!(between(&before, &after, 0.0), None);
    }

    #[test]
    fn it_is_told_as_json() {
        let told = Told {
            machines: vec![Machine { namespace: "a".into(), name: "b".into(), ..Machine::default() }],
            ..Told::default()
        };
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.contains("\"cpuSeconds\":0.0"), "{text}");
        assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told);
    }
}
