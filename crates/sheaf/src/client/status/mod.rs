//! `sheaf status`: whether the cluster is well, and if not, what is wrong and why.

mod summary;

use anyhow::{Context, Result};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use self::summary::{Seen, Summary};
use super::api::{CLAIMS, EVENTS, IMAGES, INSTANCES, NODES, VMS};
use super::fail::{Exit, FAILED};
use super::print::{self, Format, Table, Tone, age, cell, paint, put, size, yaml};
use super::{Connection, Session};

/// Options of `sheaf status`.
#[derive(Args)]
#[command(after_help = "Examples:
  sheaf status
  sheaf status --exit-code -o json | jq .attention

Looks at all namespaces. CPU and memory of a node are what its VMs were promised, and what it has.

Exit codes: 0 done; 1 failed, or with --exit-code: something needs attention; 2 wrong usage.")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// End with 1 if something needs attention.
    #[arg(long)]
    exit_code: bool,
    /// Format of the output.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Looks once and prints.
pub(crate) fn run(args: StatusArgs) -> Result<()> {
    super::run(&args.connection, async |session| {
        let seen = gather(session).await?;
        let now = Timestamp::now();
        let summary = summary::summarize(&seen, now);
        let out = match args.output {
            Some(Format::Json) => format!("{:#}\n", summary.to_json(&session.url)),
            Some(Format::Yaml) => yaml(&summary.to_json(&session.url))?,
            Some(Format::Name) => {
                summary.attention.iter().map(|problem| format!("{}\n", problem.object)).collect()
            }
            None | Some(Format::Wide) => text(&summary, &session.url, now, print::coloured()),
        };
        put(&out)?;
        if args.exit_code && !summary.attention.is_empty() {
            return Err(Exit::error(FAILED, ""));
        }
        Ok(())
    })
}

async fn gather(session: &Session) -> Result<Seen> {
    let version = session.get_path("/version").await?;
    Ok(Seen {
        version: version["gitVersion"].as_str().unwrap_or_default().to_owned(),
        nodes: session.list(NODES, None).await.context("listing nodes")?,
        vms: session.list(VMS, None).await.context("listing VMs")?,
        instances: session.list(INSTANCES, None).await.context("listing instances")?,
        images: session.list(IMAGES, None).await.context("listing images")?,
        claims: session.list(CLAIMS, None).await.context("listing claims")?,
        events: session.list(EVENTS, None).await.context("listing events")?,
    })
}

fn text(summary: &Summary, url: &str, now: Timestamp, colours: bool) -> String {
    let mut out =
        format!("Cluster at {url}, Sheaf {} ({})\n\nNodes:\n", env!("CARGO_PKG_VERSION"), summary.version);
    let mut table = Table::new(&["NAME", "STATUS", "CPU", "MEMORY", "VMS", "ADDRESS", "AGE"]);
    for node in &summary.nodes {
        table.row(vec![
            cell(&node.name),
            (node.status.clone(), if node.ready { Tone::Good } else { Tone::Bad }),
            cell(format!("{} of {}", node.cpus_promised, node.cpus)),
            cell(format!("{} of {}", size(node.memory_promised), size(node.memory))),
            cell(node.vms.to_string()),
            cell(&node.address),
            cell(age(&node.created, now)),
        ]);
    }
    if table.is_empty() {
        out += "  none yet\n";
    } else {
        out += &table.render(2, colours);
    }
    out += &format!("\nVMs:    {}\nImages: {}\n", counts(&summary.vms), counts(&summary.images));
    if summary.attention.is_empty() {
        out += &format!("\n{}\n", paint("Nothing needs attention.", Tone::Good, colours));
        return out;
    }
    out += "\nNeeds attention:\n";
    for problem in &summary.attention {
        out += &format!("  {}: {}\n", paint(&problem.object, Tone::Bad, colours), problem.what);
        for why in &problem.why {
            out += &format!("    {why}\n");
        }
    }
    out
}

/// `3 (2 Running, 1 Stopped)`.
fn counts(by_state: &std::collections::BTreeMap<String, usize>) -> String {
    let total: usize = by_state.values().sum();
    if total == 0 {
        return "none".into();
    }
    let parts: Vec<String> = by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
    format!("{total} ({})", parts.join(", "))
}

/// A condition of an object.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_in_words() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let node = json!({
            "metadata": {"name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let mut seen = Seen { version: "v1.36.0".into(), nodes: vec![node], ..Seen::default() };
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "\
Cluster at https://a, Sheaf {version} (v1.36.0)

Nodes:
  NAME   STATUS   CPU      MEMORY         VMS   ADDRESS    AGE
  n1     Ready    0 of 4   0 B of 8 GiB   0     10.0.0.1   60m

VMs:    none
Images: none

Nothing needs attention.
"
        );
        assert_eq!(text(&summary::summarize(&seen, now), "https://a", now, false), expected);
        seen.vms = vec![json!({
            "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runStrategy": "Always"},
            "status": {"printableStatus": "ErrorUnschedulable", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "no node fits"}
            ]},
        })];
        let shown = text(&summary::summarize(&seen, now), "https://a", now, false);
        assert!(
            shown.ends_with("Needs attention:\n  VM x/a: ErrorUnschedulable\n    no node fits\n"),
            "{shown}"
        );
        assert!(shown.contains("VMs:    1 (1 ErrorUnschedulable)\n"), "{shown}");
    }
}
