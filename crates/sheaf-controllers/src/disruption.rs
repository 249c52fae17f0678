//! Keeps `status` of PodDisruptionBudgets: how many of their pods may be disturbed now.
//!
//! `sheaf_plan::disruption` has the rules. Owns that status together with the eviction subresource, which charges it:
//! both write with the resourceVersion that they read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde_json::Value;
use sheaf_meta::object;
use sheaf_meta::selector::LabelSelector;
use sheaf_plan::disruption::Facts;
use sheaf_runtime::{Controller, Driver, Informer, Next, ObjectKey, Selection, StepError, TaskGroup};

use crate::kinds::Everything;

/// A budget whose pods' controllers cannot be found is looked at again after this long.
const AGAIN: Duration = Duration::from_secs(5);

struct Budgets {
    client: Client,
    everything: Arc<Everything>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
}

pub(crate) fn spawn(
    client: &Client,
    everything: &Arc<Everything>,
    pods: &Arc<Informer<Pod>>,
    group: &TaskGroup,
) {
    let budgets: Arc<Informer<PodDisruptionBudget>> = Informer::spawn(client, group, &Selection::all());
    let controller = Budgets {
        client: client.clone(),
        everything: everything.clone(),
        budgets: budgets.clone(),
        pods: pods.clone(),
    };
    let of_namespace = budgets.clone();
    // Whether a pod was selected before it changed is not known here: all budgets of its namespace are looked at.
    Driver::new(controller)
        .for_each(&budgets)
        .on(pods, move |pod| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            of_namespace.list_namespace(namespace).iter().map(|b| ObjectKey::of(&**b)).collect()
        })
        .spawn(group);
}

impl Controller for Budgets {
    const NAME: &'static str = "disruption-budgets";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Next::Done) };
        let value = serde_json::to_value(&*budget).map_err(StepError::other("encoding a budget"))?;
        let pods = self.selected(&value, &key.namespace)?;
        let mut scales = BTreeMap::new();
        for pod in &pods {
            if let Some(owner) = object::controller_of(pod)
                && !scales.contains_key(owner.uid)
            {
                let replicas =
                    self.replicas(&key.namespace, owner.api_version, owner.kind, owner.name).await?;
                scales.insert(owner.uid.to_owned(), replicas);
            }
        }
        let unknown = scales.values().any(Option::is_none);
        let facts = Facts { budget: &value, pods: pods.iter().collect(), scales, now: Timestamp::now() };
        let status = facts.status();
        let again = facts.look_again().map(|wait| wait.unsigned_abs()).or(unknown.then_some(AGAIN));
        let next = again.map_or(Next::Done, |wait| Next::After(wait + Duration::from_secs(1)));
        if value["status"] == status {
            return Ok(next);
        }
        let mut after = (*budget).clone();
        after.status =
            serde_json::from_value(status).map_err(StepError::other("encoding a budget's status"))?;
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
        // The whole status, with the resourceVersion that was read: what was charged meanwhile must not be lost.
        match api.replace_status(&key.name, &Default::default(), &after).await {
            Ok(_) => Ok(next),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(error) => Err(StepError::api("saying what a disruption budget allows")(error)),
        }
    }
}

impl Budgets {
    fn selected(&self, budget: &Value, namespace: &str) -> Result<Vec<Value>, StepError> {
        // No selector selects nothing; an empty one everything.
        let Some(selector) = budget["spec"].get("selector").filter(|s| !s.is_null()) else {
            return Ok(Vec::new());
        };
        let selector = LabelSelector::from_object(selector);
        let selector = selector.map_err(StepError::other("reading a budget's selector"))?;
        let pods = self.pods.list_namespace(namespace);
        let values: Result<Vec<Value>, _> = pods.iter().map(|pod| serde_json::to_value(&**pod)).collect();
        let values = values.map_err(StepError::other("encoding a pod"))?;
        Ok(values.into_iter().filter(|pod| selector.matches(pod)).collect())
    }

    /// How many pods a controller wants; the owner of a replica set speaks for it.
    async fn replicas(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<i64>, StepError> {
        let mut at = (api_version.to_owned(), kind.to_owned(), name.to_owned());
        for _ in 0..3 {
            let group = at.0.split_once('/').map_or("", |(group, _)| group);
            let Some(served) = self.everything.find(group, &at.1) else { return Ok(None) };
            let api = served.api(&self.client, namespace);
            let found = api.get_opt(&at.2).await.map_err(StepError::api("looking for what makes a pod"))?;
            let Some(found) = found else { return Ok(None) };
            let value =
                serde_json::to_value(&found).map_err(StepError::other("decoding what makes a pod"))?;
            let above = (at.1 == "ReplicaSet").then(|| object::controller_of(&value)).flatten();
            match above.filter(|above| above.kind == "Deployment") {
                Some(above) => at = (above.api_version.into(), above.kind.into(), above.name.into()),
                None => {
                    let scaled = api.get_scale(&at.2).await.ok();
                    let said = scaled.and_then(|scale| scale.spec?.replicas.map(i64::from));
                    return Ok(said.or_else(|| value.pointer("/spec/replicas").and_then(Value::as_i64)));
                }
            }
        }
        Ok(None)
    }
}
