//! Where a node keeps its volumes: `<data>/agent/volumes/<name of the PV>/{disk.img | disk.qcow2, base, volume.json}`.
//!
//! `volume.json` is written after the disk is complete; it says what the disk is, so that nobody guesses a format from
//! what a guest wrote. `base` is a hard link to the image of an overlay. A directory without a PersistentVolume is left
//! alone: only the release of its PersistentVolume removes data. Blocking, quick.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sheaf_image::probe::Format;
use sheaf_image::volume::{VolumeError, create_blank, create_overlay, grow, size};

use crate::parts::DiskFormat;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// UID of the claim that it was made for.
    pub claim_uid: String,
    /// NAMESPACE/NAME of the claim, for those who look at the directory.
    pub claim: String,
    /// NAMESPACE/NAME of the image that it is an overlay of; none for a blank disk.
    pub image: Option<String>,
}

impl Volume {
    /// How QEMU opens it.
    pub fn format(&self) -> DiskFormat {
        if self.image.is_some() { DiskFormat::Qcow2 } else { DiskFormat::Raw }
    }
}

/// What a new volume shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Blank,
    /// An image of this node.
    Image {
        /// NAMESPACE/NAME.
        name: String,
        /// Its data.
        base: PathBuf,
        /// Its format.
        format: Format,
    },
    /// What a snapshot of this node holds.
    Snapshot {
        /// Its directory.
        dir: PathBuf,
    },
}

/// The volumes of a node.
#[derive(Debug, Clone)]
pub struct VolumeFiles {
    dir: PathBuf,
}

impl VolumeFiles {
    /// Below the agent's directory.
    pub fn new(agent_dir: &Path) -> Self {
        VolumeFiles { dir: agent_dir.join("volumes") }
    }

    /// The directory of all.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Object names have no slashes; `..` is none either.
    fn dir_of(&self, name: &str) -> PathBuf {
        let safe: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
        self.dir.join(safe.trim_start_matches('.'))
    }

    /// The directory of a volume.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir_of(name)
    }

    /// The directory of all snapshots of this node.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.dir.with_file_name("snapshots")
    }

    /// The directory of a snapshot of this node, which may not exist.
    pub fn snapshot_dir(&self, name: &str) -> PathBuf {
        let safe: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
        self.snapshots_dir().join(safe.trim_start_matches('.'))
    }

    /// What a snapshot of this node is of; `None` if it is not here, or not complete.
    pub fn snapshot(&self, name: &str) -> Option<(Volume, u64)> {
        let dir = self.snapshot_dir(name);
        let volume: Volume = serde_json::from_slice(&fs::read(dir.join("volume.json")).ok()?).ok()?;
        let file = if volume.format() == DiskFormat::Qcow2 { "disk.qcow2" } else { "disk.img" };
        let bytes = size(&dir.join(file), volume.format() == DiskFormat::Qcow2).ok()?;
        Some((volume, bytes))
    }

    /// The file that QEMU opens.
    pub fn disk(&self, name: &str, format: DiskFormat) -> PathBuf {
        self.dir_of(name).join(match format {
            DiskFormat::Raw => "disk.img",
            DiskFormat::Qcow2 => "disk.qcow2",
        })
    }

    fn record(&self, name: &str) -> PathBuf {
        self.dir_of(name).join("volume.json")
    }

    /// What a volume is; `None` if it is not here.
    pub fn get(&self, name: &str) -> Option<Volume> {
        let volume: Volume = serde_json::from_slice(&fs::read(self.record(name)).ok()?).ok()?;
        self.disk(name, volume.format()).exists().then_some(volume)
    }

    /// Makes a volume of `bytes`. One that is here already for the same claim stays as it is.
    pub fn create(
        &self,
        name: &str,
        volume: &Volume,
        content: &Content,
        bytes: u64,
    ) -> Result<(), VolumeError> {
        if self.get(name).as_ref() == Some(volume) {
            return Ok(());
        }
        let dir = self.dir_of(name);
        let disk = self.disk(name, volume.format());
        match content {
            Content::Blank => create_blank(&disk, bytes)?,
            Content::Snapshot { dir: from } => {
                copy_disk(from, &dir, volume.format())?;
                let has = size(&disk, volume.format() == DiskFormat::Qcow2)?;
                if has < bytes {
                    grow(&disk, volume.format() == DiskFormat::Qcow2, bytes)?;
                }
            }
            Content::Image { base, format, .. } => {
                let file = disk.file_name().unwrap_or_default().to_string_lossy();
                create_overlay(&dir, &file, base, *format, bytes)?;
            }
        }
        let path = self.record(name);
        let new = path.with_extension("json.new");
        let written = serde_json::to_vec_pretty(volume)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| VolumeError::Io { action: "write", path, source })
    }

    /// Size of a volume's disk in bytes.
    pub fn size(&self, name: &str, format: DiskFormat) -> Result<u64, VolumeError> {
        size(&self.disk(name, format), format == DiskFormat::Qcow2)
    }

    /// Makes a volume's disk larger. Nobody may have it open.
    pub fn grow(&self, name: &str, format: DiskFormat, bytes: u64) -> Result<(), VolumeError> {
        grow(&self.disk(name, format), format == DiskFormat::Qcow2, bytes)
    }

    /// Removes a volume with all its data. Idempotent.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        for result in [fs::remove_file(self.record(name)), fs::remove_dir_all(self.dir_of(name))] {
            result
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }
}

/// Copies a disk from one directory to another: sharing what the file system can share, sparse in any case. The file below
/// an overlay is linked, as it never changes.
pub fn copy_disk(from: &Path, to: &Path, format: DiskFormat) -> Result<(), VolumeError> {
    let name = match format {
        DiskFormat::Raw => "disk.img",
        DiskFormat::Qcow2 => "disk.qcow2",
    };
    let io = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| VolumeError::Io { action, path, source }
    };
    fs::create_dir_all(to).map_err(io("create", to))?;
    if format == DiskFormat::Qcow2 {
        let (base, link) = (from.join("base"), to.join("base"));
        let _ = fs::remove_file(&link);
        fs::hard_link(&base, &link).map_err(io("link", &base))?;
    }
    let (source, new) = (from.join(name), to.join(format!("{name}.new")));
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto", "--no-preserve=all", "--"])
        .args([&source, &new])
        .output()
        .map_err(io("copy", &source))?;
    if !copied.status.success() {
        let said = String::from_utf8_lossy(&copied.stderr).trim().to_owned();
        return Err(io("copy", &source)(io::Error::other(said)));
    }
    fs::File::open(&new).and_then(|f| f.sync_all()).map_err(io("write", &new))?;
    fs::rename(&new, to.join(name)).map_err(io("rename", &new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_come_grow_and_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = VolumeFiles::new(dir.path());
        let image = dir.path().join("image");
        fs::write(&image, vec![7; 4096]).expect("writing");
        let content = Content::Image { name: "d/i".to_owned(), base: image.clone(), format: Format::Raw };
        for (name, content, format) in
            [("pvc-1", Content::Blank, DiskFormat::Raw), ("pvc-2", content, DiskFormat::Qcow2)]
        {
            let of = matches!(content, Content::Image { .. }).then(|| "d/i".to_owned());
            let volume = Volume { claim_uid: "u".to_owned(), claim: "d/c".to_owned(), image: of };
            assert_eq!(files.get(name), None);
            files.create(name, &volume, &content, 1 << 20).expect("creating");
            fs::write(dir.path().join("mark"), "").expect("writing");
            files.create(name, &volume, &content, 9 << 20).expect("creating again");
            assert_eq!((files.get(name), volume.format()), (Some(volume), format));
            assert_eq!(files.size(name, format).expect("a size"), 1 << 20, "it stayed as it was");
            files.grow(name, format, 2 << 20).expect("growing");
            assert_eq!(files.size(name, format).expect("a size"), 2 << 20);
            assert!(files.grow(name, format, 1 << 20).is_err());
            files.remove(name).expect("removing");
            files.remove(name).expect("removing again");
            assert_eq!(files.get(name), None);
        }
        assert!(image.exists());
        assert_eq!(files.disk("../../x", DiskFormat::Raw), files.dir().join("x/disk.img"));
    }
}
