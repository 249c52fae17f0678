//! A guest's serial console over the API server's websocket, as virtctl opens it. Everything that comes is kept, so that a
//! wait never misses a line.

use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::run::Lab;
use crate::socket::instance_path;
use crate::wait::{Deadline, wait_for};

/// An open console.
#[derive(Debug)]
pub struct Console {
    seen: Arc<Mutex<String>>,
    ended: Arc<Mutex<Option<String>>>,
    input: mpsc::Sender<String>,
}

impl Console {
    /// All that the guest has printed since the console was opened.
    pub fn text(&self) -> String {
        self.seen.lock().map(|t| t.clone()).unwrap_or_default()
    }

    /// Types a line.
    pub async fn type_line(&self, line: &str) -> Result<()> {
        self.input.send(format!("{line}\n")).await.map_err(|_| anyhow!("the console has ended"))
    }

    /// Waits until the guest has printed a line that contains `mark`, and returns that line.
    pub async fn wait_line(&self, mark: &str, deadline: Deadline) -> Result<String> {
        wait_for(&format!("the console to show {mark:?}"), deadline, async || self.line(mark)).await
    }

    /// Waits for a mark of the small guest (see `guest/small/init`), also one that it printed before the console was opened:
    /// it repeats its marks when asked, as soon as its shell runs.
    pub async fn wait_mark(&self, mark: &str, deadline: Deadline) -> Result<String> {
        let mut asked = std::time::Instant::now();
        wait_for(&format!("the guest to say {mark:?}"), deadline, async || {
            if asked.elapsed().as_secs() >= 2 {
                asked = std::time::Instant::now();
                self.type_line("marks").await.map_err(|e| e.to_string())?;
            }
            self.line(mark)
        })
        .await
    }

    fn line(&self, mark: &str) -> Result<String, String> {
        let text = self.text();
        if let Some(line) = text.lines().find(|l| l.contains(mark)) {
            return Ok(line.trim().to_owned());
        }
        let ended = self.ended.lock().map(|e| e.clone()).unwrap_or_default();
        let ended = ended.map(|e| format!("; the console ended: {e}")).unwrap_or_default();
        Err(format!("{} bytes seen{ended}, the end of them:\n{}", text.len(), tail(&text)))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl Lab {
    /// Opens the console of a VMI of `default`, as soon as there is one.
    pub async fn console(&self, name: &str) -> Result<Console> {
        wait_for(&format!("the console of {name} to open"), Deadline::SOON, async || {
            self.open_console(name).await.map_err(|e| format!("{e:#}"))
        })
        .await
    }

    async fn open_console(&self, name: &str) -> Result<Console> {
        let path = instance_path(name, "console");
        let socket = self.websocket(&path).await?;

        let (input, mut lines) = mpsc::channel::<String>(16);
        let seen = Arc::new(Mutex::new(String::new()));
        let ended = Arc::new(Mutex::new(None));
        let (keep, end) = (Arc::clone(&seen), Arc::clone(&ended));
        let (mut to, mut from) = socket.split();
        // Both tasks end with the socket, or with the console that holds `input`.
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                if to.send(Message::binary(line.into_bytes())).await.is_err() {
                    break;
                }
            }
            let _ = to.close().await;
        });
        tokio::spawn(async move {
            let why = loop {
                match from.next().await {
                    Some(Ok(Message::Close(frame))) => break format!("closed: {frame:?}"),
                    Some(Ok(message)) => {
                        if let Ok(mut text) = keep.lock() {
                            text.push_str(&String::from_utf8_lossy(&message.into_data()));
                        }
                    }
                    Some(Err(error)) => break error.to_string(),
                    None => break "the connection ended".to_owned(),
                }
            };
            if let Ok(mut end) = end.lock() {
                *end = Some(why);
            }
        });
        Ok(Console { seen, ended, input })
    }
}
