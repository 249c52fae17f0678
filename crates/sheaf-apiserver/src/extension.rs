//! Seams through which what is not plain data joins the server: virtual resources and admission.
//!
//! The generic part calls these and knows nothing of who stands behind them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_meta::{path::ResourcePath, status::Status};

use crate::{
    core::{Core, Cx},
    http::{Outcome, Request},
    registry::Row,
};

/// A resource that is answered and not stored, for discovery.
#[derive(Debug, Clone)]
pub struct VirtualResource {
    /// Plural, or `plural/subresource`.
    pub name: String,
    /// Kind of what is answered.
    pub kind: String,
    /// Whether it lives in namespaces.
    pub namespaced: bool,
    /// `create`, `get`, ...
    pub verbs: Vec<String>,
}

/// A served group-version without stored objects.
#[derive(Debug, Clone)]
pub struct VirtualGroup {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// What it serves.
    pub resources: Vec<VirtualResource>,
}

/// Serves paths that are no stored objects.
pub trait Extension: Send + Sync {
    /// Group-versions for discovery, the preferred version of a group first. Requests for their resources come to
    /// [`Extension::resource`] after authorization.
    fn groups(&self) -> Vec<VirtualGroup>;

    /// Answers a request for a resource of one of [`Extension::groups`].
    fn resource<'a>(
        &'a self,
        core: &'a Arc<Core>,
        cx: &'a mut Cx,
        request: Request,
    ) -> BoxFuture<'a, Outcome>;

    /// Whether a path below a group-version, or outside `/api` and `/apis`, is this extension's.
    fn claims(&self, _path: &str) -> bool {
        false
    }

    /// Answers a claimed path, having authorised it itself.
    fn path<'a>(
        &'a self,
        _core: &'a Arc<Core>,
        _cx: &'a mut Cx,
        _request: Request,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(std::future::ready(Err(Status::no_such_path())))
    }

    /// The subresource as authorization names it: `portforward` for `portforward/22/tcp`.
    fn authorization_subresource(&self, path: &ResourcePath) -> String {
        path.subresource.clone()
    }
}

/// What is being written, for [`Admission`].
pub struct Write<'a> {
    /// Its kind.
    pub row: &'a Row,
    /// What is stored now; `None` on creation.
    pub old: Option<&'a Value>,
    /// `status`, `finalize`, ... or empty.
    pub subresource: &'a str,
}

/// Changes or refuses a write after defaulting and before validation. Causes nothing else.
pub trait Admission: Send + Sync {
    /// Looks at an object that is about to be validated and stored.
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>>;
}
