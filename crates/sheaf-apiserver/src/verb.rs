//! The verb of a request, in the words of authorization. Pure; paths are read by [`sheaf_meta::path`].

use http::Method;
use sheaf_meta::{path::ResourcePath, status::Status};

use crate::query::Query;

/// What is asked of a resource, in the words of authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// One object.
    Get,
    /// A collection.
    List,
    /// Changes of a collection or of one object.
    Watch,
    /// A new object.
    Create,
    /// A replacement.
    Update,
    /// A change of parts.
    Patch,
    /// One object.
    Delete,
    /// All that match.
    DeleteCollection,
}

impl Verb {
    /// As RBAC spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// The verb of a request, or 405. One object is read whether `watch` is asked for or not: only a collection, or a path
    /// below `/watch/`, is watched.
    pub fn of(method: &Method, path: &ResourcePath, query: &Query) -> Result<Self, Status> {
        let named = !path.name.is_empty();
        Ok(match *method {
            Method::GET | Method::HEAD if path.watch_prefix => Self::Watch,
            Method::GET | Method::HEAD if named => Self::Get,
            Method::GET | Method::HEAD if query.flag("watch") => Self::Watch,
            Method::GET | Method::HEAD => Self::List,
            Method::POST => Self::Create,
            Method::PUT if named => Self::Update,
            Method::PATCH if named => Self::Patch,
            Method::DELETE if named => Self::Delete,
            Method::DELETE => Self::DeleteCollection,
            _ => return Err(Status::method_not_allowed()),
        })
    }
}
