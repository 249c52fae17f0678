//! The file itself: modes, locks, versions, damage, space.

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use sheaf_store::sqlite::{OpenError, Options, SqliteStore};
use sheaf_store::{Revision, Store, StoreError};

const NOW: Revision = Revision(0);

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    let made = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    let changed = store.update("/a", made.modified, Bytes::from_static(b"2")).await.unwrap();
    store.compact(changed.modified).await.unwrap();
    drop(store);
    for name in ["state.db", "state.db.lock"] {
        let mode = directory.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let store = SqliteStore::open(&path, &Options::default()).unwrap();
    assert_eq!(store.get("/a", NOW).await.unwrap(), Some(changed.clone()));
    assert_eq!(store.revision().await.unwrap(), changed.modified);
    assert_eq!(store.oldest(), changed.modified);
    assert!(matches!(store.get("/a", made.modified).await, Err(StoreError::Compacted { .. })));
    let next = store.create("/b", Bytes::new()).await.unwrap();
    assert_eq!(next.modified.0, changed.modified.0 + 1);
}

#[tokio::test]
async fn the_log_beside_the_file_is_private_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("state.db"), &Options::default()).unwrap();
    store.create("/a", Bytes::new()).await.unwrap();
    for name in ["state.db-wal", "state.db-shm"] {
        let mode = directory.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn two_at_once_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let first = SqliteStore::open(&path, &Options::default()).unwrap();
    let error = SqliteStore::open(&path, &Options::default()).err().unwrap();
    assert!(matches!(&error, OpenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(first);
    SqliteStore::open(&path, &Options::default()).unwrap();
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(SqliteStore::open(&path, &Options::default()).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let error = SqliteStore::open(&path, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::FutureFormat { found: 2, known: 1, .. }), "{error:?}");

    let foreign = directory.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    let error = SqliteStore::open(&foreign, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");

    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, vec![7u8; 8192]).unwrap();
    let error = SqliteStore::open(&garbage, &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");

    let error = SqliteStore::open(&directory.path().join("no/state.db"), &Options::default()).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}
