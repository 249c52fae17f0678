//! The kinds that are served, as rows. The generic part of the server finds everything it needs here.
//!
//! Owns the set of rows; readers take a snapshot. Rows of built-in kinds come at start, rows of
//! CustomResourceDefinitions at run time, through [`Registry::replace`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use sheaf_meta::{
    kind::{KindInfo, Scope},
    names::NameRule,
    schema::{Schema, SchemaPool},
    table::Columns,
};

/// A served kind with what is derived from its row once.
pub struct Row {
    /// The row itself.
    pub info: KindInfo,
    /// `v1` or `kubevirt.io/v1`.
    pub api_version: String,
    /// Where the store keeps the kind.
    pub prefix: String,
    /// Printer columns, compiled.
    pub columns: Columns,
    schema: OnceLock<Schema>,
    pool: Arc<Mutex<SchemaPool>>,
}

impl Row {
    fn new(info: KindInfo, pool: Arc<Mutex<SchemaPool>>) -> Self {
        let (api_version, prefix) = (info.api_version(), info.prefix());
        let columns = Columns::of(&info).or_else(|error| {
            tracing::error!(kind = info.kind, error = %error, "the printer columns cannot be used");
            Columns::compile(&[])
        });
        let columns = columns.unwrap_or_else(|_| unreachable!("no columns at all compile"));
        Self { info, api_version, prefix, columns, schema: OnceLock::new(), pool }
    }

    /// The schema, compiled when it is first needed: many kinds are never written on many servers.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| {
            let published = self.info.schema.get();
            if !published.is_object() {
                return Schema::unknown();
            }
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).compile(&published)
        })
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.info.scope == Scope::Namespaced
    }

    /// The key of an object; of a collection if `name` is empty (ends with a slash then).
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() && !namespace.is_empty() {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    /// What names of objects have to look like.
    pub fn name_rule(&self) -> NameRule {
        match (self.info.group.as_str(), self.info.plural.as_str()) {
            ("", "namespaces") => NameRule::Label,
            ("", "services") => NameRule::Label1035,
            ("rbac.authorization.k8s.io", _) => NameRule::PathSegment,
            _ => NameRule::Subdomain,
        }
    }

    /// Subresources of stored objects, beside the object itself.
    pub fn subresources(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        if self.info.status_subresource {
            all.push("status");
        }
        match (self.info.group.as_str(), self.info.plural.as_str()) {
            ("", "namespaces") => all.push("finalize"),
            ("", "pods") => all.extend(["binding", "eviction"]),
            ("certificates.k8s.io", "certificatesigningrequests") => all.push("approval"),
            _ => {}
        }
        all
    }

    /// Whether the object is Kubernetes' own: those take strategic merge patches.
    pub fn built_in(&self) -> bool {
        !self.info.is_crd
    }
}

/// One moment's rows.
#[derive(Default)]
pub struct Snapshot {
    rows: Vec<Arc<Row>>,
    by_resource: HashMap<(String, String, String), Arc<Row>>,
    /// Hashes of the OpenAPI documents by group-version path, made when first asked for.
    pub(crate) openapi: OnceLock<BTreeMap<String, String>>,
}

impl Snapshot {
    fn new(infos: Vec<KindInfo>) -> Self {
        // Many kinds share parts (ObjectMeta, conditions): one pool keeps them once.
        let pool = Arc::new(Mutex::new(SchemaPool::new()));
        let rows: Vec<Arc<Row>> = infos.into_iter().map(|i| Arc::new(Row::new(i, pool.clone()))).collect();
        let key = |r: &Arc<Row>| (r.info.group.clone(), r.info.version.clone(), r.info.plural.clone());
        let by_resource = rows.iter().map(|r| (key(r), r.clone())).collect();
        Self { rows, by_resource, openapi: OnceLock::new() }
    }

    /// All rows, in the order in which they were registered.
    pub fn rows(&self) -> &[Arc<Row>] {
        &self.rows
    }

    /// The row of a resource.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Row>> {
        self.by_resource.get(&(group.into(), version.into(), plural.into()))
    }

    /// The row of a resource in its first version.
    pub fn find_any_version(&self, group: &str, plural: &str) -> Option<&Arc<Row>> {
        self.rows.iter().find(|r| r.info.group == group && r.info.plural == plural)
    }

    /// The row of a kind.
    pub fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Row>> {
        self.rows.iter().find(|r| r.api_version == api_version && r.info.kind == kind)
    }

    /// One row for each stored resource, whatever its versions.
    pub fn stored(&self) -> Vec<Arc<Row>> {
        let mut seen = std::collections::HashSet::new();
        self.rows.iter().filter(|r| seen.insert(r.prefix.clone())).cloned().collect()
    }
}

/// The rows, replaceable while requests go on.
pub struct Registry(RwLock<Arc<Snapshot>>);

impl Registry {
    /// Begins with these rows.
    pub fn new(rows: Vec<KindInfo>) -> Self {
        Self(RwLock::new(Arc::new(Snapshot::new(rows))))
    }

    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves these rows from now on. Requests that have begun keep the old ones.
    pub fn replace(&self, rows: Vec<KindInfo>) {
        let snapshot = Arc::new(Snapshot::new(rows));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}
