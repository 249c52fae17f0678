//! Sessions of browsers: signing in with a password, a cookie from then on, and what protects both.
//!
//! A cookie goes along with every request that a browser makes, whoever caused it. So an unsafe request must carry the
//! value of a second cookie in the header `X-Sheaf-CSRF`, and a WebSocket must come from a page of this very server, with a
//! ticket that such a request was given. Who can sign in is [`accounts`]' business; while `admin` has no password, whoever
//! sits at the machine or knows the setup code (`<data>/setup-code`) chooses it.
//!
//! Who is signed in can have a bearer token for programs, good for a while and ended by all that ends a session. And what
//! was opened under a session (watches, consoles, displays) ends with it: [`life`].
//!
//! Owns the table of open sessions, kept in `<data>/sessions.json` over a restart, and the tickets.

mod accounts;
mod budget;
mod endpoint;
pub(crate) mod life;
mod password;
mod table;
mod tickets;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, Method, header};
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use sheaf_meta::status::Status;
use tokio::{
    sync::Semaphore,
    time::{Duration, MissedTickBehavior, interval},
};

use crate::{authn, core::Core, http::Request};
use budget::Budget;
pub(crate) use table::Known;
use table::{CONFIRM_S, Table};
use tickets::Tickets;

/// The cookie with the token. Scripts cannot read it.
const COOKIE: &str = "sheaf_session";
/// The cookie whose value unsafe requests repeat in [`CSRF_HEADER`].
const CSRF_COOKIE: &str = "sheaf_csrf";
/// The header that a page of another origin cannot set.
const CSRF_HEADER: &str = "x-sheaf-csrf";
/// Where signing in and out happens.
const PREFIX: &str = "/v1/auth/";
/// What a page sends with requests that nobody asked for: they keep no session open.
const IDLE_HEADER: &str = "x-sheaf-idle";
/// Passwords that are checked at the same time: each takes 19 MiB and a core.
const HASHING: usize = 2;
/// Wrong passwords of one address, and of everybody together.
const GUESSES: (u32, u32) = (10, 200);
/// Passwords that one user has hashed, and everybody together.
const HASHES: (u32, u32) = (30, 120);
/// What a user's bearer token begins with; nothing else that is one does.
const BEARER: &str = "sheaf-user-";

/// The two ends of the connection that a request came on; put into its extensions by the listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// Where it connected to.
    pub(crate) local: SocketAddr,
}

/// Sessions, and the way to them.
pub(crate) struct Sessions {
    table: Mutex<Table>,
    tickets: Mutex<Tickets>,
    random: SystemRandom,
    guesses: Mutex<Budget<IpAddr>>,
    hashes: Mutex<Budget<String>>,
    hashing: Semaphore,
    setup_code: Mutex<Option<String>>,
    setup_path: PathBuf,
    kept: PathBuf,
}

impl Sessions {
    /// Those are signed in who were before.
    pub(crate) fn new(data_dir: &Path, now_s: i64) -> Self {
        let kept = data_dir.join("sessions.json");
        let mut table = Table::default();
        if let Some(value) = std::fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            table.take(&value, now_s);
        }
        Self {
            kept,
            table: Mutex::new(table),
            tickets: Mutex::default(),
            random: SystemRandom::new(),
            guesses: Mutex::new(Budget::new(GUESSES.0, GUESSES.1)),
            hashes: Mutex::new(Budget::new(HASHES.0, HASHES.1)),
            hashing: Semaphore::new(HASHING),
            setup_code: Mutex::default(),
            setup_path: data_dir.join("setup-code"),
        }
    }

    /// The session of a request's cookie: none without a valid one. 403 where a page of another origin may be behind it.
    pub(crate) fn authenticate(&self, request: &Request, now_s: i64) -> Result<Option<Known>, Status> {
        let headers = request.headers();
        if headers.contains_key(header::AUTHORIZATION) {
            return Ok(self.bearer(headers, now_s));
        }
        let query = request.uri().query().unwrap_or_default();
        let asked_for = !headers.contains_key(IDLE_HEADER) && !has(query, "watch", "true");
        let Some(known) = self.known(headers, now_s, asked_for) else { return Ok(None) };
        if request.uri().path().starts_with(PREFIX) {
            // These look at the session themselves.
            return Ok(None);
        }
        if headers.contains_key(header::UPGRADE) {
            if !same_origin(request) {
                return Err(refused(
                    "a WebSocket with a session's cookie has to come from a page of this server",
                ));
            }
            let ticket = value(query, "ticket").unwrap_or_default();
            let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
            if !tickets.redeem(ticket, &known.csrf, request.uri().path(), now_s) {
                return Err(refused(
                    "a WebSocket with a session's cookie needs a ticket for its path, of /v1/auth/ticket, that was not used yet",
                ));
            }
        } else if !is_safe(request.method()) && !carries(headers, &known.csrf) {
            return Err(refused(
                "a request with a session's cookie needs the header X-Sheaf-CSRF with the value of the cookie sheaf_csrf",
            ));
        }
        Ok(Some(known))
    }

    /// A session whose account is still what it was when the session was opened. It is looked at now and then only.
    pub(crate) async fn confirm(
        &self,
        core: &Arc<Core>,
        known: Option<Known>,
        now_s: i64,
    ) -> Result<Option<Known>, Status> {
        let Some(known) = known else { return Ok(None) };
        if !known.doubtful {
            return Ok(Some(known));
        }
        let account = accounts::find(core, &known.user.username).await?;
        let same = account.is_some_and(|a| a.stamp() == known.stamp);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if same {
            table.confirmed(&known, now_s);
            return Ok(Some(known));
        }
        table.close_stamp(&known.stamp);
        self.save(&table);
        Ok(None)
    }

    /// What the bearer token of a request gives, if it is one of a local user. Pages do not send it, so nothing else protects it.
    fn bearer(&self, headers: &HeaderMap, now_s: i64) -> Option<Known> {
        let token = authn::bearer(headers)?;
        let token = token.strip_prefix(BEARER)?;
        self.table.lock().unwrap_or_else(PoisonError::into_inner).find_bearer(token, now_s)
    }

    /// Ends what has to end although nobody asks for anything: sessions that are over, and those whose account is no longer
    /// what it was while something that they opened goes on.
    pub(crate) async fn keep(self: Arc<Self>, core: Arc<Core>) {
        let mut turn = interval(Duration::from_secs(CONFIRM_S.unsigned_abs()));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            let now_s = Timestamp::now().as_second();
            let doubtful = self.table.lock().unwrap_or_else(PoisonError::into_inner).sweep(now_s);
            for known in doubtful {
                if let Err(status) = self.confirm(&core, Some(known), now_s).await {
                    tracing::debug!(message = %status, "an account cannot be looked at now");
                }
            }
        }
    }

    fn known(&self, headers: &HeaderMap, now_s: i64, asked_for: bool) -> Option<Known> {
        let token = cookie(headers, COOKIE)?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.find(token, asked_for, now_s);
        if known.is_some() && table.due(now_s) {
            self.save(&table);
        }
        known
    }

    /// Writes the sessions down. If that fails, a restart asks to sign in again, and that is all.
    fn save(&self, table: &Table) {
        let fresh = self.kept.with_extension("json.new");
        let written = write_private(&fresh, &table.to_json().to_string())
            .and_then(|()| std::fs::rename(&fresh, &self.kept));
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.kept.display(), "the sessions cannot be written down");
        }
    }

    /// A random value of 256 bits as text.
    fn token(&self) -> Result<String, Status> {
        let mut bytes = [0u8; 32];
        self.random.fill(&mut bytes).map_err(|_| Status::internal("the system gives no random numbers"))?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Makes the code that lets somebody at another machine choose the first password, and says where it is.
    pub(crate) fn offer_setup(&self, url: &str) -> Result<(), Status> {
        let mut slot = self.setup_code.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Ok(());
        }
        let mut bytes = [0u8; 10];
        self.random.fill(&mut bytes).map_err(|_| Status::internal("the system gives no random numbers"))?;
        // Letters and digits that cannot be taken for one another; 32 of them, so that each is 5 bits.
        let letters = b"abcdefghjkmnpqrstuvwxyz23456789x";
        let code: Vec<String> = bytes
            .chunks(5)
            .map(|part| part.iter().map(|b| char::from(letters[usize::from(b % 31)])).collect())
            .collect();
        let code = code.join("-");
        // The log has it, too: a disk that is full is no reason to end here.
        if let Err(error) = write_private(&self.setup_path, &code) {
            tracing::warn!(%error, file = %self.setup_path.display(), "the setup code could not be written");
        }
        tracing::info!(code, file = %self.setup_path.display(), "no password is set yet; choose one in the dashboard at {url}/");
        *slot = Some(code);
        Ok(())
    }

    /// The code is used up.
    fn end_setup(&self) {
        *self.setup_code.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // What is not there needs no removing; a file that stays opens nothing.
        let _ = std::fs::remove_file(&self.setup_path);
    }

    fn is_setup_code(&self, given: &str) -> bool {
        let slot = self.setup_code.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_deref().is_some_and(|code| same(code.as_bytes(), given.trim().as_bytes()))
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // An older file may have another mode.
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")
}

fn refused(why: &str) -> Status {
    Status::new(403, "Forbidden", why)
}

/// Whether two secrets are equal, in a time that tells nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

/// The value of a query's parameter, as it is written.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn has(query: &str, name: &str, wanted: &str) -> bool {
    value(query, name) == Some(wanted)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn carries(headers: &HeaderMap, csrf: &str) -> bool {
    headers.get(CSRF_HEADER).is_some_and(|given| same(given.as_bytes(), csrf.as_bytes()))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Whether the page behind a request was loaded from the host that the request goes to.
fn same_origin<B>(request: &http::Request<B>) -> bool {
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).and_then(|v| v.to_str().ok()),
    };
    let origin = request.headers().get(header::ORIGIN).and_then(|v| v.to_str().ok());
    let page = origin.and_then(|o| o.split_once("://")).map(|(_, page)| page);
    matches!((host, page), (Some(host), Some(page)) if host.eq_ignore_ascii_case(page))
}

/// Whether a client sits at the machine itself. A proxy at the machine speaks for somebody else.
fn at_this_machine<B>(request: &http::Request<B>) -> bool {
    let proxied = ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|h| request.headers().contains_key(*h));
    let ends = request.extensions().get::<Ends>();
    !proxied && ends.is_some_and(|e| e.peer.ip().to_canonical().is_loopback() || e.peer.ip() == e.local.ip())
}

/// The address that guesses are counted for.
fn peer<B>(request: &http::Request<B>) -> Option<IpAddr> {
    request.extensions().get::<Ends>().map(|e| e.peer.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authn::UserInfo, http::full};

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut builder = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(full("")).unwrap()
    }

    #[test]
    fn what_a_cookie_is_good_for() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::new(dir.path(), 0);
        let admin = UserInfo::new("admin", []);
        sessions.table.lock().unwrap().open("tok", "csrf", admin, "stamp", 0);
        let with = ("cookie", "a=b; sheaf_session=tok; sheaf_csrf=csrf");
        let who = |r: Request| {
            sessions.authenticate(&r, 10).map(|k| k.map(|k| k.user.username)).map_err(|s| s.code)
        };
        let admin = Ok(Some("admin".to_string()));
        assert_eq!(who(request("GET", "/api", &[with])), admin);
        assert_eq!(who(request("GET", "/api", &[("cookie", "sheaf_session=other")])), Ok(None));
        assert_eq!(who(request("POST", "/api", &[with])), Err(403), "the cookie alone changes nothing");
        assert_eq!(who(request("POST", "/api", &[with, ("x-sheaf-csrf", "csrf")])), admin);
        assert_eq!(who(request("POST", "/api", &[with, ("x-sheaf-csrf", "csrg")])), Err(403));
        let (upgrade, host) = (("upgrade", "websocket"), ("host", "h:6443"));
        assert_eq!(who(request("GET", "/api", &[with, host, upgrade])), Err(403), "no origin");
        assert_eq!(
            who(request("GET", "/api", &[with, host, upgrade, ("origin", "https://evil:6443")])),
            Err(403)
        );
        let page = ("origin", "https://h:6443");
        assert_eq!(who(request("GET", "/api", &[with, host, upgrade, page])), Err(403), "no ticket");
        assert!(sessions.tickets.lock().unwrap().put("one", "csrf", "/api", 0));
        assert_eq!(who(request("GET", "/api?a=b&ticket=one", &[with, host, upgrade, page])), admin);
        assert_eq!(who(request("GET", "/api?ticket=one", &[with, host, upgrade, page])), Err(403), "used up");
    }

    #[test]
    fn who_sits_at_the_machine() {
        let at = |peer: &str, local: &str, headers: &[(&str, &str)]| {
            let mut r = request("POST", "/v1/auth/setup", headers);
            r.extensions_mut().insert(Ends { peer: peer.parse().unwrap(), local: local.parse().unwrap() });
            at_this_machine(&r)
        };
        assert!(at("127.0.0.1:5", "127.0.0.1:6443", &[]));
        assert!(at("10.0.0.5:5", "10.0.0.5:6443", &[]));
        assert!(!at("10.0.0.6:5", "10.0.0.5:6443", &[]));
        assert!(!at("127.0.0.1:5", "127.0.0.1:6443", &[("x-forwarded-for", "1.2.3.4")]));
        assert!(!at_this_machine(&request("POST", "/", &[])));
    }

    #[test]
    fn the_setup_code_is_private_and_used_up() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::new(dir.path(), 0);
        sessions.offer_setup("https://h").unwrap();
        let path = dir.path().join("setup-code");
        let code = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(code.trim().len(), 11, "{code}");
        assert!(sessions.is_setup_code(&code) && !sessions.is_setup_code("") && !sessions.is_setup_code("x"));
        sessions.end_setup();
        assert!(!sessions.is_setup_code(&code) && !path.exists());
    }
}
