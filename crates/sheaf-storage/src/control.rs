//! The control socket, both ends: lines of JSON over a unix socket that only its owner may use. A thread for each caller,
//! at most [`CALLERS`]; the reactor answers, this only carries.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::api::{Answer, Ask, LINE_MAX};

const CALLERS: usize = 32;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("the storage process does not answer on {0}; is it running?")]
    Connect(PathBuf, #[source] io::Error),
    /// The conversation broke off.
    #[error("the conversation with the storage process broke off")]
    Io(#[from] io::Error),
    /// What came is no answer.
    #[error("the storage process answered what this version does not understand")]
    Answer(#[source] serde_json::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the storage process behind a socket.
pub fn call(socket: &Path, ask: &Ask, patience: Duration) -> Result<Answer, CallError> {
    let stream =
        UnixStream::connect(socket).map_err(|error| CallError::Connect(socket.to_path_buf(), error))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(ask).map_err(io::Error::from)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(&stream).read_until(b'\n', &mut answer)?;
    match serde_json::from_slice(&answer).map_err(CallError::Answer)? {
        Answer::Error(reason) => Err(CallError::Refused(reason)),
        answer => Ok(answer),
    }
}

/// Listens, replacing a socket that a dead process left, and gives every question to `answer`.
pub(crate) fn serve(path: &Path, answer: impl Fn(Ask) -> Answer + Send + Sync + 'static) -> io::Result<()> {
    let listener = listen(path)?;
    let answer = Arc::new(answer);
    let callers = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("control".into()).stack_size(128 << 10).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            if callers.fetch_add(1, Ordering::SeqCst) >= CALLERS {
                callers.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (answer, guard) = (Arc::clone(&answer), Guard(Arc::clone(&callers)));
            let spawned =
                std::thread::Builder::new().name("caller".into()).stack_size(256 << 10).spawn(move || {
                    let _guard = guard;
                    let _ = converse(&stream, &*answer);
                });
            if let Err(error) = spawned {
                tracing::warn!(%error, "a caller of the control socket was turned away");
            }
        }
    })?;
    Ok(())
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A unix socket of our own at this path.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("somebody listens on {}", path.display()),
        ));
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn converse(stream: &UnixStream, answer: &dyn Fn(Ask) -> Answer) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let reply = if line.last() != Some(&b'\n') {
            Answer::Error(format!("a question is a line of at most {LINE_MAX} bytes"))
        } else {
            match serde_json::from_slice::<Ask>(&line) {
                Ok(ask) => answer(ask),
                Err(error) => Answer::Error(format!("not a question: {error}")),
            }
        };
        let mut bytes = serde_json::to_vec(&reply).map_err(io::Error::from)?;
        bytes.push(b'\n');
        let mut writer = stream;
        writer.write_all(&bytes)?;
    }
}
