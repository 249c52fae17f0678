//! The victim of the crash test: writes until it is killed, and prints each key after its write was acknowledged.
//!
//! `crash_writer FILE CLIENTS`. Each line is `KEY REVISION VALUE-LENGTH`, or `gone KEY REVISION` after a deletion.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sheaf_store::Store;
use sheaf_store::sqlite::{Options, SqliteStore};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn say(line: &str) -> std::io::Result<()> {
    // One write per line, so that a kill leaves whole lines (the last one may be cut).
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

async fn client(store: Arc<SqliteStore>, run: u32, number: u32) -> Result<(), Failure> {
    for round in 0u32.. {
        let key = format!("/crash/{run}/{number}/{round}");
        let length = 1 + (round as usize * 37) % 5000;
        let made = store.create(&key, Bytes::from(vec![number as u8; length])).await?;
        say(&format!("{key} {} {length}\n", made.modified.0))?;
        if round % 4 == 3 {
            let gone = store.delete(&key, made.modified).await?;
            say(&format!("gone {key} {}\n", gone.0))?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(clients)) = (arguments.next(), arguments.next()) else {
        return Err("usage: crash_writer FILE CLIENTS".into());
    };
    // Compaction runs all the time, so that kills hit its sweeps, too; and the log is short, so that they hit its turns.
    let options = Options {
        keep_for: Duration::from_millis(20),
        keep_revisions: 50,
        log_bytes: 64 << 10,
        ..Options::default()
    };
    let store = Arc::new(SqliteStore::open(Path::new(&file), &options)?);
    let run = std::process::id();
    let tasks: Vec<_> = (0..clients.parse()?).map(|n| tokio::spawn(client(store.clone(), run, n))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}
