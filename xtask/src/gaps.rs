//! `cargo xtask schema-gaps DIR`: which fields of other schemas ours lack, kind by kind. A report, not a gate.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Deepest nesting that is followed; schemas that refer to themselves end here.
const DEPTH_MAX: usize = 24;

/// Kinds of the machines' groups that are not served, and why.
const WAITING: &[(&str, &str)] = &[
    ("kubevirt.io/v1 Status", "the form of answers, no kind"),
    ("kubevirt.io/v1 DataVolumeTemplateSpec", "a part of VirtualMachine, no kind"),
    ("kubevirt.io/v1 KubeVirt", "how an operator installs upstream; there is nothing to install here"),
    ("kubevirt.io/v1 VirtualMachineExport", "waits for the export service"),
    (
        "kubevirt.io/v1 VirtualMachineInstancePreset",
        "deprecated upstream in favour of instance types and preferences",
    ),
    ("kubevirt.io/v1 VirtualMachineInstanceReplicaSet", "waits, with pools: no client of ours makes one"),
];

/// A kind of the yardstick: API version, kind, schema and the definitions that it refers to.
struct Theirs {
    api_version: String,
    kind: String,
    schema: Value,
}

/// Compares all schemas in a directory with ours and prints what we lack.
pub(crate) fn run(dir: &Path) -> Result<ExitCode> {
    let ours = sheaf_api::kinds();
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let (mut kinds, mut known) = (0, 0);
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
        for (theirs, definitions) in read(&value) {
            kinds += 1;
            let row = ours.iter().find(|k| k.api_version() == theirs.api_version && k.kind == theirs.kind);
            let Some(row) = row else {
                let name = format!("{} {}", theirs.api_version, theirs.kind);
                let why = WAITING.iter().find(|(kind, _)| *kind == name).map(|(_, why)| format!(": {why}"));
                println!("{name}: not served{}", why.unwrap_or_default());
                continue;
            };
            known += 1;
            let mut gaps = BTreeSet::new();
            compare(&theirs.schema, &row.schema.get(), definitions, "", 0, &mut gaps);
            if gaps.is_empty() {
                println!("{} {}: all fields known", theirs.api_version, theirs.kind);
            }
            for gap in gaps {
                println!("{} {}: {gap}", theirs.api_version, theirs.kind);
            }
        }
    }
    println!("schema-gaps: {known} of {kinds} kinds are served");
    Ok(ExitCode::SUCCESS)
}

/// Kinds of a file, which is either a list of CustomResourceDefinitions or a map of definitions.
fn read(value: &Value) -> Vec<(Theirs, &Map<String, Value>)> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    let mut out = Vec::new();
    for crd in value.as_array().into_iter().flatten() {
        let spec = &crd["spec"];
        for version in spec["versions"].as_array().into_iter().flatten() {
            let group = spec["group"].as_str().unwrap_or_default();
            out.push((
                Theirs {
                    api_version: format!("{group}/{}", version["name"].as_str().unwrap_or_default()),
                    kind: spec["names"]["kind"].as_str().unwrap_or_default().into(),
                    schema: version["schema"]["openAPIV3Schema"].clone(),
                },
                &*NONE,
            ));
        }
    }
    if let Some(definitions) = value.as_object() {
        for (name, shape) in definitions {
            let gvks = shape["x-kubernetes-group-version-kind"].as_array().cloned().unwrap_or_default();
            let mut gvks: Vec<(String, String)> = gvks
                .iter()
                .map(|g| {
                    (
                        format!(
                            "{}/{}",
                            g["group"].as_str().unwrap_or_default(),
                            g["version"].as_str().unwrap_or_default()
                        ),
                        g["kind"].as_str().unwrap_or_default().into(),
                    )
                })
                .collect();
            let object =
                shape["properties"]["metadata"].is_object() && shape["properties"]["kind"].is_object();
            if gvks.is_empty() && object && !name.ends_with("List") && name.starts_with("v1.") {
                gvks.push(("kubevirt.io/v1".into(), name.rsplit('.').next().unwrap_or(name).into()));
            }
            for (api_version, kind) in gvks {
                out.push((Theirs { api_version, kind, schema: shape.clone() }, definitions));
            }
        }
    }
    out
}

fn resolve<'a>(shape: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    let name = shape["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    name.and_then(|n| definitions.get(n)).unwrap_or(shape)
}

fn compare(
    theirs: &Value,
    ours: &Value,
    definitions: &Map<String, Value>,
    path: &str,
    depth: usize,
    gaps: &mut BTreeSet<String>,
) {
    let open =
        ours["x-kubernetes-preserve-unknown-fields"] == true || ours["x-kubernetes-int-or-string"] == true;
    if depth > DEPTH_MAX || open || path == ".metadata" {
        return;
    }
    let theirs = resolve(theirs, definitions);
    for (name, shape) in theirs["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        match ours["properties"].get(name) {
            Some(our) => compare(shape, our, definitions, &here, depth + 1, gaps),
            None => drop(gaps.insert(format!("{here} is missing"))),
        }
    }
    for key in ["items", "additionalProperties"] {
        if theirs[key].is_object() {
            if ours[key].is_object() {
                compare(&theirs[key], &ours[key], definitions, &format!("{path}[]"), depth + 1, gaps);
            } else {
                gaps.insert(format!("{path} has no {key}"));
            }
        }
    }
    let (their_type, our_type) = (&theirs["type"], &ours["type"]);
    if their_type.is_string() && our_type.is_string() && their_type != our_type {
        gaps.insert(format!("{path} is {our_type}, theirs {their_type}"));
    }
    for value in theirs["enum"].as_array().into_iter().flatten() {
        if ours["enum"].as_array().is_some_and(|ours| !ours.contains(value)) {
            gaps.insert(format!("{path} does not allow {value}"));
        }
    }
    for key in ["x-kubernetes-list-type", "x-kubernetes-list-map-keys"] {
        if theirs.get(key).is_some() && theirs[key] != ours[key] {
            gaps.insert(format!("{path} has {key} {}, theirs {}", ours[key], theirs[key]));
        }
    }
}
