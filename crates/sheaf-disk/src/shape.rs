//! Changes of a directory's shape: marks, snapshots, revert, expansion, layers that go, clones. Each in the order that
//! decision note 0018 gives, with a sync before each step that relies on the one before. After an error it is not known
//! which state is on the disk: the directory must be opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::chain::{COPY_FILE, Tree};
use crate::fs::{Dir, DiskError, File, Result, replace, replace_together, temporary};
use crate::layers::{INTENT_FILE, Intent};
use crate::meta::{ImageMeta, VolumeMeta};
use crate::names;
use crate::replica::{Layer, ReplicaDir, SnapshotInfo};

const BLOCK: u64 = 4096;

/// A head that takes the place of another.
struct NewHead<'a> {
    /// What is being done, if somebody wants to know it after an interruption.
    intent: Option<&'a Intent>,
    /// What the old head becomes.
    snapshot: Option<(String, ImageMeta)>,
    head: (String, ImageMeta),
    tree: Tree,
}

impl<D: Dir> ReplicaDir<D> {
    /// Writes `volume.meta` and the copy. Durable when it returns.
    pub(crate) fn commit(&mut self, tree: Tree) -> Result<()> {
        let files =
            vec![(COPY_FILE.into(), tree.encode()), (names::VOLUME_META.into(), tree.volume.encode())];
        replace_together(&self.dir, files)?;
        self.tree = tree;
        Ok(())
    }

    /// Writes a layer's metadata and the copy. Durable when it returns.
    pub(crate) fn commit_image(&mut self, name: &str, meta: ImageMeta) -> Result<()> {
        let bytes = meta.encode();
        self.tree.images.insert(name.to_owned(), meta);
        let files = vec![(names::meta_of(name), bytes), (COPY_FILE.into(), self.tree.encode())];
        replace_together(&self.dir, files)
    }

    /// Marks the directory as being written to, or as closed.
    pub fn set_dirty(&mut self, dirty: bool) -> Result<()> {
        if !dirty {
            self.sync()?;
        }
        if self.tree.volume.dirty == dirty {
            return Ok(());
        }
        let mut tree = self.tree.clone();
        tree.volume.dirty = dirty;
        self.commit(tree)
    }

    /// Marks the directory as one that must not be read from, or takes the mark away.
    pub fn set_rebuilding(&mut self, rebuilding: bool) -> Result<()> {
        let mut tree = self.tree.clone();
        tree.volume.rebuilding = rebuilding;
        self.commit(tree)
    }

    /// A new, empty head above `parent`: its name and metadata.
    fn next_head(&self, parent: &str, created: &str) -> Result<(String, ImageMeta)> {
        let current = names::head_number(&self.tree.volume.head).unwrap_or(0);
        let names_there = self.dir.list()?;
        let number = names::next_head(current, |number| names_there.contains(&names::head(number)));
        let name = names::head(number);
        let meta = ImageMeta {
            name: name.clone(),
            parent: parent.into(),
            created: created.into(),
            ..ImageMeta::default()
        };
        Ok((name, meta))
    }

    /// Puts a new head in the place of the old one, with as few waits for the disk as there are things that rely on each other:
    ///
    /// 1. all small files, and the head, under names that nothing relies on, together;
    /// 2. what is being done, the snapshot's names if the old head becomes one, then the names;
    /// 3. `volume.meta` and the copy, then the names.
    ///
    /// The old head's names go without a wait: whoever finds them takes them away.
    fn change_head(&mut self, new: NewHead<'_>) -> Result<D::File> {
        let NewHead { intent, snapshot, head: (name, meta), mut tree } = new;
        let old = std::mem::replace(&mut tree.volume.head, name.clone());
        tree.volume.parent.clone_from(&meta.parent);
        tree.volume.dirty = true;
        tree.images.remove(&old);
        let mut small = vec![
            (names::meta_of(&name), meta.encode()),
            (temporary(COPY_FILE), vec![]),
            (temporary(names::VOLUME_META), tree.volume.encode()),
        ];
        tree.images.insert(name.clone(), meta);
        if let Some((image, meta)) = &snapshot {
            tree.images.insert(image.clone(), meta.clone());
            small.push((temporary(&names::meta_of(image)), meta.encode()));
        }
        small[1].1 = tree.encode();
        small.extend(intent.map(|intent| (temporary(INTENT_FILE), intent.encode())));
        let file = self.dir.create(&name, tree.volume.size)?;
        self.dir.write_together(&small, &[&file])?;
        if let Some((image, _)) = &snapshot {
            for stale in [names::meta_of(image), names::checksum_of(image), image.clone()] {
                self.dir.unlink(&stale)?;
            }
            self.dir.link(&old, image)?;
            let meta = names::meta_of(image);
            self.dir.rename(&temporary(&meta), &meta)?;
        }
        if intent.is_some() {
            self.dir.rename(&temporary(INTENT_FILE), INTENT_FILE)?;
        }
        self.dir.sync()?;
        for name in [COPY_FILE, names::VOLUME_META] {
            self.dir.rename(&temporary(name), name)?;
        }
        self.dir.sync()?;
        self.tree = tree;
        self.dir.unlink(&old)?;
        self.dir.unlink(&names::meta_of(&old))?;
        Ok(file)
    }

    /// The head becomes a snapshot, and a new head is put above it. No write may be under way. A snapshot with this
    /// name and these properties that is there already, directly below the head, is no error: the call was repeated.
    pub fn snapshot(&mut self, info: &SnapshotInfo) -> Result<()> {
        self.snapshot_as(info, None)
    }

    /// The same, saying durably what is being done. What was written before is durable already, or need not be.
    pub(crate) fn snapshot_as(&mut self, info: &SnapshotInfo, intent: Option<&Intent>) -> Result<()> {
        if !names::is_snapshot_name(&info.name) {
            return self.refuse(format!(
                "snapshot name {:?}: letters, digits, '_', '.' and '-', beginning with a letter or digit, 2 to 200 of them",
                info.name
            ));
        }
        let image = names::snapshot(&info.name);
        if let Some(meta) = self.tree.images.get(&image) {
            if self.tree.volume.parent == image && meta.created == info.created {
                return Ok(());
            }
            return self.refuse(format!("snapshot {} exists", info.name));
        }
        if self.chain.len() >= names::CHAIN_MAX || self.tree.images.len() > names::CHAIN_MAX {
            return self.refuse(format!(
                "it has {} layers, the most that are possible; delete snapshots",
                self.tree.images.len()
            ));
        }
        if intent.is_none() {
            self.sync()?;
        }
        let old = self.tree.volume.head.clone();
        let head = self.next_head(&image, &info.created)?;
        let below = self.tree.images.get(&old).cloned().unwrap_or_default();
        let meta = ImageMeta {
            name: old,
            created: info.created.clone(),
            user_created: info.user_created,
            labels: info.labels.clone(),
            ..below
        };
        let snapshot = Some((image.clone(), meta));
        let name = head.0.clone();
        let tree = self.tree.clone();
        let file = self.change_head(NewHead { intent, snapshot, head, tree })?;
        if let Some(layer) = self.chain.last_mut() {
            layer.name = image;
        }
        self.chain.push(Layer { name, file: Arc::new(file), locked: true });
        // Pages stay true: what the old head has keeps its index, now a snapshot's. A chain of one had no pages.
        Ok(())
    }

    /// The volume's content becomes what it was at a snapshot. No request may be under way.
    pub fn revert(&mut self, snapshot: &str, created: &str) -> Result<()> {
        self.revert_as(snapshot, created, None)
    }

    /// The same, saying durably what is being done.
    pub(crate) fn revert_as(&mut self, snapshot: &str, created: &str, intent: Option<&Intent>) -> Result<()> {
        let image = names::snapshot(snapshot);
        match self.tree.images.get(&image) {
            None => return self.refuse(format!("there is no snapshot {snapshot}")),
            Some(meta) if meta.removed => {
                return self.refuse(format!("snapshot {snapshot} is being deleted"));
            }
            Some(_) => {}
        }
        let mut chain = self.tree.ancestry(&image).or_else(|reason| self.refuse(reason))?;
        let head = self.next_head(&image, created)?;
        let name = head.0.clone();
        let tree = self.tree.clone();
        let file = self.change_head(NewHead { intent, snapshot: None, head, tree })?;
        self.chain.push(Layer { name: name.clone(), file: Arc::new(file), locked: true });
        chain.reverse();
        chain.push(name);
        self.open_chain(&chain)
    }

    /// Makes the volume larger; what is new reads as zeros. Repeating it is no error.
    pub fn expand(&mut self, bytes: u64) -> Result<()> {
        if bytes < self.bytes() {
            return self.refuse(format!("it has {} bytes and cannot shrink to {bytes}", self.bytes()));
        }
        if !bytes.is_multiple_of(BLOCK) {
            return self.refuse(format!("{bytes} bytes is not a multiple of {BLOCK}"));
        }
        if bytes == self.bytes() {
            return Ok(());
        }
        self.head().set_len(bytes)?;
        self.head().sync()?;
        let mut tree = self.tree.clone();
        tree.volume.size = bytes;
        self.commit(tree)?;
        // The last page may have been cut at the old end.
        self.map.clear();
        Ok(())
    }

    /// Gives up a snapshot: it is marked, and waits to be folded into what is above it.
    pub fn remove(&mut self, snapshot: &str) -> Result<()> {
        let image = names::snapshot(snapshot);
        let Some(meta) = self.tree.images.get(&image) else {
            return self.refuse(format!("there is no snapshot {snapshot}"));
        };
        if meta.removed {
            return Ok(());
        }
        let meta = ImageMeta { removed: true, ..meta.clone() };
        self.commit_image(&image, meta)
    }

    /// Takes a snapshot's layer out of the tree: what is above it stands on what was below. Its content must be in its
    /// child already. One that is not there is no error: the call was repeated.
    pub fn drop_layer(&mut self, snapshot: &str) -> Result<()> {
        let image = names::snapshot(snapshot);
        let Some(meta) = self.tree.images.get(&image).cloned() else { return Ok(()) };
        let children: Vec<String> = self.tree.children(&image).map(str::to_owned).collect();
        for child in &children {
            let mut above = self.tree.images.get(child).cloned().unwrap_or_default();
            above.parent = meta.parent.clone();
            self.commit_image(child, above)?;
        }
        if self.tree.volume.parent == image {
            let mut tree = self.tree.clone();
            tree.volume.parent = meta.parent.clone();
            self.commit(tree)?;
        }
        // The image first, durably: metadata alone is known to be a rest of this; an image alone would not be.
        self.dir.unlink(&image)?;
        self.dir.sync()?;
        self.tree.images.remove(&image);
        replace(&self.dir, COPY_FILE, &self.tree.encode())?;
        self.dir.unlink(&names::meta_of(&image))?;
        self.dir.unlink(&names::checksum_of(&image))?;
        self.dir.sync()?;
        self.reopen_chain()
    }

    /// Makes `target`, an empty directory of the same file system, a volume with the content of `snapshot`, in time that
    /// does not depend on its size: the layers' files are in both, and neither changes what they hold from then on. `more` are small files
    /// beside them. Durable, but for the directory's own name.
    pub fn clone_to(
        &self,
        snapshot: &str,
        target: &D,
        created: &str,
        more: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<()> {
        let image = names::snapshot(snapshot);
        match self.tree.images.get(&image) {
            None => return self.refuse(format!("there is no snapshot {snapshot}")),
            Some(meta) if meta.removed => {
                return self.refuse(format!("snapshot {snapshot} is being deleted"));
            }
            Some(_) => {}
        }
        let chain = self.tree.ancestry(&image).or_else(|reason| self.refuse(reason))?;
        if let Some(name) = target.list()?.first() {
            return Err(DiskError::Refused {
                path: target.path(),
                reason: format!("it is not empty: {name} is there"),
            });
        }
        // Metadata is never changed in place, so it is shared as well.
        let names = chain.iter().flat_map(|name| [name.clone(), names::meta_of(name)]);
        // This directory is open, so what it says of the machine's run is true of the clone, too.
        let boot = self.dir.stat(names::BOOT_FILE)?.map(|_| names::BOOT_FILE.to_owned());
        let names = names.chain(boot);
        let links: Vec<(String, String)> = names.map(|name| (name.clone(), name)).collect();
        target.adopt(&self.dir, &links)?;
        let name = names::head(0);
        let mut images: BTreeMap<String, ImageMeta> = chain
            .into_iter()
            .map(|name| {
                let meta = self.tree.images.get(&name).cloned().unwrap_or_default();
                (name, meta)
            })
            .collect();
        let head = ImageMeta {
            name: name.clone(),
            parent: image.clone(),
            created: created.into(),
            ..ImageMeta::default()
        };
        let mut small = vec![(names::meta_of(&name), head.encode())];
        images.insert(name.clone(), head);
        // It is about to be opened.
        let volume = VolumeMeta {
            head: name.clone(),
            parent: image,
            dirty: true,
            rebuilding: false,
            ..self.tree.volume.clone()
        };
        let tree = Tree { volume, images };
        small.extend(more);
        small.push((COPY_FILE.into(), tree.encode()));
        small.push((names::VOLUME_META.into(), tree.volume.encode()));
        let file = target.create(&name, self.bytes())?;
        target.write_together(&small, &[&file])?;
        target.sync()
    }

    /// Whether a layer's file is in other directories, too: linked clones read it.
    pub fn is_shared(&self, image: &str) -> Result<bool> {
        Ok(*image != self.tree.volume.head && self.dir.stat(image)?.is_some_and(|stat| stat.links > 1))
    }

    /// The layers under a snapshot, the lowest first, opened to read; for checks and exports.
    pub fn layers_of(&self, snapshot: &str) -> Result<Vec<Layer<D::File>>> {
        let image = names::snapshot(snapshot);
        let mut chain = self.tree.ancestry(&image).or_else(|reason| self.refuse(reason))?;
        chain.reverse();
        let mut layers = Vec::new();
        if let Some(backing) = self.chain.first().filter(|_| !self.tree.volume.backing_file_path.is_empty()) {
            layers.push(backing.clone());
        }
        for name in chain {
            layers.push(Layer { file: Arc::new(self.dir.open(&name, false)?), name, locked: false });
        }
        Ok(layers)
    }

    pub(crate) fn reopen_chain(&mut self) -> Result<()> {
        let mut chain = self.tree.ancestry(&self.tree.volume.head).or_else(|reason| self.refuse(reason))?;
        chain.reverse();
        self.open_chain(&chain)
    }
}
