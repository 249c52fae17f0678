//! The table of leases and its file.
//!
//! Each address belongs to one NIC at most, each NIC has one at most; the pool bounds the table. A lease outlives its
//! NIC, so that a machine that is stopped and started finds its address again; only when the pool is exhausted are
//! leases of NICs that are gone given to others, the longest unused first.
//!
//! File: JSON `{"version": 1, "leases": [{"mac", "address", "expires", "hostname"}]}`, `expires` in seconds since the
//! Unix epoch. Offers and declined addresses are not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Clients, OFFER_SECONDS};
use crate::{Mac, Subnet};

/// How long an address that a client found in use is not given to anybody, in seconds.
const DECLINE_SECONDS: u64 = 600;
/// Declined addresses at any time: one guest must not be able to take the pool from the others.
const MAX_DECLINED: usize = 16;
/// A renewal that moves the end of a lease by less than this, in seconds, is not written down: a guest that renews
/// without pause must not keep the disk busy. The record is early by that much, the guest is told the whole time.
const WORTH_SAVING_SECONDS: u64 = 60;
const VERSION: u32 = 1;

/// One NIC's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// When it ends, in seconds since the Unix epoch.
    pub expires: u64,
    /// Host name that the guest was given.
    pub hostname: String,
    /// Whether the guest has taken it.
    pub state: LeaseState,
}

/// State of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Offered; the guest has not asked for it yet.
    Offered,
    /// The guest has it, or had it until it expired.
    Bound,
    /// The guest gave it back; it is remembered.
    Released,
}

/// Why leases could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// The file system refused.
    #[error("{operation} leases file {path} failed", path = path.display())]
    File {
        /// What was done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what we write.
    #[error("leases file {path} cannot be read", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a later version.
    #[error("leases file {path} has version {version}; versions up to {VERSION} are known", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// All leases of one subnet.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    by_mac: BTreeMap<Mac, Lease>,
    declined: BTreeMap<Ipv4Addr, u64>,
    generation: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    leases: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    mac: Mac,
    address: Ipv4Addr,
    expires: u64,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    released: bool,
}

impl Leases {
    /// Changes whenever something changes that the file keeps.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The NIC's lease, in whatever state.
    #[must_use]
    pub fn get(&self, mac: Mac) -> Option<&Lease> {
        self.by_mac.get(&mac)
    }

    /// The address that the NIC has at that time.
    #[must_use]
    pub fn bound(&self, now: u64, mac: Mac) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).filter(|l| l.state == LeaseState::Bound && l.expires > now).map(|l| l.address)
    }

    /// All leases.
    pub fn iter(&self) -> impl Iterator<Item = (Mac, &Lease)> {
        self.by_mac.iter().map(|(mac, lease)| (*mac, lease))
    }

    /// Chooses an address for the NIC and keeps it for a moment. `None` if the pool is exhausted.
    pub(super) fn offer(
        &mut self,
        now: u64,
        subnet: Subnet,
        clients: &Clients,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        self.expire_declined(now);
        if let Some(lease) = self.by_mac.get_mut(&mac)
            && subnet.pool_contains(lease.address)
            && !self.declined.contains_key(&lease.address)
        {
            if lease.state == LeaseState::Offered {
                lease.expires = now + OFFER_SECONDS;
            }
            return Some(lease.address);
        }
        let address = match wanted.filter(|a| self.is_free(subnet, *a)) {
            Some(address) => address,
            None => self.first_free(subnet, mac).or_else(|| self.reclaim(now, subnet, clients))?,
        };
        let state = LeaseState::Offered;
        let expires = now + OFFER_SECONDS;
        self.by_mac.insert(mac, Lease { address, expires, hostname: String::new(), state });
        Some(address)
    }

    /// Gives the NIC the address that it asks for; `false` if it cannot have it.
    pub(super) fn bind(
        &mut self,
        now: u64,
        subnet: Subnet,
        mac: Mac,
        hostname: &str,
        wanted: Ipv4Addr,
        expires: u64,
    ) -> bool {
        self.expire_declined(now);
        let own = self.by_mac.get(&mac).is_some_and(|l| l.address == wanted);
        if own {
            if !subnet.pool_contains(wanted) || self.declined.contains_key(&wanted) {
                return false;
            }
        } else if self.by_mac.contains_key(&mac) || !self.is_free(subnet, wanted) {
            // With another address on record, the client has to start over and gets that one. Without any (our file
            // was lost), it may keep what it has, if nobody else has it.
            return false;
        }
        let state = LeaseState::Bound;
        if let Some(lease) = self.by_mac.get(&mac)
            && lease.state == state
            && lease.hostname == hostname
            && lease.expires > now
            && expires.saturating_sub(lease.expires) < WORTH_SAVING_SECONDS
        {
            return true;
        }
        self.by_mac.insert(mac, Lease { address: wanted, expires, hostname: hostname.to_owned(), state });
        self.generation += 1;
        true
    }

    /// The client found its address in use by somebody else.
    pub(super) fn decline(&mut self, now: u64, mac: Mac, address: Ipv4Addr) {
        self.expire_declined(now);
        if self.by_mac.get(&mac).is_none_or(|l| l.address != address) || self.declined.len() >= MAX_DECLINED {
            return;
        }
        self.by_mac.remove(&mac);
        self.declined.insert(address, now + DECLINE_SECONDS);
        self.generation += 1;
    }

    /// The client gives its address back.
    pub(super) fn release(&mut self, now: u64, mac: Mac, address: Ipv4Addr) {
        if let Some(lease) = self.by_mac.get_mut(&mac)
            && lease.address == address
            && lease.state == LeaseState::Bound
        {
            lease.state = LeaseState::Released;
            lease.expires = now;
            self.generation += 1;
        }
    }

    fn expire_declined(&mut self, now: u64) {
        self.declined.retain(|_, until| *until > now);
    }

    fn is_free(&self, subnet: Subnet, address: Ipv4Addr) -> bool {
        subnet.pool_contains(address)
            && !self.declined.contains_key(&address)
            && !self.by_mac.values().any(|l| l.address == address)
    }

    /// Where the search starts depends on the NIC alone, so that most get the same address even if the file is lost.
    fn first_free(&self, subnet: Subnet, mac: Mac) -> Option<Ipv4Addr> {
        let taken: BTreeSet<Ipv4Addr> =
            self.by_mac.values().map(|l| l.address).chain(self.declined.keys().copied()).collect();
        let digest = Sha256::digest(mac.0);
        let start = digest.iter().take(4).fold(0_u32, |n, b| n << 8 | u32::from(*b)) % subnet.pool_len();
        (0..subnet.pool_len())
            .map(|n| subnet.pool_nth((start + n) % subnet.pool_len()))
            .find(|address| !taken.contains(address))
    }

    /// Takes the address of the NIC that is gone for longest.
    fn reclaim(&mut self, now: u64, subnet: Subnet, clients: &Clients) -> Option<Ipv4Addr> {
        let (mac, address) = self
            .by_mac
            .iter()
            .filter(|(mac, lease)| {
                let gone = !clients.contains_key(mac)
                    || (lease.state == LeaseState::Offered && lease.expires <= now);
                gone && subnet.pool_contains(lease.address) && !self.declined.contains_key(&lease.address)
            })
            .min_by_key(|(_, lease)| lease.expires)
            .map(|(mac, lease)| (*mac, lease.address))?;
        self.by_mac.remove(&mac);
        self.generation += 1;
        Some(address)
    }

    /// Reads the file; no file is an empty table. Of an entry that contradicts an earlier one, the earlier stays.
    pub fn load(path: &Path) -> Result<Self, LeasesError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(LeasesError::File { operation: "reading", path: path.to_owned(), source });
            }
        };
        let format = |source| LeasesError::Format { path: path.to_owned(), source };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(format)?;
        // The version first: a later one may have other fields.
        if let Some(version) = value.get("version").and_then(serde_json::Value::as_u64)
            && version > u64::from(VERSION)
        {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            return Err(LeasesError::Version { path: path.to_owned(), version });
        }
        let file: File = serde_json::from_value(value).map_err(format)?;
        let mut leases = Self::default();
        let mut taken = BTreeSet::new();
        for Entry { mac, address, expires, hostname, released } in file.leases {
            if !leases.by_mac.contains_key(&mac) && taken.insert(address) {
                let state = if released { LeaseState::Released } else { LeaseState::Bound };
                leases.by_mac.insert(mac, Lease { address, expires, hostname, state });
            }
        }
        Ok(leases)
    }

    /// The content of the file.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let leases = self.by_mac.iter().filter(|(_, l)| l.state != LeaseState::Offered);
        let leases = leases.map(|(mac, lease)| Entry {
            mac: *mac,
            address: lease.address,
            expires: lease.expires,
            hostname: lease.hostname.clone(),
            released: lease.state == LeaseState::Released,
        });
        serde_json::to_vec_pretty(&File { version: VERSION, leases: leases.collect() })
    }

    /// Writes the file: whole or not at all, and durable on return.
    pub fn save(&self, path: &Path) -> Result<(), LeasesError> {
        let content =
            self.to_json().map_err(|source| LeasesError::Format { path: path.to_owned(), source })?;
        write_atomically(path, &content)
    }
}

pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), LeasesError> {
    let error = |operation| move |source| LeasesError::File { operation, path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary).map_err(error("creating"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(error("writing"))?;
    std::fs::rename(&temporary, path).map_err(error("replacing"))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(error("syncing the directory of"))
}
