//! `sheaf kubeconfig`: the way to this cluster, for other programs and other machines. Merging changes one cluster, user
//! and context in a file and leaves the rest of it as it is (comments excepted, as kubectl does).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::connect::{Candidate, Connection, Surroundings, find};
use super::fail::{Exit, FAILED};
use super::print::{put, say, yaml};

/// Options of `sheaf kubeconfig`.
#[derive(Args)]
#[command(after_help = "Examples:
  sheaf kubeconfig --server https://10.0.0.5:6443 > sheaf.kubeconfig
  sheaf kubeconfig --merge && kubectl get vm

Prints the administrator's kubeconfig of the server on this machine, or the one that --kubeconfig names. Whoever has it can do everything in the cluster.

Exit codes: 0 done; 1 failed; 2 wrong usage.")]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    connection: Connection,
    /// Address to be written in place of the file's own.
    #[arg(long, value_name = "https://HOST:PORT", value_parser = server)]
    server: Option<String>,
    /// Write it into ~/.kube/config, and make it the current context there.
    #[arg(long)]
    merge: bool,
    /// Name of cluster, user and context in the merged file.
    #[arg(long, value_name = "NAME", default_value = "sheaf", requires = "merge")]
    name: String,
}

fn server(text: &str) -> Result<String, String> {
    let uri: Option<http::Uri> = text.parse().ok();
    match uri.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(format!("{text:?} is not the address of a server: expected https://HOST:PORT")),
    }
}

/// Prints or merges; asks no server.
pub(crate) fn run(args: KubeconfigArgs) -> Result<()> {
    let around = Surroundings::here();
    let mut candidates = args.connection.candidates(&around);
    if args.connection.kubeconfig.is_none() && args.connection.data_dir.is_none() {
        // The cluster of this machine's server is meant before whatever $KUBECONFIG points to.
        candidates.insert(0, Candidate { files: vec![around.admin_kubeconfig()], fallback: true });
        candidates.dedup();
    }
    let (kubeconfig, origin) = find(&candidates)?;
    let whole = serde_json::to_value(&kubeconfig)?;
    let mut entry = Entry::of(&whole, args.connection.context.as_deref()).with_context(|| origin.clone())?;
    if let Some(server) = &args.server {
        entry.cluster["server"] = server.as_str().into();
    }
    if let Some(namespace) = &args.connection.namespace {
        entry.context["namespace"] = namespace.as_str().into();
    }
    if !args.merge {
        let mut alone = json!({"apiVersion": "v1", "kind": "Config"});
        entry.put_into(&mut alone, &entry.name.clone());
        return put(&yaml(&alone)?);
    }
    let Some(path) = around.home_kubeconfig() else {
        return Err(Exit::error(FAILED, "$HOME is not set, so there is no ~/.kube/config"));
    };
    let changed = merge_into(&path, &entry, &args.name)?;
    let what = if changed { "has" } else { "had already" };
    say(&format!("{} {what} the context {} (from {origin})", path.display(), args.name));
    Ok(())
}

/// One context of a kubeconfig with what belongs to it.
#[derive(Debug)]
struct Entry {
    name: String,
    cluster: Value,
    user: Value,
    context: Value,
}

impl Entry {
    fn of(config: &Value, context: Option<&str>) -> Result<Self> {
        let named = |list: &str, name: &str, part: &str| -> Result<Value> {
            let all = config[list].as_array();
            let found = all.into_iter().flatten().find(|item| item["name"] == name);
            found
                .map(|item| item[part].clone())
                .with_context(|| format!("it has no entry {name:?} in {list}"))
        };
        let name = context.or(config["current-context"].as_str()).context("it has no current-context")?;
        let context = named("contexts", name, "context")?;
        let text = |field: &str| context[field].as_str().unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            cluster: named("clusters", text("cluster"), "cluster")?,
            user: named("users", text("user"), "user")?,
            context,
        })
    }

    /// Writes this under one name, over what had it, and makes it the current context.
    fn put_into(&self, config: &mut Value, name: &str) {
        let mut context = self.context.clone();
        context["cluster"] = name.into();
        context["user"] = name.into();
        let parts = [
            ("clusters", "cluster", &self.cluster),
            ("users", "user", &self.user),
            ("contexts", "context", &context),
        ];
        for (list, part, value) in parts {
            let entry = json!({"name": name, part: value});
            if !config[list].is_array() {
                config[list] = json!([]);
            }
            let Some(all) = config[list].as_array_mut() else { continue };
            match all.iter_mut().find(|item| item["name"] == name) {
                Some(old) => *old = entry,
                None => all.push(entry),
            }
        }
        config["current-context"] = name.into();
    }
}

/// Puts an entry into a file, which is replaced at once, readable by its owner only. False if nothing changed.
fn merge_into(path: &Path, entry: &Entry, name: &str) -> Result<bool> {
    // A link stays one.
    let path: PathBuf = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => json!({"apiVersion": "v1", "kind": "Config"}),
        Ok(text) => serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is no valid YAML; it is left as it is", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            json!({"apiVersion": "v1", "kind": "Config", "preferences": {}})
        }
        Err(error) => return Err(anyhow::Error::new(error).context(format!("reading {}", path.display()))),
    };
    if !before.is_object() {
        bail!("{} is no kubeconfig; it is left as it is", path.display());
    }
    let mut after = before.clone();
    entry.put_into(&mut after, name);
    if after == before {
        return Ok(false);
    }
    let dir = path.parent().context("a file in a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let new = dir.join(format!(".config.sheaf-{}", std::process::id()));
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(yaml(&after).map_err(std::io::Error::other)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written.with_context(|| format!("writing {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sheaf(server: &str) -> Value {
        json!({
            "current-context": "sheaf",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority-data": "QQ=="}}],
            "users": [{"name": "u", "user": {"client-key-data": "Qg=="}}],
            "contexts": [{"name": "sheaf", "context": {"cluster": "c", "user": "u"}}],
        })
    }

    #[test]
    fn others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".kube/config");
        let entry = Entry::of(&sheaf("https://a:1"), None).unwrap();
        assert!(merge_into(&path, &entry, "sheaf").unwrap(), "a new file");
        assert!(!merge_into(&path, &entry, "sheaf").unwrap(), "nothing new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let other = "apiVersion: v1\nkind: Config\ncurrent-context: work\nx-own: 1\nclusters:\n- name: work\n  cluster: {server: 'https://w'}\n- name: sheaf\n  cluster: {server: 'https://old'}\nusers: null\n";
        std::fs::write(&path, other).unwrap();
        assert!(merge_into(&path, &entry, "sheaf").unwrap());
        let after: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(after["current-context"], "sheaf");
        assert_eq!(after["x-own"], 1);
        assert_eq!(after["clusters"][0]["cluster"]["server"], "https://w");
        assert_eq!(after["clusters"][1]["cluster"]["server"], "https://a:1");
        assert_eq!(after["users"][0]["user"]["client-key-data"], "Qg==");
        assert_eq!(after["contexts"][0]["context"], json!({"cluster": "sheaf", "user": "sheaf"}));
        let config = kube::config::Kubeconfig::read_from(&path).unwrap();
        assert_eq!(config.current_context.as_deref(), Some("sheaf"));

        std::fs::write(&path, "- not\n- a map\n").unwrap();
        assert!(merge_into(&path, &entry, "sheaf").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "- not\n- a map\n");
    }

    #[test]
    fn what_a_kubeconfig_lacks() {
        let error = Entry::of(&sheaf("https://a:1"), Some("x")).unwrap_err().to_string();
        assert_eq!(error, "it has no entry \"x\" in contexts");
        assert!(Entry::of(&json!({}), None).is_err());
    }

    #[test]
    fn addresses() {
        assert_eq!(server("https://h:6443/"), Ok("https://h:6443".into()));
        for bad in ["h:6443", "http://h", "https://", ""] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }
}
