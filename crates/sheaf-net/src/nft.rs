//! The management network's packet filter rules, applied with the program `nft`.
//!
//! Our own table holds the masquerading from the guests' subnet to the outside and nothing else: accepting in a table
//! of our own would not keep another firewall from dropping, as every table has its say. So where another firewall
//! drops forwarded packets, or those to the host, by default (Docker, ufw, a hand-made one), rules for our bridge are put
//! at the head of *its* chain, each with the comment [`COMMENT`], by which they are found again. Docker is given them in
//! `DOCKER-USER`, which it leaves alone. What cannot be helped from here: chains that end in an explicit drop or reject
//! under a policy of accept (firewalld: put the bridge into the zone `trusted`), and the old iptables back end.
//!
//! [`ruleset`], [`foreign_chains`] and [`plan_chain`] are pure; [`apply`] and its like run `nft`, in the network namespace
//! of the calling thread. No state.

use std::fmt::Write as _;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::Subnet;

/// Marks rules of ours in chains of others.
pub const COMMENT: &str = "sheaf.io guests";
const TABLE: &str = "ip sheaf";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why rules could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error(
        "the program nft was not found; install it (Debian package nftables), as guests need it to reach the outside"
    )]
    Missing,
    /// The program could not be run.
    #[error("running nft failed")]
    Run(#[source] io::Error),
    /// The program hangs.
    #[error("nft did not end within {} seconds", TIMEOUT.as_secs())]
    Hangs,
    /// The program refused; usually the kernel lacks a module.
    #[error("nft refused: {0}")]
    Refused(String),
    /// The program's output is not what its documentation says.
    #[error("the output of nft could not be read")]
    Output(#[source] serde_json::Error),
}

/// Our whole table, as `nft -f` takes it; replaces what is there in one transaction.
#[must_use]
pub fn ruleset(bridge: &str, subnet: Subnet) -> String {
    // Declared before it is deleted, as deleting a table that does not exist is an error.
    format!(
        "table {TABLE}\n\
         delete table {TABLE}\n\
         table {TABLE} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {subnet} ip daddr != {subnet} oifname != \"{bridge}\" masquerade\n\
         \t}}\n\
         }}\n"
    )
}

/// A chain, as `nft -j list chains` tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Chain {
    /// `ip`, `inet`, `ip6`, `bridge` and so on.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets enter it, if they do.
    pub hook: Option<String>,
    /// What happens to packets at its end.
    pub policy: Option<String>,
}

/// A chain of somebody else that needs rules for our bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChain {
    /// Family, table and name, as `nft` takes them.
    pub chain: String,
    /// The rules, in order, without comment.
    pub rules: Vec<String>,
}

/// Which chains of others would drop our guests' packets, and the rules that prevent it.
#[must_use]
pub fn foreign_chains(chains: &[Chain], bridge: &str) -> Vec<ForeignChain> {
    let mut found: Vec<ForeignChain> = Vec::new();
    let dropping = chains
        .iter()
        .filter(|c| matches!(c.family.as_str(), "ip" | "inet") && c.policy.as_deref() == Some("drop"));
    for chain in dropping {
        let (name, rules) = match chain.hook.as_deref() {
            Some("forward") => {
                let docker = chains
                    .iter()
                    .any(|c| c.family == chain.family && c.table == chain.table && c.name == "DOCKER-USER");
                let name = if docker { "DOCKER-USER" } else { &chain.name };
                (name, vec![format!("iifname \"{bridge}\" accept"), format!("oifname \"{bridge}\" accept")])
            }
            Some("input") => {
                let port = |rule: &str| format!("iifname \"{bridge}\" {rule} accept");
                (chain.name.as_str(), vec![port("udp dport 67"), port("udp dport 53"), port("tcp dport 53")])
            }
            _ => continue,
        };
        let chain = format!("{} {} {name}", chain.family, chain.table);
        if !found.iter().any(|f| f.chain == chain) {
            found.push(ForeignChain { chain, rules });
        }
    }
    found
}

/// Commands for `nft -f` that make our rules in a chain what they should be, given `nft -a list chain`. Empty if they are.
#[must_use]
pub fn plan_chain(want: &ForeignChain, listing: &str) -> String {
    let comment = format!("comment \"{COMMENT}\"");
    let ours = listing.lines().map(str::trim).filter(|line| line.contains(&comment));
    let ours: Vec<(&str, &str)> = ours.filter_map(|line| line.rsplit_once(" # handle ")).collect();
    let present = ours.iter().map(|(rule, _)| rule.trim());
    if present.eq(want.rules.iter().map(|rule| format!("{rule} {comment}"))) {
        return String::new();
    }
    let mut commands = String::new();
    // Writing to a String cannot fail.
    for (_, handle) in ours {
        let _ = writeln!(commands, "delete rule {} handle {handle}", want.chain);
    }
    // Each goes to the head, so the last one first.
    for rule in want.rules.iter().rev() {
        let _ = writeln!(commands, "insert rule {} {rule} {comment}", want.chain);
    }
    commands
}

/// What [`apply`] left behind, to see later whether it is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied(String);

/// Puts our table in place.
pub async fn apply(bridge: &str, subnet: Subnet) -> Result<Applied, NftError> {
    run(&["-f", "-"], &ruleset(bridge, subnet)).await?;
    Ok(Applied(list_table().await?))
}

/// Whether our table is as [`apply`] left it.
pub async fn is_intact(applied: &Applied) -> Result<bool, NftError> {
    match list_table().await {
        Ok(listing) => Ok(listing == applied.0),
        // It is gone.
        Err(NftError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn list_table() -> Result<String, NftError> {
    let [family, name] = ["ip", "sheaf"];
    run(&["-s", "list", "table", family, name], "").await
}

/// Puts rules for our bridge into the chains of others that need them. Returns the chains that were changed.
pub async fn apply_foreign(bridge: &str) -> Result<Vec<String>, NftError> {
    let mut changed = Vec::new();
    for want in foreign_chains(&list_chains().await?, bridge) {
        let commands = plan_chain(&want, &list_chain(&want.chain).await?);
        if !commands.is_empty() {
            run(&["-f", "-"], &commands).await?;
            changed.push(want.chain);
        }
    }
    Ok(changed)
}

/// Removes our table, and our rules from the chains of others.
pub async fn remove(bridge: &str) -> Result<(), NftError> {
    run(&["-f", "-"], &format!("table {TABLE}\ndelete table {TABLE}\n")).await?;
    for mut chain in foreign_chains(&list_chains().await?, bridge) {
        chain.rules.clear();
        let commands = plan_chain(&chain, &list_chain(&chain.chain).await?);
        if !commands.is_empty() {
            run(&["-f", "-"], &commands).await?;
        }
    }
    Ok(())
}

async fn list_chain(chain: &str) -> Result<String, NftError> {
    let mut arguments = vec!["-a", "list", "chain"];
    arguments.extend(chain.split(' '));
    run(&arguments, "").await
}

async fn list_chains() -> Result<Vec<Chain>, NftError> {
    parse_chains(&run(&["-j", "list", "chains"], "").await?).map_err(NftError::Output)
}

fn parse_chains(json: &str) -> Result<Vec<Chain>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        chain: Option<Chain>,
    }
    let listing: Listing = serde_json::from_str(json)?;
    Ok(listing.nftables.into_iter().filter_map(|item| item.chain).collect())
}

async fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    match tokio::time::timeout(TIMEOUT, spawn(arguments, input)).await {
        Err(_) => Err(NftError::Hangs),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(NftError::Missing),
        Ok(Err(error)) => Err(NftError::Run(error)),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(NftError::Refused(text.lines().next().unwrap_or("no reason given").to_owned()))
        }
    }
}

async fn spawn(arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        // Services have /usr/sbin in their path, but not everybody's shell has.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read to the end says why on its standard error.
        match stdin.write_all(input.as_bytes()).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_table_is_this() {
        let text = ruleset("sheaf0", "10.52.3.0/24".parse().unwrap());
        let golden = r#"table ip sheaf
delete table ip sheaf
table ip sheaf {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.52.3.0/24 ip daddr != 10.52.3.0/24 oifname != "sheaf0" masquerade
	}
}
"#;
        assert_eq!(text, golden);
    }

    const DOCKER: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER", "handle": 4}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "mine", "name": "in", "handle": 1, "type": "filter",
                   "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "sheaf", "name": "postrouting", "handle": 1, "type": "nat",
                   "hook": "postrouting", "prio": 100, "policy": "accept"}}
    ]}"#;

    #[test]
    fn dropping_chains_get_rules_and_docker_s_in_its_user_chain() {
        let found = foreign_chains(&parse_chains(DOCKER).unwrap(), "sheaf0");
        let chains: Vec<&str> = found.iter().map(|f| f.chain.as_str()).collect();
        assert_eq!(chains, ["ip filter DOCKER-USER", "inet mine in"]);
        assert_eq!(found[0].rules, [r#"iifname "sheaf0" accept"#, r#"oifname "sheaf0" accept"#]);
        assert!(found[1].rules.contains(&r#"iifname "sheaf0" udp dport 67 accept"#.to_owned()));
    }

    #[test]
    fn rules_in_foreign_chains_are_put_once_and_mended() {
        let want = ForeignChain {
            chain: "ip filter FORWARD".into(),
            rules: vec!["iifname \"b\" accept".into(), "oifname \"b\" accept".into()],
        };
        let empty = "table ip filter {\n\tchain FORWARD { # handle 2\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        let insert = "insert rule ip filter FORWARD oifname \"b\" accept comment \"sheaf.io guests\"\n\
                      insert rule ip filter FORWARD iifname \"b\" accept comment \"sheaf.io guests\"\n";
        assert_eq!(plan_chain(&want, empty), insert);
        let done = "\t\tiifname \"b\" accept comment \"sheaf.io guests\" # handle 8\n\
                    \t\toifname \"b\" accept comment \"sheaf.io guests\" # handle 9\n\
                    \t\tip saddr 1.2.3.4 accept # handle 3\n";
        assert_eq!(plan_chain(&want, done), "");
        let half = "\t\toifname \"b\" accept comment \"sheaf.io guests\" # handle 9\n";
        assert_eq!(plan_chain(&want, half), format!("delete rule ip filter FORWARD handle 9\n{insert}"));
    }
}
