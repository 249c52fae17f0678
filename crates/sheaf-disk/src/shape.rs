//! Changes of a directory's shape: marks, snapshots, revert, expansion, layers that go, clones. Each in the order that
//! decision note 0018 gives, with a sync before each step that relies on the one before. After an error it is not known
//! which state is on the disk: the directory must be opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::chain::{COPY_FILE, Tree};
use crate::fs::{Dir, DiskError, File, Result, replace};
use crate::meta::{ImageMeta, VolumeMeta};
use crate::names::{self, Name};
use crate::replica::{Layer, ReplicaDir, SnapshotInfo};

const BLOCK: u64 = 4096;

impl<D: Dir> ReplicaDir<D> {
    /// Writes `volume.meta` and, before it, the copy. Durable when it returns.
    pub(crate) fn commit(&mut self, tree: Tree) -> Result<()> {
        replace(&self.dir, COPY_FILE, &tree.encode())?;
        replace(&self.dir, names::VOLUME_META, &tree.volume.encode())?;
        self.tree = tree;
        Ok(())
    }

    /// Writes a layer's metadata and the copy. Durable when it returns.
    pub(crate) fn commit_image(&mut self, name: &str, meta: ImageMeta) -> Result<()> {
        replace(&self.dir, &names::meta_of(name), &meta.encode())?;
        self.tree.images.insert(name.to_owned(), meta);
        replace(&self.dir, COPY_FILE, &self.tree.encode())
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

    /// A new, empty head above `parent`, durable but not yet the volume's.
    fn new_head(&self, parent: &str, created: &str) -> Result<(String, ImageMeta, D::File)> {
        let current = names::head_number(&self.tree.volume.head).unwrap_or(0);
        let names_there = self.dir.list()?;
        let number = names::next_head(current, |number| names_there.contains(&names::head(number)));
        let name = names::head(number);
        let file = self.dir.create(&name, self.bytes())?;
        file.sync()?;
        let meta = ImageMeta {
            name: name.clone(),
            parent: parent.into(),
            created: created.into(),
            ..ImageMeta::default()
        };
        replace(&self.dir, &names::meta_of(&name), &meta.encode())?;
        Ok((name, meta, file))
    }

    /// The head becomes a snapshot, and a new head is put above it. No write may be under way. A snapshot with this
    /// name and these properties that is there already, directly below the head, is no error: the call was repeated.
    pub fn snapshot(&mut self, info: &SnapshotInfo) -> Result<()> {
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
        self.sync()?;
        let old = self.tree.volume.head.clone();
        let (new, new_meta, file) = self.new_head(&image, &info.created)?;
        for stale in [names::meta_of(&image), names::checksum_of(&image), image.clone()] {
            self.dir.unlink(&stale)?;
        }
        self.dir.link(&old, &image)?;
        let below = self.tree.images.get(&old).cloned().unwrap_or_default();
        let meta = ImageMeta {
            name: old.clone(),
            created: info.created.clone(),
            user_created: info.user_created,
            labels: info.labels.clone(),
            ..below
        };
        // Syncs the directory: the snapshot's names and the new head's are durable before volume.meta names them.
        replace(&self.dir, &names::meta_of(&image), &meta.encode())?;
        let mut tree = self.tree.clone();
        tree.images.remove(&old);
        tree.images.insert(image.clone(), meta);
        tree.images.insert(new.clone(), new_meta);
        tree.volume.head = new.clone();
        tree.volume.parent = image.clone();
        tree.volume.dirty = true;
        self.commit(tree)?;
        self.drop_head(&old)?;
        if let Some(layer) = self.chain.last_mut() {
            layer.name = image;
        }
        self.chain.push(Layer { name: new, file: Arc::new(file), locked: true });
        // Pages stay true: what the old head has keeps its index, now a snapshot's. A chain of one had no pages.
        Ok(())
    }

    /// Takes an old head's names away; volume.meta does not name it any more.
    fn drop_head(&self, head: &str) -> Result<()> {
        self.dir.unlink(head)?;
        self.dir.unlink(&names::meta_of(head))?;
        self.dir.sync()
    }

    /// The volume's content becomes what it was at a snapshot. No request may be under way.
    pub fn revert(&mut self, snapshot: &str, created: &str) -> Result<()> {
        let image = names::snapshot(snapshot);
        match self.tree.images.get(&image) {
            None => return self.refuse(format!("there is no snapshot {snapshot}")),
            Some(meta) if meta.removed => {
                return self.refuse(format!("snapshot {snapshot} is being deleted"));
            }
            Some(_) => {}
        }
        let mut chain = self.tree.ancestry(&image).or_else(|reason| self.refuse(reason))?;
        let old = self.tree.volume.head.clone();
        let (new, meta, _file) = self.new_head(&image, created)?;
        let mut tree = self.tree.clone();
        tree.images.remove(&old);
        tree.images.insert(new.clone(), meta);
        tree.volume.head = new.clone();
        tree.volume.parent = image;
        tree.volume.dirty = true;
        self.commit(tree)?;
        self.drop_head(&old)?;
        drop(_file);
        chain.reverse();
        chain.push(new);
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
    /// does not depend on its size: layers are shared, and never changed again by either.
    pub fn clone_to(&self, snapshot: &str, target: D, created: &str) -> Result<ReplicaDir<D>> {
        let image = names::snapshot(snapshot);
        match self.tree.images.get(&image) {
            None => return self.refuse(format!("there is no snapshot {snapshot}")),
            Some(meta) if meta.removed => {
                return self.refuse(format!("snapshot {snapshot} is being deleted"));
            }
            Some(_) => {}
        }
        let chain = self.tree.ancestry(&image).or_else(|reason| self.refuse(reason))?;
        if let Some(merging) =
            chain.iter().find(|name| self.tree.images.get(*name).is_some_and(|meta| meta.removed))
        {
            return self.refuse(format!(
                "layer {merging} below snapshot {snapshot} is being merged away; wait until it is folded"
            ));
        }
        if let Some(name) =
            target.list()?.into_iter().find(|name| !matches!(names::parse(name), Name::Ours(_)))
        {
            return Err(DiskError::Refused {
                path: target.path(),
                reason: format!("it is not empty: {name} is there"),
            });
        }
        let links: Vec<(String, String)> = chain.iter().map(|name| (name.clone(), name.clone())).collect();
        target.adopt(&self.dir, &links)?;
        let mut images = BTreeMap::new();
        for name in &chain {
            let meta = self.tree.images.get(name).cloned().unwrap_or_default();
            replace(&target, &names::meta_of(name), &meta.encode())?;
            images.insert(name.clone(), meta);
        }
        let head = names::head(0);
        target.create(&head, self.bytes())?.sync()?;
        let meta = ImageMeta {
            name: head.clone(),
            parent: image.clone(),
            created: created.into(),
            ..ImageMeta::default()
        };
        replace(&target, &names::meta_of(&head), &meta.encode())?;
        images.insert(head.clone(), meta);
        let volume =
            VolumeMeta { head, parent: image, dirty: false, rebuilding: false, ..self.tree.volume.clone() };
        let tree = Tree { volume, images };
        replace(&target, COPY_FILE, &tree.encode())?;
        replace(&target, names::VOLUME_META, &tree.volume.encode())?;
        ReplicaDir::open(target)
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
