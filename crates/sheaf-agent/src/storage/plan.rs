//! What follows for a replica and for an engine of this node, given what the storage process says. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use sheaf_api::longhorn::{Engine, EngineSnapshot, EngineStatus, RebuildStatus, Replica};
use sheaf_plan::storage::{ADOPT, SHARED, replica_number, together};
use sheaf_storage::api::{Ask, Attach, Base, FrontendAt, ReplicaAt, ReplicaStatus, VolumeStatus};

use super::LayerSize;

/// What to do with a replica.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ReplicaStep {
    /// Only report.
    Report,
    /// Make its directory.
    Create(Ask),
    /// Delete its directory, then let the object go.
    Delete(Ask),
    /// Nothing, and why.
    Wait(String),
    /// Its disk is there, and its directory, which was there once, is not.
    Missing(String),
}

/// What a replica that its volume is made with begins as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Nothing.
    Empty,
    /// A base, which is there.
    Over(Base),
    /// A base, which is not there yet, and why.
    Waits(String),
}

/// What is known of a replica.
#[derive(Debug, Clone)]
pub(super) struct ReplicaSeen<'a> {
    pub(super) replica: &'a Replica,
    /// The volume's id; none: there is no such volume any more.
    pub(super) id: Option<&'a str>,
    /// The volume has its first replicas.
    pub(super) made: bool,
    /// The volume is being deleted.
    pub(super) ending: bool,
    /// The engine.
    pub(super) engine: Option<&'a Engine>,
    /// The directory, as the process has it.
    pub(super) found: Option<&'a ReplicaStatus>,
    /// On its disk: the directory is there (true), or is not.
    pub(super) on_disk: Option<bool>,
    /// What it begins as, if it is to be made.
    pub(super) beginning: Beginning,
}

pub(super) fn plan_replica(seen: &ReplicaSeen<'_>) -> ReplicaStep {
    let replica = seen.replica;
    let name = replica.metadata.name.clone().unwrap_or_default();
    let Some(number) = replica_number(&name) else {
        return ReplicaStep::Wait(format!("{name} does not end in -r- and eight hexadecimal digits"));
    };
    if replica.metadata.deletion_timestamp.is_some() {
        let holds = seen.engine.is_some_and(|e| {
            let status = e.status.clone().unwrap_or_default();
            // Only an attached volume can let go of one of its replicas.
            !(status.current_state == "running"
                && status.owner_id == e.spec.node_id
                && !status.current_replica_address_map.contains_key(&name))
        });
        if holds && !seen.ending && seen.id.is_some() {
            let why = "it is deleted when the volume is attached and has let go of it";
            return ReplicaStep::Wait(why.into());
        }
        let volume = seen.found.map(|f| f.volume.clone()).or_else(|| seen.id.map(str::to_owned));
        return ReplicaStep::Delete(Ask::DeleteReplica {
            volume: volume.unwrap_or_default(),
            replica: number,
        });
    }
    let Some(id) = seen.id else { return ReplicaStep::Wait("its volume does not exist".into()) };
    let status = replica.status.clone().unwrap_or_default();
    let directory = &replica.spec.data_directory_name;
    let adopt = replica.metadata.annotations.as_ref().and_then(|a| a.get(ADOPT));
    if let Some(how) = adopt.filter(|_| !seen.made && status.started != Some(true))
        && seen.found.is_none_or(|f| f.state != "open")
    {
        return ReplicaStep::Create(Ask::Adopt {
            path: Path::new(&replica.spec.disk_path).join("replicas").join(directory),
            volume: id.to_owned(),
            replica: number,
            dirty: how == "dirty",
        });
    }
    let gone = || {
        let why = format!("its directory {directory} is not in {}/replicas any more", replica.spec.disk_path);
        match seen.on_disk {
            Some(false) => ReplicaStep::Missing(why),
            // Its disk itself is not there, or another one is: this may pass.
            _ => ReplicaStep::Wait(why),
        }
    };
    if seen.found.is_some() {
        // A process that has it open goes on with files that have no names.
        return if seen.on_disk == Some(false) { gone() } else { ReplicaStep::Report };
    }
    let first = together(replica);
    // A directory that was there once is not made anew: an empty one would count for what the lost one held.
    let may = match first.is_empty() {
        true => replica.spec.healthy_at.is_empty() && status.started != Some(true),
        false => !seen.made && status.started != Some(true),
    };
    if !may {
        return gone();
    }
    let base = match &seen.beginning {
        // Who comes later gets everything from the others.
        _ if first.is_empty() => None,
        Beginning::Empty => None,
        Beginning::Over(base) => Some(base.clone()),
        Beginning::Waits(why) => return ReplicaStep::Wait(why.clone()),
    };
    ReplicaStep::Create(Ask::CreateReplica {
        volume: id.to_owned(),
        name: replica.spec.volume_name.clone(),
        replica: number,
        bytes: replica.spec.volume_size.parse().unwrap_or(0),
        disk: Some(replica.spec.disk_path.clone().into()),
        together_with: first,
        directory: Some(replica.spec.data_directory_name.clone()),
        base,
    })
}

/// What to do with an engine.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum EngineStep {
    /// Only report.
    Report,
    /// Ask this of the process, then look again.
    Ask(Ask),
    /// Nothing, and why.
    Wait(String),
}

/// What is known of an engine of this node.
#[derive(Debug, Clone)]
pub(super) struct EngineSeen<'a> {
    pub(super) engine: &'a Engine,
    /// The volume's id.
    pub(super) id: &'a str,
    /// This node.
    pub(super) node: &'a str,
    /// Nodes of its replicas, by the replicas' names.
    pub(super) nodes: &'a BTreeMap<String, String>,
    /// The volume in the process.
    pub(super) found: Option<&'a VolumeStatus>,
    /// Bytes of the local replica, if there is one.
    pub(super) local_bytes: Option<u64>,
    /// Where guests are to find it.
    pub(super) frontends: Vec<FrontendAt>,
    /// It is being filled.
    pub(super) filling: bool,
}

/// The replicas of an engine as the process takes them.
fn replicas(seen: &EngineSeen<'_>) -> Vec<ReplicaAt> {
    let at = |(name, address): (&String, &String)| {
        let id = replica_number(name)?;
        let local = seen.nodes.get(name).is_some_and(|node| node == seen.node);
        Some(ReplicaAt { id, address: (!local).then(|| address.clone()) })
    };
    seen.engine.spec.replica_address_map.iter().filter_map(at).collect()
}

pub(super) fn plan_engine(seen: &EngineSeen<'_>) -> EngineStep {
    let spec = &seen.engine.spec;
    let wanted = replicas(seen);
    let runs = spec.desire_state == "running" && spec.node_id == seen.node;
    let Some(found) = seen.found else {
        if !runs {
            return EngineStep::Report;
        }
        if wanted.is_empty() {
            return EngineStep::Wait("no replica has said where it is yet".into());
        }
        let told = seen.engine.status.as_ref().and_then(|s| s.current_size.parse().ok());
        let bytes = seen.local_bytes.or(told).or_else(|| spec.volume_size.parse().ok()).unwrap_or(0);
        return EngineStep::Ask(Ask::Attach(Attach {
            volume: seen.id.to_owned(),
            name: spec.volume_name.clone(),
            bytes,
            replicas: wanted,
            frontends: seen.frontends.clone(),
        }));
    };
    if !runs {
        if found.clients > 0 && found.phase != "fenced" {
            return EngineStep::Wait(format!("{} guests are connected", found.clients));
        }
        if seen.filling {
            return EngineStep::Wait("it is being filled".into());
        }
        return EngineStep::Ask(Ask::Detach { volume: seen.id.to_owned() });
    }
    if found.phase == "fenced" || found.phase == "lost-unsynced" {
        // Attached again by a higher epoch, and, after lost writes, with what is there: as from any disk.
        return EngineStep::Ask(Ask::Attach(Attach {
            volume: seen.id.to_owned(),
            name: spec.volume_name.clone(),
            bytes: found.bytes,
            replicas: found.replicas.clone(),
            frontends: found.frontends.clone(),
        }));
    }
    if found.phase != "serving" {
        return EngineStep::Report;
    }
    if let Some(new) = wanted.iter().find(|w| !found.replicas.iter().any(|f| f.id == w.id)) {
        return EngineStep::Ask(Ask::AddReplica { volume: seen.id.to_owned(), replica: new.clone() });
    }
    let spare = found.replicas.iter().find(|f| !wanted.iter().any(|w| w.id == f.id));
    if let Some(old) = spare.filter(|_| !wanted.is_empty()) {
        return EngineStep::Ask(Ask::RetireReplica { volume: seen.id.to_owned(), replica: old.id });
    }
    let size: u64 = spec.volume_size.parse().unwrap_or(0);
    if size > found.bytes && found.rebuilding.is_none() {
        return EngineStep::Ask(Ask::Expand { volume: seen.id.to_owned(), bytes: size });
    }
    EngineStep::Report
}

/// What an engine's status says. `sizes`: bytes that layers take, by the snapshot's name (`volume-head` for the newest).
pub(super) fn engine_status(
    seen: &EngineSeen<'_>,
    fresh: &BTreeMap<String, bool>,
    sizes: &BTreeMap<String, LayerSize>,
    address: (&str, u16),
) -> EngineStatus {
    let mut status = seen.engine.status.clone().unwrap_or_default();
    status.owner_id = seen.node.to_owned();
    status.current_image = "sheaf".into();
    status.instance_manager_name = format!("sheaf-storage-{}", seen.node);
    let Some(found) = seen.found else {
        status.current_state = "stopped".into();
        status.endpoint = String::new();
        (status.started, status.starting) = (Some(false), Some(false));
        status.replica_mode_map.clear();
        status.rebuild_status.clear();
        status.current_replica_address_map.clear();
        return status;
    };
    let serving = found.phase == "serving";
    status.current_state = if serving { "running" } else { "starting" }.into();
    (status.started, status.starting) = (Some(serving), Some(!serving));
    status.ip = address.0.to_owned();
    status.storage_ip = address.0.to_owned();
    status.port = Some(address.1.into());
    status.current_size = found.bytes.to_string();
    status.is_expanding = Some(seen.engine.spec.volume_size.parse::<u64>().is_ok_and(|b| b > found.bytes));
    status.endpoint = match found.frontends.first() {
        Some(FrontendAt::Nbd(path)) => format!("nbd+unix:///?socket={}", path.display()),
        Some(FrontendAt::Vhost(path)) => format!("vhost-user-blk:{}", path.display()),
        None => String::new(),
    };
    let name_of = |id: u32| {
        let all = seen.nodes.keys().chain(seen.engine.spec.replica_address_map.keys());
        all.into_iter().find(|name| replica_number(name) == Some(id)).cloned()
    };
    status.replica_mode_map.clear();
    status.rebuild_status.clear();
    status.current_replica_address_map.clear();
    for replica in &found.replicas {
        let name = name_of(replica.id).unwrap_or_else(|| format!("{}-r-{:08x}", found.name, replica.id));
        let rebuilding = found.rebuilding == Some(replica.id);
        let never = fresh.get(&name).copied().unwrap_or(false);
        let mode = match (found.in_sync.contains(&replica.id), rebuilding || never) {
            (true, _) => "RW",
            (false, true) => "WO",
            (false, false) => "ERR",
        };
        let known = seen.engine.spec.replica_address_map.get(&name).cloned();
        let at = known.or_else(|| replica.address.clone()).unwrap_or_default();
        if rebuilding {
            let state = RebuildStatus {
                is_rebuilding: Some(true),
                state: "in_progress".into(),
                progress: found.rebuilt.map(i64::from),
                ..RebuildStatus::default()
            };
            status.rebuild_status.insert(format!("tcp://{at}"), state);
        }
        status.replica_mode_map.insert(name.clone(), mode.into());
        status.current_replica_address_map.insert(name, at);
    }
    if serving {
        status.snapshots = snapshots(found, sizes);
    }
    status
}

fn time(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|s| k8s_openapi::jiff::Timestamp::from_second(s).ok());
    at.map(|t| t.to_string()).unwrap_or_default()
}

fn snapshots(found: &VolumeStatus, sizes: &BTreeMap<String, LayerSize>) -> BTreeMap<String, EngineSnapshot> {
    let size = |name: &str| sizes.get(name).map_or(0, |size| size.own).to_string();
    let shared = |name: &str| sizes.get(name).map(|size| size.shared).filter(|bytes| *bytes > 0);
    let mut out: BTreeMap<String, EngineSnapshot> = BTreeMap::new();
    for snapshot in &found.snapshots {
        let mut labels = snapshot.labels.clone();
        labels.extend(shared(&snapshot.name).map(|bytes| (SHARED.to_owned(), bytes.to_string())));
        out.insert(
            snapshot.name.clone(),
            EngineSnapshot {
                children: BTreeMap::new(),
                created: time(snapshot.created),
                labels,
                name: snapshot.name.clone(),
                parent: snapshot.parent.clone().unwrap_or_default(),
                removed: Some(snapshot.removed),
                size: size(&snapshot.name),
                usercreated: Some(snapshot.user),
            },
        );
    }
    let newest = found.snapshots.last().map(|s| s.name.clone()).unwrap_or_default();
    let head = EngineSnapshot {
        name: "volume-head".into(),
        parent: newest,
        size: size("volume-head"),
        removed: Some(false),
        usercreated: Some(false),
        ..EngineSnapshot::default()
    };
    out.insert("volume-head".into(), head);
    let parents: Vec<(String, String)> =
        out.values().map(|s| (s.parent.clone(), s.name.clone())).filter(|(p, _)| !p.is_empty()).collect();
    for (parent, child) in parents {
        if let Some(parent) = out.get_mut(&parent) {
            parent.children.insert(child, true);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheaf_api::longhorn::NAMESPACE;

    fn engine(state: &str, replicas: &[(&str, &str)]) -> Engine {
        let mut engine = Engine::new(NAMESPACE, "v-e-0");
        engine.spec.volume_name = "v".into();
        engine.spec.volume_size = "8192".into();
        engine.spec.node_id = "here".into();
        engine.spec.desire_state = state.into();
        engine.spec.replica_address_map =
            replicas.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
        engine
    }

    fn found(ids: &[u32]) -> VolumeStatus {
        VolumeStatus {
            volume: "id".into(),
            name: "v".into(),
            bytes: 4096,
            phase: "serving".into(),
            healthy: true,
            version: 3,
            in_sync: ids.to_vec(),
            replicas: ids.iter().map(|id| ReplicaAt { id: *id, address: None }).collect(),
            epoch: 1,
            frontends: vec![],
            clients: 0,
            requests: 0,
            snapshots: vec![],
            rebuilding: None,
            rebuilt: None,
            copied: 0,
            repaired: 0,
            undecided: 0,
        }
    }

    const ONE: (&str, &str) = ("v-r-00000001", "10.0.0.1:8500");
    const TWO: (&str, &str) = ("v-r-00000002", "10.0.0.2:8500");

    fn step(engine: &Engine, found: Option<&VolumeStatus>) -> EngineStep {
        let nodes = [(ONE.0.to_owned(), "here".to_owned()), (TWO.0.to_owned(), "there".to_owned())].into();
        plan_engine(&EngineSeen {
            engine,
            id: "id",
            node: "here",
            nodes: &nodes,
            found,
            local_bytes: Some(4096),
            frontends: vec![],
            filling: false,
        })
    }

    #[test]
    fn an_engine_is_brought_to_what_it_shall_be() {
        let running = engine("running", &[ONE, TWO]);
        let EngineStep::Ask(Ask::Attach(attach)) = step(&running, None) else { panic!("attached") };
        assert_eq!(attach.bytes, 4096, "as large as it is, not as it will be");
        let addresses: Vec<_> = attach.replicas.iter().map(|r| r.address.as_deref()).collect();
        assert_eq!(addresses, [None, Some("10.0.0.2:8500")]);
        assert!(matches!(step(&running, Some(&found(&[1]))), EngineStep::Ask(Ask::AddReplica { .. })));
        let three = step(&running, Some(&found(&[1, 2, 3])));
        assert_eq!(three, EngineStep::Ask(Ask::RetireReplica { volume: "id".into(), replica: 3 }));
        assert!(matches!(
            step(&running, Some(&found(&[1, 2]))),
            EngineStep::Ask(Ask::Expand { bytes: 8192, .. })
        ));
        let fenced = VolumeStatus { phase: "fenced".into(), ..found(&[1, 2]) };
        assert!(matches!(step(&running, Some(&fenced)), EngineStep::Ask(Ask::Attach(_))));

        let stopped = engine("stopped", &[ONE]);
        assert_eq!(step(&stopped, None), EngineStep::Report);
        assert!(matches!(step(&stopped, Some(&found(&[1]))), EngineStep::Ask(Ask::Detach { .. })));
        let used = VolumeStatus { clients: 1, ..found(&[1]) };
        assert!(matches!(step(&stopped, Some(&used)), EngineStep::Wait(_)), "a guest is connected");
        let lost = VolumeStatus { phase: "fenced".into(), ..used };
        assert!(matches!(step(&stopped, Some(&lost)), EngineStep::Ask(Ask::Detach { .. })));
    }

    fn sizes() -> BTreeMap<String, LayerSize> {
        let head = ("volume-head".to_owned(), LayerSize { own: 7, shared: 0 });
        [head, ("base".to_owned(), LayerSize { own: 0, shared: 9 })].into()
    }

    #[test]
    fn modes_are_what_the_coordinator_counts() {
        let engine = engine("running", &[ONE, TWO]);
        let nodes = [(ONE.0.to_owned(), "here".to_owned()), (TWO.0.to_owned(), "there".to_owned())].into();
        let mut volume = found(&[1, 2]);
        volume.in_sync = vec![1];
        let status = |volume: &VolumeStatus, fresh: bool| {
            let seen = EngineSeen {
                engine: &engine,
                id: "id",
                node: "here",
                nodes: &nodes,
                found: Some(volume),
                local_bytes: None,
                frontends: vec![],
                filling: false,
            };
            let fresh = [(TWO.0.to_owned(), fresh)].into();
            let status = engine_status(&seen, &fresh, &sizes(), ("10.0.0.1", 8500));
            assert_eq!(status.snapshots["volume-head"].size, "7");
            let told = status.rebuild_status.values().find_map(|rebuild| rebuild.progress);
            assert_eq!(told, volume.rebuilt.map(i64::from));
            status.replica_mode_map[TWO.0].clone()
        };
        assert_eq!(status(&volume, false), "ERR");
        assert_eq!(status(&volume, true), "WO", "it waits for its first rebuild");
        (volume.rebuilding, volume.rebuilt) = (Some(2), Some(40));
        assert_eq!(status(&volume, false), "WO");
        (volume.in_sync, volume.rebuilding, volume.rebuilt) = (vec![1, 2], None, None);
        assert_eq!(status(&volume, false), "RW");
    }

    #[test]
    fn a_lost_directory_is_not_made_anew() {
        let mut replica = Replica::new(NAMESPACE, TWO.0);
        replica.spec.volume_size = "4096".into();
        let seen = |replica: &Replica, made: bool| {
            plan_replica(&ReplicaSeen {
                replica,
                id: Some("id"),
                made,
                ending: false,
                engine: None,
                found: None,
                on_disk: Some(false),
                beginning: Beginning::Empty,
            })
        };
        assert!(matches!(seen(&replica, true), ReplicaStep::Create(_)), "one that comes later");
        replica.spec.healthy_at = "2026-01-01T00:00:00Z".into();
        assert!(matches!(seen(&replica, true), ReplicaStep::Missing(why) if why.contains("not in")));
        replica.metadata.annotations =
            Some([(sheaf_plan::storage::TOGETHER.to_owned(), "1,2".to_owned())].into());
        assert!(matches!(seen(&replica, false), ReplicaStep::Create(_)), "one that the volume is made with");
        assert!(matches!(seen(&replica, true), ReplicaStep::Missing(_)), "it was there once");
        let other = |on_disk| {
            let id = Some("id");
            plan_replica(&ReplicaSeen {
                replica: &replica,
                id,
                made: true,
                ending: false,
                engine: None,
                found: None,
                on_disk,
                beginning: Beginning::Empty,
            })
        };
        assert!(matches!(other(None), ReplicaStep::Wait(_)), "its disk may come back");
        let mut gone = replica.clone();
        let now = k8s_openapi::jiff::Timestamp::now();
        gone.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        let delete = |engine: Option<&Engine>, ending: bool| {
            plan_replica(&ReplicaSeen {
                replica: &gone,
                id: Some("id"),
                made: true,
                ending,
                engine,
                found: None,
                on_disk: None,
                beginning: Beginning::Empty,
            })
        };
        let mut holder = engine("running", &[ONE]);
        assert!(matches!(delete(Some(&holder), false), ReplicaStep::Wait(_)), "the engine says nothing");
        assert!(matches!(delete(Some(&holder), true), ReplicaStep::Delete(_)));
        let status = holder.status.get_or_insert_default();
        (status.current_state, status.owner_id) = ("running".into(), "here".into());
        assert!(matches!(delete(Some(&holder), false), ReplicaStep::Delete(_)), "it has let go");
        let held = holder.status.get_or_insert_default();
        held.current_replica_address_map.insert(TWO.0.into(), TWO.1.into());
        assert!(matches!(delete(Some(&holder), false), ReplicaStep::Wait(_)));
    }

    #[test]
    fn a_first_replica_waits_for_what_it_begins_as() {
        let mut replica = Replica::new(NAMESPACE, TWO.0);
        let step = |replica: &Replica, beginning: Beginning| {
            plan_replica(&ReplicaSeen {
                replica,
                id: Some("id"),
                made: false,
                ending: false,
                engine: None,
                found: None,
                on_disk: Some(false),
                beginning,
            })
        };
        let base = |step: ReplicaStep| match step {
            ReplicaStep::Create(Ask::CreateReplica { base, .. }) => base,
            other => panic!("{other:?}"),
        };
        let over = Base { file: "/disk/bases/b.img".into(), created: 7 };
        let waits = || Beginning::Waits("it comes".into());
        assert_eq!(base(step(&replica, waits())), None, "one that comes later is filled by the others");
        let notes = [(sheaf_plan::storage::TOGETHER.to_owned(), "1,2".to_owned())];
        replica.metadata.annotations = Some(notes.into());
        assert_eq!(base(step(&replica, Beginning::Empty)), None);
        assert_eq!(base(step(&replica, Beginning::Over(over.clone()))), Some(over));
        assert_eq!(step(&replica, waits()), ReplicaStep::Wait("it comes".into()));
    }

    #[test]
    fn what_layers_share_is_told_beside_their_size() {
        let snapshot = sheaf_storage::api::SnapshotStatus {
            name: "base".into(),
            parent: None,
            created: 1,
            user: false,
            removed: false,
            labels: BTreeMap::new(),
        };
        let volume = VolumeStatus { snapshots: vec![snapshot], ..found(&[1]) };
        let told = snapshots(&volume, &sizes());
        assert_eq!((told["base"].size.as_str(), told["base"].labels[SHARED].as_str()), ("0", "9"));
        assert_eq!(told["volume-head"].parent, "base");
    }

    #[test]
    fn a_directory_of_longhorns_is_taken_over_once() {
        let mut replica = Replica::new(NAMESPACE, TWO.0);
        replica.spec.disk_path = "/disk".into();
        replica.spec.data_directory_name = "v-00000002".into();
        let notes = [(sheaf_plan::storage::TOGETHER, "2"), (ADOPT, "clean")];
        replica.metadata.annotations = Some(notes.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let mut found = ReplicaStatus {
            volume: String::new(),
            name: "v".into(),
            replica: 0,
            bytes: 0,
            path: "/disk/replicas/v-00000002".into(),
            state: "nothing of ours is in it".into(),
            layers: 0,
            version: 0,
            in_sync: vec![],
            notes: vec![],
            damaged_bytes: 0,
            damaged: vec![],
        };
        let step = |found: Option<&ReplicaStatus>, made: bool| {
            plan_replica(&ReplicaSeen {
                replica: &replica,
                id: Some("id"),
                made,
                ending: false,
                engine: None,
                found,
                on_disk: Some(true),
                beginning: Beginning::Empty,
            })
        };
        let adopt = ReplicaStep::Create(Ask::Adopt {
            path: "/disk/replicas/v-00000002".into(),
            volume: "id".into(),
            replica: 2,
            dirty: false,
        });
        assert_eq!(step(None, false), adopt, "the process has not seen it");
        assert_eq!(step(Some(&found), false), adopt, "it has, and does not know it");
        assert_eq!(step(Some(&found), true), ReplicaStep::Report, "later it is a replica like others");
        found.state = "open".into();
        assert_eq!(step(Some(&found), false), ReplicaStep::Report);
    }
}
