//! A group of tasks that end together: a cancel signal and a way to wait. Owns nothing but the count of its tasks.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Clone freely; all clones are the same group.
#[derive(Clone, Debug, Default)]
pub struct TaskGroup {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl TaskGroup {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }
    /// Starts a task that is dropped at its next await when the group is cancelled.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = task => {}
            }
        });
    }
    /// Starts a task that watches [`TaskGroup::cancelled`] itself, because it has something to finish first.
    pub fn spawn_graceful<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task);
    }
    /// Resolves when the group is cancelled.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }
    /// Asks all tasks to end.
    pub fn cancel(&self) {
        self.token.cancel();
    }
    /// Asks all tasks to end and waits until they have.
    pub async fn shutdown(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
