//! The subresources of virtual machines: `subresources.kubevirt.io` and the upload of images.
//!
//! Apart from the generic server: it is reached through [`Extension`] only.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sheaf_meta::status::Status;

use crate::{
    core::{Core, Cx},
    extension::{Extension, VirtualGroup},
    http::{Outcome, Request},
    pki::{Ca, PkiError},
};

/// The extension.
pub struct Kubevirt;

impl Kubevirt {
    /// Prepares the client certificate for relaying to nodes.
    pub fn new(_ca: &Arc<Ca>) -> Result<Self, PkiError> {
        Ok(Self)
    }
}

impl Extension for Kubevirt {
    fn groups(&self) -> Vec<VirtualGroup> {
        Vec::new()
    }

    fn resource<'a>(
        &'a self,
        _core: &'a Arc<Core>,
        _cx: &'a mut Cx,
        _request: Request,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(std::future::ready(Err(Status::no_such_path())))
    }
}
