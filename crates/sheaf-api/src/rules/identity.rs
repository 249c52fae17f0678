//! What a machine keeps for life: the identity that its firmware shows, and its hardware addresses.
//!
//! Rules have no randomness, but every object has a random uid before rules run; all is derived from that of the
//! machine (or of an instance that belongs to none), so that a machine made twice gets other values each time, and
//! an instance the same at every start.

use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{list, text};

/// Namespace in which KubeVirt derives firmware uuids of machines that had none.
const FIRMWARE: Uuid = Uuid::from_u128(0x6a1a24a1_4061_4607_8bf4_a3963d0c5895);

/// From what everything is derived: the uid of the machine, for an instance that of its machine.
pub(super) fn seed(object: &Value) -> String {
    let owner = list(object, "/metadata/ownerReferences")
        .iter()
        .find(|r| r["controller"] == true && r["kind"] == "VirtualMachine");
    let uid = owner.map_or_else(|| text(object, "/metadata/uid"), |owner| text(owner, "/uid"));
    if uid.is_empty() {
        format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
    } else {
        uid.to_string()
    }
}

/// Identity of the system (`firmware.uuid`) or its serial number (`firmware.serial`).
pub(super) fn firmware(seed: &str, what: &str) -> String {
    Uuid::new_v5(&FIRMWARE, format!("{seed}/{what}").as_bytes()).to_string()
}

/// A hardware address for an interface: locally administered, for one station.
pub(super) fn mac(seed: &str, interface: &str) -> String {
    let hash = Sha256::digest(format!("{seed}/{interface}").as_bytes());
    let mut octets = [0u8; 6];
    octets.copy_from_slice(&hash[..6]);
    octets[0] = (octets[0] & 0xfc) | 0x02;
    octets.map(|o| format!("{o:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_instance_has_what_its_machine_has() {
        let machine = json!({"metadata": {"uid": "u-1"}});
        let instance = json!({"metadata": {"uid": "u-2",
            "ownerReferences": [{"kind": "VirtualMachine", "controller": true, "uid": "u-1"}]}});
        assert_eq!(seed(&machine), seed(&instance));
        assert_eq!(mac("u-1", "default"), mac("u-1", "default"));
        assert_ne!(mac("u-1", "default"), mac("u-1", "other"));
        assert_ne!(firmware("u-1", "uuid"), firmware("u-2", "uuid"));
    }

    #[test]
    fn addresses_are_local_and_for_one_station() {
        for i in 0..256 {
            let first = u8::from_str_radix(&mac(&i.to_string(), "n")[..2], 16).unwrap_or(0xff);
            assert_eq!(first & 0b11, 0b10);
        }
    }
}
