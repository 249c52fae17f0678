//! One-time tickets: a page asks for one by an ordinary request, with all that protects those, and a WebSocket of the same
//! session to the path that it names uses it up. A browser sends no header of ours with a WebSocket. Pure: time is given.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// A ticket is good for this long, in seconds.
pub(crate) const LIFE_S: i64 = 30;
/// Tickets that wait to be used.
const WAITING_MAX: usize = 4096;

#[derive(Debug)]
struct Ticket {
    session: String,
    path: String,
    until: i64,
}

/// The tickets that were not used yet.
#[derive(Debug, Default)]
pub(crate) struct Tickets(HashMap<[u8; 32], Ticket>);

fn key(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket).into()
}

impl Tickets {
    /// Takes a new ticket for a session (by its CSRF value) and a path; no if there are too many.
    pub(crate) fn put(&mut self, ticket: &str, session: &str, path: &str, now: i64) -> bool {
        if self.0.len() >= WAITING_MAX {
            self.0.retain(|_, t| t.until > now);
        }
        let room = self.0.len() < WAITING_MAX;
        if room {
            let ticket_of = Ticket { session: session.into(), path: path.into(), until: now + LIFE_S };
            self.0.insert(key(ticket), ticket_of);
        }
        room
    }

    /// Uses a ticket up, whether it fits or not.
    pub(crate) fn redeem(&mut self, ticket: &str, session: &str, path: &str, now: i64) -> bool {
        let found = self.0.remove(&key(ticket));
        found.is_some_and(|t| {
            t.until > now && t.path == path && super::same(t.session.as_bytes(), session.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_fits_once_one_session_and_one_path() {
        let mut tickets = Tickets::default();
        let fits = |tickets: &mut Tickets, session: &str, path: &str, now: i64| {
            assert!(tickets.put("t", "s", "/p", 100));
            tickets.redeem("t", session, path, now)
        };
        assert!(fits(&mut tickets, "s", "/p", 101));
        assert!(!tickets.redeem("t", "s", "/p", 101), "once");
        assert!(!fits(&mut tickets, "other", "/p", 101));
        assert!(!tickets.redeem("t", "s", "/p", 101), "a wrong use is a use");
        assert!(!fits(&mut tickets, "s", "/q", 101));
        assert!(!fits(&mut tickets, "s", "/p", 100 + LIFE_S));
    }

    #[test]
    fn they_are_bounded_and_what_is_old_makes_room() {
        let mut tickets = Tickets::default();
        for n in 0..WAITING_MAX {
            assert!(tickets.put(&n.to_string(), "s", "/p", 0));
        }
        assert!(!tickets.put("more", "s", "/p", 1));
        assert!(tickets.put("more", "s", "/p", LIFE_S));
    }
}
