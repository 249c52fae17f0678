//! `sheaf volume list` and `show` for people: tables of Longhorn's objects. Pure.

use std::fmt::Write;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sheaf_meta::object;

use crate::client::print::{self, Table, Tone, age, cell, paint, section, size};

/// A text within an object.
pub(super) fn text<'a>(o: &'a Value, pointer: &str) -> &'a str {
    o.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn bytes(o: &Value, pointer: &str) -> String {
    text(o, pointer).parse().map_or_else(|_| String::new(), size)
}

/// Whether a replica holds what the volume does, as far as its object says.
pub(super) fn holds(replica: &Value) -> bool {
    text(replica, "/spec/failedAt").is_empty()
        && !text(replica, "/spec/healthyAt").is_empty()
        && !object::is_deleting(replica)
}

/// NAMESPACE/NAME of a volume's claim.
fn claim(volume: &Value) -> String {
    match text(volume, "/status/kubernetesStatus/pvcName") {
        "" => String::new(),
        claim => format!("{}/{claim}", text(volume, "/status/kubernetesStatus/namespace")),
    }
}

fn tone(robustness: &str) -> Tone {
    match robustness {
        "healthy" => Tone::Good,
        "degraded" => Tone::Busy,
        "faulted" => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// All volumes; `replicas` of all of them.
pub(super) fn table(volumes: &[Value], replicas: &[Value], now: Timestamp) -> Table {
    let mut table =
        Table::new(&["VOLUME", "SIZE", "STATE", "ROBUSTNESS", "NODE", "REPLICAS", "CLAIM", "AGE"]);
    for volume in volumes {
        let name = object::name(volume);
        let good = replicas.iter().filter(|r| text(r, "/spec/volumeName") == name && holds(r)).count();
        let robustness = text(volume, "/status/robustness");
        table.row(vec![
            cell(name),
            cell(bytes(volume, "/spec/size")),
            cell(text(volume, "/status/state")),
            (robustness.to_owned(), tone(robustness)),
            cell(text(volume, "/status/currentNodeID")),
            cell(format!("{good}/{}", volume["spec"]["numberOfReplicas"])),
            cell(claim(volume)),
            cell(age(object::creation_timestamp(volume), now)),
        ]);
    }
    table
}

/// A volume and what is its own.
pub(super) struct Whole<'a> {
    pub(super) volume: &'a Value,
    pub(super) engine: Option<&'a Value>,
    pub(super) replicas: &'a [Value],
    pub(super) snapshots: &'a [Value],
    pub(super) events: &'a [Value],
}

/// One volume in full.
pub(super) fn show(whole: &Whole<'_>, now: Timestamp, colours: bool) -> String {
    let Whole { volume, engine, replicas, snapshots, events } = whole;
    let mut out = String::new();
    let mut line = |title: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "{:<12}{text}", format!("{title}:"));
        }
    };
    let robustness = text(volume, "/status/robustness");
    line("Name", object::name(volume));
    line("Claim", &claim(volume));
    line("State", text(volume, "/status/state"));
    line("Robustness", &paint(robustness, tone(robustness), colours));
    line("Node", text(volume, "/status/currentNodeID"));
    let has = engine.map(|e| bytes(e, "/status/currentSize")).unwrap_or_default();
    let asked = bytes(volume, "/spec/size");
    let grows = !has.is_empty() && has != asked;
    line("Size", &if grows { format!("{has}, is to have {asked}") } else { asked });
    let held = volume.pointer("/status/actualSize").and_then(Value::as_u64);
    line("Holds", &held.map(size).unwrap_or_default());
    line("Replicas", &volume["spec"]["numberOfReplicas"].to_string());
    line("Age", &age(object::creation_timestamp(volume), now));

    let modes = engine.and_then(|e| e.pointer("/status/replicaModeMap"));
    let rebuilding = |replica: &Value| {
        let status = (*engine)?.get("status")?;
        let at = status.get("currentReplicaAddressMap")?.get(object::name(replica))?.as_str()?;
        let percent = status.get("rebuildStatus")?.get(format!("tcp://{at}"))?.get("progress")?.as_i64()?;
        Some(format!("rebuilding {percent} %"))
    };
    let mut table = Table::new(&["NAME", "NODE", "DISK", "STATE", "SINCE", "DIRECTORY"]);
    for replica in *replicas {
        let mode = modes.and_then(|m| m[object::name(replica)].as_str());
        let (failed, healthy) = (text(replica, "/spec/failedAt"), text(replica, "/spec/healthyAt"));
        let deleting = object::is_deleting(replica);
        let (state, tone, since) = match (mode, failed.is_empty(), healthy.is_empty()) {
            _ if deleting => ("given up", Tone::Busy, object::deletion_timestamp(replica)),
            (Some("WO"), ..) => ("rebuilding", Tone::Busy, ""),
            (_, false, _) => ("failed", Tone::Bad, failed),
            (_, _, true) => ("new", Tone::Busy, object::creation_timestamp(replica)),
            _ => ("in sync", Tone::Good, healthy),
        };
        let progress = rebuilding(replica).filter(|_| state == "rebuilding");
        table.row(vec![
            cell(object::name(replica)),
            cell(text(replica, "/spec/nodeID")),
            cell(text(replica, "/spec/diskPath")),
            (progress.unwrap_or_else(|| state.to_owned()), tone),
            cell(age(since, now)),
            cell(text(replica, "/spec/dataDirectoryName")),
        ]);
    }
    section(&mut out, "Replicas", &table, colours);

    let mut table = Table::new(&["NAME", "STATE", "SIZE", "PARENT", "AGE"]);
    for snapshot in *snapshots {
        let ready = snapshot.pointer("/status/readyToUse") == Some(&Value::Bool(true));
        let (state, tone) = match text(snapshot, "/status/error") {
            _ if object::is_deleting(snapshot) => ("given up", Tone::Busy),
            _ if ready => ("ready", Tone::Plain),
            "" => ("being made", Tone::Busy),
            why => (why, Tone::Bad),
        };
        let of = snapshot.pointer("/status/size").and_then(Value::as_u64).map(size);
        table.row(vec![
            cell(object::name(snapshot)),
            (state.to_owned(), tone),
            cell(of.unwrap_or_default()),
            cell(text(snapshot, "/status/parent")),
            cell(age(text(snapshot, "/status/creationTime"), now)),
        ]);
    }
    section(&mut out, "Snapshots", &table, colours);
    section(&mut out, "Conditions", &print::conditions(volume, now), colours);
    section(&mut out, "Events", &print::events(events.iter().collect(), now), colours);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_in_full() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let volume = json!({
            "metadata": {"name": "v", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"size": "2147483648", "numberOfReplicas": 3},
            "status": {"state": "attached", "robustness": "degraded", "currentNodeID": "n1", "actualSize": 1048576,
                "kubernetesStatus": {"namespace": "x", "pvcName": "c"},
                "conditions": [{"type": "Scheduled", "status": "False", "reason": "R", "message": "no place"}]},
        });
        let engine = json!({"status": {"currentSize": "1073741824", "replicaModeMap": {"v-r-1": "RW", "v-r-2": "WO"},
            "currentReplicaAddressMap": {"v-r-2": "10.0.0.2:8500"},
            "rebuildStatus": {"tcp://10.0.0.2:8500": {"isRebuilding": true, "progress": 43}}}});
        let replica = |name: &str, node: &str, more: Value| {
            let mut spec = json!({"volumeName": "v", "nodeID": node, "diskPath": "/d", "dataDirectoryName": name,
                "healthyAt": "2026-01-01T00:05:00Z"});
            for (key, value) in more.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            json!({"metadata": {"name": name}, "spec": spec})
        };
        let replicas = [
            replica("v-r-1", "n1", json!({})),
            replica("v-r-2", "n2", json!({"healthyAt": ""})),
            replica("v-r-3", "n3", json!({"failedAt": "2026-01-01T00:09:00Z"})),
        ];
        let snapshots = [json!({"metadata": {"name": "s"},
            "status": {"readyToUse": true, "size": 4096, "creationTime": "2026-01-01T00:08:00Z"}})];
        let whole = Whole {
            volume: &volume,
            engine: Some(&engine),
            replicas: &replicas,
            snapshots: &snapshots,
            events: &[],
        };
        let expected = "\
Name:       v
Claim:      x/c
State:      attached
Robustness: degraded
Node:       n1
Size:       1 GiB, is to have 2 GiB
Holds:      1 MiB
Replicas:   3
Age:        10m

Replicas:
  NAME    NODE   DISK   STATE             SINCE   DIRECTORY
  v-r-1   n1     /d     in sync           5m      v-r-1
  v-r-2   n2     /d     rebuilding 43 %   -       v-r-2
  v-r-3   n3     /d     failed            60s     v-r-3

Snapshots:
  NAME   STATE   SIZE    PARENT   AGE
  s      ready   4 KiB   -        2m

Conditions:
  TYPE        STATUS   SINCE   REASON   MESSAGE
  Scheduled   False    -       R        no place
";
        assert_eq!(show(&whole, now, false), expected);
        let table = table(&[volume], &replicas, now).render(0, false);
        assert!(table.lines().nth(1).is_some_and(|l| l.contains("1/3") && l.contains("x/c")), "{table}");
    }
}
