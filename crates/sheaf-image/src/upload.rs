//! Uploads: a body of known size, bare or as a form's file, through the checks of [`crate::intake`].
//!
//! An upload cannot be resumed (its clients do not know how): when it breaks off, what came is thrown away.

use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fetch::{Progress, blocking, discard};
use crate::intake::{Demands, Intake, IntakeError, Stored};
use crate::multipart::{self, Multipart, MultipartError};

/// Bytes that are handed to the disk together.
const BATCH_BYTES: usize = 1 << 20;

/// Why an upload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The form is not in order.
    #[error(transparent)]
    Form(#[from] MultipartError),
    /// The file is not acceptable, or cannot be stored.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The client went away.
    #[error("the upload broke off after {received} bytes")]
    Broken {
        /// Bytes of the file that came.
        received: u64,
        /// How it broke.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("the upload stalled after {received} bytes: nothing came for {} s", .waited.as_secs())]
    Stalled {
        /// Bytes of the file that came.
        received: u64,
        /// How long was waited.
        waited: Duration,
    },
}

/// Receives a body into `dest`. `content_type` decides whether it is a form; the demands' length is that of the file.
pub async fn receive<B>(
    mut body: B,
    content_type: Option<&str>,
    dest: &Path,
    demands: Demands,
    stall: Duration,
    progress: &watch::Sender<Progress>,
) -> Result<Stored, UploadError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut form = match content_type.and_then(multipart::boundary) {
        Some(boundary) => Some(Multipart::new(&boundary?)),
        None => None,
    };
    let owned = dest.to_owned();
    let mut pipe = Pipe::new(blocking(move || Intake::open(&owned, demands, 0)).await?);
    let result = async {
        let mut received = 0;
        loop {
            let frame = match tokio::time::timeout(stall, body.frame()).await {
                Err(_) => return Err(UploadError::Stalled { received, waited: stall }),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(UploadError::Broken { received, source: error.into() }),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            let bytes = match &mut form {
                Some(form) => form.push(&bytes)?.into(),
                None => bytes,
            };
            received += bytes.len() as u64;
            pipe.push(bytes).await?;
            progress.send_replace(Progress { connected: true, received, total: demands.len });
        }
        if let Some(form) = &form {
            form.finish()?;
        }
        Ok(pipe.finish().await?)
    }
    .await;
    if result.is_err() {
        discard(dest);
    }
    result
}

/// Feeds an [`Intake`] from async code: while one batch is being written, the next is collected; never more than two.
pub(crate) struct Pipe {
    batch: Vec<Bytes>,
    batch_len: usize,
    writing: JoinHandle<Result<Intake, IntakeError>>,
}

impl Pipe {
    pub(crate) fn new(intake: Intake) -> Self {
        Pipe { batch: Vec::new(), batch_len: 0, writing: tokio::task::spawn_blocking(|| Ok(intake)) }
    }

    pub(crate) async fn push(&mut self, bytes: Bytes) -> Result<(), IntakeError> {
        self.batch_len += bytes.len();
        self.batch.push(bytes);
        if self.batch_len >= BATCH_BYTES {
            self.flush(|_| Ok(())).await?;
        }
        Ok(())
    }

    /// Starts writing the batch and then `last`, after the batch before has been written.
    async fn flush(
        &mut self,
        last: impl FnOnce(&mut Intake) -> Result<(), IntakeError> + Send + 'static,
    ) -> Result<(), IntakeError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let mut intake = joined(&mut self.writing).await?;
        self.writing = tokio::task::spawn_blocking(move || {
            batch.iter().try_for_each(|bytes| intake.push(bytes))?;
            last(&mut intake)?;
            Ok(intake)
        });
        Ok(())
    }

    /// Makes durable what came; how many bytes of the file are.
    pub(crate) async fn sync(&mut self) -> Result<u64, IntakeError> {
        self.flush(Intake::sync).await?;
        let intake = joined(&mut self.writing).await?;
        let received = intake.received();
        self.writing = tokio::task::spawn_blocking(|| Ok(intake));
        Ok(received)
    }

    pub(crate) async fn finish(mut self) -> Result<Stored, IntakeError> {
        self.flush(|_| Ok(())).await?;
        let intake = joined(&mut self.writing).await?;
        blocking(|| intake.finish()).await
    }
}

async fn joined(task: &mut JoinHandle<Result<Intake, IntakeError>>) -> Result<Intake, IntakeError> {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}
