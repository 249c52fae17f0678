//! What the loop does for a machine that runs, besides reporting on it: brings it closer to its instance's spec, starts its
//! probes, puts credentials in place. A part of [`Control`], which owns what is remembered of it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;
use sheaf_api::kubevirt::{self as kv, VirtualMachineInstance};
use sheaf_runtime::{ObjectKey, Severity, StepError};
use tracing::info;

use super::change::{Progress, Workpiece};
use super::control::{Control, LOOK_AGAIN, lock, uid};
use super::credentials;
use super::ledger::Ledger;
use super::live::{Change, Now, claim_of, plan_changes};
use super::plan::PORTS;
use super::probes;
use super::start::{NotYet, Plan};
use super::status::LiveState;
use super::table::Entry;

/// What a guest was asked for is looked at again after this, should QEMU not tell.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Everything is put in place again after this.
const PLACE_AGAIN: Duration = Duration::from_secs(300);

/// Credentials that were put in place in a guest.
#[derive(Debug, Clone, Default)]
pub(super) struct Placed {
    /// Of what is in place.
    digest: Option<String>,
    /// When it was put there.
    since: Option<std::time::Instant>,
    /// Why it is not.
    pub(super) problem: Option<String>,
    /// When to look again.
    next: Option<std::time::Instant>,
}

impl Control {
    /// Brings a running machine closer to what its instance says. Gives the time after which to look again, if a guest was
    /// asked for something or something could not be had.
    pub(super) async fn live(
        &self,
        vmi: &VirtualMachineInstance,
        entry: &Entry,
    ) -> Result<Option<Duration>, StepError> {
        let uid = uid(vmi);
        let Some((machine, qmp)) = entry.machine.as_ref().and_then(|m| Some((m, m.qmp()?))) else {
            return Ok(None);
        };
        let mut state = LiveState::default();
        let plan = match Plan::new(vmi, &self.dir.join(&uid)) {
            Ok(plan) => plan,
            Err(NotYet::Blocked(problem) | NotYet::Failed(problem)) => {
                state.problems.insert("spec".into(), problem.message);
                lock(&self.live).insert(uid, state);
                return Ok(None);
            }
        };
        let mut targets = BTreeMap::new();
        for wish in &plan.wanted().nics {
            match plan.nic_target(wish, &self.needs) {
                Ok(target) => drop(targets.insert(wish.card.name.clone(), target)),
                Err(NotYet::Blocked(problem) | NotYet::Failed(problem)) => {
                    state.problems.insert(format!("nic {}", wish.card.name), problem.message);
                }
            }
        }
        let Ok(devices) = qmp.devices().await else { return Ok(None) };
        let growths = self.growths(&entry.ledger);
        let spec = machine.spec();
        let now = Now { machine: &spec, ledger: &entry.ledger, devices: &devices, growths: &growths };
        let changes = plan_changes(plan.wanted(), &targets, &now);
        let mut look_again = None;
        if !changes.is_empty() {
            let mut piece = Workpiece {
                machine,
                qmp,
                spec: (*spec).clone(),
                ledger: entry.ledger.clone(),
                plan,
                needs: &self.needs,
            };
            for change in &changes {
                if self.waits_for_claim(&piece, change) {
                    // The status says so; that a claim is being made is no reason to worry anybody.
                    continue;
                }
                match piece.apply(change).await {
                    Ok(Progress::Done) => {
                        info!(machine = %ObjectKey::of(vmi), ?change, "changed while running")
                    }
                    Ok(Progress::Asked) => {
                        state.asked.insert(change.about());
                    }
                    Err(error) => {
                        info!(machine = %ObjectKey::of(vmi), ?change, %error, "not changed");
                        state.problems.insert(change.about(), error.to_string());
                    }
                }
                self.machines.update_ledger(&piece.ledger);
            }
            // What was done may open the way for what was not planned yet, as a disc after another.
            look_again = Some(if state.problems.is_empty() { ASK_AGAIN } else { LOOK_AGAIN });
        }
        let before = lock(&self.live).insert(uid, state.clone());
        for (about, message) in &state.problems {
            if before.as_ref().and_then(|b| b.problems.get(about)) != Some(message) {
                let reason = if about.starts_with("disk") { "FailedHotplugSync" } else { "SyncFailed" };
                self.events.record(vmi, Severity::Warning, reason, format!("{about}: {message}"));
            }
        }
        Ok(look_again)
    }

    /// Whether a change wants a claim that is not bound yet.
    fn waits_for_claim(&self, piece: &Workpiece<'_>, change: &Change) -> bool {
        let (Change::PlugDisk(name) | Change::Insert(name)) = change else { return false };
        let Some(wish) = piece.plan.disk(name) else { return false };
        let Some(claim) = claim_of(&wish) else { return false };
        !self.bound_claim(&piece.ledger.namespace, claim)
    }

    /// Whether a claim is there, and bound.
    pub(super) fn bound_claim(&self, namespace: &str, claim: &str) -> bool {
        let found = self.needs.claims.get(&ObjectKey::new(namespace, claim));
        found.is_some_and(|pvc| pvc.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound"))
    }

    /// Starts the probes of a machine that has some, once.
    pub(super) fn begin_probes(&self, vmi: &VirtualMachineInstance, entry: &Entry) {
        let (ready, live) = (&vmi.spec.readiness_probe, &vmi.spec.liveness_probe);
        let (uid, Some(machine)) = (uid(vmi), &entry.machine) else { return };
        if (ready.is_none() && live.is_none()) || lock(&self.probes).contains_key(&uid) {
            return;
        }
        let begin = |probe: &kv::Probe, lethal: bool| {
            let (machines, network, key) =
                (self.machines.clone(), self.needs.network.clone(), entry.ledger.key());
            let (waker, of) = (lock(&self.waker).clone(), key.clone());
            let address = move || machines.address(&key.namespace, &key.name, network.as_ref());
            let changed = move || {
                if let Some(waker) = &waker {
                    waker.wake(of.clone());
                }
            };
            probes::watch(machine, probe.clone(), address, lethal, changed, &self.group)
        };
        let both = [ready.as_ref().map(|p| begin(p, false)), live.as_ref().map(|p| begin(p, true))];
        lock(&self.probes).insert(uid, both);
    }

    /// Puts credentials in place that the guest's agent is to have. Gives the time after which to look again.
    pub(super) async fn place_credentials(
        &self,
        vmi: &VirtualMachineInstance,
        entry: &Entry,
    ) -> Option<Duration> {
        let machine = entry.machine.as_ref().filter(|_| credentials::wanted(vmi))?;
        if !machine.seen().guest.connected {
            return None;
        }
        let uid = uid(vmi);
        let before = lock(&self.credentials).get(&uid).cloned().unwrap_or_default();
        let now = std::time::Instant::now();
        if let Some(next) = before.next.filter(|next| *next > now) {
            return Some(next - now);
        }
        let fresh = before.since.is_some_and(|s| now.duration_since(s) < PLACE_AGAIN);
        let digest = before.digest.as_deref().filter(|_| fresh);
        let (client, all) = (&self.needs.client, &vmi.spec.access_credentials);
        let done =
            credentials::sync(client, &entry.ledger.namespace, all, machine.guest_agent(), digest).await;
        let placed = match done {
            Ok(digest) => Placed {
                since: if before.digest.as_ref() == Some(&digest) && fresh {
                    before.since
                } else {
                    Some(now)
                },
                digest: Some(digest),
                problem: None,
                next: Some(now + credentials::LOOK),
            },
            Err(why) => {
                Placed { problem: Some(why), next: Some(now + credentials::LOOK), ..Placed::default() }
            }
        };
        if placed.problem != before.problem || placed.digest.is_some() != before.digest.is_some() {
            match &placed.problem {
                Some(why) => {
                    self.events.record(vmi, Severity::Warning, "AccessCredentialsSyncFailed", why.clone())
                }
                None => self.events.record(
                    vmi,
                    Severity::Normal,
                    "AccessCredentialsSyncSuccess",
                    "Access credentials sync successful.",
                ),
            }
        }
        lock(&self.credentials).insert(uid, placed);
        Some(credentials::LOOK)
    }

    /// Claims in a machine's disks that ask for more than they have.
    pub(super) fn growths(&self, ledger: &Ledger) -> BTreeMap<String, u64> {
        let more = |claim: &&String| {
            let pvc = self.needs.claims.get(&ObjectKey::new(ledger.namespace.clone(), (*claim).clone()))?;
            let bytes = |map: Option<&BTreeMap<String, Quantity>>| {
                sheaf_meta::quantity::Quantity::parse(&map?.get("storage")?.0).ok()?.bytes()
            };
            let spec = pvc.spec.as_ref()?.resources.as_ref()?;
            let (asked, has) =
                (bytes(spec.requests.as_ref())?, bytes(pvc.status.as_ref()?.capacity.as_ref())?);
            (asked > has).then_some((*claim).clone()).zip(Some(asked.div_ceil(4096) * 4096))
        };
        ledger.drives.values().filter_map(|claim| more(&claim)).collect()
    }

    /// Writes down where the devices sit, for the next run.
    pub(super) async fn keep_ports(
        &self,
        vmi: &VirtualMachineInstance,
        entry: &Entry,
    ) -> Result<(), StepError> {
        let Some(machine) = &entry.machine else { return Ok(()) };
        let text = json!(machine.spec().ports).to_string();
        if super::plan::annotation(vmi, PORTS) != Some(text.as_str()) {
            self.annotate(vmi, PORTS, &text).await?;
        }
        Ok(())
    }
}
