//! Settings of the storage: their names, what is in force while nobody has chosen, and those that decide something here.

use std::collections::BTreeMap;

/// Every setting that is made, with its default. The names are Longhorn's, whether something here reads them or a client.
///
/// Two defaults differ. Longhorn keeps 25 % of a disk free, because what it does on a full one is unpleasant; here a full disk
/// takes a replica out and nothing else, and the disk is that of the system more often than not. And it makes a volume that nobody
/// uses whole only if told to, because whoever wants the volume has to wait for the rebuild's end of its attachment; here it does not.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("allow-empty-disk-selector-volume", "true"),
    ("allow-empty-node-selector-volume", "true"),
    ("allow-volume-creation-with-degraded-availability", "true"),
    ("auto-cleanup-system-generated-snapshot", "true"),
    ("auto-salvage", "true"),
    ("concurrent-replica-rebuild-per-node-limit", "5"),
    ("current-longhorn-version", "v1.10.0"),
    ("data-engine-hugepage-enabled", r#"{"v2":"true"}"#),
    ("data-engine-memory-size", r#"{"v2":"2048"}"#),
    ("default-data-locality", "disabled"),
    ("default-data-path", "/var/lib/sheaf/storage"),
    ("default-longhorn-static-storage-class", "longhorn-static"),
    ("default-replica-count", r#"{"v1":"3","v2":"3"}"#),
    ("disable-scheduling-on-cordoned-node", "true"),
    ("endpoint-network-for-rwx-volume", ""),
    ("guaranteed-instance-manager-cpu", r#"{"v1":"12","v2":"12"}"#),
    ("node-drain-policy", "block-if-contains-last-replica"),
    ("offline-replica-rebuilding", "true"),
    ("priority-class", ""),
    ("replica-auto-balance", "disabled"),
    ("replica-disk-soft-anti-affinity", "true"),
    ("replica-replenishment-wait-interval", "600"),
    ("replica-soft-anti-affinity", "false"),
    ("replica-zone-soft-anti-affinity", "true"),
    ("snapshot-max-count", "250"),
    ("storage-minimal-available-percentage", "10"),
    ("storage-network", ""),
    ("storage-over-provisioning-percentage", "100"),
    ("storage-reserved-percentage-for-default-disk", "30"),
    ("v1-data-engine", "true"),
    ("v2-data-engine", "false"),
];

/// Those that decide something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Several replicas of a volume may be on one node.
    pub node_soft: bool,
    /// Several replicas of a volume may be in one zone.
    pub zone_soft: bool,
    /// Several replicas of a volume may be on one disk.
    pub disk_soft: bool,
    /// Per cent of a disk that may be promised.
    pub over_provisioning: u64,
    /// Per cent of a disk that stay free.
    pub minimal_available: u64,
    /// Volumes that name no tags may go to nodes that have some.
    pub untagged_nodes: bool,
    /// The same for disks.
    pub untagged_disks: bool,
    /// A volume may be made with fewer replicas than it asks for.
    pub degraded_creation: bool,
    /// Nothing is put on a cordoned node.
    pub not_on_cordoned: bool,
    /// Replicas of a volume that does not say.
    pub replicas: i64,
    /// Seconds for which a replica that may come back is waited for.
    pub replenish_after: i64,
    /// Per cent of a new disk that are reserved.
    pub reserved_percent: u64,
    /// A volume that nobody uses is attached to be made whole.
    pub offline: bool,
    /// Volumes that may be attached to one node for that.
    pub rebuilds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self::read(&BTreeMap::new())
    }
}

impl Settings {
    /// Reads the values that somebody chose; what cannot be read is as if it were not there.
    pub fn read(values: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| {
            let chosen = values.get(name).map(String::as_str).filter(|v| !v.is_empty());
            let default = DEFAULTS.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
            (chosen.map(of_engine), of_engine(default))
        };
        let yes = |name: &str| {
            let (chosen, default) = get(name);
            chosen.and_then(|v| v.parse().ok()).unwrap_or(default == "true")
        };
        let number = |name: &str| {
            let (chosen, default) = get(name);
            let parse = |v: String| v.parse::<u32>().ok();
            chosen.and_then(parse).or_else(|| parse(default)).unwrap_or(0)
        };
        Self {
            node_soft: yes("replica-soft-anti-affinity"),
            zone_soft: yes("replica-zone-soft-anti-affinity"),
            disk_soft: yes("replica-disk-soft-anti-affinity"),
            over_provisioning: number("storage-over-provisioning-percentage").into(),
            minimal_available: number("storage-minimal-available-percentage").min(100).into(),
            untagged_nodes: yes("allow-empty-node-selector-volume"),
            untagged_disks: yes("allow-empty-disk-selector-volume"),
            degraded_creation: yes("allow-volume-creation-with-degraded-availability"),
            not_on_cordoned: yes("disable-scheduling-on-cordoned-node"),
            replicas: i64::from(number("default-replica-count")).clamp(1, 8),
            replenish_after: number("replica-replenishment-wait-interval").into(),
            reserved_percent: number("storage-reserved-percentage-for-default-disk").min(100).into(),
            offline: yes("offline-replica-rebuilding"),
            rebuilds: usize::try_from(number("concurrent-replica-rebuild-per-node-limit")).unwrap_or(5),
        }
    }

    /// With what a volume says for itself: `enabled`, `disabled`, or anything else for the setting.
    #[must_use]
    pub fn for_volume(&self, spec: &sheaf_api::longhorn::VolumeSpec) -> Self {
        let or = |text: &str, setting: bool| match text {
            "enabled" => true,
            "disabled" => false,
            _ => setting,
        };
        Self {
            node_soft: or(&spec.replica_soft_anti_affinity, self.node_soft),
            zone_soft: or(&spec.replica_zone_soft_anti_affinity, self.zone_soft),
            disk_soft: or(&spec.replica_disk_soft_anti_affinity, self.disk_soft),
            offline: or(&spec.offline_rebuilding, self.offline),
            ..self.clone()
        }
    }
}

/// A value for the one data engine there is: settings of engines hold JSON by engine, or one value for all.
fn of_engine(value: &str) -> String {
    let parsed: Option<BTreeMap<String, String>> = serde_json::from_str(value).ok();
    parsed.and_then(|by_engine| by_engine.get("v1").cloned()).unwrap_or_else(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_nonsense_is_not() {
        let default = Settings::default();
        assert_eq!((default.replicas, default.over_provisioning, default.node_soft), (3, 100, false));
        let values = [
            ("default-replica-count", r#"{"v1":"2"}"#),
            ("storage-over-provisioning-percentage", "lots"),
            ("replica-soft-anti-affinity", "true"),
            ("storage-minimal-available-percentage", "0"),
        ];
        let values = values.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let read = Settings::read(&values);
        assert_eq!((read.replicas, read.over_provisioning), (2, 100));
        assert!(read.node_soft && read.minimal_available == 0);
        let spec = sheaf_api::longhorn::VolumeSpec {
            replica_soft_anti_affinity: "disabled".into(),
            ..Default::default()
        };
        assert!(!read.for_volume(&spec).node_soft);
    }

    #[test]
    fn names_are_in_order_and_unique() {
        assert!(DEFAULTS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
