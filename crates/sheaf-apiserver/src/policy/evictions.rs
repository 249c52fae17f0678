//! Subresources of pods that do something: `eviction` deletes a pod if its disruption budget allows it, `binding` puts
//! it on a node. `sheaf_plan::disruption` has the rules of the former.
//!
//! An eviction is two writes, as upstream's: the budget's status is charged, then the pod is deleted. Both take the
//! ordinary path, so that what a client may rely on for either holds here too.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    selector::LabelSelector,
    status::{Cause, Status},
};
use sheaf_plan::disruption::{self, Eviction};
use sheaf_store::cache::At;

use super::{all, forbidden, is};
use crate::{
    body,
    core::{Core, Cx, accepts},
    extension::{Operation, Said, Write},
    http::{self as answers, Outcome, Request},
    internal,
    registry::Row,
};

/// Writes that lost a race against another are computed again at most this often.
const RETRIES: usize = 16;
const TOO_MANY: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// POST to a subresource of a stored object; 405 where there is nothing to post to.
pub(crate) async fn create(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    accepts(cx)?;
    let (api_version, kind) = match cx.path.subresource.as_str() {
        "eviction" if is(row, "", "pods") => ("policy/v1", "Eviction"),
        "binding" if is(row, "", "pods") => ("v1", "Binding"),
        _ => return Err(Status::method_not_allowed()),
    };
    let mut given = read(cx, request, kind).await?;
    object::set_gvk(&mut given, api_version, kind);
    object::set_name(&mut given, &cx.path.name);
    object::set_namespace(&mut given, &cx.path.namespace);
    admit(core, cx, row, &mut given).await?;
    match kind {
        "Eviction" => evict(core, cx, row, &given).await,
        _ => bind(core, cx, row, &given).await,
    }
}

/// Shows admission what is posted.
async fn admit(core: &Arc<Core>, cx: &mut Cx, row: &Row, given: &mut Value) -> Result<(), Status> {
    let said = Said::default();
    let dry_run = is_dry(cx, given);
    let options = || {
        let mut options = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
        if dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    };
    let subresource = cx.path.subresource.clone();
    let write = Write {
        row,
        operation: Operation::Create,
        old: None,
        subresource: &subresource,
        dry_run,
        options: &options,
        said: &said,
    };
    for plugin in &core.admission {
        plugin.post(core, cx, &write, given).await?;
    }
    cx.warnings.extend(said.take_warnings());
    cx.audit.iter().for_each(|record| record.annotate_all(said.take_annotations()));
    Ok(())
}

/// Whether nothing is to be done: by the request, or by the options that an eviction carries.
fn is_dry(cx: &Cx, given: &Value) -> bool {
    let carried = given.pointer("/deleteOptions/dryRun").and_then(Value::as_array);
    cx.query.all("dryRun").any(|v| !v.is_empty()) || carried.is_some_and(|list| !list.is_empty())
}

/// 201 with a Status, as both subresources answer.
fn done() -> Outcome {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answers::json(StatusCode::CREATED, &status))
}

/// The body, whose name has to be that of the path.
async fn read(cx: &Cx, request: Request, what: &str) -> Result<Value, Status> {
    let given = body::object(request.into_body(), &cx.headers).await?.value;
    let name = object::name(&given);
    if !name.is_empty() && name != cx.path.name {
        return Err(Status::bad_request(format!("name in URL does not match name in {what} object")));
    }
    Ok(given)
}

fn pod_path(cx: &Cx) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", cx.path.namespace, cx.path.name)
}

async fn evict(core: &Arc<Core>, cx: &Cx, row: &Row, given: &Value) -> Outcome {
    let mut options = given.get("deleteOptions").filter(|o| o.is_object()).cloned().unwrap_or(json!({}));
    let dry_run = is_dry(cx, given);
    options["apiVersion"] = json!("v1");
    options["kind"] = json!("DeleteOptions");
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    for _ in 0..RETRIES {
        let pod = internal::get(core, &pod_path(cx)).await?;
        let pod = pod.ok_or_else(|| Status::not_found(row.info.resource(), &cx.path.name))?;
        preconditions(row, &options, &pod)?;
        crate::kubevirt::intercept_eviction(core, &pod, dry_run).await?;
        if !disruption::ignores_budgets(&pod) {
            match charge(core, cx, row, &pod, dry_run).await {
                // The budget changed meanwhile.
                Err(status) if status.code == 409 => continue,
                other => other?,
            }
        }
        let uid = object::uid(&pod);
        if options.pointer("/preconditions/uid").is_none() {
            object::entry_map(object::as_map(&mut options), "preconditions").insert("uid".into(), json!(uid));
        }
        internal::call(core, Method::DELETE, &pod_path(cx), "application/json", Some(&options)).await?;
        return done();
    }
    Err(Status::conflict(row.info.resource(), &cx.path.name, Status::STALE))
}

/// What the client insists on is checked before a budget is charged.
fn preconditions(row: &Row, options: &Value, pod: &Value) -> Result<(), Status> {
    for (field, what, there) in [
        ("uid", "UID", object::uid(pod)),
        ("resourceVersion", "ResourceVersion", object::resource_version(pod)),
    ] {
        let wanted = options["preconditions"][field].as_str().filter(|wanted| *wanted != there);
        if let Some(wanted) = wanted {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {there}"
            );
            return Err(Status::conflict(row.info.resource(), object::name(pod), &why));
        }
    }
    Ok(())
}

/// Asks the pod's budget, and charges it.
async fn charge(core: &Arc<Core>, cx: &Cx, row: &Row, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let namespace = &cx.path.namespace;
    let budgets = all(core, "policy", "poddisruptionbudgets", namespace, At::Latest).await?;
    let selects = |budget: &Value| {
        let selector = budget["spec"].get("selector").filter(|s| !s.is_null());
        selector.and_then(|s| LabelSelector::from_object(s).ok()).is_some_and(|s| s.matches(pod))
    };
    let mut found = budgets.iter().map(|(_, budget)| budget).filter(|budget| selects(budget));
    let Some(budget) = found.next() else { return Ok(()) };
    if found.next().is_some() {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "InternalError", why));
    }
    let name = object::name(pod);
    match disruption::evict(pod, budget, cx.now) {
        Eviction::Delete => Ok(()),
        Eviction::Refuse(why) => Err(forbidden(row, name, &why)),
        Eviction::Wait { cause, retry_after } => {
            let mut status = Status::new(429, "TooManyRequests", TOO_MANY);
            status.details.retry_after_seconds = (retry_after > 0).then_some(retry_after);
            let reason = "DisruptionBudget".into();
            status.details.causes.push(Cause { reason, message: cause, field: String::new() });
            Err(status)
        }
        Eviction::Charge(_) if dry_run => Ok(()),
        Eviction::Charge(status) => {
            let path = format!(
                "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{}/status",
                object::name(budget)
            );
            let version = object::resource_version(budget);
            let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
            internal::merge(core, &path, &patch).await.map(drop)
        }
    }
}

async fn bind(core: &Arc<Core>, cx: &Cx, row: &Row, given: &Value) -> Outcome {
    let node = given["target"]["name"].as_str().unwrap_or_default();
    let kind = given["target"]["kind"].as_str().unwrap_or_default();
    if node.is_empty() || !matches!(kind, "" | "Node") {
        let why = if node.is_empty() {
            "target.name: Required value"
        } else {
            "target.kind: must be empty or 'Node'"
        };
        return Err(Status::new(422, "Invalid", format!("Binding \"{}\" is invalid: {why}", cx.path.name)));
    }
    let pod = internal::get(core, &pod_path(cx)).await?;
    let pod = pod.ok_or_else(|| Status::not_found(row.info.resource(), &cx.path.name))?;
    let refuse = |why: String| Err(Status::conflict(row.info.resource(), &cx.path.name, &why));
    if object::is_deleting(&pod) {
        return refuse(format!("pod {} is being deleted, cannot be assigned to a host", cx.path.name));
    }
    let there = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !there.is_empty() {
        return refuse(format!("pod {} is already assigned to node \"{there}\"", cx.path.name));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refuse(format!("pod {} has non-empty .spec.schedulingGates", cx.path.name));
    }
    if is_dry(cx, given) {
        return done();
    }
    let version = object::resource_version(&pod);
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"nodeName": node}});
    internal::merge(core, &pod_path(cx), &patch).await?;
    let scheduled =
        json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": object::time(cx.now)}]);
    let status = json!({"status": {"conditions": scheduled}});
    internal::merge(core, &format!("{}/status", pod_path(cx)), &status).await?;
    done()
}
