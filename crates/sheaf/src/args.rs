//! The command line: what can be asked for, and where it goes. No state.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::role;

/// Sheaf turns Linux machines into one cluster that runs virtual machines.
#[derive(Parser)]
#[command(name = "sheaf", version, arg_required_else_help = true, propagate_version = true)]
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
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Server(args) => role::block_on(role::server::run(args)),
            Command::Agent(args) => role::block_on(role::agent::run(args)),
        }
    }
}
