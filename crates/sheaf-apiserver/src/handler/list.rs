//! Reading: one object, and lists in pages with Kubernetes' resourceVersion semantics.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use sheaf_meta::status::{FieldError, Status};
use sheaf_store::{Revision, StoreError};

use super::{
    object::{decode, store_failure, too_large},
    options::Selection,
    render,
};
use crate::{
    core::{Core, Cx, accepts},
    http::Outcome,
    registry::Row,
};

/// How long a request for a revision that is not there yet waits for it.
const FRESHNESS_WAIT: Duration = Duration::from_secs(3);
/// Entries read from the store at once while a selector drops some of them.
const CHUNK: u64 = 500;

/// GET of one object.
pub(crate) async fn get(core: &Arc<Core>, cx: &Cx, row: &Row) -> Outcome {
    if let Some(version) = cx.query.get("resourceVersion") {
        fresh_enough(core, number(version)?).await?;
    }
    let key = row.key(&cx.path.namespace, &cx.path.name);
    let entry = core.store.get(&key, Revision(0)).await.map_err(store_failure)?;
    let entry = entry.ok_or_else(|| Status::not_found(row.info.resource(), &cx.path.name))?;
    render::object(cx, row, StatusCode::OK, decode(row, &entry)?)
}

/// A resourceVersion of a query.
pub(crate) fn number(version: &str) -> Result<Revision, Status> {
    version.parse().map(Revision).map_err(|_| {
        let why = format!("strconv.ParseUint: parsing \"{version}\": invalid syntax");
        invalid_option("resourceVersion", &json!(version), &why)
    })
}

fn invalid_option(field: &str, value: &Value, why: &str) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::invalid(field, value, why)])
}

/// 422 for an option that may not be set here.
pub(crate) fn forbidden_option(field: &str, why: &str) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::forbidden(field, why)])
}

/// Waits a little until the store has reached a revision; 504 if it does not.
pub(crate) async fn fresh_enough(core: &Core, wanted: Revision) -> Result<(), Status> {
    let deadline = tokio::time::Instant::now() + FRESHNESS_WAIT;
    loop {
        let current = core.store.revision().await.map_err(store_failure)?;
        if current >= wanted {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(too_large(wanted, current));
        }
        // Only a client from another cluster, or after a restored backup, gets here: polling is good enough.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where a list goes on: the revision it shows and the last key that was answered.
struct Continue {
    at: Revision,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!({"v": 1, "rv": self.at.0, "after": self.after}).to_string())
    }

    fn decode(token: &str, prefix: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid: the token cannot be read");
        let raw = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&raw).map_err(|_| bad())?;
        let at = value.get("rv").and_then(Value::as_u64).ok_or_else(bad)?;
        let after = value.get("after").and_then(Value::as_str).ok_or_else(bad)?;
        // A token of another collection would otherwise leak its objects.
        if value.get("v") != Some(&json!(1)) || !after.starts_with(prefix) {
            return Err(bad());
        }
        Ok(Self { at: Revision(at), after: after.into() })
    }
}

/// A list as it was read.
pub(crate) struct Listed {
    pub(crate) items: Vec<Value>,
    pub(crate) at: Revision,
    next: Option<String>,
    remaining: Option<u64>,
}

/// GET of a collection.
pub(crate) async fn list(core: &Arc<Core>, cx: &Cx, row: &Row) -> Outcome {
    let form = accepts(cx)?;
    let listed = read(core, cx, row).await?;
    let mut metadata = json!({"resourceVersion": listed.at.0.to_string()});
    if let Some(token) = listed.next {
        metadata["continue"] = json!(token);
        if let Some(n) = listed.remaining {
            metadata["remainingItemCount"] = json!(n);
        }
    }
    let value = render::list(cx, row, form, listed.items, metadata)?;
    render::respond(cx, form, StatusCode::OK, &value)
}

/// What part of a collection a request asks for, and at which revision.
struct Wanted {
    at: Revision,
    after: String,
    limit: u64,
}

async fn wanted(core: &Core, cx: &Cx, prefix: &str) -> Result<Wanted, Status> {
    let q = &cx.query;
    if q.raw("sendInitialEvents").is_some() {
        let why = "sendInitialEvents is forbidden for list";
        return Err(forbidden_option("sendInitialEvents", why));
    }
    let limit = q.number("limit")?.unwrap_or(0);
    let version = q.get("resourceVersion");
    let matching = q.get("resourceVersionMatch");
    if let Some(token) = q.get("continue") {
        if matching.is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            return Err(forbidden_option("resourceVersionMatch", why));
        }
        if version.is_some_and(|v| v != "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let go_on = Continue::decode(token, prefix)?;
        return Ok(Wanted { at: go_on.at, after: go_on.after, limit });
    }
    let mut at = Revision(0);
    match (version, matching) {
        (None, Some(_)) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(forbidden_option("resourceVersionMatch", why));
        }
        (Some(v), Some("Exact")) => {
            at = number(v)?;
            if at == Revision(0) {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(forbidden_option("resourceVersionMatch", why));
            }
        }
        (Some(v), None | Some("NotOlderThan")) => fresh_enough(core, number(v)?).await?,
        (Some(_), Some(other)) => {
            let allowed = ["Exact", "NotOlderThan"];
            let error = FieldError::not_supported("resourceVersionMatch", &json!(other), &allowed);
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
        }
        (None, None) => {}
    }
    Ok(Wanted { at, after: String::new(), limit })
}

async fn read(core: &Core, cx: &Cx, row: &Row) -> Result<Listed, Status> {
    let selection = Selection::parse(&cx.query, row)?;
    let prefix = row.key(&cx.path.namespace, "");
    let wanted = wanted(core, cx, &prefix).await?;
    let continued = !wanted.after.is_empty();
    match read_page(core, row, &prefix, &selection, &wanted).await {
        Err(StoreError::Compacted { .. }) if continued => {
            // The client may go on from the same key, at the present revision, knowing that it is another.
            let at = core.store.revision().await.map_err(store_failure)?;
            let mut status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            );
            status.continue_token = Some(Continue { at, after: wanted.after.clone() }.encode());
            Err(status)
        }
        Err(e) => Err(store_failure(e)),
        Ok(page) => page,
    }
}

async fn read_page(
    core: &Core,
    row: &Row,
    prefix: &str,
    selection: &Selection,
    wanted: &Wanted,
) -> Result<Result<Listed, Status>, StoreError> {
    let everything = selection.is_everything();
    let (mut at, mut after) = (wanted.at, wanted.after.clone());
    let mut items = Vec::new();
    loop {
        let ask = match (wanted.limit, everything) {
            (0, _) => 0,
            (limit, true) => limit,
            (limit, false) => limit.max(CHUNK),
        };
        let page = core.store.list(prefix, &after, at, ask).await?;
        at = page.at;
        let count = page.entries.len();
        for (i, entry) in page.entries.into_iter().enumerate() {
            after.clone_from(&entry.key);
            let object = match decode(row, &entry) {
                Ok(object) => object,
                Err(status) => return Ok(Err(status)),
            };
            if !everything && !selection.matches(&object) {
                continue;
            }
            items.push(object);
            let full = wanted.limit > 0 && items.len() as u64 >= wanted.limit;
            if full && (page.more || i + 1 < count) {
                let next = Continue { at, after }.encode();
                let remaining = everything.then_some(page.remaining + (count - i - 1) as u64);
                return Ok(Ok(Listed { items, at, next: Some(next), remaining }));
            }
        }
        if !page.more {
            return Ok(Ok(Listed { items, at, next: None, remaining: None }));
        }
    }
}

/// Everything of a collection that is selected, now.
pub(crate) async fn all(
    core: &Core,
    row: &Row,
    prefix: &str,
    selection: &Selection,
) -> Result<Listed, Status> {
    let wanted = Wanted { at: Revision(0), after: String::new(), limit: 0 };
    read_page(core, row, prefix, selection, &wanted).await.map_err(store_failure)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_stay_in_their_collection() {
        let token = Continue { at: Revision(7), after: "/registry/core/configmaps/a/x".into() }.encode();
        let back = Continue::decode(&token, "/registry/core/configmaps/a/").unwrap();
        assert_eq!((back.at, back.after.as_str()), (Revision(7), "/registry/core/configmaps/a/x"));
        assert!(Continue::decode(&token, "/registry/core/secrets/a/").is_err());
        assert!(Continue::decode("nonsense!", "/").is_err());
    }
}
