//! OpenAPI v3: an index and one document for each group-version, with what kubectl and the libraries read of them.
//!
//! Not a full description of the API: operations carry what clients look up (the kind, `fieldValidation`, the
//! accepted patch types) and schemas are the rows' own. Only the documents' hashes are kept.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use sheaf_meta::status::Status;

use crate::{
    core::{Core, Cx},
    handler::render,
    http::{Outcome, Response, answer, bare},
    negotiate::Form,
    pki::hex,
    registry::{Row, Snapshot},
};

/// Answers `/openapi/...`.
pub(crate) fn serve(core: &Arc<Core>, path: &str, cx: &Cx) -> Outcome {
    let rows = core.registry.snapshot();
    let hashes = rows.openapi.get_or_init(|| hashes(&rows));
    match path.strip_prefix("/openapi/v3") {
        Some("") => {
            let paths: Map<String, Value> = hashes
                .iter()
                .map(|(gv, hash)| {
                    (gv.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{gv}?hash={hash}")}))
                })
                .collect();
            Ok(crate::http::json(StatusCode::OK, &json!({"paths": paths})))
        }
        Some(rest) => {
            let gv = rest.trim_start_matches('/');
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
            let of_version: Vec<&Arc<Row>> = rows.rows().iter().filter(|r| gv_path(r) == gv).collect();
            let mut response = render::respond(cx, Form::Json, StatusCode::OK, &document(gv, &of_version))?;
            let headers = response.headers_mut();
            if asked.is_some() {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
                let far = HeaderValue::from_static("Fri, 31 Dec 2100 00:00:00 GMT");
                headers.insert(header::EXPIRES, far);
            }
            if let Ok(etag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
                headers.insert(header::ETAG, etag);
            }
            headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
            Ok(response)
        }
        None if path == "/openapi/v2" => Ok(version_2(cx)),
        None => Err(Status::no_such_path()),
    }
}

/// OpenAPI v2 without definitions. kubectl asks for it before it takes `kind: List` documents apart, and goes without
/// validation of its own for kinds that are not in it (the server validates them all). It reads nothing but protobuf:
/// gnostic's `openapi.v2.Document`.
fn version_2(cx: &Cx) -> Response {
    // Clients ask with an at sign, which no media type may have; the answer has a dot, as upstream.
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let accept = cx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let version = crate::health::version()["gitVersion"].as_str().unwrap_or_default().to_string();
    if !accept.contains("proto-openapi") {
        let body = json!({
            "swagger": "2.0", "info": {"title": "Kubernetes", "version": version}, "paths": {}, "definitions": {},
        });
        return crate::http::json(StatusCode::OK, &body);
    }
    // Length-delimited fields: swagger = 1, info = 2 {title = 1, version = 2}, paths = 8, definitions = 9.
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap_or(0) & 0x7f;
        [&[number << 3 | 2, length], &content[..usize::from(length)]].concat()
    };
    let info = [field(1, b"Kubernetes"), field(2, version.as_bytes())].concat();
    let body = [field(1, b"2.0"), field(2, &info), field(8, &[]), field(9, &[])].concat();
    answer(StatusCode::OK, HeaderValue::from_static(PROTOBUF), body)
}

/// The hash of each document. The documents themselves are large and seldom asked for: they are made anew.
fn hashes(rows: &Snapshot) -> BTreeMap<String, String> {
    let mut by_version: BTreeMap<String, Vec<&Arc<Row>>> = BTreeMap::new();
    for row in rows.rows() {
        by_version.entry(gv_path(row)).or_default().push(row);
    }
    let hash = |gv: &str, rows: &[&Arc<Row>]| {
        hex(&Sha256::digest(document(gv, rows).to_string())).to_ascii_uppercase()
    };
    by_version.into_iter().map(|(gv, rows)| (gv.clone(), hash(&gv, &rows))).collect()
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
    if row.info.group.is_empty() {
        return format!("io.k8s.api.core.{}.{}", row.info.version, row.info.kind);
    }
    let reversed: Vec<&str> = row.info.group.split('.').rev().collect();
    format!("{}.{}.{}", reversed.join("."), row.info.version, row.info.kind)
}

fn document(gv: &str, rows: &[&Arc<Row>]) -> Value {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for row in rows {
        let name = definition_name(row);
        let mut schema = (*row.info.schema.get()).clone();
        if !schema.is_object() {
            schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        if schema.pointer("/properties/metadata").is_some_and(|m| m.get("properties").is_none()) {
            schema["properties"]["metadata"] = sheaf_meta::objectmeta::schema().clone();
        }
        schema["x-kubernetes-group-version-kind"] = json!([gvk(row)]);
        schemas.insert(name.clone(), schema);
        let list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}},
                "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
            "x-kubernetes-group-version-kind": [{
                "group": row.info.group, "version": row.info.version, "kind": format!("{}List", row.info.kind),
            }],
        });
        schemas.insert(format!("{name}List"), list);
        add_paths(&mut paths, gv, row, &name);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::health::version()["gitVersion"]},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn gvk(row: &Row) -> Value {
    json!({"group": row.info.group, "version": row.info.version, "kind": row.info.kind})
}

fn add_paths(paths: &mut Map<String, Value>, gv: &str, row: &Row, definition: &str) {
    let plural = &row.info.plural;
    let namespaced = row.namespaced();
    let place = if namespaced { "namespaces/{namespace}/" } else { "" };
    let collection = format!("/{gv}/{place}{plural}");
    let mut params = vec![];
    if namespaced {
        params.push(parameter("namespace", "path"));
    }
    let object = ref_to(definition);
    let list = ref_to(&format!("{definition}List"));
    if namespaced {
        let all = json!({"get": operation(row, "list", &list, None)});
        paths.insert(format!("/{gv}/{plural}"), all);
    }
    paths.insert(
        collection.clone(),
        json!({
            "parameters": params,
            "get": operation(row, "list", &list, None),
            "post": operation(row, "post", &object, Some(&["*/*"])),
            "delete": operation(row, "deletecollection", &json!({"type": "object"}), None),
        }),
    );
    params.push(parameter("name", "path"));
    let mut patch_types =
        vec!["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
    if row.built_in() {
        patch_types.push("application/strategic-merge-patch+json");
    }
    let one = json!({
        "parameters": params,
        "get": operation(row, "get", &object, None),
        "put": operation(row, "put", &object, Some(&["*/*"])),
        "patch": operation(row, "patch", &object, Some(&patch_types)),
        "delete": operation(row, "delete", &object, None),
    });
    for sub in row.subresources() {
        let mut path = one.clone();
        if let Some(map) = path.as_object_mut() {
            map.remove("delete");
        }
        paths.insert(format!("{collection}/{{name}}/{sub}"), path);
    }
    paths.insert(format!("{collection}/{{name}}"), one);
}

fn ref_to(definition: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{definition}")})
}

fn parameter(name: &str, place: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}})
}

fn operation(row: &Row, action: &str, answer: &Value, bodies: Option<&[&str]>) -> Value {
    let mut out = json!({
        "tags": [row.api_version.replace(['/', '.'], "_")],
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(row),
    });
    if let Some(types) = bodies {
        let write = ["dryRun", "fieldManager", "fieldValidation"];
        out["parameters"] = json!(write.map(|p| parameter(p, "query")));
        let content: Map<String, Value> = types
            .iter()
            .map(|t| {
                let patch = t.ends_with("patch+json") || t.ends_with("patch+yaml");
                let schema = if patch { json!({"type": "object"}) } else { answer.clone() };
                ((*t).to_string(), json!({"schema": schema}))
            })
            .collect();
        out["requestBody"] = json!({"content": content, "required": true});
    }
    out
}
