//! `sheaf volume` about one machine: asked of its storage process over the control socket; and what lies on a disk, read without
//! any process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sheaf_storage::api::{
    Answer, Ask, Attach, FrontendAt, ReplicaAt, ReplicaStatus, VolumeStatus, show_volume,
};
use sheaf_storage::control::{CallError, call};
use sheaf_storage::inspect;

use super::Command;
use crate::client::fail::{Exit, FAILED, NOT_FOUND};
use crate::client::print::{Format, put, size};

/// Longer than the process itself waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

struct Process<'a>(&'a Path);

impl Process<'_> {
    fn ask(&self, ask: &Ask) -> Result<Answer> {
        match call(self.0, ask, PATIENCE) {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(reason)) => Err(anyhow::anyhow!(reason)),
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self) -> Result<(Vec<ReplicaStatus>, Vec<VolumeStatus>)> {
        match self.ask(&Ask::List)? {
            Answer::List { replicas, volumes } => Ok((replicas, volumes)),
            _ => anyhow::bail!("the storage process answered something else"),
        }
    }

    /// The id of a volume that is attached here, or of which a replica is here.
    fn find(&self, wanted: &str) -> Result<String> {
        let (replicas, volumes) = self.list()?;
        let attached = volumes.into_iter().map(|volume| (volume.volume, volume.name));
        let mut all = attached.chain(replicas.into_iter().map(|replica| (replica.volume, replica.name)));
        let found = all.find(|(id, name)| id == wanted || name == wanted);
        found
            .map(|(id, _)| id)
            .ok_or_else(|| Exit::error(NOT_FOUND, format!("there is no volume {wanted} on this machine")))
    }
}

/// Does what was asked.
pub(super) fn run(control: &Path, command: Command) -> Result<()> {
    let process = Process(control);
    match command {
        Command::List { output } => {
            if output.is_some_and(|format| format != Format::Json) {
                return Err(Exit::usage("-o: with --control, only json"));
            }
            list(&process, output.is_some())
        }
        Command::Show { what, .. } => show(&process, &what),
        Command::Create { name, size, nbd, vhost, .. } => create(&process, name, size, nbd, vhost),
        Command::Detach { volume } => done(&process, &Ask::Detach { volume: process.find(&volume)? }),
        Command::Expand { volume, size } => {
            done(&process, &Ask::Expand { volume: process.find(&volume)?, bytes: size })
        }
        Command::Snapshot { volume, name, delete } => {
            let volume = process.find(&volume)?;
            let ask = match delete {
                true => Ask::RemoveSnapshot { volume, name },
                false => Ask::Snapshot { volume, name, labels: Default::default(), system: false },
            };
            done(&process, &ask)
        }
        Command::Revert { volume, name } => {
            done(&process, &Ask::Revert { volume: process.find(&volume)?, name })
        }
        Command::Check { volume, with } => check(&process, &volume, &with),
        Command::Rebuild { volume, replica, address } => {
            let replica = replica.ok_or_else(|| Exit::usage("--replica: with --control, its number"))?;
            let replica =
                replica.parse().map_err(|_| Exit::usage(format!("--replica: {replica:?} is no number")))?;
            rebuild(&process, &volume, replica, address)
        }
        Command::Adopt { path, dirty, .. } => {
            let path = path.canonicalize().with_context(|| format!("looking at {}", path.display()))?;
            let volume = new_volume()?;
            process.ask(&Ask::Adopt { path, volume: volume.clone(), replica: 1, dirty })?;
            put(&format!("{volume}\n"))
        }
    }
}

fn done(process: &Process<'_>, ask: &Ask) -> Result<()> {
    process.ask(ask).map(drop)
}

pub(super) fn new_volume() -> Result<String> {
    let mut bytes = [0; 16];
    let mut random = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("reading /dev/urandom")?;
    Ok(show_volume(sheaf_block_core::ids::VolumeId(u128::from_le_bytes(bytes))))
}

fn list(process: &Process<'_>, json: bool) -> Result<()> {
    let (replicas, volumes) = process.list()?;
    if json {
        let all = serde_json::json!({ "volumes": volumes, "replicas": replicas });
        return put(&format!("{all:#}\n"));
    }
    let numbers = |of: &[u32]| of.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut text = format!(
        "{:<24} {:>8} {:<11} {:<9} {:>8} {:>7}\n",
        "VOLUME", "SIZE", "PHASE", "IN SYNC", "CLIENTS", "EPOCH"
    );
    for volume in &volumes {
        text += &format!(
            "{:<24} {:>8} {:<11} {:<9} {:>8} {:>7}\n",
            volume.name,
            size(volume.bytes),
            volume.phase,
            numbers(&volume.in_sync),
            volume.clients,
            volume.epoch
        );
    }
    text += &format!("\n{:<24} {:>7} {:>8} {:>6}  {}\n", "REPLICA OF", "NUMBER", "SIZE", "LAYERS", "STATE");
    for replica in &replicas {
        text += &format!(
            "{:<24} {:>7} {:>8} {:>6}  {}\n",
            replica.name,
            replica.replica,
            size(replica.bytes),
            replica.layers,
            replica.state
        );
    }
    put(&text)
}

fn show(process: &Process<'_>, what: &str) -> Result<()> {
    if what.contains('/') {
        let report = inspect::look(Path::new(what)).map_err(|reason| anyhow::anyhow!(reason))?;
        return put(&format!("{:#}\n", serde_json::to_value(report)?));
    }
    let id = process.find(what)?;
    let (replicas, volumes) = process.list()?;
    let replicas: Vec<_> = replicas.into_iter().filter(|replica| replica.volume == id).collect();
    let volume = volumes.into_iter().find(|volume| volume.volume == id);
    // What the coordinator holds to be so, and what each replica here believes by its own ledger.
    put(&format!("{:#}\n", serde_json::json!({ "coordinator": volume, "replicas": replicas })))
}

fn create(
    process: &Process<'_>,
    name: String,
    bytes: u64,
    nbd: Option<PathBuf>,
    vhost: Option<PathBuf>,
) -> Result<()> {
    let volume = new_volume()?;
    let nbd = nbd.map(FrontendAt::Nbd);
    let frontends = nbd.into_iter().chain(vhost.map(FrontendAt::Vhost)).collect();
    let (of, called) = (volume.clone(), name.clone());
    let ask = Ask::CreateReplica {
        volume: of,
        name: called,
        replica: 1,
        bytes,
        disk: None,
        together_with: vec![1],
        directory: None,
        base: None,
    };
    process.ask(&ask)?;
    let replicas = vec![ReplicaAt { id: 1, address: None }];
    process.ask(&Ask::Attach(Attach { volume: volume.clone(), name, bytes, replicas, frontends }))?;
    put(&format!("{volume}\n"))
}

fn check(process: &Process<'_>, volume: &str, with: &[PathBuf]) -> Result<()> {
    let id = process.find(volume)?;
    let mut digests = Vec::new();
    let others = with.iter().map(|path| Process(path));
    for process in std::iter::once(Process(process.0)).chain(others) {
        for replica in process.list()?.0.into_iter().filter(|replica| replica.volume == id) {
            let ask = Ask::Digest { volume: id.clone(), replica: replica.replica };
            match process.ask(&ask)? {
                Answer::Digest(digest) => digests.push((replica.replica, digest)),
                _ => anyhow::bail!("the storage process answered something else"),
            }
        }
    }
    let Some(((first, reference), others)) = digests.split_first() else {
        return Err(Exit::error(NOT_FOUND, format!("no replica of {volume} is here")));
    };
    if others.is_empty() {
        return put(&format!("replica {first} is the only one here: nothing to compare it with\n"));
    }
    let mut text = String::new();
    for (number, digest) in others {
        let pairs = reference.sums.iter().zip(&digest.sums);
        let differing: Vec<u64> = (0..)
            .zip(pairs)
            .filter(|(_, (one, other))| one != other)
            .map(|(at, _)| at * reference.chunk)
            .collect();
        let same_size = reference.sums.len() == digest.sums.len();
        match differing.first() {
            None if same_size => text += &format!("replica {number} equals replica {first}\n"),
            None => text += &format!("replica {number} has another size than replica {first}\n"),
            Some(at) => {
                let count = differing.len();
                let chunk = size(reference.chunk);
                text += &format!(
                    "replica {number} differs from replica {first} in {count} chunks of {chunk}, the first at byte {at}\n"
                );
            }
        }
    }
    put(&text)?;
    let bad = text.contains("differs") || text.contains("another size");
    if bad { Err(Exit::error(FAILED, format!("the replicas of {volume} are not equal"))) } else { Ok(()) }
}

fn rebuild(process: &Process<'_>, volume: &str, replica: u32, address: Option<String>) -> Result<()> {
    let id = process.find(volume)?;
    let volumes = process.list()?.1;
    let Some(at) = volumes.into_iter().find(|volume| volume.volume == id) else {
        return Err(Exit::error(NOT_FOUND, format!("volume {volume} is not attached here")));
    };
    if address.is_none() {
        let bytes = at.bytes;
        let (volume, name) = (id.clone(), at.name);
        process.ask(&Ask::CreateReplica {
            volume,
            name,
            replica,
            bytes,
            disk: None,
            together_with: vec![],
            directory: None,
            base: None,
        })?;
    }
    done(process, &Ask::AddReplica { volume: id, replica: ReplicaAt { id: replica, address } })
}
