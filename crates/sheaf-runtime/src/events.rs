//! Events about objects, as `kubectl describe` shows them (core/v1), with repeats counted in one object.
//!
//! An event that cannot be written is dropped: nothing depends on events. No state but a handle to a bounded queue.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use crate::TaskGroup;

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Things go as they should.
    Normal,
    /// Somebody may want to look.
    Warning,
}

struct Record {
    about: ObjectReference,
    severity: Severity,
    reason: String,
    message: String,
}

/// Writes events in the background. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Record>,
}

impl EventRecorder {
    /// A recorder that signs as `component` on `host`.
    pub fn spawn(client: &Client, group: &TaskGroup, component: &str, host: &str) -> Self {
        let (queue, mut records) = mpsc::channel::<Record>(256);
        let client = client.clone();
        let (component, host) = (component.to_owned(), host.to_owned());
        group.spawn(async move {
            while let Some(record) = records.recv().await {
                if let Err(error) = publish(&client, &record, &component, &host).await {
                    debug!(reason = record.reason, %error, "an event was dropped");
                }
            }
        });
        Self { queue }
    }
    /// Records that something happened to `object`. Never blocks; drops the event if 256 are waiting.
    pub fn record<K>(&self, object: &K, severity: Severity, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record_about(object.object_ref(&()), severity, reason, message);
    }
    /// The same for an object of which only a reference is at hand.
    pub fn record_about(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let record = Record { about, severity, reason: reason.into(), message: message.into() };
        if self.queue.try_send(record).is_err() {
            debug!(reason, "an event was dropped: too many are waiting");
        }
    }
}

async fn publish(client: &Client, record: &Record, component: &str, host: &str) -> Result<(), kube::Error> {
    let about = &record.about;
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
    let mut hasher = DefaultHasher::new();
    (&about.uid, &about.kind, record.severity, &record.reason, &record.message, component, host)
        .hash(&mut hasher);
    let name = format!("{}.{:016x}", about.name.as_deref().unwrap_or("unknown"), hasher.finish());
    let resource = kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Event>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    let now = k8s_openapi::jiff::Timestamp::now();
    let seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let micros = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    if let Some(seen) = api.get_opt(&name).await? {
        let count = seen.data["count"].as_i64().unwrap_or(1) + 1;
        let patch = json!({"count": count, "lastTimestamp": seconds});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        return Ok(());
    }
    let event: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about, "type": format!("{:?}", record.severity),
        "reason": record.reason, "message": record.message,
        "firstTimestamp": seconds, "lastTimestamp": seconds, "eventTime": micros, "count": 1,
        "action": record.reason,
        "source": {"component": component, "host": host},
        "reportingComponent": component, "reportingInstance": host,
    }))
    .map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}
