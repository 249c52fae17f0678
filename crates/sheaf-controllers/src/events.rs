//! Events are forgotten an hour after they were last seen. Looks when the oldest one is due, and keeps nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client};
use sheaf_runtime::TaskGroup;
use tracing::{debug, warn};

/// How long an event is kept.
const KEEP: SignedDuration = SignedDuration::from_hours(1);
/// The old ones are looked for at least so often, and at most so often.
const SELDOM: Duration = Duration::from_secs(300);
const OFTEN: Duration = Duration::from_secs(15);
/// Events of one page.
const PAGE: u32 = 500;

pub(crate) fn spawn(client: &Client, group: &TaskGroup) {
    let client = client.clone();
    group.spawn(async move {
        let mut wait = SELDOM;
        loop {
            tokio::time::sleep(wait).await;
            let now = Timestamp::now();
            wait = match sweep(&client, now).await {
                Ok((forgotten, oldest)) => {
                    debug!(forgotten, "old events");
                    plan_next(oldest, now)
                }
                Err(error) => {
                    warn!(%error, "old events are not forgotten yet");
                    SELDOM
                }
            };
        }
    });
}

/// How long to wait until the oldest of those that stay is due.
fn plan_next(oldest: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = oldest.map(|seen| KEEP - now.duration_since(seen));
    let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or(SELDOM);
    left.clamp(OFTEN, SELDOM)
}

/// Forgets the old ones; says how many, and when the oldest of the others was seen.
async fn sweep(client: &Client, now: Timestamp) -> Result<(u32, Option<Timestamp>), kube::Error> {
    let all: Api<Event> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let (mut forgotten, mut oldest) = (0, None::<Timestamp>);
    loop {
        let list = all.list(&page).await?;
        for event in &list.items {
            let Some(seen) = last_seen(event) else { continue };
            if now.duration_since(seen) <= KEEP {
                oldest = Some(oldest.map_or(seen, |oldest| oldest.min(seen)));
                continue;
            }
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
            _ => return Ok((forgotten, oldest)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_when_the_oldest_is_due() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).ok();
        assert_eq!(plan_next(ago(3500), now), Duration::from_secs(100));
        assert_eq!(plan_next(ago(3599), now), OFTEN);
        assert_eq!(plan_next(ago(10), now), SELDOM);
        assert_eq!(plan_next(None, now), SELDOM);
    }

    #[test]
    fn an_event_counts_from_when_it_was_last_seen() {
        let event: Event = serde_json::from_value(serde_json::json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": {},
            "lastTimestamp": "2026-01-01T02:00:00Z", "eventTime": "2017-09-19T00:00:00.000000Z",
            "series": {"count": 2, "lastObservedTime": "2026-01-01T03:00:00.000000Z"}}))
        .expect("an event");
        assert_eq!(last_seen(&event), "2026-01-01T03:00:00Z".parse().ok());
    }
}
