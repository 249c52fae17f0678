//! The work queue of a driver, as a pure structure: no clock, no tasks.
//!
//! Rules: a key is queued at most once; a key that runs is not started a second time, but is run again afterwards if
//! it was asked for meanwhile; a failed key waits for a time that doubles from [`Backoff::first`] to
//! [`Backoff::longest`]. Its size is bounded by the number of keys that exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::ObjectKey;

/// How long a failed key waits.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

impl Backoff {
    /// Wait before the try that follows the `failures`th failure in a row (1 = first).
    pub fn delay(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    backoff: Backoff,
    /// Keys to run, by the time from which they may; ties in order of the key.
    due: BTreeSet<(Instant, ObjectKey)>,
    when: HashMap<ObjectKey, Instant>,
    /// Running keys; the value says when to run again, if that was asked for meanwhile.
    running: BTreeMap<ObjectKey, Option<Instant>>,
    failures: HashMap<ObjectKey, u32>,
}

impl Queue {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            due: BTreeSet::new(),
            when: HashMap::new(),
            running: BTreeMap::new(),
            failures: HashMap::new(),
        }
    }
    /// Asks for a run at `at`; the earlier of two wishes wins.
    pub fn add(&mut self, key: ObjectKey, at: Instant) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = Some(again.map_or(at, |old| old.min(at)));
            return;
        }
        match self.when.get(&key) {
            Some(old) if *old <= at => {}
            Some(old) => {
                self.due.remove(&(*old, key.clone()));
                self.when.insert(key.clone(), at);
                self.due.insert((at, key));
            }
            None => {
                self.when.insert(key.clone(), at);
                self.due.insert((at, key));
            }
        }
    }
    /// Takes a key that is due; it counts as running until [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<ObjectKey> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.when.remove(&key);
        self.running.insert(key.clone(), None);
        Some(key)
    }
    /// When the next key becomes due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
    /// A run ended well; `again` asks for another look after a while.
    pub fn done(&mut self, key: &ObjectKey, now: Instant, again: Option<Duration>) {
        self.failures.remove(key);
        self.finish(key, again.map(|d| now + d));
    }
    /// A run failed; gives the wait before the next.
    pub fn failed(&mut self, key: &ObjectKey, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = self.backoff.delay(*failures);
        // A wish that came meanwhile does not shorten the wait: a key that fails at once would spin.
        self.running.insert(key.clone(), None);
        self.finish(key, Some(now + delay));
        delay
    }
    /// Failures in a row of a key.
    pub fn failures(&self, key: &ObjectKey) -> u32 {
        self.failures.get(key).copied().unwrap_or(0)
    }
    /// Keys that run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }
    fn finish(&mut self, key: &ObjectKey, at: Option<Instant>) {
        let asked = self.running.remove(key).flatten();
        let next = match (asked, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if let Some(next) = next {
            self.add(key.clone(), next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };
    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    #[test]
    fn a_key_is_queued_once_and_the_earlier_wish_wins() {
        let now = Instant::now();
        let mut q = Queue::new(BACKOFF);
        q.add(key("a"), now + Duration::from_secs(5));
        q.add(key("a"), now);
        q.add(key("a"), now + Duration::from_secs(9));
        assert_eq!(q.take(now), Some(key("a")));
        assert_eq!(q.take(now + Duration::from_secs(60)), None);
    }

    #[test]
    fn a_running_key_is_not_started_twice_but_runs_again_if_asked_for() {
        let now = Instant::now();
        let mut q = Queue::new(BACKOFF);
        q.add(key("a"), now);
        let a = q.take(now).expect("due");
        q.add(key("a"), now);
        assert_eq!(q.take(now), None, "exclusive");
        q.done(&a, now, None);
        assert_eq!(q.take(now), Some(key("a")), "asked for meanwhile");
        q.done(&a, now, None);
        assert_eq!(q.next_due(), None);
    }

    #[test]
    fn failures_wait_longer_each_time_and_success_forgets_them() {
        let now = Instant::now();
        let mut q = Queue::new(BACKOFF);
        q.add(key("a"), now);
        let mut waits = Vec::new();
        let mut t = now;
        for _ in 0..12 {
            let a = q.take(t).expect("due");
            q.add(key("a"), t);
            let wait = q.failed(&a, t);
            assert_eq!(q.take(t), None, "a wish that came meanwhile does not shorten the wait");
            waits.push(wait.as_millis());
            t += wait;
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 30_000);
        let a = q.take(t).expect("due");
        q.done(&a, t, None);
        assert_eq!(q.failures(&a), 0);
    }
}
