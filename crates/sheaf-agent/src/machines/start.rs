//! From an instance to a running QEMU, in three stages that cannot be taken out of order: [`Plan`] (what it asks
//! for), [`Parts`] (what it asks for is here), [`Started`]. Whatever fails on the way leaves nothing that a repeat
//! would trip over: attaching is idempotent, and files are made anew.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde_json::json;
use sheaf_api::cni::{NetConf, NetworkAttachmentDefinition};
use sheaf_api::kubevirt as kv;
use sheaf_qemu::accel;
use sheaf_qemu::args::place_all;
use sheaf_qemu::pci::Ports;
use sheaf_qemu::process::{self, Record, SpawnError};
use sheaf_qemu::spec::{Cache, Clock, Firmware, MachineSpec, Source};
use sheaf_runtime::{Informer, ObjectKey};

use super::allot::Allotments;
use super::cloudinit::{self, Data, Inputs};
use super::convert::{self, NetworkWish, Wanted};
use super::disks::{Content, DiskWish, FilesSource};
use super::iso;
use super::ledger::{Ledger, LedgerNic};
use super::live::claim_of;
use super::pages;
use super::plan::{PORTS, annotation, wants_pause};
use super::states::state_dir;
use super::status::{Problem, fits, ordinary, overhead};
use crate::parts::{DiskFormat, DiskSource, Network, PartError, VolumeBackend};
use crate::snapshots::memory;

/// Where OVMF lies on the distributions we know: code with and without checks of signatures, and the variables of each.
const OVMF: [(&str, &str, bool); 6] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", true),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd", true),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd", true),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", false),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd", false),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", false),
];

/// What the stages need of the node and of the API.
pub(super) struct Needs {
    pub(super) client: Client,
    pub(super) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(super) definitions: Arc<Informer<NetworkAttachmentDefinition>>,
    pub(super) network: Arc<dyn Network>,
    pub(super) volumes: Arc<dyn VolumeBackend>,
    pub(super) qemu: PathBuf,
    /// The directory of all machines.
    pub(super) dir: PathBuf,
    pub(super) accel: accel::Facts,
    pub(super) allotments: Allotments,
}

/// Why a machine is not started.
#[derive(Debug)]
pub(super) enum NotYet {
    /// Something is missing, or cannot be done as it stands; the condition says what. A change wakes us.
    Blocked(Problem),
    /// The system failed; tried again with growing waits.
    Failed(Problem),
}

fn blocked<T>(reason: &'static str, message: impl Into<String>) -> Result<T, NotYet> {
    Err(NotYet::Blocked(Problem { reason, message: message.into() }))
}

fn part(what: &str, reason: &'static str) -> impl Fn(PartError) -> NotYet {
    move |error| match error {
        PartError::Missing(text) => NotYet::Blocked(Problem { reason, message: format!("{what}: {text}") }),
        PartError::Refused(text) => NotYet::Blocked(Problem { reason, message: format!("{what}: {text}") }),
        PartError::Failed { context, source } => {
            NotYet::Failed(Problem { reason, message: format!("{what}: {context}: {source}") })
        }
    }
}

fn failed(context: String, source: &dyn std::error::Error) -> NotYet {
    let mut message = context;
    let mut next = Some(source);
    while let Some(error) = next {
        message = format!("{message}: {error}");
        next = error.source();
    }
    NotYet::Failed(Problem { reason: "FailedCreate", message })
}

/// The first stage: what the instance asks for.
pub(super) struct Plan {
    wanted: Wanted,
    namespace: String,
    inputs: Inputs,
    ledger: Ledger,
    credentials: Vec<String>,
    /// UID of the VM, or of an instance that has none.
    vm_uid: String,
    /// Where devices sat in the run before.
    ports: Ports,
    /// The content of a snapshot whose memory it goes on with.
    resume_from: Option<String>,
}

/// The second stage: all parts are here.
pub(super) struct Parts {
    machine: MachineSpec,
    taps: Vec<Vec<OwnedFd>>,
    ledger: Ledger,
    /// Why the guest begins anew although it was to go on from a snapshot.
    cold: Option<String>,
}

/// The last stage: QEMU runs, and the guest's processors do not yet.
pub(super) struct Started {
    pub(super) process: process::Process,
    pub(super) machine: MachineSpec,
    pub(super) ledger: Ledger,
    pub(super) cold: Option<String>,
}

impl Plan {
    /// Reads the instance; `dir` will be the machine's directory.
    pub(super) fn new(vmi: &kv::VirtualMachineInstance, dir: &Path) -> Result<Self, NotYet> {
        let wanted = match convert::wanted(vmi, dir) {
            Ok(wanted) => wanted,
            Err(refused) => return blocked("InvalidSpec", refused.to_string()),
        };
        let namespace = vmi.metadata.namespace.clone().unwrap_or_else(|| "default".into());
        let name = vmi.metadata.name.clone().unwrap_or_default();
        let inputs = Inputs {
            uuid: wanted.machine.uuid.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            hostname: wanted.hostname.clone(),
            ssh_keys: Vec::new(),
        };
        let paused = wants_pause(vmi);
        let uid = vmi.metadata.uid.clone().unwrap_or_default();
        let drives =
            wanted.disks.iter().filter_map(|w| Some((w.drive.name.clone(), claim_of(w)?.to_owned())));
        let drives = drives.collect();
        let owner = vmi.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let vm_uid = owner.map_or_else(|| uid.clone(), |o| o.uid.clone());
        let ports =
            annotation(vmi, PORTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let resume_from = annotation(vmi, sheaf_plan::snapshot::RESUME_FROM).map(str::to_owned);
        let ledger = Ledger {
            namespace: namespace.clone(),
            name,
            uid,
            claims: claims(vmi),
            drives,
            nics: vec![],
            paused,
            frozen_until: None,
        };
        let credentials = vmi
            .spec
            .access_credentials
            .iter()
            .filter_map(|c| c.ssh_public_key.as_ref())
            .filter(|k| {
                k.propagation_method.no_cloud.is_some() || k.propagation_method.config_drive.is_some()
            })
            .filter_map(|k| k.source.secret.as_ref().map(|s| s.secret_name.clone()))
            .collect();
        Ok(Self { wanted, namespace, inputs, ledger, credentials, vm_uid, ports, resume_from })
    }

    /// Whether the guest shall not begin although nobody has asked for a pause yet.
    pub(super) fn start_paused(&self) -> bool {
        self.wanted.start_paused
    }

    /// Gathers the parts. `available` and `promised` are the node's memory and what of it guests may still take.
    pub(super) async fn gather(
        mut self,
        needs: &Needs,
        available: u64,
        promised: u64,
        running: &[Arc<MachineSpec>],
    ) -> Result<Parts, NotYet> {
        self.allot(needs, running)?;
        let machine = &mut self.wanted.machine;
        machine.accel = accel::choose(&needs.accel, machine.memory_bytes);
        if let Some(page) = machine.rare.hugepages
            && let Err(message) = pages::enough(page, machine.memory_bytes, &pages::pools())
        {
            return blocked("InsufficientHugepages", message);
        }
        if let Err(message) = fits(ordinary(machine), overhead(machine), available, promised) {
            return blocked("InsufficientMemory", message);
        }
        self.check_claims(needs)?;
        let targets = self.nic_targets(needs)?;
        for secret in self.credentials.clone() {
            let Some(data) = secret_data(needs, &self.namespace, &secret).await? else {
                return blocked("FailedSecretNotFound", missing("Secret", &self.namespace, &secret));
            };
            self.inputs.ssh_keys.extend(cloudinit::public_keys(&data));
        }
        let wishes = std::mem::take(&mut self.wanted.disks);
        for wish in wishes {
            let drive = self.drive(wish, needs).await?;
            self.wanted.machine.disks.push(drive);
        }
        if let Some(uefi) = self.wanted.uefi {
            self.firmware(uefi, needs).await?;
        }
        if let Some(persistent) = self.wanted.tpm {
            let dir = &self.wanted.machine.dir;
            let state = if persistent { state_dir(&needs.dir, &self.vm_uid) } else { dir.clone() };
            self.wanted.machine.rare.tpm = Some(state.join("tpm"));
        }
        if self.wanted.clock_shift != 0 {
            let now = Timestamp::now().as_second() + self.wanted.clock_shift;
            let at = Timestamp::from_second(now).unwrap_or_else(|_| Timestamp::now());
            // Without the zone: QEMU takes the date as it stands.
            self.wanted.machine.clock = Clock::At(at.to_string().trim_end_matches('Z').to_owned());
        }
        self.acpi_tables(needs).await?;
        let mut taps = Vec::new();
        for (wish, mut nic) in std::mem::take(&mut self.wanted.nics).into_iter().zip(targets) {
            let request = nic.request(&self.ledger.uid);
            let what = format!("network interface {:?}", nic.name);
            let tap = needs.network.attach(&request).await.map_err(part(&what, "FailedNetwork"))?;
            taps.push(tap.queues);
            nic.tap = tap.ifname;
            self.wanted.machine.nics.push(wish.card);
            self.ledger.nics.push(nic);
        }
        let mut machine = self.wanted.machine;
        machine.rare.first_cpus = Some(machine.cpu.count());
        // Ports are made anew with each start; devices find their places in them.
        machine.ports = Ports { total: 0, ..self.ports };
        let machine = match place_all(machine) {
            Ok(machine) => machine,
            Err(error) => return blocked("InvalidSpec", error.to_string()),
        };
        let (machine, cold) = match &self.resume_from {
            None => (machine, None),
            Some(content) => {
                let snapshots = needs.dir.with_file_name("snapshots");
                match memory::resume(&memory::dir_of(&snapshots, content), &machine) {
                    Ok(machine) => (machine, None),
                    Err(why) => (machine, Some(why)),
                }
            }
        };
        Ok(Parts { machine, taps, ledger: self.ledger, cold })
    }

    /// What the machine has for itself alone.
    fn allot(&mut self, needs: &Needs, running: &[Arc<MachineSpec>]) -> Result<(), NotYet> {
        let rare = &mut self.wanted.machine.rare;
        let own = match needs.allotments.of(&self.ledger.uid, &self.vm_uid, self.wanted.dedicated, running) {
            Ok(own) => own,
            Err(message) => return blocked("InsufficientCPU", message),
        };
        if self.wanted.numa && Path::new("/sys/devices/system/node/node1").exists() {
            let message = "spec.domain.cpu.numa.guestMappingPassthrough: this node has several NUMA nodes, and mapping them is not \
                           supported yet; remove it to run this machine here";
            return blocked("InvalidSpec", message);
        }
        rare.user = process::user::can_change().then_some(own.user);
        rare.sockets = needs.volumes.sockets().filter(|dir| dir.is_dir());
        rare.vsock_cid = self.wanted.vsock.then(|| own.cid());
        rare.pinned = own.cpus;
        Ok(())
    }

    /// What the instance asks for.
    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// The wish for a disk.
    pub(super) fn disk(&self, name: &str) -> Option<DiskWish> {
        self.wanted.disks.iter().find(|w| w.drive.name == name).cloned()
    }

    /// The wish for a NIC.
    pub(super) fn nic(&self, name: &str) -> Option<convert::NicWish> {
        self.wanted.nics.iter().find(|w| w.card.name == name).cloned()
    }

    fn check_claims(&self, needs: &Needs) -> Result<(), NotYet> {
        for claim in &self.ledger.claims {
            let Some(pvc) = needs.claims.get(&ObjectKey::new(self.namespace.clone(), claim.clone())) else {
                let message = missing("PersistentVolumeClaim", &self.namespace, claim);
                return blocked("FailedPvcNotFound", message);
            };
            let phase = pvc.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
            if phase != "Bound" {
                // Who provides the volume says in a condition what it waits for.
                let conditions =
                    pvc.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
                let why = conditions.iter().find(|c| c.status == "False").and_then(|c| c.message.as_deref());
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                let message = format!(
                    "PersistentVolumeClaim {}/{claim} is {phase}, not Bound yet{why}",
                    self.namespace
                );
                return blocked("PVCNotReady", message);
            }
        }
        Ok(())
    }

    /// The networks of all NICs, resolved.
    pub(super) fn nic_targets(&self, needs: &Needs) -> Result<Vec<LedgerNic>, NotYet> {
        self.wanted.nics.iter().map(|nic| self.nic_target(nic, needs)).collect()
    }

    /// The network of a NIC, resolved.
    pub(super) fn nic_target(&self, nic: &convert::NicWish, needs: &Needs) -> Result<LedgerNic, NotYet> {
        {
            let (bridge, vlan) = match &nic.network {
                NetworkWish::Management => (None, None),
                NetworkWish::Definition { namespace, name } => {
                    let key = ObjectKey::new(namespace.clone(), name.clone());
                    let Some(definition) = needs.definitions.get(&key) else {
                        return blocked(
                            "FailedNetworkNotFound",
                            missing("NetworkAttachmentDefinition", namespace, name),
                        );
                    };
                    let of = format!("NetworkAttachmentDefinition {namespace}/{name}: spec.config");
                    let conf = match NetConf::parse(&definition.spec.config) {
                        Ok(conf) => conf,
                        Err(error) => return blocked("InvalidNetwork", format!("{of}: {error}")),
                    };
                    if conf.plugin != "bridge" {
                        let why = format!("{of}: type {:?} is not supported; use \"bridge\"", conf.plugin);
                        return blocked("InvalidNetwork", why);
                    }
                    (Some(conf.bridge), conf.vlan.filter(|v| *v != 0))
                }
            };
            Ok(LedgerNic {
                name: nic.card.name.clone(),
                mac: nic.mac,
                bridge,
                vlan,
                hostname: self.wanted.hostname.clone(),
                tap: String::new(),
                queues: nic.card.tuning.queues.unwrap_or(1),
            })
        }
    }

    /// A drive with what shall be in it.
    pub(super) async fn drive(
        &self,
        wish: DiskWish,
        needs: &Needs,
    ) -> Result<sheaf_qemu::spec::Disk, NotYet> {
        let mut drive = wish.drive;
        let dir = self.wanted.machine.dir.clone();
        let own = |suffix: &str| dir.join(format!("disk-{}.{suffix}", drive.name));
        let mut probe = None;
        let source = match wish.content {
            Content::Nothing => None,
            Content::Claim(claim) => {
                let (source, read_only) = self.attach(&claim, needs).await?;
                drive.read_only |= read_only;
                if let Source::Raw(path) | Source::Qcow2(path) = &source {
                    probe = Some(path.clone());
                }
                Some(source)
            }
            Content::Ephemeral(claim) => {
                let (below, _) = self.attach(&claim, needs).await?;
                let top = own("qcow2");
                make_dir(&dir).await?;
                overlay(&below, &top).await?;
                Some(Source::Qcow2(top))
            }
            Content::Empty(bytes) => {
                let file = own("img");
                make_dir(&dir).await?;
                let make = std::fs::File::create(&file).and_then(|f| f.set_len(bytes));
                make.map_err(|e| failed(format!("cannot make {}", file.display()), &e))?;
                Some(Source::Raw(file))
            }
            Content::CloudInit(kind, volume) => {
                let user = self.named_secret(needs, volume.secret_ref.as_ref()).await?;
                let network = self.named_secret(needs, volume.network_data_secret_ref.as_ref()).await?;
                let made = cloudinit::files(kind, &volume, user.as_ref(), network.as_ref(), &self.inputs);
                let (label, files) = match made {
                    Ok(made) => made,
                    Err(why) => return blocked("InvalidSpec", format!("volume {:?}: {why}", drive.name)),
                };
                let file = own("iso");
                write_iso(&dir, &file, label, &files).await?;
                Some(Source::Raw(file))
            }
            Content::Facts(facts) => {
                let file = own("iso");
                let files: Vec<_> = facts.into_iter().map(|(n, text)| (n, text.into_bytes())).collect();
                write_iso(&dir, &file, "cfgdata", &files).await?;
                Some(Source::Raw(file))
            }
            Content::ServiceAccount(account) => {
                let file = own("iso");
                let files = account_files(needs, &self.namespace, &account).await?;
                write_iso(&dir, &file, "cfgdata", &files).await?;
                Some(Source::Raw(file))
            }
            Content::Files { source, optional, label } => {
                let (kind, name, data) = match source {
                    FilesSource::Secret(name) => {
                        let data = secret_data(needs, &self.namespace, &name).await?;
                        ("Secret", name, data)
                    }
                    FilesSource::ConfigMap(name) => {
                        let data = config_data(needs, &self.namespace, &name).await?;
                        ("ConfigMap", name, data)
                    }
                };
                let data = match data {
                    Some(data) => data,
                    None if optional => Data::new(),
                    None => return blocked("FailedSourceNotFound", missing(kind, &self.namespace, &name)),
                };
                let file = own("iso");
                write_iso(&dir, &file, &label, &data.into_iter().collect::<Vec<_>>()).await?;
                Some(Source::Raw(file))
            }
        };
        if let (true, Some(path)) = (wish.cache_is_ours, probe) {
            // Past the host's cache where the file system can: guests have one of their own.
            let direct = tokio::task::spawn_blocking(move || opens_direct(&path)).await.unwrap_or(false);
            drive.cache = if direct { Cache::None } else { Cache::Writeback };
        }
        drive.source = source;
        Ok(drive)
    }

    async fn attach(&self, claim: &str, needs: &Needs) -> Result<(Source, bool), NotYet> {
        let what = format!("PersistentVolumeClaim {}/{claim}", self.namespace);
        let source =
            needs.volumes.attach(&self.namespace, claim).await.map_err(part(&what, "FailedAttachVolume"))?;
        Ok(match source {
            DiskSource::File { path, format: DiskFormat::Raw, read_only } => (Source::Raw(path), read_only),
            DiskSource::File { path, format: DiskFormat::Qcow2, read_only } => {
                (Source::Qcow2(path), read_only)
            }
            DiskSource::Nbd { socket } => (Source::Nbd(socket), false),
            DiskSource::VhostUser { socket } => (Source::VhostUser(socket), false),
        })
    }

    async fn named_secret(
        &self,
        needs: &Needs,
        reference: Option<&k8s_openapi::api::core::v1::LocalObjectReference>,
    ) -> Result<Option<Data>, NotYet> {
        let Some(name) = reference.map(|r| r.name.as_str()).filter(|n| !n.is_empty()) else {
            return Ok(None);
        };
        match secret_data(needs, &self.namespace, name).await? {
            Some(data) => Ok(Some(data)),
            None => blocked("FailedSecretNotFound", missing("Secret", &self.namespace, name)),
        }
    }

    async fn firmware(&mut self, uefi: convert::Uefi, needs: &Needs) -> Result<(), NotYet> {
        let found = OVMF.iter().find(|(code, vars, s)| {
            *s == uefi.secure_boot && Path::new(code).exists() && Path::new(vars).exists()
        });
        let Some((code, vars, _)) = found else {
            let message = "this node has no UEFI firmware; install the Debian package ovmf";
            return blocked("FirmwareMissing", message);
        };
        let dir = match uefi.persistent {
            true => state_dir(&needs.dir, &self.vm_uid),
            false => self.wanted.machine.dir.clone(),
        };
        make_dir(&dir).await?;
        let own = dir.join("OVMF_VARS.fd");
        // What the guest wrote last time stays, if it is to.
        if !(uefi.persistent && own.exists()) {
            let new = dir.join("OVMF_VARS.fd.new");
            let copied = tokio::fs::copy(vars, &new).await;
            copied.map_err(|e| failed(format!("cannot copy {vars}"), &e))?;
            let renamed = tokio::fs::rename(&new, &own).await;
            renamed.map_err(|e| failed(format!("cannot make {}", own.display()), &e))?;
        }
        let secure_boot = uefi.secure_boot;
        self.wanted.machine.firmware = Firmware::Uefi { code: code.into(), vars: own, secure_boot };
        Ok(())
    }

    /// Licence tables, from volumes that are secrets.
    async fn acpi_tables(&mut self, needs: &Needs) -> Result<(), NotYet> {
        for (signature, volume, key) in self.wanted.acpi_tables.clone() {
            let found = self.wanted.acpi_secrets.get(&volume).cloned();
            let Some(secret) = found else { continue };
            let Some(data) = secret_data(needs, &self.namespace, &secret).await? else {
                return blocked("FailedSecretNotFound", missing("Secret", &self.namespace, &secret));
            };
            let Some(table) = data.get(key) else {
                let message = format!("Secret {}/{secret} has no key {key}, the ACPI table", self.namespace);
                return blocked("InvalidSpec", message);
            };
            let dir = self.wanted.machine.dir.clone();
            make_dir(&dir).await?;
            let file = dir.join(key);
            let written = tokio::fs::write(&file, table).await;
            written.map_err(|e| failed(format!("cannot write {}", file.display()), &e))?;
            self.wanted.machine.rare.acpi_tables.push((signature.into(), file));
        }
        Ok(())
    }
}

impl Parts {
    /// Starts QEMU.
    pub(super) async fn start(self, needs: &Needs) -> Result<Started, NotYet> {
        let Self { machine, taps, ledger, cold } = self;
        let record = Record::new(machine, json!(ledger));
        let qemu = needs.qemu.clone();
        let spawned = tokio::task::spawn_blocking(move || process::spawn(&qemu, record, &taps)).await;
        match spawned {
            Ok(Ok(started)) => {
                Ok(Started { process: started.process, machine: started.record.machine, ledger, cold })
            }
            Ok(Err(SpawnError::Spec(error))) => blocked("InvalidSpec", error.to_string()),
            Ok(Err(error)) => Err(failed("cannot start QEMU".into(), &error)),
            Err(error) => Err(failed("cannot start QEMU".into(), &error)),
        }
    }
}

/// The claims that an instance names.
pub(super) fn claims(vmi: &kv::VirtualMachineInstance) -> Vec<String> {
    let mut out = Vec::new();
    for v in &vmi.spec.volumes {
        let direct = v.persistent_volume_claim.as_ref().map(|c| &c.claim_name);
        let through = v.data_volume.as_ref().map(|d| &d.name);
        let below =
            v.ephemeral.as_ref().and_then(|e| e.persistent_volume_claim.as_ref()).map(|c| &c.claim_name);
        out.extend(direct.or(through).or(below).cloned());
    }
    out
}

fn missing(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name} does not exist; create it, and the machine starts")
}

async fn secret_data(needs: &Needs, namespace: &str, name: &str) -> Result<Option<Data>, NotYet> {
    let api: Api<Secret> = Api::namespaced(needs.client.clone(), namespace);
    let secret =
        api.get_opt(name).await.map_err(|e| failed(format!("cannot read Secret {namespace}/{name}"), &e))?;
    Ok(secret.map(|s| {
        let mut data: Data = s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
        data.extend(s.string_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())));
        data
    }))
}

async fn config_data(needs: &Needs, namespace: &str, name: &str) -> Result<Option<Data>, NotYet> {
    let api: Api<ConfigMap> = Api::namespaced(needs.client.clone(), namespace);
    let map = api
        .get_opt(name)
        .await
        .map_err(|e| failed(format!("cannot read ConfigMap {namespace}/{name}"), &e))?;
    Ok(map.map(|m| {
        let mut data: Data =
            m.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())).collect();
        data.extend(m.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)));
        data
    }))
}

/// What a process of a service account finds in its directory: a token for an hour, the CA and the namespace.
async fn account_files(
    needs: &Needs,
    namespace: &str,
    account: &str,
) -> Result<Vec<(String, Vec<u8>)>, NotYet> {
    let api: Api<ServiceAccount> = Api::namespaced(needs.client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let made = api.create_token_request(account, &kube::api::PostParams::default(), &request).await;
    let token = match made {
        Ok(made) => made.status.and_then(|s| s.token).unwrap_or_default(),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return blocked("FailedSourceNotFound", missing("ServiceAccount", namespace, account));
        }
        Err(e) => {
            return Err(failed(format!("cannot get a token of ServiceAccount {namespace}/{account}"), &e));
        }
    };
    let ca = config_data(needs, namespace, "kube-root-ca.crt").await?.unwrap_or_default();
    let mut files = vec![
        ("token".to_owned(), token.into_bytes()),
        ("namespace".to_owned(), namespace.as_bytes().to_vec()),
    ];
    files.extend(ca.get("ca.crt").map(|ca| ("ca.crt".to_owned(), ca.clone())));
    Ok(files)
}

async fn make_dir(dir: &Path) -> Result<(), NotYet> {
    let made = tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).await;
    made.map_err(|e| failed(format!("cannot make {}", dir.display()), &e))
}

async fn write_iso(dir: &Path, file: &Path, label: &str, files: &[(String, Vec<u8>)]) -> Result<(), NotYet> {
    let image = match iso::image(label, files) {
        Ok(image) => image,
        Err(error) => return blocked("InvalidSpec", format!("the disk labelled {label}: {error}")),
    };
    make_dir(dir).await?;
    let path = file.to_owned();
    let write = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        // It may hold passwords.
        let _ = std::fs::remove_file(&path);
        let mut f = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        f.write_all(&image)
    });
    match write.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(format!("cannot write {}", file.display()), &error)),
        Err(error) => Err(failed(format!("cannot write {}", file.display()), &error)),
    }
}

async fn overlay(below: &Source, top: &Path) -> Result<(), NotYet> {
    let (format, path) = match below {
        Source::Raw(path) => ("raw", path.as_os_str().to_owned()),
        Source::Qcow2(path) => ("qcow2", path.as_os_str().to_owned()),
        Source::Nbd(_) | Source::VhostUser(_) => {
            return blocked("InvalidSpec", "an ephemeral volume needs a claim that is a file on this node");
        }
    };
    let _ = tokio::fs::remove_file(top).await;
    let out = tokio::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .arg(path)
        .arg(top)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| failed("cannot run qemu-img".into(), &e))?;
    if out.status.success() {
        return Ok(());
    }
    let said = std::io::Error::other(String::from_utf8_lossy(&out.stderr).trim().to_string());
    Err(failed("qemu-img cannot make the layer of an ephemeral volume".into(), &said))
}

fn opens_direct(path: &Path) -> bool {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

/// What of the node's memory can be had, in bytes.
pub(super) fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<u64> {
        text.lines().find(|l| l.starts_with(key))?.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    kib("MemAvailable:").unwrap_or(u64::MAX >> 10) << 10
}

/// Removes a machine's directory.
pub(super) async fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
