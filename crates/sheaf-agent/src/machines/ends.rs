//! What QEMU's events say about the end of a guest, and when a guest that stands still because a disk failed is tried again.
//! Pure: no QEMU, and the clock is given.

use std::time::Duration;

use serde_json::Value;
use sheaf_qemu::qmp::Event;
use tokio::time::Instant;

use super::seen::End;

/// The first attempt comes after this, each further one after twice the time of the one before.
const FIRST: Duration = Duration::from_secs(1);
/// No attempt comes later than this: it is how long a guest may stand still after room was made.
const LAST: Duration = Duration::from_secs(30);
/// A guest that ran this long begins anew with short waits.
const STEADY: Duration = Duration::from_secs(60);

/// How a guest is over, if the event says that it is.
pub(super) fn end_of(event: &Event) -> Option<End> {
    let text = |key: &str| event.data.get(key).and_then(Value::as_str).unwrap_or_default();
    match event.name.as_str() {
        "SHUTDOWN" if text("reason") == "host-signal" => {
            Some(End::Crashed("somebody on the node ended QEMU by a signal".into()))
        }
        "SHUTDOWN" => Some(End::Shutdown),
        "GUEST_PANICKED" => Some(End::Panicked),
        // QEMU ends by itself then. The other actions end no machine, or say so when they do.
        "WATCHDOG" if text("action") == "poweroff" => Some(End::Watchdog),
        _ => None,
    }
}

/// When to let a guest go on that a disk has failed: again and again, as upstream does, with waits that grow.
#[derive(Debug, Default)]
pub(super) struct Retry {
    wait: Duration,
    at: Option<Instant>,
    runs_since: Option<Instant>,
}

impl Retry {
    /// The next attempt.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// It stands still because a disk failed.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.at.is_some() {
            return;
        }
        let steady = self.runs_since.take().is_some_and(|since| now.duration_since(since) >= STEADY);
        self.wait = if steady || self.wait.is_zero() { FIRST } else { (self.wait * 2).min(LAST) };
        self.at = Some(now + self.wait);
    }

    /// It was found so by an agent that does not know yet what its instance wants: no hurry.
    pub(super) fn found(&mut self, now: Instant) {
        if self.at.is_some() {
            self.at = Some(now + LAST);
        }
    }

    /// The attempt is being made.
    pub(super) fn tried(&mut self) {
        self.at = None;
    }

    /// It runs.
    pub(super) fn runs(&mut self, now: Instant) {
        self.at = None;
        self.runs_since.get_or_insert(now);
    }

    /// It stands still for another reason, or is over.
    pub(super) fn off(&mut self) {
        (self.at, self.runs_since) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_say_how_it_ended() {
        let of = |name: &str, data: Value| end_of(&Event { name: name.into(), data });
        let guest = json!({"guest": true, "reason": "guest-shutdown"});
        assert_eq!(of("SHUTDOWN", guest), Some(End::Shutdown));
        let signal = of("SHUTDOWN", json!({"guest": false, "reason": "host-signal"}));
        assert!(matches!(signal, Some(End::Crashed(_))), "{signal:?}");
        assert_eq!(of("GUEST_PANICKED", json!({"action": "pause"})), Some(End::Panicked));
        assert_eq!(of("WATCHDOG", json!({"action": "poweroff"})), Some(End::Watchdog));
        for (name, action) in [("WATCHDOG", "reset"), ("WATCHDOG", "shutdown"), ("STOP", "")] {
            assert_eq!(of(name, json!({"action": action})), None, "{name} {action}");
        }
    }

    #[test]
    fn attempts_become_rarer_and_begin_anew() {
        let start = Instant::now();
        let (mut now, mut retry) = (start, Retry::default());
        let mut waits = Vec::new();
        for _ in 0..7 {
            retry.failed(now);
            // Heard twice, it is one failure.
            retry.failed(now + Duration::from_millis(5));
            let at = retry.at().expect("an attempt");
            waits.push((at - now).as_secs());
            now = at;
            retry.tried();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        // It went on for a moment, which is no new beginning; then for long.
        retry.runs(now);
        assert_eq!(retry.at(), None);
        retry.failed(now + FIRST);
        assert_eq!(retry.at(), Some(now + FIRST + LAST));
        retry.runs(now);
        retry.failed(now + STEADY);
        assert_eq!(retry.at(), Some(now + STEADY + FIRST));
        retry.found(now + STEADY);
        assert_eq!(retry.at(), Some(now + STEADY + LAST));
        retry.off();
        retry.found(now);
        assert_eq!(retry.at(), None);
    }
}
