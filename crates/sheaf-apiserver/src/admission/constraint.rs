//! Which requests a webhook or a policy is about, and in which version of the kind.

use std::sync::Arc;

use serde_json::Value;
use sheaf_meta::{object, selector::LabelSelector, status::Status};
use sheaf_store::cache::At;

use super::{
    list, read,
    rules::{Asked, Rule},
    selector, text,
};
use crate::{core::Core, extension::Write, namespaces, registry::Row};

/// Requests that are wanted.
#[derive(Debug)]
pub(crate) struct Constraint {
    /// One of them has to match. `None`: whatever comes (a binding that adds nothing to its policy).
    pub(crate) rules: Option<Vec<Rule>>,
    /// None of these may.
    pub(crate) excluded: Vec<Rule>,
    /// Whether a request in another version of the kind than the rules name is wanted too.
    pub(crate) equivalent: bool,
    /// Namespaces whose objects are wanted.
    pub(crate) namespaces: LabelSelector,
    /// Objects that are wanted.
    pub(crate) objects: LabelSelector,
}

impl Constraint {
    /// Of an entry of a webhook configuration, whose rules are `rules`; or of `MatchResources`, whose are
    /// `resourceRules`.
    pub(crate) fn read(value: &Value, rules: &str) -> Result<Self, String> {
        let all: Vec<Rule> = list(value, rules).map(Rule::read).collect();
        Ok(Self {
            rules: Some(all),
            excluded: list(value, "excludeResourceRules").map(Rule::read).collect(),
            equivalent: text(value, "matchPolicy") != "Exact",
            namespaces: selector(value, "namespaceSelector")?,
            objects: selector(value, "objectSelector")?,
        })
    }

    /// The kind in the version in which it is wanted, or `None` if the request is not. `failed` makes the error if the
    /// namespace cannot be read.
    pub(crate) async fn wanted(
        &self,
        core: &Core,
        write: &Write<'_>,
        object: &Value,
        failed: impl Fn(&str) -> Status,
    ) -> Result<Option<Arc<Row>>, Status> {
        let info = &write.row.info;
        let whole = if object.is_null() { write.old.unwrap_or(object) } else { object };
        let namespaced = !object::namespace(whole).is_empty();
        let asked = Asked {
            operation: write.operation.as_str(),
            group: &info.group,
            version: &info.version,
            resource: &info.plural,
            subresource: write.subresource,
            namespaced,
            name: object::name(whole),
        };
        if asked.is_exempt() {
            return Ok(None);
        }
        let rows = core.registry.snapshot();
        let among = |rules: &[Rule], row: &Row| {
            let (group, version) = (row.info.group.as_str(), row.info.version.as_str());
            rules.iter().any(|r| r.matches(Asked { group, version, resource: &row.info.plural, ..asked }))
        };
        let matches = |row: &Row| self.rules.as_ref().is_none_or(|rules| among(rules, row));
        let row = if matches(write.row) {
            let same = rows.versions_of(write.row).find(|r| r.api_version == write.row.api_version);
            // Gone in the meantime: nobody writes unseen by going through a row of yesterday.
            Some(same.ok_or_else(Status::no_such_path)?)
        } else if self.equivalent {
            rows.versions_of(write.row).find(|r| matches(r))
        } else {
            None
        };
        let Some(row) = row.cloned() else { return Ok(None) };
        let excluded = among(&self.excluded, write.row)
            || (self.equivalent && rows.versions_of(write.row).any(|r| among(&self.excluded, r)));
        if excluded {
            return Ok(None);
        }
        let labelled = |o: &Value| !o.is_null() && self.objects.matches(o);
        if !self.objects.is_everything() && !labelled(object) && !write.old.is_some_and(labelled) {
            return Ok(None);
        }
        if !self.namespaces.is_everything() {
            let selected = if namespaces::is_namespace(write.row) {
                self.namespaces.matches(whole)
            } else if namespaced {
                let found = namespace(core, object::namespace(whole)).await.map_err(|why| failed(&why))?;
                found.is_some_and(|n| self.namespaces.matches(&n))
            } else {
                true
            };
            if !selected {
                return Ok(None);
            }
        }
        Ok(Some(row))
    }
}

/// A namespace by its name.
pub(crate) async fn namespace(core: &Core, name: &str) -> Result<Option<Value>, String> {
    match read::get(core, "", "namespaces", "", name, At::Any).await? {
        Some(namespace) => Ok(Some(namespace)),
        // It may be younger than the cache.
        None => read::get(core, "", "namespaces", "", name, At::Latest).await,
    }
}
