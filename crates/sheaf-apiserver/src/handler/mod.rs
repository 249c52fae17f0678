//! The verbs over stored objects. Generic: what differs between kinds is in their rows.
//!
//! Each handler decodes, asks the pure functions of `sheaf-meta`, reads or writes the store, and answers.

mod delete;
mod list;
mod list_body;
mod object;
mod options;
mod patching;
mod pipeline;
mod raw;
pub(crate) mod render;
mod schema;
mod strategy;
mod watch;
mod write;

pub(crate) use object::{Cached, Item, cached, store_failure, view};
pub(crate) use options::only_name;

use std::sync::Arc;

use crate::{
    core::{Core, Cx},
    http::{Outcome, Request},
    policy,
    registry::Row,
    verb::Verb,
};

/// Answers a request for a stored kind, after authorization.
pub(crate) async fn handle(core: &Arc<Core>, cx: &mut Cx, row: Arc<Row>, request: Request) -> Outcome {
    if cx.verb == Verb::Create && !cx.path.subresource.is_empty() {
        return policy::evictions::create(core, cx, &row, request).await;
    }
    match cx.verb {
        Verb::Get => list::get(core, cx, &row).await,
        Verb::List => list::list(core, cx, &row).await,
        Verb::Watch => watch::watch(core, cx, &row).await,
        Verb::Create => write::create(core, cx, &row, request).await,
        Verb::Update => write::update(core, cx, &row, request).await,
        Verb::Patch => write::patch(core, cx, &row, request).await,
        Verb::Delete => delete::delete(core, cx, &row, request).await,
        Verb::DeleteCollection => delete::delete_collection(core, cx, &row, request).await,
    }
}
