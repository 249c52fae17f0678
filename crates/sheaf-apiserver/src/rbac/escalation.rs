//! Admission of roles and bindings: nobody gives what they do not hold.
//!
//! Whoever writes a role must hold all that it allows, or be allowed to `escalate`; whoever writes a binding must hold all
//! that the role allows, or be allowed to `bind` it.

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_meta::{
    object,
    status::{ResourceRef, Status},
};

use super::{
    Access, GROUP, RoleRef,
    rules::{self, PolicyRule, quoted},
};
use crate::{
    authn::{MASTERS, UserInfo},
    authz::{Attributes, Authorizer},
    core::{Core, Cx},
    extension::{Admission, Write},
};

/// The admission rules.
pub(crate) struct Escalation;

impl Admission for Escalation {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if write.row.info.group != GROUP {
                return Ok(());
            }
            if cx.user.in_group(MASTERS) || only_for_deletion(object, write.old) {
                return Ok(());
            }
            core.access.settle().await;
            let asked = Asked { access: &core.access, cx, write };
            match write.row.info.kind.as_str() {
                "Role" | "ClusterRole" => asked.role(object),
                _ => asked.binding(object),
            }
        })
    }
}

/// Whether a change touches nothing but finalizers and owners: whoever may write may let an object go.
fn only_for_deletion(new: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let strip = |object: &Value| {
        let mut object = object.clone();
        let metadata = object::metadata_mut(&mut object);
        for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
        object
    };
    strip(new) == strip(old)
}

struct Asked<'a> {
    access: &'a Access,
    cx: &'a Cx,
    write: &'a Write<'a>,
}

impl Asked<'_> {
    fn may(&self, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let what = Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
        self.access.decide(&self.cx.user, what).allowed
    }

    fn refuse(&self, object: &Value, why: &str) -> Status {
        let r: ResourceRef<'_> = self.write.row.info.resource();
        Status::forbidden(r, object::name(object), why)
    }

    fn role(&self, object: &Value) -> Result<(), Status> {
        let (wanted, namespace) = (PolicyRule::list(object), object::namespace(object));
        let old = self.write.old;
        let aggregation = |o: &Value| o.get("aggregationRule").filter(|r| !r.is_null()).cloned();
        let same =
            old.is_some_and(|old| PolicyRule::list(old) == wanted && aggregation(old) == aggregation(object));
        if same || self.may("escalate", &self.write.row.info.plural, namespace, &self.cx.path.name) {
            return Ok(());
        }
        let aggregated = aggregation(object).is_some() || old.is_some_and(|o| aggregation(o).is_some());
        if aggregated {
            // It can collect anything.
            let all = super::policy::roles().into_iter().find(|r| r.name == "cluster-admin");
            let all = all.map(|r| r.rules).unwrap_or_default();
            if confirm(self.access, &self.cx.user, namespace, &all).is_err() {
                return Err(
                    self.refuse(object, "must have cluster-admin privileges to use an aggregationRule")
                );
            }
        }
        confirm(self.access, &self.cx.user, namespace, &wanted).map_err(|why| self.refuse(object, &why))
    }

    fn binding(&self, object: &Value) -> Result<(), Status> {
        let (role, namespace) = (RoleRef::of(object), object::namespace(object));
        let resource = if role.kind == "Role" { "roles" } else { "clusterroles" };
        if self.may("bind", resource, namespace, &role.name) {
            return Ok(());
        }
        let Some(wanted) = self.access.rules_of(&role, namespace) else {
            let plural = if role.kind == "Role" { "role" } else { "clusterrole" };
            return Err(Status::not_found(ResourceRef { group: GROUP, plural }, &role.name));
        };
        confirm(self.access, &self.cx.user, namespace, &wanted).map_err(|why| self.refuse(object, &why))
    }
}

/// Whether somebody holds all of these rules in a namespace; else the sentence that says which are missing.
fn confirm(access: &Access, user: &UserInfo, namespace: &str, wanted: &[PolicyRule]) -> Result<(), String> {
    let (held, errors) = access.held(user, namespace);
    let missing = rules::missing(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.username,
        quoted(&user.groups),
        rules::describe(&missing)
    );
    if !errors.is_empty() {
        why = format!("{why}; resolution errors: [{}]", errors.join(" "));
    }
    Err(why)
}
