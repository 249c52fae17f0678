//! What a command tells while it waits, on standard error: a bar or a spinner on a terminal, else a line whenever
//! something changes.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use super::fail::{Exit, TIMED_OUT};
use super::print::say;

/// Pause between two looks at an object.
const LOOK: Duration = Duration::from_millis(250);

/// The words of a wait.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last: String,
    begun: Instant,
}

impl Progress {
    /// A spinner with words beside it.
    pub(crate) fn spinner() -> Self {
        let progress = Self::of(ProgressBar::new_spinner());
        if progress.terminal {
            progress.bar.enable_steady_tick(Duration::from_millis(120));
        }
        progress
    }

    /// A bar of bytes.
    pub(crate) fn bytes(total: u64) -> Self {
        let style = "{msg} [{wide_bar}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        Self::of(ProgressBar::new(total)).styled(style)
    }

    /// A bar of per cents.
    pub(crate) fn percent() -> Self {
        Self::of(ProgressBar::new(100)).styled("{msg} [{wide_bar}] {percent} %, {elapsed}")
    }

    fn of(bar: ProgressBar) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { bar } else { ProgressBar::hidden() };
        Self { bar, terminal, last: String::new(), begun: Instant::now() }
    }

    fn styled(self, template: &str) -> Self {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self
    }

    /// How far it is, for bars.
    pub(crate) fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// The handle of the bar, for tasks that move it.
    pub(crate) fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// What is going on now. Without a terminal each new text is a line, with the seconds so far.
    pub(crate) fn tell(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        self.last = text.to_owned();
        if self.terminal {
            self.bar.set_message(text.to_owned());
        } else {
            say(&format!("{:>4} s  {text}", self.begun.elapsed().as_secs()));
        }
    }

    /// Looks again and again until `look` has an answer; it says what is going on meanwhile.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut look: impl AsyncFnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(reached) = look(self).await? {
                return Ok(reached);
            }
            if begun.elapsed() >= timeout {
                self.bar.finish_and_clear();
                let last =
                    if self.last.is_empty() { String::new() } else { format!("\nLast seen: {}", self.last) };
                let text = format!(
                    "{what}: not within {} s (--timeout); it goes on without this command{last}",
                    timeout.as_secs()
                );
                return Err(Exit::error(TIMED_OUT, text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A duration as people write it: `90`, `90s`, `5m`, `24h`, `1h30m`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration: expected a number with s, m, h or d, as 90s or 1h30m");
    let mut total: u64 = 0;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(bad()),
        };
        let count: u64 = std::mem::take(&mut digits).parse().map_err(|_| bad())?;
        total = count.checked_mul(unit).and_then(|seconds| total.checked_add(seconds)).ok_or_else(bad)?;
    }
    if !digits.is_empty() {
        // A bare number is seconds; `1h30` is a slip.
        if digits.len() != text.len() {
            return Err(bad());
        }
        total = digits.parse().map_err(|_| bad())?;
    }
    // A century is as good as for ever, and any sum with a time of today stays in range.
    if text.is_empty() || total > 100 * 366 * 86_400 { Err(bad()) } else { Ok(Duration::from_secs(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("5m", 300), ("24h", 86_400), ("1h30m", 5400), ("7d", 604_800)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "x", "m", "1h30", "-1s", "5 m", "99999999999999999999s", "999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
