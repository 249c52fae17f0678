//! The body of a list, written piece by piece.
//!
//! Ten thousand machines are tens of megabytes of JSON. They are written while the client takes them, so that a list
//! holds neither that much memory nor a thread of the runtime for long. Not here: what is in the list.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{Stream, stream};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::{
    status::Status,
    table::{self, MetaVersion, RowObject},
};

use super::object::{self, Item};
use crate::{http::BoxError, registry::Row};

/// So much is written before it is handed over.
const PIECE: usize = 64 * 1024;

/// How each object is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Whole.
    Whole,
    /// Its metadata.
    Metadata(MetaVersion),
    /// A row of a table.
    Row(MetaVersion, RowObject),
}

/// A list that is being written.
pub(crate) struct ListWriter {
    row: Arc<Row>,
    shape: Shape,
    now: Timestamp,
    /// `metadata` of the list; taken with the first piece.
    head: Option<Value>,
    items: std::vec::IntoIter<Item>,
    /// What of each object its row shows; known after the first, and only where a few members are enough.
    shown: Option<Vec<String>>,
    first: bool,
    over: bool,
}

impl ListWriter {
    /// Refuses now what could not be written later.
    pub(crate) fn new(
        row: Arc<Row>,
        shape: Shape,
        now: Timestamp,
        metadata: Value,
        items: Vec<Item>,
    ) -> Result<Self, Status> {
        for item in &items {
            object::stored(item)?;
        }
        let (head, items) = (Some(metadata), items.into_iter());
        Ok(Self { row, shape, now, head, items, shown: None, first: true, over: false })
    }

    /// Writes until `out` has `until` bytes, or all is written.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, until: usize) -> Result<(), Status> {
        if let Some(metadata) = self.head.take() {
            self.open(&metadata, out)?;
        }
        while out.len() < until && !self.over {
            match self.items.next() {
                Some(item) => {
                    if std::mem::take(&mut self.first) {
                        self.shown = self.shown_members(&item)?;
                    } else {
                        out.push(b',');
                    }
                    self.item(&item, out)?;
                }
                None => {
                    // `kubectl get --raw` prints the body as it is: a newline belongs at its end.
                    out.extend_from_slice(b"]}\n");
                    self.over = true;
                }
            }
        }
        Ok(())
    }

    /// Whether all is written.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    fn open(&self, metadata: &Value, out: &mut Vec<u8>) -> Result<(), Status> {
        let kind = self.row.list_kind();
        let (kind, version, columns) = match self.shape {
            Shape::Whole => (kind.as_str(), self.row.api_version.as_str(), None),
            Shape::Metadata(meta) => ("PartialObjectMetadataList", meta.api_version(), None),
            Shape::Row(meta, _) => ("Table", meta.api_version(), Some(self.row.columns.definitions())),
        };
        let mut head = json!({"kind": kind, "apiVersion": version, "metadata": metadata}).to_string();
        // The closing brace comes at the end of the list.
        head.pop();
        if let Some(columns) = &columns {
            head.push_str(&format!(",\"columnDefinitions\":{columns}"));
        }
        head.push_str(if columns.is_some() { ",\"rows\":[" } else { ",\"items\":[" });
        out.write_all(head.as_bytes()).map_err(Status::internal)
    }

    /// The members of objects from which rows are made, if the kind's columns say so: a machine's row needs a tenth of it.
    fn shown_members(&self, first: &Item) -> Result<Option<Vec<String>>, Status> {
        let info = &self.row.info;
        let rows = matches!(self.shape, Shape::Row(..));
        // A kind computes all of its rows, or none.
        if !rows || info.rules.cells(&*object::view(&self.row, first)?, self.now).is_some() {
            return Ok(None);
        }
        let root = |path: &str| {
            let name = path.trim_matches(['{', '}']).strip_prefix('.')?.split(['.', '[']).next()?;
            (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| name.to_owned())
        };
        let mut all = vec!["metadata".to_owned()];
        for column in &info.columns {
            let Some(name) = root(&column.path) else { return Ok(None) };
            if !all.contains(&name) {
                all.push(name);
            }
        }
        Ok(Some(all))
    }

    fn item(&self, item: &Item, out: &mut Vec<u8>) -> Result<(), Status> {
        match self.shape {
            Shape::Whole => object::write(&self.row, item, item.modified, out),
            Shape::Metadata(meta) => self.metadata(item, meta, out),
            Shape::Row(meta, include) => {
                let tree = match &self.shown {
                    Some(shown) => object::view_of(&self.row, item, shown)?,
                    None => object::view(&self.row, item)?.into_owned(),
                };
                out.extend_from_slice(b"{\"cells\":");
                serde_json::to_writer(&mut *out, &self.row.columns.cells(&tree, self.now))
                    .map_err(Status::internal)?;
                match include {
                    RowObject::None => {}
                    RowObject::Metadata => {
                        out.extend_from_slice(b",\"object\":");
                        self.metadata(item, meta, out)?;
                    }
                    RowObject::Object => {
                        out.extend_from_slice(b",\"object\":");
                        object::write(&self.row, item, item.modified, out)?;
                    }
                }
                out.push(b'}');
                Ok(())
            }
        }
    }

    fn metadata(&self, item: &Item, meta: MetaVersion, out: &mut Vec<u8>) -> Result<(), Status> {
        if !object::as_stored(&self.row, item) {
            let partial = table::partial_object_metadata(&*object::view(&self.row, item)?, meta);
            return serde_json::to_writer(out, &partial).map_err(Status::internal);
        }
        object::write_metadata(item, meta, item.modified, false, out)
    }

    /// The rest of the list as a body, `begun` first; compressed if `gzip`.
    pub(crate) fn stream(
        self,
        begun: Vec<u8>,
        gzip: bool,
    ) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send {
        let encoder = gzip.then(|| GzEncoder::new(Vec::with_capacity(PIECE), Compression::fast()));
        stream::try_unfold((Some(self), begun, encoder), |(writer, begun, encoder)| async move {
            let Some(writer) = writer else { return Ok(None) };
            // Compressing and making rows takes milliseconds a piece: others get their turn in between.
            tokio::task::yield_now().await;
            let (piece, writer, encoder) = next(writer, begun, encoder)?;
            Ok(Some((Frame::data(piece.into()), (writer, Vec::new(), encoder))))
        })
    }
}

type Encoder = Option<GzEncoder<Vec<u8>>>;

/// One piece of the body. Without the writer, it is the last one.
fn next(
    mut writer: ListWriter,
    begun: Vec<u8>,
    mut encoder: Encoder,
) -> Result<(Vec<u8>, Option<ListWriter>, Encoder), BoxError> {
    let mut raw = begun;
    loop {
        let until = raw.len().max(PIECE);
        writer.write(&mut raw, until).map_err(|status| {
            tracing::error!(cause = status.internal, "a list could not be written to its end");
            BoxError::from(status.message)
        })?;
        let over = writer.is_over();
        let Some(mut gzip) = encoder.take() else {
            return Ok((raw, (!over).then_some(writer), None));
        };
        gzip.write_all(&raw)?;
        if over {
            return Ok((gzip.finish()?, None, None));
        }
        raw.clear();
        let out = gzip.get_mut();
        if out.len() >= PIECE {
            let piece = std::mem::replace(out, Vec::with_capacity(PIECE));
            return Ok((piece, Some(writer), Some(gzip)));
        }
        encoder = Some(gzip);
    }
}
