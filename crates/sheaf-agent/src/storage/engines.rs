//! Engines of this node: volumes attached, let go of, grown, with the replicas that they shall have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, Patch};
use serde_json::json;
use sheaf_api::longhorn::{Engine, NAMESPACE, OF_VOLUME, Snapshot, Volume};
use sheaf_plan::storage::{CHECK, CHECKED, FILL, REVERT, REVERTED, volume_id};
use sheaf_runtime::patch::{self, Target, gone};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};
use sheaf_storage::api::{Ask, VolumeStatus, base_snapshot, parse_volume};
use tracing::{info, warn};

use super::plan::{EngineSeen, EngineStep, engine_status, plan_engine};
use super::{Kind, MANAGER, Replicated, params};

const SOON: Duration = Duration::from_millis(500);
/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_secs(3);

struct Engines(Arc<Replicated>);

pub(super) fn spawn(shared: &Arc<Replicated>, group: &TaskGroup) {
    let s = shared.clone();
    let driver = Driver::new(Engines(shared.clone()))
        // An attach may take a while; others go on.
        .workers(8)
        .for_each(&shared.engines)
        .on(&shared.replicas, |replica| {
            let engine = replica.spec.engine_name.clone();
            if engine.is_empty() { Vec::new() } else { vec![ObjectKey::new(NAMESPACE, engine)] }
        })
        .on(&shared.volumes, |volume| {
            vec![ObjectKey::new(NAMESPACE, sheaf_plan::storage::engine_name(&volume.name_any()))]
        })
        .on(&shared.moments, move |moment| {
            let engine = sheaf_plan::storage::engine_name(&moment.spec.volume);
            let here = s.engines.get(&ObjectKey::new(NAMESPACE, engine)).filter(|e| e.spec.node_id == s.node);
            here.map(|e| ObjectKey::of(&*e)).into_iter().collect()
        });
    shared.add_waker(Kind::Engine, driver.waker());
    driver.spawn(group);
}

impl Controller for Engines {
    const NAME: &'static str = "engines";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let shared = &self.0;
        let Some(engine) = shared.engines.get(key) else { return Ok(Next::Done) };
        let volume = shared.volumes.get(&ObjectKey::new(NAMESPACE, &engine.spec.volume_name));
        let Some(id) = volume.as_deref().and_then(volume_id).map(str::to_owned) else {
            return Ok(Next::Done);
        };
        let Some(listed) = shared.listed() else {
            return Ok(if engine.spec.node_id == shared.node { Next::After(AGAIN) } else { Next::Done });
        };
        let found = listed.volumes.iter().find(|v| v.volume == id);
        let ours = engine.spec.node_id == shared.node;
        if !ours && found.is_none() {
            return Ok(Next::Done);
        }
        let nodes: BTreeMap<String, String> = shared
            .replicas
            .list()
            .iter()
            .filter(|r| r.spec.volume_name == engine.spec.volume_name)
            .map(|r| (r.name_any(), r.spec.node_id.clone()))
            .collect();
        let local = listed.replicas.iter().find(|r| r.volume == id && r.state == "open");
        let seen = EngineSeen {
            engine: &engine,
            id: &id,
            node: &shared.node,
            nodes: &nodes,
            found,
            local_bytes: local.map(|r| r.bytes),
            frontends: shared.frontends(&id),
            filling: Replicated::lock(&shared.filling).contains(&id),
        };
        let step = plan_engine(&seen);
        if ours {
            self.report(&seen).await?;
            if let Some(found) = found.filter(|f| f.phase == "serving") {
                self.adopt_moments(&engine, found).await?;
                let what = engine.annotations().get(FILL).cloned();
                if let Some(what) = what.filter(|_| engine.spec.desire_state == "running") {
                    shared.fill(&engine, &id, what);
                }
            }
        }
        if let (EngineStep::Report, Some(volume), Some(found)) = (&step, &volume, found)
            && ours
            && found.phase == "serving"
            && let Some(next) = self.asked(&engine, volume, &id, found).await?
        {
            return Ok(next);
        }
        match step {
            EngineStep::Report => Ok(Next::Done),
            EngineStep::Wait(why) => {
                tracing::debug!(engine = %key, why, "waits");
                Ok(Next::After(SOON * 2))
            }
            EngineStep::Ask(ask) => {
                let what = describe(&ask);
                let lost = found.is_some_and(|f| f.phase == "lost-unsynced");
                if matches!(ask, Ask::Attach(_))
                    && let Err(error) = shared.ways.open(&id)
                {
                    let socket = shared.socket(&id);
                    tracing::error!(socket = %socket.display(), %error, "a volume's socket has no place");
                }
                let detaches = matches!(ask, Ask::Detach { .. });
                let answer = shared.ask(ask).await;
                if detaches
                    && answer.is_ok()
                    && let Err(error) = shared.ways.close(&id)
                {
                    tracing::debug!(engine = %key, %error, "the directory of a detached volume stays");
                }
                shared.look().await;
                match answer {
                    Ok(_) => {
                        info!(engine = %key, "{what}");
                        if lost {
                            let text = "the machine went down with writes that nobody had flushed; the volume goes on without them";
                            shared.events.record(&*engine, Severity::Warning, "AutoSalvaged", text);
                        }
                        Ok(Next::After(Duration::ZERO))
                    }
                    Err(error) => {
                        let text = format!("{what}: {error}");
                        warn!(engine = %key, "{text}");
                        shared.events.record(&*engine, Severity::Warning, "EngineFailed", text);
                        Ok(Next::After(AGAIN))
                    }
                }
            }
        }
    }
}

fn describe(ask: &Ask) -> String {
    match ask {
        Ask::Attach(_) => "attaching".into(),
        Ask::Detach { .. } => "detaching".into(),
        Ask::AddReplica { replica, .. } => format!("adding replica {:08x}", replica.id),
        Ask::RetireReplica { replica, .. } => format!("letting go of replica {replica:08x}"),
        Ask::Expand { bytes, .. } => format!("growing to {bytes} bytes"),
        _ => "asking".into(),
    }
}

impl Engines {
    async fn report(&self, seen: &EngineSeen<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        let replicas = shared.replicas.list();
        let fresh: BTreeMap<String, bool> = replicas
            .iter()
            .filter(|r| r.spec.volume_name == seen.engine.spec.volume_name)
            .map(|r| (r.name_any(), r.spec.healthy_at.is_empty()))
            .collect();
        let sizes = shared.sizes(seen.id);
        let address = shared.config.address.to_string();
        let status = engine_status(seen, &fresh, &sizes, (&address, shared.config.port));
        let before = seen.engine.status.clone().unwrap_or_default();
        if only_sizes(&before, &status) {
            return Ok(());
        }
        let mut after = seen.engine.clone();
        after.status = Some(status);
        let api: Api<Engine> = Api::namespaced(shared.client.clone(), NAMESPACE);
        patch::write(&api, MANAGER, Target::Status, seen.engine, &after).await.map(drop)
    }

    /// What a person asked for by an annotation of the volume: once, and told how it ended.
    async fn asked(
        &self,
        engine: &Engine,
        volume: &Volume,
        id: &str,
        found: &VolumeStatus,
    ) -> Result<Option<Next>, StepError> {
        let shared = &self.0;
        let annotations = volume.annotations();
        let api: Api<Volume> = Api::namespaced(shared.client.clone(), NAMESPACE);
        let name = volume.name_any();
        if let Some(moment) = annotations.get(REVERT) {
            // The cache may not show yet that it was done a moment ago; done again, it would take back what came after.
            let now = api.get_opt(&name).await.map_err(StepError::api("reading a volume"))?;
            if now.is_none_or(|v| v.annotations().get(REVERT) != Some(moment)) {
                return Ok(Some(Next::After(SOON)));
            }
            // A machine that has just ended is out of it in a moment.
            if found.clients > 0 && engine.spec.disable_frontend == Some(true) {
                shared.look().await;
                return Ok(Some(Next::After(SOON)));
            }
            // Whoever has it open would not know that it has changed; and one that comes later must not find it changed then.
            let result = match found.clients {
                0 => {
                    let ask = Ask::Revert { volume: id.to_owned(), name: moment.clone() };
                    shared.ask(ask).await.map(drop).map_err(|error| error.to_string())
                }
                _ => Err("a machine has the volume open; stop it first".to_owned()),
            };
            let (severity, text, told) = match result {
                Ok(()) => {
                    (Severity::Normal, format!("the volume is as snapshot {moment} again"), "ok".to_owned())
                }
                Err(why) => {
                    (Severity::Warning, format!("it cannot be as snapshot {moment} again: {why}"), why)
                }
            };
            info!(volume = name, "{text}");
            shared.events.record(volume, severity, "Reverted", text);
            let patch =
                json!({"metadata": {"annotations": {REVERT: null, REVERTED: format!("{moment} {told}")}}});
            gone(api.patch(&name, &params(), &Patch::Merge(patch)).await, "ending a revert")?;
            return Ok(Some(Next::After(SOON)));
        }
        let Some(asked) = to_check(volume) else { return Ok(None) };
        // As above: compared again, it would tell that nothing differs, in place of what was found and made equal.
        let now = api.get_opt(&name).await.map_err(StepError::api("reading a volume"))?;
        if now.as_ref().and_then(to_check) != Some(asked) {
            return Ok(Some(Next::After(SOON)));
        }
        let result = match shared.ask(Ask::Scrub { volume: id.to_owned() }).await {
            Ok(_) => {
                shared.look().await;
                let listed = shared.listed();
                let now = listed.iter().flat_map(|l| &l.volumes).find(|v| v.volume == id);
                compared(found, now, &name)
            }
            Err(error) => error.to_string(),
        };
        info!(volume = name, result, "the replicas were compared");
        let severity = if result == "ok" { Severity::Normal } else { Severity::Warning };
        shared.events.record(volume, severity, "Compared", format!("what the snapshots hold: {result}"));
        let patch = json!({"metadata": {"annotations": {CHECKED: format!("{asked} {result}")}}});
        gone(api.patch(&name, &params(), &Patch::Merge(patch)).await, "telling of a comparison")?;
        Ok(Some(Next::After(SOON)))
    }

    /// Snapshots that were not made through an object get one; not what the volume began as, which nobody made.
    async fn adopt_moments(&self, engine: &Engine, found: &VolumeStatus) -> Result<(), StepError> {
        let shared = &self.0;
        let api: Api<Snapshot> = Api::namespaced(shared.client.clone(), NAMESPACE);
        let base = parse_volume(&found.volume).map(base_snapshot).unwrap_or_default();
        for snapshot in found.snapshots.iter().filter(|s| !s.removed && s.name != base) {
            let key = ObjectKey::new(NAMESPACE, &snapshot.name);
            if shared.moments.get(&key).is_some() || snapshot.name != snapshot.name.to_lowercase() {
                continue;
            }
            let mut object = Snapshot::new(NAMESPACE, &snapshot.name);
            object.metadata.labels = Some([(OF_VOLUME.to_owned(), engine.spec.volume_name.clone())].into());
            object.metadata.finalizers = Some(vec![sheaf_api::longhorn::FINALIZER.into()]);
            object.spec.volume.clone_from(&engine.spec.volume_name);
            object.spec.create_snapshot = Some(false);
            match api.create(&kube::api::PostParams::default(), &object).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => {}
                other => drop(other.map_err(StepError::api("making an object for a snapshot"))?),
            }
        }
        Ok(())
    }
}

/// A comparison that was asked for, and of which nothing has been told.
fn to_check(volume: &Volume) -> Option<&str> {
    let annotations = volume.annotations();
    let done = annotations.get(CHECKED).and_then(|text| text.split(' ').next());
    annotations.get(CHECK).map(String::as_str).filter(|asked| Some(*asked) != done)
}

/// What a comparison found, in words.
fn compared(before: &VolumeStatus, now: Option<&VolumeStatus>, name: &str) -> String {
    let Some(now) = now else { return format!("volume {name} was let go of meanwhile; ask again") };
    // Those of another coordinator count from nothing.
    let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
    let repaired = since(now.repaired, before.repaired);
    let undecided = since(now.undecided, before.undecided);
    let mut out = Vec::new();
    if repaired > 0 {
        out.push(format!("{repaired} parts of snapshots differed between replicas and were made equal"));
    }
    if undecided > 0 {
        out.push(format!("{undecided} parts of snapshots differ, and nothing tells which replica is right"));
    }
    if out.is_empty() { "ok".to_owned() } else { out.join("; ") }
}

/// Sizes alone, that have changed by less than a sixteenth, are not worth a write.
fn only_sizes(before: &sheaf_api::longhorn::EngineStatus, after: &sheaf_api::longhorn::EngineStatus) -> bool {
    let strip = |status: &sheaf_api::longhorn::EngineStatus| {
        let mut status = status.clone();
        status.snapshots.values_mut().for_each(|s| s.size = String::new());
        status
    };
    let close = || {
        after.snapshots.iter().all(|(name, s)| {
            let old = before.snapshots.get(name).and_then(|s| s.size.parse::<u64>().ok()).unwrap_or(0);
            let new = s.size.parse::<u64>().unwrap_or(0);
            old.abs_diff(new) <= (old / 16).max(1 << 20)
        })
    };
    strip(before) == strip(after) && close()
}
