//! Random sequences of operations, against the model that keeps every state.

use bytes::Bytes;
use proptest::prelude::*;
use sheaf_store::conformance::model::Model;
use sheaf_store::sqlite::{Options, SqliteStore};
use sheaf_store::{Change, Result, Revision, Store};

use super::{NOW, scratch_path};

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    /// Of the key, with the expected revision so far from the right one.
    Update(u8, u64),
    Delete(u8, u64),
    /// So far below the newest revision.
    Compact(u64),
    /// Reads at so far below the newest revision (or above it, when negative).
    Read(i64),
    Page(u8, u64),
    Reopen,
    WatchOn(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..8u8;
    let off = || prop_oneof![8 => Just(0u64), 1 => 1..3u64];
    prop_oneof![
        6 => key().prop_map(Step::Create),
        6 => (key(), off()).prop_map(|(k, o)| Step::Update(k, o)),
        4 => (key(), off()).prop_map(|(k, o)| Step::Delete(k, o)),
        1 => (0..20u64).prop_map(Step::Compact),
        3 => (-2..30i64).prop_map(Step::Read),
        2 => (key(), 0..4u64).prop_map(|(k, l)| Step::Page(k, l)),
        1 => Just(Step::Reopen),
        1 => (0..10u64).prop_map(Step::WatchOn),
    ]
}

/// Keys of different depth, some of them prefixes of others.
fn key(number: u8) -> String {
    ["/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b", "/b/c", "/\u{e9}"][usize::from(number) % 8].to_owned()
}

/// Errors have no equality; their text holds all that matters.
fn text<T: std::fmt::Debug>(result: &Result<T>) -> String {
    format!("{result:?}")
}

async fn agrees(steps: Vec<Step>) {
    let (_directory, path) = scratch_path();
    // Small limits, so that sweeping, replaying and waiting for places happen all the time.
    let options = Options { watch_buffer: 3, queue: 2, log_bytes: 1024, ..Options::default() };
    let open = || SqliteStore::open(&path, &options).unwrap();
    let mut store = open();
    let mut model = Model::new(store.revision().await.unwrap());
    let mut watches = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let value = Bytes::from(number.to_string());
        let expected = |k: &str, off: u64| {
            let now = model.at(NOW).unwrap().get(k).map_or(Revision(1), |e| e.modified);
            Revision(now.0 + off)
        };
        match step {
            Step::Create(k) => {
                let (real, ideal) =
                    (store.create(&key(k), value.clone()).await, model.create(&key(k), value));
                assert_eq!(text(&real), text(&ideal));
            }
            Step::Update(k, off) => {
                let expected = expected(&key(k), off);
                let real = store.update(&key(k), expected, value.clone()).await;
                assert_eq!(text(&real), text(&model.update(&key(k), expected, value)));
            }
            Step::Delete(k, off) => {
                let expected = expected(&key(k), off);
                let real = store.delete(&key(k), expected).await;
                assert_eq!(text(&real), text(&model.delete(&key(k), expected)));
            }
            Step::Compact(below) => {
                let before = Revision(model.revision().0.saturating_sub(below));
                assert_eq!(text(&store.compact(before).await), text(&model.compact(before)));
            }
            Step::Read(below) => {
                let at = Revision(model.revision().0.saturating_add_signed(-below).max(1));
                for k in 0..8 {
                    let real = store.get(&key(k), at).await;
                    let ideal = model.at(at).map(|state| state.get(&key(k)).cloned());
                    assert_eq!(text(&real), text(&ideal));
                }
                let real = store.list("/a", "", at, 0).await.map(|page| page.entries);
                let ideal = model.at(at).map(|state| {
                    state.values().filter(|e| e.key.starts_with("/a")).cloned().collect::<Vec<_>>()
                });
                assert_eq!(text(&real), text(&ideal));
            }
            Step::Page(k, limit) => {
                let page = store.list("/", &key(k), NOW, limit).await.unwrap();
                let mut ideal: Vec<_> =
                    model.at(NOW).unwrap().values().filter(|e| e.key > key(k)).cloned().collect();
                let cut = if limit == 0 { ideal.len() } else { ideal.len().min(limit as usize) };
                let remaining = ideal.split_off(cut).len() as u64;
                assert_eq!((page.entries, page.remaining, page.more), (ideal, remaining, remaining > 0));
            }
            Step::Reopen => {
                store = {
                    drop(store);
                    open()
                };
                // They belong to the closed store.
                watches.clear();
                assert_eq!(store.revision().await.unwrap(), model.revision());
            }
            Step::WatchOn(below) => {
                let from = Revision(model.revision().0.saturating_sub(below).max(1));
                let ideal = model.changes("/a", from);
                match store.watch("/a", from).await {
                    Ok(watch) => watches.push((from, watch)),
                    Err(error) => assert_eq!(text(&Err::<Vec<Change>, _>(error)), text(&ideal)),
                }
            }
        }
    }
    for (from, mut watch) in watches {
        // Compaction may have passed it by; otherwise it sees exactly what happened.
        let Ok(ideal) = model.changes("/a", from) else { continue };
        let mut real = Vec::new();
        while real.len() < ideal.len() {
            real.extend(watch.next().await.unwrap());
        }
        assert_eq!(real, ideal);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(agrees(steps));
    }
}
