//! A webhook as its configuration describes it, ready for use. Pure.

use std::{sync::OnceLock, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sheaf_cel::conditions::Conditions;
use sheaf_meta::object;

use super::client::Client;
use crate::admission::{constraint::Constraint, list, text};

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `clientConfig.url`.
    Url(String),
    /// `clientConfig.service`.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
        /// With a slash in front.
        path: String,
    },
}

/// Versions of AdmissionReview that are spoken.
const REVIEWS: &[&str] = &["v1", "v1beta1"];

/// One entry of a configuration's `webhooks`.
pub(super) struct Hook {
    /// Name of the configuration.
    pub(super) configuration: String,
    /// Its own name.
    pub(super) name: String,
    /// Where it is.
    pub(super) target: Target,
    /// PEM of the authorities that vouch for it; empty for those of the system.
    pub(super) authorities: Vec<u8>,
    /// What it wants to see.
    pub(super) constraint: Constraint,
    /// Whether a request fails where the webhook does.
    pub(super) fail: bool,
    /// `matchConditions`.
    pub(super) conditions: Conditions,
    /// How long it may take.
    pub(super) timeout: Duration,
    /// Whether it may be asked in a dry run.
    pub(super) dry_run: bool,
    /// Whether it is asked again when a later one changed the object.
    pub(super) reinvoke: bool,
    /// The version of AdmissionReview that it speaks.
    pub(super) review: &'static str,
    /// Its connections, made when it is first called.
    pub(super) client: OnceLock<Result<Client, String>>,
}

/// The webhooks of a stored configuration, in its order. One that cannot be read is left out, and said why: validation
/// lets none in.
pub(super) fn hooks(configuration: &Value) -> Vec<Hook> {
    let name = object::name(configuration);
    let read = |value| match hook(name, value) {
        Ok(hook) => Some(hook),
        Err(why) => {
            let webhook = text(value, "name");
            tracing::error!(configuration = name, webhook, why, "a webhook cannot be used");
            None
        }
    };
    list(configuration, "webhooks").filter_map(read).collect()
}

fn hook(configuration: &str, value: &Value) -> Result<Hook, String> {
    let client = value.get("clientConfig").unwrap_or(&Value::Null);
    let bundle = STANDARD.decode(text(client, "caBundle"));
    let seconds = value.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10).clamp(1, 30);
    let spoken = list(value, "admissionReviewVersions").filter_map(Value::as_str);
    let review = spoken.filter_map(|v| REVIEWS.iter().find(|r| **r == v)).copied().next();
    Ok(Hook {
        configuration: configuration.into(),
        name: text(value, "name").into(),
        target: target(client)?,
        authorities: bundle.map_err(|e| format!("clientConfig.caBundle: {e}"))?,
        constraint: Constraint::read(value, "rules")?,
        fail: text(value, "failurePolicy") != "Ignore",
        conditions: Conditions::compile(value.get("matchConditions").unwrap_or(&Value::Null)),
        timeout: Duration::from_secs(seconds),
        dry_run: matches!(text(value, "sideEffects"), "None" | "NoneOnDryRun"),
        reinvoke: text(value, "reinvocationPolicy") == "IfNeeded",
        review: review.unwrap_or("v1"),
        client: OnceLock::new(),
    })
}

fn target(client: &Value) -> Result<Target, String> {
    let url = text(client, "url");
    if !url.is_empty() {
        return Ok(Target::Url(url.into()));
    }
    let service = client.get("service").filter(|s| s.is_object());
    let service = service.ok_or("clientConfig has neither url nor service")?;
    let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
    let path = text(service, "path");
    Ok(Target::Service {
        namespace: text(service, "namespace").into(),
        name: text(service, "name").into(),
        port: u16::try_from(port).map_err(|_| format!("clientConfig.service.port: {port}"))?,
        path: if path.starts_with('/') { path.into() } else { format!("/{path}") },
    })
}

impl Hook {
    /// The URL as messages name it, with the time that the webhook has.
    pub(super) fn url(&self) -> String {
        let timeout = format!("timeout={}s", self.timeout.as_secs());
        match &self.target {
            Target::Url(url) => {
                let joint = if url.contains('?') { '&' } else { '?' };
                format!("{url}{joint}{timeout}")
            }
            Target::Service { namespace, name, port, path } => {
                format!("https://{name}.{namespace}.svc:{port}{path}?{timeout}")
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::webhooks) fn one(webhook: Value) -> Hook {
        let mut whole = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:1/x"},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}],
        });
        for (key, value) in webhook.as_object().unwrap() {
            whole[key] = value.clone();
        }
        hook("c", &whole).unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn what_is_not_said_is_as_upstream() {
        let hook = one(json!({}));
        assert!(hook.fail && hook.constraint.equivalent && hook.dry_run && !hook.reinvoke);
        assert_eq!(hook.timeout, Duration::from_secs(10));
        assert_eq!(hook.url(), "https://127.0.0.1:1/x?timeout=10s");
        let service = json!({"clientConfig": {"service": {"namespace": "n", "name": "s", "path": "p"}},
            "timeoutSeconds": 3, "admissionReviewVersions": ["v9", "v1beta1", "v1"]});
        let hook = one(service);
        assert_eq!(hook.url(), "https://s.n.svc:443/p?timeout=3s");
        assert_eq!(hook.review, "v1beta1");
    }

    #[test]
    fn a_webhook_that_cannot_be_read_is_left_out() {
        let configuration = json!({"metadata": {"name": "c"}, "webhooks": [
            {"name": "bad", "clientConfig": {}}, {"name": "good", "clientConfig": {"url": "https://h/"}}]});
        let names: Vec<String> = hooks(&configuration).into_iter().map(|h| h.name).collect();
        assert_eq!(names, ["good"]);
    }
}
