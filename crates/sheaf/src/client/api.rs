//! The few requests that commands make, on whole JSON objects. No cache, no retries.

use anyhow::Result;
use http::{Method, Request, header};
use serde_json::Value;

use super::Session;
use super::fail::{self, Exit};

/// A kind of object: where it is served, and its word for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    group_path: &'static str,
    plural: &'static str,
    /// As a sentence names it.
    pub(crate) word: &'static str,
    /// As `-o name` prints it.
    pub(crate) short: &'static str,
}

const fn kind(
    group_path: &'static str,
    plural: &'static str,
    word: &'static str,
    short: &'static str,
) -> Kind {
    Kind { group_path, plural, word, short }
}

pub(crate) const VMS: Kind =
    kind("/apis/kubevirt.io/v1", "virtualmachines", "VM", "virtualmachine.kubevirt.io");
pub(crate) const INSTANCES: Kind =
    kind("/apis/kubevirt.io/v1", "virtualmachineinstances", "instance", "virtualmachineinstance.kubevirt.io");
pub(crate) const IMAGES: Kind = kind(
    "/apis/harvesterhci.io/v1beta1",
    "virtualmachineimages",
    "image",
    "virtualmachineimage.harvesterhci.io",
);
pub(crate) const KEY_PAIRS: Kind =
    kind("/apis/harvesterhci.io/v1beta1", "keypairs", "key pair", "keypair.harvesterhci.io");
pub(crate) const CLAIMS: Kind = kind("/api/v1", "persistentvolumeclaims", "claim", "persistentvolumeclaim");
pub(crate) const SECRETS: Kind = kind("/api/v1", "secrets", "secret", "secret");
pub(crate) const NODES: Kind = kind("/api/v1", "nodes", "node", "node");
pub(crate) const EVENTS: Kind = kind("/api/v1", "events", "event", "event");

pub(crate) const VOLUMES: Kind = kind("/apis/longhorn.io/v1beta2", "volumes", "volume", "volume.longhorn.io");
pub(crate) const ENGINES: Kind = kind("/apis/longhorn.io/v1beta2", "engines", "engine", "engine.longhorn.io");
pub(crate) const REPLICAS: Kind =
    kind("/apis/longhorn.io/v1beta2", "replicas", "replica", "replica.longhorn.io");
pub(crate) const MOMENTS: Kind =
    kind("/apis/longhorn.io/v1beta2", "snapshots", "snapshot", "snapshot.longhorn.io");

pub(crate) const PLACES: Kind =
    kind("/apis/longhorn.io/v1beta2", "nodes", "storage node", "node.longhorn.io");
pub(crate) const PERSISTENT: Kind =
    kind("/api/v1", "persistentvolumes", "persistent volume", "persistentvolume");

impl Kind {
    /// Path of a collection; of all namespaces if none is given.
    pub(crate) fn list(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.group_path, self.plural),
            None => format!("{}/{}", self.group_path, self.plural),
        }
    }

    /// Path of an object.
    pub(crate) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.list(Some(namespace)))
    }
}

/// Path of a subresource of a VM or an instance.
pub(crate) fn subresource(plural: &str, namespace: &str, name: &str, sub: &str) -> String {
    format!("/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/{plural}/{name}/{sub}")
}

impl Session {
    async fn json(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Value> {
        let text = self.send(method, path, kind, body).await?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(&text)?)
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<String> {
        let bytes = body.map_or(Ok(Vec::new()), serde_json::to_vec)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, kind)
            .body(bytes)?;
        Ok(self.client.request_text(request).await?)
    }

    /// Any path, as text.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        self.send(Method::GET, path, "application/json", None).await
    }

    /// Any path, as JSON.
    pub(crate) async fn get_path(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, "application/json", None).await
    }

    /// An object, if it exists.
    pub(crate) async fn find(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>> {
        check_name(kind, namespace, name)?;
        match self.get_path(&kind.object(namespace, name)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if fail::status(&error).is_some_and(|s| s.code == 404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An object; an error with exit code 3 if it does not exist.
    pub(crate) async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value> {
        let found = self.find(kind, namespace, name).await?;
        found.ok_or_else(|| missing(kind, namespace, name))
    }

    /// All objects of a namespace, or of all, sorted as the server has them. Items of a list bear no kind; it is
    /// put back, so that each can stand alone.
    pub(crate) async fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<Value>> {
        let mut list = self.get_path(&kind.list(namespace)).await?;
        let version = list["apiVersion"].clone();
        let item_kind = list["kind"].as_str().map(|k| k.trim_end_matches("List").to_owned());
        let Some(Value::Array(mut items)) = list.get_mut("items").map(Value::take) else {
            return Ok(Vec::new());
        };
        for item in &mut items {
            if item.get("kind").is_none() {
                item["apiVersion"] = version.clone();
                item["kind"] = item_kind.clone().into();
            }
        }
        Ok(items)
    }

    /// Creates an object; `dry` has the server check it and keep nothing.
    pub(crate) async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        object: &Value,
        dry: bool,
    ) -> Result<Value> {
        let dry = if dry { "&dryRun=All" } else { "" };
        let path =
            format!("{}?fieldManager=sheaf-cli&fieldValidation=Strict{dry}", kind.list(Some(namespace)));
        self.json(Method::POST, &path, "application/json", Some(object)).await
    }

    /// Creates an object that is in no namespace.
    pub(crate) async fn create_cluster(&self, kind: Kind, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager=sheaf-cli&fieldValidation=Strict", kind.list(None));
        self.json(Method::POST, &path, "application/json", Some(object)).await
    }

    /// JSON merge patch.
    pub(crate) async fn merge(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value> {
        let path = format!("{}?fieldManager=sheaf-cli", kind.object(namespace, name));
        self.json(Method::PATCH, &path, "application/merge-patch+json", Some(patch)).await
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        check_name(kind, namespace, name)?;
        let path = kind.object(namespace, name);
        self.send(Method::DELETE, &path, "application/json", None).await.map(drop)
    }

    /// PUT of a subresource, which answers nothing of interest.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<()> {
        self.send(Method::PUT, path, "application/json", Some(body)).await.map(drop)
    }
}

/// The object does not exist.
pub(crate) fn missing(kind: Kind, namespace: &str, name: &str) -> anyhow::Error {
    Exit::error(fail::NOT_FOUND, format!("there is no {} {name} in namespace {namespace}", kind.word))
}

/// Refuses names that would lead to another path.
fn check_name(kind: Kind, namespace: &str, name: &str) -> Result<()> {
    for (what, text) in [("namespace", namespace), (kind.word, name)] {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if text.is_empty() || !text.chars().all(fits) {
            return Err(Exit::usage(format!(
                "{text:?} is no name of a {what}: names are lower case letters, digits, '-' and '.'"
            )));
        }
    }
    Ok(())
}
