//! OpenAPI: version 3 as an index and one document for each group-version, version 2 as one whole document.
//!
//! [`dialect`] says a schema in either form, [`paths`] the operations, [`common`] the shapes that belong to no kind;
//! [`gnostic`] encodes the whole for clients that read nothing else.
//! Documents are large and seldom asked for: they are made when somebody asks, and of what was made only hashes are
//! kept, and the whole document compressed, since clients ask for it again and again.

mod common;
mod dialect;
mod gnostic;
mod paths;

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use sheaf_meta::status::Status;

use crate::{
    core::{Core, Cx},
    handler::render,
    http::{JSON, Outcome, Response, answer, bare},
    negotiate::{self, Form, Swagger},
    pki::hex,
    registry::{Row, Snapshot},
};
use dialect::Dialect;

/// What is derived from a set of rows, as it is asked for.
#[derive(Default)]
pub(crate) struct Published {
    derived: Mutex<Derived>,
    /// Held while something large is made, so that it is made once.
    making: Mutex<()>,
}

#[derive(Default, Clone)]
struct Derived {
    /// Of the documents of version 3, by the path of the group-version.
    hashes: BTreeMap<String, String>,
    /// The whole document, compressed, in both encodings.
    whole: Option<Arc<Whole>>,
}

struct Whole {
    tag: String,
    json: Bytes,
    protobuf: Bytes,
}

impl Published {
    fn derived(&self) -> MutexGuard<'_, Derived> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What still holds when some rows have changed: the hashes of group-versions whose rows are the same.
    pub(crate) fn carry_over(&self, before: &[Arc<Row>], now: &[Arc<Row>]) -> Self {
        let (before, now) = (by_version(before), by_version(now));
        let mut derived = self.derived().clone();
        let same = |gv: &str| match (before.get(gv), now.get(gv)) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b)),
            _ => false,
        };
        derived.hashes.retain(|gv, _| same(gv));
        derived.whole = None;
        Self { derived: Mutex::new(derived), making: Mutex::default() }
    }

    fn hashes(&self, rows: &Snapshot) -> BTreeMap<String, String> {
        let _alone = self.alone();
        let mut known = self.derived().hashes.clone();
        let mut fresh = false;
        for (gv, rows) in by_version(rows.rows()) {
            known.entry(gv).or_insert_with(|| {
                fresh = true;
                hex(&Sha256::digest(document(&rows).to_string())).to_ascii_uppercase()
            });
        }
        if fresh {
            self.derived().hashes.clone_from(&known);
        }
        known
    }

    fn whole(&self, rows: &Snapshot) -> Result<Arc<Whole>, Status> {
        let _alone = self.alone();
        if let Some(whole) = self.derived().whole.clone() {
            return Ok(whole);
        }
        let document = whole_document(rows);
        let json = document.to_string();
        let tag = format!("\"{}\"", hex(&Sha256::digest(&json)).to_ascii_uppercase());
        let protobuf = compress(&gnostic::encode(&document))?;
        let whole = Arc::new(Whole { tag, json: compress(json.as_bytes())?, protobuf });
        self.derived().whole = Some(whole.clone());
        Ok(whole)
    }
}

fn compress(bytes: &[u8]) -> Result<Bytes, Status> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 12), Compression::new(4));
    encoder.write_all(bytes).map_err(Status::internal)?;
    encoder.finish().map(Bytes::from).map_err(Status::internal)
}

/// Rows by the path of their group-version, with those that are only answered.
fn by_version(rows: &[Arc<Row>]) -> BTreeMap<String, Vec<&Arc<Row>>> {
    let mut all: BTreeMap<String, Vec<&Arc<Row>>> = BTreeMap::new();
    for row in rows.iter().chain(Row::answered()) {
        all.entry(gv_path(row)).or_default().push(row);
    }
    all
}

/// Answers `/openapi/...`.
pub(crate) async fn serve(core: &Arc<Core>, path: &str, cx: &Cx) -> Outcome {
    let rows = core.registry.snapshot();
    match path.strip_prefix("/openapi/v3") {
        Some("") => {
            let hashes = aside(move || rows.openapi.hashes(&rows)).await?;
            Ok(crate::http::json(StatusCode::OK, &index(&hashes)))
        }
        Some(rest) => version_3(rows, rest.trim_start_matches('/'), cx).await,
        None if path == "/openapi/v2" => version_2(rows, cx).await,
        None => Err(Status::no_such_path()),
    }
}

/// Runs what takes some time where it keeps no other request waiting.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)
}

fn index(hashes: &BTreeMap<String, String>) -> Value {
    let url = |gv: &str, hash: &str| json!({"serverRelativeURL": format!("/openapi/v3/{gv}?hash={hash}")});
    let paths: Map<String, Value> = hashes.iter().map(|(gv, hash)| (gv.clone(), url(gv, hash))).collect();
    json!({"paths": paths})
}

async fn version_3(rows: Arc<Snapshot>, gv: &str, cx: &Cx) -> Outcome {
    let of_hashes = rows.clone();
    let hashes = aside(move || of_hashes.openapi.hashes(&of_hashes)).await?;
    let hash = hashes.get(gv).ok_or_else(Status::no_such_path)?;
    let asked = cx.query.get("hash");
    if asked.is_some_and(|h| h != hash) {
        let mut response = bare(StatusCode::MOVED_PERMANENTLY);
        let to = format!("/openapi/v3/{gv}?hash={hash}");
        if let Ok(value) = HeaderValue::from_str(&to) {
            response.headers_mut().insert(header::LOCATION, value);
        }
        return Ok(response);
    }
    let tag = format!("\"{hash}\"");
    if asked.is_none() && knows(cx, &tag) {
        return Ok(tagged(bare(StatusCode::NOT_MODIFIED), &tag));
    }
    let path = gv.to_string();
    let made = aside(move || by_version(rows.rows()).get(&path).map(|rows| document(rows))).await?;
    let document = made.ok_or_else(Status::no_such_path)?;
    let mut response = render::respond(cx, Form::Json, StatusCode::OK, &document)?;
    if asked.is_some() {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let far = HeaderValue::from_static("Fri, 31 Dec 2100 00:00:00 GMT");
        headers.insert(header::EXPIRES, far);
    }
    Ok(tagged(response, &tag))
}

/// The whole document. kubectl and Argo CD read nothing but protobuf: gnostic's `openapi.v2.Document`.
async fn version_2(rows: Arc<Snapshot>, cx: &Cx) -> Outcome {
    // Clients ask with an at sign, which no media type may have; the answer has a dot, as upstream.
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let accept = cx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wanted = negotiate::swagger(accept)?;
    let whole = aside(move || rows.openapi.whole(&rows)).await??;
    if knows(cx, &whole.tag) {
        return Ok(tagged(bare(StatusCode::NOT_MODIFIED), &whole.tag));
    }
    let (packed, content_type) = match wanted {
        Swagger::Json => (&whole.json, JSON),
        Swagger::Protobuf => (&whole.protobuf, HeaderValue::from_static(PROTOBUF)),
    };
    let response = if render::takes_gzip(cx) {
        let mut response = answer(StatusCode::OK, content_type, packed.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(packed.as_ref());
        std::io::Read::read_to_end(&mut decoder, &mut plain).map_err(Status::internal)?;
        answer(StatusCode::OK, content_type, plain)
    };
    Ok(tagged(response, &whole.tag))
}

fn knows(cx: &Cx, tag: &str) -> bool {
    let known = cx.headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or_default();
    known.split(',').any(|t| t.trim() == tag)
}

fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    let vary = HeaderValue::from_static("Accept, Accept-Encoding");
    response.headers_mut().insert(header::VARY, vary);
    response
}

fn gv_path(row: &Row) -> String {
    if row.info.group.is_empty() {
        format!("api/{}", row.info.version)
    } else {
        format!("apis/{}/{}", row.info.group, row.info.version)
    }
}

/// `io.kubevirt.v1.VirtualMachine`: the group's words turned round, as Kubernetes names definitions.
fn definition_name(row: &Row) -> String {
    let reversed: Vec<&str> = row.info.group.split('.').rev().collect();
    format!("{}.{}.{}", reversed.join("."), row.info.version, row.info.kind)
}

fn gvk(row: &Row) -> Value {
    json!({"group": row.info.group, "version": row.info.version, "kind": row.info.kind})
}

/// Adds a kind's shapes; gives the name of its own.
fn add_shapes(row: &Row, all: &mut BTreeMap<String, Value>) -> String {
    let published = row.info.schema.definitions();
    let (name, mut shape) = match published {
        Some(mut definitions) => {
            let shape = definitions.by_name.remove(&definitions.root).unwrap_or_else(open);
            let name = if row.built_in() { definitions.root } else { definition_name(row) };
            for (name, shape) in definitions.by_name {
                all.entry(name).or_insert(shape);
            }
            (name, shape)
        }
        None => {
            let mut shape = (*row.info.schema.get()).clone();
            if !shape.is_object() {
                shape = open();
            }
            common::embed(&mut shape);
            if let Some(map) = shape.as_object_mut() {
                let properties = map.entry("properties").or_insert_with(|| json!({}));
                if !properties.is_object() {
                    *properties = json!({});
                }
                for key in ["apiVersion", "kind"] {
                    if properties.get(key).is_none() {
                        properties[key] = json!({"type": "string"});
                    }
                }
                properties["metadata"] = json!({"$ref": common::OBJECT_META});
            }
            (definition_name(row), shape)
        }
    };
    common::describe_kind(&mut shape);
    shape["x-kubernetes-group-version-kind"] = json!([gvk(row)]);
    all.insert(name.clone(), shape);
    if row.is_answered() {
        return name;
    }
    let list = json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "items": {"type": "array", "items": {"$ref": name}},
            "metadata": {"$ref": common::LIST_META},
        },
        "x-kubernetes-group-version-kind": [{
            "group": row.info.group, "version": row.info.version, "kind": row.list_kind(),
        }],
    });
    all.insert(format!("{name}List"), list);
    if row.scale.is_some() {
        common::add_scale(all);
    }
    name
}

fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Paths and definitions of some rows.
fn content(dialect: Dialect, rows: &[&Arc<Row>]) -> (Map<String, Value>, Map<String, Value>) {
    let mut shapes = BTreeMap::new();
    let mut paths = Map::new();
    for row in rows {
        let definition = add_shapes(row, &mut shapes);
        let group_version = gv_path(row);
        let (definition, group_version) = (definition.as_str(), group_version.as_str());
        paths::Paths { dialect, row, definition, group_version }.add_to(&mut paths);
    }
    common::add_to(&mut shapes);
    let definitions = shapes.iter().map(|(name, shape)| (name.clone(), dialect.definition(name, shape)));
    (paths, definitions.collect())
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::health::version()["gitVersion"]})
}

/// The document of a group-version.
fn document(rows: &[&Arc<Row>]) -> Value {
    let (paths, schemas) = content(Dialect::V3, rows);
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
            }},
        },
    })
}

/// The document of everything.
fn whole_document(rows: &Snapshot) -> Value {
    let all: Vec<&Arc<Row>> = rows.rows().iter().chain(Row::answered()).collect();
    let (mut paths, definitions) = content(Dialect::V2, &all);
    paths.insert(
        "/version/".into(),
        json!({"get": {
            "operationId": "getCodeVersion", "tags": ["version"], "produces": ["application/json"],
            "schemes": ["https"], "responses": {"200": {"description": "OK", "schema": {"type": "object"}}},
        }}),
    );
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

#[cfg(test)]
mod tests;
