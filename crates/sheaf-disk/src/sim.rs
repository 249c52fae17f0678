//! The simulated twin of a disk: a directory in memory that remembers what was synced and what was not.
//!
//! It has two states, the one that a running machine sees and the one on the medium. [`SimDisk::power_cut`] makes the
//! first from the second and a random part of what lay between: names in a prefix of their changes or (a file system
//! that promises less) any of them; blocks old, new, torn between sectors, or with storage that was prepared but never
//! written. [`SimDisk::die_after`] stops the machine after so many operations, so that a test can stop it after each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fs::{Dir, DiskError, Extent, File, Result, Stat};

const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

/// One block with storage.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Cell {
    Unwritten,
    Written(Box<[u8]>),
}

impl Cell {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Unwritten => vec![0; BLOCK as usize],
            Self::Written(bytes) => bytes.to_vec(),
        }
    }
}

#[derive(Clone, Default, Debug)]
struct Content {
    len: u64,
    blocks: BTreeMap<u64, Cell>,
}

#[derive(Clone, Default, Debug)]
struct Inode {
    now: Content,
    durable: Content,
    touched: BTreeSet<u64>,
    changes: u32,
    /// Blocks that cannot be read, until they are written.
    lost: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameChange::Unlink(name) => drop(names.remove(name)),
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

#[derive(Default, Debug)]
struct World {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    /// By directory.
    names: BTreeMap<String, BTreeMap<String, u64>>,
    durable_names: BTreeMap<String, BTreeMap<String, u64>>,
    pending: BTreeMap<String, Vec<NameChange>>,
    operations: u64,
    die_after: Option<u64>,
    clock: u32,
}

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed, the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit` (0 if that is 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).checked_rem(limit).unwrap_or(0)
    }
}

/// A disk with directories. Clones are the same disk.
#[derive(Clone, Default, Debug)]
pub struct SimDisk(Arc<Mutex<World>>);

/// A directory on it.
#[derive(Clone, Debug)]
pub struct SimDir {
    disk: SimDisk,
    name: String,
}

/// An open file on it.
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl SimDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory; made if it is not there.
    pub fn dir(&self, name: &str) -> SimDir {
        let mut world = self.world();
        world.names.entry(name.into()).or_default();
        world.durable_names.entry(name.into()).or_default();
        SimDir { disk: self.clone(), name: name.into() }
    }

    /// Operations that change something, so far.
    pub fn operations(&self) -> u64 {
        self.world().operations
    }

    /// After so many more operations that change something, every operation fails; none: never.
    pub fn die_after(&self, operations: Option<u64>) {
        let mut world = self.world();
        world.die_after = operations.map(|more| world.operations + more);
    }

    /// The machine goes down and comes up again. `in_order`: changes of names survive as a prefix.
    pub fn power_cut(&self, dice: &mut Dice, in_order: bool) {
        let mut world = self.world();
        world.die_after = None;
        let pending = std::mem::take(&mut world.pending);
        for (dir, changes) in pending {
            let keep = dice.below(changes.len() as u64 + 1) as usize;
            let names = world.durable_names.entry(dir).or_default();
            for (at, change) in changes.iter().enumerate() {
                if if in_order { at < keep } else { dice.below(2) == 0 } {
                    // A rename whose source never reached the medium has nothing to rename.
                    apply(names, change);
                }
            }
        }
        world.names = world.durable_names.clone();
        for inode in world.inodes.values_mut() {
            let mut content = inode.durable.clone();
            if dice.below(2) == 0 {
                content.len = inode.now.len;
            }
            for block in std::mem::take(&mut inode.touched) {
                let (old, new) = (inode.durable.blocks.get(&block), inode.now.blocks.get(&block));
                let survivor = match (dice.below(4), old, new) {
                    (0, old, _) => old.cloned(),
                    (1, None, Some(_)) => Some(Cell::Unwritten),
                    (2, Some(old), Some(new)) => {
                        let (mut bytes, new) = (old.bytes(), new.bytes());
                        let torn = dice.below(9) as usize * SECTOR;
                        bytes[..torn].copy_from_slice(&new[..torn]);
                        Some(Cell::Written(bytes.into()))
                    }
                    (_, _, new) => new.cloned(),
                };
                match survivor {
                    Some(cell) => drop(content.blocks.insert(block, cell)),
                    None => drop(content.blocks.remove(&block)),
                }
            }
            let last = content.len.div_ceil(BLOCK);
            content.blocks.retain(|block, _| *block < last);
            inode.now = content.clone();
            inode.durable = content;
        }
    }
}

impl World {
    /// Counts an operation that changes something; fails if the machine is down.
    fn step(&mut self, doing: &'static str, name: &str) -> Result<()> {
        self.alive(doing, name)?;
        self.operations += 1;
        self.clock += 1;
        Ok(())
    }

    fn alive(&self, doing: &'static str, name: &str) -> Result<()> {
        if self.die_after.is_some_and(|at| self.operations >= at) {
            return Err(DiskError::Io {
                doing,
                path: name.into(),
                source: io::Error::other("the machine is down"),
            });
        }
        Ok(())
    }

    fn change(&mut self, dir: &str, change: NameChange) {
        apply(self.names.entry(dir.into()).or_default(), &change);
        self.pending.entry(dir.into()).or_default().push(change);
    }

    fn find(&self, dir: &str, name: &str) -> Option<u64> {
        self.names.get(dir)?.get(name).copied()
    }

    fn stat(&self, inode: u64) -> Stat {
        let links = self.names.values().flat_map(BTreeMap::values).filter(|at| **at == inode).count() as u64;
        let Some(node) = self.inodes.get(&inode) else { return Stat::default() };
        let allocated = node.now.blocks.len() as u64 * BLOCK;
        Stat { inode, links, bytes: node.now.len, allocated, changed: (0, node.changes) }
    }
}

fn missing(doing: &'static str, name: &str) -> DiskError {
    DiskError::Io { doing, path: name.into(), source: io::ErrorKind::NotFound.into() }
}

impl SimDir {
    /// A block of a layer cannot be read any more.
    pub fn lose(&self, name: &str, block: u64) {
        let mut world = self.disk.world();
        let inode = world.find(&self.name, name);
        if let Some(node) = inode.and_then(|inode| world.inodes.get_mut(&inode)) {
            node.lost.insert(block);
        }
    }

    /// Changes a file behind the format's back, as an accident would, durably.
    pub fn damage(&self, name: &str, bytes: Option<&[u8]>) {
        let mut world = self.disk.world();
        match bytes {
            None => {
                world.names.entry(self.name.clone()).or_default().remove(name);
                world.durable_names.entry(self.name.clone()).or_default().remove(name);
            }
            Some(bytes) => {
                let inode = world.fresh(bytes);
                world.names.entry(self.name.clone()).or_default().insert(name.into(), inode);
                world.durable_names.entry(self.name.clone()).or_default().insert(name.into(), inode);
            }
        }
    }
}

impl World {
    fn fresh(&mut self, bytes: &[u8]) -> u64 {
        self.next += 1;
        let mut node = Inode::default();
        node.now.len = bytes.len() as u64;
        for (at, chunk) in bytes.chunks(BLOCK as usize).enumerate() {
            let mut block = chunk.to_vec();
            block.resize(BLOCK as usize, 0);
            node.now.blocks.insert(at as u64, Cell::Written(block.into()));
        }
        node.durable = node.now.clone();
        node.changes = self.clock;
        self.inodes.insert(self.next, node);
        self.next
    }
}

impl Dir for SimDir {
    type File = SimFile;

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }

    fn list(&self) -> Result<Vec<String>> {
        let world = self.disk.world();
        world.alive("listing", &self.name)?;
        Ok(world.names.get(&self.name).map(|names| names.keys().cloned().collect()).unwrap_or_default())
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        let world = self.disk.world();
        world.alive("looking at", name)?;
        Ok(world.find(&self.name, name).map(|inode| world.stat(inode)))
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let file = {
            let world = self.disk.world();
            world.alive("reading", name)?;
            let Some(inode) = world.find(&self.name, name) else { return Ok(None) };
            SimFile { disk: self.disk.clone(), inode }
        };
        let mut bytes = vec![0; (file.len()? as usize).min(limit)];
        file.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut world = self.disk.world();
        world.step("writing", name)?;
        let inode = world.fresh(bytes);
        world.change(&self.name, NameChange::Link(name.into(), inode));
        Ok(())
    }

    fn write_together(&self, small: &[(String, Vec<u8>)], also: &[&SimFile]) -> Result<()> {
        small.iter().try_for_each(|(name, bytes)| self.write(name, bytes))?;
        also.iter().try_for_each(|file| file.sync())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut world = self.disk.world();
        world.step("renaming", from)?;
        let inode = world.find(&self.name, from).ok_or_else(|| missing("renaming", from))?;
        world.change(&self.name, NameChange::Rename(from.into(), to.into(), inode));
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> Result<()> {
        let mut world = self.disk.world();
        world.step("linking", from)?;
        let inode = world.find(&self.name, from).ok_or_else(|| missing("linking", from))?;
        if world.find(&self.name, to).is_some() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(DiskError::Io { doing: "linking", path: to.into(), source });
        }
        world.change(&self.name, NameChange::Link(to.into(), inode));
        Ok(())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        let mut world = self.disk.world();
        world.alive("removing", name)?;
        if world.find(&self.name, name).is_some() {
            world.step("removing", name)?;
            world.change(&self.name, NameChange::Unlink(name.into()));
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut world = self.disk.world();
        world.step("syncing", &self.name)?;
        world.pending.remove(&self.name);
        let names = world.names.get(&self.name).cloned().unwrap_or_default();
        world.durable_names.insert(self.name.clone(), names);
        Ok(())
    }

    fn open(&self, name: &str, _writable: bool) -> Result<SimFile> {
        let world = self.disk.world();
        world.alive("opening", name)?;
        let inode = world.find(&self.name, name).ok_or_else(|| missing("opening", name))?;
        drop(world);
        Ok(SimFile { disk: self.disk.clone(), inode })
    }

    fn open_shared_layer(&self, name: &str) -> Result<SimFile> {
        self.open(name, true)
    }

    fn open_path(&self, path: &str) -> Result<SimFile> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        self.disk.dir(dir).open(name, false)
    }

    fn create(&self, name: &str, bytes: u64) -> Result<SimFile> {
        let mut world = self.disk.world();
        world.step("creating", name)?;
        if world.find(&self.name, name).is_some() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(DiskError::Io { doing: "creating", path: name.into(), source });
        }
        let inode = world.fresh(&[]);
        if let Some(node) = world.inodes.get_mut(&inode) {
            node.now.len = bytes;
        }
        world.change(&self.name, NameChange::Link(name.into(), inode));
        drop(world);
        Ok(SimFile { disk: self.disk.clone(), inode })
    }

    fn adopt(&self, from: &Self, names: &[(String, String)]) -> Result<()> {
        for (there, here) in names {
            let mut world = self.disk.world();
            world.step("linking", there)?;
            let inode = world.find(&from.name, there).ok_or_else(|| missing("linking", there))?;
            world.change(&self.name, NameChange::Link(here.clone(), inode));
        }
        Ok(())
    }

    fn sibling(&self, name: &str) -> Result<Self> {
        let half = format!("{name}.making");
        let mut world = self.disk.world();
        world.step("creating", &half)?;
        let World { names, durable_names, pending, .. } = &mut *world;
        names.remove(&half);
        durable_names.remove(&half);
        pending.remove(&half);
        drop(world);
        Ok(self.disk.dir(&half))
    }

    fn has_sibling(&self, name: &str) -> Result<bool> {
        let world = self.disk.world();
        world.alive("looking at", name)?;
        Ok(world.names.contains_key(name))
    }

    /// Directories' own names are durable at once.
    fn finish(self, name: &str) -> Result<()> {
        let mut world = self.disk.world();
        world.step("renaming", &self.name)?;
        if world.names.contains_key(name) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(DiskError::Io { doing: "renaming", path: name.into(), source });
        }
        let World { names, durable_names, pending, .. } = &mut *world;
        for map in [names, durable_names] {
            let entries = map.remove(&self.name).unwrap_or_default();
            map.insert(name.into(), entries);
        }
        let changes = pending.remove(&self.name).unwrap_or_default();
        pending.insert(name.into(), changes);
        Ok(())
    }
}

impl SimFile {
    fn with<T>(&self, doing: &'static str, changes: bool, act: impl FnOnce(&mut Inode) -> T) -> Result<T> {
        let mut world = self.disk.world();
        if changes {
            world.step(doing, "a layer")?;
        } else {
            world.alive(doing, "a layer")?;
        }
        let clock = world.clock;
        let node = world.inodes.entry(self.inode).or_default();
        if changes {
            node.changes = clock;
        }
        Ok(act(node))
    }
}

impl File for SimFile {
    fn len(&self) -> Result<u64> {
        self.with("looking at", false, |node| node.now.len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        assert!(offset.is_multiple_of(BLOCK), "aligned");
        self.with("reading", false, |node| {
            let blocks = offset / BLOCK..(offset + buffer.len() as u64).div_ceil(BLOCK);
            if node.lost.range(blocks).next().is_some() {
                let source = io::Error::from_raw_os_error(libc::EIO);
                return Err(DiskError::Io { doing: "reading", path: "a layer".into(), source });
            }
            for (at, chunk) in buffer.chunks_mut(BLOCK as usize).enumerate() {
                let bytes = node.now.blocks.get(&(offset / BLOCK + at as u64)).map(Cell::bytes);
                let bytes = bytes.unwrap_or_else(|| vec![0; BLOCK as usize]);
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
            Ok(())
        })?
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert!(offset.is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK as usize), "aligned");
        // Each block is an operation of its own: the machine may stop in the middle.
        for (at, chunk) in bytes.chunks(BLOCK as usize).enumerate() {
            self.with("writing", true, |node| {
                let block = offset / BLOCK + at as u64;
                node.touched.insert(block);
                node.lost.remove(&block);
                node.now.blocks.insert(block, Cell::Written(chunk.into()));
                node.now.len = node.now.len.max((block + 1) * BLOCK);
            })?;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK), "aligned");
        self.with("punching", true, |node| {
            for block in offset / BLOCK..(offset + len) / BLOCK {
                if node.now.blocks.remove(&block).is_some() {
                    node.touched.insert(block);
                }
            }
        })
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.with("listing", false, |node| {
            let end = (offset + len).min(node.now.len);
            let mut found: Vec<Extent> = Vec::new();
            for (block, cell) in
                node.now.blocks.range(offset / BLOCK..end.div_ceil(BLOCK).max(offset / BLOCK))
            {
                let unwritten = *cell == Cell::Unwritten;
                let full = found.len() == limit;
                match found.last_mut() {
                    Some(last) if last.start + last.len == block * BLOCK && last.unwritten == unwritten => {
                        last.len += BLOCK;
                    }
                    _ if full => break,
                    _ => found.push(Extent { start: block * BLOCK, len: BLOCK, unwritten }),
                }
            }
            found
        })
    }

    fn set_len(&self, bytes: u64) -> Result<()> {
        self.with("setting the length of", true, |node| {
            node.now.len = bytes;
            let last = bytes.div_ceil(BLOCK);
            let gone: Vec<u64> = node.now.blocks.range(last..).map(|(block, _)| *block).collect();
            for block in gone {
                node.now.blocks.remove(&block);
                node.touched.insert(block);
            }
        })
    }

    fn sync(&self) -> Result<()> {
        self.with("syncing", true, |node| {
            node.durable = node.now.clone();
            node.touched.clear();
        })
    }

    fn stat(&self) -> Result<Stat> {
        let world = self.disk.world();
        world.alive("looking at", "a layer")?;
        Ok(world.stat(self.inode))
    }
}
