//! Query parameters of writes and of selections, parsed and checked.

use serde_json::{Value, json};
use sheaf_meta::{
    apply,
    selector::{FieldSelector, LabelSelector},
    status::Status,
};

use crate::{core::Cx, extension::Operation, query::Query, registry::Row};

/// What happens to fields that the schema does not know, and to keys that come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning.
    Warn,
    /// Refused.
    Strict,
}

/// Options of create, update and patch.
#[derive(Debug, Clone)]
pub(crate) struct WriteOptions {
    /// Nothing is stored.
    pub(crate) dry_run: bool,
    /// Unknown and duplicate fields.
    pub(crate) validation: FieldValidation,
    /// Who is recorded as the owner of the fields.
    pub(crate) manager: String,
    /// `force` of server-side apply.
    pub(crate) force: bool,
    /// Keys of the body that came twice.
    pub(crate) duplicates: Vec<String>,
}

impl WriteOptions {
    pub(crate) fn parse(cx: &Cx) -> Result<Self, Status> {
        let validation = match cx.query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(Status::bad_request(format!(
                    "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Warn\", \"Strict\""
                )));
            }
        };
        Ok(Self {
            dry_run: dry_run(cx.query.all("dryRun"))?,
            validation,
            manager: manager(cx)?,
            force: cx.query.flag("force"),
            duplicates: Vec::new(),
        })
    }

    /// As an object of `meta.k8s.io/v1`, which admission webhooks are shown.
    pub(crate) fn as_object(&self, operation: Operation) -> Value {
        let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
        let validation = match self.validation {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        };
        let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "fieldValidation": validation});
        if self.dry_run {
            out["dryRun"] = json!(["All"]);
        }
        if !self.manager.is_empty() {
            out["fieldManager"] = json!(self.manager);
        }
        out
    }
}

/// Reads `dryRun` values; `All` is the only one there is.
pub(crate) fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values.filter(|v| !v.is_empty()) {
        if value != "All" {
            return Err(Status::bad_request(format!(
                "dryRun: Unsupported value: \"{value}\": supported values: \"All\""
            )));
        }
        dry = true;
    }
    Ok(dry)
}

fn manager(cx: &Cx) -> Result<String, Status> {
    if let Some(name) = cx.query.get("fieldManager") {
        let broken = apply::validate_manager(name);
        if broken.is_empty() {
            return Ok(name.to_string());
        }
        return Err(Status::bad_request(format!("fieldManager: Invalid value: {}", broken.join("; "))));
    }
    let agent = cx.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(apply::default_manager(agent))
}

/// Which objects of a collection are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    pub(crate) fn parse(query: &Query, row: &Row) -> Result<Self, Status> {
        let bad = |e: sheaf_meta::selector::SelectorError| Status::bad_request(e.to_string());
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(bad)?;
        fields.check_supported(&row.info.selectable_fields).map_err(bad)?;
        Ok(Self { labels, fields })
    }

    /// Restricts to one object: `GET R/NAME?watch=true`.
    pub(crate) fn of_name(name: &str) -> Result<Self, Status> {
        let fields = FieldSelector::parse(&format!("metadata.name={name}"))
            .map_err(|e| Status::bad_request(e.to_string()))?;
        Ok(Self { labels: LabelSelector::everything(), fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn matches(&self, object: &serde_json::Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}
