//! The loop itself: looks at one instance, takes one step, writes its status.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_api::cni::NetworkAttachmentDefinition;
use sheaf_api::kubevirt::{self as kv, VirtualMachineInstance};
use sheaf_qemu::accel;
use sheaf_runtime::patch::{self, Target};
use sheaf_runtime::{
    Controller, Driver, EventRecorder, Index, Informer, Next, ObjectKey, Selection, Severity, StepError,
    TaskGroup, Waker,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::allot::{Allotments, bind_process, common};
use super::care::Placed;
use super::monitor::{Begin, End, Pause, Run, watch_machine};
use super::plan::{FINALIZER, Local, PAUSE, SOFT_REBOOT_DONE, Snapshot, Step, is_final, plan_machine};
use super::probes::Probe;
use super::start::{Needs, NotYet, Plan, available_memory, claims, remove_dir};
use super::status::{Facts, LiveState, Problem, end_text, io_error_text, with_status};
use super::table::{Entry, Machines};
use crate::parts::{Network, PartError, VolumeBackend};

const MANAGER: &str = "sheaf-machines";
/// Upstream's reason of the event that tells of a failed disk.
const IO_ERROR: &str = "IOerror";
/// Machines that are started or reported at the same time.
const WORKERS: usize = 8;
/// What is missing and not watched (a secret, memory) is looked for again after this.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// What the loop is given.
pub struct MachinesConfig {
    /// Name of this node.
    pub node: String,
    /// Where machines have their directories: `<data>/agent/machines`.
    pub dir: PathBuf,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// Instances with the label `kubevirt.io/nodeName` of this node.
    pub instances: Arc<Informer<VirtualMachineInstance>>,
    /// Those by the claims that they name.
    pub users: Arc<Index<ObjectKey>>,
    /// All claims.
    pub claims: Arc<Informer<PersistentVolumeClaim>>,
    /// The node's networks.
    pub network: Arc<dyn Network>,
    /// The node's volumes.
    pub volumes: Arc<dyn VolumeBackend>,
}

impl std::fmt::Debug for MachinesConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachinesConfig")
            .field("node", &self.node)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Starts the loop: adopts what runs, then follows the API. The receiver hears when adoption is complete, which is
/// before the first machine is started.
pub fn spawn(
    client: &Client,
    config: MachinesConfig,
    group: &TaskGroup,
) -> (Machines, oneshot::Receiver<()>) {
    let (vmis, claims_cache) = (config.instances.clone(), config.claims.clone());
    let definitions: Arc<Informer<NetworkAttachmentDefinition>> =
        Informer::spawn(client, group, &Selection::all());
    let machines = Machines::default();
    let needs = Needs {
        client: client.clone(),
        claims: claims_cache.clone(),
        definitions: definitions.clone(),
        network: config.network.clone(),
        volumes: config.volumes.clone(),
        qemu: config.qemu.clone(),
        dir: config.dir.clone(),
        accel: accel::Facts::gather(),
        allotments: Allotments::default(),
    };
    info!(
        kvm = needs.accel.kvm(),
        "guests run by {}",
        if needs.accel.kvm() { "KVM" } else { "emulation (TCG)" }
    );
    let control = Arc::new(Control {
        node: config.node.clone(),
        dir: config.dir.clone(),
        machines: machines.clone(),
        vmis: vmis.clone(),
        users: config.users.clone(),
        needs,
        events: EventRecorder::spawn(client, group, "virt-handler", &config.node),
        problems: Mutex::default(),
        live: Mutex::default(),
        probes: Mutex::default(),
        credentials: Mutex::default(),
        dumps: Mutex::default(),
        told: Mutex::default(),
        over: Mutex::default(),
        waker: Mutex::default(),
        bound: Mutex::default(),
        group: group.clone(),
    });
    let driver = Driver::new(Shared(control.clone())).workers(WORKERS).for_each(&vmis);
    let (c, d) = (control.clone(), control.clone());
    let driver = driver
        .on(&claims_cache, move |claim| c.users.users(&ObjectKey::of(&**claim)))
        .on(&definitions, move |_| d.all_keys());
    let resync = control.clone();
    let driver = driver.resync(Duration::from_secs(300), move || resync.all_keys());
    let waker = driver.waker();
    *lock(&control.waker) = Some(waker.clone());

    let (adopted_tx, adopted) = oneshot::channel();
    let (network, dir, inner, table) = (config.network, config.dir, group.clone(), machines.clone());
    let (volumes, all, client) = (config.volumes, control, client.clone());
    group.spawn(async move {
        let states = super::states::states_dir(&dir);
        table.adopt(dir, network.as_ref(), &inner, &waker).await;
        super::states::spawn(&client, states, table.clone(), &inner);
        let _ = adopted_tx.send(());
        driver.spawn(&inner);
        let held = table.held_claims();
        inner.spawn(async move {
            // Tells the storage what is in use; apart, as it may have to wait for the API.
            for (namespace, claim) in held {
                if let Err(error) = volumes.attach(&namespace, &claim).await {
                    warn!(namespace, claim, %error, "the volume of a running machine is not known to the storage");
                }
            }
        });
        let (mut leases, mut links) = (network.leases_changed(), network.status());
        loop {
            let keys = tokio::select! {
                Ok(()) = leases.changed() => table.keys(),
                // What is not started yet may have waited for its network.
                Ok(()) = links.changed() => all.all_keys(),
                else => break,
            };
            for key in keys {
                waker.wake(key);
            }
        }
    });
    (machines, adopted)
}

struct Shared(Arc<Control>);

impl Controller for Shared {
    const NAME: &'static str = "machines";
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        self.0.look(key).await
    }
}

pub(super) struct Control {
    pub(super) node: String,
    pub(super) dir: PathBuf,
    pub(super) machines: Machines,
    pub(super) vmis: Arc<Informer<VirtualMachineInstance>>,
    users: Arc<Index<ObjectKey>>,
    pub(super) needs: Needs,
    pub(super) events: EventRecorder,
    /// Why an instance was not started, by its UID.
    pub(super) problems: Mutex<BTreeMap<String, Problem>>,
    /// What of a running machine is not as its instance says, and why, by UID.
    pub(super) live: Mutex<BTreeMap<String, LiveState>>,
    /// Probes that run: readiness and liveness, by UID.
    pub(super) probes: Mutex<BTreeMap<String, [Option<Probe>; 2]>>,
    /// Dumps of guests' memory, by UID.
    pub(super) dumps: Mutex<BTreeMap<String, super::dump::Dump>>,
    /// Credentials that were put in place, by UID.
    pub(super) credentials: Mutex<BTreeMap<String, Placed>>,
    /// Events that were recorded, by UID, so that each is told once.
    pub(super) told: Mutex<BTreeSet<(String, &'static str)>>,
    /// UIDs whose machines have ended and were cleaned up: the cache may still say that they are to be started.
    pub(super) over: Mutex<BTreeSet<String>>,
    pub(super) waker: Mutex<Option<Waker>>,
    /// The processors that machines without their own are bound to, if some have their own.
    pub(super) bound: Mutex<Option<Vec<u32>>>,
    pub(super) group: TaskGroup,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn uid(vmi: &VirtualMachineInstance) -> String {
    vmi.metadata.uid.clone().unwrap_or_default()
}

fn unborn(local: &Local) -> bool {
    matches!(local, Local::Own(seen) if seen.run == Run::Ended(End::Unborn))
}

impl Control {
    fn all_keys(&self) -> Vec<ObjectKey> {
        let mut keys = self.machines.keys();
        keys.extend(self.vmis.list().iter().map(|v| ObjectKey::of(&**v)));
        keys
    }

    fn ours(&self, key: &ObjectKey) -> Option<Arc<VirtualMachineInstance>> {
        let vmi = self.vmis.get(key)?;
        let node = vmi.status.as_ref().map_or("", |s| s.node_name.as_str());
        (node == self.node).then_some(vmi)
    }

    fn problem(&self, uid: &str) -> Option<Problem> {
        lock(&self.problems).get(uid).cloned()
    }

    fn set_problem(&self, uid: &str, problem: Option<Problem>) {
        let mut problems = lock(&self.problems);
        match problem {
            Some(problem) => drop(problems.insert(uid.into(), problem)),
            None => drop(problems.remove(uid)),
        }
    }

    fn tell(&self, vmi: &VirtualMachineInstance, severity: Severity, reason: &'static str, message: &str) {
        let fresh = lock(&self.told).insert((uid(vmi), reason));
        if fresh {
            self.events.record(vmi, severity, reason, message);
        }
    }

    fn forget(&self, uid: &str) {
        self.set_problem(uid, None);
        lock(&self.live).remove(uid);
        lock(&self.probes).remove(uid);
        lock(&self.credentials).remove(uid);
        lock(&self.dumps).remove(uid);
        lock(&self.told).retain(|(u, _)| u != uid);
    }

    fn api(&self, namespace: &str) -> Api<VirtualMachineInstance> {
        Api::namespaced(self.needs.client.clone(), namespace)
    }

    async fn look(self: &Arc<Self>, key: &ObjectKey) -> Result<Next, StepError> {
        let vmi = self.ours(key);
        let entry = self.machines.entry(key);
        let local = match (&entry, &vmi) {
            (None, _) => Local::Nothing,
            (Some(e), Some(v)) if e.ledger.uid != uid(v) => Local::Other(e.seen()),
            (Some(e), _) => Local::Own(e.seen()),
        };
        let step = plan_machine(Timestamp::now(), &Snapshot { vmi: vmi.as_deref(), local: local.clone() });
        if step == Step::Start && vmi.as_ref().is_some_and(|v| lock(&self.over).contains(&uid(v))) {
            return Ok(Next::Done);
        }
        let mut entry = entry;
        let mut look_again = None;
        if let (Step::Leave, Local::Own(seen), Some(vmi), Some(own)) = (&step, &local, &vmi, &entry)
            && matches!(seen.run, Run::Running | Run::Paused(_))
            && seen.stopping.is_none()
        {
            look_again = self.live(vmi, own).await?;
            self.begin_probes(vmi, own);
            if let Some(machine) = &own.machine {
                self.dump(vmi, machine).await;
            }
            if let Some(wait) = self.place_credentials(vmi, own).await {
                look_again = Some(look_again.map_or(wait, |other| other.min(wait)));
            }
            entry = self.machines.entry(key);
        }
        // What is over is reported before its parts are given up: then a restart in between forgets nothing.
        // A machine that never began is not over.
        if let Some(vmi) = &vmi
            && step != Step::Start
            && !unborn(&local)
        {
            self.report(vmi, &local, entry.as_ref()).await?;
        }
        match (self.take(step, key, vmi.as_deref(), entry).await?, look_again) {
            (Next::Done, Some(wait)) => Ok(Next::After(wait)),
            (next, _) => Ok(next),
        }
    }

    async fn report(
        &self,
        vmi: &VirtualMachineInstance,
        local: &Local,
        entry: Option<&Entry>,
    ) -> Result<(), StepError> {
        let problem = self.problem(&uid(vmi));
        let live = lock(&self.live).get(&uid(vmi)).cloned().unwrap_or_default();
        let claims = self.claims_of(vmi);
        let spec = entry.and_then(|e| e.machine.as_ref()).map(|m| m.spec());
        let mut facts = Facts { problem: problem.as_ref(), live: Some(&live), claims, ..Facts::default() };
        match (local, entry) {
            (Local::Own(seen), Some(entry)) => {
                facts.seen = Some(seen);
                facts.machine = spec.as_deref();
                let probe = lock(&self.probes).get(&uid(vmi)).and_then(|p| p[0].clone());
                facts.readiness = probe.map(|p| p.verdict());
                let placed = lock(&self.credentials).get(&uid(vmi)).cloned();
                facts.credentials = placed.map(|p| p.problem.map_or(Ok(()), Err));
                facts.dump = lock(&self.dumps).get(&uid(vmi)).cloned();
                facts.frozen = entry.machine.as_ref().is_some_and(|m| m.frozen());
                facts.drives = Some(&entry.ledger.drives);
                facts.nics = entry.ledger.nics.iter().map(|n| (n, self.needs.network.lease(n.mac))).collect();
                self.events_of(vmi, &seen.run);
            }
            (Local::Other(_), _) => facts.waits_for_other = true,
            _ => {}
        }
        let after = with_status(vmi, &facts, Timestamp::now());
        let api = self.api(vmi.metadata.namespace.as_deref().unwrap_or("default"));
        match patch::write(&api, MANAGER, Target::Main, vmi, &after).await {
            Ok(_) => match (local, entry) {
                (Local::Own(_), Some(entry)) => self.keep_ports(vmi, entry).await,
                _ => Ok(()),
            },
            // The object went away meanwhile; its machine is dealt with when the cache knows.
            Err(StepError::Api { source: kube::Error::Api(status), .. }) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The claims of an instance, as far as they are known.
    fn claims_of(&self, vmi: &VirtualMachineInstance) -> BTreeMap<String, Arc<PersistentVolumeClaim>> {
        let namespace = vmi.metadata.namespace.clone().unwrap_or_default();
        let find = |name: String| {
            let claim = self.needs.claims.get(&ObjectKey::new(namespace.clone(), name.clone()))?;
            Some((name, claim))
        };
        claims(vmi).into_iter().filter_map(find).collect()
    }

    fn events_of(&self, vmi: &VirtualMachineInstance, run: &Run) {
        if let Run::Paused(Pause::IoError(disks)) = run {
            if !disks.is_empty() {
                self.tell(vmi, Severity::Warning, IO_ERROR, &io_error_text(disks));
            }
        } else {
            // The next failure is told again.
            lock(&self.told).remove(&(uid(vmi), IO_ERROR));
        }
        let phase = vmi.status.as_ref().map_or("", |s| s.phase.as_str());
        match run {
            // Told already, perhaps by an agent before us.
            Run::Running | Run::Paused(_) if phase == "Running" => {}
            Run::Ended(_) if is_final(phase) => {}
            Run::Starting => {}
            Run::Running | Run::Paused(_) => {
                self.tell(vmi, Severity::Normal, "Started", "VirtualMachineInstance started.");
            }
            Run::Ended(end) => {
                let severity = match end {
                    End::Shutdown => Severity::Normal,
                    _ => Severity::Warning,
                };
                self.tell(vmi, severity, "Stopped", &end_text(end));
            }
        }
    }

    async fn take(
        &self,
        step: Step,
        key: &ObjectKey,
        vmi: Option<&VirtualMachineInstance>,
        entry: Option<Entry>,
    ) -> Result<Next, StepError> {
        let machine = entry.as_ref().and_then(|e| e.machine.clone());
        match (step, vmi) {
            (Step::Start, Some(vmi)) => return self.start(vmi).await,
            (Step::Ask(ask), _) => {
                if let Some(Err(denied)) = match &machine {
                    Some(machine) => Some(machine.ask(ask).await),
                    None => None,
                } {
                    info!(machine = %key, ?ask, %denied, "not done");
                }
            }
            (Step::SoftReboot(at), Some(vmi)) => {
                // Written first: asked for once, done at most once.
                self.annotate(vmi, SOFT_REBOOT_DONE, &at).await?;
                if let Some(machine) = machine {
                    match machine.ask(super::requests::Ask::SoftReboot).await {
                        Ok(()) => self.events.record(
                            vmi,
                            Severity::Normal,
                            "SoftRebooted",
                            "VirtualMachineInstance soft rebooted",
                        ),
                        Err(denied) => info!(machine = %key, %denied, "no soft reboot"),
                    }
                }
            }
            (Step::PowerDown(_), None) if self.still_ours(key, entry.as_ref()).await? => {
                warn!(machine = %key, "the instance has lost its label kubevirt.io/nodeName; the machine goes on");
                return Ok(Next::After(LOOK_AGAIN * 10));
            }
            (Step::PowerDown(grace), vmi) => {
                if let Some(vmi) = vmi {
                    self.tell(vmi, Severity::Normal, "ShuttingDown", "Signaled Graceful Shutdown");
                }
                if let Some(machine) = machine {
                    let _ = machine.power_down(grace).await;
                }
            }
            (Step::CleanUp, _) => {
                if let Some(entry) = entry {
                    let l = &entry.ledger;
                    self.give_up(&l.namespace, &l.uid, &l.claims).await?;
                    if entry.seen().run != Run::Ended(End::Unborn) {
                        lock(&self.over).insert(l.uid.clone());
                    }
                    self.machines.remove(key);
                    self.forget(&l.uid);
                    self.spread();
                    // Now the object may go, or its successor start.
                    return Ok(Next::After(Duration::ZERO));
                }
            }
            (Step::Release, Some(vmi)) => {
                let namespace = vmi.metadata.namespace.as_deref().unwrap_or("default");
                self.give_up(namespace, &uid(vmi), &claims(vmi)).await?;
                self.release(vmi).await?;
                self.forget(&uid(vmi));
                lock(&self.over).remove(&uid(vmi));
            }
            _ => {}
        }
        Ok(Next::Done)
    }

    /// Whether the API has the instance of a machine, bound to this node, although the cache has not: nobody shall end
    /// a guest by editing a label.
    async fn still_ours(&self, key: &ObjectKey, entry: Option<&Entry>) -> Result<bool, StepError> {
        let found = self.api(&key.namespace).get_opt(&key.name).await;
        let found = found.map_err(StepError::api("looking for a VirtualMachineInstance"))?;
        Ok(found.zip(entry).is_some_and(|(vmi, entry)| {
            uid(&vmi) == entry.ledger.uid && vmi.status.is_some_and(|s| s.node_name == self.node)
        }))
    }

    async fn start(&self, vmi: &VirtualMachineInstance) -> Result<Next, StepError> {
        let (next, problem) = match self.try_start(vmi).await? {
            Ok(()) => (Next::Done, None),
            Err(NotYet::Blocked(problem)) => (Next::After(LOOK_AGAIN), Some(problem)),
            Err(NotYet::Failed(problem)) => (Next::After(LOOK_AGAIN), Some(problem)),
        };
        if let Some(problem) = &problem
            && self.problem(&uid(vmi)).as_ref() != Some(problem)
        {
            info!(machine = %ObjectKey::of(vmi), reason = problem.reason, "not started: {}", problem.message);
            // That a claim is being made is no reason to worry anybody.
            if problem.reason != "PVCNotReady" {
                self.events.record(vmi, Severity::Warning, problem.reason, problem.message.clone());
            }
        }
        let failed = problem.is_some();
        self.set_problem(&uid(vmi), problem);
        if failed {
            self.report(vmi, &Local::Nothing, None).await?;
        }
        Ok(next)
    }

    async fn try_start(&self, vmi: &VirtualMachineInstance) -> Result<Result<(), NotYet>, StepError> {
        let uid = uid(vmi);
        if uid.is_empty() || !uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            let message = format!("metadata.uid {uid:?} is no UID");
            return Ok(Err(NotYet::Blocked(Problem { reason: "InvalidSpec", message })));
        }
        let held = vmi.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        if !held {
            self.hold(vmi).await?;
            return Ok(Ok(()));
        }
        let dir = self.dir.join(&uid);
        let plan = match Plan::new(vmi, &dir) {
            Ok(plan) => plan,
            Err(not_yet) => return Ok(Err(not_yet)),
        };
        if plan.start_paused() && super::plan::annotation(vmi, PAUSE).is_none() {
            // From here on, the annotation says whether it is paused.
            self.annotate(vmi, PAUSE, "true").await?;
            return Ok(Ok(()));
        }
        let parts = match plan
            .gather(&self.needs, available_memory(), self.machines.promised(), &self.machines.specs())
            .await
        {
            Ok(parts) => parts,
            Err(not_yet) => return Ok(Err(not_yet)),
        };
        let started = match parts.start(&self.needs).await {
            Ok(started) => started,
            Err(not_yet) => return Ok(Err(not_yet)),
        };
        self.tell(vmi, Severity::Normal, "Created", "VirtualMachineInstance defined.");
        if let Some(why) = &started.cold {
            let text = format!("The guest starts anew instead of going on with its memory: {why}");
            self.tell(vmi, Severity::Warning, "MemoryNotRestored", &text);
        }
        let waker = lock(&self.waker).clone();
        let key = ObjectKey::of(vmi);
        let begin = Begin::Fresh { paused: started.ledger.paused };
        let (pid, nics) = (started.process.pid(), started.ledger.nics.len());
        info!(machine = %key, pid, disks = started.machine.disks.len(), nics, "QEMU started");
        let machine = watch_machine(started.machine, started.process, begin, &self.group, move || {
            if let Some(waker) = &waker {
                waker.wake(key.clone());
            }
        });
        let before = End::Unborn;
        self.machines.insert(Entry { ledger: started.ledger, machine: Some(machine), before });
        self.spread();
        Ok(Ok(()))
    }

    /// Keeps machines without processors of their own off those that are others'.
    fn spread(&self) {
        let specs = self.machines.specs();
        let bound = lock(&self.bound).clone();
        let free = common(&specs);
        let any = specs.iter().any(|m| !m.rare.pinned.is_empty());
        // Where nobody has processors of its own, and nobody had, there is nothing to do.
        if !any && bound.is_none() {
            return;
        }
        for (pid, spec) in self.machines.processes() {
            if spec.rare.pinned.is_empty()
                && let Err(error) = bind_process(pid, &free)
            {
                warn!(machine = spec.name, %error, "the machine may run on processors that are another's");
            }
        }
        *lock(&self.bound) = any.then_some(free);
    }

    /// Gives up everything that a machine may hold. Can be repeated.
    async fn give_up(&self, namespace: &str, uid: &str, claims: &[String]) -> Result<(), StepError> {
        let part = |what: String| move |e: PartError| StepError::Other { context: what, source: e.into() };
        self.needs.allotments.release(uid);
        let taps = self.needs.network.detach(uid).await;
        taps.map_err(part("giving up the machine's network".into()))?;
        let dumped = lock(&self.dumps).remove(uid).map(|dump| dump.claim);
        for claim in claims.iter().chain(&dumped) {
            match self.needs.volumes.detach(namespace, claim).await {
                // Nothing was attached, then.
                Ok(()) | Err(PartError::Missing(_)) => {}
                Err(error) => return Err(part(format!("giving up the claim {namespace}/{claim}"))(error)),
            }
        }
        if !uid.is_empty()
            && let Err(error) = remove_dir(&self.dir.join(uid)).await
        {
            warn!(uid, %error, "the machine's directory stays");
        }
        Ok(())
    }

    async fn patch(&self, vmi: &VirtualMachineInstance, patch: Value) -> Result<(), StepError> {
        let api = self.api(vmi.metadata.namespace.as_deref().unwrap_or("default"));
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let name = vmi.metadata.name.clone().unwrap_or_default();
        match api.patch(&name, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(StepError::api("writing a VirtualMachineInstance")(error)),
        }
    }

    pub(super) async fn annotate(
        &self,
        vmi: &VirtualMachineInstance,
        key: &str,
        value: &str,
    ) -> Result<(), StepError> {
        self.patch(vmi, json!({"metadata": {"annotations": {key: value}}})).await
    }

    async fn hold(&self, vmi: &VirtualMachineInstance) -> Result<(), StepError> {
        let mut finalizers = vmi.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER.into());
        let version = &vmi.metadata.resource_version;
        self.patch(vmi, json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})).await
    }

    async fn release(&self, vmi: &kv::VirtualMachineInstance) -> Result<(), StepError> {
        let finalizers: Vec<_> =
            vmi.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).collect();
        let version = &vmi.metadata.resource_version;
        self.patch(vmi, json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})).await
    }
}
