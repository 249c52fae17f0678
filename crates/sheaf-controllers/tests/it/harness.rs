//! A server in this process with the life-cycle controllers, and ways to talk to it.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};
use sheaf_apiserver::{ApiServer, Config, UserInfo, authn::MASTERS};
use sheaf_runtime::{EventRecorder, TaskGroup};
use sheaf_store::Store;
use sheaf_store::sqlite::{Options, SqliteStore};
use tempfile::TempDir;

/// Holds everything until it is dropped.
pub(crate) struct World {
    _api: ApiServer,
    client: Client,
    group: TaskGroup,
    dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.group.cancel();
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&dir.path().join("state.db"), &Options::default()).unwrap());
        let config = Config {
            data_dir: dir.path().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            extra_sans: Vec::new(),
            server_url: None,
        };
        let api = ApiServer::start(config, store, sheaf_api::kinds()).await.unwrap();
        let user = || api.in_process(UserInfo::new("admin", [MASTERS]));
        let client = Client::new(user(), "default");
        let identities = Client::new(user().identities(), "default");
        let group = TaskGroup::new();
        let events = EventRecorder::spawn(&client, &group, "sheaf-controllers", "here");
        sheaf_controllers::spawn_life(&client, &identities, &events, api.ca().cert_pem(), &group);
        let world = Self { _api: api, client, group, dir };
        // What each namespace has is there before a test counts.
        eventually("the namespace default is furnished", async || {
            let map = world.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt").await;
            map.map(drop).ok_or("no kube-root-ca.crt".to_string())
        })
        .await;
        world
    }

    /// A request; a failure is its status.
    pub(crate) async fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        match self.client.request::<Value>(request.body(bytes).unwrap()).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => {
                Err(json!({"code": status.code, "message": status.message, "reason": status.reason}))
            }
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }
    /// A request that goes well.
    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<Option<Value>>) -> Value {
        match self.try_call(method, path, body.into()).await {
            Ok(value) => value,
            Err(status) => panic!("{method} {path}: {status}"),
        }
    }
    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        self.try_call("GET", path, None).await.ok()
    }
    /// A config map in `default` with owners; gives its uid.
    pub(crate) async fn map(&self, name: &str, owners: &[Value]) -> String {
        let body = json!({"metadata": {"name": name, "ownerReferences": owners}});
        let made = self.call("POST", "/api/v1/namespaces/default/configmaps", body).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }
    /// Waits until something has gone.
    pub(crate) async fn gone(&self, path: &str) {
        eventually(&format!("{path} goes"), async || match self.get(path).await {
            None => Ok(()),
            Some(there) => Err(there.to_string()),
        })
        .await;
    }
    /// kubectl with the administrator's kubeconfig: whether it went well, and all that it said.
    pub(crate) async fn kubectl(&self, args: &str) -> (bool, String) {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.dir.path().join("admin.kubeconfig"));
        command.env("HOME", self.dir.path()).env("KUBECACHEDIR", self.dir.path().join("cache"));
        command.args(args.split(' ').filter(|a| !a.is_empty())).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

/// An owner reference to a config map.
pub(crate) fn owner(name: &str, uid: &str, blocks: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": blocks})
}

/// Waits until `check` gives something; says the last state when it does not in time.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
