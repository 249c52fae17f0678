//! Objects that every cluster has, made at start through the ordinary path: namespaces are made once and then left
//! alone, roles and bindings are brought to what [`rbac::policy`](crate::rbac::policy) says.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use sheaf_meta::{object, status::Status};
use sheaf_store::Revision;

use crate::{
    core::Core,
    internal,
    rbac::{
        self, policy,
        reconcile::{self, Step},
    },
    server::StartError,
};

/// Namespaces that clients need. `default` holds events of cluster-scoped objects; `kube-system` tokens;
/// `kube-node-lease` the leases of nodes; `harvester-public` the shared images and templates.
const NAMESPACES: &[&str] = &[
    "default",
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "harvester-system",
    "harvester-public",
    "cattle-system",
];
/// Writes at the same time: the store commits them together.
const TOGETHER: usize = 32;

/// Makes what is missing.
pub(crate) async fn run(core: &Arc<Core>) -> Result<(), StartError> {
    let rows = core.registry.snapshot();
    if rows.find("", "v1", "namespaces").is_some() {
        let made = stream::iter(NAMESPACES).map(|name| async move {
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            ensure(core, "/api/v1/namespaces", &format!("namespace {name}"), &body).await
        });
        all(made).await?;
    }
    if rows.find(rbac::GROUP, "v1", "clusterroles").is_some() {
        let mut objects: Vec<Value> = policy::roles().iter().map(policy::RoleSpec::object).collect();
        objects.extend(policy::bindings().iter().map(policy::BindingSpec::object));
        let made = stream::iter(&objects).map(|object| async move {
            if let Err(status) = role(core, object).await {
                // A server without one of its roles is of more use than none; the next start tries again.
                let (kind, name) = (object::kind(object), object::name(object));
                tracing::error!(kind, name, message = %status, "a role that every cluster has cannot be made");
            }
        });
        made.buffer_unordered(TOGETHER).collect::<()>().await;
        // `edit` collects from `view`, and `admin` from `edit`: a round for each.
        for _ in 0..3 {
            rbac::aggregate(core).await;
        }
    }
    Ok(())
}

async fn all(
    work: impl futures_util::Stream<Item = impl Future<Output = Result<(), StartError>>>,
) -> Result<(), StartError> {
    let results: Vec<_> = work.buffer_unordered(TOGETHER).collect().await;
    results.into_iter().collect()
}

/// Creates an object; one of that name is good enough.
async fn ensure(core: &Arc<Core>, path: &str, object: &str, body: &Value) -> Result<(), StartError> {
    match internal::call(core, Method::POST, path, "application/json", Some(body)).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(StartError::Bootstrap { object: object.into(), status: status.message }),
    }
}

/// Brings one role or binding about.
async fn role(core: &Arc<Core>, wanted: &Value) -> Result<(), Status> {
    let plural = format!("{}s", object::kind(wanted).to_lowercase());
    let (namespace, name) = (object::namespace(wanted), object::name(wanted));
    let (key, collection) = match namespace {
        "" => (name.to_owned(), format!("/apis/{}/v1/{plural}", rbac::GROUP)),
        ns => (format!("{ns}/{name}"), format!("/apis/{}/v1/namespaces/{ns}/{plural}", rbac::GROUP)),
    };
    let path = format!("{collection}/{}", rbac::encode(name));
    let key = format!("/registry/{}/{plural}/{key}", rbac::GROUP);
    let entry = core.store.get(&key, Revision(0)).await.map_err(Status::internal)?;
    let there: Option<Value> =
        entry.map(|e| serde_json::from_slice(&e.value)).transpose().map_err(Status::internal)?;
    const JSON: &str = "application/json";
    match there.map(|there| reconcile::plan(wanted, &there)) {
        None => {}
        Some(Step::Nothing) => return Ok(()),
        Some(Step::Replace(object)) => {
            internal::call(core, Method::PUT, &path, JSON, Some(&object)).await?;
            return Ok(());
        }
        Some(Step::Recreate) => match internal::call(core, Method::DELETE, &path, JSON, None).await {
            Err(status) if status.code != 404 => return Err(status),
            _ => {}
        },
    }
    internal::call(core, Method::POST, &collection, JSON, Some(wanted)).await.map(drop)
}
