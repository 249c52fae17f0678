//! The command line: what can be asked for, and where it goes. No state.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{client, role};

/// Sheaf turns Linux machines into one cluster that runs virtual machines.
#[derive(Parser)]
#[command(
    name = "sheaf",
    version,
    arg_required_else_help = true,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = concat!("First steps, on one machine, as root:
  sheaf server &
  sheaf image import debian-12 https://HOST/debian-12.qcow2
  sheaf vm create web --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub
  sheaf ssh debian@web

All but `server`, `agent` and `storage` are clients of the API: they work from any machine that has a kubeconfig (`sheaf kubeconfig`). `sheaf volume --control` speaks to this machine's storage process instead.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the named object does not exist; 4 it took longer than --timeout.")
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane, and this machine's agent unless told not to.
    Server(role::server::ServerArgs),
    /// Run this machine as a node of a cluster.
    Agent(role::agent::AgentArgs),
    /// Run this machine's block storage: replicas on its disks, and the volumes that are attached here.
    Storage(role::storage::StorageArgs),
    /// Show whether the cluster is well: nodes, VMs, images, and what needs attention and why.
    Status(client::status::StatusArgs),
    /// Virtual machines: list, create, start, stop, delete, ...
    Vm(client::vm::VmArgs),
    /// Replicated volumes: list, create, snapshot, check, ...; with --control, this machine's own.
    Volume(client::volume::VolumeArgs),
    /// Images that disks are made from: list, import, upload, delete.
    Image(client::image::ImageArgs),
    /// Open the serial console of a VM. Ctrl-] leaves.
    Console(client::stream::console::ConsoleArgs),
    /// Log in to a VM by ssh, through the API.
    Ssh(client::stream::ssh::SshArgs),
    /// Copy files to a VM or from it, through the API.
    Scp(client::stream::scp::ScpArgs),
    /// Make ports of a VM reachable on this machine.
    PortForward(client::stream::forward::ForwardArgs),
    /// Show the screen of a VM.
    Vnc(client::stream::vnc::VncArgs),
    /// Print the administrator's kubeconfig, or merge it into ~/.kube/config.
    Kubeconfig(client::kubeconfig::KubeconfigArgs),
    /// Print a token with which a further machine joins the cluster.
    Token(client::token::TokenArgs),
    /// Print a script that lets a shell complete these commands.
    #[command(
        after_help = "Examples:\n  sheaf completion bash > /etc/bash_completion.d/sheaf\n  sheaf completion zsh > \"${fpath[1]}/_sheaf\"\n  sheaf completion fish > ~/.config/fish/completions/sheaf.fish\n\nExit codes: 0 done; 2 wrong usage."
    )]
    Completion {
        /// The shell.
        shell: Shell,
    },
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Server(args) => role::block_on(role::server::run(args)),
            Command::Agent(args) => role::block_on(role::agent::run(args)),
            Command::Storage(args) => role::storage::run(args),
            Command::Status(args) => client::status::run(args),
            Command::Vm(args) => client::vm::run(args),
            Command::Volume(args) => client::volume::run(args),
            Command::Image(args) => client::image::run(args),
            Command::Console(args) => client::stream::console::run(args),
            Command::Ssh(args) => client::stream::ssh::run(args),
            Command::Scp(args) => client::stream::scp::run(args),
            Command::PortForward(args) => client::stream::forward::run(args),
            Command::Vnc(args) => client::stream::vnc::run(args),
            Command::Kubeconfig(args) => client::kubeconfig::run(args),
            Command::Token(args) => client::token::run(args),
            Command::Completion { shell } => client::completion(shell, &mut Args::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
