//! The tie-breaking vote of an even in-sync set, kept in the API: asked of the agent, which reads and replaces one value of
//! the volume's object.
//!
//! The agent is a relay of compare-and-swap and knows no protocol: what a vote is, and when it may change, is
//! [`Ledger::on`]'s, here. A thread asks, so that the reactor never waits for the API; what does not come is asked again by
//! the coordinator. One JSON object a line, one answer a line, over a unix socket; see [`Wish`] and [`Held`].
//!
//! State: none. The value is the API's.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sheaf_block_core::ids::VolumeId;
use sheaf_block_core::membership::{Answer, Ask, Ledger};

use crate::api::show_volume;
use crate::arbiter::{Arbiter, decode, encode};

/// Questions that wait for the thread; more are dropped, and asked again.
const WAITING: usize = 256;
/// How long an answer of the agent may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often a value that was replaced by somebody else in between is read again.
const ROUNDS: usize = 8;

/// What is asked of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// The volume's id.
    pub volume: String,
    /// Replace the value that was read with `revision` by this one; none: only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put: Option<String>,
    /// What the value was read with.
    #[serde(default)]
    pub revision: String,
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// The value now: what was asked to be put, if that was asked and done.
    Value {
        /// The value; empty: there is none yet.
        value: String,
        /// To be given when it is replaced.
        revision: String,
    },
    /// Somebody else replaced it in between.
    Conflict,
    /// It cannot be had.
    Error(String),
}

/// Who keeps the votes.
#[derive(Clone, Debug)]
pub(crate) enum Votes {
    /// A directory.
    Here(Arbiter),
    /// The API, by way of the agent.
    Elsewhere(Asker),
}

/// The reactor's end of the thread.
#[derive(Clone, Debug)]
pub(crate) struct Asker(SyncSender<(VolumeId, Ask)>);

/// The thread's end.
#[derive(Debug)]
pub(crate) struct Asked(Receiver<(VolumeId, Ask)>);

impl Asker {
    pub(crate) fn new() -> (Self, Asked) {
        let (sender, receiver) = sync_channel(WAITING);
        (Self(sender), Asked(receiver))
    }

    /// Asks, and does not wait.
    pub(crate) fn ask(&self, volume: VolumeId, ask: Ask) {
        let _ = self.0.try_send((volume, ask));
    }
}

impl Asked {
    /// Starts the thread, which tells answers as they come.
    pub(crate) fn answer_by(
        self,
        socket: PathBuf,
        tell: impl Fn(VolumeId, Answer) + Send + 'static,
    ) -> io::Result<()> {
        let work = move || {
            for (volume, ask) in self.0 {
                match vote(volume, ask, |wish| call(&socket, wish)) {
                    Ok(answer) => tell(volume, answer),
                    Err(reason) => {
                        tracing::warn!(
                            volume = show_volume(volume),
                            reason,
                            "the API's vote is not to be had"
                        );
                        // The coordinator asks again soon; the API is not to be pressed.
                        #[allow(clippy::disallowed_methods, reason = "a pause, not a wait for anything")]
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            }
        };
        std::thread::Builder::new().name("votes".into()).stack_size(256 << 10).spawn(work).map(drop)
    }
}

/// One question to the vote, durable before the answer.
fn vote(volume: VolumeId, ask: Ask, call: impl Fn(&Wish) -> Result<Held, String>) -> Result<Answer, String> {
    let id = show_volume(volume);
    for _ in 0..ROUNDS {
        let read = Wish { volume: id.clone(), put: None, revision: String::new() };
        let (value, revision) = match call(&read)? {
            Held::Value { value, revision } => (value, revision),
            Held::Conflict => continue,
            Held::Error(reason) => return Err(reason),
        };
        let before = match value.is_empty() {
            true => Ledger::default(),
            false => {
                decode(&bytes(&value)?).map_err(|error| format!("the vote in the API is damaged: {error}"))?
            }
        };
        let mut ledger = before;
        let answer = ledger.on(ask);
        if ledger == before {
            return Ok(answer);
        }
        let put = Wish { volume: id.clone(), put: Some(hex(&encode(&ledger))), revision };
        match call(&put)? {
            Held::Value { .. } => return Ok(answer),
            Held::Conflict => {}
            Held::Error(reason) => return Err(reason),
        }
    }
    Err("others replaced the vote again and again".into())
}

fn call(socket: &Path, wish: &Wish) -> Result<Held, String> {
    let talk = || -> io::Result<Held> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(wish)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new(&stream).read_until(b'\n', &mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    };
    talk().map_err(|error| format!("asking {}: {error}", socket.display()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    let pair = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    let all: Option<Vec<u8>> = match digits.len().is_multiple_of(2) {
        true => digits.chunks(2).map(pair).collect(),
        false => None,
    };
    all.ok_or_else(|| "the vote in the API is damaged: no hexadecimal digits".into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use sheaf_block_core::ids::{CoordinatorId, Epoch};

    use super::*;

    /// A value with a revision; the first `rivals` writes find that somebody was faster.
    struct Api {
        value: String,
        revision: u64,
        rivals: usize,
    }

    impl Api {
        fn on(&mut self, wish: &Wish) -> Held {
            if let Some(put) = &wish.put {
                if self.rivals > 0 {
                    self.rivals -= 1;
                    self.revision += 1;
                }
                if wish.revision != self.revision.to_string() {
                    return Held::Conflict;
                }
                self.value.clone_from(put);
                self.revision += 1;
            }
            Held::Value { value: self.value.clone(), revision: self.revision.to_string() }
        }
    }

    #[test]
    fn a_vote_is_durable_before_it_is_told_and_survives_rivals() {
        let api = RefCell::new(Api { value: String::new(), revision: 1, rivals: 2 });
        let ask = |number| Ask::Prepare(Epoch { number, holder: CoordinatorId(number) });
        let call = |wish: &Wish| Ok(api.borrow_mut().on(wish));
        assert!(matches!(vote(VolumeId(1), ask(3), call), Ok(Answer::Promised { .. })));
        let kept = decode(&bytes(&api.borrow().value).expect("digits")).expect("a ledger");
        assert_eq!(kept.promised.number, 3);
        assert!(matches!(vote(VolumeId(1), ask(2), call), Ok(Answer::Refused { .. })));
        api.borrow_mut().value = "zz".into();
        assert!(vote(VolumeId(1), ask(4), call).is_err_and(|why| why.contains("damaged")));
        api.borrow_mut().value = String::new();
        api.borrow_mut().rivals = ROUNDS;
        assert!(vote(VolumeId(1), ask(4), call).is_err_and(|why| why.contains("again and again")));
    }
}
