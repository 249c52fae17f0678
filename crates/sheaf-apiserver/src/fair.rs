//! Turns: who is served when more ask than can be served at once.
//!
//! A fixed number of seats, handed out round robin by user. One user never holds all of them, and whoever floods the
//! server waits in a queue of their own, which is short: beyond it they are told to come back later. So a request of
//! somebody else waits for at most one seat to become free. Not here: what is done with a seat, and for how long.
//!
//! Owns the counts and the queues.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Bounds of [`Turns`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Turns at the same time.
    pub(crate) seats: usize,
    /// Turns of one user at the same time.
    pub(crate) per_user: usize,
    /// Requests of one user that may wait.
    pub(crate) waiting_per_user: usize,
    /// Requests that may wait in all.
    pub(crate) waiting: usize,
}

/// There is no place to wait in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The seats.
pub(crate) struct Turns {
    limits: Limits,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    taken: usize,
    waiting: usize,
    /// Those who have a seat or wait for one.
    users: HashMap<Arc<str>, User>,
    /// Those who wait, each once; the next one first.
    order: VecDeque<Arc<str>>,
}

#[derive(Default)]
struct User {
    taken: usize,
    queue: VecDeque<oneshot::Sender<Turn>>,
}

/// A seat, given back when it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    user: Arc<str>,
}

impl Turns {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that runs under it leaves it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a seat. Cancel-safe: who stops waiting leaves nothing behind.
    pub(crate) async fn take(self: &Arc<Self>, user: &str) -> Result<Turn, Full> {
        let waiting = match self.join(user)? {
            Joined::Seated(turn) => return Ok(turn),
            Joined::Waiting(waiting) => waiting,
        };
        // The sender is kept until it is used.
        waiting.await.map_err(|_| Full)
    }

    fn join(self: &Arc<Self>, name: &str) -> Result<Joined, Full> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let name: Arc<str> = match inner.users.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => name.into(),
        };
        let user = inner.users.entry(name.clone()).or_default();
        if inner.taken < self.limits.seats && user.taken < self.limits.per_user && user.queue.is_empty() {
            inner.taken += 1;
            user.taken += 1;
            return Ok(Joined::Seated(Turn { turns: self.clone(), user: name }));
        }
        if user.queue.len() >= self.limits.waiting_per_user || inner.waiting >= self.limits.waiting {
            if user.taken == 0 && user.queue.is_empty() {
                inner.users.remove(&name);
            }
            return Err(Full);
        }
        let (sender, receiver) = oneshot::channel();
        if user.queue.is_empty() {
            inner.order.push_back(name);
        }
        user.queue.push_back(sender);
        inner.waiting += 1;
        Ok(Joined::Waiting(receiver))
    }

    /// Gives free seats to those who wait, one each in turn.
    fn seat(self: &Arc<Self>) {
        let mut grants = Vec::new();
        let mut inner = self.lock();
        let inner_ref = &mut *inner;
        let mut passed_over = 0;
        while inner_ref.taken < self.limits.seats && passed_over < inner_ref.order.len() {
            let Some(name) = inner_ref.order.pop_front() else { break };
            let Some(user) = inner_ref.users.get_mut(&name) else { continue };
            if user.taken >= self.limits.per_user {
                inner_ref.order.push_back(name);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            // Those who gave up are passed by here, not seated and unseated one after the other.
            let before = user.queue.len();
            let sender = std::iter::from_fn(|| user.queue.pop_front()).find(|sender| !sender.is_closed());
            inner_ref.waiting -= before - user.queue.len();
            let Some(sender) = sender else {
                if user.taken == 0 {
                    inner_ref.users.remove(&name);
                }
                continue;
            };
            inner_ref.taken += 1;
            user.taken += 1;
            if !user.queue.is_empty() {
                inner_ref.order.push_back(name.clone());
            }
            grants.push((sender, Turn { turns: self.clone(), user: name }));
        }
        drop(inner);
        for (sender, turn) in grants {
            // Whoever is gone gives the seat back by not taking it: it is dropped here, outside the lock.
            drop(sender.send(turn));
        }
    }
}

enum Joined {
    Seated(Turn),
    Waiting(oneshot::Receiver<Turn>),
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        inner.taken -= 1;
        let gone = match inner.users.get_mut(&self.user) {
            Some(user) => {
                user.taken -= 1;
                user.taken == 0 && user.queue.is_empty()
            }
            None => false,
        };
        if gone {
            inner.users.remove(&self.user);
        }
        let wanted = !inner.order.is_empty();
        drop(inner);
        if wanted {
            self.turns.seat();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { seats: 4, per_user: 3, waiting_per_user: 10, waiting: 15 };

    #[test]
    fn a_flood_leaves_seats_and_turns_to_others() {
        let turns = Turns::new(LIMITS);
        let flood: Vec<_> = (0..3).map(|_| turns.take("flood").now_or_never().unwrap().unwrap()).collect();
        let mut waits: Vec<_> = (0..10).map(|_| Box::pin(turns.take("flood"))).collect();
        assert!(waits.iter_mut().all(|w| w.now_or_never().is_none()), "not more than its share");
        assert_eq!(turns.take("flood").now_or_never().unwrap().err(), Some(Full));
        let other = turns.take("other").now_or_never().unwrap().unwrap();
        let mut second = Box::pin(turns.take("other"));
        assert!((&mut second).now_or_never().is_none(), "all seats are taken");
        // The flood was first in the queue, so the first free seat is its own, the next the other's.
        drop(flood);
        assert!(second.now_or_never().is_some());
        drop(other);
        drop(waits);
        let inner = turns.lock();
        assert_eq!((inner.taken, inner.waiting, inner.users.len()), (0, 0, 0), "nothing is left behind");
    }

    proptest! {
        /// Whatever is asked, given back and given up: never more seats than there are, and none lost.
        #[test]
        fn seats_are_neither_made_nor_lost(steps in prop::collection::vec((0u8..3, 0usize..4, any::<prop::sample::Index>()), 0..200)) {
            let turns = Turns::new(LIMITS);
            let names = ["a", "b", "c", "d"];
            type Wait = std::pin::Pin<Box<dyn Future<Output = Result<Turn, Full>>>>;
            let mut waiting: Vec<(usize, Wait)> = Vec::new();
            let mut seated: Vec<(usize, Turn)> = Vec::new();
            for (what, who, which) in steps {
                match what {
                    0 => {
                        let turns = turns.clone();
                        waiting.push((who, Box::pin(async move { turns.take(names[who]).await })));
                    }
                    1 if !seated.is_empty() => drop(seated.swap_remove(which.index(seated.len()))),
                    2 if !waiting.is_empty() => drop(waiting.swap_remove(which.index(waiting.len()))),
                    _ => {}
                }
                let mut still = Vec::new();
                for (who, mut future) in waiting {
                    match (&mut future).now_or_never() {
                        Some(Ok(turn)) => seated.push((who, turn)),
                        Some(Err(Full)) => {}
                        None => still.push((who, future)),
                    }
                }
                waiting = still;
                prop_assert!(seated.len() <= LIMITS.seats);
                for who in 0..names.len() {
                    prop_assert!(seated.iter().filter(|(w, _)| *w == who).count() <= LIMITS.per_user);
                }
                // Nobody waits while there is a seat for them.
                let free = seated.len() < LIMITS.seats;
                for (who, _) in &waiting {
                    let own = seated.iter().filter(|(w, _)| w == who).count();
                    prop_assert!(!free || own >= LIMITS.per_user, "{who} waits for nothing");
                }
            }
            drop(waiting);
            drop(seated);
            let inner = turns.lock();
            prop_assert_eq!((inner.taken, inner.waiting), (0, 0));
        }
    }
}
