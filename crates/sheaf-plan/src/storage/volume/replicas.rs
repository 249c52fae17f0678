//! Replicas of an attached volume: which are in sync, which are given up, when one more is made.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sheaf_api::longhorn::{Engine, Replica};

use super::super::place::Taken;
use super::{Initial, RETRIES_MAX, SOON, Step, Work, name, number};

impl Work<'_> {
    /// What replicas are, and which are to come and to go.
    pub(super) fn replicas(&mut self, engine: &Engine) {
        let mut modes = engine.status.as_ref().map(|s| s.replica_mode_map.clone()).unwrap_or_default();
        for replica in &self.mine {
            // One that waits for its first rebuild on a node that does not answer waits for nothing.
            if !self.seen.alive.contains(&replica.spec.node_id)
                && let Some(mode) = modes.get_mut(&name(&replica.metadata)).filter(|m| *m == "WO")
            {
                *mode = "ERR".into();
            }
        }
        let mode = |r: &Replica| modes.get(&name(&r.metadata)).map_or("", String::as_str);
        let all = self.mine.clone();
        for replica in &all {
            self.note_mode(replica, mode(replica));
        }
        let current = all.iter().filter(|r| mode(r) == "RW").count();
        // A coordinator without work does not notice that somebody is away; the cluster does.
        let answer =
            all.iter().filter(|r| mode(r) == "RW" && self.seen.alive.contains(&r.spec.node_id)).count();
        let before = self.plan.status.robustness.clone();
        self.plan.status.robustness = match current {
            0 => "unknown",
            _ if answer >= self.wanted => "healthy",
            _ => "degraded",
        }
        .into();
        if self.plan.status.robustness != before {
            match self.plan.status.robustness.as_str() {
                "degraded" => {
                    self.plan.status.last_degraded_at.clone_from(&self.now);
                    let text = format!("{answer} of {} replicas are in sync and answer", self.wanted);
                    self.plan.news.push(("Degraded", text));
                }
                "healthy" => self.plan.news.push(("Healthy", "all replicas are in sync".into())),
                _ => {}
            }
        }
        if current == 0 {
            return;
        }
        let size = engine.status.as_ref().map(|s| {
            s.snapshots.values().filter_map(|s| s.size.parse::<i64>().ok()).fold(0, i64::saturating_add)
        });
        self.plan.status.actual_size = size;
        self.give_up(&all, &modes, current);
        self.replenish(&all, &modes);
    }

    fn note_mode(&mut self, replica: &Replica, mode: &str) {
        let mut spec = replica.spec.clone();
        match mode {
            "RW" => {
                if spec.healthy_at.is_empty() {
                    spec.healthy_at.clone_from(&self.now);
                }
                if !spec.failed_at.is_empty() || spec.last_healthy_at.is_empty() {
                    spec.last_healthy_at.clone_from(&self.now);
                }
                spec.failed_at = String::new();
                spec.rebuild_retry_count = Some(0).filter(|_| spec.rebuild_retry_count.is_some());
            }
            "ERR" if spec.failed_at.is_empty() => {
                spec.failed_at.clone_from(&self.now);
                spec.last_failed_at.clone_from(&self.now);
                let text = format!("replica {} is not in sync any more", name(&replica.metadata));
                self.plan.news.push(("Faulted", text));
            }
            _ => {}
        }
        if spec != replica.spec {
            self.change(replica, spec);
        }
    }

    /// Whether a replica is to leave its place.
    fn evicted(&self, replica: &Replica) -> bool {
        let closed = |why: &Option<String>| why.as_deref().is_some_and(|w| w.contains("moved away"));
        replica.spec.eviction_requested == Some(true)
            || self.seen.places.iter().any(|p| {
                p.node == replica.spec.node_id
                    && (closed(&p.closed)
                        || p.disks.iter().any(|d| d.uuid == replica.spec.disk_id && closed(&d.closed)))
            })
    }

    /// Gives up replicas that failed for too long, and those that are too many.
    fn give_up(&mut self, all: &[&Replica], modes: &BTreeMap<String, String>, current: usize) {
        let mode = |r: &Replica| modes.get(&name(&r.metadata)).map_or("", String::as_str);
        let stale = self.seen.volume.spec.stale_replica_timeout.filter(|m| *m > 0);
        for replica in all {
            if mode(replica) == "RW" || mode(replica) == "WO" || replica.spec.failed_at.is_empty() {
                continue;
            }
            let since = replica.spec.failed_at.parse::<Timestamp>().ok();
            let old = since.zip(stale).is_some_and(|(since, minutes)| {
                self.seen.now.duration_since(since) > SignedDuration::from_mins(minutes)
            });
            let spent = replica.spec.rebuild_retry_count.unwrap_or(0) >= RETRIES_MAX;
            let gone = !self.seen.nodes.contains(&replica.spec.node_id);
            if current >= self.wanted || old || spent || gone {
                self.plan.steps.push(Step::DeleteReplica(name(&replica.metadata)));
            }
        }
        let mut surplus: Vec<&&Replica> = all.iter().filter(|r| mode(r) == "RW").collect();
        if surplus.len() <= self.wanted {
            return;
        }
        let crowd = |r: &Replica| surplus.iter().filter(|o| o.spec.node_id == r.spec.node_id).count();
        let here = self.plan.status.current_node_id.clone();
        let rank = |r: &Replica| {
            (!self.evicted(r), std::cmp::Reverse(crowd(r)), r.spec.node_id == here, name(&r.metadata))
        };
        let order: BTreeMap<String, _> = surplus.iter().map(|r| (name(&r.metadata), rank(r))).collect();
        surplus.sort_by_key(|r| order.get(&name(&r.metadata)).cloned());
        // One at a time: what goes is looked at again.
        if let Some(first) = surplus.first() {
            let text = format!("replica {} is one more than {}", name(&first.metadata), self.wanted);
            self.plan.news.push(("Delete", text));
            self.plan.steps.push(Step::DeleteReplica(name(&first.metadata)));
        }
    }

    /// Makes one more replica, if there are too few.
    fn replenish(&mut self, all: &[&Replica], modes: &BTreeMap<String, String>) {
        let seen = self.seen;
        let mode = |r: &Replica| modes.get(&name(&r.metadata)).map_or("", String::as_str);
        let doomed: BTreeSet<String> = self
            .plan
            .steps
            .iter()
            .filter_map(|s| if let Step::DeleteReplica(name) = s { Some(name.clone()) } else { None })
            .collect();
        let left: Vec<&&Replica> = all.iter().filter(|r| !doomed.contains(&name(&r.metadata))).collect();
        let failed = |r: &Replica| mode(r) == "ERR" || !r.spec.failed_at.is_empty() && mode(r) != "RW";
        let good = left.iter().filter(|r| !failed(r) && !self.evicted(r)).count();
        if good >= self.wanted {
            self.scheduled(None);
            return;
        }
        // One rebuild at a time.
        if left.iter().any(|r| mode(r) != "RW" && !failed(r)) || !doomed.is_empty() {
            return;
        }
        let reusable = |r: &&&Replica| {
            failed(r)
                && seen.nodes.contains(&r.spec.node_id)
                && r.spec.rebuild_retry_count.unwrap_or(0) < RETRIES_MAX
        };
        if left.iter().any(|r| reusable(&r)) {
            let since = self.plan.status.last_degraded_at.parse::<Timestamp>().unwrap_or(seen.now);
            let waited = seen.now.duration_since(since).as_secs();
            if waited < seen.settings.replenish_after {
                self.plan.again = Some((seen.settings.replenish_after - waited).max(1));
                return;
            }
        }
        if left.len() >= 8 {
            return;
        }
        let taken: Vec<Taken> = left
            .iter()
            .map(|r| Taken {
                node: r.spec.node_id.clone(),
                disk: r.spec.disk_id.clone(),
                leaving: self.evicted(r),
            })
            .collect();
        let size = number(&seen.volume.spec.size);
        let used = u64::try_from(self.plan.status.actual_size.unwrap_or(0)).unwrap_or(0);
        match self.choose(size, used, &taken) {
            Ok(chosen) => {
                self.scheduled(None);
                let Some(fresh) = seen.fresh.first() else { return };
                let at = Initial {
                    name: format!("{}-r-{fresh}", self.name),
                    node: chosen.node,
                    disk: chosen.uuid,
                    path: chosen.path,
                };
                let mut replica = self.replica(&at, None);
                replica.spec.desire_state = "running".into();
                self.plan.news.push(("Rebuilding", format!("replica {} is made on {}", at.name, at.node)));
                self.plan.steps.push(Step::CreateReplica(Box::new(replica)));
            }
            Err(why) => {
                let text = format!("{good} of {} replicas have a place; {why}", self.wanted);
                self.scheduled(Some(&text));
                self.plan.again = Some(SOON * 6);
            }
        }
    }
}
