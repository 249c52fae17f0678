//! Cases with many clients at once.

use std::sync::Arc;

use super::{bytes, collect, keys, put, remove};
use crate::{Change, Result, Revision, Store, StoreError};

const NOW: Revision = Revision(0);

pub(super) async fn one_of_many_creators_wins(store: Arc<dyn Store>) {
    for round in 0..10 {
        let key = format!("/contended/{round}");
        let racers: Vec<_> = (0..32)
            .map(|racer| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.create(&key, bytes(&racer.to_string())).await })
            })
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                Ok(entry) => winners.push(entry),
                Err(StoreError::Exists(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get(&key, NOW).await.unwrap().as_ref(), winners.first());
    }
}

/// Adds one to the number at `key`, by compare and swap.
async fn increment(store: &dyn Store, key: &str) -> Result<()> {
    let mut current = store.get(key, NOW).await?;
    loop {
        let Some(entry) = current else { panic!("the counter is gone") };
        let number: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
        match store.update(key, entry.modified, bytes(&(number + 1).to_string())).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict(now)) => current = now,
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn counters_lose_nothing(store: Arc<dyn Store>) {
    for key in ["/counter/0", "/counter/1"] {
        store.create(key, bytes("0")).await.unwrap();
    }
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    increment(&*store, &format!("/counter/{}", task % 2)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for key in ["/counter/0", "/counter/1"] {
        assert_eq!(store.get(key, NOW).await.unwrap().unwrap().value, bytes("256"), "{key}");
    }
}

/// Writes, changes and deletes keys of its own.
async fn churn(store: Arc<dyn Store>, client: usize, rounds: usize) {
    for round in 0..rounds {
        let key = format!("/churn/{client}/{}", round % 3);
        match round % 5 {
            4 if store.get(&key, NOW).await.unwrap().is_some() => drop(remove(&*store, &key).await),
            _ => drop(put(&*store, &key, &round.to_string()).await),
        }
    }
}

pub(super) async fn watchers_see_every_change_once_in_order(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let clients: Vec<_> = (0..8).map(|client| tokio::spawn(churn(store.clone(), client, 60))).collect();
    // Each begins at another moment, all see the whole.
    let watchers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut watch = store.watch("/churn/", start).await.unwrap();
                collect(&mut *watch, 480).await.unwrap()
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let truth = store.changes("/churn/", start, 0).await.unwrap().changes;
    assert_eq!(truth.len(), 480);
    for pair in truth.windows(2) {
        assert_eq!(pair[1].revision().0, pair[0].revision().0 + 1);
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), truth);
    }
}

pub(super) async fn a_slow_watcher_slows_nobody(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let mut slow = store.watch("/s/", start).await.unwrap();
    let mut quick = store.watch("/s/", start).await.unwrap();
    const WRITES: usize = 3000;
    for chunk in 0..WRITES / 100 {
        let writes = (0..100).map(|n| {
            let store = store.clone();
            async move { store.create(&format!("/s/{chunk}/{n}"), bytes("v")).await.map(drop) }
        });
        futures_util::future::try_join_all(writes).await.unwrap();
        assert!(collect(&mut *quick, 100).await.unwrap().len() >= 100);
    }
    // It gets all of it late, or is told to list again; never a part of it.
    let mut expected = start.0;
    while expected < start.0 + WRITES as u64 {
        match slow.next().await {
            Ok(batch) => {
                for change in batch {
                    expected += 1;
                    assert_eq!(change.revision(), Revision(expected));
                }
            }
            Err(StoreError::Compacted { .. }) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub(super) async fn readers_see_their_own_writes(store: Arc<dyn Store>) {
    let clients: Vec<_> = (0..16)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let key = format!("/own/{client}/{round}");
                    let made = store.create(&key, bytes("v")).await.unwrap();
                    assert!(store.revision().await.unwrap() >= made.modified);
                    assert_eq!(store.get(&key, NOW).await.unwrap().unwrap(), made);
                    assert_eq!(store.get(&key, made.modified).await.unwrap().unwrap(), made);
                    let own = keys(&*store, &format!("/own/{client}/"), NOW).await;
                    assert_eq!(own.len(), round + 1);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

pub(super) async fn compaction_disturbs_no_reader_of_newer_revisions(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("/churn/", start).await.unwrap();
    let clients: Vec<_> = (0..4).map(|client| tokio::spawn(churn(store.clone(), client, 100))).collect();
    let compactor = {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                let now = store.revision().await.unwrap();
                store.compact(Revision(now.0.saturating_sub(30))).await.unwrap();
                if now.0 >= start.0 + 400 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    };
    // A mirror made of the changes alone.
    let mut mirror = std::collections::BTreeMap::new();
    let mut seen = start.0;
    while seen < start.0 + 400 {
        for change in watch.next().await.unwrap() {
            seen += 1;
            assert_eq!(change.revision(), Revision(seen));
            match change {
                Change::Put { entry, previous } => {
                    assert_eq!(mirror.insert(entry.key.clone(), entry), previous);
                }
                Change::Delete { previous, .. } => assert_eq!(mirror.remove(&previous.key), Some(previous)),
            }
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    compactor.await.unwrap();
    let now = store.list("/churn/", "", NOW, 0).await.unwrap();
    assert_eq!(now.entries, mirror.into_values().collect::<Vec<_>>());
}
