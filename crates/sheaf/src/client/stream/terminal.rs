//! The terminal while it belongs to a guest: raw, and back to what it was when the value ends, also by a panic.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal in raw mode.
pub(super) struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes standard input's terminal raw; nothing if standard input is none.
    pub(super) fn enter() -> Result<Option<Self>> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        // A handle of its own, so that restoring does not depend on what others do with standard input.
        let terminal = input.as_fd().try_clone_to_owned().context("opening the terminal")?;
        let before = tcgetattr(&terminal).context("reading the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).context("making the terminal raw")?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What was typed and not read yet was meant for the guest, so it is flushed.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
