//! Writes a table of the built assets in `dashboard/dist`, empty where nothing was built.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a build script that fails says where")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../dashboard");
    let dist = root.join("dist");
    // A path that is missing is looked at in every build: name the directory above while there is none.
    let watched = if dist.exists() { &dist } else { &root };
    println!("cargo::rerun-if-changed={}", watched.display());
    let mut files = Vec::new();
    collect(&dist, &mut files);
    files.sort();
    let mut table = String::from("&[\n");
    for file in files {
        let name = file.strip_prefix(&dist).unwrap().to_str().expect("names of assets are text");
        let path = file.canonicalize().unwrap();
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").unwrap();
    }
    table.push_str("]\n");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap()).join("assets.rs");
    fs::write(out, table).expect("the table of assets can be written");
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
