//! Every built-in kind as a row for the generic API server: names, scope, columns, schema, rules.
//!
//! A kind is one line in [`core`] or [`own`]. Shapes of core Kubernetes' types are in `schemas/core.json`, those of
//! our own come from the typed views. Who owns the set of rows at run time: the API server's registry.

mod core;
mod own;
mod schema;
mod twins;

use std::sync::Arc;

use sheaf_meta::kind::{Column, KindInfo, NoRules, Rules, SchemaSource, Scope, Twin};

pub(crate) use schema::shape_of;

use crate::cells::Cells;

/// One kind, as it is written in the tables. Lists are text, parted by spaces (columns: by `;`).
struct Row {
    /// `v1` or `apps/v1`.
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Short names.
    short: &'static str,
    /// `ns` (lives in namespaces), `status` (has that subresource), `gen` (counts generations), `all` (category).
    flags: &'static str,
    /// `Name`, `Name=.json.path`, `Name=.json.path:type`, `Name:type`; a leading `+` is for `-o wide`. A column without path is
    /// computed by `cells`. A column called `Name` replaces the one that the server puts first.
    columns: &'static str,
    /// Fields of field selectors.
    select: &'static str,
    cells: Option<Cells>,
    rules: Option<fn() -> Arc<dyn Rules>>,
    /// Where the objects are stored in another form.
    twin: Option<&'static dyn Twin>,
    /// The version whose schema it has, if not its own.
    shape: Option<&'static str>,
}

impl Row {
    const fn new(api_version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        let (short, flags, columns, select) = ("", "", "", "");
        Self {
            api_version,
            kind,
            plural,
            short,
            flags,
            columns,
            select,
            cells: None,
            rules: None,
            twin: None,
            shape: None,
        }
    }
    /// The same kind in an older version: stored in this one, and the same but for its name.
    const fn older(self, twin: &'static twins::OlderVersion) -> Self {
        Self { api_version: twin.shown, twin: Some(twin), shape: Some(twin.stored), ..self }
    }
    const fn short(self, short: &'static str) -> Self {
        Self { short, ..self }
    }
    const fn flags(self, flags: &'static str) -> Self {
        Self { flags, ..self }
    }
    const fn columns(self, columns: &'static str) -> Self {
        Self { columns, ..self }
    }
    const fn select(self, select: &'static str) -> Self {
        Self { select, ..self }
    }
    const fn cells(self, cells: Cells) -> Self {
        Self { cells: Some(cells), ..self }
    }
    const fn rules(self, rules: fn() -> Arc<dyn Rules>) -> Self {
        Self { rules: Some(rules), ..self }
    }
    const fn twin(self, twin: &'static dyn Twin) -> Self {
        Self { twin: Some(twin), ..self }
    }

    fn group(&self) -> &'static str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|f| f == flag)
    }

    fn info(&self, is_crd: bool) -> KindInfo {
        let words = |text: &str| text.split_whitespace().map(String::from).collect();
        let rules = self.rules.map_or_else(|| Arc::new(NoRules) as Arc<dyn Rules>, |make| make());
        let rules = if is_crd { rules } else { crate::rules::typed(self.definition(), rules) };
        let rules = crate::cells::with_cells(rules, self.cells, self.twin);
        let (kind, definition) = (self.kind, self.definition());
        let api_version = self.shape.unwrap_or(self.api_version);
        let schema = SchemaSource::made(move || match is_crd {
            true => schema::own(api_version, kind),
            false => schema::core(&definition),
        });
        let definition = self.definition();
        let version = self.api_version.rsplit('/').next().unwrap_or_default();
        let schema = schema.with_definitions(move || match is_crd {
            true => schema::own_definitions(api_version, kind, version),
            false => schema::core_definitions(&definition),
        });
        KindInfo {
            group: self.group().into(),
            version: self.api_version.rsplit('/').next().unwrap_or_default().into(),
            kind: self.kind.into(),
            plural: self.plural.into(),
            singular: self.kind.to_lowercase(),
            short_names: words(self.short),
            categories: if self.has("all") { vec!["all".into()] } else { Vec::new() },
            scope: if self.has("ns") { Scope::Namespaced } else { Scope::Cluster },
            status_subresource: self.has("status"),
            generation: is_crd || self.has("gen"),
            columns: columns(self.columns),
            selectable_fields: words(self.select),
            schema,
            is_crd,
            rules,
        }
    }

    /// Name of a core kind's published definition.
    fn definition(&self) -> String {
        let version = self.api_version.rsplit('/').next().unwrap_or_default();
        let package = match self.group() {
            "" => "io.k8s.api.core",
            "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
            "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
            group => {
                let word = group.split('.').next().unwrap_or_default();
                return format!("io.k8s.api.{word}.{version}.{}", self.kind);
            }
        };
        format!("{package}.{version}.{}", self.kind)
    }
}

/// Types that a column may name.
const TYPES: &[&str] = &["string", "integer", "number", "boolean", "date"];

fn columns(text: &str) -> Vec<Column> {
    let parts = text.split(';').map(str::trim).filter(|c| !c.is_empty());
    parts
        .map(|part| {
            let (wide, part) = part.strip_prefix('+').map_or((0, part), |rest| (1, rest));
            let typed = part.rsplit_once(':').filter(|(_, ty)| TYPES.contains(ty));
            let (part, ty) = typed.unwrap_or((part, ""));
            let (name, path) = part.split_once('=').unwrap_or((part, ""));
            let ty = match ty {
                "" if path == ".metadata.creationTimestamp" => "date",
                "" => "string",
                ty => ty,
            };
            let format = if name == "Name" { "name" } else { "" };
            Column {
                name: name.into(),
                ty: ty.into(),
                format: format.into(),
                priority: wide,
                path: path.into(),
                description: String::new(),
            }
        })
        .collect()
}

/// Every built-in kind. Cheap: schemas are made when somebody asks for them.
pub fn kinds() -> Vec<KindInfo> {
    let core = core::ROWS.iter().map(|row| row.info(false));
    let own = own::ROWS.iter().map(|row| row.info(true));
    core.chain(own).collect()
}

/// Kinds that are asked and answered and never stored, as the OpenAPI documents describe them.
pub fn reviews() -> Vec<KindInfo> {
    core::REVIEWS.iter().map(|row| row.info(false)).collect()
}

/// Names of the published definitions that the rows and the typed views need, for `cargo xtask schemas`.
pub fn core_definitions() -> Vec<String> {
    let mut names: Vec<String> = core::ROWS.iter().chain(core::REVIEWS).map(Row::definition).collect();
    names.extend(schema::references_to_core());
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_read_as_they_are_written() {
        let got = columns("Ready; Age=.metadata.creationTimestamp; +Size=.status.size:integer");
        let row = |c: &Column| (c.name.clone(), c.ty.clone(), c.path.clone(), c.priority);
        assert_eq!(
            got.iter().map(row).collect::<Vec<_>>(),
            [
                ("Ready".into(), "string".into(), String::new(), 0),
                ("Age".into(), "date".into(), ".metadata.creationTimestamp".into(), 0),
                ("Size".into(), "integer".into(), ".status.size".into(), 1),
            ]
        );
    }

    #[test]
    fn every_kind_has_a_structural_schema_without_references() {
        fn no_reference(value: &serde_json::Value, path: &str) {
            match value {
                serde_json::Value::Object(map) => {
                    let properties = path.ends_with(".properties");
                    assert!(properties || !map.contains_key("$ref"), "{path} has {:?}", map.get("$ref"));
                    map.iter().for_each(|(k, v)| no_reference(v, &format!("{path}.{k}")));
                }
                serde_json::Value::Array(list) => list.iter().for_each(|v| no_reference(v, path)),
                _ => {}
            }
        }
        let kinds = kinds();
        assert!(kinds.len() > 40);
        for kind in &kinds {
            let schema = kind.schema.get();
            assert_eq!(schema["type"], "object", "{}", kind.kind);
            assert_eq!(schema["properties"]["metadata"]["type"], "object", "{}", kind.kind);
            no_reference(&schema, &kind.kind);
        }
    }

    /// Kibibytes of this process that are in memory.
    fn resident() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Every schema compiled and every tree of rules made, as on a server that has seen an object of every kind.
    #[test]
    fn all_kinds_together_take_little_memory() {
        let kinds = kinds();
        let before = resident();
        let mut pool = sheaf_meta::schema::SchemaPool::new();
        let mut kept = Vec::new();
        for kind in kinds.iter().filter(|k| !k.is_crd) {
            kept.push(pool.compile(&kind.schema.get()));
            kind.rules.default(&mut json!({"metadata": {"name": "x"}}), None);
        }
        drop(pool);
        if let (Some(before), Some(after)) = (before, resident()) {
            println!("{} KiB for {} kinds", after - before, kept.len());
            assert!(after - before < 8 * 1024, "{} KiB for {} kinds", after - before, kept.len());
        }
    }

    #[test]
    fn names_are_unique_within_a_group_and_version() {
        let kinds = kinds();
        let mut seen = std::collections::BTreeSet::new();
        for kind in &kinds {
            let name = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
            assert!(seen.insert(name), "{} twice", kind.plural);
        }
    }

    /// Manifests as clients send them: nothing in them is unknown, and nothing is refused, before and after defaults.
    #[test]
    fn manifests_fit_their_schemas() {
        let manifests = [
            json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "uid": "u"},
                "spec": {"runStrategy": "RerunOnFailure", "template": {
                    "metadata": {"creationTimestamp": null, "labels": {"harvesterhci.io/vmName": "a"}},
                    "spec": {
                        "evictionStrategy": "LiveMigrateIfPossible", "hostname": "a",
                        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}]}}},
                        "domain": {
                            "cpu": {"cores": 2, "sockets": 1, "threads": 1, "maxSockets": 1}, "machine": {"type": ""},
                            "memory": {"guest": "1948Mi"}, "features": {"acpi": {"enabled": true}, "smm": {}},
                            "firmware": {"bootloader": {"efi": {"secureBoot": true}}},
                            "clock": {"utc": {}, "timer": {"rtc": {"tickPolicy": "catchup"}}},
                            "devices": {
                                "disks": [{"name": "d0", "bootOrder": 1, "disk": {"bus": "virtio"}},
                                    {"name": "seed", "disk": {"bus": "virtio"}}],
                                "inputs": [{"name": "tablet", "type": "tablet", "bus": "usb"}], "rng": {},
                                "interfaces": [{"name": "default", "model": "virtio", "masquerade": {}}]},
                            "resources": {"limits": {"cpu": 2, "memory": "2Gi"}}},
                        "networks": [{"name": "default", "pod": {}}],
                        "volumes": [{"name": "d0", "persistentVolumeClaim": {"claimName": "d0"}},
                            {"name": "seed", "cloudInitNoCloud": {"secretRef": {"name": "s"},
                                "networkDataSecretRef": {"name": "s"}}}],
                        "accessCredentials": [{"sshPublicKey": {"source": {"secret": {"secretName": "k"}},
                            "propagationMethod": {"qemuGuestAgent": {"users": ["debian"]}}}}]}}}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null},
                "spec": {"containers": [{"name": "c", "image": "i", "resources": {},
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"port": "http", "path": "/"}}}]}, "status": {}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": 1073741824}},
                    "storageClassName": "local", "volumeName": null}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {
                "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%"}},
                "template": {"metadata": {"creationTimestamp": null, "labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {}}),
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a"},
                "spec": {"group": "g", "scope": "Namespaced", "names": {"kind": "A", "plural": "as"}, "versions": [{
                    "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                        "properties": {"spec": {"type": "object", "items": {"anything": 1}}}}}}]}}),
        ];
        for manifest in manifests {
            let kinds = kinds();
            let kind = kinds.iter().find(|k| manifest["kind"] == k.kind.as_str());
            let Some(kind) = kind else { panic!("{} is not served", manifest["kind"]) };
            let schema = sheaf_meta::schema::Schema::compile(&kind.schema.get());
            let mut object = manifest.clone();
            for round in ["sent", "defaulted"] {
                assert_eq!(schema.prune(&mut object), [""; 0], "{} {round}", kind.kind);
                assert_eq!(schema.validate(&object), [], "{} {round}", kind.kind);
                kind.rules.default(&mut object, None);
            }
            assert_eq!(kind.rules.validate(&object, None), [], "{}", kind.kind);
        }
    }

    /// What the views write is what they read, and fits the schema; what the rules write does too.
    #[test]
    fn instances_fit_their_schema_with_all_that_rules_add() {
        let kinds = kinds();
        let Some(kind) = kinds.iter().find(|k| k.kind == "VirtualMachineInstance") else {
            panic!("not served")
        };
        let mut view = crate::kubevirt::VirtualMachineInstance::new("default", "a");
        view.spec.domain.memory = serde_json::from_value(json!({"guest": "64Mi"})).ok();
        view.spec.volumes = vec![crate::kubevirt::Volume { name: "d".into(), ..Default::default() }];
        view.spec.volumes[0].container_disk = serde_json::from_value(json!({"image": "x:1"})).ok();
        view.spec.volumes[0].persistent_volume_claim = None;
        let mut object = serde_json::to_value(&view).unwrap_or_default();
        assert_eq!(
            serde_json::from_value::<crate::kubevirt::VirtualMachineInstance>(object.clone()).ok(),
            Some(view)
        );
        kind.rules.default(&mut object, None);
        let schema = sheaf_meta::schema::Schema::compile(&kind.schema.get());
        assert_eq!(schema.prune(&mut object), [""; 0]);
        assert_eq!(schema.validate(&object), []);
        assert_eq!(kind.rules.validate(&object, None), []);
    }
}
