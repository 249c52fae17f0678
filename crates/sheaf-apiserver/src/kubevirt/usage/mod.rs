//! What nodes and machines use over time, for the dashboard's charts: every half minute each node is asked, and what it says is
//! kept in memory ([`history`]). Whoever may read an object may read its numbers; whoever may list a kind, their sum.
//!
//! Owns the history. A restart forgets it: what has to be kept for longer is Prometheus' business, by `/metrics`.

mod history;
mod ring;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_plan::usage::{NAMES, Told};

use super::metrics::{list, of_node};
use crate::{
    authz::Attributes,
    core::{Core, Cx},
    http::{Outcome, json as answer_json},
    relay::Relay,
};
use history::{History, Of, Window};

/// Where it is served: `nodes`, `nodes/NAME`, `virtualmachines`, `namespaces/NAMESPACE/virtualmachines` and with `/NAME`.
pub(super) const PATH: &str = "/v1/usage/";
/// Where agents tell it.
const AGENT_PATH: &str = "/metrics/use";
/// Between two rounds, in seconds; by the clock of the wall, in the middle of a step.
const EVERY_S: i64 = 30;
/// Nodes that are asked at the same time.
const TOGETHER: usize = 16;
/// What is shown unless something else is asked for, in seconds.
const SHOWN_S: i64 = 3600;

/// The history, and who reads it.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<History>);

impl Usage {
    /// Asks all nodes, again and again.
    pub(super) async fn keep(&self, core: &Arc<Core>, relay: &Relay) {
        loop {
            tokio::time::sleep(until_next(Timestamp::now())).await;
            match list(core, "/api/v1/nodes").await {
                Ok(nodes) => self.round(nodes, relay).await,
                Err(status) => tracing::debug!(message = %status, "the nodes cannot be asked what they use"),
            }
        }
    }

    async fn round(&self, nodes: Vec<Value>, relay: &Relay) {
        let mut asked = stream::iter(nodes)
            .map(|node| async move {
                let answer = of_node(relay, &node, AGENT_PATH).await;
                (node, answer)
            })
            .buffer_unordered(TOGETHER);
        while let Some((node, answer)) = asked.next().await {
            // An agent of another version, or one that is gone: a gap.
            let Some(told) = answer.and_then(|bytes| serde_json::from_slice::<Told>(&bytes).ok()) else {
                continue;
            };
            let at_s = Timestamp::now().as_millisecond() as f64 / 1000.0;
            let uid = object::str_at(&node, &["metadata", "uid"]);
            let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            history.take(object::name(&node), uid, told, at_s);
        }
        let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        history.trim(Timestamp::now().as_second());
    }

    /// Answers a request for what follows [`PATH`].
    pub(super) async fn answer(&self, core: &Arc<Core>, cx: &Cx, of: &str) -> Outcome {
        let of = parse(of).ok_or_else(Status::no_such_path)?;
        core.authorize_request(cx, needs(of)).await?;
        let seconds = cx.query.number("seconds")?.map_or(SHOWN_S, |s| i64::try_from(s).unwrap_or(i64::MAX));
        let now = Timestamp::now().as_second();
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner).window(of, seconds, now);
        Ok(answer_json(StatusCode::OK, &render(&window)))
    }
}

/// How long it is until the middle of the next step.
fn until_next(now: Timestamp) -> Duration {
    let every = EVERY_S * 1000;
    let wait = every - (now.as_millisecond() + every / 2).rem_euclid(every);
    Duration::from_millis(wait.unsigned_abs())
}

fn parse(path: &str) -> Option<Of<'_>> {
    let parts: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    Some(match parts[..] {
        ["nodes"] => Of::Nodes,
        ["nodes", name] => Of::Node(name),
        ["virtualmachines"] => Of::Machines,
        ["namespaces", namespace, "virtualmachines"] => Of::Namespace(namespace),
        ["namespaces", namespace, "virtualmachines", name] => Of::Machine(namespace, name),
        _ => return None,
    })
}

/// What has to be allowed.
fn needs<'a>(of: Of<'a>) -> Attributes<'a> {
    let node = Attributes { resource: "nodes", ..Attributes::default() };
    let machine = Attributes { group: "kubevirt.io", resource: "virtualmachines", ..Attributes::default() };
    match of {
        Of::Nodes => Attributes { verb: "list", ..node },
        Of::Node(name) => Attributes { verb: "get", name, ..node },
        Of::Machines => Attributes { verb: "list", ..machine },
        Of::Namespace(namespace) => Attributes { verb: "list", namespace, ..machine },
        Of::Machine(namespace, name) => Attributes { verb: "get", namespace, name, ..machine },
    }
}

/// One list for each number, aligned at the end; `null` where nothing is known.
fn render(window: &Window) -> Value {
    let mut out = json!({"stepSeconds": window.step_s, "endSeconds": window.end_s});
    for (place, name) in NAMES.iter().enumerate() {
        // Processors have parts that matter; bytes have none.
        let grain = if place == 0 { 1000.0 } else { 1.0 };
        let one =
            |step: &Option<[f32; 6]>| step.map(|numbers| (f64::from(numbers[place]) * grain).round() / grain);
        out[*name] = window.steps.iter().map(one).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_numbers_and_what_that_needs() {
        assert_eq!(parse("nodes/n1"), Some(Of::Node("n1")));
        assert_eq!(parse("namespaces/a/virtualmachines/b"), Some(Of::Machine("a", "b")));
        assert_eq!(parse("namespaces/a/virtualmachines/"), Some(Of::Namespace("a")));
        for bad in ["", "pods", "nodes//", "nodes/a/b", "namespaces/a", "namespaces//virtualmachines"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let needed = needs(Of::Namespace("a"));
        assert_eq!(
            (needed.verb, needed.group, needed.namespace, needed.name),
            ("list", "kubevirt.io", "a", "")
        );
        assert_eq!((needs(Of::Node("n")).verb, needs(Of::Node("n")).resource), ("get", "nodes"));
    }

    #[test]
    fn rounds_are_in_the_middle_of_steps() {
        let at = |ms: i64| until_next(Timestamp::from_millisecond(ms).unwrap()).as_millis();
        assert_eq!((at(0), at(14_999), at(15_000), at(44_000)), (15_000, 1, 30_000, 1000));
    }

    #[test]
    fn lists_are_aligned() {
        let steps = vec![Some([0.12345, 1000.4, 0.0, 1.0, 2.0, 3.0]), None];
        let told = render(&Window { step_s: 30, end_s: 60, steps });
        assert_eq!(told["cpu"], json!([0.123, null]));
        assert_eq!((&told["memory"], &told["endSeconds"]), (&json!([1000.0, null]), &json!(60)));
    }
}
