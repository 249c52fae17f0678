//! GET, PUT and PATCH of the subresource `scale`. What it makes of an object is in [`crate::scale`].

use std::sync::{Arc, OnceLock};

use http::StatusCode;
use serde_json::{Value, json};
use sheaf_meta::{
    object, patch,
    schema::Schema,
    status::{FieldError, Status},
    table,
};

use super::{
    list,
    options::WriteOptions,
    patching::Patch,
    render, schema,
    write::{Change, mutate},
};
use crate::{
    body,
    core::{Core, Cx, accepts},
    http::{Outcome, Request},
    negotiate::Form,
    registry::Row,
    scale::{self, ScalePaths},
    verb::Verb,
};

/// Answers a request for `/scale`.
pub(crate) async fn handle(core: &Arc<Core>, cx: &mut Cx, row: &Row, request: Request) -> Outcome {
    let Some(paths) = row.scale.clone() else { return Err(Status::no_such_path()) };
    let object = match cx.verb {
        Verb::Get => Arc::new(list::read_one(core, cx, row).await?),
        Verb::Update => update(core, cx, row, paths.clone(), request).await?,
        Verb::Patch => patch(core, cx, row, paths.clone(), request).await?,
        _ => return Err(Status::method_not_allowed()),
    };
    let scale = if cx.verb == Verb::Get { paths.read(&object)? } else { paths.scale_of(&object) };
    answer(cx, scale)
}

async fn update(
    core: &Arc<Core>,
    cx: &mut Cx,
    row: &Row,
    paths: ScalePaths,
    request: Request,
) -> Result<Arc<Value>, Status> {
    let mut options = WriteOptions::parse(cx)?;
    let parsed = body::object(request.into_body(), &cx.headers).await?;
    options.strange = parsed.strange;
    let mut wanted = parsed.value;
    known_fields(cx, &options, &mut wanted)?;
    let mut change = Change::Computed(Box::new(move |current| paths.write(current, &wanted)));
    Ok(mutate(core, cx, row, &options, &mut change).await?.value)
}

async fn patch(
    core: &Arc<Core>,
    cx: &mut Cx,
    row: &Row,
    paths: ScalePaths,
    request: Request,
) -> Result<Arc<Value>, Status> {
    let mut options = WriteOptions::parse(cx)?;
    let content_type = body::content_type(&cx.headers);
    let bytes = body::read(request.into_body()).await?;
    let mut change = match Patch::parse(row, &content_type, &bytes, &mut options.strange)? {
        Patch::Apply(mut config) => {
            if cx.query.get("fieldManager").is_none() {
                let error = FieldError::required("fieldManager", "is required for apply patch");
                return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
            }
            known_fields(cx, &options, &mut config)?;
            // What is applied to the Scale is applied to the object's number.
            let of_object = json!({"metadata": {"name": cx.path.name, "namespace": cx.path.namespace}});
            paths.write(&of_object, &config)?;
            let mut part = json!({"apiVersion": row.api_version, "kind": row.info.kind, "metadata": of_object["metadata"]});
            if config.pointer("/spec/replicas").is_some() {
                paths.put(&mut part, scale::wanted_of(&config));
            }
            object::set_resource_version(&mut part, object::resource_version(&config));
            Change::Apply(part)
        }
        patch => computed(paths, patch),
    };
    Ok(mutate(core, cx, row, &options, &mut change).await?.value)
}

/// A patch is one of the Scale, whichever kind the object is.
fn computed(paths: ScalePaths, patch: Patch) -> Change {
    Change::Computed(Box::new(move |current| {
        let mut base = paths.scale_of(current);
        let scale = match &patch {
            Patch::Json(patch) => patch::json_patch(&base, patch).map_err(|e| e.status())?,
            // A Scale has no lists: there a strategic merge is a merge.
            Patch::Merge(patch) | Patch::Strategic(patch) => {
                // What the patch does not mention is no precondition.
                object::set_resource_version(&mut base, "");
                patch::merge_patch(&base, patch)
            }
            Patch::Apply(_) => return Err(Status::internal("an apply was taken for a patch")),
        };
        paths.write(current, &scale)
    }))
}

fn known_fields(cx: &mut Cx, options: &WriteOptions, scale: &mut Value) -> Result<(), Status> {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    let shape = SCHEMA.get_or_init(|| Schema::compile(scale::schema()));
    schema::report_unknown(cx, options, ("Scale", "v1"), true, &shape.prune(scale))
}

fn answer(cx: &Cx, scale: Value) -> Outcome {
    match accepts(cx)? {
        form @ (Form::Json | Form::Yaml) => render::respond(cx, form, StatusCode::OK, &scale),
        Form::Table { .. } => {
            let column = |name: &str, ty: &str| json!({"name": name, "type": ty, "format": "", "description": "", "priority": 0});
            let age = table::age_of(object::creation_timestamp(&scale), cx.now);
            let table = json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": table::single_metadata(&scale),
                "columnDefinitions": [
                    {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
                    column("Desired", "integer"), column("Available", "integer"), column("Age", "string"),
                ],
                "rows": [{
                    "cells": [object::name(&scale), scale::wanted_of(&scale), scale["status"]["replicas"], age],
                    "object": table::partial_object_metadata(&scale, table::MetaVersion::V1),
                }],
            });
            render::respond(cx, Form::Json, StatusCode::OK, &table)
        }
        Form::Metadata { .. } => {
            let partial = table::partial_object_metadata(&scale, table::MetaVersion::V1);
            render::respond(cx, Form::Json, StatusCode::OK, &partial)
        }
    }
}
