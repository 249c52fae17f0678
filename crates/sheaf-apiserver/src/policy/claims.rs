//! Claims that name no class get the default one, if there is one. Where it comes later, a controller gives it.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_store::cache::At;

use super::{all, is};
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
}

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
