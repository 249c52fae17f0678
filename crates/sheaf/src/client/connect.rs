//! Which cluster is meant, and how it is reached: from options, environment and files to a client.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::fail::Exit;

/// Where the server keeps its data unless it is told otherwise.
const DATA_DIR: &str = "/var/lib/sheaf";

/// Which cluster is meant.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Connection {
    /// Kubeconfig of the cluster. Without it the first of these is used: <data-dir>/admin.kubeconfig where
    /// --data-dir is given, the files in $KUBECONFIG, admin.kubeconfig in $SHEAF_DATA_DIR or /var/lib/sheaf,
    /// ~/.kube/config.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Data directory of a server on this machine, for its admin.kubeconfig.
    #[arg(long, value_name = "DIR", global = true, help_heading = "Connection")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Context of the kubeconfig; its current one if absent.
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    pub(crate) context: Option<String>,
    /// Namespace; that of the kubeconfig's context if absent, and else `default`.
    #[arg(short, long, value_name = "NAME", global = true, help_heading = "Connection")]
    pub(crate) namespace: Option<String>,
}

/// What the process was told beside its arguments.
#[derive(Debug, Default, Clone)]
pub(crate) struct Surroundings {
    kubeconfig: Option<OsString>,
    data_dir: Option<PathBuf>,
    home: Option<PathBuf>,
}

impl Surroundings {
    /// From the environment. Empty variables count as absent.
    pub(crate) fn here() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            kubeconfig: var("KUBECONFIG"),
            data_dir: var("SHEAF_DATA_DIR").map(PathBuf::from),
            home: var("HOME").map(PathBuf::from),
        }
    }

    /// Where kubectl looks by default.
    pub(crate) fn home_kubeconfig(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(".kube/config"))
    }
}

/// Files to be read together, as one kubeconfig; and whether the next candidate is tried where they are missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) fallback: bool,
}

impl Connection {
    /// These options for another process of this program, with that namespace.
    pub(crate) fn options(&self, namespace: &str) -> Vec<OsString> {
        let mut options: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: Option<&OsStr>| {
            options.extend(value.into_iter().flat_map(|value| [name.into(), value.to_owned()]));
        };
        option("--kubeconfig", self.kubeconfig.as_ref().map(|p| p.as_os_str()));
        option("--data-dir", self.data_dir.as_ref().map(|p| p.as_os_str()));
        option("--context", self.context.as_ref().map(OsStr::new));
        option("--namespace", Some(OsStr::new(namespace)));
        options
    }

    /// Where a kubeconfig is looked for, in this order.
    pub(crate) fn candidates(&self, around: &Surroundings) -> Vec<Candidate> {
        let sole = |file: PathBuf| vec![Candidate { files: vec![file], fallback: false }];
        if let Some(file) = &self.kubeconfig {
            return sole(file.clone());
        }
        if let Some(dir) = &self.data_dir {
            return sole(dir.join("admin.kubeconfig"));
        }
        let mut candidates = Vec::new();
        if let Some(list) = &around.kubeconfig {
            let files = std::env::split_paths(list).filter(|p| !p.as_os_str().is_empty()).collect();
            candidates.push(Candidate { files, fallback: true });
        }
        candidates.push(Candidate { files: vec![around.admin_kubeconfig()], fallback: true });
        candidates
            .extend(around.home_kubeconfig().map(|file| Candidate { files: vec![file], fallback: true }));
        candidates
    }
}

impl Surroundings {
    /// The kubeconfig that a server on this machine writes.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.as_deref().unwrap_or(Path::new(DATA_DIR)).join("admin.kubeconfig")
    }
}

/// A kubeconfig, and which file (or files) it came from.
pub(crate) fn find(candidates: &[Candidate]) -> Result<(Kubeconfig, String)> {
    let mut tried = Vec::new();
    for candidate in candidates {
        let mut merged: Option<Kubeconfig> = None;
        let mut from = Vec::new();
        for file in &candidate.files {
            match std::fs::metadata(file).and_then(|_| std::fs::File::open(file)) {
                Err(error) => tried.push(format!("{}: {}", file.display(), plain(&error))),
                Ok(_) => {
                    let read = Kubeconfig::read_from(file)
                        .with_context(|| format!("{} is no valid kubeconfig", file.display()))?;
                    merged = Some(match merged {
                        None => read,
                        Some(first) => first.merge(read).with_context(|| {
                            format!("{} cannot be merged with the files before it", file.display())
                        })?,
                    });
                    from.push(file.display().to_string());
                }
            }
        }
        if let Some(found) = merged {
            return Ok((found, from.join(", ")));
        }
        if !candidate.fallback {
            break;
        }
    }
    let denied = tried.iter().any(|line| line.ends_with("permission denied"));
    let hint = if denied {
        "A server's admin.kubeconfig is for root: use sudo, or let root run `sheaf kubeconfig` and keep its output in ~/.kube/config."
    } else {
        "On a server's machine, as root, `sheaf status --data-dir DIR` finds it; elsewhere give --kubeconfig, with a file that `sheaf kubeconfig` printed on the server."
    };
    Err(Exit::error(
        super::fail::FAILED,
        format!("no kubeconfig was found, so no cluster is known. Tried:\n  {}\n{hint}", tried.join("\n  ")),
    ))
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

/// A way to a cluster.
pub(crate) struct Session {
    pub(crate) client: kube::Client,
    pub(crate) config: kube::Config,
    /// Namespace that is meant where none is named.
    pub(crate) namespace: String,
    /// Address of the API.
    pub(crate) url: String,
    /// The file that says so.
    pub(crate) origin: String,
}

impl Session {
    /// Finds the kubeconfig and makes a client of it; nothing is sent yet.
    pub(crate) async fn open(connection: &Connection) -> Result<Self> {
        let (kubeconfig, origin) = find(&connection.candidates(&Surroundings::here()))?;
        Self::of(connection, kubeconfig, origin).await
    }

    async fn of(connection: &Connection, kubeconfig: Kubeconfig, origin: String) -> Result<Self> {
        let options = KubeConfigOptions { context: connection.context.clone(), ..Default::default() };
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("the kubeconfig {origin}"))?;
        // An unanswered question is answered by the user, who is there: no retries of minutes; but streams may be idle.
        config.connect_timeout = Some(std::time::Duration::from_secs(10));
        config.read_timeout = None;
        config.write_timeout = None;
        config.default_retry = false;
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = kube::Client::try_from(config.clone())
            .with_context(|| format!("the credentials of the kubeconfig {origin}"))?;
        Ok(Self { client, config, namespace, url, origin })
    }

    /// The same way to the cluster, for a task of its own.
    pub(crate) fn share(&self) -> Self {
        Self {
            client: self.client.clone(),
            config: self.config.clone(),
            namespace: self.namespace.clone(),
            url: self.url.clone(),
            origin: self.origin.clone(),
        }
    }

    /// `NAMESPACE/NAME` taken apart; a bare name is one of the session's namespace.
    pub(crate) fn name<'a>(&'a self, text: &'a str) -> (&'a str, &'a str) {
        text.split_once('/').unwrap_or((&self.namespace, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_kubeconfig_is_looked_for() {
        let around = Surroundings {
            kubeconfig: Some("/a:/b".into()),
            data_dir: Some("/data".into()),
            home: Some("/home/x".into()),
        };
        let files = |connection: &Connection, around: &Surroundings| -> Vec<String> {
            let shown =
                |c: &Candidate| c.files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join("+");
            connection.candidates(around).iter().map(shown).collect()
        };
        let none = Connection::default();
        assert_eq!(files(&none, &around), ["/a+/b", "/data/admin.kubeconfig", "/home/x/.kube/config"]);
        assert_eq!(files(&none, &Surroundings::default()), ["/var/lib/sheaf/admin.kubeconfig"]);
        let dir = Connection { data_dir: Some("/d".into()), ..Default::default() };
        assert_eq!(files(&dir, &around), ["/d/admin.kubeconfig"]);
        let file = Connection { kubeconfig: Some("/f".into()), ..dir };
        assert_eq!(files(&file, &around), ["/f"]);
    }

    #[test]
    fn what_was_tried_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let missing = |name: &str| Candidate { files: vec![dir.path().join(name)], fallback: true };
        let text = find(&[missing("a"), missing("b")]).unwrap_err().to_string();
        assert!(text.contains("/a: no such file\n"), "{text}");
        assert!(text.contains("/b: no such file\n"), "{text}");
    }
}
