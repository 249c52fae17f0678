//! Questions about access, answered and not stored: SelfSubjectReview (who am I), SelfSubjectAccessReview and
//! SelfSubjectRulesReview (what may I), SubjectAccessReview and LocalSubjectAccessReview (what may somebody).
//!
//! What is asked is read and checked in [`spec`]; the answers are the [`Authorizer`](crate::authz::Authorizer)'s.

mod spec;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};

use crate::{
    authn::UserInfo,
    body,
    core::{Core, Cx, created},
    extension::{Extension, VirtualGroup, VirtualResource},
    http::{Outcome, Request},
    verb::Verb,
};

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The extension.
pub(crate) struct Reviews;

/// Plural, kind, and whether it lives in namespaces.
const ACCESS: &[(&str, &str, bool)] = &[
    ("localsubjectaccessreviews", "LocalSubjectAccessReview", true),
    ("selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    ("selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    ("subjectaccessreviews", "SubjectAccessReview", false),
];

impl Extension for Reviews {
    fn groups(&self) -> Vec<VirtualGroup> {
        let resource = |(name, kind, namespaced): (&str, &str, bool)| VirtualResource {
            name: name.into(),
            kind: kind.into(),
            namespaced,
            verbs: vec!["create".into()],
        };
        vec![
            VirtualGroup {
                group: AUTHENTICATION.into(),
                version: "v1".into(),
                resources: vec![resource(("selfsubjectreviews", "SelfSubjectReview", false))],
            },
            VirtualGroup {
                group: AUTHORIZATION.into(),
                version: "v1".into(),
                resources: ACCESS.iter().copied().map(resource).collect(),
            },
        ]
    }

    fn resource<'a>(
        &'a self,
        core: &'a Arc<Core>,
        cx: &'a mut Cx,
        request: Request,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let plural = cx.path.resource.clone();
            let local = plural == "localsubjectaccessreviews";
            if !cx.path.name.is_empty() || local == cx.path.namespace.is_empty() {
                return Err(Status::no_such_path());
            }
            if cx.verb != Verb::Create {
                return Err(Status::method_not_allowed());
            }
            let mut review = body::object(request.into_body(), &cx.headers).await?.value;
            if plural == "selfsubjectreviews" {
                let status = json!({"userInfo": cx.user.to_json()});
                complete(&mut review, "authentication.k8s.io/v1", "SelfSubjectReview", status);
                return Ok(created(&review));
            }
            let kind = ACCESS.iter().find(|(name, _, _)| *name == plural).map_or("", |(_, kind, _)| kind);
            if local && object::namespace(&review).is_empty() {
                object::set_namespace(&mut review, &cx.path.namespace);
            }
            spec::validate(kind, &review, &cx.path.namespace)?;
            // What somebody wrote before asking counts.
            core.access.settle().await;
            let status = match kind {
                "SelfSubjectRulesReview" => rules(core, &cx.user, &review)?,
                "SelfSubjectAccessReview" => access(core, &cx.user, &review),
                _ => access(core, &spec::subject(&review), &review),
            };
            complete(&mut review, "authorization.k8s.io/v1", kind, status);
            Ok(created(&review))
        })
    }
}

/// Makes the answer of a question: its kind and status; metadata as one has it that is not stored.
pub(crate) fn complete(review: &mut Value, api_version: &str, kind: &str, status: Value) {
    object::set_gvk(review, api_version, kind);
    object::metadata_mut(review).entry("creationTimestamp").or_insert(Value::Null);
    review["status"] = status;
}

fn access(core: &Core, user: &UserInfo, review: &Value) -> Value {
    let decision = core.authorizer.decide(user, spec::attributes(review));
    let mut out = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        out["reason"] = json!(decision.reason);
    }
    out
}

fn rules(core: &Core, user: &UserInfo, review: &Value) -> Result<Value, Status> {
    let namespace = object::str_at(review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let rules = core.authorizer.rules(user, namespace);
    let resources: Vec<Value> = rules
        .resources
        .iter()
        .map(|r| {
            let mut rule = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                rule["resourceNames"] = json!(r.names);
            }
            rule
        })
        .collect();
    let paths: Vec<Value> =
        rules.paths.iter().map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.paths})).collect();
    let mut out = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": rules.incomplete,
    });
    if !rules.error.is_empty() {
        out["evaluationError"] = json!(rules.error);
    }
    Ok(out)
}
