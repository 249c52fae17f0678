//! Seams through which what is not plain data joins the server: virtual resources and admission.
//!
//! The generic part calls these and knows nothing of who stands behind them.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

/// What is done to an object, as admission names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It is there and changes.
    Update,
    /// It is to go.
    Delete,
}

impl Operation {
    /// As AdmissionReviews and rules of webhooks spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// What admission has to tell beside yes and no. Shared by all who look at one write.
#[derive(Debug, Default)]
pub struct Said(Mutex<SaidParts>);

#[derive(Debug, Default)]
struct SaidParts {
    held: Vec<Box<dyn Any + Send>>,
    changed: bool,
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

impl Said {
    fn parts(&self) -> MutexGuard<'_, SaidParts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Says that the object may not fit its schema any more: it is pruned and defaulted again.
    pub fn changed(&self) {
        self.parts().changed = true;
    }
    /// Adds a sentence for a `Warning` header.
    pub fn warn(&self, text: String) {
        self.parts().warnings.push(text);
    }
    /// Adds an annotation of the request's audit event.
    pub fn annotate(&self, key: String, value: String) {
        self.parts().annotations.insert(key, value);
    }
    /// Keeps something until the object is stored, or is not.
    pub fn hold(&self, guard: Box<dyn Any + Send>) {
        self.parts().held.push(guard);
    }
    /// What was given to [`Said::hold`].
    pub(crate) fn take_held(&self) -> Vec<Box<dyn Any + Send>> {
        std::mem::take(&mut self.parts().held)
    }
    /// Whether somebody called [`Said::changed`].
    pub fn is_changed(&self) -> bool {
        self.parts().changed
    }
    /// The warnings, once.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.parts().warnings)
    }
    /// The annotations, once.
    pub fn take_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.parts().annotations)
    }
}

/// What is being written, for [`Admission`].
pub struct Write<'a> {
    /// Its kind.
    pub row: &'a Row,
    /// What is done.
    pub operation: Operation,
    /// What is stored now; `None` on creation.
    pub old: Option<&'a Value>,
    /// `status`, `finalize`, ... or empty.
    pub subresource: &'a str,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The request's options as an object (`CreateOptions`, ...), made when somebody wants them.
    pub options: &'a (dyn Fn() -> Value + Send + Sync),
    /// Where warnings go.
    pub said: &'a Said,
}

/// Changes or refuses a write. Causes nothing else.
///
/// The moments are those of an admission webhook: [`admit`](Admission::admit) is a mutating one,
/// [`review`](Admission::review) and [`delete`](Admission::delete) a validating one, [`post`](Admission::post) both, so
/// that what stands behind can serve as a webhook of another API server.
pub trait Admission: Send + Sync {
    /// Looks at an object after defaulting and before validation, and may change it.
    fn admit<'a>(
        &'a self,
        _core: &'a Core,
        _cx: &'a Cx,
        _write: &'a Write<'a>,
        _object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Looks at an object as it is about to be stored.
    fn review<'a>(
        &'a self,
        _core: &'a Core,
        _cx: &'a Cx,
        _write: &'a Write<'a>,
        _object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Looks at what is posted to a subresource of a stored object (`eviction`, `binding`), and may change it.
    fn post<'a>(
        &'a self,
        _core: &'a Core,
        _cx: &'a Cx,
        _write: &'a Write<'a>,
        _object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Looks at an object (`write.old`) that is about to be deleted.
    fn delete<'a>(
        &'a self,
        _core: &'a Core,
        _cx: &'a Cx,
        _write: &'a Write<'a>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
