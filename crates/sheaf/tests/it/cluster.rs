//! A server for one test, removed with all that it started.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The pause between two looks, of which each has a deadline.
#[expect(clippy::disallowed_methods, reason = "the tests' own wait, level-triggered and with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// A running server.
pub(crate) struct Cluster {
    namespace: String,
    dir: TempDir,
    server: Child,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Fails the test unless the command ended with this code.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails the test unless standard error holds this.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{text:?} is not in {self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

fn ip(args: &[&str]) -> Output {
    Command::new("ip").args(args).output().expect("ip runs; Debian's package is iproute2")
}

impl Cluster {
    /// Starts a server, and waits until its node is ready; `None` without root.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {test} needs root, for a network namespace. Nothing was tested.");
            return None;
        }
        let namespace = format!("sheaf-cli-{}-{test}", std::process::id());
        let added = ip(&["netns", "add", &namespace]);
        assert!(added.status.success(), "{added:?}");
        let up = ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        assert!(up.status.success(), "{up:?}");
        let dir = tempfile::Builder::new().prefix("sheaf-cli-").tempdir().expect("a directory");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_sheaf"), "server", "--node-name", "n1"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log again"))
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let cluster = Self { namespace, dir, server };
        cluster.until("the node to be ready", || {
            let done = cluster.sheaf(&["status", "-o", "json", "--exit-code"]);
            if done.code == 0 { Ok(()) } else { Err(format!("{done:#?}")) }
        });
        Some(cluster)
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    pub(crate) fn home(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program in the server's namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command.env("HOME", self.home()).env("SHEAF_DATA_DIR", self.data());
        command.env("KUBECONFIG", self.data().join("admin.kubeconfig"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs the command line to its end.
    pub(crate) fn sheaf(&self, args: &[&str]) -> Done {
        Done::of(self.command(env!("CARGO_BIN_EXE_sheaf")).args(args).output().expect("sheaf runs"))
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Done {
        Done::of(self.command("kubectl").args(args).output().expect("kubectl runs"))
    }

    /// An empty disk as an image.
    pub(crate) fn upload_blank(&self, name: &str) {
        let mut mbr = vec![0; 1 << 20];
        // Marks it as bootable, so that it is known for a raw disk.
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        let file = self.file("blank.img", mbr);
        self.sheaf(&["image", "upload", name, &file.to_string_lossy()]).ends(0);
    }

    /// Looks again and again until it holds.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            match look() {
                Ok(reached) => return reached,
                Err(last) if begun.elapsed() > DEADLINE => {
                    panic!("waited for {what}; last seen: {last}\n{}", self.log())
                }
                Err(_) => pause(),
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
        // Guests outlive their server; these end with their namespace.
        for _ in 0..50 {
            let listed =
                String::from_utf8_lossy(&ip(&["netns", "pids", &self.namespace]).stdout).into_owned();
            let pids: Vec<i32> = listed.split_whitespace().filter_map(|p| p.parse().ok()).collect();
            if pids.is_empty() {
                break;
            }
            for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            pause();
        }
        ip(&["netns", "del", &self.namespace]);
    }
}
