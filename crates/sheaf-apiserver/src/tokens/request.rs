//! TokenRequest: a token for a service account, for a while and a purpose. Reads what it is to be bound to; stores nothing.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sheaf_meta::{
    object,
    status::{FieldError, ResourceRef, Status},
};

use super::{
    Tokens,
    claims::{Bound, Claims, Ref},
    stored,
};
use crate::core::{Core, Cx};

const GROUP: &str = "authentication.k8s.io";
/// Lives so long unless it says otherwise.
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

const ACCOUNTS: ResourceRef<'static> = ResourceRef { group: "", plural: "serviceaccounts" };

/// What a request asks for.
struct Wanted {
    audiences: Vec<String>,
    seconds: i64,
}

fn read(request: &Value, own: &[String]) -> Result<Wanted, Status> {
    let spec = request.get("spec").cloned().unwrap_or_default();
    let list = spec.get("audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = list.filter_map(|a| a.as_str().map(String::from)).collect();
    if audiences.is_empty() {
        audiences = own.to_vec();
    }
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    let why = match seconds {
        ..MIN_SECONDS => "may not specify a duration less than 10 minutes",
        MIN_SECONDS..=MAX_SECONDS => return Ok(Wanted { audiences, seconds }),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let error = FieldError::invalid("spec.expirationSeconds", &json!(seconds), why);
    Err(Status::invalid(GROUP, "TokenRequest", object::name(request), &[error]))
}

impl Tokens {
    /// The answer to a request for the account that the path names.
    pub(super) async fn issue(&self, core: &Core, cx: &Cx, mut request: Value) -> Result<Value, Status> {
        let (namespace, name) = (cx.path.namespace.as_str(), cx.path.name.as_str());
        let same = |given: &str, path: &str| given.is_empty() || given == path;
        if !same(object::name(&request), name) {
            return Err(Status::bad_request(
                "the name of the provided object does not match the name sent on the request",
            ));
        }
        if !same(object::namespace(&request), namespace) {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let account = stored(core, "serviceaccounts", namespace, name).await.map_err(Status::internal)?;
        let account = account.ok_or_else(|| Status::not_found(ACCOUNTS, name))?;
        let wanted = read(&request, &self.audiences)?;
        let bound = bound(core, cx, &request).await?;
        let now = cx.now.as_second();
        let claims = Claims {
            namespace: namespace.into(),
            account: Ref { name: name.into(), uid: object::uid(&account).into() },
            audiences: wanted.audiences.clone(),
            expires: Some(now.saturating_add(wanted.seconds)),
            not_before: Some(now),
            issued: Some(now),
            id: uuid::Uuid::new_v4().to_string(),
            bound,
        };
        let token = self.sign(&claims).map_err(Status::internal)?;
        object::set_gvk(&mut request, "authentication.k8s.io/v1", "TokenRequest");
        object::set_name(&mut request, name);
        object::set_namespace(&mut request, namespace);
        object::set_creation_timestamp(&mut request, cx.now);
        if !request["spec"].is_object() {
            request["spec"] = json!({});
        }
        request["spec"]["audiences"] = json!(wanted.audiences);
        request["spec"]["expirationSeconds"] = json!(wanted.seconds);
        if request["spec"].get("boundObjectRef").is_none() {
            request["spec"]["boundObjectRef"] = Value::Null;
        }
        let ends = Timestamp::from_second(now).unwrap_or(cx.now) + SignedDuration::from_secs(wanted.seconds);
        request["status"] = json!({"token": token, "expirationTimestamp": object::time(ends)});
        Ok(request)
    }
}

/// What the token is to be bound to, if that is there and is what the request means.
async fn bound(core: &Core, cx: &Cx, request: &Value) -> Result<Bound, Status> {
    let Some(wanted) = request.pointer("/spec/boundObjectRef").filter(|r| r.is_object()) else {
        return Ok(Bound::No);
    };
    let text = |field: &str| object::str_at(wanted, &[field]);
    let (kind, name, version) = (text("kind"), text("name"), text("apiVersion"));
    let plural = match (version, kind) {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        ("v1", "Node") => "nodes",
        _ => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let what = format!("{group}/{version}, Kind={kind}");
            return Err(Status::bad_request(format!("cannot bind token to object of type {what}")));
        }
    };
    let namespace = if kind == "Node" { "" } else { cx.path.namespace.as_str() };
    let found = stored(core, plural, namespace, name).await.map_err(Status::internal)?;
    let found = found.ok_or_else(|| Status::not_found(ResourceRef { group: "", plural }, name))?;
    if !text("uid").is_empty() && text("uid") != object::uid(&found) {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict(ResourceRef { group: "", plural: kind }, name, &why));
    }
    let reference = Ref { name: name.into(), uid: object::uid(&found).into() };
    Ok(match kind {
        "Pod" => {
            let account = object::str_at(&found, &["spec", "serviceAccountName"]);
            if account != cx.path.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    cx.path.name
                )));
            }
            Bound::Pod(reference, node_of(core, &found).await?)
        }
        "Secret" => Bound::Secret(reference),
        _ => Bound::Node(reference),
    })
}

/// The node that a pod runs on.
async fn node_of(core: &Core, pod: &Value) -> Result<Option<Ref>, Status> {
    let name = object::str_at(pod, &["spec", "nodeName"]);
    if name.is_empty() {
        return Ok(None);
    }
    let node = stored(core, "nodes", "", name).await.map_err(Status::internal)?;
    let uid = node.as_ref().map_or("", object::uid).to_owned();
    Ok(Some(Ref { name: name.into(), uid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_bounds() {
        let own = vec!["api".to_owned()];
        let seconds = |n: i64| read(&json!({"spec": {"expirationSeconds": n}}), &own).map(|w| w.seconds);
        assert_eq!(seconds(600).unwrap(), 600);
        assert_eq!(seconds(1 << 32).unwrap(), 1 << 32);
        assert!(
            seconds(599).unwrap_err().message.contains("may not specify a duration less than 10 minutes")
        );
        assert!(seconds((1 << 32) + 1).unwrap_err().message.contains("larger than 2^32 seconds"));
        let open = read(&json!({}), &own).unwrap();
        assert_eq!((open.seconds, open.audiences), (3600, own));
    }
}
