//! The conformance suite against the SQLite backend, with habits that make its corners frequent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sheaf_store::conformance;
use sheaf_store::sqlite::{Options, SqliteStore};

async fn conforms(options: Options) {
    let directory = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    conformance::all(|| {
        let name = format!("{}.db", count.fetch_add(1, Ordering::Relaxed));
        Box::new(SqliteStore::open(&directory.path().join(name), &options).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    conforms(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_with_tiny_limits() {
    let options = Options {
        queue: 1,
        group: 2,
        watch_buffer: 2,
        readers: 1,
        page_cache_kib: 64,
        log_bytes: 4096,
        ..Options::default()
    };
    conforms(options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_while_it_samples_for_compaction_all_the_time() {
    let options = Options { keep_for: Duration::from_nanos(10), keep_revisions: 5000, ..Options::default() };
    conforms(options).await;
}
