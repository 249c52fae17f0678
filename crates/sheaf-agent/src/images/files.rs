//! Where a node keeps its images: `<data>/agent/images/<uid of the image>/{base,image.json}`.
//!
//! By uid, so that an image that is deleted and made again under the same name is another one. `image.json` is written
//! after `base` has its name, and is what says that the image is here. Volumes hold images by hard links of their own
//! ([`sheaf_image::volume`]), so a directory here may go as soon as its object has. Blocking, quick.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sheaf_image::intake::Stored;

/// What is known of an image that is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Format, sizes, checksum.
    #[serde(flatten)]
    pub stored: Stored,
    /// Where it was downloaded from; empty for uploads.
    #[serde(default)]
    pub url: String,
}

/// The images of a node.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    dir: PathBuf,
}

impl ImageFiles {
    /// Below the agent's directory.
    pub fn new(agent_dir: &Path) -> Self {
        ImageFiles { dir: agent_dir.join("images") }
    }

    /// The directory of all.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image's data.
    pub fn base(&self, uid: &str) -> PathBuf {
        self.dir.join(safe(uid)).join("base")
    }

    fn record(&self, uid: &str) -> PathBuf {
        self.dir.join(safe(uid)).join("image.json")
    }

    /// The image, if it is here and complete. A record that cannot be read counts as none: the image comes again.
    pub fn get(&self, uid: &str) -> Option<Kept> {
        let kept = serde_json::from_slice(&fs::read(self.record(uid)).ok()?).ok()?;
        self.base(uid).exists().then_some(kept)
    }

    /// Records that the image is complete.
    pub fn put(&self, uid: &str, kept: &Kept) -> io::Result<()> {
        let path = self.record(uid);
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(kept)?)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(new, path)
    }

    /// Removes an image with everything of it, also while it is incomplete. Idempotent.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        // The record first: what is half removed is not here.
        for result in [fs::remove_file(self.record(uid)), fs::remove_dir_all(self.dir.join(safe(uid)))] {
            result
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }

    /// The uids of all images that have a directory here.
    pub fn uids(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// Uids come from the API; none may lead elsewhere.
fn safe(uid: &str) -> String {
    let text: String =
        uid.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(64).collect();
    if text.is_empty() { "none".to_owned() } else { text }
}

/// Bytes that images and volumes leave free on a file system of `total` bytes: 5 %, at most 2 GiB.
pub fn keep_free(total: u64) -> u64 {
    (total / 20).min(2 << 30)
}

/// [`keep_free`] of the file system that a directory is on; nothing if that cannot be told.
pub fn keep_free_at(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |stat| keep_free(stat.f_blocks.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheaf_image::probe::Format;

    #[test]
    fn an_image_is_here_when_it_is_complete() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = ImageFiles::new(dir.path());
        let stored = Stored {
            format: Format::Raw,
            len: 3,
            allocated: 4096,
            virtual_size: 512,
            sha512: "ab".to_owned(),
        };
        let kept = Kept { stored, url: "http://h/".to_owned() };
        fs::create_dir_all(files.dir().join("u-1")).expect("a directory");
        files.put("u-1", &kept).expect("writing");
        assert_eq!(files.get("u-1"), None, "the data is missing");
        fs::write(files.base("u-1"), "abc").expect("writing");
        assert_eq!(files.get("u-1"), Some(kept));
        assert_eq!(files.uids(), BTreeSet::from(["u-1".to_owned()]));
        files.remove("u-1").expect("removing");
        files.remove("u-1").expect("removing again");
        assert!(files.uids().is_empty() && files.get("u-1").is_none());
        assert_eq!(files.base("../../etc"), files.dir().join("etc/base"));
    }
}
