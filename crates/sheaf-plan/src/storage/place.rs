//! Where a replica goes: the candidates, why each is refused, and which of the rest is taken. Pure.
//!
//! The rules are Longhorn's: one replica for a node (hard unless the settings say otherwise), zones and disks preferred to be
//! different, tags, capacity with over-provisioning, and a part of each disk that stays free. Of what is left the place
//! with the most room after the placement is taken, so that nodes and disks fill evenly.

use std::collections::{BTreeMap, BTreeSet};

use sheaf_api::longhorn::{DiskSpec, DiskStatus, Node, condition};

use super::settings::Settings;

const LEAVING: &str = "its replicas are being moved away (evictionRequested is true)";

/// A node with its disks, as far as placing depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// Its zone; empty: none is said.
    pub zone: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why nothing can be put there at all.
    pub closed: Option<String>,
    /// What is there is to go elsewhere.
    pub leaving: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// A directory for replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Name on its node.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The directory.
    pub path: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why nothing can be put there at all.
    pub closed: Option<String>,
    /// What is there is to go elsewhere.
    pub leaving: bool,
    /// All bytes of its file system.
    pub maximum: u64,
    /// Bytes that are free.
    pub available: u64,
    /// Bytes that are not for replicas.
    pub reserved: u64,
    /// Bytes promised to the replicas on it.
    pub scheduled: u64,
}

/// Where another replica of the volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its node.
    pub node: String,
    /// Its disk's UUID.
    pub disk: String,
    /// It is about to go: it may stand beside its successor.
    pub leaving: bool,
}

/// What is to be placed.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes that it holds by now, which will be copied.
    pub used: u64,
    /// Tags that its nodes must have.
    pub node_tags: &'a [String],
    /// Tags that its disks must have.
    pub disk_tags: &'a [String],
    /// The only node that will do.
    pub only: Option<&'a str>,
    /// A node that is better than others.
    pub near: Option<&'a str>,
    /// The other replicas.
    pub taken: &'a [Taken],
}

/// A place for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The node.
    pub node: String,
    /// The disk's name.
    pub disk: String,
    /// Its UUID.
    pub uuid: String,
    /// Its directory.
    pub path: String,
}

/// Why there is no place: a candidate (a node, or `NODE/DISK`) and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPlace(pub Vec<(String, String)>);

impl std::fmt::Display for NoPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return write!(f, "nodes are unavailable: no node has disks for replicas yet");
        }
        let all: Vec<String> = self.0.iter().map(|(who, why)| format!("{who}: {why}")).collect();
        write!(f, "{}", all.join("; "))
    }
}

fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Chooses a place for one more replica.
pub fn place_replica(wish: &Wish<'_>, places: &[Place], settings: &Settings) -> Result<Chosen, NoPlace> {
    let mut refused = Vec::new();
    let mut fit: Vec<(Rank, &Place, &Disk)> = Vec::new();
    let zones: BTreeMap<&str, &str> = places.iter().map(|p| (p.node.as_str(), p.zone.as_str())).collect();
    let staying = || wish.taken.iter().filter(|t| !t.leaving);
    let used_nodes: BTreeSet<&str> = staying().map(|t| t.node.as_str()).collect();
    let used_zones: BTreeSet<&str> =
        staying().map(|t| zones.get(t.node.as_str()).copied().unwrap_or_default()).collect();
    for place in places {
        if let Err(why) = judge_node(wish, place, &used_nodes, &used_zones, settings) {
            refused.push((place.node.clone(), why));
            continue;
        }
        for disk in &place.disks {
            if let Err(why) = judge_disk(wish, disk, settings) {
                refused.push((format!("{}/{}", place.node, disk.name), why));
                continue;
            }
            let leaving = wish.taken.iter().any(|t| t.leaving && t.node == place.node);
            let rank = Rank {
                node_used: used_nodes.contains(place.node.as_str()) || leaving,
                far: wish.near.is_some_and(|near| near != place.node),
                zone_used: used_zones.contains(place.zone.as_str()),
                disk_used: wish.taken.iter().any(|t| t.disk == disk.uuid),
                full: u64::MAX - room(disk, settings).saturating_sub(wish.size),
            };
            fit.push((rank, place, disk));
        }
        if place.disks.is_empty() {
            refused.push((place.node.clone(), "disks are unavailable: it has none".into()));
        }
    }
    let best = fit.into_iter().min_by_key(|(rank, place, disk)| (*rank, &place.node, &disk.name));
    let Some((_, place, disk)) = best else { return Err(NoPlace(refused)) };
    Ok(Chosen {
        node: place.node.clone(),
        disk: disk.name.clone(),
        uuid: disk.uuid.clone(),
        path: disk.path.clone(),
    })
}

/// The smallest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    node_used: bool,
    far: bool,
    zone_used: bool,
    disk_used: bool,
    full: u64,
}

fn judge_node(
    wish: &Wish<'_>,
    place: &Place,
    used: &BTreeSet<&str>,
    zones: &BTreeSet<&str>,
    settings: &Settings,
) -> Result<(), String> {
    if let Some(why) = &place.closed {
        return Err(why.clone());
    }
    if wish.only.is_some_and(|only| only != place.node) {
        return Err("hard affinity cannot be satisfied: the replica must be where the volume is".into());
    }
    if used.contains(place.node.as_str()) && !settings.node_soft {
        return Err("it has a replica of the volume (replica-soft-anti-affinity is false)".into());
    }
    if zones.contains(place.zone.as_str()) && !settings.zone_soft && !used.contains(place.node.as_str()) {
        return Err(format!(
            "zone {:?} has a replica of the volume (replica-zone-soft-anti-affinity is false)",
            place.zone
        ));
    }
    tags("nodeSelector", wish.node_tags, &place.tags, settings.untagged_nodes)
}

fn tags(what: &str, wanted: &[String], has: &[String], without: bool) -> Result<(), String> {
    let missing: Vec<&str> = wanted.iter().filter(|tag| !has.contains(tag)).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(format!("tags not fulfilled: {what} asks for {}", missing.join(", ")));
    }
    if wanted.is_empty() && !has.is_empty() && !without {
        return Err(format!("tags not fulfilled: it has tags, and {what} names none"));
    }
    Ok(())
}

/// Bytes that may still be promised on a disk.
fn room(disk: &Disk, settings: &Settings) -> u64 {
    let all = disk.maximum.saturating_sub(disk.reserved);
    let limit = u128::from(all) * u128::from(settings.over_provisioning) / 100;
    u64::try_from(limit).unwrap_or(u64::MAX).saturating_sub(disk.scheduled)
}

/// Bytes of a disk that stay free.
fn floor(disk: &Disk, settings: &Settings) -> u64 {
    u64::try_from(u128::from(disk.maximum) * u128::from(settings.minimal_available) / 100).unwrap_or(u64::MAX)
}

/// Whether a disk can take anything at all; the reason is its condition `Schedulable`.
pub fn pressure(disk: &Disk, settings: &Settings) -> Option<String> {
    let floor = floor(disk, settings);
    if disk.available <= floor {
        return Some(format!(
            "insufficient storage: {} of {} are free, {}% ({}) must stay so (storage-minimal-available-percentage)",
            human(disk.available),
            human(disk.maximum),
            settings.minimal_available,
            human(floor)
        ));
    }
    None
}

fn judge_disk(wish: &Wish<'_>, disk: &Disk, settings: &Settings) -> Result<(), String> {
    if let Some(why) = &disk.closed {
        return Err(why.clone());
    }
    tags("diskSelector", wish.disk_tags, &disk.tags, settings.untagged_disks)?;
    if !settings.disk_soft && wish.taken.iter().any(|t| t.disk == disk.uuid && !t.leaving) {
        return Err("it has a replica of the volume (replica-disk-soft-anti-affinity is false)".into());
    }
    if let Some(why) = pressure(disk, settings) {
        return Err(why);
    }
    if disk.available.saturating_sub(wish.used) <= floor(disk, settings) {
        return Err(format!(
            "insufficient storage: the {} that the volume holds would leave less than {}% free",
            human(wish.used),
            settings.minimal_available
        ));
    }
    let room = room(disk, settings);
    if wish.size > room {
        return Err(format!(
            "insufficient storage: {} are asked for, {} can still be promised ({}% of {} without {} reserved, {} are promised)",
            human(wish.size),
            human(room),
            settings.over_provisioning,
            human(disk.maximum),
            human(disk.reserved),
            human(disk.scheduled)
        ));
    }
    Ok(())
}

/// Whether `more` bytes can be promised beside what a replica has on its disk.
pub fn can_grow(disk: &Disk, more: u64, settings: &Settings) -> Result<(), String> {
    let room = room(disk, settings);
    if more > room {
        let (more, room) = (human(more), human(room));
        return Err(format!("insufficient storage: {more} more are asked for, {room} can still be promised"));
    }
    pressure(disk, settings).map_or(Ok(()), Err)
}

/// A node as its object says. `scheduled`: bytes promised to replicas by the disk's UUID, which is newer than the status.
pub fn place_of(node: &Node, alive: Result<(), String>, scheduled: &BTreeMap<String, u64>) -> Place {
    let status = node.status.clone().unwrap_or_default();
    let spec = &node.spec;
    let told = |kind: &str| {
        let found = condition(&status.conditions, kind);
        found.filter(|c| c.status != "True").map(|c| format!("{kind} is {}: {}", c.status, c.message))
    };
    let leaving = spec.eviction_requested == Some(true);
    let closed = alive
        .err()
        .or_else(|| told("Ready"))
        .or_else(|| told("Schedulable"))
        .or_else(|| (spec.allow_scheduling == Some(false)).then(|| "spec.allowScheduling is false".into()))
        .or_else(|| leaving.then(|| LEAVING.into()));
    let disks = status.disk_status.iter().map(|(name, seen)| {
        disk_of(name, spec.disks.get(name), seen, scheduled.get(&seen.disk_uuid).copied().unwrap_or(0))
    });
    Place {
        node: node.metadata.name.clone().unwrap_or_default(),
        zone: status.zone.clone(),
        tags: spec.tags.clone(),
        closed,
        leaving,
        disks: disks.collect(),
    }
}

fn disk_of(name: &str, spec: Option<&DiskSpec>, seen: &DiskStatus, scheduled: u64) -> Disk {
    let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let leaving = spec.is_some_and(|s| s.eviction_requested == Some(true));
    let not_ready = condition(&seen.conditions, "Ready").is_none_or(|c| c.status != "True");
    let closed = match spec {
        None => Some("it was taken out of spec.disks".to_owned()),
        Some(_) if not_ready => {
            let why = condition(&seen.conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
            Some(format!("disks are unavailable: it is not ready: {why}"))
        }
        Some(spec) if spec.allow_scheduling == Some(false) => Some("its allowScheduling is false".into()),
        Some(_) if leaving => Some(LEAVING.into()),
        Some(spec) if spec.disk_type == "block" => Some("disks of type block are not supported".into()),
        Some(_) => None,
    };
    Disk {
        name: name.into(),
        uuid: seen.disk_uuid.clone(),
        path: spec.map_or_else(|| seen.disk_path.clone(), |s| s.path.clone()),
        tags: spec.map(|s| s.tags.clone()).unwrap_or_default(),
        closed,
        leaving,
        maximum: bytes(seen.storage_maximum),
        available: bytes(seen.storage_available),
        reserved: bytes(spec.and_then(|s| s.storage_reserved)),
        scheduled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.into(),
            uuid: format!("uuid-{name}"),
            path: format!("/{name}"),
            tags: vec![],
            closed: None,
            leaving: false,
            maximum: 100 * GIB,
            available: 80 * GIB,
            reserved: 30 * GIB,
            scheduled: 0,
        }
    }

    fn place(node: &str, zone: &str) -> Place {
        Place {
            node: node.into(),
            zone: zone.into(),
            tags: vec![],
            closed: None,
            leaving: false,
            disks: vec![disk(&format!("{node}-d"))],
        }
    }

    fn wish(taken: &[Taken]) -> Wish<'_> {
        Wish { size: 10 * GIB, used: 0, node_tags: &[], disk_tags: &[], only: None, near: None, taken }
    }

    fn taken(node: &str) -> Taken {
        Taken { node: node.into(), disk: format!("uuid-{node}-d"), leaving: false }
    }

    #[test]
    fn replicas_part_company() {
        let places = [place("a", "x"), place("b", "x"), place("c", "y")];
        let settings = Settings::default();
        let first = [taken("a")];
        assert_eq!(place_replica(&wish(&first), &places, &settings).expect("fits").node, "c", "another zone");
        let two = [taken("a"), taken("c")];
        assert_eq!(place_replica(&wish(&two), &places, &settings).expect("fits").node, "b");
        let hard = Settings { zone_soft: false, ..Settings::default() };
        let NoPlace(why) = place_replica(&wish(&two), &places, &hard).expect_err("no third zone");
        assert!(why.iter().any(|(who, why)| who == "b" && why.contains("zone \"x\"")), "{why:?}");
        let all = [taken("a"), taken("b"), taken("c")];
        assert!(place_replica(&wish(&all), &places, &settings).is_err());
        let soft = Settings { node_soft: true, ..Settings::default() };
        assert!(place_replica(&wish(&all), &places, &soft).is_ok());
    }

    #[test]
    fn every_candidate_has_its_reason() {
        let mut places = [place("a", ""), place("b", ""), place("c", ""), place("d", "")];
        places[0].closed = Some("it is silent".into());
        places[1].disks[0].scheduled = 65 * GIB;
        places[2].disks[0].available = 5 * GIB;
        let fast = ["fast".to_owned()];
        let settings = Settings::default();
        let NoPlace(why) =
            place_replica(&Wish { disk_tags: &fast, ..wish(&[]) }, &places, &settings).expect_err("none");
        assert_eq!(why.len(), 4);
        assert!(why[3].1.contains("diskSelector asks for fast"), "{why:?}");
        places[3].closed = Some("spec.allowScheduling is false".into());
        let NoPlace(why) = place_replica(&wish(&[]), &places, &settings).expect_err("none");
        assert!(why[0].1.contains("silent") && why[1].1.contains("can still be promised"), "{why:?}");
        assert!(why[2].1.contains("storage-minimal-available-percentage"), "{why:?}");
        assert!(NoPlace(vec![]).to_string().contains("no node"));
    }

    #[test]
    fn near_and_roomy_win() {
        let mut places = [place("a", ""), place("b", "")];
        let settings = Settings::default();
        places[0].disks[0].scheduled = GIB;
        assert_eq!(place_replica(&wish(&[]), &places, &settings).expect("fits").node, "b", "more room");
        let near = Wish { near: Some("a"), ..wish(&[]) };
        assert_eq!(place_replica(&near, &places, &settings).expect("fits").node, "a");
        let only = Wish { only: Some("c"), ..wish(&[]) };
        let NoPlace(why) = place_replica(&only, &places, &settings).expect_err("none");
        assert!(why.iter().all(|(_, why)| why.contains("hard affinity")), "{why:?}");
        // One that leaves may stand beside its successor, if nothing better is there.
        let leaving = [Taken { leaving: true, ..taken("a") }];
        assert_eq!(place_replica(&wish(&leaving), &places, &settings).expect("fits").node, "b");
        assert!(place_replica(&wish(&leaving), &places[..1], &settings).is_ok());
        assert!(can_grow(&places[0].disks[0], 69 * GIB, &settings).is_ok());
        assert!(can_grow(&places[0].disks[0], 70 * GIB, &settings).is_err());
    }
}
