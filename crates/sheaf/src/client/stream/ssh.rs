//! `sheaf ssh`: this machine's ssh, through the API to the guest's port.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use sheaf_meta::object;

use super::super::api::{INSTANCES, VMS};
use super::super::connect::Connection;
use super::super::fail::{Exit, FAILED};
use super::super::vm::VmView;

/// Options of `sheaf ssh`.
#[derive(Args)]
#[command(after_help = "Examples:
  sheaf ssh debian@web
  sheaf ssh -i ~/.ssh/lab debian@web -- uname -a
  sheaf ssh debian@web -- -L 8080:localhost:80 -N

Runs this machine's ssh, whose connection goes through the API: no route to the guest is needed. Host keys are kept by the VM's uid in ~/.ssh/known_hosts, so a VM that was made anew under an old name is no stranger.

Exit codes: those of ssh (255: no connection), or 1 failed, 2 wrong usage, 3 there is no such VM.")]
pub(crate) struct SshArgs {
    #[command(flatten)]
    connection: Connection,
    /// User and name of the VM; without USER@ ssh chooses.
    #[arg(value_name = "[USER@]VM")]
    target: String,
    /// File with the private key.
    #[arg(short, long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Port of the guest's ssh server.
    #[arg(short, long, value_name = "PORT", default_value_t = 22)]
    port: u16,
    /// Options and command for ssh.
    #[arg(last = true, value_name = "SSH-ARGS")]
    rest: Vec<OsString>,
}

/// Becomes ssh.
pub(crate) fn run(args: SshArgs) -> Result<()> {
    let (login, vm) = user(&args.target);
    let Some(guest) = find(&args.connection, vm)? else { return Ok(()) };
    let mut all = guest.options(&args.connection, args.port, args.identity_file.as_deref())?;
    if let Some(login) = login {
        all.extend(["-l".into(), login.into()]);
    }
    all.push(guest.host().into());
    all.extend(args.rest);
    Err(turn_into("ssh", &all))
}

/// A guest that runs.
#[derive(Debug)]
pub(super) struct Guest {
    namespace: String,
    name: String,
    uid: String,
}

/// Finds a VM and makes sure that it runs. None if the command was interrupted.
pub(super) fn find(connection: &Connection, vm: &str) -> Result<Option<Guest>> {
    let mut found = None;
    super::super::run(connection, async |session| {
        let (namespace, name) = session.name(vm);
        let vm = session.get(VMS, namespace, name).await?;
        let instance = session.find(INSTANCES, namespace, name).await?;
        let view = VmView { vm: &vm, instance: instance.as_ref() };
        if view.phase() != "Running" {
            let why: String = view.why().iter().map(|why| format!(": {why}")).collect();
            let hint =
                if view.status() == "Stopped" { format!("; `sheaf vm start {name}` starts it") } else { why };
            return Err(Exit::error(
                FAILED,
                format!("VM {namespace}/{name} does not run, it is {}{hint}", view.status()),
            ));
        }
        let uid = object::uid(&vm).to_owned();
        found = Some(Guest { namespace: namespace.to_owned(), name: name.to_owned(), uid });
        Ok(())
    })?;
    Ok(found)
}

impl Guest {
    /// What ssh calls it; no name server is asked.
    pub(super) fn host(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// Options with which ssh and scp get there through the API.
    pub(super) fn options(
        &self,
        connection: &Connection,
        port: u16,
        identity: Option<&Path>,
    ) -> Result<Vec<OsString>> {
        let program = std::env::current_exe().context("finding this program's own path")?;
        Ok(self.options_by(&program, connection, port, identity))
    }

    fn options_by(
        &self,
        program: &Path,
        connection: &Connection,
        port: u16,
        identity: Option<&Path>,
    ) -> Vec<OsString> {
        let mut proxy = vec![program.as_os_str().to_owned(), "port-forward".into(), "--stdio".into()];
        proxy.extend(connection.options(&self.namespace));
        proxy.extend([OsString::from(&self.name), port.to_string().into()]);
        let mut all: Vec<OsString> = Vec::new();
        let mut option = |text: String| all.extend(["-o".into(), text.into()]);
        option(format!("ProxyCommand={}", proxy_command(&proxy)));
        option(format!("HostKeyAlias=sheaf-{}", self.uid));
        // The API has proved which VM this is.
        option("StrictHostKeyChecking=accept-new".into());
        option("CheckHostIP=no".into());
        if let Some(file) = identity {
            all.extend(["-i".into(), file.into()]);
        }
        all
    }
}

/// Becomes another program of the OpenSSH client; returns only if that fails.
pub(super) fn turn_into(program: &str, arguments: &[OsString]) -> anyhow::Error {
    let error = Command::new(program).args(arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        let text = format!("there is no {program} on this machine; Debian's package is openssh-client");
        return Exit::error(FAILED, text);
    }
    anyhow::Error::new(error).context(format!("running {program}"))
}

/// `USER@VM` taken apart.
pub(super) fn user(target: &str) -> (Option<&str>, &str) {
    match target.rsplit_once('@') {
        Some((user, vm)) => (Some(user), vm),
        None => (None, target),
    }
}

/// Quoted for the shell that ssh runs it with, and for ssh's own `%`.
fn proxy_command(words: &[OsString]) -> String {
    let quote = |word: &OsString| {
        let word = word.to_string_lossy().replace('%', "%%");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%@,+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_is_told() {
        let connection = Connection { kubeconfig: Some("/a b/c".into()), ..Connection::default() };
        let guest = Guest { namespace: "lab".into(), name: "web".into(), uid: "u-1".into() };
        let all = guest.options_by(Path::new("/bin/sheaf"), &connection, 22, Some(Path::new("/k")));
        let all: Vec<String> = all.into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(
            all,
            [
                "-o",
                "ProxyCommand=/bin/sheaf port-forward --stdio --kubeconfig '/a b/c' --namespace lab web 22",
                "-o",
                "HostKeyAlias=sheaf-u-1",
                "-o",
                "StrictHostKeyChecking=accept-new",
                "-o",
                "CheckHostIP=no",
                "-i",
                "/k",
            ]
        );
        assert_eq!(guest.host(), "web.lab");
        assert_eq!(user("me@lab/web"), (Some("me"), "lab/web"));
    }

    #[test]
    fn quoting() {
        let words = ["a", "", "it's", "50%", "$x"].map(OsString::from);
        assert_eq!(proxy_command(&words), r"a '' 'it'\''s' 50%% '$x'");
    }
}
