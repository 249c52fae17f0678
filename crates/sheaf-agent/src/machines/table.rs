//! The machines of this node: by the key of their instance, at most one for each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sheaf_qemu::process::{self, Found};
use sheaf_qemu::spec::MachineSpec;
use sheaf_runtime::{ObjectKey, TaskGroup, Waker};
use tracing::{info, warn};

use super::guest::Guest;
use super::ledger::Ledger;
use super::monitor::{Begin, End, Machine, Run, Seen, watch_machine};
use super::status::{is_local, promised};
use crate::parts::Network;

/// A machine and what was written down about it.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) ledger: Ledger,
    /// `None`: it had ended before this agent began, as `before` says.
    pub(super) machine: Option<Machine>,
    pub(super) before: End,
}

impl Entry {
    pub(super) fn seen(&self) -> Seen {
        match &self.machine {
            Some(machine) => machine.seen(),
            None => Seen {
                run: Run::Ended(self.before.clone()),
                stopping: None,
                guest: Guest::default(),
                machine_type: String::new(),
                memory_plugged: 0,
            },
        }
    }
}

/// The table. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Machines {
    entries: Arc<Mutex<BTreeMap<ObjectKey, Entry>>>,
}

impl Machines {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<ObjectKey, Entry>) -> T) -> T {
        f(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn entry(&self, key: &ObjectKey) -> Option<Entry> {
        self.with(|e| e.get(key).cloned())
    }

    pub(super) fn insert(&self, entry: Entry) {
        self.with(|e| e.insert(entry.ledger.key(), entry));
    }

    /// Notes what a machine holds now; nothing if it is another's.
    pub(super) fn update_ledger(&self, ledger: &Ledger) {
        self.with(|e| {
            if let Some(entry) = e.get_mut(&ledger.key()).filter(|e| e.ledger.uid == ledger.uid) {
                entry.ledger = ledger.clone();
            }
        });
    }

    pub(super) fn remove(&self, key: &ObjectKey) {
        self.with(|e| e.remove(key));
    }

    /// The machine of an instance, if it runs here.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Machine> {
        let entry = self.entry(&ObjectKey::new(namespace, name))?;
        entry.machine.filter(|m| !matches!(m.seen().run, Run::Ended(_)))
    }

    /// An address of a machine: that of its first NIC which has one, by lease or else as its guest tells.
    pub fn address(&self, namespace: &str, name: &str, network: &dyn Network) -> Option<IpAddr> {
        let entry = self.entry(&ObjectKey::new(namespace, name))?;
        let told = entry.seen().guest.interfaces;
        entry.ledger.nics.iter().find_map(|nic| {
            let mac = nic.mac.to_string();
            let mine = told.iter().filter(|i| i.mac.as_deref().is_some_and(|m| m.eq_ignore_ascii_case(&mac)));
            let mut ips = mine.flat_map(|i| &i.addresses).filter_map(|a| a.ip.parse::<IpAddr>().ok());
            network.lease(nic.mac).or_else(|| ips.find(|ip| !is_local(ip)))
        })
    }

    /// The claims of machines that run: namespace and name.
    pub(super) fn held_claims(&self) -> Vec<(String, String)> {
        let running = |e: &&Entry| e.machine.as_ref().is_some_and(|m| !matches!(m.seen().run, Run::Ended(_)));
        let of = |e: &Entry| {
            let namespace = e.ledger.namespace.clone();
            e.ledger.claims.iter().map(move |c| (namespace.clone(), c.clone())).collect::<Vec<_>>()
        };
        self.with(|e| e.values().filter(running).flat_map(of).collect())
    }

    /// Claims in the disks of a machine, by disk.
    pub fn drives(&self, key: &ObjectKey) -> BTreeMap<String, String> {
        self.entry(key).map(|e| e.ledger.drives).unwrap_or_default()
    }

    /// The instances that have a machine here.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.with(|e| e.keys().cloned().collect())
    }

    /// The machines that run here, as they are now.
    pub(super) fn specs(&self) -> Vec<Arc<MachineSpec>> {
        self.processes().into_iter().map(|(_, spec)| spec).collect()
    }

    /// The processes of the machines that run here.
    pub(super) fn processes(&self) -> Vec<(u32, Arc<MachineSpec>)> {
        let machines: Vec<Machine> = self.with(|e| e.values().filter_map(|e| e.machine.clone()).collect());
        machines.iter().filter(|m| !m.ended()).map(|m| (m.pid(), m.spec())).collect()
    }

    /// Memory that guests have been promised and have not taken yet, in bytes.
    pub(super) fn promised(&self) -> u64 {
        let machines: Vec<Machine> = self.with(|e| e.values().filter_map(|e| e.machine.clone()).collect());
        let running = machines.iter().filter(|m| !matches!(m.seen().run, Run::Ended(_)));
        running.map(|m| promised(&m.spec(), m.resident_bytes())).sum()
    }

    /// Finds the machines that run on this node, or that ended while no agent was there, in the directories below
    /// `dir`. What runs is left as it is.
    pub(super) async fn adopt(&self, dir: PathBuf, network: &dyn Network, group: &TaskGroup, waker: &Waker) {
        let scan = tokio::task::spawn_blocking(move || scan(&dir));
        for (path, found) in scan.await.unwrap_or_default() {
            let record = match &found {
                Found::Running(record, _) | Found::Gone(record) => record,
                Found::Nothing => {
                    // The agent died before it started QEMU; whoever starts it again makes it anew.
                    let _ = std::fs::remove_dir_all(&path);
                    continue;
                }
            };
            let ledger: Ledger = match serde_json::from_value(record.extra.clone()) {
                Ok(ledger) => ledger,
                Err(error) => {
                    warn!(dir = %path.display(), %error, "a machine's record is not ours; left alone");
                    continue;
                }
            };
            let key = ledger.key();
            let before = before(&found, &path);
            if let Found::Gone(record) = &found {
                process::clean(&record.machine.uuid, &path);
            }
            let machine = match found {
                Found::Running(record, process) => {
                    for nic in &ledger.nics {
                        if let Err(error) = network.adopt(&nic.request(&ledger.uid)).await {
                            warn!(machine = %key, nic = nic.name, %error, "a NIC is not adopted");
                        }
                    }
                    let (waker, key) = (waker.clone(), key.clone());
                    let begin = Begin::Adopted { paused: ledger.paused };
                    Some(watch_machine(record.machine, process, begin, group, move || {
                        waker.wake(key.clone())
                    }))
                }
                _ => {
                    info!(machine = %key, ?before, "ended while no agent was here");
                    None
                }
            };
            let (frozen, adopted) = (ledger.frozen_until, machine.clone());
            self.insert(Entry { ledger, machine, before });
            if let (Some(until), Some(machine)) = (frozen, adopted) {
                machine.set_frozen(true);
                if until != i64::MAX {
                    super::freeze::thaw_at(self.clone(), machine, key.clone(), until, group);
                }
            }
            waker.wake(key);
        }
    }
}

/// How a machine has ended whose end nobody saw.
fn before(found: &Found, dir: &std::path::Path) -> End {
    match found {
        // Its guest waits for the agent, and no agent has noted that it was there.
        Found::Gone(record) if record.pid.is_none() => End::Unborn,
        _ => {
            let words = process::last_words(dir).map(|words| format!(": {words}")).unwrap_or_default();
            End::Crashed(format!("QEMU ended while the node's agent was away{words}"))
        }
    }
}

fn scan(dir: &std::path::Path) -> Vec<(PathBuf, Found)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match process::find(&path) {
            Ok(found) => out.push((path, found)),
            Err(error) => {
                let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                warn!(dir = %path.display(), %error, why, "a machine's record cannot be read; left alone");
            }
        }
    }
    out
}
