//! The sessions that are open, and the tokens that they gave out. Pure: time is given.
//!
//! A session is known by the hash of its token, so that neither the table nor the file that it is kept in gives anybody
//! a token. Whatever ends one ends what it opened, too: see [`Life`].

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::life::Life;
use crate::authn::UserInfo;

/// A session ends when it was not used for this long, in seconds.
pub(crate) const IDLE_S: i64 = 12 * 3600;
/// And in any case after this long.
pub(crate) const ABSOLUTE_S: i64 = 7 * 86_400;
/// Sessions that may be open; the one that was unused for longest makes room.
const SESSIONS_MAX: usize = 4096;
/// Those of one user; nobody signs others out by signing in again and again.
const OF_ONE_MAX: usize = 100;
/// Tokens that one user may have given out.
const TOKENS_MAX: usize = 20;
/// Use of a session is written down this often at most, in seconds.
const SAVE_S: i64 = 600;
/// Whether an account is still what it was is asked this often at most, in seconds.
pub(crate) const CONFIRM_S: i64 = 5;

/// What a session is opened by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// A browser's cookie; with what its unsafe requests have to carry.
    Cookie { csrf: String },
    /// A bearer token in somebody's kubeconfig, good until a second.
    Bearer { until: i64 },
}

/// Somebody who is signed in. What it opened ends when it is dropped.
#[derive(Debug)]
pub(super) struct Session {
    user: UserInfo,
    key: Key,
    /// What the account was like: see `Account::stamp`.
    stamp: String,
    began: i64,
    used: i64,
    /// When the account was last looked at; at no time after a restart.
    confirmed: i64,
    life: Life,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.life.end();
    }
}

impl Session {
    fn known(&self, now: i64) -> Known {
        let csrf = match &self.key {
            Key::Cookie { csrf } => csrf.clone(),
            Key::Bearer { .. } => String::new(),
        };
        Known {
            user: self.user.clone(),
            csrf,
            stamp: self.stamp.clone(),
            doubtful: now - self.confirmed >= CONFIRM_S,
            life: self.life.clone(),
        }
    }
}

/// What a token gives.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// Whose session it is.
    pub(crate) user: UserInfo,
    /// What an unsafe request has to carry in its header.
    pub(crate) csrf: String,
    /// What the account was like when the session was opened.
    pub(crate) stamp: String,
    /// Whether the account has to be looked at again before this counts.
    pub(crate) doubtful: bool,
    /// Ends with the session.
    pub(crate) life: Life,
}

/// The open sessions. Times are seconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sessions: HashMap<[u8; 32], Session>,
    saved: i64,
}

fn key(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn alive(session: &Session, now: i64) -> bool {
    match session.key {
        Key::Cookie { .. } => now - session.used < IDLE_S && now - session.began < ABSOLUTE_S,
        Key::Bearer { until } => now < until,
    }
}

impl Table {
    /// Opens a session.
    pub(crate) fn open(&mut self, token: &str, csrf: &str, user: UserInfo, stamp: &str, now: i64) {
        self.put(token, Key::Cookie { csrf: csrf.into() }, user, stamp, now);
    }

    /// Gives out a bearer token; no if the user has too many.
    pub(crate) fn give(&mut self, token: &str, user: &UserInfo, stamp: &str, until: i64, now: i64) -> bool {
        self.sessions.retain(|_, s| alive(s, now));
        let given = self
            .sessions
            .values()
            .filter(|s| matches!(s.key, Key::Bearer { .. }) && s.user.username == user.username);
        let room = given.count() < TOKENS_MAX;
        if room {
            self.put(token, Key::Bearer { until }, user.clone(), stamp, now);
        }
        room
    }

    fn put(&mut self, token: &str, by: Key, user: UserInfo, stamp: &str, now: i64) {
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.retain(|_, s| alive(s, now));
        }
        let own = self.sessions.values().filter(|s| s.user.username == user.username).count();
        if own >= OF_ONE_MAX {
            self.make_room(|s| s.user.username == user.username);
        } else if self.sessions.len() >= SESSIONS_MAX {
            self.make_room(|_| true);
        }
        let session = Session {
            user,
            key: by,
            stamp: stamp.into(),
            began: now,
            used: now,
            confirmed: now,
            life: Life::default(),
        };
        self.sessions.insert(key(token), session);
    }

    /// Ends the one of these that was unused for longest.
    fn make_room(&mut self, of: impl Fn(&Session) -> bool) {
        let oldest = self.sessions.iter().filter(|(_, s)| of(s)).min_by_key(|(_, s)| s.used);
        if let Some(oldest) = oldest.map(|(k, _)| *k) {
            self.sessions.remove(&oldest);
        }
    }

    /// The session of a cookie, which is used thereby if somebody asked for what is done.
    pub(crate) fn find(&mut self, token: &str, asked_for: bool, now: i64) -> Option<Known> {
        self.look(token, asked_for, now, |by| matches!(by, Key::Cookie { .. }))
    }

    /// What a bearer token gives.
    pub(crate) fn find_bearer(&mut self, token: &str, now: i64) -> Option<Known> {
        self.look(token, true, now, |by| matches!(by, Key::Bearer { .. }))
    }

    fn look(&mut self, token: &str, used: bool, now: i64, by: impl Fn(&Key) -> bool) -> Option<Known> {
        let key = key(token);
        let session = self.sessions.get_mut(&key).filter(|s| by(&s.key))?;
        if !alive(session, now) {
            self.sessions.remove(&key);
            return None;
        }
        if used {
            session.used = session.used.max(now);
        }
        Some(session.known(now))
    }

    /// Ends what is over. Gives one session of each account that has to be looked at again, since something that was opened
    /// under it goes on and may not ask for anything for days.
    pub(crate) fn sweep(&mut self, now: i64) -> Vec<Known> {
        self.sessions.retain(|_, s| alive(s, now));
        let open = self.sessions.values().filter(|s| s.life.is_held() && now - s.confirmed >= CONFIRM_S);
        open.map(|s| (s.stamp.clone(), s.known(now))).collect::<BTreeMap<_, _>>().into_values().collect()
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

    /// Ends a session, as soon as the caller lets it go.
    pub(super) fn close(&mut self, token: &str) -> Option<Session> {
        self.sessions.remove(&key(token))
    }

    /// Ends all sessions of a user, and their tokens.
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
        let one = |(key, s): (&[u8; 32], &Session)| {
            let (csrf, until) = match &s.key {
                Key::Cookie { csrf } => (csrf.as_str(), None),
                Key::Bearer { until } => ("", Some(*until)),
            };
            json!({"key": key, "user": s.user.username, "groups": s.user.groups, "csrf": csrf, "until": until, "stamp": s.stamp, "uid": s.user.uid, "began": s.began, "used": s.used})
        };
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
            let by = match entry["until"].as_i64() {
                Some(until) => Key::Bearer { until },
                None => Key::Cookie { csrf: csrf.into() },
            };
            let (stamp, life) = (stamp.into(), Life::default());
            let session = Session { user, key: by, stamp, began, used, confirmed: 0, life };
            if alive(&session, now) {
                self.sessions.insert(key, session);
            }
        }
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
        let (after, before) =
            (next.find("secret-token", true, 200).unwrap(), table.find("secret-token", true, 200).unwrap());
        assert_eq!(
            (after.user, after.csrf, after.stamp, after.doubtful),
            (before.user, before.csrf, before.stamp, false)
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
        drop(table.close("a"));
        assert!(table.find("a", true, 1).is_none() && table.find("b", true, 1).is_some());
        table.close_all("admin");
        assert!(table.find("b", true, 1).is_none() && table.find("c", true, 1).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        for n in 0..SESSIONS_MAX + 10 {
            table.open(&n.to_string(), "", UserInfo::new(&n.to_string(), []), "stamp", n.try_into().unwrap());
        }
        assert_eq!(table.sessions.len(), SESSIONS_MAX);
        assert!(table.find("0", true, 5).is_none());
        for n in 0..OF_ONE_MAX + 3 {
            table.open(&format!("x{n}"), "", UserInfo::new("greedy", []), "stamp", 5000);
        }
        let own = table.sessions.values().filter(|s| s.user.username == "greedy").count();
        assert_eq!((table.sessions.len(), own), (SESSIONS_MAX, OF_ONE_MAX), "only their own make room");
    }

    #[test]
    fn whatever_ends_a_session_ends_what_it_opened() {
        let mut table = Table::default();
        let open = |table: &mut Table, token: &str| {
            table.open(token, "c", UserInfo::new("ann", []), "stamp", 0);
            table.find(token, true, 0).unwrap().life
        };
        let ended = |life: &Life| futures_util::FutureExt::now_or_never(life.clone().ended()).is_some();
        let (a, b, c) = (open(&mut table, "a"), open(&mut table, "b"), open(&mut table, "c"));
        let closing = table.close("a");
        assert!(!ended(&a), "it goes on while the caller says the last word");
        drop(closing);
        assert!(ended(&a) && !ended(&b));
        let doubtful = table.sweep(CONFIRM_S);
        assert_eq!(doubtful.len(), 1, "one look for each account");
        table.confirmed(&doubtful[0], CONFIRM_S);
        drop(doubtful);
        assert!(table.sweep(CONFIRM_S + 1).is_empty());
        drop(c);
        table.close_stamp("stamp");
        assert!(ended(&b));
        let idle = open(&mut table, "d");
        assert!(table.sweep(IDLE_S).is_empty() && ended(&idle), "nobody has to ask");
    }

    #[test]
    fn a_token_is_good_until_its_time_and_as_no_cookie() {
        let mut table = Table::default();
        let ann = UserInfo::new("ann", []);
        assert!(table.give("t", &ann, "stamp", 1000, 0));
        assert!(table.find("t", true, 1).is_none() && table.find_bearer("t", 999).is_some());
        table.open("s", "c", ann.clone(), "stamp", 0);
        assert!(table.find_bearer("s", 1).is_none());
        let mut next = Table::default();
        next.take(&table.to_json(), 10);
        assert!(next.find_bearer("t", 999).is_some() && next.find("s", true, 11).is_some());
        assert!(next.find_bearer("t", 1000).is_none());
        for n in 1..TOKENS_MAX {
            assert!(table.give(&n.to_string(), &ann, "stamp", 1000, 0));
        }
        assert!(!table.give("more", &ann, "stamp", 1000, 0) && table.give("more", &ann, "stamp", 3000, 1000));
        table.close_all("ann");
        assert!(table.find_bearer("more", 1001).is_none());
    }
}
