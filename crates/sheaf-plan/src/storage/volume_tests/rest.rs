//! Volumes that nobody uses: what is made whole, when, and who waits. Shares the world of `volume_tests`.

use super::*;

impl World {
    /// Of the living replicas, those on a node.
    pub(super) fn on(&self, node: &str) -> Option<String> {
        let living = |r: &&Replica| r.metadata.deletion_timestamp.is_none() && r.spec.node_id == node;
        self.replicas.values().find(living).and_then(|r| r.metadata.name.clone())
    }

    /// The data of the replica on a node is gone, and its agent says so; which it was.
    pub(super) fn lose(&mut self, node: &str) -> String {
        let lost = self.on(node).expect("a replica");
        self.lost.insert(lost.clone());
        self.agents();
        lost
    }

    pub(super) fn offline(&self) -> (String, String) {
        let status = self.volume.as_ref().and_then(|v| v.status.clone()).unwrap_or_default();
        let told = condition(&status.conditions, OFFLINE_REBUILDING);
        told.map(|c| (c.status.clone(), c.reason.clone())).unwrap_or_default()
    }

    pub(super) fn later(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).expect("a time");
    }

    /// Turns until it is at rest; whether it was attached meanwhile, and the fewest replicas that were in sync and had their data.
    pub(super) fn watch(&mut self) -> (bool, usize) {
        let (mut attached, mut fewest) = (false, usize::MAX);
        for _ in 0..40 {
            self.turn();
            attached |= self.state().0 == "attached";
            let good = |n: &&String| self.replicas.contains_key(*n) && !self.lost.contains(*n);
            fewest = fewest.min(self.in_sync.iter().filter(good).count());
        }
        assert_eq!(self.turn().steps, [], "it comes to rest");
        (attached, fewest)
    }
}

#[test]
fn a_volume_that_nobody_uses_is_made_whole() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    let lost = w.lose("b");
    assert_eq!(w.watch(), (true, 2), "what is left is never less");
    assert!(w.is("detached", "unknown") && !w.replicas.contains_key(&lost), "{:?}", w.replicas.keys());
    assert_eq!(w.hosts(), ["a", "b", "c"], "made anew");
    assert_eq!(w.offline(), ("False".into(), String::new()));
    assert!(w.replicas.values().all(|r| r.spec.failed_at.is_empty() && !r.spec.healthy_at.is_empty()));
    for word in ["Faulted", OFFLINE_REBUILDING, "OfflineRebuilt"] {
        assert!(w.news.iter().any(|n| n == word), "{word}: {:?}", w.news);
    }
    // Not if the settings say otherwise.
    w.settings.offline = false;
    w.lose("c");
    assert!(!w.watch().0);
}

#[test]
fn a_silent_node_is_waited_for_although_nobody_uses_the_volume() {
    let mut w = World::new(&["a", "b", "c", "d"], 3);
    w.settle();
    let lost = w.hosts().into_iter().next_back().expect("one").to_owned();
    w.alive.remove(&lost);
    w.silent.insert(lost.clone(), w.now);
    let (attached, _) = w.watch();
    assert!(!attached, "it may come back");
    assert_eq!(w.plan().again, Some(600), "and is looked at again");
    w.later(601);
    assert_eq!(w.watch(), (true, 2));
    let living: Vec<_> = w.replicas.values().filter(|r| r.metadata.deletion_timestamp.is_none()).collect();
    assert!(living.len() == 3 && living.iter().all(|r| r.spec.node_id != lost), "{:?}", w.hosts());
    assert!(w.is("detached", "unknown"), "though what was on the silent node waits for it: {:?}", w.state());
    // All silent: nothing is noted, so that the volume is what it was when they return.
    let all = w.alive.clone();
    for node in &all {
        w.silent.insert(node.clone(), w.now);
    }
    w.alive.clear();
    w.later(601);
    w.watch();
    let failed = |r: &&&Replica| !r.spec.failed_at.is_empty() && all.contains(&r.spec.node_id);
    assert_eq!(w.replicas.values().collect::<Vec<_>>().iter().filter(failed).count(), 0);
}

#[test]
fn whoever_wants_the_volume_has_it_at_once() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    w.lose("b");
    while w.engine.as_ref().is_none_or(|e| e.spec.node_id.is_empty()) {
        w.turn();
    }
    let here = w.engine.as_ref().map(|e| e.spec.node_id.clone()).expect("attached somewhere");
    assert_eq!(w.offline().0, "True");
    assert_eq!(w.engine.as_ref().and_then(|e| e.spec.disable_frontend), Some(true), "no guest may come");
    w.user = Some(here.clone());
    w.turn();
    let engine = w.engine.as_ref().expect("there");
    assert_eq!((engine.spec.node_id.as_str(), engine.spec.disable_frontend), (here.as_str(), Some(false)));
    assert_eq!(w.offline().0, "False");
    w.settle();
    assert!(w.is("attached", "healthy"));
    // On another node: it goes there, and is made whole there.
    w.user = None;
    w.settle();
    let other = ["a", "c"].into_iter().find(|n| **n != *here).expect("another").to_owned();
    w.lose("b");
    while w.offline().0 != "True" {
        w.turn();
    }
    w.user = Some(other.clone());
    for _ in 0..4 {
        w.turn();
    }
    assert!(w.state().0 == "attached" && w.engine.as_ref().is_some_and(|e| e.spec.node_id == other));
    w.settle();
    assert!(w.is("attached", "healthy"));
}

#[test]
fn so_many_at_a_time_for_a_node() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    w.lose("b");
    w.mended = [("a".to_owned(), 5), ("c".to_owned(), 5)].into();
    assert!(!w.watch().0);
    assert_eq!(w.offline(), ("False".into(), "Waiting".into()));
    w.mended.insert("c".into(), 4);
    assert!(w.watch().0);
    assert_eq!(w.hosts(), ["a", "b", "c"]);
}

#[test]
fn an_attach_for_nobody_that_does_not_succeed_is_given_up_for_a_while() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    w.lose("b");
    while w.offline().0 != "True" {
        w.plan_only();
    }
    w.later(121);
    w.plan_only();
    assert_eq!(w.offline(), ("False".into(), "Failed".into()));
    w.later(10);
    let plan = w.plan_only();
    assert_eq!((plan.again, w.offline().1), (Some(590), "Failed".into()));
    w.later(600);
    w.plan_only();
    assert_eq!(w.offline().0, "True");
}

#[test]
fn a_rebuild_for_nobody_without_progress_makes_room_for_others() {
    let mut w = World::new(&["a", "b", "c"], 3);
    w.settle();
    w.lose("b");
    w.stuck = Some(3);
    w.settle();
    assert_eq!((w.offline().0.as_str(), w.state().0.as_str()), ("True", "attached"));
    // An hour is counted from the last progress.
    w.later(3000);
    w.stuck = Some(4);
    w.settle();
    w.later(3000);
    w.settle();
    assert_eq!(w.offline().0, "True");
    w.later(601);
    w.settle();
    assert_eq!(w.offline(), ("False".into(), "Failed".into()));
    assert_eq!(w.state().0, "detached", "its place is free");
    // It has its turn again.
    w.later(601);
    w.stuck = None;
    w.settle();
    assert_eq!((w.offline().0.as_str(), w.hosts()), ("False", vec!["a", "b", "c"]));
}

impl World {
    /// A look whose steps nobody takes.
    pub(super) fn plan_only(&mut self) -> Plan {
        let plan = self.plan();
        if let Some(volume) = &mut self.volume {
            volume.status = Some(plan.status.clone());
        }
        plan
    }
}
