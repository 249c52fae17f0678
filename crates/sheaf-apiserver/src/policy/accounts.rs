//! Pods and their service accounts: the account has to be there, and a pod that wants it gets the account's token, the
//! cluster's certificate and the name of its namespace mounted into its containers.
//!
//! Mutable by nobody: the token is requested by whoever runs the pod, the other two are read.

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use sheaf_meta::{names, object, status::Status};
use sheaf_store::cache::At;

use super::{forbidden, is};
use crate::{
    admission::read,
    core::{Core, Cx},
    extension::{Admission, Write},
    handler,
};

/// Where clients look for their credentials.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Names of the volumes begin so.
const VOLUME: &str = "kube-api-access-";
/// Seconds: an hour and a little, so that what is renewed each hour is never too old.
const TOKEN_LASTS: i64 = 3607;
/// Set on pods that a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// See the module.
pub(crate) struct Accounts;

impl Admission for Accounts {
    fn admit<'a>(
        &'a self,
        core: &'a Core,
        _cx: &'a Cx,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let new = is(write.row, "", "pods") && write.old.is_none();
            if !new || !object["spec"].is_object() || object::annotation(object, MIRROR).is_some() {
                return Ok(());
            }
            let namespace = object::namespace(object).to_owned();
            let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
            let found = read::get(core, "", "serviceaccounts", &namespace, &account, At::Latest).await;
            let Some(found) = found.map_err(Status::internal)? else {
                let why = format!(
                    "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
                );
                return Err(forbidden(write.row, object::name(object), &why));
            };
            let suffix = names::generate_name(VOLUME, handler::random()?);
            give(object::as_map(&mut object["spec"]), &found, &suffix);
            Ok(())
        })
    }
}

/// Gives a pod what its account has. `volume` is the name of the volume that may be needed.
fn give(spec: &mut Map<String, Value>, account: &Value, volume: &str) {
    let secrets = account["imagePullSecrets"].as_array().filter(|list| !list.is_empty());
    let has_secrets = |v: &Value| v.as_array().is_some_and(|list| !list.is_empty());
    if let Some(secrets) = secrets
        && !spec.get("imagePullSecrets").is_some_and(has_secrets)
    {
        spec.insert("imagePullSecrets".into(), json!(secrets));
    }
    let wants = |v: Option<&Value>| v.and_then(Value::as_bool);
    let of_pod = wants(spec.get("automountServiceAccountToken"));
    if !of_pod.or_else(|| wants(account.get("automountServiceAccountToken"))).unwrap_or(true) {
        return;
    }
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            // Who mounts something else there knows why.
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
                used = true;
            }
        }
    }
    if let Some(volumes) = spec.entry("volumes").or_insert_with(|| json!([])).as_array_mut()
        && used
    {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_LASTS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(spec: Value, account: Value) -> Value {
        let mut spec = spec;
        give(object::as_map(&mut spec), &account, "kube-api-access-x");
        spec
    }

    #[test]
    fn tokens_are_mounted_where_they_are_wanted() {
        let wants = [(None, None, true), (None, Some(true), true), (None, Some(false), false)];
        let wants = wants.into_iter().chain([(Some(true), Some(false), true), (Some(false), None, false)]);
        for (pod, account, expected) in wants {
            let mut spec = json!({"containers": [{"name": "c"}]});
            let mut given = json!({});
            if let Some(pod) = pod {
                spec["automountServiceAccountToken"] = json!(pod);
            }
            if let Some(account) = account {
                given["automountServiceAccountToken"] = json!(account);
            }
            let spec = mounted(spec, given);
            let mount = spec.pointer("/containers/0/volumeMounts/0/mountPath");
            assert_eq!(mount == Some(&json!(MOUNT)), expected, "{pod:?} {account:?}: {spec}");
            let volumes = spec["volumes"].as_array().map_or(0, Vec::len);
            assert_eq!(volumes, usize::from(expected), "{pod:?} {account:?}");
        }
    }

    #[test]
    fn what_is_mounted_already_stays() {
        let own = json!({"name": "mine", "mountPath": MOUNT});
        let spec = mounted(
            json!({"containers": [{"name": "c", "volumeMounts": [own]}], "volumes": [{"name": "mine"}]}),
            json!({"imagePullSecrets": [{"name": "s"}]}),
        );
        assert_eq!(spec["containers"][0]["volumeMounts"], json!([own]));
        assert_eq!(spec["volumes"], json!([{"name": "mine"}]));
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
    }
}
