//! One open replica directory: reading and changing its chain of layers, and the changes of its shape.
//!
//! The owner is one thread; nothing here is shared. Data goes through plans ([`Piece`], [`ZeroStep`]) that the caller
//! carries out with whatever engine it has, then says so ([`ReplicaDir::wrote`], [`ReplicaDir::zeroed`]); changes of
//! shape are carried out here, in the order that decision note 0018 gives, with a sync before each step that relies on
//! the one before. It is told nothing of epochs, sessions or other replicas.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::chain::{COPY_FILE, Listing, Mend, Opened, Tree, plan_open};
use crate::fs::{Dir, DiskError, Extent, File, Result, each_extent, replace};
use crate::map::{ChainMap, PAGE_BLOCKS};
use crate::meta::{ImageMeta, META_BYTES_MAX, VolumeMeta};
use crate::names::{self, Name};

const BLOCK: u64 = 4096;

/// A layer of the live chain, open.
#[derive(Debug)]
pub struct Layer<F> {
    /// Its file name; the backing file's path for that.
    pub name: String,
    /// Its file.
    pub file: Arc<F>,
    /// It was opened to be written to, and holds the file's lock: it cannot be opened so again.
    pub locked: bool,
}

impl<F> Clone for Layer<F> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), file: Arc::clone(&self.file), locked: self.locked }
    }
}

/// A part of a read: so many bytes at `offset` of the volume and of the layer's file.
#[derive(Debug)]
pub struct Piece<F> {
    /// Where to read.
    pub file: Arc<F>,
    /// From which byte.
    pub offset: u64,
    /// How many.
    pub len: usize,
    /// Which layer of the chain it is, from the lowest; zero, too, where no layer has it.
    pub layer: usize,
}

/// A part of making blocks zero.
#[derive(Debug, PartialEq, Eq)]
pub enum ZeroStep {
    /// Nothing is below: a hole in the head.
    Punch {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A layer below has something there: zeros hide it.
    Write {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl ZeroStep {
    /// The same blocks, where something may yet come to be below.
    pub fn hiding(self) -> Self {
        match self {
            Self::Punch { offset, len } | Self::Write { offset, len } => Self::Write { offset, len },
        }
    }
}

/// What a new directory is to hold.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// Bytes of the volume, a multiple of a block.
    pub bytes: u64,
    /// Path of a raw file below the chain; empty for none.
    pub backing: String,
    /// When, RFC 3339.
    pub created: String,
}

/// A file that is the lowest layer of a new directory, as a snapshot. It is linked, not copied, and not changed from then on.
#[derive(Debug)]
pub struct Base<'a, D> {
    /// The directory that it is in, on the same file system.
    pub dir: &'a D,
    /// Its name there.
    pub file: &'a str,
    /// The snapshot that it becomes.
    pub snapshot: SnapshotInfo,
}

impl<D: Dir> Base<'_, D> {
    /// The layer that it is to be: its file name and metadata. It may be shorter than the volume: what is behind it reads as zeros.
    fn layer(&self, volume: u64) -> Result<(String, ImageMeta)> {
        let refuse = |reason: String| Err(DiskError::Refused { path: self.dir.path(), reason });
        let Some(stat) = self.dir.stat(self.file)? else {
            return refuse(format!("there is no {}", self.file));
        };
        if stat.bytes == 0 || !stat.bytes.is_multiple_of(BLOCK) {
            return refuse(format!(
                "{} has {} bytes, not a multiple of {BLOCK} above 0",
                self.file, stat.bytes
            ));
        }
        if stat.bytes > volume {
            return refuse(format!("{} has {} bytes, the volume only {volume}", self.file, stat.bytes));
        }
        let SnapshotInfo { name, created, user_created, labels } = self.snapshot.clone();
        if !names::is_snapshot_name(&name) {
            return refuse(format!("{name:?} is no name of a snapshot"));
        }
        let image = names::snapshot(&name);
        let meta = ImageMeta { name: image.clone(), created, user_created, labels, ..ImageMeta::default() };
        Ok((image, meta))
    }
}

/// What a person says of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// When, RFC 3339; the same on all replicas.
    pub created: String,
    /// Whether a person asked for it.
    pub user_created: bool,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
}

/// An open directory.
#[derive(Debug)]
pub struct ReplicaDir<D: Dir> {
    pub(crate) dir: D,
    pub(crate) tree: Tree,
    /// The lowest first (the backing file, if there is one), the head last.
    pub(crate) chain: Vec<Layer<D::File>>,
    pub(crate) map: ChainMap,
    /// Layers and seals that were opened to be written to, by file name.
    pub(crate) writable: BTreeMap<String, Arc<D::File>>,
    /// Held while a file of seals is changed: many seals lie in one block.
    pub(crate) sealing: Arc<Mutex<()>>,
    notes: Vec<String>,
}

/// Reads everything that [`plan_open`] judges.
pub fn list<D: Dir>(dir: &D) -> Result<Listing> {
    let mut listing = Listing::default();
    for name in dir.list()? {
        match names::parse(&name) {
            Name::VolumeMeta => {
                listing.volume = dir.read(&name, META_BYTES_MAX + 1)?.map(|bytes| VolumeMeta::decode(&bytes));
            }
            Name::ImageMeta(image) => {
                if let Some(bytes) = dir.read(&name, META_BYTES_MAX + 1)? {
                    listing.metas.insert(image.to_owned(), ImageMeta::decode(&bytes));
                }
            }
            Name::Head(_) | Name::Snapshot(_) => {
                if let Some(stat) = dir.stat(&name)? {
                    listing.images.insert(name.clone(), stat);
                }
            }
            Name::Checksum(image) => drop(listing.checksums.insert(image.to_owned())),
            Name::Temporary => listing.temporary.push(name),
            Name::Restore => listing.restore = Some(name),
            Name::Ours(_) | Name::Other => {}
        }
    }
    // A damaged copy is as good as none: what it would help with is then refused.
    let ours = |name: &str| dir.read(name, crate::envelope::BODY_MAX);
    listing.copy = ours(COPY_FILE)?.and_then(|bytes| Tree::decode(&bytes).ok());
    Ok(listing)
}

impl<D: Dir> ReplicaDir<D> {
    pub(crate) fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(DiskError::Refused { path: self.dir.path(), reason: reason.into() })
    }

    /// Fills an empty directory, and opens it.
    pub fn create(dir: D, what: &Create) -> Result<Self> {
        Self::fill(&dir, what, None, [])?;
        Self::open(dir)
    }

    /// Fills an empty directory, with `more` small files beside those of the format. Durable, but for the directory's own name.
    pub fn fill(
        dir: &D,
        what: &Create,
        base: Option<&Base<'_, D>>,
        more: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<()> {
        let refused = |reason: String| DiskError::Refused { path: dir.path(), reason };
        if what.bytes == 0 || !what.bytes.is_multiple_of(BLOCK) {
            return Err(refused(format!(
                "a volume of {} bytes is not a multiple of {BLOCK} above 0",
                what.bytes
            )));
        }
        if let Some(name) = dir.list()?.into_iter().find(|name| !matches!(names::parse(name), Name::Ours(_)))
        {
            return Err(refused(format!("it is not empty: {name} is there")));
        }
        let head = names::head(0);
        let mut images = BTreeMap::new();
        if let Some(base) = base {
            let (image, meta) = base.layer(what.bytes)?;
            dir.adopt(base.dir, &[(base.file.to_owned(), image.clone())])?;
            images.insert(image, meta);
        }
        let parent = images.keys().next().cloned().unwrap_or_default();
        let meta = ImageMeta {
            name: head.clone(),
            parent: parent.clone(),
            created: what.created.clone(),
            ..ImageMeta::default()
        };
        let volume = VolumeMeta {
            size: what.bytes,
            head: head.clone(),
            parent,
            sector_size: 512,
            backing_file_path: what.backing.clone(),
            ..VolumeMeta::default()
        };
        images.insert(head.clone(), meta);
        let mut small: Vec<(String, Vec<u8>)> = more.into_iter().collect();
        small.extend(images.iter().map(|(name, meta)| (names::meta_of(name), meta.encode())));
        let tree = Tree { volume, images };
        small.push((COPY_FILE.into(), tree.encode()));
        small.push((names::VOLUME_META.into(), tree.volume.encode()));
        let file = dir.create(&head, what.bytes)?;
        dir.write_together(&small, &[&file])?;
        dir.sync()
    }

    /// Opens a directory, and mends what an interruption left. What is refused is left as it was.
    pub fn open(dir: D) -> Result<Self> {
        let mut this = Self {
            dir,
            tree: Tree::default(),
            chain: Vec::new(),
            map: ChainMap::default(),
            writable: BTreeMap::new(),
            sealing: Arc::default(),
            notes: Vec::new(),
        };
        this.reload()?;
        Ok(this)
    }

    /// Opens it again: its files were changed.
    pub(crate) fn reload(&mut self) -> Result<()> {
        // Locks go with the files.
        self.chain.clear();
        self.writable.clear();
        let listing = list(&self.dir)?;
        let Opened { tree, chain, mends, notes } =
            plan_open(&listing).map_err(|reason| DiskError::Refused { path: self.dir.path(), reason })?;
        self.tree = tree;
        self.notes = notes;
        let stale = listing.copy.as_ref() != Some(&self.tree);
        self.mend(&mends)?;
        if stale {
            replace(&self.dir, COPY_FILE, &self.tree.encode())?;
        }
        self.open_chain(&chain)
    }

    fn mend(&mut self, mends: &[Mend]) -> Result<()> {
        let mut unlinked = false;
        for mend in mends {
            match mend {
                Mend::Resize(name) => {
                    let file = self.dir.open(name, true)?;
                    let behind = file.extents(self.tree.volume.size, u64::MAX / 2, 1)?;
                    if !behind.is_empty() {
                        return self.refuse(format!("{name} has data behind the end of the volume"));
                    }
                    file.set_len(self.tree.volume.size)?;
                    file.sync()?;
                }
                Mend::WriteImage(name) => {
                    if let Some(meta) = self.tree.images.get(name) {
                        replace(&self.dir, &names::meta_of(name), &meta.encode())?;
                    }
                }
                Mend::WriteVolume => replace(&self.dir, names::VOLUME_META, &self.tree.volume.encode())?,
                Mend::Unlink(name) => {
                    self.dir.unlink(name)?;
                    unlinked = true;
                }
            }
        }
        if unlinked { self.dir.sync() } else { Ok(()) }
    }

    pub(crate) fn open_chain(&mut self, chain: &[String]) -> Result<()> {
        let mut layers = Vec::with_capacity(chain.len() + 1);
        let backing = self.tree.volume.backing_file_path.clone();
        if !backing.is_empty() {
            let file = self.dir.open_path(&backing)?;
            let mut head = [0; 4096];
            file.read_at(0, &mut head)?;
            if head.starts_with(b"QFI\xfb") {
                return self.refuse(format!("the backing file {backing} is qcow2; convert it to raw"));
            }
            if file.len()? > self.tree.volume.size {
                return self.refuse(format!("the backing file {backing} is longer than the volume"));
            }
            layers.push(Layer { name: backing, file: Arc::new(file), locked: false });
        }
        let last = chain.len().saturating_sub(1);
        for (at, name) in chain.iter().enumerate() {
            layers.push(match self.chain.iter().find(|layer| layer.name == *name) {
                Some(layer) => layer.clone(),
                None => {
                    let locked = at == last;
                    Layer { name: name.clone(), file: Arc::new(self.dir.open(name, locked)?), locked }
                }
            });
        }
        self.map.clear();
        self.writable.clear();
        let before = std::mem::replace(&mut self.chain, layers);
        let gone = before.into_iter().filter(|old| !self.chain.iter().any(|layer| layer.name == old.name));
        gone.for_each(|old| self.dir.let_go(old.file));
        Ok(())
    }

    /// What a person should know about how it was opened.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Its metadata.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.tree.volume.size
    }

    /// The directory.
    pub fn dir(&self) -> &D {
        &self.dir
    }

    /// The live chain, the lowest layer first.
    pub fn chain(&self) -> &[Layer<D::File>] {
        &self.chain
    }

    /// The writable layer.
    pub fn head(&self) -> &Arc<D::File> {
        // A chain is never empty: opening ends with the head.
        &self.chain[self.chain.len() - 1].file
    }

    fn head_index(&self) -> u8 {
        u8::try_from(self.chain.len() - 1).unwrap_or(u8::MAX)
    }

    /// Pages of the map in memory.
    pub fn map_pages(&self) -> usize {
        self.map.pages()
    }

    // ---- data ----

    fn load_page(&mut self, page: u64) -> Result<()> {
        let (offset, len) = (page * PAGE_BLOCKS * BLOCK, PAGE_BLOCKS * BLOCK);
        let mut found: Vec<(u8, Vec<Extent>)> = Vec::new();
        for (at, layer) in self.chain.iter().enumerate().skip(1).rev() {
            let extents = layer.file.extents(offset, len, PAGE_BLOCKS as usize)?;
            let covered = extents.len() == 1 && extents[0].start == offset && extents[0].len == len;
            if !extents.is_empty() {
                found.push((u8::try_from(at).unwrap_or(u8::MAX), extents));
            }
            if covered {
                break;
            }
        }
        self.map.load(page, found);
        Ok(())
    }

    /// Where blocks are to be read from, in order; together they are all of them.
    pub fn plan_read(&mut self, start: u64, count: u64) -> Result<Vec<Piece<D::File>>> {
        let mut pieces: Vec<Piece<D::File>> = Vec::with_capacity(1);
        if self.chain.len() == 1 {
            let file = Arc::clone(self.head());
            pieces.push(Piece { file, offset: start * BLOCK, len: (count * BLOCK) as usize, layer: 0 });
            return Ok(pieces);
        }
        let (mut block, end) = (start, start + count);
        let mut before = None;
        while block < end {
            let Some((layer, run)) = self.map.run(block, end - block) else {
                self.load_page(block / PAGE_BLOCKS)?;
                continue;
            };
            let len = (run * BLOCK) as usize;
            match pieces.last_mut() {
                Some(piece) if before == Some(layer) => piece.len += len,
                _ => {
                    let file = Arc::clone(&self.chain[usize::from(layer)].file);
                    pieces.push(Piece { file, offset: block * BLOCK, len, layer: usize::from(layer) });
                }
            }
            before = Some(layer);
            block += run;
        }
        Ok(pieces)
    }

    /// Blocks were written to the head.
    pub fn wrote(&mut self, start: u64, count: u64) {
        if self.chain.len() > 1 {
            let head = self.head_index();
            self.map.set(start, count, head);
        }
    }

    /// How to make blocks zero.
    pub fn plan_zero(&self, start: u64, count: u64) -> Result<Vec<ZeroStep>> {
        let (offset, len) = (start * BLOCK, count * BLOCK);
        let mut below = vec![false; count as usize];
        let backed = !self.tree.volume.backing_file_path.is_empty();
        let lower = &self.chain[..self.chain.len() - 1];
        for (at, layer) in lower.iter().enumerate() {
            if at == 0 && backed {
                // Read through wherever it reaches: it may be of a kind that has no extents.
                let reach = layer.file.len()?.div_ceil(BLOCK).saturating_sub(start).min(count);
                below[..reach as usize].fill(true);
                continue;
            }
            each_extent(&*layer.file, offset, len, |extent| {
                let first = (extent.start.saturating_sub(offset) / BLOCK) as usize;
                let last = ((extent.start + extent.len - offset).div_ceil(BLOCK) as usize).min(below.len());
                below[first..last].fill(true);
                Ok(())
            })?;
        }
        let mut steps = Vec::new();
        let mut at = 0;
        while at < below.len() {
            let hidden = below[at];
            let run = below[at..].iter().take_while(|other| **other == hidden).count();
            let (offset, len) = ((start + at as u64) * BLOCK, run as u64 * BLOCK);
            steps.push(if hidden {
                ZeroStep::Write { offset, len }
            } else {
                ZeroStep::Punch { offset, len }
            });
            at += run;
        }
        Ok(steps)
    }

    /// A step of [`ReplicaDir::plan_zero`] was done.
    pub fn zeroed(&mut self, step: &ZeroStep) {
        let head = self.head_index();
        match *step {
            ZeroStep::Write { offset, len } => self.map.set(offset / BLOCK, len / BLOCK, head),
            // The lowest layer has nothing there either: it reads as zeros.
            ZeroStep::Punch { offset, len } if head > 0 => self.map.set(offset / BLOCK, len / BLOCK, 0),
            ZeroStep::Punch { .. } => {}
        }
    }

    /// Reads blocks, with the caller waiting.
    pub fn read(&mut self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        for piece in self.plan_read(start, buffer.len() as u64 / BLOCK)? {
            piece.file.read_at(piece.offset, &mut buffer[done..done + piece.len])?;
            done += piece.len;
        }
        Ok(())
    }

    /// Writes blocks, with the caller waiting.
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        self.head().write_at(start * BLOCK, bytes)?;
        self.wrote(start, bytes.len() as u64 / BLOCK);
        Ok(())
    }

    /// Makes blocks zero, with the caller waiting.
    pub fn zero(&mut self, start: u64, count: u64) -> Result<()> {
        for step in self.plan_zero(start, count)? {
            match step {
                ZeroStep::Punch { offset, len } => self.head().punch(offset, len)?,
                ZeroStep::Write { offset, len } => self.head().write_at(offset, &vec![0; len as usize])?,
            }
            self.zeroed(&step);
        }
        Ok(())
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> Result<()> {
        self.to_sync().iter().try_for_each(|file| file.sync())
    }

    /// The files that may have something that is not durable.
    pub fn to_sync(&self) -> Vec<Arc<D::File>> {
        let others = self.writable.iter().filter(|(name, _)| names::is_image(name)).map(|(_, file)| file);
        std::iter::once(self.head()).chain(others).cloned().collect()
    }

    /// After the machine went down: storage in the head that was prepared but never written belongs to writes that
    /// did not happen. In these ranges of blocks, and in layers that others are being folded into, it is taken back, so
    /// that what was there before is read again.
    pub fn undo_unwritten(&mut self, ranges: impl IntoIterator<Item = (u64, u64)>) -> Result<u64> {
        let mut undone = 0;
        let head = Arc::clone(self.head());
        for (start, count) in ranges {
            undone += punch_unwritten(&*head, start * BLOCK, count * BLOCK)?;
        }
        // A removed layer is being copied up to the one above it, whichever that is, wherever it has blocks.
        let removed = |name: &str| self.tree.images.get(name).is_some_and(|meta| meta.removed);
        let folding = self.tree.images.iter().filter(|(_, meta)| removed(&meta.parent));
        let folding: Vec<String> = folding.map(|(name, _)| name.clone()).collect();
        for name in folding {
            let file = self.layer_file(&name, true)?;
            undone += punch_unwritten(&*file, 0, self.bytes())?;
        }
        if undone > 0 {
            self.sync()?;
            self.map.clear();
        }
        Ok(undone)
    }

    /// For a directory that was not ours: prepared but unwritten storage reads as zeros there. Real zeros
    /// take its place, so that later there is no question what it means.
    pub fn settle_unwritten(&mut self) -> Result<u64> {
        let zeros = vec![0; 1 << 20];
        let mut settled = 0;
        let names: Vec<String> = self.tree.images.keys().cloned().collect();
        for name in names {
            let file = self.layer_file(&name, true)?;
            for extent in unwritten(&*file, 0, self.bytes())? {
                let (mut at, end) =
                    (extent.start / BLOCK * BLOCK, (extent.start + extent.len).next_multiple_of(BLOCK));
                settled += end - at;
                while at < end {
                    let len = (end - at).min(zeros.len() as u64);
                    file.write_at(at, &zeros[..len as usize])?;
                    at += len;
                }
            }
        }
        if settled > 0 {
            self.sync()?;
        }
        Ok(settled)
    }
}

/// Storage that was prepared but never written, in a range.
fn unwritten<F: File>(file: &F, offset: u64, len: u64) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    each_extent(file, offset, len, |extent| {
        if extent.unwritten {
            found.push(extent);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Takes such storage back. Returns how much.
fn punch_unwritten<F: File>(file: &F, offset: u64, len: u64) -> Result<u64> {
    let mut undone = 0;
    for extent in unwritten(file, offset, len)? {
        file.punch(extent.start, extent.len)?;
        undone += extent.len;
    }
    Ok(undone)
}

/// Reads blocks through layers without a map; for snapshots, checks and exports.
pub fn read_layers<F: File>(layers: &[Layer<F>], start: u64, buffer: &mut [u8]) -> Result<()> {
    buffer.fill(0);
    let (offset, len) = (start * BLOCK, buffer.len() as u64);
    // From the lowest up: what is above overwrites.
    for (at, layer) in layers.iter().enumerate() {
        if at == 0 {
            layer.file.read_at(offset, buffer)?;
            continue;
        }
        each_extent(&*layer.file, offset, len, |extent| {
            let from = (extent.start / BLOCK * BLOCK).max(offset);
            let to = (extent.start + extent.len).next_multiple_of(BLOCK).min(offset + len);
            layer.file.read_at(from, &mut buffer[(from - offset) as usize..(to - offset) as usize])
        })?;
    }
    Ok(())
}
