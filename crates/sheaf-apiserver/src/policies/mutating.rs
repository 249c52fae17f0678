//! MutatingAdmissionPolicies: expressions that change what is written, before webhooks see it.
//!
//! In the order of their names; one that wants to looks once more where another changed the object after it. What an
//! expression makes is applied to the object by its schema, or is a JSON patch of it.
//!
//! Owns the compiled form of the policies and bindings it saw last.

use std::{future::ready, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::Value;
use sheaf_cel::{PER_CALL_LIMIT, conditions};
use sheaf_meta::{
    apply::{self, Part, Writer},
    object, patch,
    status::Status,
};

use super::{
    Found, Slots, namespace_of, parameters,
    policy::{self, Binding, Mutation, Policy, Seen},
    refuse_senseless,
};
use crate::{
    admission::Asker,
    core::{Core, Cx},
    extension::{Admission, Write},
    registry::Row,
    webhooks,
};

/// Who owns the fields of what is applied, for as long as it is being applied.
const MANAGER: &str = "mutating-admission-policy";

/// Policies as admission.
#[derive(Default)]
pub(crate) struct Mutating(Slots);

/// The plurals of policies and their bindings.
const KINDS: [&str; 2] = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];

impl Admission for Mutating {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        if self.0.is_empty() {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(self.mutate(core, cx, write, object))
    }

    fn review<'a>(
        &'a self,
        _core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(ready(refuse_senseless(write, KINDS[0], object)))
    }
}

impl Mutating {
    async fn mutate(
        &self,
        core: &Core,
        cx: &Cx,
        write: &Write<'_>,
        object: &mut Value,
    ) -> Result<(), Status> {
        let Some((policies, bindings)) = self.0.fresh(core, KINDS).await? else { return Ok(()) };
        let bound = |policy: &Policy| -> Vec<&Arc<Binding>> {
            bindings.iter().filter(|binding| binding.policy == policy.name).collect()
        };
        let mut asked: Vec<&Policy> = Vec::new();
        let mut again: Vec<&Policy> = Vec::new();
        for policy in policies.iter() {
            if ask(core, cx, write, object, policy, &bound(policy)).await? {
                // Who was asked before saw another object.
                again.append(&mut asked);
            }
            if policy.again {
                asked.push(policy);
            }
        }
        // Once: policies that undo one another's work would go on for ever.
        for policy in again {
            ask(core, cx, write, object, policy, &bound(policy)).await?;
        }
        Ok(())
    }
}

/// Lets a policy change the object, by each of its bindings; says whether it did.
async fn ask(
    core: &Core,
    cx: &Cx,
    write: &Write<'_>,
    object: &mut Value,
    policy: &Policy,
    bindings: &[&Arc<Binding>],
) -> Result<bool, Status> {
    let failed = |why: &str| Status::internal(format!("MutatingAdmissionPolicy '{}': {why}", policy.name));
    let before = object.clone();
    for binding in bindings {
        let Some(row) = policy.constraint.wanted(core, write, object, failed).await? else { break };
        if binding.constraint.wanted(core, write, object, failed).await?.is_none() {
            continue;
        }
        let refuse = |why: String| refusal(write, object::name(&before), policy, binding, &why);
        let given = match parameters(core, policy, binding, object).await {
            Ok(found) => found,
            Err(why) if policy.fail => return Err(refuse(format!("failed to configure binding: {why}"))),
            Err(_) => continue,
        };
        for parameter in &given {
            let namespace = namespace_of(core, write, object).await.map_err(|why| failed(&why))?;
            let found = Found { core, cx, row: &row, namespace: &namespace, parameter };
            match change(&found, write, object, policy) {
                Ok(Some(new)) => {
                    write.said.changed();
                    *object = new;
                }
                Ok(None) => {}
                Err(why) if policy.fail => return Err(refuse(why)),
                Err(_) => {}
            }
        }
    }
    Ok(*object != before)
}

/// What a policy makes of an object; `None`: it is not about it.
fn change(
    found: &Found<'_>,
    write: &Write<'_>,
    object: &Value,
    policy: &Policy,
) -> Result<Option<Value>, String> {
    let mut current = object.clone();
    for mutation in &policy.mutations {
        let (shown, request) = webhooks::shown(found.cx, write, found.row, &current);
        let asker = Asker { core: found.core, user: &found.cx.user };
        let seen = Seen {
            object: &shown.object,
            old: &shown.old,
            request: &request,
            namespace: found.namespace,
            parameter: found.parameter,
            authorizer: &asker,
        };
        let declared = conditions::request();
        let Some(known) = policy.known(&seen, &declared)? else { return Ok(None) };
        let (Mutation::Apply(program) | Mutation::Patch(program)) = mutation;
        let run = program.evaluate(&known.values, PER_CALL_LIMIT.min(known.left));
        let made = run.result.map_err(|error| policy::told(&error, &known.failed))?.to_json()?;
        let changed = match mutation {
            Mutation::Patch(_) => patch::json_patch(&shown.object, &made).map_err(|e| e.to_string())?,
            Mutation::Apply(_) => applied(found, &shown.object, made)?,
        };
        current = shown.back(write, &current, changed).map_err(|why| format!("the policy {why}"))?;
    }
    Ok(Some(current))
}

/// A part of an object applied to it: lists whose items can be told apart are merged.
fn applied(found: &Found<'_>, whole: &Value, part: Value) -> Result<Value, String> {
    let mut part = part;
    if !part.is_object() {
        return Err("the expression of applyConfiguration must make an Object".into());
    }
    let row: &Row = found.row;
    object::set_gvk(&mut part, &row.api_version, &row.info.kind);
    let mut base = whole.clone();
    let owners = object::metadata_mut(&mut base).remove("managedFields");
    let writer = Writer {
        manager: MANAGER,
        api_version: &row.api_version,
        subresource: "",
        now: found.cx.now,
        settled: false,
    };
    let mut out = apply::apply(Some(&base), &part, Part::Whole, true, row.schema(), &writer)
        .map_err(|error| error.to_string())?;
    match owners {
        Some(owners) => drop(object::metadata_mut(&mut out).insert("managedFields".into(), owners)),
        None => drop(object::metadata_mut(&mut out).remove("managedFields")),
    }
    Ok(out)
}

/// 422 in the words of admission.
fn refusal(write: &Write<'_>, name: &str, policy: &Policy, binding: &Binding, why: &str) -> Status {
    let (policy, binding) = (&policy.name, &binding.name);
    let text = format!("policy '{policy}' with binding '{binding}' denied request: {why}");
    let mut status = Status::forbidden(write.row.info.resource(), name, &text);
    (status.code, status.reason) = (422, "Invalid");
    status
}
