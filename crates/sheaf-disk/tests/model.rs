//! A directory against a model: random operations, a machine that stops anywhere, and what may then be read.
//!
//! The model knows for every block which values it may have: the one that was synced last and all written since. A
//! snapshot that exists has exactly the content of its moment. Interrupted operations are before or after.

use std::collections::{BTreeMap, BTreeSet};

use sheaf_block_core::damage::Damage;
use sheaf_block_core::disk::{Change, Digest, Done, Failure, Metadata, Op};
use sheaf_block_core::ids::{CoordinatorId, ReplicaId, ReplicaSet, SegmentIndex, VolumeId};
use sheaf_block_core::membership::Ledger;
use sheaf_block_core::structure::{CloneOf, Kind, LayerId, Operation, SnapshotName, Structure};
use sheaf_disk::fs::{Dir, File};
use sheaf_disk::layers::{self, Intent, Opened};
use sheaf_disk::meta::rfc3339;
use sheaf_disk::names;
use sheaf_disk::replica::{Base, Create, ReplicaDir, SnapshotInfo, read_layers};
use sheaf_disk::sim::{Dice, SimDir, SimDisk};
use sheaf_disk::state::{Store, first_files};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 40;

/// Every block is filled with one number.
fn fill(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

#[derive(Clone, Debug)]
struct World {
    /// What each block may hold; the newest last.
    blocks: Vec<Vec<u64>>,
    snapshots: BTreeMap<String, Vec<u64>>,
}

impl World {
    fn new() -> Self {
        Self { blocks: vec![vec![0]; BLOCKS as usize], snapshots: BTreeMap::new() }
    }

    fn current(&self) -> Vec<u64> {
        self.blocks.iter().map(|values| values[values.len() - 1]).collect()
    }

    fn synced(&mut self) {
        self.blocks.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
    }
}

/// What is wrong with what was read, if anything.
fn compare(open: &mut ReplicaDir<SimDir>, world: &World) -> Result<(), String> {
    if open.bytes() != (world.blocks.len() * BLOCK) as u64 {
        return Err(format!("{} bytes, expected {} blocks", open.bytes(), world.blocks.len()));
    }
    for (block, allowed) in world.blocks.iter().enumerate() {
        let mut buffer = vec![9; BLOCK];
        open.read(block as u64, &mut buffer).map_err(|error| error.explain())?;
        for sector in buffer.chunks(512) {
            let value = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            if !allowed.contains(&value) || sector != &fill(value)[..512] {
                return Err(format!("block {block} has {value}, allowed {allowed:?}"));
            }
        }
    }
    let names: BTreeSet<String> = visible(open);
    if names != world.snapshots.keys().cloned().collect() {
        return Err(format!("snapshots {names:?}, expected {:?}", world.snapshots.keys()));
    }
    for (name, content) in &world.snapshots {
        let layers = open.layers_of(name).map_err(|error| error.explain())?;
        let mut buffer = vec![9; content.len() * BLOCK];
        read_layers(&layers, 0, &mut buffer).map_err(|error| error.explain())?;
        for (block, value) in content.iter().enumerate() {
            if buffer[block * BLOCK..(block + 1) * BLOCK] != fill(*value) {
                return Err(format!("block {block} of snapshot {name} is not {value}"));
            }
        }
    }
    Ok(())
}

fn visible(open: &ReplicaDir<SimDir>) -> BTreeSet<String> {
    let images = open.tree().images.iter().filter(|(_, meta)| !meta.removed);
    images.filter_map(|(name, _)| names::snapshot_of(name)).map(str::to_owned).collect()
}

/// A directory of the only replica of a volume.
fn create(dir: SimDir) -> Opened<SimDir> {
    let what = Create { bytes: BLOCKS * BLOCK as u64, ..Create::default() };
    let dir = ReplicaDir::create(dir, &what).expect("creates");
    let ledger = Ledger::created(ReplicaSet::of([ReplicaId(1)]).expect("fits"));
    let meta = Metadata::new(VolumeId(1), ReplicaId(1), Structure::new(BLOCKS, None), ledger);
    let store = Store::create(dir.dir(), &meta).expect("creates");
    Opened { dir, store, meta }
}

fn snapshot_kind(name: &str, created: u64) -> Kind {
    let name = SnapshotName::new(name).expect("is a name");
    Kind::Snapshot { name, created, user: true, labels: BTreeMap::new() }
}

struct Run {
    disk: SimDisk,
    dice: Dice,
    in_order: bool,
    open: Opened<SimDir>,
    world: World,
    next: u64,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        let mut open = create(disk.dir("r"));
        open.dir.set_dirty(true).expect("marks");
        let in_order = seed.is_multiple_of(2);
        Self { disk, dice: Dice::new(seed), in_order, open, world: World::new(), next: 1, log: vec![] }
    }

    fn operate(&mut self, kind: Kind) -> sheaf_disk::fs::Result<()> {
        // As the coordinator does it: everything before is synced.
        self.open.dir.sync()?;
        let id = self.open.meta.structure.next(CoordinatorId(7));
        self.open.operate(&Operation { id, kind })
    }

    fn layer(&self, name: &str) -> LayerId {
        let name = SnapshotName::new(name).expect("is a name");
        self.open.meta.structure.snapshot(&name).expect("is there").id
    }

    /// One operation. Says what the world may be like if it did not come to its end.
    fn step(&mut self) -> Result<(), Vec<World>> {
        let before = self.world.clone();
        let size = self.world.blocks.len() as u64;
        let start = self.dice.below(size);
        let count = 1 + self.dice.below((size - start).min(9));
        let name = format!("s{}", self.dice.below(6));
        let range = start as usize..(start + count) as usize;
        match self.dice.below(24) {
            0..=9 => {
                let value = self.next;
                self.next += 1;
                self.log.push(format!("write {range:?} {value}"));
                self.world.blocks[range].iter_mut().for_each(|values| values.push(value));
                self.open
                    .dir
                    .write(start, &fill(value).repeat(count as usize))
                    .map_err(|_| vec![self.world.clone()])
            }
            10..=12 => {
                self.log.push(format!("zero {range:?}"));
                self.world.blocks[range].iter_mut().for_each(|values| values.push(0));
                self.open.dir.zero(start, count).map_err(|_| vec![self.world.clone()])
            }
            13..=14 => {
                self.log.push("sync".into());
                self.open.dir.sync().map_err(|_| vec![before])?;
                self.world.synced();
                Ok(())
            }
            15..=17 if !self.open.dir.tree().images.contains_key(&names::snapshot(&name)) => {
                self.log.push(format!("snapshot {name}"));
                let kind = snapshot_kind(&name, self.next);
                let mut after = self.world.clone();
                after.synced();
                after.snapshots.insert(name, after.current());
                self.operate(kind).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            18 if self.world.snapshots.contains_key(&name) => {
                self.log.push(format!("revert {name}"));
                let mut after = self.world.clone();
                let mut content = after.snapshots[&name].clone();
                content.resize(after.blocks.len(), 0);
                after.blocks = content.into_iter().map(|value| vec![value]).collect();
                self.operate(Kind::Revert(self.layer(&name))).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            19 if self.world.snapshots.contains_key(&name) => {
                self.log.push(format!("remove {name}"));
                let mut after = self.world.clone();
                after.snapshots.remove(&name);
                self.operate(Kind::Remove(self.layer(&name))).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            20..=21 => self.merge().map_err(|_| vec![self.world.clone()]),
            22 if size < 60 => {
                let blocks = size + 1 + self.dice.below(5);
                self.log.push(format!("expand {blocks}"));
                let mut after = self.world.clone();
                after.blocks.resize(blocks as usize, vec![0]);
                self.operate(Kind::Expand(blocks)).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            23 => {
                self.log.push("close and open".into());
                self.open.dir.set_dirty(false).map_err(|_| vec![before.clone()])?;
                self.world.synced();
                self.open = layers::open(self.disk.dir("r")).map_err(|_| vec![before.clone()])?;
                self.open.dir.set_dirty(true).map_err(|_| vec![before])
            }
            _ => Ok(()),
        }
    }

    /// A removed snapshot is folded into what is above it, with a write between, and leaves the tree, or not yet.
    fn merge(&mut self) -> sheaf_disk::fs::Result<()> {
        let structure = self.open.meta.structure.clone();
        let Some((id, child)) = structure.foldable() else { return Ok(()) };
        self.log.push(format!("fold {id} into {child:?}"));
        if child.is_some() {
            let op = Op::Fold(id, SegmentIndex(0));
            let job = self.open.dir.part_job(&structure, &op)?.expect("a fold is a job");
            if job.run() != Ok(Done::Nothing) {
                let source = std::io::Error::other("a fold failed");
                return Err(sheaf_disk::fs::DiskError::Io { doing: "folding", path: "r".into(), source });
            }
        }
        if self.dice.below(2) == 0 {
            let (block, value) = (self.dice.below(BLOCKS), self.next);
            self.next += 1;
            self.log.push(format!("write {block} {value} meanwhile"));
            self.world.blocks[block as usize].push(value);
            self.open.dir.write(block, &fill(value))?;
        }
        if self.dice.below(4) == 0 {
            self.log.push("not dropped yet".into());
            return Ok(());
        }
        self.log.push(format!("drop {id}"));
        self.operate(Kind::Drop(id))?;
        self.world.synced();
        Ok(())
    }

    fn crash(&mut self, allowed: &[World]) {
        self.disk.power_cut(&mut self.dice, self.in_order);
        let log = || self.log.join("\n");
        let dir = self.disk.dir("r");
        let names = dir.list().expect("lists");
        let opened = layers::open(dir);
        self.open = opened.unwrap_or_else(|error| panic!("{}\n{names:?}\n{}", error.explain(), log()));
        let blocks = self.open.dir.bytes() / BLOCK as u64;
        self.open.dir.undo_unwritten([(0, blocks)]).expect("undoes");
        let mut wrong = Vec::new();
        for world in allowed {
            match compare(&mut self.open.dir, world) {
                Ok(()) => {
                    self.world = world.clone();
                    // Sectors of torn blocks may be of any of the values: from here on they are known again.
                    for block in 0..blocks {
                        let value = self.next;
                        self.next += 1;
                        self.open.dir.write(block, &fill(value)).expect("writes");
                        self.world.blocks[block as usize] = vec![value];
                    }
                    self.open.dir.sync().expect("syncs");
                    return;
                }
                Err(why) => wrong.push(why),
            }
        }
        panic!("after a power cut: {wrong:#?}\n{}", log());
    }
}

#[test]
fn whatever_happens_the_content_is_what_it_may_be() {
    let (mut crashes, mut operations) = (0, 0);
    for seed in 0..200 {
        let mut run = Run::new(seed);
        let calm = seed % 6 == 0;
        for _ in 0..70 {
            operations += 1;
            if !calm && run.dice.below(6) == 0 {
                let after = run.dice.below(14);
                run.disk.die_after(Some(after));
            }
            if let Err(allowed) = run.step() {
                crashes += 1;
                run.log.push("machine down".into());
                run.crash(&allowed);
                continue;
            }
            run.disk.die_after(None);
            let wrong = {
                let newest = newest(&run.world);
                compare(&mut run.open.dir, &newest)
            };
            if let Err(why) = wrong {
                panic!("seed {seed}: {why}\n{}", run.log.join("\n"));
            }
        }
    }
    // Enough of them for the test to be about power cuts, however many seeds there are.
    assert!(crashes * 60 > operations, "{crashes} crashes in {operations} operations");
    println!("{operations} operations, {crashes} power cuts");
}

/// Without a crash only the newest value may be read.
fn newest(world: &World) -> World {
    let mut world = world.clone();
    world.synced();
    world
}

/// Fills the directory of a volume that begins as `file` of the directory `bases`.
fn fill_over(disk: &SimDisk, name: &str, file: &str, bytes: u64) -> sheaf_disk::fs::Result<()> {
    let what = Create { bytes, created: rfc3339(2), ..Create::default() };
    let bases = disk.dir("bases");
    let snapshot = SnapshotInfo { name: "image".into(), created: rfc3339(1), ..SnapshotInfo::default() };
    let image = SnapshotName::new("image").expect("is a name");
    let structure = Structure::over(bytes / BLOCK as u64, image, 1);
    let ledger = Ledger::created(ReplicaSet::of([ReplicaId(1)]).expect("fits"));
    let meta = Metadata::new(VolumeId(1), ReplicaId(1), structure, ledger);
    let base = Base { dir: &bases, file, snapshot };
    ReplicaDir::fill(&disk.dir(name), &what, Some(&base), first_files(&meta))
}

#[test]
fn a_volume_begins_as_a_file_that_others_have_too() {
    let disk = SimDisk::default();
    let bases = disk.dir("bases");
    let file = bases.create("b", 2 * BLOCK as u64).expect("creates");
    file.write_at(0, &fill(1)).expect("writes");
    file.sync().expect("syncs");
    bases.sync().expect("syncs");
    let bytes = BLOCKS * BLOCK as u64;
    for name in ["one", "two"] {
        fill_over(&disk, name, "b", bytes).expect("fills");
    }
    // All of it is durable, and files and promises tell the same.
    disk.power_cut(&mut Dice::new(3), false);
    let open = |name: &str| layers::open(disk.dir(name)).expect("opens");
    let (mut one, mut two) = (open("one"), open("two"));
    assert_eq!(one.meta.structure, two.meta.structure);
    let read = |open: &mut Opened<SimDir>| {
        let mut buffer = vec![9; 3 * BLOCK];
        open.dir.read(0, &mut buffer).expect("reads");
        (buffer[0], buffer[BLOCK], buffer[2 * BLOCK])
    };
    assert_eq!(read(&mut one), (1, 0, 0), "behind the file's end are zeros");
    one.dir.write(0, &fill(5)).expect("writes");
    one.dir.write(2, &fill(6)).expect("writes");
    two.dir.zero(0, 1).expect("zeroes");
    assert_eq!((read(&mut one), read(&mut two)), ((5, 0, 6), (0, 0, 0)));
    // It lives as any other volume: grown, gone back, its snapshot given up. What others have is not folded.
    let next =
        |open: &Opened<SimDir>, kind| Operation { id: open.meta.structure.next(CoordinatorId(7)), kind };
    let bottom = LayerId::default();
    for kind in [Kind::Expand(2 * BLOCKS), Kind::Revert(bottom), Kind::Remove(bottom)] {
        let operation = next(&one, kind);
        one.operate(&operation).expect("operates");
    }
    assert_eq!(read(&mut one), (1, 0, 0));
    let structure = one.meta.structure.clone();
    let fold = |open: &mut Opened<SimDir>| {
        let op = Op::Fold(bottom, SegmentIndex(0));
        open.dir.part_job(&structure, &op).expect("begins").expect("is a job").run()
    };
    assert_eq!(fold(&mut one), Err(Failure::Shared));
    drop(two);
    for name in disk.dir("two").list().expect("lists") {
        disk.dir("two").unlink(&name).expect("unlinks");
    }
    assert_eq!(fold(&mut one), Err(Failure::Shared), "the file itself is there for the next volume");
    bases.unlink("b").expect("unlinks");
    assert_eq!(fold(&mut one), Ok(Done::Nothing));
    let operation = next(&one, Kind::Drop(bottom));
    one.operate(&operation).expect("operates");
    assert_eq!((read(&mut one), one.dir.chain().len()), ((1, 0, 0), 1));
}

#[test]
fn a_file_that_cannot_be_below_a_volume_is_refused() {
    let disk = SimDisk::default();
    let bases = disk.dir("bases");
    for (name, bytes) in [("empty", 0), ("odd", 1000), ("long", 3 * BLOCK as u64)] {
        drop(bases.create(name, bytes).expect("creates"));
    }
    for (file, word) in [("none", "no none"), ("empty", "above 0"), ("odd", "multiple"), ("long", "12288")] {
        let refused = fill_over(&disk, file, file, 2 * BLOCK as u64).expect_err(file).explain();
        assert!(refused.contains(word), "{refused}");
        assert!(disk.dir(file).list().expect("lists").is_empty(), "{file}");
    }
}

#[test]
fn a_clone_shares_layers_and_neither_can_hurt_the_other() {
    let disk = SimDisk::default();
    let what = Create { bytes: BLOCKS * BLOCK as u64, ..Create::default() };
    let mut origin = ReplicaDir::create(disk.dir("origin"), &what).expect("creates");
    let snapshot =
        |name: &str| SnapshotInfo { name: name.into(), created: rfc3339(1), ..SnapshotInfo::default() };
    origin.write(0, &fill(1)).expect("writes");
    origin.snapshot(&snapshot("s1")).expect("snapshots");
    origin.write(1, &fill(2)).expect("writes");
    origin.snapshot(&snapshot("s2")).expect("snapshots");
    origin.write(0, &fill(3)).expect("writes");
    origin.clone_to("s2", &disk.dir("copy"), &rfc3339(2), []).expect("clones");
    let mut copy = ReplicaDir::open(disk.dir("copy")).expect("opens");
    let read = |open: &mut ReplicaDir<SimDir>| {
        let mut buffer = vec![0; 2 * BLOCK];
        open.read(0, &mut buffer).expect("reads");
        (buffer[0], buffer[BLOCK])
    };
    assert_eq!((read(&mut origin), read(&mut copy)), ((3, 2), (1, 2)));
    // The origin gives up a layer that the copy has too: it is not folded as long as that is so, and not changed.
    origin.remove("s1").expect("removes");
    let structure = layers::structure_of(origin.tree()).expect("is a tree");
    let layer = |name: &str| {
        let name = SnapshotName::new(name).expect("is a name");
        structure.snapshot(&name).expect("is there").id
    };
    let (s1, s2, at) = (layer("s1"), layer("s2"), SegmentIndex(0));
    let run = |origin: &mut ReplicaDir<SimDir>, op: Op| {
        origin.part_job(&structure, &op).expect("begins").expect("is a job").run()
    };
    assert_eq!(run(&mut origin, Op::Fold(s1, at)), Err(Failure::Shared));
    assert_eq!(run(&mut origin, Op::Fold(s2, at)), Err(Failure::Shared), "only more space would be taken");
    // A good copy of what is there may be written there: the other one wants it as well.
    let Ok(Done::Part(part)) = run(&mut origin, Op::ReadPart(s2, at)) else { panic!("reads") };
    assert_eq!(run(&mut origin, Op::WritePart(s2, at, part)), Ok(Done::Nothing));
    copy.write(1, &fill(7)).expect("writes");
    origin.write(1, &fill(8)).expect("writes");
    assert_eq!((read(&mut origin), read(&mut copy)), ((3, 8), (1, 7)));
    // The origin goes; the copy goes on, and may fold now.
    let names = disk.dir("origin").list().expect("lists");
    names.iter().for_each(|name| disk.dir("origin").unlink(name).expect("deletes"));
    assert_eq!(read(&mut copy), (1, 7));
    let structure = layers::structure_of(copy.tree()).expect("is a tree");
    let s1 = structure.snapshot(&SnapshotName::new("s1").expect("is a name")).expect("is there").id;
    copy.remove("s1").expect("removes");
    let job = copy.part_job(&structure, &Op::Fold(s1, at)).expect("begins").expect("is a job");
    assert_eq!(job.run(), Ok(Done::Nothing));
    copy.drop_layer("s1").expect("drops");
    assert_eq!((read(&mut copy), copy.tree().images.len()), ((1, 7), 2));
    let refused = copy.clone_to("s9", &disk.dir("x"), "", []).expect_err("refused").explain();
    assert!(refused.contains("no snapshot s9"), "{refused}");
}

/// A clone that is interrupted anywhere is not there, or whole; its source does not notice.
#[test]
fn a_clone_is_there_or_not() {
    let (mut before, mut after, mut again) = (0, 0, 0);
    for die in 0..60 {
        let disk = SimDisk::default();
        let mut open = create(disk.dir("r"));
        let operate = |open: &mut Opened<SimDir>, kind: Kind| {
            open.dir.sync()?;
            let id = open.meta.structure.next(CoordinatorId(7));
            open.operate(&Operation { id, kind })
        };
        open.dir.write(3, &fill(3)).expect("writes");
        operate(&mut open, snapshot_kind("s1", 1)).expect("snapshots");
        open.dir.write(3, &fill(4)).expect("writes");
        operate(&mut open, snapshot_kind("s2", 2)).expect("snapshots");
        open.dir.write(4, &fill(5)).expect("writes");
        let from =
            open.meta.structure.snapshot(&SnapshotName::new("s2").expect("is a name")).expect("is there").id;
        let members = ReplicaSet::of([ReplicaId(1)]).expect("fits");
        let name = SnapshotName::new("copy").expect("is a name");
        let clone = CloneOf { from, volume: VolumeId(0x1234), name, created: 3, members };
        let directory = layers::clone_directory(&clone);
        disk.die_after(Some(die));
        let done = operate(&mut open, Kind::Clone(Box::new(clone.clone()))).is_ok();
        disk.power_cut(&mut Dice::new(die), die.is_multiple_of(2));
        let origin = layers::open(disk.dir("r")).unwrap_or_else(|error| panic!("{die}: {}", error.explain()));
        assert_eq!(origin.dir.contradiction(&origin.meta.structure), None);
        let known = matches!(&origin.meta.structure.last, Some(Operation { kind: Kind::Clone(_), .. }));
        assert!(known || !done, "what was done stays done");
        let there = disk.dir("r").has_sibling(&directory).expect("looks");
        assert!(there || !known, "{die}: it is promised");
        if !there {
            before += 1;
            continue;
        }
        if known {
            after += 1
        } else {
            again += 1
        }
        let mut copy =
            layers::open(disk.dir(&directory)).unwrap_or_else(|error| panic!("{die}: {}", error.explain()));
        assert_eq!((copy.meta.volume, copy.meta.replica), (VolumeId(0x1234), ReplicaId(1)));
        let mut block = fill(9);
        for (at, value) in [(3, 4), (4, 0)] {
            copy.dir.read(at, &mut block).expect("reads");
            assert_eq!(block, fill(value), "{die}: block {at}");
        }
    }
    assert!(before > 3 && after > 3, "{before} before, {after} after, {again} made and not promised");
}

/// Blocks that the disk cannot read are told one by one, and those that do not fit; without their own checksums, all of what is sealed.
#[test]
fn what_can_be_read_is_salvaged() {
    let disk = SimDisk::default();
    let mut open = create(disk.dir("r"));
    for block in 2..6 {
        open.dir.write(block, &fill(block)).expect("writes");
    }
    let id = open.meta.structure.next(CoordinatorId(7));
    let layer = open.meta.structure.head;
    open.operate(&Operation { id, kind: snapshot_kind("s1", 1) }).expect("snapshots");
    let structure = open.meta.structure.clone();
    let at = SegmentIndex(0);
    let mut run = |op: Op, bad: u64| {
        let mut damage = Damage::default();
        damage.add(layer, at, bad);
        open.dir.part_job(&structure, &op).expect("begins").expect("is a job").beside(&damage).run()
    };
    let Ok(Done::Part(whole)) = run(Op::ReadPart(layer, at), 0) else { panic!("reads") };
    assert_eq!(run(Op::Seal(layer, at, whole.checksum()), 0), Ok(Done::Nothing));
    disk.dir("r").lose("volume-snap-s1.img", 3);
    assert_eq!(run(Op::ReadPart(layer, at), 0), Err(Failure::Corrupt));
    assert_eq!(run(Op::Salvage(layer, at), 0), Ok(Done::Part(whole.without(0b1000))));
    let less = whole.without(0b1000);
    let digest = Digest { actual: less.checksum(), sealed: None, bad: 0b1000, fresh: true };
    assert_eq!(run(Op::Digest(layer, at), 0), Ok(Done::Digest(digest)));
    // Once it is known, the rest is read as ever.
    assert_eq!(run(Op::ReadPart(layer, at), 0b1000), Ok(Done::Part(less.clone())));
    assert_eq!(run(Op::Digest(layer, at), 0b1000), Ok(Done::Digest(Digest { fresh: false, ..digest })));
    assert_eq!(run(Op::Fold(layer, at), 0b1000), Ok(Done::Damaged(0b1000)));
    // A good copy makes it whole, on the disk too.
    assert_eq!(run(Op::WritePart(layer, at, whole.clone()), 0b1000), Ok(Done::Nothing));
    assert_eq!(run(Op::ReadPart(layer, at), 0), Ok(Done::Part(whole.clone())));
    // What is readable and wrong.
    assert_eq!(run(Op::Seal(layer, at, whole.checksum()), 0), Ok(Done::Nothing));
    disk.dir("r").open("volume-snap-s1.img", true).expect("opens").write_at(8192, &fill(6)).expect("rots");
    assert_eq!(run(Op::Salvage(layer, at), 0), Ok(Done::Part(whole.without(0b100))));
    let sums = disk.dir("r").list().expect("lists").into_iter().find(|name| name.starts_with("sheaf-sums."));
    let sums = disk.dir("r").open(&sums.expect("is there"), true).expect("opens");
    sums.write_at(0, &[0; 4096]).expect("writes");
    assert_eq!(run(Op::Salvage(layer, at), 0), Ok(Done::Part(whole.without(0b11_1100))));
    assert_eq!(run(Op::ReadPart(layer, at), 0), Err(Failure::Corrupt));
}

#[test]
fn a_deleted_snapshot_below_a_users_snapshot_is_not_seen_through_a_discard() {
    // Longhorn's trim punches the layers by position and hits the user's snapshot (longhorn.md, T3 and T4).
    let disk = SimDisk::default();
    let what = Create { bytes: BLOCKS * BLOCK as u64, ..Create::default() };
    let mut open = ReplicaDir::create(disk.dir("r"), &what).expect("creates");
    let snapshot =
        |name: &str| SnapshotInfo { name: name.into(), created: rfc3339(1), ..SnapshotInfo::default() };
    open.write(0, &fill(1)).expect("writes");
    open.snapshot(&snapshot("s1")).expect("snapshots");
    open.write(0, &fill(2)).expect("writes");
    open.snapshot(&snapshot("s2")).expect("snapshots");
    open.remove("s1").expect("removes");
    open.zero(0, 8).expect("zeroes");
    for _ in 0..2 {
        let mut buffer = fill(9);
        open.read(0, &mut buffer).expect("reads");
        assert_eq!(buffer, fill(0), "discarded blocks read as zeros, also after opening again");
        read_layers(&open.layers_of("s2").expect("opens"), 0, &mut buffer).expect("reads");
        assert_eq!(buffer, fill(2), "the snapshot is unchanged");
        drop(open);
        open = ReplicaDir::open(disk.dir("r")).expect("opens");
    }
}

#[test]
fn what_is_refused_is_left_as_it_was() {
    let disk = SimDisk::default();
    let dir = disk.dir("r");
    let what = Create { bytes: BLOCKS * BLOCK as u64, ..Create::default() };
    drop(ReplicaDir::create(dir.clone(), &what).expect("creates"));
    assert!(ReplicaDir::create(dir.clone(), &what).expect_err("not empty").explain().contains("not empty"));
    dir.damage(
        "volume.meta",
        Some(b"{\"Size\":163840,\"Head\":\"volume-head-000.img\",\"Error\":\"disk died\"}"),
    );
    let before = dir.list().expect("lists");
    assert!(ReplicaDir::open(dir.clone()).expect_err("refused").explain().contains("disk died"));
    assert_eq!(dir.list().expect("lists"), before);
    dir.damage("volume.meta", Some(b""));
    let open = ReplicaDir::open(dir.clone()).expect("the copy helps");
    assert!(open.notes()[0].contains("restored from the copy"), "{:?}", open.notes());
    let too_small = open.bytes() - 4096;
    let mut open = open;
    assert!(open.expand(too_small).expect_err("refused").explain().contains("cannot shrink"));
    assert!(open.revert("none", "").expect_err("refused").explain().contains("no snapshot none"));
    let bad = SnapshotInfo { name: "../x".into(), ..SnapshotInfo::default() };
    assert!(open.snapshot(&bad).expect_err("refused").explain().contains("snapshot name"));
}

/// A replica that comes back takes over the others' layers, whatever it had, wherever it is interrupted.
#[test]
fn an_adoption_is_before_or_after() {
    let snapshot = |at: &Structure, name: &str| Operation {
        id: at.next(CoordinatorId(3)),
        kind: snapshot_kind(name, 1),
    };
    // It has seen s1; meanwhile the others removed s1, took s1 again and s2.
    let first = snapshot(&Structure::new(BLOCKS, None), "s1");
    let common = Structure::new(BLOCKS, None).apply(&first).expect("applies");
    let mut target = common.clone();
    let s1 = target.layers[0].id;
    for kind in [Kind::Remove(s1), Kind::Drop(s1)] {
        target = target.apply(&Operation { id: target.next(CoordinatorId(3)), kind }).expect("applies");
    }
    let folded = target.layers[0].folded;
    for name in ["s1", "s2"] {
        target = target.apply(&snapshot(&target, name)).expect("applies");
    }
    assert!(folded.is_some());
    let (mut before, mut after) = (0, 0);
    for die in 0..60 {
        let disk = SimDisk::default();
        let mut open = create(disk.dir("r"));
        open.dir.write(0, &fill(1)).expect("writes");
        open.operate(&first).expect("snapshots");
        open.dir.write(1, &fill(2)).expect("writes");
        open.dir.sync().expect("syncs");
        assert_eq!(open.meta.structure, common);
        disk.die_after(Some(die));
        let missing = open.meta.missing(&target, true);
        let Opened { mut dir, mut store, mut meta } = open;
        let intent = Intent::Adopt(Box::new(target.clone()), true, false);
        let adopted = dir.intend(&intent).and_then(|()| {
            dir.adopt(&meta, &target, true, false)?;
            store.persist(dir.dir(), &mut meta, &[Change::Adopted(Box::new(target.clone()), true)])?;
            dir.adopted()
        });
        disk.power_cut(&mut Dice::new(die), die.is_multiple_of(2));
        let again = layers::open(disk.dir("r")).unwrap_or_else(|error| panic!("{die}: {}", error.explain()));
        if again.meta.structure == common {
            assert!(adopted.is_err(), "what was done stays done");
            before += 1;
            continue;
        }
        after += 1;
        assert_eq!((&again.meta.structure, &again.meta.partial), (&target, &missing), "{die}");
        assert_eq!(again.dir.contradiction(&target), None);
        assert!(again.dir.tree().volume.rebuilding, "nobody else may read it before it is complete");
        let names = disk.dir("r").list().expect("lists");
        let rest = |name: &String| name.starts_with("sheaf-layer.") || *name == layers::INTENT_FILE;
        assert!(!names.iter().any(rest), "{names:?}");
    }
    assert!(before > 0 && after > 10, "{before} before, {after} after");
}

/// Layers that stay keep what they have, though they are called otherwise now.
#[test]
fn an_adoption_finds_layers_by_their_ids() {
    let disk = SimDisk::default();
    let mut open = create(disk.dir("r"));
    open.dir.write(1, &fill(2)).expect("writes");
    open.dir.sync().expect("syncs");
    let head = open.meta.structure.head;
    // The others have made the head a snapshot meanwhile.
    let id = open.meta.structure.next(CoordinatorId(3));
    let target = open.meta.structure.apply(&Operation { id, kind: snapshot_kind("s1", 1) }).expect("applies");
    let Opened { mut dir, meta, .. } = open;
    dir.adopt(&meta, &target, true, false).expect("adopts");
    assert_eq!(dir.contradiction(&target), None);
    let job = dir.part_job(&target, &Op::ReadPart(head, SegmentIndex(0))).expect("begins").expect("is a job");
    let Ok(Done::Part(part)) = job.run() else { panic!("reads") };
    assert_eq!((part.data, part.zero, &part.bytes[..]), (2, 0, &fill(2)[..]));
    // Parts are written whole, checksums are kept, and a part that changed is not believed.
    let run = |dir: &mut ReplicaDir<SimDir>, op: Op| {
        dir.part_job(&target, &op).expect("begins").expect("is a job").run()
    };
    let at = SegmentIndex(0);
    let new = sheaf_block_core::disk::Part { data: 4, zero: 8, bad: 0, bytes: fill(5).into() };
    assert_eq!(run(&mut dir, Op::WritePart(head, at, new.clone())), Ok(Done::Nothing));
    assert_eq!(run(&mut dir, Op::ReadPart(head, at)), Ok(Done::Part(new.clone())));
    assert_eq!(run(&mut dir, Op::Present(head, at, 9)), Ok(Done::Segments(vec![at])));
    let actual = new.checksum();
    assert_eq!(run(&mut dir, Op::Digest(head, at)), Ok(Done::Digest(Digest::of(actual, None))));
    assert_eq!(run(&mut dir, Op::Seal(head, at, actual)), Ok(Done::Nothing));
    assert_eq!(run(&mut dir, Op::Digest(head, at)), Ok(Done::Digest(Digest::of(actual, Some(actual)))));
    dir.dir().open("volume-snap-s1.img", true).expect("opens").write_at(8192, &fill(6)).expect("rots");
    assert_eq!(run(&mut dir, Op::ReadPart(head, at)), Err(sheaf_block_core::disk::Failure::Corrupt));
}
