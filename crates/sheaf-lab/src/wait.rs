//! Waiting for a state of the world: it is looked at again and again until it holds or the time is over, and the last
//! status is in the error. No test sleeps for a fixed time and hopes.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to wait, with a name for the usual cases on a busy machine with two cores and no hardware virtualization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Duration);

impl Deadline {
    /// Something that Sheaf alone does: answers of controllers, a process that starts.
    pub const SOON: Self = Self(Duration::from_secs(40));
    /// Something that a guest has to do: boot, get an address, shut down.
    pub const GUEST: Self = Self(Duration::from_secs(150));

    /// As long as it may be on this machine: `SHEAF_LAB_SLOW=5` makes every wait five times as long, as an emulated machine
    /// needs it.
    pub(crate) fn here(self) -> Self {
        Self(self.0 * slow())
    }

    /// So many seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

/// How many times slower than usual this machine is.
pub(crate) fn slow() -> u32 {
    let factor = std::env::var("SHEAF_LAB_SLOW").ok().and_then(|f| f.parse::<u32>().ok());
    factor.unwrap_or(1).clamp(1, 100)
}

/// The pause between two looks: short for the first second, so that quick things are seen quickly.
fn pause(elapsed: Duration) -> Duration {
    if elapsed < Duration::from_secs(1) { Duration::from_millis(20) } else { Duration::from_millis(150) }
}

/// Waits until `look` answers `Ok`, and returns that. `Err` is the status so far, shown if the time ends.
pub async fn wait_for<T, E: Display>(
    what: &str,
    deadline: Deadline,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    let (start, deadline) = (Instant::now(), deadline.here());
    loop {
        // A look that itself hangs (a frozen server) must not outlive the deadline.
        let left = deadline.0.saturating_sub(start.elapsed()).max(Duration::from_secs(1));
        let status = match tokio::time::timeout(left, look()).await {
            Ok(Ok(reached)) => {
                eprintln!("lab: {what}: after {:.2} s", start.elapsed().as_secs_f64());
                return Ok(reached);
            }
            Ok(Err(status)) => status.to_string(),
            Err(_) => "the look at it did not end".to_owned(),
        };
        if start.elapsed() >= deadline.0 {
            bail!("waited {} s for: {what}\nlast status: {status}", deadline.0.as_secs());
        }
        tokio::time::sleep(pause(start.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_the_last_status() {
        let mut n = 0;
        let error =
            wait_for("a thing", Deadline(Duration::from_millis(50)), async || -> Result<(), String> {
                n += 1;
                Err(format!("looked {} times", n.min(2)))
            })
            .await
            .expect_err("it never holds");
        assert_eq!(error.to_string(), "waited 0 s for: a thing\nlast status: looked 2 times");
    }

    #[tokio::test]
    async fn ends_a_look_that_hangs() {
        let hangs = async || -> Result<(), String> { std::future::pending().await };
        let error = wait_for("a thing", Deadline(Duration::ZERO), hangs).await.expect_err("it never answers");
        assert!(error.to_string().contains("the look at it did not end"));
    }
}
