//! Limits of a namespace: fills in what pods leave open, and refuses what they may not ask. `sheaf_plan::limits` has the
//! rules.

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_plan::limits;
use sheaf_store::cache::At;

use super::{all, forbidden, is};
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// See the module.
pub(crate) struct Limits;

impl Limits {
    /// The ranges of the object's namespace, if they concern it: pods when they are made, claims always.
    async fn ranges(core: &Core, write: &Write<'_>, object: &Value) -> Result<Vec<Value>, Status> {
        let pods = is(write.row, "", "pods") && write.old.is_none();
        let claims = is(write.row, "", "persistentvolumeclaims");
        if !(pods || claims) || !write.subresource.is_empty() {
            return Ok(Vec::new());
        }
        let found = all(core, "", "limitranges", object::namespace(object), At::Any).await?;
        Ok(found.into_iter().map(|(_, range)| range).collect())
    }
}

impl Admission for Limits {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if is(write.row, "", "pods") {
                let ranges = Self::ranges(core, write, object).await?;
                limits::complete(&ranges, object);
            }
            Ok(())
        })
    }

    fn review<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let ranges = Self::ranges(core, write, object).await?;
            match limits::refusal(&ranges, &write.row.info.plural, object) {
                Some(why) => Err(forbidden(write.row, object::name(object), &why)),
                None => Ok(()),
            }
        })
    }
}
