//! What a replica's state machine asks of its layers ([`sheaf_block_core::disk`]), done with the files of a directory.
//!
//! **Operations** ([`Op::Operate`]) change files and metadata as one: [`INTENT_FILE`] says what is being done before
//! anything is done, every step may be repeated, and the metadata's own log has the last word. A directory that is opened
//! with an intent that its metadata does not have does it again.
//!
//! **Adoption** ([`Op::Adopt`]) makes the layers those of another structure. Files that stay get a second name by their
//! layer's id first; when all are durable, all of Longhorn's names are made anew from them. So there is no moment in which
//! a name may mean one layer or another.
//!
//! **Parts** are what one layer holds of one segment: a [`PartJob`] is prepared here, and is in [`crate::part`].
//!
//! [`Op::Operate`]: sheaf_block_core::disk::Op::Operate
//! [`Op::Adopt`]: sheaf_block_core::disk::Op::Adopt

use std::collections::BTreeMap;
use std::sync::Arc;

use sheaf_block_core::disk::{Change, Failure, Metadata, Op, Partial};
use sheaf_block_core::ids::{BLOCK_BYTES, SEGMENT_BLOCKS, SegmentIndex};
use sheaf_block_core::structure::{CloneOf, Kind, Layer, LayerId, Operation, Structure};

use crate::chain::{COPY_FILE, Tree};
use crate::envelope::{BODY_MAX, EnvelopeError, Reader, seal, unseal};
use crate::fs::{Dir, DiskError, File, Result, replace};
use crate::meta::{ImageMeta, META_BYTES_MAX, VolumeMeta, rfc3339};
use crate::names::{self, Name};
use crate::part::PartJob;
use crate::replica::{ReplicaDir, SnapshotInfo};
use crate::state::codec::{Writer, read_operation, read_structure};
use crate::state::{Store, first_files};

/// A change of the layers that is under way.
pub const INTENT_FILE: &str = "sheaf-intent";
const INTENT_MAGIC: [u8; 8] = *b"SHEAFint";
const VERSION: u32 = 1;
const LAYER: &str = "sheaf-layer.";
const SEAL: &str = "sheaf-seal.";
const SUMS: &str = "sheaf-sums.";
const BLOCK: u64 = BLOCK_BYTES as u64;

/// What is being done.
#[derive(Clone, PartialEq, Debug)]
pub enum Intent {
    /// An operation.
    Operate(Operation),
    /// An adoption. True: every file that stays has its second name.
    Adopt(Box<Structure>, bool, bool),
}

impl Intent {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Operate(operation) => {
                w.u8(1);
                w.operation(operation);
            }
            Self::Adopt(structure, known, linked) => {
                w.u8(2);
                w.flag(*known);
                w.flag(*linked);
                w.structure(structure);
            }
        }
        seal(INTENT_MAGIC, VERSION, &w.0)
    }

    /// Reads it.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, EnvelopeError> {
        let (_, body) = unseal(INTENT_MAGIC, VERSION, bytes)?;
        let mut r = Reader(body);
        let this = match r.u8()? {
            1 => Self::Operate(read_operation(&mut r)?),
            2 => {
                let (known, linked) = (r.flag()?, r.flag()?);
                Self::Adopt(Box::new(read_structure(&mut r)?), known, linked)
            }
            _ => return Err(EnvelopeError::Content),
        };
        if r.0.is_empty() { Ok(this) } else { Err(EnvelopeError::Content) }
    }
}

/// Reads a directory's intent; a damaged one is refused.
pub fn intent<D: Dir>(dir: &D) -> Result<Option<Intent>> {
    let Some(bytes) = dir.read(INTENT_FILE, BODY_MAX)? else { return Ok(None) };
    let refused = |error| DiskError::Refused { path: dir.path(), reason: format!("{INTENT_FILE}: {error}") };
    Intent::decode(&bytes).map(Some).map_err(refused)
}

/// Whether the metadata has what was intended.
pub fn is_done(intent: &Intent, meta: &Metadata) -> bool {
    match intent {
        Intent::Operate(operation) => meta.structure.at.number >= operation.id.number,
        Intent::Adopt(structure, ..) => meta.structure == **structure,
    }
}

/// The layers as a structure, for a directory that has none yet: Longhorn's, taken over.
pub fn structure_of(tree: &Tree) -> std::result::Result<Structure, String> {
    use sheaf_block_core::ids::CoordinatorId;
    use sheaf_block_core::structure::{OrderId, Snapshot, SnapshotName};
    let mut order: Vec<&str> = Vec::new();
    // Parents before children.
    let mut todo: Vec<&str> = tree.children("").collect();
    while let Some(name) = todo.pop() {
        order.push(name);
        todo.extend(tree.children(name));
    }
    let id = |at: usize| OrderId { number: at as u64, run: CoordinatorId(0) };
    let place = |name: &str| order.iter().position(|other| *other == name).map(id);
    let at = id(order.len());
    let mut layers = Vec::new();
    for (at, name) in order.iter().enumerate() {
        let meta = tree.images.get(*name).cloned().unwrap_or_default();
        let snapshot = match names::snapshot_of(name) {
            None => None,
            Some(text) => Some(Snapshot {
                name: SnapshotName::new(text).map_err(|error| format!("snapshot {text}: {error}"))?,
                created: seconds(&meta.created),
                user: meta.user_created,
                labels: meta.labels.clone().unwrap_or_default(),
                removed: meta.removed,
                pins: vec![],
                frozen: id(at),
            }),
        };
        layers.push(Layer { id: id(at), parent: place(&meta.parent), folded: None, snapshot });
    }
    let head = place(&tree.volume.head).ok_or("the head is not above the other layers")?;
    let structure = Structure { at, blocks: tree.volume.size / BLOCK, base: None, head, layers, last: None };
    if structure.is_sound() {
        Ok(structure)
    } else {
        Err("its layers are not a tree with the head on top".into())
    }
}

/// A directory with its promises.
#[allow(missing_debug_implementations)]
pub struct Opened<D: Dir> {
    /// The files.
    pub dir: ReplicaDir<D>,
    /// The promises' files.
    pub store: Store<D>,
    /// The promises.
    pub meta: Metadata,
}

/// Opens a directory of ours: what was intended and not done is done again, and files and promises must agree.
pub fn open<D: Dir>(dir: D) -> Result<Opened<D>>
where
    D::File: Clone,
{
    let Some((mut store, mut meta)) = Store::open(&dir)? else {
        let reason = "it has no state of ours (sheaf-state.*); adopt it first".into();
        return Err(DiskError::Refused { path: dir.path(), reason });
    };
    let intent = intent(&dir)?.filter(|intent| !is_done(intent, &meta));
    if let Some(Intent::Adopt(structure, _, true)) = &intent {
        // Longhorn's names may be half made: only the second names count.
        adopt_linked(&dir, structure)?;
    }
    let mut dir = ReplicaDir::open(dir)?;
    match intent {
        None => {}
        Some(Intent::Adopt(structure, known, linked)) => {
            dir.adopt(&meta, &structure, known, linked)?;
            store.persist(&dir.dir, &mut meta, &[Change::Adopted(structure, known)])?;
        }
        Some(Intent::Operate(operation)) if meta.structure.apply(&operation).is_ok() => {
            match dir.operate(&meta, &operation) {
                // Whoever lacks a clone's replica makes it anew.
                Err(_) if matches!(operation.kind, Kind::Clone(_)) => {}
                other => other?,
            }
            store.persist(&dir.dir, &mut meta, &[Change::Operated(Box::new(operation))])?;
        }
        // An operation that does not follow was given up by everybody.
        Some(Intent::Operate(_)) => {}
    }
    dir.adopted()?;
    match dir.contradiction(&meta.structure) {
        Some(reason) => dir.refuse(reason),
        None => Ok(Opened { dir, store, meta }),
    }
}

impl<D: Dir> Opened<D>
where
    D::File: Clone,
{
    /// Does an operation: intended, done, promised.
    pub fn operate(&mut self, operation: &Operation) -> Result<()> {
        if let Err(reason) = self.meta.structure.apply(operation) {
            return self.dir.refuse(reason.to_string());
        }
        self.dir.operate(&self.meta, operation)?;
        self.store.persist(&self.dir.dir, &mut self.meta, &[Change::Operated(Box::new(operation.clone()))])
    }
}

fn seconds(rfc3339: &str) -> u64 {
    let parsed: std::result::Result<jiff::Timestamp, _> = rfc3339.parse();
    parsed.map_or(0, |stamp| u64::try_from(stamp.as_second()).unwrap_or(0))
}

fn created(seconds: u64) -> String {
    rfc3339(i64::try_from(seconds).unwrap_or(0))
}

/// The name of the directory that a linked clone's replica gets, beside the one that it is made of.
pub fn clone_directory(clone: &CloneOf) -> String {
    format!("{}-{:08x}", clone.name.as_str(), clone.volume.0 as u32)
}

fn second_name(id: LayerId) -> String {
    format!("{LAYER}{}-{:016x}", id.number, id.run.0)
}

fn seal_name(id: LayerId) -> String {
    format!("{SEAL}{}-{:016x}", id.number, id.run.0)
}

fn sums_name(id: LayerId) -> String {
    format!("{SUMS}{}-{:016x}", id.number, id.run.0)
}

impl<D: Dir> ReplicaDir<D> {
    /// The file name of a layer.
    pub fn image_of(&self, structure: &Structure, id: LayerId) -> Option<String> {
        let layer = structure.layer(id)?;
        Some(match &layer.snapshot {
            Some(snapshot) => names::snapshot(snapshot.name.as_str()),
            None => self.tree.volume.head.clone(),
        })
    }

    /// What contradicts the metadata, if anything: files and promises must tell the same layers.
    pub fn contradiction(&self, structure: &Structure) -> Option<String> {
        let wanted: BTreeMap<String, String> = structure
            .layers
            .iter()
            .filter_map(|layer| {
                let parent = layer.parent.and_then(|parent| self.image_of(structure, parent));
                Some((self.image_of(structure, layer.id)?, parent.unwrap_or_default()))
            })
            .collect();
        let found = self.tree.images.iter().map(|(name, meta)| (name.clone(), meta.parent.clone()));
        let found: BTreeMap<String, String> = found.collect();
        if found != wanted {
            let differs = |(name, parent): (&String, &String)| format!("{name} on {parent:?}");
            let show =
                |map: &BTreeMap<String, String>| map.iter().map(differs).collect::<Vec<_>>().join(", ");
            return Some(format!("its files are {}; its promises say {}", show(&found), show(&wanted)));
        }
        let bytes = structure.blocks * BLOCK;
        (self.bytes() != bytes)
            .then(|| format!("volume.meta says {} bytes, its promises {bytes}", self.bytes()))
    }

    /// Says durably what will be done.
    pub fn intend(&self, intent: &Intent) -> Result<()> {
        replace(&self.dir, INTENT_FILE, &intent.encode())
    }

    /// Says durably what will be done, and does it; may be repeated. The metadata is that of before, and follows. Everything written before is
    /// synced.
    pub fn operate(&mut self, meta: &Metadata, operation: &Operation) -> Result<()> {
        let before = &meta.structure;
        let intent = Intent::Operate(operation.clone());
        // Those that change the head say it themselves, on the way.
        if !matches!(operation.kind, Kind::Snapshot { .. } | Kind::Revert(_)) {
            self.intend(&intent)?;
        }
        let image = |id: LayerId| {
            let name = before
                .layer(id)
                .and_then(|layer| layer.snapshot.as_ref())
                .map(|s| s.name.as_str().to_owned());
            name.ok_or_else(|| DiskError::Refused {
                path: self.dir.path(),
                reason: format!("there is no layer {id}"),
            })
        };
        match &operation.kind {
            Kind::Snapshot { name, created: at, user, labels } => {
                let labels = Some(labels.clone()).filter(|labels| !labels.is_empty());
                let name = name.as_str().to_owned();
                let info = SnapshotInfo { name, created: created(*at), user_created: *user, labels };
                self.snapshot_as(&info, Some(&intent))
            }
            Kind::Revert(to) => {
                let name = image(*to)?;
                self.revert_as(&name, &created(0), Some(&intent))
            }
            Kind::Remove(id) => {
                let name = image(*id)?;
                self.remove(&name)
            }
            Kind::Drop(id) => {
                let name = image(*id)?;
                self.drop_layer(&name)?;
                self.dir.unlink(&sums_name(*id))?;
                self.dir.unlink(&seal_name(*id))
            }
            Kind::Expand(blocks) => self.expand(blocks * BLOCK),
            Kind::Pin(..) | Kind::Unpin(..) => Ok(()),
            Kind::Clone(clone) => {
                let (name, directory) = (image(clone.from)?, clone_directory(clone));
                // A replica that is being rebuilt does not have what is to be cloned.
                let Some(state) = meta.cloned(operation.id, clone) else { return Ok(()) };
                if self.dir.has_sibling(&directory)? {
                    return Ok(());
                }
                let target = self.dir.sibling(&directory)?;
                self.clone_to(&name, &target, &created(clone.created), first_files(&state))?;
                target.finish(&directory)
            }
        }
    }

    /// After the metadata has an operation: what was intended needs no more to be known. Without a wait: whoever finds it knows that it is done.
    pub fn operated(&self) -> Result<()> {
        self.dir.unlink(INTENT_FILE)
    }

    /// Makes the layers those of `target`, as [`Metadata::missing`] says; may be repeated. The metadata follows.
    pub fn adopt(&mut self, meta: &Metadata, target: &Structure, known: bool, linked: bool) -> Result<()> {
        let missing = meta.missing(target, known);
        let is_empty = |id: LayerId| matches!(missing.get(&id), Some(Partial::Full { below: SegmentIndex(0), own }) if own.is_empty());
        if !linked {
            for name in self.dir.list()?.iter().filter(|name| name.starts_with(LAYER)) {
                self.dir.unlink(name)?;
            }
            for layer in target.layers.iter().filter(|layer| !is_empty(layer.id)) {
                if let Some(image) = self.image_of(&meta.structure, layer.id) {
                    self.dir.link(&image, &second_name(layer.id))?;
                }
            }
            self.dir.sync()?;
            self.intend(&Intent::Adopt(Box::new(target.clone()), known, true))?;
        }
        adopt_linked(&self.dir, target)?;
        self.reload()
    }

    /// After the metadata has it: second names go.
    pub fn adopted(&self) -> Result<()> {
        let names = self.dir.list()?;
        let mut done = names.iter().filter(|name| name.starts_with(LAYER) || *name == INTENT_FILE).peekable();
        if done.peek().is_none() {
            return Ok(());
        }
        done.try_for_each(|name| self.dir.unlink(name))?;
        self.dir.sync()
    }

    /// Prepares work on a layer's part of a segment. None: the operation is of another kind.
    pub fn part_job(&mut self, structure: &Structure, op: &Op) -> Result<Option<PartJob<D::File>>> {
        let (id, segment) = match op {
            Op::ReadPart(id, at) | Op::Salvage(id, at) | Op::WritePart(id, at, _) | Op::Fold(id, at) => {
                (*id, *at)
            }
            Op::Present(id, at, _) | Op::Digest(id, at) | Op::Seal(id, at, _) => (*id, *at),
            _ => return Ok(None),
        };
        let invalid = |id: LayerId| format!("there is no layer {id}");
        let Some(image) = self.image_of(structure, id) else { return self.refuse(invalid(id)) };
        let writes = matches!(op, Op::WritePart(..));
        // What is written there is what its other owners want there as well: a good copy. It stays unlocked, and is synced at once.
        let shared = writes && self.is_shared(&image)?;
        let file = match shared {
            true => Arc::new(self.dir.open_shared_layer(&image)?),
            false => self.layer_file(&image, writes)?,
        };
        let first = u64::from(segment.0) * u64::from(SEGMENT_BLOCKS);
        let blocks = structure.blocks.saturating_sub(first).min(u64::from(SEGMENT_BLOCKS));
        let (mut child, mut refused) = (None, None);
        if matches!(op, Op::Fold(..)) {
            let mut children = structure.children(id).map(|layer| layer.id);
            let (Some(above), None) = (children.next(), children.next()) else {
                return self.refuse(format!("layer {id} has not exactly one layer above it"));
            };
            let Some(upper) = self.image_of(structure, above) else { return self.refuse(invalid(above)) };
            // A layer that others read is not changed; and folding one would only take more space.
            match self.is_shared(&image)? || self.is_shared(&upper)? {
                true => refused = Some(Failure::Shared),
                false => child = Some((above, self.layer_file(&upper, true)?)),
            }
        }
        if writes || child.is_some() {
            self.forget(segment);
        }
        let mut layers = vec![id];
        layers.extend(child.as_ref().map(|(above, _)| *above));
        let seal = matches!(op, Op::Seal(..));
        let seals = layers.iter().map(|id| self.beside(seal_name(*id), seal)).collect::<Result<_>>()?;
        let sums = match op {
            Op::Seal(..) | Op::Salvage(..) => self.beside(sums_name(id), seal)?,
            _ => None,
        };
        Ok(Some(PartJob {
            op: op.clone(),
            first,
            blocks,
            file,
            child: child.map(|(_, file)| file),
            bad: vec![0; layers.len()],
            layers,
            seals,
            sums,
            sealing: Arc::clone(&self.sealing),
            end: structure.blocks,
            shared,
            refused,
        }))
    }

    /// Forgets which layers have a segment's blocks: a layer is being changed there, or was.
    pub fn forget(&mut self, segment: SegmentIndex) {
        // A segment lies within a page.
        self.map.forget(u64::from(segment.0) * u64::from(SEGMENT_BLOCKS));
    }

    /// A layer's file; one that may be written to, if it is to be.
    pub(crate) fn layer_file(&mut self, image: &str, writable: bool) -> Result<Arc<D::File>> {
        if *image == self.tree.volume.head {
            return Ok(Arc::clone(self.head()));
        }
        if let Some(file) = self.writable.get(image) {
            return Ok(Arc::clone(file));
        }
        let open = self.chain.iter().find(|layer| layer.name == image);
        let file = match open.filter(|layer| layer.locked || !writable) {
            Some(layer) => Arc::clone(&layer.file),
            None => Arc::new(self.dir.open(image, writable)?),
        };
        if writable {
            self.writable.insert(image.to_owned(), Arc::clone(&file));
        }
        Ok(file)
    }

    /// A file of checksums beside a layer's.
    fn beside(&mut self, name: String, make: bool) -> Result<Option<Arc<D::File>>> {
        if let Some(file) = self.writable.get(&name) {
            return Ok(Some(Arc::clone(file)));
        }
        let file = match self.dir.stat(&name)? {
            Some(_) => self.dir.open(&name, true)?,
            None if make => {
                let file = self.dir.create(&name, 0)?;
                self.dir.sync()?;
                file
            }
            None => return Ok(None),
        };
        let file = Arc::new(file);
        self.writable.insert(name, Arc::clone(&file));
        Ok(Some(file))
    }
}

/// Makes all of Longhorn's names anew from the second names.
fn adopt_linked<D: Dir>(dir: &D, target: &Structure) -> Result<()> {
    let old = dir.read(names::VOLUME_META, META_BYTES_MAX)?.and_then(|bytes| VolumeMeta::decode(&bytes).ok());
    let there = dir.list()?;
    for name in &there {
        match names::parse(name) {
            Name::Head(_) | Name::Snapshot(_) | Name::ImageMeta(_) | Name::Checksum(_) | Name::Temporary => {
                dir.unlink(name)?;
            }
            Name::Ours(_) if name.starts_with(SEAL) || name.starts_with(SUMS) => dir.unlink(name)?,
            _ => {}
        }
    }
    let head = names::head(0);
    let image = |layer: &Layer| match &layer.snapshot {
        Some(snapshot) => names::snapshot(snapshot.name.as_str()),
        None => head.clone(),
    };
    let bytes = target.blocks * BLOCK;
    let mut images = BTreeMap::new();
    for layer in &target.layers {
        let name = image(layer);
        let second = second_name(layer.id);
        if there.contains(&second) {
            dir.link(&second, &name)?;
            let file = dir.open(&name, false)?;
            if layer.snapshot.is_none() && file.len()? != bytes {
                drop(file);
                let file = dir.open(&name, true)?;
                file.set_len(bytes)?;
                file.sync()?;
            }
        } else {
            dir.create(&name, bytes)?.sync()?;
        }
        let parent = layer.parent.and_then(|parent| target.layer(parent)).map(image).unwrap_or_default();
        let meta = match &layer.snapshot {
            None => ImageMeta { name: name.clone(), parent, ..ImageMeta::default() },
            Some(snapshot) => ImageMeta {
                name: name.clone(),
                parent,
                removed: snapshot.removed,
                user_created: snapshot.user,
                created: created(snapshot.created),
                labels: Some(snapshot.labels.clone()).filter(|labels| !labels.is_empty()),
                ..ImageMeta::default()
            },
        };
        dir.write(&names::meta_of(&name), &meta.encode())?;
        images.insert(name, meta);
    }
    let parent = images.get(&head).map(|meta: &ImageMeta| meta.parent.clone()).unwrap_or_default();
    let old = old.unwrap_or_else(|| VolumeMeta { sector_size: 512, ..VolumeMeta::default() });
    // Not complete before everything was copied: nobody else may read it.
    let volume = VolumeMeta { size: bytes, head, parent, dirty: true, rebuilding: true, ..old };
    let tree = Tree { volume, images };
    replace(dir, COPY_FILE, &tree.encode())?;
    replace(dir, names::VOLUME_META, &tree.volume.encode())
}
