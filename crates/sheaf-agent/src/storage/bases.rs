//! Bases: what volumes of images begin as. On each disk where such a volume gets one of its first replicas, the image becomes one raw file,
//! `bases/<SHA-512 of the image's file>.img`, which every replica there has as its lowest layer, by a hard link.
//!
//! ```text
//! image on its node -> file of this node (images) -> half made -> base -> linked into replicas (the storage process)
//! ```
//!
//! A base is made when the first replica wants it, once for all that wait, and not changed from then on. Its own name goes when no image
//! has that content any more, or when no replica has used it for long; replicas keep what they have. [`plan_sweep`] is pure. Who owns the
//! state: the files; what is being made, and what has just failed, this process.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use sheaf_api::longhorn::Volume;
use sheaf_image::human_bytes;
use sheaf_image::probe::Format;
use sheaf_plan::storage::{BASE, CONTENT, FILLED, IMAGE_SUM};
use sheaf_runtime::{ObjectKey, Severity};
use sheaf_storage::api::Base;
use sheaf_storage::bases::{directory, finish, half_made, of_half_made};
use tracing::{info, warn};

use super::Replicated;
use super::fill::{COPIES, name_of, qemu_img};
use super::plan::Beginning;
use crate::images::Local;
use crate::images::files::keep_free_at;

/// What failed is begun again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// A base that nobody has is kept for so long: making it takes longer than a link.
const UNUSED: Duration = Duration::from_secs(3600);
/// How often bases are looked for that are not needed, if no image changes before.
const LOOK: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".img";

/// A base that is not there.
#[derive(Debug)]
pub(super) enum Work {
    /// It is being made.
    Running,
    /// It could not be made: why, and when that was.
    Failed(String, Instant),
}

/// A file beside the bases.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    links: u64,
    /// For how long nobody has linked or let go of it.
    unchanged: Duration,
}

/// Which of the files in a disk's directory of bases are not needed any more.
fn plan_sweep<'a>(
    entries: &'a [Entry],
    wanted: &BTreeSet<String>,
    making: &BTreeSet<String>,
) -> Vec<&'a str> {
    let needless = |entry: &&Entry| {
        if let Some(whole) = of_half_made(&entry.name) {
            return !making.contains(whole);
        }
        let Some(sum) = entry.name.strip_suffix(SUFFIX) else { return false };
        !wanted.contains(sum) || (entry.links <= 1 && entry.unchanged > UNUSED)
    };
    entries.iter().filter(needless).map(|entry| entry.name.as_str()).collect()
}

fn entries(dir: &Path) -> Vec<Entry> {
    let now = Timestamp::now().as_second();
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let look = |file: std::fs::DirEntry| {
        let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let unchanged = Duration::from_secs(u64::try_from(now - meta.ctime()).unwrap_or(0));
        Some(Entry { name: file.file_name().into_string().ok()?, links: meta.nlink(), unchanged })
    };
    files.filter_map(look).collect()
}

/// A checksum is part of a file's name; what an object says may be anything.
fn is_sum(text: &str) -> bool {
    text.len() == 128 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Starts the loop that takes away what is not needed.
pub(super) fn spawn(shared: &Arc<Replicated>) {
    let this = shared.clone();
    shared.group.spawn(async move {
        this.image_objects.ready().await;
        this.volumes.ready().await;
        let mut changes = this.images.changes();
        loop {
            let swept = this.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || swept.sweep_bases()).await {
                warn!(%error, "bases could not be looked through");
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    });
}

impl Replicated {
    /// What a first replica of a volume begins as, on a disk of this node. Begins to make it if it is not there.
    pub(super) fn beginning(self: &Arc<Self>, volume: &Volume, disk: &Path) -> Beginning {
        let Some(sum) = volume.annotations().get(BASE) else { return Beginning::Empty };
        match self.base(volume, disk, sum) {
            Ok(file) => {
                let created = volume.creation_timestamp().map_or(0, |time| time.0.as_second());
                Beginning::Over(Base { file, created: u64::try_from(created).unwrap_or(0) })
            }
            Err(why) => Beginning::Waits(why),
        }
    }

    /// The base, or what it waits for.
    fn base(self: &Arc<Self>, volume: &Volume, disk: &Path, sum: &str) -> Result<PathBuf, String> {
        if !is_sum(sum) {
            return Err(format!("{BASE} of the volume is no SHA-512: {sum:?}"));
        }
        let target = directory(disk).join(format!("{sum}{SUFFIX}"));
        let size: u64 = volume.spec.size.parse().unwrap_or(0);
        if let Ok(there) = std::fs::metadata(&target) {
            return fits(there.len(), size).map(|()| target);
        }
        let content = volume.annotations().get(CONTENT).and_then(|what| what.strip_prefix("image:"));
        let name = content.ok_or("the volume does not say which image it begins as")?;
        let waits = format!("image {name} is being made ready on node {}", self.node);
        match Self::lock(&self.bases).get(&target) {
            Some(Work::Running) => return Err(waits),
            Some(Work::Failed(why, at)) if at.elapsed() < AGAIN => return Err(why.clone()),
            _ => {}
        }
        let (namespace, image) = name.split_once('/').unwrap_or(("default", name));
        let object = self.image_objects.get(&ObjectKey::new(namespace, image));
        let object = object.ok_or_else(|| format!("image {name} does not exist"))?;
        let (kept, source) = match self.images.local(&object) {
            Local::Here { kept, base } => (kept, base),
            Local::Coming(message) | Local::Missing(message) => return Err(message),
        };
        if kept.stored.sha512 != sum {
            return Err(format!(
                "image {name} is another one by now than when the volume was placed; delete the claim and make it anew"
            ));
        }
        fits(kept.stored.virtual_size, size)?;
        Self::lock(&self.bases).insert(target.clone(), Work::Running);
        let (this, told, of, name) = (self.clone(), target.clone(), volume.clone(), name.to_owned());
        self.group.spawn(async move {
            let turn = COPIES.acquire().await;
            // The file may be replaced before it is opened; then its record is, too.
            let same = || matches!(this.images.local(&object), Local::Here { kept: now, .. } if now == kept);
            let made = make(&source, kept.stored.format, &told, same).await;
            drop(turn);
            match made {
                Ok(bytes) => {
                    info!(image = name, bytes, base = %told.display(), "volumes of an image can begin here");
                    Self::lock(&this.bases).remove(&told);
                }
                Err(why) => {
                    let why = format!("image {name} cannot be made ready on node {}: {why}", this.node);
                    warn!("{why}");
                    this.events.record(&of, Severity::Warning, "BaseFailed", why.clone());
                    Self::lock(&this.bases).insert(told, Work::Failed(why, Instant::now()));
                }
            }
            this.wake_all();
        });
        Err(waits)
    }

    /// Takes away what no image and no volume that is being made needs.
    fn sweep_bases(&self) {
        let images = self.image_objects.list();
        let mut wanted: BTreeSet<String> =
            images.iter().filter_map(|image| image.annotations().get(IMAGE_SUM).cloned()).collect();
        let volumes = self.volumes.list();
        let begun = volumes.iter().filter(|volume| !volume.annotations().contains_key(FILLED));
        wanted.extend(begun.filter_map(|volume| volume.annotations().get(BASE).cloned()));
        for disk in self.disks.borrow().clone() {
            let dir = directory(&disk);
            // Looked at first: what begins to be made after that is not among them.
            let found = entries(&dir);
            let making: BTreeSet<String> = running(&Self::lock(&self.bases), &dir);
            for name in plan_sweep(&found, &wanted, &making) {
                match std::fs::remove_file(dir.join(name)) {
                    Ok(()) => info!(base = name, disk = %disk.display(), "no image needs it any more"),
                    Err(error) => warn!(base = name, disk = %disk.display(), %error, "it cannot be removed"),
                }
            }
        }
        Self::lock(&self.bases).retain(|_, work| match work {
            Work::Running => true,
            Work::Failed(_, at) => at.elapsed() < UNUSED,
        });
    }
}

/// Names of the bases that are being made in a directory.
fn running(work: &BTreeMap<PathBuf, Work>, dir: &Path) -> BTreeSet<String> {
    let here = work.iter().filter(|(at, work)| at.parent() == Some(dir) && matches!(work, Work::Running));
    here.filter_map(|(at, _)| Some(at.file_name()?.to_string_lossy().into_owned())).collect()
}

fn fits(image: u64, volume: u64) -> Result<(), String> {
    if image <= volume {
        return Ok(());
    }
    Err(format!("the image has {}, the volume only {}", human_bytes(image), human_bytes(volume)))
}

/// What `qemu-img measure` says.
#[derive(Deserialize)]
struct Measured {
    required: u64,
}

/// Makes a base of an image's file, if that is the same one afterwards; says how many bytes it takes.
async fn make(source: &Path, format: Format, target: &Path, same: impl Fn() -> bool) -> Result<u64, String> {
    let dir = target.parent().unwrap_or(Path::new(".")).to_path_buf();
    let half = half_made(target);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| format!("creating {}: {error}", dir.display()))?;
    let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
    // Guests' writes go to the same disk: it is not filled for this. As qcow2, because for a raw file it counts what takes no space, too.
    let mut measure = words(&["measure", "--output=json", "-f", name_of(format), "-O", "qcow2"]);
    measure.push(source.into());
    let said: Measured = serde_json::from_slice(&qemu_img(measure).await?)
        .map_err(|error| format!("qemu-img measure says something else: {error}"))?;
    let stat = rustix::fs::statvfs(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(keep_free_at(&dir));
    if said.required > free {
        let (needs, has) = (human_bytes(said.required), human_bytes(free));
        return Err(format!("it needs {needs}, and {has} can be used in {}", dir.display()));
    }
    // What was left of an attempt may still be written to by whoever made it: that is another file from now on.
    match std::fs::remove_file(&half) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("removing {}: {error}", half.display()));
        }
        _ => {}
    }
    let mut convert = words(&["convert", "-S", "4k", "-f", name_of(format), "-O", "raw"]);
    convert.extend([source.into(), half.clone().into()]);
    let made = match qemu_img(convert).await {
        Ok(_) if !same() => Err("its file was replaced meanwhile".to_owned()),
        Ok(_) => {
            let target = target.to_path_buf();
            let finished = tokio::task::spawn_blocking(move || finish(&target)).await;
            let explained = finished.map(|done| done.map_err(|error| sheaf_image::explain(&error)));
            explained.unwrap_or_else(|error| Err(error.to_string()))
        }
        Err(why) => Err(why),
    };
    if made.is_err() {
        // If it stays, it is swept later.
        let _ = std::fs::remove_file(&half);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_needs_goes() {
        let entry = |name: &str, links: u64, minutes: u64| Entry {
            name: name.into(),
            links,
            unchanged: Duration::from_secs(minutes * 60),
        };
        let found = [
            entry("used.img", 3, 1000),
            entry("fresh.img", 1, 5),
            entry("unused.img", 1, 61),
            entry("gone.img", 4, 1),
            entry("now.img~making", 1, 0),
            entry("before.img~making", 1, 0),
            entry("somebody's", 1, 1000),
        ];
        let wanted = ["used", "fresh", "unused", "now", "before"].map(str::to_owned).into();
        let making = ["now.img".to_owned()].into();
        assert_eq!(plan_sweep(&found, &wanted, &making), ["unused.img", "gone.img", "before.img~making"]);
        let work = [("/d/bases/a.img", true), ("/d/bases/b.img", false), ("/e/bases/c.img", true)];
        let work = work.map(|(path, runs)| {
            let failed = || Work::Failed(String::new(), Instant::now());
            (PathBuf::from(path), if runs { Work::Running } else { failed() })
        });
        assert_eq!(running(&work.into(), Path::new("/d/bases")), ["a.img".to_owned()].into());
    }

    #[test]
    fn only_a_checksum_becomes_a_name() {
        assert!(is_sum(&"0a".repeat(64)));
        for bad in ["", "../../etc", &"0A".repeat(64), &"0a".repeat(63)] {
            assert!(!is_sum(bad), "{bad:?}");
        }
        assert_eq!(fits(1 << 30, 1 << 30), Ok(()));
        assert_eq!(fits(3 << 30, 1 << 30), Err("the image has 3.0 GiB, the volume only 1.0 GiB".into()));
    }

    #[tokio::test]
    async fn a_base_is_made_of_any_image_and_what_fails_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let raw = dir.path().join("raw");
        let mut bytes = vec![0; (1 << 20) + 512];
        bytes[300_000..300_100].fill(7);
        std::fs::write(&raw, &bytes).expect("writes");
        let qcow2 = dir.path().join("qcow2");
        let args = ["convert", "-c", "-f", "raw", "-O", "qcow2"].map(OsString::from);
        qemu_img(args.into_iter().chain([raw.clone().into(), qcow2.clone().into()])).await.expect("converts");
        let mut made = Vec::new();
        for (source, format) in [(&raw, Format::Raw), (&qcow2, Format::Qcow2)] {
            let target = directory(dir.path()).join(format!("{}.img", name_of(format)));
            assert_eq!(make(source, format, &target, || true).await, Ok(4096));
            made.push(std::fs::read(&target).expect("reads"));
        }
        assert!(made[0] == made[1] && made[0][..bytes.len()] == bytes && made[0].len() == (1 << 20) + 4096);
        let target = directory(dir.path()).join("bad.img");
        let failed = make(&raw, Format::Qcow2, &target, || true).await.expect_err("is no qcow2");
        assert!(failed.contains("qemu-img") && failed.contains("qcow2"), "{failed}");
        let failed = make(&raw, Format::Raw, &target, || false).await.expect_err("is another");
        assert!(failed.contains("replaced meanwhile"), "{failed}");
        let left: Vec<String> = entries(&directory(dir.path())).into_iter().map(|entry| entry.name).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
