//! The paths of tokens: `serviceaccounts/NAME/token`, TokenReview, and the issuer's discovery documents, by which others verify
//! tokens without asking.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use sheaf_meta::status::Status;

use super::{ISSUER, Tokens, jwt};
use crate::{
    authz::Attributes,
    body,
    core::{Core, Cx, created},
    extension::{Extension, VirtualGroup, VirtualResource},
    http::{Outcome, Request, answer},
    verb::Verb,
};

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// Requests for tokens, and the issuer's documents.
pub(crate) struct Endpoints(pub(crate) Arc<Tokens>);

impl Extension for Endpoints {
    fn groups(&self) -> Vec<VirtualGroup> {
        vec![VirtualGroup {
            group: String::new(),
            version: "v1".into(),
            resources: vec![VirtualResource {
                name: "serviceaccounts/token".into(),
                kind: "TokenRequest".into(),
                namespaced: true,
                verbs: vec!["create".into()],
            }],
        }]
    }

    fn resource<'a>(
        &'a self,
        core: &'a Arc<Core>,
        cx: &'a mut Cx,
        request: Request,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            if cx.path.namespace.is_empty() || !cx.path.rest.is_empty() {
                return Err(Status::no_such_path());
            }
            if cx.verb != Verb::Create {
                return Err(Status::method_not_allowed());
            }
            let wanted = body::object(request.into_body(), &cx.headers).await?.value;
            let issued = self.0.issue(core, cx, wanted).await?;
            Ok(created(&issued))
        })
    }

    fn claims(&self, path: &str) -> bool {
        path == CONFIGURATION || path == KEYS
    }

    fn path<'a>(&'a self, core: &'a Arc<Core>, cx: &'a mut Cx, request: Request) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let path = request.uri().path().trim_end_matches('/').to_owned();
            self.document(core, cx, &path, request.method()).await
        })
    }
}

impl Endpoints {
    async fn document(&self, core: &Core, cx: &Cx, path: &str, method: &Method) -> Outcome {
        core.authorize_request(cx, Attributes { verb: "get", path, ..Attributes::default() }).await?;
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let (content_type, document) = match path {
            KEYS => ("application/jwk-set+json", self.0.keys.jwks()),
            _ => (
                "application/json",
                json!({
                    "issuer": ISSUER, "jwks_uri": self.0.jwks_uri, "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": [jwt::ALGORITHM],
                }),
            ),
        };
        let mut response =
            answer(StatusCode::OK, HeaderValue::from_static(content_type), document.to_string());
        let cached = HeaderValue::from_static("public, max-age=3600");
        response.headers_mut().insert(header::CACHE_CONTROL, cached);
        Ok(response)
    }
}

/// TokenReview.
pub(crate) struct Reviews(pub(crate) Arc<Tokens>);

impl Extension for Reviews {
    fn groups(&self) -> Vec<VirtualGroup> {
        vec![VirtualGroup {
            group: "authentication.k8s.io".into(),
            version: "v1".into(),
            resources: vec![VirtualResource {
                name: "tokenreviews".into(),
                kind: "TokenReview".into(),
                namespaced: false,
                verbs: vec!["create".into()],
            }],
        }]
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
            let status = self.review(core, cx, &review).await?;
            crate::reviews::complete(&mut review, "authentication.k8s.io/v1", "TokenReview", status);
            Ok(created(&review))
        })
    }
}

impl Reviews {
    async fn review(&self, core: &Core, cx: &Cx, review: &Value) -> Result<Value, Status> {
        let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
        let audiences: Vec<String> = audiences.filter_map(|a| a.as_str().map(String::from)).collect();
        Ok(match self.0.check(core, token, &audiences, cx.now).await {
            Ok(Some(proof)) => json!({
                "authenticated": true, "user": proof.user.to_json(), "audiences": proof.audiences,
            }),
            Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        })
    }
}
