//! Admission webhooks: ValidatingWebhookConfiguration and MutatingWebhookConfiguration, as admission of every write.
//!
//! [`config`] reads a configuration, [`crate::admission`] knows what a webhook wants to see, [`review`] is the exchange,
//! [`client`] and [`service`] the way there. Mutating webhooks are asked one after another, in the order of
//! their configurations' names; validating ones all at once, of the object as it is about to be stored.
//!
//! Not here: validation of the configurations, which are rules of their kinds. Owns the compiled form of the
//! configurations it saw last, with their connections.

mod client;
mod config;
mod review;
mod service;
mod trust;

use std::{collections::HashSet, future::ready, sync::Arc};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use sheaf_cel::conditions::{self, Request, Verdict};
use sheaf_meta::{
    object, patch,
    status::{FieldError, Status},
};

use crate::{
    admission::{Asker, GROUP, compiled::Slot, namespace_of},
    authn::UserInfo,
    core::{Core, Cx},
    extension::{Admission, Operation, Write},
    namespaces,
    registry::Row,
};
use client::Client;
use config::{Hook, Target};
use review::{Answer, Asking};

/// Webhooks as admission.
#[derive(Default)]
pub(crate) struct Webhooks {
    mutating: Slot<Hook>,
    validating: Slot<Hook>,
}

/// A webhook that wants to see a request, and how.
struct Match {
    hook: Arc<Hook>,
    /// The kind in the version that the webhook's rules name.
    row: Arc<Row>,
}

impl Admission for Webhooks {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        if self.mutating.is_empty() {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(self.mutate(core, cx, write, object))
    }

    fn review<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let sound = check_conditions(write, object);
        if sound.is_err() || self.validating.is_empty() {
            return Box::pin(ready(sound));
        }
        Box::pin(self.validate(core, cx, write, object))
    }

    fn post<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            self.mutate(core, cx, write, object).await?;
            self.validate(core, cx, write, object).await
        })
    }

    fn delete<'a>(
        &'a self,
        core: &'a Core,
        cx: &'a Cx,
        write: &'a Write<'a>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            // What a mutating webhook would change of it goes anyway.
            let mut nothing = Value::Null;
            self.mutate(core, cx, write, &mut nothing).await?;
            self.validate(core, cx, write, &Value::Null).await
        })
    }
}

impl Webhooks {
    async fn mutate(
        &self,
        core: &Core,
        cx: &Cx,
        write: &Write<'_>,
        object: &mut Value,
    ) -> Result<(), Status> {
        let Some(hooks) = self.mutating.fresh(core, "mutatingwebhookconfigurations", config::hooks).await?
        else {
            return Ok(());
        };
        let mut again: HashSet<usize> = HashSet::new();
        let mut asked: Vec<usize> = Vec::new();
        for (i, hook) in hooks.iter().enumerate() {
            if self.ask(core, cx, write, object, hook).await?.is_some_and(|changed| {
                // Who was asked before saw another object.
                if changed {
                    again.extend(&asked);
                }
                true
            }) {
                asked.push(i);
            }
        }
        // Once: webhooks that undo one another's work would go on for ever.
        for (i, hook) in hooks.iter().enumerate() {
            if again.contains(&i) && hook.reinvoke {
                self.ask(core, cx, write, object, hook).await?;
            }
        }
        Ok(())
    }

    /// Asks a mutating webhook. `None`: it does not want to see the request; otherwise whether it changed the object.
    async fn ask(
        &self,
        core: &Core,
        cx: &Cx,
        write: &Write<'_>,
        object: &mut Value,
        hook: &Arc<Hook>,
    ) -> Result<Option<bool>, Status> {
        let Some(found) = matching(core, cx, write, object, hook).await? else { return Ok(None) };
        let shown = Shown::of(write, &found.row, object);
        let Some(answer) = call(core, cx, write, &found, &shown, true).await? else { return Ok(Some(false)) };
        if answer.patch.is_null() || write.operation == Operation::Delete {
            return Ok(Some(false));
        }
        let patched = patch::json_patch(&shown.object, &answer.patch);
        let patched = patched.map_err(|e| review::internal(&format!("webhook \"{}\": {e}", hook.name)))?;
        if patched == shown.object {
            return Ok(Some(false));
        }
        let new = shown.back(write, object, patched);
        let new = new.map_err(|why| review::internal(&format!("webhook \"{}\" {why}", hook.name)))?;
        write.said.changed();
        *object = new;
        Ok(Some(true))
    }

    async fn validate(&self, core: &Core, cx: &Cx, write: &Write<'_>, object: &Value) -> Result<(), Status> {
        let Some(hooks) =
            self.validating.fresh(core, "validatingwebhookconfigurations", config::hooks).await?
        else {
            return Ok(());
        };
        let mut found = Vec::new();
        for hook in hooks.iter() {
            found.extend(matching(core, cx, write, object, hook).await?);
        }
        let shown: Vec<Shown> = found.iter().map(|m| Shown::of(write, &m.row, object)).collect();
        let mut calls = Vec::with_capacity(found.len());
        for (found, shown) in found.iter().zip(&shown) {
            calls.push(call(core, cx, write, found, shown, false));
        }
        // The first in order is the one whose refusal is told.
        for outcome in join_all(calls).await {
            outcome?;
        }
        Ok(())
    }
}

/// The objects of a request in the version in which a webhook or a policy is shown them.
pub(crate) struct Shown {
    pub(crate) object: Value,
    pub(crate) old: Value,
}

/// What a policy sees of a request: the objects in a version of their kind, and the `AdmissionRequest`.
pub(crate) fn shown(cx: &Cx, write: &Write<'_>, row: &Arc<Row>, object: &Value) -> (Shown, Value) {
    let shown = Shown::of(write, row, object);
    let options = (write.options)();
    let request = asking(cx, write, row, &shown, "", &options).request();
    (shown, request)
}

impl Shown {
    fn of(write: &Write<'_>, row: &Row, object: &Value) -> Self {
        let show = |object: &Value| match &write.row.scale {
            _ if object.is_null() => Value::Null,
            // Of a kind of its own, which has one version.
            _ if is_posted(write) => object.clone(),
            Some(scale) if write.subresource == "scale" => scale.scale_of(object),
            _ => {
                let mut out = object.clone();
                object::set_gvk(&mut out, &row.api_version, &row.info.kind);
                out
            }
        };
        Self { object: show(object), old: write.old.map(show).unwrap_or_default() }
    }

    /// What of a patched object goes into the one being written. The error says what a webhook may not do.
    pub(crate) fn back(
        &self,
        write: &Write<'_>,
        object: &Value,
        mut patched: Value,
    ) -> Result<Value, String> {
        if !patched.is_object() {
            return Err("left no object".into());
        }
        for (what, before, after) in [
            ("kind", object::kind(&self.object), object::kind(&patched)),
            ("apiVersion", object::api_version(&self.object), object::api_version(&patched)),
            ("metadata.name", object::name(&self.object), object::name(&patched)),
            ("metadata.namespace", object::namespace(&self.object), object::namespace(&patched)),
        ] {
            if before != after {
                return Err(format!("changed {what}, which no webhook may"));
            }
        }
        if let (Some(scale), "scale") = (&write.row.scale, write.subresource) {
            let mut out = object.clone();
            scale.put(&mut out, crate::scale::wanted_of(&patched));
            return Ok(out);
        }
        if is_posted(write) {
            return Ok(patched);
        }
        object::set_gvk(&mut patched, &write.row.api_version, &write.row.info.kind);
        /// The server's own: a webhook does not choose them.
        const OWN: [&str; 7] = [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "managedFields",
        ];
        for key in OWN {
            let own = object::get(object, &["metadata", key]).cloned();
            let metadata = object::metadata_mut(&mut patched);
            match own {
                Some(value) => drop(metadata.insert(key.into(), value)),
                None => drop(metadata.remove(key)),
            }
        }
        if write.old.is_none() && write.row.info.status_subresource {
            match object.get("status") {
                Some(status) => patched["status"] = status.clone(),
                None => drop(object::as_map(&mut patched).remove("status")),
            }
        }
        Ok(patched)
    }
}

/// Whether what is written is no state of the object, but something that is posted to it.
fn is_posted(write: &Write<'_>) -> bool {
    write.operation == Operation::Create && !write.subresource.is_empty()
}

/// Whether a webhook wants to see a request, and in which version.
async fn matching(
    core: &Core,
    cx: &Cx,
    write: &Write<'_>,
    object: &Value,
    hook: &Arc<Hook>,
) -> Result<Option<Match>, Status> {
    let failed = |why: &str| review::failure(&hook.name, why);
    let Some(row) = hook.constraint.wanted(core, write, object, failed).await? else { return Ok(None) };
    let found = Match { hook: hook.clone(), row };
    if !hook.conditions.is_empty() {
        let shown = Shown::of(write, &found.row, object);
        let options = (write.options)();
        let request = asking(cx, write, &found.row, &shown, "", &options).request();
        let asker = Asker { core, user: &cx.user };
        let asked =
            Request { object: &shown.object, old_object: &shown.old, request: &request, authorizer: &asker };
        match hook.conditions.verdict(&asked) {
            Verdict::Matches => {}
            Verdict::Excluded { .. } => return Ok(None),
            Verdict::Failed(why) if hook.fail => return Err(review::failure(&hook.name, &why.join("; "))),
            Verdict::Failed(why) => {
                let why = why.join("; ");
                tracing::warn!(
                    webhook = hook.name,
                    why,
                    "a match condition failed; the webhook is not asked"
                );
                return Ok(None);
            }
        }
    }
    Ok(Some(found))
}

/// Refuses configurations whose match conditions cannot be used.
fn check_conditions(write: &Write<'_>, object: &Value) -> Result<(), Status> {
    let info = &write.row.info;
    if info.group != GROUP || !info.plural.ends_with("webhookconfigurations") {
        return Ok(());
    }
    let webhooks = object.get("webhooks").and_then(Value::as_array).into_iter().flatten();
    let errors = webhooks.enumerate().flat_map(|(i, webhook)| {
        conditions::validate(&webhook["matchConditions"], &format!("webhooks[{i}].matchConditions"))
    });
    let errors: Vec<FieldError> = errors.collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&info.group, &info.kind, object::name(object), &errors))
}

pub(crate) fn user(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.username, "groups": user.groups});
    if !user.uid.is_empty() {
        out["uid"] = json!(user.uid);
    }
    out
}

fn asking<'a>(
    cx: &Cx,
    write: &'a Write<'_>,
    row: &'a Row,
    shown: &'a Shown,
    uid: &'a str,
    options: &'a Value,
) -> Asking<'a> {
    let (info, of) = (&row.info, &write.row.info);
    let kind = |info: &'a sheaf_meta::kind::KindInfo| match write.subresource {
        _ if is_posted(write) => {
            let (group, version) = object::api_version(&shown.object).rsplit_once('/').unwrap_or(("", "v1"));
            [group, version, object::kind(&shown.object)]
        }
        "scale" => ["autoscaling", "v1", "Scale"],
        _ => [info.group.as_str(), info.version.as_str(), info.kind.as_str()],
    };
    let resource = |info: &'a sheaf_meta::kind::KindInfo| {
        [info.group.as_str(), info.version.as_str(), info.plural.as_str()]
    };
    let whole = if shown.object.is_null() { &shown.old } else { &shown.object };
    Asking {
        uid,
        kind: kind(info),
        resource: resource(info),
        request_kind: kind(of),
        request_resource: resource(of),
        subresource: write.subresource,
        name: object::name(whole),
        namespace: namespace_of(namespaces::is_namespace(write.row), whole),
        operation: write.operation.as_str(),
        user: user(&cx.user),
        object: &shown.object,
        old: &shown.old,
        dry_run: write.dry_run,
        options,
    }
}

/// Calls a webhook. `None`: it failed, and its policy is to go on without it. A refusal is an error.
async fn call(
    core: &Core,
    cx: &Cx,
    write: &Write<'_>,
    found: &Match,
    shown: &Shown,
    mutating: bool,
) -> Result<Option<Answer>, Status> {
    let hook = &found.hook;
    if write.dry_run && !hook.dry_run {
        return Err(review::no_dry_run(&hook.name));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let options = (write.options)();
    let body = asking(cx, write, &found.row, shown, &uid, &options).review(hook.review);
    let begun = std::time::Instant::now();
    let answer = match exchange(core, hook, body.to_string().into()).await {
        Ok(body) => review::read(&body, hook.review, &uid, mutating)
            .map_err(|why| format!("received invalid webhook response: {why}")),
        Err(why) => Err(format!("failed to call webhook: {why}")),
    };
    let took_ms = begun.elapsed().as_millis();
    match answer {
        Ok(answer) => {
            tracing::debug!(webhook = hook.name, allowed = answer.allowed, took_ms, "webhook");
            for warning in &answer.warnings {
                write.said.warn(warning.clone());
            }
            for (key, value) in &answer.annotations {
                write.said.annotate(format!("{}/{key}", hook.name), value.clone());
            }
            if answer.allowed { Ok(Some(answer)) } else { Err(review::refusal(&hook.name, &answer.status)) }
        }
        Err(why) if hook.fail => Err(review::failure(&hook.name, &why)),
        Err(why) => {
            let (configuration, webhook) = (&hook.configuration, &hook.name);
            tracing::warn!(configuration, webhook, why, took_ms, "a webhook failed and is passed over");
            Ok(None)
        }
    }
}

async fn exchange(core: &Core, hook: &Hook, body: Bytes) -> Result<Bytes, String> {
    let at = match &hook.target {
        Target::Url(_) => None,
        Target::Service { namespace, name, port, .. } => {
            Some(service::resolve(core, namespace, name, *port).await?)
        }
    };
    let client = hook.client.get_or_init(|| Client::new(&hook.authorities)).as_ref().map_err(Clone::clone)?;
    client.post(&hook.url(), at, body, hook.timeout).await
}
