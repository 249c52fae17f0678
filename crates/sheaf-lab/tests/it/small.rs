//! A small file system where a node keeps its things, to be filled.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A small file system over a directory of a node, until this is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    /// Moves what is in `dir` onto a file system of so many MiB that lies there then. Nothing may use it meanwhile.
    pub(crate) fn over(dir: &Path, mib: u32) -> Result<Self> {
        let aside = dir.with_extension("aside");
        std::fs::rename(dir, &aside).context("moving the directory aside")?;
        std::fs::create_dir(dir)?;
        let size = format!("size={mib}m,mode=0700");
        command("mount", &["-t", "tmpfs", "-o", &size, "sheaf-lab", &dir.to_string_lossy()])?;
        let small = Self(dir.to_owned());
        command("cp", &["-a", &format!("{}/.", aside.display()), &dir.to_string_lossy()])?;
        Ok(small)
    }

    fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.0).context("statvfs")?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Fills it, but for so many bytes.
    pub(crate) fn fill(&self, leave: u64) -> Result<()> {
        let mut file = std::fs::File::create(self.0.join("ballast"))?;
        let block = vec![0; 256 << 10];
        while self.free()? > leave + block.len() as u64 {
            file.write_all(&block).context("filling the file system")?;
        }
        Ok(())
    }

    pub(crate) fn make_room(&self) -> Result<()> {
        std::fs::remove_file(self.0.join("ballast")).context("removing the ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if let Err(error) = command("umount", &["--lazy", &self.0.to_string_lossy()]) {
            eprintln!("lab: {error:#}");
        }
    }
}

fn command(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    ensure!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
