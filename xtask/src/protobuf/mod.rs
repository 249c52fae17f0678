//! `cargo xtask protobuf --k8s-pb DIR --definitions FILE`: the table from which `sheaf_meta::protobuf` reads bodies.
//!
//! Field numbers come from the crate `k8s-pb`, names in JSON and what is required from the published definitions, and
//! which fields keep their zero from a list beside the table. All messages of kinds whose version is stable.

mod prost;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

/// Where table and list lie, from the root of the repository.
const DIR: &str = "crates/sheaf-meta/src/protobuf";

/// Groups of which the server has no kind.
const UNSERVED: &[&str] = &["resource.k8s.io", "flowcontrol.apiserver.k8s.io", "internal.apiserver.k8s.io"];

/// Package of what all kinds share.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Writes the table. Says what it could not match.
pub(crate) fn run(k8s_pb: &Path, definitions: &Path) -> Result<ExitCode> {
    let messages = prost::read(&k8s_pb.join("src"))?;
    let text =
        std::fs::read_to_string(definitions).with_context(|| format!("reading {}", definitions.display()))?;
    let published: Value = serde_json::from_str(&text).context("reading the definitions as JSON")?;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default().join(DIR);
    let zeros = std::fs::read_to_string(dir.join("zeros.txt")).context("reading zeros.txt")?;
    let mut writer = Writer::new(&messages, &published, &zeros)?;
    let table = writer.table();
    for line in &writer.problems {
        eprintln!("protobuf: {line}");
    }
    let path = dir.join("table.txt");
    std::fs::write(&path, &table).with_context(|| format!("writing {}", path.display()))?;
    println!("protobuf: {} messages in {}", table.lines().count(), path.display());
    Ok(ExitCode::SUCCESS)
}

struct Writer<'a> {
    messages: &'a prost::Messages,
    /// By lower case name.
    definitions: BTreeMap<String, &'a Value>,
    /// `core.v1.PodSpec hostname` in lower case.
    zeros: BTreeSet<String>,
    used: BTreeSet<String>,
    /// Line of each message, by lower case name.
    lines: BTreeMap<String, usize>,
    /// Messages whose fields stand in another one: they have no definition, but that one's.
    inlined: BTreeMap<String, &'a Value>,
    queue: Vec<String>,
    problems: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(messages: &'a prost::Messages, published: &'a Value, zeros: &str) -> Result<Self> {
        let all = ["$defs", "definitions"].iter().find_map(|k| published[*k].as_object());
        let all = all.context("the file has neither $defs nor definitions")?;
        let zeros = zeros.lines().filter(|l| !l.starts_with('#')).flat_map(|line| {
            let (message, fields) = line.split_once(' ').unwrap_or((line, ""));
            let message = message.to_lowercase();
            fields.split(' ').map(move |f| format!("{message} {f}")).collect::<Vec<_>>()
        });
        Ok(Self {
            messages,
            definitions: all.iter().map(|(name, shape)| (name.to_lowercase(), shape)).collect(),
            zeros: zeros.collect(),
            used: BTreeSet::new(),
            lines: BTreeMap::new(),
            inlined: BTreeMap::new(),
            queue: Vec::new(),
            problems: Vec::new(),
        })
    }

    fn table(&mut self) -> String {
        let mut kinds = self.kinds();
        kinds.sort();
        for (_, name) in &kinds {
            self.line(name);
        }
        let names: BTreeMap<String, String> = kinds.into_iter().map(|(kind, name)| (name, kind)).collect();
        let (mut out, mut at) = (String::new(), 0);
        while let Some(name) = self.queue.get(at).cloned() {
            at += 1;
            out.push_str(names.get(&name).map_or(short(&name), String::as_str));
            for word in self.fields(&name) {
                let _ = write!(out, " {word}");
            }
            out.push('\n');
        }
        for left in self.zeros.difference(&self.used) {
            self.problems.push(format!("zeros.txt: {left} is no optional scalar of a message in the table"));
        }
        out
    }

    /// `apps/v1/Deployment` and the message's name, for every kind with a stable version.
    fn kinds(&self) -> Vec<(String, String)> {
        let mut out = vec![("v1/DeleteOptions".to_string(), format!("{META}.DeleteOptions").to_lowercase())];
        for (name, shape) in &self.definitions {
            let gvks = shape["x-kubernetes-group-version-kind"].as_array().map_or(&[][..], Vec::as_slice);
            let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_string();
            if name.starts_with(META.to_lowercase().as_str()) || !self.messages.contains_key(name) {
                continue;
            }
            let listed = gvks.iter().map(|gvk| (text(gvk, "group"), text(gvk, "version"), text(gvk, "kind")));
            for (group, version, kind) in listed {
                if kind.ends_with("List")
                    || UNSERVED.contains(&group.as_str())
                    || version.contains("alpha")
                    || version.contains("beta")
                {
                    continue;
                }
                let slash = if group.is_empty() { "" } else { "/" };
                out.push((format!("{group}{slash}{version}/{kind}"), name.clone()));
            }
        }
        out
    }

    fn line(&mut self, name: &str) -> usize {
        if let Some(line) = self.lines.get(name) {
            return *line;
        }
        let line = self.queue.len();
        self.lines.insert(name.to_string(), line);
        self.queue.push(name.to_string());
        line
    }

    fn fields(&mut self, name: &str) -> Vec<String> {
        let messages = self.messages;
        let inlined = self.inlined.get(name).copied();
        let shape = self.definitions.get(name).copied().or(inlined).unwrap_or(&Value::Null);
        let Some(fields) = messages.get(name) else {
            self.problems.push(format!("{name} is no message"));
            return Vec::new();
        };
        if shape.is_null() {
            self.problems.push(format!("{name} is not among the definitions"));
        }
        let properties = shape["properties"].as_object();
        let required: BTreeSet<&str> =
            shape["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let by_name: BTreeMap<String, &String> =
            properties.into_iter().flatten().map(|(key, _)| (normal(key), key)).collect();
        let mut left = by_name.clone();
        let mut out = Vec::new();
        for field in fields {
            let json = left.remove(&normal(&field.name));
            if json.is_none() {
                if !self.is_part_of(&field.message, &by_name) {
                    self.problems.push(format!("{name} has no property {} ({})", field.name, field.number));
                    continue;
                }
                self.inlined.insert(field.message.clone(), shape);
                left.retain(|name, _| !self.has(&field.message, name));
            }
            let key = json.map_or("", String::as_str);
            let many = match (field.map, field.repeated) {
                (true, _) => "{",
                (_, true) => "[",
                _ => "",
            };
            let listed = format!("{} {key}", short(name));
            let scalar = many.is_empty() && field.ty != "message";
            let zero = scalar && self.zeros.contains(&listed);
            if zero {
                self.used.insert(listed);
            }
            let keep = if required.contains(key) || zero { "!" } else { "" };
            let ty = self.ty(field);
            out.push(format!("{}:{many}{keep}{ty}:{key}", field.number));
        }
        if inlined.is_none() {
            for (_, key) in left.into_iter().filter(|(_, key)| !matches!(key.as_str(), "apiVersion" | "kind"))
            {
                self.problems.push(format!("{name} has no field for {key}"));
            }
        }
        out
    }

    /// Whether a message has a field of this name; also by the one message that stands in another that itself stands in
    /// others (a webhook's rule).
    fn has(&self, message: &str, wanted: &str) -> bool {
        self.messages.get(message).into_iter().flatten().any(|field| {
            let name = normal(&field.name);
            name == wanted || (name == "rule" && self.has(&field.message, wanted))
        })
    }

    /// Whether all fields of a message stand among these.
    fn is_part_of(&self, message: &str, properties: &BTreeMap<String, &String>) -> bool {
        self.messages.get(message).is_some_and(|fields| {
            fields.iter().all(|field| {
                properties.contains_key(&normal(&field.name)) || self.is_part_of(&field.message, properties)
            })
        })
    }

    fn ty(&mut self, field: &prost::Field) -> String {
        let scalar = match field.ty.as_str() {
            "string" => "s",
            "bool" => "b",
            "int32" => "i",
            "int64" => "l",
            "double" => "d",
            "bytes" => "y",
            _ => "",
        };
        if !scalar.is_empty() {
            return scalar.into();
        }
        let mut schema = |letter: &str| {
            let schema =
                field.message.replace("orarray", "").replace("orbool", "").replace("orstringarray", "");
            format!("{letter}{}", self.line(&schema))
        };
        match field.message.rsplit('.').next().unwrap_or_default() {
            "quantity" => "Q".into(),
            "time" => "T".into(),
            "microtime" => "U".into(),
            "intorstring" => "O".into(),
            "rawextension" | "json" | "fieldsv1" => "J".into(),
            "extravalue" | "verbs" => "w".into(),
            "jsonschemapropsorarray" => schema("A"),
            "jsonschemapropsorbool" => schema("B"),
            "jsonschemapropsorstringarray" => schema("C"),
            _ => schema("m"),
        }
    }
}

/// `core.v1.podspec` of `io.k8s.api.core.v1.podspec`.
fn short(name: &str) -> &str {
    let parts: Vec<usize> = name.match_indices('.').map(|(at, _)| at + 1).collect();
    parts.len().checked_sub(3).and_then(|at| name.get(*parts.get(at)?..)).unwrap_or(name)
}

/// What names in JSON and in Rust have in common.
fn normal(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase()
}
