//! Runs a [`Controller`] over the keys that concern it. Owns the queue; see [`crate::queue`] for its rules.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use kube::Resource;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tracing::{Instrument, debug, error, info_span, warn};

use crate::informer::chain;
use crate::queue::{Backoff, Queue};
use crate::{Informer, ObjectKey, TaskGroup};

/// What follows a run that did what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Done,
    /// Another look after a while, because time itself is a reason.
    After(Duration),
}

/// Why a run did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Somebody else wrote in between: look again.
    #[error("the object changed meanwhile")]
    Conflict,
    /// The API answered with an error.
    #[error("{context}")]
    Api {
        /// What was being done.
        context: &'static str,
        /// What the API said.
        #[source]
        source: kube::Error,
    },
    /// Anything else; tried again with growing waits.
    #[error("{context}")]
    Other {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StepError {
    /// Wraps an API error; a 409 becomes [`StepError::Conflict`].
    pub fn api(context: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| match &source {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            _ => Self::Api { context, source },
        }
    }
    /// Wraps any error.
    pub fn other<E>(context: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Other { context: context.into(), source: source.into() }
    }
}

/// Converges one kind of thing. One look at one key: gather from caches, plan (pure), take one step, write status.
pub trait Controller: Send + Sync + 'static {
    /// For logs.
    const NAME: &'static str;
    /// Never runs twice at once for one key. Has to be safe to repeat, and to cancel at any await.
    fn reconcile(&self, key: &ObjectKey) -> impl Future<Output = Result<Next, StepError>> + Send;
}

/// Keys that changed since the driver last looked; bounded by the number of keys.
#[derive(Default)]
struct Wishes {
    keys: Mutex<BTreeSet<ObjectKey>>,
    some: Notify,
}

impl Wishes {
    fn add(&self, keys: Vec<ObjectKey>) {
        if keys.is_empty() {
            return;
        }
        self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(keys);
        self.some.notify_one();
    }
    fn take(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Wakes a driver from outside its informers (a finished download, a QMP event).
#[derive(Clone)]
pub struct Waker(Arc<Wishes>);

impl Waker {
    /// Asks for a look at a key.
    pub fn wake(&self, key: ObjectKey) {
        self.0.add(vec![key]);
    }
}

/// Lists every key there is, for the full pass.
type AllKeys = Arc<dyn Fn() -> Vec<ObjectKey> + Send + Sync>;

/// Builder and runner; see the module.
pub struct Driver<C> {
    controller: Arc<C>,
    wishes: Arc<Wishes>,
    ready: Vec<BoxFuture<'static, ()>>,
    workers: usize,
    backoff: Backoff,
    resync: Option<(Duration, AllKeys)>,
}

impl<C: Controller> Driver<C> {
    /// A driver with 4 workers and a back-off from 100 ms to 30 s.
    pub fn new(controller: C) -> Self {
        Self {
            controller: Arc::new(controller),
            wishes: Arc::default(),
            ready: Vec::new(),
            workers: 4,
            backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) },
            resync: None,
        }
    }
    /// Runs `keys(object)` whenever an object of the informer comes, changes or goes. The driver starts when all its
    /// informers have filled their caches.
    #[must_use]
    pub fn on<K>(
        mut self,
        informer: &Arc<Informer<K>>,
        keys: impl Fn(&Arc<K>) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
    {
        let wishes = self.wishes.clone();
        informer.subscribe(move |object| wishes.add(keys(object)));
        let informer = informer.clone();
        self.ready.push(Box::pin(async move { informer.ready().await }));
        self
    }
    /// Every object of the informer is a key of its own.
    #[must_use]
    pub fn for_each<K>(self, informer: &Arc<Informer<K>>) -> Self
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
    {
        self.on(informer, |object| vec![ObjectKey::of(&**object)])
    }
    /// Also waits for this cache before the first run, without being woken by it.
    #[must_use]
    pub fn after<K>(mut self, informer: &Arc<Informer<K>>) -> Self
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
    {
        let informer = informer.clone();
        self.ready.push(Box::pin(async move { informer.ready().await }));
        self
    }
    /// Keys that run at the same time, at most.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }
    /// A full pass now and then: one hopes that it never finds anything.
    #[must_use]
    pub fn resync(
        mut self,
        every: Duration,
        keys: impl Fn() -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self.resync = Some((every, Arc::new(keys)));
        self
    }
    /// A handle that wakes the driver from outside.
    pub fn waker(&self) -> Waker {
        Waker(self.wishes.clone())
    }
    /// Runs until the group is cancelled.
    pub fn spawn(self, group: &TaskGroup) {
        let inner = group.clone();
        group.spawn(self.run(inner));
    }

    async fn run(mut self, group: TaskGroup) {
        for ready in std::mem::take(&mut self.ready) {
            ready.await;
        }
        debug!(controller = C::NAME, "started");
        let mut queue = Queue::new(self.backoff);
        let (done_tx, mut done_rx) = mpsc::channel::<(ObjectKey, Result<Next, StepError>)>(self.workers);
        let mut next_resync = self.resync.as_ref().map(|(every, _)| Instant::now() + *every);
        loop {
            let now = Instant::now();
            for key in self.wishes.take() {
                queue.add(key, now);
            }
            if let (Some((every, keys)), Some(at)) = (&self.resync, next_resync)
                && at <= now
            {
                for key in keys() {
                    queue.add(key, now);
                }
                next_resync = Some(now + *every);
            }
            while queue.running() < self.workers {
                let Some(key) = queue.take(now) else { break };
                self.start(&group, key, done_tx.clone());
            }
            let full = queue.running() >= self.workers;
            let wake_at =
                if full { next_resync } else { queue.next_due().into_iter().chain(next_resync).min() };
            tokio::select! {
                () = self.wishes.some.notified() => {}
                Some((key, result)) = done_rx.recv() => Self::on_done(&mut queue, &key, result),
                () = until(wake_at) => {}
            }
        }
    }

    fn start(
        &self,
        group: &TaskGroup,
        key: ObjectKey,
        done: mpsc::Sender<(ObjectKey, Result<Next, StepError>)>,
    ) {
        let controller = self.controller.clone();
        let span = info_span!("reconcile", controller = C::NAME, key = %key);
        group.spawn(
            async move {
                // A task of its own, so that a panic in one key is an error of that key, and not the driver's end.
                let inner = {
                    let key = key.clone();
                    tokio::spawn(async move { controller.reconcile(&key).await }.in_current_span())
                };
                let abort = AbortOnDrop(inner.abort_handle());
                let result = inner.await.unwrap_or_else(|panic| {
                    Err(StepError::Other {
                        context: "a rule of the program was broken".into(),
                        source: panic.into(),
                    })
                });
                drop(abort);
                // The receiver lives as long as the driver; without it there is nobody left to tell.
                let _ = done.send((key, result)).await;
            }
            .instrument(span),
        );
    }

    fn on_done(queue: &mut Queue, key: &ObjectKey, result: Result<Next, StepError>) {
        let now = Instant::now();
        match result {
            Ok(Next::Done) => queue.done(key, now, None),
            Ok(Next::After(wait)) => queue.done(key, now, Some(wait)),
            Err(StepError::Conflict) => {
                // The write that won arrives by watch; the short wait is for the case that it has arrived already.
                queue.done(key, now, Some(Duration::from_millis(20)));
            }
            Err(failure) => {
                let wait = queue.failed(key, now);
                let text = chain(&failure);
                let failures = queue.failures(key);
                if failures > 5 {
                    error!(controller = C::NAME, %key, failures, ?wait, "{text}");
                } else {
                    warn!(controller = C::NAME, %key, failures, ?wait, "{text}");
                }
            }
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
