//! Pods are data here: nothing runs them. One that is being deleted with a grace period has nobody who would stop it, so
//! this does what a kubelet does at the end of that, and deletes it for good.
//!
//! A pod that never started goes at once; one whose status says that something ran it keeps its time, since whatever
//! wrote that may want to end it in order. Owns nothing.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, StepError, TaskGroup};

struct Pods {
    client: Client,
    pods: Arc<Informer<Pod>>,
}

pub(crate) fn spawn(client: &Client, pods: &Arc<Informer<Pod>>, group: &TaskGroup) {
    Driver::new(Pods { client: client.clone(), pods: pods.clone() }).for_each(pods).spawn(group);
}

/// How long a pod that is being deleted still has; `None` if it is not being deleted, or not by us.
fn plan_end(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let end = pod.metadata.deletion_timestamp.as_ref()?.0;
    // With nothing left to wait for, only finalizers hold it.
    if pod.metadata.deletion_grace_period_seconds.unwrap_or(0) == 0 {
        return None;
    }
    let started = pod.status.as_ref().is_some_and(|s| {
        s.start_time.is_some() || s.container_statuses.as_ref().is_some_and(|c| !c.is_empty())
    });
    if !started {
        return Some(Duration::ZERO);
    }
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

impl Controller for Pods {
    const NAME: &'static str = "pods";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(pod) = self.pods.get(key) else { return Ok(Next::Done) };
        match plan_end(&pod, Timestamp::now()) {
            None => return Ok(Next::Done),
            Some(wait) if wait > Duration::ZERO => return Ok(Next::After(wait)),
            Some(_) => {}
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&key.name, &params).await {
            Ok(_) => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Next::Done),
            Err(error) => Err(StepError::api("ending a pod")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_keeps_its_time_only_if_something_runs_it() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let pod = |grace: i64, started: bool| -> Pod {
            let status = if started { json!({"startTime": "2025-12-31T00:00:00Z"}) } else { json!({}) };
            serde_json::from_value(
                json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:30Z",
                "deletionGracePeriodSeconds": grace}, "status": status}),
            )
            .expect("a pod")
        };
        assert_eq!(plan_end(&pod(30, true), now), Some(Duration::from_secs(30)));
        assert_eq!(plan_end(&pod(30, false), now), Some(Duration::ZERO));
        assert_eq!(plan_end(&pod(0, true), now), None, "finalizers hold it");
        let mut alive = pod(30, true);
        alive.metadata.deletion_timestamp = None;
        assert_eq!(plan_end(&alive, now), None);
    }
}
