//! Reading the sources of the crate `k8s-pb`: which messages there are, and what their fields are numbered.
//!
//! No parser of Rust: the files are written by one generator, in one form.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A field as the source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u32,
    /// In snake case.
    pub(super) name: String,
    /// `string`, `message`, ...: of the value, where it is a map.
    pub(super) ty: String,
    pub(super) repeated: bool,
    pub(super) map: bool,
    /// Full name of the message, lower case: `io.k8s.api.core.v1.podspec`.
    pub(super) message: String,
}

/// Messages by full name, lower case, since the crate spells names in a way of its own.
pub(super) type Messages = BTreeMap<String, Vec<Field>>;

/// Reads all files below `src`.
pub(super) fn read(src: &Path) -> Result<Messages> {
    let mut out = Messages::new();
    walk(src, &mut Vec::new(), &mut out)?;
    if out.is_empty() {
        bail!("{} has no messages; give the directory that has `src/api`", src.display());
    }
    Ok(out)
}

fn walk(dir: &Path, module: &mut Vec<String>, out: &mut Messages) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            module.push(name);
            walk(&entry.path(), module, out)?;
            module.pop();
        } else if name == "mod.rs" {
            let text = std::fs::read_to_string(entry.path())?;
            parse(&text, module, out).with_context(|| format!("in {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The messages of one file.
fn parse(text: &str, module: &[String], out: &mut Messages) -> Result<()> {
    let code: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.starts_with("//")).collect();
    let code = code.join(" ");
    for part in code.split("::prost::Message)]").skip(1) {
        let Some((head, rest)) = part.split_once('{') else { continue };
        let name = head.trim().trim_start_matches("pub struct").trim();
        let body = rest.split('}').next().unwrap_or_default();
        let fields: Result<Vec<Field>> =
            body.split("#[prost(").skip(1).map(|text| field(text, module)).collect();
        out.insert(full_name(module, name), fields.with_context(|| format!("in {name}"))?);
    }
    Ok(())
}

fn field(text: &str, module: &[String]) -> Result<Field> {
    let (attribute, rest) = text.split_once(")]").context("an attribute without end")?;
    let (name, ty) = rest.trim().split_once(':').context("a field without type")?;
    let number = attribute.split("tag = \"").nth(1).and_then(|t| t.split('"').next());
    let number = number.context("a field without number")?.parse()?;
    let map = attribute.strip_prefix("btree_map = \"").map(|m| m.split('"').next().unwrap_or_default());
    let ty_word = match map {
        Some(pair) => pair.split_once(", ").context("a map of one type")?.1,
        None => attribute.split([',', ' ']).next().unwrap_or_default(),
    };
    let path: String = ty.chars().filter(|c| !c.is_whitespace()).collect();
    let path = path.trim_end_matches([',', '>']).rsplit(['<', ',']).next().unwrap_or_default().to_string();
    Ok(Field {
        number,
        name: name.trim().trim_start_matches("pub ").trim_start_matches("r#").to_string(),
        ty: ty_word.to_string(),
        repeated: attribute.contains("repeated"),
        map: map.is_some(),
        message: if ty_word == "message" { resolve(&path, module) } else { String::new() },
    })
}

fn resolve(path: &str, module: &[String]) -> String {
    let mut at = module.to_vec();
    let mut parts: Vec<&str> = path.split("::").collect();
    let name = parts.pop().unwrap_or_default();
    for part in parts {
        if part == "super" {
            at.pop();
        } else {
            at.push(part.to_string());
        }
    }
    full_name(&at, name)
}

/// As the published definitions call it.
fn full_name(module: &[String], name: &str) -> String {
    let module = module.join(".").replace('_', "-");
    format!("io.k8s.{module}.{name}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_file() -> Result<()> {
        let text = r#"
/// Pods.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Pod {
    /// Standard {metadata}.
    #[prost(message, optional, tag = "1")]
    pub metadata: ::core::option::Option<super::super::super::apimachinery::pkg::apis::meta::v1::ObjectMeta>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub r#type: ::prost::alloc::collections::BTreeMap<
        ::prost::alloc::string::String,
        Part,
    >,
    #[prost(string, repeated, tag = "3")]
    pub names: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
}
"#;
        let mut out = Messages::new();
        parse(text, &["api".into(), "core".into(), "v1".into()], &mut out)?;
        let pod = &out["io.k8s.api.core.v1.pod"];
        assert_eq!(pod[0].message, "io.k8s.apimachinery.pkg.apis.meta.v1.objectmeta");
        assert_eq!((pod[1].name.as_str(), pod[1].map, pod[1].number), ("type", true, 2));
        assert_eq!((pod[1].ty.as_str(), pod[1].message.as_str()), ("message", "io.k8s.api.core.v1.part"));
        assert_eq!((pod[2].ty.as_str(), pod[2].repeated), ("string", true));
        Ok(())
    }
}
