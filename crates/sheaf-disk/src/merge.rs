//! Giving back the space of deleted snapshots, in bounded steps under a running volume.
//!
//! A deleted layer with one snapshot above it is *folded*: what the child has is copied into the parent's file, step by
//! step, while the child on top keeps every read as it was; then the parent's file takes the child's name in one
//! rename, with an [`Intent`] written before it, so that an interrupted merge is recognised by evidence. One directly
//! below the head is *pruned*: what the head hides is punched out; the rest stays until another snapshot is taken.
//! One that a clone shares (its file has more names than one) is left alone. The steps need only the files, so they
//! may run beside the owner's thread; beginning and ending are the owner's.

use std::sync::Arc;

use crate::chain::{INTENT_FILE, Intent};
use crate::fs::{Dir, Extent, File, Result, each_extent, replace};
use crate::names;
use crate::replica::ReplicaDir;

const BLOCK: u64 = 4096;
/// Bytes copied at a time within a step.
const CHUNK: u64 = 1 << 20;

/// How a layer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeKind {
    /// The child is folded into it, and it takes the child's name.
    Fold,
    /// What the head hides of it is punched out.
    Prune,
}

/// A merge under way.
#[derive(Debug)]
pub struct Merge<F> {
    /// How.
    pub kind: MergeKind,
    /// The deleted layer.
    pub parent: String,
    /// The one above it.
    pub child: String,
    parent_file: Arc<F>,
    child_file: Arc<F>,
    /// Nothing lies below: zeros need no space.
    lowest: bool,
    cursor: u64,
    end: u64,
}

impl<D: Dir> ReplicaDir<D> {
    /// Begins the next merge that is worth doing; deletes at once what nothing is above of. None: nothing to do.
    pub fn next_merge(&mut self) -> Result<Option<Merge<D::File>>> {
        loop {
            let leaf = self.removed().find(|name| self.tree.children(name).next().is_none());
            let Some(leaf) = leaf else { break };
            self.delete_leaf(&leaf)?;
        }
        for parent in self.removed().collect::<Vec<_>>() {
            let children: Vec<String> = self.tree.children(&parent).map(str::to_owned).collect();
            let [child] = &children[..] else { continue };
            if self.dir.stat(&parent)?.is_none_or(|stat| stat.links > 1) {
                continue;
            }
            let kind = if *child == self.tree.volume.head { MergeKind::Prune } else { MergeKind::Fold };
            if kind == MergeKind::Prune && self.pruned.as_ref() == Some(&(parent.clone(), child.clone())) {
                continue;
            }
            return self.begin(kind, parent, child).map(Some);
        }
        Ok(None)
    }

    fn removed(&self) -> impl Iterator<Item = String> + use<'_, D> {
        self.tree.images.iter().filter(|(_, meta)| meta.removed).map(|(name, _)| name.clone())
    }

    fn begin(&self, kind: MergeKind, parent: String, child: &str) -> Result<Merge<D::File>> {
        let parent_file = self.dir.open(&parent, true)?;
        let child_file = match self.chain.iter().find(|layer| layer.name == child) {
            Some(layer) => Arc::clone(&layer.file),
            None => Arc::new(self.dir.open(child, false)?),
        };
        let end = child_file.len()?;
        if kind == MergeKind::Fold && parent_file.len()? < end {
            parent_file.set_len(end)?;
        }
        let below = self.tree.images.get(&parent).map(|meta| meta.parent.clone()).unwrap_or_default();
        Ok(Merge {
            kind,
            parent,
            child: child.to_owned(),
            parent_file: Arc::new(parent_file),
            child_file,
            lowest: below.is_empty() && self.tree.volume.backing_file_path.is_empty(),
            cursor: 0,
            end,
        })
    }

    fn delete_leaf(&mut self, name: &str) -> Result<()> {
        // The image first, durably: metadata alone is known to be a rest of this; an image alone would not be.
        self.dir.unlink(name)?;
        self.dir.sync()?;
        self.tree.images.remove(name);
        replace(&self.dir, crate::chain::COPY_FILE, &self.tree.encode())?;
        self.dir.unlink(&names::meta_of(name))?;
        self.dir.unlink(&names::checksum_of(name))?;
        self.dir.sync()
    }

    /// Ends a merge whose steps are all done. If the shape has changed meanwhile so that it does not apply any more,
    /// nothing happens: the next one is begun by what is there then.
    pub fn finish_merge(&mut self, merge: Merge<D::File>) -> Result<()> {
        merge.parent_file.sync()?;
        let Merge { kind, parent, child, parent_file, .. } = merge;
        let applies = self.tree.images.get(&parent).is_some_and(|meta| meta.removed)
            && self.tree.children(&parent).eq([child.as_str()]);
        if !applies {
            return Ok(());
        }
        if kind == MergeKind::Prune {
            self.pruned = Some((parent, child));
            return Ok(());
        }
        let stat = parent_file.stat()?;
        if stat.links > 1 {
            return Ok(());
        }
        drop(parent_file);
        let intent = Intent { parent: parent.clone(), child: child.clone(), inode: stat.inode };
        replace(&self.dir, INTENT_FILE, &intent.encode())?;
        self.dir.rename(&parent, &child)?;
        self.dir.sync()?;
        let below = self.tree.images.remove(&parent).map(|meta| meta.parent).unwrap_or_default();
        let mut meta = self.tree.images.get(&child).cloned().unwrap_or_default();
        meta.parent = below;
        self.commit_image(&child, meta)?;
        for stale in [names::meta_of(&parent), names::checksum_of(&parent), names::checksum_of(&child)] {
            self.dir.unlink(&stale)?;
        }
        self.dir.sync()?;
        self.dir.unlink(INTENT_FILE)?;
        self.dir.sync()?;
        // The child's name is another file now.
        self.chain.retain(|layer| layer.name != child && layer.name != parent);
        self.reopen_chain()
    }
}

impl<F: File> Merge<F> {
    /// How far it is: bytes done, bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.cursor, self.end)
    }

    /// Does about `budget` bytes more. True when all steps are done.
    pub fn step(&mut self, budget: u64) -> Result<bool> {
        match self.kind {
            MergeKind::Fold => self.fold(budget),
            MergeKind::Prune => self.prune(budget),
        }
    }

    fn fold(&mut self, budget: u64) -> Result<bool> {
        let mut left = budget.max(CHUNK);
        while self.cursor < self.end && left > 0 {
            let Some(extent) =
                self.child_file.extents(self.cursor, self.end - self.cursor, 1)?.first().copied()
            else {
                self.cursor = self.end;
                break;
            };
            let from = extent.start / BLOCK * BLOCK;
            let to = (extent.start + extent.len)
                .next_multiple_of(BLOCK)
                .min(from + CHUNK.min(left.next_multiple_of(BLOCK)));
            self.fold_range(Extent { start: from, len: to - from, ..extent })?;
            left = left.saturating_sub(to - from);
            self.cursor = to;
        }
        Ok(self.cursor >= self.end)
    }

    fn fold_range(&self, extent: Extent) -> Result<()> {
        let mut bytes = vec![0; extent.len as usize];
        if !extent.unwritten {
            self.child_file.read_at(extent.start, &mut bytes)?;
        }
        if !self.lowest {
            return self.parent_file.write_at(extent.start, &bytes);
        }
        // Below the lowest layer everything is zero: zeros become holes again.
        let mut at = 0;
        let zero = |at: usize| bytes[at..at + BLOCK as usize].iter().all(|byte| *byte == 0);
        while at < bytes.len() {
            let is_zero = zero(at);
            let mut end = at + BLOCK as usize;
            while end < bytes.len() && zero(end) == is_zero {
                end += BLOCK as usize;
            }
            let offset = extent.start + at as u64;
            if is_zero {
                self.parent_file.punch(offset, (end - at) as u64)?;
            } else {
                self.parent_file.write_at(offset, &bytes[at..end])?;
            }
            at = end;
        }
        Ok(())
    }

    fn prune(&mut self, budget: u64) -> Result<bool> {
        let stop = self.end.min(self.cursor.saturating_add(budget.max(CHUNK) * 64));
        let mut hidden = Vec::new();
        each_extent(&*self.child_file, self.cursor, stop - self.cursor, |extent| {
            // Storage that was not written to yet belongs to a write under way, which may still not happen.
            if !extent.unwritten {
                hidden.push(extent);
            }
            Ok(())
        })?;
        if !hidden.is_empty() {
            // What hides must be durable before what is hidden goes.
            self.child_file.sync()?;
            for extent in hidden {
                let from = extent.start.next_multiple_of(BLOCK);
                let to = (extent.start + extent.len) / BLOCK * BLOCK;
                if from < to {
                    self.parent_file.punch(from, to - from)?;
                }
            }
        }
        self.cursor = stop;
        Ok(self.cursor >= self.end)
    }
}
