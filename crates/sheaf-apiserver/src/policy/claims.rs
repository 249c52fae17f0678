//! Claims that name no class get the default one, if there is one (where it comes later, a controller gives it); and a
//! claim may only grow if its class says so.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, quantity::Quantity, status::Status};
use sheaf_store::cache::At;

use super::{all, forbidden, is};
use crate::{
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// Marks of a default class, the current and the old one.
const MARKS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// Where claims named their class once.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// See the module.
pub(crate) struct Classes;

impl Admission for Classes {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let undecided = is(write.row, "", "persistentvolumeclaims")
                && write.old.is_none()
                && object.pointer("/spec/storageClassName").is_none_or(Value::is_null)
                && object::annotation(object, OLD_CLASS).is_none()
                && object["spec"].is_object();
            if !undecided {
                return Ok(());
            }
            let classes = all(core, "storage.k8s.io", "storageclasses", "", At::Any).await?;
            if let Some(name) = plan_default(classes.iter().map(|(_, class)| class)) {
                object["spec"]["storageClassName"] = json!(name);
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
            let Some(old) = write.old.filter(|_| is(write.row, "", "persistentvolumeclaims")) else {
                return Ok(());
            };
            let size = |claim: &Value| {
                let text = claim.pointer("/spec/resources/requests/storage")?.as_str()?;
                Quantity::parse(text).ok()
            };
            if size(object) <= size(old) {
                return Ok(());
            }
            let named = object::annotation(object, OLD_CLASS)
                .or_else(|| object.pointer("/spec/storageClassName").and_then(Value::as_str));
            let classes = all(core, "storage.k8s.io", "storageclasses", "", At::Any).await?;
            let class = classes.iter().map(|(_, class)| class).find(|c| Some(object::name(c)) == named);
            if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
                return Ok(());
            }
            Err(forbidden(write.row, object::name(object), FIXED))
        })
    }
}

/// Why a claim does not grow.
const FIXED: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
    support resize";

/// The newest of the classes that are marked as default; by name among equals.
fn plan_default<'a>(classes: impl Iterator<Item = &'a Value>) -> Option<String> {
    let marked = |class: &&Value| MARKS.iter().any(|mark| object::annotation(class, mark) == Some("true"));
    let rank = |class: &&Value| {
        (std::cmp::Reverse(object::creation_timestamp(class).to_owned()), object::name(class).to_owned())
    };
    classes.filter(marked).min_by_key(rank).map(|class| object::name(class).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_is_taken() {
        let class = |name: &str, mark: &str, made: &str| json!({"metadata": {"name": name, "annotations": {MARKS[0]: mark}, "creationTimestamp": made}});
        let all = [
            class("a", "true", "2020-01-01T00:00:00Z"),
            class("b", "false", "2022-01-01T00:00:00Z"),
            class("c", "true", "2021-01-01T00:00:00Z"),
        ];
        assert_eq!(plan_default(all.iter()).as_deref(), Some("c"));
        assert_eq!(plan_default(all[1..2].iter()), None);
    }
}
