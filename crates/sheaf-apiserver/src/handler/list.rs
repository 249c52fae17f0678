//! Reading: one object, and lists in pages with Kubernetes' resourceVersion semantics.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sheaf_meta::status::{FieldError, Status};
use sheaf_store::{Revision, StoreError, cache::At};

use super::{
    object::{Item, store_failure, view},
    options::Selection,
    render,
};
use crate::{
    core::{Core, Cx, accepts},
    http::Outcome,
    registry::Row,
};

/// GET of one object.
pub(crate) async fn get(core: &Arc<Core>, cx: &Cx, row: &Row) -> Outcome {
    render::item(cx, row, &find(core, cx, row).await?)
}

/// The object that a path names, for what is shown of it in another form.
pub(crate) async fn read_one(core: &Arc<Core>, cx: &Cx, row: &Row) -> Result<Value, Status> {
    Ok(view(row, &find(core, cx, row).await?)?.into_owned())
}

async fn find(core: &Arc<Core>, cx: &Cx, row: &Row) -> Result<Item, Status> {
    let at = match cx.query.get("resourceVersion").map(number).transpose()? {
        None => At::Latest,
        Some(Revision(0)) => At::Any,
        Some(revision) => At::AtLeast(revision),
    };
    let kind = core.kind(row).await?;
    let key = row.key(&cx.path.namespace, &cx.path.name);
    let item = kind.get(&key, at).await.map_err(store_failure)?;
    item.ok_or_else(|| Status::not_found(row.info.resource(), &cx.path.name))
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
    pub(crate) items: Vec<Item>,
    pub(crate) at: Revision,
    next: Option<String>,
    remaining: Option<u64>,
}

/// GET of a collection.
pub(crate) async fn list(core: &Arc<Core>, cx: &Cx, row: &Arc<Row>) -> Outcome {
    let form = accepts(cx)?;
    let selection = Selection::parse(&cx.query, row, "")?;
    let prefix = row.key(&cx.path.namespace, "");
    let wanted = wanted(cx, &prefix)?;
    let listed = read(core, row, &prefix, &selection, wanted).await?;
    let mut metadata = json!({"resourceVersion": listed.at.0.to_string()});
    if let Some(token) = listed.next {
        metadata["continue"] = json!(token);
        if let Some(n) = listed.remaining {
            metadata["remainingItemCount"] = json!(n);
        }
    }
    render::list(cx, row, form, listed.items, metadata)
}

/// What part of a collection a request asks for, and at which revision.
struct Wanted {
    at: At,
    after: String,
    limit: usize,
}

fn wanted(cx: &Cx, prefix: &str) -> Result<Wanted, Status> {
    let q = &cx.query;
    if q.raw("sendInitialEvents").is_some() {
        let why = "sendInitialEvents is forbidden for list";
        return Err(forbidden_option("sendInitialEvents", why));
    }
    let limit = usize::try_from(q.number("limit")?.unwrap_or(0)).unwrap_or(0);
    // It bounds a watch, and has to be one all the same.
    q.number("timeoutSeconds")?;
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
        return Ok(Wanted { at: At::Exact(go_on.at), after: go_on.after, limit });
    }
    let at = match (version, matching) {
        (None, None) => At::Latest,
        (None, Some(_)) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(forbidden_option("resourceVersionMatch", why));
        }
        (Some(v), Some("Exact")) => match number(v)? {
            Revision(0) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(forbidden_option("resourceVersionMatch", why));
            }
            revision => At::Exact(revision),
        },
        (Some(v), None | Some("NotOlderThan")) => match number(v)? {
            // The whole of what is at hand, however much was asked for: informers begin like this.
            Revision(0) => return Ok(Wanted { at: At::Any, after: String::new(), limit: 0 }),
            // Chunks without a word on how to match begin exactly there.
            revision if limit > 0 && matching.is_none() => At::Exact(revision),
            revision => At::AtLeast(revision),
        },
        (Some(_), Some(other)) => {
            let allowed = ["Exact", "NotOlderThan", ""];
            let error = FieldError::not_supported("resourceVersionMatch", &json!(other), &allowed);
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
        }
    };
    Ok(Wanted { at, after: String::new(), limit })
}

async fn read(
    core: &Core,
    row: &Row,
    prefix: &str,
    selection: &Selection,
    wanted: Wanted,
) -> Result<Listed, Status> {
    let kind = core.kind(row).await?;
    // A selector may drop any of them: then the whole rest is looked at, which costs no copies.
    let everything = selection.is_everything();
    let ask = if everything { wanted.limit } else { 0 };
    let narrow = selection.range(row, prefix);
    let listing = match kind.list(&narrow, &wanted.after, ask, wanted.at).await {
        Err(StoreError::Compacted { .. }) if !wanted.after.is_empty() => {
            // The client may go on from the same key, at the present revision, knowing that it is another.
            let at = core.store.revision().await.map_err(store_failure)?;
            let mut status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            );
            status.continue_token = Some(Continue { at, after: wanted.after }.encode());
            return Err(status);
        }
        other => other.map_err(store_failure)?,
    };
    let mut listed = Listed { items: Vec::new(), at: listing.at, next: None, remaining: None };
    let mut rest = listing.objects.into_iter();
    for item in rest.by_ref() {
        if selection.selects(row, &item)? {
            listed.items.push(item);
        }
        if wanted.limit > 0 && listed.items.len() >= wanted.limit {
            break;
        }
    }
    if rest.len() > 0 || listing.remaining > 0 {
        let after = listed.items.last().map(|i| i.key.to_string()).unwrap_or_default();
        listed.next = Some(Continue { at: listing.at, after }.encode());
        listed.remaining = everything.then_some(listing.remaining + rest.len() as u64);
    }
    Ok(listed)
}

/// Everything of a collection that is selected.
pub(crate) async fn all(
    core: &Core,
    row: &Row,
    prefix: &str,
    selection: &Selection,
    at: At,
) -> Result<Listed, Status> {
    read(core, row, prefix, selection, Wanted { at, after: String::new(), limit: 0 }).await
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
