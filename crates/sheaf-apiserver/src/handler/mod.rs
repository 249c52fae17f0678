//! The verbs over stored objects. Generic: what differs between kinds is in their rows.
//!
//! Each handler decodes, asks the pure functions of `sheaf-meta`, reads or writes the store, and answers.

mod compact;
mod delete;
mod lately;
mod list;
mod list_body;
mod object;
mod options;
mod patching;
mod pipeline;
mod raw;
pub(crate) mod render;
mod scale;
mod schema;
mod strategy;
mod sweep;
mod underway;
mod watch;
mod write;

pub(crate) use lately::Lately;
pub(crate) use object::{Cached, Item, cached, field, store_failure, view};
pub(crate) use options::only_name;
pub(crate) use sweep::{Left, purge, sweep};
pub(crate) use underway::Underway;
pub(crate) use write::random;

use std::sync::Arc;

use sheaf_meta::status::Status;

use crate::{
    core::{Core, Cx},
    http::{Outcome, Request},
    policy,
    registry::Row,
    verb::Verb,
    websocket::Asked,
};

/// Whether the kind, or the subresource of it, does what is asked. Who writes to a kind that is going is told so later.
fn takes(row: &Row, cx: &Cx) -> bool {
    let verbs = match cx.path.subresource.as_str() {
        "" => row.verbs(),
        subresource => row.verbs_of(subresource),
    };
    row.terminating() || verbs.contains(&cx.verb.as_str())
}

/// Answers a request for a stored kind, after authorization.
pub(crate) async fn handle(core: &Arc<Core>, cx: &mut Cx, row: Arc<Row>, request: Request) -> Outcome {
    if let Some(warning) = row.custom.as_ref().and_then(|c| c.deprecated.clone()) {
        cx.warnings.push(warning);
    }
    if !takes(&row, cx) {
        return Err(Status::method_not_allowed());
    }
    if cx.path.subresource == "scale" {
        return scale::handle(core, cx, &row, request).await;
    }
    if cx.verb == Verb::Create && !cx.path.subresource.is_empty() {
        return policy::evictions::create(core, cx, &row, request).await;
    }
    match cx.verb {
        Verb::Get => list::get(core, cx, &row).await,
        Verb::List => list::list(core, cx, &row).await,
        Verb::Watch => {
            let mut request = request;
            let socket = Asked::of(&mut request)?;
            let response = watch::watch(core, cx, &row).await?;
            match socket {
                Some(socket) => socket.switch(response.into_body(), core.stop.clone()),
                None => Ok(response),
            }
        }
        Verb::Create => write::create(core, cx, &row, request).await,
        Verb::Update => write::update(core, cx, &row, request).await,
        Verb::Patch => write::patch(core, cx, &row, request).await,
        Verb::Delete => delete::delete(core, cx, &row, request).await,
        Verb::DeleteCollection => delete::delete_collection(core, cx, &row, request).await,
    }
}
