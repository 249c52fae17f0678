//! Where devices sit on the PCI bus. Pure.
//!
//! Every plugged device has a PCIe root port of its own, number 1 to [`LAST_PORT`]; port N is bus N of the guest, so
//! the device on port 1 is `enp1s0` if it is a network card. Numbers are given once, kept in the machine's record,
//! and never given to another device while the first is there: names in the guest do not move when a disk is
//! added. A few ports stay free for devices plugged in while the guest runs. The same holds for the units of SCSI and
//! SATA drives.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The last port. The root ports take slots 2 to 5 of the root bus, eight functions each.
pub const LAST_PORT: u8 = 31;
/// Slot of the root bus where the root ports begin.
const FIRST_SLOT: u8 = 2;
/// The first slot of the root bus that is left for places by hand.
pub const FIRST_FREE_SLOT: u8 = 6;
/// Ports of the chipset's SATA controller.
pub const SATA_PORTS: u32 = 6;
/// Units of the SCSI controller that are used.
pub const SCSI_UNITS: u32 = 256;

/// Port numbers by device id, and how many ports the machine has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ports {
    /// Device id to port number.
    pub devices: BTreeMap<String, u8>,
    /// Root ports that exist in the machine.
    pub total: u8,
    /// Device id to unit on its bus, for drives that share a controller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub units: BTreeMap<String, u32>,
}

/// A drive that shares a controller with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Device id.
    pub id: String,
    /// Units of its controller.
    pub units: u32,
    /// Drives of the same controller have the same.
    pub controller: u8,
}

/// How many ports stay free for what is plugged in later, as upstream's current layout has it: more in larger
/// machines.
pub fn spare(memory_bytes: u64, used: usize) -> u8 {
    let used = u8::try_from(used).unwrap_or(u8::MAX);
    if memory_bytes > 2 << 30 { 16_u8.saturating_sub(used).max(6) } else { 8_u8.saturating_sub(used).max(3) }
}

/// More devices than ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine has {needed} devices that need a PCIe port of their own; {LAST_PORT} is the most there can be"
)]
pub struct NoPort {
    /// Ports needed.
    pub needed: usize,
}

/// Gives every device in `wanted` a port: those in `before` keep theirs, the others get the lowest free one, in
/// order. Devices that are gone give theirs back; `spare` ports are left over, as far as there is room.
pub fn assign(before: &Ports, wanted: &[String], spare: u8) -> Result<Ports, NoPort> {
    let mut devices: BTreeMap<String, u8> = BTreeMap::new();
    for id in wanted {
        if let Some(port) = before.devices.get(id).filter(|p| (1..=LAST_PORT).contains(*p)) {
            devices.insert(id.clone(), *port);
        }
    }
    for id in wanted {
        if devices.contains_key(id) {
            continue;
        }
        let free = (1..=LAST_PORT).find(|p| !devices.values().any(|used| used == p));
        let port = free.ok_or(NoPort { needed: wanted.len() })?;
        devices.insert(id.clone(), port);
    }
    let highest = devices.values().copied().max().unwrap_or(0);
    let total = before.total.max(highest.saturating_add(spare).min(LAST_PORT)).min(LAST_PORT);
    Ok(Ports { devices, total, units: before.units.clone() })
}

/// A free port of a machine that runs, for one more device: no new ports appear in it.
pub fn plug(ports: &Ports, id: &str) -> Result<Ports, NoPort> {
    let mut out = ports.clone();
    if out.devices.contains_key(id) {
        return Ok(out);
    }
    let free = (1..=ports.total).find(|p| !ports.devices.values().any(|used| used == p));
    let port = free.ok_or(NoPort { needed: ports.devices.len() + 1 })?;
    out.devices.insert(id.into(), port);
    Ok(out)
}

/// Gives every drive its unit: those in `before` keep theirs where it fits, the others get the lowest free one of their
/// controller. A controller that is full leaves its surplus without one.
pub fn units(before: &Ports, drives: &[Drive]) -> BTreeMap<String, u32> {
    let mut out: BTreeMap<String, u32> = BTreeMap::new();
    let taken = |out: &BTreeMap<String, u32>, controller: u8, unit: u32| {
        drives.iter().any(|d| d.controller == controller && out.get(&d.id) == Some(&unit))
    };
    for drive in drives {
        if let Some(unit) = before.units.get(&drive.id).copied()
            && unit < drive.units
            && !taken(&out, drive.controller, unit)
        {
            out.insert(drive.id.clone(), unit);
        }
    }
    for drive in drives {
        if !out.contains_key(&drive.id)
            && let Some(unit) = (0..drive.units).find(|unit| !taken(&out, drive.controller, *unit))
        {
            out.insert(drive.id.clone(), unit);
        }
    }
    out
}

impl Ports {
    /// `bus=rpN,addr=0x0` for a device.
    pub(crate) fn place(&self, id: &str) -> Option<Vec<(String, String)>> {
        let port = self.devices.get(id)?;
        Some(vec![("bus".into(), format!("rp{port}")), ("addr".into(), "0x0".into())])
    }
    /// The `-device` value of root port `port`.
    pub(crate) fn root_port(port: u8) -> String {
        let (slot, function) = (FIRST_SLOT + (port - 1) / 8, (port - 1) % 8);
        let multi = if function == 0 { ",multifunction=on" } else { "" };
        format!("pcie-root-port,id=rp{port},bus=pcie.0,chassis={port},addr=0x{slot:x}.0x{function:x}{multi}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_string()).collect()
    }

    #[test]
    fn first_come_lowest_port_and_room_to_grow() {
        let p = assign(&Ports::default(), &ids(&["net-a", "net-b", "disk-root"]), 4).expect("fits");
        assert_eq!(p.devices["net-a"], 1);
        assert_eq!(p.devices["disk-root"], 3);
        assert_eq!(p.total, 7);
        assert_eq!(
            Ports::root_port(1),
            "pcie-root-port,id=rp1,bus=pcie.0,chassis=1,addr=0x2.0x0,multifunction=on"
        );
        assert_eq!(Ports::root_port(10), "pcie-root-port,id=rp10,bus=pcie.0,chassis=10,addr=0x3.0x1");
    }

    #[test]
    fn too_many_devices_are_refused() {
        let many: Vec<String> = (0..32).map(|i| format!("d{i}")).collect();
        let err = assign(&Ports::default(), &many, 4).expect_err("32 devices");
        assert_eq!(
            err.to_string(),
            "the machine has 32 devices that need a PCIe port of their own; 31 is the most there can be"
        );
        assert_eq!(assign(&Ports::default(), &many[..31], 4).expect("31 devices").total, 31);
    }

    #[test]
    fn later_devices_take_what_is_free_and_no_more() {
        let p = assign(&Ports::default(), &ids(&["a", "b"]), 1).expect("fits");
        let p = plug(&p, "c").expect("one is spare");
        assert_eq!((p.devices["c"], p.total), (3, 3));
        assert_eq!(plug(&p, "c").expect("there already"), p);
        assert_eq!(plug(&p, "d"), Err(NoPort { needed: 4 }));
        assert_eq!((spare(1 << 30, 7), spare(1 << 30, 2), spare(4 << 30, 3)), (3, 6, 13));
    }

    #[test]
    fn drives_keep_their_units() {
        let drive = |id: &str, controller| Drive { id: id.into(), units: 3, controller };
        let first = units(&Ports::default(), &[drive("a", 0), drive("b", 0), drive("x", 1)]);
        assert_eq!((first["a"], first["b"], first["x"]), (0, 1, 0));
        let before = Ports { units: first, ..Ports::default() };
        let next = units(&before, &[drive("new", 0), drive("b", 0), drive("more", 0), drive("most", 0)]);
        assert_eq!((next["b"], next["new"], next["more"], next.get("most")), (1, 0, 2, None));
    }

    proptest! {
        /// Whatever is added or removed, a device that stays keeps its port, and no two share one.
        #[test]
        fn ports_are_stable_and_distinct(rounds in prop::collection::vec(prop::collection::btree_set(0u8..40, 0..25), 1..6)) {
            let mut ports = Ports::default();
            for round in rounds {
                let wanted: Vec<String> = round.iter().map(|n| format!("dev{n}")).collect();
                let next = assign(&ports, &wanted, 4).expect("at most 25 devices");
                prop_assert_eq!(next.devices.len(), wanted.len());
                for (id, port) in &next.devices {
                    if let Some(was) = ports.devices.get(id) {
                        prop_assert_eq!(was, port);
                    }
                    prop_assert!((1..=next.total).contains(port));
                }
                let mut used: Vec<u8> = next.devices.values().copied().collect();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(used.len(), next.devices.len());
                prop_assert!(next.total >= ports.total);
                ports = next;
            }
        }
    }
}
