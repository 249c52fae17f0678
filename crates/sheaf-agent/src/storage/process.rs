//! Keeps the node's storage process running: starts it, adopts one that runs, starts it anew when it ends or when something
//! that it was started with has changed. Guests wait meanwhile, and no request of theirs fails.
//!
//! The process is in a session of its own and outlives the agent. It is known again by its record: number, time of start and
//! what it was started with; one that matches is left alone. Whoever started after the machine did knows nothing of
//! attachments from before: no guest has survived that, and taking a volume again could fence its new holder.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::identity::{Identity, Purpose};

/// Waits between two starts.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that ran for so long had no trouble starting.
const STEADY: Duration = Duration::from_secs(20);
/// How long one that is told to end may take: it finishes what is at the disks.
const END: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How the storage process is started.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// The program: `sheaf` itself.
    pub program: PathBuf,
    /// `<data>/storage`: the first disk, and below it what the process must remember.
    pub dir: PathBuf,
    /// Address under which other nodes reach this one.
    pub address: IpAddr,
    /// Port for the storage processes of other nodes.
    pub port: u16,
}

impl StorageConfig {
    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    pub(super) fn votes(&self) -> PathBuf {
        self.state().join("votes.sock")
    }

    fn tls(&self, file: &str) -> PathBuf {
        self.state().join("tls").join(file)
    }
}

/// What a process was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Start {
    args: Vec<String>,
    /// Which build: device, inode, length and time of change of the program.
    program: (u64, u64, u64, i64),
    /// Until when its certificates are good; another time means others.
    certificates: i64,
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: i32,
    start_ticks: u64,
    boot: String,
    start: Start,
}

/// When a process began, in ticks since the machine did.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; what follows its last bracket is numbers.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn runs(record: &Record) -> bool {
    // A zombie is over: it has been waited for, or will be.
    let zombie = std::fs::read_to_string(format!("/proc/{}/stat", record.pid))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')));
    let there = Pid::from_raw(record.pid).is_some_and(|pid| test_kill_process(pid).is_ok());
    there && !zombie && start_ticks(record.pid) == Some(record.start_ticks)
}

/// The loop.
pub(super) struct Supervisor {
    pub(super) config: StorageConfig,
    pub(super) identity: Arc<Identity>,
    /// Directories for replicas; the first is the default one.
    pub(super) disks: watch::Receiver<Vec<PathBuf>>,
}

impl Supervisor {
    fn record_path(&self) -> PathBuf {
        self.config.state().join("process.json")
    }

    fn record(&self) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.record_path()).ok()?).ok()
    }

    /// Certificates as files: those that are there, if they are good for long; else new ones.
    fn certificates(&self) -> std::io::Result<i64> {
        let note = self.config.tls("until");
        let (address, ca) = (self.config.address.to_string(), self.identity.ca_pem());
        let kept = std::fs::read_to_string(&note).ok().and_then(|text| {
            let (until, rest) = text.split_once('\n')?;
            let (renew, of) = rest.split_once('\n')?;
            let (until, renew) = (until.parse::<i64>().ok()?, renew.parse::<i64>().ok()?);
            (of == address && Timestamp::now().as_second() < renew).then_some(until)
        });
        let same = std::fs::read_to_string(self.config.tls("ca.crt")).is_ok_and(|text| text == ca);
        if let Some(until) = kept.filter(|_| same) {
            return Ok(until);
        }
        std::fs::create_dir_all(self.config.state().join("tls"))?;
        let (mut until, mut renew) = (i64::MAX, i64::MAX);
        for (purpose, name) in [(Purpose::Serving, "server"), (Purpose::Client, "client")] {
            let pair = self.identity.pair(purpose);
            write_private(&self.config.tls(&format!("{name}.key")), pair.key_pem.as_bytes())?;
            write_private(&self.config.tls(&format!("{name}.crt")), pair.certificate_pem.as_bytes())?;
            let (from, to) = self.identity.validity(purpose).map_err(std::io::Error::other)?;
            let life = to.as_second() - from.as_second();
            until = until.min(to.as_second());
            renew = renew.min(from.as_second() + life / 6 * 5);
        }
        write_private(&self.config.tls("ca.crt"), ca.as_bytes())?;
        write_private(&note, format!("{until}\n{renew}\n{address}").as_bytes())?;
        Ok(until)
    }

    fn wanted(&self) -> std::io::Result<Start> {
        let config = &self.config;
        let program = std::fs::metadata(&config.program)?;
        let certificates = self.certificates()?;
        let any = if config.address.is_ipv6() { "[::]" } else { "0.0.0.0" };
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["storage".to_owned(), "--detached".to_owned()];
        for disk in self.disks.borrow().iter() {
            args.extend(["--disk".to_owned(), path(disk.clone())]);
        }
        for (option, value) in [
            ("--state-dir", path(config.state())),
            ("--listen", format!("{any}:{}", config.port)),
            ("--tls-cert", path(config.tls("server.crt"))),
            ("--tls-key", path(config.tls("server.key"))),
            ("--tls-client-cert", path(config.tls("client.crt"))),
            ("--tls-client-key", path(config.tls("client.key"))),
            ("--tls-ca", path(config.tls("ca.crt"))),
            ("--tls-peer-group", "system:nodes".to_owned()),
            ("--votes", path(config.votes())),
        ] {
            args.extend([option.to_owned(), value]);
        }
        Ok(Start {
            args,
            program: (program.dev(), program.ino(), program.len(), program.mtime()),
            certificates,
        })
    }

    /// Starts the process. Its output goes where ours goes.
    fn start(&self, start: &Start) -> std::io::Result<(Record, tokio::process::Child)> {
        std::fs::create_dir_all(self.config.state())?;
        let before = self.record();
        if before.is_some_and(|record| record.boot != boot()) {
            // See the module.
            let _ = std::fs::remove_file(self.config.state().join("attached.json"));
        }
        let child = tokio::process::Command::new(&self.config.program)
            .args(&start.args)
            .stdin(Stdio::null())
            .kill_on_drop(false)
            .spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.ok_or_else(|| std::io::Error::other("the process has ended at once"))?;
        let ticks = start_ticks(pid).ok_or_else(|| std::io::Error::other("the process has ended at once"))?;
        let record = Record { pid, start_ticks: ticks, boot: boot(), start: start.clone() };
        let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::other)?;
        write_private(&self.record_path(), &text)?;
        Ok((record, child))
    }

    /// Asks a process to end, and waits until it has.
    async fn end(&self, record: &Record) {
        let Some(pid) = Pid::from_raw(record.pid) else { return };
        let _ = kill_process(pid, Signal::TERM);
        let since = Instant::now();
        while runs(record) {
            if since.elapsed() > END {
                warn!(pid = record.pid, "the storage process does not end, and is killed");
                let _ = kill_process(pid, Signal::KILL);
            }
            tokio::time::sleep(LOOK / 10).await;
        }
    }

    /// Waits until the process has ended (true), or is to be started otherwise (false).
    async fn watch(&mut self, record: &Record, mut child: Option<tokio::process::Child>) -> bool {
        loop {
            tokio::select! {
                () = async {
                    match &mut child {
                        Some(child) => drop(child.wait().await),
                        None => std::future::pending().await,
                    }
                } => return true,
                changed = self.disks.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            if child.is_none() && !runs(record) {
                return true;
            }
            match self.wanted() {
                Ok(wanted) if wanted != record.start => return false,
                Ok(_) => {}
                // The program is being replaced, say.
                Err(error) => warn!(%error, "what the storage process is to be started with is not known"),
            }
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = FIRST;
        loop {
            let wanted = match self.wanted() {
                Ok(wanted) => wanted,
                Err(error) => {
                    warn!(%error, "the storage process cannot be started; tried again");
                    tokio::time::sleep(LONGEST).await;
                    continue;
                }
            };
            let since = Instant::now();
            let running = self.record().filter(runs);
            let ended = match running {
                Some(record) if record.start == wanted => {
                    info!(pid = record.pid, "the storage process runs, and is adopted");
                    self.watch(&record, None).await
                }
                Some(record) => {
                    info!(
                        pid = record.pid,
                        "the storage process is started anew: what it was started with has changed"
                    );
                    self.end(&record).await;
                    continue;
                }
                None => match self.start(&wanted) {
                    Ok((record, child)) => {
                        info!(pid = record.pid, "the storage process was started");
                        let ended = self.watch(&record, Some(child)).await;
                        if !ended {
                            self.end(&record).await;
                        }
                        ended
                    }
                    Err(error) => {
                        warn!(%error, "the storage process cannot be started; tried again");
                        true
                    }
                },
            };
            if ended {
                pause = if since.elapsed() > STEADY { FIRST } else { (pause * 2).min(LONGEST) };
                warn!(?pause, "the storage process has ended; guests wait for the next one");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_time() {
        let pid = i32::try_from(std::process::id()).expect("a number");
        let ticks = start_ticks(pid).expect("it runs");
        let start = Start { args: vec![], program: (0, 0, 0, 0), certificates: 0 };
        let record = Record { pid, start_ticks: ticks, boot: boot(), start };
        assert!(runs(&record));
        assert!(!runs(&Record { start_ticks: ticks + 1, ..record.clone() }), "another with the same number");
        assert!(!record.boot.is_empty());
    }
}
