//! Running commands to their end, with their output in the error.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that succeeded.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("`{}` failed with {}:\n{}{}", self.command, self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// The standard error of a command that was to fail.
    pub fn refused(self) -> Result<String> {
        if self.code == 0 {
            bail!("`{}` was to be refused, but succeeded:\n{}", self.command, self.stdout);
        }
        Ok(self.stderr)
    }
}

/// Runs a command to its end. It is killed if the caller goes away.
pub(crate) async fn output(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let std = command.as_std();
    let words = std::iter::once(std.get_program()).chain(std.get_args());
    let shown = words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A command that ends without reading says why itself.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let out = child.wait_with_output().await.with_context(|| format!("waiting for `{shown}`"))?;
    Ok(Output {
        command: shown,
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}

/// Runs a short command to its end, without a runtime: for setting up and for cleaning up.
pub(crate) fn short(program: &str, args: &[&str]) -> Result<String> {
    let out = std::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{program} {}`", args.join(" ")))?;
    if !out.status.success() {
        bail!("`{program} {}`: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
