//! `sheaf volume` about the cluster: Longhorn's objects, as any client of the API sees and writes them. What is asked for is waited
//! for; it goes on without this command.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object;
use sheaf_meta::quantity::Quantity;
use sheaf_plan::storage::{CHECK, CHECKED, MADE, REVERT, REVERTED};

use super::view::{self, Whole, holds, text};
use super::{Command, adopt};
use crate::client::Session;
use crate::client::api::{CLAIMS, ENGINES, EVENTS, MOMENTS, REPLICAS, VOLUMES};
use crate::client::fail::{Exit, FAILED, NOT_FOUND};
use crate::client::print::{self, Format, put, say};
use crate::client::progress::Progress;

pub(super) const NAMESPACE: &str = "longhorn-system";
/// How long something is waited for that takes moments.
pub(super) const MOMENTS_LONG: Duration = Duration::from_secs(120);
/// How long something is waited for that reads or copies everything.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// Volumes are whole multiples of this, as Longhorn's are.
const STEP: u64 = 2 << 20;

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

/// What belongs to a volume.
async fn of(
    session: &Session,
    kind: crate::client::api::Kind,
    field: &str,
    name: &str,
) -> Result<Vec<Value>> {
    let all = session.list(kind, Some(NAMESPACE)).await?;
    Ok(all.into_iter().filter(|o| text(o, field) == name).collect())
}

async fn replicas_of(session: &Session, name: &str) -> Result<Vec<Value>> {
    of(session, REPLICAS, "/spec/volumeName", name).await
}

/// The snapshot, if it is one of the volume's.
async fn moment_of(session: &Session, volume: &str, moment: &str) -> Result<Value> {
    let found = session.get(MOMENTS, NAMESPACE, moment).await?;
    match text(&found, "/spec/volume") {
        name if name == volume => Ok(found),
        other => Err(Exit::error(
            NOT_FOUND,
            format!("snapshot {moment} is of volume {other} (its spec.volume), not of {volume}"),
        )),
    }
}

pub(super) async fn run(session: &Session, command: Command, timeout: Option<Duration>) -> Result<()> {
    let soon = timeout.unwrap_or(MOMENTS_LONG);
    match command {
        Command::List { output } => list(session, output).await,
        Command::Show { what, output } => show(session, &what, output).await,
        Command::Create { name, size, replicas, .. } => {
            let mut spec = json!({"size": size.next_multiple_of(STEP).to_string(), "frontend": "blockdev"});
            if let Some(replicas) = replicas {
                spec["numberOfReplicas"] = json!(replicas);
            }
            let object = json!({
                "apiVersion": "longhorn.io/v1beta2", "kind": "Volume",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
            });
            session.create(VOLUMES, NAMESPACE, &object, false).await?;
            made(session, &name, soon).await?;
            put(&format!("volume {name} created\n"))
        }
        Command::Expand { volume, size } => expand(session, &volume, size, soon).await,
        Command::Snapshot { volume, name, delete: true } => {
            let of = object::name(&find(session, &volume).await?).to_owned();
            moment_of(session, &of, &name).await?;
            session.delete(MOMENTS, NAMESPACE, &name).await?;
            put(&format!("snapshot {name} of volume {of} is given up; its space comes back by and by\n"))
        }
        Command::Snapshot { volume, name, delete: false } => snapshot(session, &volume, &name, soon).await,
        Command::Revert { volume, name } => revert(session, &volume, &name, soon).await,
        Command::Check { volume, .. } => check(session, &volume, timeout.unwrap_or(LONG)).await,
        Command::Rebuild { volume, replica, .. } => {
            rebuild(session, &volume, replica, timeout.unwrap_or(LONG)).await
        }
        Command::Adopt { path, dirty, name, replicas, claim } => {
            adopt::run(session, adopt::Wanted { path, dirty, name, replicas, claim }, soon).await
        }
        Command::Detach { .. } => Err(Exit::usage(
            "detach is of one machine: give --control (in the cluster, stop what uses the volume)",
        )),
    }
}

async fn list(session: &Session, output: Option<Format>) -> Result<()> {
    let volumes = session.list(VOLUMES, Some(NAMESPACE)).await?;
    if let Some(format) = output.filter(|format| *format != Format::Wide) {
        return print::objects(VOLUMES, &volumes, format, false);
    }
    if volumes.is_empty() {
        say(
            "There are no replicated volumes. A claim of class harvester-longhorn gets one, and `sheaf volume create` makes one.",
        );
        return Ok(());
    }
    let replicas = session.list(REPLICAS, Some(NAMESPACE)).await?;
    put(&view::table(&volumes, &replicas, Timestamp::now()).render(0, print::coloured()))
}

async fn show(session: &Session, what: &str, output: Option<Format>) -> Result<()> {
    let volume = find(session, what).await?;
    let name = object::name(&volume).to_owned();
    let engine = session.find(ENGINES, NAMESPACE, &format!("{name}-e-0")).await?;
    let replicas = replicas_of(session, &name).await?;
    let snapshots = of(session, MOMENTS, "/spec/volume", &name).await?;
    let whole = || json!({"volume": volume, "engine": engine, "replicas": replicas, "snapshots": snapshots});
    match output {
        Some(Format::Json) => put(&format!("{:#}\n", whole())),
        Some(Format::Yaml) => put(&print::yaml(&whole())?),
        Some(Format::Name) => print::objects(VOLUMES, &[volume], Format::Name, true),
        None | Some(Format::Wide) => {
            let mut events = of(session, EVENTS, "/involvedObject/name", &name).await?;
            events.retain(|e| text(e, "/involvedObject/kind") == "Volume");
            let whole = Whole {
                volume: &volume,
                engine: engine.as_ref(),
                replicas: &replicas,
                snapshots: &snapshots,
                events: &events,
            };
            put(&view::show(&whole, Timestamp::now(), print::coloured()))
        }
    }
}

/// A condition that is so, with its message.
fn told<'a>(o: &'a Value, kind: &str, status: &str) -> Option<&'a str> {
    let conditions = o.pointer("/status/conditions").and_then(Value::as_array)?;
    let found = conditions.iter().find(|c| c["type"] == kind && c["status"] == status)?;
    Some(text(found, "/message"))
}

/// Waits until a new volume has its first replicas.
pub(super) async fn made(session: &Session, name: &str, timeout: Duration) -> Result<()> {
    let what = format!("volume {name} to be made");
    Progress::spinner()
        .until(&what, timeout, async |progress| {
            let volume = session.get(VOLUMES, NAMESPACE, name).await?;
            if object::annotation(&volume, MADE).is_some() {
                return Ok(Some(()));
            }
            let replicas = replicas_of(session, name).await?;
            let refused = replicas.iter().find_map(|r| {
                told(r, "InstanceCreation", "False").map(|why| format!("replica {}: {why}", object::name(r)))
            });
            let waits = told(&volume, "Scheduled", "False").map(|why| format!("no place: {why}"));
            progress.tell(&refused.or(waits).unwrap_or_else(|| "its replicas are being made".into()));
            Ok(None)
        })
        .await
}

async fn expand(session: &Session, wanted: &str, size: u64, timeout: Duration) -> Result<()> {
    let found = find(session, wanted).await?;
    let name = object::name(&found).to_owned();
    let has: u64 = text(&found, "/spec/size").parse().unwrap_or(0);
    let size = size.next_multiple_of(STEP);
    if size < has {
        let why =
            format!("volume {name}: spec.size: it has {has} bytes, and a volume cannot shrink to {size}");
        return Err(Exit::usage(why));
    }
    let kubernetes = &found["status"]["kubernetesStatus"];
    let (namespace, claim) =
        (text(kubernetes, "/namespace").to_owned(), text(kubernetes, "/pvcName").to_owned());
    if claim.is_empty() {
        session.merge(VOLUMES, NAMESPACE, &name, &json!({"spec": {"size": size.to_string()}})).await?;
    } else {
        // The claim is what says how large its volume is.
        let text = Quantity::from_bytes(size).to_string();
        let patch = json!({"spec": {"resources": {"requests": {"storage": text}}}});
        session.merge(CLAIMS, &namespace, &claim, &patch).await?;
    }
    let what = format!("volume {name} to have {size} bytes");
    Progress::spinner()
        .until(&what, timeout, async |progress| {
            let volume = session.get(VOLUMES, NAMESPACE, &name).await?;
            // Asked for less than a moment ago, it may speak of what was before.
            if let Some(why) = told(&volume, "ExpansionRefused", "True")
                && text(&volume, "/spec/size").parse::<u64>().ok() == Some(size)
            {
                return Err(Exit::error(FAILED, format!("volume {name} cannot grow: {why}")));
            }
            let engine = session.find(ENGINES, NAMESPACE, &format!("{name}-e-0")).await?;
            let now = engine.as_ref().map_or("", |e| text(e, "/status/currentSize")).parse().unwrap_or(0);
            if now < size {
                progress.tell("the volume grows");
                return Ok(None);
            }
            if claim.is_empty() {
                return Ok(Some(()));
            }
            let claim = session.get(CLAIMS, &namespace, &claim).await?;
            let told = Quantity::parse(text(&claim, "/status/capacity/storage")).ok().and_then(|q| q.bytes());
            progress.tell("the volume has grown; its machine is told");
            Ok(told.is_some_and(|told| told >= size).then_some(()))
        })
        .await?;
    put(&format!("volume {name} has {size} bytes\n"))
}

async fn snapshot(session: &Session, wanted: &str, name: &str, timeout: Duration) -> Result<()> {
    let of = object::name(&find(session, wanted).await?).to_owned();
    let object = json!({
        "apiVersion": "longhorn.io/v1beta2", "kind": "Snapshot",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"longhornvolume": of}},
        "spec": {"volume": of, "createSnapshot": true},
    });
    session.create(MOMENTS, NAMESPACE, &object, false).await?;
    let what = format!("snapshot {name} of volume {of} to be ready");
    Progress::spinner()
        .until(&what, timeout, async |progress| {
            let moment = session.get(MOMENTS, NAMESPACE, name).await?;
            if moment["status"]["readyToUse"] == true {
                return Ok(Some(()));
            }
            let error = text(&moment, "/status/error");
            if !error.is_empty() {
                return Err(Exit::error(FAILED, format!("snapshot {name} of volume {of}: {error}")));
            }
            let volume = session.get(VOLUMES, NAMESPACE, &of).await?;
            progress.tell(&format!("volume {of} is {}", text(&volume, "/status/state")));
            Ok(None)
        })
        .await?;
    put(&format!("snapshot {name} of volume {of} created\n"))
}

async fn revert(session: &Session, wanted: &str, moment: &str, timeout: Duration) -> Result<()> {
    let found = find(session, wanted).await?;
    let name = object::name(&found).to_owned();
    moment_of(session, &name, moment).await?;
    let users = found["status"]["kubernetesStatus"]["workloadsStatus"].as_array();
    let over = |w: &&Value| matches!(text(w, "/podStatus"), "Succeeded" | "Failed");
    if let Some(user) = users.into_iter().flatten().find(|w| !over(w)) {
        let (kind, machine) = (text(user, "/workloadType"), text(user, "/workloadName"));
        let namespace = text(&found, "/status/kubernetesStatus/namespace");
        let why = format!(
            "volume {name}: {kind} {namespace}/{machine} has it, and would not know that its disk has changed; stop it first"
        );
        return Err(Exit::error(FAILED, why));
    }
    let annotations = json!({(REVERT): moment, (REVERTED): Value::Null});
    session.merge(VOLUMES, NAMESPACE, &name, &json!({"metadata": {"annotations": annotations}})).await?;
    let what = format!("volume {name} to be as snapshot {moment} again");
    let result = Progress::spinner()
        .until(&what, timeout, async |progress| {
            let volume = session.get(VOLUMES, NAMESPACE, &name).await?;
            progress.tell(&format!("volume {name} is {}", text(&volume, "/status/state")));
            let told = object::annotation(&volume, REVERTED).unwrap_or_default();
            Ok(told.split_once(' ').filter(|(of, _)| *of == moment).map(|(_, result)| result.to_owned()))
        })
        .await?;
    match result.as_str() {
        "ok" => put(&format!("volume {name} is as snapshot {moment} again\n")),
        why => Err(Exit::error(FAILED, format!("volume {name} cannot be as snapshot {moment} again: {why}"))),
    }
}

async fn check(session: &Session, wanted: &str, timeout: Duration) -> Result<()> {
    let name = object::name(&find(session, wanted).await?).to_owned();
    let asked = Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {(CHECK): asked}}});
    session.merge(VOLUMES, NAMESPACE, &name, &patch).await?;
    let what = format!("the replicas of volume {name} to be compared");
    let result = Progress::spinner()
        .until(&what, timeout, async |progress| {
            let volume = session.get(VOLUMES, NAMESPACE, &name).await?;
            progress.tell(&format!("volume {name} is {}", text(&volume, "/status/state")));
            let told = object::annotation(&volume, CHECKED).unwrap_or_default();
            Ok(told.strip_prefix(asked.as_str()).map(|rest| rest.trim().to_owned()))
        })
        .await?;
    match result.as_str() {
        "ok" => put(&format!("the replicas of volume {name} hold the same snapshots\n")),
        found => Err(Exit::error(FAILED, format!("volume {name}: {found}"))),
    }
}

async fn rebuild(session: &Session, wanted: &str, replica: Option<String>, timeout: Duration) -> Result<()> {
    let volume = find(session, wanted).await?;
    let name = object::name(&volume).to_owned();
    let all = replicas_of(session, &name).await?;
    let is = |r: &&Value| {
        replica.as_deref().map_or(!holds(r) && !object::is_deleting(r), |n| object::name(r) == n)
    };
    let chosen: Vec<&Value> = all.iter().filter(is).collect();
    let [chosen] = chosen[..] else {
        let names: Vec<&str> = all.iter().map(object::name).collect();
        let names = names.join(", ");
        return Err(match &replica {
            Some(replica) => Exit::error(
                NOT_FOUND,
                format!("replica {replica} is not of volume {name}, which has {names}"),
            ),
            None => Exit::usage(format!(
                "--replica: {} of the replicas of volume {name} have failed; name one of {names}",
                chosen.len()
            )),
        });
    };
    let chosen = object::name(chosen).to_owned();
    let others = all.iter().filter(|r| holds(r) && object::name(r) != chosen).count();
    if others == 0 {
        let why = format!("volume {name}: replica {chosen} is the only one that holds everything, and stays");
        return Err(Exit::error(FAILED, why));
    }
    let asked =
        volume["spec"]["numberOfReplicas"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    session.delete(REPLICAS, NAMESPACE, &chosen).await?;
    let what = format!("volume {name} to have another replica instead of {chosen}");
    let now = Progress::spinner()
        .until(&what, timeout, async |progress| {
            let all = replicas_of(session, &name).await?;
            let good = all.iter().filter(|r| holds(r)).count();
            if good > others.min(asked.saturating_sub(1)) && !all.iter().any(|r| object::name(r) == chosen) {
                return Ok(Some(good));
            }
            let volume = session.get(VOLUMES, NAMESPACE, &name).await?;
            let state = format!(
                "volume {name} is {}, {good} replicas hold everything",
                text(&volume, "/status/state")
            );
            let waits = told(&volume, "Scheduled", "False");
            progress.tell(&waits.map_or(state.clone(), |why| format!("{state}; {why}")));
            Ok(None)
        })
        .await?;
    put(&format!("replica {chosen} of volume {name} was replaced: {now} of {asked} hold everything\n"))
}
