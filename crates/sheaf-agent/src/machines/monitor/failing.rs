//! What a machine's task does when things go wrong: the last words of a QEMU that has ended, and a guest that stands still
//! because a disk failed. What events mean, and when it is tried again, is decided in [`super::super::ends`].

use std::time::Duration;

use sheaf_qemu::qmp::{Happening, Qmp};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::super::ends::end_of;
use super::Task;

/// A guest that was let go on after a disk had failed is looked at after this: a disk that fails still has failed by then.
const PROVING: Duration = Duration::from_millis(200);
/// The last events of a QEMU that has ended arrive within this.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Task {
    /// What a QEMU that has ended still said: why it ended may be among it.
    pub(super) async fn last_events(&mut self, events: &mut mpsc::Receiver<Happening>) {
        let all = async {
            loop {
                match events.recv().await {
                    Some(Happening::Event(event)) => self.end = self.end.take().or_else(|| end_of(&event)),
                    Some(Happening::Lost) => {}
                    Some(Happening::Closed) | None => return,
                }
            }
        };
        // A reader that is that late is of no use any more.
        let _ = tokio::time::timeout(LAST_WORDS, all).await;
    }

    /// Lets a guest go on that a failed disk has stopped. What it was writing is tried again by QEMU.
    pub(super) async fn try_again(&mut self, qmp: &Qmp) {
        self.retry.tried();
        let tried = async {
            qmp.cont().await?;
            // Whether it went well is seen before anybody is told.
            tokio::time::sleep(PROVING).await;
            qmp.query_status().await
        };
        match tried.await {
            Ok(state) => self.follow(state, qmp).await,
            Err(error) => {
                debug!(machine = self.spec.name, %error, "it cannot go on");
                self.retry.failed(Instant::now());
            }
        }
    }
}
