//! Which kinds the API serves, by discovery, and what happens to their objects: for the controllers that concern
//! objects of every kind.
//!
//! One watch of the metadata of each kind, shared by all who listen; kinds that appear are followed within moments,
//! kinds that go are followed no longer. Owns the set of followed kinds, and no object.

mod identity;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use sheaf_runtime::TaskGroup;
use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use crate::quotas;
use identity::Identity;

/// How often kinds are looked for without a reason.
const DISCOVERY: Duration = Duration::from_secs(30);
/// Changes of definitions that come together are looked at together.
const GATHER: Duration = Duration::from_millis(50);

/// A kind that can be listed, watched and deleted.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

impl Served {
    /// `deployments.apps/v1`: a name of its own for each kind and version.
    fn id(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.api_version)
    }
    /// Its objects in a namespace; in the cluster where it has none.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
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

/// What a listener hears of a kind.
pub(crate) enum Heard<'a> {
    /// An object is there, new or changed. Of changes that concern neither its metadata's [`Identity`] nor what a quota sums up, nothing may be
    /// heard.
    Seen(&'a ObjectMeta),
    /// An object has gone.
    Gone(&'a ObjectMeta),
    /// The watch has begun anew: these are the UIDs of all that there is.
    All(&'a [String]),
    /// The kind is served no longer.
    Ended,
}

/// Followed kinds by their ids. Dropping the sender ends a kind's watch.
type Followed = HashMap<String, (Arc<Served>, oneshot::Sender<()>)>;
type Listener = Box<dyn Fn(&Arc<Served>, &Heard<'_>) + Send + Sync>;

/// See the module. Listeners are added before [`Everything::spawn`].
#[derive(Default)]
pub(crate) struct Everything {
    listeners: Vec<Listener>,
    followed: Mutex<Followed>,
    look: Notify,
}

impl Everything {
    /// Calls `f` for each thing that happens. It must be quick and must not block.
    pub(crate) fn listen(&mut self, f: impl Fn(&Arc<Served>, &Heard<'_>) + Send + Sync + 'static) {
        self.listeners.push(Box::new(f));
    }

    /// The kinds that are followed now.
    pub(crate) fn kinds(&self) -> Vec<Arc<Served>> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.values().map(|(kind, _)| kind.clone()).collect()
    }

    /// The followed kind of a group and name, whatever its version.
    pub(crate) fn find(&self, group: &str, kind: &str) -> Option<Arc<Served>> {
        self.kinds().into_iter().find(|k| k.resource.group == group && k.resource.kind == kind)
    }

    /// Begins to follow everything. Of most kinds `identities` tells enough.
    pub(crate) fn spawn(self: Arc<Self>, client: &Client, identities: &Client, group: &TaskGroup) {
        let (client, identities, tasks) = (client.clone(), identities.clone(), group.clone());
        group.spawn(async move {
            loop {
                match served(&client).await {
                    Ok(kinds) => self.follow_all([&client, &identities], kinds, &tasks),
                    Err(error) => warn!(%error, "kinds cannot be listed"),
                }
                tokio::select! {
                    () = tokio::time::sleep(DISCOVERY) => {}
                    () = self.look.notified() => tokio::time::sleep(GATHER).await,
                }
            }
        });
    }

    fn follow_all(
        self: &Arc<Self>,
        [client, identities]: [&Client; 2],
        kinds: Vec<Served>,
        tasks: &TaskGroup,
    ) {
        let mut ended = Vec::new();
        {
            let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            followed.retain(|id, (kind, _)| {
                let stays = kinds.iter().any(|k| k.id() == *id);
                if !stays {
                    ended.push(kind.clone());
                }
                stays
            });
            // Events are many, own nothing, and are owned by nobody.
            for kind in kinds.into_iter().filter(|k| k.resource.plural != "events") {
                let id = kind.id();
                if followed.contains_key(&id) {
                    continue;
                }
                let kind = Arc::new(kind);
                let (stop, stopped) = oneshot::channel();
                // What a quota sums up changes with the object.
                let client = if quotas::measures(&kind) { client } else { identities };
                let following = self.clone().follow(client.clone(), kind.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        _ = stopped => {}
                        () = following => {}
                    }
                });
                followed.insert(id, (kind, stop));
            }
        }
        for kind in ended {
            debug!(kind = kind.id(), "a kind is served no longer");
            self.tell(&kind, &Heard::Ended);
        }
    }

    fn tell(&self, kind: &Arc<Served>, heard: &Heard<'_>) {
        if kind.resource.kind == "CustomResourceDefinition" || kind.resource.kind == "APIService" {
            self.look.notify_one();
        }
        self.listeners.iter().for_each(|listener| listener(kind, heard));
    }
}

impl Everything {
    /// Follows one kind; never returns.
    async fn follow(self: Arc<Self>, client: Client, kind: Arc<Served>) {
        let all = self;
        let api: Api<Identity> = Api::all_with(client, &kind.resource);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut fresh: Vec<String> = Vec::new();
        while let Some(event) = events.next().await {
            // A watch that breaks is taken up again by the stream itself.
            let Ok(event) = event else { continue };
            match event {
                watcher::Event::Init => fresh.clear(),
                watcher::Event::InitApply(object) => {
                    fresh.extend(object.metadata.uid.clone());
                    all.tell(&kind, &Heard::Seen(&object.metadata));
                }
                watcher::Event::InitDone => {
                    all.tell(&kind, &Heard::All(&fresh));
                    fresh = Vec::new();
                }
                watcher::Event::Apply(object) => all.tell(&kind, &Heard::Seen(&object.metadata)),
                watcher::Event::Delete(object) => all.tell(&kind, &Heard::Gone(&object.metadata)),
            }
        }
    }
}
