//! Replicas of an attached volume: which are in sync, which are given up, when one more is made.
//!
//! One that has lost its data, or that somebody deletes, is let go of as soon as another holds everything; one that is to leave
//! its place only when its successor does.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sheaf_api::longhorn::{Engine, Replica, condition};

use super::super::SHARED;
use super::super::place::Taken;
use super::{DATA_MISSING, Initial, RETRIES_MAX, SOON, Step, Work, name, number};

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
        // A coordinator without work does not notice that somebody is away, or has lost its files; the cluster does.
        let answer = all.iter().filter(|r| mode(r) == "RW" && self.answers(r)).count();
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
        self.give_up(&all, &modes);
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
            _ if spec.failed_at.is_empty()
                && (mode == "ERR" || (mode.is_empty() && Self::stillborn(replica))) =>
            {
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

    /// Whether a replica that was never in sync cannot be made.
    fn stillborn(replica: &Replica) -> bool {
        let state = replica.status.as_ref().map_or("", |s| s.current_state.as_str());
        replica.spec.healthy_at.is_empty() && state == "error"
    }

    /// Whether a replica's node answers, and has its data.
    pub(super) fn answers(&self, replica: &Replica) -> bool {
        self.seen.alive.contains(&replica.spec.node_id) && !self.lost(replica)
    }

    /// Whether what a replica held is gone for good.
    pub(super) fn lost(&self, replica: &Replica) -> bool {
        let conditions = replica.status.as_ref().map_or(&[][..], |s| s.conditions.as_slice());
        let told = condition(conditions, "InstanceCreation");
        !self.seen.nodes.contains(&replica.spec.node_id)
            || told.is_some_and(|c| c.status == "False" && c.reason == DATA_MISSING)
    }

    /// Whether somebody deletes a replica.
    pub(super) fn deleted(replica: &Replica) -> bool {
        replica.metadata.deletion_timestamp.is_some()
    }

    /// Whether a replica is to leave its place.
    pub(super) fn evicted(&self, replica: &Replica) -> bool {
        replica.spec.eviction_requested == Some(true)
            || self.seen.places.iter().any(|p| {
                p.node == replica.spec.node_id
                    && (p.leaving || p.disks.iter().any(|d| d.uuid == replica.spec.disk_id && d.leaving))
            })
    }

    /// Whether a replica needs a successor: it counts for what it holds, not for what is wanted.
    pub(super) fn goes(&self, replica: &Replica) -> bool {
        Self::deleted(replica) || self.lost(replica) || self.evicted(replica)
    }

    /// Lets go of a replica.
    fn doom(&mut self, replica: &Replica) {
        let id = name(&replica.metadata);
        if !Self::deleted(replica) {
            self.plan.steps.push(Step::DeleteReplica(id.clone()));
        }
        self.doomed.insert(id);
    }

    /// Gives up replicas that are lost, that failed for too long, and those that are too many.
    fn give_up(&mut self, all: &[&Replica], modes: &BTreeMap<String, String>) {
        let mode = |r: &Replica| modes.get(&name(&r.metadata)).map_or("", String::as_str);
        let sound = |this: &Self, r: &Replica| mode(r) == "RW" && this.answers(r) && !Self::deleted(r);
        let holders = all.iter().filter(|r| sound(self, r)).count();
        if holders == 0 {
            return;
        }
        let stale = self.seen.volume.spec.stale_replica_timeout.filter(|m| *m > 0);
        for replica in all {
            let failed = !matches!(mode(replica), "RW" | "WO") && !replica.spec.failed_at.is_empty();
            let since = replica.spec.failed_at.parse::<Timestamp>().ok();
            let old = since.zip(stale).is_some_and(|(since, minutes)| {
                self.seen.now.duration_since(since) > SignedDuration::from_mins(minutes)
            });
            let spent = replica.spec.rebuild_retry_count.unwrap_or(0) >= RETRIES_MAX;
            let lost = self.lost(replica);
            if Self::deleted(replica) || lost || failed && (holders >= self.wanted || old || spent) {
                if lost && !Self::deleted(replica) {
                    let text = format!("replica {} is given up: its data is gone", name(&replica.metadata));
                    self.plan.news.push(("Delete", text));
                }
                self.doom(replica);
            }
        }
        let mut surplus: Vec<&&Replica> = all.iter().filter(|r| sound(self, r)).collect();
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
        if let Some(first) = surplus.first().copied() {
            let text = format!("replica {} is one more than {}", name(&first.metadata), self.wanted);
            self.plan.news.push(("Delete", text));
            self.doom(first);
        }
    }

    /// Makes one more replica, if there are too few.
    fn replenish(&mut self, all: &[&Replica], modes: &BTreeMap<String, String>) {
        let seen = self.seen;
        let mode = |r: &Replica| modes.get(&name(&r.metadata)).map_or("", String::as_str);
        let left: Vec<&&Replica> = all.iter().filter(|r| !self.doomed.contains(&name(&r.metadata))).collect();
        let failed = |r: &Replica| mode(r) == "ERR" || !r.spec.failed_at.is_empty() && mode(r) != "RW";
        let good = left.iter().filter(|r| !failed(r) && !self.goes(r)).count();
        if good >= self.wanted {
            self.scheduled(None);
            return;
        }
        // One rebuild at a time, and nothing while somebody goes.
        let given_up = |s: &Step| matches!(s, Step::DeleteReplica(_));
        if left.iter().any(|r| mode(r) != "RW" && !failed(r)) || self.plan.steps.iter().any(given_up) {
            return;
        }
        let may_return = left.iter().filter(|r| failed(r) && self.may_return(r)).copied();
        if let Some(wait) = self.waits(may_return.copied(), true) {
            self.plan.again = Some(wait);
            return;
        }
        if left.len() >= 8 {
            return;
        }
        match self.one_more(&left.into_iter().copied().collect::<Vec<_>>()) {
            Ok(chosen) => {
                self.scheduled(None);
                let Some(fresh) = seen.fresh.first() else { return };
                let at = Initial {
                    name: format!("{}-r-{fresh}", self.name),
                    node: chosen.node,
                    disk: chosen.uuid,
                    path: chosen.path,
                    directory: None,
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

    /// Whether a replica that failed may come back by copying what changed.
    pub(super) fn may_return(&self, replica: &Replica) -> bool {
        !self.goes(replica) && replica.spec.rebuild_retry_count.unwrap_or(0) < RETRIES_MAX
    }

    /// For how many seconds those that may come back are waited for, before another takes their place: since they failed, or since
    /// anything did while the volume is attached.
    pub(super) fn waits<'r>(&self, back: impl Iterator<Item = &'r Replica>, attached: bool) -> Option<i64> {
        let time = |text: &str| text.parse::<Timestamp>().ok();
        let newest = back.map(|r| time(&r.spec.failed_at).unwrap_or(self.seen.now)).max()?;
        let degraded = time(&self.plan.status.last_degraded_at).filter(|_| attached).unwrap_or(newest);
        let waited = self.seen.now.duration_since(newest.min(degraded)).as_secs();
        let left = self.seen.settings.replenish_after - waited;
        (left > 0).then_some(left)
    }

    /// A place beside these.
    pub(super) fn one_more(&self, left: &[&Replica]) -> Result<super::Chosen, String> {
        let taken = left.iter().map(|r| Taken {
            node: r.spec.node_id.clone(),
            disk: r.spec.disk_id.clone(),
            leaving: self.goes(r),
        });
        let taken: Vec<Taken> = taken.collect();
        let own = u64::try_from(self.plan.status.actual_size.unwrap_or(0)).unwrap_or(0);
        // One more gets copies of what the others share.
        let status = self.seen.engine.and_then(|engine| engine.status.as_ref());
        let layers = status.iter().flat_map(|status| status.snapshots.values());
        let shared = layers.filter_map(|layer| layer.labels.get(SHARED)).map(|bytes| number(bytes));
        let used = shared.fold(own, u64::saturating_add);
        self.choose(number(&self.seen.volume.spec.size), used, &taken)
    }
}
