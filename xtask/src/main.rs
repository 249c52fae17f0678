//! Repository chores, a thin dispatcher: one module for each.

mod gaps;
mod protobuf;
mod schemas;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Chores of the repository.
#[derive(Parser)]
#[command(name = "xtask")]
enum Chore {
    /// Checks what no compiler checks: floors, file headers, length of files, words that must not appear.
    Tidy,
    /// Writes the table of core Kubernetes' shapes from its published OpenAPI definitions.
    Schemas {
        /// OpenAPI definitions of the Kubernetes version in use.
        #[arg(long)]
        definitions: PathBuf,
    },
    /// Writes the table from which protobuf bodies are read.
    Protobuf {
        /// The unpacked crate `k8s-pb`.
        #[arg(long)]
        k8s_pb: PathBuf,
        /// OpenAPI definitions of the Kubernetes version in use.
        #[arg(long)]
        definitions: PathBuf,
    },
    /// Prints which fields of other schemas ours lack, kind by kind.
    SchemaGaps {
        /// Directory of `*.definitions.json` and `*.crds.json` files.
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Chore::parse() {
        Chore::Tidy => tidy::run(),
        Chore::Schemas { definitions } => schemas::run(&definitions),
        Chore::Protobuf { k8s_pb, definitions } => protobuf::run(&k8s_pb, &definitions),
        Chore::SchemaGaps { dir } => gaps::run(&dir),
    }
}
