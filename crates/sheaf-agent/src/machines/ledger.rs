//! What the agent wrote down about a machine before it started it: whose it is, and which parts it holds. Kept in
//! the machine's record, so that an agent that starts anew can adopt the machine, or give its parts up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sheaf_net::Mac;
use sheaf_runtime::ObjectKey;

use crate::parts::{NicRequest, NicTarget};

/// The ledger of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Namespace of the instance.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Claims that are attached, in the same namespace.
    pub claims: Vec<String>,
    /// Claims by the disk or drive that they are in.
    #[serde(default)]
    pub drives: BTreeMap<String, String>,
    /// NICs that are plugged in, in order.
    pub nics: Vec<LedgerNic>,
    /// It was started paused.
    pub paused: bool,
    /// The guest's file systems are frozen until then, in seconds since 1970.
    #[serde(default)]
    pub frozen_until: Option<i64>,
}

/// A NIC in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerNic {
    /// Name in the instance.
    pub name: String,
    /// Hardware address.
    pub mac: Mac,
    /// Bridge, if it is not the management network.
    pub bridge: Option<String>,
    /// VLAN on that bridge.
    pub vlan: Option<u16>,
    /// Name that DHCP gives.
    pub hostname: String,
    /// The tap on the host; empty if it is not known.
    #[serde(default)]
    pub tap: String,
    /// Queues of the tap.
    #[serde(default)]
    pub queues: u32,
}

impl Ledger {
    /// The instance's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.clone(), self.name.clone())
    }

    /// Notes that a disk has a claim.
    pub fn hold(&mut self, disk: &str, claim: &str) {
        self.drives.insert(disk.into(), claim.into());
        if !self.claims.iter().any(|c| c == claim) {
            self.claims.push(claim.into());
        }
    }

    /// Notes that a disk is gone; gives its claim if nothing else has it.
    pub fn release(&mut self, disk: &str) -> Option<String> {
        let claim = self.drives.remove(disk)?;
        if self.drives.values().any(|c| *c == claim) {
            return None;
        }
        self.claims.retain(|c| *c != claim);
        Some(claim)
    }
}

impl LedgerNic {
    /// As the network takes it.
    pub fn request(&self, machine: &str) -> NicRequest {
        let target = match &self.bridge {
            None => NicTarget::Management,
            Some(name) => NicTarget::Bridge { name: name.clone(), vlan: self.vlan },
        };
        NicRequest {
            machine: machine.into(),
            name: self.name.clone(),
            mac: self.mac,
            target,
            hostname: self.hostname.clone(),
            queues: self.queues.max(1),
        }
    }
}
