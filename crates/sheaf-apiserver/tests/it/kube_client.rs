//! The crate `kube`, which Sheaf's own parts use: over HTTPS with the administrator's kubeconfig, and in process.

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use serde_json::json;
use sheaf_apiserver::{UserInfo, authn::MASTERS};

use crate::harness::Server;

async fn https(server: &Server) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn inside(server: &Server) -> Client {
    Client::new(server.api.in_process(UserInfo::new("system:sheaf", [MASTERS])), "default")
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": "1"}})).unwrap()
}

async fn life(client: Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let made = maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let version = made.metadata.resource_version.clone().unwrap();
    let mut changes = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let patch = Patch::Merge(json!({"data": {"a": "2"}}));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.data.unwrap()["a"], "2");
    let Some(WatchEvent::Modified(seen)) = changes.try_next().await.unwrap() else { panic!("no MODIFIED") };
    assert_eq!(seen.metadata.resource_version, patched.metadata.resource_version);
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 1);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let Some(WatchEvent::Deleted(seen)) = changes.try_next().await.unwrap() else { panic!("no DELETED") };
    assert!(
        seen.metadata.resource_version.unwrap().parse::<u64>().unwrap() > version.parse::<u64>().unwrap()
    );
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn over_https() {
    let server = Server::start().await;
    life(https(&server).await).await;
}

#[tokio::test]
async fn in_process() {
    let server = Server::start().await;
    life(inside(&server)).await;
}

#[tokio::test]
async fn watchers_of_both_strategies_become_ready_and_follow() {
    let server = Server::start().await;
    let client = inside(&server);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    maps.create(&PostParams::default(), &map("first")).await.unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut events = watcher(maps.clone(), config).boxed();
        let mut names = Vec::new();
        loop {
            match events.try_next().await.unwrap().unwrap() {
                watcher::Event::InitApply(o) => names.push(o.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(names, ["first"]);
        maps.create(&PostParams::default(), &map("second")).await.unwrap();
        let Some(watcher::Event::Apply(o)) = events.try_next().await.unwrap() else { panic!("no event") };
        assert_eq!(o.metadata.name.as_deref(), Some("second"));
        maps.delete("second", &DeleteParams::default()).await.unwrap();
        let Some(watcher::Event::Delete(_)) = events.try_next().await.unwrap() else { panic!("no event") };
    }
}

#[tokio::test]
async fn discovery_finds_all_kinds() {
    let server = Server::start().await;
    for client in [https(&server).await, inside(&server)] {
        let found = kube::Discovery::new(client.clone()).run().await.unwrap();
        let groups: Vec<&str> = found.groups().map(kube::discovery::ApiGroup::name).collect();
        assert!(groups.contains(&"kubevirt.io"), "{groups:?}");
        let found = kube::Discovery::new(client).run_aggregated().await.unwrap();
        assert!(found.groups().any(|g| g.name() == "harvesterhci.io"));
    }
}
