//! ValidatingAdmissionPolicies: expressions that judge every write which their bindings name, without a webhook.
//!
//! [`policy`] is what a policy says of a request; here the policies, bindings and parameters are found, and refusals are
//! carried out: denied, warned of, written down.
//!
//! [`types`] checks a policy's expressions against the schemas of the kinds that it names, and [`status`] is the loop
//! that says in its status what that found.
//!
//! [`mutating`] has the policies that change what is written, which are read and found in the same way.
//!
//! Owns the compiled form of the policies and bindings it saw last.

mod mutating;
mod policy;
mod status;
mod types;

pub(crate) use mutating::Mutating;
pub(crate) use status::keep_checked;

use std::{future::ready, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    selector::LabelSelector,
    status::{Cause, Status},
};
use sheaf_store::cache::At;

use crate::{
    admission::{
        Asker, GROUP,
        compiled::{Compiled, Slot},
        constraint,
    },
    core::{Core, Cx},
    extension::{Admission, Write},
    handler, namespaces,
    registry::Row,
    webhooks,
};
use policy::{Action, Binding, ParamRef, Policy, Refusal, Seen, Wanted};

/// The plurals of policies and their bindings.
const KINDS: [&str; 2] = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
/// Where refusals are written down.
const FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";

/// Policies as admission.
#[derive(Default)]
pub(crate) struct Policies(Slots);

/// Policies of one of the two kinds with their bindings, as they were seen last.
#[derive(Default)]
struct Slots {
    policies: Slot<Policy>,
    bindings: Slot<Binding>,
}

impl Slots {
    /// Whether nothing binds a policy.
    fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// As they are now, by the plurals of their kinds; none where nothing can apply.
    async fn fresh(
        &self,
        core: &Core,
        [policies, bindings]: [&'static str; 2],
    ) -> Result<Option<(Arc<Compiled<Policy>>, Arc<Compiled<Binding>>)>, Status> {
        let Some(bindings) = self.bindings.fresh(core, bindings, Binding::read).await? else {
            return Ok(None);
        };
        let policies = self.policies.fresh(core, policies, Policy::read).await?;
        Ok(policies.map(|policies| (policies, bindings)))
    }
}

/// Refuses a policy of a kind that makes no sense.
fn refuse_senseless(write: &Write<'_>, plural: &str, object: &Value) -> Result<(), Status> {
    let info = &write.row.info;
    if info.group != GROUP || info.plural != plural || !write.subresource.is_empty() {
        return Ok(());
    }
    match policy::validate(object) {
        errors if errors.is_empty() => Ok(()),
        errors => Err(Status::invalid(GROUP, &info.kind, object::name(object), &errors)),
    }
}

impl Admission for Policies {
    fn review<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let sense = refuse_senseless(write, KINDS[0], object);
        if sense.is_err() || self.0.is_empty() {
            return Box::pin(ready(sense));
        }
        Box::pin(self.judge(core, cx, write, object))
    }

    fn post<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move { self.judge(core, cx, write, object).await })
    }

    fn delete<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move { self.judge(core, cx, write, &Value::Null).await })
    }
}

/// A refusal, by whom.
struct By<'a> {
    policy: &'a str,
    binding: &'a Binding,
    refusal: Refusal,
}

impl Policies {
    async fn judge(&self, core: &Core, cx: &Cx, write: &Write<'_>, object: &Value) -> Result<(), Status> {
        let Some((policies, bindings)) = self.0.fresh(core, KINDS).await? else { return Ok(()) };
        let whole = if object.is_null() { write.old.unwrap_or(object) } else { object };
        let mut refusals: Vec<By<'_>> = Vec::new();
        for policy in policies.iter() {
            let failed =
                |why: &str| Status::internal(format!("ValidatingAdmissionPolicy '{}': {why}", policy.name));
            let Some(row) = policy.constraint.wanted(core, write, object, failed).await? else { continue };
            let mut annotations = std::collections::BTreeMap::new();
            for binding in bindings.iter().filter(|b| b.policy == policy.name) {
                if binding.constraint.wanted(core, write, object, failed).await?.is_none() {
                    continue;
                }
                let mut refuse = |message: String, reason: &str, index: usize| {
                    let refusal = Refusal { message, reason: reason.into(), index };
                    refusals.push(By { policy: &policy.name, binding, refusal });
                };
                let parameters = match parameters(core, policy, binding, whole).await {
                    Ok(found) => found,
                    Err(why) if policy.fail => {
                        refuse(format!("failed to configure binding: {why}"), "Invalid", 0);
                        continue;
                    }
                    Err(_) => continue,
                };
                let namespace = namespace_of(core, write, whole).await.map_err(|why| failed(&why))?;
                let (shown, request) = webhooks::shown(cx, write, &row, object);
                let asker = Asker { core, user: &cx.user };
                for parameter in &parameters {
                    let seen = Seen {
                        object: &shown.object,
                        old: &shown.old,
                        request: &request,
                        namespace: &namespace,
                        parameter,
                        authorizer: &asker,
                    };
                    match policy.judge(&seen) {
                        Ok(said) => {
                            annotations.extend(said.annotations);
                            refusals.extend(said.refusals.into_iter().map(|refusal| By {
                                policy: &policy.name,
                                binding,
                                refusal,
                            }));
                        }
                        Err(why) if policy.fail => {
                            let refusal = Refusal { message: why, reason: "Invalid".into(), index: 0 };
                            refusals.push(By { policy: &policy.name, binding, refusal });
                        }
                        Err(_) => {}
                    }
                }
            }
            annotations.into_iter().for_each(|(key, value)| write.said.annotate(key, value));
        }
        carry_out(write, whole, &refusals)
    }
}

/// What a policy is asked about beside the object.
struct Found<'a> {
    core: &'a Core,
    cx: &'a Cx,
    /// The kind in the version in which it is wanted.
    row: &'a Arc<Row>,
    namespace: &'a Value,
    parameter: &'a Value,
}

/// The namespace of an object, or null.
async fn namespace_of(core: &Core, write: &Write<'_>, object: &Value) -> Result<Value, String> {
    let itself = namespaces::is_namespace(write.row);
    match crate::admission::namespace_of(itself, object) {
        "" => Ok(Value::Null),
        _ if itself => Ok(object.clone()),
        name => Ok(constraint::namespace(core, name).await?.unwrap_or_default()),
    }
}

/// Denies, warns, and writes down.
fn carry_out(write: &Write<'_>, object: &Value, refusals: &[By<'_>]) -> Result<(), Status> {
    let wants = |by: &&By<'_>, action: Action| by.binding.actions.contains(&action);
    for by in refusals.iter().filter(|by| wants(by, Action::Warn)) {
        let (policy, binding, message) = (by.policy, &by.binding.name, &by.refusal.message);
        let text = format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
        );
        write.said.warn(text);
    }
    let written: Vec<Value> = refusals
        .iter()
        .filter(|by| wants(by, Action::Audit))
        .map(|by| {
            json!({
                "message": by.refusal.message, "policy": by.policy, "binding": by.binding.name,
                "expressionIndex": by.refusal.index,
                "validationActions": by.binding.actions.iter().map(|a| a.as_str()).collect::<Vec<_>>(),
            })
        })
        .collect();
    if !written.is_empty() {
        write.said.annotate(FAILURE.into(), Value::from(written).to_string());
    }
    let mut denied = refusals.iter().filter(|by| wants(by, Action::Deny));
    let Some(first) = denied.next() else { return Ok(()) };
    let text = |by: &By<'_>| {
        let (policy, binding, message) = (by.policy, &by.binding.name, &by.refusal.message);
        format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}")
    };
    let mut status = Status::forbidden(write.row.info.resource(), object::name(object), &text(first));
    (status.code, status.reason) = match first.refusal.reason.as_str() {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    for by in std::iter::once(first).chain(denied) {
        status.details.causes.push(Cause { reason: String::new(), message: text(by), field: String::new() });
    }
    Err(status)
}

/// The parameters with which a binding uses its policy: one null where there are none to be. `Err`: they cannot be had.
async fn parameters(
    core: &Core,
    policy: &Policy,
    binding: &Binding,
    object: &Value,
) -> Result<Vec<Value>, String> {
    let (Some((api_version, kind)), Some(wanted)) = (&policy.parameters, &binding.parameters) else {
        return match &policy.parameters {
            Some(_) => Err("paramRef is missing, which the policy's paramKind asks for".into()),
            None => Ok(vec![Value::Null]),
        };
    };
    let rows = core.registry.snapshot();
    let row = rows.rows().iter().find(|r| r.api_version == *api_version && r.info.kind == *kind);
    let row = row.ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'")
    })?;
    let ParamRef { wanted, namespace, allow_missing } = wanted;
    let namespace = match (row.namespaced(), namespace.as_str()) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped paramKind".into());
        }
        (true, "") => object::namespace(object),
        (true, given) => given,
    };
    if row.namespaced() && namespace.is_empty() {
        return Err(
            "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into()
        );
    }
    let cache = core.kind(row).await.map_err(|s| s.to_string())?;
    let view =
        |item: &handler::Item| handler::view(row, item).map(|o| o.into_owned()).map_err(|s| s.to_string());
    let found: Vec<Value> = match wanted {
        Wanted::Named(name) => {
            let item = cache.get(&row.key(namespace, name), At::Latest).await.map_err(|e| e.to_string())?;
            item.iter().map(view).collect::<Result<_, _>>()?
        }
        Wanted::Selected(selector) => {
            let selector =
                LabelSelector::from_object(selector).map_err(|e| format!("paramRef.selector: {e}"))?;
            let listing =
                cache.list(&row.key(namespace, ""), "", 0, At::Latest).await.map_err(|e| e.to_string())?;
            let all: Vec<Value> = listing.objects.iter().map(view).collect::<Result<_, _>>()?;
            all.into_iter().filter(|o| selector.matches(o)).collect()
        }
    };
    match found.is_empty() {
        false => Ok(found),
        true if *allow_missing => Ok(Vec::new()),
        true => Err("no params found for policy binding with `Deny` parameterNotFoundAction".into()),
    }
}
