//! `sheaf vm show`: everything about one VM that helps to understand its state.

use std::fmt::Write;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sheaf_meta::object;

use super::super::Session;
use super::super::api::{CLAIMS, EVENTS, INSTANCES, VMS};
use super::super::print::{self, Format, Table, Tone, age, cell, paint, put, section};
use super::view::{self, VmView, addresses};

/// Prints a VM.
pub(super) async fn show(session: &Session, name: &str, output: Option<Format>) -> Result<()> {
    let (namespace, name) = session.name(name);
    let vm = session.get(VMS, namespace, name).await?;
    if let Some(format) = output.filter(|format| *format != Format::Wide) {
        return print::objects(VMS, &[vm], format, true);
    }
    let instance = session.find(INSTANCES, namespace, name).await?;
    let claims = session.list(CLAIMS, Some(namespace)).await?;
    let events = session.list(EVENTS, Some(namespace)).await?;
    let view = VmView { vm: &vm, instance: instance.as_ref() };
    put(&text(&view, &claims, &events, Timestamp::now(), print::coloured()))
}

fn text(view: &VmView<'_>, claims: &[Value], events: &[Value], now: Timestamp, colours: bool) -> String {
    let mut out = String::new();
    let mut line = |title: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "{:<14}{text}", format!("{title}:"));
        }
    };
    line("Name", &format!("{}/{}", object::namespace(view.vm), object::name(view.vm)));
    line("Status", &paint(view.status(), view.tone(), colours));
    for why in view.why() {
        line("Held by", &paint(&why, Tone::Bad, colours));
    }
    line("Run strategy", view.run_strategy());
    line("Age", &age(object::creation_timestamp(view.vm), now));
    line("Processors", &view.cpus().to_string());
    line("Memory", &view::bytes(view.memory()));
    line("Node", view.node());
    line("Guest", view.guest_os());
    line("Description", object::annotation(view.vm, "field.cattle.io/description").unwrap_or_default());

    let mut disks = Table::new(&["NAME", "FROM", "CLAIM", "SIZE", "STATE", "IMAGE"]);
    for (name, what, of) in view.volumes() {
        let claim = (what == "claim").then(|| claims.iter().find(|c| object::name(c) == of));
        let get = |path: &[&str]| claim.flatten().map_or("", |c| object::str_at(c, path));
        let state = match claim {
            Some(None) => ("missing".to_owned(), Tone::Bad),
            Some(Some(_)) if get(&["status", "phase"]) == "Bound" => ("Bound".into(), Tone::Plain),
            Some(Some(_)) => (get(&["status", "phase"]).to_owned(), Tone::Busy),
            None => (String::new(), Tone::Plain),
        };
        let image =
            claim.flatten().and_then(|c| object::annotation(c, "harvesterhci.io/imageId")).unwrap_or("");
        let size = view::bytes(get(&["spec", "resources", "requests", "storage"]));
        disks.row(vec![cell(name), cell(what), cell(of), cell(size), state, cell(image)]);
    }
    section(&mut out, "Disks", &disks, colours);

    let mut nics = Table::new(&["NAME", "NETWORK", "MAC", "ADDRESSES"]);
    let networks = view.vm.pointer("/spec/template/spec/networks").and_then(Value::as_array);
    for network in networks.into_iter().flatten() {
        let name = object::str_at(network, &["name"]);
        let seen = view.interfaces().iter().find(|i| object::str_at(i, &["name"]) == name);
        let of = match object::str_at(network, &["multus", "networkName"]) {
            "" => "management",
            network => network,
        };
        let mac = seen.map_or("", |i| object::str_at(i, &["mac"]));
        nics.row(vec![
            cell(name),
            cell(of),
            cell(mac),
            cell(seen.map(addresses).unwrap_or_default().join(", ")),
        ]);
    }
    section(&mut out, "NICs", &nics, colours);

    let conditions = print::conditions(view.instance.unwrap_or(view.vm), now);
    section(&mut out, "Conditions", &conditions, colours);

    let about = events.iter().filter(|event| is_about(event, view)).collect();
    let table = print::events(about, now);
    section(&mut out, "Events", &table, colours);
    out
}

/// Whether an event is about the VM, its instance or one of its claims.
fn is_about(event: &Value, view: &VmView<'_>) -> bool {
    let name = object::str_at(event, &["involvedObject", "name"]);
    match object::str_at(event, &["involvedObject", "kind"]) {
        "VirtualMachine" | "VirtualMachineInstance" => name == object::name(view.vm),
        "PersistentVolumeClaim" => view.volumes().iter().any(|(_, what, of)| *what == "claim" && *of == name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_vm_in_full() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let vm = json!({
            "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "domain": {"cpu": {"cores": 2}, "memory": {"guest": "1Gi"}},
                "networks": [{"name": "default", "pod": {}}],
                "volumes": [
                    {"name": "root", "persistentVolumeClaim": {"claimName": "a-root"}},
                    {"name": "more", "persistentVolumeClaim": {"claimName": "a-more"}},
                ],
            }}},
            "status": {"printableStatus": "Starting", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node fits"}
            ]},
        });
        let claims = [json!({
            "metadata": {"name": "a-root", "annotations": {"harvesterhci.io/imageId": "x/i"}},
            "spec": {"resources": {"requests": {"storage": "8Gi"}}},
            "status": {"phase": "Pending"},
        })];
        let events = [
            json!({"type": "Warning", "reason": "R", "message": "m", "lastTimestamp": "2026-01-01T00:09:00Z",
                "involvedObject": {"kind": "PersistentVolumeClaim", "name": "a-root"}}),
            json!({"message": "not shown", "involvedObject": {"kind": "VirtualMachine", "name": "b"}}),
        ];
        let view = VmView { vm: &vm, instance: None };
        let expected = "\
Name:         x/a
Status:       Starting
Held by:      no node fits
Run strategy: Always
Age:          10m
Processors:   2
Memory:       1 GiB

Disks:
  NAME   FROM    CLAIM    SIZE    STATE     IMAGE
  root   claim   a-root   8 GiB   Pending   x/i
  more   claim   a-more   -       missing   -

NICs:
  NAME      NETWORK      MAC   ADDRESSES
  default   management   -     -

Conditions:
  TYPE           STATUS   SINCE   REASON          MESSAGE
  PodScheduled   False    -       Unschedulable   no node fits

Events:
  AGE   TYPE      REASON   MESSAGE
  60s   Warning   R        m
";
        assert_eq!(text(&view, &claims, &events, now, false), expected);
    }
}
