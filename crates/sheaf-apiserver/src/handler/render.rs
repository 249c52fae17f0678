//! Objects, lists and events in the form a client asked for.

use std::{borrow::Cow, io::Write};

use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use sheaf_meta::{
    status::Status,
    table::{self, MetaVersion, RowObject},
};

use super::object::{Item, view};
use crate::{
    core::Cx,
    http::{JSON, Outcome, Response, answer},
    negotiate::Form,
    registry::Row,
};

/// Answers at least this large are compressed when the client takes gzip.
const GZIP_FROM: usize = 128 * 1024;

fn meta_version(beta: bool) -> MetaVersion {
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

/// A plain list; the items are not copied.
#[derive(serde::Serialize)]
struct List<'a> {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    metadata: &'a Value,
    items: Vec<Cow<'a, Value>>,
}

/// A list as the whole answer.
pub(crate) fn list(cx: &Cx, row: &Row, form: Form, items: &[Item], metadata: &Value) -> Outcome {
    let items = items.iter().map(|i| view(row, i)).collect::<Result<Vec<_>, _>>()?;
    let objects = items.iter().map(AsRef::as_ref);
    match form {
        Form::Json | Form::Yaml => {
            let list = List { kind: row.list_kind(), api_version: &row.api_version, metadata, items };
            respond(cx, form, StatusCode::OK, &list)
        }
        Form::Table { beta } => {
            let table = row.columns.table(objects, metadata, row_object(cx)?, meta_version(beta), cx.now);
            respond(cx, form, StatusCode::OK, &table)
        }
        Form::Metadata { beta } => {
            let list = table::partial_object_metadata_list(objects, metadata, meta_version(beta));
            respond(cx, form, StatusCode::OK, &list)
        }
    }
}

/// Writes the answer, compressed where that pays.
pub(crate) fn respond(cx: &Cx, form: Form, code: StatusCode, value: &impl serde::Serialize) -> Outcome {
    if form == Form::Yaml {
        let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
        return Ok(answer(code, HeaderValue::from_static("application/yaml"), text));
    }
    let mut bytes = serde_json::to_vec(value).map_err(Status::internal)?;
    // `kubectl get --raw` prints the body as it is: a newline belongs at its end.
    bytes.push(b'\n');
    if bytes.len() < GZIP_FROM || !takes_gzip(cx) {
        return Ok(answer(code, JSON, bytes));
    }
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 8), flate2::Compression::fast());
    encoder.write_all(&bytes).map_err(Status::internal)?;
    let mut response: Response = answer(code, JSON, encoder.finish().map_err(Status::internal)?);
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
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
