//! `sheaf scp`: this machine's scp, through the API to the guest's port.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::super::connect::Connection;
use super::super::fail::Exit;
use super::ssh::{find, turn_into, user};

/// Options of `sheaf scp`.
#[derive(Args)]
#[command(after_help = "Examples:
  sheaf scp site.tar debian@web:/var/www/
  sheaf scp -r debian@lab/web:/var/log ./logs
  sheaf scp -i ~/.ssh/lab ./a:b.txt debian@web:

What has a colon is a path in a guest, unless it begins with / or with a dot. All such paths are of one VM.

Runs this machine's scp, whose connection goes through the API, as `sheaf ssh` does.

Exit codes: those of scp, or 1 failed, 2 wrong usage, 3 there is no such VM.")]
pub(crate) struct ScpArgs {
    #[command(flatten)]
    connection: Connection,
    /// Files, the last of which is where the others go. In a guest: [USER@]VM:PATH.
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    paths: Vec<String>,
    /// File with the private key.
    #[arg(short, long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Port of the guest's ssh server.
    #[arg(short = 'P', long, value_name = "PORT", default_value_t = 22)]
    port: u16,
    /// Directories with all that is in them.
    #[arg(short, long)]
    recursive: bool,
    /// Keep times and modes.
    #[arg(short, long)]
    preserve: bool,
}

/// Becomes scp.
pub(crate) fn run(args: ScpArgs) -> Result<()> {
    let vm = only_vm(&args.paths)?;
    let Some(guest) = find(&args.connection, vm)? else { return Ok(()) };
    let mut all = guest.options(&args.connection, args.port, args.identity_file.as_deref())?;
    for (wanted, flag) in [(args.recursive, "-r"), (args.preserve, "-p")] {
        if wanted {
            all.push(flag.into());
        }
    }
    all.push("--".into());
    all.extend(args.paths.iter().map(|path| as_scp(path, &guest.host())));
    Err(turn_into("scp", &all))
}

/// A path in a guest: who logs in, the VM, and the path there.
fn remote(text: &str) -> Option<(Option<&str>, &str, &str)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    let (place, path) = text.split_once(':')?;
    let (login, vm) = user(place);
    (!vm.is_empty()).then_some((login, vm, path))
}

/// The VM that the paths name.
fn only_vm(paths: &[String]) -> Result<&str> {
    let mut vms = paths.iter().filter_map(|path| remote(path)).map(|(_, vm, _)| vm);
    let Some(first) = vms.next() else {
        return Err(Exit::usage("none of the paths is in a VM: write [USER@]VM:PATH for one of them"));
    };
    match vms.find(|vm| *vm != first) {
        Some(other) => Err(Exit::usage(format!(
            "the paths are in two VMs, {first} and {other}: copy to this machine first"
        ))),
        None => Ok(first),
    }
}

/// A path as scp reads it: what it would take for another machine is told to be a file here.
fn as_scp(path: &str, host: &str) -> OsString {
    match remote(path) {
        Some((login, _, path)) => {
            let login: String = login.map(|user| format!("{user}@")).unwrap_or_default();
            format!("{login}{host}:{path}").into()
        }
        None => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_guests_and_here() {
        let table = [
            ("me@web:/a b", Some((Some("me"), "web", "/a b"))),
            ("lab/web:x:y", Some((None, "lab/web", "x:y"))),
            ("web:", Some((None, "web", ""))),
            ("./a:b", None),
            ("/a:b", None),
            ("plain", None),
            (":x", None),
        ];
        for (text, expected) in table {
            assert_eq!(remote(text), expected, "{text}");
        }
        assert_eq!(as_scp("me@lab/web:/x", "web.lab"), "me@web.lab:/x");
        assert_eq!(as_scp("./a:b", "web.lab"), "./a:b");
    }

    #[test]
    fn one_vm_is_needed() {
        let paths = |texts: [&str; 2]| texts.map(String::from);
        assert_eq!(only_vm(&paths(["a", "web:b"])).unwrap(), "web");
        let none = only_vm(&paths(["a", "b"])).unwrap_err().to_string();
        assert!(none.contains("none of the paths is in a VM"), "{none}");
        let two = only_vm(&paths(["web:a", "db:b"])).unwrap_err().to_string();
        assert!(two.contains("two VMs, web and db"), "{two}");
    }
}
