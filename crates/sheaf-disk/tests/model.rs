//! A directory against a model: random operations, a machine that stops anywhere, and what may then be read.
//!
//! The model knows for every block which values it may have: the one that was synced last and all written since. A
//! snapshot that exists has exactly the content of its moment. Interrupted operations are before or after.

use std::collections::{BTreeMap, BTreeSet};

use sheaf_disk::fs::Dir;
use sheaf_disk::meta::rfc3339;
use sheaf_disk::names;
use sheaf_disk::replica::{Create, ReplicaDir, SnapshotInfo, read_layers};
use sheaf_disk::sim::{Dice, SimDir, SimDisk};

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
fn compare(open: &mut ReplicaDir<SimDir>, world: &World) -> Result<Vec<u64>, String> {
    if open.bytes() != (world.blocks.len() * BLOCK) as u64 {
        return Err(format!("{} bytes, expected {} blocks", open.bytes(), world.blocks.len()));
    }
    let mut found = Vec::new();
    for (block, allowed) in world.blocks.iter().enumerate() {
        let mut buffer = vec![9; BLOCK];
        open.read(block as u64, &mut buffer).map_err(|error| error.explain())?;
        let mut first = None;
        for sector in buffer.chunks(512) {
            let value = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            if !allowed.contains(&value) || sector != &fill(value)[..512] {
                return Err(format!("block {block} has {value}, allowed {allowed:?}"));
            }
            first.get_or_insert(value);
        }
        found.push(first.expect("a block has sectors"));
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
    Ok(found)
}

fn visible(open: &ReplicaDir<SimDir>) -> BTreeSet<String> {
    let images = open.tree().images.iter().filter(|(_, meta)| !meta.removed);
    images.filter_map(|(name, _)| names::snapshot_of(name)).map(str::to_owned).collect()
}

struct Run {
    disk: SimDisk,
    dice: Dice,
    in_order: bool,
    open: ReplicaDir<SimDir>,
    world: World,
    next: u64,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        let what = Create { bytes: BLOCKS * BLOCK as u64, ..Create::default() };
        let open = ReplicaDir::create(disk.dir("r"), &what).expect("creates");
        let in_order = seed.is_multiple_of(2);
        Self { disk, dice: Dice::new(seed), in_order, open, world: World::new(), next: 1, log: vec![] }
    }

    /// One operation. Says what the world may be like if it did not come to its end.
    fn step(&mut self) -> Result<(), Vec<World>> {
        let before = self.world.clone();
        let size = self.world.blocks.len() as u64;
        let start = self.dice.below(size);
        let count = 1 + self.dice.below((size - start).min(9));
        let name = format!("s{}", self.dice.below(6));
        let range = start as usize..(start + count) as usize;
        let created = rfc3339(self.next as i64);
        match self.dice.below(24) {
            0..=9 => {
                let value = self.next;
                self.next += 1;
                self.log.push(format!("write {range:?} {value}"));
                self.world.blocks[range].iter_mut().for_each(|values| values.push(value));
                self.open
                    .write(start, &fill(value).repeat(count as usize))
                    .map_err(|_| vec![self.world.clone()])
            }
            10..=12 => {
                self.log.push(format!("zero {range:?}"));
                self.world.blocks[range].iter_mut().for_each(|values| values.push(0));
                self.open.zero(start, count).map_err(|_| vec![self.world.clone()])
            }
            13..=14 => {
                self.log.push("sync".into());
                self.open.sync().map_err(|_| vec![before])?;
                self.world.synced();
                Ok(())
            }
            15..=17 if !self.open.tree().images.contains_key(&names::snapshot(&name)) => {
                self.log.push(format!("snapshot {name}"));
                let info = SnapshotInfo { name: name.clone(), created, user_created: true, labels: None };
                let mut after = self.world.clone();
                after.synced();
                after.snapshots.insert(name, after.current());
                self.open.snapshot(&info).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            18 if self.world.snapshots.contains_key(&name) => {
                self.log.push(format!("revert {name}"));
                let mut after = self.world.clone();
                let mut content = after.snapshots[&name].clone();
                content.resize(after.blocks.len(), 0);
                after.blocks = content.into_iter().map(|value| vec![value]).collect();
                self.open.revert(&name, &created).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            19 if self.world.snapshots.contains_key(&name) => {
                self.log.push(format!("remove {name}"));
                let mut after = self.world.clone();
                after.snapshots.remove(&name);
                self.open.remove(&name).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            20..=21 => self.merge().map_err(|_| vec![self.world.clone()]),
            22 if size < 60 => {
                let blocks = size + 1 + self.dice.below(5);
                self.log.push(format!("expand {blocks}"));
                let mut after = self.world.clone();
                after.blocks.resize(blocks as usize, vec![0]);
                self.open.expand(blocks * BLOCK as u64).map_err(|_| vec![before, after.clone()])?;
                self.world = after;
                Ok(())
            }
            23 => {
                self.log.push("close and open".into());
                self.open.set_dirty(false).map_err(|_| vec![before.clone()])?;
                self.world.synced();
                self.open = ReplicaDir::open(self.disk.dir("r")).map_err(|_| vec![before.clone()])?;
                self.open.set_dirty(true).map_err(|_| vec![before])
            }
            _ => Ok(()),
        }
    }

    /// Some steps of a merge, with writes between them, to its end or not.
    fn merge(&mut self) -> sheaf_disk::fs::Result<()> {
        let Some(mut merge) = self.open.next_merge()? else { return Ok(()) };
        self.log.push(format!("{:?} {} into {}", merge.kind, merge.child, merge.parent));
        while !merge.step(1)? {
            if self.dice.below(8) == 0 {
                self.log.push("merge given up".into());
                return Ok(());
            }
        }
        if self.dice.below(2) == 0 {
            let (block, value) = (self.dice.below(BLOCKS), self.next);
            self.next += 1;
            self.log.push(format!("write {block} {value} meanwhile"));
            self.world.blocks[block as usize].push(value);
            self.open.write(block, &fill(value))?;
        }
        self.open.finish_merge(merge)
    }

    fn crash(&mut self, allowed: &[World]) {
        self.disk.power_cut(&mut self.dice, self.in_order);
        let log = || self.log.join("\n");
        let dir = self.disk.dir("r");
        let names = dir.list().expect("lists");
        let opened = ReplicaDir::open(dir);
        self.open = opened.unwrap_or_else(|error| panic!("{}\n{names:?}\n{}", error.explain(), log()));
        let blocks = self.open.bytes() / BLOCK as u64;
        self.open.undo_unwritten([(0, blocks)]).expect("undoes");
        let mut wrong = Vec::new();
        for world in allowed {
            match compare(&mut self.open, world) {
                Ok(found) => {
                    self.world = world.clone();
                    // What is there now stays; sectors of torn blocks may be of any of the values.
                    let known = found.iter().zip(&self.world.blocks);
                    let _torn: Vec<_> = known.filter(|(value, allowed)| !allowed.contains(value)).collect();
                    for block in 0..blocks {
                        let value = self.next;
                        self.next += 1;
                        self.open.write(block, &fill(value)).expect("writes");
                        self.world.blocks[block as usize] = vec![value];
                    }
                    self.open.sync().expect("syncs");
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
    for seed in 0..600 {
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
                compare(&mut run.open, &newest)
            };
            if let Err(why) = wrong {
                panic!("seed {seed}: {why}\n{}", run.log.join("\n"));
            }
        }
    }
    assert!(crashes > 2000, "{crashes} crashes in {operations} operations");
    println!("{operations} operations, {crashes} power cuts");
}

/// Without a crash only the newest value may be read.
fn newest(world: &World) -> World {
    let mut world = world.clone();
    world.synced();
    world
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
    let mut copy = origin.clone_to("s2", disk.dir("copy"), &rfc3339(2)).expect("clones");
    let read = |open: &mut ReplicaDir<SimDir>| {
        let mut buffer = vec![0; 2 * BLOCK];
        open.read(0, &mut buffer).expect("reads");
        (buffer[0], buffer[BLOCK])
    };
    assert_eq!((read(&mut origin), read(&mut copy)), ((3, 2), (1, 2)));
    // Deleting in the origin merges nothing into a shared file, and the copy keeps all of it.
    origin.remove("s1").expect("removes");
    assert!(origin.next_merge().expect("looks").is_none(), "s1 is shared");
    copy.write(1, &fill(7)).expect("writes");
    assert_eq!((read(&mut origin), read(&mut copy)), ((3, 2), (1, 7)));
    // When the copy is gone, the origin may merge.
    drop(copy);
    let dir = disk.dir("copy");
    for name in dir.list().expect("lists") {
        dir.unlink(&name).expect("removes");
    }
    let mut merge = origin.next_merge().expect("looks").expect("s1 is ours alone again");
    while !merge.step(1 << 20).expect("steps") {}
    origin.finish_merge(merge).expect("ends");
    assert_eq!(read(&mut origin), (3, 2));
    assert_eq!(origin.tree().images.len(), 2);
    assert!(
        origin.clone_to("s9", disk.dir("x"), "").expect_err("refused").explain().contains("no snapshot s9")
    );
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
