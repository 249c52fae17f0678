//! Who looks at which console and screen. A newer viewer takes over; the older one's stream ends without a closing
//! message, which is how its program knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::http::Params;

/// What has one viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Console,
    Vnc,
    /// A slot for a USB device that a viewer passes in.
    Usb(u8),
}

type Key = (Kind, String, String);

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<Key, (u64, CancellationToken)>,
}

/// The table of sessions.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<Table>>);

/// One session; it is over when this is dropped.
pub(super) struct Session {
    table: Sessions,
    key: Key,
    number: u64,
    token: CancellationToken,
}

impl Sessions {
    fn with<T>(&self, f: impl FnOnce(&mut Table) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, key: Key, table: &mut Table) -> Session {
        table.next += 1;
        let (number, token) = (table.next, CancellationToken::new());
        if let Some((_, older)) = table.open.insert(key.clone(), (number, token.clone())) {
            older.cancel();
        }
        Session { table: self.clone(), key, number, token }
    }

    /// A session, in place of one that may be there.
    pub(super) fn take_over(&self, kind: Kind, params: &Params) -> Session {
        let key = (kind, params.get("namespace").to_owned(), params.get("name").to_owned());
        self.with(|t| self.open(key, t))
    }

    /// A session, if there is none.
    pub(super) fn if_free(&self, kind: Kind, params: &Params) -> Option<Session> {
        let key = (kind, params.get("namespace").to_owned(), params.get("name").to_owned());
        self.with(|t| (!t.open.contains_key(&key)).then(|| self.open(key, t)))
    }
}

impl Session {
    /// Resolves when another has taken over. Holds the session until then, or until it is dropped.
    pub(super) async fn ended(self) {
        self.token.cancelled().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.table.with(|t| {
            if t.open.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
                t.open.remove(&self.key);
            }
        });
    }
}
