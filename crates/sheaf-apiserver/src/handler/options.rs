//! Query parameters of writes and of selections, parsed and checked.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};
use sheaf_meta::{
    apply,
    selector::{FieldSelector, FieldTerm, LabelSelector},
    status::{FieldError, Status},
    strict,
};

use super::{
    object::{self, Item},
    raw,
};
use crate::{core::Cx, extension::Operation, query::Query, registry::Row, verb::Verb};

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
    /// What was strange in the body, as far as reading it showed.
    pub(crate) strange: Vec<String>,
    /// The body, if it was JSON in which keys came twice.
    pub(crate) body: Option<Bytes>,
}

impl WriteOptions {
    /// Reads the options of a create, update or patch; all that is wrong with them is said at once.
    pub(crate) fn parse(cx: &Cx) -> Result<Self, Status> {
        let kind = match cx.verb {
            Verb::Create => "CreateOptions",
            Verb::Update => "UpdateOptions",
            _ => "PatchOptions",
        };
        let mut errors = Vec::new();
        let validation = match cx.query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", &json!(other), &allowed));
                FieldValidation::Ignore
            }
        };
        errors.extend(dry_run_errors(cx.query.all("dryRun")));
        let manager = cx.query.get("fieldManager").unwrap_or_default();
        errors.extend(
            apply::validate_manager(manager)
                .iter()
                .map(|why| FieldError::invalid("fieldManager", &json!(manager), why)),
        );
        if !errors.is_empty() {
            return Err(invalid(kind, &errors));
        }
        Ok(Self {
            dry_run: cx.query.all("dryRun").any(|v| !v.is_empty()),
            validation,
            manager: if manager.is_empty() { default_manager(cx) } else { manager.into() },
            force: cx.query.flag("force"),
            strange: Vec::new(),
            body: None,
        })
    }
}

impl WriteOptions {
    /// Keys that came twice and fields that nobody knows, as sentences. Upstream finds both at once, in the order of the
    /// body, when it reads one of its own kinds; of others the fields come after the keys.
    pub(crate) fn problems(&self, built_in: bool, unknown: &[String]) -> Vec<String> {
        match &self.body {
            Some(body) if built_in => strict::problems_in_order(body, unknown),
            _ => self.strange.iter().cloned().chain(strict::problems(unknown, &[])).collect(),
        }
    }

    /// A configuration in which keys came twice is refused before anything else is looked at, where it is to be exact.
    pub(crate) fn refuse_twice(&self) -> Result<(), Status> {
        if self.validation != FieldValidation::Strict || self.strange.is_empty() {
            return Ok(());
        }
        let list = self.strange.join("\n  ");
        Err(Status::bad_request(format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {list}"
        )))
    }

    /// The same as a refusal of the kind and version.
    pub(crate) fn refuse_problems(
        &self,
        (kind, version): (&str, &str),
        built_in: bool,
        unknown: &[String],
    ) -> Result<(), Status> {
        let problems = self.problems(built_in, unknown);
        if problems.is_empty() {
            return Ok(());
        }
        let list = problems.join(", ");
        Err(Status::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {list}"
        )))
    }
}

impl WriteOptions {
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

/// 422 for options that are wrong by themselves.
pub(crate) fn invalid(kind: &str, errors: &[FieldError]) -> Status {
    Status::invalid("meta.k8s.io", kind, "", errors)
}

/// Reads the `dryRun` values of a deletion; `All` is the only one there is.
pub(crate) fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let given: Vec<&str> = values.collect();
    match dry_run_errors(given.iter().copied()) {
        None => Ok(given.iter().any(|v| !v.is_empty())),
        Some(error) => Err(invalid("DeleteOptions", &[error])),
    }
}

fn dry_run_errors<'a>(values: impl Iterator<Item = &'a str>) -> Option<FieldError> {
    let given: Vec<&str> = values.filter(|v| !v.is_empty()).collect();
    let wrong = given.iter().any(|v| *v != "All");
    wrong.then(|| FieldError::not_supported("dryRun", &json!(given), &["All"]))
}

fn default_manager(cx: &Cx) -> String {
    let agent = cx.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    apply::default_manager(agent)
}

/// The one name that a collection's field selector fixes, for authorization.
pub(crate) fn only_name(query: &Query) -> Option<String> {
    let fields = FieldSelector::parse(query.get("fieldSelector")?).ok()?;
    fields.required("metadata.name").filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Which objects of a collection are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    /// Selectors of the query. An object named by the path (`/watch/.../NAME`) is one more field; the two must agree.
    pub(crate) fn parse(query: &Query, row: &Row, name: &str) -> Result<Self, Status> {
        let bad = |e: sheaf_meta::selector::SelectorError| Status::bad_request(e.to_string());
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let mut fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(bad)?;
        fields.check_supported(&row.info.selectable_fields).map_err(bad)?;
        fields.terms.iter_mut().for_each(|term| crate::life::as_stored(row, term));
        if !name.is_empty() {
            match fields.required("metadata.name") {
                Some(selected) if selected == name => {}
                None if fields.is_everything() => fields.terms.push(FieldTerm {
                    field: "metadata.name".into(),
                    value: name.into(),
                    negated: false,
                }),
                _ => {
                    return Err(Status::bad_request(
                        "fieldSelector metadata.name doesn't match requested name",
                    ));
                }
            }
        }
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// What part of a collection's keys can be selected: one object's, if the fields fix its name (and those that
    /// begin as it does).
    pub(crate) fn range(&self, row: &Row, collection: &str) -> String {
        let name = self.fields.required("metadata.name").unwrap_or_default();
        let one_place = !row.namespaced() || collection != row.prefix;
        if one_place { format!("{collection}{name}") } else { collection.to_owned() }
    }

    /// Whether a cached object is selected. Looked up in its bytes, since thousands of watchers may ask.
    pub(crate) fn selects(&self, row: &Row, item: &Item) -> Result<bool, Status> {
        if self.is_everything() {
            return Ok(true);
        }
        if !object::as_stored(row, item) {
            let tree = object::view(row, item)?;
            return Ok(self.labels.matches(&tree) && self.fields.matches(&tree));
        }
        let (bytes, parts) = object::stored(item)?;
        let field = |path: &str| match (path, item.key.rsplit_once('/')) {
            ("metadata.name", Some((_, name))) => Cow::Borrowed(name),
            ("metadata.namespace", Some((rest, _))) => {
                Cow::Borrowed(rest.strip_prefix(&*row.prefix).unwrap_or_default())
            }
            _ => raw::field(bytes, path),
        };
        // Fields first: a watch of one object among thousands is decided by its name.
        let fields = self.fields.terms.iter().all(|t| (field(&t.field) == t.value) != t.negated);
        // Without requirements all labels will do.
        Ok(fields
            && self.labels.requirements.iter().all(|r| r.matches(parts.label(bytes, &r.key).as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options() {
        for (values, expected) in [
            (&["All"][..], Some(true)),
            (&[], Some(false)),
            (&[""], Some(false)),
            (&["All", "All"], Some(true)),
            (&["Some"], None),
            (&["All", "x"], None),
        ] {
            assert_eq!(dry_run(values.iter().copied()).ok(), expected, "{values:?}");
        }
        let refused = dry_run(["x"].into_iter()).unwrap_err();
        assert_eq!(refused.code, 422);
        assert_eq!(
            refused.message,
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"x\"]: supported values: \"All\""
        );
    }
}
