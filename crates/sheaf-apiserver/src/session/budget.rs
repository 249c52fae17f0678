//! How often somebody may do what is dear: guess a password, have one hashed. Pure: time is given.

use std::{collections::HashMap, hash::Hash};

/// What was spent is forgotten after this long, in seconds.
pub(crate) const WINDOW_S: i64 = 300;
/// Spenders that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// When the window began, and what was spent in it.
type Spent = (i64, u32);

/// What each may spend within [`WINDOW_S`], and all together: an attacker may have many addresses.
#[derive(Debug)]
pub(crate) struct Budget<K> {
    each: u32,
    all: u32,
    spent: HashMap<K, Spent>,
    total: Spent,
}

fn fresh((since, count): Spent, now: i64) -> Spent {
    if now - since >= WINDOW_S { (now, 0) } else { (since, count) }
}

impl<K: Eq + Hash> Budget<K> {
    /// A budget of which nothing is spent.
    pub(crate) fn new(each: u32, all: u32) -> Self {
        Self { each, all, spent: HashMap::new(), total: (0, 0) }
    }

    /// Spends one, before the work is done. The seconds to wait, if nothing is left.
    pub(crate) fn take(&mut self, who: Option<K>, now: i64) -> Result<(), i64> {
        let left = |since: i64| (since + WINDOW_S - now).max(1);
        self.total = fresh(self.total, now);
        if self.total.1 >= self.all {
            return Err(left(self.total.0));
        }
        if let Some(who) = who {
            if self.spent.len() >= REMEMBERED_MAX && !self.spent.contains_key(&who) {
                self.spent.retain(|_, (since, _)| now - *since < WINDOW_S);
                if self.spent.len() >= REMEMBERED_MAX {
                    return Err(WINDOW_S);
                }
            }
            let mine = self.spent.entry(who).or_insert((now, 0));
            *mine = fresh(*mine, now);
            if mine.1 >= self.each {
                return Err(left(mine.0));
            }
            mine.1 += 1;
        }
        self.total.1 += 1;
        Ok(())
    }

    /// It was no guess: what this one spent before is forgotten.
    pub(crate) fn forgive(&mut self, who: Option<K>) {
        if let Some(who) = who {
            self.spent.remove(&who);
        }
        self.total.1 = self.total.1.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_all_have_one() {
        let mut budget = Budget::new(3, 5);
        for _ in 0..3 {
            assert_eq!(budget.take(Some('a'), 100), Ok(()));
        }
        assert_eq!(budget.take(Some('a'), 101), Err(WINDOW_S - 1));
        assert_eq!(budget.take(Some('b'), 101), Ok(()));
        assert_eq!(budget.take(Some('a'), 100 + WINDOW_S), Ok(()), "forgotten after a while");
        let mut budget = Budget::new(3, 5);
        for n in 0..5 {
            assert_eq!(budget.take(Some(n), 0), Ok(()));
        }
        assert_eq!(budget.take(Some(9), 10), Err(WINDOW_S - 10));
        budget.forgive(Some(1));
        assert_eq!(budget.take(Some(9), 10), Ok(()));
    }

    #[test]
    fn who_is_remembered_is_bounded() {
        let mut budget = Budget::new(1, u32::MAX);
        for n in 0..REMEMBERED_MAX {
            assert_eq!(budget.take(Some(n), 0), Ok(()));
        }
        assert_eq!(budget.take(Some(REMEMBERED_MAX), 1), Err(WINDOW_S));
        assert_eq!(budget.take(Some(REMEMBERED_MAX), WINDOW_S), Ok(()));
    }
}
