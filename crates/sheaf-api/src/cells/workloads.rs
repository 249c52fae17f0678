//! Rows of pods and of what makes pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, human_duration, joined, list, number, pairs, selector, since, text, text_or};

fn containers(o: &Value, pointer: &str) -> [Value; 2] {
    let all = list(o, pointer);
    let field = |f: &'static str| joined(all.iter().map(|c| text(c, f).to_string()), "");
    [field("/name"), field("/image")]
}

/// Containers, images and selector of something that has a pod template.
fn template(o: &Value) -> [Value; 3] {
    let [names, images] = containers(o, "/spec/template/spec/containers");
    let by = if o.pointer("/spec/selector/matchLabels").is_some() {
        selector(o, "/spec/selector")
    } else {
        pairs(o, "/spec/selector", "<none>")
    };
    [names, images, by]
}

pub(crate) fn pod(o: &Value, now: Timestamp) -> Vec<Value> {
    let statuses = list(o, "/status/containerStatuses");
    let total = list(o, "/spec/containers").len();
    let ready = statuses.iter().filter(|s| s["ready"] == true).count();
    let restarts: i64 = statuses.iter().map(|s| number(s, "/restartCount")).sum();
    let last = statuses.iter().map(|s| text(s, "/lastState/terminated/finishedAt")).max().unwrap_or("");
    let restarts = if restarts > 0 && !last.is_empty() {
        format!("{restarts} ({} ago)", since(last, now).as_str().unwrap_or_default())
    } else {
        restarts.to_string()
    };
    let gates = list(o, "/spec/readinessGates");
    let met = |gate: &&Value| {
        let met = |c: &&Value| c["type"] == gate["conditionType"] && c["status"] == "True";
        list(o, "/status/conditions").iter().any(|c| met(&c))
    };
    let gates = if gates.is_empty() {
        "<none>".to_string()
    } else {
        format!("{}/{}", gates.iter().filter(met).count(), gates.len())
    };
    vec![
        json!(format!("{ready}/{total}")),
        json!(pod_status(o)),
        json!(restarts),
        age(o, now),
        json!(text_or(o, "/status/podIP", "<none>")),
        json!(text_or(o, "/spec/nodeName", "<none>")),
        json!(text_or(o, "/status/nominatedNodeName", "<none>")),
        json!(gates),
    ]
}

/// One word for a pod: what waits or has ended says more than the phase.
fn pod_status(o: &Value) -> String {
    if !text(o, "/metadata/deletionTimestamp").is_empty() {
        let lost = text(o, "/status/reason") == "NodeLost";
        return if lost { "Unknown" } else { "Terminating" }.into();
    }
    let mut reason = text_or(o, "/status/reason", text(o, "/status/phase")).to_string();
    for (i, s) in list(o, "/status/initContainerStatuses").iter().enumerate() {
        if s.pointer("/state/terminated").is_some_and(|t| number(t, "/exitCode") == 0) || s["started"] == true
        {
            continue;
        }
        let why = text_or(s, "/state/waiting/reason", text(s, "/state/terminated/reason"));
        let total = list(o, "/spec/initContainers").len();
        let named = !why.is_empty() && why != "PodInitializing";
        return if named { format!("Init:{why}") } else { format!("Init:{i}/{total}") };
    }
    for s in list(o, "/status/containerStatuses").iter().rev() {
        let waiting = text(s, "/state/waiting/reason");
        let ended = s.pointer("/state/terminated");
        if !waiting.is_empty() {
            reason = waiting.into();
        } else if let Some(ended) = ended {
            reason = match text(ended, "/reason") {
                "" => format!("ExitCode:{}", number(ended, "/exitCode")),
                why => why.into(),
            };
        }
    }
    reason
}

pub(crate) fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images, by] = template(o);
    vec![
        json!(format!("{}/{}", number(o, "/status/readyReplicas"), wanted(o))),
        json!(number(o, "/status/updatedReplicas")),
        json!(number(o, "/status/availableReplicas")),
        age(o, now),
        names,
        images,
        by,
    ]
}

fn wanted(o: &Value) -> i64 {
    o.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)
}

pub(crate) fn replicas(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images, by] = template(o);
    vec![
        json!(wanted(o)),
        json!(number(o, "/status/replicas")),
        json!(number(o, "/status/readyReplicas")),
        age(o, now),
        names,
        images,
        by,
    ]
}

pub(crate) fn stateful_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images, _] = template(o);
    vec![json!(format!("{}/{}", number(o, "/status/readyReplicas"), wanted(o))), age(o, now), names, images]
}

pub(crate) fn daemon_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images, by] = template(o);
    let status = |field: &str| json!(number(o, &format!("/status/{field}")));
    vec![
        status("desiredNumberScheduled"),
        status("currentNumberScheduled"),
        status("numberReady"),
        status("updatedNumberScheduled"),
        status("numberAvailable"),
        pairs(o, "/spec/template/spec/nodeSelector", "<none>"),
        age(o, now),
        names,
        images,
        by,
    ]
}

pub(crate) fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let holds =
        |ty: &str| list(o, "/status/conditions").iter().any(|c| c["type"] == ty && c["status"] == "True");
    let words = ["Complete", "Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"];
    let status = match words.into_iter().find(|ty| holds(ty)) {
        _ if !text(o, "/metadata/deletionTimestamp").is_empty() => "Terminating",
        Some("FailureTarget" | "SuccessCriteriaMet") | None => "Running",
        Some(word) => word,
    };
    let parallel = number(o, "/spec/parallelism").max(1);
    let completions = match o.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => wanted.to_string(),
        None if parallel > 1 => format!("1 of {parallel}"),
        None => "1".into(),
    };
    let start = text(o, "/status/startTime").parse::<Timestamp>().ok();
    let end = text(o, "/status/completionTime").parse().unwrap_or(now);
    let took = start.map_or(String::new(), |start| human_duration(end.as_second() - start.as_second()));
    let [names, images, by] = template(o);
    vec![
        json!(status),
        json!(format!("{}/{completions}", number(o, "/status/succeeded"))),
        json!(took),
        age(o, now),
        names,
        images,
        by,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_shows_what_holds_it() {
        let running = json!({"spec": {"containers": [{}], "nodeName": "a"}, "status": {"phase": "Running",
            "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}]}});
        assert_eq!(pod(&running, Timestamp::UNIX_EPOCH)[..3], ["1/1", "Running", "0"]);
        let crashing = json!({"spec": {"containers": [{}]}, "status": {"phase": "Running",
            "containerStatuses": [{"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        assert_eq!(pod(&crashing, Timestamp::UNIX_EPOCH)[..3], ["0/1", "CrashLoopBackOff", "4"]);
    }
}
