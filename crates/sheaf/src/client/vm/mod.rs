//! `sheaf vm`: virtual machines. Starting and stopping are KubeVirt's subresources, as virtctl uses them.

mod compose;
mod create;
mod more;
mod show;
mod view;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object;

use self::compose::CLAIM_TEMPLATES;
use super::api::{INSTANCES, VMS, subresource};
use super::print::{self, Format, Table, age, cell, put, say};
use super::progress::{Progress, duration};
use super::{Connection, EXIT_CODES, Session, fail};

pub(crate) use self::view::{VmView, cpus, memory};
pub(crate) use super::print::event_time;

/// Claims that go with the VM when it is deleted; the VM controller carries it out (harvester.md 2.1).
const REMOVED_CLAIMS: &str = "harvesterhci.io/removedPersistentVolumeClaims";

/// Options of `sheaf vm`.
#[derive(Args)]
pub(crate) struct VmArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show VMs: their state, node and address.
    #[command(visible_alias = "ls", after_help = format!("Example:\n  sheaf vm list -A -o wide\n\n{EXIT_CODES}"))]
    List {
        /// VMs of all namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Format of the output.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Show one VM in full: disks, addresses, conditions, events.
    #[command(after_help = format!("Example:\n  sheaf vm show web\n\n{EXIT_CODES}"))]
    Show {
        /// Name of the VM.
        name: String,
        /// Format of the output.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Make a VM with its disks, and start it.
    Create(Box<create::CreateArgs>),
    /// Start VMs.
    #[command(after_help = format!("Example:\n  sheaf vm start web --wait\n\n{EXIT_CODES}"))]
    Start {
        #[command(flatten)]
        which: Which,
        /// Start with the processors stopped; `sheaf vm unpause` lets them run.
        #[arg(long)]
        paused: bool,
    },
    /// Shut VMs down, by force when their grace period is over.
    #[command(after_help = format!("Example:\n  sheaf vm stop web db --wait\n\n{EXIT_CODES}"))]
    Stop {
        #[command(flatten)]
        which: Which,
        /// Do not let the guest shut down; as if its power were cut.
        #[arg(long)]
        force: bool,
    },
    /// Shut VMs down and start them again.
    #[command(after_help = format!("Example:\n  sheaf vm restart web\n\n{EXIT_CODES}"))]
    Restart {
        #[command(flatten)]
        which: Which,
        /// Do not let the guest shut down; as if its power were cut.
        #[arg(long)]
        force: bool,
    },
    /// Stop the processors of running VMs; memory and connections are kept.
    #[command(after_help = format!("Example:\n  sheaf vm pause web\n\n{EXIT_CODES}"))]
    Pause {
        #[command(flatten)]
        which: Which,
    },
    /// Let paused VMs go on.
    #[command(after_help = format!("Example:\n  sheaf vm unpause web\n\n{EXIT_CODES}"))]
    Unpause {
        #[command(flatten)]
        which: Which,
    },
    #[command(flatten)]
    More(more::More),
    /// Delete VMs, with the disks that were made for them.
    #[command(visible_alias = "rm", after_help = format!("Example:\n  sheaf vm delete web --keep-disks\n\nDisks that were made apart from the VM are never deleted.\n\n{EXIT_CODES}"))]
    Delete {
        /// Names of VMs.
        #[arg(required = true)]
        names: Vec<String>,
        /// Keep the disks.
        #[arg(long)]
        keep_disks: bool,
        /// Do not let the guest shut down; as if its power were cut.
        #[arg(long)]
        force: bool,
        /// Do not wait until it has gone.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait, as 90s or 5m. The deletion itself goes on afterwards.
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
        timeout: Duration,
    },
}

/// Which VMs, and whether to wait.
#[derive(Args)]
struct Which {
    /// Names of VMs.
    #[arg(required = true)]
    names: Vec<String>,
    /// Wait until it is so.
    #[arg(long)]
    wait: bool,
    /// How long to wait, as 90s or 5m.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    timeout: Duration,
}

/// Runs a command of `sheaf vm`.
pub(crate) fn run(args: VmArgs) -> Result<()> {
    super::run(&args.connection, async |session| match &args.command {
        Command::List { all_namespaces, output } => list(session, *all_namespaces, *output).await,
        Command::Show { name, output } => show::show(session, name, *output).await,
        Command::Create(args) => create::create(session, args).await,
        Command::Start { which, paused } => {
            let body = if *paused { json!({"paused": true}) } else { json!({}) };
            act(session, which, &START, &body).await
        }
        Command::Stop { which, force } => {
            let body = if *force { json!({"gracePeriod": 0}) } else { json!({}) };
            act(session, which, &STOP, &body).await
        }
        Command::Restart { which, force } => {
            let body = if *force { json!({"gracePeriodSeconds": 0}) } else { json!({}) };
            act(session, which, &RESTART, &body).await
        }
        Command::Pause { which } => act(session, which, &PAUSE, &json!({})).await,
        Command::Unpause { which } => act(session, which, &UNPAUSE, &json!({})).await,
        Command::More(more) => more::run(session, more).await,
        Command::Delete { names, keep_disks, force, no_wait, timeout } => {
            for name in names {
                delete(session, name, *keep_disks, *force).await?;
            }
            for name in names.iter().filter(|_| !no_wait) {
                gone(session, name, *timeout).await?;
            }
            Ok(())
        }
    })
}

/// A subresource, and what it leads to.
struct Action {
    plural: &'static str,
    sub: &'static str,
    /// What follows, once the server has agreed.
    asked: &'static str,
    /// What is so when it is reached.
    done: &'static str,
    /// Whether it is so; the second is the instance's uid before.
    reached: fn(&VmView<'_>, &str) -> bool,
}

const MACHINES: &str = "virtualmachines";
const MACHINE_INSTANCES: &str = "virtualmachineinstances";

const START: Action = Action {
    plural: MACHINES,
    sub: "start",
    asked: "starts",
    done: "runs",
    reached: |view, _| view.phase() == "Running",
};
const STOP: Action = Action {
    plural: MACHINES,
    sub: "stop",
    asked: "stops",
    done: "is stopped",
    reached: |view, _| matches!(view.phase(), "" | "Succeeded" | "Failed") && view.status() == "Stopped",
};
const RESTART: Action = Action {
    plural: MACHINES,
    sub: "restart",
    asked: "restarts",
    done: "runs again",
    reached: |view, before| view.phase() == "Running" && view.instance.map_or("", object::uid) != before,
};
const PAUSE: Action = Action {
    plural: MACHINE_INSTANCES,
    sub: "pause",
    asked: "is being paused",
    done: "is paused",
    reached: |view, _| view.status() == "Paused",
};
const UNPAUSE: Action = Action {
    plural: MACHINE_INSTANCES,
    sub: "unpause",
    asked: "goes on",
    done: "runs",
    reached: |view, _| view.status() == "Running",
};

async fn act(session: &Session, which: &Which, action: &Action, body: &Value) -> Result<()> {
    let mut before = Vec::new();
    for name in &which.names {
        let (namespace, name) = session.name(name);
        let instance = session.find(INSTANCES, namespace, name).await?;
        before.push(instance.as_ref().map_or(String::new(), |i| object::uid(i).to_owned()));
        session
            .put(&subresource(action.plural, namespace, name, action.sub), body)
            .await
            .with_context(|| format!("{} VM {namespace}/{name}", gerund(action.sub)))?;
        if !which.wait {
            say(&format!("VM {namespace}/{name} {}", action.asked));
        }
    }
    if !which.wait {
        return Ok(());
    }
    for (name, before) in which.names.iter().zip(&before) {
        let (namespace, name) = session.name(name);
        let what = format!("{} VM {namespace}/{name}", gerund(action.sub));
        Progress::spinner()
            .until(&what, which.timeout, async |progress| {
                let vm = session.get(VMS, namespace, name).await?;
                let instance = session.find(INSTANCES, namespace, name).await?;
                let view = VmView { vm: &vm, instance: instance.as_ref() };
                if (action.reached)(&view, before) {
                    return Ok(Some(()));
                }
                progress.tell(&state_words(&view));
                Ok(None)
            })
            .await?;
        say(&format!("VM {namespace}/{name} {}", action.done));
    }
    Ok(())
}

/// `stop` -> `stopping`.
fn gerund(sub: &str) -> String {
    match sub {
        "stop" => "stopping".into(),
        "pause" | "unpause" => format!("{}ing", sub.trim_end_matches('e')),
        other => format!("{other}ing"),
    }
}

/// Where a VM stands and what holds it, as one line.
fn state_words(view: &VmView<'_>) -> String {
    let why: String = view.why().iter().map(|why| format!("; {why}")).collect();
    format!("VM {}/{}: {}{why}", object::namespace(view.vm), object::name(view.vm), view.status())
}

async fn delete(session: &Session, name: &str, keep_disks: bool, force: bool) -> Result<()> {
    let (namespace, name) = session.name(name);
    let vm = session.get(VMS, namespace, name).await?;
    let own = own_claims(&vm);
    if !keep_disks && !own.is_empty() {
        let patch = json!({"metadata": {"annotations": {REMOVED_CLAIMS: own.join(",")}}});
        session
            .merge(VMS, namespace, name, &patch)
            .await
            .with_context(|| format!("marking the disks of VM {name}"))?;
    }
    if force {
        let path = subresource(MACHINES, namespace, name, "stop");
        match session.put(&path, &json!({"gracePeriod": 0})).await {
            // It does not run.
            Err(error) if fail::status(&error).is_some_and(|s| s.code == 409) => {}
            other => other.with_context(|| format!("stopping VM {name}"))?,
        }
    }
    session.delete(VMS, namespace, name).await.with_context(|| format!("deleting VM {name}"))?;
    let view = VmView { vm: &vm, instance: None };
    let kept: Vec<&str> = view
        .volumes()
        .into_iter()
        .filter(|(_, what, claim)| *what == "claim" && (keep_disks || !own.iter().any(|own| own == claim)))
        .map(|(_, _, claim)| claim)
        .collect();
    let kept = if kept.is_empty() { String::new() } else { format!("; kept: claim {}", kept.join(", ")) };
    say(&format!("VM {namespace}/{name} is being deleted{kept}"));
    Ok(())
}

/// Claims that the VM brought along.
fn own_claims(vm: &Value) -> Vec<String> {
    let text = object::annotation(vm, CLAIM_TEMPLATES).unwrap_or_default();
    let templates: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    templates.iter().map(|t| object::name(t).to_owned()).filter(|name| !name.is_empty()).collect()
}

async fn gone(session: &Session, name: &str, timeout: Duration) -> Result<()> {
    let (namespace, name) = session.name(name);
    let what = format!("deleting VM {namespace}/{name}");
    Progress::spinner()
        .until(&what, timeout, async |progress| {
            let Some(vm) = session.find(VMS, namespace, name).await? else { return Ok(Some(())) };
            let instance = session.find(INSTANCES, namespace, name).await?;
            progress.tell(&state_words(&VmView { vm: &vm, instance: instance.as_ref() }));
            Ok(None)
        })
        .await?;
    say(&format!("VM {namespace}/{name} is gone"));
    Ok(())
}

async fn list(session: &Session, all: bool, output: Option<Format>) -> Result<()> {
    let namespace = (!all).then_some(session.namespace.as_str());
    let vms = session.list(VMS, namespace).await?;
    match output {
        None | Some(Format::Wide) => {
            if vms.is_empty() {
                let place =
                    if all { "any namespace".into() } else { format!("namespace {}", session.namespace) };
                say(&format!("There are no VMs in {place}. `sheaf vm create --help` shows how to make one."));
                return Ok(());
            }
            let instances = session.list(INSTANCES, namespace).await?;
            let views = VmView::pair(&vms, &instances);
            put(&table(&views, all, output.is_some(), Timestamp::now()).render(0, print::coloured()))
        }
        Some(format) => print::objects(VMS, &vms, format, false),
    }
}

fn table(views: &[VmView<'_>], all: bool, wide: bool, now: Timestamp) -> Table {
    let mut head = vec!["NAME", "STATUS", "CPU", "MEMORY", "NODE", "ADDRESS", "AGE"];
    if all {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["RUN", "GUEST", "WHY"]);
    }
    let mut table = Table::new(&head);
    for view in views {
        let mut row = vec![
            cell(object::name(view.vm)),
            (view.status().to_owned(), view.tone()),
            cell(view.cpus().to_string()),
            cell(view::bytes(view.memory())),
            cell(view.node()),
            cell(view.address()),
            cell(age(object::creation_timestamp(view.vm), now)),
        ];
        if all {
            row.insert(0, cell(object::namespace(view.vm)));
        }
        if wide {
            row.push(cell(view.run_strategy()));
            row.push(cell(view.guest_os()));
            row.push(cell(view.why().join("; ")));
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_in_a_table() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let vms = [json!({
            "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"memory": {"guest": "1Gi"}}}}},
            "status": {"printableStatus": "ErrorUnschedulable", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "no node fits"}
            ]},
        })];
        let views = VmView::pair(&vms, &[]);
        let expected = "\
NAMESPACE   NAME   STATUS               CPU   MEMORY   NODE   ADDRESS   AGE   RUN      GUEST   WHY
x           a      ErrorUnschedulable   1     1 GiB    -      -         10m   Always   -       no node fits
";
        assert_eq!(table(&views, true, true, now).render(0, false), expected);
    }

    #[test]
    fn claims_that_go_with_a_vm() {
        let templates =
            json!([{"metadata": {"name": "a-root"}}, {"metadata": {}}, {"metadata": {"name": "a-data1"}}]);
        let vm = json!({"metadata": {"annotations": {CLAIM_TEMPLATES: templates.to_string()}}});
        assert_eq!(own_claims(&vm), ["a-root", "a-data1"]);
        assert!(own_claims(&json!({})).is_empty());
    }

    #[test]
    fn words() {
        let all: Vec<String> = ["start", "stop", "restart", "pause", "unpause"].map(gerund).into();
        assert_eq!(all, ["starting", "stopping", "restarting", "pausing", "unpausing"]);
    }
}
