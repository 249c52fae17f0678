//! vhost-user-blk with a driver of our own, which checks what it reads and outlives the device's process.

use std::collections::BTreeMap;

use sheaf_storage::api::{Ask, Attach, FrontendAt, ReplicaAt};

use crate::driver::{Driver, SLOTS};
use crate::node::{Node, VOLUME, base};

const BYTES: u64 = 64 << 20;
const BLOCK: usize = 4096;

fn attached(node: &Node) -> std::path::PathBuf {
    node.create(1, BYTES, &[1]);
    let path = node.root.join("vhost.sock");
    node.done(&Ask::Attach(Attach {
        volume: VOLUME.into(),
        name: "vol".into(),
        bytes: BYTES,
        replicas: vec![ReplicaAt { id: 1, address: None }],
        frontends: vec![FrontendAt::Vhost(path.clone())],
    }));
    path
}

#[test]
fn no_request_is_lost_or_done_wrong_while_the_process_is_killed() {
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    let path = attached(&node);
    let mut driver = Driver::connect(&path);
    assert_eq!(driver.sectors, BYTES / 512);
    let blocks = BYTES / BLOCK as u64;
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    // A slot works on blocks of its own, so that requests under way never overlap.
    let mut busy: Vec<Option<(u64, Option<u64>)>> = vec![None; usize::from(SLOTS)];
    let mut seed = 77u64;
    let mut dice = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut done, mut value, mut kills) = (0, 0, 0);
    while done < 6000 {
        for slot in 0..SLOTS {
            if busy[usize::from(slot)].is_some() {
                continue;
            }
            let block = dice(blocks / u64::from(SLOTS)) * u64::from(SLOTS) + u64::from(slot);
            let sector = block * 8;
            match dice(10) {
                0..=4 => {
                    value += 1;
                    driver.offer(
                        slot,
                        1,
                        sector,
                        Some(&u64::to_le_bytes(value).repeat(BLOCK / 8)),
                        BLOCK as u32,
                    );
                    busy[usize::from(slot)] = Some((block, Some(value)));
                }
                5..=8 => {
                    driver.offer(slot, 0, sector, None, BLOCK as u32);
                    busy[usize::from(slot)] = Some((block, None));
                }
                _ => {
                    driver.offer(slot, 4, 0, None, 0);
                    busy[usize::from(slot)] = Some((u64::MAX, None));
                }
            }
        }
        driver.kick();
        if done / 1500 > kills {
            // In the middle of all that.
            kills += 1;
            node.kill();
            node.again();
        }
        for (slot, status) in driver.answered() {
            assert_eq!(status, 0, "no request fails");
            let (block, wrote) = busy[usize::from(slot)].take().expect("was asked once");
            done += 1;
            if let Some(value) = wrote {
                written.insert(block, value);
            } else if block != u64::MAX {
                let expected = written.get(&block).copied().unwrap_or(0);
                let data = driver.data(slot, BLOCK);
                assert!(data == expected.to_le_bytes().repeat(BLOCK / 8), "block {block} is not {expected}");
            }
        }
    }
    assert!(driver.reconnects >= 3, "{}", driver.reconnects);
    while busy.iter().any(Option::is_some) {
        for (slot, _) in driver.answered() {
            busy[usize::from(slot)] = None;
        }
    }
    driver.stop();
}

#[test]
fn what_does_not_fit_gets_an_error_and_a_broken_ring_stops_alone() {
    let base = base();
    let node = Node::start(base.path(), "a", None);
    let path = attached(&node);
    let mut driver = Driver::connect(&path);
    for (kind, sector, len, expected) in
        [(0, BYTES / 512, 512, 1), (0, u64::MAX, 512, 1), (77, 0, 512, 2), (0, 0, 100, 1), (0, 0, 4096, 0)]
    {
        driver.offer(0, kind, sector, None, len);
        driver.kick();
        assert_eq!(driver.answered(), [(0, expected)], "{kind} {sector} {len}");
    }
    // Zeroes and discard, as a guest's kernel asks for them.
    driver.offer(0, 1, 8, Some(&[7; 8192]), 8192);
    driver.kick();
    driver.answered();
    let range = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    driver.offer(1, 13, 0, Some(&range), 16);
    driver.kick();
    assert_eq!(driver.answered(), [(1, 0)]);
    driver.offer(2, 0, 8, None, 8192);
    driver.kick();
    driver.answered();
    let data = driver.data(2, 8192);
    assert!(data[..4096].iter().all(|byte| *byte == 0) && data[4096..].iter().all(|byte| *byte == 7));
    // Another guest of the same process, which hangs up in the middle, changes nothing.
    let mut rude = Driver::connect(&path);
    rude.offer(0, 1, 0, Some(&[1; 4096]), 4096);
    rude.kick();
    drop(rude);
    driver.offer(0, 0, 8, None, 512);
    driver.kick();
    assert_eq!(driver.answered(), [(0, 0)]);
    assert_eq!(node.volume().phase, "serving");
    driver.stop();
}
