//! Objects, lists and events in the form a client asked for.

use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sheaf_meta::{
    status::Status,
    table::{self, MetaVersion, RowObject},
};
use std::io::Write;

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
pub(crate) fn one(cx: &Cx, row: &Row, form: Form, object: Value) -> Result<Value, Status> {
    Ok(match form {
        Form::Json | Form::Yaml => object,
        Form::Table { beta } => {
            let metadata = table::single_metadata(&object);
            row.columns.table([&object], &metadata, row_object(cx)?, meta_version(beta), cx.now)
        }
        Form::Metadata { beta } => table::partial_object_metadata(&object, meta_version(beta)),
    })
}

/// A list in a form.
pub(crate) fn list(
    cx: &Cx,
    row: &Row,
    form: Form,
    items: Vec<Value>,
    metadata: Value,
) -> Result<Value, Status> {
    Ok(match form {
        Form::Json | Form::Yaml => json!({
            "kind": format!("{}List", row.info.kind),
            "apiVersion": row.api_version,
            "metadata": metadata,
            "items": items,
        }),
        Form::Table { beta } => {
            row.columns.table(items.iter(), &metadata, row_object(cx)?, meta_version(beta), cx.now)
        }
        Form::Metadata { beta } => {
            table::partial_object_metadata_list(items.iter(), &metadata, meta_version(beta))
        }
    })
}

/// Writes the answer, compressed where that pays.
pub(crate) fn respond(cx: &Cx, form: Form, code: StatusCode, value: &Value) -> Outcome {
    if form == Form::Yaml {
        let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
        return Ok(answer(code, HeaderValue::from_static("application/yaml"), text));
    }
    let mut bytes = serde_json::to_vec(value).map_err(Status::internal)?;
    // `kubectl get --raw` prints the body as it is: a newline belongs at its end.
    bytes.push(b'\n');
    let takes_gzip = cx
        .headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip"));
    if bytes.len() < GZIP_FROM || !takes_gzip {
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

/// One object as the whole answer.
pub(crate) fn object(cx: &Cx, row: &Row, code: StatusCode, object: Value) -> Outcome {
    let form = crate::core::accepts(cx)?;
    let value = one(cx, row, form, object)?;
    respond(cx, form, code, &value)
}
