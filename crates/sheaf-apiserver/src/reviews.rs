//! What users may ask about themselves: SelfSubjectAccessReview, SelfSubjectRulesReview, SelfSubjectReview, and
//! (for masters) SubjectAccessReview. Answered through the [`Authorizer`](crate::authz::Authorizer); nothing is stored.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sheaf_meta::status::Status;

use crate::{
    authn::UserInfo,
    authz::Attributes,
    body,
    core::{Core, Cx, created},
    extension::{Extension, VirtualGroup, VirtualResource},
    http::{Outcome, Request},
    verb::Verb,
};

/// The extension.
pub(crate) struct Reviews;

impl Extension for Reviews {
    fn groups(&self) -> Vec<VirtualGroup> {
        let resource = |name: &str, kind: &str| VirtualResource {
            name: name.into(),
            kind: kind.into(),
            namespaced: false,
            verbs: vec!["create".into()],
        };
        vec![
            VirtualGroup {
                group: "authentication.k8s.io".into(),
                version: "v1".into(),
                resources: vec![resource("selfsubjectreviews", "SelfSubjectReview")],
            },
            VirtualGroup {
                group: "authorization.k8s.io".into(),
                version: "v1".into(),
                resources: vec![
                    resource("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
                    resource("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
                    resource("subjectaccessreviews", "SubjectAccessReview"),
                ],
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
            if cx.verb != Verb::Create || !cx.path.name.is_empty() {
                return Err(Status::method_not_allowed());
            }
            let mut review = body::object(request.into_body(), &cx.headers).await?.value;
            let status = match cx.path.resource.as_str() {
                "selfsubjectreviews" => json!({"userInfo": user_json(&cx.user)}),
                "selfsubjectrulesreviews" => rules(core, &cx.user, &review),
                "selfsubjectaccessreviews" => access(core, &cx.user, &review),
                "subjectaccessreviews" => access(core, &subject(&review), &review),
                _ => return Err(Status::no_such_path()),
            };
            review["status"] = status;
            if !review.get("metadata").is_some_and(Value::is_object) {
                review["metadata"] = json!({});
            }
            review["metadata"]["creationTimestamp"] = Value::Null;
            Ok(created(&review))
        })
    }
}

fn user_json(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.username, "groups": user.groups});
    if !user.uid.is_empty() {
        out["uid"] = json!(user.uid);
    }
    out
}

fn subject(review: &Value) -> UserInfo {
    let text = |p: &str| review.pointer(p).and_then(Value::as_str).unwrap_or_default();
    let groups = review.pointer("/spec/groups").and_then(Value::as_array);
    UserInfo {
        username: text("/spec/user").into(),
        uid: text("/spec/uid").into(),
        groups: groups.into_iter().flatten().filter_map(|g| g.as_str().map(String::from)).collect(),
    }
}

fn access(core: &Core, user: &UserInfo, review: &Value) -> Value {
    let text = |p: &str| review.pointer(p).and_then(Value::as_str).unwrap_or_default();
    let what = if review.pointer("/spec/nonResourceAttributes").is_some_and(Value::is_object) {
        Attributes {
            verb: text("/spec/nonResourceAttributes/verb"),
            path: text("/spec/nonResourceAttributes/path"),
            ..Attributes::default()
        }
    } else {
        Attributes {
            verb: text("/spec/resourceAttributes/verb"),
            group: text("/spec/resourceAttributes/group"),
            resource: text("/spec/resourceAttributes/resource"),
            subresource: text("/spec/resourceAttributes/subresource"),
            namespace: text("/spec/resourceAttributes/namespace"),
            name: text("/spec/resourceAttributes/name"),
            path: "",
        }
    };
    let decision = core.authorizer.decide(user, what);
    let mut out = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        out["reason"] = json!(decision.reason);
    }
    out
}

fn rules(core: &Core, user: &UserInfo, review: &Value) -> Value {
    let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or("default");
    let rules: Vec<Value> = core
        .authorizer
        .rules(user, namespace)
        .iter()
        .map(|r| json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources}))
        .collect();
    let public = json!({"verbs": ["get"], "nonResourceURLs": crate::authz::PUBLIC_PATHS});
    json!({"resourceRules": rules, "nonResourceRules": [public], "incomplete": false})
}
