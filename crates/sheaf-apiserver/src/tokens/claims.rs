//! What a service account's token claims, and whether it holds at a moment. Pure; sentences are Kubernetes'.

use serde_json::{Value, json};
use sheaf_meta::object;

use crate::authn::{CREDENTIAL_ID, UserInfo, service_account_name};

/// Clocks of two machines may differ by so much.
const LEEWAY_S: i64 = 60;
/// Issuer of the tokens that are kept in Secrets.
pub(crate) const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// An object that a token names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ref {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Ref {
    fn read(value: Option<&Value>) -> Option<Self> {
        let value = value.filter(|v| v.is_object())?;
        let text = |field: &str| object::str_at(value, &[field]).to_owned();
        Some(Self { name: text("name"), uid: text("uid") })
    }

    fn json(&self) -> Value {
        match self.uid.is_empty() {
            true => json!({"name": self.name}),
            false => json!({"name": self.name, "uid": self.uid}),
        }
    }
}

/// What a token is bound to besides its account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Bound {
    /// Nothing.
    #[default]
    No,
    /// A Pod, and the Node that it ran on.
    Pod(Ref, Option<Ref>),
    /// A Secret.
    Secret(Ref),
    /// A Node.
    Node(Ref),
    /// The Secret that it is kept in (by name), as tokens were before they ended.
    Legacy(String),
}

/// The claims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Claims {
    pub(crate) namespace: String,
    pub(crate) account: Ref,
    pub(crate) audiences: Vec<String>,
    /// Seconds since the epoch; `None` where it never ends, or has no beginning.
    pub(crate) expires: Option<i64>,
    pub(crate) not_before: Option<i64>,
    pub(crate) issued: Option<i64>,
    pub(crate) id: String,
    pub(crate) bound: Bound,
}

impl Claims {
    /// Reads the claims of a token of either kind; `None` if they are not such.
    pub(crate) fn read(claims: &Value, issuer: &str) -> Option<Self> {
        let text = |field: &str| object::str_at(claims, &[field]).to_owned();
        let number = |field: &str| claims.get(field).and_then(Value::as_f64).map(|n| n as i64);
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(list)) => list.iter().filter_map(|a| a.as_str().map(String::from)).collect(),
            _ => Vec::new(),
        };
        let mut read = Self {
            audiences,
            expires: number("exp"),
            not_before: number("nbf"),
            issued: number("iat"),
            id: text("jti"),
            ..Self::default()
        };
        if text("iss") == LEGACY_ISSUER {
            let of = |what: &str| text(&format!("{LEGACY_ISSUER}/{what}"));
            read.namespace = of("namespace");
            read.account = Ref { name: of("service-account.name"), uid: of("service-account.uid") };
            read.bound = Bound::Legacy(of("secret.name"));
        } else if text("iss") == issuer {
            let private = claims.get("kubernetes.io")?;
            read.namespace = object::str_at(private, &["namespace"]).into();
            read.account = Ref::read(private.get("serviceaccount"))?;
            let part = |name: &str| Ref::read(private.get(name));
            read.bound = match (part("pod"), part("secret"), part("node")) {
                (Some(pod), _, node) => Bound::Pod(pod, node),
                (None, Some(secret), _) => Bound::Secret(secret),
                (None, None, Some(node)) => Bound::Node(node),
                (None, None, None) => Bound::No,
            };
        } else {
            return None;
        }
        let subject = service_account_name(&read.namespace, &read.account.name);
        (text("sub") == subject && !read.namespace.is_empty() && !read.account.name.is_empty())
            .then_some(read)
    }

    /// The claims as a token has them.
    pub(crate) fn write(&self, issuer: &str) -> Value {
        let subject = service_account_name(&self.namespace, &self.account.name);
        if let Bound::Legacy(secret) = &self.bound {
            let key = |what: &str| format!("{LEGACY_ISSUER}/{what}");
            return json!({
                "iss": LEGACY_ISSUER, "sub": subject, key("namespace"): self.namespace,
                key("secret.name"): secret, key("service-account.name"): self.account.name,
                key("service-account.uid"): self.account.uid,
            });
        }
        let mut private = json!({"namespace": self.namespace, "serviceaccount": self.account.json()});
        match &self.bound {
            Bound::No | Bound::Legacy(_) => {}
            Bound::Pod(pod, node) => {
                private["pod"] = pod.json();
                if let Some(node) = node {
                    private["node"] = node.json();
                }
            }
            Bound::Secret(secret) => private["secret"] = secret.json(),
            Bound::Node(node) => private["node"] = node.json(),
        }
        let mut out = json!({
            "iss": issuer, "sub": subject, "aud": self.audiences, "jti": self.id, "kubernetes.io": private,
        });
        for (field, value) in [("exp", self.expires), ("nbf", self.not_before), ("iat", self.issued)] {
            if let Some(value) = value {
                out[field] = json!(value);
            }
        }
        out
    }

    /// Whether it is its time.
    pub(crate) fn timely(&self, now_s: i64) -> Result<(), &'static str> {
        if self.not_before.is_some_and(|t| now_s + LEEWAY_S < t) {
            return Err("service account token is not valid yet");
        }
        if self.expires.is_some_and(|t| now_s - LEEWAY_S > t) {
            return Err("service account token has expired");
        }
        if self.issued.is_some_and(|t| now_s + LEEWAY_S < t) {
            return Err("service account token is issued in the future");
        }
        Ok(())
    }

    /// For which of the audiences that somebody accepts it is. A token that names none is for the API server.
    pub(crate) fn meant_for(&self, accepted: &[String], own: &[String]) -> Result<Vec<String>, String> {
        let named = if self.audiences.is_empty() { own } else { &self.audiences };
        let both: Vec<String> = named.iter().filter(|a| accepted.contains(a)).cloned().collect();
        if both.is_empty() {
            let quoted = crate::rbac::quoted;
            return Err(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(named),
                quoted(accepted)
            ));
        }
        Ok(both)
    }

    /// Who comes with it.
    pub(crate) fn user(&self) -> UserInfo {
        let mut user = UserInfo::service_account(&self.namespace, &self.account.name, &self.account.uid);
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.into()]);
            }
        };
        let node = match &self.bound {
            Bound::Pod(pod, node) => {
                add("pod-name", &pod.name);
                add("pod-uid", &pod.uid);
                node.as_ref()
            }
            Bound::Node(node) => Some(node),
            _ => None,
        };
        if let Some(node) = node {
            add("node-name", &node.name);
            add("node-uid", &node.uid);
        }
        if !self.id.is_empty() {
            user.extra.insert(CREDENTIAL_ID.into(), vec![format!("JTI={}", self.id)]);
        }
        user
    }
}

/// Whether an object that a token is bound to is still the same, and not gone: a deletion counts when its time is up.
pub(crate) fn still_there(kind: &str, found: Option<&Value>, uid: &str, now_s: i64) -> Result<(), String> {
    let invalidated = || Err("service account token has been invalidated".to_owned());
    let Some(found) = found else { return invalidated() };
    let deleted = object::deletion_timestamp(found).parse::<jiff::Timestamp>().ok();
    if deleted.is_some_and(|at| at.as_second() < now_s - LEEWAY_S) {
        return invalidated();
    }
    if object::uid(found) == uid {
        return Ok(());
    }
    let claim = match kind {
        "service account" => "claim".to_owned(),
        kind => format!("service account {} ref claim", kind.to_lowercase()),
    };
    Err(format!("{kind} UID ({}) does not match {claim} ({uid})", object::uid(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Ref {
        Ref { name: name.into(), uid: format!("{name}-uid") }
    }

    fn claims(bound: Bound) -> Claims {
        Claims {
            namespace: "ns".into(),
            account: reference("robot"),
            audiences: vec!["api".into(), "vault".into()],
            expires: Some(1000),
            not_before: Some(100),
            issued: Some(100),
            id: "j".into(),
            bound,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for bound in [
            Bound::No,
            Bound::Pod(reference("p"), Some(reference("n"))),
            Bound::Pod(reference("p"), None),
            Bound::Secret(reference("s")),
            Bound::Node(reference("n")),
        ] {
            let claims = claims(bound);
            assert_eq!(Claims::read(&claims.write("iss"), "iss"), Some(claims.clone()));
            assert_eq!(Claims::read(&claims.write("iss"), "other"), None, "another cluster's");
        }
        let legacy = Claims {
            namespace: "ns".into(),
            account: reference("robot"),
            bound: Bound::Legacy("s".into()),
            ..Claims::default()
        };
        assert_eq!(Claims::read(&legacy.write("iss"), "iss"), Some(legacy));
        let mut other = claims(Bound::No).write("iss");
        other["sub"] = json!("system:serviceaccount:ns:admin");
        assert_eq!(Claims::read(&other, "iss"), None, "subject and account differ");
    }

    #[test]
    fn times_and_audiences() {
        let claims = claims(Bound::No);
        for (now, expected) in [
            (39, Err("service account token is not valid yet")),
            (40, Ok(())),
            (1060, Ok(())),
            (1061, Err("service account token has expired")),
        ] {
            assert_eq!(claims.timely(now), expected, "{now}");
        }
        let late = Claims { not_before: None, issued: Some(500), ..claims.clone() };
        assert_eq!(late.timely(400), Err("service account token is issued in the future"));
        let list = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let own = list("api");
        assert_eq!(claims.meant_for(&list("api x"), &own), Ok(list("api")));
        assert_eq!(
            claims.meant_for(&list("x y"), &own).unwrap_err(),
            r#"token audiences ["api" "vault"] is invalid for the target audiences ["x" "y"]"#
        );
        let without = Claims { audiences: Vec::new(), ..claims };
        assert_eq!(without.meant_for(&own, &own), Ok(list("api")));
    }

    #[test]
    fn who_comes_with_it() {
        let user = claims(Bound::Pod(reference("p"), Some(reference("n")))).user();
        assert_eq!(
            (user.username.as_str(), user.uid.as_str()),
            ("system:serviceaccount:ns:robot", "robot-uid")
        );
        let extra: Vec<(&str, &str)> =
            user.extra.iter().map(|(k, v)| (k.rsplit('/').next().unwrap(), v[0].as_str())).collect();
        assert_eq!(
            extra,
            [
                ("credential-id", "JTI=j"),
                ("node-name", "n"),
                ("node-uid", "n-uid"),
                ("pod-name", "p"),
                ("pod-uid", "p-uid")
            ]
        );
    }

    #[test]
    fn bound_objects_have_to_be_the_same() {
        let pod = |uid: &str, deleted: Option<&str>| {
            let mut pod = json!({"metadata": {"uid": uid}});
            if let Some(at) = deleted {
                pod["metadata"]["deletionTimestamp"] = json!(at);
            }
            pod
        };
        let check = |found: Option<&Value>| still_there("pod", found, "u", 1000);
        let gone = Err("service account token has been invalidated".to_owned());
        assert_eq!(check(None), gone);
        assert_eq!(check(Some(&pod("u", None))), Ok(()));
        assert_eq!(check(Some(&pod("u", Some("1970-01-01T00:16:00Z")))), Ok(()), "960: going");
        assert_eq!(check(Some(&pod("u", Some("1970-01-01T00:15:00Z")))), gone, "900: gone");
        assert_eq!(
            check(Some(&pod("v", None))),
            Err("pod UID (v) does not match service account pod ref claim (u)".to_owned())
        );
        assert_eq!(
            still_there("service account", Some(&pod("v", None)), "u", 1000),
            Err("service account UID (v) does not match claim (u)".to_owned())
        );
    }
}
