//! What may be asked of a running machine, and when. Pure: no QEMU, no clock.
//!
//! One [`Requests`] per machine, owned by its task. A request is refused at once, with the reason, or it waits its
//! turn; equal requests that wait are one. Ending wins over everything: once it is asked for, nothing else is begun.

use std::collections::VecDeque;

/// What others may ask of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Stop the guest's processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Ask the guest to restart.
    SoftReboot,
    /// Press reset.
    Reset,
    /// Ask the guest to power off; ends by force when its time is over.
    PowerDown,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is being powered off.
    #[error("the machine is being shut down")]
    Ending,
    /// It has ended.
    #[error("the machine is not running")]
    Ended,
    /// The guest cannot react while it is paused.
    #[error("the machine is paused")]
    Paused,
}

/// Where the machine stands, as far as requests are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Running,
    Paused,
    Ended,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Requests {
    standing: Standing,
    ending: bool,
    waiting: VecDeque<Ask>,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { standing: Standing::Paused, ending: false, waiting: VecDeque::new() }
    }

    /// Whether the machine will be paused when all that waits is done.
    fn paused_then(&self) -> bool {
        let last = self.waiting.iter().rev().find(|a| matches!(a, Ask::Pause | Ask::Resume));
        match last {
            Some(ask) => *ask == Ask::Pause,
            None => self.standing == Standing::Paused,
        }
    }

    /// Takes a request in, or refuses it.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<(), Denied> {
        if self.standing == Standing::Ended {
            return Err(Denied::Ended);
        }
        if ask == Ask::PowerDown {
            if !self.ending {
                self.ending = true;
                self.waiting = VecDeque::from([Ask::PowerDown]);
            }
            return Ok(());
        }
        if self.ending {
            return Err(Denied::Ending);
        }
        match ask {
            Ask::Pause if self.paused_then() => return Ok(()),
            Ask::Resume if !self.paused_then() => return Ok(()),
            Ask::SoftReboot if self.paused_then() => return Err(Denied::Paused),
            // What waits and was not begun is undone rather than done twice.
            Ask::Pause | Ask::Resume if matches!(self.waiting.back(), Some(Ask::Pause | Ask::Resume)) => {
                self.waiting.pop_back();
                return Ok(());
            }
            Ask::SoftReboot | Ask::Reset if self.waiting.contains(&ask) => return Ok(()),
            _ => self.waiting.push_back(ask),
        }
        Ok(())
    }

    /// The next thing to do.
    pub(super) fn next(&mut self) -> Option<Ask> {
        self.waiting.pop_front()
    }

    /// The machine was seen in this state.
    pub(super) fn seen(&mut self, standing: Standing) {
        if self.standing == Standing::Ended {
            return;
        }
        self.standing = standing;
        if standing == Standing::Ended {
            self.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of numbers, for walks that can be repeated.
    struct Walk(u64);
    impl Walk {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    const ALL: [Ask; 5] = [Ask::Pause, Ask::Resume, Ask::SoftReboot, Ask::Reset, Ask::PowerDown];

    #[test]
    fn examples() {
        let mut r = Requests::new();
        r.seen(Standing::Running);
        assert_eq!(r.ask(Ask::Pause), Ok(()));
        assert_eq!(r.ask(Ask::SoftReboot), Err(Denied::Paused), "it will be paused by then");
        assert_eq!(r.ask(Ask::Resume), Ok(()));
        assert_eq!(r.next(), None, "the two undo each other");
        assert_eq!(r.ask(Ask::SoftReboot), Ok(()));
        assert_eq!(r.ask(Ask::SoftReboot), Ok(()));
        assert_eq!(r.ask(Ask::PowerDown), Ok(()));
        assert_eq!(r.ask(Ask::Pause), Err(Denied::Ending));
        assert_eq!((r.next(), r.next()), (Some(Ask::PowerDown), None), "what waited is dropped");
        r.seen(Standing::Ended);
        assert_eq!(r.ask(Ask::PowerDown), Err(Denied::Ended));
    }

    /// Random walks: the queue stays short; what is handed out makes sense; after the walk the machine is as the last
    /// accepted pause or resume wanted it; after a power-down nothing else is handed out.
    #[test]
    fn walks() {
        for seed in 0..2000 {
            let mut walk = Walk(seed);
            let mut r = Requests::new();
            let (mut paused, mut wanted, mut ending) = (true, true, false);
            for _ in 0..walk.below(60) {
                if walk.below(3) == 0 {
                    if let Some(ask) = r.next() {
                        assert!(!ending || ask == Ask::PowerDown, "seed {seed}: {ask:?} while ending");
                        match ask {
                            Ask::Pause => {
                                assert!(!paused, "seed {seed}: paused twice");
                                paused = true;
                            }
                            Ask::Resume => {
                                assert!(paused, "seed {seed}: resumed twice");
                                paused = false;
                            }
                            Ask::SoftReboot => assert!(!paused, "seed {seed}: reboot of a paused guest"),
                            Ask::Reset | Ask::PowerDown => {}
                        }
                        r.seen(if paused { Standing::Paused } else { Standing::Running });
                    }
                } else {
                    // Powering off is rare, or there would be no walk.
                    let n = if walk.below(20) == 0 { 5 } else { 4 };
                    let ask = ALL[walk.below(n) as usize];
                    let taken = r.ask(ask).is_ok();
                    match ask {
                        Ask::PowerDown => ending |= taken,
                        Ask::Pause if taken => wanted = true,
                        Ask::Resume if taken => wanted = false,
                        _ => {}
                    }
                    assert!(
                        !ending || ask == Ask::PowerDown || !taken,
                        "seed {seed}: {ask:?} taken while ending"
                    );
                }
                assert!(r.waiting.len() <= ALL.len(), "seed {seed}: {:?}", r.waiting);
            }
            while let Some(ask) = r.next() {
                match ask {
                    Ask::Pause => paused = true,
                    Ask::Resume => paused = false,
                    _ => {}
                }
            }
            assert!(ending || paused == wanted, "seed {seed}: paused {paused}, wanted {wanted}");
        }
    }
}
