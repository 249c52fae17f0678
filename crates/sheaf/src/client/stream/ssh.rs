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
    let mut found = None;
    super::super::run(&args.connection, async |session| {
        let (_, vm) = user(&args.target);
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
        found = Some((namespace.to_owned(), name.to_owned(), object::uid(&vm).to_owned()));
        Ok(())
    })?;
    let Some((namespace, name, uid)) = found else { return Ok(()) };
    let program = std::env::current_exe().context("finding this program's own path")?;
    let arguments = arguments(&args, &program, &namespace, &name, &uid);
    let error = Command::new("ssh").args(&arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        return Err(Exit::error(
            FAILED,
            "there is no ssh on this machine; Debian's package is openssh-client",
        ));
    }
    Err(anyhow::Error::new(error).context("running ssh"))
}

fn user(target: &str) -> (Option<&str>, &str) {
    match target.rsplit_once('@') {
        Some((user, vm)) => (Some(user), vm),
        None => (None, target),
    }
}

/// The arguments of ssh.
fn arguments(args: &SshArgs, program: &Path, namespace: &str, name: &str, uid: &str) -> Vec<OsString> {
    let mut proxy = vec![program.as_os_str().to_owned(), "port-forward".into(), "--stdio".into()];
    proxy.extend(args.connection.options(namespace));
    proxy.extend([name.into(), args.port.to_string().into()]);
    let mut all: Vec<OsString> = Vec::new();
    let mut option = |text: String| all.extend(["-o".into(), text.into()]);
    option(format!("ProxyCommand={}", proxy_command(&proxy)));
    option(format!("HostKeyAlias=sheaf-{uid}"));
    // The API has proved which VM this is.
    option("StrictHostKeyChecking=accept-new".into());
    option("CheckHostIP=no".into());
    if let Some(file) = &args.identity_file {
        all.extend(["-i".into(), file.into()]);
    }
    if let (Some(user), _) = user(&args.target) {
        all.extend(["-l".into(), user.into()]);
    }
    all.push(format!("{name}.{namespace}").into());
    all.extend(args.rest.iter().cloned());
    all
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
        let args = SshArgs {
            connection: Connection { kubeconfig: Some("/a b/c".into()), ..Connection::default() },
            target: "me@lab/web".into(),
            identity_file: Some("/k".into()),
            port: 22,
            rest: vec!["uname".into(), "-a".into()],
        };
        let all = arguments(&args, Path::new("/bin/sheaf"), "lab", "web", "u-1");
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
                "-l",
                "me",
                "web.lab",
                "uname",
                "-a",
            ]
        );
    }

    #[test]
    fn quoting() {
        let words = ["a", "", "it's", "50%", "$x"].map(OsString::from);
        assert_eq!(proxy_command(&words), r"a '' 'it'\''s' 50%% '$x'");
    }
}
