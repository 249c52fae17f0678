//! Style as a test: the floors of the packages, a `//!` in every module, the length of files, fenced `unsafe`, one
//! feature set for each third-party crate. Reads the tree, changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Lines of a Rust file, tests included. A file beyond this is no longer held in one mind.
const LINES_MAX: usize = 700;

/// Files that may be longer, and why.
const LONGER: &[(&str, usize, &str)] = &[];

/// Packages that may contain `unsafe`, each block with a SAFETY note; and why.
const FENCED: &[(&str, &str)] = &[
    ("sheaf", "memory that is given back: madvise, and the allocator's own call"),
    ("sheaf-disk", "memory that io_uring reads and writes, aligned buffers, the FIEMAP ioctl"),
    ("sheaf-storage", "the guest's memory, shared by vhost-user"),
    ("sheaf-net", "ioctls on tap devices and socket options"),
    ("sheaf-qemu", "what runs between fork and exec; registration of a pidfd; addresses of vsock"),
];

/// Runs all checks and prints what breaks a rule.
pub(crate) fn run() -> Result<ExitCode> {
    let root = root()?;
    let mut broken = floors(&root)?;
    broken.extend(files(&root)?);
    for line in &broken {
        eprintln!("tidy: {line}");
    }
    if broken.is_empty() {
        println!("tidy: all rules hold");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} rules broken", broken.len());
    Ok(ExitCode::FAILURE)
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("xtask lies in the root of the repository")
}

/// An arrow may only point down: a package depends on packages of lower floors only.
fn floors(root: &Path) -> Result<Vec<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    if !out.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    }
    let metadata: Value = serde_json::from_slice(&out.stdout).context("reading cargo metadata")?;
    Ok(check_floors(metadata["packages"].as_array().map_or(&[][..], Vec::as_slice)))
}

fn check_floors(packages: &[Value]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut floor = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        match package["metadata"]["floor"].as_u64() {
            Some(f) => drop(floor.insert(name, f)),
            None if name == "xtask" => {}
            None => broken.push(format!("{name}: Cargo.toml names no [package.metadata] floor")),
        }
    }
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(mine) = floor.get(name) else { continue };
        for dependency in package["dependencies"].as_array().map_or(&[][..], Vec::as_slice) {
            let on = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"] == "dev";
            match floor.get(on) {
                Some(theirs) if theirs >= mine && !dev => {
                    broken.push(format!(
                        "{name} (floor {mine}) depends on {on} (floor {theirs}): arrows point down"
                    ));
                }
                Some(_) => {}
                None => {}
            }
        }
    }
    broken
}

fn files(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut todo = vec![root.join("crates"), root.join("xtask")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target" && n != "node_modules") {
                    todo.push(path);
                }
                continue;
            }
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).with_context(|| format!("reading {relative}"))?;
                broken.extend(check_source(&relative, &text));
            } else if path.file_name().is_some_and(|n| n == "Cargo.toml") {
                let text = fs::read_to_string(&path).with_context(|| format!("reading {relative}"))?;
                broken.extend(check_manifest(&relative, &text));
            }
        }
    }
    broken.sort();
    Ok(broken)
}

fn check_source(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if !text
        .lines()
        .find(|l| !l.trim().is_empty() && !l.starts_with("#!"))
        .is_some_and(|l| l.starts_with("//!"))
    {
        broken.push(format!(
            "{path}: begins without `//!` (what the module is, what it does not do, who owns the state)"
        ));
    }
    let lines = text.lines().count();
    let limit = LONGER.iter().find(|(p, _, _)| *p == path).map_or(LINES_MAX, |(_, max, _)| *max);
    if lines > limit {
        broken.push(format!("{path}: {lines} lines, the limit is {limit}; split it by what it does"));
    }
    let fenced = FENCED.iter().any(|(package, _)| path.starts_with(&format!("crates/{package}/")));
    let opens = ["unsafe", "{"].join(" ");
    if !fenced && text.contains(&opens) {
        broken.push(format!("{path}: `unsafe` outside the fenced packages"));
    }
    broken
}

/// Members inherit third-party crates as they are declared in the root, and add no features.
fn check_manifest(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let mut in_dependencies = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && line.contains('=') && !line.contains("workspace") {
            broken.push(format!("{path}: `{line}` is not inherited from the workspace"));
        } else if in_dependencies && line.contains("workspace") && line.contains("features") {
            broken.push(format!("{path}: `{line}` adds features; declare them once, in the root"));
        }
    }
    if !text.contains("[lints]\nworkspace = true") {
        broken.push(format!("{path}: does not inherit the workspace's lints"));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_tree_is_tidy() {
        let root = root().expect("root");
        let mut broken = floors(&root).expect("floors");
        broken.extend(files(&root).expect("files"));
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    #[test]
    fn an_arrow_that_points_up_or_sideways_is_found() {
        let package = |name: &str, floor: u64, on: &str| json!({"name": name, "metadata": {"floor": floor}, "dependencies": [{"name": on, "kind": null}]});
        let down = [package("low", 0, "serde"), package("high", 1, "low")];
        assert!(check_floors(&down).is_empty());
        let up = [package("low", 0, "high"), package("high", 1, "serde")];
        assert_eq!(check_floors(&up).len(), 1);
        let sideways = [package("a", 1, "b"), package("b", 1, "serde")];
        assert_eq!(check_floors(&sideways).len(), 1);
        let lost = [json!({"name": "new", "metadata": null, "dependencies": []})];
        assert_eq!(check_floors(&lost).len(), 1);
    }

    #[test]
    fn headers_lengths_and_fences_are_checked() {
        assert!(check_source("crates/sheaf-x/src/a.rs", "//! What it is.\n").is_empty());
        assert_eq!(check_source("crates/sheaf-x/src/a.rs", "fn main() {}\n").len(), 1);
        let long = format!("//! Long.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(check_source("crates/sheaf-x/src/a.rs", &long).len(), 1);
        let block = ["//! x\nfn f() { unsafe", "{ } }"].join(" ");
        assert_eq!(check_source("crates/sheaf-x/src/a.rs", &block).len(), 1);
        assert!(check_source("crates/sheaf-net/src/a.rs", &block).is_empty());
    }

    #[test]
    fn members_inherit_dependencies_as_they_are() {
        let head = "[lints]\nworkspace = true\n[dependencies]\n";
        assert!(check_manifest("x", &format!("{head}serde.workspace = true\n")).is_empty());
        assert_eq!(check_manifest("x", &format!("{head}serde = \"1\"\n")).len(), 1);
        let more = format!("{head}serde = {{ workspace = true, features = [\"rc\"] }}\n");
        assert_eq!(check_manifest("x", &more).len(), 1);
        assert_eq!(check_manifest("x", "[dependencies]\n").len(), 1);
    }
}
