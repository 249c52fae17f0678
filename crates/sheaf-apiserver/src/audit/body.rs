//! A body that somebody looks at while it passes. No state but what the onlooker keeps.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::http::{Body, BoxError, boxed};

/// Shows each part of a body to `look`, which is dropped together with the body.
pub(super) fn seen(inner: Body, look: impl Fn(&Bytes) + Send + 'static) -> Body {
    boxed(Seen { inner, look: Box::new(look) })
}

struct Seen {
    inner: Body,
    look: Box<dyn Fn(&Bytes) + Send>,
}

impl hyper::body::Body for Seen {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            (self.look)(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
