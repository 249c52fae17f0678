//! Network namespaces for tests: each test runs in one of its own, with further ones for its peers.
//!
//! The test binary starts itself again under `unshare`, so a namespace ends with the process that is in it; nothing is
//! left in `/run/netns`, and the machine's own interfaces are out of reach. Used by the packages above, too.
#![allow(dead_code, reason = "each package uses a part of it")]

use std::io::Read as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const MARK: &str = "SHEAF_TEST_NETNS";
const DEADLINE: Duration = Duration::from_secs(90);

/// Runs `body` in a new network namespace with `lo` up. `test` is the full name of the calling test.
pub(crate) fn inside(test: &str, programs: &[&str], body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        body();
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: it needs root to make network namespaces");
        return;
    }
    for program in ["unshare", "nsenter", "ip"].iter().chain(programs) {
        if Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED {test}: the program {program} is not installed");
            return;
        }
    }
    let own = std::env::current_exe().unwrap();
    let mut child = Command::new("unshare")
        .args(["--net", "--kill-child", "--fork", "--"])
        .arg(own)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .spawn()
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    wait(&format!("{test} to end within its namespace"), deadline, || match child.try_wait().unwrap() {
        Some(status) if status.success() => Ok(()),
        Some(status) => panic!("{test} failed within its namespace: {status}"),
        None if Instant::now() > deadline - Duration::from_millis(500) => {
            let _ = child.kill();
            Err("killed".to_owned())
        }
        None => Err("running".to_owned()),
    });
}

/// Another network namespace, which ends when this is dropped or the test dies.
pub(crate) struct Netns {
    holder: Child,
}

impl Netns {
    pub(crate) fn new() -> Self {
        // `cat` ends when its standard input does, which is ours.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let netns = Self { holder };
        netns.run("ip", &["link", "set", "lo", "up"]);
        netns
    }

    pub(crate) fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// A command that will run in there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid(), "--", program]);
        command
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        checked(program, self.command(program).args(arguments).output().unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a command in the test's namespace; panics with its output if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    checked(program, Command::new(program).args(arguments).output().unwrap())
}

/// Runs several `ip` commands.
pub(crate) fn ip(commands: &[&str]) {
    for command in commands {
        run("ip", &command.split(' ').collect::<Vec<_>>());
    }
}

fn checked(program: &str, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Waits until `look` says that the state is there; panics with the last state if it does not come.
pub(crate) fn wait<T>(what: &str, deadline: Instant, mut look: impl FnMut() -> Result<T, String>) -> T {
    loop {
        match look() {
            Ok(value) => return value,
            Err(state) if Instant::now() > deadline => panic!("waited for {what}; last state: {state}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}
