//! A server on a loopback port, and ways to talk to it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sheaf_apiserver::{ApiServer, Config, UserInfo, audit::AuditOptions, authn::MASTERS};
use sheaf_store::{
    Store,
    sqlite::{Options, SqliteStore},
};
use tempfile::TempDir;
use tower::ServiceExt;

/// A running server and its directory.
pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<dyn Store>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// A string in the body.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
    /// The texts of the warnings.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let text = |value: &http::HeaderValue| {
            let quoted = value.to_str().unwrap().strip_prefix("299 - \"").and_then(|v| v.strip_suffix('"'));
            quoted.expect("a warning of the form 299 - \"text\"").replace("\\\"", "\"")
        };
        self.headers.get_all("warning").iter().map(text).collect()
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_again(tempfile::tempdir().unwrap()).await
    }

    /// Starts a server in a directory, as `sheaf server` does.
    pub(crate) async fn start_again(dir: TempDir) -> Self {
        Self::start_audited(dir, None).await
    }

    /// The same with an audit log.
    pub(crate) async fn start_audited(dir: TempDir, audit: Option<AuditOptions>) -> Self {
        let path = dir.path().join("state.db");
        // After a shutdown the last task that holds the store may have to be scheduled once more.
        let open = async || SqliteStore::open(&path, &Options::default()).map_err(|e| e.to_string());
        let store: Arc<dyn Store> = Arc::new(eventually("the store is free", open).await);
        let config = Config {
            data_dir: dir.path().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            extra_sans: Vec::new(),
            server_url: None,
        };
        let api = ApiServer::start_with(config, store.clone(), sheaf_api::kinds(), audit).await.unwrap();
        let server = Self { api, dir, store };
        // A controller makes it in every namespace; none runs here, and no pod is without.
        let account = json!({"metadata": {"name": "default"}});
        let made = server.call("POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
        assert!(made.code == 201 || made.code == 409, "{:#}", made.body);
        server
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// A request in process, as the administrator.
    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<Option<Value>>) -> Answer {
        self.send(method, path, &[("content-type", "application/json")], body).await
    }

    /// A PATCH.
    pub(crate) async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let content_type = match kind {
            "apply" => "application/apply-patch+yaml".to_string(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send("PATCH", path, &[("content-type", &content_type)], body).await
    }

    /// A request with headers.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Option<Value>>,
    ) -> Answer {
        let user = UserInfo::new("admin", [MASTERS]);
        self.send_as(user, method, path, headers, body.into().map(|b| b.to_string()).unwrap_or_default())
            .await
    }

    /// A request as somebody, with a raw body.
    pub(crate) async fn send_as(
        &self,
        user: UserInfo,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let response = self.api.in_process(user).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code: parts.status, headers: parts.headers, body }
    }

    /// Creates a config map in `default`.
    pub(crate) async fn config_map(&self, name: &str, labels: Value) -> Answer {
        let body = json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}});
        let answer = self.call("POST", "/api/v1/namespaces/default/configmaps", body).await;
        assert_eq!(answer.code, 201, "{:?}", answer.body);
        answer
    }

    /// kubectl with the administrator's kubeconfig; panics if it fails.
    pub(crate) async fn kubectl(&self, args: &str) -> String {
        let (ok, out, err) = self.try_kubectl(args, "").await;
        assert!(ok, "kubectl {args}\n{out}\n{err}");
        out
    }

    /// kubectl with standard input: whether it went well, what it said, what it complained of.
    pub(crate) async fn try_kubectl(&self, args: &str, input: &str) -> (bool, String, String) {
        let mut command = self.command();
        command.args(args.split(' ').filter(|a| !a.is_empty()).map(|a| a.replace('␣', " ")));
        run(command, input.to_string()).await
    }

    /// kubectl, ready for arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig());
        command.env("HOME", self.dir.path());
        command.env("KUBECACHEDIR", self.dir.path().join("cache"));
        command
    }
}

/// Runs a command to its end, away from the runtime's threads.
pub(crate) async fn run(mut command: Command, input: String) -> (bool, String, String) {
    let work = move || {
        use std::io::Write;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is installed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits until `check` gives something; says the last state when it does not in time.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
