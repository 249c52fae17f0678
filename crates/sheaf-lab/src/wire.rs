//! What can be wrong with a node's wire: a veth between its namespace and that of a switch. Nothing else is touched, and both ends go with their
//! namespaces. The storage process's own tests use this file, too.

use std::process::Command;

/// What is wrong with a node's wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// Nothing passes.
    Cut,
    /// What it sends is lost, what others send arrives.
    Mute,
    /// The other way round.
    Deaf,
    /// 4 Mbit/s towards it, with a short queue.
    Slow,
}

/// Both ends of a wire: namespace and device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// The switch's.
    pub(crate) switch: (&'a str, &'a str),
    /// The node's.
    pub(crate) node: (&'a str, &'a str),
}

impl Ends<'_> {
    /// Spoils a wire that is whole. Errors: the command and what it said.
    pub(crate) fn spoil(&self, wire: Wire) -> Result<(), String> {
        if matches!(wire, Wire::Cut | Wire::Mute) {
            drop_at(self.switch)?;
        }
        if matches!(wire, Wire::Cut | Wire::Deaf) {
            drop_at(self.node)?;
        }
        if wire == Wire::Slow {
            let slow = ["root", "tbf", "rate", "4mbit", "burst", "16kb", "latency", "50ms"];
            inside(self.switch.0, &[&["tc", "qdisc", "add", "dev", self.switch.1][..], &slow].concat())?;
        }
        Ok(())
    }

    /// Makes it whole again, whatever was wrong.
    pub(crate) fn mend(&self) {
        for (space, _) in [self.switch, self.node] {
            // What is not there need not go.
            let _ = inside(space, &["nft", "delete", "table", "netdev", "cut"]);
        }
        let _ = inside(self.switch.0, &["tc", "qdisc", "del", "dev", self.switch.1, "root"]);
    }
}

fn drop_at((space, device): (&str, &str)) -> Result<(), String> {
    let rules = format!(
        "add table netdev cut; add chain netdev cut in {{ type filter hook ingress device \"{device}\" priority 0; policy drop; }}"
    );
    inside(space, &["nft", &rules])
}

fn inside(space: &str, command: &[&str]) -> Result<(), String> {
    run("ip", &[&["netns", "exec", space][..], command].concat())
}

/// Runs a program to its end. Errors: the command and what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
