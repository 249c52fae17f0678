//! What the agent wrote down about a machine before it started it: whose it is, and which parts it holds. Kept in
//! the machine's record, so that an agent that starts anew can adopt the machine, or give its parts up.

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
    /// NICs that are plugged in, in order.
    pub nics: Vec<LedgerNic>,
    /// It was started paused.
    pub paused: bool,
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
}

impl Ledger {
    /// The instance's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.clone(), self.name.clone())
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
        }
    }
}
