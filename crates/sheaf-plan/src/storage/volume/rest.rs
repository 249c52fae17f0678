//! A volume that nobody uses: what it lacks, and whether attaching it for a while would mend that.
//!
//! It is attached, without a frontend, where one of its replicas is, for as long as something can be mended; what is mended there is
//! decided as for any attached volume. Whoever wants it meanwhile has it at once: on the same node nothing changes but that a guest may
//! come, on another one the rebuild goes on from what is there. For each node so many at a time. What cannot be attached is left alone
//! for a while. The loss of the last good copy is never noted, here neither.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sheaf_api::longhorn::{Replica, condition};

use super::{OFFLINE_REBUILDING, SOON, Step, Work, attached_at, name};

/// Seconds within which an attach for nobody has to succeed.
const ATTACH: i64 = 120;
/// Seconds after which one that did not is tried again.
const AGAIN: i64 = 600;
/// Seconds without progress after which others may have the place for as long. A percent of ten terabytes takes half as long when a guest is busy.
const STALLED: i64 = 3600;

/// What would help.
enum Need {
    /// Nothing is lacking, or nothing would help.
    Nothing,
    /// Some replica may come back by itself for so many seconds.
    Later(i64),
    /// A place for a replica: there is none, and why.
    Place(String),
    /// To be attached, and for what.
    Attach(String),
}

impl Work<'_> {
    /// The node where it is to be attached to be made whole. `here`: where its engine is.
    pub(super) fn rest(&mut self, here: Option<String>) -> Option<String> {
        let seen = self.seen;
        let attached = seen.engine.and_then(attached_at).is_some();
        if !attached {
            self.note_losses();
        }
        let what = match self.need(attached) {
            Need::Attach(what) => what + &self.progress(),
            Need::Later(seconds) => {
                let text = "a replica that may come back is waited for (replica-replenishment-wait-interval)";
                self.plan.again = Some(seconds);
                return self.calm("Waiting", text);
            }
            Need::Place(why) => {
                let conditions = &self.plan.status.conditions;
                // Free space changes all the time; the first reason stands until the volume is looked at while it is attached.
                if condition(conditions, "Scheduled").is_none_or(|c| c.status != "False") {
                    self.scheduled(Some(&why));
                }
                return self.calm("ReplicaSchedulingFailure", &why);
            }
            Need::Nothing => {
                let told = condition(&self.plan.status.conditions, OFFLINE_REBUILDING);
                if told.is_some_and(|c| c.status == "True") {
                    let text = format!("volume {} needs its attachment no more", self.name);
                    self.plan.news.push(("OfflineRebuilt", text));
                }
                if !attached {
                    self.plan.again = self.silence();
                }
                return self.calm("", "");
            }
        };
        let told = condition(&self.plan.status.conditions, OFFLINE_REBUILDING).cloned();
        let since = told.as_ref().and_then(|c| c.last_transition_time.parse::<Timestamp>().ok());
        let passed = since.map_or(0, |since| seen.now.duration_since(since).as_secs());
        let runs = told.as_ref().is_some_and(|c| c.status == "True");
        if runs && !attached && passed > ATTACH {
            let text = format!("it could not be attached within {ATTACH} s to be made whole ({what})");
            self.plan.again = Some(AGAIN);
            self.plan.news.push(("OfflineRebuildingFailed", text.clone()));
            return self.calm("Failed", &text);
        }
        let moved = told.as_ref().and_then(|c| c.last_probe_time.parse::<Timestamp>().ok()).or(since);
        let stands = moved.map_or(0, |moved| seen.now.duration_since(moved).as_secs());
        let same = told.as_ref().is_some_and(|c| c.message.ends_with(&what));
        if runs && attached && same && stands > STALLED {
            let text = format!("no progress within {STALLED} s ({what}); others may be made whole meanwhile");
            self.plan.again = Some(AGAIN);
            self.plan.news.push(("OfflineRebuildingFailed", text.clone()));
            return self.calm("Failed", &text);
        }
        if told.as_ref().is_some_and(|c| c.status == "False" && c.reason == "Failed") && passed < AGAIN {
            self.plan.again = Some(AGAIN - passed);
            return None;
        }
        let free =
            |node: &String| runs || seen.mended.get(node).copied().unwrap_or(0) < seen.settings.rebuilds;
        let holders = self.mine.iter().filter(|r| r.spec.failed_at.is_empty() && self.answers(r));
        let all: Vec<String> = here.into_iter().chain(holders.map(|r| r.spec.node_id.clone())).collect();
        let Some(node) = all.iter().find(|node| free(node)).cloned() else {
            let text = format!(
                "{what}; {} other volumes are being made whole from {} (concurrent-replica-rebuild-per-node-limit)",
                seen.settings.rebuilds,
                all.first().map_or("any node", String::as_str)
            );
            self.plan.again = Some(SOON * 2);
            return self.calm("Waiting", &text);
        };
        let text = format!("attached to {node} to be made whole: {what}");
        self.condition(OFFLINE_REBUILDING, "True", "OfflineRebuildingInProgress", &text);
        if !runs {
            self.plan.news.push((OFFLINE_REBUILDING, format!("volume {} is {text}", self.name)));
        }
        Some(node)
    }

    /// How far the rebuild that is going on is, for who reads the condition, and to be held against the next look.
    fn progress(&self) -> String {
        let status = self.seen.engine.and_then(|e| e.status.as_ref());
        let percent = status.and_then(|s| s.rebuild_status.values().find_map(|r| r.progress));
        percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default()
    }

    /// It is not attached for nobody, for this reason; empty: it has no need to be.
    pub(super) fn calm(&mut self, reason: &str, message: &str) -> Option<String> {
        let told = condition(&self.plan.status.conditions, OFFLINE_REBUILDING);
        // The same reason in other words, with other numbers, is not worth a write.
        let same = told.is_some_and(|c| c.status == "False" && c.reason == reason && !reason.is_empty());
        if !same && (told.is_some() || !reason.is_empty()) {
            self.condition(OFFLINE_REBUILDING, "False", reason, message);
        }
        None
    }

    /// Seconds until a node that does not answer counts as lost.
    fn silence(&self) -> Option<i64> {
        let since =
            |r: &&Replica| self.seen.silent.get(&r.spec.node_id).filter(|_| r.spec.failed_at.is_empty());
        let left =
            self.mine.iter().filter_map(since).map(|since| {
                self.seen.settings.replenish_after - self.seen.now.duration_since(*since).as_secs()
            });
        left.filter(|left| *left > 0).min()
    }

    /// Since when a replica is known not to hold what it should, with the volume detached.
    fn failed(&self, replica: &Replica, attached: bool) -> Option<Timestamp> {
        let (seen, told) = (self.seen, &replica.spec.failed_at);
        if !told.is_empty() {
            return Some(told.parse().unwrap_or(seen.now));
        }
        if attached {
            return None;
        }
        if self.lost(replica) {
            return Some(seen.now);
        }
        let since = *seen.silent.get(&replica.spec.node_id)?;
        let patience = SignedDuration::from_secs(seen.settings.replenish_after);
        (seen.now.duration_since(since) >= patience).then_some(since)
    }

    /// A coordinator would notice; there is none.
    fn note_losses(&mut self) {
        let all = self.mine.clone();
        let keeps = |this: &Self, r: &Replica| {
            this.failed(r, false).is_none() && this.seen.alive.contains(&r.spec.node_id)
        };
        if !all.iter().any(|r| keeps(self, r)) {
            return;
        }
        for replica in all {
            let Some(since) = self.failed(replica, false).filter(|_| replica.spec.failed_at.is_empty())
            else {
                continue;
            };
            let mut spec = replica.spec.clone();
            spec.failed_at = super::text(since);
            spec.last_failed_at.clone_from(&spec.failed_at);
            let (id, node) = (name(&replica.metadata), &replica.spec.node_id);
            let why = match self.lost(replica) {
                true => "its data is gone".to_owned(),
                false => format!("node {node} does not answer"),
            };
            self.plan.news.push(("Faulted", format!("replica {id} has failed: {why}")));
            self.change(replica, spec);
        }
    }

    fn need(&self, attached: bool) -> Need {
        let seen = self.seen;
        if !seen.settings.offline && !self.mine.iter().any(|r| self.evicted(r)) {
            return Need::Nothing;
        }
        let state = |r: &Replica| r.status.as_ref().map_or("", |s| s.current_state.as_str()).to_owned();
        let open = |r: &Replica| self.answers(r) && matches!(state(r).as_str(), "running" | "stopped");
        let failed = |r: &Replica| self.failed(r, attached).is_some();
        let never = |r: &Replica| r.spec.healthy_at.is_empty();
        let holds = |r: &Replica| !failed(r) && !never(r) && !Self::deleted(r);
        let sound = self.mine.iter().filter(|r| open(r) && holds(r)).count();
        if sound == 0 {
            return Need::Nothing;
        }
        let id = |r: &Replica| name(&r.metadata);
        let leaves = |r: &&&Replica| {
            // One that the volume has let go of already only waits for its agent.
            let member = self.mine.iter().any(|m| id(m) == id(r));
            (Self::deleted(r) && (member || seen.alive.contains(&r.spec.node_id))) || (member && self.lost(r))
        };
        if let Some(replica) = seen.replicas.iter().find(leaves) {
            return Need::Attach(format!("replica {} is let go of", id(replica)));
        }
        let back = |r: &&&Replica| {
            let may = (failed(r) && open(r)) || (!failed(r) && never(r) && state(r) != "error");
            may && self.answers(r) && self.may_return(r)
        };
        if let Some(replica) = self.mine.iter().find(back) {
            return Need::Attach(format!("replica {} is brought up to date", id(replica)));
        }
        if sound > self.wanted {
            return Need::Attach(format!("it has {sound} replicas, and is to have {}", self.wanted));
        }
        let good = self.mine.iter().filter(|r| holds(r) && !self.goes(r)).count();
        if good >= self.wanted {
            return Need::Nothing;
        }
        let may_return = self.mine.iter().copied().filter(|r| failed(r) && self.may_return(r));
        if let Some(seconds) = self.waits(may_return, attached) {
            return Need::Later(seconds);
        }
        match self.one_more(&self.mine) {
            Ok(chosen) => Need::Attach(format!("a replica has a place on node {}", chosen.node)),
            Err(why) => Need::Place(format!("{good} of {} replicas have a place; {why}", self.wanted)),
        }
    }

    /// Replicas that were given up on nodes that will never answer.
    pub(super) fn release(&mut self) {
        let mine: Vec<String> = self.mine.iter().map(|r| name(&r.metadata)).collect();
        for replica in self.seen.replicas {
            let id = name(&replica.metadata);
            if Self::deleted(replica)
                && !mine.contains(&id)
                && !self.seen.nodes.contains(&replica.spec.node_id)
            {
                self.plan.steps.push(Step::ReleaseReplica(id));
            }
        }
    }
}
