//! Replicas of this node: their directories, made once and deleted when nobody counts them any more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::Api;
use sheaf_api::longhorn::{NAMESPACE, Replica, set_condition};
use sheaf_plan::conditions::whole_seconds;
use sheaf_plan::storage::{DATA_MISSING, MADE, replica_number, volume_id};
use sheaf_runtime::patch::{self, Target, gone};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, Severity, StepError, TaskGroup};
use sheaf_storage::api::{Ask, ReplicaStatus};
use tracing::{info, warn};

use super::node::disk_of;
use super::plan::{Beginning, ReplicaSeen, ReplicaStep, plan_replica};
use super::{Kind, MANAGER, Replicated, params, released};

const AGAIN: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_millis(500);
/// How often a directory is looked for that should be there: nobody tells of one that was removed.
const LOOK: Duration = Duration::from_secs(15);
/// Reason of a replica's condition while it cannot be used.
const FAILURE: &str = "InstanceCreationFailure";

struct Replicas(Arc<Replicated>);

pub(super) fn spawn(shared: &Arc<Replicated>, group: &TaskGroup) {
    let (by_volume, by_engine) = (shared.clone(), shared.clone());
    let of = |shared: &Replicated, volume: &str| {
        let all = shared.replicas.list();
        let ours = all.iter().filter(|r| r.spec.volume_name == volume && r.spec.node_id == shared.node);
        ours.map(|r| ObjectKey::of(&**r)).collect::<Vec<_>>()
    };
    let driver = Driver::new(Replicas(shared.clone()))
        .for_each(&shared.replicas)
        .on(&shared.volumes, move |volume| of(&by_volume, &volume.name_any()))
        .on(&shared.engines, move |engine| of(&by_engine, &engine.spec.volume_name));
    shared.add_waker(Kind::Replica, driver.waker());
    driver.spawn(group);
}

impl Controller for Replicas {
    const NAME: &'static str = "replicas";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let shared = &self.0;
        let Some(replica) = shared.replicas.get(key).filter(|r| r.spec.node_id == shared.node) else {
            return Ok(Next::Done);
        };
        let Some(listed) = shared.listed() else { return Ok(Next::After(AGAIN)) };
        let volume = shared.volumes.get(&ObjectKey::new(NAMESPACE, &replica.spec.volume_name));
        let engine = shared.engines.get(&ObjectKey::new(NAMESPACE, &replica.spec.engine_name));
        let number = replica_number(&key.name);
        let id = volume.as_deref().and_then(volume_id);
        let directory =
            Path::new(&replica.spec.disk_path).join("replicas").join(&replica.spec.data_directory_name);
        let found = listed
            .replicas
            .iter()
            .find(|r| (Some(r.replica) == number && Some(r.volume.as_str()) == id) || r.path == directory);
        let on_disk = disk_of(Path::new(&replica.spec.disk_path))
            .is_some_and(|uuid| uuid == replica.spec.disk_id)
            .then(|| directory.is_dir());
        let mut seen = ReplicaSeen {
            replica: &replica,
            id,
            made: volume.as_ref().is_some_and(|v| v.annotations().contains_key(MADE)),
            ending: volume.as_ref().is_some_and(|v| v.metadata.deletion_timestamp.is_some()),
            engine: engine.as_deref(),
            found,
            on_disk,
            beginning: Beginning::Empty,
        };
        let mut step = plan_replica(&seen);
        if let (ReplicaStep::Create(Ask::CreateReplica { together_with, .. }), Some(volume)) =
            (&step, &volume)
            && !together_with.is_empty()
        {
            // Only for one that is to be made, so that no base is made for nobody.
            seen.beginning = shared.beginning(volume, Path::new(&replica.spec.disk_path));
            step = plan_replica(&seen);
        }
        match step {
            ReplicaStep::Report => {
                self.report(&replica, found, None).await?;
                Ok(Next::After(LOOK))
            }
            ReplicaStep::Wait(why) => {
                if replica.metadata.deletion_timestamp.is_none() {
                    self.report(&replica, found, Some((FAILURE, &why))).await?;
                }
                // Images tell of each change of any of them, to everybody: to ask again for this one costs less.
                let soon = matches!(seen.beginning, Beginning::Waits(_));
                Ok(Next::After(if soon { SOON } else { AGAIN }))
            }
            ReplicaStep::Missing(why) => {
                warn!(replica = %key, why, "the data of a replica is gone");
                self.report(&replica, found, Some((DATA_MISSING, &why))).await?;
                Ok(Next::After(LOOK))
            }
            ReplicaStep::Create(ask) => match shared.ask(ask).await {
                Ok(_) => {
                    info!(replica = %key, "replica made");
                    shared.look().await;
                    Ok(Next::After(Duration::ZERO))
                }
                Err(error) => {
                    warn!(replica = %key, %error, "a replica cannot be made");
                    let text = error.to_string();
                    shared.events.record(&*replica, Severity::Warning, FAILURE, text.clone());
                    self.report(&replica, found, Some((FAILURE, &text))).await?;
                    Ok(Next::After(AGAIN))
                }
            },
            ReplicaStep::Delete(ask) => {
                if found.is_some() {
                    if let Err(error) = shared.ask(ask).await {
                        warn!(replica = %key, %error, "a replica cannot be deleted yet");
                        return Ok(Next::After(AGAIN));
                    }
                    info!(replica = %key, "replica deleted");
                    shared.look().await;
                }
                let api: Api<Replica> = Api::namespaced(shared.client.clone(), NAMESPACE);
                let patch = released(replica.finalizers());
                gone(api.patch(&key.name, &params(), &patch).await, "letting a replica go")?;
                Ok(Next::Done)
            }
        }
    }
}

impl Replicas {
    async fn report(
        &self,
        replica: &Replica,
        found: Option<&ReplicaStatus>,
        problem: Option<(&str, &str)>,
    ) -> Result<(), StepError> {
        let shared = &self.0;
        let mut after = replica.clone();
        let status = after.status.get_or_insert_default();
        let open = found.is_some_and(|f| f.state == "open") && problem.is_none();
        let running = replica.spec.desire_state == "running";
        status.owner_id.clone_from(&shared.node);
        status.current_image = "sheaf".into();
        status.instance_manager_name = format!("sheaf-storage-{}", shared.node);
        let closed = found.filter(|f| f.state != "open").map(|f| (FAILURE, f.state.as_str()));
        let problem = problem.or(closed);
        status.current_state = match (open, running, &problem) {
            (true, true, _) => "running",
            (true, false, _) => "stopped",
            (false, _, Some(_)) => "error",
            (false, ..) => "starting",
        }
        .into();
        if open {
            // For ever: see `plan_replica`.
            status.started = Some(true);
            status.ip = shared.config.address.to_string();
            status.storage_ip = shared.config.address.to_string();
            status.port = Some(shared.config.port.into());
        }
        let now = whole_seconds(Timestamp::now()).to_string();
        let state = if problem.is_some() { "False" } else { "True" };
        let (reason, text) = problem.unwrap_or_default();
        set_condition(&mut status.conditions, &now, "InstanceCreation", state, reason, text);
        let api: Api<Replica> = Api::namespaced(shared.client.clone(), NAMESPACE);
        patch::write(&api, MANAGER, Target::Status, replica, &after).await.map(drop)
    }
}
