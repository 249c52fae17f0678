//! How long what a session opened may go on: until the session ends. Consoles, displays, watches and uploads last; that
//! somebody was signed in when they began says nothing of now.
//!
//! A [`Life`] goes along with the request as an extension, so that whoever makes a lasting stream of it (a relay, a
//! WebSocket) finds it there and needs to know nothing of sessions.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// The life of a session. Ended when the session is dropped, whatever for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life(Arc<CancellationToken>);

impl Life {
    /// That of the session behind a request, if there is one.
    pub(crate) fn of<B>(request: &http::Request<B>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Tells all who hold it.
    pub(super) fn end(&self) {
        self.0.cancel();
    }

    /// Whether somebody beside the session holds it: something that it opened may go on.
    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits for the end.
    pub(crate) async fn ended(self) {
        self.0.cancelled().await;
    }

    /// Does something while the session lives: nothing, if it ended before.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(work).await
    }
}

/// Does something until it is done, the server stops, or the session ends that it belongs to.
pub(crate) async fn run<T>(
    stop: &CancellationToken,
    life: Option<Life>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let work = stop.run_until_cancelled(work);
    match life {
        Some(life) => life.run(work).await.flatten(),
        None => work.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_on_ends_with_the_session_or_the_server() {
        let (stop, life) = (CancellationToken::new(), Life::default());
        assert_eq!(run(&stop, Some(life.clone()), async { 1 }).await, Some(1));
        let forever = || std::future::pending::<()>();
        let (a, b) = (life.clone(), stop.clone());
        let open = tokio::spawn(async move { run(&b, Some(a), forever()).await });
        assert!(life.is_held());
        life.end();
        assert_eq!(open.await.unwrap(), None);
        let other = stop.clone();
        let open = tokio::spawn(async move { run(&other, None, forever()).await });
        stop.cancel();
        assert_eq!(open.await.unwrap(), None);
    }
}
