//! `sheaf volume` about the cluster: Longhorn's objects, as any client of the API sees and writes them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Command;
use crate::client::Session;
use crate::client::api::{CLAIMS, ENGINES, MOMENTS, REPLICAS, VOLUMES};
use crate::client::fail::{Exit, FAILED, NOT_FOUND};
use crate::client::print::{put, size};

const NAMESPACE: &str = "longhorn-system";
/// A comparison reads everything that snapshots hold.
const CHECK: Duration = Duration::from_secs(24 * 3600);
/// A revert takes moments, once nobody has the volume open.
const REVERT: Duration = Duration::from_secs(120);

fn text<'a>(o: &'a Value, pointer: &str) -> &'a str {
    o.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The volume of this name, or of the claim of this name.
async fn find(session: &Session, wanted: &str) -> Result<Value> {
    if let Some(volume) = session.find(VOLUMES, NAMESPACE, wanted).await? {
        return Ok(volume);
    }
    if let Some(claim) = session.find(CLAIMS, session.namespace.as_str(), wanted).await? {
        let name = text(&claim, "/spec/volumeName");
        if !name.is_empty() {
            return session.get(VOLUMES, NAMESPACE, name).await;
        }
    }
    let namespace = session.namespace.as_str();
    let why = format!("there is no volume {wanted}, and no claim {namespace}/{wanted} with one");
    Err(Exit::error(NOT_FOUND, why))
}

pub(super) async fn run(session: &Session, command: Command) -> Result<()> {
    match command {
        Command::List { json } => list(session, json).await,
        Command::Show { what } => show(session, &what).await,
        Command::Create { name, size, replicas, .. } => {
            let mut spec = json!({"size": size.to_string(), "frontend": "blockdev"});
            if let Some(replicas) = replicas {
                spec["numberOfReplicas"] = json!(replicas);
            }
            let object = json!({
                "apiVersion": "longhorn.io/v1beta2", "kind": "Volume",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
            });
            session.create(VOLUMES, NAMESPACE, &object, false).await?;
            put(&format!("volume {name} created\n"))
        }
        Command::Expand { volume, size } => {
            let found = find(session, &volume).await?;
            let kubernetes = &found["status"]["kubernetesStatus"];
            let (namespace, claim) = (text(kubernetes, "/namespace"), text(kubernetes, "/pvcName"));
            if !claim.is_empty() {
                // The claim is what says how large its volume is.
                let patch = json!({"spec": {"resources": {"requests": {"storage": size.to_string()}}}});
                session.merge(CLAIMS, namespace, claim, &patch).await?;
                return put(&format!("claim {namespace}/{claim} asks for {size} bytes now\n"));
            }
            let name = text(&found, "/metadata/name");
            session.merge(VOLUMES, NAMESPACE, name, &json!({"spec": {"size": size.to_string()}})).await?;
            put(&format!("volume {name} is to have {size} bytes\n"))
        }
        Command::Snapshot { volume, name, delete: true } => {
            let found = find(session, &volume).await?;
            let moment = session.get(MOMENTS, NAMESPACE, &name).await?;
            if text(&moment, "/spec/volume") != text(&found, "/metadata/name") {
                let of = text(&moment, "/spec/volume");
                return Err(Exit::error(
                    NOT_FOUND,
                    format!("snapshot {name} is of volume {of}, not of {volume}"),
                ));
            }
            session.delete(MOMENTS, NAMESPACE, &name).await
        }
        Command::Snapshot { volume, name, delete: false } => {
            let found = find(session, &volume).await?;
            let of = text(&found, "/metadata/name");
            let object = json!({
                "apiVersion": "longhorn.io/v1beta2", "kind": "Snapshot",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"longhornvolume": of}},
                "spec": {"volume": of, "createSnapshot": true},
            });
            session.create(MOMENTS, NAMESPACE, &object, false).await?;
            put(&format!("snapshot {name} of volume {of} created\n"))
        }
        Command::Revert { volume, name } => revert(session, &volume, &name).await,
        Command::Check { volume, .. } => check(session, &volume).await,
        Command::Rebuild { volume, replica, .. } => {
            let found = find(session, &volume).await?;
            let of = session.get(REPLICAS, NAMESPACE, &replica).await?;
            if text(&of, "/spec/volumeName") != text(&found, "/metadata/name") {
                return Err(Exit::error(NOT_FOUND, format!("replica {replica} is not of volume {volume}")));
            }
            session.delete(REPLICAS, NAMESPACE, &replica).await?;
            put(&format!(
                "replica {replica} is given up; another takes its place while the volume is attached\n"
            ))
        }
        Command::Detach { .. } | Command::Adopt { .. } => {
            bail!("this is done on one machine: give --control")
        }
    }
}

async fn list(session: &Session, json: bool) -> Result<()> {
    let volumes = session.list(VOLUMES, Some(NAMESPACE)).await?;
    if json {
        return put(&format!("{:#}\n", json!(volumes)));
    }
    let replicas = session.list(REPLICAS, Some(NAMESPACE)).await?;
    let mut out = format!(
        "{:<44} {:>8} {:<10} {:<10} {:<12} {:<9} {}\n",
        "VOLUME", "SIZE", "STATE", "ROBUSTNESS", "NODE", "REPLICAS", "CLAIM"
    );
    for volume in &volumes {
        let name = text(volume, "/metadata/name");
        let has = replicas.iter().filter(|r| {
            text(r, "/spec/volumeName") == name
                && text(r, "/spec/failedAt").is_empty()
                && !text(r, "/spec/healthyAt").is_empty()
        });
        let kubernetes = &volume["status"]["kubernetesStatus"];
        let claim = match text(kubernetes, "/pvcName") {
            "" => String::new(),
            claim => format!("{}/{claim}", text(kubernetes, "/namespace")),
        };
        out += &format!(
            "{:<44} {:>8} {:<10} {:<10} {:<12} {:<9} {}\n",
            name,
            size(text(volume, "/spec/size").parse().unwrap_or(0)),
            text(volume, "/status/state"),
            text(volume, "/status/robustness"),
            text(volume, "/status/currentNodeID"),
            format!("{}/{}", has.count(), volume["spec"]["numberOfReplicas"]),
            claim,
        );
    }
    put(&out)
}

async fn show(session: &Session, what: &str) -> Result<()> {
    let volume = find(session, what).await?;
    let name = text(&volume, "/metadata/name").to_owned();
    let engine = session.find(ENGINES, NAMESPACE, &format!("{name}-e-0")).await?;
    let all = session.list(REPLICAS, Some(NAMESPACE)).await?;
    let replicas: Vec<&Value> = all.iter().filter(|r| text(r, "/spec/volumeName") == name).collect();
    put(&format!("{:#}\n", json!({"volume": volume, "engine": engine, "replicas": replicas})))
}

/// Waits until the volume is as `done` wants it.
async fn wait<T>(
    session: &Session,
    name: &str,
    patience: Duration,
    done: impl Fn(&Value) -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        let volume = session.get(VOLUMES, NAMESPACE, name).await?;
        if let Some(found) = done(&volume) {
            return Ok(found);
        }
        if Instant::now() > end {
            let state = text(&volume, "/status/state");
            bail!(
                "volume {name} ({state}) has not done it within {} s; it goes on trying",
                patience.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn revert(session: &Session, volume: &str, moment: &str) -> Result<()> {
    let found = find(session, volume).await?;
    let name = text(&found, "/metadata/name").to_owned();
    let of = session.get(MOMENTS, NAMESPACE, moment).await?;
    if text(&of, "/spec/volume") != name {
        return Err(Exit::error(NOT_FOUND, format!("snapshot {moment} is not of volume {name}")));
    }
    let used = found["status"]["kubernetesStatus"]["workloadsStatus"]
        .as_array()
        .is_some_and(|w| w.iter().any(|w| text(w, "/podStatus") == "Running"));
    if used {
        bail!(
            "a machine that runs has volume {name}, and would not know that its disk has changed; stop it first"
        );
    }
    let key = "storage.sheaf.io/revert";
    session.merge(VOLUMES, NAMESPACE, &name, &json!({"metadata": {"annotations": {key: moment}}})).await?;
    wait(session, &name, REVERT, |v| v["metadata"]["annotations"].get(key).is_none().then_some(())).await?;
    put(&format!("volume {name}: what came of it is in its events\n"))
}

async fn check(session: &Session, volume: &str) -> Result<()> {
    let found = find(session, volume).await?;
    let name = text(&found, "/metadata/name").to_owned();
    let asked = k8s_openapi::jiff::Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {"storage.sheaf.io/check": asked}}});
    session.merge(VOLUMES, NAMESPACE, &name, &patch).await?;
    let result = wait(session, &name, CHECK, |v| {
        let told = v["metadata"]["annotations"]["storage.sheaf.io/checked"].as_str()?;
        told.strip_prefix(asked.as_str()).map(|rest| rest.trim().to_owned())
    })
    .await?;
    match result.as_str() {
        "ok" => put(&format!("the replicas of {name} hold the same snapshots\n")),
        wrong => Err(Exit::error(FAILED, format!("the replicas of {name}: {wrong}"))),
    }
}
