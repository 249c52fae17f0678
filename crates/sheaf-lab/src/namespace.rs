//! Network namespaces, and the wires between them. A namespace is removed with everything that runs in it.
//!
//! Names carry the pid of the test process: what a test that was killed left behind is found by the next one and
//! removed, and nothing else ever is.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::short;

/// All namespaces of labs begin with this; the pid of the test process follows.
const PREFIX: &str = "sheaf-lab-";
/// Rounds of killing before a namespace is given up: what runs in it may be forking.
const ROUNDS: usize = 50;

/// A network namespace that ends with this value.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, with its loopback interface up.
    pub(crate) fn new(label: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{label}", std::process::id());
        short("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `ip ...` in it.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<String> {
        short("ip", &[&["-n", &self.name], args].concat())
    }

    /// Moves the calling thread into it; what the thread starts from then on, starts there.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {}", path.display()))
    }

    /// The pids of all that runs in it, this test excepted.
    pub(crate) fn pids(&self) -> Vec<i32> {
        pids(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn pids(name: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let listed = short("ip", &["netns", "pids", name]).unwrap_or_default();
    listed.split_whitespace().filter_map(|p| p.parse().ok()).filter(|p| *p != own).collect()
}

/// Kills all that runs in a namespace, then removes it.
#[expect(
    clippy::disallowed_methods,
    reason = "in Drop there is no runtime; bounded, and looks at the world each round"
)]
fn remove(name: &str) {
    for _ in 0..ROUNDS {
        let alive = pids(name);
        if alive.is_empty() {
            break;
        }
        for pid in alive.into_iter().filter_map(Pid::from_raw) {
            // Gone meanwhile is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    if let Err(error) = short("ip", &["netns", "del", name]) {
        eprintln!("lab: {error:#}");
    }
}

/// Removes what labs of test processes that no longer live left behind.
pub(crate) fn sweep() {
    for line in short("ip", &["netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else { continue };
        if test_kill_process(pid).is_err() {
            eprintln!("lab: removing {name}, which a dead test left behind");
            remove(name);
        }
    }
}

/// Connects a namespace by `eth0` to the bridge `br0` of a switch. Returns the name of the switch's end.
pub(crate) fn plug(node: &Namespace, switch: &Namespace, number: usize, address: &str) -> Result<String> {
    let port = format!("port{number}");
    let veth = ["link", "add", port.as_str(), "type", "veth", "peer", "name", "eth0", "netns", node.name()];
    switch.ip(&veth)?;
    switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
    node.ip(&["addr", "add", address, "dev", "eth0"])?;
    node.ip(&["link", "set", "eth0", "up"])?;
    Ok(port)
}
