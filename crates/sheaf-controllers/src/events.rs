//! Events are forgotten an hour after they were last seen. Keeps nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client};
use sheaf_runtime::TaskGroup;
use tracing::{debug, warn};

/// How long an event is kept.
const KEEP: SignedDuration = SignedDuration::from_hours(1);
/// How often the old ones are looked for.
const PERIOD: Duration = Duration::from_secs(300);
/// Events of one page.
const PAGE: u32 = 500;

pub(crate) fn spawn(client: &Client, group: &TaskGroup) {
    let client = client.clone();
    group.spawn(async move {
        loop {
            tokio::time::sleep(PERIOD).await;
            match sweep(&client, Timestamp::now()).await {
                Ok(0) => {}
                Ok(forgotten) => debug!(forgotten, "old events"),
                Err(error) => warn!(%error, "old events are not forgotten yet"),
            }
        }
    });
}

async fn sweep(client: &Client, now: Timestamp) -> Result<u32, kube::Error> {
    let all: Api<Event> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let mut forgotten = 0;
    loop {
        let list = all.list(&page).await?;
        for event in
            list.items.iter().filter(|e| last_seen(e).is_some_and(|at| now.duration_since(at) > KEEP))
        {
            let (Some(name), Some(namespace)) = (&event.metadata.name, &event.metadata.namespace) else {
                continue;
            };
            let api: Api<Event> = Api::namespaced(client.clone(), namespace);
            // One that was seen again meanwhile stays.
            let seen = Preconditions { uid: None, resource_version: event.metadata.resource_version.clone() };
            let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::default() };
            match api.delete(name, &params).await {
                Ok(_) => forgotten += 1,
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                Err(error) => return Err(error),
            }
        }
        match list.metadata.continue_ {
            Some(token) if !token.is_empty() => page = page.continue_token(&token),
            _ => return Ok(forgotten),
        }
    }
}

fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let times = [
        series,
        event.last_timestamp.as_ref().map(|t| t.0),
        event.event_time.as_ref().map(|t| t.0),
        event.metadata.creation_timestamp.as_ref().map(|t| t.0),
    ];
    times.into_iter().flatten().max()
}
