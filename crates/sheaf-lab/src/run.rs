//! The lab as a whole: made, given to a test, removed. `SHEAF_LAB_CLASS` names the storage class that is to be the default one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use base64::Engine;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::process::Command;

use crate::namespace;
use crate::node::{Node, Role, Switch};
use crate::process::{self, Output};
use crate::wait::{Deadline, wait_for};

/// Log lines of each node that a failure shows.
const LOG_LINES: usize = 60;

/// A cluster of real processes. The first node is the server; the test runs in its namespace.
pub struct Lab {
    name: String,
    nodes: Vec<Node>,
    binary: PathBuf,
    client: OnceLock<kube::Client>,
    switch: Switch,
    // After the nodes, whose processes write here.
    dir: Option<TempDir>,
    // Last: the next lab starts when nothing of this one is left.
    _turn: File,
}

/// Whether labs can run here; if not, says why, loudly, and the test is to end.
pub fn ready(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test} needs root, for network namespaces and guests. Nothing was tested.");
    }
    root
}

/// Runs a test in a new lab whose server is ready. Everything is removed afterwards; if the test fails, the end of every
/// log is printed before.
pub fn run(name: &str, test: impl AsyncFnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    if !ready(name) {
        return Ok(());
    }
    let mut lab = Lab::new(name)?;
    let place = Arc::new(format!("/run/netns/{}", lab.nodes[0].namespace().name()));
    lab.nodes[0].namespace().enter()?;
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            let entered = File::open(place.as_str()).map_err(anyhow::Error::from).and_then(|f| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                Ok(rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&f), kind)?)
            });
            if let Err(error) = entered {
                eprintln!("lab: a thread of the test is not in the server's namespace: {error:#}");
            }
        })
        .build()
        .context("starting the runtime")?;
    let result = threads.block_on(async {
        lab.nodes[0].start()?;
        lab.server_ready().await?;
        if let Ok(class) = std::env::var("SHEAF_LAB_CLASS") {
            lab.set_default_class(&class).await?;
        }
        test(&mut lab).await
    });
    if result.is_err() {
        lab.show_logs();
    }
    drop(lab);
    result
}

impl Lab {
    fn new(name: &str) -> Result<Self> {
        let binary = binary()?;
        let turn =
            File::create(std::env::temp_dir().join("sheaf-lab.lock")).context("making the lock file")?;
        // One lab at a time on a machine: two cores carry two guests.
        flock(&turn, FlockOperation::LockExclusive).context("waiting for our turn")?;
        namespace::sweep();
        let dir = tempfile::Builder::new().prefix("sheaf-lab-").tempdir().context("making a directory")?;
        let switch = Switch::new()?;
        let server = Node::new(1, Role::Server, &binary, dir.path(), switch.namespace())?;
        let client = OnceLock::new();
        Ok(Self {
            name: name.to_owned(),
            nodes: vec![server],
            binary,
            client,
            switch,
            dir: Some(dir),
            _turn: turn,
        })
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// A place for files of the test.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.dir().join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The first node.
    pub fn server(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }

    /// A node by its number, from 1.
    pub fn node(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// The same, only to look at.
    pub fn node_ref(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The switch between the nodes.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Cuts a node off from the others, or connects it again.
    pub fn set_connected(&self, number: usize, connected: bool) -> Result<()> {
        let node = &self.nodes[number - 1];
        if connected { node.reconnect(&self.switch) } else { node.cut_off(&self.switch) }
    }

    /// Waits until the server answers that it is ready, and says early if its process has ended.
    pub async fn server_ready(&mut self) -> Result<()> {
        let kubeconfig = self.kubeconfig();
        let mut gone = None;
        let ready = wait_for("the server to be ready", Deadline::SOON, async || {
            if let Some(status) = self.nodes[0].ended() {
                gone = Some(status.clone());
                return Ok(());
            }
            if !kubeconfig.exists() {
                return Err("there is no admin.kubeconfig yet".to_owned());
            }
            match self.kubectl(&["get", "--raw", "/readyz"]).await {
                Ok(out) if out.code == 0 => Ok(()),
                Ok(out) => Err(out.stderr),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
        if let Some(status) = gone {
            bail!("the server ended with {status} while starting");
        }
        ready
    }

    /// Adds a node with an agent, which joins with a token that the server prints.
    pub async fn add_agent(&mut self) -> Result<usize> {
        let token = self.sheaf(&["token"]).await?.ok()?.trim().to_owned();
        let server = format!("https://{}:6443", self.nodes[0].address());
        self.add_node(Role::Agent { server, token })
    }

    /// Adds a node with this role and starts it. Returns its number.
    pub fn add_node(&mut self, role: Role) -> Result<usize> {
        let number = self.nodes.len() + 1;
        let mut node = Node::new(number, role, &self.binary, self.dir(), self.switch.namespace())?;
        node.start()?;
        self.nodes.push(node);
        Ok(number)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.nodes[0].data_dir().join("admin.kubeconfig")
    }

    pub(crate) async fn config(&self) -> Result<kube::Config> {
        let kubeconfig =
            kube::config::Kubeconfig::read_from(self.kubeconfig()).context("reading the kubeconfig")?;
        let options = kube::config::KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.context("kubeconfig")
    }

    /// A client of the API, as the administrator.
    pub async fn client(&self) -> Result<kube::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let kubeconfig =
            kube::config::Kubeconfig::read_from(self.kubeconfig()).context("reading the kubeconfig")?;
        let options = kube::config::KubeConfigOptions::default();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.context("kubeconfig")?;
        let client = kube::Client::try_from(config).context("making a client")?;
        Ok(self.client.get_or_init(|| client).clone())
    }

    /// Files with the CA, the certificate and the key of the administrator, for programs that read no kubeconfig.
    pub async fn credentials(&self) -> Result<[String; 3]> {
        let view = self.kubectl(&["config", "view", "--raw", "-o", "json"]).await?.ok()?;
        let view: serde_json::Value = serde_json::from_str(&view).context("reading the kubeconfig")?;
        let (cluster, user) = (&view["clusters"][0]["cluster"], &view["users"][0]["user"]);
        let place = |name: &str, data: &serde_json::Value| -> Result<String> {
            let data = data.as_str().with_context(|| format!("the kubeconfig has no {name}"))?;
            let pem = base64::engine::general_purpose::STANDARD.decode(data).context("base64")?;
            Ok(self.file(name, &String::from_utf8(pem)?)?.to_string_lossy().into_owned())
        };
        Ok([
            place("ca.pem", &cluster["certificate-authority-data"])?,
            place("cert.pem", &user["client-certificate-data"])?,
            place("key.pem", &user["client-key-data"])?,
        ])
    }

    /// PUT of a subresource of a VM or VMI (`virtualmachines`, `virtualmachineinstances`) of `default`, as virtctl does it.
    pub async fn act(&self, resource: &str, name: &str, action: &str) -> Result<()> {
        self.act_with(resource, name, action, "{}").await
    }

    /// The same with options.
    pub async fn act_with(&self, resource: &str, name: &str, action: &str, options: &str) -> Result<()> {
        let body = self.file("options.json", options)?;
        let path = format!("/apis/subresources.kubevirt.io/v1/namespaces/default/{resource}/{name}/{action}");
        let args = ["replace", "--raw", &path, "-f", &body.to_string_lossy()];
        self.kubectl(&args).await?.ok().map(drop)
    }

    /// Runs kubectl as the administrator.
    pub async fn kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_input(args, None).await
    }

    /// Runs kubectl with a manifest (or whatever) on its standard input.
    pub async fn kubectl_input(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = Command::new("kubectl");
        // A home of its own: no cached discovery of another cluster at the same address.
        command.env("HOME", self.dir()).env("KUBECONFIG", self.kubeconfig()).args(args);
        process::output(&mut command, input).await
    }

    /// Runs `kubectl edit` with this command as the editor.
    pub async fn kubectl_edit(&self, args: &[&str], editor: &str) -> Result<Output> {
        let mut command = Command::new("kubectl");
        command
            .env("HOME", self.dir())
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBE_EDITOR", editor)
            .args(args);
        process::output(&mut command, None).await
    }

    /// `kubectl apply -f -`, which has to succeed.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        // kubectl gives the server 32 s for all its schemas, which an emulated machine does not manage.
        let validate = if crate::wait::slow() > 1 { "--validate=false" } else { "--validate=strict" };
        self.kubectl_input(&["apply", validate, "-f", "-"], Some(manifest)).await?.ok()
    }

    /// Runs sheaf's command line as the administrator.
    pub async fn sheaf(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.env("HOME", self.dir()).env("KUBECONFIG", self.kubeconfig());
        command.env("SHEAF_DATA_DIR", self.nodes[0].data_dir()).args(args);
        process::output(&mut command, None).await
    }

    /// Runs any program in the server's namespace, with the administrator's kubeconfig.
    pub async fn command(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        process::output(command.env("HOME", self.dir()).env("KUBECONFIG", self.kubeconfig()).args(args), None)
            .await
    }

    /// Makes a storage class the default one, and no other.
    pub async fn set_default_class(&self, class: &str) -> Result<()> {
        for name in ["local", "harvester-longhorn"] {
            let path = format!("/apis/storage.k8s.io/v1/storageclasses/{name}");
            self.wait_object("the storage classes", &path, Deadline::SOON, |c| !c.is_null()).await?;
            let mark = (name == class).to_string();
            let annotations = serde_json::json!({"storageclass.kubernetes.io/is-default-class": mark});
            let patch = serde_json::json!({"metadata": {"annotations": annotations}}).to_string();
            self.kubectl(&["patch", "storageclass", name, "-p", &patch]).await?.ok()?;
        }
        Ok(())
    }

    fn show_logs(&self) {
        for node in &self.nodes {
            eprintln!("--- the end of {}'s log ({}) ---", node.name(), self.name);
            eprintln!("{}", node.log_tail(LOG_LINES));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        if std::env::var_os("SHEAF_LAB_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("lab: data and logs are kept in {}", dir.keep().display());
        }
    }
}

/// The binary under test: `SHEAF_BIN`, or what `cargo build -p sheaf` left beside this test.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHEAF_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("finding this test's own path")?;
    let path = test.ancestors().nth(2).context("the target directory")?.join("sheaf");
    if !path.exists() {
        bail!("there is no {}: run `cargo build -p sheaf` first, or name one in SHEAF_BIN", path.display());
    }
    Ok(path)
}
