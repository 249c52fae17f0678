//! One node: a namespace, a data directory, a log file, and at most one Sheaf process.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::namespace::{self, Namespace};
use crate::wait::{Deadline, wait_for};
use crate::wire::{Ends, Wire};

/// What a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// `sheaf server`, which is an agent too.
    Server,
    /// `sheaf agent`, which joins with these.
    Agent {
        /// URL of the server.
        server: String,
        /// Join token.
        token: String,
    },
}

/// One node of a lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: String,
    role: Role,
    binary: PathBuf,
    dir: PathBuf,
    port: String,
    process: Option<Child>,
    // Last: what runs in it is killed when the process above is known no more.
    namespace: Namespace,
}

impl Node {
    pub(crate) fn new(
        number: usize,
        role: Role,
        binary: &Path,
        lab_dir: &Path,
        switch: &Namespace,
    ) -> Result<Self> {
        let name = format!("node{number}");
        let address = format!("10.99.0.{}", 10 + number);
        let namespace = Namespace::new(&name)?;
        let port = namespace::plug(&namespace, switch, number, &format!("{address}/24"))?;
        // An agent needs some default route to know which of its addresses is its own.
        namespace.ip(&["route", "add", "default", "via", "10.99.0.1"])?;
        let dir = lab_dir.join(&name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { name, address, role, binary: binary.to_owned(), dir, port, process: None, namespace })
    }

    /// Its name, also as the cluster knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the switch.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sheaf's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The pid of Sheaf's process, if it was started and not killed since.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok())
    }

    /// Starts Sheaf's process; the log goes on where it was.
    pub fn start(&mut self) -> Result<()> {
        let data = self.data_dir();
        std::fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("opening the log of {}", self.name))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace.name()]).arg(&self.binary);
        match &self.role {
            Role::Server => command.args(["server", "--listen", "0.0.0.0:6443"]),
            Role::Agent { server, token } => command.args(["agent", "--server", server, "--token", token]),
        };
        command.arg("--data-dir").arg(&data).args(["--node-name", &self.name]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn().with_context(|| format!("starting {}", self.binary.display()))?);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            self.pid().and_then(Pid::from_raw).with_context(|| format!("{} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// `kill -9`: no goodbye. Guests are not touched.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        if let Some(mut child) = self.process.take() {
            child.wait().await.context("reaping")?;
        }
        Ok(())
    }

    /// Asks Sheaf to end, as an init system does, and waits until it has.
    pub async fn stop(&mut self, deadline: Deadline) -> Result<()> {
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.process.take() else { return Ok(()) };
        let status = match tokio::time::timeout(deadline.0, child.wait()).await {
            Ok(status) => status.context("reaping")?,
            Err(_) => {
                child.kill().await.context("killing")?;
                bail!("{} did not end within {} s of SIGTERM", self.name, deadline.0.as_secs());
            }
        };
        if !status.success() {
            bail!("{} ended with {status} after SIGTERM", self.name);
        }
        Ok(())
    }

    /// Stops the process without ending it: it answers nobody, and keeps all it holds.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Takes the node's cable out of the switch.
    pub fn cut_off(&self, switch: &Switch) -> Result<()> {
        switch.0.ip(&["link", "set", &self.port, "down"]).map(drop)
    }

    /// Puts the cable back.
    pub fn reconnect(&self, switch: &Switch) -> Result<()> {
        switch.0.ip(&["link", "set", &self.port, "up"]).map(drop)
    }

    /// Spoils the node's wire, which is whole.
    pub fn spoil(&self, switch: &Switch, wire: Wire) -> Result<()> {
        self.ends(switch).spoil(wire).map_err(anyhow::Error::msg)
    }

    /// Makes it whole again, whatever was wrong.
    pub fn mend(&self, switch: &Switch) {
        self.ends(switch).mend();
    }

    fn ends<'a>(&'a self, switch: &'a Switch) -> Ends<'a> {
        Ends { switch: (switch.0.name(), &self.port), node: (self.namespace.name(), "eth0") }
    }

    /// `ip ...` in the node's namespace.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        self.namespace.ip(args)
    }

    /// True if the process has ended by itself; with how.
    pub fn ended(&mut self) -> Option<String> {
        let child = self.process.as_mut()?;
        child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// The pids of the guests' QEMUs that run on this node.
    pub fn qemus(&self) -> Vec<i32> {
        self.named("qemu-system")
    }

    /// The pids of the processes on this node whose names begin so (at most 15 bytes).
    pub fn named(&self, name: &str) -> Vec<i32> {
        let is = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.starts_with(name))
        };
        self.namespace.pids().into_iter().filter(is).collect()
    }

    /// `kill -9` of a guest's QEMU of this node.
    pub async fn kill_qemu(&self, pid: i32) -> Result<()> {
        if !self.qemus().contains(&pid) {
            bail!("{pid} is no QEMU of {}", self.name);
        }
        kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL).context("killing QEMU")?;
        wait_for("QEMU to be gone", Deadline::SOON, async || match self.qemus().contains(&pid) {
            true => Err("it still runs"),
            false => Ok(()),
        })
        .await
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// The switch between the nodes: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Switch(Namespace);

impl Switch {
    pub(crate) fn new() -> Result<Self> {
        let namespace = Namespace::new("switch")?;
        namespace.ip(&["link", "add", "br0", "type", "bridge"])?;
        namespace.ip(&["addr", "add", "10.99.0.1/24", "dev", "br0"])?;
        namespace.ip(&["link", "set", "br0", "up"])?;
        Ok(Self(namespace))
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.0
    }
}
