//! The kinds that are served, as rows. The generic part of the server finds everything it needs here.
//!
//! Owns the set of rows; readers take a snapshot. Rows of built-in kinds come at start, rows of
//! CustomResourceDefinitions at run time, through [`Registry::set_custom`]. Where both claim a resource, the built-in
//! kind has it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::Value;
use sheaf_crd::CustomSchema;
use sheaf_meta::{
    kind::{KindInfo, Scope},
    names::NameRule,
    object,
    schema::{Schema, SchemaPool},
    table::Columns,
};
use sheaf_store::Revision;
use tokio_util::sync::CancellationToken;

use crate::{openapi::Published, scale::ScalePaths};

/// What only a kind of a CustomResourceDefinition has.
#[derive(Debug, Clone)]
pub struct Custom {
    /// `crontabs.example.com`.
    pub definition: String,
    /// Kind of lists.
    pub list_kind: String,
    /// What to tell who uses this version, if it is deprecated.
    pub deprecated: Option<String>,
    /// Whether the definition is being deleted: nothing new is created then. Shared, since rows stay while objects go.
    pub terminating: Arc<AtomicBool>,
    /// Objects written at this revision or later went through the schema as it is now. `None` where objects may have
    /// been written through another version's schema.
    pub settled: Option<Arc<AtomicU64>>,
}

/// A served kind with what is derived from its row once.
pub struct Row {
    /// The row itself.
    pub info: KindInfo,
    /// `v1` or `kubevirt.io/v1`.
    pub api_version: String,
    /// The `apiVersion` under which objects are stored.
    pub stored_as: String,
    /// Where the store keeps the kind.
    pub prefix: String,
    /// Printer columns, compiled.
    pub columns: Columns,
    /// Where the subresource `scale` finds its numbers.
    pub scale: Option<ScalePaths>,
    /// Set for kinds that users define.
    pub custom: Option<Custom>,
    /// Whether objects of another row are kept in the same place: what is there went through either's schema.
    pub(crate) shared: bool,
    /// Cancelled when the row is served no longer, or in another form. Watches end then.
    pub retired: CancellationToken,
    schema: OnceLock<Compiled>,
    pool: Option<Arc<Mutex<SchemaPool>>>,
}

/// A row's schema, ready for use.
enum Compiled {
    /// Of a kind that came with the program.
    Plain(Schema),
    /// Of a kind that users defined: with rules.
    Custom(Box<CustomSchema>),
}

impl Row {
    fn built_in_row(info: KindInfo, shared: bool, pool: Arc<Mutex<SchemaPool>>) -> Self {
        let scale = ScalePaths::of_built_in(&info);
        let stored_as = info.api_version();
        Self { shared, ..Self::new(info, stored_as, scale, None, Some(pool)) }
    }

    /// Kinds that are asked and answered and never stored, for the OpenAPI documents. No registry has them.
    pub(crate) fn answered() -> &'static [Arc<Self>] {
        static ROWS: LazyLock<Vec<Arc<Row>>> = LazyLock::new(|| {
            let row = |info: KindInfo| Arc::new(Row::new(info.clone(), info.api_version(), None, None, None));
            sheaf_api::kinds::reviews().into_iter().map(row).collect()
        });
        &ROWS
    }

    /// Whether it is one of [`Row::answered`].
    pub(crate) fn is_answered(&self) -> bool {
        Self::answered().iter().any(|row| std::ptr::eq(&**row, self))
    }

    /// A kind of a CustomResourceDefinition.
    pub fn of_definition(
        info: KindInfo,
        stored_as: String,
        scale: Option<ScalePaths>,
        custom: Custom,
    ) -> Self {
        Self::new(info, stored_as, scale, Some(custom), None)
    }

    fn new(
        info: KindInfo,
        stored_as: String,
        scale: Option<ScalePaths>,
        custom: Option<Custom>,
        pool: Option<Arc<Mutex<SchemaPool>>>,
    ) -> Self {
        let (api_version, prefix) = (info.api_version(), info.prefix());
        let columns = Columns::of(&info).or_else(|error| {
            tracing::error!(kind = info.kind, error = %error, "the printer columns cannot be used");
            Columns::compile(&[])
        });
        let columns = columns.unwrap_or_else(|_| unreachable!("no columns at all compile"));
        let (schema, retired) = (OnceLock::new(), CancellationToken::new());
        let shared = false;
        Self { info, api_version, stored_as, prefix, columns, scale, custom, shared, retired, schema, pool }
    }

    /// The schema, compiled when it is first needed: many kinds are never written on many servers.
    pub fn schema(&self) -> &Schema {
        match self.compiled() {
            Compiled::Plain(schema) => schema,
            Compiled::Custom(schema) => schema.schema(),
        }
    }

    /// The schema with its rules, of a kind that users defined.
    pub(crate) fn custom_schema(&self) -> Option<&CustomSchema> {
        self.custom.as_ref()?;
        match self.compiled() {
            Compiled::Plain(_) => None,
            Compiled::Custom(schema) => Some(schema),
        }
    }

    fn compiled(&self) -> &Compiled {
        self.schema.get_or_init(|| {
            let published = self.info.schema.get();
            if !published.is_object() {
                return Compiled::Plain(Schema::unknown());
            }
            match &self.pool {
                Some(pool) => {
                    Compiled::Plain(pool.lock().unwrap_or_else(PoisonError::into_inner).compile(&published))
                }
                // What is shared within it is shared; a pool that stayed would weigh more than the schema.
                None => Compiled::Custom(Box::new(CustomSchema::compile(&published))),
            }
        })
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.info.scope == Scope::Namespaced
    }

    /// The key of an object; of a collection if `name` is empty (ends with a slash then).
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() && !namespace.is_empty() {
            [&self.prefix, namespace, "/", name].concat()
        } else {
            [&self.prefix, name].concat()
        }
    }

    /// What names of objects have to look like.
    pub fn name_rule(&self) -> NameRule {
        match (self.info.group.as_str(), self.info.plural.as_str()) {
            ("", "namespaces") => NameRule::Label,
            ("", "services") => NameRule::Label1035,
            ("networking.k8s.io", "ipaddresses") => NameRule::Address,
            ("rbac.authorization.k8s.io", _) | ("certificates.k8s.io", "certificatesigningrequests") => {
                NameRule::PathSegment
            }
            _ => NameRule::Subdomain,
        }
    }

    /// Subresources of stored objects, beside the object itself.
    pub fn subresources(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        if self.info.status_subresource {
            all.push("status");
        }
        if self.scale.is_some() {
            all.push("scale");
        }
        match (self.info.group.as_str(), self.info.plural.as_str()) {
            ("", "namespaces") => all.push("finalize"),
            ("", "pods") => all.extend(["binding", "ephemeralcontainers", "eviction", "resize"]),
            ("certificates.k8s.io", "certificatesigningrequests") => all.push("approval"),
            _ => {}
        }
        all
    }

    /// What may be done with objects of the kind, in the words of authorization.
    pub fn verbs(&self) -> &'static [&'static str] {
        const ALL: &[&str] =
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        /// Of a kind whose definition is being deleted: nothing new comes.
        const LAST: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];
        /// Each namespace is deleted by its name: a slip would take everything away.
        const ONE_BY_ONE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
        if self.terminating() {
            LAST
        } else if crate::namespaces::is_namespace(self) {
            ONE_BY_ONE
        } else {
            ALL
        }
    }

    /// What may be done with a subresource of them.
    pub fn verbs_of(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "finalize" => &["update"],
            "binding" | "eviction" => &["create"],
            _ if self.terminating() => &["get"],
            _ => &["get", "patch", "update"],
        }
    }

    /// Whether the object is Kubernetes' own: those take strategic merge patches.
    pub fn built_in(&self) -> bool {
        !self.info.is_crd
    }

    /// Kind of lists.
    pub fn list_kind(&self) -> String {
        match &self.custom {
            Some(custom) if !custom.list_kind.is_empty() => custom.list_kind.clone(),
            _ => format!("{}List", self.info.kind),
        }
    }

    /// Whether the kind's definition is being deleted.
    pub fn terminating(&self) -> bool {
        self.custom.as_ref().is_some_and(|c| c.terminating.load(Ordering::Relaxed))
    }

    /// Whether an object that was written at this revision may be shown as it is stored.
    pub(crate) fn is_settled(&self, modified: Revision) -> bool {
        let settled = |custom: &Custom| custom.settled.as_ref().map(|s| s.load(Ordering::Relaxed));
        self.custom.as_ref().is_none_or(|c| settled(c).is_some_and(|settled| settled <= modified.0))
    }

    /// Makes of a stored object what this row shows: a schema that changed since then prunes and defaults it anew.
    pub(crate) fn settle(&self, object: &mut Value, modified: Revision) {
        if !self.is_settled(modified)
            && let Some(schema) = self.custom_schema()
        {
            schema.shape_stored(object);
        }
    }

    /// Whether two states of an object ask for the same, which is what `metadata.generation` counts. A custom kind
    /// without the subresource counts its status as part of that.
    pub(crate) fn same_desired_state(&self, a: &Value, b: &Value) -> bool {
        if self.custom.is_none() || self.info.status_subresource {
            return object::same_desired_state(a, b);
        }
        object::same_desired_state(a, b) && a.get("status") == b.get("status")
    }
}

/// One moment's rows.
#[derive(Default)]
pub struct Snapshot {
    rows: Vec<Arc<Row>>,
    /// Rows by the plural name of their resource, in the same order: a request looks for half a dozen of them.
    by_plural: HashMap<String, Vec<Arc<Row>>>,
    /// What is derived for the OpenAPI documents, made when first asked for.
    pub(crate) openapi: Published,
}

impl Snapshot {
    fn new(rows: Vec<Arc<Row>>, openapi: Published) -> Self {
        let mut by_plural: HashMap<String, Vec<Arc<Row>>> = HashMap::new();
        for row in &rows {
            by_plural.entry(row.info.plural.clone()).or_default().push(row.clone());
        }
        Self { rows, by_plural, openapi }
    }

    /// All rows, in the order in which they were registered.
    pub fn rows(&self) -> &[Arc<Row>] {
        &self.rows
    }

    /// The row of a resource.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Row>> {
        self.of_plural(plural).find(|r| r.info.group == group && r.info.version == version)
    }

    /// The row of a resource in its first version.
    pub fn find_any_version(&self, group: &str, plural: &str) -> Option<&Arc<Row>> {
        self.of_plural(plural).find(|r| r.info.group == group)
    }

    fn of_plural(&self, plural: &str) -> impl Iterator<Item = &Arc<Row>> {
        self.by_plural.get(plural).into_iter().flatten()
    }

    /// The row of a kind.
    pub fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Row>> {
        self.rows.iter().find(|r| r.api_version == api_version && r.info.kind == kind)
    }

    /// All versions of the resource that a row serves.
    pub fn versions_of<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'a Arc<Row>> {
        let resource = (&row.info.group, &row.info.plural);
        self.rows.iter().filter(move |r| (&r.info.group, &r.info.plural) == resource)
    }

    /// One row for each stored resource, whatever its versions.
    pub fn stored(&self) -> Vec<Arc<Row>> {
        let mut seen = HashSet::new();
        self.rows.iter().filter(|r| seen.insert(r.prefix.clone())).cloned().collect()
    }
}

/// The rows, replaceable while requests go on.
pub struct Registry {
    built_in: Vec<Arc<Row>>,
    current: RwLock<Arc<Snapshot>>,
}

impl Registry {
    /// Begins with the built-in kinds.
    pub fn new(infos: Vec<KindInfo>) -> Self {
        // Many kinds share parts (ObjectMeta, conditions): one pool keeps them once.
        let pool = Arc::new(Mutex::new(SchemaPool::new()));
        let mut kept: HashMap<String, usize> = HashMap::new();
        infos.iter().for_each(|info| *kept.entry(info.prefix()).or_default() += 1);
        let row = |info: KindInfo| {
            let shared = kept.get(&info.prefix()).is_some_and(|rows| *rows > 1);
            Arc::new(Row::built_in_row(info, shared, pool.clone()))
        };
        let built_in: Vec<Arc<Row>> = infos.into_iter().map(row).collect();
        let snapshot = Arc::new(Snapshot::new(built_in.clone(), Published::default()));
        Self { built_in, current: RwLock::new(snapshot) }
    }

    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The kinds that came with the program.
    pub fn built_in(&self) -> &[Arc<Row>] {
        &self.built_in
    }

    /// Serves these kinds beside the built-in ones from now on. Requests that have begun keep the rows they have;
    /// watches on rows that are gone end.
    pub fn set_custom(&self, custom: Vec<Arc<Row>>) {
        let before = self.snapshot();
        let taken: HashSet<(&str, &str)> = self.built_in.iter().map(|r| resource(r)).collect();
        let free = custom.into_iter().filter(|r| !taken.contains(&resource(r)));
        let rows: Vec<Arc<Row>> = self.built_in.iter().cloned().chain(free).collect();
        let kept: HashSet<*const Row> = rows.iter().map(Arc::as_ptr).collect();
        let openapi = before.openapi.carry_over(before.rows(), &rows);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Snapshot::new(rows, openapi));
        for row in before.rows().iter().filter(|r| !kept.contains(&Arc::as_ptr(r))) {
            row.retired.cancel();
        }
    }
}

fn resource(row: &Row) -> (&str, &str) {
    (&row.info.group, &row.info.plural)
}

#[cfg(test)]
mod tests {
    use sheaf_meta::kind::{NoRules, SchemaSource};

    use super::*;

    fn custom(group: &str, plural: &str) -> Arc<Row> {
        let info = KindInfo {
            group: group.into(),
            version: "v1".into(),
            kind: "Thing".into(),
            plural: plural.into(),
            singular: "thing".into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            status_subresource: false,
            generation: true,
            columns: Vec::new(),
            selectable_fields: Vec::new(),
            schema: SchemaSource::kept(serde_json::json!({"type": "object"})),
            is_crd: true,
            rules: Arc::new(NoRules),
        };
        let custom = Custom {
            definition: format!("{plural}.{group}"),
            list_kind: "Things".into(),
            deprecated: None,
            terminating: Arc::default(),
            settled: None,
        };
        let stored_as = format!("{group}/v1");
        Arc::new(Row::of_definition(info, stored_as, None, custom))
    }

    #[test]
    fn rows_come_and_go_and_built_in_kinds_stay() {
        let registry = Registry::new(sheaf_api::kinds());
        let built_in = registry.snapshot().rows().len();
        let (thing, shadow) = (custom("example.com", "things"), custom("networking.k8s.io", "ingresses"));
        registry.set_custom(vec![thing.clone(), shadow]);
        let with = registry.snapshot();
        assert_eq!(with.rows().len(), built_in + 1, "what is built in is not hidden");
        assert!(with.find("example.com", "v1", "things").is_some_and(|r| r.list_kind() == "Things"));
        assert!(with.find("networking.k8s.io", "v1", "ingresses").is_some_and(|r| r.custom.is_none()));
        registry.set_custom(vec![thing.clone()]);
        assert!(!thing.retired.is_cancelled(), "the same row goes on");
        registry.set_custom(Vec::new());
        assert!(thing.retired.is_cancelled());
        assert_eq!(registry.snapshot().rows().len(), built_in);
        assert!(with.find("example.com", "v1", "things").is_some(), "who began with it ends with it");
    }

    #[test]
    fn events_are_kept_in_one_place_whichever_group_they_came_by() {
        let registry = Registry::new(sheaf_api::kinds());
        let shared: Vec<(&str, &str)> = registry
            .built_in()
            .iter()
            .filter(|r| r.shared)
            .map(|r| (&*r.api_version, &*r.info.plural))
            .collect();
        let (core, own) = (("v1", "events"), ("events.k8s.io/v1", "events"));
        assert!(shared.contains(&core) && shared.contains(&own), "{shared:?}");
        for row in registry.built_in().iter().filter(|r| !r.shared) {
            let same = registry.built_in().iter().filter(|r| r.prefix == row.prefix).count();
            assert!(same == 1 && row.info.rules.twin().is_none(), "{} {}", row.api_version, row.info.plural);
        }
    }

    #[test]
    fn a_status_that_is_no_subresource_is_part_of_what_is_asked_for() {
        let row = custom("example.com", "things");
        let object = |n: i32| serde_json::json!({"metadata": {"name": "a"}, "spec": {}, "status": {"n": n}});
        assert!(row.same_desired_state(&object(1), &object(1)));
        assert!(!row.same_desired_state(&object(1), &object(2)));
    }
}
