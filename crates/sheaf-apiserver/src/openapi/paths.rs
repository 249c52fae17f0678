//! Operations of stored kinds: which paths there are, what they take and what they answer. Pure.

use serde_json::{Map, Value, json};

use super::{
    common::{DELETE_OPTIONS, PATCH, SCALE, STATUS},
    dialect::Dialect,
    gvk,
};
use crate::registry::Row;

/// Query parameters: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', the answer is indented.");
const DRY_RUN: Parameter = ("dryRun", "string", "With 'All', everything happens except storing.");
const MANAGER: Parameter = ("fieldManager", "string", "Name of whoever makes the change.");
const VALIDATION: Parameter =
    ("fieldValidation", "string", "What happens to unknown and duplicate fields: Ignore, Warn or Strict.");
const FORCE: Parameter = ("force", "boolean", "Takes over fields that others manage, in an apply.");
const DELETION: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object goes."),
    ("orphanDependents", "boolean", "Deprecated: propagationPolicy says more."),
    ("propagationPolicy", "string", "What happens to dependants: Orphan, Background or Foreground."),
];
const SELECTION: &[Parameter] = &[
    ("continue", "string", "Where a list in parts goes on."),
    ("fieldSelector", "string", "Restricts the list by fields."),
    ("labelSelector", "string", "Restricts the list by labels."),
    ("limit", "integer", "Most objects in one answer."),
    ("resourceVersion", "string", "Which version of the collection is meant."),
    ("resourceVersionMatch", "string", "How the version is meant."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with what is there."),
    ("timeoutSeconds", "integer", "How long the answer may take."),
];
const WATCHING: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Whether the watch tells how far it is."),
    ("watch", "boolean", "Sends changes instead of a list."),
];

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// What an operation takes as its body.
enum Takes<'a> {
    Nothing,
    Object(&'a str),
    Patch,
    Options,
}

/// Paths of one kind in one document.
pub(super) struct Paths<'a> {
    pub(super) dialect: Dialect,
    pub(super) row: &'a Row,
    /// Name of the kind's definition.
    pub(super) definition: &'a str,
    /// `api/v1` or `apis/GROUP/VERSION`.
    pub(super) group_version: &'a str,
}

impl Paths<'_> {
    /// Adds all paths of the kind.
    pub(super) fn add_to(&self, paths: &mut Map<String, Value>) {
        let Self { row, group_version, .. } = self;
        let plural = &row.info.plural;
        let object = self.definition;
        let list = format!("{object}List");
        let place = if row.namespaced() { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{group_version}/{place}{plural}");
        let writing = [DRY_RUN, MANAGER, VALIDATION];
        if row.is_answered() {
            let of_path: &[&str] = if row.namespaced() { &["namespace"] } else { &[] };
            let post = self.operation("post", "", object, writing.into(), Takes::Object(object));
            paths.insert(collection, json!({"parameters": self.of_path(of_path), "post": post}));
            return;
        }
        if row.namespaced() {
            let everywhere = json!({
                "parameters": self.of_path(&[]),
                "get": self.operation("list", "ForAllNamespaces", &list, self.selecting(true), Takes::Nothing),
            });
            paths.insert(format!("/{group_version}/{plural}"), everywhere);
        }
        let mut of_collection: Vec<&str> = Vec::new();
        if row.namespaced() {
            of_collection.push("namespace");
        }
        let deleting: Vec<Parameter> =
            self.selecting(false).into_iter().chain(DELETION.iter().copied()).collect();
        let mut whole = json!({
            "parameters": self.of_path(&of_collection),
            "get": self.operation("list", "", &list, self.selecting(true), Takes::Nothing),
            "post": self.operation("post", "", object, writing.into(), Takes::Object(object)),
        });
        if row.verbs().contains(&"deletecollection") {
            whole["delete"] = self.operation("deletecollection", "", STATUS, deleting, Takes::Options);
        }
        paths.insert(collection.clone(), whole);
        let of_object: Vec<&str> = std::iter::once("name").chain(of_collection).collect();
        let one = |shape: &str, suffix: &str| {
            let patching = [DRY_RUN, MANAGER, VALIDATION, FORCE];
            json!({
                "parameters": self.of_path(&of_object),
                "get": self.operation("get", suffix, shape, Vec::new(), Takes::Nothing),
                "put": self.operation("put", suffix, shape, writing.into(), Takes::Object(shape)),
                "patch": self.operation("patch", suffix, shape, patching.into(), Takes::Patch),
            })
        };
        for sub in row.subresources() {
            let mut suffix = sub.to_string();
            if let Some(first) = suffix.get_mut(0..1) {
                first.make_ascii_uppercase();
            }
            let mut path = one(if sub == "scale" { SCALE } else { object }, &suffix);
            let verbs = row.verbs_of(sub);
            if let Some(path) = path.as_object_mut() {
                for (method, verb) in [("get", "get"), ("patch", "patch"), ("put", "update")] {
                    if !verbs.contains(&verb) {
                        path.remove(method);
                    }
                }
            }
            if verbs.contains(&"create") {
                path["post"] = self.operation("post", &suffix, object, writing.into(), Takes::Object(object));
            }
            paths.insert(format!("{collection}/{{name}}/{sub}"), path);
        }
        let mut whole = one(object, "");
        let gone = if crate::life::shows_deleted(row) { object } else { STATUS };
        whole["delete"] = self.operation("delete", "", gone, DELETION.to_vec(), Takes::Options);
        paths.insert(format!("{collection}/{{name}}"), whole);
    }

    fn selecting(&self, watching: bool) -> Vec<Parameter> {
        let watching = if watching { WATCHING } else { &[] };
        SELECTION.iter().chain(watching).copied().collect()
    }

    fn of_path(&self, names: &[&str]) -> Vec<Value> {
        let (name, ty, does) = PRETTY;
        let mut out: Vec<Value> = names
            .iter()
            .map(|n| self.parameter(n, "string", &format!("The {n} of the object."), "path"))
            .collect();
        out.push(self.parameter(name, ty, does, "query"));
        out
    }

    fn parameter(&self, name: &str, ty: &str, does: &str, place: &str) -> Value {
        let mut out = json!({"name": name, "in": place, "description": does, "uniqueItems": true});
        if place == "path" {
            out["required"] = json!(true);
        }
        match self.dialect {
            Dialect::V2 => out["type"] = json!(ty),
            Dialect::V3 => {
                out.as_object_mut().map(|o| o.remove("uniqueItems"));
                out["schema"] = json!({"type": ty, "uniqueItems": true});
            }
        }
        out
    }

    /// `listCoreV1NamespacedPod`, as generated clients call it.
    fn id(&self, action: &str, suffix: &str) -> String {
        let capital = |word: &str| {
            let mut word = word.to_string();
            if let Some(first) = word.get_mut(0..1) {
                first.make_ascii_uppercase();
            }
            word
        };
        let verb = match action {
            "get" => "read",
            "put" => "replace",
            "post" => "create",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let group = self.row.info.group.trim_end_matches(".k8s.io");
        let group: String = match group {
            "" => "Core".into(),
            group => group.split(['.', '-']).map(capital).collect(),
        };
        let version = capital(&self.row.info.version);
        let everywhere = suffix == "ForAllNamespaces";
        let place = if self.row.namespaced() && !everywhere { "Namespaced" } else { "" };
        format!("{verb}{group}{version}{place}{}{suffix}", self.row.info.kind)
    }

    fn operation(
        &self,
        action: &str,
        suffix: &str,
        answer: &str,
        query: Vec<Parameter>,
        takes: Takes<'_>,
    ) -> Value {
        let row = self.row;
        let mut parameters: Vec<Value> =
            query.iter().map(|(name, ty, does)| self.parameter(name, ty, does, "query")).collect();
        let mut codes = vec![("200", "OK")];
        match action {
            "post" => codes.extend([("201", "Created"), ("202", "Accepted")]),
            "put" | "patch" => codes.push(("201", "Created")),
            "delete" => codes.push(("202", "Accepted")),
            _ => {}
        }
        let mut out = json!({
            "operationId": self.id(action, suffix),
            "tags": [row.api_version.replace(['/', '.'], "_")],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": match suffix {
                "Scale" => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
                _ => gvk(row),
            },
        });
        let shape = self.dialect.reference(answer);
        let mut responses = Map::new();
        for (code, text) in codes {
            let response = match self.dialect {
                Dialect::V2 => json!({"description": text, "schema": shape}),
                Dialect::V3 => {
                    let content =
                        json!({"application/json": {"schema": shape}, "application/yaml": {"schema": shape}});
                    json!({"description": text, "content": content})
                }
            };
            responses.insert(code.into(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out["responses"] = Value::Object(responses);
        let any: &[&str] = &["*/*"];
        let patches: Vec<&str> = match row.built_in() {
            true => vec![JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH],
            // kubectl chooses by this list.
            false => vec![JSON_PATCH, MERGE_PATCH, APPLY_PATCH],
        };
        let body = match takes {
            Takes::Nothing => None,
            Takes::Object(name) => Some((name, any)),
            Takes::Options => Some((DELETE_OPTIONS, any)),
            Takes::Patch => Some((PATCH, patches.as_slice())),
        };
        if let Some((name, types)) = body {
            let required = name != DELETE_OPTIONS;
            let schema = self.dialect.reference(name);
            match self.dialect {
                Dialect::V2 => {
                    let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        parameter["required"] = json!(true);
                    }
                    parameters.insert(0, parameter);
                    out["consumes"] = json!(types);
                }
                Dialect::V3 => {
                    let content: Map<String, Value> =
                        types.iter().map(|t| ((*t).to_string(), json!({"schema": schema}))).collect();
                    out["requestBody"] = json!({"content": content});
                    if required {
                        out["requestBody"]["required"] = json!(true);
                    }
                }
            }
        }
        if self.dialect == Dialect::V2 {
            out["produces"] = json!(["application/json", "application/yaml"]);
            out["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            out["parameters"] = json!(parameters);
        }
        out
    }
}
