//! A kind as data: the row by which the generic API server serves it.
//!
//! Built-in kinds are rows that `sheaf-api` brings; a CustomResourceDefinition becomes the same row at run time.
//! Who owns the set of rows: the API server's registry.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::status::FieldError;

/// Whether objects of a kind live in namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `/namespaces/NS/plural/NAME`.
    Namespaced,
    /// `/plural/NAME`.
    Cluster,
}

/// One printer column. `path` is a JSONPath such as `.status.phase` or `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Heading, as the original spells it.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date` (shown as an age).
    pub ty: String,
    /// OpenAPI format: empty, or `name` for the column that carries the name.
    pub format: String,
    /// 0 is shown always, more than 0 only by `-o wide`.
    pub priority: i32,
    /// Where the cell's value is.
    pub path: String,
    /// What the column means.
    pub description: String,
}

/// What happens to an object before it is stored. All pure; `old` is the stored object on an update.
pub trait Rules: Send + Sync {
    /// Fills in what the user left open. Runs before validation, on create and update.
    fn default(&self, _object: &mut Value, _old: Option<&Value>) {}
    /// Rules beyond the schema. An empty list means accepted.
    fn validate(&self, _object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }
    /// Sentences for `Warning` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    /// A computed table row: one cell for each column, or `None` to use the columns' paths.
    fn cells(&self, _object: &Value, _now: jiff::Timestamp) -> Option<Vec<Value>> {
        None
    }
    /// How objects are kept where that is not how this row shows them.
    fn twin(&self) -> Option<&dyn Twin> {
        None
    }
}

/// One stored object that two rows show in two forms: events of both groups, autoscalers of both versions. The row whose
/// form is the stored one has no twin.
pub trait Twin: Send + Sync {
    /// Where the store keeps the objects, as [`KindInfo::prefix`] of the other row.
    fn prefix(&self) -> &'static str;
    /// From the form that this row shows to the stored one, apiVersion and kind included.
    fn to_stored(&self, object: &mut Value);
    /// And back. `metadata` stays but for annotations.
    fn from_stored(&self, object: &mut Value);
}

/// No rules beyond the schema.
pub struct NoRules;
impl Rules for NoRules {}

/// A kind's schema as it is published: shapes by name, which refer to one another by `$ref` with the bare name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definitions {
    /// Name of the kind's own shape.
    pub root: String,
    /// That one and all that it needs.
    pub by_name: BTreeMap<String, Value>,
}

/// Where a kind's schema comes from. Schemas of built-in kinds are large and seldom looked at whole (they are compiled
/// once, and published when somebody asks), so they are made when they are needed and not kept.
#[derive(Clone)]
pub struct SchemaSource {
    resolved: Arc<dyn Fn() -> Arc<Value> + Send + Sync>,
    definitions: Option<Arc<dyn Fn() -> Definitions + Send + Sync>>,
}

impl SchemaSource {
    /// A schema that is there already.
    pub fn kept(schema: Value) -> Self {
        let schema = Arc::new(schema);
        Self { resolved: Arc::new(move || schema.clone()), definitions: None }
    }
    /// A schema that is made at each call.
    pub fn made(make: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        Self { resolved: Arc::new(move || Arc::new(make())), definitions: None }
    }
    /// Says that the schema is also there as named shapes.
    pub fn with_definitions(self, make: impl Fn() -> Definitions + Send + Sync + 'static) -> Self {
        Self { definitions: Some(Arc::new(make)), ..self }
    }
    /// The schema. Keep it no longer than you need it.
    pub fn get(&self) -> Arc<Value> {
        (self.resolved)()
    }
    /// The schema as named shapes, if it consists of such.
    pub fn definitions(&self) -> Option<Definitions> {
        self.definitions.as_ref().map(|make| make())
    }
}

/// Everything the API server knows of a kind in one version.
#[derive(Clone)]
pub struct KindInfo {
    /// API group, empty for the core group.
    pub group: String,
    /// Version served, which for built-in kinds is also the one stored.
    pub version: String,
    /// `VirtualMachine`.
    pub kind: String,
    /// `virtualmachines`.
    pub plural: String,
    /// `virtualmachine`.
    pub singular: String,
    /// `vm`, `vms`.
    pub short_names: Vec<String>,
    /// `all`, ...
    pub categories: Vec<String>,
    /// Namespaced or not.
    pub scope: Scope,
    /// Whether `/status` is a subresource: then the main resource ignores status, and `/status` all else.
    pub status_subresource: bool,
    /// Whether `metadata.generation` is kept (bumped when anything but metadata and status changes).
    pub generation: bool,
    /// Printer columns after the name; an empty list means NAME and AGE. A column of format `name` stands for the name
    /// itself, and none is put first then (StorageClass marks the default; events end with it).
    pub columns: Vec<Column>,
    /// JSON paths usable in field selectors beyond `metadata.name` and `metadata.namespace` (`spec.nodeName`).
    pub selectable_fields: Vec<String>,
    /// The OpenAPI v3 schema of the object (structural, with `x-kubernetes-*` extensions), as published. Its
    /// references are resolved (no `$ref`).
    pub schema: SchemaSource,
    /// Whether the kind is listed among the CustomResourceDefinitions (all that are not Kubernetes' own).
    pub is_crd: bool,
    /// Defaulting, validation, warnings, cells.
    pub rules: Arc<dyn Rules>,
}

impl KindInfo {
    /// `v1` or `kubevirt.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// `virtualmachines.kubevirt.io`, or the plural alone in the core group.
    pub fn resource(&self) -> crate::status::ResourceRef<'_> {
        crate::status::ResourceRef { group: &self.group, plural: &self.plural }
    }
    /// The prefix under which the store keeps the kind: `/registry/GROUP/PLURAL/` (`core` for the empty group).
    pub fn prefix(&self) -> String {
        if let Some(twin) = self.rules.twin() {
            return twin.prefix().into();
        }
        let group = if self.group.is_empty() { "core" } else { &self.group };
        format!("/registry/{group}/{}/", self.plural)
    }
}
