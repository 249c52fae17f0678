//! Server-side apply, and the record of who owns which field (`metadata.managedFields`).
//!
//! [`apply`] merges a configuration into the live object; [`update`] records what any other write changed. Both are
//! pure: objects in, object out. Ownership follows the schema: `x-kubernetes-list-type`, `-list-map-keys` and
//! `-map-type`, for built-in kinds also the patch strategy; where the schema says nothing, objects are granular and
//! lists atomic. All versions of a kind are taken to have the same field paths (no conversion happens here).

use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::Value;

use crate::changes::{Change, Changes};
use crate::object;
use crate::schema::Schema;
use crate::status::{Cause, Status};

mod managers;
mod set;
mod touch;
mod typed;

pub use managers::{MAX_UPDATE_MANAGERS, Operation};
use managers::{Manager, Managers, drop_managed_fields, is_reset, put_encoded, take_managed_fields, unowned};
use set::{FieldSet, show};

/// The annotation in which `kubectl apply` (client side) keeps what was applied last.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager to which all fields belong that were there before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, through what, when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// Field manager: the query parameter, or [`default_manager`].
    pub manager: &'a str,
    /// Version of the request (`kubevirt.io/v1`).
    pub api_version: &'a str,
    /// Subresource of the request, or empty.
    pub subresource: &'a str,
    /// The time that changed entries get.
    pub now: Timestamp,
    /// Whether the stored object went through this very schema when it was written, so that its record of owners
    /// fits it. If in doubt, it did not.
    pub settled: bool,
}

/// Which part of a configuration counts. What a request may not write is neither merged nor owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// All of it: kinds without a status subresource.
    #[default]
    Whole,
    /// All but `status`: the main resource of a kind with a status subresource.
    WithoutStatus,
    /// Only `status`: the status subresource.
    Status,
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The manager, as messages show it: `"x" using v1`.
    pub manager: String,
    /// The field: `.spec.x`.
    pub path: String,
}

/// Why a configuration was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others own fields with other values, and `force` was not asked for: 409.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// The configuration cannot be applied as it is: 400.
    #[error("{0}")]
    Invalid(String),
    /// The configuration does not fit the types of its kind, so that its fields cannot have owners: 500, as upstream.
    #[error("{0}")]
    Untyped(String),
}

impl ApplyError {
    /// The answer of the API.
    pub fn status(&self) -> Status {
        match self {
            ApplyError::Invalid(why) => Status::bad_request(why.clone()),
            ApplyError::Untyped(why) => Status::new(500, "", why.clone()),
            ApplyError::Conflict(conflicts) => {
                let mut s = Status::new(409, "Conflict", conflict_message(conflicts));
                s.details.causes = conflicts
                    .iter()
                    .map(|c| Cause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", c.manager),
                        field: c.path.clone(),
                    })
                    .collect();
                s
            }
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path);
    }
    let mut lines = Vec::new();
    let mut last = None;
    for c in conflicts {
        if last != Some(&c.manager) {
            lines.push(format!("conflicts with {}:", c.manager));
            last = Some(&c.manager);
        }
        lines.push(format!("- {}", c.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// The manager of a request that names none: the first part of its User-Agent, as upstream.
pub fn default_manager(user_agent: &str) -> String {
    let first = user_agent.split('/').next().unwrap_or("").trim();
    let name: String = if first.is_empty() { "unknown" } else { first }
        .chars()
        .filter(|c| !c.is_control())
        .take(128)
        .collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// The rules of the query parameter `fieldManager`; empty means valid.
pub fn validate_manager(manager: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if manager.len() > 128 {
        errors.push("may not be more than 128 bytes".to_owned());
    }
    if manager.chars().any(char::is_control) {
        errors.push("should only contain printable characters".to_owned());
    }
    errors
}

fn unowned_fields() -> &'static FieldSet {
    static SET: OnceLock<FieldSet> = OnceLock::new();
    SET.get_or_init(unowned)
}

/// Records in `new` who owns what, after a write other than apply. `old` is the stored object, or `None` on create.
/// `new` must be as it will be stored (pruned, defaulted, parts that the request may not write put back).
///
/// An object whose managed fields are empty stays without, until it is applied for the first time or created anew.
pub fn update(old: Option<&Value>, new: &mut Value, schema: &Schema, writer: &Writer<'_>) {
    update_changed(old, new, None, schema, writer);
}

/// As [`update`]; `changes` say how `new` differs from `old`, if that is known.
pub fn update_changed(
    old: Option<&Value>,
    new: &mut Value,
    changes: Option<&Changes>,
    schema: &Schema,
    writer: &Writer<'_>,
) {
    // Through a subresource nobody may write managedFields themselves.
    let own = writer.subresource.is_empty();
    let given = object::get(new, &["metadata", "managedFields"]).filter(|_| own);
    let before = old.and_then(touch::entries);
    // What was given back as it was, and what was not given, say the same.
    let as_before = |given: &Value| match changes {
        Some(changes) => !changes.touch(&["metadata", "managedFields"]),
        None => before.is_some_and(|before| given.as_array() == Some(before)),
    };
    let same = given.is_none_or(|given| given.is_null() || as_before(given));
    match (old, before) {
        (Some(old), Some(before)) if same && writer.settled => {
            // Those that were given back need not be copied. The long way reads the stored ones then, which are the same.
            let given = own.then(|| take_managed_fields(new)).flatten().filter(|list| !list.is_empty());
            let entries = given.unwrap_or_else(|| before.to_vec());
            let change = changes.map_or(&Change::Whole, Changes::root);
            if let Some(after) = touch::update(entries, old, new, change, schema, writer) {
                return put_encoded(new, after);
            }
        }
        (None, _) if given.is_none() => {
            let entries = touch::create(new, schema, writer);
            return put_encoded(new, entries);
        }
        _ => {}
    }
    let live = || old.and_then(Managers::decode).unwrap_or_default();
    let managers = if own && is_reset(new) {
        Managers::default()
    } else if own {
        Managers::decode(new).filter(|m| !m.0.is_empty()).unwrap_or_else(live)
    } else {
        live()
    };
    let tracked = old.is_none() || !managers.0.is_empty();
    let empty = Value::Object(serde_json::Map::new());
    drop_managed_fields(new);
    if !tracked {
        return;
    }
    let managers = record(managers, old.unwrap_or(&empty), new, schema, writer);
    managers.encode_into(new);
}

/// The managers after a write that changed `old` into `new`.
fn record(
    mut managers: Managers,
    old: &Value,
    new: &Value,
    schema: &Schema,
    writer: &Writer<'_>,
) -> Managers {
    let changes = typed::compare(&schema.root, old, new);
    if changes.is_same() {
        return managers;
    }
    let taken = changes.modified.union(&changes.added);
    let lost = taken.union(&changes.removed);
    reconcile(&mut managers, old, schema);
    for m in &mut managers.0 {
        m.set.subtract(&lost);
    }
    let mut mine = entry(Operation::Update, taken.difference(unowned_fields()), writer);
    if !mine.set.is_empty() {
        // The same manager's earlier updates go on in one entry.
        if let Some(i) = managers.0.iter().position(|m| m.is(&mine)) {
            mine.set.extend(&managers.0.swap_remove(i).set);
        }
        managers.0.push(mine);
    }
    managers.0.retain(|m| !m.set.is_empty());
    managers.cap();
    managers
}

/// Brings the sets in line with the schema, should it have changed since they were written.
fn reconcile(managers: &mut Managers, live: &Value, schema: &Schema) {
    let mut all = FieldSet::default();
    managers.0.iter().for_each(|m| all.extend(&m.set));
    for m in &mut managers.0 {
        m.set = typed::reconcile(&m.set, Some(&all), Some(&schema.root), Some(live));
    }
}

fn entry(operation: Operation, set: FieldSet, writer: &Writer<'_>) -> Manager {
    Manager {
        name: writer.manager.into(),
        operation,
        api_version: writer.api_version.into(),
        subresource: writer.subresource.into(),
        time: Some(object::time(writer.now)),
        set,
    }
}

/// Applies a configuration: the merged object with its managed fields, not yet pruned, defaulted or validated.
/// `live` is the stored object, or `None` if there is none yet.
///
/// Fields that the schema does not know are in the result, so that the caller reports and prunes them as in any write,
/// but nobody owns them. With `force`, fields of other managers are taken over. A configuration that changes nothing gives the live object
/// back, times included. `metadata.resourceVersion` and `uid` of the configuration are in the result: the caller
/// treats them as preconditions, as it does for any update.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    part: Part,
    force: bool,
    schema: &Schema,
    writer: &Writer<'_>,
) -> Result<Value, ApplyError> {
    let invalid = |why: String| Err(ApplyError::Invalid(why));
    if !config.is_object() {
        return invalid("the applied configuration must be an object".into());
    }
    let version = object::api_version(config);
    if version != writer.api_version {
        return invalid(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            writer.api_version
        ));
    }
    if object::get(config, &["metadata", "managedFields"]).is_some_and(|m| !m.is_null()) {
        return invalid("metadata.managedFields must be nil".into());
    }
    let given = take_part(config, part);
    let mut config = given.clone();
    let unknown = schema.prune(&mut config);
    if let Err(why) = typed::check(&schema.root, &config) {
        let (namespace, name) = (object::namespace(&config), object::name(&config));
        let kind = object::kind(&config);
        // The core group is the empty one: `/v1`.
        let slash = if version.contains('/') { "" } else { "/" };
        return Err(ApplyError::Untyped(format!(
            "failed to create typed patch object ({namespace}/{name}; {slash}{version}, Kind={kind}): {why}"
        )));
    }

    let empty = Value::Object(serde_json::Map::new());
    let mut managers = live.and_then(Managers::decode).unwrap_or_default();
    if let Some(live) = live
        && managers.0.is_empty()
    {
        let before = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..*writer };
        managers = record(managers, &empty, live, schema, &before);
    }
    let stored = live.unwrap_or(&empty);

    let mut outcome = merge(stored, &config, managers.clone(), force, schema, writer);
    if let Err(conflicts) = outcome {
        // Fields that client-side apply set, and that are still as it set them, are kubectl's to take over.
        let allowed =
            if writer.manager == "kubectl" { last_applied_set(stored, schema, writer) } else { None };
        let remaining: Vec<Contested> = match &allowed {
            Some(allowed) => conflicts.iter().filter_map(|c| c.without(allowed)).collect(),
            None => conflicts,
        };
        if !remaining.is_empty() {
            return Err(ApplyError::Conflict(remaining.iter().flat_map(Contested::conflicts).collect()));
        }
        outcome = merge(stored, &config, managers, true, schema, writer);
    }
    let Ok((mut object, managers)) = outcome else {
        return Err(ApplyError::Conflict(Vec::new()));
    };
    if writer.manager == "kubectl" && object::annotation(&object, LAST_APPLIED).is_some_and(|a| !a.is_empty())
    {
        let mut applied = config.clone();
        object::set_annotation(&mut applied, LAST_APPLIED, None);
        object::set_annotation(&mut object, LAST_APPLIED, Some(&format!("{applied}\n")));
    }
    if !unknown.is_empty() {
        object = typed::merge(&schema.root, &object, &given);
    }
    managers.encode_into(&mut object);
    Ok(object)
}

/// The fields of one manager that stand against a configuration.
struct Contested {
    manager: String,
    set: FieldSet,
}

impl Contested {
    fn without(&self, allowed: &FieldSet) -> Option<Self> {
        let set = self.set.difference(allowed);
        (!set.is_empty()).then(|| Self { manager: self.manager.clone(), set })
    }
    fn conflicts(&self) -> Vec<Conflict> {
        let paths = self.set.paths();
        paths.iter().map(|p| Conflict { manager: self.manager.clone(), path: show(p) }).collect()
    }
}

/// Merge, prune, and settle ownership.
fn merge(
    live: &Value,
    config: &Value,
    mut managers: Managers,
    force: bool,
    schema: &Schema,
    writer: &Writer<'_>,
) -> Result<(Value, Managers), Vec<Contested>> {
    let root = &schema.root;
    reconcile(&mut managers, live, schema);
    let mut mine = entry(Operation::Apply, typed::field_set(root, config), writer);
    let last = managers.0.iter().position(|m| m.is(&mine)).map(|i| managers.0.swap_remove(i));

    let mut merged = typed::merge(root, live, config);
    drop_managed_fields(&mut merged);
    if let Some(last) = last.as_ref().filter(|l| !l.set.is_empty()) {
        let mut owned = mine.set.clone();
        managers.0.iter().for_each(|m| owned.extend(&m.set));
        merged = prune(&merged, &last.set, &owned, schema);
    }

    let changes = typed::compare(root, live, &merged);
    let taken = changes.modified.union(&changes.added);
    let contested: Vec<Contested> = managers
        .0
        .iter()
        .map(|m| Contested { manager: m.show(), set: m.set.intersection(&taken) })
        .filter(|c| !c.set.is_empty())
        .collect();
    if !force && !contested.is_empty() {
        return Err(contested);
    }
    let lost = taken.union(&changes.removed);
    for m in &mut managers.0 {
        m.set.subtract(&lost);
    }
    mine.set.subtract(unowned_fields());
    // The time says when the entry last changed, or a value of its fields.
    if let Some(last) = last
        && changes.is_same()
        && last.set == mine.set
        && last.api_version == mine.api_version
    {
        mine.time = last.time;
    }
    managers.0.push(mine);
    managers.0.retain(|m| !m.set.is_empty());
    Ok((merged, managers))
}

/// Takes out what the manager applied last time (`last`), does not apply any more, and nobody owns (`owned`, which
/// includes the new configuration).
fn prune(merged: &Value, last: &FieldSet, owned: &FieldSet, schema: &Schema) -> Value {
    let root = &*schema.root;
    let named = |set: &FieldSet| typed::with_named(set, Some(root));
    let last = named(last);
    let all = named(&typed::field_set(root, merged));
    let left = |object: &Value| named(&typed::field_set(root, object));
    // Without all that was applied last time; then what is owned comes back; then what never was the manager's.
    let bare = typed::remove(root, merged, &last);
    let with_owned = typed::remove(root, merged, &all.difference(&left(&bare).union(&named(owned))));
    typed::remove(root, merged, &all.difference(&left(&with_owned)).intersection(&last))
}

/// The part of a configuration that the request may write.
fn take_part(config: &Value, part: Part) -> Value {
    let mut out = config.clone();
    let Value::Object(map) = &mut out else { return out };
    match part {
        Part::Whole => {}
        Part::WithoutStatus => {
            map.remove("status");
        }
        Part::Status => {
            map.retain(|k, _| matches!(k.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
            if let Some(Value::Object(meta)) = map.get_mut("metadata") {
                meta.retain(|k, _| matches!(k.as_str(), "name" | "namespace" | "uid" | "resourceVersion"));
            }
        }
    }
    out
}

/// The fields that the last client-side apply set and that are still so.
fn last_applied_set(live: &Value, schema: &Schema, writer: &Writer<'_>) -> Option<FieldSet> {
    let applied: Value = serde_json::from_str(object::annotation(live, LAST_APPLIED)?).ok()?;
    if object::api_version(&applied) != writer.api_version {
        return None;
    }
    let changes = typed::compare(&schema.root, &applied, live);
    let set = typed::field_set(&schema.root, &applied);
    Some(set.difference(&changes.modified).difference(&changes.added).difference(&changes.removed))
}
