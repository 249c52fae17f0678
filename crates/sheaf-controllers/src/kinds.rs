//! Which kinds the API serves, by discovery: for the controllers that concern objects of every kind. No state.

use kube::Client;
use kube::api::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// A kind that can be listed, watched and deleted.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

/// Kinds in their preferred versions, each once.
pub(crate) async fn served(client: &Client) -> Result<Vec<Served>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut found: Vec<Served> = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let usable =
                [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|v| capabilities.supports_operation(v));
            // events.k8s.io shows the events of the core group a second time.
            if usable && resource.group != "events.k8s.io" {
                let namespaced = capabilities.scope == Scope::Namespaced;
                found.push(Served { resource, namespaced });
            }
        }
    }
    Ok(found)
}
