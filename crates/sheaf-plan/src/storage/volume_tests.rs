//! Volumes live in a small world in which agents do at once what they are told.

mod rest;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sheaf_api::longhorn::{
    Engine, KubernetesStatus, NAMESPACE, RebuildStatus, Replica, Volume, condition, set_condition,
};

use super::place::{Disk, Place};
use super::volume::*;
use super::{BASE, CONTENT, FILL, FILLED, INITIAL, MADE, SHARED, Settings};

const GIB: u64 = 1 << 30;

struct World {
    volume: Option<Volume>,
    engine: Option<Engine>,
    replicas: BTreeMap<String, Replica>,
    nodes: BTreeSet<String>,
    alive: BTreeSet<String>,
    user: Option<String>,
    work: bool,
    content: Content,
    now: Timestamp,
    /// Since when nodes do not answer.
    silent: BTreeMap<String, Timestamp>,
    /// Nodes and disks that are to be emptied.
    leaving: BTreeSet<String>,
    /// Replicas whose directories are gone.
    lost: BTreeSet<String>,
    mended: BTreeMap<String, usize>,
    /// Rebuilds do not end, and are so far.
    stuck: Option<i64>,
    settings: Settings,
    drawn: u32,
    /// Replicas that the coordinator counts.
    in_sync: BTreeSet<String>,
    news: Vec<String>,
}

impl World {
    fn new(nodes: &[&str], replicas: i64) -> Self {
        let mut volume = Volume::new(NAMESPACE, "v");
        volume.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
        volume.spec.size = GIB.to_string();
        volume.spec.number_of_replicas = Some(replicas);
        volume.spec.stale_replica_timeout = Some(30);
        let nodes: BTreeSet<String> = nodes.iter().map(|n| (*n).to_owned()).collect();
        Self {
            volume: Some(volume),
            engine: None,
            replicas: BTreeMap::new(),
            alive: nodes.clone(),
            nodes,
            user: None,
            work: false,
            content: Content::Ready,
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            silent: BTreeMap::new(),
            leaving: BTreeSet::new(),
            lost: BTreeSet::new(),
            mended: BTreeMap::new(),
            stuck: None,
            settings: Settings::default(),
            drawn: 0,
            in_sync: BTreeSet::new(),
            news: vec![],
        }
    }

    fn places(&self) -> Vec<Place> {
        let place = |node: &String| Place {
            node: node.clone(),
            zone: String::new(),
            tags: vec![],
            closed: (!self.alive.contains(node) || self.leaving.contains(node))
                .then(|| "it is silent, or leaves".to_owned()),
            leaving: self.leaving.contains(node),
            disks: vec![Disk {
                name: "d".into(),
                uuid: format!("disk-{node}"),
                path: "/d".into(),
                tags: vec![],
                closed: self.leaving.contains(&format!("disk-{node}")).then(|| "it leaves".to_owned()),
                leaving: self.leaving.contains(&format!("disk-{node}")),
                maximum: 100 * GIB,
                available: 90 * GIB,
                reserved: 0,
                scheduled: 0,
            }],
        };
        self.nodes.iter().map(place).collect()
    }

    fn plan(&mut self) -> Plan {
        let places = self.places();
        let replicas: Vec<&Replica> = self.replicas.values().collect();
        self.drawn += 10;
        let fresh: Vec<String> = (0..8).map(|n| format!("{:08x}", self.drawn + n)).collect();
        plan_volume(&Seen {
            volume: self.volume.as_ref().expect("there is a volume"),
            engine: self.engine.as_ref(),
            replicas: &replicas,
            places: &places,
            nodes: &self.nodes,
            alive: &self.alive,
            silent: &self.silent,
            mended: &self.mended,
            settings: &self.settings,
            user: self.user.as_deref(),
            work: self.work,
            content: &self.content,
            kubernetes: KubernetesStatus::default(),
            fresh: &fresh,
            now: self.now,
        })
    }

    /// One look, its steps, and what agents that answer do.
    fn turn(&mut self) -> Plan {
        let plan = self.plan();
        self.news.extend(plan.news.iter().map(|(reason, _)| (*reason).to_owned()));
        for step in plan.steps.clone() {
            let volume = self.volume.as_mut().expect("there is a volume");
            match step {
                Step::Annotate(all) => {
                    let annotations = volume.metadata.annotations.get_or_insert_default();
                    annotations.extend(all.into_iter().map(|(k, v)| (k.to_owned(), v)));
                }
                Step::Node(node) => volume.spec.node_id = node,
                Step::CreateEngine(engine) => self.engine = Some(*engine),
                Step::Engine(spec, fill) => {
                    let engine = self.engine.as_mut().expect("there is an engine");
                    engine.spec = *spec;
                    engine.metadata.annotations = fill.map(|f| [(FILL.to_owned(), f)].into());
                }
                Step::DeleteEngine(_) => self.engine = None,
                Step::CreateReplica(replica) => {
                    let name = replica.metadata.name.clone().expect("a name");
                    if !together(&replica).is_empty() {
                        self.in_sync.insert(name.clone());
                    }
                    self.replicas.insert(name, *replica);
                }
                Step::Replica(name, spec) => {
                    self.replicas.get_mut(&name).expect("the replica").spec = *spec;
                }
                Step::DeleteReplica(name) => {
                    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now);
                    let replica = self.replicas.get_mut(&name).expect("the replica");
                    replica.metadata.deletion_timestamp = Some(time);
                }
                Step::ReleaseReplica(name) => drop(self.replicas.remove(&name)),
                Step::Release => self.volume = None,
            }
        }
        if let Some(volume) = &mut self.volume {
            volume.status = Some(plan.status.clone());
        }
        self.agents();
        plan
    }

    fn agents(&mut self) {
        let gone = |r: &Replica| r.metadata.deletion_timestamp.is_some();
        let map = self.engine.as_ref().map(|e| e.spec.replica_address_map.clone()).unwrap_or_default();
        let ending = self.volume.as_ref().is_none_or(|v| v.metadata.deletion_timestamp.is_some());
        // Only an attached volume lets go of a replica.
        let runs = self.engine.as_ref().is_some_and(|e| {
            let status = e.status.clone().unwrap_or_default();
            status.current_state == "running"
                && !e.spec.node_id.is_empty()
                && e.spec.desire_state == "running"
        });
        let (alive, free) = (self.alive.clone(), |name: &String| ending || (runs && !map.contains_key(name)));
        self.replicas.retain(|name, r| !(gone(r) && alive.contains(&r.spec.node_id) && free(name)));
        for replica in self.replicas.values_mut().filter(|r| self.alive.contains(&r.spec.node_id)) {
            let status = replica.status.get_or_insert_default();
            status.current_state =
                if replica.spec.desire_state == "running" { "running" } else { "stopped" }.into();
            (status.storage_ip, status.port) = ("10.0.0.1".into(), Some(8500));
            if replica.metadata.name.as_ref().is_some_and(|n| self.lost.contains(n)) {
                status.current_state = "error".into();
                let list = &mut status.conditions;
                set_condition(list, "", "InstanceCreation", "False", DATA_MISSING, "it is not there");
            }
        }
        let Some(engine) = &mut self.engine else { return };
        if !self.alive.contains(&engine.spec.node_id) {
            return;
        }
        let status = engine.status.get_or_insert_default();
        status.owner_id.clone_from(&engine.spec.node_id);
        if engine.spec.desire_state != "running" {
            status.current_state = "stopped".into();
            return;
        }
        status.current_state = "running".into();
        status.current_size.clone_from(&engine.spec.volume_size);
        self.in_sync.retain(|name| {
            self.replicas
                .get(name)
                .is_some_and(|r| self.alive.contains(&r.spec.node_id) && map.contains_key(name))
        });
        // A rebuild is done by the next turn.
        let reachable =
            |name: &String| self.replicas.get(name).is_some_and(|r| self.alive.contains(&r.spec.node_id));
        let old = std::mem::take(&mut status.replica_mode_map);
        for name in map.keys() {
            let mode = match (self.in_sync.contains(name), reachable(name)) {
                (true, _) => "RW",
                (false, true) if self.stuck.is_none() && old.get(name).is_some_and(|m| m == "WO") => {
                    self.in_sync.insert(name.clone());
                    "RW"
                }
                (false, true) => "WO",
                (false, false) => "ERR",
            };
            status.replica_mode_map.insert(name.clone(), mode.into());
        }
        let progress = |percent| RebuildStatus { progress: Some(percent), ..RebuildStatus::default() };
        status.rebuild_status = self.stuck.iter().map(|at| ("tcp://b".to_owned(), progress(*at))).collect();
    }

    fn settle(&mut self) -> Plan {
        let mut last = Plan::default();
        for _ in 0..40 {
            if self.volume.is_none() {
                return last;
            }
            last = self.turn();
        }
        assert_eq!(last.steps, [], "it comes to rest");
        last
    }

    fn state(&self) -> (String, String) {
        let status = self.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
        (status.state, status.robustness)
    }

    fn is(&self, state: &str, robustness: &str) -> bool {
        self.state() == (state.to_owned(), robustness.to_owned())
    }

    fn hosts(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.replicas.values().map(|r| r.spec.node_id.as_str()).collect();
        all.sort_unstable();
        all
    }

    fn annotated(&self, key: &str) -> bool {
        let annotations = self.volume.as_ref().and_then(|v| v.metadata.annotations.as_ref());
        annotations.is_some_and(|a| a.contains_key(key))
    }
}

#[test]
fn a_volume_is_made_used_moved_and_deleted() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    assert!(w.is("detached", "unknown") && w.annotated(MADE), "{:?}", w.state());
    assert_eq!(w.hosts(), ["a", "b", "c"]);
    let numbers: Vec<usize> = w.replicas.values().map(|r| together(r).len()).collect();
    assert_eq!(numbers, [3, 3, 3], "made together");
    w.user = Some("b".into());
    w.settle();
    assert!(w.is("attached", "healthy"), "{:?}", w.state());
    assert_eq!(w.volume.as_ref().map(|v| v.spec.node_id.as_str()), Some("b"));
    // It stops where it is before it goes elsewhere.
    w.user = Some("c".into());
    let plan = w.turn();
    assert_eq!(plan.status.state, "detaching");
    w.settle();
    assert!(w.is("attached", "healthy"));
    w.user = None;
    w.settle();
    assert!(w.is("detached", "unknown"));
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(w.now);
    w.volume.as_mut().expect("there").metadata.deletion_timestamp = Some(time);
    w.settle();
    assert!(w.volume.is_none() && w.replicas.is_empty() && w.engine.is_none());
}

#[test]
fn one_node_holds_what_it_can_and_more_nodes_take_the_rest() {
    let mut w = World::new(&["a"], 3);
    w.user = Some("a".into());
    w.settle();
    assert!(w.is("attached", "degraded"), "{:?}", w.state());
    let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
    let scheduled = condition(&status.conditions, "Scheduled").expect("said");
    assert_eq!((scheduled.status.as_str(), scheduled.reason.as_str()), ("False", "ReplicaSchedulingFailure"));
    assert!(scheduled.message.contains("1 of 3 replicas have a place"), "{}", scheduled.message);
    for more in ["b", "c"] {
        w.nodes.insert(more.into());
        w.alive.insert(more.into());
    }
    w.settle();
    assert!(w.is("attached", "healthy"), "{:?}", w.state());
    assert_eq!(w.hosts(), ["a", "b", "c"]);
    let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
    assert_eq!(condition(&status.conditions, "Scheduled").map(|c| c.status.as_str()), Some("True"));
}

#[test]
fn a_node_that_falls_silent_is_waited_for_and_then_replaced() {
    let mut w = World::new(&["a", "b", "c", "d"], 3);
    w.user = Some("a".into());
    w.settle();
    let lost = w.hosts().into_iter().rfind(|n| *n != "a").expect("another").to_owned();
    w.alive.remove(&lost);
    let plan = w.settle();
    assert!(w.is("attached", "degraded"), "{:?}", w.state());
    assert_eq!(w.replicas.len(), 3, "it may come back");
    assert_eq!(plan.again, Some(600));
    // It comes back: nothing else was done.
    w.alive.insert(lost.clone());
    w.settle();
    assert!(w.is("attached", "healthy"));
    assert!(w.replicas.values().all(|r| r.spec.failed_at.is_empty()));
    // It does not.
    w.alive.remove(&lost);
    w.settle();
    w.now = w.now.checked_add(SignedDuration::from_secs(601)).expect("a time");
    w.settle();
    assert!(w.is("attached", "healthy"), "{:?}", w.state());
    let living = w.replicas.values().filter(|r| r.metadata.deletion_timestamp.is_none());
    assert!(living.clone().count() == 3 && living.clone().all(|r| r.spec.node_id != lost));
    assert!(w.news.iter().any(|n| n == "Rebuilding"));
}

#[test]
fn a_lost_node_does_not_keep_its_volume() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.user = Some("a".into());
    w.settle();
    w.alive.remove("a");
    w.user = None;
    w.settle();
    assert!(w.is("detaching", "unknown"), "nobody says that it has stopped: {:?}", w.state());
    w.user = Some("b".into());
    w.settle();
    assert!(w.is("attached", "degraded"), "the higher epoch fences the old one: {:?}", w.state());
    assert_eq!(w.engine.as_ref().map(|e| e.spec.node_id.as_str()), Some("b"));
}

#[test]
fn content_comes_first() {
    let mut w = World::new(&["a", "b"], 1);
    let volume = w.volume.as_mut().expect("there");
    volume.metadata.annotations = Some([(CONTENT.to_owned(), "image:default/i".to_owned())].into());
    w.content = Content::Waits { reason: "Waiting", message: "image default/i is on its way".into() };
    w.user = Some("a".into());
    w.settle();
    let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
    let waits = condition(&status.conditions, "WaitForBackingImage").expect("said");
    assert!(waits.status == "True" && waits.message.contains("on its way"), "{waits:?}");
    assert!(w.replicas.is_empty(), "nothing is placed before that");
    let nodes = BTreeSet::from(["b".to_owned()]);
    w.content = Content::From { what: "image:default/i".into(), nodes, only: true };
    w.settle();
    let engine = w.engine.as_ref().expect("there");
    assert_eq!(engine.spec.node_id, "b", "where the image is");
    assert!(engine.metadata.annotations.as_ref().is_some_and(|a| a[FILL] == "image:default/i"));
    let annotations = w.volume.as_mut().expect("there").metadata.annotations.as_mut().expect("some");
    annotations.insert(FILLED.into(), "true".into());
    w.settle();
    let engine = w.engine.as_ref().expect("there");
    assert_eq!(engine.spec.node_id, "a", "then to whoever uses it");
    assert!(engine.metadata.annotations.is_none() && w.is("attached", "healthy"));
}

#[test]
fn a_volume_of_an_image_is_filled_when_it_is_made() {
    let mut w = World::new(&["a", "b", "c", "d"], 3);
    let volume = w.volume.as_mut().expect("there");
    volume.metadata.annotations = Some([(CONTENT.to_owned(), "image:default/i".to_owned())].into());
    w.content = Content::Base("abc".into());
    w.turn();
    let annotations =
        |w: &World| w.volume.as_ref().and_then(|v| v.metadata.annotations.clone()).expect("some");
    assert!(annotations(&w).contains_key(INITIAL) && annotations(&w)[BASE] == "abc");
    // The image may go, or be another, while the replicas are being made: what they begin as is decided.
    w.content = Content::Waits { reason: "GetBackingImageFailed", message: "it does not exist".into() };
    w.settle();
    assert!(annotations(&w).contains_key(MADE) && annotations(&w).contains_key(FILLED));
    let engine = w.engine.as_ref().expect("there");
    assert!(
        engine.metadata.annotations.is_none() && engine.spec.node_id.is_empty(),
        "nobody copies anything"
    );
    // One more replica needs room for what the others share.
    w.content = Content::Ready;
    w.user = Some("a".into());
    w.settle();
    let status = w.engine.as_mut().and_then(|e| e.status.as_mut()).expect("some");
    let base = status.snapshots.entry("base".into()).or_default();
    base.labels.insert(SHARED.into(), (95 * GIB).to_string());
    let lost = w.hosts()[2].to_owned();
    w.nodes.remove(&lost);
    w.alive.remove(&lost);
    w.settle();
    let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
    let scheduled = condition(&status.conditions, "Scheduled").expect("said");
    assert!(scheduled.status == "False" && scheduled.message.contains("95"), "{scheduled:?}");
}

#[test]
fn a_volume_that_was_placed_without_a_base_is_filled_as_before() {
    let mut w = World::new(&["a"], 1);
    let volume = w.volume.as_mut().expect("there");
    volume.metadata.annotations = Some([(CONTENT.to_owned(), "image:default/i".to_owned())].into());
    w.content = Content::From { what: "image:default/i".into(), nodes: BTreeSet::new(), only: false };
    w.settle();
    let annotations = w.volume.as_ref().and_then(|v| v.metadata.annotations.clone()).expect("some");
    assert!(annotations.contains_key(MADE) && !annotations.contains_key(FILLED));
    let engine = w.engine.as_ref().expect("there");
    assert!(engine.metadata.annotations.as_ref().is_some_and(|a| a[FILL] == "image:default/i"));
}

#[test]
fn a_volume_grows_detached_or_not_and_only_where_there_is_room() {
    let mut w = World::new(&["a"], 1);
    w.settle();
    w.volume.as_mut().expect("there").spec.size = (2 * GIB).to_string();
    w.settle();
    let engine = w.engine.as_ref().expect("there");
    assert_eq!(engine.spec.volume_size, (2 * GIB).to_string());
    assert!(w.is("detached", "unknown"), "attached for it, and let go again: {:?}", w.state());
    assert!(w.replicas.values().all(|r| r.spec.volume_size == (2 * GIB).to_string()));
    w.user = Some("a".into());
    w.volume.as_mut().expect("there").spec.size = (200 * GIB).to_string();
    w.settle();
    let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
    let refused = condition(&status.conditions, "ExpansionRefused").expect("said");
    assert!(refused.status == "True" && refused.message.contains("can still be promised"), "{refused:?}");
    assert_eq!(w.engine.as_ref().map(|e| e.spec.volume_size.clone()), Some((2 * GIB).to_string()));
}

#[test]
fn fewer_replicas_are_asked_for() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.user = Some("a".into());
    w.settle();
    w.volume.as_mut().expect("there").spec.number_of_replicas = Some(1);
    w.settle();
    assert_eq!(w.hosts(), ["a"], "the one beside its user stays");
    assert!(w.is("attached", "healthy"));
}

#[test]
fn replicas_leave_one_at_a_time_and_never_before_their_successors_are_in_sync() {
    for user in [Some("a"), None] {
        for what in ["c", "disk-c"] {
            let mut w = World::new(&["a", "b", "c"], 3);
            w.user = user.map(str::to_owned);
            w.settle();
            w.leaving.insert(what.into());
            let (_, fewest) = w.watch();
            assert_eq!((w.hosts(), fewest), (vec!["a", "b", "c"], 3), "nowhere to go");
            let status = w.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
            let scheduled = condition(&status.conditions, "Scheduled").cloned().expect("said");
            assert!(scheduled.status == "False" && scheduled.message.contains("2 of 3"), "{scheduled:?}");
            w.nodes.insert("d".into());
            w.alive.insert("d".into());
            let (_, fewest) = w.watch();
            assert_eq!((w.hosts(), fewest), (vec!["a", "b", "d"], 3), "{user:?} {what}");
            let state = if user.is_some() { ("attached", "healthy") } else { ("detached", "unknown") };
            assert!(w.is(state.0, state.1), "{:?}", w.state());
        }
    }
}

#[test]
fn a_volume_whose_data_is_gone_says_so() {
    let mut w = World::new(&["a", "b"], 2);
    w.settle();
    w.lost.extend(w.on("a"));
    w.lost.extend(w.on("b"));
    w.agents();
    assert!(!w.watch().0, "nothing is made of nothing");
    assert!(w.is("detached", "faulted"), "{:?}", w.state());
    assert_eq!(w.replicas.len(), 2);
}

#[test]
fn one_replica_alone_moves_too() {
    let mut w = World::new(&["a", "b"], 1);
    w.settle();
    let from = w.hosts()[0].to_owned();
    w.leaving.insert(from.clone());
    let (attached, fewest) = w.watch();
    assert!(
        attached && fewest == 1 && w.hosts() != [from.as_str()] && w.hosts().len() == 1,
        "{:?}",
        w.hosts()
    );
}

#[test]
fn who_is_deleted_goes_when_another_has_everything() {
    let time = |w: &World| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(w.now);
    // One of two, with and without a user.
    for user in [Some("a"), None] {
        let mut w = World::new(&["a", "b"], 2);
        w.user = user.map(str::to_owned);
        w.settle();
        let gone = w.on("b").expect("a replica");
        let at = time(&w);
        w.replicas.get_mut(&gone).expect("there").metadata.deletion_timestamp = Some(at);
        let (attached, fewest) = w.watch();
        assert!(attached && fewest == 1 && !w.replicas.contains_key(&gone), "{:?}", w.replicas.keys());
        assert_eq!(w.hosts(), ["a", "b"], "another one was made");
    }
    // The only one stays until its successor is there.
    let mut w = World::new(&["a", "b"], 1);
    w.settle();
    let gone = w.replicas.keys().next().cloned().expect("one");
    let at = time(&w);
    w.replicas.get_mut(&gone).expect("there").metadata.deletion_timestamp = Some(at);
    w.user = Some("a".into());
    let (_, fewest) = w.watch();
    assert!(fewest == 1 && !w.replicas.contains_key(&gone), "{:?}", w.replicas.keys());
    assert!(w.is("attached", "healthy"));
}

#[test]
fn names_hold_numbers() {
    assert_eq!(replica_number("pvc-1-r-0000000a"), Some(10));
    assert_eq!(replica_number("pvc-1-r-00000000"), None);
    assert_eq!(replica_number("pvc-1-r-a"), None);
    assert_eq!(replica_number("pvc-1"), None);
}
