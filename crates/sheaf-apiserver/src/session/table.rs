//! The sessions that are open, and how often somebody guessed. Pure: time is given.
//!
//! A session is known by the hash of its token, so that neither the table nor the file that it is kept in gives anybody
//! a token.

use std::{collections::HashMap, net::IpAddr};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::authn::UserInfo;

/// A session ends when it was not used for this long, in seconds.
pub(crate) const IDLE_S: i64 = 12 * 3600;
/// And in any case after this long.
pub(crate) const ABSOLUTE_S: i64 = 7 * 86_400;
/// Sessions that may be open; the one that was unused for longest makes room.
const SESSIONS_MAX: usize = 4096;
/// Wrong passwords of one address within [`WINDOW_S`].
const GUESSES_MAX: u32 = 10;
/// Of everybody together: an attacker may have many addresses.
const GUESSES_ALL_MAX: u32 = 200;
/// Wrong passwords are forgotten after this long, in seconds.
const WINDOW_S: i64 = 300;
/// Use of a session is written down this often at most, in seconds.
const SAVE_S: i64 = 600;
/// Whether an account is still what it was is asked this often at most, in seconds.
const CONFIRM_S: i64 = 5;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Clone)]
struct Session {
    user: UserInfo,
    csrf: String,
    /// What the account was like: see `Account::stamp`.
    stamp: String,
    began: i64,
    used: i64,
    /// When the account was last looked at; at no time after a restart.
    confirmed: i64,
}

/// What a token gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Whose session it is.
    pub(crate) user: UserInfo,
    /// What an unsafe request has to carry in its header.
    pub(crate) csrf: String,
    /// What the account was like when the session was opened.
    pub(crate) stamp: String,
    /// Whether the account has to be looked at again before this counts.
    pub(crate) doubtful: bool,
}

/// The open sessions. Times are seconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sessions: HashMap<[u8; 32], Session>,
    guesses: HashMap<IpAddr, (i64, u32)>,
    guesses_all: (i64, u32),
    saved: i64,
}

fn key(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn alive(session: &Session, now: i64) -> bool {
    now - session.used < IDLE_S && now - session.began < ABSOLUTE_S
}

impl Table {
    /// Opens a session.
    pub(crate) fn open(&mut self, token: &str, csrf: &str, user: UserInfo, stamp: &str, now: i64) {
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.retain(|_, s| alive(s, now));
        }
        if self.sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = self.sessions.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| *k)
        {
            self.sessions.remove(&oldest);
        }
        let session =
            Session { user, csrf: csrf.into(), stamp: stamp.into(), began: now, used: now, confirmed: now };
        self.sessions.insert(key(token), session);
    }

    /// The session of a token, which is used thereby if somebody asked for what is done.
    pub(crate) fn find(&mut self, token: &str, asked_for: bool, now: i64) -> Option<Known> {
        let key = key(token);
        let session = self.sessions.get_mut(&key)?;
        if !alive(session, now) {
            self.sessions.remove(&key);
            return None;
        }
        if asked_for {
            session.used = session.used.max(now);
        }
        Some(Known {
            user: session.user.clone(),
            csrf: session.csrf.clone(),
            stamp: session.stamp.clone(),
            doubtful: now - session.confirmed >= CONFIRM_S,
        })
    }

    /// The account of these sessions was looked at.
    pub(crate) fn confirmed(&mut self, known: &Known, now: i64) {
        for session in self.sessions.values_mut().filter(|s| s.stamp == known.stamp) {
            session.confirmed = now;
        }
    }

    /// Ends the sessions of an account that is no longer what it was.
    pub(crate) fn close_stamp(&mut self, stamp: &str) {
        self.sessions.retain(|_, s| s.stamp != stamp);
    }

    /// Ends a session.
    pub(crate) fn close(&mut self, token: &str) {
        self.sessions.remove(&key(token));
    }

    /// Ends all sessions of a user.
    pub(crate) fn close_all(&mut self, username: &str) {
        self.sessions.retain(|_, s| s.user.username != username);
    }

    /// Whether the use of sessions should be written down again; asked, it is taken as done.
    pub(crate) fn due(&mut self, now: i64) -> bool {
        let due = now - self.saved >= SAVE_S;
        if due {
            self.saved = now;
        }
        due
    }

    /// The sessions as they are kept over a restart.
    pub(crate) fn to_json(&self) -> Value {
        let one = |(key, s): (&[u8; 32], &Session)| json!({"key": key, "user": s.user.username, "groups": s.user.groups, "csrf": s.csrf, "stamp": s.stamp, "uid": s.user.uid, "began": s.began, "used": s.used});
        self.sessions.iter().map(one).collect()
    }

    /// Takes what was kept. What cannot be read, or has ended, is left out: its owner signs in again.
    pub(crate) fn take(&mut self, kept: &Value, now: i64) {
        for entry in kept.as_array().into_iter().flatten().take(SESSIONS_MAX) {
            let key: Option<[u8; 32]> = serde_json::from_value(entry["key"].clone()).ok();
            let groups: Option<Vec<String>> = serde_json::from_value(entry["groups"].clone()).ok();
            let (user, csrf) = (entry["user"].as_str(), entry["csrf"].as_str());
            let (began, used) = (entry["began"].as_i64(), entry["used"].as_i64());
            let (Some(key), Some(groups), Some(user), Some(csrf), Some(began), Some(used), Some(stamp)) =
                (key, groups, user, csrf, began, used, entry["stamp"].as_str())
            else {
                continue;
            };
            let mut user = UserInfo::new(user, groups.iter().map(String::as_str));
            user.uid = entry["uid"].as_str().unwrap_or_default().into();
            let session = Session { user, csrf: csrf.into(), stamp: stamp.into(), began, used, confirmed: 0 };
            if alive(&session, now) {
                self.sessions.insert(key, session);
            }
        }
    }

    /// Takes a guess of an address, before it is looked at. The seconds to wait, if there were too many.
    pub(crate) fn guess(&mut self, from: Option<IpAddr>, now: i64) -> Result<(), i64> {
        let left = |since: i64| (since + WINDOW_S - now).max(1);
        let fresh =
            |(since, count): (i64, u32)| if now - since >= WINDOW_S { (now, 0) } else { (since, count) };
        self.guesses_all = fresh(self.guesses_all);
        if self.guesses_all.1 >= GUESSES_ALL_MAX {
            return Err(left(self.guesses_all.0));
        }
        if let Some(from) = from {
            if self.guesses.len() >= ADDRESSES_MAX && !self.guesses.contains_key(&from) {
                self.guesses.retain(|_, (since, _)| now - *since < WINDOW_S);
                if self.guesses.len() >= ADDRESSES_MAX {
                    return Err(WINDOW_S);
                }
            }
            let mine = self.guesses.entry(from).or_insert((now, 0));
            *mine = fresh(*mine);
            if mine.1 >= GUESSES_MAX {
                return Err(left(mine.0));
            }
            mine.1 += 1;
        }
        self.guesses_all.1 += 1;
        Ok(())
    }

    /// A guess was right: what that address got wrong before is forgotten.
    pub(crate) fn guessed_right(&mut self, from: Option<IpAddr>) {
        if let Some(from) = from {
            self.guesses.remove(&from);
        }
        self.guesses_all.1 = self.guesses_all.1.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_idle_or_old() {
        let mut table = Table::default();
        table.open("t", "c", UserInfo::new("admin", []), "stamp", 0);
        assert_eq!(table.find("t", true, IDLE_S - 1).unwrap().csrf, "c");
        assert!(table.find("u", true, 1).is_none());
        assert!(table.find("t", true, 2 * IDLE_S - 2).is_some(), "use keeps it open");
        assert!(table.find("t", true, 3 * IDLE_S).is_none(), "idle");
        table.open("t", "c", UserInfo::new("admin", []), "stamp", 0);
        let mut now = 0;
        while table.find("t", true, now).is_some() {
            now += IDLE_S / 2;
        }
        assert_eq!(now, ABSOLUTE_S, "absolute end");
    }

    #[test]
    fn what_is_kept_holds_no_token_and_what_has_ended_stays_ended() {
        let mut table = Table::default();
        table.open("secret-token", "c", UserInfo::new("admin", ["system:masters"]), "stamp", 100);
        let kept = table.to_json();
        assert!(!kept.to_string().contains("secret-token"));
        let mut next = Table::default();
        next.take(&kept, 200);
        let found = next.find("secret-token", true, 200).unwrap();
        assert!(found.doubtful, "after a restart, the account is looked at");
        next.confirmed(&found, 200);
        assert_eq!(
            next.find("secret-token", true, 200),
            table.find("secret-token", true, 200).map(|k| Known { doubtful: false, ..k })
        );
        let mut late = Table::default();
        late.take(&kept, 100 + IDLE_S);
        late.take(&json!([{"key": "x"}, 3]), 200);
        assert!(late.sessions.is_empty());
    }

    #[test]
    fn what_nobody_asked_for_keeps_no_session_open() {
        let mut table = Table::default();
        table.open("t", "c", UserInfo::new("admin", []), "stamp", 0);
        assert!(table.find("t", false, IDLE_S - 1).is_some());
        assert!(table.find("t", false, IDLE_S).is_none());
    }

    #[test]
    fn an_account_is_looked_at_now_and_then_and_its_change_ends_its_sessions() {
        let mut table = Table::default();
        table.open("t", "c", UserInfo::new("ann", []), "stamp", 0);
        table.open("u", "c", UserInfo::new("bob", []), "other", 0);
        let found = table.find("t", true, CONFIRM_S).unwrap();
        assert!(found.doubtful && !table.find("t", true, CONFIRM_S - 1).unwrap().doubtful);
        table.confirmed(&found, CONFIRM_S);
        assert!(!table.find("t", true, CONFIRM_S).unwrap().doubtful);
        table.close_stamp("stamp");
        assert!(table.find("t", true, 9).is_none() && table.find("u", true, 9).is_some());
    }

    #[test]
    fn closing() {
        let mut table = Table::default();
        for token in ["a", "b", "c"] {
            table.open(token, "", UserInfo::new("admin", []), "stamp", 0);
        }
        table.close("a");
        assert!(table.find("a", true, 1).is_none() && table.find("b", true, 1).is_some());
        table.close_all("admin");
        assert!(table.find("b", true, 1).is_none() && table.find("c", true, 1).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        for n in 0..SESSIONS_MAX + 10 {
            table.open(&n.to_string(), "", UserInfo::new("admin", []), "stamp", n.try_into().unwrap());
        }
        assert_eq!(table.sessions.len(), SESSIONS_MAX);
        assert!(table.find("0", true, 5).is_none());
    }

    #[test]
    fn guesses_are_limited_for_each_address() {
        let mut table = Table::default();
        let (a, b) = ("10.0.0.1".parse().ok(), "10.0.0.2".parse().ok());
        for _ in 0..GUESSES_MAX {
            assert_eq!(table.guess(a, 100), Ok(()));
        }
        assert_eq!(table.guess(a, 101), Err(WINDOW_S - 1));
        assert_eq!(table.guess(b, 101), Ok(()));
        assert_eq!(table.guess(a, 100 + WINDOW_S), Ok(()), "forgotten after a while");
    }
}
