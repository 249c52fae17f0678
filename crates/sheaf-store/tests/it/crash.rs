//! SIGKILL in the middle of writes: every write that was acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sheaf_store::sqlite::{Options, SqliteStore};
use sheaf_store::{Revision, Store};

use super::{NOW, scratch_path};

/// Cargo builds a package's examples together with its tests, beside them.
fn victim() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let path = profile.join("examples/crash_writer");
    assert!(path.exists(), "{} is missing; `cargo build -p sheaf-store --examples` makes it", path.display());
    path
}

/// What the victim said of a key.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Written(u64, usize),
    Deleted,
}

/// Runs the victim, kills it after so many lines, and gives what it acknowledged.
fn run_and_kill(path: &std::path::Path, clients: u32, lines: usize) -> BTreeMap<String, Said> {
    let mut child =
        Command::new(victim()).arg(path).arg(clients.to_string()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    for _ in 0..lines {
        assert_ne!(out.read_line(&mut text).unwrap(), 0, "the victim ended by itself");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said between our last read and its death counts as well.
    out.read_to_string(&mut text).unwrap();
    let mut said = BTreeMap::new();
    for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["gone", key, _] => said.insert(key.to_owned(), Said::Deleted),
            [key, at, length] => {
                said.insert(key.to_owned(), Said::Written(at.parse().unwrap(), length.parse().unwrap()))
            }
            _ => panic!("the victim said {line:?}"),
        };
    }
    said
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_by_kill() {
    let (_directory, path) = scratch_path();
    let mut all: BTreeMap<String, Said> = BTreeMap::new();
    // Random enough, and printed, so that a failure can be repeated.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    for round in 0..8u32 {
        let lines = 1 + (seed.rotate_left(round * 4) % 400) as usize;
        let clients = [1, 8, 32][round as usize % 3];
        all.extend(run_and_kill(&path, clients, lines));

        let store = SqliteStore::open(&path, &Options::default()).unwrap();
        let page = store.list("/crash/", "", NOW, 0).await.unwrap();
        assert_eq!(page.at, store.revision().await.unwrap());
        let found: BTreeMap<_, _> = page.entries.iter().map(|e| (e.key.as_str(), e)).collect();
        for (key, said) in &all {
            match (said, found.get(key.as_str())) {
                (Said::Written(at, length), Some(entry)) => {
                    assert_eq!((entry.modified.0, entry.value.len()), (*at, *length), "{key}");
                }
                // A deletion that was done, but not yet acknowledged.
                (Said::Written(at, _), None) => {
                    let number: u32 = key.rsplit('/').next().unwrap().parse().unwrap();
                    assert!(number % 4 == 3, "{key}, acknowledged at {at}, is lost");
                }
                (Said::Deleted, None) => {}
                (Said::Deleted, Some(entry)) => panic!("{key} was deleted, and is back: {entry:?}"),
            }
        }
        // The history above the horizon is whole.
        let horizon = store.oldest().max(Revision(1));
        let changes = store.changes("", horizon, 0).await.unwrap();
        assert_eq!(changes.changes.len() as u64, page.at.0 - horizon.0);
        drop(store);
        let connection = rusqlite::Connection::open(&path).unwrap();
        let verdict: String = connection.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(verdict, "ok");
    }
}

/// A power cut may tear what was not synced yet: the end of the log. What remains must be a prefix of the history. And whatever happened to
/// SQLite's log since the last turn of ours, nothing that was acknowledged is missing while ours is whole.
#[tokio::test]
async fn a_torn_log_leaves_a_prefix() {
    let (directory, path) = scratch_path();
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    let first = store.revision().await.unwrap().0;
    let beside = |name: &str| directory.path().join(format!("state.db{name}"));
    let wal_at_first = std::fs::read(beside("-wal")).unwrap();
    for number in 0..60u8 {
        store.create(&format!("/{number}"), vec![number; 700].into()).await.unwrap();
        if number == 30 {
            // So that some rows are in both.
            store.get("/1", NOW).await.unwrap();
        }
    }
    let (wal, log) = (std::fs::read(beside("-wal")).unwrap(), std::fs::read(beside(".log0")).unwrap());
    let used = log.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // Blocks that never reached the disk read as anything.
    let torn = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at..].fill(0x5a);
        bytes
    };
    let open = async |wal: Vec<u8>, log: Vec<u8>, what: String| {
        let copy = tempfile::tempdir().unwrap();
        let copied = copy.path().join("state.db");
        std::fs::copy(&path, &copied).unwrap();
        std::fs::write(copy.path().join("state.db-wal"), wal).unwrap();
        std::fs::write(copy.path().join("state.db.log0"), log).unwrap();
        let found =
            SqliteStore::open(&copied, &Options::default()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let now = found.revision().await.unwrap().0;
        let page = found.list("/", "", NOW, 0).await.unwrap();
        let mut revisions: Vec<_> = page.entries.iter().map(|e| e.modified.0).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (first + 1..=now).collect::<Vec<_>>(), "{what}");
        assert!(page.entries.iter().all(|e| e.value.iter().all(|b| e.key[1..] == b.to_string())));
        now
    };
    let synced = wal_at_first.len();
    for at in (synced..=wal.len()).step_by((wal.len() - synced) / 23) {
        let now = open(torn(&wal, at), log.clone(), format!("SQLite's log torn at {at}")).await;
        assert_eq!(now, first + 60);
    }
    let mut last = u64::MAX;
    for at in (0..=used).rev().step_by(used / 23) {
        let now = open(wal_at_first.clone(), torn(&log, at), format!("the log torn at {at}")).await;
        assert!(now <= last, "a shorter log cannot hold more");
        last = now;
    }
    assert!(last < first + 10, "the shortest log holds almost nothing");
}
