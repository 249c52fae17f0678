//! What is on a disk, and whose belief it is; read without changing or locking anything.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sheaf_block_core::membership::Ledger;
use sheaf_disk::chain::plan_open;
use sheaf_disk::crc64::Crc64;
use sheaf_disk::fs::{Dir, File, each_extent};
use sheaf_disk::real::RealDir;
use sheaf_disk::replica::{Layer, list, read_layers};

use crate::api::{DamagedAt, Digest, show_volume};
use crate::damaged;

/// A layer, as its files say.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// File name.
    pub file: String,
    /// File name of the layer below.
    pub parent: String,
    /// In the chain of the head.
    pub live: bool,
    /// Deleted, and waiting to be merged away.
    pub removed: bool,
    /// When.
    pub created: String,
    /// Its length.
    pub bytes: u64,
    /// Space that it takes.
    pub allocated: u64,
    /// Prepared but never written; reads as zeros and hides what is below.
    pub unwritten: u64,
    /// Names that the file has; more than one: shared with a clone.
    pub links: u64,
}

/// What the replica believes.
#[derive(Clone, Debug, Serialize)]
pub struct Belief {
    /// The volume.
    pub volume: String,
    /// Itself.
    pub replica: u32,
    /// Bytes it has promised.
    pub bytes: u64,
    /// The newest membership record that it knows to be decided.
    pub version: u64,
    /// Who is in sync by that record.
    pub in_sync: Vec<u32>,
    /// The newest record in which it knows itself in sync.
    pub clean_until: u64,
    /// The epoch it serves; lower ones are refused.
    pub promised: String,
    /// Its vote for the next record, not known to be decided.
    pub vote: Option<Vec<u32>>,
    /// It may have lost writes that were not synced.
    pub suspect: bool,
    /// Segments whose writes are not known to be everywhere.
    pub active_segments: usize,
    /// Layers that are not complete: it is being rebuilt.
    pub partial: usize,
    /// How often it was opened.
    pub opened: u32,
    /// Bytes that cannot be read, and of which no replica had a good copy.
    pub damaged_bytes: u64,
    /// Where they are: the first of the ranges.
    pub damaged: Vec<DamagedAt>,
}

/// What is in a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which.
    pub path: PathBuf,
    /// Why it would not open, if that is so.
    pub refused: Option<String>,
    /// What opening would mend, and what a person should know.
    pub notes: Vec<String>,
    /// Bytes of the volume, by volume.meta.
    pub bytes: u64,
    /// Not closed properly, by volume.meta.
    pub dirty: bool,
    /// A rebuild by Longhorn has not ended, by volume.meta.
    pub rebuilding: bool,
    /// All layers.
    pub layers: Vec<LayerReport>,
    /// The replica's own belief; none: the directory is not ours.
    pub belief: Option<Belief>,
}

/// Looks at a directory.
pub fn look(path: &Path) -> Result<Report, String> {
    let explain = |error: sheaf_disk::fs::DiskError| error.explain();
    let dir = RealDir::open_shared(path).map_err(explain)?;
    let listing = list(&dir).map_err(explain)?;
    let plan = plan_open(&listing);
    let mut report = Report {
        path: path.to_path_buf(),
        refused: plan.as_ref().err().cloned(),
        notes: vec![],
        bytes: 0,
        dirty: false,
        rebuilding: false,
        layers: vec![],
        belief: None,
    };
    if let Ok(plan) = &plan {
        report.notes = plan.notes.clone();
        report.notes.extend(plan.mends.iter().map(|mend| format!("opening would do: {mend:?}")));
        report.bytes = plan.tree.volume.size;
        report.dirty = plan.tree.volume.dirty;
        report.rebuilding = plan.tree.volume.rebuilding;
    }
    for (name, stat) in &listing.images {
        let meta = listing.metas.get(name).and_then(|meta| meta.as_ref().ok()).cloned().unwrap_or_default();
        let mut unwritten = 0;
        let file = dir.open(name, false).map_err(explain)?;
        each_extent(&file, 0, stat.bytes, |extent| {
            unwritten += if extent.unwritten { extent.len } else { 0 };
            Ok(())
        })
        .map_err(explain)?;
        report.layers.push(LayerReport {
            file: name.clone(),
            parent: meta.parent,
            live: plan.as_ref().is_ok_and(|plan| plan.chain.contains(name)),
            removed: meta.removed,
            created: meta.created,
            bytes: stat.bytes,
            allocated: stat.allocated,
            unwritten,
            links: stat.links,
        });
    }
    match sheaf_disk::state::load(&dir) {
        Ok(None) => {}
        Ok(Some((meta, _))) => {
            let Ledger { promised, committed, accepted } = meta.ledger;
            report.belief = Some(Belief {
                volume: show_volume(meta.volume),
                replica: meta.replica.0,
                bytes: meta.structure.blocks * 4096,
                partial: meta.partial.len(),
                version: committed.version.0,
                in_sync: committed.in_sync.iter().map(|id| id.0).collect(),
                clean_until: meta.clean_until.0,
                promised: promised.to_string(),
                vote: accepted.map(|vote| vote.in_sync.iter().map(|id| id.0).collect()),
                suspect: meta.suspect,
                active_segments: meta.active.len(),
                opened: meta.opened,
                damaged_bytes: damaged::bytes(&meta),
                damaged: damaged::ranges(&meta),
            });
        }
        Err(error) => drop(report.refused.get_or_insert(error.explain())),
    }
    Ok(report)
}

/// Checksums of a directory's content, through its live chain. What is written meanwhile may be seen or not.
pub fn digest(path: &Path) -> Result<Digest, String> {
    let explain = |error: sheaf_disk::fs::DiskError| error.explain();
    let dir = RealDir::open_shared(path).map_err(explain)?;
    let plan = plan_open(&list(&dir).map_err(explain)?)?;
    let backing = &plan.tree.volume.backing_file_path;
    let mut layers = Vec::new();
    if !backing.is_empty() {
        let file = dir.open_path(backing).map_err(explain)?;
        layers.push(Layer { name: backing.clone(), file: std::sync::Arc::new(file), locked: false });
    }
    for name in plan.chain {
        let file = dir.open(&name, false).map_err(explain)?;
        layers.push(Layer { name, file: std::sync::Arc::new(file), locked: false });
    }
    let bytes = plan.tree.volume.size;
    let chunk = (bytes / 4096).next_multiple_of(1 << 20).max(1 << 20);
    let mut sums = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + chunk);
        let mut crc = Crc64::default();
        while at < end {
            let len = (end - at).min(buffer.len() as u64) as usize;
            // Holes through all layers cost nothing.
            let mut any = false;
            for layer in &layers {
                any |= !layer.file.extents(at, len as u64, 1).map_err(explain)?.is_empty();
            }
            if any {
                read_layers(&layers, at / 4096, &mut buffer[..len]).map_err(explain)?;
                crc.update(&buffer[..len]);
            } else {
                crc.zeros(len as u64);
            }
            at += len as u64;
        }
        sums.push(crc.finish());
    }
    Ok(Digest { chunk, sums })
}
