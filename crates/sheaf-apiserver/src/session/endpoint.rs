//! `/v1/auth/{session,login,setup,logout,password,hash,token,ticket}`: what the dashboard's sign-in talks to.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::status::{Cause, Status};

use super::{
    BEARER, COOKIE, CSRF_COOKIE, PREFIX, Sessions,
    accounts::{self, ADMIN, Account},
    at_this_machine, carries, cookie, password, peer, same_origin,
    table::{ABSOLUTE_S, Known},
    tickets,
};
use crate::{
    authn::MASTERS,
    body,
    core::{Core, Cx},
    extension::{Extension, VirtualGroup},
    http::{Outcome, Request, Response, json as answer_json},
};

/// A hash that fits no password, for users that do not exist: they take as long to refuse.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// How long a user's token is good for: at least, at most, in seconds.
const TOKEN_S: (i64, i64) = (600, 30 * 86_400);
/// What a session opened goes on for so long after it was given another cookie.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A request without its body.
type Head = http::Request<()>;

impl Extension for Sessions {
    fn groups(&self) -> Vec<VirtualGroup> {
        Vec::new()
    }

    fn resource<'a>(&'a self, _: &'a Arc<Core>, _: &'a mut Cx, _: Request) -> BoxFuture<'a, Outcome> {
        Box::pin(std::future::ready(Err(Status::no_such_path())))
    }

    fn claims(&self, path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    fn path<'a>(&'a self, core: &'a Arc<Core>, cx: &'a mut Cx, request: Request) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let mut response = self.answer(core, cx, request).await?;
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(response)
        })
    }
}

impl Sessions {
    async fn answer(&self, core: &Arc<Core>, cx: &Cx, request: Request) -> Outcome {
        let (parts, body) = request.into_parts();
        let request = Head::from_parts(parts, ());
        let now_s = cx.now.as_second();
        let action = request.uri().path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
        match (request.method(), action.as_str()) {
            (&Method::GET, "session") => return self.session(core, &request, now_s).await,
            (&Method::POST, "login" | "setup" | "logout" | "password" | "hash" | "token" | "ticket") => {}
            (_, "session" | "login" | "setup" | "logout" | "password" | "hash" | "token" | "ticket") => {
                return Err(Status::method_not_allowed());
            }
            _ => return Err(Status::no_such_path()),
        }
        // Clients that are no browsers send no origin.
        if request.headers().contains_key(header::ORIGIN) && !same_origin(&request) {
            return Err(super::refused("signing in and out is for pages of this server"));
        }
        if action == "logout" {
            return self.logout(cx, &request, now_s);
        }
        let bytes = body::read(body).await?;
        let given = body::json(&bytes)?;
        match action.as_str() {
            "login" => return self.login(core, &request, &given, now_s).await,
            "setup" => return self.setup(core, &request, &given, now_s).await,
            _ => {}
        }
        let known = self.signed_in(core, &request, now_s).await?;
        match action.as_str() {
            "password" => self.change_password(core, &request, &known, &given, now_s).await,
            "hash" => self.hash(core, &known, &given, now_s).await,
            "token" => self.give_token(&known, &given, now_s),
            _ => self.ticket(&known, &given, now_s),
        }
    }

    /// The session of a request that changes something.
    async fn signed_in(&self, core: &Arc<Core>, request: &Head, now_s: i64) -> Result<Known, Status> {
        let known = self.known(request.headers(), now_s, true);
        let known = self.confirm(core, known, now_s).await?.ok_or_else(Status::unauthorized)?;
        if !carries(request.headers(), &known.csrf) {
            return Err(super::refused(
                "this needs the header X-Sheaf-CSRF with the value of the cookie sheaf_csrf",
            ));
        }
        Ok(known)
    }

    /// Another password for whoever is signed in. All their sessions end but this one, which begins anew.
    async fn change_password(
        &self,
        core: &Arc<Core>,
        request: &Head,
        known: &Known,
        given: &Value,
        now_s: i64,
    ) -> Outcome {
        let text = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (current, secret, username) = (text("current"), text("password"), known.user.username.as_str());
        self.take_guess(request, now_s)?;
        let account = accounts::find(core, username).await?.ok_or_else(Status::unauthorized)?;
        let stored = account.hash.clone();
        if !self.hashing(move || password::fits(&current, &stored)).await? {
            return Err(field("current", 403, "Forbidden", "this is not the password so far"));
        }
        let hash = self.new_hash(&secret).await?;
        accounts::change(core, username, &hash).await?;
        self.forgive(request);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let own = cookie(request.headers(), COOKIE).and_then(|token| table.close(token));
        table.close_all(username);
        drop(table);
        tracing::info!(user = username, from = ?peer(request), "a password was changed");
        // The page opens its watches anew as soon as they end: it has to have its new cookie by then.
        tokio::spawn(async move {
            tokio::time::sleep(LAST_WORDS).await;
            drop(own);
        });
        self.open(&Account { hash, ..account }, now_s)
    }

    /// The hash of a password, for the Secret of a local user: what is written there is the API's business.
    /// Only whoever may write such a Secret has a use for it; and it is dear.
    async fn hash(&self, core: &Arc<Core>, known: &Known, given: &Value, now_s: i64) -> Outcome {
        accounts::may_manage(core, &known.user).await?;
        let who = Some(known.user.username.clone());
        let taken = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).take(who, now_s);
        taken.map_err(|wait| too_often("too many passwords were given to be hashed", wait))?;
        let secret = given.get("password").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(answer_json(StatusCode::OK, &json!({"hash": self.new_hash(&secret).await?})))
    }

    async fn new_hash(&self, secret: &str) -> Result<String, Status> {
        if let Some(why) = password::refusal(secret) {
            return Err(field("password", 422, "Invalid", &why));
        }
        let mut salt = [0u8; 16];
        ring::rand::SecureRandom::fill(&self.random, &mut salt)
            .map_err(|_| Status::internal("the system gives no random numbers"))?;
        let secret = secret.to_owned();
        self.hashing(move || password::hash(&secret, &salt)).await?.map_err(Status::internal)
    }

    /// A token for whoever is signed in, for `kubectl` and the like: with their rights, and for a while.
    fn give_token(&self, known: &Known, given: &Value, now_s: i64) -> Outcome {
        let seconds = given.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(86_400);
        if !(TOKEN_S.0..=TOKEN_S.1).contains(&seconds) {
            let why = format!("a token is good for {} s at least and {} s at most", TOKEN_S.0, TOKEN_S.1);
            return Err(field("expirationSeconds", 422, "Invalid", &why));
        }
        let (token, until) = (self.token()?, now_s + seconds);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if !table.give(&token, &known.user, &known.stamp, until, now_s) {
            let why = "this user has as many tokens as one may have; signing out everywhere ends them all";
            return Err(Status::new(429, "TooManyRequests", why));
        }
        self.save(&table);
        drop(table);
        tracing::info!(user = known.user.username, seconds, "a token was given to a user");
        let until = Timestamp::from_second(until).map_err(Status::internal)?;
        let answer = json!({"token": format!("{BEARER}{token}"), "expirationTimestamp": until.to_string()});
        Ok(answer_json(StatusCode::OK, &answer))
    }

    fn ticket(&self, known: &Known, given: &Value, now_s: i64) -> Outcome {
        let path = given.get("path").and_then(Value::as_str).unwrap_or_default();
        if !path.starts_with("/api") || path.len() > 2048 {
            return Err(field("path", 422, "Invalid", "a ticket is for a path of the API"));
        }
        let ticket = self.token()?;
        let mut waiting = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.put(&ticket, &known.csrf, path, now_s) {
            return Err(Status::new(429, "TooManyRequests", "too many tickets wait to be used"));
        }
        Ok(answer_json(StatusCode::OK, &json!({"ticket": ticket, "seconds": tickets::LIFE_S})))
    }

    /// Who is signed in, and whether a first password is to be chosen.
    async fn session(&self, core: &Arc<Core>, request: &Head, now_s: i64) -> Outcome {
        let known = self.known(request.headers(), now_s, true);
        let known = self.confirm(core, known, now_s).await?;
        let mut answer = json!({"user": Value::Null, "setup": false});
        if let Some(known) = known {
            answer = whoami(core, &known.user).await?;
        } else if accounts::find(core, ADMIN).await?.is_none() {
            answer["setup"] = true.into();
            answer["codeNeeded"] = (!at_this_machine(request)).into();
            // The secret may have been deleted since the start.
            self.offer_setup("this server's")?;
        }
        Ok(answer_json(StatusCode::OK, &answer))
    }

    async fn login(&self, core: &Arc<Core>, request: &Head, given: &Value, now_s: i64) -> Outcome {
        let text = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (username, secret) = (text("username"), text("password"));
        self.take_guess(request, now_s)?;
        let account = accounts::find(core, &username).await?;
        if account.is_none() && accounts::find(core, ADMIN).await?.is_none() {
            return Err(Status::new(
                409,
                "Conflict",
                "no password has been chosen yet; the first one is set by /v1/auth/setup",
            ));
        }
        let stored = account.as_ref().map_or_else(|| NOBODY.to_owned(), |a| a.hash.clone());
        let right = self.hashing(move || password::fits(&secret, &stored)).await?;
        let Some(account) = account.filter(|_| right) else {
            tracing::warn!(user = username, from = ?peer(request), "a wrong password");
            return Err(Status::new(401, "Unauthorized", "the user name or the password is wrong"));
        };
        self.forgive(request);
        self.open(&account, now_s)
    }

    async fn setup(&self, core: &Arc<Core>, request: &Head, given: &Value, now_s: i64) -> Outcome {
        let text = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let secret = text("password");
        self.take_guess(request, now_s)?;
        if accounts::find(core, ADMIN).await?.is_some() {
            return Err(already_set());
        }
        if !at_this_machine(request) && !self.is_setup_code(&text("code")) {
            let why = "the setup code is wrong; the server's log and the file setup-code in its data directory have it";
            return Err(field("code", 403, "Forbidden", why));
        }
        let hash = self.new_hash(&secret).await?;
        accounts::create_admin(core, &hash)
            .await
            .map_err(|status| if status.reason == "AlreadyExists" { already_set() } else { status })?;
        self.end_setup();
        self.forgive(request);
        tracing::info!(from = ?peer(request), "the first password was set");
        let account = accounts::find(core, ADMIN).await?.ok_or_else(Status::unauthorized)?;
        self.open(&account, now_s)
    }

    fn logout(&self, cx: &Cx, request: &Head, now_s: i64) -> Outcome {
        let headers = request.headers();
        if let Some(known) = self.known(headers, now_s, true) {
            if !carries(headers, &known.csrf) {
                return Err(super::refused("signing out needs the header X-Sheaf-CSRF"));
            }
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            if cx.query.flag("everywhere") {
                table.close_all(&known.user.username);
            } else if let Some(token) = cookie(headers, COOKIE) {
                drop(table.close(token));
            }
            self.save(&table);
        }
        let mut response = answer_json(StatusCode::OK, &json!({"user": Value::Null}));
        set_cookies(&mut response, "", "", 0)?;
        Ok(response)
    }

    fn open(&self, account: &Account, now_s: i64) -> Outcome {
        let (token, csrf) = (self.token()?, self.token()?);
        let user = &account.user;
        let answer = json!({"user": {"name": user.username, "groups": user.groups}, "setup": false});
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.open(&token, &csrf, user.clone(), &account.stamp(), now_s);
        self.save(&table);
        drop(table);
        let mut response = answer_json(StatusCode::OK, &answer);
        set_cookies(&mut response, &token, &csrf, ABSOLUTE_S)?;
        Ok(response)
    }

    fn take_guess(&self, request: &Head, now_s: i64) -> Result<(), Status> {
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        guesses.take(peer(request), now_s).map_err(|wait| too_often("too many attempts to sign in", wait))
    }

    fn forgive(&self, request: &Head) {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner).forgive(peer(request));
    }

    /// Runs what takes a core for a while, a few at a time.
    async fn hashing<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let _place = self.hashing.acquire().await.map_err(Status::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Status::internal)
    }

    /// At start: whether a password is to be chosen, and if so, how.
    pub(crate) async fn start(&self, core: &Arc<Core>, url: &str) -> Result<(), Status> {
        if accounts::find(core, ADMIN).await?.is_none() {
            self.offer_setup(url)?;
        }
        Ok(())
    }
}

/// Who somebody is, and where they have roles; masters have theirs everywhere.
async fn whoami(core: &Arc<Core>, user: &crate::authn::UserInfo) -> Result<Value, Status> {
    let mut answer = json!({"user": {"name": user.username, "groups": user.groups}, "setup": false});
    if !user.in_group(MASTERS) {
        answer["namespaces"] = json!(accounts::namespaces(core, user).await?);
    }
    Ok(answer)
}

fn too_often(what: &str, wait: i64) -> Status {
    let mut status =
        Status::new(429, "TooManyRequests", format!("{what}; the next one is looked at in {wait} s"));
    status.details.retry_after_seconds = u32::try_from(wait).ok();
    status
}

fn already_set() -> Status {
    let why = "a password is set already; whoever may delete the secret harvester-system/sheaf-admin can begin anew";
    Status::new(409, "Conflict", why)
}

/// A failure of one field of the form.
fn field(name: &str, code: u16, reason: &'static str, why: &str) -> Status {
    let mut status = Status::new(code, reason, why);
    status.details.causes =
        vec![Cause { reason: "FieldValueInvalid".into(), message: why.into(), field: name.into() }];
    status
}

fn set_cookies(response: &mut Response, token: &str, csrf: &str, age_s: i64) -> Result<(), Status> {
    let rest = format!("Path=/; Max-Age={age_s}; Secure; SameSite=Strict");
    for cookie in [format!("{COOKIE}={token}; HttpOnly; {rest}"), format!("{CSRF_COOKIE}={csrf}; {rest}")] {
        let value = HeaderValue::try_from(cookie).map_err(Status::internal)?;
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    Ok(())
}
