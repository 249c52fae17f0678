//! Objects, lists and events in the form a client asked for.

use std::{borrow::Cow, io::Write, sync::Arc};

use http::{HeaderValue, StatusCode, header};
use http_body_util::StreamBody;
use serde_json::Value;
use sheaf_meta::{
    status::Status,
    table::{self, MetaVersion, RowObject},
};

use super::{
    list_body::{ListWriter, Shape},
    object::{self, Item},
    raw,
    write::Stored,
};
use crate::{
    core::Cx,
    http::{JSON, Outcome, Response, answer, boxed},
    negotiate::Form,
    registry::Row,
};

/// Answers at least this large are compressed when the client takes gzip.
const GZIP_FROM: usize = 128 * 1024;

pub(crate) fn meta_version(beta: bool) -> MetaVersion {
    if beta { MetaVersion::V1beta1 } else { MetaVersion::V1 }
}

/// `includeObject` of the query.
pub(crate) fn row_object(cx: &Cx) -> Result<RowObject, Status> {
    match cx.query.get("includeObject") {
        None => Ok(RowObject::default()),
        Some(word) => RowObject::parse(word)
            .ok_or_else(|| Status::bad_request(format!("includeObject: Unsupported value: \"{word}\""))),
    }
}

/// One object in a form.
pub(crate) fn one<'a>(
    cx: &Cx,
    row: &Row,
    form: Form,
    object: Cow<'a, Value>,
) -> Result<Cow<'a, Value>, Status> {
    Ok(match form {
        Form::Json | Form::Yaml => object,
        Form::Table { beta } => {
            let metadata = table::single_metadata(&object);
            let include = row_object(cx)?;
            Cow::Owned(row.columns.table([&*object], &metadata, include, meta_version(beta), cx.now))
        }
        Form::Metadata { beta } => Cow::Owned(table::partial_object_metadata(&object, meta_version(beta))),
    })
}

/// A list as the whole answer, written while the client takes it where it is large.
pub(crate) fn list(cx: &Cx, row: &Arc<Row>, form: Form, items: Vec<Item>, metadata: Value) -> Outcome {
    let shape = match form {
        Form::Json | Form::Yaml => Shape::Whole,
        Form::Table { beta } => Shape::Row(meta_version(beta), row_object(cx)?),
        Form::Metadata { beta } => Shape::Metadata(meta_version(beta)),
    };
    let mut writer = ListWriter::new(row.clone(), shape, cx.now, metadata, items)?;
    let mut begun = Vec::new();
    let whole = form == Form::Yaml || pretty(cx);
    writer.write(&mut begun, if whole { usize::MAX } else { GZIP_FROM })?;
    if writer.is_over() {
        return encoded(cx, form, StatusCode::OK, begun);
    }
    let gzip = takes_gzip(cx);
    let mut response = Response::new(boxed(StreamBody::new(writer.stream(begun, gzip))));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    if gzip {
        mark_gzip(&mut response);
    }
    Ok(response)
}

/// Writes the answer, compressed where that pays.
pub(crate) fn respond(cx: &Cx, form: Form, code: StatusCode, value: &impl serde::Serialize) -> Outcome {
    if form == Form::Yaml {
        return yaml(code, value);
    }
    let mut bytes = serde_json::to_vec(value).map_err(Status::internal)?;
    // `kubectl get --raw` prints the body as it is: a newline belongs at its end.
    bytes.push(b'\n');
    encoded(cx, form, code, bytes)
}

fn yaml(code: StatusCode, value: &impl serde::Serialize) -> Outcome {
    let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
    Ok(answer(code, HeaderValue::from_static("application/yaml"), text))
}

/// The answer from its JSON.
fn encoded(cx: &Cx, form: Form, code: StatusCode, mut bytes: Vec<u8>) -> Outcome {
    if form == Form::Yaml {
        let tree: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
        return yaml(code, &tree);
    }
    if pretty(cx) {
        bytes = raw::indent(&bytes);
        bytes.push(b'\n');
    }
    if bytes.len() < GZIP_FROM || !takes_gzip(cx) {
        return Ok(answer(code, JSON, bytes));
    }
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 8), flate2::Compression::fast());
    encoder.write_all(&bytes).map_err(Status::internal)?;
    let mut response: Response = answer(code, JSON, encoder.finish().map_err(Status::internal)?);
    mark_gzip(&mut response);
    Ok(response)
}

fn mark_gzip(response: &mut Response) {
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Whether a person reads the answer: asked for by `pretty`, else guessed from the client's name, as upstream does.
fn pretty(cx: &Cx) -> bool {
    if let Some(word) = cx.query.get("pretty") {
        return matches!(word, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = cx.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
}

/// Whether the client takes compressed answers.
pub(crate) fn takes_gzip(cx: &Cx) -> bool {
    let offered = cx.headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    offered.flat_map(|v| v.split(',')).any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip"))
}

/// One object as the whole answer.
pub(crate) fn object(cx: &Cx, row: &Row, code: StatusCode, object: Cow<'_, Value>) -> Outcome {
    let form = crate::core::accepts(cx)?;
    let value = one(cx, row, form, object)?;
    respond(cx, form, code, &value)
}

/// What was written as the whole answer.
pub(crate) fn written(cx: &Cx, row: &Row, code: StatusCode, stored: Stored) -> Outcome {
    let form = crate::core::accepts(cx)?;
    if matches!(form, Form::Json | Form::Yaml)
        && let Some((there, at)) = &stored.bytes
        && row.info.rules.twin().is_none()
        && let Some(parts) = &there.parts
    {
        let mut out = Vec::new();
        parts.write(&there.bytes, &row.api_version, &row.info.kind, at.0, &mut out);
        out.push(b'\n');
        return encoded(cx, form, code, out);
    }
    object(cx, row, code, Cow::Borrowed(&*stored.value))
}

/// One cached object as the whole answer.
pub(crate) fn item(cx: &Cx, row: &Row, item: &Item) -> Outcome {
    let form = crate::core::accepts(cx)?;
    let mut bytes = Vec::new();
    match form {
        Form::Json | Form::Yaml => object::write(row, item, item.modified, &mut bytes)?,
        Form::Metadata { beta } if object::as_stored(row, item) => {
            object::write_metadata(item, meta_version(beta), item.modified, false, &mut bytes)?;
        }
        Form::Metadata { .. } | Form::Table { .. } => {
            let value = one(cx, row, form, object::view(row, item)?)?;
            return respond(cx, form, StatusCode::OK, &value);
        }
    }
    bytes.push(b'\n');
    encoded(cx, form, StatusCode::OK, bytes)
}
